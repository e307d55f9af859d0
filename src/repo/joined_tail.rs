//! Makes a segment of its pieces: verified, without a hole, filled up with zeros.
//!
//! Recovery reads the beginning of such a segment and finds nothing behind the last piece. So a prefix may end anywhere, but no byte
//! of it may be another than the server's: the first piece that is missing, damaged, not linked to the one before it, or at odds
//! with another one ends it there.

use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt, stream};
use jiff::Timestamp;

use super::archive::{ReadBounds, WalArchive, check_page};
use super::error::RepoError;
use super::layout::PieceKey;
use super::live_piece::{self, ExpectedPiece, PieceHeader, Unfit};
use super::live_tail::{LARGEST_OBJECT, ListedPiece, TailBreak};
use super::stored_object::StoredObject;
use crate::postgres::{ClusterIdent, SegmentName, SegmentSize, WalHeader};
use crate::storage::{Get, ObjectKey};
use crate::stream::Resumable;

/// What a tail gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedTail {
    /// How many bytes from the segment's beginning on are the server's; 0: none, and the sink holds rubbish. Else zeros
    /// follow up to the segment's size.
    pub end: u64,
    /// Bytes in the segment.
    pub segment_size: u64,
    /// How many pieces they are from.
    pub pieces: u64,
    /// When the last of the pieces was stored, by the store's clock.
    pub stored: Option<Timestamp>,
    /// The bytes of the objects that it was made of.
    pub stored_bytes: u64,
    /// Pieces that begin within others, as no single receiver writes them, and say the same.
    pub beside: Vec<ObjectKey>,
    /// Why it ends before the last piece that is there; `None`: all pieces are in it.
    pub broken: Option<TailBreak>,
}

impl JoinedTail {
    /// Whether nothing of the segment is missing.
    pub fn is_whole(&self) -> bool {
        self.end > 0 && self.end == self.segment_size
    }
}

/// Pieces that are read ahead: of large ones a few, for they are held in memory; of small ones many, for each is a request.
const READS: RangeInclusive<u64> = 8..=64;
const READ_AHEAD: u64 = 32 << 20;
/// So much a piece counts at least as progress.
const A_PIECE: u64 = 16 << 10;
/// How often a damaged piece is read: the damage may have happened on the way.
const TRIES: u32 = 3;

impl WalArchive {
    /// Joins the pieces of a segment into `sink`, and fills it up. `None`: there is none.
    pub async fn join_tail<W: Write + Send>(
        &self,
        segment: SegmentName,
        expected: ExpectedPiece,
        sink: W,
        bounds: &ReadBounds,
    ) -> Result<Option<(JoinedTail, W)>, RepoError> {
        let Some((joined, mut sink)) = self.join_prefix(segment, expected, sink, bounds).await? else {
            return Ok(None);
        };
        if joined.end > 0 {
            fill_up(joined.segment_size - joined.end, &mut sink).map_err(RepoError::Destination)?;
        }
        Ok(Some((joined, sink)))
    }

