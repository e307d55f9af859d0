//! `status`: what can be restored now, and what stands in the way. From the store alone; a server that answers adds its archiver.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::time::sleep;

use super::bounds::bounded;
use super::check::{Finding, Level};
use super::expire::Expire;
use super::failure::{Failure, FailureKind};
use super::forecast::{self, Forecast};
use super::show::MissingWal;
pub use super::status_dumps::DumpsStatus;
use super::status_dumps::{about_dumps, dumps_status};
use super::status_expiry::{self, ExpiryStatus};
pub use super::status_lost::LostStatus;
use super::status_lost::{about_lost, lost_status, lost_wal};
pub use super::status_server::{ReceiverStatus, ServerStatus};
use super::status_server::{about_server, ask_server, server_status};
use super::status_sizes::sizes;
pub use super::status_sizes::{DayBytes, SizesStatus};
use super::{Circumstances, RepositorySettings};
use crate::postgres::{Lsn, SegmentName, TimelineId};
use crate::repo::health::{Concern, Gap, GapKind, Health, Newest, Severity, health};
use crate::repo::intervals::Interval;
use crate::repo::restore_target::Indexes;
use crate::repo::stored_backups::BackupState;
use crate::repo::{BackupId, Generation, Identities, Identity, Inventory, Policy, RepoError, Repository};
use crate::server::Conninfo;

/// What to look at.
#[derive(Clone)]
pub struct Status {
    /// The repository.
    pub repository: RepositorySettings,
    /// How to reach the server; `None`: do not try.
    pub conninfo: Option<Conninfo>,
    /// The replication slot that `wal-receive` would stream from.
    pub slot: String,
    /// What `expire` goes by.
    pub policy: Policy,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StatusReport {
    /// Version of this report.
    pub schema: u32,
    /// When it was looked, by this machine's clock.
    pub at: Timestamp,
    /// The repository.
    pub repository: String,
    /// Its newest generation, which all of this is about.
    pub generation: Generation,
    /// The cluster.
    pub cluster: String,
    /// The newest position that can be restored.
    pub newest: Option<NewestStatus>,
    /// What can be restored.
    pub timelines: Vec<TimelineStatus>,
    /// What is missing.
    pub gaps: Vec<GapStatus>,
    /// What a receiver found lost.
    pub lost: Vec<LostStatus>,
    /// The backups.
    pub backups: BackupsStatus,
    /// The logical dumps.
    pub dumps: DumpsStatus,
    /// How much there is.
    pub sizes: SizesStatus,
    /// How long a restore to the newest position would take; `None`: no drill has measured it.
    pub forecast: Option<Forecast>,
    /// What `expire` would delete.
    pub expiry: ExpiryStatus,
    /// What the server says; `None`: it was not asked.
    pub server: Option<ServerStatus>,
    /// What is not as it should be, the worst first.
    pub findings: Vec<Finding>,
}

/// The newest position that can be restored.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NewestStatus {
    /// The end of the last segment, or of its live tail.
    pub lsn: Lsn,
    /// That segment.
    pub segment: String,
    /// Whether only its live tail is there.
    pub live: bool,
    /// Its last commit, if it tells.
    pub last_commit: Option<Timestamp>,
    /// When it was stored, by the store's clock.
    pub stored: Option<Timestamp>,
    /// How long ago that is, by this machine's clock: what was written since is not archived, and would be lost with the server.
    pub age_seconds: Option<i64>,
}

/// What can be restored on a timeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TimelineStatus {
    /// Which.
    pub timeline: u32,
    /// From where to where any moment can be.
    pub intervals: Vec<IntervalStatus>,
    /// Its segments.
    pub segments: u64,
    /// Bytes of all its WAL objects.
    pub stored_bytes: u64,
}

/// Moments each of which can be restored.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IntervalStatus {
    /// The first backup from which they can be.
    pub backup: BackupId,
    /// The first position.
    pub from_lsn: Lsn,
    /// The first moment: the end of the backup, or the first commit behind a fork.
    pub from_time: Option<Timestamp>,
    /// The last position.
    pub to_lsn: Lsn,
    /// The last commit of its last segments, if they tell.
    pub to_time: Option<Timestamp>,
    /// The last segment.
    pub last_segment: String,
}

/// Missing segments.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GapStatus {
    /// Of this timeline.
    pub timeline: u32,
    /// What is missing.
    #[serde(flatten)]
    pub missing: MissingWal,
    /// `cuts`: the newest backup cannot be followed to the end; `past`: older moments are lost; `expired`: as `expire` leaves it.
    pub kind: &'static str,
}

/// The backups in short.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackupsStatus {
    /// That can be used.
    pub whole: usize,
    /// That cannot.
    pub damaged: usize,
    /// Without a manifest.
    pub unfinished: usize,
    /// The one that a restore to the latest begins with.
    pub newest: Option<BackupId>,
    /// When that one stopped.
    pub newest_stopped: Option<Timestamp>,
    /// How long ago that is.
    pub newest_age_seconds: Option<i64>,
}

