//! What may be deleted of a generation, and why the rest stays: policy in, plan out. Pure; `now` is the store's clock.
//!
//! * The newest backup stays, the newest that can be restored, and what the policy, an operator's mark or a lease wants. A manifest
//!   that cannot be read, or an object without a time, is never a reason to delete.
//! * The policy counts twice: all backups, and those that can be restored. What is damaged stays as long as its operator may want to
//!   see it, and takes nobody's place.
//! * *The window* is the time in which every moment that can be restored must stay restorable: `wal_within`, or else from the
//!   oldest backup that stays. It is at least a day, reaches back to a day before a running backup began, and always has the
//!   newest WAL in it. All WAL that was written in it stays.
//! * For each timeline with WAL in the window the newest backup stays that leads to the first such segment without a missing one
//!   between, or else the oldest that leads to a later one; and the WAL from its start on. Backups outside keep the WAL between
//!   their start and stop.
//! * History files stay. Partial segments and backup notes share the fate of the segment of their number.
//! * Pieces of the live tail go when their segment is archived whole. Before, they share its fate, as partial segments do.
//! * Parts without a manifest go when the newest is older than a day. Without a policy nothing else goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use super::backup_id::BackupId;
use super::backups::BackupListing;
use super::holdings::{HeldWal, Holdings};
use super::layout::{BackupKey, Generation, Layout, WalKey};
use super::lease::Held;
use super::needed::{Needed, Ways};
use super::policy::{Policy, Rule, before};
use super::soundness::{is_sound, newest_sound};
use super::stored_backups::StoredBackup;
use crate::postgres::{SegmentName, TimelineId, WalName};
use crate::storage::ObjectKey;

/// Why a backup stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It is the newest, or the newest that can be restored.
    Newest,
    /// A rule of the policy wants it.
    Policy(Rule),
    /// An operator marked it; until then.
    Marked(Option<Timestamp>),
    /// A restore or a backup is at work with it.
    InUse,
    /// Moments of a timeline can be restored from it alone.
    Window(TimelineId),
    /// Its manifest cannot be read.
    Unreadable,
    /// The store does not say when it was written.
    NoTime,
    /// It has no manifest, and may still get one.
    Running,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Newest => f.write_str("newest"),
            Why::Policy(rule) => rule.fmt(f),
            Why::Marked(None) => f.write_str("marked by `keep`"),
            Why::Marked(Some(until)) => write!(f, "marked by `keep` until {until}"),
            Why::InUse => f.write_str("in use"),
            Why::Window(timeline) => write!(f, "the window of timeline {} begins in it", timeline.get()),
            Why::Unreadable => f.write_str("its manifest cannot be read"),
            Why::NoTime => f.write_str("the store names no time"),
            Why::Running => f.write_str("still running, or begun less than a day ago"),
        }
    }
}

/// What is to be deleted at once, in the order of its keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doomed {
    /// A backup: its manifest, and when that is gone, its parts.
    Backup(BackupId, Vec<BackupKey>),
    /// What a dead backup left: parts without a manifest.
    Remains(BackupId, Vec<BackupKey>),
    /// An object of WAL.
    Wal(WalKey),
}

/// A deletion, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// What.
    pub what: Doomed,
    /// Its bytes.
    pub bytes: u64,
    /// Why.
    pub reason: &'static str,
}

/// A backup that stays, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stay {
    /// Which.
    pub id: BackupId,
    /// All reasons.
    pub why: BTreeSet<Why>,
}

/// What `expire` would do with a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpirePlan {
    /// Which.
    pub generation: Generation,
    /// In the order of deleting: backups, the oldest first; remains; WAL, the oldest first.
    pub delete: Vec<Deletion>,
    /// Backups that stay.
    pub keep: Vec<Stay>,
    /// Where the window begins.
    pub window: Timestamp,
    /// WAL objects that stay.
    pub wal_kept: usize,
    /// Why no WAL is deleted at all.
    pub wal_frozen: Option<&'static str>,
    /// Why it should not be carried out without `--force`.
    pub refused: Option<String>,
}

/// Parts without a manifest that are older belong to a dead backup; younger WAL stays anyhow.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