    /// The same without the zeros behind it.
    pub(super) async fn join_prefix<W: Write + Send>(
        &self,
        segment: SegmentName,
        expected: ExpectedPiece,
        mut sink: W,
        bounds: &ReadBounds,
    ) -> Result<Option<(JoinedTail, W)>, RepoError> {
        let (listed, unknown) = self.listed_pieces(segment).await?;
        if listed.is_empty() && unknown.is_empty() {
            return Ok(None);
        }
        let received = &AtomicU64::new(0);
        let at_once = reads_at_once(&listed);
        let reads = listed.into_iter().map(|listed| async move {
            let read = self.read_piece(listed.key, expected, bounds, received).await;
            (listed, read)
        });
        let mut reads = stream::iter(reads).buffered(at_once);
        let mut chain = Chain::new(segment);
        let (mut stored, mut stored_bytes, mut beside, mut broken) = (None, 0, Vec::new(), None);
        while let Some((listed, read)) = reads.next().await {
            match chain.take(listed.key, read?, &mut sink)? {
                Taken::Linked => {
                    stored = listed.modified;
                    stored_bytes += listed.stored;
                }
                Taken::Beside => beside.push(self.layout.live_piece(self.generation, listed.key)),
                Taken::Broken(Unfit { reason, newer }) => {
                    let key = self.layout.live_piece(self.generation, listed.key).to_string();
                    let missing = u64::from(listed.key.offset) > chain.end;
                    broken = Some(TailBreak { segment, key, reason, missing, newer });
                    break;
                }
            }
        }
        let (mut joined, odd) = chain.finish(stored, &mut sink)?;
        let odd = odd.map(|(offset, reason)| {
            let key = self.layout.live_piece(self.generation, PieceKey { segment, offset });
            TailBreak { segment, key: key.to_string(), reason, missing: false, newer: false }
        });
        let unknown = unknown.into_iter().next();
        let unknown = unknown.map(|key| TailBreak {
            segment,
            key,
            reason: "it is no piece that this pgark knows".to_owned(),
            missing: false,
            newer: true,
        });
        joined.broken = broken.or(odd).or(unknown);
        (joined.stored_bytes, joined.beside) = (stored_bytes, beside);
        Ok(Some((joined, sink)))
    }

    /// Reads a piece only to see whether it is what it was. `None` is the store's proof that it is not there.
    pub(super) async fn verify_piece(
        &self,
        piece: PieceKey,
        ident: ClusterIdent,
        segment_size: Option<SegmentSize>,
        bounds: &ReadBounds,
    ) -> Result<Option<()>, RepoError> {
        let key = self.layout.live_piece(self.generation, piece);
        let expected = ExpectedPiece { ident: Some(ident), segment_size };
        match self.read_piece(piece, expected, bounds, &AtomicU64::new(0)).await? {
            Ok(_) => Ok(Some(())),
            Err(_) if matches!(self.store.get(&key, 0, None).await?, Get::Missing) => Ok(None),
            Err(unfit) => Err(RepoError::damaged(&key, unfit.reason)),
        }
    }

    /// The outer error is the store's, the inner one says what is wrong with the piece.
    pub(super) async fn read_piece(
        &self,
        piece: PieceKey,
        expected: ExpectedPiece,
        bounds: &ReadBounds,
        received: &AtomicU64,
    ) -> Result<Result<(PieceHeader, Vec<u8>), Unfit>, RepoError> {
        let mut tries = 1;
        loop {
            let object = match self.download_piece(piece, bounds, received).await? {
                Ok(object) => object,
                Err(reason) => return Ok(Err(reason)),
            };
            let opened = tokio::task::spawn_blocking(move || live_piece::open(piece, &object, &expected)).await;
            let broken = |_| RepoError::Destination(io::Error::other("the thread that unpacks failed"));
            match opened.map_err(broken)? {
                Err(unfit) if tries < TRIES && !unfit.newer => tries += 1,
                opened => return Ok(opened),
            }
        }
    }

    async fn download_piece(
        &self,
        piece: PieceKey,
        bounds: &ReadBounds,
        received: &AtomicU64,
    ) -> Result<Result<Vec<u8>, Unfit>, RepoError> {
        let key = self.layout.live_piece(self.generation, piece);
        let Get::Found(found) = self.store.get(&key, 0, None).await? else {
            return Ok(Err("it vanished while the tail was read".into()));
        };
        let size = found.meta.size;
        if size > LARGEST_OBJECT {
            return Ok(Err(format!("{size} bytes are too many for a piece").into()));
        }
        let source = StoredObject::new(Arc::clone(&self.store), key, found.meta.etag);
        let mut bytes = Resumable::new(source, found.body, size, bounds.stall, bounds.patience);
        let mut object = Vec::with_capacity(size as usize);
        while let Some(more) = bytes.next().await {
            let more = more?;
            let moved = received.fetch_add(more.len() as u64, Ordering::Relaxed) + more.len() as u64;
            bounds.progress.fetch_max(moved, Ordering::Relaxed);
            object.extend_from_slice(&more);
        }
        // A tail may have thousands of tiny pieces.
        let moved = received.fetch_add(A_PIECE, Ordering::Relaxed) + A_PIECE;
        bounds.progress.fetch_max(moved, Ordering::Relaxed);
        Ok(Ok(object))
    }
}

