//! The live tail of a segment in the store: pieces are created, listed and deleted here; `joined_tail` makes a segment of them.

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;

use super::archive::WalArchive;
use super::error::RepoError;
use super::layout::PieceKey;
use super::live_piece::{self, ExpectedPiece, LARGEST_PIECE, LivePiece, PieceHeader, Unfit};
use crate::postgres::SegmentName;
use crate::storage::object_store::Visit;
use crate::storage::{Get, Head, ObjectKey, ObjectStoreExt, Put, StoreError, StoreErrorKind};

/// What became of a piece that was to be stored. All but [`PiecePut::Conflict`] mean: durable and equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PiecePut {
    /// It is there now.
    Created,
    /// It was there before, the same bytes behind the same piece.
    AlreadyThere,
    /// Another piece lies there, and stays.
    Conflict {
        /// Where.
        key: ObjectKey,
        /// What the other one says about itself: it may be longer or shorter, or hold other bytes.
        theirs: Box<PieceHeader>,
    },
}

/// A piece that is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailPiece {
    /// Which.
    pub key: PieceKey,
    /// The bytes of its object.
    pub stored: u64,
    /// When it was stored, by the store's clock.
    pub modified: Option<Timestamp>,
    /// What it says about itself, or what is wrong with it. Its bytes were not read.
    pub header: Result<PieceHeader, String>,
}

/// The pieces of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// By offset, also those that belong to no chain.
    pub pieces: Vec<TailPiece>,
    /// Objects among them that this pgark does not know.
    pub unknown: Vec<String>,
}

/// Where a chain of pieces ends before the last of them, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailBreak {
    /// Of which segment.
    pub segment: SegmentName,
    /// The piece, or the unknown object.
    pub key: String,
    /// What is wrong there.
    pub reason: String,
    /// Whether that is that something before it is not there.
    pub missing: bool,
    /// Whether nothing is wrong with it, as far as this pgark can tell: another version may read it.
    pub newer: bool,
}

impl TailBreak {
    /// What is to be done where what follows is another version's: recovery stops there, and does not end.
    pub fn newer_hint(&self) -> String {
        let segment = self.segment;
        format!(
            "use the pgark that wrote it; to end recovery there for good, add `--accept-end-at {segment}` to restore_command"
        )
    }
}

/// What became of pieces that were to be deleted.
#[derive(Debug, Default)]
pub struct TailDeletion {
    /// How many are gone.
    pub deleted: u64,
    /// Why the rest is not: the role may not delete. The rest is for `expire`.
    pub refused: Option<StoreError>,
}

/// A piece as a listing shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListedPiece {
    pub key: PieceKey,
    pub stored: u64,
    pub modified: Option<Timestamp>,
}

/// Enough of an object to hold any header.
const HEADER_READ: usize = 80 << 10;
/// No piece's object is longer.
pub(super) const LARGEST_OBJECT: u64 = LARGEST_PIECE + (1 << 20);
/// Requests at once.
const REQUESTS: usize = 8;
const PAGE: usize = 1000;

impl WalArchive {
    /// Stores a piece in its place, or finds out what lies there.
    pub async fn put_piece(&self, piece: &LivePiece) -> Result<PiecePut, RepoError> {
        let key = self.layout.live_piece(self.generation, piece.key);
        match self.store.put(&key, piece.bytes.clone(), &piece.metadata()).await? {
            Put::Created => Ok(PiecePut::Created),
            Put::Exists => self.compare_piece(&key, piece).await,
        }
    }

    /// Judges a piece that exists: by its metadata where they say "equal", else by its content.
    async fn compare_piece(&self, key: &ObjectKey, piece: &LivePiece) -> Result<PiecePut, RepoError> {
        if let Head::Found(meta) = self.store.head(key).await?
            && piece.surely_is(&meta)
        {
            return Ok(PiecePut::AlreadyThere);
        }
        let object = self.store.read_small(key, LARGEST_OBJECT as usize).await?;
        let Some(object) = object else {
            let message = format!("`{key}` was there a moment ago and is gone now");
            return Err(StoreError::new(StoreErrorKind::Unexpected, message).into());
        };
        let damaged = |unfit: Unfit| RepoError::damaged(key, unfit.reason);
        let (theirs, _) = live_piece::open(piece.key, &object, &ExpectedPiece::default()).map_err(damaged)?;
        if theirs.is_same(&piece.header) {
            return Ok(PiecePut::AlreadyThere);
        }
        Ok(PiecePut::Conflict { key: key.clone(), theirs: Box::new(theirs) })
    }

