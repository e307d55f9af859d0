//! The last look at a backup's parts before its manifest is written: whether all are there as they were stored.

use std::collections::BTreeMap;

use super::Repository;
use super::backup_id::BackupId;
use super::error::RepoError;
use super::layout::{BackupKey, Generation};
use super::manifest_entries::PartEntry;
use crate::storage::ObjectStoreExt;
use crate::storage::object_store::Visit;

const PAGE: usize = 1000;

impl Repository {
    /// Fails with the first part that is not there, or has another size. One listing.
    pub async fn check_parts(
        &self,
        generation: Generation,
        id: BackupId,
        parts: &[PartEntry],
    ) -> Result<(), RepoError> {
        let mut sizes = BTreeMap::new();
        self.store
            .visit_after(&self.layout.backup_prefix(generation, id), None, PAGE, |listed| {
                if let Some((_, _, BackupKey::Part(number))) = self.layout.parse_backup(&listed.name) {
                    sizes.insert(number, listed.size);
                }
                Visit::More
            })
            .await?;
        let Some(wrong) = parts.iter().find(|part| sizes.get(&part.part) != Some(&part.stored)) else {
            return Ok(());
        };
        let key = self.layout.backup(generation, id, BackupKey::Part(wrong.part));
        let why = match sizes.get(&wrong.part) {
            None => "it was stored and is gone".to_owned(),
            Some(size) => format!("it is {size} bytes long, but was written with {}", wrong.stored),
        };
        Err(RepoError::damaged(&key, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryStore;
    use crate::storage::{ObjectStore, UserMetadata};
    use crate::stream::Sha256;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_part_that_is_gone_or_cut_is_named() {
        let store = Arc::new(MemoryStore::default());
        let repository = Repository::new(store.clone(), "main".parse().unwrap());
        let id: BackupId = "20261122T231805Z-0a1b2c3d".parse().unwrap();
        let key = |number| repository.layout.backup(Generation::FIRST, id, BackupKey::Part(number));
        let part = |part| PartEntry { part, stored: 100, sha256: Sha256([0; 32]) };
        let parts: Vec<PartEntry> = (1..=3).map(part).collect();
        let look = || repository.check_parts(Generation::FIRST, id, &parts);
        for number in 1..=4 {
            store.put(&key(number), vec![0; 100].into(), &UserMetadata::new()).await.unwrap();
        }
        look().await.unwrap();
        store.corrupt(&key(3), |bytes| bytes.truncate(99));
        assert!(look().await.unwrap_err().to_string().contains("99 bytes long"));
        store.delete(&key(2)).await.unwrap();
        let error = look().await.unwrap_err().to_string();
        assert!(error.contains("00000002") && error.contains("gone"), "{error}");
    }
}
