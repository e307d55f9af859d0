//! `wal-push`: archive one file of PostgreSQL, durably and never over another content.
//!
//! Success is said when the store has the object and it equals the file, and at no other time.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;

use super::bounds::{Stopping, apart, bounded};
use super::failure::{Failure, FailureKind};
use super::look_ahead::{LookAhead, LookAheadSettings};
use super::{Circumstances, RepositorySettings};
use crate::disk::data_dir::ClusterFacts;
use crate::disk::{DataDir, WalFile};
use crate::postgres::{ClusterIdent, SegmentName, TimelineId, WalName};
use crate::repo::wal_object::{Provenance, WalObject};
use crate::repo::{Archived, Generation, RepoError, Repository, WalArchive, WalObjectHeader};
use crate::stream::Sha256;

/// How files are archived.
#[derive(Clone, Debug)]
pub struct PushSettings {
    /// Where to.
    pub repository: RepositorySettings,
    /// The data directory, if it is neither the working directory nor the one around the file.
    pub pgdata: Option<PathBuf>,
    /// The zstd level.
    pub level: i32,
    /// When to give up.
    pub deadline: Duration,
    /// How long to go on after the server was told to stop.
    pub stop_deadline: Duration,
    /// What to archive besides the one file.
    pub look_ahead: LookAheadSettings,
}

/// A file and the name to archive it under.
#[derive(Clone, Debug)]
pub struct WalPush {
    /// `%p`
    pub path: PathBuf,
    /// `%f`, or the last part of the path.
    pub name: WalName,
    /// How.
    pub settings: PushSettings,
}

/// What became of the file; all of these are success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is durable in the store.
    Archived,
    /// It was durable there before, with the same content.
    AlreadyThere,
    /// An earlier call archived it ahead, and the file has not changed since.
    ArchivedAhead,
    /// It is a second, different partial segment, kept under this key.
    KeptBeside(String),
}

/// Runs the command within its bounds.
pub async fn run(push: WalPush, circumstances: &Circumstances) -> Result<Pushed, Failure> {
    let (name, deadline) = (push.name, Some(push.settings.deadline));
    let pgdata = Arc::new(OnceLock::new());
    let stopping = Stopping { pgdata: Arc::clone(&pgdata), grace: push.settings.stop_deadline };
    let circumstances = circumstances.clone();
    let durable = Arc::new(OnceLock::new());
    let said = Arc::clone(&durable);
    // Apart: reading local files may hang, and PostgreSQL waits for us without limit.
    let work = apart(move || async move {
        let data_dir = find_data_dir(&push.path, push.settings.pgdata.as_deref())?;
        if let Some(found) = &data_dir {
            pgdata.set(found.path().to_owned()).ok();
        }
        refuse_unfinished(&push, data_dir.as_ref())?;
        archive(&push, data_dir.as_ref(), &circumstances, &said).await
    });
    let outcome = bounded(work, deadline, Some(stopping)).await;
    match (outcome, durable.get()) {
        // A bound was reached by what was archived besides: that is no failure of this file.
        (Err(_), Some(pushed)) => Ok(Pushed::clone(pushed)),
        (outcome, _) => outcome.map_err(|failure| failure.context(format!("`{name}` is not archived"))),
    }
}

async fn archive(
    push: &WalPush,
    data_dir: Option<&DataDir>,
    circumstances: &Circumstances,
    durable: &OnceLock<Pushed>,
) -> Result<Pushed, Failure> {
    let settings = &push.settings;
    let facts = facts_of(data_dir)?;
    let file = Opened::open(&push.path, push.name, facts)?;
    let ahead = LookAhead::find(push, &file, data_dir, facts, circumstances);
    if ahead.as_ref().is_some_and(|ahead| ahead.has_archived(&file)) {
        return Ok(Pushed::ArchivedAhead);
    }
    // The first two moments of work overlap: reading the file on a thread, connecting here.
    let file = file.pack(settings.level, circumstances, ahead.as_ref().and_then(LookAhead::job));
    let repository = settings.repository.open().await?;
    let history = companion_history(push, facts, circumstances).await?;
    let Some(ahead) = ahead else {
        let place = find_place(&repository, file.ident, history.as_ref(), circumstances).await?;
        return archive_one(&place, file).await;
    };
    let remembered = ahead.remembered_place(history.as_ref());
    ahead.likely(repository.archive(remembered.unwrap_or(Generation::FIRST)));
    let own = async {
        let place = match remembered {
            Some(generation) => repository.archive(generation),
            None => find_place(&repository, file.ident, history.as_ref(), circumstances).await?,
        };
        ahead.found(&place);
        if remembered.is_none() {
            ahead.remember_place(history.as_ref(), place.generation);
        }
        let pushed = archive_one(&place, file).await?;
        durable.set(pushed.clone()).ok();
        Ok(pushed)
    };
    ahead.beside(own).await
}

