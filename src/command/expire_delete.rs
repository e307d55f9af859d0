//! Deleting: several objects at once, manifest first, going on after errors.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::Circumstances;
use super::failure::{Failure, FailureKind};
use crate::repo::dump_retention::{DoomedDump, DumpPlan, HeldDumps};
use crate::repo::retention::{Deletion, Doomed};
use crate::repo::{BackupId, Holdings, RepoError, Repository};
use crate::storage::object_store::Unfinished;
use crate::storage::{ObjectKey, StoreErrorKind};

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
    /// Backups that were named in the last moment.
    pub spared: Vec<BackupId>,
    /// Dumps that were.
    pub spared_dumps: Vec<BackupId>,
    told: Instant,
}

/// A role without the right to delete is refused for every object: after so many it is believed.
const REFUSALS: usize = 10;
/// How often long work says how far it is.
const TELL: Duration = Duration::from_secs(30);

impl<'a> Deleter<'a> {
    /// Deletes so many at once.
    pub fn new(repository: &'a Repository, jobs: usize) -> Self {
        let (failed, spared, spared_dumps) = (Vec::new(), Vec::new(), Vec::new());
        let told = Instant::now();
        Deleter { repository, jobs: jobs.max(1), deleted: 0, bytes: 0, failed, spared, spared_dumps, told }
    }

    /// Whether the store refuses everything.
    pub fn has_given_up(&self) -> bool {
        let refused = self.failed.iter().filter(|failed| failed.kind == FailureKind::Denied);
        self.deleted == 0 && refused.count() >= REFUSALS
    }

    /// A backup, or what is left of one, unless it is named in the last moment.
    ///
    /// A note says that it is going. Then comes the last look, and `stands` says whether it is still to go. The manifest goes
    /// first and alone: once it is gone there is no backup any more, and if it stays, so does the rest. A restore that has read
    /// it in time holds a lease by then: for that it is looked once more, and what is named stays as remains for a later run.
    pub async fn backup(
        &mut self,
        holdings: &mut Holdings,
        deletion: &Deletion,
        (now, circumstances): (Timestamp, &Circumstances),
        stands: impl Fn(&Holdings) -> bool,
    ) {
        let (Doomed::Backup(id, _) | Doomed::Remains(id, _)) = &deletion.what else { return };
        if self.has_given_up() {
            return;
        }
        let first = deletion.keys(&self.repository.layout, holdings.generation()).into_iter().next();
        let first = first.map(|key| key.to_string()).unwrap_or_default();
        let note = match self.repository.announce(*id, circumstances.now, &circumstances.writer).await {
            Ok(note) => note,
            Err(error) => return self.failed.push(failed(&first, error.into())),
        };
        let failures = self.failed.len();
        let done = self.noted(holdings, deletion, (*id, note.is_some()), now, stands).await;
        // After a failure nobody knows whether the manifest is gone, or will be: the note stays.
        if let Some(note) = note.filter(|_| self.failed.len() == failures)
            && let Err(error) = self.repository.store.delete(&note).await
        {
            tracing::warn!("`{note}` is left behind: until it is a day old `pgark keep {id}` is refused ({error})");
        }
        if let Err(error) = done {
            self.failed.push(failed(&first, error.into()));
        }
    }

    async fn noted(
        &mut self,
        holdings: &mut Holdings,
        deletion: &Deletion,
        (id, noted): (BackupId, bool),
        now: Timestamp,
        stands: impl Fn(&Holdings) -> bool,
    ) -> Result<(), RepoError> {
        self.repository.look_at(holdings, id).await?;
        if !stands(holdings) {
            self.spared.push(id);
            return Ok(());
        }
        let failures = self.failed.len();
        let layout = &self.repository.layout;
        let first = deletion.keys(layout, holdings.generation()).into_iter().take(1).map(|key| (key, 0)).collect();
        self.sized(first).await;
        if self.failed.len() > failures || self.has_given_up() {
            return Ok(());
        }
        self.repository.look_at(holdings, id).await?;
        let left = holdings.inventory.backup(id).map(|backup| &backup.listing);
        // Whoever marked it meanwhile has read the note, or finds no manifest: nobody was told that such a mark holds.
        if holdings.is_leased(id, now) || (!noted && holdings.mark_at(id, now).is_some()) {
            self.spared.push(id);
            return Ok(());
        }
        let left = left.into_iter().flat_map(|backup| &backup.pieces);
        let left = left.map(|piece| (self.repository.layout.backup(holdings.generation(), id, piece.key), 0));
        self.sized(left.collect()).await;
        if self.failed.len() == failures {
            self.bytes += deletion.bytes;
        }
        Ok(())
    }

