//! The word of an operator that a backup or a dump must stay, for ever or until a time: an object beside its manifest.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Repository;
use super::backup_id::BackupId;
use super::error::RepoError;
use super::layout::{BackupKey, DumpKey, Generation};
use super::wal_object::Writer;
use crate::storage::{Get, ObjectKey, ObjectStoreExt, Put, StoreError, UserMetadata};

#[derive(Serialize)]
struct Keep<'a> {
    format: &'a str,
    backup: BackupId,
    reason: &'a str,
    since: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
    writer: String,
}

/// What a mark says. One that cannot be read holds for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Mark {
    /// From then on, by the store's clock, it counts no longer; `None`: it always does.
    #[serde(default)]
    pub until: Option<Timestamp>,
    /// The operator's words.
    #[serde(default)]
    pub reason: String,
}

const FORMAT: &str = "pgark-keep-1";
/// Enough for any reason.
const LARGEST: usize = 64 << 10;

impl Mark {
    /// Whether it counts at a time.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl Repository {
    /// Marks a backup, which may not be complete yet, as one that is never expired.
    pub async fn keep(
        &self,
        generation: Generation,
        id: BackupId,
        now: Timestamp,
        reason: &str,
        writer: &Writer,
    ) -> Result<Put, RepoError> {
        self.mark(generation, id, now, &Mark { until: None, reason: reason.to_owned() }, writer).await
    }

    /// Marks a backup, perhaps only for a time.
    pub async fn mark(
        &self,
        generation: Generation,
        id: BackupId,
        now: Timestamp,
        mark: &Mark,
        writer: &Writer,
    ) -> Result<Put, RepoError> {
        self.put_mark(&self.layout.backup(generation, id, BackupKey::Keep), id, now, mark, writer).await
    }

    /// Marks a dump, which may not be complete yet.
    pub async fn mark_dump(
        &self,
        id: BackupId,
        now: Timestamp,
        mark: &Mark,
        writer: &Writer,
    ) -> Result<Put, RepoError> {
        self.put_mark(&self.layout.dump(id, DumpKey::Keep), id, now, mark, writer).await
    }

    async fn put_mark(
        &self,
        key: &ObjectKey,
        id: BackupId,
        now: Timestamp,
        mark: &Mark,
        writer: &Writer,
    ) -> Result<Put, RepoError> {
        let Mark { until, reason } = mark;
        let writer = writer.to_string();
        let keep = Keep { format: FORMAT, backup: id, reason, since: now, until: *until, writer };
        let mut json = serde_json::to_vec(&keep).map_err(|e| RepoError::damaged(key, e.to_string()))?;
        json.push(b'\n');
        Ok(self.store.put(key, json.into(), &UserMetadata::new()).await?)
    }

    /// The mark of a backup; `None` if it has none.
    pub async fn read_mark(&self, generation: Generation, id: BackupId) -> Result<Option<Mark>, RepoError> {
        self.get_mark(&self.layout.backup(generation, id, BackupKey::Keep)).await
    }

    /// The mark of a dump; `None` if it has none.
    pub async fn read_dump_mark(&self, id: BackupId) -> Result<Option<Mark>, RepoError> {
        self.get_mark(&self.layout.dump(id, DumpKey::Keep)).await
    }

    async fn get_mark(&self, key: &ObjectKey) -> Result<Option<Mark>, RepoError> {
        let read = async {
            let Get::Found(found) = self.store.get(key, 0, None).await? else { return Ok(None) };
            let json = self.store.read_start(key, found, LARGEST).await?;
            Ok(Some(serde_json::from_slice(&json).unwrap_or_default()))
        };
        match read.await.map_err(|error: StoreError| RepoError::from(error)) {
            Err(error) if error.is_of_one_object() => Ok(Some(Mark::default())),
            read => read,
        }
    }

    /// Takes the mark away.
    pub async fn unkeep(&self, generation: Generation, id: BackupId) -> Result<(), RepoError> {
        Ok(self.store.delete(&self.layout.backup(generation, id, BackupKey::Keep)).await?)
    }

    /// Takes the mark of a dump away.
    pub async fn unkeep_dump(&self, id: BackupId) -> Result<(), RepoError> {
        Ok(self.store.delete(&self.layout.dump(id, DumpKey::Keep)).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_cannot_be_read_holds_for_ever() {
        let now: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        for json in ["", "{}", "[]", "{\"until\": 7}", "{\"until\": \"soon\"}", "{\"until\": null, \"more\": 1}"] {
            let mark: Mark = serde_json::from_str(json).unwrap_or_default();
            assert!(mark.holds(now) && mark.holds(Timestamp::MAX), "{json}");
        }
        let mark: Mark = serde_json::from_str("{\"until\": \"2026-11-23T00:00:00Z\"}").unwrap();
        assert!(!mark.holds(now) && mark.holds("2026-11-22T23:59:59Z".parse().unwrap()));
    }
}
