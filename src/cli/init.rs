//! The words of `init`: questions on a terminal, the file, the lines for `postgresql.conf`.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use super::args::{Global, InitArgs};
use super::keys::{KEYS, Kind};
use super::output;
use super::run::{block_on, cannot_print, environment};
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
    let answered = Sources::read_for_new_file(flags, environment(), &path)?;
    let repository = settings::repository(&answered)?;
    // Before anything is written: what is refused would stay in the file.
    let conninfo = settings::conninfo(&answered)?;
    let pgdata = settings::pgdata(&answered);
    let text = file_text(&answered);
    let program = std::env::current_exe().map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
    let absolute = std::path::absolute(&path).unwrap_or(path.clone());
    let named = (path != Path::new(DEFAULT_FILE)).then_some(absolute.as_path());
    let lines = init::postgresql_conf(&program, named)?;
    if args.dry_run {
        output::print(&format!("# {}\n{text}\n# postgresql.conf\n{lines}", path.display())).map_err(cannot_print)?;
        return Ok(super::exit::SUCCESS);
    }
    warn_of_what_is_left_behind(&answered);
    if !init::write_settings(&path, &text, pgdata.as_deref())? {
        tracing::warn!(
            "no data directory is known, so `{}` belongs to root alone: let the server's user read it (`chgrp postgres`), \
             and the directories above",
            path.display()
        );
    }
    tracing::info!("wrote `{}`", path.display());
    let probe = Check {
        repository,
        pgdata,
        conninfo,
        slot: String::new(),
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

/// Secrets of the session stay in its environment: the server must get them in another way.
fn warn_of_what_is_left_behind(sources: &Sources) {
    for key in KEYS.iter().filter(|key| key.kind == Kind::Secret) {
        if let Some(Origin::Environment(variable)) = sources.origin(&key.path()) {
            tracing::warn!("`{variable}` is not written into the file; the server's environment must have it");
        }
    }
}

/// What was wished for, as a file. Of the environment everything but secrets.
fn file_text(sources: &Sources) -> String {
    let mut text = String::from("# Written by `pgark init`; `pgark config example` shows all settings.\n");
    let mut section = "";
    for key in KEYS.iter().filter(|key| key.section != "log") {
        let path = key.path();
        let wished = match sources.origin(&path) {
            Some(Origin::Flag(_) | Origin::File(..)) => true,
            Some(Origin::Environment(_)) => key.kind != Kind::Secret,
            Some(Origin::Default) | None => false,
        };
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
