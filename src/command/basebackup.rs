//! `basebackup`: a full snapshot from the data directory of a running server.
//!
//! The backup exists when its manifest does, and the manifest is written last: after all files and all WAL from start to
//! stop are in the repository. Whatever ends the command before leaves parts that `expire` collects.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::backup_copy::copy;
use super::backup_finish::{Closing, close};
use super::bounds::bounded;
use super::failure::{Failure, FailureKind};
use super::progress::{Phase, Progress};
use super::{Circumstances, RepositorySettings};
use crate::disk::data_dir::ClusterFacts;
use crate::disk::{DataDir, Snapshot};
use crate::postgres::backup_files::{BackupFiles, CONTROL_FILE};
use crate::postgres::backup_label::BackupLabel;
use crate::postgres::control_details::ControlDetails;
use crate::postgres::{ClusterIdent, PgMajor, SegmentName, WalName};
use crate::repo::manifest::{BackupSummary, FORMAT, Method, Tablespace};
use crate::repo::manifest_entries::Manifest;
use crate::repo::{BackupId, Generation, Repository};
use crate::server::backup_session::{ServerAtBackup, Started, Stopped};
use crate::server::{BackupSession, Conninfo};

/// A backup that is wanted.
#[derive(Clone)]
pub struct Basebackup {
    /// Where to.
    pub repository: RepositorySettings,
    /// Of which data directory.
    pub pgdata: PathBuf,
    /// How to reach its server.
    pub conninfo: Conninfo,
    /// The operator's words.
    pub label: String,
    /// How many parts are packed at once.
    pub jobs: usize,
    /// zstd's.
    pub level: i32,
    /// Whether the checkpoint shall hurry.
    pub fast: bool,
    /// Whether `expire` must leave the backup alone.
    pub keep: bool,
    /// Bytes to read in a second, at most.
    pub rate: Option<u64>,
    /// How long the proof may take that archiving works.
    pub archive_wait: Duration,
    /// How long the last WAL may take to arrive.
    pub wal_wait: Duration,
    /// How long faults of the store are borne.
    pub retry: Duration,
}

/// A backup that was taken.
#[derive(Clone, Debug, Serialize)]
pub struct BackupReport {
    schema: u32,
    /// The backup.
    pub backup: BackupSummary,
    /// Pages whose checksum is wrong, as `file: block`.
    pub bad_pages: Vec<String>,
    /// Links, sockets and the like in the data directory, which no backup copies.
    pub passed_over: Vec<String>,
}

/// How often is looked whether a segment has arrived.
const LOOK: Duration = Duration::from_millis(100);

/// Takes the backup.
pub async fn run(
    settings: Basebackup,
    circumstances: &Circumstances,
    progress: Arc<Progress>,
) -> Result<BackupReport, Failure> {
    bounded(take(&settings, circumstances, &progress), None, None)
        .await
        .map_err(|failure| failure.context("no backup was made"))
}

/// What is known before the first byte is copied.
pub(super) struct Begun {
    pub(super) id: BackupId,
    pub(super) generation: Generation,
    pub(super) facts: ClusterFacts,
    pub(super) details: ControlDetails,
    pub(super) started: Started,
}

async fn take(
    settings: &Basebackup,
    circumstances: &Circumstances,
    progress: &Arc<Progress>,
) -> Result<BackupReport, Failure> {
    let data_dir = find_data_dir(settings)?;
    let repository = settings.repository.open().await?;
    let session = BackupSession::connect(&settings.conninfo).await?;
    let server = session.server().await?;
    let facts = data_dir.facts().map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
    check_same_server(&server, &data_dir, facts)?;
    let generation = prove_archiving(settings, &session, &server, &repository, facts.ident).await?;

    progress.enter(Phase::Checkpoint);
    let id = BackupId::new(circumstances.now, RandomState::new().build_hasher().finish() as u32);
    let label = if settings.label.is_empty() { format!("pgark {id}") } else { settings.label.clone() };
    let started = session.start(&label, settings.fast).await?;
    let details = read_details(&data_dir)?;
    let begun = Begun { id, generation, facts, details, started };
    tracing::info!("backup `{id}` started at {}", started.lsn);

    progress.enter(Phase::Copying);
    let rules = BackupFiles::new(facts.ident.major, details.catalog_version);
    let root = data_dir.path().to_owned();
    let snapshot = blocking(move || Snapshot::take(&root, &rules)).await?;
    let tablespaces = tablespaces(&snapshot)?;
    let passed_over = snapshot.passed_over.iter().map(|path| path.display().to_string()).collect();
    let copied = tokio::select! {
        copied = copy(settings, &repository, &begun, &data_dir, snapshot, progress) => copied?,
        lost = watch(&session) => return Err(lost),
    };

    // What the server says at the stop belongs to the backup, and pg_control, read before it, comes last.
    let control = data_dir.control_file_bytes().map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
    let details = ControlDetails::parse(&control).map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
    let stopped = session.stop().await.map_err(|e| Failure::from(e).context("the backup could not be stopped"))?;
    let label_file = check_label(&stopped, &begun)?;
    let closing = Closing { stopped: &stopped, timeline: label_file.timeline, control };
    let mut manifest = Manifest {
        summary: summary(
            &begun,
            &stopped,
            &label_file,
            &details,
            tablespaces,
            label,
            &circumstances.writer.to_string(),
        ),
        parts: Vec::new(),
        directories: Vec::new(),
        files: Vec::new(),
        bad_pages: Vec::new(),
    };
    close(settings, &repository, &begun, copied, &closing, &mut manifest).await?;

    progress.enter(Phase::WaitingForWal);
    wait_for_wal(settings, &repository, &manifest.summary, &session).await?;
    if settings.keep {
        repository.keep(generation, id, circumstances.now, "--keep", &circumstances.writer).await?;
    }
    repository.put_manifest(&manifest).await?;
    let bad_pages = manifest.bad_pages.iter().map(|page| format!("{}: block {}", page.bad_page, page.block)).collect();
    Ok(BackupReport { schema: 1, backup: manifest.summary, bad_pages, passed_over })
}

