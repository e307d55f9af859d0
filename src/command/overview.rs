//! All that is known of a repository at a moment, gathered once: what alerts, metrics and the page are made from.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::alert_rules::{self, AlertRules};
use super::bounds::bounded;
use super::failure::Failure;
use super::forecast::Forecast;
use super::list::{self, ListedBackup};
use super::status::{self, ServerStatus, Status, StatusReport};
use super::{Circumstances, RepositorySettings};
use crate::repo::dumps::StoredDump;
use crate::repo::run_record::{RunName, latest_stages};
use crate::repo::{Alert, DumpSummary, RepoError, Repository, RunKind, RunRecord, RunStage, Schedule};
use crate::storage::Head;

/// What to gather.
#[derive(Clone)]
pub struct Watched {
    /// The repository, and the server.
    pub status: Status,
    /// What was promised.
    pub objectives: Objectives,
    /// Bytes that the repository may hold.
    pub quota: Option<u64>,
    /// When runs are due.
    pub schedules: Vec<(RunKind, Schedule)>,
    /// What somebody must be told of.
    pub rules: AlertRules,
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
    /// How far other clocks are ahead of this machine's.
    pub clocks: Clocks,
    /// What somebody must be told of, the worst first.
    pub alerts: Vec<Alert>,
}

/// How far other clocks are ahead of this machine's, in seconds; `None`: it could not be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Clocks {
    /// The store's. Told where this machine wrote the note of a run within the last day.
    pub store_ahead_seconds: Option<f64>,
    /// The database server's.
    pub server_ahead_seconds: Option<f64>,
}

/// A look that takes longer is given up by who looks again and again.
pub const PATIENCE: Duration = Duration::from_secs(120);
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
    let (stored, status) = (stored?, status?);
    let (names, runs) = runs?;
    let clocks = Clocks {
        store_ahead_seconds: store_clock(&repository, &names, &runs, circumstances).await?,
        server_ahead_seconds: server_clock(&status),
    };
    let mut overview = Overview {
        schema: 1,
        at: circumstances.now,
        status,
        backups: backups?.backups,
        dump_bytes: stored.iter().map(|dump| dump.listing.stored_bytes()).sum(),
        dumps: stored.iter().filter_map(StoredDump::summary).cloned().collect(),
        runs,
        objectives: watched.objectives,
        quota: watched.quota,
        clocks,
        alerts: Vec::new(),
    };
    overview.alerts = alert_rules::judge(&overview, &watched.rules.expecting(&watched.schedules, circumstances.now));
    Ok(overview)
}

async fn newest_runs(repository: &Repository) -> Result<(Vec<RunName>, Vec<RunRecord>), RepoError> {
    let names = repository.run_names().await?;
    let runs = repository.read_runs(&worth_reading(&latest_stages(&names))).await?;
    Ok((names, runs))
}

/// The newest runs, and of each kind the newest, the newest that ended, and the newest that did what it promises, however old.
fn worth_reading(latest: &[RunName]) -> Vec<RunName> {
    let mut worth: Vec<RunName> = latest[latest.len().saturating_sub(RUNS)..].to_vec();
    for kind in RunKind::ALL {
        let newest = |fits: fn(RunStage) -> bool| latest.iter().rev().find(|run| run.kind == kind && fits(run.stage));
        let ended = newest(|stage| stage != RunStage::Begun);
        let done = newest(|stage| matches!(stage, RunStage::Done | RunStage::Warned));
        worth.extend([newest(|_| true), ended, done].into_iter().flatten());
    }
    worth.sort_unstable();
    worth.dedup();
    worth
}

/// A difference that was seen longer ago may be none any more.
const RECENT: SignedDuration = SignedDuration::from_hours(24);

/// By a note that this machine wrote when a run began: the store says when that was by its own clock.
async fn store_clock(
    repository: &Repository,
    names: &[RunName],
    runs: &[RunRecord],
    circumstances: &Circumstances,
) -> Result<Option<f64>, RepoError> {
    let ours = |name: &&RunName| {
        let recent = circumstances.now.duration_since(name.began).abs() < RECENT;
        let run = runs.iter().find(|run| (run.began, run.pid, run.kind) == (name.began, name.pid, name.kind));
        let host = format!("{},", circumstances.writer.host);
        name.stage == RunStage::Begun && recent && run.is_some_and(|run| run.writer.starts_with(&host))
    };
    let Some(name) = names.iter().rev().find(ours) else { return Ok(None) };
    let Head::Found(meta) = repository.store.head(&repository.run_key(*name)?).await? else { return Ok(None) };
    let stored = meta.modified.and_then(|time| Timestamp::try_from(time).ok());
    Ok(stored.map(|stored| stored.duration_since(name.began).as_secs_f64()))
}

fn server_clock(status: &StatusReport) -> Option<f64> {
    match status.server.as_ref()? {
        ServerStatus::Reachable { clock_ahead_seconds, .. } => *clock_ahead_seconds,
        ServerStatus::Unreachable { .. } => None,
    }
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
