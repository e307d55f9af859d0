//! Takes the inventory of a generation: one pass over its listing, and some small reads.
//!
//! Only backups' summaries and history files are read, and one segment's header where no backup tells how long segments are.
//! Damage is part of the inventory; a store that does not answer is an error, for then nobody knows.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};

use super::Repository;
use super::archive::ReadBounds;
use super::backups::{BackupListing, note_piece};
use super::error::RepoError;
use super::holdings::Holdings;
use super::identity::Identity;
use super::inventory::{Inventory, Unknown};
use super::layout::{Generation, Layout, PieceKey, WalKey};
use super::timeline_wal::{History, RAW, TimelineWal};
use super::wal_object::Expected;
use crate::postgres::{ClusterIdent, HistoryFile, SegmentNumber, SegmentSize, TimelineId, WalName};
use crate::storage::object_store::Visit;
use crate::storage::{Listed, ObjectStoreExt};

/// Small reads at once.
const READS: usize = 8;
const PAGE: usize = 1000;
/// Beside WAL and backups there should be nothing.
const FEW: usize = 100;

impl Repository {
    /// Takes the inventory of a generation: one listing, and some small reads.
    pub async fn take_inventory(&self, identity: &Identity) -> Result<Inventory, RepoError> {
        let generation = identity.generation;
        let mut pass = Pass::new(&self.layout);
        let visit = |listed: &Listed| {
            pass.take(listed);
            Visit::More
        };
        self.store.visit_after(&self.layout.generation(generation), None, PAGE, visit).await?;
        let mut inventory = self.read_listed(identity, pass, Refused::End).await?;
        let size = match inventory.told_segment_size() {
            Some(size) => size,
            None => self.segment_size_of_headers(generation, &inventory.timelines).await?,
        };
        inventory.number(size);
        self.read_tails(&mut inventory).await?;
        Ok(inventory)
    }

    /// The inventory of what was listed with every object of WAL: also what else lies under the generation, and the length of
    /// segments where no backup tells it.
    pub async fn inventory_of(&self, holdings: &Holdings) -> Result<Inventory, RepoError> {
        let mut inventory = holdings.inventory.clone();
        let generation = inventory.generation;
        if inventory.told_segment_size().is_none() {
            let size = self.segment_size_of_headers(generation, &inventory.timelines).await?;
            inventory.number(size);
        }
        let all = self.layout.generation(generation);
        let layout = &self.layout;
        let listed = [layout.backups(generation), layout.live(generation), layout.wal(generation)];
        // Before, between and behind them.
        let begins = std::iter::once(None).chain(listed.iter().map(|listed| Some(format!("{listed}~"))));
        for begin in begins {
            let visit = |object: &Listed| {
                let of = listed.iter().find(|listed| object.name.starts_with(listed.as_str()));
                match (of, &begin) {
                    (None, _) => inventory.unknown.note(&object.name),
                    // Names that sort behind all that are ours.
                    (Some(of), Some(begin)) if begin.starts_with(of.as_str()) => {}
                    (Some(_), _) => return Visit::Enough,
                }
                Visit::More
            };
            self.store.visit_after(&all, begin.as_deref(), FEW, visit).await?;
        }
        self.read_tails(&mut inventory).await?;
        Ok(inventory)
    }

    /// Reads what a listing found. The segments still have provisional numbers.
    pub(super) async fn read_listed(
        &self,
        identity: &Identity,
        pass: Pass<'_>,
        refused: Refused,
    ) -> Result<Inventory, RepoError> {
        let (generation, ident) = (identity.generation, identity.ident());
        let Pass { mut timelines, backups: listings, unknown, .. } = pass;
        let read = self.read_backups(generation, ident, listings, &[]).await?;
        let backups = match refused {
            Refused::End => read.unless_blind()?,
            Refused::Bear => read.backups,
        };
        self.read_histories(generation, ident, &mut timelines).await?;
        Ok(Inventory { generation, ident, segment_size: RAW, timelines, backups, unknown })
    }

