//! What `expire` reports: the plan with a reason for each object, and what became of it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;

use super::expire_delete::FailedDeletion;
use super::failure::{Failure, FailureKind};
use super::store_clock::Clock;
use crate::repo::dump_retention::{DoomedDump, DumpPlan, DumpWhy};
use crate::repo::retention::Doomed;
use crate::repo::{BackupId, ExpirePlan, Generation, Holdings, Layout, WalKey};

/// The report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExpireReport {
    /// Version of this report.
    pub schema: u32,
    /// It is only a plan.
    pub dry_run: bool,
    /// The policy wants nothing.
    pub nothing_set: bool,
    /// The time from which ages are counted.
    pub now: Timestamp,
    /// Whose time that is.
    pub clock: Clock,
    /// What the role lacks, and the like.
    pub notes: Vec<String>,
    /// The plans.
    pub generations: Vec<GenerationReport>,
    /// The plan for the logical dumps.
    pub dumps: DumpsReport,
    /// Uploads, or files without a name, that nobody will finish.
    pub unfinished: Vec<String>,
    /// `--force` was given.
    pub forced: bool,
    /// The plan was carried out.
    pub done: bool,
    /// Objects that were deleted.
    pub deleted: usize,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Backups that the plan wanted to delete, and that were marked or in use by then.
    pub spared: Vec<String>,
    /// What could not be deleted.
    pub failed: Vec<FailedDeletion>,
}

/// The plan for a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GenerationReport {
    /// Which.
    pub generation: Generation,
    /// From when on every moment can be restored that could be before.
    pub window: Timestamp,
    /// Backups that stay.
    pub keep: Vec<Kept>,
    /// What goes, in this order.
    pub delete: Vec<Going>,
    /// WAL objects that stay.
    pub wal_kept: usize,
    /// Why no WAL goes at all.
    pub wal_frozen: Option<&'static str>,
    /// Objects with names that say nothing; they stay.
    pub unknown: Vec<String>,
    /// Why it is not carried out without `--force`.
    pub refused: Option<String>,
}

/// The plan for the logical dumps, which belong to no generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DumpsReport {
    /// Dumps that stay.
    pub keep: Vec<KeptDump>,
    /// What goes, in this order: `dump`, or `remains` of one.
    pub delete: Vec<Going>,
    /// Why it is not carried out without `--force`.
    pub refused: Option<String>,
}

/// A dump that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptDump {
    /// Its name.
    pub dump: String,
    /// Why.
    pub reasons: Vec<String>,
}

/// A backup that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Its name.
    pub backup: String,
    /// Why.
    pub reasons: Vec<String>,
}

/// Something that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Going {
    /// `backup`, `remains`, `wal`, `live` or `dump`.
    pub kind: &'static str,
    /// The backup, or the WAL file.
    pub name: String,
    /// How many objects.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The first object: a backup's manifest.
    pub key: String,
    /// Why.
    pub reason: &'static str,
}

/// A report without what stayed.
#[derive(Serialize)]
pub(super) struct InShort<'a> {
    format: &'static str,
    backups: Vec<&'a str>,
    dumps: Vec<&'a str>,
    deleted: usize,
    deleted_bytes: u64,
    failed: usize,
}