/// What is known before a piece is read: the length of its object, and where the next one begins.
fn reads_at_once(listed: &[ListedPiece]) -> usize {
    let plain = listed.windows(2).map(|pair| u64::from(pair[1].key.offset.saturating_sub(pair[0].key.offset)));
    let largest = listed.iter().map(|listed| listed.stored).chain(plain).max().unwrap_or(1).max(1);
    (READ_AHEAD / largest).clamp(*READS.start(), *READS.end()) as usize
}

/// The pieces from the segment's first byte on, each linked to the one before it.
struct Chain {
    segment: SegmentName,
    /// The last linked piece, not yet written: a piece beside it may show that it is not the only word.
    held: Vec<u8>,
    end: u64,
    last: Option<PieceHeader>,
    pieces: u64,
    /// The first page's header.
    start: Vec<u8>,
    /// What pieces beside the chain say of bytes behind its end, by where they begin.
    beside: Vec<(u32, Vec<u8>)>,
}

enum Taken {
    Linked,
    /// It begins within the piece before it and says the same.
    Beside,
    Broken(Unfit),
}

impl Chain {
    fn new(segment: SegmentName) -> Self {
        let (held, start, beside) = (Vec::new(), Vec::new(), Vec::new());
        Chain { segment, held, end: 0, last: None, pieces: 0, start, beside }
    }

    /// Pieces come in the order of their offsets.
    fn take(
        &mut self,
        key: PieceKey,
        read: Result<(PieceHeader, Vec<u8>), Unfit>,
        sink: &mut impl Write,
    ) -> Result<Taken, RepoError> {
        let offset = u64::from(key.offset);
        if offset > self.end {
            let reason = format!("what comes before it is missing, from byte {:#X} of the segment on", self.end);
            return Ok(Taken::Broken(reason.into()));
        }
        let (header, plain) = match read {
            Ok(read) => read,
            Err(unfit) => {
                self.cut(offset);
                return Ok(Taken::Broken(unfit));
            }
        };
        if offset < self.end {
            return Ok(self.compare_beside(key.offset, plain));
        }
        if let Some(reason) = self.at_odds(&header) {
            return Ok(Taken::Broken(reason.into()));
        }
        sink.write_all(&self.held).map_err(RepoError::Destination)?;
        self.link(header, plain);
        Ok(match self.compare_ahead(offset) {
            Some(reason) => Taken::Broken(reason.into()),
            None => Taken::Linked,
        })
    }

    fn at_odds(&self, header: &PieceHeader) -> Option<String> {
        let Some(last) = &self.last else { return None };
        if header.previous != Some(last.sha256) {
            return Some("it was written behind another piece than the one before it".to_owned());
        }
        if (header.ident(), header.segment_size) != (last.ident(), last.segment_size) {
            return Some(format!("it belongs to another cluster ({}) than the piece before it", header.ident()));
        }
        None
    }

    fn link(&mut self, header: PieceHeader, plain: Vec<u8>) {
        let missing = WalHeader::LEN - self.start.len();
        self.start.extend_from_slice(&plain[..plain.len().min(missing)]);
        self.end += plain.len() as u64;
        self.held = plain;
        self.pieces += 1;
        self.last = Some(header);
    }

