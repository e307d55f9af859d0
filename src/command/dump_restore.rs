//! `dump-restore`: a logical dump back into a server, by the server's own `pg_restore` and `psql`, or into a file.
//!
//! * No byte is handed on before the part that holds it is verified.
//! * A database that goes in as a whole goes in one transaction, straight from the store: what is damaged, or breaks off, ends it, and
//!   nothing of it stays.
//! * Where there can be no such transaction (databases are created, several workers, some tables, several files), everything is read
//!   and verified once before anything is written.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::RepositorySettings;
use super::bounds::{apart, bounded};
use super::dump_feed::Feeding;
use super::failure::{Failure, FailureKind};
use super::progress::{Phase, Progress};
use super::tries::with_retries;
use crate::repo::dump_manifest::{DumpContent, DumpFile};
use crate::repo::dumps::DumpState;
use crate::repo::{BackupId, DumpManifest, Repository};
use crate::server::Conninfo;

/// A dump that is to be restored.
#[derive(Clone)]
pub struct DumpRestore {
    /// Where from.
    pub repository: RepositorySettings,
    /// Which; `None`: the latest.
    pub id: Option<BackupId>,
    /// These databases.
    pub databases: Vec<String>,
    /// All databases.
    pub all: bool,
    /// What belongs to no database.
    pub globals: bool,
    /// Where to.
    pub to: RestoreTo,
    /// How long faults of the store are borne.
    pub retry: Duration,
    /// How long a download may stand still.
    pub stall: Duration,
}

/// Where a dump goes.
#[derive(Clone)]
pub enum RestoreTo {
    /// A file.
    File(PathBuf),
    /// A server.
    Server(Box<IntoServer>),
}

/// How it goes into a server.
#[derive(Clone)]
pub struct IntoServer {
    /// How it is reached.
    pub conninfo: Conninfo,
    /// Where PostgreSQL's programs are, if that was said.
    pub programs: Option<PathBuf>,
    /// `$PATH`
    pub path: String,
    /// The database, if it is not the one of the same name.
    pub into: Option<String>,
    /// Whether tablespaces are made within the data directory: the server must allow it.
    pub tablespaces_in_place: bool,
    /// Whether databases are created.
    pub create: bool,
    /// Whether what is there is dropped first.
    pub clean: bool,
    /// Only these tables.
    pub tables: Vec<String>,
    /// `pg_restore`'s workers; 1: one transaction.
    pub jobs: usize,
    /// Where a dump lies that several workers read.
    pub scratch: PathBuf,
    /// For `pg_restore`, as they are.
    pub arguments: Vec<OsString>,
}

/// What was restored.
#[derive(Clone, Debug, Serialize)]
pub struct DumpRestoreReport {
    schema: u32,
    /// The dump.
    pub id: BackupId,
    /// When it was begun.
    pub started: Timestamp,
    /// The databases, in their order.
    pub databases: Vec<String>,
    /// Whether with what belongs to none.
    pub globals: bool,
    /// Bytes of the files that were restored.
    pub bytes: u64,
    /// Where to, if that is a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

/// Restores it.
pub async fn run(wanted: DumpRestore, progress: Arc<Progress>) -> Result<DumpRestoreReport, Failure> {
    let work = apart(move || async move { restore(&wanted, &progress).await });
    bounded(work, None, None).await
}

async fn restore(wanted: &DumpRestore, progress: &Arc<Progress>) -> Result<DumpRestoreReport, Failure> {
    let repository = wanted.repository.open().await?;
    let id = find(wanted, &repository).await?;
    let manifest = with_retries(|| repository.read_dump_manifest(id), wanted.retry, |_| {}).await?;
    let gone =
        || Failure::new(FailureKind::Usage, format!("there is no dump `{id}`")).with_hint("`pgark list` shows them");
    let manifest = manifest.ok_or_else(gone)?;
    let files = choose(wanted, &manifest)?;
    progress.enter(Phase::Copying);
    let feeding = Feeding { wanted, repository: &repository, id, progress };
    let file = match &wanted.to {
        RestoreTo::File(path) => {
            let [file] = files[..] else {
                let message = format!("{} files of dump `{id}` are meant, and there is one place", files.len());
                return Err(
                    Failure::new(FailureKind::Usage, message).with_hint("choose with `--database` or `--globals`")
                );
            };
            feeding.to_file(file, path).await?;
            Some(path.clone())
        }
        RestoreTo::Server(server) => {
            let databases = files.iter().filter(|file| file.content != DumpContent::Globals).count();
            if server.into.is_some() && databases != 1 {
                let message = format!("`--into` takes one database, and {databases} are meant");
                return Err(Failure::new(FailureKind::Usage, message));
            }
            feeding.to_server(server, &files).await?;
            None
        }
    };
    Ok(DumpRestoreReport {
        schema: 1,
        id,
        started: manifest.summary.started,
        databases: files.iter().filter_map(|file| file.content.database()).map(str::to_owned).collect(),
        globals: files.iter().any(|file| file.content == DumpContent::Globals),
        bytes: files.iter().map(|file| file.plain).sum(),
        file,
    })
}

async fn find(wanted: &DumpRestore, repository: &Repository) -> Result<BackupId, Failure> {
    if let Some(id) = wanted.id {
        return Ok(id);
    }
    let dumps = with_retries(|| repository.stored_dumps(), wanted.retry, |_| {}).await?;
    let newest = dumps.iter().rev().find(|dump| dump.state != DumpState::Unfinished);
    match newest.map(|dump| (dump.id(), &dump.state)) {
        // An older one in its place would be a surprise.
        Some((id, DumpState::Damaged(why, _))) => {
            let message = format!("the newest dump `{id}` cannot be restored: {why}");
            Err(Failure::new(FailureKind::Damaged, message).with_hint("name another one: `pgark list` shows them"))
        }
        Some((id, _)) => Ok(id),
        None => Err(Failure::new(FailureKind::Unreachable, "there is no dump in the repository")),
    }
}

/// The files that are wanted, globals first: databases need their roles. Nothing is taken that was not asked for, unless the dump has
/// nothing else.
fn choose<'a>(wanted: &DumpRestore, manifest: &'a DumpManifest) -> Result<Vec<&'a DumpFile>, Failure> {
    let id = manifest.summary.id;
    let missing = |what: String| Failure::new(FailureKind::Usage, format!("dump `{id}` has no {what}"));
    let is_database = |file: &&DumpFile| file.content != DumpContent::Globals;
    let mut files = Vec::new();
    if wanted.globals {
        let globals = manifest.files.iter().find(|file| file.content == DumpContent::Globals);
        files.push(globals.ok_or_else(|| missing("globals".to_owned()))?);
    }
    if wanted.all {
        files.extend(manifest.files.iter().filter(is_database));
    }
    for name in &wanted.databases {
        files.push(manifest.database(name).ok_or_else(|| missing(format!("database `{name}`")))?);
    }
    if files.is_empty() {
        let databases: Vec<&DumpFile> = manifest.files.iter().filter(is_database).collect();
        let [only] = databases[..] else {
            let message = format!("dump `{id}` has {} databases: say which are meant", databases.len());
            let hint = "give `--database NAME`, `--all` or `--globals`; `pgark show` names them";
            return Err(Failure::new(FailureKind::Usage, message).with_hint(hint));
        };
        files.push(only);
    }
    Ok(files)
}
