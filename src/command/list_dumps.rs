//! What `list` and `show` tell of logical dumps.

use jiff::Timestamp;
use serde::Serialize;

use super::Circumstances;
use super::failure::Failure;
use super::list::ListedState;
use crate::postgres::{PgMajor, SystemId};
use crate::repo::dump_manifest::{DumpContent, DumpFile, DumpForm, DumpSummary};
use crate::repo::dumps::{DumpState, StoredDump};
use crate::repo::{BackupId, RepoError, Repository};

/// One dump.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListedDump {
    /// Its name.
    pub id: BackupId,
    /// Whether it can be restored.
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
    pub facts: Option<DumpFacts>,
}

/// What a dump's manifest says in short.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DumpFacts {
    /// The operator's words.
    pub label: String,
    /// Taken from a standby.
    pub from_standby: bool,
    /// When it was begun: it holds what was committed by then.
    pub started: Timestamp,
    /// When it was done.
    pub stopped: Timestamp,
    /// How long it took.
    pub seconds: f64,
    /// The databases in it.
    pub databases: Vec<String>,
    /// Whether it has what belongs to no database.
    pub globals: bool,
    /// Bytes of its files.
    pub plain_bytes: u64,
}

/// One dump, in full.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShowDumpReport {
    schema: u32,
    /// What `list` says, too.
    pub dump: ListedDump,
    /// Its part objects.
    pub parts: u64,
    /// What only a dump has whose manifest can be read.
    pub details: Option<DumpDetails>,
}

/// What the manifest says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DumpDetails {
    /// The cluster.
    pub system_identifier: SystemId,
    /// Its major version.
    pub postgres_major: PgMajor,
    /// What `pg_dump --version` says.
    pub program: String,
    /// Who took it.
    pub writer: String,
    /// Its files.
    pub files: Vec<ShownFile>,
}

/// A file of a dump.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShownFile {
    /// Its number.
    pub file: u32,
    /// What it holds.
    #[serde(flatten)]
    pub content: DumpContent,
    /// In which form.
    pub form: DumpForm,
    /// Its bytes.
    pub plain_bytes: u64,
    /// Bytes of its parts.
    pub stored_bytes: u64,
    /// How many parts.
    pub parts: usize,
}

impl ListedDump {
    /// What is told of a stored dump, with what its mark says.
    pub async fn new(dump: &StoredDump, repository: &Repository, now: Timestamp) -> Result<Self, RepoError> {
        let (state, reason, facts) = match &dump.state {
            DumpState::Whole(summary) => (ListedState::Whole, None, Some(DumpFacts::new(summary))),
            DumpState::Damaged(why, summary) => {
                (ListedState::Damaged, Some(why.clone()), summary.as_deref().map(DumpFacts::new))
            }
            DumpState::Unfinished => (ListedState::Unfinished, None, None),
        };
        let mark = match dump.listing.has_mark() {
            true => repository.read_dump_mark(dump.id()).await?,
            false => None,
        };
        Ok(ListedDump {
            id: dump.id(),
            state,
            reason,
            stored_bytes: dump.listing.stored_bytes(),
            kept: mark.as_ref().is_some_and(|mark| mark.holds(now)),
            kept_until: mark.as_ref().and_then(|mark| mark.until),
            kept_reason: mark.map(|mark| mark.reason).filter(|reason| !reason.is_empty()),
            facts,
        })
    }
}

impl DumpFacts {
    fn new(summary: &DumpSummary) -> Self {
        DumpFacts {
            label: summary.label.clone(),
            from_standby: summary.from_standby,
            started: summary.started,
            stopped: summary.stopped,
            seconds: summary.stopped.duration_since(summary.started).as_secs_f64(),
            databases: summary.databases.clone(),
            globals: summary.globals,
            plain_bytes: summary.plain_bytes,
        }
    }
}

/// All dumps, the oldest first.
pub(super) async fn dumps(repository: &Repository, now: Timestamp) -> Result<Vec<ListedDump>, RepoError> {
    let mut listed = Vec::new();
    for dump in &repository.stored_dumps().await? {
        listed.push(ListedDump::new(dump, repository, now).await?);
    }
    Ok(listed)
}

/// Tells of a dump; `None` if there is none of that name.
pub(super) async fn show(
    repository: &Repository,
    id: BackupId,
    circumstances: &Circumstances,
) -> Result<Option<ShowDumpReport>, Failure> {
    let Some(stored) = repository.stored_dump(id).await? else { return Ok(None) };
    let details = match stored.state {
        DumpState::Whole(_) => repository.read_dump_manifest(id).await?.map(|manifest| DumpDetails {
            system_identifier: manifest.summary.system_identifier,
            postgres_major: manifest.summary.postgres_major,
            program: manifest.summary.program,
            writer: manifest.summary.writer,
            files: manifest.files.into_iter().map(ShownFile::new).collect(),
        }),
        _ => None,
    };
    let dump = ListedDump::new(&stored, repository, circumstances.now).await?;
    Ok(Some(ShowDumpReport { schema: 1, dump, parts: stored.listing.parts().0, details }))
}

impl ShowDumpReport {
    /// Whether the dump can be restored, as far as this can be told without reading it all.
    pub fn is_sound(&self) -> bool {
        self.dump.state == ListedState::Whole && self.details.is_some()
    }
}

impl ShownFile {
    fn new(file: DumpFile) -> Self {
        ShownFile {
            file: file.file,
            content: file.content,
            form: file.form,
            plain_bytes: file.plain,
            stored_bytes: file.parts.iter().map(|part| part.stored).sum(),
            parts: file.parts.len(),
        }
    }
}
