//! `dump-restore`: a logical dump back into a server, by the server's own `pg_restore` and `psql`, or into a file.
//!
//! No byte is handed on before the part that holds it is verified. What a program was given is whole when it ends, or the program is
//! killed: a restore runs in one transaction, so that nothing of it stays then.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use tokio::sync::mpsc;

use super::RepositorySettings;
use super::bounds::{apart, bounded};
use super::dump_program::Running;
use super::failure::{Failure, FailureKind};
use super::progress::{Phase, Progress};
use super::tries::with_retries;
use crate::disk::Incoming;
use crate::repo::archive::ReadBounds;
use crate::repo::dump_manifest::{DumpContent, DumpFile, DumpForm};
use crate::repo::dumps::DumpState;
use crate::repo::{BackupId, DumpManifest, Repository};
use crate::server::programs::{self, ProgramConnection};
use crate::server::{Conninfo, Session};
use crate::stream::Sha256Hasher;

/// A dump that is to be restored.
#[derive(Clone)]
pub struct DumpRestore {
    /// Where from.
    pub repository: RepositorySettings,
    /// Which; `None`: the latest.
    pub id: Option<BackupId>,
    /// Which databases; none: all that are in it.
    pub databases: Vec<String>,
    /// Whether with what belongs to no database.
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
    /// Whether databases are created.
    pub create: bool,
    /// Whether what is there is dropped first.
    pub clean: bool,
    /// Only these tables.
    pub tables: Vec<String>,
    /// For `pg_restore`, as they are.
    pub arguments: Vec<OsString>,
}

/// What was restored.
#[derive(Clone, Debug, Serialize)]
pub struct DumpRestoreReport {
    schema: u32,
    /// The dump.
    pub id: BackupId,
    /// The databases, in their order.
    pub databases: Vec<String>,
    /// Whether with what belongs to none.
    pub globals: bool,
    /// Bytes that the programs were given.
    pub bytes: u64,
}

/// Parts that are read at once.
const READS: usize = 2;

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
    progress.expect(files.iter().map(|file| file.plain).sum());
    let reading = Reading { wanted, repository: &repository, id, progress };
    match &wanted.to {
        RestoreTo::File(path) => {
            let [file] = files[..] else {
                let message = format!("dump `{id}` has {} files of that kind, and there is one place", files.len());
                return Err(
                    Failure::new(FailureKind::Usage, message).with_hint("choose with `--database` or `--globals`")
                );
            };
            reading.to_file(file, path).await?;
        }
        RestoreTo::Server(server) => reading.to_server(server, &files).await?,
    }
    let name = |file: &&DumpFile| match &file.content {
        DumpContent::Database { database } => Some(database.clone()),
        DumpContent::Globals => None,
    };
    Ok(DumpRestoreReport {
        schema: 1,
        id,
        databases: files.iter().filter_map(name).collect(),
        globals: files.iter().any(|file| file.content == DumpContent::Globals),
        bytes: files.iter().map(|file| file.plain).sum(),
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
        Some((id, DumpState::Damaged(why))) => {
            let message = format!("the newest dump `{id}` cannot be restored: {why}");
            Err(Failure::new(FailureKind::Damaged, message).with_hint("name another one: `pgark list` shows them"))
        }
        Some((id, _)) => Ok(id),
        None => Err(Failure::new(FailureKind::Unreachable, "there is no dump in the repository")),
    }
}

/// The files that are wanted, globals first: databases need their roles.
fn choose<'a>(wanted: &DumpRestore, manifest: &'a DumpManifest) -> Result<Vec<&'a DumpFile>, Failure> {
    let id = manifest.summary.id;
    let missing = |what: String| Failure::new(FailureKind::Usage, format!("dump `{id}` has no {what}"));
    let mut files = Vec::new();
    if wanted.globals {
        let globals = manifest.files.iter().find(|file| file.content == DumpContent::Globals);
        files.push(globals.ok_or_else(|| missing("globals".to_owned()))?);
    }
    for name in &wanted.databases {
        files.push(manifest.database(name).ok_or_else(|| missing(format!("database `{name}`")))?);
    }
    if files.is_empty() {
        files.extend(&manifest.files);
    }
    Ok(files)
}

struct Reading<'a> {
    wanted: &'a DumpRestore,
    repository: &'a Repository,
    id: BackupId,
    progress: &'a Arc<Progress>,
}

