//! What is printed: reports on stdout, failures on stderr in at most two lines.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::args::ColorArg;
use super::keys::{KEYS, Kind};
use super::logging::LogFormat;
use super::sources::{Origin, Sources};
use crate::command::Failure;
use crate::command::backfill::BackfillReport;
use crate::command::check::{CheckReport, Level};

/// Writes text to stdout. A reader that went away early is no failure of ours.
pub fn print(text: &str) -> io::Result<()> {
    print_on(text).map(drop)
}

/// The same of what goes on: whether anybody still reads.
pub fn print_on(text: &str) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true),
    }
}

/// Writes a report as JSON.
pub fn print_json(report: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(report).map_err(io::Error::other)?;
    text.push('\n');
    print(&text)
}

/// Tells of a failure on stderr: what happened, and what to do.
pub fn tell(failure: &Failure, format: LogFormat) {
    let message = one_line(&failure.message);
    let hint = failure.hint.as_deref().map(one_line);
    let text = match format {
        LogFormat::Text => {
            let hint = hint.map(|hint| format!("pgark: hint: {hint}\n")).unwrap_or_default();
            format!("pgark: error: {message}\n{hint}")
        }
        LogFormat::Json => {
            let fields = serde_json::json!({
                "level": "ERROR", "kind": failure.kind.word(), "message": message, "hint": hint,
            });
            format!("{fields}\n")
        }
    };
    // With stderr closed there is nobody left to tell; the exit code still says it.
    io::stderr().lock().write_all(text.as_bytes()).ok();
}

/// clap's first sentence: the rest would flood PostgreSQL's log.
pub fn usage_message(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let paragraph: Vec<&str> = text.lines().take_while(|line| !line.trim().is_empty()).collect();
    let message = paragraph.join(" ");
    message.strip_prefix("error: ").unwrap_or(&message).to_owned()
}

/// A size for people.
pub fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

/// Text from elsewhere in one line, without what would move a terminal's cursor.
pub fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace(char::is_control, "?")
}

/// Whether stdout shall be coloured.
pub fn colored(wish: ColorArg) -> bool {
    match wish {
        ColorArg::Always => true,
        ColorArg::Never => false,
        ColorArg::Auto => {
            io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        }
    }
}

/// The lines of `check`. The words say everything; colour only helps the eye.
pub fn check_text(report: &CheckReport, colored: bool) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let (level, color) = match finding.level {
            Level::Ok => ("OK", 32),
            Level::Warning => ("WARNING", 33),
            Level::Unknown => ("UNKNOWN", 35),
            Level::Fail => ("FAIL", 31),
        };
        let level = if colored { format!("\x1b[{color}m{level:<8}\x1b[0m") } else { format!("{level:<8}") };
        text.push_str(&format!("{level} {:<18} {}\n", finding.check, one_line(&finding.message)));
        if let Some(hint) = &finding.hint {
            text.push_str(&format!("{:<27} hint: {}\n", "", one_line(hint)));
        }
    }
    text
}

/// The lines of `wal-push --backfill`.
pub fn backfill_text(report: &BackfillReport) -> String {
    let mut text = format!(
        "{} archived, {} there before, {} failed\n",
        report.archived.len(),
        report.already_there.len(),
        report.failed.len()
    );
    for name in &report.archived {
        text.push_str(&format!("archived {name}\n"));
    }
    for failed in &report.failed {
        text.push_str(&format!("failed   {}: {}\n", failed.name, one_line(&failed.reason)));
    }
    text
}

/// Every setting with its value, as lines of `section.key = value`. Secrets are hidden.
pub fn config_text(sources: &Sources, with_origin: bool) -> String {
    let mut text = String::new();
    for (path, value, origin) in shown(sources) {
        let value = value.unwrap_or_else(|| "(not set)".to_owned());
        let line = format!("{path} = {value}");
        text.push_str(&if with_origin { format!("{line:<50} # {origin}\n") } else { format!("{line}\n") });
    }
    text
}

/// The same as JSON.
pub fn config_json(sources: &Sources) -> serde_json::Value {
    let settings: Vec<_> = shown(sources)
        .map(|(path, value, origin)| serde_json::json!({"key": path, "value": value, "origin": origin}))
        .collect();
    serde_json::json!({"schema": 1, "settings": settings})
}

fn shown(sources: &Sources) -> impl Iterator<Item = (String, Option<String>, String)> + '_ {
    KEYS.iter().map(|key| {
        let path = key.path();
        let value = sources.get(&path).map(|value| match key.kind {
            Kind::Secret => "<hidden>".to_owned(),
            // A URL that is refused may hold a secret, too.
            _ if path == "repo.url" || path == "repo.endpoint" => without_credentials(value),
            // The secret itself, where its file's path belongs, is shown as little as the secret.
            Kind::Path if path.ends_with("_file") && path != "repo.ca_file" && !is_file(value) => {
                "<hidden: no such file>".to_owned()
            }
            _ => value.to_owned(),
        });
        let origin = sources.origin(&path).unwrap_or(&Origin::Default).to_string();
        (path, value, origin)
    })
}

fn is_file(path: &str) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file())
}

fn without_credentials(url: &str) -> String {
    if url.contains('@') { "<hidden>".to_owned() } else { url.to_owned() }
}

/// A file with every setting, commented out where it says what would hold anyway.
pub fn config_example() -> String {
    let mut text =
        String::from("# Settings of pgark: /etc/pgark/pgark.toml. The smallest useful file has one line, `url`.\n");
    let mut section = "";
    for key in KEYS {
        if key.section != section {
            section = key.section;
            text.push_str(&format!("\n[{section}]\n"));
        }
        let value = match (key.kind, key.default) {
            (Kind::Bool | Kind::Integer(..), Some(default)) => default.to_owned(),
            (Kind::Bool, None) => "true".to_owned(),
            (Kind::Integer(lowest, _), None) => lowest.to_string(),
            (_, Some(default)) => format!("\"{default}\""),
            (_, None) => "\"...\"".to_owned(),
        };
        text.push_str(&format!("# {}\n# {} = {value}\n", key.doc, key.name));
    }
    text
}
