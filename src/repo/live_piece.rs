//! A piece of the live tail: WAL that was streamed before its segment was full.
//!
//! Like a WAL object it tells what it is in a frame in front of its compressed bytes. Each piece begins where the one before it ends
//! and names that one's digest, so a tail is a chain from the segment's first byte on.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::error::RepoError;
use super::layout::PieceKey;
use super::wal_object::{DIGEST_METADATA, LENGTH_METADATA, Writer};
use crate::postgres::{ClusterIdent, PgMajor, SegmentName, SegmentSize, SystemId};
use crate::storage::{ObjectMeta, UserMetadata};
use crate::stream::frame::{self, Frame};
use crate::stream::{Packed, Receipt, Sha256, UnpackError, Unpacker};

const FORMAT: &str = "pgark-live-1";

/// The most plain bytes that a piece may hold: readers keep one in memory.
pub const LARGEST_PIECE: u64 = 64 << 20;

/// Metadata of the object that repeats the digest of the piece before; absent at the segment's beginning.
const PREVIOUS_METADATA: &str = "pgark-previous";

/// What a piece says about itself. JSON; readers pass over fields that they do not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceHeader {
    format: String,
    /// The segment that it is a piece of.
    pub segment: String,
    system_identifier: SystemId,
    postgres_major: PgMajor,
    /// Bytes in a segment.
    pub segment_size: u64,
    /// Where in the segment it begins.
    pub offset: u32,
    /// How many bytes of the segment it holds.
    pub plain_length: u64,
    /// SHA-256 of those bytes.
    pub sha256: Sha256,
    /// The digest of the piece before; absent at offset 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Sha256>,
    /// Bytes of the object behind the header's frame.
    pub stored_length: u64,
    /// When it was written, by the writer's clock.
    pub written: Timestamp,
    /// By whom.
    pub writer: String,
    /// The time of the last commit in it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_commit: Option<Timestamp>,
    /// What its writer knew of the whole tail up to here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub so_far: Option<SoFar>,
}

/// A tail up to the end of one of its pieces. Whoever lists the tail sees by it whether the pieces before are still those that
/// were there, without reading each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoFar {
    /// Pieces before this one.
    pub pieces: u64,
    /// Bytes of their objects.
    pub stored: u64,
    /// SHA-256 of the segment's bytes up to the end of this piece.
    pub sha256: Sha256,
}

/// What the writer of a piece knows besides its bytes.
#[derive(Clone, Debug)]
pub struct PieceOrigin {
    /// The segment.
    pub segment: SegmentName,
    /// Where in it the piece begins.
    pub offset: u32,
    /// The digest of the piece before; `None` at offset 0, and only there.
    pub previous: Option<Sha256>,
    /// The cluster it belongs to.
    pub ident: ClusterIdent,
    /// The length of its segments.
    pub segment_size: SegmentSize,
    /// The time of the last commit in it, where that is known.
    pub last_commit: Option<Timestamp>,
    /// The writer's clock.
    pub written: Timestamp,
    /// The writer.
    pub writer: Writer,
}

/// A piece ready to be stored.
#[derive(Clone, Debug)]
pub struct LivePiece {
    /// Which it is.
    pub key: PieceKey,
    /// Its header.
    pub header: PieceHeader,
    /// Header and compressed bytes.
    pub bytes: Bytes,
}

impl LivePiece {
    /// Room that [`crate::stream::pack()`] shall leave for the header.
    pub const ROOM: usize = frame::ROOM;

    /// Puts the header in front of what was packed with [`LivePiece::ROOM`]. A piece that no reader would take is an error.
    pub fn build(from: PieceOrigin, packed: Packed) -> Result<Self, RepoError> {
        LivePiece::build_behind(from, packed, None)
    }

    /// As [`LivePiece::build`], by a writer that knows the tail up to the end of the piece.
    pub fn build_behind(from: PieceOrigin, packed: Packed, so_far: Option<SoFar>) -> Result<Self, RepoError> {
        let Packed { mut object, plain } = packed;
        let key = PieceKey { segment: from.segment, offset: from.offset };
        let header = PieceHeader {
            format: FORMAT.to_owned(),
            segment: from.segment.to_string(),
            system_identifier: from.ident.system_id,
            postgres_major: from.ident.major,
            segment_size: from.segment_size.bytes(),
            offset: from.offset,
            plain_length: plain.length,
            sha256: plain.sha256,
            previous: from.previous,
            stored_length: (object.len() - Self::ROOM) as u64,
            written: from.written,
            writer: from.writer.to_string(),
            last_commit: from.last_commit,
            so_far,
        };
        let unwritable = |reason: String| RepoError::damaged(&format!("{}/{:08X}", key.segment, key.offset), reason);
        header.is_sound(key).map_err(unwritable)?;
        let json = serde_json::to_vec(&header).map_err(|e| unwritable(e.to_string()))?;
        frame::write_in_front(&mut object, Self::ROOM, &json).map_err(|e| unwritable(e.to_string()))?;
        Ok(LivePiece { key, header, bytes: object.into() })
    }

    /// What is given to the store besides the bytes.
    pub fn metadata(&self) -> UserMetadata {
        let mut metadata = UserMetadata::from([
            (DIGEST_METADATA.to_owned(), self.header.sha256.to_string()),
            (LENGTH_METADATA.to_owned(), self.header.plain_length.to_string()),
        ]);
        metadata.extend(self.header.previous.map(|previous| (PREVIOUS_METADATA.to_owned(), previous.to_string())));
        metadata
    }

