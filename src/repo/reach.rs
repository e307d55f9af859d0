//! Which WAL of a generation is needed: what leads from the backups that stay to the moments that shall be restorable.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::ancestry::{Ancestry, Base, Leg, Stretch};
use super::backup_id::BackupId;
use super::holdings::{HeldWal, Holdings};
use super::lease::Lease;
use crate::postgres::{SegmentNumber, SegmentSize, TimelineId, WalName};

/// The WAL of a generation, by place.
pub(super) struct Reach<'a> {
    holdings: &'a Holdings,
    size: SegmentSize,
    ancestry: Ancestry,
    bases: Vec<(BackupId, Base)>,
    places: BTreeMap<Place, Stored>,
}

type Place = (TimelineId, SegmentNumber);

/// What is stored for one segment number: the segment, partial ones, backup notes. They share a fate.
#[derive(Clone, Copy, Default)]
struct Stored {
    /// The newest; `None`: the store does not say.
    modified: Option<Timestamp>,
    timeless: bool,
    segment: bool,
}

/// Segment numbers of a way without a missing one between.
struct Run {
    first: SegmentNumber,
    last: SegmentNumber,
}

/// WAL that must stay.
#[derive(Default)]
pub(super) struct Needed(BTreeMap<TimelineId, Vec<(SegmentNumber, Option<SegmentNumber>)>>);

impl Needed {
    pub(super) fn add(&mut self, stretches: impl IntoIterator<Item = Stretch>) {
        for Stretch { timeline, first, last } in stretches {
            self.0.entry(timeline).or_default().push((first, last));
        }
    }

    /// Joins what overlaps, so that a place is looked up by halving.
    pub(super) fn join(&mut self) {
        let open = |last: Option<SegmentNumber>| last.map_or(u64::MAX, |last| last.0);
        for ranges in self.0.values_mut() {
            ranges.sort_by_key(|(first, _)| *first);
            let mut joined: Vec<(SegmentNumber, Option<SegmentNumber>)> = Vec::new();
            for (first, last) in ranges.drain(..) {
                match joined.last_mut() {
                    Some(before) if first.0 <= open(before.1) => {
                        if open(last) > open(before.1) {
                            before.1 = last;
                        }
                    }
                    _ => joined.push((first, last)),
                }
            }
            *ranges = joined;
        }
    }

    fn has(&self, (timeline, number): Place) -> bool {
        let ranges = self.0.get(&timeline).map(Vec::as_slice).unwrap_or_default();
        let behind = ranges.partition_point(|(first, _)| *first <= number);
        behind > 0 && ranges[behind - 1].1.is_none_or(|last| number <= last)
    }
}

