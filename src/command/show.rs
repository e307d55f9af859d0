//! `show`: all that is known of one backup or dump, and whether the WAL is there that it needs.

use serde::Serialize;

use super::bounds::bounded;
use super::failure::{Failure, FailureKind};
use super::list::ListedBackup;
use super::list_dumps::{self, ShowDumpReport};
use super::{Circumstances, RepositorySettings};
use crate::postgres::control_details::RecordedSettings;
use crate::postgres::{PgMajor, SystemId, WalName};
use crate::repo::manifest::{BackupSummary, Tablespace};
use crate::repo::restore_plan::Missing;
use crate::repo::stored_backups::BackupState;
use crate::repo::timeline_path::TimelineSpan;
use crate::repo::wal_runs::{Run, Runs};
use crate::repo::{BackupId, Generation, RepoError, Repository, WalKey};
use crate::storage::ObjectStoreExt;
use crate::storage::object_store::Visit;

/// What an id names.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Shown {
    /// A backup.
    Backup(Box<ShowReport>),
    /// A logical dump.
    Dump(Box<ShowDumpReport>),
}

/// One backup.
#[derive(Clone, Debug, Serialize)]
pub struct ShowReport {
    schema: u32,
    /// What `list` says, too.
    pub backup: ListedBackup,
    /// Its part objects.
    pub parts: u32,
    /// What only a backup has that can be used.
    pub details: Option<Details>,
}

/// What the manifest and the archive say.
#[derive(Clone, Debug, Serialize)]
pub struct Details {
    /// The cluster.
    pub system_identifier: SystemId,
    /// Its major version.
    pub postgres_major: PgMajor,
    /// Who took it.
    pub writer: String,
    /// How many files it has.
    pub files: u64,
    /// Whether the cluster has page checksums.
    pub page_checksums: bool,
    /// Tablespaces besides the two that every cluster has.
    pub tablespaces: Vec<Tablespace>,
    /// Settings that a restored server must not have lower.
    pub settings: RecordedSettings,
    /// Pages whose checksum was wrong, as `file: block`; the first hundred.
    pub bad_pages: Vec<String>,
    /// Segments between start and stop that the repository lacks.
    pub wal_missing: Vec<MissingWal>,
}

/// Missing segments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingWal {
    /// The first.
    pub first: String,
    /// The last.
    pub last: String,
    /// How many.
    pub segments: u64,
}

const MOST_PAGES: usize = 100;
const PAGE: usize = 1000;

impl Shown {
    /// Whether it can be restored, as far as this can be told without reading it all.
    pub fn is_sound(&self) -> bool {
        match self {
            Shown::Backup(backup) => backup.is_sound(),
            Shown::Dump(dump) => dump.is_sound(),
        }
    }
}

impl ShowReport {
    /// Whether the backup can be restored, as far as this can be told without reading it all.
    pub fn is_sound(&self) -> bool {
        self.details.as_ref().is_some_and(|details| details.wal_missing.is_empty())
    }
}

impl From<Missing> for MissingWal {
    fn from(missing: Missing) -> Self {
        let (first, last) = (missing.first.to_string(), missing.last.to_string());
        MissingWal { first, last, segments: missing.segments }
    }
}

/// Tells of a backup, or of a dump.
pub async fn run(settings: &RepositorySettings, id: BackupId, circumstances: &Circumstances) -> Result<Shown, Failure> {
    let showing = async {
        let repository = settings.open().await?;
        for identity in repository.read_identities().await?.all() {
            let generation = identity.generation;
            let stored = repository.stored_backup(identity, id).await?;
            let Some(backup) = stored else { continue };
            let details = match &backup.state {
                BackupState::Whole(summary) => Some(details(&repository, generation, summary).await?),
                _ => None,
            };
            let parts = backup.listing.parts().count() as u32;
            let listed = ListedBackup::new(&backup, generation).with_mark(&repository, circumstances.now).await?;
            return Ok(Shown::Backup(Box::new(ShowReport { schema: 1, backup: listed, parts, details })));
        }
        let message = format!("there is no backup or dump `{id}` in {}", repository.describe());
        let none = || Failure::new(FailureKind::Usage, message).with_hint("`pgark list` shows them");
        list_dumps::show(&repository, id, circumstances).await?.map(Box::new).map(Shown::Dump).ok_or_else(none)
    };
    bounded(showing, None, None).await
}

async fn details(
    repository: &Repository,
    generation: Generation,
    summary: &BackupSummary,
) -> Result<Details, RepoError> {
    let mut bad_pages = Vec::new();
    if summary.bad_pages > 0
        && let Some(manifest) = repository.read_manifest(generation, summary.id).await?
    {
        let pages = manifest.bad_pages.iter().take(MOST_PAGES);
        bad_pages.extend(pages.map(|page| format!("{}: {}", page.bad_page, page.block)));
    }
    Ok(Details {
        system_identifier: summary.system_identifier,
        postgres_major: summary.postgres_major,
        writer: summary.writer.clone(),
        files: summary.files,
        page_checksums: summary.page_checksums,
        tablespaces: summary.tablespaces.clone(),
        settings: summary.settings,
        bad_pages,
        wal_missing: missing_wal(repository, generation, summary).await?,
    })
}

/// One listing of the timeline's WAL, from the backup's first segment to its last.
async fn missing_wal(
    repository: &Repository,
    generation: Generation,
    summary: &BackupSummary,
) -> Result<Vec<MissingWal>, RepoError> {
    let (Some(size), Some((first, _))) = (summary.segment_size(), summary.wal_needed()) else { return Ok(Vec::new()) };
    let span = summary.own_wal(size);
    let layout = &repository.layout;
    let first = layout.wal_file(generation, WalName::Segment(first));
    let mut there = Runs::default();
    // The listing begins behind a key: the first one's own place is at its digits.
    let before = first.as_str().trim_end_matches(".zst");
    let below = layout.timeline(generation, summary.timeline);
    let visit = repository.store.visit_after(&below, Some(before), PAGE, |listed| {
        let known = listed.name.parse().ok().and_then(|key| layout.parse_wal(&key));
        let Some((_, WalKey::File(WalName::Segment(name)))) = known else { return Visit::More };
        let Ok(number) = size.number(name) else { return Visit::More };
        there.append(Run::of(number, listed.size, None));
        if number >= span.last { Visit::Enough } else { Visit::More }
    });
    visit.await?;
    let missing = there.missing(span).into_iter();
    let missing = missing.map(|span| Missing::of(TimelineSpan { timeline: summary.timeline, span }, size).into());
    Ok(missing.collect())
}
