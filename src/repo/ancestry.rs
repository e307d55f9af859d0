//! How the timelines of a generation hang together, and which WAL leads from a backup to the end of one.
//!
//! A timeline's history file names its ancestors and where each was left. Within it every segment number has one provider: the
//! youngest timeline that had begun by then. Where a history file is missing, its timeline may come from any older one.

use std::collections::BTreeMap;

use crate::postgres::{HistoryFile, Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId};

/// The part of a timeline that another one, or itself, goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Which.
    pub timeline: TimelineId,
    /// The segment in which it begins; the timeline before has a copy of the bytes up to there.
    pub first: SegmentNumber,
    /// Where it was left; `None`: never, on this way.
    pub left: Option<Lsn>,
}

/// WAL of one timeline: from a segment to another, both included, or to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Which.
    pub timeline: TimelineId,
    /// From here.
    pub first: SegmentNumber,
    /// To here; `None`: to the end.
    pub last: Option<SegmentNumber>,
}

/// Where replay of a backup begins, and from where on its copy is consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The timeline of both.
    pub timeline: TimelineId,
    /// Where replay begins.
    pub start: Lsn,
    /// Where it must have come before the copy is consistent.
    pub stop: Lsn,
}

/// The timelines of a generation.
#[derive(Clone, Debug)]
pub struct Ancestry {
    size: SegmentSize,
    /// Each timeline; without its way from timeline 1 where nobody can tell it.
    ways: BTreeMap<TimelineId, Option<Vec<Leg>>>,
}

impl Ancestry {
    /// These timelines, as far as their history files are known.
    pub fn new(
        size: SegmentSize,
        timelines: impl IntoIterator<Item = TimelineId>,
        histories: &BTreeMap<TimelineId, HistoryFile>,
    ) -> Self {
        let way = |timeline| match (timeline, histories.get(&timeline)) {
            (TimelineId::FIRST, _) => Some(legs(size, timeline, None)),
            (_, Some(history)) => Some(legs(size, timeline, Some(history))),
            (_, None) => None,
        };
        let all = timelines.into_iter().chain(histories.keys().copied());
        Ancestry { size, ways: all.map(|timeline| (timeline, way(timeline))).collect() }
    }

    /// All timelines, the oldest first.
    pub fn timelines(&self) -> impl Iterator<Item = TimelineId> + '_ {
        self.ways.keys().copied()
    }

    /// The way to a timeline, the oldest leg first; `None` where nobody can tell it.
    pub fn way(&self, timeline: TimelineId) -> Option<&[Leg]> {
        self.ways.get(&timeline)?.as_deref()
    }

    /// The WAL that leads from a backup to the end of a timeline; `None` if the backup is not on the way there. Where nobody
    /// can tell, all that may.
    pub fn stretches(&self, base: &Base, to: TimelineId) -> Option<Vec<Stretch>> {
        let begin = self.size.containing(base.start);
        let from_begin = |timeline| Stretch { timeline, first: begin, last: None };
        let Some(way) = self.way(to) else {
            let between = self.timelines().filter(|timeline| (base.timeline..=to).contains(timeline));
            return (base.timeline <= to).then(|| between.chain([to]).map(from_begin).collect());
        };
        let on_the_way =
            way.iter().any(|leg| leg.timeline == base.timeline && leg.left.is_none_or(|left| base.stop <= left));
        let stretch = |leg: &Leg| {
            let last = leg.left.map(|left| self.size.ending_at(left));
            let stretch = Stretch { timeline: leg.timeline, first: leg.first.max(begin), last };
            last.is_none_or(|last| stretch.first <= last).then_some(stretch)
        };
        on_the_way.then(|| way.iter().filter_map(stretch).collect())
    }

    /// The segments without which a backup cannot be made consistent, each from its one provider: runs from the first to the
    /// last, both included. There are as many as legs at most, whatever a manifest claims.
    pub fn segments_of(&self, base: &Base) -> Vec<(SegmentName, SegmentName)> {
        let (begin, mut end) = (self.size.containing(base.start).0, self.size.ending_at(base.stop).0.saturating_add(1));
        let alone = [Leg { timeline: base.timeline, first: SegmentNumber(0), left: None }];
        let way = self.way(base.timeline).unwrap_or(&alone);
        let mut runs = Vec::new();
        for leg in way.iter().rev() {
            let first = leg.first.0.max(begin);
            if first < end {
                let name = |number| self.size.name(leg.timeline, SegmentNumber(number));
                runs.push((name(first), name(end - 1)));
                end = first;
            }
        }
        runs.reverse();
        runs
    }

    /// The WAL without which a backup cannot be made consistent.
    pub fn own_stretches(&self, base: &Base) -> Vec<Stretch> {
        let end = self.size.ending_at(base.stop);
        let to_end = |stretch: Stretch| {
            let last = stretch.last.map_or(end, |last| last.min(end));
            (stretch.first <= last).then_some(Stretch { last: Some(last), ..stretch })
        };
        let all = match self.way(base.timeline) {
            Some(_) => self.stretches(base, base.timeline).unwrap_or_default(),
            None => vec![Stretch { timeline: base.timeline, first: self.size.containing(base.start), last: None }],
        };
        all.into_iter().filter_map(to_end).collect()
    }
}

