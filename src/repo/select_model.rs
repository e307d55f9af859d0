//! The choice of a backup against a model that replays WAL file by file, as PostgreSQL and `wal-fetch` do it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::restore_plan::{Proof, RestorePlan, Unreachable};
use super::restore_target::{Indexes, Request, Target, TargetTimeline};
use super::sample::{SIZE, at, timeline};
use super::select::{Selection, select};
use super::select_world::{Backup, Event, Kind, World, seeds};
use crate::postgres::Lsn;

impl World {
    /// The timeline that PostgreSQL would follow; `None` where it refuses.
    fn follow(&self, backup: &Backup, wish: TargetTimeline) -> Option<u32> {
        let exists = |timeline: u32| {
            self.stored.iter().any(|(on, _)| *on == timeline)
                || self.known_histories.contains(&timeline)
                || self.backups.iter().any(|backup| backup.on == timeline)
        };
        match wish {
            TargetTimeline::Current => Some(backup.on),
            TargetTimeline::Number(number) => {
                let number = number.get();
                let known = self.known_histories.contains(&number) || number == 1 && exists(1);
                known.then_some(number)
            }
            TargetTimeline::Latest => {
                let mut newest = backup.on;
                while self.known_histories.contains(&(newest + 1)) {
                    newest += 1;
                }
                (newest + 1..9).all(|later| !exists(later)).then_some(newest)
            }
        }
    }

    /// Restores a backup; whether the target is reached with nothing foreign replayed.
    fn replay(&self, backup: &Backup, request: &Request) -> bool {
        let Some(target) = self.follow(backup, request.timeline) else { return false };
        let mut expected = if self.known_histories.contains(&target) { self.past(target) } else { vec![] };
        expected.push((target, Lsn(u64::MAX)));
        if !expected.iter().any(|(on, left)| *on == backup.on && backup.stop <= *left) {
            return false;
        }
        let begin_of = |place: usize| if place == 0 { 0 } else { SIZE.containing(expected[place - 1].1).0 };
        let (mut current, mut segment) = (backup.on, SIZE.containing(backup.start).0);
        loop {
            let tried: Vec<u32> = (0..expected.len())
                .rev()
                .filter(|place| begin_of(*place) <= segment && expected[*place].0 >= current)
                .map(|place| expected[place].0)
                .collect();
            let Some(file) = tried.iter().find(|on| self.stored.contains(&(**on, segment))) else {
                let gap = tried.iter().any(|on| self.went_on(*on, segment));
                let consistent = SIZE.ending_at(backup.stop).0 < segment;
                return request.target == Target::Latest && consistent && !gap;
            };
            // A parent's copy of a child's first segment: what it holds before the fork would do, but nobody shall rely on it.
            if *file != tried[0] {
                return false;
            }
            current = *file;
            for event in self.content(current, segment).iter().filter(|event| event.lsn >= backup.start) {
                let foreign = expected.iter().all(|(on, left)| *on != event.written_on || event.lsn >= *left);
                assert!(!foreign, "{event:?} is replayed on the way to {target}");
                if reached(event, request) {
                    return event.lsn >= backup.stop;
                }
            }
            // It stops behind the record that ends the backup, before it asks for more.
            if request.target == Target::Immediate && segment >= SIZE.ending_at(backup.stop).0 {
                return true;
            }
            segment += 1;
        }
    }

    /// Whether `wal-fetch` would call the missing segment a gap.
    fn went_on(&self, on: u32, segment: u64) -> bool {
        let past = self.known_histories.iter().flat_map(|timeline| self.past(*timeline));
        self.stored.iter().any(|(timeline, stored)| *timeline == on && *stored > segment)
            || past.into_iter().any(|(parent, left)| parent == on && SIZE.containing(left).0 > segment)
            || self.backups.iter().any(|backup| backup.on == on && SIZE.ending_at(backup.stop).0 >= segment)
    }

    fn answer(&self, request: &Request) -> Result<RestorePlan, Unreachable> {
        let inventory = self.inventory();
        let mut indexes = Indexes::new();
        for _ in 0..1000 {
            match select(&inventory, request, &indexes) {
                Selection::Plan(plan) => return Ok(*plan),
                Selection::Unreachable(why) => return Err(*why),
                Selection::Ask(names) => {
                    assert!(!names.is_empty() && names.iter().all(|name| !indexes.contains_key(name)));
                    indexes.extend(self.indexes(&names));
                }
            }
        }
        panic!("it asks for ever");
    }
}

fn reached(event: &Event, request: &Request) -> bool {
    match (&request.target, &event.kind) {
        (Target::Lsn(lsn), _) => event.lsn >= *lsn,
        (Target::Time(time), Kind::Commit(seconds, _)) => match request.exclusive {
            true => at(*seconds) >= *time,
            false => at(*seconds) > *time,
        },
        (Target::Xid(wanted), Kind::Commit(_, xid)) => xid == wanted,
        (Target::Name(wanted), Kind::Point(name)) => name == wanted,
        _ => false,
    }
}

/// What random numbers make a request: a kind of target, and which of the world's moments.
type Wish = (u32, prop::sample::Index, bool, TargetTimeline);

fn wishes() -> impl Strategy<Value = Wish> {
    let along = prop_oneof![
        4 => Just(TargetTimeline::Latest),
        1 => Just(TargetTimeline::Current),
        2 => (1u32..5).prop_map(|number| TargetTimeline::Number(timeline(number))),
    ];
    (0u32..6, any::<prop::sample::Index>(), any::<bool>(), along)
}

