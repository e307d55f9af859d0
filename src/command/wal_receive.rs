//! `wal-receive`: streams WAL from a server into the repository, in pieces of the unfinished segment and in whole segments.
//!
//! It keeps nothing locally. Where it begins is found in the store; what the server is told to be durable is durable there. It
//! connects again for ever once it has streamed; what makes no sense to try again ends it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::failure::{Failure, FailureKind};
use super::receive_endings::NOTHING_IS_LOST;
use super::receive_gap::{self, Onwards, Past};
use super::receive_halt::{Complaints, Halt, LONGEST_PAUSE, pauses};
use super::receive_progress::{ReceiveProgress, ReceiveState};
use super::receive_segment::Making;
use super::receive_start::{self, Start};
use super::receive_store::ReceivingStore;
use super::receive_stream::{Connection, Ended};
use super::stop::Stop;
use super::wal_push::retrying;
use super::{Circumstances, RepositorySettings};
use crate::postgres::{ClusterIdent, Lsn, SegmentSize, TimelineId};
use crate::repo::{Generation, Repository};
use crate::server::replication::{ServerShape, SystemIdentity};
use crate::server::replication_slot::Slot;
use crate::server::{Conninfo, Replication};

/// How WAL is received.
#[derive(Clone)]
pub struct ReceiveSettings {
    /// Where to.
    pub repository: RepositorySettings,
    /// Where from.
    pub conninfo: Conninfo,
    /// The replication slot.
    pub slot: String,
    /// Whether the slot is made where there is none.
    pub create_slot: bool,
    /// How long a byte may wait for a piece.
    pub flush: Duration,
    /// How many bytes may.
    pub flush_bytes: u64,
    /// Pieces are cut as soon as there is something, for commits that wait for them.
    pub synchronous: bool,
    /// Ends when this position is durable.
    pub once_to: Option<Lsn>,
    /// The zstd level.
    pub level: i32,
    /// How long the store may take to store the rest when the receiver or the server stops.
    pub stop_deadline: Duration,
}

/// How a receiver ended in order: all that came is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The position that was asked for is durable.
    Reached,
    /// It was told to stop.
    Stopped,
}

/// Receives until `stop` says so, the position is reached, or it makes no sense any more. `stop` is also obeyed while nothing can
/// be reached.
pub async fn run(
    settings: &ReceiveSettings,
    circumstances: &Circumstances,
    progress: &ReceiveProgress,
    mut stop: Stop,
) -> Result<Received, Failure> {
    let repository = settings.repository.open().await?;
    let mut receiver = Receiver {
        settings,
        circumstances,
        progress,
        repository,
        store_trouble: Arc::default(),
        trouble: Complaints::default(),
        place: None,
        onwards: None,
        passed: None,
        compares: true,
        looked_again: None,
    };
    let mut pauses = Box::new(pauses()) as Box<dyn Iterator<Item = Duration> + Send>;
    let mut furthest = Lsn::INVALID;
    // A spare has seen that everything is in order but that somebody else is at work.
    let mut was_spare = false;
    loop {
        let ended = receiver.stream(&mut stop).await;
        let ReceiveState { connections, durable, received, .. } = progress.now();
        // What came and is in no object was given up until it comes again, unless another receiver has stored it.
        let stored = receiver.place.as_ref().map_or(durable, |place| place.reaches.max(durable));
        let fails = ended.as_ref().is_err_and(|halt| !matches!(halt, Halt::Another(_)));
        progress.change(|state| state.given_up |= fails && received > stored);
        // What fails at the same place again and again is not tried without end and pause.
        if durable > furthest {
            (furthest, pauses) = (durable, Box::new(self::pauses()));
        }
        let failure = match ended {
            // What is behind a gap is durable, but not everything before it.
            Ok(Ended::Reached) => tokio::select! {
                biased;
                refused = receiver.refuse_lost() => return refused.map(|()| Received::Reached),
                () = stop.asked() => return stopped(progress),
            },
            Ok(Ended::Stopped) => return stopped(progress),
            Ok(Ended::TimelineEnds(next)) => {
                receiver.follow(next);
                continue;
            }
            Err(halt) => {
                was_spare |= matches!(halt, Halt::Another(_) | Halt::SlotInUse(_));
                match receiver.overcome(halt, &mut stop).await {
                    Ok(()) => continue,
                    Err(failure) => failure,
                }
            }
        };
        if (connections == 0 && !was_spare) || failure.is_final {
            return Err(failure.failure);
        }
        receiver.trouble.say(&format!("{}; trying again", failure.failure));
        tokio::select! {
            () = sleep(pauses.next().unwrap_or(LONGEST_PAUSE)) => {}
            () = stop.asked() => return stopped(progress),
        }
    }
}