    /// The pieces of a segment with what they say about themselves; none is no error.
    pub async fn list_tail(&self, segment: SegmentName) -> Result<Tail, RepoError> {
        let (listed, unknown) = self.listed_pieces(segment).await?;
        let read = |listed: ListedPiece| async move {
            let ListedPiece { key, modified, .. } = listed;
            let read = self.piece_header(key).await?;
            Ok::<_, RepoError>(read.map(|(stored, header)| TailPiece { key, stored, modified, header }))
        };
        let pieces: Vec<Option<TailPiece>> = stream::iter(listed).map(read).buffered(REQUESTS).try_collect().await?;
        // One that is gone by now was deleted when the segment was whole.
        Ok(Tail { pieces: pieces.into_iter().flatten().collect(), unknown })
    }

    /// The last piece of a segment, if what it says of those before it is what the listing shows: then nothing but it need be read.
    /// With it come the bytes of all their objects.
    pub async fn last_of_whole_tail(&self, segment: SegmentName) -> Result<Option<(PieceHeader, u64)>, RepoError> {
        let (listed, unknown) = self.listed_pieces(segment).await?;
        let Some(last) = listed.last().filter(|_| unknown.is_empty() && listed[0].key.offset == 0) else {
            return Ok(None);
        };
        let Some((_, Ok(header))) = self.piece_header(last.key).await? else { return Ok(None) };
        let stored: u64 = listed.iter().map(|piece| piece.stored).sum();
        let before = (listed.len() as u64 - 1, stored - last.stored);
        let is_whole = header.so_far.is_some_and(|so_far| (so_far.pieces, so_far.stored) == before);
        Ok(is_whole.then_some((header, stored)))
    }

    pub(super) async fn listed_pieces(
        &self,
        segment: SegmentName,
    ) -> Result<(Vec<ListedPiece>, Vec<String>), RepoError> {
        let (mut pieces, mut unknown) = (Vec::new(), Vec::new());
        self.store
            .visit_after(&self.layout.live_segment(self.generation, segment), None, PAGE, |listed| {
                match self.layout.parse_live(&listed.name) {
                    Some((_, key)) => pieces.push(ListedPiece { key, stored: listed.size, modified: listed.written() }),
                    None => unknown.push(listed.name.clone()),
                }
                Visit::More
            })
            .await?;
        Ok((pieces, unknown))
    }

