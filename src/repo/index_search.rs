//! Where in the WAL a time, a transaction or a restore point lies, by the indexes that WAL objects carry.
//!
//! * A time is reached when PostgreSQL sees a commit behind it. Commit times of segments ascend, but for the little by which
//!   commits overtake each other: the first segment with a later commit is found by halving.
//! * A transaction is looked for by the range of transactions that ended in a segment. Ranges overlap, so several segments may come
//!   into question: the backup stops before all of them that lie together.
//! * Of restore points of the same name PostgreSQL takes the first behind the backup's start. If that lies before the backup's end, it
//!   refuses: such a backup is passed over.

use jiff::Timestamp;

use super::restore_plan::{Proof, RestorePlan, Unreachable};
use super::restore_target::Target;
use super::routes::Route;
use super::select::{Selector, Stop};
use crate::postgres::wal_index::WalIndex;
use crate::postgres::{Lsn, SegmentNumber, Xid};

/// Segments asked for at once where one after the other must be looked at.
const BATCH: u64 = 256;
/// Segments at the end that must show no later commit before a time counts as not archived.
const TAIL: u64 = 8;

/// Segments that may hold what is looked for, with what is known of it.
struct Hits {
    /// Ascending.
    found: Vec<SegmentNumber>,
    /// Segments that do not tell.
    silent: Vec<SegmentNumber>,
}

