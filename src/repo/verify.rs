//! Reading objects only to see whether they are what they were: every byte, every digest, nothing kept.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Repository;
use super::archive::{ReadBounds, WalArchive};
use super::error::RepoError;
use super::joined_tail::JoinedTail;
use super::layout::{BackupKey, WalKey};
use super::live_piece::ExpectedPiece;
use super::manifest_entries::{Manifest, PartEntry};
use super::stored_object::StoredObject;
use super::wal_object::Expected;
use crate::postgres::wal_chain::{ChainWalker, Walked};
use crate::postgres::{ClusterIdent, SegmentName, SegmentSize, WalName};
use crate::storage::Get;
use crate::stream::part_reader::PartSink;
use crate::stream::{PartReader, Receipt, Resumable, Sha256Hasher, UnpackError, WantedExtent};

/// Pieces on the way from the network to the thread that hashes.
const PIECES: usize = 8;

/// Takes what comes and keeps nothing.
struct Nothing;

impl PartSink for Nothing {
    fn content(&mut self, _: usize, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn whole(&mut self, _: usize) -> io::Result<()> {
        Ok(())
    }
}

/// The runs of files in each part, in the order of the part.
pub fn runs_by_part(manifest: &Manifest) -> Vec<Vec<WantedExtent>> {
    let mut parts = vec![Vec::new(); manifest.parts.len()];
    for extent in manifest.files.iter().flat_map(|file| &file.extents) {
        // The manifest was checked: there is such a part.
        parts[extent.part as usize - 1].push(WantedExtent {
            at: extent.at,
            stored: extent.stored,
            skip: extent.skip,
            plain: extent.plain,
            sha256: extent.sha256,
        });
    }
    for runs in &mut parts {
        runs.sort_unstable_by_key(|run| run.at);
    }
    parts
}

impl Repository {
    /// Reads a part of a backup once: its stored bytes have the manifest's digest, and each file in it has its own. `None`: the
    /// part is not there.
    pub async fn verify_part(
        &self,
        manifest: &Manifest,
        part: &PartEntry,
        runs: Vec<WantedExtent>,
        bounds: &ReadBounds,
    ) -> Result<Option<u64>, RepoError> {
        let (generation, id) = (manifest.summary.generation, manifest.summary.id);
        let key = self.layout.backup(generation, id, BackupKey::Part(part.part));
        let Get::Found(found) = self.store.get(&key, 0, None).await? else {
            return Ok(None);
        };
        let size = found.meta.size;
        if size != part.stored {
            let promised = part.stored;
            return Err(RepoError::damaged(&key, format!("it is {size} bytes long, but was written with {promised}")));
        }
        let source = StoredObject::new(Arc::clone(&self.store), key.clone(), found.meta.etag);
        let mut download = Resumable::new(source, found.body, size, bounds.stall, bounds.patience);
        let (pieces, mut inbox) = mpsc::channel::<Bytes>(PIECES);
        let reading = tokio::task::spawn_blocking(move || -> Result<Receipt, UnpackError> {
            let mut reader = PartReader::new(runs, Nothing)?;
            let mut hasher = Sha256Hasher::default();
            while let Some(piece) = inbox.blocking_recv() {
                hasher.update(&piece);
                reader.push(&piece)?;
            }
            reader.finish()?;
            Ok(hasher.finish())
        });
        // The thread hangs up only when it has failed: its error is the answer then.
        let mut listening = true;
        while listening {
            match download.next().await {
                Some(piece) => listening = pieces.send(piece?).await.is_ok(),
                None => break,
            }
        }
        drop(pieces);
        let receipt = match reading.await {
            Ok(Ok(receipt)) => receipt,
            Ok(Err(UnpackError::Damaged(reason))) => return Err(RepoError::damaged(&key, reason)),
            Ok(Err(UnpackError::Write(error))) => return Err(RepoError::Destination(error)),
            Err(_) => return Err(RepoError::Destination(io::Error::other("the thread that hashes failed"))),
        };
        if receipt.sha256 != part.sha256 {
            let (found, promised) = (receipt.sha256, part.sha256);
            return Err(RepoError::damaged(&key, format!("it has the digest {found}, the manifest says {promised}")));
        }
        Ok(Some(size))
    }
}

impl WalArchive {
    /// Reads an object of WAL: header, lengths, digest, and the first page of a segment. `None`: it is not there.
    pub async fn verify_object(
        &self,
        object: &WalKey,
        ident: ClusterIdent,
        segment_size: Option<SegmentSize>,
        bounds: &ReadBounds,
    ) -> Result<Option<()>, RepoError> {
        let name = match object {
            WalKey::File(name) => *name,
            WalKey::OtherPartial(segment, _) => WalName::Partial(*segment),
            WalKey::Piece(piece) => return self.verify_piece(*piece, ident, segment_size, bounds).await,
        };
        let expected = Expected { name, ident: Some(ident), segment_size };
        let key = self.layout.wal_key(self.generation, object);
        Ok(self.read_at(&key, expected, io::sink(), bounds).await?.map(drop))
    }

    /// Reads the live tail of a segment as a recovery does; `deep`: its records are looked at, too. `None`: it has none.
    pub async fn verify_tail(
        &self,
        segment: SegmentName,
        expected: ExpectedPiece,
        deep: bool,
        bounds: &ReadBounds,
    ) -> Result<Option<(JoinedTail, Option<Walked>)>, RepoError> {
        if !deep {
            let joined = self.join_prefix(segment, expected, io::sink(), bounds).await?;
            return Ok(joined.map(|(joined, _)| (joined, None)));
        }
        let joined = self.join_prefix(segment, expected, Walk(ChainWalker::default()), bounds).await?;
        Ok(joined.map(|(joined, Walk(walker))| {
            let walked = (joined.end > 0).then(|| walker.finish_beginning());
            (joined, walked)
        }))
    }

    /// Reads a whole segment and looks at its records.
    pub async fn verify_records(
        &self,
        segment: SegmentName,
        ident: ClusterIdent,
        segment_size: Option<SegmentSize>,
        bounds: &ReadBounds,
    ) -> Result<Option<Walked>, RepoError> {
        let expected = Expected { name: WalName::Segment(segment), ident: Some(ident), segment_size };
        let read = self.read(expected, Walk(ChainWalker::default()), bounds).await?;
        Ok(read.map(|(_, Walk(walker))| walker.finish()))
    }
}

/// Walks over what is written to it.
struct Walk(ChainWalker);

impl io::Write for Walk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.feed(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
