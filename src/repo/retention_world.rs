//! Random repositories for the tests of `retention`: promotions, restores to earlier moments, two primaries, missing segments,
//! dead backups, marks, leases, live tails, objects without a time.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::backup_id::BackupId;
use super::backups::{BackupListing, Piece};
use super::holdings::{HeldWal, Holdings};
use super::keep::Mark;
use super::layout::{BackupKey, Generation, Layout, PieceKey, WalKey};
use super::lease::{Held, Lease};
use super::policy::Policy;
use super::sample::{empty, summary};
use super::stocktaking::Pass;
use super::stored_backups::{BackupState, StoredBackup};
use super::timeline_wal::History;
use crate::postgres::{HistoryFile, Lsn, SegmentNumber, SegmentSize, TimelineId, WalName};
use crate::storage::Listed;

pub(super) const SIZE: u64 = 1 << 20;

pub(super) fn size() -> SegmentSize {
    SegmentSize::new(SIZE).unwrap()
}

pub(super) fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

pub(super) fn hour(hours: i64) -> Timestamp {
    "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_hours(hours)
}

/// Makes the inventory's WAL of the objects, as a listing does.
pub(super) fn list(holdings: &mut Holdings) {
    let layout = Layout::new("main".parse().unwrap());
    let key = |wal: &HeldWal| layout.wal_key(Generation::FIRST, &wal.key).to_string();
    let listed =
        |wal: &HeldWal| Listed { name: key(wal), size: wal.bytes, modified: wal.modified.map(SystemTime::from) };
    let mut all: Vec<Listed> = holdings.wal.iter().map(listed).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let mut pass = Pass::new(&layout);
    for listed in &all {
        pass.take(listed);
    }
    let inventory = &mut holdings.inventory;
    let before = std::mem::replace(&mut inventory.timelines, pass.timelines);
    for (timeline, wal) in &mut inventory.timelines {
        wal.history = before.get(timeline).map(|before| before.history.clone()).unwrap_or_default();
    }
    inventory.number(size());
}

/// A repository as it came to be.
pub(super) struct World {
    rng: StdRng,
    pub(super) now: i64,
    /// Each timeline: where it came from, and where it is now.
    pub(super) parents: BTreeMap<u32, (u32, u64)>,
    pub(super) tips: BTreeMap<u32, u64>,
    live: u32,
    pub(super) holdings: Holdings,
    next_id: u32,
}

impl World {
    pub(super) fn random(seed: u64) -> Self {
        let holdings =
            Holdings { inventory: empty(), wal: vec![], marks: BTreeMap::new(), leases: vec![], unknown: vec![] };
        let rng = StdRng::seed_from_u64(seed);
        let tips = BTreeMap::from([(1, 3 * SIZE)]);
        let mut world = World { rng, now: 0, parents: BTreeMap::new(), tips, live: 1, holdings, next_id: 0 };
        for _ in 0..world.rng.random_range(5..70) {
            world.step();
        }
        if world.rng.random_bool(0.1) {
            world.now += world.rng.random_range(0..500);
        }
        if world.rng.random_bool(0.05) {
            world.copy_backups();
        }
        list(&mut world.holdings);
        world
    }

    /// The backups were copied here, in no order.
    fn copy_backups(&mut self) {
        let (rng, now) = (&mut self.rng, self.now);
        for piece in self.holdings.inventory.backups.iter_mut().flat_map(|backup| &mut backup.listing.pieces) {
            piece.modified = Some(hour(rng.random_range(now / 2..=now)));
        }
    }

