//! Tails for tests: a segment whose first page is sound, cut into pieces.

use std::sync::Arc;

use jiff::Timestamp;

use super::archive::WalArchive;
use super::live_piece::{LivePiece, PieceOrigin};
use super::live_tail::PiecePut;
use super::{Generation, PieceKey, Repository, Writer};
use crate::postgres::{ClusterIdent, PgMajor, SegmentName, SegmentSize, SystemId};
use crate::storage::memory::MemoryStore;
use crate::stream::{Sha256, pack};

pub(super) const SIZE: SegmentSize = SegmentSize::SMALLEST;

pub(super) fn ident() -> ClusterIdent {
    ClusterIdent { system_id: SystemId(7), major: PgMajor::try_from(15).unwrap() }
}

pub(super) fn segment() -> SegmentName {
    "000000010000000000000005".parse().unwrap()
}

/// A segment's bytes: a first page of PostgreSQL, then bytes that depend on the seed.
pub(super) fn plain(name: SegmentName, seed: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..SIZE.bytes()).map(|at| (at / 3) as u8 ^ (at >> 11) as u8 ^ seed).collect();
    let start = SIZE.start(SIZE.number(name).unwrap());
    bytes[0..2].copy_from_slice(&ident().major.page_magic().to_le_bytes());
    bytes[2..4].copy_from_slice(&6u16.to_le_bytes());
    bytes[4..8].copy_from_slice(&name.timeline.get().to_le_bytes());
    bytes[8..16].copy_from_slice(&start.0.to_le_bytes());
    bytes[24..32].copy_from_slice(&ident().system_id.0.to_le_bytes());
    bytes[32..36].copy_from_slice(&(SIZE.bytes() as u32).to_le_bytes());
    bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
    bytes
}

/// A store with a generation and an archive of it.
pub(super) struct World {
    pub(super) store: Arc<MemoryStore>,
    pub(super) repository: Repository,
    pub(super) archive: WalArchive,
}

impl World {
    pub(super) fn new() -> Self {
        let store = Arc::new(MemoryStore::default());
        let repository = Repository::new(store.clone(), "main".parse().unwrap());
        let archive = repository.archive(Generation::FIRST);
        World { store, repository, archive }
    }

    pub(super) async fn put(&self, piece: &LivePiece) {
        assert_eq!(self.archive.put_piece(piece).await.unwrap(), PiecePut::Created);
    }

    /// Cuts a segment at these places and stores all pieces up to the last one.
    pub(super) async fn put_tail(&self, name: SegmentName, plain: &[u8], cuts: &[u32]) -> Vec<LivePiece> {
        let pieces = pieces(name, plain, cuts);
        for piece in &pieces {
            self.put(piece).await;
        }
        pieces
    }

    pub(super) fn key(&self, piece: &LivePiece) -> crate::storage::ObjectKey {
        self.key_at(piece.key.segment, piece.key.offset)
    }

    pub(super) fn key_at(&self, segment: SegmentName, offset: u32) -> crate::storage::ObjectKey {
        self.repository.layout.live_piece(Generation::FIRST, PieceKey { segment, offset })
    }
}

pub(super) fn piece(name: SegmentName, offset: u32, bytes: &[u8], previous: Option<Sha256>) -> LivePiece {
    piece_of(ident(), name, offset, bytes, previous)
}

pub(super) fn piece_of(
    ident: ClusterIdent,
    segment: SegmentName,
    offset: u32,
    bytes: &[u8],
    previous: Option<Sha256>,
) -> LivePiece {
    let packed = pack(bytes, bytes.len() as u64, 1, LivePiece::ROOM, |_, _| Ok(()), |_| ()).unwrap();
    let origin = PieceOrigin {
        segment,
        offset,
        previous,
        ident,
        segment_size: SIZE,
        last_commit: Timestamp::from_second(1_795_000_000 + i64::from(offset)).ok(),
        written: Timestamp::UNIX_EPOCH,
        writer: Writer { host: "db1".into(), pid: 1, version: "0" },
    };
    LivePiece::build(origin, packed).unwrap()
}

/// The pieces between these places, each linked to the one before it.
pub(super) fn pieces(name: SegmentName, plain: &[u8], cuts: &[u32]) -> Vec<LivePiece> {
    let mut previous = None;
    let of = |pair: &[u32]| {
        let made = piece(name, pair[0], &plain[pair[0] as usize..pair[1] as usize], previous);
        previous = Some(made.header.sha256);
        made
    };
    cuts.windows(2).map(of).collect()
}
