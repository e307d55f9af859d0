//! The segment that is being received: hashed, compressed and indexed as it arrives; what of it is in pieces already, and what
//! is in none.
//!
//! A segment is always received from its first byte. What lies in the store of it is compared on the way: equal bytes are
//! durable, others are another server's.

use std::collections::VecDeque;
use std::path::PathBuf;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Circumstances;
use super::failure::{Failure, FailureKind};
use super::receive_halt::Halt;
use crate::disk::temporary_place;
use crate::postgres::{ClusterIdent, Lsn, SegmentName, SegmentSize, WalHeader, WalIndexer, WalName};
use crate::repo::live_piece::{LivePiece, PieceHeader, PieceOrigin, SoFar};
use crate::repo::wal_object::{Provenance, WalObject};
use crate::repo::{RepoError, Writer};
use crate::stream::{Growing, Packer, Sha256, Sha256Hasher};

/// What all segments of a receiver have in common.
#[derive(Clone, Debug)]
pub(super) struct Making {
    pub(super) ident: ClusterIdent,
    pub(super) size: SegmentSize,
    pub(super) level: i32,
    pub(super) writer: Writer,
    /// For files of what is too large for memory.
    pub(super) place: PathBuf,
}

impl Making {
    pub(super) fn new(ident: ClusterIdent, size: SegmentSize, level: i32, circumstances: &Circumstances) -> Self {
        Making { ident, size, level, writer: circumstances.writer.clone(), place: temporary_place() }
    }
}

/// The segment that is being received.
///
/// * `received` = bytes in known pieces and cut ones, and then those of `loose`.
pub(super) struct Receiving {
    making: Making,
    pub(super) name: SegmentName,
    start: Lsn,
    received: u64,
    first_page: Vec<u8>,
    feed: mpsc::Sender<Feed>,
    packing: JoinHandle<Result<WalObject, Failure>>,
    /// Pieces in the store that are not compared yet.
    known: VecDeque<Known>,
    comparing: Sha256Hasher,
    previous: Option<Sha256>,
    /// Pieces that are stored, and the bytes of their objects.
    stored: (u64, u64),
    loose: Vec<u8>,
    loose_since: Option<Instant>,
    /// It gets no pieces: in a moment it is whole.
    only_whole: bool,
    pub(super) has_pieces: bool,
}

/// A range of the segment that the store has in pieces.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) offset: u64,
    pub(super) end: u64,
    /// Of the bytes in the range.
    pub(super) sha256: Sha256,
    /// Pieces of the segment up to its end.
    pub(super) pieces: u64,
    /// Bytes of their objects.
    pub(super) stored: u64,
    /// The last of them.
    pub(super) last: PieceHeader,
}

/// What the thread that compresses is told.
enum Feed {
    Bytes(Bytes),
    /// Tell about all that came until now.
    Tell(oneshot::Sender<Told>),
    /// What came until now is in pieces already: its commits are nobody's business.
    Stored,
}

/// What the thread that compresses knows of a segment.
struct Told {
    /// The latest commit since the last time.
    last_commit: Option<Timestamp>,
    /// Digest of all that came, unless the segment cannot be put together.
    sha256: Option<Sha256>,
}

/// A piece that is cut and not packed yet.
pub(super) struct Draft {
    making: Making,
    segment: SegmentName,
    offset: u32,
    pub(super) bytes: Vec<u8>,
    previous: Option<Sha256>,
    /// Pieces before it, and the bytes of their objects.
    stored: (u64, u64),
    told: oneshot::Receiver<Told>,
    pub(super) end: Lsn,
}

/// Messages on the way to the thread that compresses, each of up to 128 KiB.
const FEEDS: usize = 8;
/// Segments up to this size are held in memory until they are stored.
const IN_MEMORY: u64 = 16 << 20;
/// So much of a larger one, which goes to a file then.
const GROWS_TO: usize = 2 << 20;

impl Receiving {
    /// A segment that begins to arrive, of which the store has these pieces.
    pub(super) fn begin(making: &Making, name: SegmentName, known: Vec<Known>) -> Result<Self, Failure> {
        let number = making.size.number(name).map_err(|e| Failure::new(FailureKind::Internal, e.to_string()))?;
        let (feed, inbox) = mpsc::channel(FEEDS);
        let packed = making.clone();
        Ok(Receiving {
            making: making.clone(),
            name,
            start: making.size.start(number),
            received: 0,
            first_page: Vec::new(),
            feed,
            packing: tokio::task::spawn_blocking(move || pack(packed, name, inbox)),
            has_pieces: !known.is_empty(),
            known: known.into(),
            comparing: Sha256Hasher::default(),
            previous: None,
            stored: (0, 0),
            loose: Vec::new(),
            loose_since: None,
            only_whole: false,
        })
    }

