//! Reads the live tails that an inventory has found: how far each goes, which no listing tells.

use std::io::Write;

use jiff::Timestamp;

use super::Repository;
use super::archive::{ReadBounds, WalArchive};
use super::error::RepoError;
use super::inventory::Inventory;
use super::live_piece::ExpectedPiece;
use super::live_tail::TailBreak;
use super::timeline_wal::LiveTail;
use super::wal_runs::Run;
use crate::postgres::wal_index::{WalIndex, WalIndexer};
use crate::postgres::{Lsn, SegmentName, WalName};
use crate::storage::Head;

impl Repository {
    /// Of each timeline the tail that lies behind everything else: what lies before is a gap to every recovery.
    pub(super) async fn read_tails(&self, inventory: &mut Inventory) -> Result<(), RepoError> {
        let (ident, size) = (inventory.ident, inventory.segment_size);
        let expected = ExpectedPiece { ident: Some(ident), segment_size: Some(size) };
        let archive = self.archive(inventory.generation);
        for (timeline, wal) in &mut inventory.timelines {
            let Some(number) = wal.unfinished() else { continue };
            let segment = size.name(*timeline, number);
            let joined = archive.join_prefix(segment, expected, std::io::sink(), &ReadBounds::default()).await;
            let joined = match joined {
                Ok(joined) => joined.map(|(joined, _)| joined),
                // Nobody can tell how far it goes. All else is known.
                Err(error) if error.is_of_one_object() => {
                    let key = self.layout.live_segment(inventory.generation, segment).to_string();
                    let reason = format!("it cannot be read: {error}");
                    wal.tail_break = Some(TailBreak { segment, key, reason, missing: false, newer: false });
                    continue;
                }
                Err(error) => return Err(error),
            };
            // Whole since the listing: then its pieces are deleted one after the other.
            if joined.as_ref().is_none_or(|joined| joined.broken.is_some())
                && let Some((bytes, stored)) = archive.size_of(WalName::Segment(segment)).await?
            {
                wal.segments.append(Run::of(number, bytes, stored));
                continue;
            }
            let Some(joined) = joined else { continue };
            if joined.end > 0 {
                let end = Lsn(size.start(number).0 + joined.end);
                wal.segments.append(Run::of(number, joined.stored_bytes, joined.stored));
                wal.tail = (!joined.is_whole()).then_some(LiveTail { number, end });
            }
            wal.tail_break = joined.broken;
        }
        inventory.drop_tails_within_backups();
        Ok(())
    }
}

impl Inventory {
    /// A tail that ends before a backup does is not what makes that backup consistent.
    fn drop_tails_within_backups(&mut self) {
        let size = self.segment_size;
        let stops: Vec<_> = self.whole_backups().map(|backup| (backup.timeline, backup.stop_lsn)).collect();
        for (timeline, stop) in stops {
            let Some(wal) = self.timelines.get_mut(&timeline) else { continue };
            if wal.tail.is_some_and(|tail| tail.number == size.ending_at(stop) && tail.end < stop) {
                wal.tail = None;
                wal.segments.drop_last();
            }
        }
    }
}

/// Indexes what is written to it.
struct Indexing(Option<WalIndexer>);

