//! What `list`, `show` and `status` print about logical dumps.

use super::look_args::KindArg;
use super::look_text::{self, LABEL, duration, second, short, table};
use super::output::{one_line, size};
use crate::command::list::{ListReport, ListedState};
use crate::command::list_dumps::{ListedDump, ShowDumpReport};
use crate::command::status::DumpsStatus;
use crate::repo::dump_manifest::{DumpContent, DumpForm};

/// The tables of `list`: backups, then dumps, if there are any or they are asked for.
pub fn list(report: &ListReport, kind: Option<KindArg>) -> String {
    let only = kind == Some(KindArg::Dump);
    let mut text = match only && report.generations > 0 {
        true => String::new(),
        false => look_text::list(report),
    };
    if report.dumps.is_empty() {
        if only && report.generations > 0 {
            text.push_str(&format!("{} has no dump: take one with `pgark dump`\n", report.repository));
        }
        return text;
    }
    if !text.is_empty() {
        text.push('\n');
    }
    let header = ["DUMP", "STATE", "STARTED", "TOOK", "SIZE", "STORED", "KEPT", "DATABASES", "LABEL"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(report.dumps.iter().map(row));
    text.push_str(&table(&rows));
    for dump in report.dumps.iter().filter(|dump| dump.state == ListedState::Damaged) {
        let reason = dump.reason.as_deref().unwrap_or_default();
        text.push_str(&format!("{} is damaged: {}\n", dump.id, one_line(reason)));
    }
    text
}

fn row(dump: &ListedDump) -> Vec<String> {
    let state = match dump.state {
        ListedState::Whole => "whole",
        ListedState::Damaged => "damaged",
        ListedState::Unfinished => "unfinished",
    };
    let kept = match (dump.kept, dump.kept_until) {
        (false, _) => "-".to_owned(),
        (true, None) => "kept".to_owned(),
        (true, Some(until)) => format!("until {}", second(until)),
    };
    let none = || "-".to_owned();
    let facts = dump.facts.as_ref();
    vec![
        dump.id.to_string(),
        state.to_owned(),
        second(facts.map_or(dump.id.begun(), |facts| facts.started)),
        facts.map_or_else(none, |facts| duration(facts.seconds as i64)),
        facts.map_or_else(none, |facts| size(facts.plain_bytes)),
        size(dump.stored_bytes),
        kept,
        facts.map_or_else(none, |facts| short(&databases(&facts.databases, facts.globals), LABEL)),
        facts.map_or_else(String::new, |facts| short(&one_line(&facts.label), LABEL)),
    ]
}

fn databases(names: &[String], globals: bool) -> String {
    let names = names.iter().map(|name| one_line(name));
    let globals = globals.then(|| "(globals)".to_owned());
    names.chain(globals).collect::<Vec<_>>().join(", ")
}

/// The screen of `show`.
pub fn show(report: &ShowDumpReport) -> String {
    let dump = &report.dump;
    let mut text = format!("dump {}\n", dump.id);
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<13} {value}\n"));
    let reason = dump.kept_reason.as_deref().map(|reason| format!(": {}", one_line(reason))).unwrap_or_default();
    line(
        "kept",
        match (dump.kept, dump.kept_until) {
            (true, None) => format!("yes{reason}"),
            (true, Some(until)) => format!("until {}{reason}", second(until)),
            (false, None) => "no".to_owned(),
            (false, Some(until)) => format!("no longer, since {}{reason}", second(until)),
        },
    );
    line("objects", format!("{} parts, {} in all", report.parts, size(dump.stored_bytes)));
    let (Some(facts), Some(details)) = (&dump.facts, &report.details) else {
        let state = match &dump.reason {
            Some(reason) => format!("damaged: {}", one_line(reason)),
            None => "no manifest: it is being taken, or was never finished".to_owned(),
        };
        line("state", state);
        return text;
    };
    line("label", if facts.label.is_empty() { "none".to_owned() } else { one_line(&facts.label) });
    let (started, stopped) = (second(facts.started), second(facts.stopped));
    line("taken", format!("{started} to {stopped}, {}", duration(facts.seconds as i64)));
    let from = if facts.from_standby { "a standby" } else { "a primary" };
    line("method", format!("{}, of {from}, by {}", one_line(&details.program), one_line(&details.writer)));
    line("cluster", format!("system identifier {}, PostgreSQL {}", details.system_identifier, details.postgres_major));
    line("size", format!("{} in {} files", size(facts.plain_bytes), details.files.len()));
    for file in &details.files {
        let what = match &file.content {
            DumpContent::Globals => "what belongs to no database".to_owned(),
            DumpContent::Database { database } => format!("database {}", one_line(database)),
        };
        let form = match file.form {
            DumpForm::Sql => "sql",
            DumpForm::Custom => "custom",
            DumpForm::Directory => "directory",
        };
        let (plain, stored) = (size(file.plain_bytes), size(file.stored_bytes));
        line(&format!("file {}", file.file), format!("{what}, {form}, {plain} in {} parts of {stored}", file.parts));
    }
    text
}

/// The line of `status`.
pub fn status(dumps: &DumpsStatus) -> String {
    let mut text = match (dumps.newest, dumps.newest_age_seconds) {
        (Some(id), Some(age)) => format!("{}; the newest is {id}, {} old", dumps.whole, duration(age)),
        _ => dumps.whole.to_string(),
    };
    for (count, what) in [(dumps.damaged, "damaged"), (dumps.unfinished, "unfinished")] {
        if count > 0 {
            text.push_str(&format!("; {count} {what}"));
        }
    }
    format!("{text}; {} in all", size(dumps.stored_bytes))
}
