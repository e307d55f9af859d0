//! A small model of `retention` that decides by brute force, and 20 000 random repositories on which both are compared.
//!
//! The model walks back segment by segment, from a moment to the backups before it. It shares no code with what it judges.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::{SignedDuration, Timestamp};

use super::backup_id::BackupId;
use super::holdings::HeldWal;
use super::layout::Generation;
use super::lease::Held;
use super::policy::Policy;
use super::retention::{Doomed, ExpirePlan};
use super::retention_world::{SIZE, World, hour, list, size, timeline};
use super::stored_backups::StoredBackup;
use crate::postgres::{SegmentNumber, WalName};

fn name(place: (u32, u64)) -> WalName {
    WalName::Segment(size().name(timeline(place.0), SegmentNumber(place.1)))
}

type Place = (u32, u64);
/// A whole backup: its timeline, start and stop.
type Whole = (BackupId, u32, u64, u64);

/// The model: what is there, and who descends from whom.
struct Model<'a> {
    world: &'a World,
    window: Timestamp,
    copies: Vec<Whole>,
    /// Segments.
    there: BTreeSet<Place>,
    /// All but history files, and whether one of the place is in the window.
    noted: BTreeMap<Place, bool>,
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
fn is_intact(world: &World, backup: &StoredBackup) -> bool {
    let Some(summary) = backup.summary() else { return false };
    let on = summary.timeline.get();
    (summary.start_lsn.0 / SIZE..=(summary.stop_lsn.0 - 1) / SIZE).all(|number| {
        let from = if on == 1 || world.has_history(on) { provider(world, on, number) } else { on };
        world.holdings.wal.iter().any(|wal| wal.name() == name((from, number)))
    })
}

fn place_of(wal: &HeldWal) -> Option<Place> {
    let segment = wal.name().segment()?;
    Some((segment.timeline.get(), size().number(segment).unwrap().0))
}

