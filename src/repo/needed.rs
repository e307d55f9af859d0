//! Which WAL of a generation is needed: what leads from the backups that stay to the moments that shall be restorable.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::backup_id::BackupId;
use super::holdings::{HeldWal, Holdings};
use super::inventory::Inventory;
use super::lease::Lease;
use super::manifest::BackupSummary;
use super::timeline_path::{TimelinePath, TimelineSpan};
use super::wal_runs::Span;
use crate::postgres::{SegmentNumber, SegmentSize, TimelineId, WalName};

/// The ways through the WAL of a generation.
pub(super) struct Ways<'a> {
    holdings: &'a Holdings,
    size: SegmentSize,
    backups: Vec<&'a BackupSummary>,
    /// The way to each timeline, where anybody knows it.
    paths: BTreeMap<TimelineId, Option<TimelinePath>>,
    /// The objects of segment numbers, by number.
    wal: Vec<(Place, &'a HeldWal)>,
}

/// Where an object belongs. Those of one place share a fate: the segment, partial ones, backup notes.
type Place = (SegmentNumber, TimelineId);

/// WAL that must stay.
#[derive(Default)]
pub(super) struct Needed(BTreeMap<TimelineId, Vec<Span>>);

impl Needed {
    pub(super) fn add(&mut self, spans: impl IntoIterator<Item = TimelineSpan>) {
        for TimelineSpan { timeline, span } in spans {
            self.0.entry(timeline).or_default().push(span);
        }
    }

    /// Joins what overlaps, so that a place is looked up by halving.
    pub(super) fn join(&mut self) {
        for spans in self.0.values_mut() {
            spans.sort_unstable();
            let mut joined: Vec<Span> = Vec::new();
            for span in spans.drain(..) {
                match joined.last_mut() {
                    Some(before) if span.first <= before.last => before.last = before.last.max(span.last),
                    _ => joined.push(span),
                }
            }
            *spans = joined;
        }
    }

    fn has(&self, (number, timeline): Place) -> bool {
        let spans = self.0.get(&timeline).map(Vec::as_slice).unwrap_or_default();
        let behind = spans.partition_point(|span| span.first <= number);
        spans[..behind].last().is_some_and(|span| span.has(number))
    }
}

impl<'a> Ways<'a> {
    /// The ways of a generation through the WAL that counts, or why nobody can tell what leads where.
    pub(super) fn of(holdings: &'a Holdings, counts: impl Fn(&HeldWal) -> bool) -> Result<Self, &'static str> {
        let inventory = &holdings.inventory;
        let size = inventory.segment_size;
        let backups: Vec<&BackupSummary> = inventory.manifests().collect();
        if backups.is_empty() {
            return Err("there is no whole backup");
        }
        if backups.iter().any(|backup| backup.segment_size() != Some(size)) {
            return Err("backups claim different sizes of segments");
        }
        let counted = holdings.wal.iter().filter(|wal| counts(wal));
        let mut wal: Vec<_> = counted.filter_map(|wal| Some((place(size, wal)?, wal))).collect();
        wal.sort_by_key(|(place, _)| *place);
        let timelines = inventory.timelines.keys().copied().chain(backups.iter().map(|backup| backup.timeline));
        let path = |timeline| (timeline, TimelinePath::to(inventory, timeline).ok());
        Ok(Ways { holdings, size, paths: timelines.map(path).collect(), backups, wal })
    }

    fn inventory(&self) -> &'a Inventory {
        &self.holdings.inventory
    }

    fn path(&self, to: TimelineId) -> Option<&TimelinePath> {
        self.paths.get(&to)?.as_ref()
    }

    /// Whether a backup lies on the way to a timeline, or may do so.
    fn leads(&self, backup: &BackupSummary, to: TimelineId) -> bool {
        match self.path(to) {
            Some(path) => path.step_of(backup).is_ok(),
            None => backup.timeline <= to,
        }
    }

