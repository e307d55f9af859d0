//! `basebackup`: a full snapshot of a running server, from its data directory or over a replication connection.
//!
//! The backup exists when its manifest does, and the manifest is written last: after all files and all WAL from start to
//! stop are in the repository. Whatever ends the command before leaves parts that `expire` collects.

use std::fmt::Display;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::backup_archiving::prove_history;
use super::backup_copy::{Copied, patiently};
use super::backup_finish::close;
use super::backup_wal::wait_for_wal;
use super::bounds::{apart, bounded};
use super::failure::{Failure, FailureKind};
use super::holding::Holding;
use super::keep::holds;
use super::progress::{Phase, Progress};
use super::same_server::check_ended;
use super::{Circumstances, RepositorySettings, local_backup, remote_backup};
use crate::postgres::backup_files::CONTROL_FILE;
use crate::postgres::backup_label::BackupLabel;
use crate::postgres::control_details::ControlDetails;
use crate::postgres::control_file::ControlFile;
use crate::postgres::{ClusterIdent, Malformed, SegmentSize};
use crate::repo::manifest::{BackupSummary, FORMAT, Method, Tablespace};
use crate::repo::manifest_entries::Manifest;
use crate::repo::{BackupId, Generation, Lease, Repository};
use crate::server::backup_session::{Started, Stopped};
use crate::server::{BackupSession, Conninfo};

/// A backup that is wanted.
#[derive(Clone)]
pub struct Basebackup {
    /// Where to.
    pub repository: RepositorySettings,
    /// How the files are read.
    pub source: Source,
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

/// How the files of a backup are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From the data directory of a server on this host.
    DataDirectory(PathBuf),
    /// Over a replication connection.
    Server,
}

/// A backup that was taken.
#[derive(Clone, Debug, Serialize)]
pub struct BackupReport {
    pub(super) schema: u32,
    /// The backup.
    pub backup: BackupSummary,
    /// Whether pages with wrong checksums were found.
    pub damaged: bool,
    /// Which pages, as `file: block`.
    pub bad_pages: Vec<String>,
    /// Links, sockets and the like in the data directory, which no backup copies.
    pub passed_over: Vec<String>,
    /// What the server warned of.
    pub warnings: Vec<String>,
}

/// Takes the backup.
pub async fn run(
    settings: Basebackup,
    circumstances: &Circumstances,
    progress: Arc<Progress>,
) -> Result<BackupReport, Failure> {
    check_words(&settings.label)?;
    let (marking, ours, phase) = (settings.clone(), circumstances.clone(), Arc::clone(&progress));
    let taking = apart(move || async move {
        match &settings.source {
            Source::DataDirectory(pgdata) => local_backup::take(&settings, pgdata, &ours, &progress).await,
            Source::Server => remote_backup::take(&settings, &ours, &progress).await,
        }
    });
    let report = bounded(taking, None, None).await.map_err(|failure| unmade(failure, phase.phase()))?;
    if marking.keep {
        let id = report.backup.id;
        bounded(mark(&marking, &report.backup, circumstances), None, None).await.map_err(|failure| {
            let failure = failure.context(format!("backup `{id}` is whole, but `--keep` does not hold"));
            failure.with_hint(format!("`pgark keep {id}`"))
        })?;
    }
    Ok(report)
}

/// A manifest on its way may have arrived, though nobody said so.
fn unmade(failure: Failure, phase: Phase) -> Failure {
    let unsure = matches!(failure.kind, FailureKind::Unavailable | FailureKind::Interrupted);
    match unsure && phase == Phase::Manifest {
        false => failure.context("no backup was made"),
        true => {
            failure.context("whether the backup was made is not known").with_hint("`pgark list` shows it if it was")
        }
    }
}

/// Marks the backup now that it is one: a mark before the manifest would hold what a killed backup leaves for ever.
async fn mark(settings: &Basebackup, backup: &BackupSummary, circumstances: &Circumstances) -> Result<(), Failure> {
    let repository = settings.repository.open().await?;
    let keep = || repository.keep(backup.generation, backup.id, circumstances.now, "--keep", &circumstances.writer);
    patiently(settings.retry, "the mark of `--keep`", keep).await?;
    holds(&repository, backup.generation, backup.id).await
}

/// The label is one line of `backup_label`: PostgreSQL writes it there as it is, and nobody could read the file then.
pub(super) fn check_words(label: &str) -> Result<(), Failure> {
    let message = "no backup was made: the label has a line break or another control character";
    match label.chars().any(char::is_control) {
        true => Err(Failure::new(FailureKind::Usage, message)),
        false => Ok(()),
    }
}

/// For a cluster with links where its data belong.
pub(super) const NO_LINKS: &str =
    "stop the server and move the data there back; to have them on another disk, mount it there or make a tablespace";

/// A tablespace of which there is not even the directory.
pub(super) fn tablespace_away(oid: u32, place: &dyn Display) -> Failure {
    let message = format!("the files of tablespace {oid} are not at `{place}`: they would not be in the backup");
    Failure::new(FailureKind::BadInput, message)
        .with_hint("is its disk mounted? If the tablespace was dropped meanwhile, run the same command again")
}

/// What is known before the first byte is copied.
pub(super) struct Begun {
    pub(super) id: BackupId,
    pub(super) label: String,
    pub(super) generation: Generation,
    pub(super) ident: ClusterIdent,
    pub(super) started: Started,
}