impl Reading<'_> {
    /// Gives the file's bytes in their order, each verified; fails where they are not those that were dumped.
    async fn give(
        &self,
        file: &DumpFile,
        mut take: impl AsyncFnMut(Vec<u8>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let bounds = ReadBounds { stall: self.wanted.stall, ..ReadBounds::default() };
        let reads = file.parts.iter().map(|part| {
            let bounds = &bounds;
            async move {
                let read = || self.repository.dump_part(self.id, file.file, part, bounds);
                with_retries(read, self.wanted.retry, |_| {}).await.map_err(Failure::from)
            }
        });
        let mut reads = stream::iter(reads).buffered(READS);
        let mut hasher = Sha256Hasher::default();
        while let Some(bytes) = reads.try_next().await? {
            hasher.update(&bytes);
            self.progress.advance(bytes.len() as u64);
            take(bytes).await?;
        }
        match hasher.finish().sha256 == file.sha256 {
            true => Ok(()),
            false => Err(Failure::new(
                FailureKind::Damaged,
                format!("the parts of file {} are not what was dumped", file.file),
            )),
        }
    }

    async fn to_file(&self, file: &DumpFile, path: &Path) -> Result<(), Failure> {
        let cannot =
            |e: std::io::Error| Failure::new(FailureKind::LocalIo, format!("cannot write `{}`: {e}", path.display()));
        let incoming = Incoming::create(path).map_err(cannot)?;
        let mut writer = incoming.writer().map_err(cannot)?;
        self.give(file, async |bytes| writer.write_all(&bytes).map_err(cannot)).await?;
        writer.sync_all().map_err(cannot)?;
        incoming.commit(file.plain).map_err(cannot)
    }

    async fn to_server(&self, server: &IntoServer, files: &[&DumpFile]) -> Result<(), Failure> {
        let session = Session::connect(&server.conninfo).await.map_err(crate::server::ServerError::from)?;
        let major = session.dump_source().await?.ident.major;
        drop(session);
        let find = |program| programs::find(program, major, server.programs.as_deref(), &server.path);
        let [pg_restore, psql] = [find("pg_restore")?, find("psql")?];
        let connection = ProgramConnection::new(&server.conninfo)?;
        for file in files {
            let (mut command, what) = match (&file.content, file.form) {
                (DumpContent::Globals, _) => {
                    (globals_command(&psql.path), "psql with what belongs to no database".to_owned())
                }
                (DumpContent::Database { database }, DumpForm::Custom) => {
                    (database_command(&pg_restore.path, server, database), format!("pg_restore of `{database}`"))
                }
                (DumpContent::Database { database }, _) => {
                    let message =
                        format!("database `{database}` was dumped in a form that needs another version of pgark");
                    return Err(Failure::new(FailureKind::Unsupported, message));
                }
            };
            connection.tell(&mut command);
            let (running, stdin) = Running::fed(command, what)?;
            let (sender, inbox) = mpsc::channel(1);
            let feeding = tokio::task::spawn_blocking(move || feed(stdin, inbox));
            // A program that has ended does not read any more: its end says why.
            self.give(file, async |bytes| {
                sender.send(bytes).await.ok();
                Ok(())
            })
            .await?;
            drop(sender);
            feeding.await.map_err(|_| Failure::new(FailureKind::Internal, "a thread failed"))?;
            running.wait().await?;
        }
        Ok(())
    }
}

fn feed(mut stdin: ChildStdin, mut inbox: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = inbox.blocking_recv() {
        if stdin.write_all(&bytes).is_err() {
            return;
        }
    }
}

fn globals_command(psql: &std::path::Path) -> Command {
    let mut command = Command::new(psql);
    command.args(["--no-psqlrc", "--quiet", "--no-password", "--file=-"]);
    command.arg(format!("--dbname={}", ProgramConnection::database("postgres")));
    command
}

fn database_command(pg_restore: &Path, server: &IntoServer, database: &str) -> Command {
    let mut command = Command::new(pg_restore);
    command.args(["--format=custom", "--no-password", "--exit-on-error"]).args(&server.arguments);
    if server.clean {
        command.args(["--clean", "--if-exists"]);
    }
    // Databases are created and dropped outside of transactions.
    let place = match server.create {
        true => {
            command.arg("--create");
            "postgres"
        }
        false => {
            command.arg("--single-transaction");
            database
        }
    };
    command.args(server.tables.iter().map(|table| format!("--table={table}")));
    command.arg(format!("--dbname={}", ProgramConnection::database(place)));
    command
}
