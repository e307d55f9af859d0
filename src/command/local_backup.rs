//! A backup of the data directory on this host: the server's functions say where it starts and stops, the files are read
//! here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::backup_archiving::{prove_archiving, prove_by_segments_of_standby, prove_history};
use super::backup_copy::copy;
use super::backup_parts::Pages;
use super::basebackup::{
    BackupReport, Basebackup, Begun, Ended, NO_LINKS, blocking, conclude, name_and_label, tablespace_away,
};
use super::failure::{Failure, FailureKind};
use super::progress::{Phase, Progress};
use super::same_server::{check_before, check_started};
use super::{Circumstances, StoreSettings};
use crate::disk::snapshot::FoundTablespace;
use crate::disk::{DataDir, Snapshot};
use crate::postgres::backup_files::{BackupFiles, CONTROL_FILE};
use crate::postgres::control_details::ControlDetails;
use crate::repo::Repository;
use crate::repo::manifest::Tablespace;
use crate::repo::manifest_lines::MOST_LINES;
use crate::server::BackupSession;

/// Takes the backup.
pub(super) async fn take(
    settings: &Basebackup,
    pgdata: &Path,
    circumstances: &Circumstances,
    progress: &Arc<Progress>,
) -> Result<BackupReport, Failure> {
    let data_dir = find_data_dir(pgdata)?;
    check_apart(&data_dir, &settings.repository.store)?;
    let repository = settings.repository.open().await?;
    let session = BackupSession::connect(&settings.conninfo).await?;
    let server = session.server().await?;
    let facts = data_dir.facts().map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
    check_before(&server, &data_dir, facts, &read_details(&data_dir)?)?;
    let generation = prove_archiving(settings.archive_wait, &session, &server, &repository, facts.ident).await?;
    prove_history(settings.archive_wait, &repository, generation, facts.control.timeline).await?;

    progress.enter(Phase::Checkpoint);
    let (id, label) = name_and_label(settings, circumstances);
    let started = session.start(&label, settings.fast).await?;
    let details = read_details(&data_dir)?;
    check_started(&data_dir, started.lsn, &details)?;
    if server.in_recovery {
        let begins = (started.lsn, facts.control.timeline, facts.control.segment_size);
        prove_by_segments_of_standby(settings.archive_wait, &repository, generation, begins).await?;
    }
    let begun = Begun { id, label, generation, ident: facts.ident, started };
    tracing::info!("backup `{id}` started at {}", started.lsn);
    let mut holding = begun.hold(&repository, circumstances).await;
    let source = Source { data_dir: &data_dir, session: &session, details };
    let report = holding.during(source.carry_out(settings, circumstances, &repository, begun, progress)).await?;
    holding.release().await;
    Ok(report)
}

/// A server that is in backup mode.
struct Source<'a> {
    data_dir: &'a DataDir,
    session: &'a BackupSession,
    details: ControlDetails,
}

impl Source<'_> {
    /// Copies the files, ends the backup, and waits for its WAL.
    async fn carry_out(
        &self,
        settings: &Basebackup,
        circumstances: &Circumstances,
        repository: &Repository,
        begun: Begun,
        progress: &Arc<Progress>,
    ) -> Result<BackupReport, Failure> {
        let Source { data_dir, session, details } = self;
        progress.enter(Phase::Copying);
        let rules = BackupFiles::new(begun.ident.major, details.catalog_version);
        let root = data_dir.path().to_owned();
        let of_walk = rules.clone();
        let snapshot = blocking(move || Snapshot::take(&root, &of_walk)).await?;
        check_whole(&snapshot, data_dir)?;
        check_countable(&snapshot)?;
        let found = snapshot.tablespaces.clone();
        check_present(&found, &rules, data_dir).await?;
        let tablespaces = tablespaces(&snapshot)?;
        let passed_over = snapshot.passed_over.iter().map(|path| path.display().to_string()).collect();
        let pages = details.page_checksums.then_some(Pages {
            page_size: details.block_size as usize,
            relseg_size: details.relation_segment_blocks,
            start: begun.started.lsn,
        });
        let copied = tokio::select! {
            copied = copy(settings, repository, &begun, (data_dir, pages), snapshot, progress) => copied?,
            lost = watch(session) => return Err(lost),
        };
        // Files on a disk that went away meanwhile look like files that were dropped.
        check_present(&found, &rules, data_dir).await?;

        // What the server says at the stop belongs to the backup, and pg_control, read before it, comes last.
        let control = data_dir.control_file_bytes().map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
        let stopped = session.stop().await.map_err(|e| Failure::from(e).context("the backup could not be stopped"))?;
        let ended = Ended { session: Some(session), stopped, control, tablespaces, server_manifest: None };
        let report = conclude(settings, circumstances, repository, begun, copied, ended, progress).await?;
        Ok(BackupReport { passed_over, ..report })
    }
}