fn find_data_dir(settings: &Basebackup) -> Result<DataDir, Failure> {
    let found = DataDir::at(settings.pgdata.clone());
    let found = found.map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
    found.ok_or_else(|| {
        let message = format!("`{}` is not a data directory", settings.pgdata.display());
        Failure::new(FailureKind::Usage, message).with_hint("give `--pgdata`, or set `pgdata` under `[cluster]`")
    })
}

fn read_details(data_dir: &DataDir) -> Result<ControlDetails, Failure> {
    let local = |why: String| Failure::new(FailureKind::LocalIo, why);
    let bytes = data_dir.control_file_bytes().map_err(|e| local(e.to_string()))?;
    ControlDetails::parse(&bytes).map_err(|e| local(format!("{CONTROL_FILE}: {e}")))
}

/// Seconds between the two moments at the start of a server that its file and its SQL tell.
const START_UP: u64 = 10;

/// A copy of files of one server with the label of another would be worthless.
fn check_same_server(server: &ServerAtBackup, data_dir: &DataDir, facts: ClusterFacts) -> Result<(), Failure> {
    let major = PgMajor::try_from(server.version / 10_000).ok();
    let same = server.system_id == facts.ident.system_id
        && major == Some(facts.ident.major)
        && data_dir.postmaster_start().is_some_and(|start| start.abs_diff(server.postmaster_start) <= START_UP);
    if same {
        return Ok(());
    }
    let message =
        format!("the server that answers does not run in `{}`: it has {}", data_dir.path().display(), server.system_id);
    Err(Failure::new(FailureKind::Usage, message)
        .with_hint("`--pgdata` and `--conninfo` must mean the same server, on this host"))
}

/// A backup without the WAL that was written meanwhile is worthless: that archiving works is shown before, on a segment that is
/// new. A standby cannot end a segment: there the end of the backup shows it.
async fn prove_archiving(
    settings: &Basebackup,
    session: &BackupSession,
    server: &ServerAtBackup,
    repository: &Repository,
    ident: ClusterIdent,
) -> Result<Generation, Failure> {
    let hint = "`pgark check` finds out why; the server's log has the archiver's messages";
    if server.in_recovery {
        return Ok(repository.find_generation(ident).await?);
    }
    if !server.archives {
        let message = "the server does not archive its WAL (`archive_mode` is off)";
        return Err(Failure::new(FailureKind::Server, message).with_hint(hint));
    }
    let segment = session.switch_wal().await?;
    let begin = Instant::now();
    while begin.elapsed() < settings.archive_wait {
        if session.last_archived().await?.is_some_and(|last| is_archived(&last, segment)) {
            let generation = repository.find_generation(ident).await?;
            let header = repository.archive(generation).header_of(segment).await?;
            if header.is_some_and(|header| header.ident() == ident) {
                return Ok(generation);
            }
            let message = format!("the server has archived `{segment}`, but not into {}", repository.describe());
            return Err(Failure::new(FailureKind::Server, message).with_hint(hint));
        }
        sleep(LOOK).await;
    }
    let waited = humantime::format_duration(settings.archive_wait);
    let message =
        format!("segment `{segment}` was not archived within {waited}: without its WAL a backup is worthless");
    Err(Failure::new(FailureKind::Server, message).with_hint(hint))
}

/// Whether an archiver whose last file was `last` has archived `segment`: names of one timeline are in order.
fn is_archived(last: &str, segment: WalName) -> bool {
    let segment = segment.to_string();
    last.get(..24).is_some_and(|last| last[..8] == segment[..8] && *last >= *segment)
}

