//! The WAL of one generation: create-only writes that judge conflicts, and verified reads.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

use super::error::RepoError;
use super::layout::{Generation, Layout, WalKey};
use super::stored_object::StoredObject;
use super::wal_object::{Expected, WalObject, WalObjectHeader};
use crate::postgres::{
    ClusterIdent, Malformed, SegmentName, SegmentNumber, SegmentSize, TimelineId, WalHeader, WalName,
};
use crate::storage::object_store::Visit;
use crate::storage::{Get, Head, Object, ObjectKey, ObjectStore, ObjectStoreExt, Put, StoreError, StoreErrorKind};
use crate::stream::{Resumable, Sha256, UnpackError, Unpacker};

/// The WAL of one generation.
#[derive(Clone, Debug)]
pub struct WalArchive {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) layout: Layout,
    /// Which.
    pub generation: Generation,
}

/// What became of an object that was to be archived. All but [`Archived::Conflict`] mean: durable and equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Archived {
    /// It is there now.
    Created,
    /// It was there before, with the same content.
    AlreadyThere,
    /// A partial segment of this name with another content was there; this one is kept beside it.
    KeptBeside(ObjectKey),
    /// Another content is archived under this name, and stays.
    Conflict {
        /// Where.
        key: ObjectKey,
        /// The digest of what is there.
        theirs: Sha256,
        /// Who wrote it, and when.
        writer: String,
    },
}

/// Bounds of a read.
#[derive(Clone, Debug)]
pub struct ReadBounds {
    /// How long a connection may give next to nothing.
    pub stall: Duration,
    /// How many fruitless connections in a row are borne.
    pub patience: u32,
    /// The furthest byte that came, for whoever watches over progress.
    pub progress: Arc<AtomicU64>,
    /// So many reads may unpack at once; `None`: as many as there are.
    pub turns: Option<Arc<Semaphore>>,
}

impl Default for ReadBounds {
    fn default() -> Self {
        ReadBounds { stall: Duration::from_secs(10), patience: 2, progress: Arc::default(), turns: None }
    }
}

/// Enough of an object to hold any header.
const HEADER_READ: usize = 80 << 10;
/// Pieces on the way from the network to the thread that unpacks.
const PIECES: usize = 2;

impl WalArchive {
    /// Stores a WAL object under its name, or finds out what stands there.
    pub async fn put(&self, name: WalName, object: &WalObject) -> Result<Archived, RepoError> {
        let key = self.layout.wal_file(self.generation, name);
        let archived = self.put_at(&key, object).await?;
        let (WalName::Partial(segment), Archived::Conflict { .. }) = (name, &archived) else {
            return Ok(archived);
        };
        // Two servers may each have an unfinished last segment of the same timeline: keep both.
        let beside = self.layout.other_partial(self.generation, segment, object.header.sha256);
        match self.put_at(&beside, object).await? {
            Archived::Created | Archived::AlreadyThere => Ok(Archived::KeptBeside(beside)),
            conflict => Ok(conflict),
        }
    }

    async fn put_at(&self, key: &ObjectKey, object: &WalObject) -> Result<Archived, RepoError> {
        let put = match object.large() {
            Some(body) => self.store.put_large(key, body, &object.metadata()).await?,
            None => self.store.put(key, object.bytes.clone(), &object.metadata()).await?,
        };
        match put {
            Put::Created => Ok(Archived::Created),
            Put::Exists => self.compare(key, object).await,
        }
    }

    /// Judges an object that exists: by its metadata where they say "equal", else by the header inside.
    async fn compare(&self, key: &ObjectKey, object: &WalObject) -> Result<Archived, RepoError> {
        if let Head::Found(meta) = self.store.head(key).await?
            && object.surely_is(&meta)
        {
            return Ok(Archived::AlreadyThere);
        }
        let Some(theirs) = self.stored_header(key).await? else {
            let message = format!("`{key}` was there a moment ago and is gone now");
            return Err(StoreError::new(StoreErrorKind::Unexpected, message).into());
        };
        if theirs.plain() == object.header.plain() && theirs.ident() == object.header.ident() {
            self.verify(key, object).await?;
            return Ok(Archived::AlreadyThere);
        }
        let writer = format!("{} at {}", theirs.writer, theirs.written);
        Ok(Archived::Conflict { key: key.clone(), theirs: theirs.sha256, writer })
    }

