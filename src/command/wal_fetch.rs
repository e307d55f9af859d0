//! `wal-fetch`: give PostgreSQL one WAL file, verified, or the proof that there is none.
//!
//! PostgreSQL takes "absent" for the end of the archive, ends recovery and promotes. So absence is said only when it
//! is proven: the store says that the object is missing, the repository's identity is there and names this cluster, and
//! nothing later is there. Everything else is a failure.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, sleep};

use super::RepositorySettings;
use super::bounds::{apart, bounded};
use super::failure::{Failure, FailureKind};
use super::from_tail::FromTail;
use super::prefetch::{Prefetch, PrefetchSettings};
use super::wal_push::facts_of;
use crate::disk::data_dir::ClusterFacts;
use crate::disk::{DataDir, Incoming};
use crate::postgres::{HistoryFile, SegmentName, TimelineId, WalName};
use crate::repo::archive::ReadBounds;
use crate::repo::wal_object::Expected;
use crate::repo::{Absence, Asking, Generation, Repository};
use crate::stream::resume::WORTHWHILE;

/// A file that is wanted.
#[derive(Clone, Debug)]
pub struct WalFetch {
    /// `%f`
    pub name: WalName,
    /// `%p`
    pub path: PathBuf,
    /// Where from.
    pub repository: RepositorySettings,
    /// The data directory, if it is neither the working directory nor the one around the path.
    pub pgdata: Option<PathBuf>,
    /// How long faults are borne without progress.
    pub retry: Duration,
    /// How long a connection may give next to nothing.
    pub stall: Duration,
    /// What is fetched besides.
    pub prefetch: PrefetchSettings,
    /// The operator's word that the archive ends here, though something later is there or this segment is damaged.
    pub accept_end_at: Option<SegmentName>,
}

/// What PostgreSQL can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The file is in its place, verified.
    Restored,
    /// There is no such file: proven.
    Absent,
    /// There is none, by the operator's word.
    AcceptedEnd {
        /// What speaks against it.
        despite: String,
    },
}

/// Runs the command within its bounds.
pub async fn run(fetch: &WalFetch) -> Result<Fetched, Failure> {
    bounded(patiently(fetch), None, None)
        .await
        .map_err(|failure| failure.context(format!("`{}` is not restored", fetch.name)))
}

/// How many tries a damaged object gets: the damage may have happened on the way.
const TRIES_AT_DAMAGE: u32 = 3;
/// How long a gap is looked at again, at most.
const GAP_PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE: u32 = 2;
const REPORT_EVERY: Duration = Duration::from_secs(30);

/// Tries until it succeeds, fails for good, or the budget is used up without progress.
async fn patiently(fetch: &WalFetch) -> Result<Fetched, Failure> {
    let progress = Arc::new(AtomicU64::new(0));
    let last = Arc::new(Mutex::new(None));
    // Apart: reading local files may hang, and then the budget must hold all the same.
    let (wanted, moves, failed) = (fetch.clone(), Arc::clone(&progress), Arc::clone(&last));
    let work = apart(move || async move { try_again_and_again(&wanted, &moves, &failed).await });
    tokio::select! {
        biased;
        done = work => done,
        () = no_progress(fetch.retry, &progress) => {
            let budget = humantime::format_duration(fetch.retry);
            let failure = last.lock().unwrap_or_else(PoisonError::into_inner).take();
            let failure = failure.unwrap_or_else(|| Failure::new(FailureKind::Unavailable, "the store does not answer"));
            Err(Failure { message: format!("{} (tried for {budget})", failure.message), ..failure })
        }
    }
}

async fn no_progress(budget: Duration, progress: &AtomicU64) {
    loop {
        let before = progress.load(Ordering::Relaxed);
        sleep(budget).await;
        if progress.load(Ordering::Relaxed) < before + WORTHWHILE {
            return;
        }
    }
}

