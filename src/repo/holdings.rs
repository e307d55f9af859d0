//! What one generation holds, as far as `expire` decides by it: every object of a backup and of WAL, with its time by the store's
//! clock, and the facts that tell what needs what.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;

use super::Repository;
use super::ancestry::Base;
use super::archive::ReadBounds;
use super::backup_id::BackupId;
use super::error::RepoError;
use super::keep::Mark;
use super::layout::{BackupKey, Generation, WalKey};
use super::lease::Held;
use super::manifest::BackupSummary;
use super::wal_object::Expected;
use crate::postgres::{HistoryFile, SegmentSize, TimelineId, WalName};
use crate::storage::ObjectStoreExt;
use crate::storage::object_store::{Listed, Visit};

/// One object of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which.
    pub key: BackupKey,
    /// Its bytes.
    pub bytes: u64,
    /// When it was written; `None`: the store does not say.
    pub modified: Option<Timestamp>,
}

/// What a manifest says that `expire` needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupFacts {
    /// The WAL from its start to its stop.
    pub base: Base,
    /// Of its cluster.
    pub segment_size: SegmentSize,
}

/// A backup: whole, begun or dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBackup {
    /// Its name.
    pub id: BackupId,
    /// Its objects.
    pub pieces: Vec<Piece>,
    /// From its manifest; `None` without one, or where it cannot be understood.
    pub facts: Option<BackupFacts>,
    /// The operator's word that it must stay.
    pub mark: Option<Mark>,
}

impl HeldBackup {
    /// Its manifest's object: without one there is no backup.
    pub fn manifest(&self) -> Option<&Piece> {
        self.pieces.iter().find(|piece| piece.key == BackupKey::Manifest)
    }

    /// The mark of an operator who wants it to stay, if it counts at a time.
    pub fn mark_at(&self, now: Timestamp) -> Option<&Mark> {
        self.mark.as_ref().filter(|mark| mark.holds(now))
    }

    fn has_mark(&self) -> bool {
        self.pieces.iter().any(|piece| piece.key == BackupKey::Keep)
    }

    /// All its bytes.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }
}

/// An object of WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldWal {
    /// Which.
    pub key: WalKey,
    /// Its bytes.
    pub bytes: u64,
    /// When it was written; `None`: the store does not say.
    pub modified: Option<Timestamp>,
}

impl HeldWal {
    /// The file that it holds.
    pub fn name(&self) -> WalName {
        match &self.key {
            WalKey::File(name) => *name,
            WalKey::OtherPartial(segment, _) => WalName::Partial(*segment),
        }
    }
}

/// One generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Which.
    pub generation: Generation,
    /// By name.
    pub backups: Vec<HeldBackup>,
    /// By key.
    pub wal: Vec<HeldWal>,
    /// As far as they can be read.
    pub histories: BTreeMap<TimelineId, HistoryFile>,
    /// The leases of all generations, also those that no longer count.
    pub leases: Vec<Held>,
    /// Objects whose names say nothing: they are left alone.
    pub unknown: Vec<String>,
}

/// Small requests at once.
const PARALLEL: usize = 8;

impl Holdings {
    /// The newest time that the store gave any of these objects.
    pub fn newest(&self) -> Option<Timestamp> {
        let pieces = self.backups.iter().flat_map(|backup| &backup.pieces).map(|piece| piece.modified);
        pieces.chain(self.wal.iter().map(|wal| wal.modified)).flatten().max()
    }

    /// Whether a lease names a backup.
    pub fn is_leased(&self, id: BackupId, now: Timestamp) -> bool {
        let names = |held: &Held| held.lease.as_ref().is_none_or(|lease| lease.backup == id);
        self.leases.iter().any(|held| held.is_valid(now) && names(held))
    }
}

impl Repository {
    /// What a generation holds. Listed in this order, so that the WAL of a backup that is found was listed before: WAL, backups,
    /// leases.
    pub async fn holdings(&self, generation: Generation) -> Result<Holdings, RepoError> {
        let mut holdings = Holdings {
            generation,
            backups: Vec::new(),
            wal: Vec::new(),
            histories: BTreeMap::new(),
            leases: Vec::new(),
            unknown: Vec::new(),
        };
        self.list_wal(&mut holdings).await?;
        self.read_held_histories(&mut holdings).await?;
        self.list_held_backups(&mut holdings).await?;
        holdings.leases = self.all_leases().await?;
        Ok(holdings)
    }

    /// The same WAL with the backups and leases of now.
    pub async fn look_again(&self, earlier: &Holdings) -> Result<Holdings, RepoError> {
        let mut holdings = earlier.clone();
        self.list_held_backups(&mut holdings).await?;
        holdings.leases = self.all_leases().await?;
        Ok(holdings)
    }