    /// Reads the whole stored object: without metadata only its content shows that it is equal, and PostgreSQL is about to
    /// recycle the original.
    async fn verify(&self, key: &ObjectKey, object: &WalObject) -> Result<(), RepoError> {
        let name = object.header.name.parse().map_err(|e: Malformed| RepoError::damaged(key, e.to_string()))?;
        let expected = Expected { name, ident: Some(object.header.ident()), segment_size: None };
        match self.read_at(key, expected, io::sink(), &ReadBounds::default()).await? {
            Some(_) => Ok(()),
            None => Err(RepoError::damaged(key, "it was there a moment ago and is gone now")),
        }
    }

    /// The first segment of a range of one timeline that is not stored; `None` if all are. One listing.
    pub async fn first_missing(
        &self,
        first: SegmentName,
        last: SegmentName,
        size: SegmentSize,
    ) -> Result<Option<SegmentName>, RepoError> {
        let number = |name| size.number(name).map_err(|e| RepoError::damaged(&first, e.to_string()));
        let (mut due, end) = (number(first)?, number(last)?);
        let key = |number| self.layout.wal_file(self.generation, WalName::Segment(size.name(first.timeline, number)));
        // Keys of segments are ordered as their positions are: what is listed before the one that is due is not its like.
        let before = key(due).as_str().trim_end_matches(".zst").to_owned();
        let mut wanted = key(due);
        self.store
            .visit_after(&self.layout.timeline(self.generation, first.timeline), Some(&before), 1000, |listed| {
                if listed.name == wanted.as_str() {
                    due = SegmentNumber(due.0 + 1);
                    wanted = key(due);
                }
                if due > end || listed.name.as_str() > wanted.as_str() { Visit::Enough } else { Visit::More }
            })
            .await?;
        Ok((due <= end).then(|| size.name(first.timeline, due)))
    }

    /// The whole segment of a timeline with the highest position, in a few listings however many there are. Where segments are
    /// stored several at once one before it may be missing: [`WalArchive::first_missing`] tells.
    pub async fn newest_segment(&self, timeline: TimelineId) -> Result<Option<SegmentName>, RepoError> {
        let Some(mut newest) = self.first_segment_from(timeline, 0).await? else { return Ok(None) };
        // Steps that double until nothing is behind them, then halve: logs without a segment do no harm.
        let mut nothing_from = 1u64 << 32;
        let mut step = 1;
        while u64::from(newest.log) + 1 < nothing_from {
            let from = (u64::from(newest.log) + step).min(nothing_from - 1);
            match self.first_segment_from(timeline, from).await? {
                Some(found) => (newest, step) = (found, step.saturating_mul(2)),
                None => (nothing_from, step) = (from, (step / 2).max(1)),
            }
        }
        let log = format!("{}{:08X}/", self.layout.timeline(self.generation, timeline), newest.log);
        self.store
            .visit_after(&self.layout.timeline(self.generation, timeline), Some(&log), 1000, |listed| {
                newest = segment_at(&self.layout, &listed.name).unwrap_or(newest);
                Visit::More
            })
            .await?;
        Ok(Some(newest))
    }

    async fn first_segment_from(&self, timeline: TimelineId, log: u64) -> Result<Option<SegmentName>, RepoError> {
        let prefix = self.layout.timeline(self.generation, timeline);
        let mut found = None;
        self.store
            .visit_after(&prefix, Some(&format!("{prefix}{log:08X}")), 10, |listed| {
                found = segment_at(&self.layout, &listed.name);
                if found.is_some() { Visit::Enough } else { Visit::More }
            })
            .await?;
        Ok(found)
    }

