//! `restore`: a backup to a directory, and the settings with which PostgreSQL recovers from there to the target.
//!
//! First the plan, or the reason why there is none: before a byte is written. Then the files, each verified. `pg_control` gets
//! its name last, so that PostgreSQL cannot start on half a restore.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tokio::time::Instant;

use super::basebackup::blocking;
use super::bounds::{apart, bounded};
use super::failure::{Failure, FailureKind};
use super::holding::Holding;
use super::progress::{Phase, Progress};
use super::restore_files::{Fetching, LEFT_OUT, fetch};
use super::{Circumstances, RepositorySettings};
use crate::disk::tablespace_location::check_locations;
use crate::disk::{DataDir, RestoreDir, RestoreDirError};
use crate::postgres::backup_files::CONTROL_FILE;
use crate::postgres::backup_label::BackupLabel;
use crate::postgres::recovery_settings::RecoverySettings;
use crate::repo::lease::Lease;
use crate::repo::manifest::Tablespace;
use crate::repo::manifest_entries::Manifest;
use crate::repo::restore_plan::RestorePlan;
use crate::repo::restore_target::Request;
use crate::repo::{BackupId, Identities, Identity, Repository};

/// A restore that is wanted.
#[derive(Clone)]
pub struct Restore {
    /// Where from.
    pub repository: RepositorySettings,
    /// Where to.
    pub to: PathBuf,
    /// How PostgreSQL recovers; its timeline is the plan's unless the server stays a standby.
    pub recovery: RecoverySettings,
    /// Old and new locations of tablespaces.
    pub tablespaces: Vec<(PathBuf, PathBuf)>,
    /// Over an old cluster, of which stays what fits.
    pub delta: bool,
    /// How files are fetched.
    pub fetching: Fetching,
}

/// What was restored.
#[derive(Clone, Debug, Serialize)]
pub struct RestoreReport {
    schema: u32,
    /// The backup's name.
    pub backup: crate::repo::BackupId,
    /// The data directory.
    pub directory: PathBuf,
    /// How many files it has.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them were there before, with the right content.
    pub present_before: u64,
    /// How long it took.
    pub seconds: f64,
    /// What to look at before the server is started.
    pub warnings: Vec<String>,
}

/// The plan for a request to the newest generation, or why it cannot be met.
pub async fn plan(repository: &RepositorySettings, request: &Request) -> Result<RestorePlan, Failure> {
    let (repository, wanted) = (repository.clone(), request.clone());
    let planning = apart(move || async move {
        let request = &wanted;
        let repository = repository.open().await?;
        let identities = repository.read_identities().await?;
        let identity = generation_of(&repository, &identities, request.backup).await?;
        let inventory = repository.take_inventory(identity).await?;
        let plan = repository.plan_restore(&inventory, request).await?;
        plan.map_err(|why| Failure::new(FailureKind::Unreachable, why.to_string()).with_hint(why.hint()))
    });
    let described = |failure: Failure| failure.context(format!("{} cannot be restored", request.target));
    bounded(planning, None, None).await.map_err(described)
}

/// The generation that has the backup that was named; otherwise the newest.
async fn generation_of<'a>(
    repository: &Repository,
    identities: &'a Identities,
    backup: Option<BackupId>,
) -> Result<&'a Identity, Failure> {
    if let Some(id) = backup {
        for identity in identities.all().iter().rev() {
            if repository.stored_backup(identity, id).await?.is_some() {
                return Ok(identity);
            }
        }
    }
    identities.newest().ok_or_else(|| Failure::new(FailureKind::NoIdentity, "the repository has no generation"))
}

/// Carries a plan out.
pub async fn run(
    restore: Restore,
    plan: RestorePlan,
    circumstances: &Circumstances,
    progress: Arc<Progress>,
) -> Result<RestoreReport, Failure> {
    let (to, circumstances) = (restore.to.clone(), circumstances.clone());
    let work = apart(move || async move {
        let circumstances = &circumstances;
        let repository = restore.repository.open().await?;
        // It is not released: the recovery that follows needs it, too.
        let mut holding = hold(&repository, &plan, circumstances).await;
        holding.during(carry_out(&restore, &repository, &plan, &progress)).await
    });
    bounded(work, None, None).await.map_err(|failure| {
        let failure = failure.context(format!("`{}` is not restored", to.display()));
        let hint = match failure.kind {
            FailureKind::Damaged => {
                "take another backup by its name, `pgark list` shows them; or put an intact copy of the object back"
            }
            _ => "run the same command again; once files are written there, PostgreSQL cannot start until it succeeds",
        };
        match failure.hint {
            Some(_) => failure,
            None => failure.with_hint(hint),
        }
    })
}

/// Tells `expire` what this restore needs, and the recovery that follows.
async fn hold<'a>(repository: &'a Repository, plan: &RestorePlan, circumstances: &Circumstances) -> Holding<'a> {
    let backup = &plan.backup;
    let writer = circumstances.writer.to_string();
    let lease = Lease::new(backup.generation, backup.id, backup.start_lsn, None, writer);
    Holding::take(repository, lease, circumstances, "the server has recovered").await
}

