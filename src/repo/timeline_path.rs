//! The way of a recovery through the timelines: which one owns each segment, and how far the stored WAL goes.
//!
//! Source: `XLogFileReadAnyTLI` in `access/transam/xlogrecovery.c`. For each segment PostgreSQL tries the timelines of the
//! target's history, newest first, but none that began in a later segment. So the segment in which a timeline was left
//! belongs to the newest timeline that began in it: its copy has the parent's WAL up to the fork, then its own.

use super::inventory::Inventory;
use super::manifest::BackupSummary;
use super::timeline_wal::{History, TimelineWal};
use super::wal_runs::Span;
use crate::postgres::{HistoryFile, Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId};

/// One timeline on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub timeline: TimelineId,
    /// Where it begins; 0/0 for the oldest one known.
    pub begin: Lsn,
    /// Where it is left, exclusively; `None` for the target's timeline.
    pub end: Option<Lsn>,
}

/// The timelines from the oldest known ancestor to the target's.
///
/// * At least one step; only the last one has no end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelinePath {
    steps: Vec<Step>,
    size: SegmentSize,
}

/// Why nobody knows the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPath {
    /// The timeline's history file is not there.
    HistoryMissing,
    /// It cannot be read.
    HistoryDamaged(String),
}

/// Segments of one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineSpan {
    /// Which timeline.
    pub timeline: TimelineId,
    /// Which segments.
    pub span: Span,
}

/// How far stored WAL goes without a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// What is there, in the order of replay.
    pub there: Vec<TimelineSpan>,
    /// The first segment that is not there.
    pub next: (TimelineId, SegmentNumber),
    /// The last thing that shows that more was written on the way, and how far: then it is a gap.
    pub went_on: Option<SegmentNumber>,
}

impl TimelinePath {
    /// The way to `timeline`. That of a timeline without a history file nobody knows.
    pub fn to(inventory: &Inventory, timeline: TimelineId) -> Result<Self, NoPath> {
        let mut steps = Vec::new();
        let mut begin = Lsn::INVALID;
        match inventory.timeline(timeline).map(|wal| &wal.history) {
            // The first one needs none.
            _ if timeline == TimelineId::FIRST => {}
            Some(History::Known(history)) => {
                for (entry, end) in history.entries.iter().zip(ends(history)) {
                    steps.push(Step { timeline: entry.parent, begin, end: Some(end) });
                    begin = end;
                }
            }
            Some(History::Damaged(reason)) => return Err(NoPath::HistoryDamaged(reason.clone())),
            _ => return Err(NoPath::HistoryMissing),
        }
        steps.push(Step { timeline, begin, end: None });
        Ok(TimelinePath { steps, size: inventory.segment_size })
    }

    /// The way of one who stays on a timeline, wherever it comes from.
    pub fn only(inventory: &Inventory, timeline: TimelineId) -> Self {
        let steps = vec![Step { timeline, begin: Lsn::INVALID, end: None }];
        TimelinePath { steps, size: inventory.segment_size }
    }

    /// The way to `timeline` as far as anybody knows it: where its history file cannot be read, that of one who stays on it.
    pub fn as_known(inventory: &Inventory, timeline: TimelineId) -> Self {
        Self::to(inventory, timeline).unwrap_or_else(|_| Self::only(inventory, timeline))
    }

    /// The same way in segments of another size.
    pub fn in_segments_of(self, size: SegmentSize) -> Self {
        TimelinePath { size, ..self }
    }

    /// The timelines, oldest first.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Where the last one begins.
    pub fn begin(&self) -> Lsn {
        self.steps.last().map(|step| step.begin).unwrap_or_default()
    }

    /// A timeline's place on the way.
    pub fn step(&self, timeline: TimelineId) -> Option<&Step> {
        self.steps.iter().find(|step| step.timeline == timeline)
    }

    /// The place on the way where a backup becomes consistent. `Err`: it lies beside; its timeline was left here, if that is on
    /// the way at all.
    pub fn step_of(&self, backup: &BackupSummary) -> Result<&Step, Option<Lsn>> {
        let step = self.step(backup.timeline).ok_or(None)?;
        match step.end {
            Some(end) if backup.stop_lsn > end => Err(Some(end)),
            _ => Ok(step),
        }
    }

    /// The timeline whose copy of a segment is replayed.
    pub fn owner(&self, number: SegmentNumber) -> TimelineId {
        self.steps[self.index_of_owner(number)].timeline
    }