    /// What a piece of a segment says about itself, the first that can be read.
    pub(super) async fn any_piece(&self, segment: SegmentName) -> Result<Option<PieceHeader>, RepoError> {
        for listed in self.listed_pieces(segment).await?.0 {
            if let Some((_, Ok(header))) = self.piece_header(listed.key).await? {
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    async fn piece_header(&self, piece: PieceKey) -> Result<Option<(u64, Result<PieceHeader, String>)>, RepoError> {
        let key = self.layout.live_piece(self.generation, piece);
        let Get::Found(found) = self.store.get(&key, 0, None).await? else { return Ok(None) };
        let size = found.meta.size;
        let start = self.store.read_start(&key, found, HEADER_READ).await?;
        let header = PieceHeader::read(&start).and_then(|read| {
            let (header, frame) = read.ok_or("it ends within its header")?;
            header.check(piece, &ExpectedPiece::default(), frame, size)?;
            Ok(header)
        });
        Ok(Some((size, header.map_err(|unfit| unfit.reason))))
    }

    /// Deletes all pieces of a segment, page by page. Whoever calls has put the whole segment, or does without it.
    pub async fn delete_tail(&self, segment: SegmentName) -> Result<TailDeletion, RepoError> {
        let prefix = self.layout.live_segment(self.generation, segment);
        let mut deletion = TailDeletion::default();
        loop {
            let page = self.store.list(&prefix, None, PAGE).await?;
            let keys: Vec<ObjectKey> = page
                .objects
                .iter()
                .filter(|listed| self.layout.parse_live(&listed.name).is_some())
                .filter_map(|listed| listed.name.parse().ok())
                .collect();
            if keys.is_empty() {
                return Ok(deletion);
            }
            let store = &self.store;
            let deletes = keys.into_iter().map(|key| async move { store.delete(&key).await });
            let mut deletes = stream::iter(deletes).buffered(REQUESTS);
            while let Some(outcome) = deletes.next().await {
                match outcome {
                    Ok(()) => deletion.deleted += 1,
                    Err(error) if error.kind == StoreErrorKind::Denied => {
                        deletion.refused = Some(error);
                        return Ok(deletion);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tail_world::{World, ident, piece, piece_of, plain, segment};
    use super::*;
    use crate::postgres::{SegmentNumber, SegmentSize, TimelineId, WalName};
    use crate::repo::Generation;
    use crate::storage::{ObjectStore, UserMetadata};
    use crate::stream::Sha256;

    #[tokio::test]
    async fn a_piece_is_put_once() {
        let world = World::new();
        let original = plain(segment(), 0);
        let all = world.put_tail(segment(), &original, &[0, 1000, 2000]).await;
        assert_eq!(world.archive.put_piece(&all[1]).await.unwrap(), PiecePut::AlreadyThere);
        let tail = world.archive.list_tail(segment()).await.unwrap();
        let headers: Vec<_> = tail.pieces.into_iter().map(|piece| piece.header.unwrap()).collect();
        assert_eq!(headers, all.iter().map(|piece| piece.header.clone()).collect::<Vec<_>>());

        let link = all[1].header.previous;
        for (odd, theirs) in [
            (piece(segment(), 1000, &original[1000..2001], link), 1000),
            (piece(segment(), 1000, &plain(segment(), 1)[1000..2000], link), 1000),
            (piece(segment(), 1000, &original[1000..2000], Some(Sha256::of(b"x"))), 1000),
        ] {
            match world.archive.put_piece(&odd).await.unwrap() {
                PiecePut::Conflict { theirs: header, .. } => assert_eq!(header.plain_length, theirs),
                other => panic!("{other:?}"),
            }
        }
    }

    /// A store may lose metadata, and an object may rot.
    #[tokio::test]
    async fn without_metadata_the_content_tells() {
        let world = World::new();
        let original = plain(segment(), 0);
        let (first, key) = (piece(segment(), 0, &original[..1000], None), world.key_at(segment(), 0));
        world.store.put(&key, first.bytes.clone(), &UserMetadata::new()).await.unwrap();
        assert_eq!(world.archive.put_piece(&first).await.unwrap(), PiecePut::AlreadyThere);
        let other = crate::postgres::ClusterIdent { system_id: crate::postgres::SystemId(8), ..ident() };
        let foreign = piece_of(other, segment(), 0, &original[..1000], None);
        assert!(matches!(world.archive.put_piece(&foreign).await.unwrap(), PiecePut::Conflict { .. }));
        world.store.corrupt(&key, |bytes| *bytes.last_mut().unwrap() ^= 1);
        assert!(matches!(world.archive.put_piece(&first).await, Err(RepoError::Damaged { .. })));
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_piece_is_listed_with_it() {
        let world = World::new();
        let all = world.put_tail(segment(), &plain(segment(), 0), &[0, 1000, 2000, 3000]).await;
        world.store.corrupt(&world.key(&all[1]), |bytes| bytes.truncate(30));
        let odd = format!("{}x", world.key(&all[2]));
        world.store.put(&odd.parse().unwrap(), "x".into(), &UserMetadata::new()).await.unwrap();
        let tail = world.archive.list_tail(segment()).await.unwrap();
        let sound: Vec<bool> = tail.pieces.iter().map(|piece| piece.header.is_ok()).collect();
        assert_eq!((sound, tail.unknown), (vec![true, false, true], vec![odd]));
    }

    #[tokio::test]
    async fn a_tail_is_deleted_whole_and_alone() {
        let world = World::new();
        let next = "000000010000000000000006".parse().unwrap();
        let cuts: Vec<u32> = (0..=1050).collect();
        world.put_tail(segment(), &plain(segment(), 0), &cuts).await;
        world.put_tail(next, &plain(next, 0), &[0, 100]).await;
        let deletion = world.archive.delete_tail(segment()).await.unwrap();
        assert_eq!((deletion.deleted, deletion.refused.is_none()), (1050, true));
        assert_eq!(world.archive.list_tail(segment()).await.unwrap(), Tail::default());
        assert_eq!(world.archive.list_tail(next).await.unwrap().pieces.len(), 1);
    }

    #[tokio::test]
    async fn the_newest_segment_is_found_among_everything_else() {
        let size = SegmentSize::DEFAULT;
        let two = TimelineId::new(2).unwrap();
        for numbers in
            [vec![], vec![0], vec![5], vec![3, 4, 0xFF], vec![0xFF, 0x100], vec![7, 0x1234_5678, 0x1234_5679]]
        {
            let world = World::new();
            let put = async |name: WalName| {
                let key = world.repository.layout.wal_file(Generation::FIRST, name);
                world.store.put(&key, "x".into(), &UserMetadata::new()).await.unwrap();
            };
            for number in &numbers {
                put(WalName::Segment(size.name(two, SegmentNumber(*number)))).await;
            }
            let last = size.name(two, SegmentNumber(numbers.last().map_or(9, |last| last + 300)));
            put(WalName::Partial(last)).await;
            put(WalName::Backup { segment: last, offset: 0x28 }).await;
            put(WalName::History(two)).await;
            put(WalName::Segment(size.name(TimelineId::FIRST, SegmentNumber(0xFFFF)))).await;
            put(WalName::Segment(size.name(TimelineId::new(3).unwrap(), SegmentNumber(0xFFFF)))).await;
            let newest = world.archive.newest_segment(two).await.unwrap();
            let expected = numbers.last().map(|number| size.name(two, SegmentNumber(*number)));
            assert_eq!(newest, expected, "{numbers:?}");
        }
    }
}
