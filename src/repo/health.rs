//! What an inventory says about the question that matters: what can be restored, and what stands in the way? Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::backup_id::BackupId;
use super::intervals::{Interval, gaps, restorable_intervals};
use super::inventory::Inventory;
use super::restore_plan::{Missing, Position};
use super::restore_target::{Indexes, Request, Target};
use super::routes::{Route, routes};
use super::select::{Selection, select};
use super::stored_backups::BackupState;
use super::timeline_path::{TimelinePath, TimelineSpan};
use super::timeline_wal::History;
use super::wal_runs::Span;
use crate::postgres::{HistoryFile, SegmentNumber, TimelineId};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Somebody should look.
    Warning,
    /// The latest state, or any at all, cannot be restored.
    Critical,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concern {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about, in a word.
    pub about: &'static str,
    /// What was found.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// What a gap means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapKind {
    /// The newest backup cannot be followed to the end of the archive.
    Cuts,
    /// Moments between older backups cannot be restored.
    Past,
    /// All WAL between two backups is gone, and what each of them needs is there: as `expire` leaves it.
    Expired,
}

/// Missing segments, and what they mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// What is missing.
    pub missing: Missing,
    /// What it means.
    pub kind: GapKind,
}

/// The newest position that can be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newest {
    /// Where.
    pub position: Position,
    /// When its segment was stored, by the store's clock.
    pub stored: Option<Timestamp>,
}

/// How much WAL there is, and how fast it becomes more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// Stored bytes a day.
    pub bytes_a_day: f64,
    /// The time that this is told from, in days: from the first segment to the last wherever none is missing between.
    pub days: f64,
}

/// What can be restored, and what stands in the way.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// What can be restored on each timeline.
    pub intervals: BTreeMap<TimelineId, Vec<Interval>>,
    /// What is missing.
    pub gaps: Vec<Gap>,
    /// The newest position that can be restored; `None`: nothing can.
    pub newest: Option<Newest>,
    /// The newest backup that a restore to the latest would begin with.
    pub newest_backup: Option<BackupId>,
    /// `None`: there is too little to tell.
    pub growth: Option<Growth>,
    /// What is not as it should be, the worst first.
    pub concerns: Vec<Concern>,
}

/// Judges an inventory.
pub fn health(inventory: &Inventory) -> Health {
    let latest = Request::to(Target::Latest);
    let ways = routes(inventory, &latest).unwrap_or_default();
    let usable = ways.iter().find(|route| route.end().is_some());
    let gaps = classified_gaps(inventory, usable.or(ways.first()));
    let mut concerns = Vec::new();
    if let Selection::Unreachable(why) = select(inventory, &latest, &Indexes::new()) {
        concerns.push(concern(Severity::Critical, "latest", why.to_string(), why.hint()));
    }
    concerns.extend(about_gaps(&gaps));
    concerns.extend(about_backups(inventory, usable));
    concerns.extend(about_objects(inventory));
    concerns.sort_by_key(|concern| std::cmp::Reverse(concern.severity));
    let intervals = restorable_intervals(inventory);
    let newest = match usable {
        Some(route) => newest_of(inventory, route),
        None => intervals.values().flatten().max_by_key(|interval| (interval.stored, interval.last)).map(newest_in),
    };
    let newest_backup = usable.map(|route| route.backup.id);
    Health { intervals, gaps, newest, newest_backup, growth: growth(inventory), concerns }
}

fn concern(severity: Severity, about: &'static str, message: String, hint: impl Into<String>) -> Concern {
    Concern { severity, about, message, hint: hint.into() }
}

fn newest_of(inventory: &Inventory, route: &Route) -> Option<Newest> {
    let last = route.end()?;
    if let Some(newest) = tail_before_fork(inventory, route) {
        return Some(newest);
    }
    let run = inventory.timeline(route.path.owner(last)).and_then(|wal| wal.segments.containing(last));
    // Of a segment within a run nobody kept the time: the WAL goes on behind a fork.
    let stored = run.filter(|run| run.last() == last).and_then(|run| run.last_stored);
    let position = Position::within(inventory, route.path.name(last), last);
    Some(Newest { position, stored })
}

/// Where a timeline was begun of which nothing is stored yet, recovery goes on in the live tail of the one before it, which has nothing
/// behind the fork.
fn tail_before_fork(inventory: &Inventory, route: &Route) -> Option<Newest> {
    let (next, number) = route.reach.next;
    let begin = route.path.step(next)?.begin;
    let at = route.path.steps().iter().position(|step| step.timeline == next)?;
    let before = route.path.steps()[..at].last()?.timeline;
    let tail = inventory.tail_of(before, number)?;
    if inventory.segment_size.containing(begin) != number || tail.end > begin || route.reach.went_on.is_some() {
        return None;
    }
    let stored = inventory.timeline(before)?.segments.iter().next_back()?.last_stored;
    let segment = inventory.segment_size.name(before, number);
    Some(Newest { position: Position { lsn: tail.end, segment, in_tail: true }, stored })
}

