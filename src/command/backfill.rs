//! `wal-push --backfill`: after a failover, archive what the dead primary had not.
//!
//! A standby with `archive_mode = on` marks the segments that it streams as done without archiving them. Those that the
//! primary never archived are still in its `pg_wal` for a while.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::Circumstances;
use super::bounds::{apart, bounded};
use super::failure::{Failure, FailureKind};
use super::wal_push::{Opened, PushSettings, Pushed, archive_one, facts_of, find_data_dir, retrying};
use crate::postgres::WalName;

/// Where to look, and how to archive.
#[derive(Clone, Debug)]
pub struct Backfill {
    /// The `pg_wal` directory; by default that of the data directory.
    pub pg_wal: Option<PathBuf>,
    /// How.
    pub settings: PushSettings,
}

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BackfillReport {
    /// Version of this report.
    pub schema: u32,
    /// Files that the repository lacked and has now.
    pub archived: Vec<String>,
    /// Files that it had.
    pub already_there: Vec<String>,
    /// Files that failed, and why.
    pub failed: Vec<FailedFile>,
}

/// A file that could not be archived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailedFile {
    /// Its name.
    pub name: String,
    /// What happened.
    pub reason: String,
}

/// Archives every complete file of `pg_wal`; one failure does not keep the others from it.
pub async fn run(backfill: Backfill, circumstances: &Circumstances) -> Result<BackfillReport, Failure> {
    let circumstances = circumstances.clone();
    // Apart: reading local files may hang, and signals must end us all the same.
    bounded(apart(move || async move { each_file(backfill, &circumstances).await }), None, None).await
}

async fn each_file(backfill: Backfill, circumstances: &Circumstances) -> Result<BackfillReport, Failure> {
    let settings = &backfill.settings;
    let somewhere = backfill.pg_wal.clone().unwrap_or_default().join("x");
    let data_dir = find_data_dir(&somewhere, settings.pgdata.as_deref())?;
    let pg_wal = backfill.pg_wal.clone().or_else(|| data_dir.as_ref().map(|found| found.path().join("pg_wal")));
    let pg_wal = pg_wal.ok_or_else(|| {
        Failure::new(FailureKind::Usage, "no data directory was found")
            .with_hint("give `--pgdata DIR`, or the path of its pg_wal directory")
    })?;
    let names = complete_files(&pg_wal)
        .map_err(|e| Failure::new(FailureKind::LocalIo, format!("cannot list `{}`: {e}", pg_wal.display())))?;
    let repository = settings.repository.open().await?;
    let mut report = BackfillReport { schema: 1, ..BackfillReport::default() };
    for name in names {
        let each = async {
            let file = Opened::open(&pg_wal.join(name.to_string()), name, facts_of(data_dir.as_ref())?)?;
            let file = file.pack(settings.level, circumstances, None);
            let begin = || repository.find_or_begin(file.ident(), circumstances.now, &circumstances.writer);
            let generation = retrying(begin).await?;
            archive_one(&repository.archive(generation), file).await
        };
        let outcome = within(settings.deadline, each).await;
        let name = name.to_string();
        match outcome {
            Ok(Pushed::AlreadyThere | Pushed::ArchivedAhead) => report.already_there.push(name),
            Ok(Pushed::Archived | Pushed::KeptBeside(_)) => report.archived.push(name),
            Err(failure) => report.failed.push(FailedFile { name, reason: failure.to_string() }),
        }
    }
    Ok(report)
}

async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = || Failure::new(FailureKind::Deadline, format!("took more than {} s", deadline.as_secs()));
    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| Err(late()))
}

/// The files that PostgreSQL has finished: those with a status file. The segment in use has none, nor have segments that
/// were recycled for the future. History files come first, then by name, as the archiver does it.
fn complete_files(pg_wal: &Path) -> io::Result<Vec<WalName>> {
    files_in_state(pg_wal, &["done", "ready"])
}

/// The files whose status file ends so.
pub(super) fn files_in_state(pg_wal: &Path, states: &[&str]) -> io::Result<Vec<WalName>> {
    let mut histories = BTreeSet::new();
    let mut others = BTreeSet::new();
    for entry in fs::read_dir(pg_wal.join("archive_status"))? {
        let file_name = entry?.file_name();
        let Some(text) = file_name.to_str() else { continue };
        let Some((stem, _)) = text.rsplit_once('.').filter(|(_, state)| states.contains(state)) else { continue };
        match stem.parse() {
            Ok(name @ WalName::History(_)) => histories.insert(name),
            Ok(name) => others.insert(name),
            Err(_) => continue,
        };
    }
    // A status file may outlive its segment for a moment.
    let there = |name: &WalName| pg_wal.join(name.to_string()).is_file();
    Ok(histories.into_iter().chain(others).filter(there).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_finished_files_count_and_histories_come_first() {
        let directory = tempfile::tempdir().unwrap();
        let pg_wal = directory.path();
        fs::create_dir(pg_wal.join("archive_status")).unwrap();
        for (name, status) in [
            ("000000010000000000000003", Some("done")),
            ("000000010000000000000002", Some("ready")),
            ("000000010000000000000004", None),
            ("00000002.history", Some("done")),
            ("000000010000000000000004.partial", Some("ready")),
        ] {
            fs::write(pg_wal.join(name), b"").unwrap();
            if let Some(status) = status {
                fs::write(pg_wal.join(format!("archive_status/{name}.{status}")), b"").unwrap();
            }
        }
        fs::write(pg_wal.join("archive_status/000000010000000000000001.done"), b"").unwrap();
        let names: Vec<String> = complete_files(pg_wal).unwrap().iter().map(WalName::to_string).collect();
        assert_eq!(
            names,
            [
                "00000002.history",
                "000000010000000000000002",
                "000000010000000000000003",
                "000000010000000000000004.partial"
            ]
        );
    }
}
