//! Look-ahead: while `wal-push` archives its own segment, it archives the next finished ones beside it.
//!
//! PostgreSQL's archiver hands over one file after the other, so a call costs at least a round trip to the store. What was stored
//! ahead is remembered in a note; the call for that file finds the note and returns. A note that is lost or wrong only means that
//! the work is done again.
//!
//! Nothing is stored ahead before the own segment is durable, nor past a segment that somebody has stored already: where two servers
//! write the same timeline, the one that comes second stops at the first segment in which they differ, as without look-ahead.

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::TryFutureExt;
use futures_util::future::{join, join_all};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::Circumstances;
use super::failure::Failure;
use super::wal_push::{Companion, Opened, Packing, WalPush, packed};
use crate::disk::archived_note::{self, ArchivedNote, Waiting};
use crate::disk::data_dir::ClusterFacts;
use crate::disk::place_note::{PlaceNote, PlaceSought};
use crate::disk::{DataDir, Spool};
use crate::postgres::{ClusterIdent, SegmentName, TimelineId, WalName};
use crate::repo::wal_object::WalObject;
use crate::repo::{Archived, Generation, WalArchive};

/// How far to look.
#[derive(Clone, Debug)]
pub struct LookAheadSettings {
    /// So many segments; 0: none.
    pub segments: usize,
    /// Files that are read and compressed at once, the own one among them.
    pub jobs: usize,
    /// Where notes are kept; `None`: at the default place.
    pub spool: Option<PathBuf>,
}

/// What is archived besides the own segment.
pub(super) struct LookAhead {
    spool: Spool,
    repository: String,
    pg_wal: PathBuf,
    /// Of the own segment.
    ident: ClusterIdent,
    /// The same.
    timeline: TimelineId,
    segments: Vec<SegmentName>,
    facts: ClusterFacts,
    level: i32,
    circumstances: Circumstances,
    jobs: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    /// KiB of the largest packed object up to now.
    largest: AtomicUsize,
    /// Where the own segment belongs, as nearly always: places are looked at there while it is being found out.
    likely: watch::Sender<Option<WalArchive>>,
    /// Where it does belong.
    place: watch::Sender<Option<WalArchive>>,
    /// Of each segment, whether its place is free, once it is known.
    free: watch::Sender<Vec<Option<bool>>>,
    /// Whether the store is so far away that all places are looked at at once.
    far: watch::Sender<bool>,
    /// Whether the own segment is durable.
    durable: watch::Sender<bool>,
}

/// KiB that packed objects of other segments may take; those that still grow are as many as there are jobs.
const MEMORY: usize = 32 << 10;
/// A store that takes longer than this for a look is far away.
const NEAR: Duration = Duration::from_millis(20);
/// How long others may go on at least when the own segment is durable.
const LEAST_PATIENCE: Duration = Duration::from_millis(500);

impl LookAhead {
    /// Looks for segments that PostgreSQL will hand over next. `None`: there is nothing to gain, or nowhere to remember it.
    pub(super) fn find(
        push: &WalPush,
        file: &Opened,
        data_dir: Option<&DataDir>,
        facts: Option<ClusterFacts>,
        circumstances: &Circumstances,
    ) -> Option<Self> {
        let settings = &push.settings.look_ahead;
        let (WalName::Segment(own), Some(data_dir), Some(facts)) = (file.name, data_dir, facts) else { return None };
        let pg_wal = push.path.parent()?;
        // Only the archiver's files have a status; a call by hand is about one file.
        let status = pg_wal.join("archive_status");
        if settings.segments == 0 || !status.join(format!("{own}.ready")).exists() {
            return None;
        }
        let repository = push.settings.repository.place();
        let spool = Spool::open(settings.spool.as_deref(), &repository, data_dir, "archived");
        let spool = spool.inspect_err(|error| tracing::info!("no look-ahead: {error}")).ok()?;
        let segments = next_ready(&status, own, settings.segments);
        let segments = segments.inspect_err(|error| tracing::info!("no look-ahead: {error}")).unwrap_or_default();
        Some(LookAhead {
            spool,
            repository,
            pg_wal: pg_wal.to_owned(),
            ident: file.ident,
            timeline: own.timeline,
            free: watch::Sender::new(vec![None; segments.len()]),
            segments,
            facts,
            level: push.settings.level,
            circumstances: circumstances.clone(),
            jobs: Arc::new(Semaphore::new(settings.jobs)),
            memory: Arc::new(Semaphore::new(MEMORY)),
            largest: AtomicUsize::new(0),
            likely: watch::Sender::new(None),
            place: watch::Sender::new(None),
            far: watch::Sender::new(false),
            durable: watch::Sender::new(false),
        })
    }