    /// Whether metadata alone shows that the stored object is this one.
    pub fn surely_is(&self, stored: &ObjectMeta) -> bool {
        let same = |(name, value): (&String, &String)| stored.user.get(name) == Some(value);
        let first = self.header.previous.is_none();
        stored.size == self.bytes.len() as u64
            && self.metadata().iter().all(same)
            && !(first && stored.user.contains_key(PREVIOUS_METADATA))
    }
}

/// Why an object is no piece that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// In words.
    pub reason: String,
    /// Nothing is wrong with it: another version of pgark wrote it, and can read it.
    pub newer: bool,
}

impl From<String> for Unfit {
    fn from(reason: String) -> Self {
        Unfit { reason, newer: false }
    }
}

impl From<&str> for Unfit {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

/// The one field that all versions have.
#[derive(Deserialize)]
struct Format {
    format: String,
}

/// What a reader knows about the pieces it wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExpectedPiece {
    /// The cluster that asks, where it is known.
    pub ident: Option<ClusterIdent>,
    /// That cluster's segment size, where it is known.
    pub segment_size: Option<SegmentSize>,
}

impl PieceHeader {
    /// Reads the header in front of an object; `None` when more bytes are needed. With it comes the length of its frame.
    pub fn read(start: &[u8]) -> Result<Option<(Self, usize)>, Unfit> {
        let Some(Frame { payload, length }) = frame::read(start).map_err(|e| e.to_string())? else {
            return Ok(None);
        };
        let unreadable = |e: serde_json::Error| format!("its header cannot be read: {e}");
        let Format { format } = serde_json::from_slice(payload).map_err(unreadable)?;
        if format != FORMAT {
            let reason = format!("format `{format}` needs another version of pgark");
            return Err(Unfit { reason, newer: true });
        }
        Ok(Some((serde_json::from_slice(payload).map_err(unreadable)?, length)))
    }

    /// The cluster.
    pub fn ident(&self) -> ClusterIdent {
        ClusterIdent { system_id: self.system_identifier, major: self.postgres_major }
    }

    /// The receipt that the plain bytes must give.
    pub fn plain(&self) -> Receipt {
        Receipt { sha256: self.sha256, length: self.plain_length }
    }

    /// Where in the segment the byte behind its last one is.
    pub fn end(&self) -> u64 {
        u64::from(self.offset).saturating_add(self.plain_length)
    }

    /// Whether both hold the same bytes of the same place, behind the same piece.
    pub fn is_same(&self, other: &PieceHeader) -> bool {
        (&self.segment, self.offset, self.plain(), self.previous, self.ident(), self.segment_size)
            == (&other.segment, other.offset, other.plain(), other.previous, other.ident(), other.segment_size)
    }

    fn is_sound(&self, key: PieceKey) -> Result<(), String> {
        if self.segment != key.segment.to_string() {
            return Err(format!("it holds a piece of `{}`, not of `{}`", self.segment, key.segment));
        }
        if self.offset != key.offset {
            return Err(format!("it begins at byte {:#X} of its segment, not at {:#X}", self.offset, key.offset));
        }
        let size = SegmentSize::new(self.segment_size).map_err(|e| e.to_string())?;
        size.number(key.segment).map_err(|e| e.to_string())?;
        if !(1..=LARGEST_PIECE).contains(&self.plain_length) || self.end() > size.bytes() {
            return Err(format!("its header claims {} bytes, which no piece there has", self.plain_length));
        }
        if self.previous.is_some() != (self.offset > 0) {
            return Err("its header names a piece before the first, or none before a later one".to_owned());
        }
        Ok(())
    }

    /// Whether an object of `size` bytes, `frame` of them header, is the piece of this key.
    pub fn check(&self, key: PieceKey, expected: &ExpectedPiece, frame: usize, size: u64) -> Result<(), String> {
        self.is_sound(key)?;
        if let Some(ident) = expected.ident.filter(|ident| *ident != self.ident()) {
            return Err(format!("it belongs to another cluster ({}); this one has {ident}", self.ident()));
        }
        if let Some(ours) = expected.segment_size.filter(|ours| ours.bytes() != self.segment_size) {
            return Err(format!("its segments are {} bytes long, this cluster's {}", self.segment_size, ours.bytes()));
        }
        let whole = (frame as u64).saturating_add(self.stored_length);
        if size != whole {
            return Err(format!("it is {size} bytes long, but was written with {whole}"));
        }
        Ok(())
    }
}

/// Reads a whole stored piece: header and plain bytes, verified but for its link to the piece before.
pub fn open(key: PieceKey, object: &[u8], expected: &ExpectedPiece) -> Result<(PieceHeader, Vec<u8>), Unfit> {
    let (header, frame) = PieceHeader::read(object)?.ok_or("it ends within its header")?;
    header.check(key, expected, frame, object.len() as u64)?;
    let damaged = |e: UnpackError| e.to_string();
    let mut unpacker = Unpacker::new(Vec::new(), header.plain_length).map_err(|e| e.to_string())?;
    unpacker.push(&object[frame..]).map_err(damaged)?;
    let (receipt, plain) = unpacker.finish().map_err(damaged)?;
    if receipt != header.plain() {
        let reason = format!("its content has the digest {}, its header says {}", receipt.sha256, header.sha256);
        return Err(reason.into());
    }
    Ok((header, plain))
}
