//! The words of `init`: questions on a terminal, the file, the lines for `postgresql.conf`.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use super::args::{Global, InitArgs};
use super::keys::{KEYS, Kind};
use super::output;
use super::run::{block_on, cannot_print};
use super::settings;
use super::sources::{DEFAULT_FILE, FlagValue, Origin, Sources};
use crate::command::check::{self, Check, Level};
use crate::command::{Circumstances, Failure, FailureKind, init};

/// Runs `init`.
pub fn run(args: &InitArgs, global: &Global, sources: &Sources, circumstances: &Circumstances) -> Result<u8, Failure> {
    if args.new_generation {
        return new_generation(sources, circumstances);
    }
    let flags = ask(args, global, sources)?;
    let path = file(global);
    let answered = Sources::read_for_new_file(flags, std::env::vars(), &path)?;
    let repository = settings::repository(&answered)?;
    let text = file_text(&answered);
    let program = std::env::current_exe().map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
    let options = match path.to_str() {
        Some(DEFAULT_FILE) => String::new(),
        _ => format!("--config {}", std::path::absolute(&path).unwrap_or(path.clone()).display()),
    };
    let lines = init::postgresql_conf(&program, &options);
    if args.dry_run {
        output::print(&format!("# {}\n{text}\n# postgresql.conf\n{lines}", path.display())).map_err(cannot_print)?;
        return Ok(super::exit::SUCCESS);
    }
    init::write_settings(&path, &text, settings::pgdata(&answered).as_deref())?;
    tracing::info!("wrote `{}`", path.display());
    let probe = Check {
        repository,
        pgdata: settings::pgdata(&answered),
        conninfo: settings::conninfo(&answered)?,
        binary: None,
        read_words: super::archive_command::read,
        switch_within: None,
        deadline: check::LONGEST,
    };
    let report = block_on(check::run_store(&probe, circumstances))?;
    note(&format!("wrote {}\n{}", path.display(), output::check_text(&report, false)));
    output::print(&format!("# add to postgresql.conf, and restart the server:\n{lines}")).map_err(cannot_print)?;
    match report.worst() {
        Level::Ok | Level::Warning => Ok(super::exit::SUCCESS),
        Level::Fail | Level::Unknown => Err(Failure::new(
            FailureKind::WrongPlace,
            "the settings are written, but the repository cannot be used with them yet",
        )
        .with_hint("mend what the lines above say, then run `pgark check`")),
    }
}

/// The file to write.
pub fn file(global: &Global) -> PathBuf {
    global.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE))
}

fn new_generation(sources: &Sources, circumstances: &Circumstances) -> Result<u8, Failure> {
    let repository = settings::repository(sources)?;
    let generation = block_on(init::open_generation(&repository, settings::pgdata(sources), circumstances))?;
    output::print(&format!("opened generation {generation}\n")).map_err(cannot_print)?;
    Ok(super::exit::SUCCESS)
}

/// The flags, and on a terminal the answers to what they left open.
fn ask(args: &InitArgs, global: &Global, sources: &Sources) -> Result<Vec<FlagValue>, Failure> {
    let mut flags = Vec::new();
    let interactive = !args.yes && io::stdin().is_terminal();
    for (path, flag, given, question) in [
        ("repo.url", "--repo", &global.repo, "Where shall the archive be (s3://bucket/prefix or file:///path)?"),
        ("cluster.name", "--cluster", &global.cluster, "What is this cluster called?"),
        ("cluster.pgdata", "--pgdata", &global.pgdata, "Where is its data directory?"),
        ("cluster.conninfo", "--conninfo", &global.conninfo, "How is the server reached (empty: as psql does)?"),
    ] {
        let known = sources.get(path).map(str::to_owned);
        let text = match (given, interactive) {
            (Some(given), _) => Some(given.clone()),
            (None, true) => answer(question, known.as_deref()).map_err(cannot_print)?,
            (None, false) => None,
        };
        flags.extend(text.map(|text| FlagValue { path, flag, text }));
    }
    Ok(flags)
}

fn answer(question: &str, known: Option<&str>) -> io::Result<Option<String>> {
    let mut terminal = io::stderr().lock();
    let default = known.map(|known| format!(" [{known}]")).unwrap_or_default();
    write!(terminal, "{question}{default} ")?;
    terminal.flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let text = line.trim();
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// What was wished for, as a file. Values from the environment are left there: they may be secrets of the session.
fn file_text(sources: &Sources) -> String {
    let mut text = String::from("# Written by `pgark init`; `pgark config example` shows all settings.\n");
    let mut section = "";
    for key in KEYS.iter().filter(|key| key.section != "log") {
        let path = key.path();
        let wished = matches!(sources.origin(&path), Some(Origin::Flag(_) | Origin::File(..)));
        let (Some(value), true) = (sources.get(&path), wished) else { continue };
        if key.section != section {
            section = key.section;
            text.push_str(&format!("\n[{section}]\n"));
        }
        let value = match key.kind {
            Kind::Bool | Kind::Integer(..) => value.to_owned(),
            _ => toml::Value::String(value.to_owned()).to_string(),
        };
        text.push_str(&format!("{} = {value}\n", key.name));
    }
    text
}

fn note(text: &str) {
    // Without a stderr nobody reads it.
    io::stderr().lock().write_all(text.as_bytes()).ok();
}
