//! The backups of a generation, each with what its manifest says in short, or what is wrong with it.
//!
//! A backup exists only when it can be restored: one that lacks parts is damaged, whatever its manifest says.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};

use super::Repository;
use super::backup_id::BackupId;
use super::backups::{BackupListing, note_piece};
use super::error::RepoError;
use super::identity::Identity;
use super::layout::{BackupKey, Generation};
use super::manifest::BackupSummary;
use crate::postgres::ClusterIdent;
use crate::storage::ObjectStoreExt;
use crate::storage::object_store::Visit;

/// A backup, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBackup {
    /// What the listing says.
    pub listing: BackupListing,
    /// What its manifest says.
    pub state: BackupState,
}

/// Whether a backup exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupState {
    /// It does.
    Whole(Box<BackupSummary>),
    /// Its manifest cannot be used.
    Damaged(String),
    /// It has no manifest: still being taken, or never finished.
    Unfinished,
}

/// Small reads at once.
const READS: usize = 8;
const PAGE: usize = 1000;

impl StoredBackup {
    /// The summary of a backup that exists.
    pub fn summary(&self) -> Option<&BackupSummary> {
        match &self.state {
            BackupState::Whole(summary) => Some(summary),
            _ => None,
        }
    }
}

impl Repository {
    /// The backups of a generation without its WAL, in the order of their names.
    pub async fn stored_backups(&self, identity: &Identity) -> Result<Vec<StoredBackup>, RepoError> {
        let listings = self.list_backups(identity.generation).await?;
        self.read_backups(identity.generation, identity.ident(), listings).await
    }

    /// One backup; `None` if nothing of it is there.
    pub async fn stored_backup(&self, identity: &Identity, id: BackupId) -> Result<Option<StoredBackup>, RepoError> {
        let mut found = Vec::new();
        let below = self.layout.backup_prefix(identity.generation, id);
        self.store
            .visit_after(&below, None, PAGE, |listed| {
                if let Some((_, id, piece)) = self.layout.parse_backup(&listed.name) {
                    note_piece(&mut found, id, piece, listed);
                }
                Visit::More
            })
            .await?;
        Ok(self.read_backups(identity.generation, identity.ident(), found).await?.pop())
    }

    pub(super) async fn read_backups(
        &self,
        generation: Generation,
        ident: ClusterIdent,
        listings: Vec<BackupListing>,
    ) -> Result<Vec<StoredBackup>, RepoError> {
        let reads = listings.into_iter().map(|listing| async move {
            let state = self.backup_state(generation, ident, &listing).await?;
            Ok(StoredBackup { listing, state })
        });
        let outcomes: Vec<_> = stream::iter(reads).buffered(READS).collect().await;
        outcomes.into_iter().collect()
    }

    async fn backup_state(
        &self,
        generation: Generation,
        ident: ClusterIdent,
        listing: &BackupListing,
    ) -> Result<BackupState, RepoError> {
        if !listing.complete {
            return Ok(BackupState::Unfinished);
        }
        let summary = match self.read_summary(generation, listing.id).await {
            Ok(Some(summary)) => summary,
            // Deleted since it was listed.
            Ok(None) => return Ok(BackupState::Unfinished),
            Err(RepoError::Damaged { key, reason }) => return Ok(BackupState::Damaged(format!("`{key}`: {reason}"))),
            Err(error) => return Err(error),
        };
        if summary.ident() != ident {
            return Ok(BackupState::Damaged(format!("it is of another cluster ({})", summary.ident())));
        }
        if listing.parts < summary.parts {
            return self.missing_parts(generation, &summary).await;
        }
        if listing.stored_bytes < summary.stored_bytes {
            return self.short_parts(generation, &summary).await;
        }
        Ok(BackupState::Whole(Box::new(summary)))
    }

    async fn missing_parts(&self, generation: Generation, summary: &BackupSummary) -> Result<BackupState, RepoError> {
        let mut there = BTreeSet::new();
        let below = self.layout.backup_prefix(generation, summary.id);
        self.store
            .visit_after(&below, None, PAGE, |listed| {
                if let Some((_, _, BackupKey::Part(number))) = self.layout.parse_backup(&listed.name) {
                    there.insert(number);
                }
                Visit::More
            })
            .await?;
        let missing = summary.parts.saturating_sub(there.len() as u32);
        let first = (1..=summary.parts).find(|number| !there.contains(number));
        Ok(match first {
            None => BackupState::Whole(Box::new(summary.clone())),
            Some(first) => {
                let key = self.layout.backup(generation, summary.id, BackupKey::Part(first));
                BackupState::Damaged(format!("{missing} of its {} parts are missing, `{key}` first", summary.parts))
            }
        })
    }

    /// Some part is shorter than it was: the manifest tells which.
    async fn short_parts(&self, generation: Generation, summary: &BackupSummary) -> Result<BackupState, RepoError> {
        let mut sizes = BTreeMap::new();
        let below = self.layout.backup_prefix(generation, summary.id);
        self.store
            .visit_after(&below, None, PAGE, |listed| {
                if let Some((_, _, BackupKey::Part(number))) = self.layout.parse_backup(&listed.name) {
                    sizes.insert(number, listed.size);
                }
                Visit::More
            })
            .await?;
        let manifest = match self.read_manifest(generation, summary.id).await {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return Ok(BackupState::Unfinished),
            Err(RepoError::Damaged { key, reason }) => return Ok(BackupState::Damaged(format!("`{key}`: {reason}"))),
            Err(error) => return Err(error),
        };
        let other = manifest.parts.iter().find(|part| sizes.get(&part.part) != Some(&part.stored));
        Ok(match other {
            None => BackupState::Whole(Box::new(summary.clone())),
            Some(part) => {
                let key = self.layout.backup(generation, summary.id, BackupKey::Part(part.part));
                let (there, whole) = (sizes.get(&part.part).copied().unwrap_or_default(), part.stored);
                BackupState::Damaged(format!("`{key}` is {there} bytes long, but was written with {whole}"))
            }
        })
    }
}
