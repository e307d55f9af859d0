//! The logical dumps of a cluster: what a listing says, and the manifests, written last and read first.
//!
//! Dumps belong to no generation: one of an old major version restores into a newer one. One that lacks a part is damaged, whatever
//! its manifest says.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;

use super::Repository;
use super::backup_id::BackupId;
use super::dump_manifest::{DumpManifest, DumpSummary};
use super::error::RepoError;
use super::layout::DumpKey;
use super::manifest_lines::{LARGEST_MANIFEST, SUMMARY_READ, decode_summary};
use crate::storage::object_store::Visit;
use crate::storage::{Get, KeyPrefix, Listed, ObjectStoreExt, Put, UserMetadata};

/// A dump, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDump {
    /// What the listing says.
    pub listing: DumpListing,
    /// What its manifest says.
    pub state: DumpState,
}

/// Whether a dump exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DumpState {
    /// It does.
    Whole(Box<DumpSummary>),
    /// It cannot be restored: why, and what its manifest says, if that can be read.
    Damaged(String, Option<Box<DumpSummary>>),
    /// It has no manifest: still being taken, or never finished.
    Unfinished,
}

/// What a listing says about one dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpListing {
    /// Its name.
    pub id: BackupId,
    /// Its objects; at least one.
    pub pieces: Vec<DumpPiece>,
}

/// One object of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpPiece {
    /// Which.
    pub key: DumpKey,
    /// Its bytes.
    pub bytes: u64,
    /// When it was written, by the store's clock; `None`: the store does not say.
    pub modified: Option<Timestamp>,
}

/// Small reads at once.
const READS: usize = 8;
const PAGE: usize = 1000;

impl DumpListing {
    /// Its manifest's object: without one there is no dump, just parts.
    pub fn manifest(&self) -> Option<&DumpPiece> {
        self.pieces.iter().find(|piece| piece.key == DumpKey::Manifest)
    }

    /// Whether an operator marked it. What the mark says is not read yet.
    pub fn has_mark(&self) -> bool {
        self.pieces.iter().any(|piece| piece.key == DumpKey::Keep)
    }

    /// The bytes of all its objects.
    pub fn stored_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }

    /// How many parts there are, and their bytes.
    pub fn parts(&self) -> (u64, u64) {
        let parts = self.pieces.iter().filter(|piece| matches!(piece.key, DumpKey::Part { .. }));
        parts.fold((0, 0), |(count, bytes), part| (count + 1, bytes + part.bytes))
    }
}

impl StoredDump {
    /// Its name.
    pub fn id(&self) -> BackupId {
        self.listing.id
    }

    /// The summary of a dump that exists.
    pub fn summary(&self) -> Option<&DumpSummary> {
        match &self.state {
            DumpState::Whole(summary) => Some(summary),
            _ => None,
        }
    }
}

impl Repository {
    /// All dumps, whole or not, oldest name first.
    pub async fn stored_dumps(&self) -> Result<Vec<StoredDump>, RepoError> {
        self.stored_dumps_below(&self.layout.dumps()).await
    }

    /// One dump; `None` if nothing of it is there.
    pub async fn stored_dump(&self, id: BackupId) -> Result<Option<StoredDump>, RepoError> {
        Ok(self.stored_dumps_below(&self.layout.dump_prefix(id)).await?.pop())
    }

    async fn stored_dumps_below(&self, prefix: &KeyPrefix) -> Result<Vec<StoredDump>, RepoError> {
        let mut found: Vec<DumpListing> = Vec::new();
        let visit = |listed: &Listed| {
            if let Some((id, key)) = self.layout.parse_dump(&listed.name) {
                let piece = DumpPiece { key, bytes: listed.size, modified: listed.written() };
                match found.last_mut() {
                    Some(dump) if dump.id == id => dump.pieces.push(piece),
                    _ => found.push(DumpListing { id, pieces: vec![piece] }),
                }
            }
            Visit::More
        };
        self.store.visit_after(prefix, None, PAGE, visit).await?;
        let mut reads = stream::iter(found)
            .map(|listing| async move { (self.dump_state(&listing).await, listing) })
            .buffered(READS);
        let mut dumps = Vec::new();
        let (mut refused, mut sees) = (None, false);
        while let Some((state, listing)) = reads.next().await {
            let state = match state {
                Err(error) if error.is_of_one_object() => {
                    let why = format!("it cannot be read: {error}");
                    refused.get_or_insert(error);
                    DumpState::Damaged(why, None)
                }
                state => {
                    sees |= listing.manifest().is_some();
                    state?
                }
            };
            dumps.push(StoredDump { listing, state });
        }
        // Whoever may read none of them lacks a right: that is no damage.
        match refused {
            Some(refused) if !sees => Err(refused),
            _ => {
                // Names are of whole seconds.
                dumps.sort_by_key(|dump| (dump.id().begun(), dump.summary().map(|summary| summary.started), dump.id()));
                Ok(dumps)
            }
        }
    }

