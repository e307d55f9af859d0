//! A world for the model of `select`: timelines, records, segments and backups, made of random numbers.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::BackupId;
use super::inventory::Inventory;
use super::restore_target::Indexes;
use super::sample::{SIZE, at, empty, id, index, lsn, summary};
use super::stored_backups::BackupState;
use crate::postgres::{Lsn, SegmentName};

/// A record.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) lsn: Lsn,
    /// The timeline that wrote it.
    pub(super) written_on: u32,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Commit(i64, u32),
    Point(String),
}

#[derive(Clone, Debug)]
pub(super) struct Backup {
    pub(super) id: BackupId,
    pub(super) on: u32,
    pub(super) start: Lsn,
    pub(super) stop: Lsn,
    pub(super) stopped: i64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct World {
    /// By timeline: parent and fork.
    pub(super) forks: BTreeMap<u32, (u32, Lsn)>,
    pub(super) known_histories: BTreeSet<u32>,
    pub(super) own_events: BTreeMap<u32, Vec<Event>>,
    pub(super) stored: BTreeSet<(u32, u64)>,
    pub(super) backups: Vec<Backup>,
    pub(super) damaged: Vec<i64>,
}

/// What random numbers make a world.
#[derive(Clone, Debug)]
pub(super) struct Seed {
    pub(super) timelines: Vec<TimelineSeed>,
    pub(super) holes: Vec<(u32, u64)>,
    pub(super) lost_history: Option<u32>,
    pub(super) backups: Vec<(u32, u64, u64, bool)>,
}

#[derive(Clone, Debug)]
pub(super) struct TimelineSeed {
    pub(super) parent: u32,
    pub(super) fork: (u64, u64),
    pub(super) segments: u64,
    pub(super) first_stored: u64,
}

pub(super) fn seeds() -> impl Strategy<Value = Seed> {
    let one =
        (0u32..3, 0u64..9, 1u64..20, 2u64..12, 0u64..3).prop_map(|(parent, segment, part, segments, first_stored)| {
            TimelineSeed { parent, fork: (segment, part * 5), segments, first_stored }
        });
    let hole = (1u32..4, 0u64..14);
    let backup = (1u32..4, 0u64..1000, 1u64..120, proptest::bool::weighted(0.1));
    (
        proptest::collection::vec(one, 1..4),
        prop_oneof![3 => Just(vec![]), 2 => proptest::collection::vec(hole, 1..3)],
        proptest::option::weighted(0.1, 2u32..4),
        proptest::collection::vec(backup, 0..5),
    )
        .prop_map(|(timelines, holes, lost_history, backups)| Seed { timelines, holes, lost_history, backups })
}

impl World {
    pub(super) fn grow(seed: &Seed) -> World {
        let mut world = World::default();
        let mut ends: BTreeMap<u32, u64> = BTreeMap::new();
        for (index, seed) in seed.timelines.iter().enumerate() {
            let number = index as u32 + 1;
            let begin = if number == 1 {
                lsn(1, 0)
            } else {
                let parent = seed.parent % (number - 1) + 1;
                let (first, last) = (world.begin(parent), ends[&parent]);
                let fork = Lsn((first.0 + 1).max(lsn(seed.fork.0 % (last + 1), seed.fork.1).0));
                world.forks.insert(number, (parent, fork));
                world.known_histories.insert(number);
                fork
            };
            let first = SIZE.containing(begin).0;
            let last = first + seed.segments;
            ends.insert(number, last);
            let skipped = if number == 1 { 0 } else { seed.first_stored / 2 * seed.segments };
            world.stored.extend((first + skipped..=last).map(|segment| (number, segment)));
            let mut events = Vec::new();
            for segment in first..=last {
                // Positions between those at which forks and backups can be.
                for (part, name) in [(12, false), (52, true), (98, false)] {
                    let at = lsn(segment, part);
                    let seconds = (segment * 100 + part) as i64 + i64::from(number) * 3;
                    let kind = match name {
                        true => Kind::Point(format!("p{number}-{segment}")),
                        false => Kind::Commit(seconds, (segment * 100 + part) as u32 * 2 + number % 2),
                    };
                    if at >= begin {
                        events.push(Event { lsn: at, written_on: number, kind });
                    }
                }
            }
            world.own_events.insert(number, events);
        }
        world.known_histories.retain(|timeline| Some(*timeline) != seed.lost_history);
        for hole in &seed.holes {
            world.stored.remove(hole);
        }
        for (which, (on, start, length, damaged)) in seed.backups.iter().enumerate() {
            let on = on % seed.timelines.len() as u32 + 1;
            let room = ends[&on] * 100 - world.begin(on).0 * 100 / SIZE.bytes();
            let start = world.begin(on).0 + SIZE.bytes() / 100 * (start % (room / 2).max(1)) + 5;
            let stop = (start + length * SIZE.bytes() / 100).min(lsn(ends[&on], 99).0);
            let stopped = (stop * 100 / SIZE.bytes()) as i64 + i64::from(on) * 3 + 1;
            let begun = stopped * 10 + which as i64;
            match *damaged {
                true => world.damaged.push(begun),
                false => world.backups.push(Backup { id: id(begun), on, start: Lsn(start), stop: Lsn(stop), stopped }),
            }
        }
        world
    }

