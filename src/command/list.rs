//! `list`: the backups of a repository, also those that are damaged or never finished.

use jiff::Timestamp;
use serde::Serialize;

use super::RepositorySettings;
use super::bounds::bounded;
use super::failure::Failure;
use crate::postgres::Lsn;
use crate::repo::manifest::{BackupSummary, Method};
use crate::repo::stored_backups::{BackupState, StoredBackup};
use crate::repo::{BackupId, Generation, RepoError};

/// All backups.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListReport {
    schema: u32,
    /// The repository.
    pub repository: String,
    /// How many generations it has; none where nothing was stored yet.
    pub generations: usize,
    /// Of all generations, the oldest first.
    pub backups: Vec<ListedBackup>,
}

/// One backup.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListedBackup {
    /// Its name.
    pub id: BackupId,
    /// The cluster it is of.
    pub generation: Generation,
    /// Whether it can be used.
    pub state: ListedState,
    /// What is wrong with a damaged one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes of its objects.
    pub stored_bytes: u64,
    /// Whether an operator wants it to stay.
    pub kept: bool,
    /// What its manifest says.
    #[serde(flatten)]
    pub facts: Option<ListedFacts>,
}

/// Whether a backup can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ListedState {
    /// It can.
    Whole,
    /// It cannot.
    Damaged,
    /// It has no manifest: it is being taken, or was never finished.
    Unfinished,
}

/// What a manifest says in short.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListedFacts {
    /// The operator's words.
    pub label: String,
    /// Full; there is no other kind yet.
    pub kind: &'static str,
    /// How the files were read.
    pub method: Method,
    /// Taken from a standby.
    pub from_standby: bool,
    /// When it was begun.
    pub started: Timestamp,
    /// When it stopped.
    pub stopped: Timestamp,
    /// How long it took.
    pub seconds: f64,
    /// Bytes of its files.
    pub plain_bytes: u64,
    /// The timeline of start and stop.
    pub timeline: u32,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Where it becomes consistent.
    pub stop_lsn: Lsn,
    /// The first segment without which it is worth nothing.
    pub wal_first: String,
    /// The last one.
    pub wal_last: String,
    /// How many segments that are.
    pub wal_segments: u64,
    /// Pages whose checksum was wrong.
    pub bad_pages: u64,
}

impl ListReport {
    /// Whether there is a damaged backup.
    pub fn has_damage(&self) -> bool {
        self.backups.iter().any(|backup| backup.state == ListedState::Damaged)
    }
}

/// Lists the backups of all generations. A repository in which nothing was stored yet has none.
pub async fn run(settings: &RepositorySettings) -> Result<ListReport, Failure> {
    let listing = async {
        let repository = settings.open().await?;
        let identities = match repository.read_identities().await {
            Ok(identities) => identities,
            Err(RepoError::NoIdentity { repository }) => {
                return Ok(ListReport { schema: 1, repository, generations: 0, backups: Vec::new() });
            }
            Err(error) => return Err(error.into()),
        };
        let mut backups = Vec::new();
        for identity in identities.all() {
            let stored = repository.stored_backups(identity).await?;
            backups.extend(stored.iter().map(|backup| ListedBackup::new(backup, identity.generation)));
        }
        let generations = identities.all().len();
        Ok(ListReport { schema: 1, repository: repository.describe(), generations, backups })
    };
    bounded(listing, None, None).await
}

impl ListedBackup {
    /// What is told of a stored backup.
    pub fn new(backup: &StoredBackup, generation: Generation) -> Self {
        let (state, reason, facts) = match &backup.state {
            BackupState::Whole(summary) => (ListedState::Whole, None, Some(ListedFacts::new(summary))),
            BackupState::Damaged(reason) => (ListedState::Damaged, Some(reason.clone()), None),
            BackupState::Unfinished => (ListedState::Unfinished, None, None),
        };
        let listing = &backup.listing;
        let (id, stored_bytes, kept) = (listing.id, listing.stored_bytes, listing.kept);
        ListedBackup { id, generation, state, reason, stored_bytes, kept, facts }
    }
}

impl ListedFacts {
    fn new(summary: &BackupSummary) -> Self {
        let (first, last) = summary.wal_needed().map_or(Default::default(), |(first, last)| {
            let name = |name: crate::postgres::SegmentName| name.to_string();
            (name(first), name(last))
        });
        let segments = summary.segment_size().map_or(0, |size| {
            size.ending_at(summary.stop_lsn).0.saturating_sub(size.containing(summary.start_lsn).0) + 1
        });
        ListedFacts {
            label: summary.label.clone(),
            kind: "full",
            method: summary.method,
            from_standby: summary.from_standby,
            started: summary.started,
            stopped: summary.stopped,
            seconds: summary.stopped.duration_since(summary.started).as_secs_f64(),
            plain_bytes: summary.plain_bytes,
            timeline: summary.timeline.get(),
            start_lsn: summary.start_lsn,
            stop_lsn: summary.stop_lsn,
            wal_first: first,
            wal_last: last,
            wal_segments: segments,
            bad_pages: summary.bad_pages,
        }
    }
}
