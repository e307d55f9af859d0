//! A small model of `retention` that decides by brute force.
//!
//! It walks back segment by segment, from a moment to the backups before it. It shares no code with what it judges.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::backup_id::BackupId;
use super::holdings::HeldWal;
use super::policy::Policy;
use super::retention_world::{SIZE, World, size, timeline};
use super::stored_backups::StoredBackup;
use crate::postgres::{SegmentNumber, WalName};

pub(super) fn name(place: (u32, u64)) -> WalName {
    WalName::Segment(size().name(timeline(place.0), SegmentNumber(place.1)))
}

pub(super) type Place = (u32, u64);
/// A whole backup: its timeline, start and stop.
pub(super) type Whole = (BackupId, u32, u64, u64);

/// The model: what is there, and who descends from whom.
pub(super) struct Model<'a> {
    pub(super) world: &'a World,
    pub(super) window: Timestamp,
    pub(super) copies: Vec<Whole>,
    /// Segments.
    pub(super) there: BTreeSet<Place>,
    /// Segments of which there are pieces.
    pub(super) streamed: BTreeSet<Place>,
    /// All but history files, and whether one of the place is in the window.
    pub(super) noted: BTreeMap<Place, bool>,
}

/// Which timeline gives a segment number on the way to another; its parents' parents stand in its own history.
fn provider(world: &World, to: u32, number: u64) -> u32 {
    let mut at = to;
    while let Some((parent, switch)) = world.parents.get(&at) {
        if number >= switch / SIZE {
            break;
        }
        at = *parent;
    }
    at
}

/// Whether a backup has all its parts and all WAL from its start to its stop.
pub(super) fn is_intact(world: &World, backup: &StoredBackup) -> bool {
    let Some(summary) = backup.summary() else { return false };
    let on = summary.timeline.get();
    (summary.start_lsn.0 / SIZE..=(summary.stop_lsn.0 - 1) / SIZE).all(|number| {
        let from = if on == 1 || world.has_history(on) { provider(world, on, number) } else { on };
        world.holdings.wal.iter().any(|wal| wal.name() == name((from, number)))
    })
}

pub(super) fn place_of(wal: &HeldWal) -> Option<Place> {
    let segment = wal.name().segment()?;
    Some((segment.timeline.get(), size().number(segment).unwrap().0))
}

impl<'a> Model<'a> {
    pub(super) fn origin(&self, of: u32) -> Option<Option<(u32, u64)>> {
        let known = of == 1 || self.world.has_history(of);
        known.then(|| self.world.parents.get(&of).copied())
    }

    fn provider(&self, to: u32, number: u64) -> u32 {
        provider(self.world, to, number)
    }

    fn is_on_the_way(&self, copy: &Whole, to: u32) -> bool {
        let (mut at, mut left) = (to, u64::MAX);
        loop {
            match self.world.parents.get(&at) {
                _ if at == copy.1 => return copy.3 <= left,
                Some((parent, switch)) => (at, left) = (*parent, left.min(*switch)),
                None => return false,
            }
        }
    }

    /// Whether a moment can be restored from a copy: the end of this segment of the timeline.
    pub(super) fn restores(&self, copy: &Whole, to: u32, number: u64, there: &BTreeSet<Place>) -> bool {
        (copy.3 - 1) / SIZE <= number
            && self.is_on_the_way(copy, to)
            && (copy.2 / SIZE..=number).all(|each| there.contains(&(self.provider(to, each), each)))
    }

    /// What a replay from a copy to `last` of a timeline may read.
    pub(super) fn reads(&self, copy: &Whole, to: u32, last: u64) -> Vec<Place> {
        let mut places = Vec::new();
        let last = last.min(self.world.tips.values().max().unwrap() / SIZE);
        if self.origin(to).is_none() {
            if copy.1 <= to {
                let between = self.noted.keys().copied().filter(|(on, _)| (copy.1..=to).contains(on));
                places.extend(between.filter(|(_, number)| (copy.2 / SIZE..=last).contains(number)));
            }
            return places;
        }
        if !self.is_on_the_way(copy, to) {
            return places;
        }
        let mut at = to;
        let mut left = u64::MAX;
        let mut end = last;
        loop {
            let origin = self.world.parents.get(&at);
            // Nothing older counts behind the earliest fork so far.
            left = origin.map_or(0, |(_, switch)| left.min(*switch));
            places.extend(((left / SIZE).max(copy.2 / SIZE)..=end).map(|number| (at, number)));
            let Some((parent, _)) = origin else { return places };
            (at, end) = (*parent, ((left.max(1) - 1) / SIZE).min(last));
        }
    }

    pub(super) fn in_window(&self, place: Place) -> bool {
        self.noted[&place]
    }