    /// Looks again at one backup and at the leases.
    pub async fn look_at(&self, holdings: &mut Holdings, id: BackupId) -> Result<(), RepoError> {
        let mut backup = HeldBackup { id, pieces: Vec::new(), facts: None, mark: None };
        let visit = |listed: &Listed| {
            if let Some((_, _, key)) = self.layout.parse_backup(&listed.name) {
                backup.pieces.push(Piece { key, bytes: listed.size, modified: modified(listed) });
            }
            Visit::More
        };
        self.store.visit_after(&self.layout.backup_prefix(holdings.generation, id), None, 1000, visit).await?;
        let at = holdings.backups.iter().position(|held| held.id == id);
        let known = at.and_then(|at| holdings.backups.remove(at).facts);
        if !backup.pieces.is_empty() {
            let backup = self.read_held(holdings.generation, backup, known).await?;
            holdings.backups.insert(at.unwrap_or(holdings.backups.len()), backup);
        }
        holdings.leases = self.all_leases().await?;
        Ok(())
    }

    async fn list_wal(&self, holdings: &mut Holdings) -> Result<(), RepoError> {
        let prefix = self.layout.wal(holdings.generation);
        let visit = |listed: &Listed| {
            let known = listed.name.parse().ok().and_then(|key| self.layout.parse_wal(&key));
            match known {
                Some((_, key)) => {
                    holdings.wal.push(HeldWal { key, bytes: listed.size, modified: modified(listed) });
                }
                None => holdings.unknown.push(listed.name.clone()),
            }
            Visit::More
        };
        Ok(self.store.visit_after(&prefix, None, 1000, visit).await?)
    }

    /// A history file that is damaged counts as one that nobody knows.
    async fn read_held_histories(&self, holdings: &mut Holdings) -> Result<(), RepoError> {
        let names: Vec<WalName> = holdings.wal.iter().map(HeldWal::name).collect();
        let archive = self.archive(holdings.generation);
        for name in names {
            let WalName::History(timeline) = name else { continue };
            let expected = Expected { name, ident: None, segment_size: None };
            match archive.read(expected, Vec::new(), &ReadBounds::default()).await {
                Ok(Some((_, text))) => {
                    if let Ok(history) = HistoryFile::parse(timeline, &text) {
                        holdings.histories.insert(timeline, history);
                    }
                }
                Ok(None) | Err(RepoError::Damaged { .. }) => {}
                Err(RepoError::Store(error)) if error.is_bad_medium() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn list_held_backups(&self, holdings: &mut Holdings) -> Result<(), RepoError> {
        let generation = holdings.generation;
        let known: BTreeMap<BackupId, BackupFacts> =
            holdings.backups.iter().filter_map(|backup| Some((backup.id, backup.facts?))).collect();
        let mut backups: Vec<HeldBackup> = Vec::new();
        let visit = |listed: &Listed| {
            let Some((_, id, key)) = self.layout.parse_backup(&listed.name) else {
                holdings.unknown.push(listed.name.clone());
                return Visit::More;
            };
            if backups.last().is_none_or(|last| last.id != id) {
                backups.push(HeldBackup { id, pieces: Vec::new(), facts: None, mark: None });
            }
            if let Some(backup) = backups.last_mut() {
                backup.pieces.push(Piece { key, bytes: listed.size, modified: modified(listed) });
            }
            Visit::More
        };
        self.store.visit_after(&self.layout.backups(generation), None, 1000, visit).await?;
        let reading = backups.into_iter().map(|backup| {
            let known = known.get(&backup.id).copied();
            self.read_held(generation, backup, known)
        });
        holdings.backups = stream::iter(reading).buffered(PARALLEL).try_collect().await?;
        Ok(())
    }

    /// What the objects of a backup say, unless that is known.
    async fn read_held(
        &self,
        generation: Generation,
        mut backup: HeldBackup,
        known: Option<BackupFacts>,
    ) -> Result<HeldBackup, RepoError> {
        if backup.manifest().is_some() {
            backup.facts = match known {
                Some(facts) => Some(facts),
                None => self.read_facts(generation, backup.id).await?,
            };
        }
        if backup.has_mark() {
            backup.mark = self.read_mark(generation, backup.id).await?;
        }
        Ok(backup)
    }

    /// `None` for a manifest that this pgark does not understand: nobody knows what such a backup needs.
    async fn read_facts(&self, generation: Generation, id: BackupId) -> Result<Option<BackupFacts>, RepoError> {
        match self.read_summary(generation, id).await {
            Ok(summary) => Ok(summary.as_ref().and_then(facts)),
            Err(RepoError::Damaged { .. }) => Ok(None),
            Err(RepoError::Store(error)) if error.is_bad_medium() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn facts(summary: &BackupSummary) -> Option<BackupFacts> {
    let base = Base { timeline: summary.timeline, start: summary.start_lsn, stop: summary.stop_lsn };
    Some(BackupFacts { base, segment_size: summary.segment_size()? })
}

fn modified(listed: &Listed) -> Option<Timestamp> {
    listed.modified.and_then(|time| time.try_into().ok())
}