impl Begun {
    /// Tells `expire` that this backup is at work, however long ago its parts were written.
    pub(super) async fn hold<'a>(&self, repository: &'a Repository, circumstances: &Circumstances) -> Holding<'a> {
        let writer = circumstances.writer.to_string();
        let lease = Lease::new(self.generation, self.id, self.started.lsn, None, writer);
        Holding::take(repository, lease, circumstances, "the backup is done").await
    }
}

/// What is known when the last byte is copied.
pub(super) struct Ended<'a> {
    /// Who is asked what was archived, if there is a session.
    pub(super) session: Option<&'a BackupSession>,
    pub(super) stopped: Stopped,
    /// pg_control, as it was before the stop.
    pub(super) control: Vec<u8>,
    pub(super) tablespaces: Vec<Tablespace>,
    /// PostgreSQL's own `backup_manifest`, if it came with the files.
    pub(super) server_manifest: Option<Vec<u8>>,
}

/// A name for the new backup, and the words that `backup_label` gets.
pub(super) fn name_and_label(settings: &Basebackup, circumstances: &Circumstances) -> (BackupId, String) {
    let id = BackupId::new(circumstances.now, RandomState::new().build_hasher().finish() as u32);
    (id, if settings.label.is_empty() { id.own_label() } else { settings.label.clone() })
}

/// Stores the last part, waits for the WAL, and writes the manifest: now the backup exists.
pub(super) async fn conclude(
    settings: &Basebackup,
    circumstances: &Circumstances,
    repository: &Repository,
    begun: Begun,
    copied: Copied,
    ended: Ended<'_>,
    progress: &Arc<Progress>,
) -> Result<BackupReport, Failure> {
    let unreadable = |e: Malformed| Failure::new(FailureKind::LocalIo, format!("{CONTROL_FILE}: {e}"));
    let details = ControlDetails::parse(&ended.control).map_err(unreadable)?;
    let ControlFile { segment_size, timeline, .. } = ControlFile::parse(&ended.control).map_err(unreadable)?;
    let label_file = check_label(&ended.stopped, &begun, segment_size)?;
    check_ended(&label_file, ended.stopped.lsn, timeline, &details)?;
    let mut manifest = Manifest {
        summary: BackupSummary {
            format: FORMAT.to_owned(),
            id: begun.id,
            generation: begun.generation,
            system_identifier: begun.ident.system_id,
            postgres_major: begun.ident.major,
            label: begun.label.clone(),
            method: match settings.source {
                Source::DataDirectory(_) => Method::Local,
                Source::Server => Method::Remote,
            },
            from_standby: label_file.from_standby,
            timeline: label_file.timeline,
            start_lsn: label_file.start_lsn,
            stop_lsn: ended.stopped.lsn,
            started: begun.started.at,
            stopped: ended.stopped.at,
            segment_size: segment_size.bytes(),
            page_checksums: details.page_checksums,
            directory_mode: directory_mode(&settings.source),
            tablespaces: ended.tablespaces.clone(),
            settings: details.settings,
            files: 0,
            plain_bytes: 0,
            parts: 0,
            stored_bytes: 0,
            bad_pages: 0,
            writer: circumstances.writer.to_string(),
        },
        parts: Vec::new(),
        directories: Vec::new(),
        files: Vec::new(),
        bad_pages: Vec::new(),
    };
    close(settings, repository, &begun, copied, &ended, &mut manifest).await?;

    progress.enter(Phase::WaitingForWal);
    wait_for_wal(settings, repository, &manifest.summary, ended.session).await?;
    // The timeline may be newer than the one that was looked at before the start.
    prove_history(settings.archive_wait, repository, begun.generation, manifest.summary.timeline).await?;
    let still_there = || repository.check_parts(begun.generation, begun.id, &manifest.parts);
    patiently(settings.retry, "the list of the parts", still_there).await.map_err(|failure| match failure.kind {
        FailureKind::Damaged => {
            failure.with_hint("something else deletes in the repository: find out what, then run it again")
        }
        _ => failure,
    })?;
    progress.enter(Phase::Manifest);
    patiently(settings.retry, "the manifest", || repository.put_manifest(&manifest)).await?;
    let bad_pages: Vec<String> =
        manifest.bad_pages.iter().map(|page| format!("{}: block {}", page.bad_page, page.block)).collect();
    let damaged = !bad_pages.is_empty();
    let backup = manifest.summary;
    Ok(BackupReport { schema: 1, backup, damaged, bad_pages, passed_over: Vec::new(), warnings: Vec::new() })
}

/// Permission bits of the data directory, for which the replication protocol has no word.
fn directory_mode(source: &Source) -> Option<u32> {
    let Source::DataDirectory(pgdata) = source else { return None };
    std::fs::metadata(pgdata).ok().map(|found| found.permissions().mode() & 0o777)
}

fn check_label(stopped: &Stopped, begun: &Begun, size: SegmentSize) -> Result<BackupLabel, Failure> {
    let wrong = |why: String| Failure::new(FailureKind::Server, format!("the server's backup_label: {why}"));
    let label = BackupLabel::parse(&stopped.label).map_err(|e| wrong(e.to_string()))?;
    label.check_segment(size).map_err(|e| wrong(e.to_string()))?;
    match label.start_lsn == begun.started.lsn && label.start_lsn < stopped.lsn {
        true => Ok(label),
        false => Err(wrong(format!("it starts at {}, the backup at {}", label.start_lsn, begun.started.lsn))),
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string())),
        Err(_) => Err(Failure::new(FailureKind::Internal, "a thread failed")),
    }
}