/// A file that was opened, and whose first page and cluster are in order.
pub(super) struct Opened {
    pub(super) name: WalName,
    pub(super) ident: ClusterIdent,
    pub(super) file: WalFile,
}

/// A file that is being read and compressed on a thread of its own.
pub(super) struct Prepared {
    name: WalName,
    ident: ClusterIdent,
    pub(super) packing: Packing,
}

/// The thread that reads and compresses a file.
pub(super) type Packing = tokio::task::JoinHandle<Result<WalObject, Failure>>;

impl Prepared {
    pub(super) fn ident(&self) -> ClusterIdent {
        self.ident
    }
}

impl Opened {
    /// Opens and checks a file.
    pub(super) fn open(path: &Path, name: WalName, facts: Option<ClusterFacts>) -> Result<Self, Failure> {
        let file = WalFile::open(path, name)?;
        let ident = whose(&file, name, facts)?;
        Ok(Opened { name, ident, file })
    }

    /// Begins to read it. `job` is given back when it is read. A segment that was never finished becomes a partial one: see
    /// [`put_beginning`].
    pub(super) fn pack(self, level: i32, circumstances: &Circumstances, job: Option<OwnedSemaphorePermit>) -> Prepared {
        let Opened { name, ident, file } = self;
        let provenance = Provenance {
            name,
            ident,
            segment_size: file.header.map(|header| header.segment_size),
            written: circumstances.now,
            writer: circumstances.writer.clone(),
        };
        let packing = tokio::task::spawn_blocking(move || {
            let _job = job;
            let (packed, index) = file.pack(level, WalObject::ROOM)?;
            let mut provenance = provenance;
            if let (WalName::Segment(segment), Some(_)) = (name, index.as_ref().and_then(|index| index.ends)) {
                provenance.name = WalName::Partial(segment);
            }
            Ok(WalObject::build(provenance, packed, index)?)
        });
        Prepared { name, ident, packing }
    }
}

pub(super) fn find_data_dir(path: &Path, configured: Option<&Path>) -> Result<Option<DataDir>, Failure> {
    DataDir::around(path, configured).map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))
}

pub(super) fn facts_of(data_dir: Option<&DataDir>) -> Result<Option<ClusterFacts>, Failure> {
    let facts = data_dir.map(DataDir::facts).transpose();
    facts.map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))
}

/// The cluster that a file belongs to: by its first page, else by the data directory it lies in. Where both are known,
/// they must agree.
fn whose(file: &WalFile, name: WalName, facts: Option<ClusterFacts>) -> Result<ClusterIdent, Failure> {
    match (file.header, facts) {
        (Some(header), Some(facts)) if header.ident != facts.ident => Err(Failure::new(
            FailureKind::Conflict,
            format!("it was written by another cluster ({}) than the one it lies in ({})", header.ident, facts.ident),
        )),
        (Some(header), _) => Ok(header.ident),
        (None, Some(facts)) => Ok(facts.ident),
        (None, None) => Err(Failure::new(
            FailureKind::BadInput,
            format!("`{name}` does not say which cluster it belongs to, and no data directory was found"),
        )
        .with_hint("run pgark in the data directory, as PostgreSQL does, or give `--pgdata`")),
    }
}

/// A timeline's history, which belongs beside its segments.
pub(super) struct Companion {
    name: WalName,
    object: WalObject,
}

impl Companion {
    pub(super) fn sha256(&self) -> Sha256 {
        self.object.header.sha256
    }
}

/// The history of the segment's timeline, which lies beside it: it goes first, so that no segment of a timeline is in
/// the repository without what leads there.
async fn companion_history(
    push: &WalPush,
    facts: Option<ClusterFacts>,
    circumstances: &Circumstances,
) -> Result<Option<Companion>, Failure> {
    let timeline = push.name.timeline();
    if matches!(push.name, WalName::History(_)) || timeline == TimelineId::FIRST {
        return Ok(None);
    }
    let name = WalName::History(timeline);
    let path = push.path.with_file_name(name.to_string());
    match path.try_exists() {
        Ok(true) => {
            let history = Opened::open(&path, name, facts)?.pack(push.settings.level, circumstances, None);
            Ok(Some(Companion { name, object: packed(history.packing).await? }))
        }
        Ok(false) => Ok(None),
        Err(error) => Err(Failure::new(FailureKind::LocalIo, format!("cannot look at `{}`: {error}", path.display()))),
    }
}

/// The WAL of the file's generation, with the history of its timeline in it.
async fn find_place(
    repository: &Repository,
    ident: ClusterIdent,
    history: Option<&Companion>,
    circumstances: &Circumstances,
) -> Result<WalArchive, Failure> {
    let begin = || repository.find_or_begin(ident, circumstances.now, &circumstances.writer);
    let Some(history) = history else {
        return Ok(repository.archive(retrying(begin).await?));
    };
    // Nearly always the history is there and says, as an identity would, that generation 1 is this cluster's: one request.
    let first = repository.archive(Generation::FIRST);
    let name = history.name;
    let stored = retrying(|| first.header_of(name)).await.map_err(|f| f.context(format!("history file `{name}`")))?;
    if let Some(stored) = stored.filter(|stored| stored.ident() == ident) {
        compare_history(&stored, history)?;
        return Ok(first);
    }
    let archive = repository.archive(retrying(begin).await?);
    archive_history(&archive, history).await?;
    Ok(archive)
}

