//! Leases: a running restore or backup says what must not be deleted while it is at work.
//!
//! `record/restore/<nanoseconds>-<pid>.json` is written when the work begins and deleted when it ends. After [`VALID`] by the
//! store's clock it no longer counts: whoever wrote it was killed, or should have written another. Whoever restores takes the
//! lease first and looks after that whether the backup and its WAL are there. `expire` deletes the manifest first and looks for
//! leases after that: so either the restore sees that the manifest is gone, or `expire` sees the lease.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Repository;
use super::backup_id::BackupId;
use super::error::RepoError;
use super::layout::Generation;
use super::policy::before;
use crate::postgres::Lsn;
use crate::storage::object_store::Visit;
use crate::storage::{ObjectKey, ObjectStoreExt, Put, StoreError, StoreErrorKind, UserMetadata};

/// What is in use. Readers pass over fields that they do not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// `pgark-lease-1`
    format: String,
    /// Of the repository.
    pub generation: Generation,
    /// The backup.
    pub backup: BackupId,
    /// The WAL from here on, of every timeline.
    pub from: Lsn,
    /// To here; absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Lsn>,
    /// For whom: host, process, program.
    pub writer: String,
}

/// A lease in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its object.
    pub key: ObjectKey,
    /// What it says; `None` if that cannot be read: then it holds everything.
    pub lease: Option<Lease>,
    /// When it was written, by the store's clock.
    pub written: Option<Timestamp>,
}

/// How long a lease counts.
pub const VALID: Duration = Duration::from_secs(24 * 3600);

const FORMAT: &str = "pgark-lease-1";
const KIND: &str = "restore";
const LARGEST: usize = 64 << 10;

impl Lease {
    /// A lease of a backup and the WAL from its start on.
    pub fn new(generation: Generation, backup: BackupId, from: Lsn, until: Option<Lsn>, writer: String) -> Self {
        Lease { format: FORMAT.to_owned(), generation, backup, from, until, writer }
    }
}

impl Held {
    /// Whether it still counts.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.written.is_none_or(|written| written > before(now, VALID))
    }
}

impl Repository {
    /// Writes a lease: from now on `expire` leaves alone what it names. `now` only gives the object its name.
    pub async fn hold(&self, lease: &Lease, now: Timestamp, pid: u32) -> Result<ObjectKey, RepoError> {
        let name = format!("{}-{pid}.json", now.as_nanosecond());
        let key = self.layout.record(KIND, &name).map_err(|e| RepoError::damaged(&name, e.to_string()))?;
        let mut json = serde_json::to_vec(lease).map_err(|e| RepoError::damaged(&key, e.to_string()))?;
        json.push(b'\n');
        let bytes = Bytes::from(json);
        match self.store.put(&key, bytes.clone(), &UserMetadata::new()).await? {
            Put::Created => Ok(key),
            // After a lost reply it is ours.
            Put::Exists if self.store.read_small(&key, LARGEST).await? == Some(bytes) => Ok(key),
            Put::Exists => {
                let message = format!("`{key}` is another's lease");
                Err(StoreError::new(StoreErrorKind::Unexpected, message).into())
            }
        }
    }

    /// Ends a lease.
    pub async fn release(&self, key: &ObjectKey) -> Result<(), RepoError> {
        Ok(self.store.delete(key).await?)
    }

    /// The leases that count at `now`, a time of the store's clock.
    pub async fn leases(&self, now: Timestamp) -> Result<Vec<Held>, RepoError> {
        let mut held = self.all_leases().await?;
        held.retain(|held| held.is_valid(now));
        Ok(held)
    }

    /// All leases, also those of the dead.
    pub async fn all_leases(&self) -> Result<Vec<Held>, RepoError> {
        let mut listed: Vec<(ObjectKey, Option<Timestamp>)> = Vec::new();
        let prefix = self.layout.records(KIND);
        self.store
            .visit_after(&prefix, None, 1000, |object| {
                listed.extend(object.name.parse().ok().map(|key| (key, object.written())));
                Visit::More
            })
            .await?;
        let mut all = Vec::new();
        for (key, written) in listed {
            let lease = match self.store.read_small(&key, LARGEST).await.map_err(RepoError::from) {
                Ok(Some(bytes)) => serde_json::from_slice(&bytes).ok().filter(|lease: &Lease| lease.format == FORMAT),
                Ok(None) => continue,
                Err(error) if error.is_of_one_object() => None,
                Err(error) => return Err(error),
            };
            all.push(Held { key, lease, written });
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::ObjectStore;
    use crate::storage::memory::MemoryStore;
    use std::sync::Arc;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    fn lease() -> Lease {
        let id = "20261122T231805Z-0a1b2c3d".parse().unwrap();
        Lease::new(Generation(2), id, Lsn(0x200_0028), None, "db1, pid 7, pgark 0".into())
    }

    #[test]
    fn a_lease_is_held_for_a_day_and_released() {
        run(async {
            let repository = Repository::new(Arc::new(MemoryStore::default()), "main".parse().unwrap());
            let now = Timestamp::now();
            let key = repository.hold(&lease(), now, 7).await.unwrap();
            assert!(key.as_str().starts_with("main/record/restore/"), "{key}");
            assert_eq!(repository.hold(&lease(), now, 7).await.unwrap(), key, "a lost reply is no conflict");
            let held = repository.leases(now).await.unwrap();
            assert_eq!(held.iter().map(|held| held.lease.clone()).collect::<Vec<_>>(), [Some(lease())]);
            let later = |hours: i64| now + jiff::SignedDuration::from_hours(hours);
            assert_eq!(repository.leases(later(23)).await.unwrap().len(), 1);
            assert_eq!(repository.leases(later(25)).await.unwrap().len(), 0);
            assert_eq!(repository.all_leases().await.unwrap().len(), 1);
            repository.release(&key).await.unwrap();
            assert_eq!(repository.leases(now).await.unwrap(), []);
        });
    }

    #[test]
    fn what_cannot_be_read_still_counts() {
        run(async {
            let store = Arc::new(MemoryStore::default());
            let repository = Repository::new(store.clone(), "main".parse().unwrap());
            let key = repository.layout.record("restore", "1-1.json").unwrap();
            store.put(&key, "{}".into(), &UserMetadata::new()).await.unwrap();
            let held = repository.leases(Timestamp::now()).await.unwrap();
            assert_eq!(held.iter().map(|held| &held.lease).collect::<Vec<_>>(), [&None]);
        });
    }
}
