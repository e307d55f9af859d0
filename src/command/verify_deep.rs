//! `verify --deep`: puts together what the records of the segments say about each other, in the order of the WAL.
//!
//! A segment goes on where the one before it ends: on its own timeline, or at a fork on the one that it left. Where that one is
//! missing, damaged or not in the sample, a new chain begins.

use std::collections::{BTreeMap, BTreeSet};

use super::verify_tails::unfinished;
use crate::postgres::wal_chain::{Chain, Walked};
use crate::postgres::{SegmentName, SegmentNumber, SegmentSize, TimelineId};
use crate::repo::Holdings;
use crate::repo::timeline_path::TimelinePath;

/// The chains of a generation. Of all segments that were seen it holds the last one, and those before forks and live tails.
pub(super) struct Chains<'a> {
    holdings: &'a Holdings,
    /// Once the size of a segment is known.
    forks: Option<Forks>,
    last: Option<(SegmentName, Chain)>,
    kept: BTreeMap<SegmentName, Chain>,
}

/// How timelines begin.
struct Forks {
    size: SegmentSize,
    /// The way to each timeline, where anybody knows it.
    paths: BTreeMap<TimelineId, TimelinePath>,
    /// The segments behind which other timelines go on, or live tails.
    before: BTreeSet<SegmentName>,
}

impl<'a> Chains<'a> {
    pub(super) fn new(holdings: &'a Holdings) -> Self {
        Chains { holdings, forks: None, last: None, kept: BTreeMap::new() }
    }

    /// Takes what was found in a segment, in the order of names; gives what is wrong with it.
    pub(super) fn judge(&mut self, name: SegmentName, walked: &Walked) -> Option<String> {
        let Some(link) = &walked.link else {
            self.last = None;
            return walked.fault.clone();
        };
        if link.timeline() > name.timeline.get() {
            self.last = None;
            return Some(format!("its last page is of timeline {}, later than the one in its name", link.timeline()));
        }
        let forks = self.forks.get_or_insert_with(|| Forks::of(self.holdings, link.segment_size()));
        let before = forks.before(name).and_then(|before| match &self.last {
            Some((last, chain)) if *last == before => Some(*chain),
            _ => self.kept.get(&before).copied(),
        });
        let (chain, fault) = match before.filter(|before| before.leads_to(link)) {
            Some(before) => before.go_on(link),
            None => (Chain::begin(link), None),
        };
        if forks.before.contains(&name) {
            self.kept.insert(name, chain);
        }
        self.last = Some((name, chain));
        walked.fault.clone().or(fault)
    }

    /// The same of a live tail, behind which nothing goes on; all whole segments were seen.
    pub(super) fn judge_tail(&self, name: SegmentName, walked: &Walked) -> Option<String> {
        let Some(link) = &walked.link else { return walked.fault.clone() };
        let before = match &self.forks {
            Some(forks) => forks.before(name),
            None => Forks::of(self.holdings, link.segment_size()).before(name),
        };
        let before = before.and_then(|before| self.kept.get(&before)).filter(|before| before.leads_to(link));
        walked.fault.clone().or_else(|| before.and_then(|before| before.go_on(link).1))
    }
}

impl Forks {
    fn of(holdings: &Holdings, size: SegmentSize) -> Self {
        let inventory = &holdings.inventory;
        let path = |timeline| Some((timeline, TimelinePath::to(inventory, timeline).ok()?.in_segments_of(size)));
        let paths = inventory.timelines.keys().copied().filter_map(path).collect();
        let mut forks = Forks { size, paths, before: BTreeSet::new() };
        let first =
            |(timeline, path): (&TimelineId, &TimelinePath)| size.name(*timeline, size.containing(path.begin()));
        let tails = unfinished(holdings).into_iter();
        forks.before = forks.paths.iter().map(first).chain(tails).filter_map(|first| forks.before(first)).collect();
        forks
    }

    /// The segment that a segment goes on from.
    fn before(&self, name: SegmentName) -> Option<SegmentName> {
        let number = self.size.number(name).ok()?;
        let before = SegmentNumber(number.0.checked_sub(1)?);
        let timeline = match self.paths.get(&name.timeline) {
            Some(path) if path.owner(number) == name.timeline => path.owner(before),
            _ => name.timeline,
        };
        Some(self.size.name(timeline, before))
    }
}
