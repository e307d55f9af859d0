//! A note of WAL that is gone: the server had removed it before it was in the repository. Nothing papers over it.
//!
//! `record/gap/<generation>-<timeline>-<from>-<to>.json`, positions in 16 digits each. The name is made of the range, so that
//! whoever finds the same gap again writes the same note; it is never deleted by a receiver, but by `expire`, when nothing that can
//! be restored comes to it.

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Repository;
use super::error::RepoError;
use super::intervals::restorable_intervals;
use super::inventory::Inventory;
use super::layout::Generation;
use super::wal_object::Writer;
use super::wal_runs::Span;
use crate::postgres::{HistoryFile, Lsn, SegmentNumber, TimelineId};
use crate::storage::object_store::Visit;
use crate::storage::{ObjectKey, ObjectStoreExt, Put, UserMetadata};

/// WAL that was never stored. Readers pass over fields that they do not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    format: String,
    /// Of the repository.
    pub generation: Generation,
    /// Whose WAL.
    pub timeline: TimelineId,
    /// The first position that is missing.
    pub from: Lsn,
    /// The first that is there again.
    pub to: Lsn,
    /// What the server said.
    pub reason: String,
    /// When it was found, by the writer's clock.
    pub found: Timestamp,
    /// By whom.
    pub writer: String,
}

const FORMAT: &str = "pgark-gap-1";
const KIND: &str = "gap";

impl Gap {
    /// A gap in the WAL of a timeline, from a position to another.
    pub fn new(
        generation: Generation,
        timeline: TimelineId,
        [from, to]: [Lsn; 2],
        reason: String,
        found: Timestamp,
        writer: &Writer,
    ) -> Self {
        let format = FORMAT.to_owned();
        Gap { format, generation, timeline, from, to, reason, found, writer: writer.to_string() }
    }

    fn span(&self, inventory: &Inventory) -> Option<Span> {
        let size = inventory.segment_size;
        Span::new(size.containing(self.from), size.ending_at(self.to)).filter(|_| self.from < self.to)
    }

    /// Whether some of it is missing still: it may have been archived since.
    pub fn is_open(&self, inventory: &Inventory) -> bool {
        let Some(span) = self.span(inventory) else { return false };
        let wal = inventory.timeline(self.timeline);
        let missing = wal.map_or(vec![span], |wal| wal.segments.missing(span));
        // Where the timeline was left, the next one has a copy of its last segment.
        let left_in = |history: &&HistoryFile| {
            let left = history.entries.iter().find(|entry| entry.parent == self.timeline).map(|entry| entry.switch);
            left.is_some_and(|left| inventory.segment_size.containing(left) == span.last && self.to <= left)
        };
        let copied = || {
            let mut copies = inventory.histories().filter(left_in).map(|history| history.timeline);
            copies.any(|copy| inventory.timeline(copy).is_some_and(|wal| wal.segments.has(span.last)))
        };
        let short = |number| inventory.tail_of(self.timeline, number).is_some_and(|tail| tail.end < self.to);
        match missing.as_slice() {
            [] => short(span.last),
            [only] => *only != Span { first: span.last, last: span.last } || !copied(),
            _ => true,
        }
    }

    /// Whether anything that can be restored comes to it, or goes beyond.
    pub fn is_reached(&self, inventory: &Inventory) -> bool {
        let Some(span) = self.span(inventory) else { return false };
        let size = inventory.segment_size;
        let (begin, end) = (size.start(span.first), size.start(SegmentNumber(span.last.0 + 1)));
        let intervals = restorable_intervals(inventory);
        let mut on_it = intervals.get(&self.timeline).into_iter().flatten();
        on_it.any(|interval| interval.to_lsn >= begin && interval.from_lsn < end)
    }
}

/// A gap that was written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedGap {
    /// Where.
    pub key: ObjectKey,
    /// When, by the store's clock.
    pub written: Option<Timestamp>,
    /// What.
    pub gap: Gap,
}

/// A note is small.
const LARGEST_NOTE: usize = 64 << 10;
/// Small reads at once.
const READS: usize = 8;

impl Repository {
    /// Writes a gap down, unless that was done before.
    pub async fn record_gap(&self, gap: &Gap) -> Result<Put, RepoError> {
        let name = format!("{}-{}-{:016X}-{:016X}.json", gap.generation, gap.timeline, gap.from.0, gap.to.0);
        let key = self.layout.record(KIND, &name).map_err(|e| RepoError::damaged(&name, e.to_string()))?;
        let mut json = serde_json::to_vec_pretty(gap).map_err(|e| RepoError::damaged(&key, e.to_string()))?;
        json.push(b'\n');
        Ok(self.store.put(&key, json.into(), &UserMetadata::new()).await?)
    }

    /// The gaps of a generation, by their names. Notes that cannot be read say nothing.
    pub async fn gaps(&self, generation: Generation) -> Result<Vec<RecordedGap>, RepoError> {
        let (found, unread) = self.found_gaps(generation).await?;
        for error in unread {
            match error {
                // A role that may only read WAL and backups.
                RepoError::Store(_) => tracing::info!("notes of lost WAL cannot be read: {error}"),
                _ => tracing::warn!("a note of lost WAL says nothing: {error}"),
            }
        }
        Ok(found)
    }

    /// The same for a promise: one that cannot be read is an error.
    pub async fn all_gaps(&self, generation: Generation) -> Result<Vec<RecordedGap>, RepoError> {
        let (found, unread) = self.found_gaps(generation).await?;
        unread.into_iter().next().map_or(Ok(found), Err)
    }

