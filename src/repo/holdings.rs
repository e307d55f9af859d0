//! The inventory of a generation with every object of WAL, the marks and the leases: what `expire` and `verify` go by, object by
//! object.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;

use super::Repository;
use super::backup_id::BackupId;
use super::error::RepoError;
use super::identity::Identity;
use super::inventory::Inventory;
use super::keep::Mark;
use super::layout::{Generation, WalKey};
use super::lease::Held;
use super::stocktaking::{Found, Pass, Refused};
use super::stored_backups::StoredBackup;
use crate::postgres::WalName;
use crate::storage::ObjectStoreExt;
use crate::storage::object_store::{Listed, Visit};

/// An object of WAL, also a piece of the live tail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldWal {
    /// Which.
    pub key: WalKey,
    /// Its bytes.
    pub bytes: u64,
    /// When it was written; `None`: the store does not say.
    pub modified: Option<Timestamp>,
}

impl HeldWal {
    /// The file that it holds.
    pub fn name(&self) -> WalName {
        self.key.name()
    }
}

/// One generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Its timelines and backups. Where no backup tells how long segments are, their numbers mean nothing: no header is read, for
    /// whoever deletes wants to know it from a backup, and whoever looks for damage must bear it there, too.
    pub inventory: Inventory,
    /// By key.
    pub wal: Vec<HeldWal>,
    /// The word of operators about backups, also what no longer counts.
    pub marks: BTreeMap<BackupId, Mark>,
    /// The leases of all generations, also those that no longer count.
    pub leases: Vec<Held>,
    /// Objects whose names say nothing: they are left alone.
    pub unknown: Vec<String>,
}

impl Holdings {
    /// Of which generation.
    pub fn generation(&self) -> Generation {
        self.inventory.generation
    }

    /// The mark of an operator who wants a backup to stay, if it counts at a time.
    pub fn mark_at(&self, id: BackupId, now: Timestamp) -> Option<&Mark> {
        self.marks.get(&id).filter(|mark| mark.holds(now))
    }

    /// The newest time that the store gave any of these objects.
    pub fn newest(&self) -> Option<Timestamp> {
        let pieces = self.inventory.backups.iter().flat_map(|backup| &backup.listing.pieces);
        let pieces = pieces.map(|piece| piece.modified);
        pieces.chain(self.wal.iter().map(|wal| wal.modified)).flatten().max()
    }

    /// Whether a lease names a backup.
    pub fn is_leased(&self, id: BackupId, now: Timestamp) -> bool {
        let names = |held: &Held| held.lease.as_ref().is_none_or(|lease| lease.backup == id);
        self.leases.iter().any(|held| held.is_valid(now) && names(held))
    }
}

/// Small reads at once.
const READS: usize = 8;
const PAGE: usize = 1000;

impl Repository {
    /// What a generation holds. Listed in this order, so that no backup is missed that needs WAL which was found: WAL, backups,
    /// leases.
    pub async fn holdings(&self, identity: &Identity) -> Result<Holdings, RepoError> {
        self.take_holdings(identity, Refused::End).await
    }

    /// The same also where no manifest may be read: whoever looks for damage tells that of each.
    pub async fn holdings_to_verify(&self, identity: &Identity) -> Result<Holdings, RepoError> {
        self.take_holdings(identity, Refused::Bear).await
    }

    async fn take_holdings(&self, identity: &Identity, refused: Refused) -> Result<Holdings, RepoError> {
        let generation = identity.generation;
        let mut pass = Pass::new(&self.layout);
        let (mut wal, mut unknown) = (Vec::new(), Vec::new());
        let layout = &self.layout;
        for prefix in [layout.live(generation), layout.wal(generation), layout.backups(generation)] {
            let visit = |listed: &Listed| {
                match pass.take(listed) {
                    Found::Wal(key) => wal.push(HeldWal { key, bytes: listed.size, modified: listed.written() }),
                    Found::Unknown => unknown.push(listed.name.clone()),
                    Found::Backup => {}
                }
                Visit::More
            };
            self.store.visit_after(&prefix, None, PAGE, visit).await?;
        }
        let mut inventory = self.read_listed(identity, pass, refused).await?;
        if let Some(size) = inventory.told_segment_size() {
            inventory.number(size);
        }
        let marks = self.marks(generation, &inventory.backups).await?;
        Ok(Holdings { inventory, wal, marks, leases: self.all_leases().await?, unknown })
    }

    /// Takes note of the backups, marks and leases of now; the WAL stays that of the first look.
    pub async fn look_again(&self, holdings: &mut Holdings) -> Result<(), RepoError> {
        let Inventory { generation, ident, backups, .. } = &holdings.inventory;
        let listings = self.list_backups(*generation).await?;
        holdings.inventory.backups = self.read_backups(*generation, *ident, listings, backups).await?.backups;
        holdings.marks = self.marks(holdings.generation(), &holdings.inventory.backups).await?;
        holdings.leases = self.all_leases().await?;
        Ok(())
    }

    /// The same of one backup alone, and of all leases.
    pub async fn look_at(&self, holdings: &mut Holdings, id: BackupId) -> Result<(), RepoError> {
        let Inventory { generation, ident, backups, .. } = &holdings.inventory;
        let listings = self.list_backups_below(&self.layout.backup_prefix(*generation, id)).await?;
        let found = self.read_backups(*generation, *ident, listings, backups).await?.backups;
        let marks = self.marks(*generation, &found).await?;
        holdings.marks.remove(&id);
        holdings.marks.extend(marks);
        let backups = &mut holdings.inventory.backups;
        backups.retain(|backup| backup.id() != id);
        let at = backups.partition_point(|backup| backup.id() < id);
        backups.splice(at..at, found);
        holdings.leases = self.all_leases().await?;
        Ok(())
    }

    async fn marks(
        &self,
        generation: Generation,
        backups: &[StoredBackup],
    ) -> Result<BTreeMap<BackupId, Mark>, RepoError> {
        let marked = backups.iter().filter(|backup| backup.listing.has_mark()).map(StoredBackup::id);
        let reads = marked.map(|id| async move { Ok::<_, RepoError>((id, self.read_mark(generation, id).await?)) });
        let read: Vec<_> = stream::iter(reads).buffered(READS).try_collect().await?;
        Ok(read.into_iter().filter_map(|(id, mark)| Some((id, mark?))).collect())
    }
}