/// Ends when the session does: then the copy is worthless.
async fn watch(session: &BackupSession) -> Failure {
    const PULSE: Duration = Duration::from_secs(5);
    loop {
        sleep(PULSE).await;
        if let Err(error) = session.is_alive().await {
            return Failure::from(error).context("the session of the backup was lost");
        }
    }
}

fn check_label(stopped: &Stopped, begun: &Begun) -> Result<BackupLabel, Failure> {
    let wrong = |why: String| Failure::new(FailureKind::Server, format!("the server's backup_label: {why}"));
    let label = BackupLabel::parse(&stopped.label).map_err(|e| wrong(e.to_string()))?;
    label.check_segment(begun.facts.control.segment_size).map_err(|e| wrong(e.to_string()))?;
    match label.start_lsn == begun.started.lsn && label.start_lsn < stopped.lsn {
        true => Ok(label),
        false => Err(wrong(format!("it starts at {}, the backup at {}", label.start_lsn, begun.started.lsn))),
    }
}

fn tablespaces(snapshot: &Snapshot) -> Result<Vec<Tablespace>, Failure> {
    let links = snapshot.tablespaces.iter().filter_map(|found| Some((found.oid, found.location.as_ref()?)));
    let each = links.map(|(oid, location)| match location.to_str() {
        Some(location) => Ok(Tablespace { oid, location: location.to_owned() }),
        None => {
            let message = format!("the location of tablespace {oid} is not UTF-8: `{}`", location.display());
            Err(Failure::new(FailureKind::BadInput, message))
        }
    });
    each.collect()
}

fn summary(
    begun: &Begun,
    stopped: &Stopped,
    label_file: &BackupLabel,
    details: &ControlDetails,
    tablespaces: Vec<Tablespace>,
    label: String,
    writer: &str,
) -> BackupSummary {
    BackupSummary {
        format: FORMAT.to_owned(),
        id: begun.id,
        generation: begun.generation,
        system_identifier: begun.facts.ident.system_id,
        postgres_major: begun.facts.ident.major,
        label,
        method: Method::Local,
        from_standby: label_file.from_standby,
        timeline: label_file.timeline,
        start_lsn: label_file.start_lsn,
        stop_lsn: stopped.lsn,
        started: begun.started.at,
        stopped: stopped.at,
        segment_size: begun.facts.control.segment_size.bytes(),
        page_checksums: details.page_checksums,
        tablespaces,
        settings: details.settings,
        files: 0,
        plain_bytes: 0,
        parts: 0,
        stored_bytes: 0,
        bad_pages: 0,
        writer: writer.to_owned(),
    }
}

/// Without all WAL from start to stop the copy can never be made consistent.
async fn wait_for_wal(
    settings: &Basebackup,
    repository: &Repository,
    backup: &BackupSummary,
    session: &BackupSession,
) -> Result<(), Failure> {
    let (Some((first, last)), Some(size)) = (backup.wal_needed(), backup.segment_size()) else {
        return Err(Failure::new(FailureKind::Internal, "the backup has no segment size"));
    };
    let archive = repository.archive(backup.generation);
    let begin = Instant::now();
    loop {
        let missing = match archive.first_missing(first, last, size).await {
            Ok(None) => match was_archived_here(session, backup, last).await? {
                true => return Ok(()),
                false => format!("this server has not archived `{last}`, though one of this name is in the repository"),
            },
            Ok(Some(segment)) => format!("segment `{segment}` is not in the repository"),
            Err(error) if error.is_temporary() => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        if begin.elapsed() >= settings.wal_wait {
            let waited = humantime::format_duration(settings.wal_wait);
            let message = format!("after {waited}, {missing}: the copy is not complete without `{first}` to `{last}`");
            let hint = match backup.from_standby {
                true => {
                    "a standby waits for its primary to fill the segment: `select pg_switch_wal()` there; `--wal-wait` gives more time"
                }
                false => "`pgark check` finds out why; `--wal-wait` gives more time",
            };
            return Err(Failure::new(FailureKind::Server, message).with_hint(hint));
        }
        sleep(LOOK).await;
    }
}

/// A segment of this name may be another server's: a clone's, or an old primary's. A standby's WAL is archived by its primary.
async fn was_archived_here(
    session: &BackupSession,
    backup: &BackupSummary,
    last: SegmentName,
) -> Result<bool, Failure> {
    if backup.from_standby {
        return Ok(true);
    }
    Ok(session.last_archived().await?.is_some_and(|archived| is_archived(&archived, WalName::Segment(last))))
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string())),
        Err(_) => Err(Failure::new(FailureKind::Internal, "a thread failed")),
    }
}
