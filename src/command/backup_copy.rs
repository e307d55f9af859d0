//! The long middle of a backup: all files but the last few, packed and stored part by part.

use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::backup_parts::{PackedPart, PackedPiece, Packing, Pages};
use super::backup_plan::{PartPlan, plan_parts};
use super::basebackup::{Basebackup, Begun, blocking};
use super::failure::{Failure, FailureKind};
use super::pace::Pace;
use super::progress::Progress;
use crate::disk::DataDir;
use crate::disk::snapshot::{FoundDirectory, FoundFile, Snapshot};
use crate::postgres::backup_files::CONTROL_FILE;
use crate::repo::manifest_entries::PartEntry;
use crate::repo::{BackupId, Generation, RepoError, Repository};
use crate::stream::{Sha256, tar_header};

/// What was copied.
pub struct Copied {
    /// All directories.
    pub directories: Vec<FoundDirectory>,
    /// All files that were planned, but pg_control.
    pub files: Vec<FoundFile>,
    /// The parts, by number.
    pub parts: Vec<StoredPart>,
}

/// A part in the store.
pub struct StoredPart {
    /// For the manifest.
    pub entry: PartEntry,
    /// What it holds.
    pub pieces: Vec<PackedPiece>,
}

/// Copies everything that the snapshot has but pg_control, which comes last.
pub(super) async fn copy(
    settings: &Basebackup,
    repository: &Repository,
    begun: &Begun,
    (data_dir, pages): (&DataDir, Option<Pages>),
    snapshot: Snapshot,
    progress: &Arc<Progress>,
) -> Result<Copied, Failure> {
    let Snapshot { directories, mut files, .. } = snapshot;
    files.retain(|file| file.path.as_bytes() != CONTROL_FILE.as_bytes());
    progress.expect(files.iter().map(|file| file.size).sum());
    let plans = plan_parts(&files.iter().map(|file| file.size).collect::<Vec<u64>>());
    let root = data_dir.path().to_owned();
    let packing = Packing::new(root, files, settings.level, pages, Pace::new(settings.rate), Arc::clone(progress));
    let packing = Arc::new(packing);
    let headers = directory_headers(&directories)?;

    let at_work = Arc::new(Semaphore::new(settings.jobs));
    let parts = stream::iter(plans)
        .map(|plan| {
            let (packing, at_work) = (Arc::clone(&packing), Arc::clone(&at_work));
            let headers = if plan.number == 1 { headers.clone() } else { Vec::new() };
            async move {
                let packed = pack(packing, at_work, plan, headers).await?;
                store(settings, repository, begun, packed).await
            }
        })
        // One more than work at once: a part is on its way while the next is packed.
        .buffer_unordered(settings.jobs + 1)
        .try_collect()
        .await
        .map(in_order)?;
    let packing = Arc::try_unwrap(packing);
    let files = packing.map_err(|_| Failure::new(FailureKind::Internal, "a part is still being packed"))?.files;
    Ok(Copied { directories, files, parts })
}

/// Parts that were stored as each was done: the next shall not wait for a slow one before it.
pub(super) fn in_order(mut parts: Vec<StoredPart>) -> Vec<StoredPart> {
    parts.sort_unstable_by_key(|part| part.entry.part);
    parts
}

fn directory_headers(directories: &[FoundDirectory]) -> Result<Vec<u8>, Failure> {
    let mut headers = Vec::new();
    for FoundDirectory { path, mode } in directories {
        let header = tar_header::directory(path.as_path(), *mode);
        headers.extend(header.map_err(|e| Failure::new(FailureKind::LocalIo, format!("`{path}`: {e}")))?);
    }
    Ok(headers)
}

async fn pack(
    packing: Arc<Packing>,
    at_work: Arc<Semaphore>,
    plan: PartPlan,
    headers: Vec<u8>,
) -> Result<PackedPart, Failure> {
    let permit = at_work.acquire_owned().await;
    blocking(move || {
        let packed = packing.pack(&plan, &headers);
        drop((packing, permit));
        packed
    })
    .await
}

/// Stores a part for the manifest.
pub(super) async fn store(
    settings: &Basebackup,
    repository: &Repository,
    begun: &Begun,
    packed: PackedPart,
) -> Result<StoredPart, Failure> {
    let PackedPart { number, bytes, sha256, pieces } = packed;
    let place = (begun.generation, begun.id, number);
    let entry = put(repository, place, bytes.into(), sha256, settings.retry).await?;
    Ok(StoredPart { entry, pieces })
}

/// Stores a part, and bears faults of the store for as long as `patience`.
pub async fn put(
    repository: &Repository,
    (generation, id, number): (Generation, BackupId, u32),
    bytes: Bytes,
    sha256: Sha256,
    patience: Duration,
) -> Result<PartEntry, Failure> {
    let put = || repository.put_part(generation, id, number, bytes.clone(), sha256);
    patiently(patience, &format!("part {number}"), put).await
}

/// Writes to the store, and bears its faults for as long as `patience`: hours of copying may stand behind it.
pub(super) async fn patiently<T, W: Future<Output = Result<T, RepoError>>>(
    patience: Duration,
    what: &str,
    write: impl FnMut() -> W,
) -> Result<T, Failure> {
    let pauses = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(Duration::from_secs(15))
        .with_jitter()
        .without_max_times();
    // A store that is silent takes its time with each fault, too.
    let mut first_fault = None;
    let goes_on = |error: &RepoError| {
        let since: Instant = *first_fault.get_or_insert_with(Instant::now);
        error.is_temporary() && since.elapsed() < patience
    };
    let writing = write.retry(pauses).when(goes_on);
    Ok(writing.notify(|error, _| tracing::info!("{what}: {error}; trying again")).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{StoreError, StoreErrorKind};
    use tokio::time::sleep;

    #[test]
    fn parts_come_in_the_order_of_their_numbers() {
        let part =
            |part| StoredPart { entry: PartEntry { part, stored: 1, sha256: Sha256([0; 32]) }, pieces: Vec::new() };
        let sorted = in_order([3, 1, 4, 2].map(part).into());
        assert_eq!(sorted.iter().map(|part| part.entry.part).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    /// A store that answers nothing, each time for a minute.
    #[tokio::test(start_paused = true)]
    async fn a_silent_store_is_borne_no_longer_than_one_that_refuses() {
        let fault = || RepoError::from(StoreError::new(StoreErrorKind::Unavailable, "silence".to_owned()));
        let minutes = |each: Duration| async move {
            let begin = Instant::now();
            let write = || async move {
                sleep(each).await;
                Err::<(), _>(fault())
            };
            patiently(Duration::from_secs(300), "a part", write).await.unwrap_err();
            begin.elapsed().as_secs() / 60
        };
        assert_eq!(minutes(Duration::ZERO).await, 5);
        assert!((5..=7).contains(&minutes(Duration::from_secs(60)).await));
    }
}
