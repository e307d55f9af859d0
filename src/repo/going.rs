//! Notes of what is about to be deleted, so that nobody is promised what goes in the same moment.
//!
//! `record/going/<backup>-<nanoseconds>-<pid>.json` is written before the last look at marks and leases, and deleted when the
//! backup's objects are gone or stay. Whoever marks a backup looks for such a note after the mark is written, and for the manifest
//! after that: then either the mark was seen, or the note is, or the manifest is gone.

use jiff::Timestamp;
use serde::Serialize;

use super::Repository;
use super::backup_id::BackupId;
use super::error::RepoError;
use super::wal_object::Writer;
use crate::storage::object_store::{Listed, Visit};
use crate::storage::{ObjectKey, ObjectStoreExt, StoreErrorKind, UserMetadata};

#[derive(Serialize)]
struct Going {
    format: &'static str,
    backup: BackupId,
    since: Timestamp,
    writer: String,
}

const FORMAT: &str = "pgark-going-1";
const KIND: &str = "going";

impl Repository {
    /// Says that a backup is about to be deleted. `None` if the role may not write that: then a mark of this very moment may come
    /// too late without a word. A role that could not take the note away again is refused before it writes one.
    pub async fn announce(
        &self,
        id: BackupId,
        now: Timestamp,
        writer: &Writer,
    ) -> Result<Option<ObjectKey>, RepoError> {
        let name = format!("{id}-{}-{}.json", now.as_nanosecond(), writer.pid);
        let key = self.layout.record(KIND, &name).map_err(|e| RepoError::damaged(&name, e.to_string()))?;
        let going = Going { format: FORMAT, backup: id, since: now, writer: writer.to_string() };
        let mut json = serde_json::to_vec(&going).map_err(|e| RepoError::damaged(&key, e.to_string()))?;
        json.push(b'\n');
        self.store.delete(&key).await?;
        match self.store.put(&key, json.into(), &UserMetadata::new()).await {
            Ok(_) => Ok(Some(key)),
            Err(error) if error.kind == StoreErrorKind::Denied => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The note of whoever is deleting this backup: the newest, and when it was written.
    pub async fn going(&self, id: BackupId) -> Result<Option<(String, Option<Timestamp>)>, RepoError> {
        let prefix = self.layout.records(KIND);
        let begin = format!("{prefix}{id}-");
        let mut found = None;
        let visit = |listed: &Listed| {
            if listed.name.starts_with(&begin) {
                found = Some((listed.name.clone(), listed.modified.and_then(|time| Timestamp::try_from(time).ok())));
            }
            Visit::More
        };
        self.store.visit_after(&prefix, None, 1000, visit).await?;
        Ok(found)
    }

    /// Notes that were written before a time: whoever wrote them is dead.
    pub async fn old_notes(&self, before: Timestamp) -> Result<Vec<ObjectKey>, RepoError> {
        let mut old = Vec::new();
        let visit = |listed: &Listed| {
            let written = listed.modified.and_then(|time| Timestamp::try_from(time).ok());
            if written.is_some_and(|written| written < before) {
                old.extend(listed.name.parse::<ObjectKey>().ok());
            }
            Visit::More
        };
        self.store.visit_after(&self.layout.records(KIND), None, 1000, visit).await?;
        Ok(old)
    }
}
