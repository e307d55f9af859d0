//! Whether a backup can be restored at all: its manifest can be read, its parts are there, and the WAL from its start to its stop.

use std::collections::BTreeSet;

use super::backup_id::BackupId;
use super::inventory::Inventory;
use super::manifest::BackupSummary;
use super::stored_backups::StoredBackup;
use super::timeline_path::{TimelinePath, TimelineSpan};

/// What is missing of the WAL without which a backup cannot be made consistent.
pub fn missing_own_wal(inventory: &Inventory, backup: &BackupSummary) -> Vec<TimelineSpan> {
    let own = backup.own_wal(inventory.segment_size);
    TimelinePath::as_known(inventory, backup.timeline).missing(inventory, own.first, own.last)
}

/// Whether a backup can be restored, as far as listings tell.
pub fn is_sound(inventory: &Inventory, backup: &StoredBackup) -> bool {
    backup.summary().is_some_and(|summary| missing_own_wal(inventory, summary).is_empty())
}

/// The newest of the backups that can be restored: by the store's clock, and the one that was taken last. A copied repository has
/// other times than the one that it was copied from.
pub fn newest_sound(inventory: &Inventory) -> BTreeSet<BackupId> {
    let written = |backup: &&StoredBackup| (backup.listing.manifest().and_then(|piece| piece.modified), backup.id());
    let stopped = |backup: &&StoredBackup| (backup.manifest().map(|summary| summary.stopped), backup.id());
    let sound = || inventory.backups.iter().filter(|backup| is_sound(inventory, backup));
    [sound().max_by_key(written), sound().max_by_key(stopped)].into_iter().flatten().map(StoredBackup::id).collect()
}