    async fn dump_state(&self, listing: &DumpListing) -> Result<DumpState, RepoError> {
        if listing.manifest().is_none() {
            return Ok(DumpState::Unfinished);
        }
        let summary = match self.read_dump_summary(listing.id).await {
            Ok(Some(summary)) => summary,
            // Deleted since it was listed.
            Ok(None) => return Ok(DumpState::Unfinished),
            Err(RepoError::Damaged { key, reason }) => {
                return Ok(DumpState::Damaged(format!("`{key}`: {reason}"), None));
            }
            Err(RepoError::Store(error)) if error.is_bad_medium() => {
                return Ok(DumpState::Damaged(error.to_string(), None));
            }
            Err(error) => return Err(error),
        };
        let (parts, bytes) = listing.parts();
        let missing = summary.parts.saturating_sub(parts);
        if missing > 0 {
            let why = format!("{missing} of its {} parts are missing", summary.parts);
            return Ok(DumpState::Damaged(why, Some(Box::new(summary))));
        }
        // A dump that died under the same name cannot have left others: names are random.
        if (parts, bytes) != (summary.parts, summary.stored_bytes) {
            let promised = summary.stored_bytes;
            let why = format!("its parts have {bytes} bytes, but were written with {promised}");
            return Ok(DumpState::Damaged(why, Some(Box::new(summary))));
        }
        Ok(DumpState::Whole(Box::new(summary)))
    }

    /// The summary of a dump; `None` if it has no manifest. One small read.
    pub async fn read_dump_summary(&self, id: BackupId) -> Result<Option<DumpSummary>, RepoError> {
        let key = self.layout.dump(id, DumpKey::Manifest);
        let Get::Found(found) = self.store.get(&key, 0, None).await? else {
            return Ok(None);
        };
        let start = self.store.read_start(&key, found, SUMMARY_READ).await?;
        let summary: DumpSummary = decode_summary(&key, &start)?;
        summary.check(id).map_err(|why| RepoError::damaged(&key, why))?;
        Ok(Some(summary))
    }

    /// A whole manifest; `None` if there is none.
    pub async fn read_dump_manifest(&self, id: BackupId) -> Result<Option<DumpManifest>, RepoError> {
        let key = self.layout.dump(id, DumpKey::Manifest);
        let Some(stored) = self.store.read_small(&key, LARGEST_MANIFEST).await? else {
            return Ok(None);
        };
        let manifest = DumpManifest::decode(&key, &stored)?;
        manifest.summary.check(id).map_err(|why| RepoError::damaged(&key, why))?;
        Ok(Some(manifest))
    }

    /// Fails with the first part that is not there, or has another size. One listing.
    pub async fn check_dump_parts(&self, manifest: &DumpManifest) -> Result<(), RepoError> {
        let mut sizes = BTreeMap::new();
        let visit = |listed: &Listed| {
            if let Some((_, key @ DumpKey::Part { .. })) = self.layout.parse_dump(&listed.name) {
                sizes.insert(key, listed.size);
            }
            Visit::More
        };
        let id = manifest.summary.id;
        self.store.visit_after(&self.layout.dump_prefix(id), None, PAGE, visit).await?;
        for (file, part) in manifest.files.iter().flat_map(|file| file.parts.iter().map(move |part| (file.file, part)))
        {
            let key = DumpKey::Part { file, part: part.part };
            let why = match sizes.get(&key) {
                Some(size) if *size == part.stored => continue,
                None => "it was stored and is gone".to_owned(),
                Some(size) => format!("it is {size} bytes long, but was written with {}", part.stored),
            };
            return Err(RepoError::damaged(&self.layout.dump(id, key), why));
        }
        Ok(())
    }

    /// Writes the manifest: with this the dump exists.
    pub async fn put_dump_manifest(&self, manifest: &DumpManifest) -> Result<(), RepoError> {
        let key = self.layout.dump(manifest.summary.id, DumpKey::Manifest);
        let bytes = manifest.encode()?;
        match self.store.put(&key, bytes.clone(), &UserMetadata::new()).await? {
            Put::Created => Ok(()),
            // After a lost reply it is ours.
            Put::Exists => match self.store.read_small(&key, LARGEST_MANIFEST).await? {
                Some(theirs) if theirs == bytes => Ok(()),
                _ => Err(RepoError::damaged(&key, "another manifest stands there")),
            },
        }
    }
}