    pub(super) fn begin(&self, timeline: u32) -> Lsn {
        self.forks.get(&timeline).map_or(lsn(1, 0), |(_, fork)| *fork)
    }

    pub(super) fn inventory(&self) -> Inventory {
        let mut inventory = empty();
        for (timeline, segment) in &self.stored {
            inventory = inventory.with_wal(*timeline, [*segment]);
        }
        for timeline in &self.known_histories {
            let entries = self.past(*timeline);
            inventory = inventory.with_history(*timeline, &entries);
        }
        for backup in &self.backups {
            let summary = summary(backup.id, backup.on, backup.start, backup.stop, at(backup.stopped));
            let begun = backup.id.begun().as_second() - at(0).as_second();
            inventory = inventory.with_state(begun, BackupState::Whole(Box::new(summary)));
        }
        for begun in &self.damaged {
            inventory = inventory.with_state(*begun, BackupState::Damaged("it is empty".into(), None));
        }
        inventory
    }

    /// Parents and where they were left, oldest first.
    pub(super) fn past(&self, timeline: u32) -> Vec<(u32, Lsn)> {
        match self.forks.get(&timeline) {
            None => vec![],
            Some((parent, fork)) => {
                let mut past = self.past(*parent);
                past.retain(|(_, left)| left < fork);
                past.push((*parent, *fork));
                past
            }
        }
    }

    /// What a segment file holds: in a timeline's first segment the parent's records come first.
    pub(super) fn content(&self, timeline: u32, segment: u64) -> Vec<Event> {
        let mut content = Vec::new();
        if let Some((parent, fork)) = self.forks.get(&timeline)
            && SIZE.containing(*fork).0 == segment
        {
            content.extend(self.content(*parent, segment).into_iter().filter(|event| event.lsn < *fork));
        }
        let own = self.own_events[&timeline].iter().filter(|event| SIZE.containing(event.lsn).0 == segment);
        content.extend(own.cloned());
        content
    }

    pub(super) fn indexes(&self, names: &[SegmentName]) -> Indexes {
        let tell = |name: &SegmentName| {
            let events = self.content(name.timeline.get(), SIZE.number(*name).unwrap().0);
            let (mut times, mut xids, mut points) = (vec![], vec![], vec![]);
            for event in &events {
                match &event.kind {
                    Kind::Commit(seconds, xid) => {
                        times.push(*seconds);
                        xids.push(*xid);
                    }
                    Kind::Point(name) => points.push((name.as_str(), event.lsn)),
                }
            }
            let times = times.iter().min().copied().zip(times.iter().max().copied());
            let xids = xids.iter().min().copied().zip(xids.iter().max().copied());
            (*name, Some(index(times, xids, &points)))
        };
        names.iter().map(tell).collect()
    }
}