impl ExpireReport {
    pub(super) fn new(dry_run: bool) -> Self {
        ExpireReport {
            schema: 1,
            dry_run,
            nothing_set: false,
            now: Timestamp::UNIX_EPOCH,
            clock: Clock::ThisMachine,
            notes: Vec::new(),
            generations: Vec::new(),
            dumps: DumpsReport::default(),
            unfinished: Vec::new(),
            forced: false,
            done: false,
            deleted: 0,
            deleted_bytes: 0,
            spared: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// How many objects the plan wants to delete.
    pub fn objects(&self) -> usize {
        let each = self.generations.iter().flat_map(|generation| &generation.delete).chain(&self.dumps.delete);
        each.map(|going| going.objects).sum::<usize>() + self.unfinished.len()
    }

    /// What keeps this from being a success.
    pub fn failure(&self) -> Option<Failure> {
        if let Some(first) = self.failed.first() {
            let (failed, all) = (self.failed.len(), self.failed.len() + self.deleted);
            let message = format!("{failed} of {all} objects were not deleted; `{}`: {}", first.key, first.reason);
            return Some(
                Failure::new(first.kind, message).with_hint("what is left is tried again by the next `pgark expire`"),
            );
        }
        let refused = self.generations.iter().find_map(|plan| {
            let why = plan.refused.as_ref()?;
            Some(format!("generation {}: {why}, so nothing of it was deleted", plan.generation))
        });
        let dumps = || Some(format!("{}, so no dump was deleted", self.dumps.refused.as_ref()?));
        let message = refused.or_else(dumps).filter(|_| !self.forced && !self.dry_run)?;
        Some(
            Failure::new(FailureKind::Usage, message)
                .with_hint("look at `pgark expire --dry-run`; if that is meant, give `--force`"),
        )
    }

    pub(super) fn in_short(&self) -> InShort<'_> {
        let each = self.generations.iter().filter(|plan| plan.refused.is_none() || self.forced);
        let backups = each.flat_map(|plan| &plan.delete).filter(|going| going.kind != "wal");
        let dumps = self.dumps.delete.iter().filter(|_| self.dumps.refused.is_none() || self.forced);
        InShort {
            format: "pgark-expire-1",
            dumps: dumps.map(|going| going.name.as_str()).collect(),
            backups: backups.map(|going| going.name.as_str()).collect(),
            deleted: self.deleted,
            deleted_bytes: self.deleted_bytes,
            failed: self.failed.len(),
        }
    }
}

impl GenerationReport {
    pub(super) fn of(layout: &Layout, holdings: &Holdings, plan: &ExpirePlan) -> Self {
        let going = |deletion: &crate::repo::retention::Deletion| {
            let keys = deletion.keys(layout, plan.generation);
            let key = keys.first().map(ToString::to_string).unwrap_or_default();
            let (kind, name) = match &deletion.what {
                Doomed::Backup(id, _) => ("backup", id.to_string()),
                Doomed::Remains(id, _) => ("remains", id.to_string()),
                Doomed::Wal(WalKey::Piece(piece)) => ("live", format!("{}/{:08X}", piece.segment, piece.offset)),
                Doomed::Wal(_) => ("wal", file_name(&key)),
            };
            Going { kind, name, objects: keys.len(), bytes: deletion.bytes, key, reason: deletion.reason }
        };
        let kept = |stay: &crate::repo::retention::Stay| Kept {
            backup: stay.id.to_string(),
            reasons: stay.why.iter().map(ToString::to_string).collect(),
        };
        GenerationReport {
            generation: plan.generation,
            window: plan.window,
            keep: plan.keep.iter().map(kept).collect(),
            delete: plan.delete.iter().map(going).collect(),
            wal_kept: plan.wal_kept,
            wal_frozen: plan.wal_frozen,
            unknown: holdings.unknown.clone(),
            refused: plan.refused.clone(),
        }
    }
}

impl DumpsReport {
    pub(super) fn of(layout: &Layout, plan: &DumpPlan) -> Self {
        let going = |doomed: &DoomedDump| Going {
            kind: if doomed.is_dump { "dump" } else { "remains" },
            name: doomed.id.to_string(),
            objects: doomed.pieces.len(),
            bytes: doomed.bytes,
            key: doomed.pieces.first().map(|piece| layout.dump(doomed.id, *piece).to_string()).unwrap_or_default(),
            reason: doomed.reason,
        };
        let kept = |(id, why): &(BackupId, BTreeSet<DumpWhy>)| KeptDump {
            dump: id.to_string(),
            reasons: why.iter().map(ToString::to_string).collect(),
        };
        DumpsReport {
            keep: plan.keep.iter().map(kept).collect(),
            delete: plan.delete.iter().map(going).collect(),
            refused: plan.refused.clone(),
        }
    }
}

/// The last part of a key, without what tells of compression.
fn file_name(key: &str) -> String {
    let name = key.rsplit('/').next().unwrap_or_default();
    name.strip_suffix(".zst").unwrap_or(name).to_owned()
}
