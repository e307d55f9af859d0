//! A note of WAL that is gone: the server had removed it before it was in the repository. Nothing papers over it.
//!
//! `record/gap/<generation>-<timeline>-<from>-<to>.json`, positions in 16 digits each. The name is made of the range, so that
//! whoever finds the same gap again writes the same note; it is never deleted by a receiver.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Repository;
use super::error::RepoError;
use super::layout::Generation;
use super::wal_object::Writer;
use crate::postgres::{Lsn, TimelineId};
use crate::storage::{Put, UserMetadata};

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
}

impl Repository {
    /// Writes a gap down, unless that was done before.
    pub async fn record_gap(&self, gap: &Gap) -> Result<Put, RepoError> {
        let name = format!("{}-{}-{:016X}-{:016X}.json", gap.generation, gap.timeline, gap.from.0, gap.to.0);
        let key = self.layout.record(KIND, &name).map_err(|e| RepoError::damaged(&name, e.to_string()))?;
        let mut json = serde_json::to_vec_pretty(gap).map_err(|e| RepoError::damaged(&key, e.to_string()))?;
        json.push(b'\n');
        Ok(self.store.put(&key, json.into(), &UserMetadata::new()).await?)
    }
}

#[cfg(test)]
mod tests {
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
    }
}
