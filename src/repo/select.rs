//! From a target to a restore plan, or to the reason why there is none. Pure: what must be read is asked for.
//!
//! The backup is the newest one that *stopped* before the target and lies on the way to the target's timeline. One that is damaged, or
//! lacks WAL between its own start and stop, is passed over with a warning. Behind its stop an older one needs the same WAL: where
//! that is missing there is no way at all.
//!
//! A target that PostgreSQL would not reach is refused here: recovery to it would end with an error, or, to the end of the archive,
//! with a loss.

use super::inventory::Inventory;
use super::restore_plan::{Missing, Position, Proof, RestorePlan, Unreachable, WalRange};
use super::restore_target::{Indexes, Request, Target};
use super::routes::{Route, routes};
use super::stored_backups::BackupState;
use super::timeline_path::TimelineSpan;
use crate::postgres::wal_index::WalIndex;
use crate::postgres::{Lsn, SegmentName, SegmentNumber, Xid};

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// So it is done.
    Plan(Box<RestorePlan>),
    /// It cannot be done.
    Unreachable(Box<Unreachable>),
    /// It depends on what these segments hold: ask again with their indexes. Never empty, and never what is known.
    Ask(Vec<SegmentName>),
}

/// Why there is no plan (yet).
#[derive(Debug)]
pub(super) enum Stop {
    Unreachable(Box<Unreachable>),
    Ask(Vec<SegmentName>),
}

impl From<Unreachable> for Stop {
    fn from(why: Unreachable) -> Self {
        Stop::Unreachable(Box::new(why))
    }
}

/// Makes a plan. Targets that are times, transactions and restore points need to know what segments hold: the first answers are
/// [`Selection::Ask`].
pub fn select(inventory: &Inventory, request: &Request, indexes: &Indexes) -> Selection {
    let selector = Selector { inventory, request, indexes };
    match selector.decide() {
        Ok(plan) => Selection::Plan(Box::new(plan)),
        Err(Stop::Unreachable(why)) => Selection::Unreachable(why),
        Err(Stop::Ask(segments)) => Selection::Ask(segments),
    }
}

pub(super) struct Selector<'a> {
    pub(super) inventory: &'a Inventory,
    pub(super) request: &'a Request,
    pub(super) indexes: &'a Indexes,
}

impl<'a> Selector<'a> {
    fn decide(&self) -> Result<RestorePlan, Stop> {
        let routes = routes(self.inventory, self.request)?;
        match &self.request.target {
            Target::Immediate => self.immediate(&routes),
            Target::Latest => self.latest(&routes),
            Target::Lsn(lsn) => self.lsn(&routes, *lsn),
            Target::Time(time) => self.time(&routes, *time),
            Target::Xid(xid) => self.transaction(&routes, Xid(*xid)),
            Target::Name(name) => self.restore_point(&routes, name),
        }
    }

