//! What can be restored now: on each timeline, from where to where any moment can be reached; and what is missing in between.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::backup_id::BackupId;
use super::inventory::Inventory;
use super::routes::known_timelines;
use super::timeline_path::{TimelinePath, TimelineSpan, last_before_forks};
use super::wal_runs::Span;
use crate::postgres::{Lsn, SegmentName, SegmentNumber, TimelineId};

/// Positions of a timeline, each of which can be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Which timeline.
    pub timeline: TimelineId,
    /// The first backup from which they can be.
    pub from_backup: BackupId,
    /// The end of that backup, or the fork where its way comes to this timeline.
    pub from_lsn: Lsn,
    /// When that backup stopped; `None` for a fork, of which no time is known.
    pub from_time: Option<Timestamp>,
    /// The segment in which that is.
    pub first: SegmentName,
    /// The last segment that is there without a hole, if only its live tail.
    pub last: SegmentName,
    /// The end of what is there of it, exclusively.
    pub to_lsn: Lsn,
    /// Whether that is the end of a live tail, within the segment.
    pub in_tail: bool,
    /// When it was stored, by the store's clock.
    pub stored: Option<Timestamp>,
}

/// The intervals of each timeline, ascending. A timeline of which nothing can be restored has none, but is there.
pub fn restorable_intervals(inventory: &Inventory) -> BTreeMap<TimelineId, Vec<Interval>> {
    known_timelines(inventory).into_iter().map(|timeline| (timeline, of_timeline(inventory, timeline))).collect()
}

fn of_timeline(inventory: &Inventory, timeline: TimelineId) -> Vec<Interval> {
    let size = inventory.segment_size;
    // Where nobody knows the way, backups of its own can still be replayed on it.
    let path = TimelinePath::as_known(inventory, timeline);
    let fork = path.begin();
    let mut intervals: Vec<Interval> = Vec::new();
    for backup in inventory.whole_backups() {
        if path.step_of(backup).is_err() {
            continue;
        }
        let needs = backup.own_wal(size);
        let reach = path.reach(inventory, needs.first);
        let whole = reach.last().is_some_and(|last| last >= needs.last);
        let Some(own) = reach.there.iter().find(|there| whole && there.timeline == timeline) else { continue };
        let last = own.span.last;
        let (from_lsn, from_time, first) = match backup.timeline == timeline {
            true => (backup.stop_lsn, Some(backup.stopped), needs.last),
            false => (fork, None, own.span.first),
        };
        let run = inventory.timeline(timeline).and_then(|wal| wal.segments.containing(last));
        intervals.push(Interval {
            timeline,
            from_backup: backup.id,
            from_lsn,
            from_time,
            first: size.name(timeline, first),
            last: size.name(timeline, last),
            to_lsn: inventory.end_of(timeline, last),
            in_tail: inventory.tail_of(timeline, last).is_some(),
            stored: run.and_then(|run| run.last_stored),
        });
    }
    intervals.sort_by_key(|interval| (interval.last, interval.from_lsn, interval.from_time, interval.from_backup));
    // What ends together belongs together: the first one has it all.
    intervals.dedup_by_key(|interval| interval.last);
    intervals
}

/// Segments that are missing, though there was WAL before and behind them.
pub fn gaps(inventory: &Inventory) -> Vec<TimelineSpan> {
    let known = known_timelines(inventory).into_iter();
    known.flat_map(|timeline| gaps_of(inventory, timeline)).collect()
}

fn gaps_of(inventory: &Inventory, timeline: TimelineId) -> Vec<TimelineSpan> {
    let wal = inventory.timeline(timeline);
    let backups = inventory.whole_backups().filter(|backup| backup.timeline == timeline);
    let needs: Vec<Span> = backups.map(|backup| backup.own_wal(inventory.segment_size)).collect();
    let starts = needs.iter().map(|span| span.first);
    let lower = wal.and_then(|wal| wal.segments.first()).into_iter().chain(starts).min();
    let lower = match first_after_fork(inventory, timeline) {
        Some(first) => Some(lower.map_or(first, |lower| lower.min(first))),
        None => lower,
    };
    let traces = [wal.and_then(|wal| wal.last_trace()), last_before_forks(inventory, timeline)];
    let upper = traces.into_iter().flatten().chain(needs.iter().map(|span| span.last)).max();
    let Some(span) = lower.zip(upper).and_then(|(first, last)| Span::new(first, last)) else { return Vec::new() };
    let missing = wal.map_or(vec![span], |wal| wal.segments.missing(span));
    missing.into_iter().map(|span| TimelineSpan { timeline, span }).collect()
}

/// The first segment of a timeline, if the WAL before it is there: then it should be there too.
fn first_after_fork(inventory: &Inventory, timeline: TimelineId) -> Option<SegmentNumber> {
    let path = TimelinePath::to(inventory, timeline).ok()?;
    let begin = path.begin();
    let first = inventory.segment_size.containing(begin);
    let before = SegmentNumber(first.0.checked_sub(1)?);
    let there = inventory.timeline(path.owner(before)).is_some_and(|wal| wal.segments.has(before));
    (begin != Lsn::INVALID && there).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::super::sample::{empty, id, lsn, segment, timeline};
    use super::*;

    fn ends(inventory: &Inventory, number: u32) -> Vec<(Lsn, SegmentName, BackupId)> {
        let all = restorable_intervals(inventory);
        all[&timeline(number)].iter().map(|interval| (interval.from_lsn, interval.last, interval.from_backup)).collect()
    }

    #[test]
    fn intervals_begin_at_backups_and_end_at_gaps() {
        let inventory = empty()
            .with_wal(1, (1..=9).chain(12..=15).chain(18..=20))
            .with_backup(60, 1, lsn(2, 10), lsn(3, 50))
            .with_backup(120, 1, lsn(5, 10), lsn(6, 50))
            .with_backup(180, 1, lsn(11, 10), lsn(13, 50))
            .with_backup(240, 1, lsn(18, 10), lsn(18, 50));
        // The third lacks WAL of its own, the second adds nothing to the first.
        let expected = [(lsn(3, 50), segment(1, 9), id(60)), (lsn(18, 50), segment(1, 20), id(240))];
        assert_eq!(ends(&inventory, 1), expected);
        let missing: Vec<_> = gaps(&inventory).iter().map(|gap| (gap.span.first.0, gap.span.last.0)).collect();
        assert_eq!(missing, [(10, 11), (16, 17)]);
    }

    #[test]
    fn a_way_goes_on_behind_a_fork() {
        let inventory = empty().with_wal(1, 1..=6).with_history(2, &[(1, lsn(5, 50))]).with_wal(2, 5..=8).with_backup(
            60,
            1,
            lsn(2, 10),
            lsn(3, 50),
        );
        assert_eq!(ends(&inventory, 1), [(lsn(3, 50), segment(1, 6), id(60))]);
        assert_eq!(ends(&inventory, 2), [(lsn(5, 50), segment(2, 8), id(60))]);
        assert!(gaps(&inventory).is_empty());
        // Without the child's first segment nothing of it can be restored.
        let late = empty().with_wal(1, 1..=4).with_history(2, &[(1, lsn(5, 50))]).with_wal(2, 6..=8).with_backup(
            60,
            1,
            lsn(2, 10),
            lsn(3, 50),
        );
        assert_eq!(ends(&late, 2), []);
        assert_eq!(gaps(&late).len(), 1);
        // A repository that was begun on timeline 2 has no gap for that.
        let begun_later = empty().with_history(2, &[(1, lsn(5, 50))]).with_wal(2, 6..=8);
        assert!(gaps(&begun_later).is_empty());
    }
}