fn newest_in(interval: &Interval) -> Newest {
    let position = Position { lsn: interval.to_lsn, segment: interval.last, in_tail: interval.in_tail };
    Newest { position, stored: interval.stored }
}

/// Missing segments without which moments cannot be restored that could be once: not as `expire` leaves it.
pub fn lost_wal(inventory: &Inventory) -> Vec<TimelineSpan> {
    let ways = routes(inventory, &Request::to(Target::Latest)).unwrap_or_default();
    let route = ways.iter().find(|route| route.end().is_some()).or(ways.first());
    let lost = classified(inventory, route).filter(|(_, kind)| *kind != GapKind::Expired);
    lost.map(|(gap, _)| gap).collect()
}

fn classified_gaps(inventory: &Inventory, route: Option<&Route>) -> Vec<Gap> {
    let size = inventory.segment_size;
    classified(inventory, route).map(|(gap, kind)| Gap { missing: Missing::of(gap, size), kind }).collect()
}

fn classified(inventory: &Inventory, route: Option<&Route>) -> impl Iterator<Item = (TimelineSpan, GapKind)> {
    gaps(inventory).into_iter().map(move |gap| match route {
        Some(route) if lies_on(gap, route) => (gap, GapKind::Cuts),
        _ if is_expired(inventory, gap) => (gap, GapKind::Expired),
        _ => (gap, GapKind::Past),
    })
}

/// Whether a way needs what is missing.
fn lies_on(gap: TimelineSpan, route: &Route) -> bool {
    let first = gap.span.first.max(route.first);
    first <= gap.span.last && route.path.spans(first, gap.span.last).iter().any(|way| way.timeline == gap.timeline)
}

/// Whether it is as `expire` leaves it: before the gap exactly what backups need to be consistent, and no more; behind it the
/// beginning of another backup.
fn is_expired(inventory: &Inventory, gap: TimelineSpan) -> bool {
    ends_a_backup(inventory, gap) && begins_a_backup(inventory, gap)
}

fn ends_a_backup(inventory: &Inventory, gap: TimelineSpan) -> bool {
    let Some(before) = gap.span.first.0.checked_sub(1).map(SegmentNumber) else { return false };
    let on = TimelinePath::as_known(inventory, gap.timeline).owner(before);
    let Some(run) = inventory.timeline(on).and_then(|wal| wal.segments.containing(before)) else { return false };
    let mut next = run.first;
    for need in needs_on(inventory, on) {
        if need.has(next) {
            next = SegmentNumber(need.last.0 + 1);
        }
    }
    next == gap.span.first
}

/// Where the timeline was left in the gap, that of each timeline that goes on from there.
fn begins_a_backup(inventory: &Inventory, gap: TimelineSpan) -> bool {
    let next = SegmentNumber(gap.span.last.0 + 1);
    let begins = |timeline, number| needs_on(inventory, timeline).iter().any(|need| need.first == number);
    if inventory.timeline(gap.timeline).is_some_and(|wal| wal.segments.has(next)) {
        return begins(gap.timeline, next);
    }
    let left = |history: &&HistoryFile| {
        let last = history.entries.last();
        last.is_some_and(|last| last.parent == gap.timeline && inventory.segment_size.containing(last.switch) == next)
    };
    let children = inventory.histories().filter(left).map(|history| history.timeline);
    let first = |timeline| Some((timeline, inventory.timeline(timeline)?.segments.first()?));
    let mut firsts = children.filter_map(first).peekable();
    firsts.peek().is_some() && firsts.all(|(timeline, first)| begins(timeline, first))
}

/// What the backups of a timeline need to be consistent.
fn needs_on(inventory: &Inventory, timeline: TimelineId) -> Vec<Span> {
    let backups = inventory.whole_backups().filter(|backup| backup.timeline == timeline);
    let mut needs: Vec<Span> = backups.map(|backup| backup.own_wal(inventory.segment_size)).collect();
    needs.sort_unstable();
    needs
}

fn about_gaps(gaps: &[Gap]) -> Vec<Concern> {
    let past = gaps.iter().filter(|gap| gap.kind == GapKind::Past);
    let about = |gap: &Gap| {
        let are = if gap.missing.segments == 1 { "is" } else { "are" };
        let message = format!("{} {are} missing: what was written there cannot be restored", gap.missing);
        concern(
            Severity::Warning,
            "gap",
            message,
            "archive them with `pgark wal-push --backfill` where a `pg_wal` still has them",
        )
    };
    // The gap that cuts is what "latest" is about.
    past.map(about).collect()
}

