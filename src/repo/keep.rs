//! The word of an operator that a backup must stay: an object beside its manifest.

use jiff::Timestamp;
use serde::Serialize;

use super::Repository;
use super::backup_id::BackupId;
use super::error::RepoError;
use super::layout::{BackupKey, Generation};
use super::wal_object::Writer;
use crate::storage::{Put, UserMetadata};

#[derive(Serialize)]
struct Keep<'a> {
    format: &'a str,
    backup: BackupId,
    reason: &'a str,
    since: Timestamp,
    writer: String,
}

const FORMAT: &str = "pgark-keep-1";

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
        let key = self.layout.backup(generation, id, BackupKey::Keep);
        let keep = Keep { format: FORMAT, backup: id, reason, since: now, writer: writer.to_string() };
        let mut json = serde_json::to_vec(&keep).map_err(|e| RepoError::damaged(&key, e.to_string()))?;
        json.push(b'\n');
        Ok(self.store.put(&key, json.into(), &UserMetadata::new()).await?)
    }

    /// Takes the mark away.
    pub async fn unkeep(&self, generation: Generation, id: BackupId) -> Result<(), RepoError> {
        Ok(self.store.delete(&self.layout.backup(generation, id, BackupKey::Keep)).await?)
    }
}
