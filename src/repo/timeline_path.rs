//! The way of a recovery through the timelines: which one owns each segment, and how far the stored WAL goes.
//!
//! Source: `XLogFileReadAnyTLI` in `access/transam/xlogrecovery.c`. For each segment PostgreSQL tries the timelines of the
//! target's history, newest first, but none that began in a later segment. So the segment in which a timeline was left
//! belongs to the newest timeline that began in it: its copy has the parent's WAL up to the fork, then its own.

use super::inventory::{History, Inventory, TimelineWal};
use super::wal_runs::Span;
use crate::postgres::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId};

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
    /// The way to `timeline`. Of one without a history file it is known only if nothing before it is wanted.
    pub fn to(inventory: &Inventory, timeline: TimelineId) -> Result<Self, NoPath> {
        let mut steps = Vec::new();
        let mut begin = Lsn::INVALID;
        match inventory.timeline(timeline).map(|wal| &wal.history) {
            Some(History::Known(history)) => {
                for entry in &history.entries {
                    steps.push(Step { timeline: entry.parent, begin, end: Some(entry.switch) });
                    begin = entry.switch;
                }
            }
            Some(History::Damaged(reason)) => return Err(NoPath::HistoryDamaged(reason.clone())),
            _ if timeline == TimelineId::FIRST => {}
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

    /// The timelines, oldest first.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// A timeline's place on the way.
    pub fn step(&self, timeline: TimelineId) -> Option<&Step> {
        self.steps.iter().find(|step| step.timeline == timeline)
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
        let stops = backups.map(|backup| Some(self.size.ending_at(backup.stop_lsn)));
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
            if wal.is_some_and(|wal| wal.segments.has(number)) {
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
        self.there.iter().any(|there| (there.span.first..=there.span.last).contains(&number))
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

/// The last segment that a timeline must have had before it was left for the last time, by all history files.
pub fn last_before_forks(inventory: &Inventory, timeline: TimelineId) -> Option<SegmentNumber> {
    let entries = inventory.histories().flat_map(|history| &history.entries);
    let left = entries.filter(|entry| entry.parent == timeline);
    let left = left.map(|entry| inventory.segment_size.containing(entry.switch).0);
    left.max().and_then(|number| number.checked_sub(1)).map(SegmentNumber)
}