async fn try_again_and_again(
    fetch: &WalFetch,
    progress: &Arc<AtomicU64>,
    last: &Mutex<Option<Failure>>,
) -> Result<Fetched, Failure> {
    let pauses =
        ExponentialBuilder::new().with_min_delay(Duration::from_millis(200)).with_max_delay(Duration::from_secs(5));
    let mut pauses = pauses.with_jitter().without_max_times().build();
    let mut damaged = 0;
    let mut gap_seen = None;
    let mut reported = Instant::now();
    loop {
        let failure = match attempt(fetch, progress).await {
            Ok(fetched) => return Ok(fetched),
            Err(failure) => failure,
        };
        let again = match failure.kind {
            FailureKind::Unavailable => true,
            FailureKind::Damaged => {
                damaged += 1;
                damaged < TRIES_AT_DAMAGE
            }
            // Look-ahead stores several segments at once: the later one may have been quicker.
            FailureKind::Gap => {
                let patience = GAP_PATIENCE.min(fetch.retry / 2);
                gap_seen.get_or_insert_with(Instant::now).elapsed() < patience
            }
            _ => false,
        };
        if !again {
            return accept_damage(fetch, failure);
        }
        if reported.elapsed() >= REPORT_EVERY {
            tracing::warn!("`{}`: {failure}; still trying", fetch.name);
            reported = Instant::now();
        } else {
            tracing::info!("`{}`: {failure}; trying again", fetch.name);
        }
        last.lock().unwrap_or_else(PoisonError::into_inner).replace(failure);
        sleep(pauses.next().unwrap_or(Duration::from_secs(5))).await;
    }
}

async fn attempt(fetch: &WalFetch, progress: &Arc<AtomicU64>) -> Result<Fetched, Failure> {
    // Timeline 1 has no past. PostgreSQL asks all the same, last of all at a promotion, when the signal files are gone:
    // a failure then would leave the server on its old timeline.
    if fetch.name == WalName::History(TimelineId::FIRST) {
        return Ok(Fetched::Absent);
    }
    let data_dir = data_dir_of(fetch)?;
    let facts = facts_of(data_dir.as_ref())?;
    let wanted = (fetch.name, fetch.path.as_path());
    let Some(prefetch) = Prefetch::find(&fetch.prefetch, &fetch.repository, wanted, data_dir.as_ref(), facts) else {
        return from_store(fetch, facts, progress).await;
    };
    let place = |e: std::io::Error| cannot_write(fetch, e);
    let handed_over = prefetch.hand_over(&fetch.path).await.map_err(place)?;
    prefetch.go_on(&fetch.prefetch.helper);
    if handed_over {
        return Ok(Fetched::Restored);
    }
    tokio::select! {
        biased;
        handed_over = prefetch.late_hand_over(&fetch.path) => handed_over.map(|()| Fetched::Restored).map_err(place),
        fetched = from_store(fetch, facts, progress) => fetched,
    }
}

async fn from_store(
    fetch: &WalFetch,
    facts: Option<ClusterFacts>,
    progress: &Arc<AtomicU64>,
) -> Result<Fetched, Failure> {
    let repository = fetch.repository.open().await?;
    // Nearly every cluster is in its first generation, and the object's header tells whose it is: one request.
    if let Some(facts) = facts {
        match restore(fetch, &repository, Generation::FIRST, Some(facts), progress).await {
            Ok(true) => return Ok(Fetched::Restored),
            Ok(false) => {}
            Err(failure) if failure.kind == FailureKind::Damaged => {
                // It may be the first generation's object, and this cluster another generation.
                if find_generation(&repository, Some(facts)).await? == Generation::FIRST {
                    return Err(failure);
                }
            }
            Err(failure) => return Err(failure),
        }
    }
    let generation = find_generation(&repository, facts).await?;
    let tried = facts.is_some() && generation == Generation::FIRST;
    if !tried && restore(fetch, &repository, generation, facts, progress).await? {
        return Ok(Fetched::Restored);
    }
    prove_absence(fetch, &repository, generation, facts, progress).await
}

fn data_dir_of(fetch: &WalFetch) -> Result<Option<DataDir>, Failure> {
    DataDir::around(&fetch.path, fetch.pgdata.as_deref()).map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))
}

fn cluster_facts(fetch: &WalFetch) -> Result<Option<ClusterFacts>, Failure> {
    facts_of(data_dir_of(fetch)?.as_ref())
}

pub(super) fn cannot_write(fetch: &WalFetch, error: std::io::Error) -> Failure {
    Failure::new(FailureKind::LocalIo, format!("cannot write `{}`: {error}", fetch.path.display()))
}

/// The identity is read with the same credentials as everything else: it shows that this is the place. Without a data
/// directory the newest generation is meant.
async fn find_generation(repository: &Repository, facts: Option<ClusterFacts>) -> Result<Generation, Failure> {
    if let Some(facts) = facts {
        return Ok(repository.find_generation(facts.ident).await?);
    }
    let identities = repository.read_identities().await?;
    let none = || Failure::new(FailureKind::NoIdentity, "the repository has no generation");
    Ok(identities.newest().ok_or_else(none)?.generation)
}

