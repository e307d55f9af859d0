//! `keep`, `unkeep` and `delete`: an operator's own word about one backup or dump.

use serde::Serialize;

use super::bounds::bounded;
use super::expire_delete::Deleter;
use super::failure::{Failure, FailureKind};
use super::keep_dump;
use super::{Circumstances, RepositorySettings};
use crate::repo::dumps::StoredDump;
use crate::repo::keep::Mark;
use crate::repo::policy::before;
use crate::repo::retention::{Deletion, Doomed, GRACE};
use crate::repo::soundness::newest_sound;
use crate::repo::stored_backups::StoredBackup;
use crate::repo::{BackupId, BackupKey, BackupListing, Generation, Holdings, Identity, Repository};
use crate::storage::{Head, Put};

/// What became of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Changed {
    /// It was so before.
    WasSo,
    /// It is now.
    Now,
    /// It would be: a dry run.
    Would,
}

/// Marks a backup or a dump, and says which it is: `expire` leaves it alone from now on, or until a time. A mark that says another time is replaced; one that
/// says the same stays, with its reason.
pub async fn keep(
    repository: &RepositorySettings,
    id: BackupId,
    mark: &Mark,
    circumstances: &Circumstances,
) -> Result<(&'static str, Changed), Failure> {
    if !mark.holds(circumstances.now) {
        let message = "the time until which the backup should be kept is past";
        return Err(Failure::new(FailureKind::Usage, message).with_hint("give a later one to `--until`"));
    }
    let work = async {
        let repository = repository.open().await?;
        match dump_of(&repository, id).await? {
            Some(dump) => Ok(("dump", keep_dump::keep(&repository, &dump, mark, circumstances).await?)),
            None => Ok(("backup", keep_on(&repository, id, mark, circumstances).await?)),
        }
    };
    bounded(work, None, None).await
}

/// A dump of this name, if there is no backup of it.
async fn dump_of(repository: &Repository, id: BackupId) -> Result<Option<StoredDump>, Failure> {
    match find(repository, id).await {
        Err(failure) if failure.kind == FailureKind::Usage => Ok(repository.stored_dump(id).await?),
        found => found.map(|_| None),
    }
}

/// What is about to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// `backup` or `dump`.
    pub what: &'static str,
    /// Bytes of its objects.
    pub bytes: u64,
    /// How many these are.
    pub objects: usize,
}

/// The same on a repository that is open.
pub async fn keep_on(
    repository: &Repository,
    id: BackupId,
    mark: &Mark,
    circumstances: &Circumstances,
) -> Result<Changed, Failure> {
    let (Identity { generation, .. }, backup) = find(repository, id).await?;
    if backup.manifest().is_none() {
        return Err(refused(
            id,
            "has no manifest: it is not finished, or what is left of a dead one",
            "see `pgark list`",
        ));
    }
    let put = || repository.mark(generation, id, circumstances.now, mark, &circumstances.writer);
    let mut changed = Changed::Now;
    if put().await? == Put::Exists {
        let there = repository.read_mark(generation, id).await?;
        if there.is_some_and(|there| there.until == mark.until) {
            changed = Changed::WasSo;
        } else {
            // Objects are created, never changed. What an `expire` deletes in this moment is noticed.
            repository.unkeep(generation, id).await?;
            let created = put().await.map_err(|error| {
                Failure::from(error).context("the mark that was there is taken away, and no new one was written")
            })?;
            if created != Put::Created {
                return Err(refused(id, "was marked by somebody else in this moment", "look at `pgark show`"));
            }
        }
    }
    holds(repository, generation, id).await?;
    Ok(changed)
}

/// Whether a mark that was just written, or found, was in time: looked at in this order it is not deleted if it says so.
pub(super) async fn holds(repository: &Repository, generation: Generation, id: BackupId) -> Result<(), Failure> {
    let note = repository.going(id).await?;
    if repository.list_backups(generation).await?.iter().any(|backup| backup.id == id && backup.manifest().is_some()) {
        let Some((note, written)) = note else { return Ok(()) };
        let mark = repository.layout.backup(generation, id, BackupKey::Keep);
        if let (Head::Found(mark), Some(written)) = (repository.store.head(&mark).await?, written)
            && let Some(Ok(marked)) = mark.modified.map(jiff::Timestamp::try_from)
            && written < before(marked, GRACE)
        {
            // Both by the store's clock: whoever wrote the note is dead.
            return Ok(());
        }
        let hint = format!(
            "look at `pgark list` in a moment; if it is there and nothing deletes any more, delete `{note}` and mark it again"
        );
        return Err(refused(id, "is being deleted, so the mark may come too late", &hint));
    }
    // What nobody can restore need not stay. Nobody was told that this mark holds.
    repository.unkeep(generation, id).await?;
    Err(refused(id, "was deleted in this moment", "see `pgark list`"))
}

/// Takes the mark away, and says of what.
pub async fn unkeep(repository: &RepositorySettings, id: BackupId) -> Result<(&'static str, Changed), Failure> {
    let work = async {
        let repository = repository.open().await?;
        if let Some(dump) = dump_of(&repository, id).await? {
            return Ok(("dump", keep_dump::unkeep(&repository, &dump).await?));
        }
        let (Identity { generation, .. }, backup) = find(&repository, id).await?;
        if !backup.has_mark() {
            return Ok(("backup", Changed::WasSo));
        }
        repository.unkeep(generation, id).await?;
        Ok(("backup", Changed::Now))
    };
    bounded(work, None, None).await
}