impl<'a> Selector<'a> {
    pub(super) fn time(&self, routes: &[Route<'a>], time: Timestamp) -> Result<RestorePlan, Stop> {
        let (route, passed_over) = self.newest(routes, |route| route.backup.stopped < time)?;
        let Some(end) = route.end() else {
            return Err(self.out_of_reach(route, None, None).into());
        };
        let behind = |commit: Timestamp| if self.request.exclusive { commit >= time } else { commit > time };
        let (latest, silent) = self.latest_commit(route, end)?;
        match latest {
            Some((segment, at)) if behind(at) => {
                let (segment, at) = self.first_commit_behind(route, segment, at, behind)?;
                let proof = Proof::LaterCommit { segment: route.path.name(segment), at };
                Ok(self.plan(route, segment.max(route.stop), proof).with_warnings(passed_over))
            }
            _ => match silent {
                Some(silent) => Ok(self.unknown(route, end, silent).with_warnings(passed_over)),
                None => Err(self.out_of_reach(route, None, latest.map(|(_, at)| at)).into()),
            },
        }
    }

    /// The plan where WAL objects do not tell: PostgreSQL will see.
    fn unknown(&self, route: &Route<'a>, end: SegmentNumber, silent: SegmentNumber) -> RestorePlan {
        let mut plan = self.plan(route, end, Proof::Unknown { segment: route.path.name(silent) });
        if route.reach.went_on.is_some() {
            let gap = self.out_of_reach(route, None, None);
            plan.warnings.push(format!("the target may lie behind a gap: {gap}"));
        }
        plan
    }

    /// The latest commit of the last segments that have any, and the first of them that does not tell.
    #[allow(clippy::type_complexity)]
    fn latest_commit(
        &self,
        route: &Route<'a>,
        end: SegmentNumber,
    ) -> Result<(Option<(SegmentNumber, Timestamp)>, Option<SegmentNumber>), Stop> {
        let mut last = end.0;
        let mut window = TAIL;
        loop {
            let first = last.saturating_sub(window - 1).max(route.stop.0);
            let mut latest: Option<(SegmentNumber, Timestamp)> = None;
            let mut silent = None;
            for (number, index) in self.indexes_of(route, first, last)? {
                if let Some(commits) = index.and_then(|index| index.commits)
                    && latest.is_none_or(|(_, latest)| latest <= commits.last)
                {
                    latest = Some((number, commits.last));
                    // What was cut before it came earlier.
                    silent = silent.filter(|(_, cut_only)| !cut_only);
                }
                match index {
                    Some(index) if index.complete && !(index.cut && number < end) => {}
                    Some(index) if index.complete => silent = silent.or(Some((number, true))),
                    _ => silent = silent.filter(|(_, cut_only)| !cut_only).or(Some((number, false))),
                }
            }
            let silent = silent.map(|(number, _)| number);
            if latest.is_some() || silent.is_some() || first == route.stop.0 {
                return Ok((latest, silent));
            }
            (last, window) = (first - 1, BATCH);
        }
    }

    /// The first segment with a commit behind the time, given one that has.
    fn first_commit_behind(
        &self,
        route: &Route<'a>,
        known: SegmentNumber,
        at: Timestamp,
        behind: impl Fn(Timestamp) -> bool,
    ) -> Result<(SegmentNumber, Timestamp), Stop> {
        let mut found = (known, at);
        let (mut low, mut high) = (route.stop.0, known.0);
        while low < high {
            let middle = low + (high - low) / 2;
            // Segments without a commit say nothing: the next one that has some decides.
            let mut decides = None;
            for number in middle..high.min(middle + BATCH) {
                let index = self.index(route, SegmentNumber(number))?;
                if let Some(commits) = index.and_then(|index| index.commits) {
                    decides = Some((SegmentNumber(number), commits.last));
                    break;
                }
            }
            match decides {
                Some((number, at)) if behind(at) => (found, high) = ((number, at), middle),
                Some((number, _)) => low = number.0 + 1,
                None => high = middle,
            }
        }
        Ok(found)
    }

    /// Indexes of consecutive segments; those that are not known are asked for together.
    #[allow(clippy::type_complexity)]
    fn indexes_of(
        &self,
        route: &Route<'a>,
        first: u64,
        last: u64,
    ) -> Result<Vec<(SegmentNumber, Option<&'a WalIndex>)>, Stop> {
        let numbers = (first..=last).map(SegmentNumber);
        let names = numbers.clone().map(|number| route.path.name(number));
        let unknown: Vec<_> = names.filter(|name| !self.indexes.contains_key(name)).take(BATCH as usize).collect();
        if !unknown.is_empty() {
            return Err(Stop::Ask(unknown));
        }
        numbers.map(|number| Ok((number, self.index(route, number)?))).collect()
    }

    pub(super) fn restore_point(&self, routes: &[Route<'a>], name: &str) -> Result<RestorePlan, Stop> {
        let (mut silent, mut passed_over, mut failure) = (Vec::new(), Vec::new(), None);
        for (at, route) in routes.iter().enumerate() {
            let Some(end) = route.end() else { continue };
            let (start, stop) = (route.backup.start_lsn, route.backup.stop_lsn);
            let first_of = |index: &'a WalIndex, span: std::ops::Range<Lsn>| {
                index.restore_points.iter().find(|point| point.name == name && span.contains(&point.lsn))
            };
            let within = |index: &'a WalIndex| first_of(index, start..stop).is_some();
            if let Some(inside) = self.look(route, route.first, route.stop, true, within)?.found.first() {
                let (backup, segment) = (route.backup.id, route.path.name(*inside));
                let why = Unreachable::WithinBackup { backup, segment };
                passed_over.push(format!("backup `{backup}` is newer, but: {why}"));
                failure.get_or_insert(why);
                continue;
            }
            let behind = |index: &'a WalIndex| first_of(index, stop..Lsn(u64::MAX));
            let to = newer_on_the_same_way(routes, at).map_or(end, |newer| newer.stop.min(end));
            let hits = self.look(route, route.stop, to, true, |index| behind(index).is_some())?;
            if let Some(segment) = hits.found.first() {
                let point = self.index(route, *segment)?.and_then(behind);
                let at = point.map_or(Timestamp::MIN, |point| point.time);
                let proof = Proof::RestorePoint { segment: route.path.name(*segment), at };
                let mut plan = self.plan(route, *segment, proof).with_warnings(passed_over);
                plan.warnings.extend(self.made_again(route, name, point.map_or(stop, |point| point.lsn), end));
                return Ok(plan);
            }
            silent.extend(hits.silent);
        }
        match failure {
            Some(why) => Err(why.into()),
            None => self.not_found(routes, silent),
        }
    }

    /// What to say of a restore point that has the same name as an earlier one, as far as segments were looked at.
    fn made_again(&self, route: &Route<'a>, name: &str, first: Lsn, end: SegmentNumber) -> Option<String> {
        let size = self.inventory.segment_size;
        let names = (size.containing(first).0..=end.0).map(|number| route.path.name(SegmentNumber(number)));
        let mut known = names.filter_map(|segment| Some((segment, self.indexes.get(&segment)?.as_ref()?)));
        known.find_map(|(segment, index)| {
            let again = index.restore_points.iter().find(|point| point.name == name && point.lsn > first)?;
            Some(format!(
                "a restore point of this name was made again, at {} in segment `{segment}`: recovery stops at the first",
                again.time
            ))
        })
    }

    pub(super) fn transaction(&self, routes: &[Route<'a>], xid: Xid) -> Result<RestorePlan, Stop> {
        let mut silent = Vec::new();
        let mut chosen: Option<(&Route<'a>, Vec<SegmentNumber>)> = None;
        for (at, route) in routes.iter().enumerate() {
            let Some(end) = route.end() else { continue };
            let newer = newer_on_the_same_way(routes, at);
            if let Some((chosen, _)) = &chosen {
                if chosen.path != route.path {
                    continue;
                }
                // One that cannot come as far as the newer one is no safer choice.
                if end < chosen.stop {
                    break;
                }
            }
            let to = newer.map_or(end, |newer| newer.stop.min(end));
            let hits =
                self.look(route, route.stop, to, false, |index| index.xids.is_some_and(|range| range.contains(xid)))?;
            silent.extend(hits.silent);
            if hits.found.is_empty() {
                match chosen {
                    Some(_) => break,
                    None => continue,
                }
            }
            let mut found = hits.found;
            found.extend(chosen.into_iter().flat_map(|(_, later)| later));
            found.dedup();
            chosen = Some((route, found));
        }
        let Some((route, found)) = chosen else {
            return self.not_found(routes, silent);
        };
        let (first, last) = (found[0], found[found.len() - 1]);
        let proof = Proof::Transaction { first: route.path.name(first), last: route.path.name(last) };
        let end = route.end().unwrap_or(last);
        let mut plan = self.plan(route, last.min(end), proof);
        if found[0] == route.stop {
            plan.warnings.push(format!(
                "transaction {xid} may have ended before backup `{}` did: PostgreSQL says so then",
                route.backup.id
            ));
        }
        Ok(plan)
    }

    /// Looks through segments that are there, or up to the first hit.
    fn look(
        &self,
        route: &Route<'a>,
        from: SegmentNumber,
        to: SegmentNumber,
        first_only: bool,
        holds: impl Fn(&'a WalIndex) -> bool,
    ) -> Result<Hits, Stop> {
        let end = to.0;
        let mut hits = Hits { found: Vec::new(), silent: Vec::new() };
        let mut next = from.0;
        while next <= end {
            let last = end.min(next + BATCH - 1);
            for (number, index) in self.indexes_of(route, next, last)? {
                // What lies in two segments is in no index.
                if index.is_none_or(|index| !index.complete || index.cut) {
                    hits.silent.push(number);
                }
                if index.is_some_and(&holds) {
                    hits.found.push(number);
                    if first_only {
                        return Ok(hits);
                    }
                }
            }
            next = last + 1;
        }
        Ok(hits)
    }

    fn not_found(&self, routes: &[Route<'a>], mut silent: Vec<SegmentNumber>) -> Result<RestorePlan, Stop> {
        let target: Target = self.request.target.clone();
        let (newest, oldest) = (&routes[0], &routes[routes.len() - 1]);
        let Some(end) = newest.end() else {
            return Err(self.out_of_reach(newest, None, None).into());
        };
        if self.request.backup.is_some()
            && let Some(silent) = silent.iter().min()
        {
            return Ok(self.unknown(newest, end, *silent));
        }
        if newest.reach.went_on.is_some() {
            return Err(self.out_of_reach(newest, None, None).into());
        }
        let (first, last) = (oldest.path.name(oldest.stop), newest.path.name(end));
        silent.sort_unstable();
        silent.dedup();
        Err(Unreachable::NotFound { target, first, last, silent: silent.len() as u64 }.into())
    }
}

/// The next newer backup whose end was looked at already: what lies behind its end need not be looked at again.
fn newer_on_the_same_way<'r, 'a>(routes: &'r [Route<'a>], at: usize) -> Option<&'r Route<'a>> {
    routes[..at].iter().rev().find(|newer| newer.end().is_some() && newer.path == routes[at].path)
}
