//! `keep`, `unkeep` and `delete` of a logical dump.

use super::Circumstances;
use super::expire_delete::Deleter;
use super::failure::{Failure, FailureKind};
use super::keep::{Changed, Target};
use crate::repo::dump_retention::{DoomedDump, HeldDumps};
use crate::repo::dumps::StoredDump;
use crate::repo::keep::Mark;
use crate::repo::layout::DumpKey;
use crate::repo::policy::before;
use crate::repo::retention::GRACE;
use crate::repo::{BackupId, Repository};
use crate::storage::{Head, Put};

/// Marks a dump, as `keep` does a backup.
pub(super) async fn keep(
    repository: &Repository,
    dump: &StoredDump,
    mark: &Mark,
    circumstances: &Circumstances,
) -> Result<Changed, Failure> {
    let id = dump.id();
    if dump.listing.manifest().is_none() {
        let why = "has no manifest: it is not finished, or what is left of a dead one";
        return Err(refused(id, why, "see `pgark list`"));
    }
    let put = || repository.mark_dump(id, circumstances.now, mark, &circumstances.writer);
    let mut changed = Changed::Now;
    if put().await? == Put::Exists {
        if repository.read_dump_mark(id).await?.is_some_and(|there| there.until == mark.until) {
            changed = Changed::WasSo;
        } else {
            // Objects are created, never changed. What an `expire` deletes in this moment is noticed.
            repository.unkeep_dump(id).await?;
            let created = put().await.map_err(|error| {
                Failure::from(error).context("the mark that was there is taken away, and no new one was written")
            })?;
            if created != Put::Created {
                return Err(refused(id, "was marked by somebody else in this moment", "look at `pgark show`"));
            }
        }
    }
    holds(repository, id).await?;
    Ok(changed)
}

/// Whether the mark was in time: the deletion's note first, then the manifest.
async fn holds(repository: &Repository, id: BackupId) -> Result<(), Failure> {
    let note = repository.going(id).await?;
    let key = repository.layout.dump(id, DumpKey::Manifest);
    if let Head::Found(_) = repository.store.head(&key).await? {
        let Some((note, written)) = note else { return Ok(()) };
        let mark = repository.layout.dump(id, DumpKey::Keep);
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
    repository.unkeep_dump(id).await?;
    Err(refused(id, "was deleted in this moment", "see `pgark list`"))
}

/// Takes the mark away.
pub(super) async fn unkeep(repository: &Repository, dump: &StoredDump) -> Result<Changed, Failure> {
    if !dump.listing.has_mark() {
        return Ok(Changed::WasSo);
    }
    repository.unkeep_dump(dump.id()).await?;
    Ok(Changed::Now)
}

/// Deletes a dump, if `agree` agrees.
pub(super) async fn delete(
    repository: &Repository,
    id: BackupId,
    dry_run: bool,
    circumstances: &Circumstances,
    agree: impl FnOnce(&Target) -> bool,
) -> Result<Changed, Failure> {
    let held = repository.held_dumps().await?;
    // The present is later than the newest object: nothing looks older than it is.
    let here = circumstances.now;
    let now = held.newest().map_or(here, |newest| newest.min(here));
    let dump = deletable(&held, id, now)?;
    let target = Target { what: "dump", bytes: dump.listing.stored_bytes(), objects: dump.listing.pieces.len() };
    if dry_run || !agree(&target) {
        return Ok(Changed::Would);
    }
    let mut pieces: Vec<DumpKey> = dump.listing.pieces.iter().map(|piece| piece.key).collect();
    pieces.sort_unstable_by_key(|piece| (*piece != DumpKey::Manifest, *piece));
    let is_dump = dump.listing.manifest().is_some();
    let doomed = DoomedDump { id, is_dump, pieces, bytes: target.bytes, reason: "by hand" };
    let mut deleter = Deleter::new(repository, JOBS);
    // An answer may take its time.
    deleter.noted_dump(&doomed, circumstances, |held| deletable(held, id, now).is_ok()).await;
    match deleter.failed.first() {
        None if deleter.spared_dumps.is_empty() => Ok(Changed::Now),
        None => Err(refused(id, "was marked, or became the newest, in this moment", "look at `pgark list`")),
        Some(failed) => {
            let message = format!("`{}` was not deleted: {}", failed.key, failed.reason);
            Err(Failure::new(failed.kind, message))
        }
    }
}

/// Deletions at once.
const JOBS: usize = 16;

fn deletable(held: &HeldDumps, id: BackupId, now: jiff::Timestamp) -> Result<&StoredDump, Failure> {
    let Some(dump) = held.dumps.iter().find(|dump| dump.id() == id) else {
        return Err(refused(id, "is not in the repository", "see `pgark list`"));
    };
    if held.mark_at(id, now).is_some() {
        let hint = format!("`pgark unkeep {id}` takes the mark away");
        return Err(refused(id, "is marked as one that must stay", &hint));
    }
    let whole = held.dumps.iter().filter(|dump| dump.summary().is_some());
    let newest = whole.max_by_key(|dump| (dump.listing.manifest().and_then(|manifest| manifest.modified), dump.id()));
    if newest.is_some_and(|newest| newest.id() == id) {
        return Err(refused(id, "is the newest dump that can be restored", "take another one first"));
    }
    let mut written = dump.listing.pieces.iter().map(|piece| piece.modified);
    let is_young = written.any(|written| written.is_none_or(|written| written >= before(now, GRACE)));
    if dump.listing.manifest().is_none() && is_young {
        return Err(refused(id, "may still be running", "what a dead dump left can be deleted after a day"));
    }
    Ok(dump)
}

fn refused(id: BackupId, why: &str, hint: &str) -> Failure {
    Failure::new(FailureKind::Usage, format!("dump `{id}` {why}")).with_hint(hint)
}