    async fn read_histories(
        &self,
        generation: Generation,
        ident: ClusterIdent,
        timelines: &mut BTreeMap<TimelineId, TimelineWal>,
    ) -> Result<(), RepoError> {
        let archive = &self.archive(generation);
        let wanted = timelines.iter().filter(|(_, wal)| wal.history != History::Absent).map(|(timeline, _)| *timeline);
        let reads = wanted.collect::<Vec<_>>().into_iter().map(|timeline| async move {
            let expected = Expected { name: WalName::History(timeline), ident: Some(ident), segment_size: None };
            let history = match archive.read(expected, Vec::new(), &ReadBounds::default()).await {
                Ok(Some((_, text))) => match HistoryFile::parse(timeline, &text) {
                    Ok(history) => History::Known(history),
                    Err(error) => History::Damaged(error.to_string()),
                },
                Ok(None) => History::Absent,
                Err(RepoError::Damaged { key, reason }) => History::Damaged(format!("`{key}`: {reason}")),
                Err(error) if error.is_of_one_object() => History::Damaged(format!("it cannot be read: {error}")),
                Err(error) => return Err(error),
            };
            Ok((timeline, history))
        });
        let outcomes: Vec<Result<_, RepoError>> = stream::iter(reads).buffered(READS).collect().await;
        for outcome in outcomes {
            let (timeline, history) = outcome?;
            timelines.entry(timeline).or_default().history = history;
        }
        Ok(())
    }

    /// What the header of the first or the last segment says; the default where there is none.
    async fn segment_size_of_headers(
        &self,
        generation: Generation,
        timelines: &BTreeMap<TimelineId, TimelineWal>,
    ) -> Result<SegmentSize, RepoError> {
        let named = |timeline: &TimelineId, number| WalName::Segment(RAW.name(*timeline, number));
        let first = timelines.iter().find_map(|(t, wal)| wal.segments.first().map(|n| named(t, n)));
        let last = timelines.iter().rev().find_map(|(t, wal)| wal.segments.last().map(|n| named(t, n)));
        let partial = timelines
            .iter()
            .find_map(|(t, wal)| wal.partials.first().map(|number| WalName::Partial(RAW.name(*t, *number))));
        let mut failure = None;
        for name in [first, last, partial].into_iter().flatten() {
            match self.archive(generation).header_of(name).await {
                Ok(Some(header)) => {
                    if let Some(size) = header.segment_size.and_then(|bytes| SegmentSize::new(bytes).ok()) {
                        return Ok(size);
                    }
                }
                Ok(None) => {}
                Err(error) if matches!(error, RepoError::Damaged { .. }) || error.is_of_one_object() => {
                    failure = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        let streamed = timelines.iter().find_map(|(t, wal)| wal.streamed.first().map(|number| RAW.name(*t, *number)));
        if let Some(segment) = streamed
            && let Some(piece) = self.archive(generation).any_piece(segment).await?
            && let Ok(size) = SegmentSize::new(piece.segment_size)
        {
            return Ok(size);
        }
        failure.map_or(Ok(SegmentSize::DEFAULT), Err)
    }
}

/// What becomes of one who may read no manifest at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// That is an error.
    End,
    /// All backups are damaged; the rest is told.
    Bear,
}

/// What was seen of the listing so far.
pub(super) struct Pass<'a> {
    layout: &'a Layout,
    pub(super) timelines: BTreeMap<TimelineId, TimelineWal>,
    backups: Vec<BackupListing>,
    unknown: Unknown,
}

/// What an object is by its name.
pub(super) enum Found {
    Backup,
    Wal(WalKey),
    Unknown,
}

impl<'a> Pass<'a> {
    pub(super) fn new(layout: &'a Layout) -> Self {
        Pass { layout, timelines: BTreeMap::new(), backups: Vec::new(), unknown: Unknown::default() }
    }