    /// The name of the segment that is replayed.
    pub fn name(&self, number: SegmentNumber) -> SegmentName {
        self.size.name(self.owner(number), number)
    }

    fn index_of_owner(&self, number: SegmentNumber) -> usize {
        let began = |step: &Step| self.size.containing(step.begin) <= number;
        self.steps.iter().rposition(began).unwrap_or(0)
    }

    /// The last segment that a step owns; `None`: it goes on.
    fn last_of(&self, index: usize) -> Option<SegmentNumber> {
        let later = self.steps[index + 1..].iter().map(|step| self.size.containing(step.begin).0);
        later.min().map(|begin| SegmentNumber(begin.saturating_sub(1)))
    }

    /// The segments without which a backup of the last timeline cannot be made consistent, by their owners. A manifest may claim any
    /// number of them.
    pub fn spans_of(&self, backup: &BackupSummary) -> Vec<TimelineSpan> {
        let Span { first, last } = backup.own_wal(self.size);
        self.spans(first, last)
    }

    /// All copies that a replay of these segments may read. The one in which a timeline was left counts twice: whoever stays on that
    /// timeline reads its own.
    pub fn copies(&self, of: Span) -> Vec<TimelineSpan> {
        let copies = self.steps.iter().filter_map(|step| {
            let last = step.end.map_or(Span::LAST, |end| self.size.ending_at(end));
            let span = Span::new(self.size.containing(step.begin), last)?.common(of)?;
            Some(TimelineSpan { timeline: step.timeline, span })
        });
        copies.collect()
    }

    /// What is stored on the way, whoever owns it, without what is missing in between.
    pub fn runs(&self, inventory: &Inventory) -> Vec<Span> {
        let mut runs: Vec<Span> = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            let last = self.last_of(index).unwrap_or(Span::LAST);
            let own = Span::new(self.size.containing(step.begin), last);
            let own = own.filter(|own| self.index_of_owner(own.first) == index);
            let (Some(own), Some(wal)) = (own, inventory.timeline(step.timeline)) else { continue };
            for span in wal.segments.within(own) {
                match runs.last_mut() {
                    Some(run) if run.last.0 + 1 == span.first.0 => run.last = span.last,
                    _ => runs.push(span),
                }
            }
        }
        runs
    }

    /// The segments from `from` to `to`, by their owners.
    pub fn spans(&self, from: SegmentNumber, to: SegmentNumber) -> Vec<TimelineSpan> {
        let mut spans = Vec::new();
        let mut next = from;
        while next <= to {
            let index = self.index_of_owner(next);
            let last = self.last_of(index).filter(|last| *last >= next).map_or(to, |last| last.min(to));
            spans.push(TimelineSpan { timeline: self.steps[index].timeline, span: Span { first: next, last } });
            next = SegmentNumber(last.0 + 1);
        }
        spans
    }

    /// What is stored on the way from `from` on, and whether there was more.
    pub fn reach(&self, inventory: &Inventory, from: SegmentNumber) -> Reach {
        let mut there: Vec<TimelineSpan> = Vec::new();
        let mut next = from;
        let last_step = loop {
            let index = self.index_of_owner(next);
            let timeline = self.steps[index].timeline;
            let run = inventory.timeline(timeline).and_then(|wal| wal.segments.containing(next));
            let Some(run) = run else { break index };
            let end = self.last_of(index).filter(|last| *last >= next);
            let last = end.map_or(run.last(), |end| end.min(run.last()));
            there.push(TimelineSpan { timeline, span: Span { first: next, last } });
            next = SegmentNumber(last.0 + 1);
        };
        let went_on = self.last_trace(inventory, last_step, next);
        Reach { there, next: (self.steps[last_step].timeline, next), went_on }
    }

    /// The last segment that shows that the way went on behind `next`, which is missing. As [`super::absence`] judges: a partial
    /// copy or a backup note of `next` itself shows nothing, a later timeline that left the last one shows where.
    fn last_trace(&self, inventory: &Inventory, index: usize, next: SegmentNumber) -> Option<SegmentNumber> {
        let own = self.steps[index..].iter().enumerate().flat_map(|(offset, step)| {
            let end = self.last_of(index + offset);
            let wal = inventory.timeline(step.timeline);
            let trace = wal.and_then(TimelineWal::last_trace).filter(|trace| *trace >= next);
            // The fork of the next timeline shows that this one came as far.
            [trace.map(|trace| end.map_or(trace, |end| trace.min(end))), end.filter(|end| *end >= next)]
        });
        let last = self.steps.last().map(|step| step.timeline);
        let children = last.map(|last| last_before_forks(inventory, last));
        let backups = inventory.whole_backups().filter(|backup| Some(backup.timeline) == last);
        let stops = backups.map(|backup| Some(backup.own_wal(self.size).last));
        own.chain(children).chain(stops).flatten().filter(|trace| *trace >= next).max()
    }

    /// An older timeline that wrote on behind the fork, where PostgreSQL would look for a segment that its owner's archive lacks, after
    /// one of `current`. What it finds there does not belong to the way.
    pub fn stray(&self, inventory: &Inventory, current: TimelineId, number: SegmentNumber) -> Option<SegmentName> {
        let older = self.steps[..self.index_of_owner(number)].iter().rev();
        let mut tried = older.filter(|step| step.timeline >= current && self.size.containing(step.begin) <= number);
        tried.find_map(|step| {
            let wal = inventory.timeline(step.timeline);
            let name = |number| self.size.name(step.timeline, number);
            // A live tail that ends where the timeline was left has nothing behind that.
            let ends_here = inventory.tail_of(step.timeline, number).is_some_and(|tail| Some(tail.end) <= step.end);
            if wal.is_some_and(|wal| wal.segments.has(number)) && !ends_here {
                return Some(name(number));
            }
            let own = wal.and_then(TimelineWal::last_trace);
            own.max(last_before_forks(inventory, step.timeline)).filter(|trace| *trace >= number).map(name)
        })
    }

    /// What is not stored of the way from `from` to `to`.
    pub fn missing(&self, inventory: &Inventory, from: SegmentNumber, to: SegmentNumber) -> Vec<TimelineSpan> {
        let spans = self.spans(from, to).into_iter();
        let missing = spans.flat_map(|TimelineSpan { timeline, span }| {
            let spans = inventory.timeline(timeline).map_or(vec![span], |wal| wal.segments.missing(span));
            spans.into_iter().map(move |span| TimelineSpan { timeline, span })
        });
        missing.collect()
    }
}