async fn carry_out(
    restore: &Restore,
    repository: &Repository,
    plan: &RestorePlan,
    progress: &Arc<Progress>,
) -> Result<RestoreReport, Failure> {
    let begin = Instant::now();
    let (generation, id) = (plan.backup.generation, plan.backup.id);
    let manifest = repository.read_manifest(generation, id).await?;
    let gone =
        || Failure::new(FailureKind::Damaged, format!("the manifest of `{id}` was there a moment ago and is gone now"));
    let manifest = Arc::new(manifest.ok_or_else(gone)?);
    check_complete(&manifest)?;

    let locations = locations(restore, &manifest)?;
    let dir = claim(restore, &manifest, &locations).await?;
    progress.enter(Phase::Copying);
    let present_before = fetch(repository, &manifest, &dir, &restore.fetching, progress).await?;

    progress.enter(Phase::Syncing);
    let warnings = warnings(&dir, &manifest)?;
    let bytes = manifest.summary.plain_bytes;
    let files = manifest.files.iter().filter(|file| file.file.as_bytes() != LEFT_OUT.as_bytes()).count() as u64;
    let dir = Arc::try_unwrap(dir).map_err(|_| Failure::new(FailureKind::Internal, "a file is still being written"))?;
    let recovery = restore.recovery.clone();
    check_label(&dir, &manifest)?;
    blocking(move || {
        settle(&dir, &recovery)?;
        dir.finish(&locations)
    })
    .await?;
    let seconds = begin.elapsed().as_secs_f64();
    let directory = restore.to.clone();
    Ok(RestoreReport { schema: 1, backup: id, directory, files, bytes, present_before, seconds, warnings })
}

/// Without its label a copy would be recovered from the wrong point, and be corrupt without a word.
fn check_complete(manifest: &Manifest) -> Result<(), Failure> {
    let damaged = |why: String| {
        let id = manifest.summary.id;
        Failure::new(FailureKind::Damaged, format!("the manifest of `{id}` is not that of a whole backup: {why}"))
    };
    for needed in ["PG_VERSION", "backup_label", CONTROL_FILE] {
        if !manifest.files.iter().any(|entry| entry.file.as_bytes() == needed.as_bytes()) {
            return Err(damaged(format!("it has no `{needed}`")));
        }
    }
    let mut seen = BTreeSet::new();
    for Tablespace { oid, .. } in &manifest.summary.tablespaces {
        let directory = format!("pg_tblspc/{oid}");
        let listed = manifest.directories.iter().any(|entry| entry.directory.as_bytes() == directory.as_bytes());
        if !listed || !seen.insert(*oid) {
            return Err(damaged(format!("tablespace {oid} occurs twice, or has no directory")));
        }
    }
    Ok(())
}

/// Where each tablespace goes: every one to a place of its own, or they would write over each other's files.
fn locations(restore: &Restore, manifest: &Manifest) -> Result<BTreeMap<u32, PathBuf>, Failure> {
    let usage = |message: String| Failure::new(FailureKind::Usage, message);
    let tablespaces = &manifest.summary.tablespaces;
    let mut mapped: BTreeMap<&Path, &PathBuf> = BTreeMap::new();
    for (old, new) in &restore.tablespaces {
        if !tablespaces.iter().any(|tablespace| Path::new(&tablespace.location) == old) {
            let known: Vec<&str> = tablespaces.iter().map(|tablespace| tablespace.location.as_str()).collect();
            let message = format!("`--tablespace-map`: the backup has no tablespace at `{}`", old.display());
            return Err(usage(message).with_hint(format!("it has: {}", known.join(", "))));
        }
        if mapped.insert(old, new).is_some() {
            return Err(usage(format!("`--tablespace-map`: `{}` is mapped twice", old.display())));
        }
    }
    let mut locations: BTreeMap<u32, PathBuf> = BTreeMap::new();
    for Tablespace { oid, location } in tablespaces {
        let place = mapped.get(Path::new(location)).map_or_else(|| PathBuf::from(location), |new| (*new).clone());
        if let Some(other) = locations.values().find(|other| place.starts_with(other) || other.starts_with(&place)) {
            let message =
                format!("two tablespaces would share a place: `{}` and `{}`", other.display(), place.display());
            return Err(usage(message).with_hint("give each a directory of its own with `--tablespace-map`"));
        }
        locations.insert(*oid, place);
    }
    Ok(locations)
}

