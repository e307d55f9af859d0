//! `dump`: logical dumps by the server's own `pg_dump` and `pg_dumpall`, streamed into the repository.
//!
//! The dump exists when its manifest does, and that is written last: after every program has ended well and every part is stored.

use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::process::{ChildStdout, Command};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use tokio::sync::mpsc;

use super::backup_copy::patiently;
use super::bounds::{apart, bounded};
use super::dump_program::Running;
use super::failure::{Failure, FailureKind};
use super::progress::{Phase, Progress};
use super::{Circumstances, RepositorySettings};
use crate::repo::dump_manifest::{DumpContent, DumpFile, DumpForm, DumpPart, DumpSummary, FORMAT};
use crate::repo::{BackupId, DumpManifest, Repository};
use crate::server::dump_source::DumpSource;
use crate::server::programs::{self, Program, ProgramConnection};
use crate::server::{Conninfo, Session};
use crate::stream::cut::{CutPart, SIZES, cut};

/// A dump that is wanted.
#[derive(Clone)]
pub struct Dump {
    /// Where to.
    pub repository: RepositorySettings,
    /// How to reach the server.
    pub conninfo: Conninfo,
    /// Where PostgreSQL's programs are, if that was said.
    pub programs: Option<PathBuf>,
    /// `$PATH`
    pub path: String,
    /// Which databases.
    pub databases: Databases,
    /// Whether with what belongs to no database.
    pub globals: bool,
    /// The operator's words.
    pub label: String,
    /// How many databases are dumped at once.
    pub jobs: usize,
    /// zstd's.
    pub level: i32,
    /// How long a table may be locked by others.
    pub lock_wait: Duration,
    /// How long faults of the store are borne.
    pub retry: Duration,
    /// For `pg_dump`, as they are.
    pub arguments: Vec<OsString>,
}

/// Which databases are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Databases {
    /// All that can be connected to.
    All,
    /// These.
    Named(Vec<String>),
}

/// A dump that was taken.
#[derive(Clone, Debug, Serialize)]
pub struct DumpReport {
    schema: u32,
    /// The dump.
    pub dump: DumpSummary,
}

/// Parts of a file that are stored at once.
const UPLOADS: usize = 2;

/// Takes the dump.
pub async fn run(dump: Dump, circumstances: &Circumstances, progress: Arc<Progress>) -> Result<DumpReport, Failure> {
    let (ours, phase) = (circumstances.clone(), Arc::clone(&progress));
    let taking = apart(move || async move { take(&dump, &ours, &progress).await });
    bounded(taking, None, None).await.map_err(|failure| match phase.phase() {
        Phase::Manifest => {
            failure.context("whether the dump was made is not known").with_hint("`pgark list` shows it if it was")
        }
        _ => failure.context("no dump was made"),
    })
}

async fn take(dump: &Dump, circumstances: &Circumstances, progress: &Arc<Progress>) -> Result<DumpReport, Failure> {
    let session = Session::connect(&dump.conninfo).await.map_err(crate::server::ServerError::from)?;
    let source = session.dump_source().await?;
    let contents = contents(dump, &source)?;
    let find = |program| programs::find(program, source.ident.major, dump.programs.as_deref(), &dump.path);
    let [pg_dump, pg_dumpall] = [find("pg_dump")?, find("pg_dumpall")?];
    let connection = ProgramConnection::new(&dump.conninfo)?;
    let repository = dump.repository.open().await?;
    let begin = || repository.find_or_begin(source.ident, circumstances.now, &circumstances.writer);
    patiently(dump.retry, "the identity", begin).await?;
    let id = BackupId::new(circumstances.now, RandomState::new().build_hasher().finish() as u32);
    progress.enter(Phase::Copying);
    let files = stream::iter(contents.into_iter().zip(1..)).map(|(content, file)| {
        let command = command(dump, &content, &connection, [&pg_dump, &pg_dumpall]);
        let place = (&repository, id, file);
        async move { store(dump, place, content, command, progress).await }
    });
    // In their order: a manifest has them by number.
    let files: Vec<DumpFile> = files.buffered(dump.jobs.max(1)).try_collect().await?;
    let mut manifest = DumpManifest {
        summary: DumpSummary {
            format: FORMAT.to_owned(),
            id,
            system_identifier: source.ident.system_id,
            postgres_major: source.ident.major,
            program: pg_dump.version,
            label: dump.label.clone(),
            from_standby: source.in_recovery,
            started: source.now,
            stopped: session.clock().await?,
            databases: Vec::new(),
            globals: false,
            files: 0,
            parts: 0,
            plain_bytes: 0,
            stored_bytes: 0,
            writer: circumstances.writer.to_string(),
        },
        files,
    };
    manifest.sum_up();
    patiently(dump.retry, "the list of the parts", || repository.check_dump_parts(&manifest)).await?;
    progress.enter(Phase::Manifest);
    patiently(dump.retry, "the manifest", || repository.put_dump_manifest(&manifest)).await?;
    Ok(DumpReport { schema: 1, dump: manifest.summary })
}