    /// A piece that begins within the last linked one.
    fn compare_beside(&mut self, begins: u32, mut plain: Vec<u8>) -> Taken {
        let offset = u64::from(begins);
        let from = (offset + self.held.len() as u64 - self.end) as usize;
        if let Some(at) = first_difference(&self.held[from..], &plain) {
            self.cut(offset + at);
            return Taken::Broken(contradicts(offset + at).into());
        }
        let common = (self.end - offset).min(plain.len() as u64) as usize;
        let rest = plain.split_off(common);
        if !rest.is_empty() {
            self.beside.push((begins, rest));
        }
        Taken::Beside
    }

    /// Compares the piece that was linked at `offset` with what pieces beside the chain said of its bytes.
    fn compare_ahead(&mut self, offset: u64) -> Option<String> {
        let differences = self.beside.iter().filter_map(|(_, said)| first_difference(&self.held, said));
        let first = differences.min();
        let length = self.held.len();
        self.beside.retain(|(_, said)| said.len() > length);
        for (_, said) in &mut self.beside {
            said.drain(..length);
        }
        let at = offset + first?;
        self.cut(at);
        self.beside.clear();
        Some(contradicts(at))
    }

    /// Takes bytes of the last linked piece back.
    fn cut(&mut self, end: u64) {
        let begin = self.end - self.held.len() as u64;
        if end < self.end {
            self.held.truncate(end.saturating_sub(begin) as usize);
            self.end = begin + self.held.len() as u64;
        }
    }

    /// Writes the last piece. With it comes what else is wrong, and with the piece at which offset.
    fn finish(
        self,
        stored: Option<Timestamp>,
        sink: &mut impl Write,
    ) -> Result<(JoinedTail, Option<(u32, String)>), RepoError> {
        let segment_size = self.last.as_ref().map_or(0, |last| last.segment_size);
        let pieces = self.pieces;
        let mut joined = JoinedTail {
            end: self.end,
            segment_size,
            pieces,
            stored,
            stored_bytes: 0,
            beside: Vec::new(),
            broken: None,
        };
        let ident = self.last.as_ref().map(PieceHeader::ident);
        if let Err(reason) = self.check_start(segment_size, ident) {
            joined = JoinedTail { end: 0, pieces: 0, stored: None, ..joined };
            return Ok((joined, Some((0, reason))));
        }
        let odd = self.beside.first().map(|(begins, _)| {
            (*begins, format!("it goes on behind byte {:#X} of the segment, where no linked piece does", self.end))
        });
        sink.write_all(&self.held).map_err(RepoError::Destination)?;
        Ok((joined, odd))
    }

    fn check_start(&self, segment_size: u64, ident: Option<ClusterIdent>) -> Result<(), String> {
        let Some(ident) = ident else { return Err("there is no piece with its first byte".to_owned()) };
        if self.end < WalHeader::LEN as u64 {
            return Err(format!("its first {} bytes are too few for the header of a page", self.end));
        }
        check_page(self.segment, segment_size, ident, &self.start)
    }
}

fn fill_up(mut missing: u64, sink: &mut impl Write) -> std::io::Result<()> {
    let zeros = [0; 64 << 10];
    while missing > 0 {
        let count = missing.min(zeros.len() as u64);
        sink.write_all(&zeros[..count as usize])?;
        missing -= count;
    }
    sink.flush()
}

fn contradicts(at: u64) -> String {
    format!("it contradicts another piece at byte {at:#X} of the segment")
}

/// Where two readings of the same bytes differ, as far as both go.
fn first_difference(one: &[u8], other: &[u8]) -> Option<u64> {
    one.iter().zip(other).position(|(one, other)| one != other).map(|at| at as u64)
}

#[cfg(test)]
mod tests {
    use super::super::tail_world::{World, ident, piece, piece_of, pieces, plain, segment};
    use super::*;
    use crate::postgres::{ClusterIdent, SystemId};
    use crate::repo::LivePiece;
    use crate::storage::{ObjectStore, UserMetadata};
    use crate::stream::Sha256;
    use proptest::prelude::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    async fn join(world: &World) -> Option<(JoinedTail, Vec<u8>)> {
        let expected = ExpectedPiece { ident: Some(ident()), segment_size: None };
        world.archive.join_tail(segment(), expected, Vec::new(), &ReadBounds::default()).await.unwrap()
    }