    /// Where the next byte belongs.
    fn end(&self) -> Lsn {
        Lsn(self.start.0 + self.received)
    }

    /// Where the segment ends.
    pub(super) fn whole_end(&self) -> Lsn {
        Lsn(self.start.0 + self.making.size.bytes())
    }

    /// How many bytes are missing.
    pub(super) fn missing(&self) -> usize {
        (self.making.size.bytes() - self.received) as usize
    }

    /// Takes the next bytes, at most as many as are missing. Gives where the bytes end that the store has in equal pieces, if
    /// one was compared to its end.
    pub(super) async fn push(&mut self, bytes: Bytes, now: Instant) -> Result<Option<Lsn>, Halt> {
        self.check_first_page(&bytes)?;
        let broken = |_| Failure::new(FailureKind::Internal, "the thread that compresses failed");
        self.feed.send(Feed::Bytes(bytes.clone())).await.map_err(broken)?;
        let mut equal = None;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let Some(piece) = self.known.front() else {
                if !self.only_whole {
                    self.loose.extend_from_slice(rest);
                    self.loose_since.get_or_insert(now);
                }
                break;
            };
            let at = self.received + (bytes.len() - rest.len()) as u64;
            let (taken, behind) = rest.split_at(rest.len().min(piece.end.saturating_sub(at) as usize));
            self.comparing.update(taken);
            rest = behind;
            if at + taken.len() as u64 == piece.end {
                let ours = std::mem::take(&mut self.comparing).finish();
                if ours.sha256 != piece.sha256 {
                    return Err(Halt::Refused(self.differs(piece, ours.sha256)));
                }
                self.previous = Some(piece.last.sha256);
                self.stored = (piece.pieces, piece.stored);
                equal = Some(Lsn(self.start.0 + piece.end));
                self.known.pop_front();
                self.feed.send(Feed::Stored).await.map_err(broken)?;
            }
        }
        self.received += bytes.len() as u64;
        Ok(equal)
    }

    /// What comes must be what was asked for.
    fn check_first_page(&mut self, bytes: &[u8]) -> Result<(), Halt> {
        let missing = WalHeader::LEN - self.first_page.len();
        if missing == 0 {
            return Ok(());
        }
        self.first_page.extend_from_slice(&bytes[..bytes.len().min(missing)]);
        if self.first_page.len() < WalHeader::LEN {
            return Ok(());
        }
        let wrong = |why: String| {
            let name = self.name;
            Halt::Failed(Failure::new(
                FailureKind::Server,
                format!("PostgreSQL sent another segment as `{name}`: {why}"),
            ))
        };
        let page = WalHeader::parse(&self.first_page).map_err(|e| wrong(e.to_string()))?;
        page.check(self.name, self.making.size.bytes()).map_err(|e| wrong(e.to_string()))?;
        match page.ident == self.making.ident {
            true => Ok(()),
            false => Err(wrong(format!("it is of another cluster ({})", page.ident))),
        }
    }

    fn differs(&self, piece: &Known, ours: Sha256) -> Failure {
        let (offset, end, name, last) = (piece.offset, piece.end, self.name, &piece.last);
        let message = format!(
            "another content is stored as bytes {offset:#X} to {end:#X} of `{name}`: sha256 {} by {} at {}; the server sent \
             sha256 {ours}",
            piece.sha256, last.writer, last.written
        );
        Failure::new(FailureKind::Conflict, message).with_hint(
            "two servers stream into one place: find out which one is the primary, and give the other its own `name`",
        )
    }

    /// What came of it and is in no piece needs none, nor does what follows. Pieces that are stored are compared all the same.
    pub(super) fn make_only_whole(&mut self) {
        self.only_whole = true;
        self.loose = Vec::new();
        self.loose_since = None;
    }

    /// Bytes in no piece, and since when the oldest is here.
    pub(super) fn loose(&self) -> Option<(usize, Instant)> {
        self.loose_since.map(|since| (self.loose.len(), since))
    }

    /// Makes a piece of all that is in none. Only one that is stored may be followed by another: see [`Receiving::stored`].
    /// Nothing is lost when this is dropped.
    pub(super) async fn cut(&mut self) -> Result<Option<Draft>, Halt> {
        let length = self.loose.len() as u64;
        let Some(offset) = u32::try_from(self.received - length).ok().filter(|_| length > 0) else {
            return Ok(None);
        };
        let broken = |_| Failure::new(FailureKind::Internal, "the thread that compresses failed");
        let turn = self.feed.reserve().await.map_err(broken)?;
        let (tell, told) = oneshot::channel();
        turn.send(Feed::Tell(tell));
        let bytes = std::mem::take(&mut self.loose);
        self.loose_since = None;
        self.has_pieces = true;
        Ok(Some(Draft {
            making: self.making.clone(),
            segment: self.name,
            offset,
            previous: self.previous,
            stored: self.stored,
            told,
            end: self.end(),
            bytes,
        }))
    }

    /// A piece of this or another segment is durable.
    pub(super) fn stored(&mut self, of: SegmentName, sha256: Sha256, bytes: u64) {
        if of == self.name {
            self.previous = Some(sha256);
            self.stored = (self.stored.0 + 1, self.stored.1 + bytes);
        }
    }

    /// All bytes came: the end of the segment, and the object in the making.
    pub(super) fn finish(self) -> (Lsn, JoinHandle<Result<WalObject, Failure>>) {
        (self.end(), self.packing)
    }
}