/// What is dumped, in the order of the files.
fn contents(dump: &Dump, source: &DumpSource) -> Result<Vec<DumpContent>, Failure> {
    let named = |name: &String| DumpContent::Database { database: name.clone() };
    let databases = match &dump.databases {
        Databases::All => &source.databases,
        Databases::Named(names) => names,
    };
    if let Some(missing) = databases.iter().find(|name| !source.databases.contains(name)) {
        let message = format!("there is no database `{missing}` that can be connected to");
        return Err(Failure::new(FailureKind::Usage, message));
    }
    let globals = dump.globals.then_some(DumpContent::Globals);
    Ok(globals.into_iter().chain(databases.iter().map(named)).collect())
}

fn command(
    dump: &Dump,
    content: &DumpContent,
    connection: &ProgramConnection,
    [pg_dump, pg_dumpall]: [&Program; 2],
) -> Command {
    let lock_wait = format!("--lock-wait-timeout={}", dump.lock_wait.as_millis());
    let mut command = match content {
        DumpContent::Globals => {
            let mut command = Command::new(&pg_dumpall.path);
            command.args(["--globals-only", "--no-password"]).arg(lock_wait);
            command.arg(format!("--dbname={}", ProgramConnection::service()));
            command
        }
        DumpContent::Database { database } => {
            let mut command = Command::new(&pg_dump.path);
            // Compressed it is here.
            command.args(["--format=custom", "--compress=0", "--no-password"]).arg(lock_wait).args(&dump.arguments);
            command.arg(format!("--dbname={}", ProgramConnection::database(database)));
            command
        }
    };
    connection.tell(&mut command);
    command
}

async fn store(
    dump: &Dump,
    (repository, id, file): (&Repository, BackupId, u32),
    content: DumpContent,
    command: Command,
    progress: &Arc<Progress>,
) -> Result<DumpFile, Failure> {
    let (what, form) = match &content {
        DumpContent::Globals => ("pg_dumpall".to_owned(), DumpForm::Sql),
        DumpContent::Database { database } => (format!("pg_dump of `{database}`"), DumpForm::Custom),
    };
    let (running, out) = Running::start(command, what)?;
    let (sender, parts) = mpsc::channel(1);
    let (level, counted) = (dump.level, Arc::clone(progress));
    let cutting = tokio::task::spawn_blocking(move || cut_output(out, level, &sender, &counted));
    let parts = stream::unfold(parts, |mut parts| async { parts.recv().await.map(|part| (part, parts)) });
    let stored = parts.map(|cut: CutPart| async move {
        let part = DumpPart { part: cut.number, stored: cut.bytes.len() as u64, sha256: cut.sha256, plain: cut.plain };
        let bytes = bytes::Bytes::from(cut.bytes);
        let put = || repository.put_dump_part(id, file, &part, bytes.clone());
        patiently(dump.retry, &format!("part {} of file {file}", part.part), put).await?;
        Ok::<_, Failure>(part)
    });
    let parts: Vec<DumpPart> = stored.buffered(UPLOADS).try_collect().await?;
    let broken = |_| Failure::new(FailureKind::Internal, "a thread failed");
    let unreadable =
        |e: std::io::Error| Failure::new(FailureKind::LocalIo, format!("what a program writes cannot be read: {e}"));
    let receipt = cutting.await.map_err(broken)?.map_err(unreadable)?;
    running.wait().await?;
    Ok(DumpFile { file, content, form, plain: receipt.length, sha256: receipt.sha256, parts })
}

fn cut_output(
    out: ChildStdout,
    level: i32,
    parts: &mpsc::Sender<CutPart>,
    progress: &Progress,
) -> std::io::Result<crate::stream::Receipt> {
    cut(out, level, SIZES, |part| {
        progress.advance(part.plain);
        parts.blocking_send(part).map_err(|_| std::io::Error::other("the dump was given up"))
    })
}