    /// A dump, or what is left of one, unless it is wanted in the last moment: as with backups, a note says that it is going, then comes
    /// the last look, and the manifest goes first and alone.
    pub async fn dump(
        &mut self,
        doomed: &DoomedDump,
        within: Option<Duration>,
        (now, circumstances): (Timestamp, &Circumstances),
    ) {
        let stands = |held: &HeldDumps| {
            DumpPlan::make(held, within, now)
                .delete
                .iter()
                .any(|later| (later.id, later.is_dump) == (doomed.id, doomed.is_dump))
        };
        self.noted_dump(doomed, circumstances, stands).await;
    }

    /// The same, if `stands` still says so after the note.
    pub async fn noted_dump(
        &mut self,
        doomed: &DoomedDump,
        circumstances: &Circumstances,
        stands: impl Fn(&HeldDumps) -> bool,
    ) {
        if self.has_given_up() {
            return;
        }
        let repository = self.repository;
        let mut keys = doomed.pieces.iter().map(|piece| repository.layout.dump(doomed.id, *piece));
        let Some(first) = keys.next() else { return };
        let looked = async {
            let note = repository.announce(doomed.id, circumstances.now, &circumstances.writer).await?;
            Ok::<_, RepoError>((note, repository.held_dumps().await?))
        };
        let (note, held) = match looked.await {
            Ok(looked) => looked,
            Err(error) => return self.failed.push(failed(first.as_str(), error.into())),
        };
        let failures = self.failed.len();
        if stands(&held) {
            self.sized(vec![(first, 0)]).await;
            if self.failed.len() == failures && !self.has_given_up() {
                self.sized(keys.map(|key| (key, 0)).collect()).await;
            }
            if self.failed.len() == failures {
                self.bytes += doomed.bytes;
            }
        } else {
            self.spared_dumps.push(doomed.id);
        }
        // After a failure nobody knows whether the manifest is gone, or will be: the note stays.
        if let Some(note) = note.filter(|_| self.failed.len() == failures)
            && let Err(error) = repository.store.delete(&note).await
        {
            tracing::warn!(
                "`{note}` is left behind: until it is a day old `pgark keep {}` is refused ({error})",
                doomed.id
            );
        }
    }

    /// Objects with their bytes, the first ones first.
    pub async fn sized(&mut self, keys: Vec<(ObjectKey, u64)>) {
        if self.has_given_up() {
            return;
        }
        let store = &self.repository.store;
        // Of a role that may delete some objects everything is asked.
        let (refusals, may_delete) = (AtomicU64::new(0), AtomicBool::new(self.deleted > 0));
        let outcomes = keys.into_iter().map(|(key, bytes)| {
            let (refusals, may_delete) = (&refusals, &may_delete);
            async move {
                if refusals.load(Ordering::Relaxed) >= REFUSALS as u64 && !may_delete.load(Ordering::Relaxed) {
                    return None;
                }
                let outcome = store.delete(&key).await;
                match &outcome {
                    Ok(()) => may_delete.store(true, Ordering::Relaxed),
                    Err(error) if error.kind == StoreErrorKind::Denied => {
                        refusals.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) => {}
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
                Some((key, _, Err(error))) => self.failed.push(failed(&key.to_string(), error.into())),
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
            Err(error) => self.failed.push(failed(&unfinished.name, error.into())),
        }
    }
}

fn failed(key: &str, error: Failure) -> FailedDeletion {
    let lacks = match error.kind {
        FailureKind::Denied => "the role lacks the right to delete (s3:DeleteObject; of a directory, to write): ",
        _ => "",
    };
    let reason = format!("{lacks}{error}");
    FailedDeletion { key: key.to_owned(), reason, kind: error.kind }
}