fn request(world: &World, (kind, which, exclusive, timeline): Wish) -> Request {
    let events: Vec<&Event> = world.own_events.values().flatten().collect();
    let event = which.get(&events);
    let commits: Vec<(i64, u32)> = events
        .iter()
        .filter_map(|event| match event.kind {
            Kind::Commit(seconds, xid) => Some((seconds, xid)),
            Kind::Point(_) => None,
        })
        .collect();
    let (seconds, xid) = *which.get(&commits);
    let points: Vec<&String> = events
        .iter()
        .filter_map(|event| match &event.kind {
            Kind::Point(name) => Some(name),
            Kind::Commit(..) => None,
        })
        .collect();
    let target = match kind {
        0 => Target::Lsn(Lsn(event.lsn.0 - which.index(3) as u64)),
        1 => Target::Time(at(seconds + which.index(3) as i64 - 1)),
        2 => Target::Xid(xid),
        3 => Target::Name((*which.get(&points)).clone()),
        4 => Target::Immediate,
        _ => Target::Latest,
    };
    Request { target, exclusive, timeline, backup: None }
}

/// The backups that must not be taken though PostgreSQL might get along with them: they ended too late.
fn early_enough(backup: &Backup, target: &Target) -> bool {
    match target {
        Target::Lsn(lsn) => backup.stop <= *lsn,
        Target::Time(time) => at(backup.stopped) < *time,
        _ => true,
    }
}

fn judge(world: &World, request: &Request) -> Result<&'static str, String> {
    let possible: Vec<&Backup> = world
        .backups
        .iter()
        .filter(|backup| early_enough(backup, &request.target) && world.replay(backup, request))
        .collect();
    let age = |backup: &&&Backup| match request.timeline {
        TargetTimeline::Current => (Lsn(backup.stopped as u64), backup.stopped, backup.id),
        _ => (backup.stop, backup.stopped, backup.id),
    };
    // With `current` the newest backup that ended early enough says which timeline is meant.
    let early: Vec<&Backup> = world.backups.iter().filter(|backup| early_enough(backup, &request.target)).collect();
    let decides = early.iter().max_by_key(age);
    let tied =
        request.timeline == TargetTimeline::Current && !matches!(request.target, Target::Xid(_) | Target::Name(_));
    let newest = possible
        .iter()
        .filter(|backup| !tied || decides.is_some_and(|decides| decides.on == backup.on))
        .max_by_key(age);
    let told = || format!("{world:#?}\n{request:?}\npossible {:?}", possible.iter().map(|b| b.id).collect::<Vec<_>>());
    match (world.answer(request), newest) {
        (Err(_), None) => Ok("unreachable"),
        (Ok(plan), Some(newest)) if plan.backup.id == newest.id => Ok("the newest"),
        // Of the last segment nobody says whether a record begins behind the position.
        (Ok(plan), None) if matches!(plan.proof, Proof::SegmentIsThere { last: true, .. }) => Ok("perhaps"),
        // By its number alone a transaction may lie before the end of a backup, or be another timeline's.
        (Ok(plan), Some(_)) if matches!(request.target, Target::Xid(_)) => {
            match possible.iter().any(|backup| backup.id == plan.backup.id) {
                true => Ok("an older one"),
                // Each backup has its own way then, and each way its own transaction of this number.
                false if request.timeline == TargetTimeline::Current => Ok("by number"),
                false => Err(format!("{} does not reach it\n{}", plan.backup.id, told())),
            }
        }
        (Ok(plan), None) if matches!(plan.proof, Proof::Transaction { .. }) => Ok("by number"),
        (Ok(plan), newest) => Err(format!("{} instead of {newest:?}: {:?}\n{}", plan.backup.id, plan.proof, told())),
        (Err(why), Some(newest)) => Err(format!("{why}, but {newest:?}\n{}", told())),
    }
}

#[test]
fn the_chosen_backup_is_the_models() {
    const CASES: u32 = 5000;
    let seed = [9; 32];
    let mut runner = TestRunner::new_with_rng(
        Config { cases: CASES, failure_persistence: None, ..Config::default() },
        TestRng::from_seed(RngAlgorithm::ChaCha, &seed),
    );
    let seen = std::cell::RefCell::new(BTreeMap::<String, u32>::new());
    let outcome = runner.run(&(seeds(), wishes()), |(seed, wish)| {
        let world = World::grow(&seed);
        let request = request(&world, wish);
        let verdict = judge(&world, &request).map_err(TestCaseError::fail)?;
        let kind = format!("{:?}", request.target);
        let kind = kind.split('(').next().unwrap_or_default().to_owned();
        *seen.borrow_mut().entry(format!("{kind}: {verdict}")).or_default() += 1;
        Ok(())
    });
    println!("{:#?}", seen.borrow());
    outcome.unwrap();
    // A model that agrees on nothing but failures proves nothing.
    let chosen = |kind: &str| seen.borrow().get(&format!("{kind}: the newest")).copied().unwrap_or_default();
    for kind in ["Time", "Lsn", "Xid", "Name", "Immediate", "Latest"] {
        assert!(chosen(kind) >= 100, "only {} chosen for {kind}", chosen(kind));
    }
}