    /// Up to `end` the server's bytes, behind it zeros; says at which piece it broke.
    #[track_caller]
    fn ends(joined: Option<(JoinedTail, Vec<u8>)>, original: &[u8], end: u64) -> Option<TailBreak> {
        let (joined, bytes) = joined.unwrap();
        assert_eq!(joined.end, end, "{joined:?}");
        if end > 0 {
            assert_eq!(bytes.len(), original.len());
            assert!(bytes[..end as usize] == original[..end as usize], "other bytes than the server's");
            assert!(bytes[end as usize..].iter().all(|byte| *byte == 0), "something behind the end");
        }
        joined.broken
    }

    const CUTS: [u32; 6] = [0, 100, 20_000, 20_001, 300_000, 700_000];

    #[test]
    fn pieces_become_the_beginning_of_a_segment() {
        run(async {
            let world = World::new();
            assert_eq!(join(&world).await, None);
            let original = plain(segment(), 0);
            let last = world.put_tail(segment(), &original, &CUTS).await.pop().unwrap();
            let joined = join(&world).await;
            let tail = joined.as_ref().unwrap().0.clone();
            assert_eq!(ends(joined, &original, 700_000), None);
            assert_eq!((tail.pieces, tail.is_whole()), (5, false));
            assert!(tail.stored.is_some());
            // To the very end.
            world.put(&piece(segment(), 700_000, &original[700_000..], Some(last.header.sha256))).await;
            let joined = join(&world).await;
            assert!(joined.as_ref().unwrap().0.is_whole());
            assert_eq!(ends(joined, &original, 1 << 20), None);
        });
    }

    /// What is wrong with the piece number `at`, and what is said of it; `None`: nothing can be.
    async fn spoil(what: &str, at: usize, original: &[u8], all: &[LivePiece]) -> (World, Option<String>) {
        let world = World::new();
        let link = all[at].header.previous;
        let bytes = &original[CUTS[at] as usize..CUTS[at + 1] as usize];
        let other = ClusterIdent { system_id: SystemId(8), ..ident() };
        let odd = match what {
            "missing" => None,
            "foreign" => Some(piece_of(other, segment(), CUTS[at], bytes, link)),
            "relinked" => Some(piece(segment(), CUTS[at], bytes, link.map(|_| Sha256::of(b"x")))),
            _ => Some(all[at].clone()),
        };
        for piece in all[..at].iter().chain(&odd).chain(&all[at + 1..]) {
            world.put(piece).await;
        }
        let key = world.key(&all[at]);
        match what {
            "flipped" => world.store.corrupt(&key, |bytes| *bytes.last_mut().unwrap() ^= 1),
            "cut" => world.store.corrupt(&key, |bytes| bytes.truncate(bytes.len() - 1)),
            "of another segment" => {
                let stray = piece("000000010000000000000006".parse().unwrap(), CUTS[at], bytes, link);
                world.store.corrupt(&key, |bytes| *bytes = stray.bytes.to_vec());
            }
            _ => {}
        }
        // A hole is seen at the piece behind it.
        let named = if what == "missing" { all.get(at + 1) } else { Some(&all[at]) };
        let named = named.filter(|_| (what, at) != ("relinked", 0));
        let key = named.map(|piece| world.key(piece).to_string());
        (world, key)
    }

