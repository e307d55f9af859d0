//! What may be deleted of the logical dumps, and why the rest stays: policy in, plan out. Pure; `now` is the store's clock.
//!
//! * The newest whole dump stays, and of each database, and of the globals, the newest whole dump that has it: a dump of one database
//!   takes nobody's place but its own.
//! * Younger ones than the policy says stay, and what an operator marked. Without a policy every dump stays.
//! * A manifest that cannot be read, or an object without a time, is never a reason to delete.
//! * Parts without a manifest go when the newest is older than a day, also without a policy.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use super::Repository;
use super::backup_id::BackupId;
use super::dumps::{DumpState, StoredDump};
use super::error::RepoError;
use super::keep::Mark;
use super::layout::DumpKey;
use super::policy::before;
use super::retention::GRACE;

/// Dumps, and the marks of those that are marked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldDumps {
    /// All, the oldest name first.
    pub dumps: Vec<StoredDump>,
    /// What operators said.
    pub marks: BTreeMap<BackupId, Mark>,
}

/// Why a dump stays.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DumpWhy {
    /// It is the newest that can be restored.
    Newest,
    /// It is the newest that can be restored and has this database.
    HasDatabase(String),
    /// It is the newest that can be restored and has globals.
    HasGlobals,
    /// `dump_keep_within`
    Within,
    /// No policy says which dumps are to go.
    NoPolicy,
    /// An operator marked it; until then.
    Marked(Option<Timestamp>),
    /// Its manifest cannot be read.
    Unreadable,
    /// The store does not say when it was written.
    NoTime,
    /// It has no manifest, and may still get one.
    Running,
}

impl fmt::Display for DumpWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DumpWhy::Newest => f.write_str("newest"),
            DumpWhy::HasDatabase(name) => write!(f, "the newest with database `{name}`"),
            DumpWhy::HasGlobals => f.write_str("the newest with globals"),
            DumpWhy::Within => f.write_str("dump_keep_within"),
            DumpWhy::NoPolicy => f.write_str("no `dump_keep_within` is set"),
            DumpWhy::Marked(None) => f.write_str("marked by `keep`"),
            DumpWhy::Marked(Some(until)) => write!(f, "marked by `keep` until {until}"),
            DumpWhy::Unreadable => f.write_str("its manifest cannot be read"),
            DumpWhy::NoTime => f.write_str("the store names no time"),
            DumpWhy::Running => f.write_str("still running, or begun less than a day ago"),
        }
    }
}

/// A dump, or what is left of one, that is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoomedDump {
    /// Which.
    pub id: BackupId,
    /// Whether it has a manifest.
    pub is_dump: bool,
    /// Its objects, in the order of deleting: the manifest first.
    pub pieces: Vec<DumpKey>,
    /// Their bytes.
    pub bytes: u64,
    /// Why.
    pub reason: &'static str,
}

/// What `expire` would do with the dumps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DumpPlan {
    /// What goes: the oldest first.
    pub delete: Vec<DoomedDump>,
    /// What stays, and why.
    pub keep: Vec<(BackupId, BTreeSet<DumpWhy>)>,
    /// Why it should not be carried out without `--force`.
    pub refused: Option<String>,
}

const NOT_WANTED: &str = "older than `dump_keep_within`";
const DEAD: &str = "parts without a manifest, older than a day";

impl HeldDumps {
    /// The newest time that the store gave any of their objects.
    pub fn newest(&self) -> Option<Timestamp> {
        self.dumps.iter().flat_map(|dump| &dump.listing.pieces).filter_map(|piece| piece.modified).max()
    }

    /// The mark of a dump that counts at a time.
    pub fn mark_at(&self, id: BackupId, now: Timestamp) -> Option<&Mark> {
        self.marks.get(&id).filter(|mark| mark.holds(now))
    }
}

impl Repository {
    /// All dumps, with what operators said about them.
    pub async fn held_dumps(&self) -> Result<HeldDumps, RepoError> {
        let mut held = HeldDumps { dumps: self.stored_dumps().await?, marks: BTreeMap::new() };
        for dump in held.dumps.iter().filter(|dump| dump.listing.has_mark()) {
            // One that was taken away since does not count.
            if let Some(mark) = self.read_dump_mark(dump.id()).await? {
                held.marks.insert(dump.id(), mark);
            }
        }
        Ok(held)
    }
}

/// When a dump was written: its manifest, or the newest of what is there.
fn written(dump: &StoredDump) -> Option<Timestamp> {
    match dump.listing.manifest() {
        Some(manifest) => manifest.modified,
        None => {
            let times: Option<Vec<Timestamp>> = dump.listing.pieces.iter().map(|piece| piece.modified).collect();
            times?.into_iter().max()
        }
    }
}