    /// Whether an earlier call left word that it archived exactly this file. The word is taken only once.
    pub(super) fn has_archived(&self, file: &Opened) -> bool {
        let note = ArchivedNote::find(&self.spool, &self.waiting(file), self.circumstances.now);
        self.spool.remove(&file.name.to_string());
        note.is_some()
    }

    /// The own segment's share of the processors.
    pub(super) fn job(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.jobs).try_acquire_owned().ok()
    }

    /// The own segment is being archived there, unless it turns out to belong elsewhere.
    pub(super) fn likely(&self, place: WalArchive) {
        self.likely.send_replace(Some(place));
    }

    /// The own segment says where all of them belong.
    pub(super) fn found(&self, place: &WalArchive) {
        self.place.send_replace(Some(place.clone()));
    }

    /// The generation of the own segment's cluster and timeline, if the store has told it a moment ago.
    pub(super) fn remembered_place(&self, history: Option<&Companion>) -> Option<Generation> {
        PlaceNote::find(&self.spool, self.sought(history), self.circumstances.now)
            .map(|note| Generation(note.generation))
    }

    /// The store has just told it. It is remembered where more calls are to follow.
    pub(super) fn remember_place(&self, history: Option<&Companion>, generation: Generation) {
        if !self.segments.is_empty() {
            let note = PlaceNote::new(self.sought(history), generation.0, self.circumstances.now);
            note.leave(&self.spool).unwrap_or_else(|error| tracing::info!("no note of the place: {error}"));
        }
    }

    fn sought(&self, history: Option<&Companion>) -> PlaceSought<'_> {
        let (timeline, ident) = (self.timeline, self.ident);
        PlaceSought { repository: &self.repository, ident, timeline, history: history.map(Companion::sha256) }
    }

    /// Does `own`, and others beside it. When it is done no other file is begun; when it failed, all is dropped at once.
    pub(super) async fn beside<T>(&self, own: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let begun = Instant::now();
        let own = own.inspect_err(|_| PlaceNote::forget(&self.spool, self.timeline));
        tokio::pin!(own);
        let each = self.segments.iter().enumerate().map(|(index, segment)| self.archive(index, *segment));
        let mut others = pin!(join(join_all(each), self.watch_distance()));
        let (done, all) = tokio::select! {
            biased;
            done = &mut own => (done?, false),
            _ = &mut others => ((&mut own).await?, true),
        };
        self.durable.send_replace(true);
        if !all {
            // A store that took the own segment in this time takes those that are under way in as much.
            let patience = begun.elapsed().max(LEAST_PATIENCE);
            timeout(patience, others).await.ok();
        }
        archived_note::sweep(&self.spool);
        Ok(done)
    }

    /// Finds out whether the store is far away, unless the first answer comes soon.
    async fn watch_distance(&self) {
        let first_answer = async {
            once_known(&self.likely).await;
            let answered = |free: &Vec<Option<bool>>| free.iter().any(Option::is_some);
            timeout(NEAR, self.free.subscribe().wait_for(answered)).await.is_ok()
        };
        let mut durable = self.durable.subscribe();
        tokio::select! {
            soon = first_answer => { self.far.send_replace(!soon); }
            _ = durable.wait_for(|durable| *durable) => {}
        }
    }

    /// What goes wrong here is told by the call for that file.
    async fn archive(&self, index: usize, segment: SegmentName) {
        if let Err(failure) = self.try_archive(index, segment).await {
            tracing::debug!("`{segment}` is not archived ahead: {failure}");
        }
        // Nobody goes past a segment of which nothing is known.
        self.found_free(index, false);
    }

    async fn try_archive(&self, index: usize, segment: SegmentName) -> Result<(), Failure> {
        let name = WalName::Segment(segment);
        let file = Opened::open(&self.pg_wal.join(name.to_string()), name, Some(self.facts))?;
        let waiting = self.waiting(&file);
        if ArchivedNote::find(&self.spool, &waiting, self.circumstances.now).is_some() {
            self.found_free(index, true);
            return Ok(());
        }
        let (begin, begun) = oneshot::channel();
        let (object, place) = join(self.pack(index, file, begin), self.look(index, name, begun)).await;
        let (Some((object, _memory)), Some(archive)) = (object?, place?) else { return Ok(()) };
        if !self.way_is_free(index).await || self.durable.subscribe().wait_for(|durable| *durable).await.is_err() {
            return Ok(());
        }
        // What is not the whole segment, and a conflict, is told by the file's own call.
        if !object.is(name) {
            return Ok(());
        }
        if let Archived::Created | Archived::AlreadyThere = archive.put(name, &object).await? {
            let generation = archive.generation.to_string();
            let note = ArchivedNote::new(waiting, generation, object.header.sha256, self.circumstances.now);
            note.leave(&self.spool).unwrap_or_else(|error| tracing::info!("no note of `{name}`: {error}"));
        }
        Ok(())
    }

    /// Compresses a segment when its turn comes, and says so through `begin`. `None`: there is no room, or no sense in it.
    async fn pack(
        &self,
        index: usize,
        file: Opened,
        begin: oneshot::Sender<()>,
    ) -> Result<Option<(WalObject, OwnedSemaphorePermit)>, Failure> {
        let Ok(job) = Arc::clone(&self.jobs).acquire_owned().await else { return Ok(None) };
        let room = self.memory.available_permits() >= self.largest.load(Ordering::Relaxed);
        if *self.durable.borrow() || !room || self.way_is_barred(index) {
            return Ok(None);
        }
        begin.send(()).ok();
        self.keep_packed(file.pack(self.level, &self.circumstances, None).packing, job).await
    }

    /// Waits until a segment is packed; `job` is given back when there is room to keep it. No room: it is dropped, for there will be
    /// none before the own segment is durable, and nothing is begun after that.
    async fn keep_packed(
        &self,
        packing: Packing,
        job: OwnedSemaphorePermit,
    ) -> Result<Option<(WalObject, OwnedSemaphorePermit)>, Failure> {
        let object = packed(packing).await?;
        // One that is larger than all the room goes alone.
        let size = kib(object.bytes.len()).min(MEMORY);
        self.largest.fetch_max(size, Ordering::Relaxed);
        let memory = Arc::clone(&self.memory).try_acquire_many_owned(size as u32);
        drop(job);
        Ok(memory.ok().map(|memory| (object, memory)))
    }

    /// Looks whether a segment's place is free: while it is being compressed, or at once if the store is far away.
    async fn look(
        &self,
        index: usize,
        name: WalName,
        begun: oneshot::Receiver<()>,
    ) -> Result<Option<WalArchive>, Failure> {
        let mut far = self.far.subscribe();
        let due = tokio::select! {
            begun = begun => begun.is_ok(),
            far = far.wait_for(|far| *far) => far.is_ok(),
        };
        if !due {
            return Ok(None);
        }
        let Some(likely) = once_known(&self.likely).await else { return Ok(None) };
        let mut free = !likely.is_stored(name).await?;
        let Some(place) = once_known(&self.place).await else { return Ok(None) };
        if place.generation != likely.generation {
            free = !place.is_stored(name).await?;
        }
        self.found_free(index, free);
        Ok(free.then_some(place))
    }

    fn found_free(&self, index: usize, free: bool) {
        self.free.send_if_modified(|known| {
            let first = known[index].is_none();
            known[index] = known[index].or(Some(free));
            first
        });
    }

    /// Whether it is known that nobody may go as far as this.
    fn way_is_barred(&self, index: usize) -> bool {
        self.free.borrow()[..index].contains(&Some(false))
    }

    /// Whether all places up to this one are free.
    async fn way_is_free(&self, index: usize) -> bool {
        let known = |places: &Vec<Option<bool>>| places[..=index].iter().all(Option::is_some);
        let places = self.free.subscribe().wait_for(known).await.map(|places| places.clone());
        places.is_ok_and(|places| places[..=index].iter().all(|free| *free == Some(true)))
    }

    fn waiting(&self, file: &Opened) -> Waiting<'_> {
        Waiting { repository: &self.repository, name: file.name, ident: file.ident, file: file.file.state() }
    }
}

async fn once_known(archive: &watch::Sender<Option<WalArchive>>) -> Option<WalArchive> {
    archive.subscribe().wait_for(Option::is_some).await.ok()?.clone()
}

fn kib(bytes: usize) -> usize {
    bytes.div_ceil(1 << 10)
}

/// The next finished segments of the same timeline, in the order in which the archiver will come to them.
fn next_ready(status: &Path, own: SegmentName, at_most: usize) -> std::io::Result<Vec<SegmentName>> {
    let mut ready = Vec::new();
    for entry in fs::read_dir(status)? {
        let file = entry?.file_name();
        let name = file.to_str().and_then(|name| name.strip_suffix(".ready")).and_then(|stem| stem.parse().ok());
        if let Some(WalName::Segment(segment)) = name
            && segment.timeline == own.timeline
            && segment > own
        {
            ready.push(segment);
        }
    }
    ready.sort_unstable();
    ready.truncate(at_most);
    Ok(ready)
}