    #[test]
    fn the_end_is_exactly_before_what_is_wrong() {
        run(async {
            let original = plain(segment(), 0);
            let all = pieces(segment(), &original, &CUTS);
            for (what, reason) in [
                ("missing", "is missing"),
                ("flipped", ""),
                ("cut", "was written with"),
                ("foreign", "another cluster"),
                ("relinked", "another piece than the one before it"),
                ("of another segment", "not of"),
            ] {
                for (at, begins) in CUTS[..5].iter().enumerate() {
                    let (world, key) = spoil(what, at, &original, &all).await;
                    let end = if (what, at) == ("relinked", 0) { CUTS[5] } else { *begins };
                    let broken = ends(join(&world).await, &original, end.into());
                    assert_eq!(broken.as_ref().map(|broken| &broken.key), key.as_ref(), "{what} at {at}");
                    assert!(broken.is_none_or(|broken| broken.reason.contains(reason)), "{what} at {at}");
                }
            }
        });
    }

    #[test]
    fn swapped_pieces_end_it() {
        run(async {
            let world = World::new();
            let original = plain(segment(), 0);
            let all = world.put_tail(segment(), &original, &[0, 1000, 2000, 3000, 4000]).await;
            let (one, other) = (all[1].bytes.to_vec(), all[2].bytes.to_vec());
            world.store.corrupt(&world.key(&all[1]), |bytes| *bytes = other);
            world.store.corrupt(&world.key(&all[2]), |bytes| *bytes = one);
            let broken = ends(join(&world).await, &original, 1000).unwrap();
            assert_eq!(broken.key, world.key(&all[1]).to_string());
        });
    }

    #[test]
    fn what_lies_beside_the_chain_must_say_the_same() {
        run(async {
            let original = plain(segment(), 0);
            let stray = |from: usize, to: usize, bytes: &[u8]| -> LivePiece {
                piece(segment(), from as u32, &bytes[from..to], Some(Sha256::of(b"another")))
            };
            let cuts = [0, 1000, 2000, 3000];
            // The same bytes, cut otherwise, do no harm.
            for (from, to) in [(500, 600), (500, 1000), (500, 2500), (1500, 3000), (1, 3000)] {
                let world = World::new();
                world.put_tail(segment(), &original, &cuts).await;
                world.put(&stray(from, to, &original)).await;
                assert_eq!(ends(join(&world).await, &original, 3000), None, "{from}..{to}");
            }
            // Beyond the chain nobody answers for them.
            let world = World::new();
            world.put_tail(segment(), &original, &cuts).await;
            world.put(&stray(2500, 3500, &original)).await;
            let broken = ends(join(&world).await, &original, 3000).unwrap();
            assert_eq!(broken.key, world.key_at(segment(), 2500).to_string());
            // Another byte ends it there.
            for (from, to, at) in
                [(500, 600, 500), (500, 600, 599), (500, 2500, 1000), (500, 2500, 2499), (1500, 3000, 2000)]
            {
                let world = World::new();
                world.put_tail(segment(), &original, &cuts).await;
                let mut other = original.clone();
                other[at] ^= 1;
                world.put(&stray(from, to, &other)).await;
                let broken = ends(join(&world).await, &original, at as u64).unwrap();
                assert!(broken.reason.contains("contradicts"), "{broken:?}");
            }
            // One that cannot be read may say anything.
            let world = World::new();
            world.put_tail(segment(), &original, &cuts).await;
            let odd = stray(1500, 1600, &original);
            world.put(&odd).await;
            world.store.corrupt(&world.key(&odd), |bytes| bytes.truncate(50));
            assert_eq!(ends(join(&world).await, &original, 1500).unwrap().key, world.key(&odd).to_string());
        });
    }

    #[test]
    fn a_first_page_of_something_else_gives_nothing() {
        run(async {
            let original = plain("000000010000000000000006".parse().unwrap(), 0);
            let world = World::new();
            let all = world.put_tail(segment(), &original, &CUTS).await;
            let broken = ends(join(&world).await, &original, 0).unwrap();
            assert_eq!(broken.key, world.key(&all[0]).to_string());
            assert!(broken.reason.contains("begins at"), "{broken:?}");
            // Too few bytes for a page.
            let world = World::new();
            world.put_tail(segment(), &plain(segment(), 0), &[0, 39]).await;
            assert!(ends(join(&world).await, &original, 0).unwrap().reason.contains("too few"));
        });
    }