impl<'a> Reach<'a> {
    /// The WAL of a generation, or why nobody can tell what leads where.
    pub(super) fn of(holdings: &'a Holdings) -> Result<Self, &'static str> {
        let readable = || holdings.backups.iter().filter_map(|backup| Some((backup.id, backup.facts?)));
        let (_, any) = readable().next().ok_or("there is no whole backup")?;
        let size = any.segment_size;
        if readable().any(|(_, facts)| facts.segment_size != size) {
            return Err("backups claim different sizes of segments");
        }
        let bases: Vec<(BackupId, Base)> = readable().map(|(id, facts)| (id, facts.base)).collect();
        let mut places: BTreeMap<Place, Stored> = BTreeMap::new();
        for wal in &holdings.wal {
            let Some(place) = place(size, wal) else { continue };
            let stored = places.entry(place).or_default();
            stored.modified = stored.modified.max(wal.modified);
            stored.timeless |= wal.modified.is_none();
            stored.segment |= matches!(wal.name(), WalName::Segment(_));
        }
        let timelines = holdings.wal.iter().map(|wal| wal.name().timeline());
        let timelines: BTreeSet<TimelineId> = timelines.chain(bases.iter().map(|(_, base)| base.timeline)).collect();
        let ancestry = Ancestry::new(size, timelines, &holdings.histories);
        Ok(Reach { holdings, size, ancestry, bases, places })
    }

    /// The timelines that have WAL from `window` on, and the number of the first.
    pub(super) fn live(&self, window: Timestamp) -> BTreeMap<TimelineId, SegmentNumber> {
        let mut live = BTreeMap::new();
        let mut add = |timeline, number: SegmentNumber| {
            let first = live.entry(timeline).or_insert(number);
            *first = number.min(*first);
        };
        for ((timeline, number), stored) in &self.places {
            if stored.is_within(window) {
                add(*timeline, *number);
            }
        }
        // A timeline that was begun in the window, and of which nothing may be archived yet.
        for wal in &self.holdings.wal {
            if let WalName::History(timeline) = wal.name()
                && wal.modified.is_none_or(|modified| modified >= window)
            {
                let way = self.ancestry.way(timeline);
                add(timeline, way.and_then(<[Leg]>::last).map_or(SegmentNumber(0), |leg| leg.first));
            }
        }
        live
    }

    /// The backups without which moments of a timeline, from a segment on, could no longer be restored. `kept` are taken rather
    /// than others.
    pub(super) fn anchors(
        &self,
        to: TimelineId,
        first: SegmentNumber,
        kept: &BTreeSet<BackupId>,
    ) -> BTreeSet<BackupId> {
        let leading = |(_, base): &&(BackupId, Base)| self.ancestry.stretches(base, to).is_some();
        let leading: Vec<&(BackupId, Base)> = self.bases.iter().filter(leading).collect();
        let Some(way) = self.ancestry.way(to) else {
            let own: Vec<_> = leading.iter().copied().filter(|(_, base)| base.timeline == to).collect();
            let covers = |(_, base): &&(BackupId, Base)| base.stop <= self.size.start(first);
            if !own.iter().any(covers) {
                return leading.iter().map(|(id, _)| *id).collect();
            }
            return self.anchors_of(
                &own,
                &self.runs(&[Leg { timeline: to, first: SegmentNumber(0), left: None }]),
                first,
                kept,
            );
        };
        let begin = way.last().map_or(first, |leg| leg.first.max(first));
        self.anchors_of(&leading, &self.runs(way), begin, kept)
    }

    fn anchors_of(
        &self,
        leading: &[&(BackupId, Base)],
        runs: &[Run],
        first: SegmentNumber,
        kept: &BTreeSet<BackupId>,
    ) -> BTreeSet<BackupId> {
        // A missing segment may still come: so one anchor as if none were missing.
        let mut anchors: BTreeSet<BackupId> = self.pick(leading, first, kept).into_iter().collect();
        for run in runs.iter().filter(|run| run.last >= first) {
            let inside = |(_, base): &&&(BackupId, Base)| {
                self.size.containing(base.start) >= run.first && self.size.ending_at(base.stop) <= run.last
            };
            let inside: Vec<_> = leading.iter().filter(inside).copied().collect();
            anchors.extend(self.pick(&inside, run.first.max(first), kept));
        }
        anchors
    }

    /// The newest backup from which all of a segment can be replayed, or else the oldest.
    fn pick(&self, among: &[&(BackupId, Base)], first: SegmentNumber, kept: &BTreeSet<BackupId>) -> Option<BackupId> {
        let before = |base: &Base| base.stop <= self.size.start(first);
        let key = |(id, base): &&&(BackupId, Base)| (base.stop, *id);
        let early = || among.iter().filter(|(_, base)| before(base));
        let found = early().filter(|(id, _)| kept.contains(id)).max_by_key(key);
        let found = found.or_else(|| early().max_by_key(key)).or_else(|| among.iter().min_by_key(key));
        found.map(|(id, _)| *id)
    }

    /// The numbers of a way that are there. Each has one provider: the last leg that had begun.
    fn runs(&self, way: &[Leg]) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (index, leg) in way.iter().enumerate() {
            let end = way.get(index + 1).map_or(SegmentNumber(u64::MAX), |next| next.first);
            if leg.first >= end {
                continue;
            }
            let there = self.places.range((leg.timeline, leg.first)..(leg.timeline, end));
            for ((_, number), _) in there.filter(|(_, stored)| stored.segment) {
                match runs.last_mut() {
                    Some(run) if run.last.0 + 1 == number.0 => run.last = *number,
                    _ => runs.push(Run { first: *number, last: *number }),
                }
            }
        }
        runs
    }

    /// The WAL that leads from a backup to the end of a timeline.
    pub(super) fn way_from(&self, id: BackupId, to: TimelineId) -> Vec<Stretch> {
        let base = self.bases.iter().find(|(known, _)| *known == id);
        base.and_then(|(_, base)| self.ancestry.stretches(base, to)).unwrap_or_default()
    }

    /// The WAL that leads from a backup to the end of every timeline.
    pub(super) fn all_ways_from(&self, id: BackupId) -> Vec<Stretch> {
        self.ancestry.timelines().flat_map(|timeline| self.way_from(id, timeline)).collect()
    }

    /// The WAL from a backup's start to its stop.
    pub(super) fn own_of(&self, id: BackupId) -> Vec<Stretch> {
        let base = self.bases.iter().find(|(known, _)| *known == id);
        base.map(|(_, base)| self.ancestry.own_stretches(base)).unwrap_or_default()
    }

    /// What a lease names, on every timeline.
    pub(super) fn leased(&self, lease: &Lease) -> Vec<Stretch> {
        let (first, last) = (self.size.containing(lease.from), lease.until.map(|until| self.size.ending_at(until)));
        self.ancestry.timelines().map(|timeline| Stretch { timeline, first, last }).collect()
    }

    /// WAL that is neither needed nor in the window, the oldest first.
    pub(super) fn not_needed(&self, needed: &Needed, window: Timestamp) -> Vec<&'a HeldWal> {
        let goes = |place: &Place| {
            !needed.has(*place) && !self.places.get(place).is_none_or(|stored| stored.is_within(window))
        };
        let mut wal: Vec<(Place, &HeldWal)> =
            self.holdings.wal.iter().filter_map(|wal| Some((place(self.size, wal)?, wal))).collect();
        wal.retain(|(place, _)| goes(place));
        wal.sort_by_key(|((timeline, number), _)| (*number, *timeline));
        wal.into_iter().map(|(_, wal)| wal).collect()
    }
}

impl Stored {
    fn is_within(&self, window: Timestamp) -> bool {
        self.timeless || self.modified.is_some_and(|modified| modified >= window)
    }
}

/// `None` for history files, which belong to no segment, and for names that no cluster with this size of segments has.
fn place(size: SegmentSize, wal: &HeldWal) -> Option<Place> {
    let segment = wal.name().segment()?;
    Some((segment.timeline, size.number(segment).ok()?))
}
