//! Restore plans from a repository: takes the inventory, and reads of WAL objects what the choice depends on.

use futures_util::{StreamExt, stream};

use super::Repository;
use super::error::RepoError;
use super::identity::{Identities, Identity};
use super::inventory::Inventory;
use super::layout::{BackupKey, Generation};
use super::restore_plan::{RestorePlan, Unreachable};
use super::restore_target::{Indexes, Request, RestorePoint, SegmentIndex};
use super::select::{Selection, select};
use super::wal_object::WalObjectHeader;
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
                Ok(header) => Ok((*segment, header.as_ref().and_then(index_in))),
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

/// The index in a WAL object's header.
fn index_in(header: &WalObjectHeader) -> Option<SegmentIndex> {
    let index = header.index.as_ref()?;
    let points = index.restore_points.iter();
    Some(SegmentIndex {
        // A record that goes on in the next segment is in nobody's index.
        whole: index.complete && !index.cut,
        commits: index.commits.map(|commits| (commits.first, commits.last)),
        xids: index.xids.map(|xids| (xids.lowest.0, xids.highest.0)),
        restore_points: points.map(|point| RestorePoint { name: point.name.clone(), lsn: Some(point.lsn) }).collect(),
    })
}