    /// Whether anything is stored for a name.
    pub async fn is_stored(&self, name: WalName) -> Result<bool, RepoError> {
        let key = self.layout.wal_file(self.generation, name);
        Ok(self.store.head(&key).await? != Head::NotSeen)
    }

    /// The header of the object that is stored for a name; `None` if there is none.
    pub async fn header_of(&self, name: WalName) -> Result<Option<WalObjectHeader>, RepoError> {
        self.stored_header(&self.layout.wal_file(self.generation, name)).await
    }

    async fn stored_header(&self, key: &ObjectKey) -> Result<Option<WalObjectHeader>, RepoError> {
        let Get::Found(found) = self.store.get(key, 0, None).await? else {
            return Ok(None);
        };
        let size = found.meta.size;
        let start = self.store.read_start(key, found, HEADER_READ).await?;
        let (header, frame) =
            WalObjectHeader::read(key, &start)?.ok_or_else(|| RepoError::damaged(key, "it ends within its header"))?;
        // A cut object must not pass for an equal one.
        if size != frame as u64 + header.stored_length {
            let whole = frame as u64 + header.stored_length;
            return Err(RepoError::damaged(key, format!("it is {size} bytes long, but was written with {whole}")));
        }
        Ok(Some(header))
    }

    /// Reads a WAL file into `sink`, verified: name, cluster, lengths, digest, and the first page of a segment.
    /// `None` is the store's proof that there is no such object. After an error `sink` holds rubbish.
    pub async fn read<W>(
        &self,
        expected: Expected,
        sink: W,
        bounds: &ReadBounds,
    ) -> Result<Option<(WalObjectHeader, W)>, RepoError>
    where
        W: Write + Send + 'static,
    {
        let key = self.layout.wal_file(self.generation, expected.name);
        self.read_at(&key, expected, sink, bounds).await
    }

    pub(super) async fn read_at<W>(
        &self,
        key: &ObjectKey,
        expected: Expected,
        sink: W,
        bounds: &ReadBounds,
    ) -> Result<Option<(WalObjectHeader, W)>, RepoError>
    where
        W: Write + Send + 'static,
    {
        let Get::Found(found) = self.store.get(key, 0, None).await? else {
            return Ok(None);
        };
        let mut download = self.download(key, found, bounds);
        let (header, rest) = download.header(&expected).await?;
        let _turn = match &bounds.turns {
            // It is never closed.
            Some(turns) => turns.acquire().await.ok(),
            None => None,
        };
        let unpacked = download.unpack(&header, rest, sink).await?;
        let (receipt, sink, first_page) = unpacked;
        if receipt != header.plain() {
            let reason = format!("its content has the digest {}, its header says {}", receipt.sha256, header.sha256);
            return Err(RepoError::damaged(key, reason));
        }
        check_first_page(&expected, &header, &first_page).map_err(|reason| RepoError::damaged(key, reason))?;
        Ok(Some((header, sink)))
    }

    fn download(&self, key: &ObjectKey, found: Object, bounds: &ReadBounds) -> Download {
        let size = found.meta.size;
        let source = StoredObject::new(Arc::clone(&self.store), key.clone(), found.meta.etag);
        Download {
            key: key.clone(),
            size,
            bytes: Resumable::new(source, found.body, size, bounds.stall, bounds.patience),
            progress: Arc::clone(&bounds.progress),
            received: 0,
        }
    }
}

fn segment_at(layout: &Layout, name: &str) -> Option<SegmentName> {
    match layout.parse_wal(&name.parse().ok()?)? {
        (_, WalKey::File(WalName::Segment(segment))) => Some(segment),
        _ => None,
    }
}