const NOT_WANTED: &str = "the policy does not want it";
const DEAD: &str = "parts without a manifest, older than a day";
const SUPERSEDED: &str = "the whole segment is archived";
const NOT_NEEDED: &str = "no backup that stays needs it, and it is older than the window";

impl Doomed {
    /// The backup that it is, if it is one.
    pub fn backup(&self) -> Option<BackupId> {
        match self {
            Doomed::Backup(id, _) => Some(*id),
            Doomed::Remains(..) | Doomed::Wal(_) => None,
        }
    }
}

impl Deletion {
    /// The keys, in the order of deleting.
    pub fn keys(&self, layout: &Layout, generation: Generation) -> Vec<ObjectKey> {
        match &self.what {
            Doomed::Backup(id, pieces) | Doomed::Remains(id, pieces) => {
                pieces.iter().map(|piece| layout.backup(generation, *id, *piece)).collect()
            }
            Doomed::Wal(key) => vec![layout.wal_key(generation, key)],
        }
    }
}

impl ExpirePlan {
    /// What the policy makes of a generation.
    pub fn make(holdings: &Holdings, policy: &Policy, now: Timestamp) -> Self {
        let leases: Vec<&Held> = (holdings.leases.iter())
            .filter(|held| held.is_valid(now))
            .filter(|held| held.lease.as_ref().is_none_or(|lease| lease.generation == holdings.generation()))
            .collect();
        let mut keep = whole(holdings, &leases, policy, now);
        let (unfinished, begun) = unfinished(holdings, &leases, now);
        let wished = match policy.wal_within {
            Some(age) => before(now, age),
            None => oldest(holdings, &keep),
        };
        let superseded = superseded(holdings);
        let counts = |wal: &HeldWal| !superseded.contains(&wal.key);
        let present = holdings.wal.iter().filter(|wal| counts(wal)).filter_map(|wal| wal.modified).max().unwrap_or(now);
        let window = wished.min(present).min(before(begun.min(now), GRACE));
        let ways = Ways::of(holdings, counts);
        let frozen = ways.as_ref().err().copied().or_else(|| frozen(holdings, &leases));
        let mut unneeded = Vec::new();
        match &ways {
            Ok(ways) => {
                let needed = needed(ways, &mut keep, &leases, window, policy.wal_within.is_none());
                unneeded = ways.not_needed(&needed, window);
            }
            // What moments of the window need cannot be told either.
            Err(_) => {
                all_whole(holdings).for_each(|backup| keep.entry(backup.id()).or_default().extend([Why::Unreadable]))
            }
        }
        if frozen.is_some() || policy.is_empty() {
            unneeded.clear();
        }
        keep.extend(unfinished);
        let mut backups: Vec<&BackupListing> =
            listings(holdings).filter(|backup| !keep.contains_key(&backup.id)).collect();
        backups.sort_by_key(|backup| (backup.manifest().is_none(), written(backup), backup.id));
        let mut delete: Vec<Deletion> = backups.into_iter().map(delete_backup).collect();
        delete.extend(unneeded.iter().map(|wal| Deletion {
            what: Doomed::Wal(wal.key.clone()),
            bytes: wal.bytes,
            reason: NOT_NEEDED,
        }));
        let going = holdings.wal.iter().filter(|wal| superseded.contains(&wal.key));
        delete.extend(going.map(|wal| Deletion {
            what: Doomed::Wal(wal.key.clone()),
            bytes: wal.bytes,
            reason: SUPERSEDED,
        }));
        ExpirePlan {
            generation: holdings.generation(),
            refused: too_much(holdings, &delete),
            delete,
            keep: keep.into_iter().map(|(id, why)| Stay { id, why }).collect(),
            window,
            wal_kept: holdings.wal.len() - unneeded.len() - superseded.len(),
            wal_frozen: frozen,
        }
    }

    /// What of this plan stands in a later one, too: what was found meanwhile may need the rest.
    pub fn still(&self, later: &ExpirePlan) -> Vec<Deletion> {
        let there: BTreeSet<&Doomed> = later.delete.iter().map(|deletion| &deletion.what).collect();
        self.delete.iter().filter(|deletion| there.contains(&deletion.what)).cloned().collect()
    }
}

