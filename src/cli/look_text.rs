//! What `list`, `show` and `status` print for people.

use jiff::Timestamp;

use super::dump_text;
use super::output::{check_text, one_line, size};
use crate::command::check::{CheckReport, Level};
use crate::command::forecast::about;
use crate::command::list::{Kind, ListReport, ListedBackup, ListedState};
use crate::command::show::{Details, MissingWal, ShowReport};
use crate::command::status::{IntervalStatus, ReceiverStatus, ServerStatus, StatusReport, TimelineStatus};
use crate::command::status_expiry::ExpiryStatus;
use crate::repo::BackupId;
use crate::repo::manifest::Method;

/// A label may be long.
pub(super) const LABEL: usize = 32;

/// The table of `list`.
pub fn list(report: &ListReport) -> String {
    let repository = &report.repository;
    if report.generations == 0 {
        return format!(
            "{repository} is empty: nothing was archived here yet, or its URL or cluster name is another\n"
        );
    }
    if report.backups.is_empty() {
        return format!("{repository} has no backup: take one with `pgark basebackup`\n");
    }
    let header = [
        "ID",
        "KIND",
        "STARTED",
        "TOOK",
        "SIZE",
        "STORED",
        "TIMELINE",
        "START",
        "STOP",
        "WAL",
        "KEPT",
        "BAD PAGES",
        "LABEL",
    ];
    let several = report.backups.iter().any(|backup| backup.generation != report.backups[0].generation);
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(report.backups.iter().map(row));
    if several {
        rows[0].insert(1, "GENERATION".to_owned());
        for (row, backup) in rows[1..].iter_mut().zip(&report.backups) {
            row.insert(1, backup.generation.to_string());
        }
    }
    let mut text = table(&rows);
    for backup in report.backups.iter().filter(|backup| backup.state == ListedState::Damaged) {
        let reason = backup.reason.as_deref().unwrap_or_default();
        text.push_str(&format!("{} is damaged: {}\n", backup.id, one_line(reason)));
    }
    text
}

fn row(backup: &ListedBackup) -> Vec<String> {
    let kept = match (backup.kept, backup.kept_until) {
        (false, _) => "-".to_owned(),
        (true, None) => "kept".to_owned(),
        (true, Some(until)) => format!("until {}", second(until)),
    };
    let stored = size(backup.stored_bytes);
    let Some(facts) = &backup.facts else {
        let state = if backup.state == ListedState::Damaged { "damaged" } else { "unfinished" };
        let none = || "-".to_owned();
        let id = backup.id.to_string();
        let (started, bad_pages) = (second(backup.id.begun()), none());
        return vec![
            id,
            state.to_owned(),
            started,
            none(),
            none(),
            stored,
            none(),
            none(),
            none(),
            none(),
            kept,
            bad_pages,
            String::new(),
        ];
    };
    vec![
        backup.id.to_string(),
        format!("{} {}{}", kind(facts.kind), method(facts.method), if facts.from_standby { ", standby" } else { "" }),
        second(facts.started),
        duration(facts.seconds as i64),
        size(facts.plain_bytes),
        stored,
        facts.timeline.to_string(),
        facts.start_lsn.to_string(),
        facts.stop_lsn.to_string(),
        segments(facts.wal_segments),
        kept,
        facts.bad_pages.to_string(),
        label(backup.id, &facts.label).map_or_else(String::new, |label| short(label, LABEL)),
    ]
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Full => "full",
    }
}

/// What somebody called it.
pub(super) fn label(id: BackupId, label: &str) -> Option<&str> {
    Some(label).filter(|label| *label != id.own_label())
}

fn method(method: Method) -> &'static str {
    match method {
        Method::Local => "local",
        Method::Remote => "remote",
    }
}

