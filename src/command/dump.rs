//! `dump`: logical dumps by the server's own `pg_dump` and `pg_dumpall`, streamed into the repository.
//!
//! The dump exists when its manifest does, and that is written last: after every program has ended well and every part is stored.

use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use super::backup_copy::patiently;
use super::bounds::{apart, bounded};
use super::dump_file::Storing;
use super::dump_local::LocalCopy;
pub use super::dump_local::LocalDumps;
use super::failure::{Failure, FailureKind};
use super::progress::{Phase, Progress};
use super::{Circumstances, RepositorySettings};
use crate::repo::dump_manifest::{DumpContent, DumpFile, DumpSummary, FORMAT};
use crate::repo::keep::Mark;
use crate::repo::{BackupId, DumpManifest};
use crate::server::dump_source::DumpSource;
use crate::server::programs::{self, ProgramConnection};
use crate::server::{Conninfo, Session};

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
    /// How databases are written.
    pub form: Form,
    /// How many databases are dumped at once.
    pub jobs: usize,
    /// Whether `expire` leaves it alone until `unkeep`.
    pub keep: bool,
    /// A copy on this machine.
    pub local: Option<LocalDumps>,
    /// Where a dump of the form `directory` lies until it is stored.
    pub scratch: PathBuf,
    /// zstd's.
    pub level: i32,
    /// How long a table may be locked by others.
    pub lock_wait: Duration,
    /// How long faults of the store are borne.
    pub retry: Duration,
    /// For `pg_dump`, as they are.
    pub arguments: Vec<OsString>,
}

/// How `pg_dump` writes a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `--format=custom`, as a stream: nothing lies on a local disk.
    Custom,
    /// `--format=directory`, by so many workers, into a private directory first.
    Directory {
        /// `--jobs`
        jobs: usize,
    },
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
    /// Its copy on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<PathBuf>,
}

/// Bytes of names and words in a summary, of which one read gives 64 KiB.
const MOST_WORDS: usize = 32 << 10;

/// What a run has stored before there is a dump.
#[derive(Default)]
struct Begun {
    id: OnceLock<BackupId>,
    parts: AtomicU64,
    whole: OnceLock<()>,
}

/// Takes the dump.
pub async fn run(dump: Dump, circumstances: &Circumstances, progress: Arc<Progress>) -> Result<DumpReport, Failure> {
    let (ours, phase, begun) = (circumstances.clone(), Arc::clone(&progress), Arc::new(Begun::default()));
    let told = Arc::clone(&begun);
    let taking = apart(move || async move { take(&dump, &ours, &progress, &begun).await });
    bounded(taking, None, None).await.map_err(|failure| match phase.phase() {
        _ if told.whole.get().is_some() => failure,
        Phase::Manifest => {
            failure.context("whether the dump was made is not known").with_hint("`pgark list` shows it if it was")
        }
        _ => failure.context(told.what_stays()),
    })
}

impl Begun {
    fn what_stays(&self) -> String {
        match (self.parts.load(Ordering::Relaxed), self.id.get()) {
            (parts, Some(id)) if parts > 0 => {
                format!("no dump was made; remains `{id}` stay, {parts} parts, until `pgark expire` collects them")
            }
            _ => "no dump was made".to_owned(),
        }
    }
}

async fn take(
    dump: &Dump,
    circumstances: &Circumstances,
    progress: &Arc<Progress>,
    begun: &Begun,
) -> Result<DumpReport, Failure> {
    let session = Session::connect(&dump.conninfo).await.map_err(crate::server::ServerError::from)?;
    let source = session.dump_source().await?;
    // It would only stand idle, which servers and what lies between do not bear for long.
    drop(session);
    let begun_at = Instant::now();
    let contents = contents(dump, &source)?;
    let find = |program| programs::find(program, source.ident.major, dump.programs.as_deref(), &dump.path);
    let [pg_dump, pg_dumpall] = [find("pg_dump")?, find("pg_dumpall")?];
    let connection = ProgramConnection::new(&dump.conninfo, &dump.scratch)?;
    let repository = dump.repository.open().await?;
    let begin = || repository.find_or_begin(source.ident, circumstances.now, &circumstances.writer);
    patiently(dump.retry, "the identity", begin).await?;
    let id = BackupId::new(circumstances.now, RandomState::new().build_hasher().finish() as u32);
    begun.id.set(id).ok();
    let local = dump
        .local
        .as_ref()
        .map(|wanted| LocalCopy::begin(wanted, &dump.repository.cluster, source.ident.system_id, id));
    progress.enter(Phase::Copying);
    let storing = Storing {
        dump,
        repository: &repository,
        id,
        connection: &connection,
        pg_dump: &pg_dump,
        pg_dumpall: &pg_dumpall,
        local: local.as_ref(),
        stored: &begun.parts,
        progress,
    };
    let files = stream::iter(contents.into_iter().zip(1..)).map(|(content, file)| storing.file(content, file));
    // In their order: a manifest has them by number.
    let files: Vec<DumpFile> = files.buffered(dump.jobs.max(1)).try_collect().await?;
    let mut manifest = DumpManifest {
        summary: DumpSummary {
            format: FORMAT.to_owned(),
            id,
            system_identifier: source.ident.system_id,
            postgres_major: source.ident.major,
            program: pg_dump.version.clone(),
            label: dump.label.clone(),
            from_standby: source.in_recovery,
            started: source.now,
            stopped: source.now + begun_at.elapsed(),
            partial: !dump.arguments.is_empty(),
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
    begun.whole.set(()).ok();
    // What a killed run leaves must not be kept for ever: the mark comes when there is a dump.
    if dump.keep {
        let mark = Mark::default();
        let put = || repository.mark_dump(id, circumstances.now, &mark, &circumstances.writer);
        let lacks = |failure: Failure| failure.context(format!("dump `{id}` is whole, but `--keep` does not hold"));
        patiently(dump.retry, "the mark", put).await.map_err(lacks)?;
    }
    let keep = dump.local.as_ref().and_then(|local| local.keep);
    let local = local.map(|local| local.finish(keep, circumstances.now)).transpose()?;
    Ok(DumpReport { schema: 1, dump: manifest.summary, local })
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
    // The summary must be one small read.
    let words = databases.iter().map(String::len).sum::<usize>() + databases.len() * 4 + dump.label.len();
    if words > MOST_WORDS {
        let message = format!("the names of {} databases and the label are too long for one dump", databases.len());
        return Err(Failure::new(FailureKind::Usage, message).with_hint("take several, with `--database`"));
    }
    let globals = dump.globals.then_some(DumpContent::Globals);
    Ok(globals.into_iter().chain(databases.iter().map(named)).collect())
}