impl DumpPlan {
    /// What the policy makes of the dumps.
    pub fn make(held: &HeldDumps, within: Option<Duration>, now: Timestamp) -> Self {
        let mut keep: BTreeMap<BackupId, BTreeSet<DumpWhy>> = BTreeMap::new();
        let mut stay = |dump: &StoredDump, why| {
            keep.entry(dump.id()).or_default().insert(why);
        };
        let mut whole: Vec<&StoredDump> = held.dumps.iter().filter(|dump| dump.summary().is_some()).collect();
        whole.sort_by_key(|dump| (written(dump), dump.id()));
        // Nobody knows what a partial one left out: it stands for others only where there is nothing else.
        let partial = |dump: &&StoredDump| dump.summary().is_some_and(|summary| summary.partial);
        let (parts, wholes): (Vec<&StoredDump>, Vec<&StoredDump>) = whole.into_iter().partition(partial);
        let whole: Vec<&StoredDump> = parts.into_iter().chain(wholes).collect();
        if let Some(newest) = whole.last() {
            stay(newest, DumpWhy::Newest);
        }
        let mut seen: BTreeSet<DumpWhy> = BTreeSet::new();
        for dump in whole.iter().rev() {
            let Some(summary) = dump.summary() else { continue };
            let globals = summary.globals.then_some(DumpWhy::HasGlobals);
            let has = summary.databases.iter().cloned().map(DumpWhy::HasDatabase).chain(globals);
            has.filter(|why| seen.insert(why.clone())).for_each(|why| stay(dump, why));
        }
        for dump in &held.dumps {
            if let Some(mark) = held.mark_at(dump.id(), now) {
                stay(dump, DumpWhy::Marked(mark.until));
            }
            let Some(written) = written(dump) else {
                stay(dump, DumpWhy::NoTime);
                continue;
            };
            match (&dump.state, within) {
                (DumpState::Unfinished, _) if written < before(now, GRACE) => {}
                (DumpState::Unfinished, _) => stay(dump, DumpWhy::Running),
                (DumpState::Damaged(_, None), _) => stay(dump, DumpWhy::Unreadable),
                (_, None) => stay(dump, DumpWhy::NoPolicy),
                (_, Some(age)) if written >= before(now, age) => stay(dump, DumpWhy::Within),
                (_, Some(_)) => {}
            }
        }
        let mut going: Vec<&StoredDump> = held.dumps.iter().filter(|dump| !keep.contains_key(&dump.id())).collect();
        going.sort_by_key(|dump| (dump.listing.manifest().is_none(), written(dump), dump.id()));
        let delete: Vec<DoomedDump> = going.into_iter().map(doomed).collect();
        let lost = delete.iter().filter(|doomed| whole.iter().any(|dump| dump.id() == doomed.id)).count();
        let all = whole.len();
        DumpPlan {
            refused: (lost * 2 > all).then(|| format!("{lost} of {all} dumps would go at once")),
            delete,
            keep: keep.into_iter().collect(),
        }
    }
}

