//! Restore plans from a repository: takes the inventory, and reads of WAL objects what the choice depends on.

use futures_util::{StreamExt, stream};

use super::Repository;
use super::error::RepoError;
use super::identity::{Identities, Identity};
use super::inventory::Inventory;
use super::layout::{BackupKey, Generation};
use super::restore_plan::{RestorePlan, Unreachable};
use super::restore_target::{Indexes, Request};
use super::select::{Selection, select};
use crate::postgres::{SegmentName, WalName};
use crate::storage::Head;

/// Headers read at once.
const READS: usize = 16;

impl Repository {
    /// The plan for a request, or why there is none.
    pub async fn plan_restore(
        &self,
        inventory: &Inventory,
        request: &Request,
    ) -> Result<Result<RestorePlan, Unreachable>, RepoError> {
        let mut indexes = Indexes::new();
        loop {
            match select(inventory, request, &indexes) {
                Selection::Plan(plan) => return Ok(Ok(*plan)),
                Selection::Unreachable(why) => return Ok(Err(self.elsewhere(inventory.generation, *why).await?)),
                Selection::Ask(segments) => indexes.extend(self.read_indexes(inventory.generation, &segments).await?),
            }
        }
    }

    /// What segments tell about themselves. Damage is for the restore to find: here they tell nothing.
    pub async fn read_indexes(&self, generation: Generation, segments: &[SegmentName]) -> Result<Indexes, RepoError> {
        let archive = &self.archive(generation);
        let reads = segments.iter().map(|segment| async move {
            match archive.header_of(WalName::Segment(*segment)).await {
                Ok(Some(header)) => Ok((*segment, header.index)),
                Ok(None) => Ok((*segment, archive.index_of_tail(*segment).await?)),
                Err(RepoError::Damaged { .. }) => Ok((*segment, None)),
                Err(error) => Err(error),
            }
        });
        let outcomes: Vec<_> = stream::iter(reads).buffered(READS).collect().await;
        outcomes.into_iter().collect()
    }

    /// A backup that is not there may be another generation's.
    async fn elsewhere(&self, wanted: Generation, why: Unreachable) -> Result<Unreachable, RepoError> {
        let Unreachable::NoSuchBackup(id) = why else { return Ok(why) };
        let identities: Identities = self.read_identities().await?;
        for generation in identities.all().iter().map(|identity: &Identity| identity.generation) {
            let key = self.layout.backup(generation, id, BackupKey::Manifest);
            if generation != wanted && matches!(self.store.head(&key).await?, Head::Found(_)) {
                return Ok(Unreachable::OtherGeneration { backup: id, generation, wanted });
            }
        }
        Ok(why)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::postgres::{ClusterIdent, SystemId};
    use crate::repo::manifest_entries::Manifest;
    use crate::repo::restore_target::Target;
    use crate::repo::sample::{at, id, lsn, summary};
    use crate::repo::{BackupId, Writer};
    use crate::storage::memory::MemoryStore;

    #[test]
    fn a_backup_of_another_generation_is_named_as_such() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let repository = Repository::new(Arc::new(MemoryStore::default()), "main".parse().unwrap());
            let ident = |system_id| ClusterIdent { system_id: SystemId(system_id), major: 15.try_into().unwrap() };
            let writer = Writer { host: "db1".into(), pid: 1, version: "0" };
            repository.find_or_begin(ident(7), at(0), &writer).await.unwrap();
            let summary = summary(id(60), 1, lsn(2, 10), lsn(3, 50), at(70));
            let manifest = Manifest { summary, parts: vec![], directories: vec![], files: vec![], bad_pages: vec![] };
            let mut manifest = manifest;
            manifest.sum_up();
            repository.put_manifest(&manifest).await.unwrap();
            repository.open_generation(ident(8), at(80), &writer).await.unwrap();
            let identities = repository.read_identities().await.unwrap();
            let inventory = repository.take_inventory(identities.newest().unwrap()).await.unwrap();
            let from = |backup: BackupId| Request { backup: Some(backup), ..Request::to(Target::Latest) };
            let why = repository.plan_restore(&inventory, &from(id(60))).await.unwrap().unwrap_err();
            let (generation, wanted) = (Generation(1), Generation(2));
            assert_eq!(why, Unreachable::OtherGeneration { backup: id(60), generation, wanted });
            let why = repository.plan_restore(&inventory, &from(id(61))).await.unwrap().unwrap_err();
            assert_eq!(why, Unreachable::NoSuchBackup(id(61)));
        });
    }
}