/// Columns as wide as their widest cell.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// The screen of `show`.
pub fn show(report: &ShowReport) -> String {
    let backup = &report.backup;
    let mut text = format!("backup {}, generation {}\n", backup.id, backup.generation);
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<13} {value}\n"));
    line("kept", kept(backup));
    line("objects", format!("{} parts, {} in all", report.parts, size(backup.stored_bytes)));
    let (Some(facts), Some(details)) = (&backup.facts, &report.details) else {
        let state = match &backup.reason {
            Some(reason) => format!("damaged: {}", one_line(reason)),
            None => "no manifest: it is being taken, or was never finished".to_owned(),
        };
        line("state", state);
        return text;
    };
    line("label", label(backup.id, &facts.label).map_or("none".to_owned(), one_line));
    line(
        "taken",
        format!("{} to {}, {}", second(facts.started), second(facts.stopped), duration(facts.seconds as i64)),
    );
    let from = if facts.from_standby { "a standby" } else { "a primary" };
    line(
        "method",
        format!("{}, {}, of {from}, by {}", kind(facts.kind), method(facts.method), one_line(&details.writer)),
    );
    line("cluster", format!("system identifier {}, PostgreSQL {}", details.system_identifier, details.postgres_major));
    line("size", format!("{} in {} files", size(facts.plain_bytes), details.files));
    line("timeline", facts.timeline.to_string());
    line("consistent", format!("{}, {}", facts.stop_lsn, second(facts.stopped)));
    line("WAL", format!("{} to {}, {}", facts.wal_first, facts.wal_last, segments(facts.wal_segments)));
    line("WAL is there", wal_is_there(&details.wal_missing));
    line("checksums", checksums(details, facts.bad_pages));
    for page in &details.bad_pages {
        line("", one_line(page));
    }
    for (name, value, _) in details.settings.limits() {
        line("setting", format!("{name} = {value}"));
    }
    for tablespace in &details.tablespaces {
        line("tablespace", format!("{} at {}", tablespace.oid, one_line(&tablespace.location)));
    }
    text
}

fn kept(backup: &ListedBackup) -> String {
    let mut text = match (backup.kept, backup.kept_until) {
        (true, None) => "yes".to_owned(),
        (true, Some(until)) => format!("until {}", second(until)),
        (false, None) => return "no".to_owned(),
        (false, Some(until)) => format!("no longer, since {}", second(until)),
    };
    if let Some(reason) = &backup.kept_reason {
        text.push_str(&format!(": {}", one_line(reason)));
    }
    text
}

fn wal_is_there(missing: &[MissingWal]) -> String {
    match missing {
        [] => "all of it".to_owned(),
        missing => format!("no: {} missing", missing.iter().map(span).collect::<Vec<_>>().join(", ")),
    }
}

fn checksums(details: &Details, bad_pages: u64) -> String {
    match (details.page_checksums, bad_pages) {
        (false, _) => "the cluster has none".to_owned(),
        (true, 0) => "all pages are right".to_owned(),
        (true, count) => format!("{count} pages are wrong"),
    }
}

/// The screen of `status`.
pub fn status(report: &StatusReport, colored: bool) -> String {
    let mut text = format!("{}\ngeneration {}: {}\n\n", report.repository, report.generation, report.cluster);
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<10} {value}\n"));
    line("newest", newest(report));
    line("backups", backups(report));
    if report.dumps.whole + report.dumps.damaged + report.dumps.unfinished > 0 {
        line("dumps", dump_text::status(&report.dumps));
    }
    line("stored", stored(report));
    if let Some(told) = &report.forecast {
        let drills = if told.drills == 1 { "drill".to_owned() } else { format!("{} drills", told.drills) };
        line("forecast", format!("a restore now would take about {}, by the newest {drills}", about(told.seconds)));
    }
    line("expiry", expiry(&report.expiry));
    if let Some(server) = &report.server {
        line("server", server_text(server));
    }
    for timeline in &report.timelines {
        text.push('\n');
        text.push_str(&timeline_text(timeline, report));
    }
    text.push('\n');
    match report.worst() {
        Level::Ok => text.push_str("OK: the latest state can be restored, and nothing is missing\n"),
        _ => text.push_str(&check_text(&CheckReport { schema: 1, findings: report.findings.clone() }, colored)),
    }
    text
}

fn newest(report: &StatusReport) -> String {
    let Some(newest) = &report.newest else {
        return "nothing can be restored".to_owned();
    };
    let end = if newest.live { "the end of the live tail of" } else { "the end of" };
    let mut text = format!("up to {}, {end} {}, all can be restored", newest.lsn, newest.segment);
    if let Some(commit) = newest.last_commit {
        text.push_str(&format!("; last commit {}", second(commit)));
    }
    if let Some(age) = newest.age_seconds {
        text.push_str(&format!("; stored {} ago", duration(age)));
    }
    text
}

fn backups(report: &StatusReport) -> String {
    let backups = &report.backups;
    let mut text = match (&backups.newest, backups.newest_age_seconds) {
        (Some(id), Some(age)) => format!("{}; the newest is {id}, {} old", backups.whole, duration(age)),
        _ => backups.whole.to_string(),
    };
    for (count, what) in [(backups.damaged, "damaged"), (backups.unfinished, "unfinished")] {
        if count > 0 {
            text.push_str(&format!("; {count} {what}"));
        }
    }
    text
}