/// Exit code 0 means that all that came is durable.
fn stopped(progress: &ReceiveProgress) -> Result<Received, Failure> {
    let now = progress.now();
    if !now.given_up {
        return Ok(Received::Stopped);
    }
    let (received, durable) = (now.received, now.durable);
    let message = format!("what came up to {received} could not be stored before it was stopped: durable is {durable}");
    Err(Failure::new(FailureKind::Deadline, message).with_hint(NOTHING_IS_LOST))
}

/// Another receiver that stores nothing for this long, or five times `flush`, counts as gone.
const OTHER_IS_GONE: Duration = Duration::from_secs(10);

pub(super) struct Receiver<'a> {
    pub(super) settings: &'a ReceiveSettings,
    circumstances: &'a Circumstances,
    progress: &'a ReceiveProgress,
    repository: Repository,
    store_trouble: Arc<Complaints>,
    trouble: Complaints,
    /// What the last connection wanted.
    pub(super) place: Option<Place>,
    /// Behind the end of a timeline.
    onwards: Option<Onwards>,
    /// Behind a gap that was found, on the server on which it was: another one may still have that WAL.
    passed: Option<(Conninfo, Onwards)>,
    /// Whether the last whole segment is compared before anything follows it.
    compares: bool,
    /// When a piece of another receiver was found that may be its last one.
    looked_again: Option<Instant>,
}

pub(super) struct Place {
    /// How the server is reached that was asked: what one server of several has removed says nothing about the others.
    pub(super) conninfo: Conninfo,
    generation: Generation,
    making: Making,
    past: Past,
    pub(super) timeline: TimelineId,
    pub(super) from: Lsn,
    /// Up to where the repository has pieces behind that.
    reaches: Lsn,
    /// Whether the segment before `from` was asked for, to be compared.
    compares: bool,
}

/// A failure, and whether trying again makes no sense.
struct Fault {
    failure: Failure,
    is_final: bool,
}

impl From<Halt> for Fault {
    fn from(halt: Halt) -> Self {
        let server = |why| Failure::new(FailureKind::Server, why);
        match halt {
            Halt::Refused(failure) => Fault { failure, is_final: true },
            Halt::Failed(failure) => Fault { failure, is_final: false },
            Halt::Another(why) | Halt::SlotInUse(why) | Halt::Removed(why) | Halt::SlotLost(why) => {
                Fault { failure: server(why), is_final: false }
            }
        }
    }
}