    #[test]
    fn what_another_version_wrote_is_not_damaged() {
        run(async {
            let world = World::new();
            let original = plain(segment(), 0);
            let all = world.put_tail(segment(), &original, &CUTS).await;
            let mut newer = Vec::new();
            crate::stream::frame::write_in_front(&mut newer, 0, br#"{"format":"pgark-live-2","cut":[1,2]}"#).unwrap();
            world.store.corrupt(&world.key(&all[2]), |bytes| *bytes = newer);
            let broken = ends(join(&world).await, &original, CUTS[2].into()).unwrap();
            assert!(broken.newer && broken.reason.contains("`pgark-live-2` needs another version"), "{broken:?}");
        });
    }

    #[test]
    fn many_small_pieces_are_read_at_once_and_few_large_ones() {
        let tail = |length: u32, stored: u64| -> Vec<ListedPiece> {
            let key = |number| PieceKey { segment: segment(), offset: number * length };
            (0..5).map(|number| ListedPiece { key: key(number), stored, modified: None }).collect()
        };
        let at_once = |length, stored| reads_at_once(&tail(length, stored));
        assert_eq!([at_once(300, 250), at_once(1 << 20, 300 << 10), at_once(64 << 20, 9 << 20)], [64, 32, 8]);
        assert_eq!([at_once(64 << 20, 300), reads_at_once(&[])], [8, 64]);
    }

    #[test]
    fn what_is_not_known_is_named() {
        run(async {
            let world = World::new();
            let original = plain(segment(), 0);
            world.put_tail(segment(), &original, &CUTS).await;
            let odd = format!("{}.age", world.key_at(segment(), 700_000));
            world.store.put(&odd.parse().unwrap(), "x".into(), &UserMetadata::new()).await.unwrap();
            assert_eq!(ends(join(&world).await, &original, 700_000).unwrap().key, odd);
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]
        /// Whatever is done to the objects, what comes out is a prefix of the server's bytes.
        #[test]
        fn damage_never_gives_other_bytes(
            cuts in proptest::collection::btree_set(41u32..50_000, 1..9),
            hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..5, 1u8..), 0..4),
        ) {
            run(async {
                let world = World::new();
                let original = plain(segment(), 3);
                let cuts: Vec<u32> = std::iter::once(0).chain(cuts).collect();
                let all = world.put_tail(segment(), &original, &cuts).await;
                let mut first_hit = all.len();
                for (which, at, how, flip) in hits {
                    let number = which.index(all.len());
                    let key = world.key(&all[number]);
                    let mut hit = true;
                    match how {
                        0 => world.store.delete(&key).await.unwrap(),
                        1 => world.store.corrupt(&key, |bytes| { let at = at.index(bytes.len()); bytes[at] ^= flip }),
                        2 => world.store.corrupt(&key, |bytes| bytes.truncate(at.index(bytes.len()))),
                        3 => {
                            let other = at.index(all.len());
                            hit = other != number;
                            world.store.corrupt(&key, |bytes| *bytes = all[other].bytes.to_vec());
                        }
                        _ => world.store.corrupt(&key, |bytes| bytes.push(flip)),
                    }
                    if hit { first_hit = first_hit.min(number) }
                }
                let joined = join(&world).await;
                if let Some((tail, bytes)) = joined {
                    let end = tail.end as usize;
                    if end > 0 {
                        prop_assert_eq!(bytes.len(), original.len());
                        prop_assert!(bytes[..end] == original[..end]);
                        prop_assert!(bytes[end..].iter().all(|byte| *byte == 0));
                    }
                    // A piece that was hit twice may be whole again.
                    prop_assert!(end >= cuts[first_hit] as usize, "{tail:?}");

                }
                Ok(())
            })?;
        }
    }
}
