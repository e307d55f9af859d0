//! Deleting: several objects at once, manifest first, going on after errors.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::time::Instant;

use super::failure::{Failure, FailureKind};
use crate::repo::retention::Deletion;
use crate::repo::{Generation, Repository};
use crate::storage::object_store::Unfinished;
use crate::storage::{ObjectKey, StoreError, StoreErrorKind};

/// Something that could not be deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailedDeletion {
    /// Its key.
    pub key: String,
    /// Why.
    pub reason: String,
    #[serde(skip)]
    pub(super) kind: FailureKind,
}

/// Deletes, and remembers.
pub struct Deleter<'a> {
    repository: &'a Repository,
    jobs: usize,
    /// Objects that are gone.
    pub deleted: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What went wrong.
    pub failed: Vec<FailedDeletion>,
    told: Instant,
}

/// A role without the right to delete is refused for every object: after so many it is believed.
const REFUSALS: usize = 10;
/// How often long work says how far it is.
const TELL: Duration = Duration::from_secs(30);

impl<'a> Deleter<'a> {
    /// Deletes so many at once.
    pub fn new(repository: &'a Repository, jobs: usize) -> Self {
        let failed = Vec::new();
        Deleter { repository, jobs: jobs.max(1), deleted: 0, bytes: 0, failed, told: Instant::now() }
    }

    /// Whether the store refuses everything.
    pub fn has_given_up(&self) -> bool {
        let refused = self.failed.iter().filter(|failed| failed.kind == FailureKind::Denied);
        self.deleted == 0 && refused.count() >= REFUSALS
    }

    /// A backup, or what is left of one. The first object goes alone: once the manifest is gone there is no backup any more. If it
    /// stays, so does the rest.
    pub async fn backup(&mut self, generation: Generation, deletion: &Deletion) {
        let mut keys = deletion.keys(&self.repository.layout, generation).into_iter().map(|key| (key, 0));
        let Some(first) = keys.next() else { return };
        let failures = self.failed.len();
        self.sized(vec![first]).await;
        if self.failed.len() == failures && !self.has_given_up() {
            self.sized(keys.collect()).await;
            if self.failed.len() == failures {
                self.bytes += deletion.bytes;
            }
        }
    }

    /// Objects with their bytes, the first ones first.
    pub async fn sized(&mut self, keys: Vec<(ObjectKey, u64)>) {
        if self.has_given_up() {
            return;
        }
        let store = &self.repository.store;
        let refusals = AtomicU64::new(0);
        let outcomes = keys.into_iter().map(|(key, bytes)| {
            let refusals = &refusals;
            async move {
                if refusals.load(Ordering::Relaxed) >= REFUSALS as u64 {
                    return None;
                }
                let outcome = store.delete(&key).await;
                if outcome.as_ref().is_err_and(|error| error.kind == StoreErrorKind::Denied) {
                    refusals.fetch_add(1, Ordering::Relaxed);
                }
                Some((key, bytes, outcome))
            }
        });
        let mut outcomes = stream::iter(outcomes).buffer_unordered(self.jobs);
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Some((_, bytes, Ok(()))) => {
                    self.deleted += 1;
                    self.bytes += bytes;
                }
                Some((key, _, Err(error))) => self.failed.push(failed(&key.to_string(), error)),
                None => {}
            }
            if self.told.elapsed() >= TELL {
                self.told = Instant::now();
                tracing::info!("{} objects deleted, {} failed", self.deleted, self.failed.len());
            }
        }
    }

    /// An upload that nobody will finish.
    pub async fn abandon(&mut self, unfinished: &Unfinished) {
        if self.has_given_up() {
            return;
        }
        match self.repository.store.abandon(unfinished).await {
            Ok(()) => self.deleted += 1,
            Err(error) => self.failed.push(failed(&unfinished.name, error)),
        }
    }
}

fn failed(key: &str, error: StoreError) -> FailedDeletion {
    let lacks = match error.kind {
        StoreErrorKind::Denied => "the role lacks the right to delete (s3:DeleteObject; of a directory, to write): ",
        _ => "",
    };
    let reason = format!("{lacks}{error}");
    FailedDeletion { key: key.to_owned(), reason, kind: Failure::from(error).kind }
}