/// Deletes a backup or a dump, if `agree` agrees, and says which it was. A backup's WAL is left to `expire`.
pub async fn delete(
    repository: &RepositorySettings,
    id: BackupId,
    dry_run: bool,
    circumstances: &Circumstances,
    agree: impl FnOnce(&Target) -> bool,
) -> Result<(&'static str, Changed), Failure> {
    let work = async {
        let repository = repository.open().await?;
        if dump_of(&repository, id).await?.is_some() {
            return Ok(("dump", keep_dump::delete(&repository, id, dry_run, circumstances, agree).await?));
        }
        let agree = |backup: &BackupListing| {
            agree(&Target { what: "backup", bytes: backup.stored_bytes(), objects: backup.pieces.len() })
        };
        Ok(("backup", delete_on(&repository, id, dry_run, circumstances, agree).await?))
    };
    bounded(work, None, None).await
}

/// The same on a repository that is open.
pub async fn delete_on(
    repository: &Repository,
    id: BackupId,
    dry_run: bool,
    circumstances: &Circumstances,
    agree: impl FnOnce(&BackupListing) -> bool,
) -> Result<Changed, Failure> {
    let (identity, _) = find(repository, id).await?;
    let holdings = repository.holdings(&identity).await?;
    // The present is later than the newest object: nothing looks older than it is.
    let here = circumstances.now;
    let now = holdings.newest().map_or(here, |newest| newest.min(here));
    let backup = deletable(&holdings, id, now)?;
    if dry_run || !agree(backup) {
        return Ok(Changed::Would);
    }
    // An answer may take its time.
    let mut present = repository.holdings(&identity).await?;
    let backup = deletable(&present, id, now)?;
    let mut pieces: Vec<BackupKey> = backup.pieces.iter().map(|piece| piece.key).collect();
    pieces.sort_unstable();
    let deletion = Deletion { what: Doomed::Backup(id, pieces), bytes: backup.stored_bytes(), reason: "by hand" };
    let mut deleter = Deleter::new(repository, JOBS);
    let stands = |present: &Holdings| deletable(present, id, now).is_ok();
    deleter.backup(&mut present, &deletion, (now, circumstances), stands).await;
    match deleter.failed.first() {
        None if deleter.spared.is_empty() => Ok(Changed::Now),
        None => Err(deletable(&present, id, now).err().unwrap_or_else(|| {
            let what = "came into use while it was being deleted: its manifest is gone, its parts stay";
            refused(id, what, "`pgark expire` collects the parts when nothing uses them any more")
        })),
        Some(failed) => {
            let message = format!("`{}` was not deleted: {}", failed.key, failed.reason);
            Err(Failure::new(failed.kind, message))
        }
    }
}

/// Deletions at once.
const JOBS: usize = 16;

/// The generation that has this backup, or what is left of it.
async fn find(repository: &Repository, id: BackupId) -> Result<(Identity, BackupListing), Failure> {
    for identity in repository.read_identities().await?.all().iter().rev() {
        let backups = repository.list_backups(identity.generation).await?;
        if let Some(found) = backups.into_iter().find(|backup| backup.id == id) {
            return Ok((identity.clone(), found));
        }
    }
    Err(refused(id, "is not in the repository", "see `pgark list`"))
}

fn deletable(holdings: &Holdings, id: BackupId, now: jiff::Timestamp) -> Result<&BackupListing, Failure> {
    let Some(StoredBackup { listing: backup, .. }) = holdings.inventory.backup(id) else {
        return Err(refused(id, "is not in the repository", "see `pgark list`"));
    };
    if holdings.mark_at(id, now).is_some() {
        return Err(refused(
            id,
            "is marked as one that must stay",
            &format!("`pgark unkeep {id}` takes the mark away"),
        ));
    }
    let in_use = |held: &&crate::repo::lease::Held| {
        held.is_valid(now) && held.lease.as_ref().is_none_or(|lease| lease.backup == id)
    };
    if let Some(held) = holdings.leases.iter().find(in_use) {
        let by = held.lease.as_ref().map_or("somebody", |lease| &lease.writer);
        return Err(refused(
            id,
            &format!("is in use by {by}"),
            &format!("if that is not so any more, delete `{}`", held.key),
        ));
    }
    let mut newest = newest_sound(&holdings.inventory);
    let mut why = "is the newest backup of its generation that can be restored";
    if newest.is_empty() {
        why = "is the newest whole backup of its generation, and none can be restored as it is";
        let with_manifest = holdings.inventory.backups.iter().filter_map(|backup| {
            let manifest = backup.listing.manifest()?;
            Some((manifest.modified, backup.id()))
        });
        newest.extend(with_manifest.max().map(|(_, id)| id));
    }
    if newest.contains(&id) {
        return Err(refused(id, why, "take another one first"));
    }
    let young = |backup: &BackupListing| {
        let written = backup.pieces.iter().map(|piece| piece.modified);
        written.into_iter().any(|written| written.is_none_or(|written| written >= before(now, GRACE)))
    };
    if backup.manifest().is_none() && young(backup) {
        return Err(refused(id, "may still be running", "what a dead backup left can be deleted after a day"));
    }
    Ok(backup)
}

fn refused(id: BackupId, why: &str, hint: &str) -> Failure {
    Failure::new(FailureKind::Usage, format!("backup `{id}` {why}")).with_hint(hint)
}
