//! The backups of a generation, each with what its manifest says in short, or what is wrong with it.
//!
//! A backup exists only when it can be restored: one that lacks parts is damaged, whatever its manifest says.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};

use super::Repository;
use super::backup_id::BackupId;
use super::backups::BackupListing;
use super::error::RepoError;
use super::identity::Identity;
use super::layout::{BackupKey, Generation};
use super::manifest::BackupSummary;
use crate::postgres::ClusterIdent;

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
    /// It cannot be restored: why, and what its manifest says, if that can be read.
    Damaged(String, Option<Box<BackupSummary>>),
    /// It has no manifest: still being taken, or never finished.
    Unfinished,
}

/// Backups whose manifests were read.
pub(super) struct ReadBackups {
    pub(super) backups: Vec<StoredBackup>,
    /// Where no manifest could be read, but one was refused: why.
    refused: Option<RepoError>,
}

impl ReadBackups {
    /// The backups, unless whoever looks may read none of them: then it is the role that lacks a right.
    pub(super) fn unless_blind(self) -> Result<Vec<StoredBackup>, RepoError> {
        self.refused.map_or(Ok(self.backups), Err)
    }
}

/// Small reads at once.
const READS: usize = 8;

impl StoredBackup {
    /// Its name.
    pub fn id(&self) -> BackupId {
        self.listing.id
    }

    /// The summary of a backup that exists.
    pub fn summary(&self) -> Option<&BackupSummary> {
        match &self.state {
            BackupState::Whole(summary) => Some(summary),
            _ => None,
        }
    }

    /// What its manifest says, even of a backup that cannot be restored.
    pub fn manifest(&self) -> Option<&BackupSummary> {
        match &self.state {
            BackupState::Whole(summary) => Some(summary),
            BackupState::Damaged(_, summary) => summary.as_deref(),
            BackupState::Unfinished => None,
        }
    }
}

impl Repository {
    /// The backups of a generation without its WAL, in the order of their names.
    pub async fn stored_backups(&self, identity: &Identity) -> Result<Vec<StoredBackup>, RepoError> {
        let listings = self.list_backups(identity.generation).await?;
        self.read_backups(identity.generation, identity.ident(), listings, &[]).await?.unless_blind()
    }

    /// One backup; `None` if nothing of it is there.
    pub async fn stored_backup(&self, identity: &Identity, id: BackupId) -> Result<Option<StoredBackup>, RepoError> {
        let found = self.list_backups_below(&self.layout.backup_prefix(identity.generation, id)).await?;
        Ok(self.read_backups(identity.generation, identity.ident(), found, &[]).await?.unless_blind()?.pop())
    }

    /// Reads the manifests of these backups, but for those of `known` ones that are as they were. One that the store refuses says
    /// nothing about the others.
    pub(super) async fn read_backups(
        &self,
        generation: Generation,
        ident: ClusterIdent,
        listings: Vec<BackupListing>,
        known: &[StoredBackup],
    ) -> Result<ReadBackups, RepoError> {
        let known = |listing: &BackupListing| {
            let same = known.iter().find(|known| known.listing == *listing && known.manifest().is_some());
            same.map(|known| known.state.clone())
        };
        let reads = listings.into_iter().map(|listing| (known(&listing), listing)).map(|(known, listing)| async move {
            let state = match known {
                Some(state) => Ok(state),
                None => self.backup_state(generation, ident, &listing).await,
            };
            (listing, state)
        });
        let outcomes: Vec<(BackupListing, Result<BackupState, RepoError>)> =
            stream::iter(reads).buffered(READS).collect().await;
        let mut read = ReadBackups { backups: Vec::new(), refused: None };
        let mut sees = false;
        for (listing, state) in outcomes {
            let state = match state {
                Err(error) if error.is_of_one_object() => {
                    let state = damaged(format!("it cannot be read: {error}"), None);
                    read.refused.get_or_insert(error);
                    state
                }
                state => {
                    sees |= listing.manifest().is_some();
                    state?
                }
            };
            read.backups.push(StoredBackup { listing, state });
        }
        if sees {
            read.refused = None;
        }
        Ok(read)
    }

    async fn backup_state(
        &self,
        generation: Generation,
        ident: ClusterIdent,
        listing: &BackupListing,
    ) -> Result<BackupState, RepoError> {
        if listing.manifest().is_none() {
            return Ok(BackupState::Unfinished);
        }
        let summary = match self.read_summary(generation, listing.id).await {
            Ok(Some(summary)) => summary,
            // Deleted since it was listed.
            Ok(None) => return Ok(BackupState::Unfinished),
            Err(RepoError::Damaged { key, reason }) => return Ok(damaged(format!("`{key}`: {reason}"), None)),
            Err(RepoError::Store(error)) if error.is_bad_medium() => return Ok(damaged(error.to_string(), None)),
            Err(error) => return Err(error),
        };
        if summary.ident() != ident {
            return Ok(damaged(format!("it is of another cluster ({})", summary.ident()), Some(summary)));
        }
        if let Some(reason) = self.missing_parts(listing, &summary) {
            return Ok(damaged(reason, Some(summary)));
        }
        if listing.stored_bytes() < summary.stored_bytes {
            return self.short_parts(listing, summary).await;
        }
        Ok(BackupState::Whole(Box::new(summary)))
    }

    fn missing_parts(&self, listing: &BackupListing, summary: &BackupSummary) -> Option<String> {
        let there: BTreeSet<u32> = listing.parts().map(|(number, _)| number).collect();
        let missing = summary.parts.saturating_sub(there.len() as u32);
        let first = (1..=summary.parts).find(|number| !there.contains(number)).filter(|_| missing > 0)?;
        let key = self.layout.backup(summary.generation, summary.id, BackupKey::Part(first));
        Some(format!("{missing} of its {} parts are missing, `{key}` first", summary.parts))
    }

    /// Some part is shorter than it was: the manifest tells which.
    async fn short_parts(&self, listing: &BackupListing, summary: BackupSummary) -> Result<BackupState, RepoError> {
        let manifest = match self.read_manifest(summary.generation, summary.id).await {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return Ok(BackupState::Unfinished),
            Err(RepoError::Damaged { key, reason }) => {
                return Ok(damaged(format!("`{key}`: {reason}"), Some(summary)));
            }
            Err(error) => return Err(error),
        };
        let sizes: BTreeMap<u32, u64> = listing.parts().collect();
        let other = manifest.parts.iter().find(|part| sizes.get(&part.part) != Some(&part.stored));
        Ok(match other {
            None => BackupState::Whole(Box::new(summary)),
            Some(part) => {
                let key = self.layout.backup(summary.generation, summary.id, BackupKey::Part(part.part));
                let (there, whole) = (sizes.get(&part.part).copied().unwrap_or_default(), part.stored);
                damaged(format!("`{key}` is {there} bytes long, but was written with {whole}"), Some(summary))
            }
        })
    }
}

fn damaged(reason: String, summary: Option<BackupSummary>) -> BackupState {
    BackupState::Damaged(reason, summary.map(Box::new))
}