    /// Objects come in the order of their keys.
    pub(super) fn take(&mut self, listed: &Listed) -> Found {
        if let Some((_, id, key)) = self.layout.parse_backup(&listed.name) {
            note_piece(&mut self.backups, id, key, listed);
            return Found::Backup;
        }
        if let Some((_, piece)) = self.layout.parse_live(&listed.name) {
            return self.take_piece(piece, listed);
        }
        let Some((_, key)) = listed.name.parse().ok().and_then(|key| self.layout.parse_wal(&key)) else {
            self.unknown.note(&listed.name);
            return Found::Unknown;
        };
        self.take_wal(key.name(), listed);
        Found::Wal(key)
    }

    fn take_piece(&mut self, piece: PieceKey, listed: &Listed) -> Found {
        match RAW.number(piece.segment) {
            Ok(number) => self.timelines.entry(piece.segment.timeline).or_default().note_piece(number, listed),
            Err(_) => self.unknown.note(&listed.name),
        }
        Found::Wal(WalKey::Piece(piece))
    }

    fn take_wal(&mut self, name: WalName, listed: &Listed) {
        let Some(number) = name.segment().map_or(Some(SegmentNumber(0)), |segment| RAW.number(segment).ok()) else {
            return self.unknown.note(&listed.name);
        };
        self.timelines.entry(name.timeline()).or_default().note(name, number, listed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::repo::manifest_entries::{Manifest, PartEntry};
    use crate::repo::sample::{at, id, lsn, summary};
    use crate::repo::stored_backups::BackupState;
    use crate::repo::wal_object::{Provenance, WalObject};
    use crate::repo::{BackupKey, Writer};
    use crate::storage::memory::MemoryStore;
    use crate::storage::{ObjectStore, UserMetadata};
    use crate::stream::{Sha256, pack};

    struct Sample {
        store: Arc<MemoryStore>,
        repository: Repository,
        identity: Identity,
    }

    async fn repository() -> Sample {
        let store = Arc::new(MemoryStore::default());
        let repository = Repository::new(store.clone(), "main".parse().unwrap());
        let ident = ClusterIdent { system_id: crate::postgres::SystemId(7), major: 15.try_into().unwrap() };
        let writer = Writer { host: "db1".into(), pid: 1, version: "0" };
        repository.find_or_begin(ident, at(0), &writer).await.unwrap();
        let identity = repository.read_identity(Generation::FIRST).await.unwrap().unwrap();
        Sample { store, repository, identity }
    }

    impl Sample {
        async fn put(&self, key: &str, bytes: &[u8]) {
            let bytes = bytes.to_vec().into();
            self.store.put(&key.parse().unwrap(), bytes, &UserMetadata::new()).await.unwrap();
        }

        async fn put_wal(&self, name: &str, text: &[u8], size: Option<SegmentSize>) {
            let packed = pack(text, text.len() as u64, 1, WalObject::ROOM, |_, _| Ok(()), |_| {}).unwrap();
            let from = Provenance {
                name: name.parse().unwrap(),
                ident: self.identity.ident(),
                segment_size: size,
                written: at(0),
                writer: Writer { host: "db1".into(), pid: 1, version: "0" },
            };
            let object = WalObject::build(from, packed, None).unwrap();
            let key = self.repository.layout.wal_file(Generation::FIRST, name.parse().unwrap());
            self.put(key.as_str(), &object.bytes).await;
        }

        async fn put_backup(&self, begun: i64, parts: u32) {
            let summary = summary(id(begun), 1, lsn(2, 10), lsn(3, 50), at(begun + 10));
            let part = |part| PartEntry { part, stored: 1, sha256: Sha256([0; 32]) };
            let parts = (1..=parts).map(part).collect();
            let mut manifest = Manifest { summary, parts, directories: vec![], files: vec![], bad_pages: vec![] };
            manifest.sum_up();
            self.repository.put_manifest(&manifest).await.unwrap();
        }

        async fn take(&self) -> Inventory {
            self.repository.take_inventory(&self.identity).await.unwrap()
        }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    fn number(name: &str) -> u64 {
        SegmentSize::DEFAULT.number(name.parse().unwrap()).unwrap().0
    }

    #[test]
    fn wal_is_counted_by_timeline_in_runs() {
        run(async {
            let sample = repository().await;
            let names = ["0000000100000000000000FD", "0000000100000000000000FE", "0000000100000000000000FF"];
            for name in names.iter().chain(&["000000010000000100000000", "000000010000000100000003"]) {
                sample.put_wal(name, b"x", Some(SegmentSize::DEFAULT)).await;
            }
            sample.put_wal("000000010000000100000004.partial", b"x", Some(SegmentSize::DEFAULT)).await;
            sample.put_wal("000000010000000100000003.00000028.backup", b"x", None).await;
            sample.put_wal("00000002.history", b"1\t1/4000000\tx\n", None).await;
            sample.put_wal("00000003.history", b"nonsense", None).await;
            // No segment of a cluster with segments of 16 MiB.
            sample.put("main/1/wal/00000001/00000001/000000010000000100000100.zst", b"x").await;
            sample.put("main/1/wal/00000001/elsewhere.zst", b"x").await;
            sample.put("main/1/backup/nobody/manifest.json.zst", b"x").await;

            let inventory = sample.take().await;
            assert_eq!(inventory.segment_size, SegmentSize::DEFAULT);
            let wal = &inventory.timelines[&TimelineId::FIRST];
            let runs: Vec<_> = wal.segments.iter().map(|run| (run.first.0, run.last().0)).collect();
            let ends = (number(names[0]), number("000000010000000100000000"));
            let single = number("000000010000000100000003");
            assert_eq!(runs, [ends, (single, single)]);
            assert_eq!((wal.partials.len(), wal.notes.len(), wal.segments.count()), (1, 1, 5));
            assert_eq!(wal.last_trace(), Some(SegmentNumber(single)));
            let histories: Vec<_> = inventory.timelines.values().map(|wal| &wal.history).collect();
            assert!(matches!(histories[..], [History::Absent, History::Known(_), History::Damaged(_)]));
            assert_eq!((inventory.unknown.count, inventory.unknown.examples.len()), (3, 3), "{:?}", inventory.unknown);
        });
    }

    #[test]
    fn damaged_backups_are_found_not_fatal() {
        run(async {
            let sample = repository().await;
            let key = |begun, piece| sample.repository.layout.backup(Generation::FIRST, id(begun), piece);
            for begun in [0, 60, 120, 180] {
                sample.put_backup(begun, 2).await;
                sample.put(key(begun, BackupKey::Part(1)).as_str(), b"1").await;
                if begun != 120 {
                    sample.put(key(begun, BackupKey::Part(2)).as_str(), b"2").await;
                }
            }
            sample.store.corrupt(&key(60, BackupKey::Manifest), |bytes| bytes.truncate(20));
            sample.put(key(240, BackupKey::Part(1)).as_str(), b"1").await;
            sample.put(key(180, BackupKey::Keep).as_str(), b"{}").await;

            let inventory = sample.take().await;
            assert_eq!(inventory.segment_size, SegmentSize::SMALLEST, "as the backups say");
            let states: Vec<String> = inventory
                .backups
                .iter()
                .map(|backup| match &backup.state {
                    BackupState::Whole(_) => format!("whole, kept: {}", backup.listing.has_mark()),
                    BackupState::Damaged(reason, _) => reason.clone(),
                    BackupState::Unfinished => "unfinished".into(),
                })
                .collect();
            assert_eq!(states[0], "whole, kept: false");
            assert!(states[1].contains("manifest.json.zst`"), "{}", states[1]);
            assert!(states[2].contains("1 of its 2 parts are missing") && states[2].contains("part/00000002.tar.zst"));
            assert_eq!(states[3..], ["whole, kept: true", "unfinished"]);
            let read: Vec<bool> = inventory.backups.iter().map(|backup| backup.manifest().is_some()).collect();
            assert_eq!(read, [true, false, true, true, false], "what lacks parts still says which WAL it needs");
            assert_eq!(sample.repository.stored_backups(&sample.identity).await.unwrap(), inventory.backups);
        });
    }

    #[test]
    fn an_empty_generation_is_an_empty_inventory() {
        run(async {
            let inventory = repository().await.take().await;
            assert!(inventory.timelines.is_empty() && inventory.backups.is_empty());
        });
    }
}