    /// The timelines that have WAL from `window` on, and the number of the first.
    pub(super) fn live(&self, window: Timestamp) -> BTreeMap<TimelineId, SegmentNumber> {
        let mut live = BTreeMap::new();
        let mut add = |timeline, number: SegmentNumber| {
            let first = live.entry(timeline).or_insert(number);
            *first = number.min(*first);
        };
        for ((number, timeline), wal) in &self.wal {
            if is_within(wal, window) {
                add(*timeline, *number);
            }
        }
        // A timeline that was begun in the window, and of which nothing may be archived yet.
        for wal in &self.holdings.wal {
            if let WalName::History(timeline) = wal.name()
                && is_within(wal, window)
            {
                add(timeline, self.path(timeline).map_or(SegmentNumber(0), |path| self.size.containing(path.begin())));
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
        let leading = self.backups.iter().copied().filter(|backup| self.leads(backup, to));
        let leading: Vec<&BackupSummary> = leading.collect();
        let Some(path) = self.path(to) else {
            let own: Vec<_> = leading.iter().copied().filter(|backup| backup.timeline == to).collect();
            if !own.iter().any(|backup| backup.stop_lsn <= self.size.start(first)) {
                return leading.iter().map(|backup| backup.id).collect();
            }
            return self.anchors_of(&own, &TimelinePath::only(self.inventory(), to), first, kept);
        };
        self.anchors_of(&leading, path, first.max(self.size.containing(path.begin())), kept)
    }

    fn anchors_of(
        &self,
        leading: &[&BackupSummary],
        path: &TimelinePath,
        first: SegmentNumber,
        kept: &BTreeSet<BackupId>,
    ) -> BTreeSet<BackupId> {
        // A missing segment may still come: so one anchor as if none were missing.
        let mut anchors: BTreeSet<BackupId> = self.pick(leading, first, kept).into_iter().collect();
        // A live tail goes on where a run ends.
        let streamed =
            |number| self.inventory().timeline(path.owner(number)).is_some_and(|wal| wal.streamed.contains(&number));
        let behind = first.0.checked_sub(1).map(SegmentNumber).filter(|_| streamed(first));
        let comes_to = |run: &Span| run.last >= first || Some(run.last) == behind;
        for run in path.runs(self.inventory()).into_iter().filter(comes_to) {
            let inside = |backup: &&&BackupSummary| run.covers(backup.own_wal(self.size));
            let inside: Vec<_> = leading.iter().filter(inside).copied().collect();
            anchors.extend(self.pick(&inside, run.first.max(first), kept));
        }
        anchors
    }

    /// The newest backup from which all of a segment can be replayed, or else the oldest.
    fn pick(&self, among: &[&BackupSummary], first: SegmentNumber, kept: &BTreeSet<BackupId>) -> Option<BackupId> {
        let key = |backup: &&&BackupSummary| (backup.stop_lsn, backup.id);
        let early = || among.iter().filter(|backup| backup.stop_lsn <= self.size.start(first));
        let found = early().filter(|backup| kept.contains(&backup.id)).max_by_key(key);
        let found = found.or_else(|| early().max_by_key(key)).or_else(|| among.iter().min_by_key(key));
        found.map(|backup| backup.id)
    }

    fn backup(&self, id: BackupId) -> Option<&'a BackupSummary> {
        self.backups.iter().copied().find(|backup| backup.id == id)
    }

    /// The WAL that leads from a backup to the end of a timeline. Where nobody can tell, all that may.
    pub(super) fn way_from(&self, id: BackupId, to: TimelineId) -> Vec<TimelineSpan> {
        let Some(backup) = self.backup(id).filter(|backup| self.leads(backup, to)) else { return Vec::new() };
        let span = Span::onward(backup.own_wal(self.size).first);
        match self.path(to) {
            Some(path) => path.copies(span),
            None => self.on_timelines(span).filter(|on| (backup.timeline..=to).contains(&on.timeline)).collect(),
        }
    }

    /// The WAL that leads from a backup to the end of every timeline.
    pub(super) fn all_ways_from(&self, id: BackupId) -> Vec<TimelineSpan> {
        self.paths.keys().flat_map(|timeline| self.way_from(id, *timeline)).collect()
    }

    /// The WAL from a backup's start to its stop.
    pub(super) fn own_of(&self, id: BackupId) -> Vec<TimelineSpan> {
        let Some(backup) = self.backup(id) else { return Vec::new() };
        TimelinePath::as_known(self.inventory(), backup.timeline).copies(backup.own_wal(self.size))
    }

    /// What a lease names, on every timeline.
    pub(super) fn leased(&self, lease: &Lease) -> Vec<TimelineSpan> {
        let first = self.size.containing(lease.from);
        let last = lease.until.map_or(Span::LAST, |until| self.size.ending_at(until));
        Span::new(first, last).into_iter().flat_map(|span| self.on_timelines(span)).collect()
    }

    fn on_timelines(&self, span: Span) -> impl Iterator<Item = TimelineSpan> {
        self.paths.keys().map(move |timeline| TimelineSpan { timeline: *timeline, span })
    }

    /// WAL that is neither needed nor in the window, the oldest first.
    pub(super) fn not_needed(&self, needed: &Needed, window: Timestamp) -> Vec<&'a HeldWal> {
        let places = self.wal.chunk_by(|(one, _), (other, _)| one == other);
        let going = places.filter(|objects| {
            !objects.iter().any(|(_, wal)| is_within(wal, window))
                && !objects.iter().any(|(place, _)| needed.has(*place))
        });
        going.flatten().map(|(_, wal)| *wal).collect()
    }
}

/// Whether an object was written since `window`, or may have been: the store does not say.
fn is_within(wal: &HeldWal, window: Timestamp) -> bool {
    wal.modified.is_none_or(|modified| modified >= window)
}

/// `None` for history files, which belong to no segment, and for names that no cluster with this size of segments has.
fn place(size: SegmentSize, wal: &HeldWal) -> Option<Place> {
    let segment = wal.name().segment()?;
    Some((size.number(segment).ok()?, segment.timeline))
}