fn about_backups(inventory: &Inventory, usable: Option<&Route>) -> Vec<Concern> {
    let mut concerns = Vec::new();
    for backup in &inventory.backups {
        if let BackupState::Damaged(reason, _) = &backup.state {
            let message = format!("backup `{}` is damaged: {reason}", backup.listing.id);
            let hint = "take another with `pgark basebackup`; a bucket with versioning may hold an intact version";
            concerns.push(concern(Severity::Warning, "backup", message, hint));
        }
    }
    let size = inventory.segment_size;
    for backup in inventory.whole_backups() {
        let span = backup.own_wal(size);
        let wal = inventory.timeline(backup.timeline);
        let missing = wal.map_or(vec![span], |wal| wal.segments.missing(span));
        if let Some(first) = missing.first() {
            let missing = Missing::of(TimelineSpan { timeline: backup.timeline, span: *first }, size);
            let message = format!("backup `{}` cannot be made consistent: its WAL {missing} is missing", backup.id);
            let hint = "archive it with `pgark wal-push --backfill` where a `pg_wal` still has it";
            concerns.push(concern(Severity::Warning, "backup", message, hint));
        }
    }
    if let Some(backup) = usable.map(|route| route.backup).filter(|backup| backup.bad_pages > 0) {
        let message =
            format!("the newest backup, `{}`, has {} pages with wrong checksums", backup.id, backup.bad_pages);
        concerns.push(concern(Severity::Warning, "pages", message, format!("`pgark show {}` lists them", backup.id)));
    }
    concerns
}

fn about_objects(inventory: &Inventory) -> Vec<Concern> {
    let mut concerns = Vec::new();
    for (timeline, wal) in &inventory.timelines {
        if let History::Damaged(reason) = &wal.history {
            let message = format!("`{timeline}.history` is damaged: {reason}");
            let hint = "move the object away and archive the file again from a `pg_wal` that has it";
            concerns.push(concern(Severity::Warning, "history", message, hint));
        }
    }
    for broken in inventory.timelines.values().filter_map(|wal| wal.tail_break.as_ref()) {
        let what = format!("`{}`: {}", broken.key, broken.reason);
        let (message, hint) = match broken.newer {
            true => (
                format!("a live tail goes on behind what this pgark can read: {what}"),
                format!("a recovery stops there with an error: {}", broken.newer_hint()),
            ),
            false => (
                format!("a live tail ends before its last piece: {what}"),
                "a restore ends there, until the whole segment is archived".to_owned(),
            ),
        };
        concerns.push(concern(Severity::Warning, "tail", message, hint));
    }
    let unknown = &inventory.unknown;
    if let Some(example) = unknown.examples.first() {
        let message = format!("{} objects are not known to this pgark, `{example}` for one", unknown.count);
        let hint =
            "a newer pgark may know them; a recovery to the end stops at one that stands behind the last segment";
        concerns.push(concern(Severity::Warning, "objects", message, hint));
    }
    concerns
}

/// A day is the least from which a day's growth is told.
const LEAST_DAYS: f64 = 1.0 / 24.0;

/// Over the time in which nothing is missing: what lies between old backups that are kept says nothing of a day.
fn growth(inventory: &Inventory) -> Option<Growth> {
    let (mut bytes, mut days) = (0, 0.0);
    for run in inventory.timelines.values().flat_map(|wal| wal.segments.iter()) {
        let (Some(first), Some(last)) = (run.first_stored, run.last_stored) else { continue };
        let took = last.duration_since(first).as_secs_f64() / 86_400.0;
        if took > 0.0 {
            days += took;
            bytes += run.bytes(run.span());
        }
    }
    (days >= LEAST_DAYS).then(|| Growth { bytes_a_day: bytes as f64 / days, days })
}

#[cfg(test)]
mod tests {
    use super::super::sample::{empty, id, lsn, segment};
    use super::*;

    fn concerns(inventory: &Inventory) -> Vec<(Severity, &'static str)> {
        health(inventory).concerns.iter().map(|concern| (concern.severity, concern.about)).collect()
    }

    fn kinds(inventory: &Inventory) -> Vec<GapKind> {
        health(inventory).gaps.iter().map(|gap| gap.kind).collect()
    }

    fn two_backups(wal: impl IntoIterator<Item = u64>) -> Inventory {
        empty().with_wal(1, wal).with_backup(120, 1, lsn(2, 10), lsn(3, 50)).with_backup(
            600,
            1,
            lsn(10, 10),
            lsn(11, 50),
        )
    }

    #[test]
    fn all_is_well() {
        let health = health(&two_backups(1..=20));
        assert_eq!((health.concerns, health.gaps), (vec![], vec![]));
        assert_eq!(health.newest_backup, Some(id(600)));
        assert_eq!(health.newest.unwrap().position.segment, segment(1, 20));
        // 20 segments of 1000 bytes, a minute apart.
        assert_eq!(health.growth, None);
    }