impl<'a> Model<'a> {
    fn origin(&self, of: u32) -> Option<Option<(u32, u64)>> {
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
    fn restores(&self, copy: &Whole, to: u32, number: u64, there: &BTreeSet<Place>) -> bool {
        (copy.3 - 1) / SIZE <= number
            && self.is_on_the_way(copy, to)
            && (copy.2 / SIZE..=number).all(|each| there.contains(&(self.provider(to, each), each)))
    }

    /// What a replay from a copy to `last` of a timeline may read.
    fn reads(&self, copy: &Whole, to: u32, last: u64) -> Vec<Place> {
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

    fn in_window(&self, place: Place) -> bool {
        self.noted[&place]
    }

    /// Each timeline with something new, and its first segment number in the window.
    fn live(&self) -> BTreeMap<u32, u64> {
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
    fn anchors(&self, to: u32, first: u64, preferred: &BTreeSet<BackupId>) -> BTreeSet<BackupId> {
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
        anchors
    }
}

/// The backups that the policy wants, counted out one by one.
fn wanted(timed: &[(Timestamp, BackupId)], policy: &Policy, now: Timestamp) -> BTreeSet<BackupId> {
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

/// What the plan is asked about, over all repositories: a test that never sees a thing proves nothing about it.
#[derive(Debug, Default)]
struct Seen {
    deleted_backups: usize,
    deleted_wal: usize,
    remains: usize,
    anchors: usize,
    moments: usize,
    frozen: usize,
    refused: usize,
    lapsed: usize,
    beside_damaged: usize,
}

impl Seen {
    fn add(&mut self, other: &Seen) {
        self.deleted_backups += other.deleted_backups;
        self.deleted_wal += other.deleted_wal;
        self.remains += other.remains;
        self.anchors += other.anchors;
        self.moments += other.moments;
        self.frozen += other.frozen;
        self.refused += other.refused;
        self.lapsed += other.lapsed;
        self.beside_damaged += other.beside_damaged;
    }
}

fn judge(seed: u64, seen: &mut Seen) {
    let mut world = World::random(seed);
    let policy = world.policy();
    let now = hour(world.now + 1);
    let holdings = &world.holdings;
    let plan = ExpirePlan::make(holdings, &policy, now);
    let day = SignedDuration::from_hours(24);
    let gone: BTreeSet<&Doomed> = plan.delete.iter().map(|deletion| &deletion.what).collect();
    assert_eq!(gone.len(), plan.delete.len(), "twice the same");

    // Backups without a manifest.
    let leases: Vec<&Held> = holdings.leases.iter().filter(|held| held.written.unwrap() + day > now).collect();
    let ours = |held: &&&Held| held.lease.as_ref().is_none_or(|lease| lease.generation == Generation::FIRST);
    let leases: Vec<&Held> = leases.iter().filter(ours).copied().collect();
    let is_leased = |id| leases.iter().any(|held| held.lease.as_ref().is_none_or(|lease| lease.backup == id));
    let stays = |id| plan.keep.iter().any(|stay| stay.id == id);
    let marked = |id| match holdings.marks.get(&id) {
        Some(mark) => mark.until.is_none_or(|until| until > now),
        None => false,
    };
    seen.lapsed += holdings.marks.keys().filter(|id| !marked(**id)).count();
    let listings = || holdings.inventory.backups.iter().map(|backup| &backup.listing);
    let mut begun = now;
    for backup in listings().filter(|backup| backup.manifest().is_none()) {
        let young = backup.pieces.iter().any(|piece| piece.modified.is_none_or(|time| time + day >= now));
        if young || is_leased(backup.id) {
            begun = begun.min(backup.pieces.iter().filter_map(|piece| piece.modified).min().unwrap_or(now));
        }
        assert_eq!(stays(backup.id), young || is_leased(backup.id) || marked(backup.id));
        seen.remains += usize::from(!stays(backup.id));
    }

    // Whole ones.
    let has_manifest = |backup: &&StoredBackup| backup.listing.manifest().is_some();
    let whole: Vec<&StoredBackup> = holdings.inventory.backups.iter().filter(has_manifest).collect();
    let time = |backup: &StoredBackup| backup.listing.manifest().unwrap().modified;
    let readable = || whole.iter().filter(|backup| backup.manifest().is_some());
    let timed: Vec<_> = readable().filter_map(|backup| Some((time(backup)?, backup.id()))).collect();
    // What is damaged takes nobody's place.
    let intact = || readable().filter(|backup| is_intact(&world, backup));
    let timed_intact: Vec<_> = intact().filter_map(|backup| Some((time(backup)?, backup.id()))).collect();
    let stopped: Vec<_> = intact().map(|backup| (backup.manifest().unwrap().stopped, backup.id())).collect();
    let newest = [&timed, &timed_intact, &stopped].into_iter().filter_map(|all| all.iter().max());
    let newest: BTreeSet<BackupId> = newest.map(|(_, id)| *id).collect();
    let lasting = |backup: &StoredBackup| {
        let marked = marked(backup.id());
        backup.manifest().is_none() || time(backup).is_none() || marked || newest.contains(&backup.id())
    };
    let mut by_policy = wanted(&timed, &policy, now);
    by_policy.extend(wanted(&timed_intact, &policy, now));
    let only_intact = |id: &&BackupId| !wanted(&timed, &policy, now).contains(id);
    seen.beside_damaged += by_policy.iter().filter(only_intact).count();
    let lasting: BTreeSet<BackupId> =
        whole.iter().filter(|b| lasting(b) || by_policy.contains(&b.id())).map(|b| b.id()).collect();
    let leased = whole.iter().map(|backup| backup.id()).filter(|id| is_leased(*id));
    let kept: BTreeSet<BackupId> = lasting.iter().copied().chain(leased).collect();

    let oldest = readable().filter(|b| lasting.contains(&b.id())).map(|b| time(b).unwrap_or(Timestamp::MIN)).min();
    let wished = match policy.wal_within {
        Some(age) => now - SignedDuration::try_from(age).unwrap(),
        None => oldest.unwrap_or(Timestamp::MIN),
    };
    let present = holdings.wal.iter().filter_map(|wal| wal.modified).max().unwrap_or(now);
    let window = wished.min(present).min(begun - day).min(now - day);
    assert_eq!(plan.window, window);

    let copies = readable().map(|backup| {
        let summary = backup.manifest().unwrap();
        (backup.id(), summary.timeline.get(), summary.start_lsn.0, summary.stop_lsn.0)
    });
    let segments = |all: &BTreeSet<&Doomed>| -> BTreeSet<Place> {
        let left = holdings.wal.iter().filter(|wal| !all.contains(&Doomed::Wal(wal.key.clone())));
        left.filter(|wal| matches!(wal.name(), WalName::Segment(_))).filter_map(place_of).collect()
    };
    let mut noted = BTreeMap::new();
    for wal in &holdings.wal {
        let Some(place) = place_of(wal) else { continue };
        *noted.entry(place).or_insert(false) |= wal.modified.is_none_or(|time| time >= window);
    }
    let model = Model { world: &world, window, copies: copies.collect(), there: segments(&BTreeSet::new()), noted };
    let frozen =
        readable().count() == 0 || readable().count() < whole.len() || leases.iter().any(|held| held.lease.is_none());
    assert_eq!(plan.wal_frozen.is_some(), frozen);

    // What is needed.
    let mut anchors = BTreeSet::new();
    let mut needed: HashSet<Place> = HashSet::new();
    let preferred = if policy.wal_within.is_none() { kept.clone() } else { BTreeSet::new() };
    let copy = |id: BackupId| model.copies.iter().find(|copy| copy.0 == id);
    // A timeline of which nothing is stored is not known.
    let stored = |on: &u32| holdings.inventory.timelines.contains_key(&timeline(*on));
    let known = |on: &u32| stored(on) || model.copies.iter().any(|copy| copy.1 == *on);
    let all: BTreeSet<u32> = world.tips.keys().copied().filter(known).collect();
    for (to, first) in model.live() {
        for anchor in model.anchors(to, first, &preferred) {
            anchors.insert(anchor);
            needed.extend(model.reads(copy(anchor).unwrap(), to, 200));
        }
    }
    let expected: BTreeSet<BackupId> = kept.union(&anchors).copied().collect();
    let found: BTreeSet<BackupId> = whole.iter().map(|backup| backup.id()).filter(|id| stays(*id)).collect();
    assert_eq!(found, expected, "backups that stay");
    seen.anchors += anchors.difference(&kept).count();
    seen.deleted_backups += whole.len() - found.len();
    for copy in expected.iter().filter_map(|id| copy(*id)) {
        let everywhere = newest.contains(&copy.0) || (policy.wal_within.is_none() && kept.contains(&copy.0));
        for to in all.iter().filter(|_| everywhere) {
            needed.extend(model.reads(copy, *to, 200));
        }
        let own = model.reads(copy, copy.1, (copy.3 - 1) / SIZE);
        needed.extend(own);
    }
    for lease in leases.iter().filter_map(|held| held.lease.as_ref()) {
        let last = lease.until.map_or(200, |until| (until.0 - 1) / SIZE);
        needed.extend(all.iter().flat_map(|on| (lease.from.0 / SIZE..=last).map(|number| (*on, number))));
    }

    // Nothing needed goes, nothing superfluous stays.
    for wal in &holdings.wal {
        let goes = gone.contains(&Doomed::Wal(wal.key.clone()));
        let free = |place| !needed.contains(&place) && !model.in_window(place);
        let expected = !frozen && !policy.is_empty() && place_of(wal).is_some_and(free);
        assert_eq!(goes, expected, "{}", wal.name());
        seen.deleted_wal += usize::from(goes);
    }
    seen.frozen += usize::from(frozen);
    seen.refused += usize::from(plan.refused.is_some());

    // And what could be restored can be restored: each moment of the window, and the end of each backup that stays.
    let left = segments(&gone);
    let can = |copy: &Whole, to, number| model.restores(copy, to, number, &left);
    let could = |copy: &Whole, to, number| model.restores(copy, to, number, &model.there);
    for (to, first) in model.live() {
        let moments = model.there.iter().filter(|(on, number)| *on == to && *number >= first);
        for (_, number) in moments.filter(|_| model.origin(to).is_some()) {
            if model.copies.iter().any(|copy| could(copy, to, *number)) {
                let stays = model.copies.iter().any(|copy| found.contains(&copy.0) && can(copy, to, *number));
                assert!(stays, "{} cannot be restored any more", name((to, *number)));
                seen.moments += 1;
            }
        }
    }
    for copy in model.copies.iter().filter(|copy| found.contains(&copy.0)) {
        let last = (copy.3 - 1) / SIZE;
        assert_eq!(could(copy, copy.1, last), can(copy, copy.1, last), "the end of {}", copy.0);
    }
    assert_eq!(plan.still(&plan), plan.delete);
    // A second run with what is left has nothing to do.
    let mut rest = holdings.clone();
    rest.inventory.backups.retain(|backup| stays(backup.id()));
    rest.wal.retain(|wal| !gone.contains(&Doomed::Wal(wal.key.clone())));
    list(&mut rest);
    assert_eq!(ExpirePlan::make(&rest, &policy, now).delete, [], "the second run");
}

#[test]
fn nothing_needed_goes_and_nothing_else_stays() {
    const REPOSITORIES: u64 = 20_000;
    const THREADS: u64 = 4;
    let judge_share = |share: u64| {
        let mut seen = Seen::default();
        for seed in (share..REPOSITORIES).step_by(THREADS as usize) {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| judge(seed, &mut seen)));
            if let Err(panic) = outcome {
                println!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
        seen
    };
    let mut seen = Seen::default();
    std::thread::scope(|scope| {
        let shares: Vec<_> = (0..THREADS).map(|share| scope.spawn(move || judge_share(share))).collect();
        shares.into_iter().for_each(|share| seen.add(&share.join().unwrap()));
    });
    println!("{seen:?}");
    let enough = seen.deleted_backups.min(seen.deleted_wal).min(seen.moments).min(seen.remains) > 5_000;
    assert!(
        enough
            && seen.anchors > 1_000
            && seen.frozen > 1_000
            && seen.refused > 1_000
            && seen.lapsed > 1_000
            && seen.beside_damaged > 1_000,
        "{seen:?}"
    );
}
