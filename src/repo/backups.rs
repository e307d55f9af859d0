//! The backups of one generation: their manifests in the store, written last and read first.

use std::io::{BufRead, BufReader, Read, Write};

use bytes::Bytes;

use super::Repository;
use super::backup_id::BackupId;
use super::error::RepoError;
use super::layout::{BackupKey, Generation};
use super::manifest::BackupSummary;
use super::manifest_entries::{Collector, Manifest};
use crate::storage::object_store::Visit;
use crate::storage::{Get, Listed, ObjectKey, ObjectStoreExt, Put, UserMetadata};
use crate::stream::Sha256Hasher;

/// What a listing says about one backup, before anything of it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupListing {
    /// Its name.
    pub id: BackupId,
    /// Whether its manifest is there: without it there is no backup, just parts.
    pub complete: bool,
    /// Whether an operator wants it to stay.
    pub kept: bool,
    /// Its part objects.
    pub parts: u32,
    /// The bytes of all its objects.
    pub stored_bytes: u64,
    /// When the newest of its objects was written, by the store's clock.
    pub modified: Option<std::time::SystemTime>,
}

/// The largest summary line, unpacked.
const LARGEST_SUMMARY: u64 = 1 << 20;
/// Enough of a manifest to hold its summary, packed, in one read.
const SUMMARY_READ: usize = 64 << 10;
/// The largest stored manifest: a cluster of some millions of files.
const LARGEST_MANIFEST: usize = 512 << 20;
/// The longest line: a file of about a tebibyte.
const LONGEST_LINE: u64 = 16 << 20;
const LEVEL: i32 = 3;
/// What zstd's levels up to 19 need: a larger window is not ours.
const WINDOW_LOG_MAX: u32 = 23;

fn decoder(stored: &[u8]) -> std::io::Result<zstd::stream::read::Decoder<'static, &[u8]>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(stored)?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    Ok(decoder)
}

impl Manifest {
    /// The bytes to store.
    pub fn encode(&self) -> Result<Bytes, RepoError> {
        let mut first =
            serde_json::to_vec(&self.summary).map_err(|e| RepoError::damaged(&"manifest", e.to_string()))?;
        first.push(b'\n');
        let frame = |before| {
            let mut frame = zstd::stream::write::Encoder::new(before, LEVEL)?;
            // The summary is read alone, without the digest in the last line.
            frame.include_checksum(true)?;
            Ok(frame)
        };
        let mut summary = frame(Vec::new()).map_err(RepoError::Destination)?;
        let summary = summary.write_all(&first).and_then(|()| summary.finish()).map_err(RepoError::Destination)?;
        let mut rest = frame(summary).map_err(RepoError::Destination)?;
        self.lines(&first, |line| rest.write_all(line))?;
        Ok(rest.finish().map_err(RepoError::Destination)?.into())
    }

    /// Reads what [`Manifest::encode`] wrote.
    pub fn decode(key: &ObjectKey, stored: &[u8]) -> Result<Self, RepoError> {
        let damaged = |why: String| RepoError::damaged(key, why);
        let decoder = decoder(stored).map_err(|e| damaged(e.to_string()))?;
        let mut plain = BufReader::with_capacity(256 << 10, decoder);
        let mut hasher = Sha256Hasher::default();
        let mut line = Vec::new();
        let mut collector: Option<Collector> = None;
        loop {
            line.clear();
            plain.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(|e| damaged(e.to_string()))?;
            if line.pop() != Some(b'\n') {
                return Err(damaged("it ends within a line, or before its last one".to_owned()));
            }
            let Some(collector) = &mut collector else {
                let summary = serde_json::from_slice(&line).map_err(|e| damaged(format!("its summary: {e}")))?;
                hasher.update(&line);
                hasher.update(b"\n");
                collector = Some(Collector::new(summary).map_err(damaged)?);
                continue;
            };
            if collector.take(&line, || std::mem::take(&mut hasher).finish().sha256).map_err(damaged)? {
                break;
            }
            hasher.update(&line);
            hasher.update(b"\n");
        }
        if plain.read(&mut [0; 1]).map_err(|e| damaged(e.to_string()))? != 0 {
            return Err(damaged("there are bytes behind its last line".to_owned()));
        }
        match collector {
            Some(collector) => collector.finish().map_err(damaged),
            None => Err(damaged("it is empty".to_owned())),
        }
    }
}

