//! What the store holds: keys, identity, WAL objects, backups, the proof that something is absent, and plans.
//!
//! This layer knows what lies under a repository's URL and decides what it means. It prints nothing, reads no
//! clock and touches no local file: times are arguments.

pub mod absence;
pub mod alert;
pub mod alert_state;
pub mod archive;
pub mod backup_id;
pub mod backup_parts;
pub mod backups;
mod beginning;
pub mod claim;
pub mod dump_manifest;
pub mod dump_parts;
pub mod dump_retention;
pub mod dumps;
pub mod error;
pub mod gap;
pub mod going;
pub mod health;
pub mod holdings;
pub mod identity;
mod index_search;
pub mod intervals;
pub mod inventory;
pub mod joined_tail;
pub mod keep;
pub mod layout;
pub mod lease;
pub mod live_piece;
pub mod live_tail;
pub mod manifest;
pub mod manifest_entries;
pub mod manifest_lines;
mod needed;
pub mod outlook;
pub mod planning;
pub mod policy;
pub mod restore_plan;
pub mod restore_target;
pub mod retention;
#[cfg(test)]
mod retention_judge;
#[cfg(test)]
mod retention_model;
#[cfg(test)]
mod retention_world;
pub mod routes;
pub mod run_record;
pub mod run_upkeep;
#[cfg(test)]
mod sample;
pub mod schedule;
pub mod select;
#[cfg(test)]
mod select_model;
#[cfg(test)]
mod select_world;
pub mod soundness;
mod stocktaking;
mod stocktaking_tails;
pub mod stored_backups;
pub mod stored_object;
pub mod stored_parts;
pub mod tail_look;
#[cfg(test)]
mod tail_world;
pub mod timeline_path;
pub mod timeline_wal;
pub mod unreachable;
pub mod verify;
pub mod wal_object;
pub mod wal_runs;

pub use absence::{Absence, Asking};
pub use alert::{Alert, AlertSeverity, Expected};
pub use alert_state::{AlertMemory, Notice, NoticeKind, Timing};
pub use archive::{Archived, WalArchive};
pub use backup_id::BackupId;
pub use backups::BackupListing;
pub use dump_manifest::{DumpManifest, DumpSummary};
pub use error::RepoError;
pub use holdings::Holdings;
pub use identity::{Identities, Identity};
pub use inventory::Inventory;
pub use layout::{BackupKey, ClusterName, DumpKey, Generation, Layout, PieceKey, WalKey};
pub use lease::Lease;
pub use live_piece::{LivePiece, PieceHeader};
pub use manifest::BackupSummary;
pub use manifest_entries::Manifest;
pub use policy::Policy;
pub use restore_plan::{RestorePlan, Unreachable};
pub use restore_target::{Request, Target, TargetTimeline};
pub use retention::ExpirePlan;
pub use run_record::{RunKind, RunRecord, RunStage};
pub use schedule::Schedule;
pub use wal_object::{WalObjectHeader, Writer};

use std::sync::Arc;

use crate::storage::ObjectStore;

/// One cluster's part of a store.
#[derive(Clone, Debug)]
pub struct Repository {
    /// The store under the repository's URL.
    pub store: Arc<dyn ObjectStore>,
    /// Where things lie in it.
    pub layout: Layout,
}

impl Repository {
    /// The repository of `cluster` in `store`.
    pub fn new(store: Arc<dyn ObjectStore>, cluster: ClusterName) -> Self {
        Repository { store, layout: Layout::new(cluster) }
    }

    /// The repository as an operator would name it.
    pub fn describe(&self) -> String {
        format!("{} (cluster `{}`)", self.store.describe(), self.layout.cluster())
    }

    /// The WAL of one generation.
    pub fn archive(&self, generation: Generation) -> WalArchive {
        WalArchive { store: Arc::clone(&self.store), layout: self.layout.clone(), generation }
    }
}