/// The header says which segment this is; the page inside must say the same.
fn check_first_page(expected: &Expected, header: &WalObjectHeader, first_page: &[u8]) -> Result<(), String> {
    let (true, Some(segment)) = (expected.name.holds_wal(), expected.name.segment()) else {
        return Ok(());
    };
    check_page(segment, header.plain_length, header.ident(), first_page)
}

/// Whether a segment of a cluster begins like this.
pub(super) fn check_page(
    segment: SegmentName,
    size: u64,
    ident: ClusterIdent,
    first_page: &[u8],
) -> Result<(), String> {
    let page = WalHeader::parse(first_page).map_err(|e| e.to_string())?;
    page.check(segment, size).map_err(|e| e.to_string())?;
    if page.ident != ident {
        return Err(format!("its first page is of another cluster ({}) than its header ({ident})", page.ident));
    }
    Ok(())
}

struct Download {
    key: ObjectKey,
    size: u64,
    bytes: Resumable<StoredObject>,
    progress: Arc<AtomicU64>,
    received: u64,
}

impl Download {
    async fn next(&mut self) -> Option<Result<Bytes, RepoError>> {
        let piece = self.bytes.next().await?;
        Some(match piece {
            Ok(bytes) => {
                // What is downloaded a second time is no progress.
                self.received += bytes.len() as u64;
                self.progress.fetch_max(self.received, Ordering::Relaxed);
                Ok(bytes)
            }
            Err(error) => Err(error.into()),
        })
    }

    /// Reads up to the end of the header; what came with it of the compressed bytes is returned too.
    async fn header(&mut self, expected: &Expected) -> Result<(WalObjectHeader, Bytes), RepoError> {
        let mut start = Vec::new();
        loop {
            if let Some((header, frame)) = WalObjectHeader::read(&self.key, &start)? {
                let fits = header.check(expected, frame, self.size);
                fits.map_err(|reason| RepoError::damaged(&self.key, reason))?;
                return Ok((header, Bytes::from(start).slice(frame..)));
            }
            match self.next().await {
                Some(piece) => start.extend_from_slice(&piece?),
                None => return Err(RepoError::damaged(&self.key, "it ends within its header")),
            }
        }
    }

    /// Feeds the compressed bytes to a thread that unpacks them into `sink`.
    async fn unpack<W: Write + Send + 'static>(
        &mut self,
        header: &WalObjectHeader,
        rest: Bytes,
        sink: W,
    ) -> Result<(crate::stream::Receipt, W, Vec<u8>), RepoError> {
        let (pieces, mut inbox) = mpsc::channel::<Bytes>(PIECES);
        let promised = header.plain_length;
        let unpacking = tokio::task::spawn_blocking(move || -> Result<_, UnpackError> {
            let mut unpacker = Unpacker::new(FirstPage { inner: sink, start: Vec::new() }, promised)?;
            while let Some(piece) = inbox.blocking_recv() {
                unpacker.push(&piece)?;
            }
            unpacker.finish()
        });
        // The thread hangs up only when it has failed: its error is the answer then.
        let mut listening = pieces.send(rest).await.is_ok();
        while listening {
            match self.next().await {
                Some(piece) => listening = pieces.send(piece?).await.is_ok(),
                None => break,
            }
        }
        drop(pieces);
        match unpacking.await {
            Ok(Ok((receipt, first))) => Ok((receipt, first.inner, first.start)),
            Ok(Err(UnpackError::Damaged(reason))) => Err(RepoError::damaged(&self.key, reason)),
            Ok(Err(UnpackError::Write(error))) => Err(RepoError::Destination(error)),
            Err(_) => Err(RepoError::Destination(io::Error::other("the thread that unpacks failed"))),
        }
    }
}

/// Keeps the first bytes that pass by.
struct FirstPage<W> {
    inner: W,
    start: Vec<u8>,
}

impl<W: Write> Write for FirstPage<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        let missing = WalHeader::LEN - self.start.len();
        self.start.extend_from_slice(&bytes[..written.min(missing)]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
