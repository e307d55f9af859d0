//! One connection of a receiver: what comes goes into segments and pieces, these go to the store, and what is durable is told to
//! the server.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::failure::{Failure, FailureKind};
use super::receive_feedback::Positions;
use super::receive_halt::Halt;
use super::receive_progress::ReceiveProgress;
use super::receive_segment::{Making, Receiving};
use super::receive_start::Start;
use super::receive_store::ReceivingStore;
use super::receive_uploads::{Finished, Stored, Uploads};
use super::stop::Stop;
use super::wal_receive::ReceiveSettings;
use crate::postgres::replication_protocol::FromServer;
use crate::postgres::{Lsn, SegmentName, TimelineId};
use crate::server::WalStream;
use crate::server::wal_stream::Streamed;

/// Why a connection ended in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// All that was asked for is durable.
    Reached,
    /// It was asked to stop, and all that came is durable.
    Stopped,
    /// The timeline ends, and what came of it is durable. The server goes on with another one, which began there.
    TimelineEnds(Option<(TimelineId, Lsn)>),
}

/// A connection that streams.
pub(super) struct Connection<'a> {
    pub(super) settings: &'a ReceiveSettings,
    pub(super) progress: &'a ReceiveProgress,
    pub(super) store: ReceivingStore,
    pub(super) making: Making,
    pub(super) stream: WalStream,
    pub(super) start: Start,
    pub(super) segment: Option<Receiving>,
    pub(super) positions: Positions,
    pub(super) uploads: Uploads,
    /// Segments that have pieces, and where they end.
    pub(super) to_clean: Vec<(Lsn, SegmentName)>,
    pub(super) cleaning: JoinSet<()>,
    /// The server wants to know more than we can tell, since then: it may be stopping.
    pub(super) pressed_since: Option<Instant>,
    pub(super) heard: Instant,
    /// Nothing is read since then, because too much waits for the store.
    pub(super) full_since: Option<Instant>,
    /// The server does not hear us any more, since then: what it has sent before is still read.
    pub(super) lost: Option<(Instant, Failure)>,
    /// Where pieces end that the store was found to have, behind what is still under way.
    equal: Option<Lsn>,
}