impl Reach {
    /// The last segment that is there.
    pub fn last(&self) -> Option<SegmentNumber> {
        self.there.last().map(|there| there.span.last)
    }

    /// Whether a segment is within it.
    pub fn has(&self, number: SegmentNumber) -> bool {
        self.there.iter().any(|there| there.span.has(number))
    }
}

impl TimelineSpan {
    /// The first segment's name.
    pub fn first_name(&self, size: SegmentSize) -> SegmentName {
        size.name(self.timeline, self.span.first)
    }

    /// The last segment's name.
    pub fn last_name(&self, size: SegmentSize) -> SegmentName {
        size.name(self.timeline, self.span.last)
    }
}

/// Where the timelines of a history were left, as it counts for what came later. Recovered to a moment before the fork of the timeline
/// that it followed, PostgreSQL notes that this timeline was left before it began. Then nothing older counts behind that, either:
/// `tliOfPointInHistory` in `access/transam/timeline.c` goes from the newest to the oldest.
fn ends(history: &HistoryFile) -> Vec<Lsn> {
    let mut ends: Vec<Lsn> = history.entries.iter().map(|entry| entry.switch).collect();
    for at in (1..ends.len()).rev() {
        ends[at - 1] = ends[at - 1].min(ends[at]);
    }
    ends
}

/// The last segment that a timeline must have had before it was left for the last time, by all history files.
pub fn last_before_forks(inventory: &Inventory, timeline: TimelineId) -> Option<SegmentNumber> {
    let entries = inventory.histories().flat_map(|history| &history.entries);
    let left = entries.filter(|entry| entry.parent == timeline);
    let left = left.map(|entry| inventory.segment_size.containing(entry.switch).0);
    left.max().and_then(|number| number.checked_sub(1)).map(SegmentNumber)
}

#[cfg(test)]
mod tests {
    use super::super::sample::{at, empty, id, lsn, summary, timeline};
    use super::*;

    /// Timeline 2 left 1 in segment 5, timeline 3 left 2 at the border before segment 9; nobody knows where 4 is from.
    fn inventory() -> Inventory {
        let second = [(1, lsn(5, 40))];
        let third = [(1, lsn(5, 40)), (2, lsn(9, 0))];
        empty()
            .with_wal(1, 3..=6)
            .with_history(2, &second)
            .with_wal(2, 5..=7)
            .with_history(3, &third)
            .with_wal(3, 9..=9)
    }

