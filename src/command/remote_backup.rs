//! A backup over a replication connection, of a server on this host or another: nothing is read here but what it sends.
//!
//! A second, ordinary session ends a WAL segment and tells the server's clock, where the user may have one. Pages whose checksums
//! are wrong are listed as they arrived: the server has looked at them a second time before it sent them, and it complains
//! at the end, too.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::Circumstances;
use super::backup_archiving::{
    not_archiving, prove_archiving, prove_by_segment_before, prove_by_segments_of_standby, prove_history,
};
use super::backup_copy::Copied;
use super::backup_parts::Pages;
use super::basebackup::{BackupReport, Basebackup, Begun, Ended, NO_LINKS, conclude, name_and_label, tablespace_away};
use super::failure::{Failure, FailureKind};
use super::progress::{Phase, Progress};
use super::remote_copy::{Received, receive};
use super::remote_files::Arrived;
use crate::postgres::SegmentNumber;
use crate::postgres::backup_files::BackupFiles;
use crate::postgres::control_details::ControlDetails;
use crate::postgres::control_file::ControlFile;
use crate::postgres::tablespace_map::{TablespaceLink, TablespaceMap};
use crate::repo::manifest::Tablespace;
use crate::repo::{Generation, RepoError, Repository};
use crate::server::backup_session::{Started, Stopped};
use crate::server::base_backup::{BackupStart, BaseBackupRequest};
use crate::server::replication::ServerShape;
use crate::server::{BackupSession, BaseBackup, Replication};

/// Takes the backup.
pub(super) async fn take(
    settings: &Basebackup,
    circumstances: &Circumstances,
    progress: &Arc<Progress>,
) -> Result<BackupReport, Failure> {
    let repository = settings.repository.open().await?;
    let mut replication = Replication::connect(&settings.conninfo).await?;
    let shape = replication.shape().await?;
    let session = sql_session(settings, &shape).await?;
    let streamed = !shape.archives && is_streamed(&repository, &mut replication, &shape, session.as_ref()).await?;
    if !shape.in_recovery && !shape.archives && !streamed {
        return Err(not_archiving());
    }
    let (generation, proven) = prove_before(settings, &repository, &shape, session.as_ref()).await?;

    progress.enter(Phase::Checkpoint);
    let (id, label) = name_and_label(settings, circumstances);
    let request = BaseBackupRequest { label: &label, fast: settings.fast };
    let backup = replication.base_backup(shape.ident.major, &request).await?;
    let started_here = Instant::now();
    let start = backup.start.clone();
    if !proven {
        let begins = (start.lsn, start.timeline, shape.segment_size);
        match shape.in_recovery {
            true => prove_by_segments_of_standby(settings.archive_wait, &repository, generation, begins).await?,
            false => prove_by_segment_before(settings.archive_wait, &repository, generation, begins).await?,
        }
    }
    prove_history(settings.archive_wait, &repository, generation, start.timeline).await?;
    let told = clock(session.as_ref()).await;
    let started = Started { lsn: start.lsn, at: told.unwrap_or(circumstances.now) };
    let begun = Begun { id, label: label.clone(), generation, ident: shape.ident, started };
    tracing::info!("backup `{id}` started at {}", started.lsn);

    let mut holding = begun.hold(&repository, circumstances).await;
    let source = Source { backup, shape, session, told, started_here };
    let report = holding.during(source.carry_out(settings, circumstances, &repository, begun, progress)).await?;
    holding.release().await;
    Ok(report)
}

/// A server that sends a backup.
struct Source {
    backup: BaseBackup,
    shape: ServerShape,
    session: Option<BackupSession>,
    /// The server's clock at the start, if it was asked.
    told: Option<Timestamp>,
    started_here: Instant,
}