    fn immediate(&self, routes: &[Route<'a>]) -> Result<RestorePlan, Stop> {
        let (route, passed_over) = self.newest(routes, |_| true)?;
        Ok(self.plan(route, route.stop, Proof::BackupIsWhole).with_warnings(passed_over))
    }

    fn latest(&self, routes: &[Route<'a>]) -> Result<RestorePlan, Stop> {
        let (route, passed_over) = self.newest(routes, |_| true)?;
        match route.end() {
            Some(last) if route.reach.went_on.is_none() && self.stray(route).is_none() => {
                let end = Position::within(self.inventory, route.path.name(last), last);
                let proof = match end.in_tail {
                    true => Proof::EndOfTail { end },
                    false => Proof::EndOfArchive { last: end.segment },
                };
                let mut plan = self.plan(route, last, proof).with_warnings(passed_over);
                let begin = route.path.steps().last().map(|step| step.begin).unwrap_or_default();
                if route.path.owner(last) != route.timeline {
                    let timeline = route.timeline.get();
                    plan.warnings.push(format!("nothing that timeline {timeline} wrote since {begin} is archived yet"));
                }
                self.warn_of_unknown(&mut plan);
                Ok(plan)
            }
            _ => Err(self.out_of_reach(route, None, None).into()),
        }
    }

    fn lsn(&self, routes: &[Route<'a>], lsn: Lsn) -> Result<RestorePlan, Stop> {
        let (route, passed_over) = self.newest(routes, |route| route.backup.stop_lsn <= lsn)?;
        let needed = self.inventory.segment_size.containing(lsn);
        match route.end() {
            Some(last)
                if needed < last || (needed == last && lsn < self.inventory.end_of(route.path.owner(last), last)) =>
            {
                let segment = route.path.name(needed);
                let proof = Proof::SegmentIsThere { segment, last: needed == last };
                Ok(self.plan(route, needed.max(route.stop), proof).with_warnings(passed_over))
            }
            _ => Err(self.out_of_reach(route, Some(needed), None).into()),
        }
    }

    /// The newest backup that ended early enough and can be made consistent, and what to say of newer ones that cannot: of two that
    /// were taken at the same time, the one that ended first may do without what the other lacks.
    pub(super) fn newest<'r>(
        &self,
        routes: &'r [Route<'a>],
        early_enough: impl Fn(&Route<'a>) -> bool,
    ) -> Result<(&'r Route<'a>, Vec<String>), Stop> {
        let (mut passed_over, mut failure) = (Vec::new(), None);
        let early = routes.iter().filter(|route| early_enough(route));
        // The newest decides about the way, where that is the backup's own.
        let way = early.clone().next().map(|newest| &newest.path);
        for route in early.filter(|route| Some(&route.path) == way) {
            if route.end().is_some() {
                return Ok((route, passed_over));
            }
            let why = self.out_of_reach(route, None, None);
            passed_over.push(format!("backup `{}` is newer, but: {why}", route.backup.id));
            failure.get_or_insert(why);
        }
        let first = &routes[routes.len() - 1].backup;
        let too_late = || Unreachable::BeforeFirstBackup {
            backup: first.id,
            stop: first.stop_lsn,
            stopped: first.stopped,
            asked_for: self.request.backup.is_some(),
        };
        Err(failure.unwrap_or_else(too_late).into())
    }

    /// The plan that replays everything up to a segment that is there.
    pub(super) fn plan(&self, route: &Route<'a>, last: SegmentNumber, proof: Proof) -> RestorePlan {
        let size = self.inventory.segment_size;
        let range = |part: TimelineSpan| WalRange {
            first: part.first_name(size),
            last: part.last_name(size),
            segments: part.span.count(),
            stored_bytes: self.inventory.timeline(part.timeline).map_or(0, |wal| wal.segments.bytes(part.span)),
        };
        let path = route.path.steps().iter().skip_while(|step| step.timeline != route.backup.timeline);
        let mut plan = RestorePlan {
            backup: route.backup.clone(),
            timeline: route.timeline,
            path: path.copied().collect(),
            wal: route.path.spans(route.first, last).into_iter().map(range).collect(),
            proof,
            gap: route.reach.went_on.map(|_| route.path.name(route.reach.next.1)),
            warnings: Vec::new(),
        };
        self.warn_of_damaged(&mut plan);
        self.warn_of_history(&mut plan);
        plan
    }

    fn warn_of_damaged(&self, plan: &mut RestorePlan) {
        let begun = plan.backup.id.begun();
        for backup in &self.inventory.backups {
            let id = backup.listing.id;
            if let BackupState::Damaged(reason, _) = &backup.state
                && id.begun() >= begun
                && self.request.backup.is_none()
            {
                plan.warnings.push(format!("backup `{id}` is newer, but damaged: {reason}"));
            }
        }
    }

    /// The server's last question is for the next timeline's history file: one that is missing in between stops it.
    fn warn_of_history(&self, plan: &mut RestorePlan) {
        if plan.origin_is_unknown() {
            let timeline = plan.timeline;
            plan.warnings.push(format!(
                "`{timeline}.history` is missing: nobody knows where timeline {} comes from, and only its own backups can be followed on \
                 it; archive that file from a `pg_wal` that still has it",
                timeline.get()
            ));
        }
        let highest = super::routes::highest_timeline(self.inventory);
        let known = |timeline| {
            let wal = self.inventory.timeline(timeline);
            wal.is_some_and(|wal| wal.history != super::timeline_wal::History::Absent)
        };
        let above = (plan.timeline.get() + 1..=highest.get()).filter_map(crate::postgres::TimelineId::new);
        if let Some(missing) = above.into_iter().find(|timeline| !known(*timeline)) {
            plan.warnings.push(format!(
                "`{missing}.history` is missing, though there is a timeline {}: a server that shall be promoted at the target stops \
                 there",
                highest.get()
            ));
        }
    }

    fn warn_of_unknown(&self, plan: &mut RestorePlan) {
        let unknown = &self.inventory.unknown;
        if let Some(example) = unknown.examples.first() {
            let count = unknown.count;
            plan.warnings.push(format!(
                "{count} objects are not known to this pgark, `{example}` for one: recovery may stop at one"
            ));
        }
    }

    /// Where PostgreSQL would look in place of the first segment that is not there.
    fn stray(&self, route: &Route<'a>) -> Option<SegmentName> {
        let current = route.reach.there.last().map_or(route.backup.timeline, |there| there.timeline);
        route.path.stray(self.inventory, current, route.reach.next.1)
    }

    /// Why nothing behind the reach can be restored.
    pub(super) fn out_of_reach(
        &self,
        route: &Route<'a>,
        needed: Option<SegmentNumber>,
        last_commit: Option<jiff::Timestamp>,
    ) -> Unreachable {
        let (inventory, target) = (self.inventory, self.request.target.clone());
        let size = inventory.segment_size;
        let (timeline, next) = route.reach.next;
        let missing = |to| {
            let missing = route.path.missing(inventory, next, to).into_iter();
            missing.map(|missing| Missing::of(missing, size)).collect()
        };
        let backup = route.backup.id;
        let Some(last) = route.end() else {
            return Unreachable::Gap { backup, missing: missing(route.stop), newest: None };
        };
        let newest = Position::within(inventory, route.path.name(last), last);
        if let Some(went_on) = route.reach.went_on {
            let to = needed.map_or(went_on, |needed| needed.min(went_on));
            return Unreachable::Gap { backup, missing: missing(to), newest: Some(newest) };
        }
        if let Some(stray) = self.stray(route) {
            let fork = route.path.step(timeline).map(|step| step.begin).unwrap_or_default();
            return Unreachable::ForkNotArchived { timeline, fork, missing: route.path.name(next), stray, newest };
        }
        if let (Target::Lsn(lsn), Some(needed)) = (&target, needed) {
            let left = route.path.steps().iter().rev().filter_map(|step| Some((step.timeline, step.end?)));
            let has = |timeline| inventory.timeline(timeline).is_some_and(|wal| wal.segments.has(needed));
            if let Some((parent, left_at)) = left.into_iter().find(|(timeline, end)| end <= lsn && has(*timeline)) {
                return Unreachable::BehindTheFork { timeline: route.timeline, parent, left_at };
            }
        }
        Unreachable::Beyond { target, newest, last_commit }
    }

    /// What a segment on the way holds: `None` if it does not tell.
    pub(super) fn index(&self, route: &Route<'a>, number: SegmentNumber) -> Result<Option<&'a WalIndex>, Stop> {
        let name = route.path.name(number);
        match self.indexes.get(&name) {
            Some(index) => Ok(index.as_ref()),
            None => Err(Stop::Ask(vec![name])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::restore_target::TargetTimeline;
    use super::super::sample::{at, empty, id, index, lsn, plain_indexes, segment, timeline};
    use super::*;

    /// Two backups on timeline 1, segments 1 to 9.
    fn archive() -> Inventory {
        empty().with_wal(1, 1..=9).with_backup(120, 1, lsn(2, 10), lsn(2, 60)).with_backup(
            300,
            1,
            lsn(5, 10),
            lsn(5, 60),
        )
    }

    fn plan_with(
        inventory: &Inventory,
        request: &Request,
        tell: impl Fn(&[SegmentName]) -> Indexes,
    ) -> (RestorePlan, usize) {
        let mut indexes = Indexes::new();
        loop {
            match select(inventory, request, &indexes) {
                Selection::Ask(names) => indexes.extend(tell(&names)),
                Selection::Plan(plan) => return (*plan, indexes.len()),
                Selection::Unreachable(why) => panic!("{why}"),
            }
        }
    }

    fn plan(inventory: &Inventory, request: &Request) -> RestorePlan {
        plan_with(inventory, request, plain_indexes).0
    }

    #[test]
    fn a_live_tail_goes_as_far_as_it_goes() {
        let inventory = archive().with_tail(1, lsn(10, 40));
        let end = Position { lsn: lsn(10, 40), segment: segment(1, 10), in_tail: true };
        assert_eq!(plan(&inventory, &Request::to(Target::Latest)).proof, Proof::EndOfTail { end });
        let at = |lsn| select(&inventory, &Request::to(Target::Lsn(lsn)), &Indexes::new());
        assert!(matches!(at(lsn(10, 39)), Selection::Plan(_)));
        for beyond in [lsn(10, 40), lsn(10, 90), lsn(11, 0)] {
            match at(beyond) {
                Selection::Unreachable(why) => {
                    assert_eq!(
                        *why,
                        Unreachable::Beyond { target: Target::Lsn(beyond), newest: end, last_commit: None }
                    );
                }
                other => panic!("{other:?}"),
            }
        }
        // It tells of its commits as a whole segment does.
        let time = Request::to(Target::Time(at_minute(10)));
        assert_eq!(plan(&inventory, &time).wal.last().map(|range| range.last), Some(segment(1, 10)));
        // Where a later timeline begins behind its end it is a part of the way, not a stray.
        let forked = |switch| archive().with_tail(1, lsn(10, 40)).with_history(2, &[(1, switch)]);
        let latest = |inventory: &Inventory| select(inventory, &Request::to(Target::Latest), &Indexes::new());
        assert!(matches!(latest(&forked(lsn(10, 40))), Selection::Plan(_)));
        assert!(matches!(latest(&forked(lsn(10, 30))), Selection::Unreachable(_)));
    }

    /// Before the commits of the segment of this number.
    fn at_minute(number: i64) -> jiff::Timestamp {
        at(number * 60 - 1)
    }

    #[test]
    fn the_plan_names_its_wal_by_timeline() {
        let inventory = archive().with_history(2, &[(1, lsn(7, 50))]).with_wal(2, 7..=8);
        let plan = plan(&inventory, &Request::to(Target::Latest));
        assert_eq!((plan.backup.id, plan.timeline), (id(300), timeline(2)));
        let wal: Vec<_> = plan.wal.iter().map(|range| (range.first, range.last, range.stored_bytes)).collect();
        assert_eq!(wal, [(segment(1, 5), segment(1, 6), 2000), (segment(2, 7), segment(2, 8), 2000)]);
        assert_eq!(plan.path.iter().map(|step| step.end).collect::<Vec<_>>(), [Some(lsn(7, 50)), None]);
        assert_eq!(plan.proof, Proof::EndOfArchive { last: segment(2, 8) });
        assert_eq!((plan.segments(), plan.wal_bytes()), (4, 4000));
        // The old timeline can still be followed, on its own.
        let old = Request { timeline: TargetTimeline::Number(timeline(1)), ..Request::to(Target::Latest) };
        assert_eq!(super::tests::plan(&inventory, &old).proof, Proof::EndOfArchive { last: segment(1, 9) });
    }

    #[test]
    fn a_time_is_found_with_few_reads() {
        let inventory = empty().with_wal(1, 1..=60_000).with_backup(120, 1, lsn(2, 10), lsn(2, 60));
        let request = Request::to(Target::Time(at(60 * 41_234 + 50)));
        let (plan, asked) = plan_with(&inventory, &request, plain_indexes);
        // The last commit of that segment is at the very time: the next one shows that it is over.
        assert_eq!(plan.proof, Proof::LaterCommit { segment: segment(1, 41_235), at: at(60 * 41_235 + 50) });
        assert!(asked < 40, "{asked} headers were read");
        let exclusive = Request { exclusive: true, ..request };
        assert!(matches!(plan_with(&inventory, &exclusive, plain_indexes).0.proof,
            Proof::LaterCommit { segment: found, .. } if found == segment(1, 41_234)));
    }

    #[test]
    fn segments_without_commits_are_no_proof_against_a_time() {
        // Only segment 6 has commits; the rest of the archive is idle.
        let tell = |names: &[SegmentName]| {
            let of = |name: &SegmentName| match *name == segment(1, 6) {
                true => Some(index(Some((360, 400)), None, &[])),
                false => Some(index(None, None, &[])),
            };
            names.iter().map(|name| (*name, of(name))).collect::<Indexes>()
        };
        let idle = archive().with_wal(1, 10..=3000);
        let (plan, _) = plan_with(&idle, &Request::to(Target::Time(at(399))), tell);
        assert_eq!(plan.proof, Proof::LaterCommit { segment: segment(1, 6), at: at(400) });
        let beyond = Request::to(Target::Time(at(400)));
        let mut indexes = Indexes::new();
        let why = loop {
            match select(&idle, &beyond, &indexes) {
                Selection::Ask(names) => indexes.extend(tell(&names)),
                Selection::Unreachable(why) => break why,
                Selection::Plan(plan) => panic!("{plan:?}"),
            }
        };
        assert!(matches!(*why, Unreachable::Beyond { last_commit: Some(last), .. } if last == at(400)), "{why}");
    }

    #[test]
    fn silent_segments_leave_it_to_postgresql() {
        let silent = |names: &[SegmentName]| names.iter().map(|name| (*name, None)).collect::<Indexes>();
        let (plan, _) = plan_with(&archive(), &Request::to(Target::Time(at(400))), silent);
        assert!(matches!(plan.proof, Proof::Unknown { .. }), "{:?}", plan.proof);
        // A name could be anywhere: the operator has to say from where to look.
        let name = Request::to(Target::Name("x".into()));
        let from = Request { backup: Some(id(120)), ..name };
        let (plan, _) = plan_with(&archive(), &from, silent);
        assert_eq!((plan.backup.id, plan.segments()), (id(120), 8));
        // A commit that lies in two segments is in no index; what follows it tells that it was earlier.
        let cut = |at_segment: u64| {
            move |names: &[SegmentName]| {
                let mut indexes = plain_indexes(names);
                if let Some(Some(index)) = indexes.get_mut(&segment(1, at_segment)) {
                    index.cut = true;
                    index.commits = None;
                }
                indexes
            }
        };
        let beyond = Request::to(Target::Time(at(60 * 9 + 55)));
        let mut indexes = cut(8)(&(2..=9).map(|number| segment(1, number)).collect::<Vec<_>>());
        assert!(matches!(select(&archive(), &beyond, &indexes), Selection::Unreachable(_)));
        if let Some(Some(index)) = indexes.get_mut(&segment(1, 9)) {
            index.commits = None;
        }
        assert!(matches!(select(&archive(), &beyond, &indexes), Selection::Plan(_)));
    }

    #[test]
    fn of_restore_points_with_one_name_the_newest_backup_decides() {
        let tell = |names: &[SegmentName]| {
            let point = |name: &SegmentName| {
                let number = super::super::sample::SIZE.number(*name).unwrap().0;
                let points: &[(&str, Lsn)] = &[("nightly", lsn(number, 30))];
                let named = matches!(number, 3 | 5 | 7);
                (*name, Some(index(None, None, if named { points } else { &[] })))
            };
            names.iter().map(point).collect::<Indexes>()
        };
        // The one in segment 5 lies before the end of the second backup.
        let inventory = archive().with_backup(400, 1, lsn(6, 10), lsn(6, 60));
        let (plan, _) = plan_with(&inventory, &Request::to(Target::Name("nightly".into())), tell);
        let proof = |number| Proof::RestorePoint { segment: segment(1, number), at: at(0) };
        assert_eq!((plan.backup.id, plan.proof, plan.warnings.len()), (id(400), proof(7), 0));
        // The one in segment 5 lies within the second backup: from there PostgreSQL comes no further.
        let (plan, _) = plan_with(&archive(), &Request::to(Target::Name("nightly".into())), tell);
        assert_eq!((plan.backup.id, plan.proof, plan.warnings.len()), (id(120), proof(3), 2), "{:?}", plan.warnings);
        let named = Request { backup: Some(id(300)), ..Request::to(Target::Name("nightly".into())) };
        let mut indexes = Indexes::new();
        let why = loop {
            match select(&archive(), &named, &indexes) {
                Selection::Ask(names) => indexes.extend(tell(&names)),
                Selection::Unreachable(why) => break *why,
                Selection::Plan(plan) => panic!("{plan:?}"),
            }
        };
        assert_eq!(why, Unreachable::WithinBackup { backup: id(300), segment: segment(1, 5) });
    }

    #[test]
    fn a_transaction_that_may_have_ended_before_a_backup_did_needs_an_older_one() {
        let wide = |names: &[SegmentName]| {
            let of = |name: &SegmentName| {
                let number = super::super::sample::SIZE.number(*name).unwrap().0 as u32;
                // A long transaction ended in segment 6: its range covers what ended in segment 4.
                let low = if number == 6 { 3 * 10 } else { number * 10 };
                (*name, Some(index(None, Some((low, number * 10 + 9)), &[])))
            };
            names.iter().map(of).collect::<Indexes>()
        };
        let (plan, _) = plan_with(&archive(), &Request::to(Target::Xid(45)), wide);
        assert_eq!(plan.backup.id, id(120));
        assert_eq!(plan.proof, Proof::Transaction { first: segment(1, 4), last: segment(1, 6) });
        let (plan, _) = plan_with(&archive(), &Request::to(Target::Xid(75)), wide);
        assert_eq!((plan.backup.id, plan.segments()), (id(300), 3));
    }

    #[test]
    fn what_cannot_be_used_is_passed_over_and_said() {
        let inventory = archive()
            .with_state(400, BackupState::Damaged("it is empty".into(), None))
            // Its own WAL is missing.
            .with_backup(700, 1, lsn(9, 10), lsn(10, 50));
        let plan = plan(&inventory, &Request::to(Target::Lsn(lsn(8, 50))));
        assert_eq!((plan.backup.id, plan.warnings.len()), (id(300), 1), "{:?}", plan.warnings);
        let plan = super::tests::plan(&inventory, &Request::to(Target::Immediate));
        assert_eq!((plan.backup.id, plan.warnings.len()), (id(300), 2), "{:?}", plan.warnings);
        let latest = select(&inventory, &Request::to(Target::Latest), &Indexes::new());
        assert!(matches!(latest, Selection::Unreachable(why) if matches!(*why, Unreachable::Gap { .. })));
        let wished = Request { backup: Some(id(120)), ..Request::to(Target::Immediate) };
        assert_eq!(super::tests::plan(&inventory, &wished).warnings, [] as [String; 0]);
    }
}
