//! `list`: the backups and dumps of a repository, also those that are damaged or never finished.

use jiff::Timestamp;
use serde::Serialize;

use super::bounds::bounded;
use super::failure::Failure;
use super::list_dumps::{self, ListedDump};
use super::{Circumstances, RepositorySettings};
use crate::postgres::Lsn;
use crate::repo::manifest::{BackupSummary, Method};
use crate::repo::stored_backups::{BackupState, StoredBackup};
use crate::repo::{BackupId, Generation, RepoError, Repository};

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
    /// The logical dumps, the oldest first.
    pub dumps: Vec<ListedDump>,
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
    /// Whether an operator wants it to stay, by this machine's clock.
    pub kept: bool,
    /// Until when; absent: for ever, or it is not marked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_until: Option<Timestamp>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_reason: Option<String>,
    /// What its manifest says.
    #[serde(flatten)]
    pub facts: Option<ListedFacts>,
}

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// All files of the cluster. There is no other kind yet.
    Full,
}

/// Which backups are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Of this kind.
    Kind(Kind),
    /// Read in this way.
    Method(Method),
    /// Taken from a standby.
    Standby,
    /// In this state.
    State(ListedState),
    /// Logical dumps, and no backups.
    Dumps,
}

impl Wanted {
    /// Whether a backup is wanted. Of a damaged one nobody can tell, so it always is.
    pub fn takes(self, backup: &ListedBackup) -> bool {
        let facts = |fits: &dyn Fn(&ListedFacts) -> bool| backup.facts.as_ref().is_some_and(fits);
        (backup.state == ListedState::Damaged && self != Wanted::Dumps)
            || match self {
                Wanted::Kind(kind) => facts(&|facts| facts.kind == kind),
                Wanted::Method(method) => facts(&|facts| facts.method == method),
                Wanted::Standby => facts(&|facts| facts.from_standby),
                Wanted::State(state) => backup.state == state,
                Wanted::Dumps => false,
            }
    }

    fn takes_dump(self, dump: &ListedDump) -> bool {
        match self {
            Wanted::Dumps => true,
            Wanted::State(state) => dump.state == state || dump.state == ListedState::Damaged,
            Wanted::Kind(_) | Wanted::Method(_) | Wanted::Standby => false,
        }
    }
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
    /// What it holds.
    pub kind: Kind,
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
    /// Whether there is a damaged backup or dump.
    pub fn has_damage(&self) -> bool {
        self.backups.iter().any(|backup| backup.state == ListedState::Damaged)
            || self.dumps.iter().any(|dump| dump.state == ListedState::Damaged)
    }
}

/// Lists the backups of all generations. A repository in which nothing was stored yet has none.
pub async fn run(
    settings: &RepositorySettings,
    wanted: Option<Wanted>,
    circumstances: &Circumstances,
) -> Result<ListReport, Failure> {
    let listing = async {
        let repository = settings.open().await?;
        let identities = match repository.read_identities().await {
            Ok(identities) => identities,
            Err(RepoError::NoIdentity { repository }) => {
                return Ok(ListReport {
                    schema: 1,
                    repository,
                    generations: 0,
                    backups: Vec::new(),
                    dumps: Vec::new(),
                });
            }
            Err(error) => return Err(error.into()),
        };
        let mut backups = Vec::new();
        for identity in identities.all() {
            let stored = repository.stored_backups(identity).await?;
            for backup in &stored {
                let listed = ListedBackup::new(backup, identity.generation);
                if wanted.is_none_or(|wanted| wanted.takes(&listed)) {
                    backups.push(listed.with_mark(&repository, circumstances.now).await?);
                }
            }
        }
        let mut dumps = list_dumps::dumps(&repository, circumstances.now).await?;
        dumps.retain(|dump| wanted.is_none_or(|wanted| wanted.takes_dump(dump)));
        let generations = identities.all().len();
        Ok(ListReport { schema: 1, repository: repository.describe(), generations, backups, dumps })
    };
    bounded(listing, None, None).await
}

impl ListedBackup {
    /// What is told of a stored backup.
    pub fn new(backup: &StoredBackup, generation: Generation) -> Self {
        let (state, reason, facts) = match &backup.state {
            BackupState::Whole(summary) => (ListedState::Whole, None, Some(ListedFacts::new(summary))),
            BackupState::Damaged(reason, _) => (ListedState::Damaged, Some(reason.clone()), None),
            BackupState::Unfinished => (ListedState::Unfinished, None, None),
        };
        let listing = &backup.listing;
        let (id, stored_bytes, kept) = (listing.id, listing.stored_bytes(), listing.has_mark());
        let (kept_until, kept_reason) = (None, None);
        ListedBackup { id, generation, state, reason, stored_bytes, kept, kept_until, kept_reason, facts }
    }

    /// The same with what its mark says, if it has one.
    pub async fn with_mark(mut self, repository: &Repository, now: Timestamp) -> Result<Self, RepoError> {
        if self.kept {
            let mark = repository.read_mark(self.generation, self.id).await?;
            self.kept = mark.as_ref().is_some_and(|mark| mark.holds(now));
            self.kept_until = mark.as_ref().and_then(|mark| mark.until);
            self.kept_reason = mark.map(|mark| mark.reason).filter(|reason| !reason.is_empty());
        }
        Ok(self)
    }
}

impl ListedFacts {
    fn new(summary: &BackupSummary) -> Self {
        let (first, last) = summary.wal_needed().map_or(Default::default(), |(first, last)| {
            let name = |name: crate::postgres::SegmentName| name.to_string();
            (name(first), name(last))
        });
        let segments = summary.segment_size().map_or(0, |size| summary.own_wal(size).count());
        ListedFacts {
            label: summary.label.clone(),
            kind: Kind::Full,
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