impl Source {
    /// Receives the files, and waits for the WAL.
    async fn carry_out(
        self,
        settings: &Basebackup,
        circumstances: &Circumstances,
        repository: &Repository,
        mut begun: Begun,
        progress: &Arc<Progress>,
    ) -> Result<BackupReport, Failure> {
        let Source { mut backup, shape, session, told, started_here } = self;
        let start = backup.start.clone();
        progress.enter(Phase::Copying);
        progress.expect(start.bytes);
        let (tablespaces, tablespace_map) = tablespaces(&start)?;
        let pages = shape.page_checksums.then_some(Pages {
            page_size: shape.page_size as usize,
            relseg_size: shape.relation_segment_blocks,
            start: start.lsn,
        });
        let received = receive(settings, repository, &begun, &mut backup, pages, progress).await?;
        let reckoned = Reckoned::from(&received.arrived, started_here);
        let Received { copied, arrived, manifest, end } = received;
        begun.started.at = told.unwrap_or(reckoned.started);
        if end.timeline != start.timeline {
            let (from, to) = (start.timeline.get(), end.timeline.get());
            let message = format!("the server went from timeline {from} to {to} meanwhile");
            return Err(Failure::new(FailureKind::Server, message).with_hint("run the same command again"));
        }
        check_control(&arrived.control, &shape)?;
        check_whole(&copied)?;

        let session = revived(settings, &shape, session).await?;
        check_tablespaces(&copied, &tablespaces, &shape, session.as_ref()).await?;
        let at = clock(session.as_ref()).await.unwrap_or(reckoned.stopped);
        let stopped = Stopped { lsn: end.lsn, at, label: arrived.label, tablespace_map };
        let ended = Ended {
            session: session.as_ref(),
            stopped,
            control: arrived.control,
            tablespaces,
            server_manifest: Some(manifest),
        };
        let report = conclude(settings, circumstances, repository, begun, copied, ended, progress).await?;
        Ok(BackupReport { damaged: report.damaged || end.damaged, warnings: end.warnings, ..report })
    }
}

/// An ordinary session, if the user may have one: many may connect for replication only.
async fn sql_session(settings: &Basebackup, shape: &ServerShape) -> Result<Option<BackupSession>, Failure> {
    let session = match BackupSession::connect(&settings.conninfo).await {
        Ok(session) => session,
        Err(error) => {
            tracing::info!("no SQL session, the backup goes on without: {error}");
            return Ok(None);
        }
    };
    let server = session.server().await?;
    if (server.system_id, server.in_recovery) != (shape.ident.system_id, shape.in_recovery) {
        let message = "the replication connection and the SQL session reached different servers";
        return Err(Failure::new(FailureKind::Usage, message).with_hint("name one host in `--conninfo`"));
    }
    Ok(Some(session))
}

/// The session, or another one: it was idle for as long as the copy took.
async fn revived(
    settings: &Basebackup,
    shape: &ServerShape,
    session: Option<BackupSession>,
) -> Result<Option<BackupSession>, Failure> {
    match session {
        Some(session) if session.is_alive().await.is_ok() => Ok(Some(session)),
        Some(_) => sql_session(settings, shape).await,
        None => Ok(None),
    }
}

/// Whether a receiver streams the WAL of a server that does not archive: the server knows, or else the repository has the segment before the
/// one that is being written.
async fn is_streamed(
    repository: &Repository,
    replication: &mut Replication,
    shape: &ServerShape,
    session: Option<&BackupSession>,
) -> Result<bool, Failure> {
    if let Some(session) = session
        && session.received_up_to().await?.is_some()
    {
        return Ok(true);
    }
    let generation = match repository.find_generation(shape.ident).await {
        Err(RepoError::NoIdentity { .. }) => return Ok(false),
        other => other?,
    };
    let server = replication.identify_system().await?;
    let SegmentNumber(writing) = shape.segment_size.containing(server.flushed);
    let before = shape.segment_size.name(server.timeline, SegmentNumber(writing.saturating_sub(1)));
    Ok(repository.archive(generation).first_missing(before, before, shape.segment_size).await?.is_none())
}

/// Shows that archiving works, if that can be shown before the start. A standby cannot end a segment: there what
/// it has replayed shows it, once its start is known.
async fn prove_before(
    settings: &Basebackup,
    repository: &Repository,
    shape: &ServerShape,
    session: Option<&BackupSession>,
) -> Result<(Generation, bool), Failure> {
    if let (Some(session), false) = (session, shape.in_recovery)
        && session.may_switch_wal().await?
    {
        let server = session.server().await?;
        let generation = prove_archiving(settings.archive_wait, session, &server, repository, shape.ident).await?;
        return Ok((generation, true));
    }
    Ok((repository.find_generation(shape.ident).await?, false))
}

async fn clock(session: Option<&BackupSession>) -> Option<Timestamp> {
    let told = session?.clock().await;
    told.inspect_err(|error| tracing::info!("the server's clock is reckoned: {error}")).ok()
}

