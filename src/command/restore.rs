//! `restore`: a backup to a directory, and the settings with which PostgreSQL recovers from there to the target.
//!
//! First the plan, or the reason why there is none: before a byte is written. Then the lease, a second look at what the plan needs,
//! and the files, each verified. `pg_control` gets its name last, so that PostgreSQL cannot start on half a restore.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tokio::time::Instant;

use super::basebackup::blocking;
use super::bounds::{apart, bounded};
use super::failure::{Failure, FailureKind};
use super::progress::{Phase, Progress};
use super::restore_files::{Fetching, LEFT_OUT, fetch};
use super::restore_lease::{gone, hold_and_look_again};
use super::restore_place::{claim, locations};
use super::restore_settings::{Inherited, inherited, settle};
use super::restore_unarchived::check_archived;
use super::{Circumstances, RepositorySettings, plan_warnings, restore_place};
use crate::disk::RestoreDir;
use crate::postgres::backup_files::CONTROL_FILE;
use crate::postgres::backup_label::BackupLabel;
use crate::postgres::recovery_settings::RecoverySettings;
use crate::repo::manifest::Tablespace;
use crate::repo::manifest_entries::Manifest;
use crate::repo::restore_plan::{RestorePlan, Unreachable};
use crate::repo::restore_target::Request;
use crate::repo::{BackupId, Identities, Identity, Repository};

/// A restore that is wanted.
#[derive(Clone)]
pub struct Restore {
    /// Where from.
    pub repository: RepositorySettings,
    /// What the plan was made for.
    pub request: Request,
    /// Where to.
    pub to: PathBuf,
    /// How PostgreSQL recovers; its timeline is the plan's unless the server stays a standby.
    pub recovery: RecoverySettings,
    /// Old and new locations of tablespaces.
    pub tablespaces: Vec<(PathBuf, PathBuf)>,
    /// Over an old cluster, of which stays what fits.
    pub delta: bool,
    /// WAL that the old cluster has and the repository lacks may be lost.
    pub discard_wal: bool,
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
    /// Whether the configuration names another data directory: a start must name this one.
    #[serde(skip)]
    pub elsewhere: bool,
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
        let unreachable =
            |why: Unreachable| Failure::new(FailureKind::Unreachable, why.to_string()).with_hint(why.hint());
        plan_warnings::warn(&repository, request, plan.map_err(unreachable)?).await
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

/// Says what [`run`] would refuse at the place to restore to, or what this user may not look at; writes nothing.
pub async fn look(restore: Restore, plan: &RestorePlan) -> Result<Option<String>, Failure> {
    let (to, plan) = (restore.to.clone(), plan.clone());
    let looking = apart(move || async move {
        let repository = restore.repository.open().await?;
        look_at_place(&restore, &repository, &plan).await
    });
    bounded(looking, None, None).await.map_err(|f| f.context(format!("nothing can be restored to `{}`", to.display())))
}

async fn look_at_place(
    restore: &Restore,
    repository: &Repository,
    plan: &RestorePlan,
) -> Result<Option<String>, Failure> {
    let hidden = restore_place::look(restore, &plan.backup).await?;
    if hidden.is_none() {
        check_archived(restore, repository, plan.backup.generation).await?;
    }
    Ok(hidden)
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
        look_at_place(&restore, &repository, &plan).await?;
        let mut holding = hold_and_look_again(&repository, &plan, &restore.request, circumstances).await?;
        // It is not released: the recovery that follows needs it, too.
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

async fn carry_out(
    restore: &Restore,
    repository: &Repository,
    plan: &RestorePlan,
    progress: &Arc<Progress>,
) -> Result<RestoreReport, Failure> {
    let begin = Instant::now();
    let (generation, id) = (plan.backup.generation, plan.backup.id);
    let manifest = repository.read_manifest(generation, id).await?;
    let manifest = Arc::new(manifest.ok_or_else(|| gone(plan, "its manifest is not there any more"))?);
    check_complete(&manifest)?;

    let locations = locations(restore, &manifest.summary)?;
    let dir = claim(restore, &manifest, &locations).await?;
    progress.enter(Phase::Copying);
    let present_before = fetch(repository, &manifest, &dir, &restore.fetching, progress).await?;

    progress.enter(Phase::Syncing);
    let bytes = manifest.summary.plain_bytes;
    let files = manifest.files.iter().filter(|file| file.file.as_bytes() != LEFT_OUT.as_bytes()).count() as u64;
    let dir = Arc::try_unwrap(dir).map_err(|_| Failure::new(FailureKind::Internal, "a file is still being written"))?;
    let recovery = restore.recovery.clone();
    check_label(&dir, &manifest)?;
    let Inherited { warnings, elsewhere } = blocking(move || {
        let found = inherited(dir.root(), &manifest.summary.settings, &recovery);
        settle(&dir, &recovery)?;
        let absent = [LEFT_OUT, recovery.mode.other_signal_file()].map(str::as_bytes);
        let files = manifest.files.iter().map(|entry| &entry.file).filter(|file| !absent.contains(&file.as_bytes()));
        let directories = manifest.directories.iter().map(|entry| &entry.directory);
        dir.finish(&locations.places, files, directories)?;
        Ok(found)
    })
    .await?;
    let seconds = begin.elapsed().as_secs_f64();
    let directory = restore.to.clone();
    Ok(RestoreReport { schema: 1, backup: id, directory, files, bytes, present_before, seconds, warnings, elsewhere })
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