impl Receiver<'_> {
    /// One connection, from finding the place to its end.
    async fn stream(&mut self, stop: &mut Stop) -> Result<Ended, Halt> {
        let connection = tokio::select! {
            biased;
            () = stop.asked() => return Ok(Ended::Stopped),
            connection = self.connect() => connection?,
        };
        match connection {
            Some(connection) => connection.run(stop).await,
            None => Ok(Ended::Reached),
        }
    }

    /// `None`: there is nothing to be received any more.
    async fn connect(&mut self) -> Result<Option<Connection<'_>>, Halt> {
        let settings = self.settings;
        let mut server = Replication::connect(&settings.conninfo).await?;
        let shape = server.shape().await?;
        let now = server.identify_system().await?;
        let generation = self.generation(shape.ident).await?;
        let archive = self.repository.archive(generation);
        let making = self.making(shape.ident, shape.segment_size);
        let kept = self.slot(&mut server, shape).await?;
        let timeout = server.sender_timeout().await?;
        let history = receive_start::put_histories(&mut server, &archive, &making, now.timeline).await?;
        let mut start = receive_start::find(&archive, &making, history.as_ref(), now, kept).await?;
        let conninfo = server.same_server(&settings.conninfo);
        let passed = self.passed.as_ref().filter(|(there, _)| there.is_at(&conninfo)).map(|(_, onwards)| *onwards);
        let onwards = self.onwards.max(passed);
        if let Some((timeline, from)) =
            onwards.filter(|(timeline, from)| (*timeline, *from) > (start.timeline, start.from))
        {
            start = Start::at(&archive, &making, timeline, making.size.containing(from)).await?;
        }
        // Only the connection that follows does without.
        if !std::mem::replace(&mut self.compares, true) {
            start.streams_from = start.from;
        }
        let (timeline, from, reaches, streams_from) = (start.timeline, start.from, start.reaches, start.streams_from);
        let compares = streams_from < from;
        let left = history.iter().flat_map(|history| &history.entries).map(|entry| (entry.parent, Some(entry.switch)));
        let past = left.chain([(now.timeline, None)]).collect();
        let here = making.clone();
        self.place = Some(Place { conninfo, generation, making: here, past, timeline, from, reaches, compares });
        self.progress.change(|state| {
            (state.timeline, state.received, state.durable, state.server_end) =
                (Some(timeline), from, from, now.flushed);
        });
        if let Some(to) = settings.once_to.filter(|to| *to <= from && onwards.is_none()) {
            return if start.goes_on { Ok(None) } else { Err(never_stored(to, from)) };
        }
        // The server has written more since it was asked, and another receiver may have stored that already.
        let now = if from > now.flushed { server.identify_system().await? } else { now };
        refuse_ahead(now, shape, timeline, from)?;
        let Some(stream) = server.start_wal(Some(&settings.slot), timeline, streams_from).await? else {
            let message = format!("PostgreSQL has no WAL of timeline {} at {from}", timeline.get());
            return Err(Halt::Failed(Failure::new(FailureKind::Server, message)));
        };
        tracing::info!("streaming timeline {} from {from} on", timeline.get());
        self.trouble.settle(&format!("streaming again, timeline {} from {from} on", timeline.get()));
        self.progress.change(|state| {
            state.connections += 1;
            state.given_up = false;
            state.waiting = false;
        });
        let store = ReceivingStore { archive, complaints: Arc::clone(&self.store_trouble) };
        Ok(Some(Connection::new((settings, self.progress), (store, making), stream, start, timeout)))
    }

    /// Of the cluster that answers. Only the first start may begin a repository.
    async fn generation(&self, ident: ClusterIdent) -> Result<Generation, Failure> {
        match self.place.is_none() {
            true => {
                let (now, writer) = (Timestamp::now(), &self.circumstances.writer);
                retrying(|| self.repository.find_or_begin(ident, now, writer)).await
            }
            false => retrying(|| self.repository.find_generation(ident)).await,
        }
    }

    fn making(&self, ident: ClusterIdent, size: SegmentSize) -> Making {
        Making::new(ident, size, self.settings.level, self.circumstances)
    }

    /// Does what the end of a connection asks for; what cannot be overcome here is the failure.
    async fn overcome(&mut self, halt: Halt, stop: &mut Stop) -> Result<(), Fault> {
        match halt {
            // The slot promised more than there is: then nothing can be compared.
            Halt::Removed(why) if self.place.as_ref().is_some_and(|place| place.compares) => {
                let what = "the last whole segment is not compared with the server's, which may have been set back";
                tracing::warn!("{what}: {why}");
                self.compares = false;
                Ok(())
            }
            Halt::Removed(why) => tokio::select! {
                biased;
                () = stop.asked() => Ok(()),
                passed = self.pass_gap(why) => passed.map_err(Fault::from),
            },
            Halt::SlotLost(why) => self.renew_slot(&why).await.map_err(Fault::from),
            Halt::SlotInUse(why) => {
                self.wait_as_spare(&why);
                tokio::select! {
                    () = self.slot_is_free() => Ok(()),
                    () = stop.asked() => Ok(()),
                }
            }
            // The store may perform late what a receiver asked for that is dead by now: the next look finds it.
            Halt::Another(_) if self.looked_again.is_none_or(|at| at.elapsed() > OTHER_IS_GONE) => {
                self.looked_again = Some(Instant::now());
                Ok(())
            }
            Halt::Another(why) => {
                self.wait_as_spare(&why);
                tokio::select! {
                    biased;
                    () = stop.asked() => Ok(()),
                    gone = self.other_is_gone() => gone.map_err(|failure| Fault { failure, is_final: false }),
                }
            }
            other => Err(other.into()),
        }
    }

    /// To where a timeline ends. Behind a gap that is what the same server says, too.
    fn follow(&mut self, next: Option<Onwards>) {
        let Some(next) = next else { return };
        let here = self.place.as_ref().map(|place| &place.conninfo);
        match &mut self.passed {
            Some((there, onwards)) if here.is_some_and(|here| here.is_at(there)) => *onwards = next,
            _ => self.onwards = Some(next),
        }
    }

    fn wait_as_spare(&self, why: &str) {
        self.trouble.say(&format!("another receiver is at work ({why}): this one waits until it is gone"));
        self.progress.change(|state| state.waiting = true);
    }

    async fn other_is_gone(&self) -> Result<(), Failure> {
        let Some(place) = &self.place else { return Ok(()) };
        let archive = self.repository.archive(place.generation);
        let patience = OTHER_IS_GONE.max(5 * self.settings.flush);
        let mut seen = receive_start::mark(&archive, &place.making, place.timeline).await?;
        let mut since = Instant::now();
        while since.elapsed() < patience {
            sleep(patience / 4).await;
            let now = receive_start::mark(&archive, &place.making, place.timeline).await?;
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    /// The position is durable. So must be all before it.
    async fn refuse_lost(&self) -> Result<(), Failure> {
        let (Some(place), Some(to)) = (&self.place, self.settings.once_to) else { return Ok(()) };
        receive_gap::refuse_lost((&self.repository, place.generation), &place.past, to).await
    }

    async fn pass_gap(&mut self, why: String) -> Result<(), Halt> {
        let Some(place) = &self.place else { return Ok(()) };
        let conninfo = &place.conninfo;
        let whereto = (&self.repository, place.generation);
        let wanted = (place.timeline, place.from, place.reaches);
        let passed = receive_gap::pass(conninfo, whereto, &place.making, wanted, why, &self.store_trouble).await?;
        let ident = place.making.ident;
        self.passed = Some((conninfo.clone(), passed));
        self.progress.change(|state| state.gaps += 1);
        let mut server = Replication::connect(conninfo).await?;
        // From PostgreSQL 16 on a slot that has lost its WAL keeps none any more, though it can be used.
        if server.slot(ident.major, &self.settings.slot).await? == Slot::There(None) {
            return self.renew_slot("it keeps no WAL").await;
        }
        Ok(())
    }
}

/// A repository that begins behind the position has nothing before it.
fn never_stored(to: Lsn, from: Lsn) -> Halt {
    let message = format!(
        "the repository would begin at {from}, where the slot begins to keep WAL: nothing before {to} is in it"
    );
    Halt::Refused(Failure::new(FailureKind::Gap, message).with_hint("give a position behind that one"))
}

/// A standby may lag behind what its primary has stored; a primary that does is not the one whose WAL is in the repository.
fn refuse_ahead(now: SystemIdentity, shape: ServerShape, timeline: TimelineId, from: Lsn) -> Result<(), Halt> {
    if timeline != now.timeline || from <= now.flushed {
        return Ok(());
    }
    let (timeline, flushed) = (timeline.get(), now.flushed);
    let message =
        format!("the repository has WAL of timeline {timeline} up to {from}, the server only up to {flushed}");
    match shape.in_recovery {
        true => Err(Halt::Failed(Failure::new(FailureKind::Server, message))),
        false => Err(Halt::Refused(Failure::new(FailureKind::Conflict, message).with_hint(
            "another server writes to this place: find out which one is the primary, and give the other its own `name`",
        ))),
    }
}