impl Draft {
    /// Compresses it.
    pub(super) async fn pack(self) -> Result<LivePiece, Failure> {
        let told = self.told.await.ok();
        let last_commit = told.as_ref().and_then(|told| told.last_commit);
        let (pieces, stored) = self.stored;
        let so_far = told.and_then(|told| Some(SoFar { pieces, stored, sha256: told.sha256? }));
        let origin = PieceOrigin {
            segment: self.segment,
            offset: self.offset,
            previous: self.previous,
            ident: self.making.ident,
            segment_size: self.making.size,
            last_commit,
            written: Timestamp::now(),
            writer: self.making.writer,
        };
        let (bytes, level) = (self.bytes, self.making.level);
        let packing = tokio::task::spawn_blocking(move || {
            let mut packer = Packer::new(bytes.len() as u64, level, LivePiece::ROOM).map_err(cannot_pack)?;
            packer.push(&bytes).map_err(cannot_pack)?;
            Ok(LivePiece::build_behind(origin, packer.finish().map_err(cannot_pack)?, so_far)?)
        });
        packed(packing).await
    }
}

/// Waits for a thread that compresses.
pub(super) async fn packed<T>(packing: JoinHandle<Result<T, Failure>>) -> Result<T, Failure> {
    packing.await.unwrap_or_else(|_| Err(Failure::new(FailureKind::Internal, "the thread that compresses failed")))
}

/// A large segment grows in a file.
fn not_grown(name: SegmentName, error: &std::io::Error) -> Failure {
    Failure::new(FailureKind::LocalIo, format!("`{name}` cannot be put together: {error}"))
        .with_hint("make room there, or set `TMPDIR` to a directory with room for three compressed segments")
}

fn cannot_pack(error: std::io::Error) -> Failure {
    Failure::new(FailureKind::Internal, format!("WAL cannot be compressed: {error}"))
}

/// The thread that compresses a segment. It fails when the segment never becomes whole; nobody asks then. Where it fails before,
/// as on a full disk, pieces go on being made: commits may wait for them.
fn pack(making: Making, name: SegmentName, mut inbox: mpsc::Receiver<Feed>) -> Result<WalObject, Failure> {
    let size = making.size.bytes();
    let limit = if size <= IN_MEMORY { usize::MAX } else { GROWS_TO };
    let growing = Growing::new(WalObject::ROOM, limit, making.place.clone());
    let mut packer = Packer::into(growing, size, making.level).map_err(cannot_pack);
    let mut indexer = WalIndexer::new(making.ident.major);
    let mut told = None;
    while let Some(feed) = inbox.blocking_recv() {
        match feed {
            Feed::Bytes(bytes) => {
                if let Ok(growing) = &mut packer
                    && let Err(error) = growing.push(&bytes)
                {
                    let failure = not_grown(name, &error);
                    tracing::error!("{failure}; its pieces are stored, and it is tried again when it is full");
                    packer = Err(failure);
                }
                indexer.feed(&bytes);
            }
            Feed::Tell(tell) => {
                let latest = indexer.latest_commit();
                let last_commit = latest.filter(|_| latest != told);
                let sha256 = packer.as_ref().ok().map(|packer| packer.so_far().sha256);
                tell.send(Told { last_commit, sha256 }).ok();
                told = latest;
            }
            Feed::Stored => told = indexer.latest_commit(),
        }
    }
    let provenance = Provenance {
        name: WalName::Segment(name),
        ident: making.ident,
        segment_size: Some(making.size),
        written: Timestamp::now(),
        writer: making.writer,
    };
    let (growing, plain) = packer?.finish_into().map_err(cannot_pack)?;
    let object = WalObject::build_grown(provenance, growing.finish(), plain, Some(indexer.finish()));
    object.map_err(|e: RepoError| e.into())
}