/// Pieces of segments that are there whole. They go, and say nothing about what is needed.
fn superseded(holdings: &Holdings) -> BTreeSet<&WalKey> {
    let whole: BTreeSet<SegmentName> = (holdings.wal.iter())
        .filter_map(|wal| match &wal.key {
            WalKey::File(WalName::Segment(segment)) => Some(*segment),
            _ => None,
        })
        .collect();
    let is_superseded = |key: &&WalKey| matches!(key, WalKey::Piece(piece) if whole.contains(&piece.segment));
    holdings.wal.iter().map(|wal| &wal.key).filter(is_superseded).collect()
}

type Stays = BTreeMap<BackupId, BTreeSet<Why>>;

/// The whole backups that stay for their own sake.
fn whole(holdings: &Holdings, leases: &[&Held], policy: &Policy, now: Timestamp) -> Stays {
    let mut stays = Stays::new();
    let mut stay = |id, why| stays.entry(id).or_default().extend([why]);
    let mut timed: Vec<(Timestamp, BackupId, bool)> = Vec::new();
    for backup in all_whole(holdings) {
        match (backup.manifest(), written(&backup.listing)) {
            (None, _) => stay(backup.id(), Why::Unreadable),
            (Some(_), None) => stay(backup.id(), Why::NoTime),
            (Some(_), Some(time)) => timed.push((time, backup.id(), is_sound(&holdings.inventory, backup))),
        }
        if let Some(mark) = holdings.mark_at(backup.id(), now) {
            stay(backup.id(), Why::Marked(mark.until));
        }
        if is_leased(leases, backup.id()) {
            stay(backup.id(), Why::InUse);
        }
    }
    timed.sort_unstable_by(|a, b| b.cmp(a));
    for only_sound in [false, true] {
        let counted: Vec<_> = timed.iter().filter(|(.., sound)| *sound || !only_sound).collect();
        let times: Vec<Timestamp> = counted.iter().map(|(time, ..)| *time).collect();
        for ((_, id, _), rules) in counted.iter().zip(policy.wanted(&times, now)) {
            rules.into_iter().for_each(|rule| stay(*id, Why::Policy(rule)));
        }
    }
    let newest = timed.first().map(|(_, newest, _)| *newest);
    newest.into_iter().chain(newest_sound(&holdings.inventory)).for_each(|newest| stay(newest, Why::Newest));
    stays
}

fn listings(holdings: &Holdings) -> impl Iterator<Item = &BackupListing> {
    holdings.inventory.backups.iter().map(|backup| &backup.listing)
}

/// Those with a manifest, also what lacks parts: its operator shall see it.
fn all_whole(holdings: &Holdings) -> impl Iterator<Item = &StoredBackup> {
    holdings.inventory.backups.iter().filter(|backup| backup.listing.manifest().is_some())
}

/// Why nobody knows all that is needed.
fn frozen(holdings: &Holdings, leases: &[&Held]) -> Option<&'static str> {
    if leases.iter().any(|held| held.lease.is_none()) {
        return Some("there is a lease that cannot be read");
    }
    let unreadable = all_whole(holdings).any(|backup| backup.manifest().is_none());
    unreadable.then_some("a manifest cannot be read: nobody knows which WAL that backup needs")
}

fn is_leased(leases: &[&Held], id: BackupId) -> bool {
    leases.iter().any(|held| held.lease.as_ref().is_none_or(|lease| lease.backup == id))
}

/// Backups without a manifest that stay, and when the first of those at work began.
fn unfinished(holdings: &Holdings, leases: &[&Held], now: Timestamp) -> (Stays, Timestamp) {
    let mut stays = Stays::new();
    let mut begun = now;
    let young = before(now, GRACE);
    for backup in listings(holdings).filter(|backup| backup.manifest().is_none()) {
        let times = || backup.pieces.iter().map(|piece| piece.modified);
        let mut why = BTreeSet::new();
        if times().any(|time| time.is_none_or(|time| time >= young)) {
            why.insert(Why::Running);
        }
        if is_leased(leases, backup.id) {
            why.insert(Why::InUse);
        }
        if !why.is_empty() {
            begun = begun.min(times().flatten().min().unwrap_or(now));
        }
        // Without its manifest a copy can still be unpacked by hand.
        if let Some(mark) = holdings.mark_at(backup.id, now) {
            why.insert(Why::Marked(mark.until));
        }
        if !why.is_empty() {
            stays.insert(backup.id, why);
        }
    }
    (stays, begun)
}