/// So many of the newest intervals are asked for their times.
const TIMED_INTERVALS: usize = 16;
/// So many segments at the end of an interval are asked for a commit.
const TAIL: u64 = 4;
/// How often a hole at the end is looked at, and how young what lies behind it must be for that.
const LOOKS: u32 = 4;
const PAUSE: Duration = Duration::from_secs(1);
const JUST_NOW: SignedDuration = SignedDuration::from_secs(60);

impl StatusReport {
    /// The worst finding.
    pub fn worst(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }
}

/// Looks.
pub async fn run(status: &Status, circumstances: &Circumstances) -> Result<StatusReport, Failure> {
    bounded(look(status, circumstances), None, None).await
}

async fn look(status: &Status, circumstances: &Circumstances) -> Result<StatusReport, Failure> {
    let now = circumstances.now;
    let repository = status.repository.open().await?;
    let identities = repository.read_identities().await?;
    let none = || Failure::new(FailureKind::NoIdentity, "the repository has no generation");
    let identity: &Identity = identities.newest().ok_or_else(none)?;
    let stock = settled(status, circumstances, &repository, (identity, &identities));
    let (stock, facts) = tokio::join!(stock, ask_server(status.conninfo.as_ref(), &status.slot));
    let (inventory, health, expiry) = stock?;
    let dumps = repository.stored_dumps().await?;
    let times = Times::read(&repository, &inventory, &health).await?;
    let forecast = forecast::look(&repository, &inventory, &health).await?;
    let mut findings: Vec<Finding> = health.concerns.iter().map(finding).collect();
    let lost = lost_wal(&repository, &inventory).await?;
    findings.extend(lost.iter().filter_map(|gap| about_lost(gap, &inventory, &health)));
    findings.extend(facts.iter().flatten().flat_map(|facts| about_server(facts, identity.ident())));
    findings.extend(about_dumps(&dumps));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    Ok(StatusReport {
        schema: 1,
        at: now,
        repository: repository.describe(),
        generation: identity.generation,
        cluster: identity.ident().to_string(),
        newest: health.newest.as_ref().map(|newest| newest_status(newest, &times, now)),
        timelines: timelines(&inventory, &health, &times),
        gaps: health.gaps.iter().map(gap_status).collect(),
        lost: lost.iter().map(lost_status).collect(),
        backups: backups_status(&inventory, &health, now),
        dumps: dumps_status(&dumps, now),
        sizes: sizes(&inventory, &health),
        forecast,
        expiry,
        server: facts.map(server_status),
        findings,
    })
}

/// What is there, looked at again while a hole at the end may be about to close: look-ahead stores several segments at once, and a
/// later one may be quicker.
async fn settled(
    status: &Status,
    circumstances: &Circumstances,
    repository: &Repository,
    (identity, identities): (&Identity, &Identities),
) -> Result<(Inventory, Health, ExpiryStatus), Failure> {
    let mut looks = 1;
    loop {
        let (inventory, expiry) = take_stock(status, circumstances, repository, (identity, identities)).await?;
        let health = health(&inventory);
        if looks == LOOKS || !may_close(&inventory, &health, circumstances.now) {
            return Ok((inventory, health, expiry));
        }
        looks += 1;
        sleep(PAUSE).await;
    }
}

async fn take_stock(
    status: &Status,
    circumstances: &Circumstances,
    repository: &Repository,
    (identity, identities): (&Identity, &Identities),
) -> Result<(Inventory, ExpiryStatus), RepoError> {
    // Without a policy nobody needs to know every object.
    if status.policy.is_empty() && status.policy.dump_keep_within.is_none() {
        return Ok((repository.take_inventory(identity).await?, ExpiryStatus::Off));
    }
    let (settings, policy) = (status.repository.clone(), status.policy.clone());
    let expire = Expire { repository: settings, policy, dry_run: true, force: false, jobs: 1 };
    let holdings = repository.holdings(identity).await?;
    let inventory = repository.inventory_of(&holdings).await?;
    let expiry = status_expiry::look(repository, &expire, circumstances, identities, holdings).await;
    Ok((inventory, expiry))
}

/// Whether something was stored just now behind a hole that keeps the newest backup from being followed.
fn may_close(inventory: &Inventory, health: &Health, now: Timestamp) -> bool {
    let young = |gap: &Gap| {
        let wal = inventory.timeline(gap.missing.first.timeline);
        let newest = wal.and_then(|wal| wal.newest.max(wal.segments.iter().next_back()?.last_stored));
        newest.is_some_and(|stored| now.duration_since(stored).abs() < JUST_NOW)
    };
    health.gaps.iter().any(|gap| gap.kind == GapKind::Cuts && young(gap))
}

