//! The backups from which a restore may begin, each with its way to the timeline that is to be followed.
//!
//! `latest` is the highest timeline of which the repository holds anything. PostgreSQL finds it by asking for the history files of
//! the backup's timeline plus one, plus two, and so on, until one is missing (`findNewestTimeLine` in
//! `access/transam/timeline.c`), and refuses to start if the backup does not lie on that timeline's past
//! (`InitWalRecovery` in `xlogrecovery.c`). So here: the history files in between must all be there, and a backup beside the
//! way is passed over. Unlike there, the answer is the same for every backup, and a missing history file is a reason to stop.

use super::inventory::Inventory;
use super::manifest::BackupSummary;
use super::restore_plan::{OffPath, Unreachable};
use super::restore_target::{Request, TargetTimeline};
use super::stored_backups::BackupState;
use super::timeline_path::{NoPath, Reach, TimelinePath};
use super::timeline_wal::History;
use super::wal_runs::Span;
use crate::postgres::{SegmentNumber, TimelineId};

/// A backup and the way from it.
#[derive(Clone, Debug)]
pub struct Route<'a> {
    /// The backup.
    pub backup: &'a BackupSummary,
    /// The timeline to be followed.
    pub timeline: TimelineId,
    /// The way.
    pub path: TimelinePath,
    /// The first segment to replay.
    pub first: SegmentNumber,
    /// The segment in which the backup becomes consistent.
    pub stop: SegmentNumber,
    /// The WAL that is there.
    pub reach: Reach,
}

impl Route<'_> {
    /// The last segment that is there, if the backup can be made consistent at all.
    pub fn end(&self) -> Option<SegmentNumber> {
        self.reach.last().filter(|last| *last >= self.stop)
    }
}

/// All of them that lie on the way, the newest first; at least one.
pub fn routes<'a>(inventory: &'a Inventory, request: &Request) -> Result<Vec<Route<'a>>, Unreachable> {
    let (mut routes, mut off, mut failure) = (Vec::new(), Vec::new(), None);
    let highest = highest_timeline(inventory);
    for backup in wanted(inventory, request)? {
        let (timeline, path) = match request.timeline {
            TargetTimeline::Latest => (highest, path_to_latest(inventory, backup, highest)),
            TargetTimeline::Current => (backup.timeline, own_path(inventory, backup.timeline)),
            TargetTimeline::Number(number) => (number, path_to_number(inventory, number)),
        };
        match path {
            Ok(path) => match on_path(backup, timeline, path, inventory) {
                Ok(route) => routes.push(route),
                Err(why) => off.push(why),
            },
            Err(why) => {
                failure.get_or_insert(why);
            }
        }
    }
    match request.timeline {
        // Ways differ: positions cannot be compared.
        TargetTimeline::Current => routes.sort_by_key(|route| (route.backup.stopped, route.backup.id)),
        _ => routes.sort_by_key(|route| (route.backup.stop_lsn, route.backup.stopped, route.backup.id)),
    }
    routes.reverse();
    if !routes.is_empty() {
        return Ok(routes);
    }
    let timeline = if let TargetTimeline::Number(number) = request.timeline { number } else { highest };
    Err(failure.unwrap_or(Unreachable::NotAnAncestor { timeline, backups: off }))
}

/// The highest timeline of which there is anything.
pub fn highest_timeline(inventory: &Inventory) -> TimelineId {
    let wal = inventory.timelines.keys().next_back().copied();
    let backups = inventory.whole_backups().map(|backup| backup.timeline).max();
    wal.max(backups).unwrap_or(TimelineId::FIRST)
}

/// The timelines of which there is anything.
pub fn known_timelines(inventory: &Inventory) -> Vec<TimelineId> {
    let backups = inventory.whole_backups().map(|backup| backup.timeline);
    let mut known: Vec<TimelineId> = inventory.timelines.keys().copied().chain(backups).collect();
    known.sort_unstable();
    known.dedup();
    known
}

/// The backup asked for, or all that exist.
fn wanted<'a>(inventory: &'a Inventory, request: &Request) -> Result<Vec<&'a BackupSummary>, Unreachable> {
    if let Some(id) = request.backup {
        let backup = inventory.backup(id).ok_or(Unreachable::NoSuchBackup(id))?;
        return match &backup.state {
            BackupState::Whole(summary) => Ok(vec![summary]),
            BackupState::Damaged(reason, _) => Err(Unreachable::BackupDamaged(id, reason.clone())),
            BackupState::Unfinished => Err(Unreachable::BackupUnfinished(id)),
        };
    }
    let whole: Vec<_> = inventory.whole_backups().collect();
    if !whole.is_empty() {
        return Ok(whole);
    }
    let (mut damaged, mut unfinished) = (Vec::new(), Vec::new());
    for backup in &inventory.backups {
        match &backup.state {
            BackupState::Damaged(reason, _) => damaged.push((backup.listing.id, reason.clone())),
            _ => unfinished.push(backup.listing.id),
        }
    }
    Err(if damaged.is_empty() { Unreachable::NoBackup { unfinished } } else { Unreachable::AllDamaged(damaged) })
}

fn no_path(timeline: TimelineId, why: NoPath) -> Unreachable {
    match why {
        NoPath::HistoryMissing => Unreachable::HistoryMissing { timeline, wanted: timeline },
        NoPath::HistoryDamaged(reason) => Unreachable::HistoryDamaged(timeline, reason),
    }
}

/// PostgreSQL stays on a timeline without a history file, too.
fn own_path(inventory: &Inventory, timeline: TimelineId) -> Result<TimelinePath, Unreachable> {
    match TimelinePath::to(inventory, timeline) {
        Err(NoPath::HistoryMissing) => Ok(TimelinePath::only(inventory, timeline)),
        other => other.map_err(|why| no_path(timeline, why)),
    }
}

fn path_to_latest(
    inventory: &Inventory,
    backup: &BackupSummary,
    highest: TimelineId,
) -> Result<TimelinePath, Unreachable> {
    for number in backup.timeline.get() + 1..=highest.get() {
        let Some(timeline) = TimelineId::new(number) else { continue };
        match inventory.timeline(timeline).map(|wal| &wal.history) {
            Some(History::Known(_)) => {}
            Some(History::Damaged(reason)) => return Err(Unreachable::HistoryDamaged(timeline, reason.clone())),
            _ => return Err(Unreachable::HistoryMissing { timeline, wanted: highest }),
        }
    }
    own_path(inventory, highest)
}

fn path_to_number(inventory: &Inventory, number: TimelineId) -> Result<TimelinePath, Unreachable> {
    let known = known_timelines(inventory);
    if !known.contains(&number) {
        return Err(Unreachable::NoSuchTimeline { timeline: number, known });
    }
    TimelinePath::to(inventory, number).map_err(|why| no_path(number, why))
}

fn on_path<'a>(
    backup: &'a BackupSummary,
    timeline: TimelineId,
    path: TimelinePath,
    inventory: &Inventory,
) -> Result<Route<'a>, OffPath> {
    let off = |left_at| OffPath { backup: backup.id, timeline: backup.timeline, stop: backup.stop_lsn, left_at };
    path.step_of(backup).map_err(off)?;
    let Span { first, last: stop } = backup.own_wal(inventory.segment_size);
    let reach = path.reach(inventory, first);
    Ok(Route { backup, timeline, path, first, stop, reach })
}