    /// Whether the history file of a timeline is there.
    pub(super) fn has_history(&self, of: u32) -> bool {
        let wal = self.holdings.inventory.timelines.get(&timeline(of));
        wal.is_some_and(|wal| matches!(wal.history, History::Known(_)))
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    fn step(&mut self) {
        self.now += [0, 1, 3, 12, 30][self.rng.random_range(0..5)];
        match self.rng.random_range(0..100) {
            0..64 => self.archive(self.live),
            64..70 => self.stream(self.live),
            70..88 => self.back_up(),
            88..93 => self.fork(),
            93..96 => {
                // An old primary goes on.
                let tips: Vec<u32> = self.tips.keys().copied().collect();
                let other = tips[self.rng.random_range(0..tips.len())];
                self.archive(other);
            }
            _ => self.lease(),
        }
    }

    fn modified(&mut self) -> Option<Timestamp> {
        (!self.chance(1) || self.rng.random_range(0..8) > 0).then(|| hour(self.now))
    }

    fn store(&mut self, name: WalName) {
        self.store_key(WalKey::File(name));
    }

    /// Pieces of the segment in which a timeline stands; what lies there already stays.
    fn stream(&mut self, on: u32) {
        let segment = size().name(timeline(on), SegmentNumber(self.tips[&on] / SIZE));
        for piece in 0..self.rng.random_range(1..4) {
            self.store_key(WalKey::Piece(PieceKey { segment, offset: piece * 1000 }));
        }
    }

    fn store_key(&mut self, key: WalKey) {
        let modified = self.modified();
        let wal = HeldWal { key, bytes: 10, modified };
        if !self.holdings.wal.iter().any(|known| known.key == wal.key) {
            self.holdings.wal.push(wal);
        }
    }

    /// The segment in which a timeline stands is finished, and mostly archived.
    fn archive(&mut self, on: u32) {
        let tip = self.tips[&on];
        let segment = size().name(timeline(on), SegmentNumber(tip / SIZE));
        if self.chance(25) {
            self.stream(on);
        }
        if !self.chance(4) {
            self.store(WalName::Segment(segment));
        }
        if self.chance(5) {
            self.store(WalName::Partial(segment));
        }
        let offset = if self.chance(30) { 0 } else { self.rng.random_range(0..SIZE) };
        self.tips.insert(on, (tip / SIZE + 1) * SIZE + offset);
    }

    fn back_up(&mut self) {
        let start = self.tips[&self.live];
        self.next_id += 1;
        let id = BackupId::new(hour(self.now), self.next_id);
        let mut pieces = vec![];
        for part in 1..=self.rng.random_range(0..3) {
            pieces.push(Piece { key: BackupKey::Part(part), bytes: 20, modified: self.modified() });
        }
        let mut mark = None;
        if self.chance(9) {
            pieces.push(Piece { key: BackupKey::Keep, bytes: 1, modified: self.modified() });
            let until = self.chance(50).then(|| hour(self.now + self.rng.random_range(0..400)));
            mark = Some(Mark { until, reason: String::new() });
        }
        for _ in 0..self.rng.random_range(0..3) {
            self.now += self.rng.random_range(0..3);
            self.archive(self.live);
        }
        let stop = (self.tips[&self.live] + self.rng.random_range(1..100)).max(start + 1);
        self.tips.insert(self.live, stop);
        let dead = self.chance(12);
        if self.chance(90) {
            self.archive(self.live);
            let segment = size().name(timeline(self.live), SegmentNumber(start / SIZE));
            self.store(WalName::Backup { segment, offset: (start % SIZE) as u32 });
        }
        let mut state = BackupState::Unfinished;
        if !dead {
            pieces.push(Piece { key: BackupKey::Manifest, bytes: 2, modified: self.modified() });
            let summary = Box::new(summary(id, self.live, Lsn(start), Lsn(stop), hour(self.now)));
            state = match self.rng.random_range(0..400) {
                0 => BackupState::Damaged("it is empty".into(), None),
                // What lacks parts needs its WAL, too.
                1..40 => BackupState::Damaged("parts are missing".into(), Some(summary)),
                _ => BackupState::Whole(summary),
            };
        }
        if !pieces.is_empty() {
            self.holdings.marks.extend(mark.map(|mark| (id, mark)));
            let listing = BackupListing { id, pieces };
            self.holdings.inventory.backups.push(StoredBackup { listing, state });
        }
    }

    /// A promotion, or a restore to an earlier moment.
    fn fork(&mut self) {
        let number = self.tips.keys().last().unwrap() + 1;
        let parent = self.live;
        let begun = self.parents.get(&parent).map_or(SIZE, |(_, switch)| *switch);
        let tip = self.tips[&parent];
        let back = if self.chance(60) { 0 } else { self.rng.random_range(0..=(tip - begun).min(6 * SIZE)) };
        let mut switch = tip - back;
        if self.chance(20) {
            switch = (switch / SIZE * SIZE).max(begun);
        }
        // To a moment before the fork of the timeline that was followed: that one was left before it began.
        if self.chance(20) {
            switch = (begun - self.rng.random_range(0..=begun.min(6 * SIZE))).max(SIZE);
        }
        self.parents.insert(number, (parent, switch));
        self.tips.insert(number, switch);
        self.live = number;
        let mut entries = Vec::new();
        let mut at = number;
        while let Some((parent, switch)) = self.parents.get(&at) {
            entries.push(format!("{parent}\t{}\tx\n", Lsn(*switch)));
            at = *parent;
        }
        entries.reverse();
        if !self.chance(10) {
            let history = HistoryFile::parse(timeline(number), entries.concat().as_bytes()).unwrap();
            let wal = self.holdings.inventory.timelines.entry(timeline(number)).or_default();
            wal.history = History::Known(history);
            self.store(WalName::History(timeline(number)));
        }
    }

    fn lease(&mut self) {
        let count = self.holdings.inventory.backups.len();
        if count == 0 || !self.chance(40) {
            return;
        }
        let backup = &self.holdings.inventory.backups[self.rng.random_range(0..count)];
        let (id, from) = (backup.id(), backup.manifest().map_or(Lsn(5 * SIZE), |summary| summary.start_lsn));
        let generation = Generation(if self.chance(10) { 2 } else { 1 });
        let until = self.chance(50).then_some(Lsn(from.0 + 3 * SIZE));
        let lease = self.rng.random_range(0..50) > 0;
        let lease = lease.then(|| Lease::new(generation, id, from, until, "w".into()));
        self.holdings.leases.push(Held { key: "k".parse().unwrap(), lease, written: Some(hour(self.now)) });
    }

    pub(super) fn policy(&mut self) -> Policy {
        let mut count = |percent, most| self.chance(percent).then(|| self.rng.random_range(0..most));
        let (keep_full, keep_daily, keep_weekly) = (count(50, 5), count(30, 6), count(20, 4));
        let (keep_monthly, keep_within, wal_within) = (count(20, 3), count(30, 300), count(60, 300));
        let hours = |hours: u32| Duration::from_secs(u64::from(hours) * 3600);
        let min_full = self.rng.random_range(0..3);
        Policy {
            keep_full,
            keep_daily,
            keep_weekly,
            keep_monthly,
            keep_within: keep_within.map(hours),
            wal_within: wal_within.map(hours),
            min_full,
            dump_keep_within: None,
        }
    }
}