/// The server's clock for who cannot ask it: from the time that `backup_label` was packed.
struct Reckoned {
    started: Timestamp,
    /// Not before the true time, a little after it: no moment may count as restorable that is not.
    stopped: Timestamp,
}

impl Reckoned {
    fn from(arrived: &Arrived, started_here: Instant) -> Self {
        let seconds = |of: u64| SignedDuration::from_secs(i64::try_from(of).unwrap_or_default());
        let packed = Timestamp::from_second(arrived.label_packed).unwrap_or(Timestamp::UNIX_EPOCH);
        let before = arrived.label_arrived.saturating_duration_since(started_here);
        // Whole seconds were cut off from the one, and the answer was some time on its way.
        let since = seconds(started_here.elapsed().as_secs() + 3);
        Reckoned {
            started: packed.checked_sub(seconds(before.as_secs())).unwrap_or(packed),
            stopped: packed.checked_add(since).unwrap_or(packed),
        }
    }
}

/// Tablespaces for the manifest, and PostgreSQL's own list of them. One that lies in `pg_tblspc` itself is a directory.
fn tablespaces(start: &BackupStart) -> Result<(Vec<Tablespace>, Vec<u8>), Failure> {
    let elsewhere = || start.tablespaces.iter().filter(|(_, location)| location.starts_with(b"/"));
    let each = elsewhere().map(|(oid, location)| match std::str::from_utf8(location) {
        Ok(location) => Ok(Tablespace { oid: *oid, location: location.to_owned() }),
        Err(_) => {
            let shown = String::from_utf8_lossy(location);
            let message = format!("the location of tablespace {oid} is not UTF-8: `{shown}`");
            Err(Failure::new(FailureKind::BadInput, message))
        }
    });
    let mut tablespaces = each.collect::<Result<Vec<_>, _>>()?;
    tablespaces.sort_unstable_by_key(|tablespace| tablespace.oid);
    let link = |tablespace: &Tablespace| TablespaceLink { oid: tablespace.oid, path: (&tablespace.location).into() };
    let map = TablespaceMap::new(tablespaces.iter().map(link).collect());
    let map = map.map_err(|e| Failure::new(FailureKind::BadInput, e.to_string()))?;
    Ok((tablespaces, map.to_bytes()))
}

/// The server does not follow links, and may not have said what it left out.
fn check_whole(copied: &Copied) -> Result<(), Failure> {
    let came = |name: &&str| copied.directories.iter().any(|found| found.path.as_bytes() == name.as_bytes());
    let Some(missing) = BackupFiles::own_directories().find(|name| !came(name)) else { return Ok(()) };
    let message = format!("the server sent no `{missing}`: without it no cluster is whole");
    Err(Failure::new(FailureKind::BadInput, message).with_hint(NO_LINKS))
}

/// Of a tablespace whose disk is not mounted the server sends nothing, as of one that was dropped meanwhile.
async fn check_tablespaces(
    copied: &Copied,
    tablespaces: &[Tablespace],
    shape: &ServerShape,
    session: Option<&BackupSession>,
) -> Result<(), Failure> {
    for Tablespace { oid, location } in tablespaces {
        let files = format!("pg_tblspc/{oid}/PG_{}_", shape.ident.major);
        let came = copied.directories.iter().any(|found| found.path.as_bytes().starts_with(files.as_bytes()));
        let dropped = async || match session {
            Some(session) => session.has_tablespace(*oid).await.is_ok_and(|has| !has),
            None => false,
        };
        if !came && !dropped().await {
            return Err(tablespace_away(*oid, location));
        }
    }
    Ok(())
}

/// The server reads `pg_control` while it may be writing it, and looks but once.
fn check_control(control: &[u8], shape: &ServerShape) -> Result<(), Failure> {
    let again = |why: String| {
        Failure::new(FailureKind::Server, format!("pg_control did not arrive whole: {why}"))
            .with_hint("run the same command again")
    };
    let file = ControlFile::parse(control).map_err(|e| again(e.to_string()))?;
    let details = ControlDetails::parse(control).map_err(|e| again(e.to_string()))?;
    let sizes = (details.block_size, details.relation_segment_blocks, details.page_checksums, file.segment_size);
    let shown = (shape.page_size, shape.relation_segment_blocks, shape.page_checksums, shape.segment_size);
    match sizes == shown && file.system_id == shape.ident.system_id {
        true => Ok(()),
        false => Err(again("it is of another cluster, or has other sizes than the server shows".to_owned())),
    }
}
