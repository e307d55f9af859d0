//! Where a restore goes: the directory and the tablespaces, looked at before the first change, and taken.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::failure::{Failure, FailureKind};
use super::restore::Restore;
use super::restore_files::LEFT_OUT;
use crate::disk::tablespace_location::{Locations, check_locations};
use crate::disk::{DataDir, RestoreDir, RestoreDirError};
use crate::postgres::backup_files::CONTROL_FILE;
use crate::repo::manifest::{BackupSummary, Tablespace};
use crate::repo::manifest_entries::Manifest;

/// Where each tablespace goes: every one to a place of its own, or they would write over each other's files.
pub(super) fn locations(restore: &Restore, summary: &BackupSummary) -> Result<Locations, Failure> {
    let usage = |message: String| Failure::new(FailureKind::Usage, message);
    let tablespaces = &summary.tablespaces;
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
    let mut locations = Locations::default();
    for Tablespace { oid, location } in tablespaces {
        let named = mapped.get(Path::new(location));
        let place = named.map_or_else(|| PathBuf::from(location), |new| (*new).clone());
        let mut others = locations.places.values();
        if let Some(other) = others.find(|other| place.starts_with(other) || other.starts_with(&place)) {
            let message =
                format!("two tablespaces would share a place: `{}` and `{}`", other.display(), place.display());
            return Err(usage(message).with_hint("give each a directory of its own with `--tablespace-map`"));
        }
        locations.places.insert(*oid, place);
        locations.named.extend(named.map(|_| *oid));
    }
    Ok(locations)
}

/// Says what [`claim`] would refuse, or what this user may not look at. Changes nothing.
pub(super) async fn look(restore: &Restore, summary: &BackupSummary) -> Result<Option<String>, Failure> {
    let locations = locations(restore, summary)?;
    let (to, over_old, summary) = (restore.to.clone(), restore.delta, summary.clone());
    let looking = tokio::task::spawn_blocking(move || match check(&to, over_old, &summary, &locations) {
        Err(RestoreDirError::Io(error)) if error.kind() == ErrorKind::PermissionDenied => Ok(Some(error.to_string())),
        looked => looked.map(|()| None),
    });
    refusals(looking.await)
}

/// What may refuse comes before the first change.
fn check(to: &Path, over_old: bool, summary: &BackupSummary, locations: &Locations) -> Result<(), RestoreDirError> {
    check_same_cluster(to, summary)?;
    let found = RestoreDir::look(to, over_old)?;
    check_locations(to, locations, found.is_marked())
}

/// Takes the directory and the tablespaces, makes all directories, and clears away what does not belong there.
pub(super) async fn claim(
    restore: &Restore,
    manifest: &Arc<Manifest>,
    locations: &Locations,
) -> Result<Arc<RestoreDir>, Failure> {
    let (to, over_old, manifest, locations) =
        (restore.to.clone(), restore.delta, Arc::clone(manifest), locations.clone());
    let claiming = tokio::task::spawn_blocking(move || {
        check(&to, over_old, &manifest.summary, &locations)?;
        let mut dir = RestoreDir::claim(&to, over_old)?;
        if manifest.has_group_access() {
            dir.allow_group()?;
        }
        for (oid, location) in &locations.places {
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
    refusals(claiming.await).map(Arc::new)
}

fn refusals<T>(outcome: Result<Result<T, RestoreDirError>, tokio::task::JoinError>) -> Result<T, Failure> {
    match outcome {
        Ok(Ok(done)) => Ok(done),
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

/// `--delta` is for a cluster and its own backup.
fn check_same_cluster(to: &Path, summary: &BackupSummary) -> Result<(), RestoreDirError> {
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
    let (ours, theirs) = (summary.system_identifier, there.ident.system_id);
    if ours == theirs {
        return Ok(());
    }
    let message = format!("`{}` is another cluster: it has {theirs}, the backup {ours}", to.display());
    Err(RestoreDirError::Refused(message))
}
