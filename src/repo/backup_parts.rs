//! The part objects of a backup: written once, read with every file verified.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Repository;
use super::archive::ReadBounds;
use super::backup_id::BackupId;
use super::error::RepoError;
use super::layout::{BackupKey, Generation};
use super::manifest_entries::PartEntry;
use super::stored_object::StoredObject;
use super::wal_object::DIGEST_METADATA;
use crate::storage::{Get, Head, Put, UserMetadata};
use crate::stream::part_reader::PartSink;
use crate::stream::{PartReader, Resumable, Sha256, Sha256Hasher, UnpackError, WantedExtent};

/// Pieces on the way from the network to the thread that unpacks.
const PIECES: usize = 8;

impl Repository {
    /// Stores a part. One that is there already, after a lost reply, must be this one.
    pub async fn put_part(
        &self,
        generation: Generation,
        id: BackupId,
        number: u32,
        bytes: Bytes,
        sha256: Sha256,
    ) -> Result<PartEntry, RepoError> {
        let key = self.layout.backup(generation, id, BackupKey::Part(number));
        let stored = bytes.len() as u64;
        let user = UserMetadata::from([(DIGEST_METADATA.to_owned(), sha256.to_string())]);
        let entry = PartEntry { part: number, stored, sha256 };
        if self.store.put(&key, bytes, &user).await? == Put::Created {
            return Ok(entry);
        }
        let same = match self.store.head(&key).await? {
            Head::Found(meta) if meta.size != stored => false,
            Head::Found(meta) if meta.user.get(DIGEST_METADATA) == Some(&sha256.to_string()) => true,
            _ => self.digest_of_part(generation, id, number, &ReadBounds::default()).await? == Some((sha256, stored)),
        };
        if same { Ok(entry) } else { Err(RepoError::damaged(&key, "another part of this name is there already")) }
    }

    /// Digest and length of the stored bytes of a part; `None` if it is not there.
    pub async fn digest_of_part(
        &self,
        generation: Generation,
        id: BackupId,
        number: u32,
        bounds: &ReadBounds,
    ) -> Result<Option<(Sha256, u64)>, RepoError> {
        let key = self.layout.backup(generation, id, BackupKey::Part(number));
        let Get::Found(found) = self.store.get(&key, 0, None).await? else {
            return Ok(None);
        };
        let size = found.meta.size;
        let source = StoredObject::new(Arc::clone(&self.store), key, found.meta.etag);
        let mut download = Resumable::new(source, found.body, size, bounds.stall, bounds.patience);
        let mut hasher = Sha256Hasher::default();
        while let Some(piece) = download.next().await {
            hasher.update(&piece?);
        }
        let receipt = hasher.finish();
        Ok(Some((receipt.sha256, receipt.length)))
    }

    /// Reads the wanted runs of a part into `sink`, each verified by its digest. `progress` counts stored bytes.
    pub async fn read_part<S: PartSink + Send + 'static>(
        &self,
        (generation, id): (Generation, BackupId),
        part: &PartEntry,
        wanted: Vec<WantedExtent>,
        sink: S,
        bounds: &ReadBounds,
        progress: impl Fn(u64),
    ) -> Result<S, RepoError> {
        let key = self.layout.backup(generation, id, BackupKey::Part(part.part));
        let Get::Found(found) = self.store.get(&key, 0, None).await? else {
            return Err(RepoError::damaged(&key, "it is missing, and the manifest counts on it"));
        };
        let size = found.meta.size;
        if size != part.stored {
            let promised = part.stored;
            return Err(RepoError::damaged(&key, format!("it is {size} bytes long, but was written with {promised}")));
        }
        // What lies behind the last wanted run need not come.
        let end = wanted.iter().map(|run| run.at + run.stored).max().unwrap_or_default();
        let source = StoredObject::new(Arc::clone(&self.store), key.clone(), found.meta.etag);
        let mut download = Resumable::new(source, found.body, end.min(size), bounds.stall, bounds.patience);
        let (pieces, mut inbox) = mpsc::channel::<Bytes>(PIECES);
        let unpacking = tokio::task::spawn_blocking(move || -> Result<S, UnpackError> {
            let mut reader = PartReader::new(wanted, sink)?;
            while let Some(piece) = inbox.blocking_recv() {
                reader.push(&piece)?;
            }
            reader.finish()
        });
        let mut listening = true;
        while listening {
            match download.next().await {
                Some(piece) => {
                    let piece = piece?;
                    progress(piece.len() as u64);
                    bounds.progress.fetch_add(piece.len() as u64, Ordering::Relaxed);
                    // The thread hangs up only when it has failed: its error is the answer then.
                    listening = pieces.send(piece).await.is_ok();
                }
                None => break,
            }
        }
        drop(pieces);
        match unpacking.await {
            Ok(Ok(sink)) => Ok(sink),
            Ok(Err(UnpackError::Damaged(reason))) => Err(RepoError::damaged(&key, reason)),
            Ok(Err(UnpackError::Write(error))) => Err(RepoError::Destination(error)),
            Err(_) => Err(RepoError::Destination(std::io::Error::other("the thread that unpacks failed"))),
        }
    }
}