/// When the oldest backup that is wanted for long was written.
fn oldest(holdings: &Holdings, stays: &Stays) -> Timestamp {
    let wanted = |backup: &&StoredBackup| {
        stays.get(&backup.id()).is_some_and(|why| why.iter().any(|why| *why != Why::InUse))
            && backup.manifest().is_some()
    };
    let times = all_whole(holdings).filter(wanted).map(|backup| written(&backup.listing).unwrap_or(Timestamp::MIN));
    times.min().unwrap_or(Timestamp::MIN)
}

/// The WAL that must stay. The backups without which moments of the window would be lost join those that stay.
fn needed(ways: &Ways<'_>, stays: &mut Stays, leases: &[&Held], window: Timestamp, all_ways: bool) -> Needed {
    let mut needed = Needed::default();
    let wanted: BTreeSet<BackupId> = stays.keys().copied().collect();
    // With a window of its own a backup that is older than need be would hold more WAL than wished for.
    let preferred = if all_ways { wanted.clone() } else { BTreeSet::new() };
    for (timeline, first) in ways.live(window) {
        for anchor in ways.anchors(timeline, first, &preferred) {
            stays.entry(anchor).or_default().insert(Why::Window(timeline));
            needed.add(ways.way_from(anchor, timeline));
        }
    }
    for (id, why) in stays.iter() {
        if why.contains(&Why::Newest) || (all_ways && wanted.contains(id)) {
            needed.add(ways.all_ways_from(*id));
        }
        needed.add(ways.own_of(*id));
    }
    leases.iter().filter_map(|held| held.lease.as_ref()).for_each(|lease| needed.add(ways.leased(lease)));
    needed.join();
    needed
}

/// When a backup was finished, or the last of its pieces was written.
fn written(backup: &BackupListing) -> Option<Timestamp> {
    match backup.manifest() {
        Some(manifest) => manifest.modified,
        None => backup.pieces.iter().filter_map(|piece| piece.modified).max(),
    }
}

fn delete_backup(backup: &BackupListing) -> Deletion {
    let mut pieces: Vec<BackupKey> = backup.pieces.iter().map(|piece| piece.key).collect();
    // The manifest is the least.
    pieces.sort_unstable();
    let bytes = backup.stored_bytes();
    match backup.manifest() {
        Some(_) => Deletion { what: Doomed::Backup(backup.id, pieces), bytes, reason: NOT_WANTED },
        None => Deletion { what: Doomed::Remains(backup.id, pieces), bytes, reason: DEAD },
    }
}

/// A clock that jumped, or a policy that was mistyped, would delete much at once. What dead backups left is worth nothing and
/// does not count.
fn too_much(holdings: &Holdings, delete: &[Deletion]) -> Option<String> {
    let nobody_misses = |it: &&Deletion| it.reason == SUPERSEDED || matches!(it.what, Doomed::Remains(..));
    let counted = delete.iter().filter(|deletion| !nobody_misses(deletion));
    let backups = delete.iter().filter(|deletion| matches!(deletion.what, Doomed::Backup(..))).count();
    let (bytes, all) = (counted.map(|deletion| deletion.bytes).sum::<u64>(), all_whole(holdings).count());
    let all_bytes = all_whole(holdings).map(|backup| backup.listing.stored_bytes()).sum::<u64>()
        + holdings.wal.iter().map(|wal| wal.bytes).sum::<u64>();
    if backups * 2 > all {
        return Some(format!("{backups} of {all} backups would go at once"));
    }
    let percent = bytes as f64 * 100.0 / all_bytes.max(1) as f64;
    (bytes as f64 * 2.0 > all_bytes as f64).then(|| format!("{percent:.0} % of all bytes would go at once"))
}