/// Archives a timeline's history unless the repository has it. Another history under this name means that two servers
/// were promoted to the same timeline.
async fn archive_history(archive: &WalArchive, history: &Companion) -> Result<(), Failure> {
    let name = history.name;
    let stored = retrying(|| archive.header_of(name)).await.map_err(|f| f.context(format!("history file `{name}`")))?;
    match stored {
        Some(stored) => compare_history(&stored, history),
        None => put(archive, name, &history.object).await.map(|_| ()),
    }
}

fn compare_history(stored: &WalObjectHeader, history: &Companion) -> Result<(), Failure> {
    if stored.plain() == history.object.header.plain() {
        return Ok(());
    }
    let writer = format!("{} at {}", stored.writer, stored.written);
    Err(conflict(history.name, &history.object, &stored.sha256.to_string(), &writer))
}

/// A segment that a running server still writes has no status file yet. Archived by hand now, it would stand in the way of the
/// finished one for ever.
fn refuse_unfinished(push: &WalPush, data_dir: Option<&DataDir>) -> Result<(), Failure> {
    let running = data_dir.is_some_and(|found| found.path().join("postmaster.pid").exists());
    let statuses = push.path.with_file_name("archive_status");
    if !running || !matches!(push.name, WalName::Segment(_)) || !statuses.is_dir() {
        return Ok(());
    }
    let finished = ["ready", "done"].iter().any(|state| statuses.join(format!("{}.{state}", push.name)).exists());
    match finished {
        true => Ok(()),
        false => Err(Failure::new(FailureKind::BadInput, "PostgreSQL has not finished this segment yet")
            .with_hint("`select pg_switch_wal()` finishes it, and the server archives it by itself")),
    }
}

pub(super) async fn archive_one(archive: &WalArchive, file: Prepared) -> Result<Pushed, Failure> {
    let object = packed(file.packing).await?;
    match file.name {
        WalName::Segment(segment) if !object.is(file.name) => put_beginning(archive, segment, &object).await,
        name => put(archive, name, &object).await,
    }
}

/// The beginning of a segment, which a server with `archive_mode = always` hands out under the name of the whole one: as it was
/// restored from a live tail, or streamed until a promotion. In the place of the whole one it would end every recovery, and keep
/// the real one away for ever.
async fn put_beginning(archive: &WalArchive, segment: SegmentName, object: &WalObject) -> Result<Pushed, Failure> {
    if retrying(|| archive.has_beginning(segment, object)).await? {
        return Ok(Pushed::AlreadyThere);
    }
    let pushed = put(archive, WalName::Partial(segment), object).await?;
    tracing::warn!("`{segment}` was never finished: it is kept as `{segment}.partial`, and not as the whole segment");
    Ok(pushed)
}

async fn put(archive: &WalArchive, name: WalName, object: &WalObject) -> Result<Pushed, Failure> {
    match retrying(|| archive.put(name, object)).await? {
        Archived::Created => Ok(Pushed::Archived),
        Archived::AlreadyThere => Ok(Pushed::AlreadyThere),
        Archived::KeptBeside(key) => Ok(Pushed::KeptBeside(key.to_string())),
        Archived::Conflict { theirs, writer, .. } => Err(conflict(name, object, &theirs.to_string(), &writer)),
    }
}

pub(super) async fn packed(packing: Packing) -> Result<WalObject, Failure> {
    packing.await.unwrap_or_else(|_| Err(Failure::new(FailureKind::Internal, "the thread that compresses failed")))
}

fn conflict(name: WalName, ours: &WalObject, theirs: &str, their_writer: &str) -> Failure {
    let (our_digest, our_writer) = (ours.header.sha256, &ours.header.writer);
    Failure::new(
        FailureKind::Conflict,
        format!(
            "another content is archived as `{name}`: sha256 {theirs} by {their_writer}; this file has sha256 \
             {our_digest}, by {our_writer}"
        ),
    )
    .with_hint(
        "two servers archive into one place: find out which one is the primary, and give the other its own `name`",
    )
}

/// A few tries of something that the store may refuse for a moment; PostgreSQL itself tries again after that.
pub(super) async fn retrying<T, F>(mut call: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, RepoError>>,
{
    let pauses = ExponentialBuilder::new().with_min_delay(Duration::from_millis(250)).with_max_times(2).with_jitter();
    let mut pauses = pauses.build();
    loop {
        match call().await {
            Err(error) if error.is_temporary() => match pauses.next() {
                Some(pause) => {
                    tracing::info!("{error}; trying again");
                    sleep(pause).await;
                }
                None => return Err(error.into()),
            },
            other => return Ok(other?),
        }
    }
}
