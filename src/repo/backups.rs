//! The backups of one generation: their manifests in the store, written last and read first.

use bytes::Bytes;
use jiff::Timestamp;

use super::Repository;
use super::backup_id::BackupId;
use super::error::RepoError;
use super::layout::{BackupKey, Generation};
use super::manifest::BackupSummary;
use super::manifest_entries::{Collector, Manifest};
use super::manifest_lines::{LARGEST_MANIFEST, Lines, SUMMARY_READ, decode, decode_summary};
use crate::storage::object_store::Visit;
use crate::storage::{Get, KeyPrefix, Listed, ObjectKey, ObjectStoreExt, Put, UserMetadata};

/// What a listing says about one backup, before anything of it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupListing {
    /// Its name.
    pub id: BackupId,
    /// Its objects; at least one.
    pub pieces: Vec<Piece>,
}

/// One object of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which.
    pub key: BackupKey,
    /// Its bytes.
    pub bytes: u64,
    /// When it was written, by the store's clock; `None`: the store does not say.
    pub modified: Option<Timestamp>,
}

impl BackupListing {
    /// Its manifest's object: without one there is no backup, just parts.
    pub fn manifest(&self) -> Option<&Piece> {
        self.pieces.iter().find(|piece| piece.key == BackupKey::Manifest)
    }

    /// Whether an operator marked it. What the mark says is not read yet.
    pub fn has_mark(&self) -> bool {
        self.pieces.iter().any(|piece| piece.key == BackupKey::Keep)
    }

    /// The numbers and bytes of its parts.
    pub fn parts(&self) -> impl Iterator<Item = (u32, u64)> {
        self.pieces.iter().filter_map(|piece| match piece.key {
            BackupKey::Part(number) => Some((number, piece.bytes)),
            _ => None,
        })
    }

    /// The bytes of all its objects.
    pub fn stored_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }
}

impl Manifest {
    /// The bytes to store.
    pub fn encode(&self) -> Result<Bytes, RepoError> {
        let mut lines = Lines::begin(&self.summary)?;
        self.parts.iter().try_for_each(|part| lines.put(part))?;
        self.directories.iter().try_for_each(|directory| lines.put(directory))?;
        self.files.iter().try_for_each(|file| lines.put(file))?;
        self.bad_pages.iter().try_for_each(|page| lines.put(page))?;
        lines.finish()
    }

    /// Reads what [`Manifest::encode`] wrote.
    pub fn decode(key: &ObjectKey, stored: &[u8]) -> Result<Self, RepoError> {
        decode::<Collector>(key, stored)
    }
}

/// Adds an object to the backup it belongs to; objects come in the order of their keys.
pub(super) fn note_piece(found: &mut Vec<BackupListing>, id: BackupId, key: BackupKey, listed: &Listed) {
    let piece = Piece { key, bytes: listed.size, modified: listed.written() };
    match found.last_mut() {
        Some(backup) if backup.id == id => backup.pieces.push(piece),
        _ => found.push(BackupListing { id, pieces: vec![piece] }),
    }
}

impl Repository {
    /// All backups of a generation, whole or not, oldest name first: one listing.
    pub async fn list_backups(&self, generation: Generation) -> Result<Vec<BackupListing>, RepoError> {
        self.list_backups_below(&self.layout.backups(generation)).await
    }

    pub(super) async fn list_backups_below(&self, prefix: &KeyPrefix) -> Result<Vec<BackupListing>, RepoError> {
        let mut found: Vec<BackupListing> = Vec::new();
        let visit = |listed: &Listed| {
            if let Some((_, id, key)) = self.layout.parse_backup(&listed.name) {
                note_piece(&mut found, id, key, listed);
            }
            Visit::More
        };
        self.store.visit_after(prefix, None, 1000, visit).await?;
        Ok(found)
    }

    /// The summary of a backup; `None` if it has no manifest. One small read.
    pub async fn read_summary(&self, generation: Generation, id: BackupId) -> Result<Option<BackupSummary>, RepoError> {
        let key = self.layout.backup(generation, id, BackupKey::Manifest);
        let Get::Found(found) = self.store.get(&key, 0, None).await? else {
            return Ok(None);
        };
        let start = self.store.read_start(&key, found, SUMMARY_READ).await?;
        let summary: BackupSummary = decode_summary(&key, &start)?;
        summary.check(generation, id).map_err(|why| RepoError::damaged(&key, why))?;
        Ok(Some(summary))
    }

