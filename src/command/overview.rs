//! All that is known of a repository at a moment, gathered once: what alerts, metrics and the page are made from.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::bounds::bounded;
use super::failure::Failure;
use super::forecast::Forecast;
use super::list::{self, ListedBackup};
use super::status::{self, Status, StatusReport};
use super::{Circumstances, RepositorySettings};
use crate::repo::dumps::StoredDump;
use crate::repo::run_record::latest_stages;
use crate::repo::{Alert, DumpSummary, RepoError, Repository, RunRecord, RunStage};

/// What to gather.
#[derive(Clone)]
pub struct Watched {
    /// The repository, and the server.
    pub status: Status,
    /// What was promised.
    pub objectives: Objectives,
    /// Bytes that the repository may hold.
    pub quota: Option<u64>,
}

/// What was promised to those whose data it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Objectives {
    /// How much work may be lost at most.
    pub rpo: Option<Duration>,
    /// How long a restore may take at most.
    pub rto: Option<Duration>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overview {
    /// Version of this report.
    pub schema: u32,
    /// When it was looked, by this machine's clock.
    pub at: Timestamp,
    /// What can be restored, and what stands in the way.
    pub status: StatusReport,
    /// The backups of all generations, oldest first.
    pub backups: Vec<ListedBackup>,
    /// The dumps that can be restored, oldest first.
    pub dumps: Vec<DumpSummary>,
    /// Bytes of all dumps, whole or not.
    pub dump_bytes: u64,
    /// The newest runs, oldest first; one that was killed has no end.
    pub runs: Vec<RunRecord>,
    /// What was promised.
    pub objectives: Objectives,
    /// Bytes that the repository may hold.
    pub quota: Option<u64>,
    /// What somebody must be told of, the worst first.
    pub alerts: Vec<Alert>,
}

/// Of so many runs the notes are read.
const RUNS: usize = 400;

/// Gathers it.
pub async fn run(watched: &Watched, circumstances: &Circumstances) -> Result<Overview, Failure> {
    bounded(gather(watched, circumstances), None, None).await
}

async fn gather(watched: &Watched, circumstances: &Circumstances) -> Result<Overview, Failure> {
    let settings: &RepositorySettings = &watched.status.repository;
    let repository = settings.open().await?;
    let (status, backups, stored, runs) = tokio::join!(
        status::run(&watched.status, circumstances),
        list::run(settings, None, circumstances),
        repository.stored_dumps(),
        newest_runs(&repository),
    );
    let stored = stored?;
    Ok(Overview {
        schema: 1,
        at: circumstances.now,
        status: status?,
        backups: backups?.backups,
        dump_bytes: stored.iter().map(|dump| dump.listing.stored_bytes()).sum(),
        dumps: stored.iter().filter_map(StoredDump::summary).cloned().collect(),
        runs: runs?,
        objectives: watched.objectives,
        quota: watched.quota,
        alerts: Vec::new(),
    })
}

async fn newest_runs(repository: &Repository) -> Result<Vec<RunRecord>, RepoError> {
    let latest = latest_stages(&repository.run_names().await?);
    repository.read_runs(&latest[latest.len().saturating_sub(RUNS)..]).await
}

/// The newest drill that ended.
pub fn newest_drill(overview: &Overview) -> Option<&RunRecord> {
    overview.runs.iter().rev().find(|run| run.kind.is_drill() && run.stage != RunStage::Begun)
}

impl Overview {
    /// How long a restore to the newest position would take, if drills have measured it.
    pub fn forecast(&self) -> Option<&Forecast> {
        self.status.forecast.as_ref()
    }

    /// Bytes of all that is stored.
    pub fn stored_bytes(&self) -> u64 {
        let sizes = &self.status.sizes;
        sizes.wal_bytes + self.backups.iter().map(|backup| backup.stored_bytes).sum::<u64>() + self.dump_bytes
    }
}