fn finding(concern: &Concern) -> Finding {
    let level = match concern.severity {
        Severity::Warning => Level::Warning,
        Severity::Critical => Level::Fail,
    };
    Finding::not_ok(concern.about, level, concern.message.clone(), concern.hint.clone())
}

/// The indexes of the few segments with which intervals begin and end.
struct Times(Indexes);

impl Times {
    async fn read(repository: &Repository, inventory: &Inventory, health: &Health) -> Result<Self, RepoError> {
        let mut wanted: Vec<SegmentName> = Vec::new();
        let newest = health.intervals.values().flatten().rev().take(TIMED_INTERVALS);
        for interval in newest {
            wanted.extend(tail(inventory, interval.last));
            if interval.from_time.is_none() {
                wanted.push(interval.first);
            }
        }
        wanted.extend(health.newest.iter().flat_map(|newest| tail(inventory, newest.position.segment)));
        wanted.sort_unstable();
        wanted.dedup();
        Ok(Times(repository.read_indexes(inventory.generation, &wanted).await?))
    }

    fn first_commit(&self, segment: SegmentName) -> Option<Timestamp> {
        let index = self.0.get(&segment)?.as_ref()?;
        index.commits.map(|commits| commits.first)
    }

    /// The latest commit of a segment and the few before it.
    fn last_commit(&self, inventory: &Inventory, segment: SegmentName) -> Option<Timestamp> {
        let indexes = tail(inventory, segment).into_iter().filter_map(|name| self.0.get(&name)?.as_ref());
        indexes.filter_map(|index| index.commits).map(|commits| commits.last).max()
    }
}

/// A segment and the few before it that are there.
fn tail(inventory: &Inventory, last: SegmentName) -> Vec<SegmentName> {
    let size = inventory.segment_size;
    let Ok(number) = size.number(last) else { return Vec::new() };
    let run = inventory.timeline(last.timeline).and_then(|wal| wal.segments.containing(number));
    let first = run.map_or(number.0, |run| run.first.0).max(number.0.saturating_sub(TAIL - 1));
    (first..=number.0).map(|number| size.name(last.timeline, crate::postgres::SegmentNumber(number))).collect()
}

fn newest_status(newest: &Newest, times: &Times, now: Timestamp) -> NewestStatus {
    let segment = newest.position.segment;
    let index = times.0.get(&segment).and_then(|index| index.as_ref());
    NewestStatus {
        lsn: newest.position.lsn,
        segment: segment.to_string(),
        live: newest.position.in_tail,
        last_commit: index.and_then(|index| index.commits).map(|commits| commits.last),
        stored: newest.stored,
        age_seconds: newest.stored.map(|stored| age(stored, now)),
    }
}

/// Clocks may differ a little: nothing is younger than now.
fn age(time: Timestamp, now: Timestamp) -> i64 {
    now.duration_since(time).as_secs().max(0)
}

fn timelines(inventory: &Inventory, health: &Health, times: &Times) -> Vec<TimelineStatus> {
    let status = |(timeline, intervals): (&TimelineId, &Vec<Interval>)| {
        let interval = |interval: &Interval| IntervalStatus {
            backup: interval.from_backup,
            from_lsn: interval.from_lsn,
            from_time: interval.from_time.or_else(|| times.first_commit(interval.first)),
            to_lsn: interval.to_lsn,
            to_time: times.last_commit(inventory, interval.last),
            last_segment: interval.last.to_string(),
        };
        let wal = inventory.timeline(*timeline);
        TimelineStatus {
            timeline: timeline.get(),
            intervals: intervals.iter().map(interval).collect(),
            segments: wal.map_or(0, |wal| wal.whole_segments()),
            stored_bytes: wal.map_or(0, |wal| wal.stored_bytes),
        }
    };
    health.intervals.iter().map(status).collect()
}

fn gap_status(gap: &Gap) -> GapStatus {
    let kind = match gap.kind {
        GapKind::Cuts => "cuts",
        GapKind::Past => "past",
        GapKind::Expired => "expired",
    };
    GapStatus { timeline: gap.missing.first.timeline.get(), missing: gap.missing.into(), kind }
}

fn backups_status(inventory: &Inventory, health: &Health, now: Timestamp) -> BackupsStatus {
    let count = |wanted: fn(&BackupState) -> bool| inventory.backups.iter().filter(|b| wanted(&b.state)).count();
    let newest = health.newest_backup.and_then(|id| inventory.backup(id)?.summary());
    BackupsStatus {
        whole: count(|state| matches!(state, BackupState::Whole(_))),
        damaged: count(|state| matches!(state, BackupState::Damaged(..))),
        unfinished: count(|state| *state == BackupState::Unfinished),
        newest: newest.map(|backup| backup.id),
        newest_stopped: newest.map(|backup| backup.stopped),
        newest_age_seconds: newest.map(|backup| age(backup.stopped, now)),
    }
}