    /// A whole manifest; `None` if there is none.
    pub async fn read_manifest(&self, generation: Generation, id: BackupId) -> Result<Option<Manifest>, RepoError> {
        let key = self.layout.backup(generation, id, BackupKey::Manifest);
        let Some(stored) = self.store.read_small(&key, LARGEST_MANIFEST).await? else {
            return Ok(None);
        };
        let manifest = Manifest::decode(&key, &stored)?;
        manifest.summary.check(generation, id).map_err(|why| RepoError::damaged(&key, why))?;
        Ok(Some(manifest))
    }

    /// Writes the manifest: with this the backup exists.
    pub async fn put_manifest(&self, manifest: &Manifest) -> Result<(), RepoError> {
        let key = self.layout.backup(manifest.summary.generation, manifest.summary.id, BackupKey::Manifest);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::BackupPath;
    use crate::postgres::Lsn;
    use crate::repo::manifest_entries::{BadPage, DirectoryEntry, Extent, FileEntry, PartEntry};
    use crate::repo::sample::summary;
    use crate::stream::Sha256;

    fn path(text: &str) -> BackupPath {
        BackupPath::new(text.as_bytes()).unwrap()
    }

    fn extent(part: u32, at: u64, stored: u64, plain: u64) -> Extent {
        Extent { part, at, stored, skip: 512, plain, sha256: Sha256([7; 32]), frames: vec![] }
    }

    fn manifest() -> Manifest {
        let id = "20261122T231805Z-0a1b2c3d".parse().unwrap();
        let (start, stop) = (Lsn(0x200_0028), Lsn(0x200_0100));
        let summary = summary(id, 1, start, stop, Timestamp::UNIX_EPOCH);
        let mut manifest = Manifest {
            summary,
            parts: vec![PartEntry { part: 1, stored: 1000, sha256: Sha256([1; 32]) }],
            directories: vec![
                DirectoryEntry { directory: path("base"), mode: 0o700 },
                DirectoryEntry { directory: path("base/1"), mode: 0o700 },
            ],
            files: vec![
                FileEntry {
                    file: path("PG_VERSION"),
                    mode: 0o600,
                    size: 3,
                    modified: 5,
                    extents: vec![extent(1, 0, 100, 3)],
                },
                FileEntry {
                    file: path("base/1/1"),
                    mode: 0o600,
                    size: 0,
                    modified: 5,
                    extents: vec![extent(1, 100, 90, 0)],
                },
            ],
            bad_pages: vec![BadPage { bad_page: path("base/1/1"), block: 9 }],
        };
        manifest.sum_up();
        manifest
    }

    fn key() -> ObjectKey {
        "k".parse().unwrap()
    }

    #[test]
    fn a_manifest_goes_both_ways() {
        let manifest = manifest();
        assert_eq!(Manifest::decode(&key(), &manifest.encode().unwrap()).unwrap(), manifest);
    }

    /// Each change makes it one that must be refused, with these words.
    #[test]
    fn what_would_do_harm_is_refused() {
        type Change = fn(&mut Manifest);
        let changes: [(&str, Change); 15] = [
            ("occurs twice", |m| m.files[1].file = m.files[0].file.clone()),
            ("occurs twice", |m| m.directories[1].directory = m.directories[0].directory.clone()),
            ("out of order", |m| m.files.swap(0, 1)),
            ("not listed", |m| m.files[1].file = path("global/1")),
            ("not listed", |m| m.files[1].file = path("PG_VERSION/x")),
            ("occurs twice", |m| m.files[1].file = path("base/1")),
            ("mode", |m| m.files[0].mode = 0o4755),
            ("no part 2", |m| m.files[0].extents[0].part = 2),
            ("cannot be", |m| m.files[0].extents[0].at = u64::MAX),
            ("cannot be", |m| m.files[0].extents[0].stored = 1001),
            ("its extents have", |m| m.files[0].size = 4),
            ("do not add up", |m| m.summary.files = 3),
            ("more files than", |m| m.summary.files = 1),
            ("one place", |m| m.files[1].extents[0].at = 99),
            ("pgark's own", |m| m.files[0].file = path(".pgark-restoring")),
        ];
        for (words, change) in changes {
            let mut changed = manifest();
            change(&mut changed);
            let error = Manifest::decode(&key(), &changed.encode().unwrap()).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn every_cut_and_every_flip_is_noticed() {
        let stored = manifest().encode().unwrap();
        for at in 0..stored.len() {
            assert!(Manifest::decode(&key(), &stored[..at]).is_err(), "cut at {at}");
            let mut flipped = stored.to_vec();
            flipped[at] ^= 4;
            match Manifest::decode(&key(), &flipped) {
                Err(_) => {}
                // A bit of a zstd header may carry no meaning.
                Ok(same) => assert_eq!(same, manifest(), "flip at {at}"),
            }
        }
    }
}