impl Write for Indexing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.iter_mut().for_each(|indexer| indexer.feed(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl WalArchive {
    /// The length of what is stored for a name, and when that was.
    async fn size_of(&self, name: WalName) -> Result<Option<(u64, Option<Timestamp>)>, RepoError> {
        let key = self.layout.wal_file(self.generation, name);
        Ok(match self.store.head(&key).await? {
            Head::Found(meta) => Some((meta.size, meta.modified.and_then(|time| Timestamp::try_from(time).ok()))),
            Head::NotSeen => None,
        })
    }

    /// What the live tail of a segment holds; `None`: it has none that begins with it.
    pub(super) async fn index_of_tail(&self, segment: SegmentName) -> Result<Option<WalIndex>, RepoError> {
        let Some(first) = self.any_piece(segment).await? else { return Ok(None) };
        let sink = Indexing(Some(WalIndexer::new(first.ident().major)));
        let joined = self.join_prefix(segment, ExpectedPiece::default(), sink, &ReadBounds::default()).await?;
        let found = joined.filter(|(joined, _)| joined.end > 0);
        Ok(found.and_then(|(_, Indexing(indexer))| indexer).map(WalIndexer::finish))
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{at, id, lsn, summary};
    use super::super::tail_world::{SIZE, World, ident, piece, plain, segment};
    use super::*;
    use crate::postgres::TimelineId;
    use crate::repo::manifest_entries::Manifest;
    use crate::repo::{Generation, Identity, Writer};
    use crate::storage::gated::{Gate, GatedStore};
    use crate::storage::{ObjectStore, StoreError, StoreErrorKind, UserMetadata};
    use std::pin::Pin;
    use std::sync::Arc;

    async fn begun() -> (World, Identity) {
        let world = World::new();
        let writer = Writer { host: "db1".into(), pid: 1, version: "0" };
        world.repository.find_or_begin(ident(), at(0), &writer).await.unwrap();
        let identity = world.repository.read_identity(Generation::FIRST).await.unwrap().unwrap();
        (world, identity)
    }

    /// A backup from segment 2 to the middle of segment 3.
    async fn put_backup(world: &World, stop: Lsn) {
        let summary = summary(id(0), 1, lsn(2, 10), stop, at(10));
        let mut manifest = Manifest { summary, parts: vec![], directories: vec![], files: vec![], bad_pages: vec![] };
        manifest.sum_up();
        world.repository.put_manifest(&manifest).await.unwrap();
    }

    async fn put_whole(world: &World, names: &[&str]) {
        for name in names {
            let key = world.repository.layout.wal_file(Generation::FIRST, name.parse().unwrap());
            world.store.put(&key, "x".into(), &UserMetadata::new()).await.unwrap();
        }
    }

    async fn both_inventories(world: &World, identity: &Identity) -> Inventory {
        let inventory = world.repository.take_inventory(identity).await.unwrap();
        let holdings = world.repository.holdings(identity).await.unwrap();
        assert_eq!(world.repository.inventory_of(&holdings).await.unwrap(), inventory);
        inventory
    }

    const FOUR: &str = "000000010000000000000004";
    const SIX: &str = "000000010000000000000006";

    #[tokio::test]
    async fn the_tail_behind_everything_else_is_read() {
        let (world, identity) = begun().await;
        put_backup(&world, lsn(3, 50)).await;
        put_whole(&world, &["000000010000000000000002", "000000010000000000000003", FOUR]).await;
        world.put_tail(segment(), &plain(segment(), 0), &[0, 1000, 2000]).await;
        let inventory = both_inventories(&world, &identity).await;
        let wal = &inventory.timelines[&TimelineId::FIRST];
        let tail = LiveTail { number: SIZE.number(segment()).unwrap(), end: Lsn(lsn(5, 0).0 + 2000) };
        assert_eq!((wal.tail, &wal.tail_break, wal.whole_segments()), (Some(tail), &None, 3));
        assert_eq!((inventory.unknown.count, inventory.end_of(TimelineId::FIRST, tail.number)), (0, tail.end));
        // A damaged piece ends it, and is named.
        world.store.corrupt(&world.key_at(segment(), 1000), |bytes| bytes.truncate(99));
        let wal = &both_inventories(&world, &identity).await.timelines[&TimelineId::FIRST];
        assert_eq!(wal.tail.map(|tail| tail.end), Some(Lsn(lsn(5, 0).0 + 1000)));
        assert_eq!(
            wal.tail_break.as_ref().map(|broken| broken.key.clone()),
            Some(world.key_at(segment(), 1000).to_string())
        );
        // With something later it is no end, but a gap.
        let next = SIX.parse().unwrap();
        world.put(&piece(next, 0, &plain(next, 0)[..50], None)).await;
        put_whole(&world, &["000000010000000000000007"]).await;
        let wal = &both_inventories(&world, &identity).await.timelines[&TimelineId::FIRST];
        assert_eq!((wal.tail, wal.last_trace().map(|trace| trace.0)), (None, Some(7)));
    }

    /// Does something at the first request for a piece.
    struct AtFirstPiece<F>(std::sync::Mutex<Option<F>>);

    impl<F> std::fmt::Debug for AtFirstPiece<F> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("AtFirstPiece")
        }
    }

    type Outcome = Result<(), StoreError>;

    #[async_trait::async_trait]
    impl<F: FnOnce() -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send> Gate for AtFirstPiece<F> {
        type Pass = ();

        async fn pass(&self, request: &'static str, name: &str) -> Outcome {
            let due = request == "get" && name.contains("/live/");
            let act = if due { self.0.lock().unwrap().take() } else { None };
            match act {
                Some(act) => act().await,
                None => Ok(()),
            }
        }
    }

    fn gated<F>(world: &World, act: F) -> Repository
    where
        F: FnOnce() -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + 'static,
    {
        let gate = AtFirstPiece(std::sync::Mutex::new(Some(act)));
        Repository::new(Arc::new(GatedStore::new(world.store.clone(), gate)), "main".parse().unwrap())
    }

    #[tokio::test]
    async fn a_segment_that_becomes_whole_meanwhile_is_no_break() {
        let (world, identity) = begun().await;
        put_backup(&world, lsn(3, 50)).await;
        put_whole(&world, &["000000010000000000000002", "000000010000000000000003", FOUR]).await;
        let pieces = world.put_tail(segment(), &plain(segment(), 0), &[0, 1000, 2000, 3000]).await;
        let whole = world.repository.layout.wal_file(Generation::FIRST, WalName::Segment(segment()));
        let keys: Vec<_> = pieces.iter().map(|piece| world.key(piece)).collect();
        let store = world.store.clone();
        let repository = gated(&world, move || {
            Box::pin(async move {
                store.put(&whole, "x".into(), &UserMetadata::new()).await?;
                for key in &keys[1..] {
                    store.delete(key).await?;
                }
                Ok(())
            })
        });
        let inventory = repository.take_inventory(&identity).await.unwrap();
        let wal = &inventory.timelines[&TimelineId::FIRST];
        assert_eq!((wal.tail, &wal.tail_break, wal.whole_segments()), (None, &None, 4));
    }

    #[tokio::test]
    async fn one_piece_that_cannot_be_read_blinds_nobody() {
        let (world, identity) = begun().await;
        put_backup(&world, lsn(3, 50)).await;
        put_whole(&world, &["000000010000000000000002", "000000010000000000000003", FOUR]).await;
        world.put_tail(segment(), &plain(segment(), 0), &[0, 1000]).await;
        let failing = |kind| gated(&world, move || Box::pin(async move { Err(StoreError::new(kind, "refused")) }));
        let inventory = failing(StoreErrorKind::Denied).take_inventory(&identity).await.unwrap();
        let wal = &inventory.timelines[&TimelineId::FIRST];
        assert_eq!((wal.tail, wal.whole_segments()), (None, 3));
        assert!(wal.tail_break.as_ref().unwrap().reason.contains("it cannot be read"), "{wal:?}");
        // A store that does not answer says nothing about anything.
        assert!(failing(StoreErrorKind::Unavailable).take_inventory(&identity).await.is_err());
    }

    /// A backup that is not consistent before the tail ends is not made so by it.
    #[tokio::test]
    async fn a_tail_that_ends_within_a_backup_does_not_count() {
        for (stop, counts) in [(lsn(5, 50), false), (Lsn(lsn(5, 0).0 + 2001), false), (Lsn(lsn(5, 0).0 + 2000), true)] {
            let (world, identity) = begun().await;
            put_backup(&world, stop).await;
            put_whole(&world, &["000000010000000000000002", "000000010000000000000003", FOUR]).await;
            world.put_tail(segment(), &plain(segment(), 0), &[0, 1000, 2000]).await;
            let inventory = both_inventories(&world, &identity).await;
            let wal = &inventory.timelines[&TimelineId::FIRST];
            assert_eq!((wal.tail.is_some(), wal.segments.count()), (counts, 3 + u64::from(counts)), "{stop}");
        }
    }

    /// Nothing but pieces: they tell how long segments are.
    #[tokio::test]
    async fn pieces_alone_are_numbered_rightly() {
        let (world, identity) = begun().await;
        world.put_tail(segment(), &plain(segment(), 0), &[0, 1000]).await;
        let inventory = both_inventories(&world, &identity).await;
        assert_eq!((inventory.segment_size, inventory.unknown.count), (SIZE, 0));
        assert!(inventory.timelines[&TimelineId::FIRST].tail.is_some());
        let index = world.repository.read_indexes(Generation::FIRST, &[segment()]).await.unwrap();
        assert!(index[&segment()].is_some());
        assert!(!world.archive.is_stored(WalName::Segment(segment())).await.unwrap());
    }
}