fn doomed(dump: &StoredDump) -> DoomedDump {
    let mut pieces: Vec<DumpKey> = dump.listing.pieces.iter().map(|piece| piece.key).collect();
    pieces.sort_unstable_by_key(|piece| (*piece != DumpKey::Manifest, *piece));
    let is_dump = dump.listing.manifest().is_some();
    let reason = if is_dump { NOT_WANTED } else { DEAD };
    DoomedDump { id: dump.id(), is_dump, pieces, bytes: dump.listing.stored_bytes(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::dump_manifest::{DumpSummary, FORMAT};
    use crate::repo::dumps::{DumpListing, DumpPiece};
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn now() -> Timestamp {
        "2026-11-23T00:00:00Z".parse().unwrap()
    }

    fn id(number: u32) -> BackupId {
        format!("20261122T231805Z-{number:08x}").parse().unwrap()
    }

    fn summary(number: u32, databases: &[&str], globals: bool) -> DumpSummary {
        DumpSummary {
            format: FORMAT.to_owned(),
            id: id(number),
            system_identifier: crate::postgres::SystemId(7),
            postgres_major: 15.try_into().unwrap(),
            program: String::new(),
            label: String::new(),
            from_standby: false,
            partial: false,
            started: now(),
            stopped: now(),
            databases: databases.iter().map(|name| (*name).to_owned()).collect(),
            globals,
            files: 1,
            parts: 1,
            plain_bytes: 1,
            stored_bytes: 1,
            writer: String::new(),
        }
    }

    fn dump(number: u32, days: u64, state: DumpState) -> StoredDump {
        let modified = Some(before(now(), DAY * days as u32));
        let mut keys = vec![DumpKey::Part { file: 1, part: 1 }];
        keys.extend((state != DumpState::Unfinished).then_some(DumpKey::Manifest));
        let pieces = keys.into_iter().map(|key| DumpPiece { key, bytes: 1, modified }).collect();
        StoredDump { listing: DumpListing { id: id(number), pieces }, state }
    }

    fn whole(number: u32, days: u64, databases: &[&str]) -> StoredDump {
        dump(number, days, DumpState::Whole(Box::new(summary(number, databases, false))))
    }

    fn gone(dumps: Vec<StoredDump>, within: Option<Duration>) -> Vec<u32> {
        let held = HeldDumps { dumps, marks: BTreeMap::new() };
        let plan = DumpPlan::make(&held, within, now());
        (1..9).filter(|number| plan.delete.iter().any(|doomed| doomed.id == id(*number))).collect()
    }

    #[test]
    fn old_ones_go_and_the_newest_stays() {
        let days = |days: &[u64]| -> Vec<StoredDump> {
            days.iter().zip(1..).map(|(days, number)| whole(number, *days, &["a"])).collect()
        };
        assert_eq!(gone(days(&[40, 31, 29, 1]), Some(DAY * 30)), [1, 2]);
        assert_eq!(gone(days(&[40, 31]), Some(DAY * 30)), [1]);
        assert_eq!(gone(days(&[40]), Some(DAY)), [] as [u32; 0]);
        assert_eq!(gone(days(&[400, 40]), None), [] as [u32; 0]);
    }

    #[test]
    fn a_dump_of_one_database_takes_no_other_ones_place() {
        let dumps = vec![
            whole(1, 50, &["a", "b"]),
            whole(2, 40, &["a", "b"]),
            whole(3, 39, &["a"]),
            whole(4, 38, &["a"]),
            dump(5, 60, DumpState::Whole(Box::new(summary(5, &[], true)))),
        ];
        assert_eq!(gone(dumps, Some(DAY * 30)), [1, 3]);
    }

    #[test]
    fn what_is_not_whole_takes_nobodys_place() {
        let damaged = |number, days, summary| dump(number, days, DumpState::Damaged("why".into(), summary));
        let dumps = vec![
            whole(1, 50, &["a"]),
            damaged(2, 40, Some(Box::new(summary(2, &["a"], false)))),
            damaged(3, 40, None),
            dump(4, 2, DumpState::Unfinished),
            dump(5, 0, DumpState::Unfinished),
            damaged(6, 2, Some(Box::new(summary(6, &["a"], false)))),
        ];
        assert_eq!(gone(dumps.clone(), Some(DAY * 30)), [2, 4]);
        assert_eq!(gone(dumps, None), [4]);
    }

    #[test]
    fn marks_hold_until_their_time_and_manifests_go_first() {
        let held = |until: Option<Timestamp>| HeldDumps {
            dumps: vec![whole(1, 50, &["a"]), whole(2, 1, &["a"])],
            marks: BTreeMap::from([(id(1), Mark { until, reason: String::new() })]),
        };
        assert!(DumpPlan::make(&held(None), Some(DAY), now()).delete.is_empty());
        assert!(DumpPlan::make(&held(Some(before(now(), DAY))), Some(DAY * 9), now()).refused.is_none());
        let plan = DumpPlan::make(&held(Some(now())), Some(DAY * 9), now());
        assert_eq!(plan.delete[0].pieces[0], DumpKey::Manifest);
    }

    proptest! {
        /// Whatever is there: of each database that can be restored one dump can be restored after it, and more than half never goes.
        #[test]
        fn nothing_that_can_be_restored_is_lost(
            drawn in prop::collection::vec((0u64..60, 0u8..4, 0u8..3), 0..8), within in 0u32..50,
        ) {
            let dumps: Vec<StoredDump> = drawn.iter().zip(1..).map(|((days, has, state), number)| {
                let names: &[&str] = [&["a"][..], &["b"], &["a", "b"], &[]][usize::from(*has)];
                let summary = Box::new(summary(number, names, *has == 3));
                let state = match state {
                    0 => DumpState::Whole(summary),
                    1 => DumpState::Damaged("why".into(), Some(summary)),
                    _ => DumpState::Unfinished,
                };
                dump(number, *days, state)
            }).collect();
            let held = HeldDumps { dumps: dumps.clone(), marks: BTreeMap::new() };
            let plan = DumpPlan::make(&held, Some(DAY * within), now());
            let left: Vec<&StoredDump> =
                dumps.iter().filter(|dump| plan.delete.iter().all(|doomed| doomed.id != dump.id())).collect();
            for name in ["a", "b"] {
                let has = |dump: &&StoredDump| {
                    dump.summary().is_some_and(|summary| summary.databases.iter().any(|database| database == name))
                };
                prop_assert_eq!(dumps.iter().any(|dump| has(&dump)), left.iter().any(has));
            }
            prop_assert_eq!(plan.keep.len() + plan.delete.len(), dumps.len());
            // Nothing young goes.
            for doomed in &plan.delete {
                let (days, _, state) = &drawn[dumps.iter().position(|dump| dump.id() == doomed.id).unwrap()];
                prop_assert!(*days > 0 && (*state == 2 || *days > u64::from(within)));
            }
        }
    }
}