fn legs(size: SegmentSize, timeline: TimelineId, history: Option<&HistoryFile>) -> Vec<Leg> {
    let mut legs = Vec::new();
    let mut first = SegmentNumber(0);
    for entry in history.iter().flat_map(|history| &history.entries) {
        legs.push(Leg { timeline: entry.parent, first, left: Some(entry.switch) });
        first = size.containing(entry.switch);
    }
    legs.push(Leg { timeline, first, left: None });
    legs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn mib(segment: u64, offset: u64) -> Lsn {
        Lsn((segment << 20) + offset)
    }

    fn stretch(number: u32, first: u64, last: Option<u64>) -> Stretch {
        Stretch { timeline: timeline(number), first: SegmentNumber(first), last: last.map(SegmentNumber) }
    }

    /// Timeline 2 left 1 in segment 5, timeline 3 left 2 at the border before segment 9; nobody knows where 4 is from.
    fn ancestry() -> Ancestry {
        let parse =
            |number, text: &str| (timeline(number), HistoryFile::parse(timeline(number), text.as_bytes()).unwrap());
        let second = format!("1\t{}\tx\n", mib(5, 40));
        let third = format!("{second}2\t{}\tx\n", mib(9, 0));
        let histories = BTreeMap::from([parse(2, &second), parse(3, &third)]);
        Ancestry::new(SegmentSize::new(1 << 20).unwrap(), (1..=4).map(timeline), &histories)
    }

    fn base(number: u32, start: Lsn, stop: Lsn) -> Base {
        Base { timeline: timeline(number), start, stop }
    }

    #[test]
    fn the_way_goes_through_the_ancestors() {
        let backup = base(1, mib(3, 40), mib(4, 0));
        let way = |to| ancestry().stretches(&backup, timeline(to));
        assert_eq!(way(1), Some(vec![stretch(1, 3, None)]));
        assert_eq!(way(2), Some(vec![stretch(1, 3, Some(5)), stretch(2, 5, None)]));
        assert_eq!(way(3), Some(vec![stretch(1, 3, Some(5)), stretch(2, 5, Some(8)), stretch(3, 9, None)]));
        let may = (1..=4).map(|number| stretch(number, 3, None));
        assert_eq!(way(4).map(|all| all[..4].to_vec()), Some(may.collect()));
        assert_eq!(ancestry().own_stretches(&backup), [stretch(1, 3, Some(3))]);
    }

    #[test]
    fn what_lies_behind_the_switch_is_not_on_the_way() {
        let late = base(1, mib(4, 40), mib(5, 41));
        assert_eq!(ancestry().stretches(&late, timeline(2)), None);
        assert!(ancestry().stretches(&late, timeline(1)).is_some());
        let just_in_time = base(1, mib(4, 40), mib(5, 40));
        assert!(ancestry().stretches(&just_in_time, timeline(2)).is_some());
        assert_eq!(ancestry().stretches(&base(2, mib(6, 0), mib(7, 0)), timeline(1)), None);
    }

    #[test]
    fn a_backup_over_a_switch_needs_both_timelines() {
        let standby = base(2, mib(4, 0), mib(6, 1));
        assert_eq!(ancestry().own_stretches(&standby), [stretch(1, 4, Some(5)), stretch(2, 5, Some(6))]);
        let runs = |base: &Base| -> Vec<String> {
            ancestry().segments_of(base).iter().map(|(first, last)| format!("{first} {last}")).collect()
        };
        let expected =
            ["000000010000000000000004 000000010000000000000004", "000000020000000000000005 000000020000000000000006"];
        assert_eq!(runs(&standby), expected);
        // Nobody knows where timeline 4 is from, and this manifest lies.
        let endless = runs(&base(4, mib(1, 0), Lsn(0x7FFF_FFFF << 32)));
        assert_eq!(endless, ["000000040000000000000001 000000047FFFFFFE00000FFF"]);
    }
}