/// Fetches the file to its place; `false` when the store says that it does not have it.
async fn restore(
    fetch: &WalFetch,
    repository: &Repository,
    generation: Generation,
    facts: Option<ClusterFacts>,
    progress: &Arc<AtomicU64>,
) -> Result<bool, Failure> {
    let expected = Expected {
        name: fetch.name,
        ident: facts.map(|facts| facts.ident),
        segment_size: facts.map(|facts| facts.control.segment_size),
    };
    let place = |e: std::io::Error| cannot_write(fetch, e);
    let incoming = Incoming::create(&fetch.path).map_err(place)?;
    let sink = incoming.writer().map_err(place)?;
    let read = repository.archive(generation).read(expected, sink, &bounds(fetch, progress)).await;
    match read {
        Ok(Some((header, _))) => incoming.commit(header.plain_length).map_err(place).map(|()| true),
        Ok(None) => Ok(false),
        Err(crate::repo::RepoError::Destination(error)) => Err(place(error)),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn bounds(fetch: &WalFetch, progress: &Arc<AtomicU64>) -> ReadBounds {
    ReadBounds { stall: fetch.stall, patience: PATIENCE, progress: Arc::clone(progress), turns: None }
}

async fn prove_absence(
    fetch: &WalFetch,
    repository: &Repository,
    generation: Generation,
    facts: Option<ClusterFacts>,
    progress: &Arc<AtomicU64>,
) -> Result<Fetched, Failure> {
    let asking = Asking {
        ident: facts.map(|facts| facts.ident),
        segment_size: facts.map(|facts| facts.control.segment_size),
        recovering_on: facts.map(|facts| facts.control.timeline),
    };
    let archive = repository.archive(generation);
    let later = match archive.absence_of(fetch.name, &asking, &bounds(fetch, progress)).await? {
        Absence::Proven => return Ok(Fetched::Absent),
        Absence::Unfinished => None,
        Absence::Gap { later } => Some(later),
    };
    let tail = FromTail::join(fetch, &archive, facts, progress).await?;
    // A server that archives right now may have stored this file and a later one since we asked for it.
    if restore(fetch, repository, generation, facts, progress).await? {
        return Ok(Fetched::Restored);
    }
    let ends_here = end_is_accepted(fetch);
    let Some(later) = later else { return tail.map_or(Ok(Fetched::Absent), |tail| tail.hand_over(ends_here)) };
    let despite = format!("it is missing from {}, but `{later}` is there", repository.describe());
    match tail {
        // Its last piece was stored, the whole segment not any more.
        Some(tail) if tail.is_whole() => return tail.hand_over(ends_here),
        Some(tail) if ends_here => {
            tracing::warn!("{despite}: by `--accept-end-at` recovery ends in this segment");
            return tail.hand_over(ends_here);
        }
        _ => {}
    }
    if ends_here {
        return Ok(Fetched::AcceptedEnd { despite });
    }
    Err(Failure::new(FailureKind::Gap, format!("{despite}: there is a gap in the archive")).with_hint(format!(
        "archive it from a server that still has it (`pgark wal-push --backfill`); to end recovery here for good, add \
         `--accept-end-at {}` to restore_command",
        fetch.name
    )))
}

/// Whether a server that ends its archive recovery wants a parent's history that it has itself: told that there is none, it
/// takes its own copy (`RestoreArchivedFile` in `access/transam/xlogarchive.c`), which it fetched before.
pub fn server_has_history(fetch: &WalFetch) -> bool {
    let WalName::History(timeline) = fetch.name else { return false };
    let recovering =
        cluster_facts(fetch).is_ok_and(|facts| facts.is_some_and(|facts| facts.control.in_archive_recovery));
    let own = fetch.path.with_file_name(fetch.name.to_string());
    recovering
        && fetch.path.ends_with("RECOVERYHISTORY")
        && std::fs::read(own).is_ok_and(|bytes| HistoryFile::parse(timeline, &bytes).is_ok())
}

/// The operator may also give up on a damaged segment.
fn accept_damage(fetch: &WalFetch, failure: Failure) -> Result<Fetched, Failure> {
    if failure.kind == FailureKind::Damaged && end_is_accepted(fetch) {
        return Ok(Fetched::AcceptedEnd { despite: failure.message });
    }
    Err(failure)
}

/// PostgreSQL asks for the same position on every timeline of the target's past.
fn end_is_accepted(fetch: &WalFetch) -> bool {
    match (fetch.name, fetch.accept_end_at) {
        (WalName::Segment(wanted), Some(end)) => {
            (wanted.log, wanted.segment) == (end.log, end.segment) && wanted.timeline <= end.timeline
        }
        _ => false,
    }
}