fn find_data_dir(pgdata: &Path) -> Result<DataDir, Failure> {
    let found = DataDir::at(pgdata.to_owned());
    let found = found.map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
    found.ok_or_else(|| {
        let message = format!("`{}` is not a data directory", pgdata.display());
        Failure::new(FailureKind::Usage, message).with_hint("give `--pgdata`, or set `pgdata` under `[cluster]`")
    })
}

/// In a repository among the files each backup would hold all before it, and be lost with the cluster.
fn check_apart(data_dir: &DataDir, store: &StoreSettings) -> Result<(), Failure> {
    let StoreSettings::Local(root) = store else { return Ok(()) };
    // What cannot be found is for those to tell who open it.
    let Ok(repository) = root.canonicalize() else { return Ok(()) };
    let links = std::fs::read_dir(data_dir.path().join("pg_tblspc")).into_iter().flatten().flatten();
    let places = std::iter::once(data_dir.path().to_owned()).chain(links.map(|link| link.path()));
    let inside = |place: &PathBuf| place.canonicalize().is_ok_and(|place| repository.starts_with(place));
    match places.into_iter().find(inside) {
        None => Ok(()),
        Some(place) => {
            let (repository, place) = (root.display(), place.display());
            let message = format!("the repository `{repository}` lies in `{place}`, which is to be backed up");
            let hint = "move it to another place, best on another disk, and change `url` under `[repo]`";
            Err(Failure::new(FailureKind::Usage, message).with_hint(hint))
        }
    }
}

fn read_details(data_dir: &DataDir) -> Result<ControlDetails, Failure> {
    let local = |why: String| Failure::new(FailureKind::LocalIo, why);
    let bytes = data_dir.control_file_bytes().map_err(|e| local(e.to_string()))?;
    ControlDetails::parse(&bytes).map_err(|e| local(format!("{CONTROL_FILE}: {e}")))
}

/// Ends when the session does: then the copy is worthless.
async fn watch(session: &BackupSession) -> Failure {
    const PULSE: Duration = Duration::from_secs(1);
    loop {
        sleep(PULSE).await;
        if let Err(error) = session.is_alive().await {
            return Failure::from(error).context("the session of the backup was lost");
        }
    }
}

/// PostgreSQL follows such a link, a backup does not: better no backup than one without data.
fn check_whole(snapshot: &Snapshot, data_dir: &DataDir) -> Result<(), Failure> {
    let Some(first) = snapshot.lacking.first() else { return Ok(()) };
    let place = data_dir.path().join(first);
    let more = match snapshot.lacking.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    let message = format!(
        "`{}` is a link, or no file and no directory{more}: what lies behind it would not be in the backup",
        place.display()
    );
    Err(Failure::new(FailureKind::BadInput, message).with_hint(NO_LINKS))
}

/// The server runs on without a tablespace that nobody asks for: a backup without it is none.
async fn check_present(
    tablespaces: &[FoundTablespace],
    rules: &BackupFiles,
    data_dir: &DataDir,
) -> Result<(), Failure> {
    for tablespace in tablespaces {
        let (looked_for, rules, root) = (tablespace.clone(), rules.clone(), data_dir.path().to_owned());
        if blocking(move || looked_for.is_away(&root, &rules)).await? {
            let place = tablespace.location.clone().unwrap_or_default();
            return Err(tablespace_away(tablespace.oid, &place.display()));
        }
    }
    Ok(())
}

/// No reader takes a longer manifest: better now than after all is copied.
fn check_countable(snapshot: &Snapshot) -> Result<(), Failure> {
    let count = (snapshot.files.len() + snapshot.directories.len()) as u64;
    // A tenth is left for parts and bad pages.
    match count < MOST_LINES / 10 * 9 {
        true => Ok(()),
        false => Err(Failure::new(FailureKind::Unsupported, format!("{count} files and directories are too many"))),
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
