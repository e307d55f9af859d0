//! The notes that `expire` leaves below `record/`: of its runs, a bounded number, and those of deletions whose run died.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::Circumstances;
use super::failure::{Failure, FailureKind};
use crate::repo::policy::before;
use crate::repo::retention::GRACE;
use crate::repo::{RepoError, Repository};
use crate::storage::object_store::Visit;
use crate::storage::{ObjectKey, ObjectStoreExt, UserMetadata};

const KIND: &str = "expire";
/// Of so many runs the notes stay.
const RUNS: usize = 100;

/// Where a run notes that it has begun, or is done.
pub(super) fn record_key(
    repository: &Repository,
    circumstances: &Circumstances,
    what: &str,
) -> Result<ObjectKey, Failure> {
    let name = format!("{}-{}-{what}.json", circumstances.now.as_nanosecond(), circumstances.writer.pid);
    repository.layout.record(KIND, &name).map_err(|e| Failure::new(FailureKind::Usage, e.to_string()))
}

/// Leaves a note of what was done. Nothing depends on it, so that a role that cannot write loses nothing else.
pub(super) async fn record(repository: &Repository, circumstances: &Circumstances, content: &impl Serialize) {
    let (Ok(key), Ok(json)) = (record_key(repository, circumstances, "done"), serde_json::to_vec(content)) else {
        return;
    };
    if let Err(error) = repository.store.put(&key, json.into(), &UserMetadata::new()).await {
        tracing::info!("no record of this run was written: {error}");
    }
}

/// A run that deletes nothing leaves nothing behind.
pub(super) async fn forget(repository: &Repository, circumstances: &Circumstances) {
    if let Ok(key) = record_key(repository, circumstances, "begun")
        && let Err(error) = repository.store.delete(&key).await
    {
        tracing::info!("`{key}` is left behind: {error}");
    }
}

/// Deletes the notes of all but the newest runs, and of deletions that ended with their run.
pub(super) async fn tidy(repository: &Repository, now: Timestamp) {
    let tidied = async {
        let mut old = old_runs(repository).await?;
        old.extend(repository.old_notes(before(now, GRACE)).await?);
        for key in old {
            repository.store.delete(&key).await?;
        }
        repository.tidy_runs(now).await?;
        repository.tidy_claims().await
    };
    if let Err(error) = tidied.await {
        tracing::info!("old records are left behind: {error}");
    }
}

async fn old_runs(repository: &Repository) -> Result<Vec<ObjectKey>, RepoError> {
    let prefix = repository.layout.records(KIND);
    let mut runs: BTreeMap<(u128, u32), BTreeSet<ObjectKey>> = BTreeMap::new();
    repository
        .store
        .visit_after(&prefix, None, 1000, |listed| {
            let run = listed.name.strip_prefix(prefix.as_str()).and_then(run_of);
            if let (Some(run), Ok(key)) = (run, listed.name.parse()) {
                runs.entry(run).or_default().insert(key);
            }
            Visit::More
        })
        .await?;
    let old = runs.len().saturating_sub(RUNS);
    Ok(runs.into_values().take(old).flatten().collect())
}

/// The time and the process of a run; `None` for what is no note of one.
fn run_of(name: &str) -> Option<(u128, u32)> {
    let mut words = name.strip_suffix(".json")?.splitn(3, '-');
    let run = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    matches!(words.next()?, "begun" | "done").then_some(run)
}