/// Segments on their way to the store, besides the one that arrives.
const SEGMENTS: usize = 2;
/// Compressed bytes that wait for the store.
const WAITING_BYTES: u64 = 24 << 20;
/// Bytes in no piece.
const LOOSE_BYTES: usize = 4 << 20;
/// A server that is stopping waits until what it has sent was read. It must not wait for a store that is away.
const LET_GO: Duration = Duration::from_secs(10);
/// A server that is asked for a sign of life and gives none for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// What a server has sent that does not hear us any more is here by then.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl<'a> Connection<'a> {
    pub(super) fn new(
        (settings, progress): (&'a ReceiveSettings, &'a ReceiveProgress),
        (store, making): (ReceivingStore, Making),
        stream: WalStream,
        start: Start,
        timeout: Option<Duration>,
    ) -> Self {
        let now = Instant::now();
        Connection {
            positions: Positions::new(start.streams_from, timeout, now),
            settings,
            progress,
            store,
            making,
            stream,
            start,
            segment: None,
            uploads: Uploads::default(),
            to_clean: Vec::new(),
            cleaning: JoinSet::new(),
            pressed_since: None,
            heard: now,
            full_since: None,
            lost: None,
            equal: None,
        }
    }

    /// Streams until there is a reason to end.
    pub(super) async fn run(mut self, stop: &mut Stop) -> Result<Ended, Halt> {
        self.tell(true).await;
        loop {
            if self.settings.once_to.is_some_and(|to| self.positions.durable() >= to) {
                self.clean_up().await;
                self.stream.close().await;
                return Ok(Ended::Reached);
            }
            if self.cut_is_due().is_some_and(|due| due <= Instant::now()) {
                self.cut().await?;
                continue;
            }
            let (cut_due, reads) = (self.cut_is_due(), self.has_room());
            self.full_since = if reads { None } else { self.full_since.or(Some(Instant::now())) };
            let (full_since, full) = (self.full_since.unwrap_or_else(Instant::now), !reads);
            let lost_since = self.lost.as_ref().map(|(since, _)| *since);
            tokio::select! {
                biased;
                () = stop.asked() => return self.stop().await,
                finished = self.uploads.finished() => self.stored(finished?).await?,
                () = sleep_until(self.positions.due()) => self.sign_of_life(reads).await,
                () = sleep_until(cut_due.unwrap_or_else(Instant::now)), if cut_due.is_some() => {}
                () = sleep_until(full_since + LET_GO), if full => return self.let_go(stop).await,
                came = self.stream.next(), if reads => match came {
                    Err(error) => return Err(self.lose(error.into()).await),
                    Ok(Streamed::Message(message)) => self.take(message).await?,
                    Ok(Streamed::TimelineEnds) => {
                        tokio::select! {
                            biased;
                            settled = self.settle_all() => settled?,
                            () = stop.asked() => return self.stop().await,
                        }
                        return self.end_timeline().await;
                    }
                },
                () = sleep_until(lost_since.unwrap_or_else(Instant::now) + LAST_WORDS), if lost_since.is_some() => {
                    return Err(self.lose_silently().await);
                }
            }
        }
    }

    /// Whether more may come: what waits for the store is bounded, and the server waits then.
    fn has_room(&self) -> bool {
        let loose = self.segment.as_ref().and_then(Receiving::loose).map_or(0, |(bytes, _)| bytes);
        self.uploads.segments() < SEGMENTS && self.uploads.bytes() <= WAITING_BYTES && loose < LOOSE_BYTES
    }

    /// When the next piece is cut, as far as is known now. One follows the other: so pieces never leave a hole.
    fn cut_is_due(&self) -> Option<Instant> {
        let (bytes, since) = self.segment.as_ref().and_then(Receiving::loose)?;
        let hurry = self.settings.synchronous
            || self.pressed_since.is_some()
            || bytes as u64 >= self.settings.flush_bytes.min(LOOSE_BYTES as u64)
            || self.settings.once_to.is_some_and(|to| self.positions.received() >= to);
        match self.uploads.has_piece() {
            true => None,
            false if hurry => Some(since),
            false => Some(since + self.settings.flush),
        }
    }

    async fn take(&mut self, message: FromServer) -> Result<(), Halt> {
        self.heard = Instant::now();
        match message {
            FromServer::Wal { start, server_end, bytes } => {
                if start != self.positions.received() {
                    let due = self.positions.received();
                    let message = format!("PostgreSQL sent WAL at {start} where {due} is next");
                    return Err(Halt::Failed(Failure::new(FailureKind::Server, message)));
                }
                self.positions.hear(server_end);
                self.pressed_since = None;
                self.receive(bytes).await?;
            }
            FromServer::Keepalive { server_end, wants_answer } => {
                self.positions.hear(server_end);
                if wants_answer {
                    self.pressed()?;
                    self.tell(false).await;
                }
            }
        }
        self.show();
        Ok(())
    }

    /// Also a server that is stopping asks, until all that it has is durable here: it must not wait for a store that is away.
    fn pressed(&mut self) -> Result<(), Halt> {
        if self.positions.durable() >= self.positions.received() {
            self.pressed_since = None;
            return Ok(());
        }
        let since = *self.pressed_since.get_or_insert_with(Instant::now);
        match since.elapsed() > self.settings.stop_deadline {
            false => Ok(()),
            true => Err(Halt::Failed(Failure::new(
                FailureKind::Unavailable,
                "PostgreSQL waits, as it does when it stops, and the store does not answer: the connection is given up",
            ))),
        }
    }

    async fn receive(&mut self, mut bytes: Bytes) -> Result<(), Halt> {
        while !bytes.is_empty() {
            let now = Instant::now();
            let mut segment = match self.segment.take() {
                Some(segment) => segment,
                None => self.next_segment()?,
            };
            let part = bytes.split_to(bytes.len().min(segment.missing()));
            let length = part.len();
            if self.positions.server_end() >= segment.whole_end() {
                segment.make_only_whole();
            }
            let equal = segment.push(part, now).await?;
            self.positions.receive(length, now);
            let received = self.positions.received();
            self.progress.change(|state| {
                state.received_bytes += length as u64;
                state.received = received;
            });
            match segment.missing() {
                0 => self.put_segment(segment),
                _ => self.segment = Some(segment),
            }
            self.equal = equal.or(self.equal);
            self.settle_equal().await;
        }
        Ok(())
    }

    fn next_segment(&mut self) -> Result<Receiving, Halt> {
        let name = self.making.size.name(self.start.timeline, self.making.size.containing(self.positions.received()));
        let tail = self.start.tails.remove(&name).unwrap_or_default();
        let mut segment = Receiving::begin(&self.making, name, tail.chain)?;
        if let Some(broken) = tail.broken {
            tracing::error!(
                "`{name}` gets no more pieces, and is stored when it is whole, which `select pg_switch_wal()` makes it: {broken}"
            );
            segment.make_only_whole();
        }
        Ok(segment)
    }

    fn put_segment(&mut self, segment: Receiving) {
        let (store, name, has_pieces) = (self.store.clone(), segment.name, segment.has_pieces);
        let (end, packing) = segment.finish();
        let gauge = self.uploads.gauge();
        self.uploads.begin(end, false, |turn| async move {
            let bytes = store.put_segment(name, packing, turn, &gauge).await?;
            Ok(Stored::Segment { name, bytes, has_pieces, end })
        });
    }

    async fn cut(&mut self) -> Result<(), Halt> {
        let Some(segment) = &mut self.segment else { return Ok(()) };
        let Some(draft) = segment.cut().await? else { return Ok(()) };
        let (store, gauge) = (self.store.clone(), self.uploads.gauge());
        self.uploads.begin(draft.end, true, |turn| async move {
            let piece = store.put_piece(draft, turn, &gauge).await?;
            let (of, sha256) = (piece.key.segment, piece.header.sha256);
            Ok(Stored::Piece { of, sha256, bytes: piece.bytes.len() as u64 })
        });
        Ok(())
    }

    async fn stored(&mut self, finished: Finished) -> Result<(), Halt> {
        match finished.stored {
            Stored::Piece { of, sha256, bytes } => {
                if let Some(segment) = &mut self.segment {
                    segment.stored(of, sha256, bytes);
                }
                self.progress.change(|state| {
                    state.pieces += 1;
                    state.stored_bytes += bytes;
                });
            }
            Stored::Segment { name, bytes, has_pieces, end } => {
                tracing::info!("`{name}` is in the repository");
                self.progress.change(|state| {
                    state.segments += 1;
                    state.stored_bytes += bytes;
                });
                self.to_clean.extend(has_pieces.then_some((end, name)));
            }
        }
        let Some(durable) = finished.durable else { return Ok(()) };
        // No piece of it is under way any more.
        let whole: Vec<_> = self.to_clean.extract_if(.., |(end, _)| *end <= durable).collect();
        while self.cleaning.try_join_next().is_some() {}
        for (_, name) in whole {
            let store = self.store.clone();
            self.cleaning.spawn(async move { store.delete_tail(name).await });
        }
        self.settle(durable).await;
        self.settle_equal().await;
        Ok(())
    }

    /// What was found to be stored is durable up to its end when all before it is.
    async fn settle_equal(&mut self) {
        if self.uploads.is_empty()
            && let Some(equal) = self.equal.take()
        {
            self.settle(equal).await;
        }
    }

    async fn settle(&mut self, durable: Lsn) {
        if self.positions.settle(durable) {
            self.progress.change(|state| state.durable_at = Some(Instant::now().into_std()));
            self.tell(false).await;
        }
        if self.positions.durable() >= self.positions.received() {
            self.pressed_since = None;
        }
        self.show();
    }

    fn show(&self) {
        let positions = &self.positions;
        self.progress.change(|state| {
            state.server_end = positions.server_end();
            state.received = positions.received();
            state.durable = state.durable.max(positions.durable());
            state.behind_since = positions.behind_since().map(Instant::into_std);
        });
    }

    async fn sign_of_life(&mut self, reads: bool) {
        match reads {
            // While nothing is read, nothing can be heard.
            false => self.heard = Instant::now(),
            true if self.heard.elapsed() > SILENCE => {
                let message = format!("PostgreSQL was silent for {} s", SILENCE.as_secs());
                self.lost.get_or_insert((Instant::now(), Failure::new(FailureKind::Server, message)));
            }
            true => {}
        }
        self.tell(true).await;
    }

    /// A server that does not hear this is lost, but what it has sent may still have to be read.
    async fn tell(&mut self, wants_answer: bool) {
        let status = self.positions.tell(Instant::now());
        if self.lost.is_none()
            && let Err(error) = self.stream.tell(&status, Timestamp::now(), wants_answer).await
        {
            self.lost = Some((Instant::now(), error.into()));
        }
    }

    /// Makes all durable that came.
    pub(super) async fn settle_all(&mut self) -> Result<(), Halt> {
        loop {
            if !self.uploads.has_piece() {
                self.cut().await?;
            }
            if self.uploads.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                finished = self.uploads.finished() => self.stored(finished?).await?,
                () = sleep_until(self.positions.due()) => self.tell(false).await,
            }
        }
    }

    pub(super) async fn clean_up(&mut self) {
        let all = async { while self.cleaning.join_next().await.is_some() {} };
        timeout(self.settings.stop_deadline, all).await.ok();
    }
}