/// Takes the directory and the tablespaces, makes all directories, and clears away what does not belong there.
async fn claim(
    restore: &Restore,
    manifest: &Arc<Manifest>,
    locations: &BTreeMap<u32, PathBuf>,
) -> Result<Arc<RestoreDir>, Failure> {
    let (to, over_old, manifest, locations) =
        (restore.to.clone(), restore.delta, Arc::clone(manifest), locations.clone());
    let claiming = tokio::task::spawn_blocking(move || {
        // What may refuse comes before the first change.
        check_same_cluster(&to, &manifest)?;
        check_locations(&to, &locations)?;
        let mut dir = RestoreDir::claim(&to, over_old)?;
        for (oid, location) in &locations {
            dir.make_tablespace(*oid, location)?;
        }
        for entry in &manifest.directories {
            dir.make_directory(&entry.directory, entry.mode)?;
        }
        if dir.may_have_files() {
            let directories: BTreeSet<_> = manifest.directories.iter().map(|entry| &entry.directory).collect();
            let files = manifest.files.iter().map(|entry| &entry.file);
            let files: BTreeSet<_> = files.filter(|file| file.as_bytes() != LEFT_OUT.as_bytes()).collect();
            dir.remove_others(&directories, &files)?;
        }
        Ok(dir)
    });
    match claiming.await {
        Ok(Ok(dir)) => Ok(Arc::new(dir)),
        Ok(Err(RestoreDirError::Io(error))) => Err(Failure::new(FailureKind::LocalIo, error.to_string())),
        Ok(Err(RestoreDirError::Refused(why))) if why.contains("--tablespace-map") => {
            Err(Failure::new(FailureKind::Usage, why)
                .with_hint("OLD is the location in the backup: `pgark show` lists them"))
        }
        Ok(Err(RestoreDirError::Refused(why))) => Err(Failure::new(FailureKind::Usage, why)
            .with_hint("name an empty directory with `--to`; `--delta` restores over a stopped cluster")),
        Err(_) => Err(Failure::new(FailureKind::Internal, "a thread failed")),
    }
}

/// The label says where recovery begins: it must be this backup's.
fn check_label(dir: &RestoreDir, manifest: &Manifest) -> Result<(), Failure> {
    let damaged = |why: String| Failure::new(FailureKind::Damaged, format!("`backup_label`: {why}"));
    let text = dir.read("backup_label").map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
    let label = BackupLabel::parse(&text).map_err(|e| damaged(e.to_string()))?;
    match label.start_lsn == manifest.summary.start_lsn {
        true => Ok(()),
        false => {
            Err(damaged(format!("it starts at {}, the backup at {}", label.start_lsn, manifest.summary.start_lsn)))
        }
    }
}

/// `--delta` is for a cluster and its own backup.
fn check_same_cluster(to: &Path, manifest: &Manifest) -> Result<(), RestoreDirError> {
    // What is no file in no directory is planted, or is left of a restore: there is no cluster then.
    let real = |name: &str| to.join(name).symlink_metadata().ok();
    if !real("global").is_some_and(|found| found.is_dir()) || !real(CONTROL_FILE).is_some_and(|found| found.is_file()) {
        return Ok(());
    }
    let unknown = |e: std::io::Error| {
        let message = format!(
            "whose cluster is in `{}` cannot be told ({e}): move its pg_control away if it is not wanted",
            to.display()
        );
        RestoreDirError::Refused(message)
    };
    let Some(there) = DataDir::at(to.to_owned()).map_err(unknown)? else { return Ok(()) };
    let there = there.facts().map_err(unknown)?;
    let (ours, theirs) = (manifest.summary.system_identifier, there.ident.system_id);
    if ours == theirs {
        return Ok(());
    }
    let message = format!("`{}` is another cluster: it has {theirs}, the backup {ours}", to.display());
    Err(RestoreDirError::Refused(message))
}

/// Writes the recovery settings and the signal file.
fn settle(dir: &RestoreDir, recovery: &RecoverySettings) -> std::io::Result<()> {
    const SETTINGS: &str = "postgresql.auto.conf";
    let mut settings = dir.read(SETTINGS)?;
    settings.extend(recovery.to_conf().into_bytes());
    dir.write("", SETTINGS, &settings)?;
    // The backup of a standby, or of a restored server, brings its own along.
    dir.remove(recovery.mode.other_signal_file())?;
    dir.write("", recovery.mode.signal_file(), b"")
}

/// Settings that are lower than where the backup comes from, as far as they stand in the data directory.
fn warnings(dir: &RestoreDir, manifest: &Manifest) -> Result<Vec<String>, Failure> {
    let mut text = Vec::new();
    for file in ["postgresql.conf", "postgresql.auto.conf"] {
        text.extend(dir.read(file).map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?);
        text.push(b'\n');
    }
    let text = String::from_utf8_lossy(&text);
    let mut warnings = Vec::new();
    for (name, needed) in manifest.summary.settings.limits() {
        let set = text.lines().filter_map(|line| value_of(line, name)).next_back();
        if let Some(set) = set.filter(|set| *set < needed) {
            warnings.push(format!(
                "`{name}` is {set}, but was {needed} where the backup comes from: PostgreSQL will not recover with less"
            ));
        }
    }
    Ok(warnings)
}

/// The number that a line of a configuration file gives to this setting.
fn value_of(line: &str, name: &str) -> Option<u32> {
    let rest = line.trim_start().strip_prefix(name)?;
    let value = rest.trim_start().trim_start_matches('=').split('#').next()?.trim();
    value.trim_matches('\'').parse().ok()
}
