//! Notes of runs: what was done when, how it ended, what it measured. Whoever watches a repository reads them, from any host.
//!
//! `record/run/<nanoseconds of the begin>-<pid>-<kind>-<stage>.json`: one object when a run begins and one when it ends, so that a run
//! that was killed is told from one that never was. A listing alone says which kinds ran when, and how they ended.

use std::fmt;
use std::str::FromStr;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Repository;
use super::backup_id::BackupId;
use super::error::RepoError;
use super::wal_object::Writer;
use crate::storage::object_store::Visit;
use crate::storage::{Listed, ObjectKey, ObjectStoreExt, UserMetadata};

/// What was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunKind {
    /// A base backup.
    Basebackup,
    /// A logical dump.
    Dump,
    /// What policy no longer needs was deleted.
    Expire,
    /// What is stored was read again.
    Verify,
    /// A full restore, to the end of WAL.
    DrillFull,
    /// A restore to a moment.
    DrillPitr,
    /// A restore on an empty host.
    DrillDisaster,
    /// A dump was restored.
    DrillDump,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunStage {
    /// At work, or killed.
    Begun,
    /// It did all that it promises.
    Done,
    /// It did, and somebody should look.
    Warned,
    /// It did not.
    Failed,
}

/// A run, as its note says. Readers pass over fields that they do not know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    format: String,
    /// What was run.
    pub kind: RunKind,
    /// How far it is.
    pub stage: RunStage,
    /// When it began, by the clock of the machine on which it ran.
    pub began: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// The process that ran it.
    pub pid: u32,
    /// Host, process, program.
    pub writer: String,
    /// Why it failed, or what somebody should look at. No secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The backup or dump that was made, or restored by a drill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<BackupId>,
    /// Bytes that it stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
    /// What a drill measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<DrillFigures>,
}

/// What a drill measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DrillFigures {
    /// Until all files were there, in seconds.
    #[serde(default)]
    pub fetch_seconds: f64,
    /// Until the server had replayed all WAL, in seconds, counted from then.
    #[serde(default)]
    pub replay_seconds: f64,
    /// From the begin until the server could be used, in seconds: the measured RTO.
    #[serde(default)]
    pub total_seconds: f64,
    /// How old the newest restored commit was when the drill began, in seconds: the measured RPO.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_seconds: Option<f64>,
    /// Bytes that were restored.
    #[serde(default)]
    pub restored_bytes: u64,
    /// Bytes of WAL that were replayed.
    #[serde(default)]
    pub replayed_bytes: u64,
    /// The name of the report below `record/drill/`, without its ending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<String>,
}

const FORMAT: &str = "pgark-run-1";
const KIND: &str = "run";
/// A note is small.
const LARGEST_NOTE: usize = 64 << 10;
/// Small reads at once.
const READS: usize = 8;
const PAGE: usize = 1000;

impl RunKind {
    /// All kinds.
    pub const ALL: [RunKind; 8] = [
        RunKind::Basebackup,
        RunKind::Dump,
        RunKind::Expire,
        RunKind::Verify,
        RunKind::DrillFull,
        RunKind::DrillPitr,
        RunKind::DrillDisaster,
        RunKind::DrillDump,
    ];

    /// Its word in names, logs and JSON.
    pub fn word(self) -> &'static str {
        match self {
            RunKind::Basebackup => "basebackup",
            RunKind::Dump => "dump",
            RunKind::Expire => "expire",
            RunKind::Verify => "verify",
            RunKind::DrillFull => "drill-full",
            RunKind::DrillPitr => "drill-pitr",
            RunKind::DrillDisaster => "drill-disaster",
            RunKind::DrillDump => "drill-dump",
        }
    }

    /// Whether it proves restores.
    pub fn is_drill(self) -> bool {
        matches!(self, RunKind::DrillFull | RunKind::DrillPitr | RunKind::DrillDisaster | RunKind::DrillDump)
    }
}

impl fmt::Display for RunKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl RunStage {
    const ALL: [RunStage; 4] = [RunStage::Begun, RunStage::Done, RunStage::Warned, RunStage::Failed];