fn stored(report: &StatusReport) -> String {
    let sizes = &report.sizes;
    let mut text = format!(
        "backups {}, WAL {} in {}",
        size(sizes.backup_bytes),
        size(sizes.wal_bytes),
        segments(sizes.wal_segments)
    );
    if let (Some(bytes), Some(days)) = (sizes.wal_bytes_a_day, sizes.days) {
        text.push_str(&format!("; {} of WAL a day, over {days:.1} days", size(bytes)));
    }
    text
}

fn expiry(expiry: &ExpiryStatus) -> String {
    let plan = match expiry {
        ExpiryStatus::Off => return "no policy is set under [retention]: nothing is expired".to_owned(),
        ExpiryStatus::Unknown { reason } => return format!("not known: {}", one_line(reason)),
        ExpiryStatus::Planned(plan) => plan,
    };
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let dumps = if plan.dumps > 0 { format!(", {}", count(plan.dumps, "dump")) } else { String::new() };
    let mut text = match plan.objects {
        0 => "nothing is to be deleted".to_owned(),
        objects => format!(
            "`pgark expire` would delete {}{dumps} and {}, {} in {}",
            count(plan.backups, "backup"),
            count(plan.wal, "WAL file"),
            size(plan.bytes),
            count(objects, "object")
        ),
    };
    if let Some(why) = &plan.refused {
        text.push_str(&format!(" ({}: that needs --force)", one_line(why)));
    }
    match &plan.next {
        Some(next) => text.push_str(&format!("; the next backup to go is {} at {}", next.backup, second(next.at))),
        None => text.push_str("; no other backup goes before newer ones are taken"),
    }
    text
}

fn server_text(server: &ServerStatus) -> String {
    match server {
        ServerStatus::Unreachable { reason } => format!("not asked: {}", one_line(reason)),
        ServerStatus::Reachable { archive_mode, archive_timeout, in_recovery, trouble, receiver, .. } => {
            let mut archiver = trouble.as_deref().map_or("archiving does not fail".to_owned(), one_line);
            if let Some(ReceiverStatus { durable: Some(durable), behind_bytes, .. }) = receiver {
                let behind = u64::try_from(behind_bytes.unwrap_or(0)).unwrap_or(0);
                archiver.push_str(&format!("; streamed up to {durable}, {} behind", size(behind)));
            }
            let role = if *in_recovery { "standby" } else { "primary" };
            format!("{role}, archive_mode {archive_mode}, archive_timeout {archive_timeout} s; {archiver}")
        }
    }
}

fn timeline_text(timeline: &TimelineStatus, report: &StatusReport) -> String {
    let number = timeline.timeline;
    let (count, bytes) = (segments(timeline.segments), size(timeline.stored_bytes));
    let mut text = format!("timeline {number}: {count}, {bytes}\n");
    if timeline.intervals.is_empty() {
        text.push_str("  nothing can be restored\n");
    }
    let rows: Vec<Vec<String>> = timeline.intervals.iter().map(interval).collect();
    for row in table(&rows).lines() {
        text.push_str(&format!("  {row}\n"));
    }
    for gap in report.gaps.iter().filter(|gap| gap.timeline == number) {
        let meaning = match gap.kind {
            "cuts" => "the newest backup cannot be followed further",
            "expired" => "between backups that keep only their own WAL",
            _ => "older moments are lost",
        };
        text.push_str(&format!("  missing {}: {meaning}\n", span(&gap.missing)));
    }
    for lost in report.lost.iter().filter(|lost| lost.timeline == number) {
        let (found, reason) = (second(lost.found), one_line(&lost.reason));
        text.push_str(&format!("  lost {} to {}, found {found}: {reason}\n", lost.from, lost.to));
    }
    text
}

fn interval(interval: &IntervalStatus) -> Vec<String> {
    let moment = |time: Option<Timestamp>| time.map_or("?".to_owned(), second);
    vec![
        format!("from {}", moment(interval.from_time)),
        interval.from_lsn.to_string(),
        format!("to {}", moment(interval.to_time)),
        interval.to_lsn.to_string(),
        format!("with {}", interval.backup),
    ]
}

fn span(missing: &MissingWal) -> String {
    match missing.segments {
        1 => missing.first.clone(),
        count => format!("{} to {} ({count} segments)", missing.first, missing.last),
    }
}

fn segments(count: u64) -> String {
    if count == 1 { "1 segment".to_owned() } else { format!("{count} segments") }
}

pub(super) fn second(time: Timestamp) -> String {
    time.round(jiff::Unit::Second).unwrap_or(time).to_string()
}

pub(super) fn short(text: &str, most: usize) -> String {
    let text = one_line(text);
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// A duration in one unit.
pub(super) fn duration(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