    /// A backup of long ago that is kept does not make the archive grow more slowly.
    #[test]
    fn growth_is_that_of_days_with_wal() {
        let grows = |wal: Inventory| health(&wal).growth.map(|growth| (growth.bytes_a_day as u64, growth.days > 0.1));
        let a_minute = Some((1000 * 1440 * 200 / 199, true));
        assert_eq!(grows(empty().with_wal(1, 1000..=1199)), a_minute);
        assert_eq!(grows(empty().with_wal(1, (3..=3).chain(1000..=1199))), a_minute);
    }

    #[test]
    fn gaps_by_what_they_mean() {
        assert_eq!(kinds(&two_backups((1..=5).chain(8..=20))), [GapKind::Past]);
        assert_eq!(concerns(&two_backups((1..=5).chain(8..=20))), [(Severity::Warning, "gap")]);
        // As `expire` leaves it: from the end of one backup to the beginning of the next.
        assert_eq!(kinds(&two_backups((2..=3).chain(10..=20))), [GapKind::Expired]);
        assert_eq!(concerns(&two_backups((2..=3).chain(10..=20))), []);
        // Something before it that no backup needs: it was not `expire`.
        assert_eq!(kinds(&two_backups((1..=3).chain(10..=20))), [GapKind::Past]);
        let cut = two_backups((1..=13).chain(16..=20));
        assert_eq!(kinds(&cut), [GapKind::Cuts]);
        assert_eq!(concerns(&cut), [(Severity::Critical, "latest")]);
        assert_eq!(health(&cut).newest.unwrap().position.segment, segment(1, 13));
    }

    /// The old backup keeps its own WAL, the new one was taken after a promotion or two.
    #[test]
    fn expiry_reaches_over_forks() {
        let old = |first, last| empty().with_backup(120, 1, lsn(first, 10), lsn(last, 50)).with_wal(1, first..=last);
        let fork = [(1, lsn(10, 50))];
        let new = |inventory: Inventory| inventory.with_history(2, &fork).with_backup(600, 2, lsn(20, 10), lsn(21, 50));
        assert_eq!(kinds(&new(old(2, 3)).with_wal(2, 20..=25)), [GapKind::Expired]);
        assert_eq!(concerns(&new(old(2, 3)).with_wal(2, 20..=25)), []);
        // One whose WAL ends at the fork.
        assert_eq!(kinds(&new(old(8, 9)).with_wal(2, 20..=25)), [GapKind::Expired]);
        // Something on one of the sides that no backup needs: it was not `expire`.
        assert_eq!(kinds(&new(old(2, 3)).with_wal(2, 19..=25)), [GapKind::Past]);
        assert_eq!(kinds(&new(old(2, 3)).with_wal(1, 4..=4).with_wal(2, 20..=25)), [GapKind::Past]);
    }

    #[test]
    fn what_cannot_be_restored_is_critical() {
        assert_eq!(concerns(&empty().with_wal(1, 1..=9)), [(Severity::Critical, "latest")]);
        assert_eq!(health(&empty()).newest, None);
        let only_damaged = empty().with_wal(1, 1..=9).with_state(60, BackupState::Damaged("it is empty".into(), None));
        assert_eq!(concerns(&only_damaged), [(Severity::Critical, "latest"), (Severity::Warning, "backup")]);
    }

    /// Recovery finds no copy of the segment in the new timeline, and takes what the old one has.
    #[test]
    fn a_fork_within_the_live_tail_of_which_nothing_is_stored() {
        let newest = |tail: u64| {
            let inventory = two_backups(1..=13).with_tail(1, lsn(14, tail)).with_history(2, &[(1, lsn(14, 50))]);
            let position = health(&inventory).newest.unwrap().position;
            (position.lsn, position.segment, position.in_tail)
        };
        assert_eq!(newest(30), (lsn(14, 30), segment(1, 14), true));
        assert_eq!(newest(50), (lsn(14, 50), segment(1, 14), true));
        // What lies behind the fork belongs to nobody: that is no way.
        assert_eq!(newest(51), (lsn(14, 0), segment(1, 13), false));
        let whole = two_backups(1..=13).with_tail(1, lsn(14, 30)).with_history(2, &[(1, lsn(14, 50))]);
        let position = health(&whole.with_wal(2, 14..=15)).newest.unwrap().position;
        assert_eq!((position.lsn, position.in_tail), (lsn(16, 0), false));
    }

    #[test]
    fn a_fork_whose_wal_is_missing_before_it() {
        let inventory = two_backups(1..=12).with_history(2, &[(1, lsn(14, 50))]).with_wal(2, 14..=16);
        assert_eq!(kinds(&inventory), [GapKind::Cuts]);
        assert_eq!(health(&inventory).newest.unwrap().position.segment, segment(1, 12));
    }
}
