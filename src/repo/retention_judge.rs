//! 20 000 random repositories on which `retention` and its model are compared.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::{SignedDuration, Timestamp};

use super::backup_id::BackupId;
use super::holdings::HeldWal;
use super::layout::{Generation, WalKey};
use super::lease::Held;
use super::retention::{Doomed, ExpirePlan};
use super::retention_model::{Model, Place, Whole, is_intact, name, place_of, wanted};
use super::retention_world::{SIZE, World, hour, list, timeline};
use super::stored_backups::StoredBackup;
use crate::postgres::WalName;

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
    superseded: usize,
    deleted_tails: usize,
    tails: usize,
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
        self.superseded += other.superseded;
        self.deleted_tails += other.deleted_tails;
        self.tails += other.tails;
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
    let is_whole = |place| holdings.wal.iter().any(|wal| wal.name() == name(place));
    let is_superseded = |wal: &&HeldWal| matches!(wal.key, WalKey::Piece(_)) && place_of(wal).is_some_and(is_whole);
    let present =
        holdings.wal.iter().filter(|wal| !is_superseded(wal)).filter_map(|wal| wal.modified).max().unwrap_or(now);
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
    for wal in holdings.wal.iter().filter(|wal| !is_superseded(wal)) {
        let Some(place) = place_of(wal) else { continue };
        *noted.entry(place).or_insert(false) |= wal.modified.is_none_or(|time| time >= window);
    }
    let pieces = holdings.wal.iter().filter(|wal| matches!(wal.key, WalKey::Piece(_)));
    let streamed = pieces.filter_map(place_of).collect();
    let there = segments(&BTreeSet::new());
    let model = Model { world: &world, window, copies: copies.collect(), there, streamed, noted };
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
        let of_no_use = !frozen && !policy.is_empty() && place_of(wal).is_some_and(free);
        // Of a segment that is there whole nobody reads the pieces.
        let is_piece = matches!(wal.key, WalKey::Piece(_));
        let superseded = is_superseded(&wal);
        assert_eq!(goes, of_no_use || superseded, "{:?}", wal.key);
        seen.deleted_wal += usize::from(goes);
        seen.superseded += usize::from(superseded && !of_no_use);
        seen.deleted_tails += usize::from(is_piece && goes && !superseded);
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
    // Also within the segment behind the last whole one, of which there are pieces.
    for wal in holdings.wal.iter().filter(|wal| matches!(wal.key, WalKey::Piece(_))) {
        let Some((to, number)) = place_of(wal).filter(|place| !model.there.contains(place) && model.in_window(*place))
        else {
            continue;
        };
        assert!(!gone.contains(&Doomed::Wal(wal.key.clone())), "{:?}", wal.key);
        let before = number - 1;
        if model.origin(to).is_some() && model.copies.iter().any(|copy| could(copy, to, before)) {
            let stays = model.copies.iter().any(|copy| found.contains(&copy.0) && can(copy, to, before));
            assert!(stays, "the tail of {} cannot be reached any more", name((to, number)));
            seen.tails += 1;
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
            && seen.beside_damaged > 1_000
            && seen.superseded.min(seen.deleted_tails).min(seen.tails) > 1_000,
        "{seen:?}"
    );
}
