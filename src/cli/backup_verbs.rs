//! The verbs around base backups: from flags to settings, and from reports to words.

use std::sync::Arc;
use std::time::Duration;

use super::args::{BasebackupArgs, Global};
use super::progress_line::ProgressLine;
use super::run::{block_on_many, cannot_print, circumstances};
use super::sources::Sources;
use super::{exit, output, settings};
use crate::command::basebackup::{self, BackupReport, Basebackup};
use crate::command::progress::Progress;
use crate::command::{Failure, FailureKind};

/// How long archiving of one segment may take before a backup is begun.
const ARCHIVE_WAIT: Duration = Duration::from_secs(60);

/// `pgark basebackup`
pub fn basebackup(args: &BasebackupArgs, global: &Global, sources: &Sources) -> Result<u8, Failure> {
    let wanted = Basebackup {
        repository: settings::repository(sources)?,
        pgdata: settings::pgdata(sources).ok_or_else(|| {
            Failure::new(FailureKind::Usage, "no data directory is set")
                .with_hint("give `--pgdata`, or set `pgdata` under `[cluster]`")
        })?,
        conninfo: settings::conninfo(sources)?,
        label: args.label.clone(),
        jobs: settings::integer(sources, "backup.jobs")?,
        level: settings::integer(sources, "backup.level")?,
        fast: sources.get("backup.checkpoint") == Some("fast"),
        keep: args.keep,
        rate: args.rate.as_deref().map(rate).transpose()?,
        archive_wait: ARCHIVE_WAIT,
        wal_wait: settings::duration(sources, "backup.wal_wait")?,
        retry: settings::duration(sources, "backup.retry")?,
    };
    let progress = Arc::new(Progress::default());
    let line = ProgressLine::show(Arc::clone(&progress), global.quiet);
    let outcome = block_on_many(basebackup::run(wanted, &circumstances(), progress));
    drop(line);
    let report = outcome?;
    let printed = if args.json { output::print_json(&report) } else { output::print(&backup_text(&report)) };
    printed.map_err(cannot_print)?;
    for page in &report.bad_pages {
        tracing::warn!("a page has a wrong checksum: {page}");
    }
    for path in &report.passed_over {
        tracing::warn!("`{path}` is no file and no directory: the backup does not have it");
    }
    Ok(if report.bad_pages.is_empty() { exit::SUCCESS } else { exit::DAMAGED_PAGES })
}

fn rate(text: &str) -> Result<u64, Failure> {
    let size = text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()).filter(|size| *size > 0);
    size.ok_or_else(|| Failure::new(FailureKind::Usage, format!("`--rate`: `{text}` is not a size like `50MiB`")))
}

fn backup_text(report: &BackupReport) -> String {
    let backup = &report.backup;
    let took = backup.stopped.duration_since(backup.started).as_secs_f64();
    format!(
        "backup {}\n  files   {} with {}, stored in {}\n  WAL     {} to {} on timeline {}\n  time    {took:.1} s, until {}\n",
        backup.id,
        backup.files,
        output::size(backup.plain_bytes),
        output::size(backup.stored_bytes),
        backup.start_lsn,
        backup.stop_lsn,
        backup.timeline.get(),
        backup.stopped.round(jiff::Unit::Second).unwrap_or(backup.stopped),
    )
}