    fn path(to: u32) -> TimelinePath {
        TimelinePath::as_known(&inventory(), timeline(to))
    }

    fn backup(on: u32, start: Lsn, stop: Lsn) -> BackupSummary {
        summary(id(60), on, start, stop, at(70))
    }

    fn span(first: u64, last: u64) -> Span {
        Span { first: SegmentNumber(first), last: SegmentNumber(last) }
    }

    #[test]
    fn a_replay_may_read_the_copies_of_all_ancestors() {
        let onward = Span::onward(SegmentNumber(3));
        let copies = |to| -> Vec<(u32, Span)> {
            path(to).copies(onward).iter().map(|on| (on.timeline.get(), on.span)).collect()
        };
        let end = Span::LAST.0;
        assert_eq!(copies(1), [(1, onward)]);
        assert_eq!(copies(2), [(1, span(3, 5)), (2, span(5, end))]);
        assert_eq!(copies(3), [(1, span(3, 5)), (2, span(5, 8)), (3, span(9, end))]);
        assert_eq!(copies(4), [(4, onward)]);
    }

    #[test]
    fn what_lies_behind_the_switch_is_not_on_the_way() {
        let late = backup(1, lsn(4, 40), lsn(5, 41));
        assert_eq!(path(2).step_of(&late), Err(Some(lsn(5, 40))));
        assert!(path(1).step_of(&late).is_ok());
        assert!(path(2).step_of(&backup(1, lsn(4, 40), lsn(5, 40))).is_ok());
        assert_eq!(path(1).step_of(&backup(2, lsn(6, 0), lsn(7, 0))), Err(None));
    }

    #[test]
    fn a_fork_before_the_last_one_leaves_what_lies_between() {
        // Timeline 3 was to follow timeline 2, but ended in segment 4, which is timeline 1's still.
        let back = [(1, lsn(7, 40)), (2, lsn(4, 40))];
        let inventory = empty().with_wal(1, 2..=9).with_history(2, &back[..1]).with_wal(2, 7..=8);
        let inventory = inventory.with_history(3, &back).with_wal(3, 4..=5);
        let path = TimelinePath::to(&inventory, timeline(3)).unwrap();
        let (before, between) = (backup(1, lsn(2, 0), lsn(3, 0)), backup(1, lsn(5, 0), lsn(6, 0)));
        assert!(path.step_of(&before).is_ok());
        assert_eq!(path.step_of(&between), Err(Some(lsn(4, 40))));
        assert_eq!(path.step_of(&backup(2, lsn(7, 50), lsn(8, 0))), Err(Some(lsn(4, 40))));
        assert!(TimelinePath::to(&inventory, timeline(2)).unwrap().step_of(&between).is_ok());
        let on = |number, first, last| TimelineSpan { timeline: timeline(number), span: span(first, last) };
        assert_eq!(path.spans(SegmentNumber(2), SegmentNumber(5)), [on(1, 2, 3), on(3, 4, 5)]);
        assert_eq!(path.copies(span(2, 9)), [on(1, 2, 4), on(2, 4, 4), on(3, 4, 9)]);
        assert_eq!(path.begin(), lsn(4, 40));
    }

    #[test]
    fn a_backup_over_a_switch_needs_both_timelines() {
        let standby = backup(2, lsn(4, 0), lsn(6, 1));
        let on = |number, span| TimelineSpan { timeline: timeline(number), span };
        assert_eq!(path(2).spans_of(&standby), [on(1, span(4, 4)), on(2, span(5, 6))]);
        // A manifest that lies is one span, too.
        let endless = path(2).spans_of(&backup(2, lsn(6, 0), Lsn(0x7FFF_FFFF << 32)));
        assert_eq!(endless, [on(2, span(6, (0x7FFF_FFFF << 12) - 1))]);
        let copies = path(2).copies(standby.own_wal(path(2).size));
        assert_eq!(copies.iter().map(|on| on.span).collect::<Vec<_>>(), [span(4, 5), span(5, 6)]);
    }

    #[test]
    fn runs_go_over_forks_and_end_at_what_is_missing() {
        assert_eq!(path(1).runs(&inventory()), [span(3, 6)]);
        assert_eq!(path(2).runs(&inventory()), [span(3, 7)]);
        assert_eq!(path(3).runs(&inventory()), [span(3, 7), span(9, 9)]);
    }
}