/// Adds an object to the backup it belongs to; objects come in the order of their keys.
pub(super) fn note_piece(found: &mut Vec<BackupListing>, id: BackupId, piece: BackupKey, listed: &Listed) {
    if found.last().is_none_or(|last| last.id != id) {
        found.push(BackupListing { id, complete: false, kept: false, parts: 0, stored_bytes: 0, modified: None });
    }
    if let Some(backup) = found.last_mut() {
        match piece {
            BackupKey::Manifest => backup.complete = true,
            BackupKey::Keep => backup.kept = true,
            BackupKey::Part(_) => backup.parts += 1,
        }
        backup.stored_bytes += listed.size;
        backup.modified = backup.modified.max(listed.modified);
    }
}

impl Repository {
    /// All backups of a generation, whole or not, oldest name first: one listing.
    pub async fn list_backups(&self, generation: Generation) -> Result<Vec<BackupListing>, RepoError> {
        let mut found: Vec<BackupListing> = Vec::new();
        self.store
            .visit_after(&self.layout.backups(generation), None, 1000, |listed| {
                if let Some((_, id, piece)) = self.layout.parse_backup(&listed.name) {
                    note_piece(&mut found, id, piece, listed);
                }
                Visit::More
            })
            .await?;
        Ok(found)
    }

    /// The summary of a backup; `None` if it has no manifest. One small read.
    pub async fn read_summary(&self, generation: Generation, id: BackupId) -> Result<Option<BackupSummary>, RepoError> {
        let key = self.layout.backup(generation, id, BackupKey::Manifest);
        let Get::Found(found) = self.store.get(&key, 0, None).await? else {
            return Ok(None);
        };
        let start = self.store.read_start(&key, found, SUMMARY_READ).await?;
        let damaged = |why: String| RepoError::damaged(&key, why);
        let decoder = decoder(&start).map_err(|e| damaged(e.to_string()))?;
        let mut line = Vec::new();
        decoder.single_frame().take(LARGEST_SUMMARY).read_to_end(&mut line).map_err(|e| damaged(e.to_string()))?;
        let summary: BackupSummary =
            serde_json::from_slice(&line).map_err(|e| damaged(format!("its summary cannot be read: {e}")))?;
        summary.check(generation, id).map_err(damaged)?;
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
    use crate::postgres::control_details::{RecordedSettings, WalLevel};
    use crate::postgres::{Lsn, SystemId, TimelineId};
    use crate::repo::manifest::{FORMAT, Method};
    use crate::repo::manifest_entries::{BadPage, DirectoryEntry, Extent, FileEntry, PartEntry};
    use crate::stream::Sha256;
    use jiff::Timestamp;

    fn path(text: &str) -> BackupPath {
        BackupPath::new(text.as_bytes()).unwrap()
    }

    fn extent(part: u32, at: u64, stored: u64, plain: u64) -> Extent {
        Extent { part, at, stored, skip: 512, plain, sha256: Sha256([7; 32]), frames: vec![] }
    }

    fn manifest() -> Manifest {
        let id = "20261122T231805Z-0a1b2c3d".parse().unwrap();
        let settings = RecordedSettings {
            wal_level: WalLevel::Replica,
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 64,
        };
        let summary = BackupSummary {
            format: FORMAT.into(),
            id,
            generation: Generation::FIRST,
            system_identifier: SystemId(7),
            postgres_major: 15.try_into().unwrap(),
            label: "l".into(),
            method: Method::Local,
            from_standby: false,
            timeline: TimelineId::FIRST,
            start_lsn: Lsn(0x200_0028),
            stop_lsn: Lsn(0x200_0100),
            started: Timestamp::UNIX_EPOCH,
            stopped: Timestamp::UNIX_EPOCH,
            segment_size: 16 << 20,
            page_checksums: true,
            directory_mode: None,
            tablespaces: vec![],
            settings,
            files: 0,
            plain_bytes: 0,
            parts: 0,
            stored_bytes: 0,
            bad_pages: 0,
            writer: "w".into(),
        };
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