    /// With what of them cannot be read.
    async fn found_gaps(&self, generation: Generation) -> Result<(Vec<RecordedGap>, Vec<RepoError>), RepoError> {
        let mut listed = Vec::new();
        let all = self.layout.records(KIND);
        let of_generation = format!("{all}{generation}-");
        let visited = self.store.visit_after(&all, None, 1000, |object| {
            if object.name.starts_with(&of_generation)
                && let Ok(key) = object.name.parse::<ObjectKey>()
            {
                listed.push((key, object.written()));
            }
            Visit::More
        });
        match visited.await.map_err(RepoError::from) {
            Err(error) if error.is_of_one_object() => {
                return Ok((Vec::new(), vec![error]));
            }
            visited => drop(visited?),
        }
        let reads = listed.into_iter().map(|(key, written)| async move {
            let json = match self.store.read_small(&key, LARGEST_NOTE).await.map_err(RepoError::from) {
                Err(error) if error.is_of_one_object() => return Ok(Some(Err(error))),
                read => read?,
            };
            // One that is gone by now was forgotten.
            let Some(json) = json else { return Ok(None) };
            let known = |gap: &Gap| gap.format == FORMAT && gap.generation == generation;
            Ok::<_, RepoError>(Some(match serde_json::from_slice::<Gap>(&json) {
                Ok(gap) if known(&gap) => Ok(RecordedGap { key, written, gap }),
                Ok(_) => Err(RepoError::damaged(&key, "it is not a note that this pgark knows")),
                Err(error) => Err(RepoError::damaged(&key, error.to_string())),
            }))
        });
        let read: Vec<Option<Result<RecordedGap, RepoError>>> =
            stream::iter(reads).buffered(READS).try_collect().await?;
        let (mut found, mut unread) = (Vec::new(), Vec::new());
        for read in read.into_iter().flatten() {
            match read {
                Ok(recorded) => found.push(recorded),
                Err(error) => unread.push(error),
            }
        }
        Ok((found, unread))
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{empty, lsn};
    use super::*;
    use crate::storage::memory::MemoryStore;
    use std::sync::Arc;

    #[tokio::test]
    async fn the_same_gap_is_written_down_once() {
        let repository = Repository::new(Arc::new(MemoryStore::default()), "main".parse().unwrap());
        let writer = Writer { host: "db1".into(), pid: 7, version: "0" };
        let gap = |to| {
            let range = [Lsn(0x300_0000), Lsn(to)];
            Gap::new(Generation::FIRST, TimelineId::FIRST, range, "removed".into(), Timestamp::UNIX_EPOCH, &writer)
        };
        assert_eq!(repository.record_gap(&gap(0x500_0000)).await.unwrap(), Put::Created);
        assert_eq!(repository.record_gap(&gap(0x500_0000)).await.unwrap(), Put::Exists);
        assert_eq!(repository.record_gap(&gap(0x600_0000)).await.unwrap(), Put::Created);
        let key = "main/record/gap/1-00000001-0000000003000000-0000000005000000.json".parse().unwrap();
        let crate::storage::Get::Found(_) = repository.store.get(&key, 0, None).await.unwrap() else { panic!() };
        let read = repository.gaps(Generation::FIRST).await.unwrap();
        assert_eq!((read.len(), &read[0].key, &read[0].gap), (2, &key, &gap(0x500_0000)));
        assert_eq!(repository.gaps(Generation(2)).await.unwrap(), []);
        // Who promises something does without none of them.
        assert_eq!(repository.all_gaps(Generation::FIRST).await.unwrap().len(), 2);
        let odd = "main/record/gap/1-odd.json".parse().unwrap();
        repository.store.put(&odd, b"{".to_vec().into(), &UserMetadata::new()).await.unwrap();
        assert_eq!(repository.gaps(Generation::FIRST).await.unwrap().len(), 2);
        assert!(repository.all_gaps(Generation::FIRST).await.unwrap_err().to_string().contains("1-odd.json"));
    }

    #[test]
    fn it_is_open_until_all_of_it_is_there() {
        let backed_up = || empty().with_backup(60, 1, lsn(2, 10), lsn(3, 50));
        let gap = |from, to| {
            let writer = Writer { host: "db1".into(), pid: 7, version: "0" };
            Gap::new(Generation::FIRST, TimelineId::FIRST, [from, to], "removed".into(), Timestamp::UNIX_EPOCH, &writer)
        };
        let lost = gap(lsn(5, 10), lsn(8, 0));
        let judge = |inventory: &Inventory| (lost.is_open(inventory), lost.is_reached(inventory));
        assert_eq!(judge(&backed_up().with_wal(1, (2..=4).chain(8..=9))), (true, true));
        assert_eq!(judge(&backed_up().with_wal(1, (2..=5).chain(7..=9))), (true, true));
        assert_eq!(judge(&backed_up().with_wal(1, 2..=9)), (false, true));
        // Nothing leads there any more: as `expire` leaves it.
        assert_eq!(judge(&backed_up().with_wal(1, (2..=3).chain(8..=9))), (true, false));
        assert_eq!(judge(&empty().with_wal(1, 8..=9).with_backup(60, 1, lsn(8, 10), lsn(9, 50))), (true, false));
        // The next timeline has a copy of the segment in which the gap ends.
        let left = gap(lsn(5, 10), lsn(7, 50));
        let promoted = |first| {
            let inventory = backed_up().with_wal(1, 2..=first).with_history(2, &[(1, lsn(7, 50))]);
            left.is_open(&inventory.with_wal(2, 7..=9))
        };
        assert_eq!((promoted(6), promoted(5)), (false, true));
    }
}