    /// Its word in names, logs and JSON.
    pub fn word(self) -> &'static str {
        match self {
            RunStage::Begun => "begun",
            RunStage::Done => "done",
            RunStage::Warned => "warned",
            RunStage::Failed => "failed",
        }
    }
}

impl RunRecord {
    /// A run that begins.
    pub fn begun(kind: RunKind, began: Timestamp, writer: &Writer) -> Self {
        RunRecord {
            format: FORMAT.to_owned(),
            kind,
            stage: RunStage::Begun,
            began,
            ended: None,
            pid: writer.pid,
            writer: writer.to_string(),
            message: None,
            hint: None,
            id: None,
            stored_bytes: None,
            drill: None,
        }
    }

    /// The same run when it has ended.
    pub fn ended(&self, stage: RunStage, ended: Timestamp) -> Self {
        RunRecord { stage, ended: Some(ended), ..self.clone() }
    }

    /// How long it took; `None`: it has not ended, or clocks were set back.
    pub fn seconds(&self) -> Option<f64> {
        self.ended.map(|ended| ended.duration_since(self.began).as_secs_f64()).filter(|seconds| *seconds >= 0.0)
    }

    /// What its object is called.
    pub fn name(&self) -> RunName {
        RunName { began: self.began, pid: self.pid, kind: self.kind, stage: self.stage }
    }
}

/// What the name of a note says. They sort by the begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunName {
    /// When the run began.
    pub began: Timestamp,
    /// Its process.
    pub pid: u32,
    /// What was run.
    pub kind: RunKind,
    /// How far it was.
    pub stage: RunStage,
}

impl RunName {
    /// What all notes and reports of the run are called, without how far it was.
    pub fn without_stage(self) -> String {
        let nanoseconds = u64::try_from(self.began.as_nanosecond()).unwrap_or(0);
        format!("{nanoseconds:020}-{}-{}", self.pid, self.kind)
    }
}

impl fmt::Display for RunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}.json", self.without_stage(), self.stage.word())
    }
}

impl FromStr for RunName {
    type Err = NotARun;

    fn from_str(text: &str) -> Result<Self, NotARun> {
        let read = || {
            let (name, stage) = text.strip_suffix(".json")?.rsplit_once('-')?;
            let mut words = name.splitn(3, '-');
            let nanoseconds = words.next().filter(|digits| digits.len() == 20)?.parse::<u64>().ok()?;
            let name = RunName {
                began: Timestamp::from_nanosecond(nanoseconds.into()).ok()?,
                pid: words.next()?.parse().ok()?,
                kind: words.next().and_then(|kind| RunKind::ALL.into_iter().find(|known| known.word() == kind))?,
                stage: RunStage::ALL.into_iter().find(|known| known.word() == stage)?,
            };
            (name.to_string() == text).then_some(name)
        };
        read().ok_or(NotARun)
    }
}

/// A name that is none of a run's note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a run's note")]
pub struct NotARun;

impl Repository {
    /// Where the note of this name lies.
    pub fn run_key(&self, name: RunName) -> Result<ObjectKey, RepoError> {
        let text = name.to_string();
        self.layout.record(KIND, &text).map_err(|e| RepoError::damaged(&text, e.to_string()))
    }

    /// Writes the note of a run.
    pub async fn record_run(&self, run: &RunRecord) -> Result<(), RepoError> {
        let key = self.run_key(run.name())?;
        let mut json = serde_json::to_vec_pretty(run).map_err(|e| RepoError::damaged(&key, e.to_string()))?;
        json.push(b'\n');
        self.store.put(&key, json.into(), &UserMetadata::new()).await?;
        Ok(())
    }

    /// The names of all notes of runs, oldest begin first. One listing.
    pub async fn run_names(&self) -> Result<Vec<RunName>, RepoError> {
        let prefix = self.layout.records(KIND);
        let mut names = Vec::new();
        let visit = |listed: &Listed| {
            names.extend(listed.name.strip_prefix(prefix.as_str()).and_then(|name| name.parse::<RunName>().ok()));
            Visit::More
        };
        self.store.visit_after(&prefix, None, PAGE, visit).await?;
        names.sort_unstable();
        Ok(names)
    }