    /// Each timeline with something new, and its first segment number in the window.
    pub(super) fn live(&self) -> BTreeMap<u32, u64> {
        let mut live: BTreeMap<u32, u64> = BTreeMap::new();
        for (on, number) in self.noted.keys().copied().filter(|place| self.in_window(*place)) {
            live.entry(on).and_modify(|first| *first = number.min(*first)).or_insert(number);
        }
        for wal in &self.world.holdings.wal {
            if let WalName::History(on) = wal.name()
                && wal.modified.is_none_or(|time| time >= self.window)
            {
                let begin = self.world.parents[&on.get()].1 / SIZE;
                live.entry(on.get()).and_modify(|first| *first = begin.min(*first)).or_insert(begin);
            }
        }
        live
    }

    fn pick(&self, among: &[Whole], first: u64, preferred: &BTreeSet<BackupId>) -> Option<BackupId> {
        let mut early: Vec<&Whole> = among.iter().filter(|copy| copy.3 <= first * SIZE).collect();
        early.sort_by_key(|copy| (preferred.contains(&copy.0), copy.3, copy.0));
        let late = || among.iter().min_by_key(|copy| (copy.3, copy.0));
        early.pop().or_else(late).map(|copy| copy.0)
    }

    /// The backups that moments of a live timeline need.
    pub(super) fn anchors(&self, to: u32, first: u64, preferred: &BTreeSet<BackupId>) -> BTreeSet<BackupId> {
        let known = self.origin(to).is_some();
        let mut leading: Vec<Whole> = self.copies.clone();
        leading.retain(|copy| if known { self.is_on_the_way(copy, to) } else { copy.1 <= to });
        if !known {
            if !leading.iter().any(|copy| copy.1 == to && copy.3 <= first * SIZE) {
                return leading.iter().map(|copy| copy.0).collect();
            }
            leading.retain(|copy| copy.1 == to);
        }
        let begin = if known { self.world.parents.get(&to).map_or(0, |(_, switch)| switch / SIZE) } else { 0 };
        let provider = |number| if known { self.provider(to, number) } else { to };
        let has = |number: u64| self.there.contains(&(provider(number), number));
        let first = first.max(begin);
        let mut anchors: BTreeSet<BackupId> = self.pick(&leading, first, preferred).into_iter().collect();
        for moment in (first..200).filter(|number| has(*number)) {
            if moment > first && has(moment - 1) {
                continue;
            }
            let run_first = (0..=moment).rev().take_while(|number| has(*number)).last().unwrap();
            let run_last = (moment..).take_while(|number| has(*number)).last().unwrap();
            let inside = |copy: &&Whole| copy.2 / SIZE >= run_first && (copy.3 - 1) / SIZE <= run_last;
            let inside: Vec<Whole> = leading.iter().filter(inside).copied().collect();
            anchors.extend(self.pick(&inside, moment, preferred));
        }
        // A live tail behind whole segments is a moment, too.
        if self.streamed.contains(&(provider(first), first)) && !has(first) && has(first - 1) {
            let run_first = (0..first).rev().take_while(|number| has(*number)).last().unwrap();
            let inside = |copy: &&Whole| copy.2 / SIZE >= run_first && (copy.3 - 1) / SIZE < first;
            let inside: Vec<Whole> = leading.iter().filter(inside).copied().collect();
            anchors.extend(self.pick(&inside, first, preferred));
        }
        anchors
    }
}

/// The backups that the policy wants, counted out one by one.
pub(super) fn wanted(timed: &[(Timestamp, BackupId)], policy: &Policy, now: Timestamp) -> BTreeSet<BackupId> {
    let rules = [policy.keep_full, policy.keep_daily, policy.keep_weekly, policy.keep_monthly];
    if rules.iter().all(Option::is_none) && policy.keep_within.is_none() {
        return timed.iter().map(|(_, id)| *id).collect();
    }
    let mut newest_first = timed.to_vec();
    newest_first.sort();
    newest_first.reverse();
    let mut kept: BTreeSet<BackupId> = newest_first.iter().take(policy.min_full.max(1) as usize).map(|b| b.1).collect();
    for (format, count) in ["%s-%f", "%Y-%j", "%G-%V", "%Y-%m"].into_iter().zip(rules) {
        let mut periods = BTreeMap::new();
        for (index, (time, id)) in newest_first.iter().enumerate() {
            let unique = if format == "%s-%f" { index.to_string() } else { String::new() };
            let period = format!("{}{unique}", time.strftime(format));
            if periods.len() < count.unwrap_or(0) as usize {
                periods.entry(period).or_insert(*id);
            }
        }
        kept.extend(periods.into_values());
    }
    if let Some(age) = policy.keep_within {
        let old = |time: Timestamp| now.duration_since(time) > SignedDuration::try_from(age).unwrap();
        kept.extend(timed.iter().filter(|(time, _)| !old(*time)).map(|(_, id)| *id));
    }
    kept
}