    /// What these notes say, in their order. A note that is gone, or cannot be understood, is told by its name alone.
    pub async fn read_runs(&self, names: &[RunName]) -> Result<Vec<RunRecord>, RepoError> {
        let mut reads = stream::iter(names).map(|name| self.read_run(*name)).buffered(READS);
        let mut runs = Vec::with_capacity(names.len());
        while let Some(run) = reads.next().await {
            runs.push(run?);
        }
        Ok(runs)
    }

    async fn read_run(&self, name: RunName) -> Result<RunRecord, RepoError> {
        let key = self.run_key(name)?;
        let unread = |why: &str| {
            tracing::warn!("`{key}` {why}: its name is all that is known of this run");
            let nobody = Writer { host: "unknown".to_owned(), pid: name.pid, version: "unknown" };
            RunRecord { stage: name.stage, ..RunRecord::begun(name.kind, name.began, &nobody) }
        };
        let Some(stored) = self.store.read_small(&key, LARGEST_NOTE).await? else {
            return Ok(unread("is gone"));
        };
        let read = serde_json::from_slice::<RunRecord>(&stored).ok();
        Ok(read.filter(|run| run.format == FORMAT && run.name() == name).unwrap_or_else(|| unread("says nothing")))
    }
}

/// One name for each run: of its notes the one that says how it ended, if there is one. Oldest begin first.
pub fn latest_stages(names: &[RunName]) -> Vec<RunName> {
    let same = |a: &RunName, b: &RunName| (a.began, a.pid, a.kind) == (b.began, b.pid, b.kind);
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    let mut runs: Vec<RunName> = Vec::new();
    for name in sorted {
        match runs.last_mut() {
            Some(last) if same(last, &name) => *last = name,
            _ => runs.push(name),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryStore;
    use std::sync::Arc;

    fn repository() -> Repository {
        Repository::new(Arc::new(MemoryStore::default()), "main".parse().unwrap())
    }

    fn name(seconds: i64, kind: RunKind, stage: RunStage) -> RunName {
        RunName { began: Timestamp::from_second(seconds).unwrap(), pid: 7, kind, stage }
    }

    #[test]
    fn names_come_back_and_sort_by_time() {
        for kind in RunKind::ALL {
            for stage in RunStage::ALL {
                let name = name(1_790_000_000, kind, stage);
                assert_eq!(name.to_string().parse(), Ok(name));
            }
        }
        let text = name(1_790_000_000, RunKind::DrillPitr, RunStage::Warned).to_string();
        assert_eq!(text, "01790000000000000000-7-drill-pitr-warned.json");
        for odd in ["", "x.json", "1790000000000000000-7-dump-done.json", &text.replace("-7-", "-07-")] {
            assert_eq!(odd.parse::<RunName>(), Err(NotARun), "{odd}");
        }
    }

    #[tokio::test]
    async fn a_run_is_told_by_its_last_note() {
        let repository = repository();
        let writer = Writer { host: "db1".to_owned(), pid: 7, version: "1" };
        let at = |second| Timestamp::from_second(second).unwrap();
        let killed = RunRecord::begun(RunKind::Dump, at(100), &writer);
        let begun = RunRecord::begun(RunKind::Expire, at(200), &writer);
        let ended = RunRecord { message: Some("no".into()), ..begun.ended(RunStage::Failed, at(260)) };
        for run in [&begun, &killed, &ended] {
            repository.record_run(run).await.unwrap();
        }
        let latest = latest_stages(&repository.run_names().await.unwrap());
        assert_eq!(repository.read_runs(&latest).await.unwrap(), [killed, ended.clone()]);
        assert_eq!(ended.seconds(), Some(60.0));
    }

    #[tokio::test]
    async fn a_note_that_says_nothing_still_says_when() {
        let repository = repository();
        let name = name(1_790_000_000, RunKind::Verify, RunStage::Failed);
        let key = repository.run_key(name).unwrap();
        repository.store.put(&key, b"{}".to_vec().into(), &UserMetadata::new()).await.unwrap();
        let runs = repository.read_runs(&repository.run_names().await.unwrap()).await.unwrap();
        assert_eq!((runs[0].name(), runs[0].ended), (name, None));
    }
}
