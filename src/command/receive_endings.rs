//! How a connection of a receiver ends: told to stop, at the end of a timeline, or because the store is too slow.

use tokio::time::{Instant, timeout};

use super::failure::{Failure, FailureKind};
use super::receive_halt::Halt;
use super::receive_stream::{Connection, Ended};
use super::stop::Stop;

pub(super) const NOTHING_IS_LOST: &str =
    "nothing is lost while the server has it: the next start streams from where the repository ends";

impl Connection<'_> {
    /// The server may be gone for good: what came of its WAL is stored before anything else.
    pub(super) async fn lose(mut self, why: Halt) -> Halt {
        let why = match why {
            // What was asked for at the beginning was there: only the next beginning shows what is missing.
            Halt::Removed(why) if self.positions.received() > self.start.streams_from => {
                Halt::Failed(Failure::new(FailureKind::Server, why))
            }
            other => other,
        };
        let silence = || (Instant::now(), Failure::new(FailureKind::Server, "the connection was lost"));
        self.lost.get_or_insert_with(silence);
        if !matches!(timeout(self.settings.stop_deadline, self.settle_all()).await, Ok(Ok(()))) {
            let (received, durable) = (self.positions.received(), self.positions.durable());
            tracing::warn!(
                "the connection was lost at {received}, and only what came before {durable} could be stored"
            );
            self.progress.change(|state| state.given_up = true);
        }
        why
    }

    /// As [`Connection::lose`], of a server that does not hear us and says nothing.
    pub(super) async fn lose_silently(mut self) -> Halt {
        let unknown = || Failure::new(FailureKind::Server, "the connection was lost");
        let why = self.lost.take().map_or_else(unknown, |(_, why)| why);
        self.lose(Halt::Failed(why)).await
    }

    /// Leaves the server alone until the store has taken what waits for it.
    pub(super) async fn let_go(self, stop: &mut Stop) -> Result<Ended, Halt> {
        let Connection { stream, mut uploads, settings, progress, store, .. } = self;
        store
            .complaints
            .say("too much WAL waits for the store: the connection to PostgreSQL is given up until it is stored");
        stream.close().await;
        // Of the segment that was arriving.
        progress.change(|state| state.given_up = true);
        let stopped = async {
            stop.asked().await;
            tokio::time::sleep(settings.stop_deadline).await;
        };
        let stored = async {
            while !uploads.is_empty() {
                if let Some(durable) = uploads.finished().await?.durable {
                    progress.change(|state| state.durable = durable);
                }
            }
            Ok::<_, Halt>(())
        };
        tokio::select! {
            stored = stored => stored?,
            () = stopped => {
                let message = "the store did not take what came before the receiver was stopped";
                return Err(Halt::Refused(Failure::new(FailureKind::Deadline, message).with_hint(NOTHING_IS_LOST)));
            }
        }
        Err(Halt::Failed(Failure::new(FailureKind::Unavailable, "the store is slow, and has taken now what came")))
    }

    pub(super) async fn stop(mut self) -> Result<Ended, Halt> {
        let grace = self.settings.stop_deadline;
        match timeout(grace, self.settle_all()).await {
            Ok(settled) => settled?,
            Err(_) => {
                let (received, durable) = (self.positions.received(), self.positions.durable());
                let grace = humantime::format_duration(grace);
                let message =
                    format!("the store did not take what came up to {received} within {grace}: durable is {durable}");
                return Err(Halt::Refused(Failure::new(FailureKind::Deadline, message).with_hint(NOTHING_IS_LOST)));
            }
        }
        self.clean_up().await;
        self.stream.close().await;
        Ok(Ended::Stopped)
    }

    pub(super) async fn end_timeline(mut self) -> Result<Ended, Halt> {
        self.clean_up().await;
        let (from, end) = (self.start.timeline.get(), self.positions.durable());
        let next = self.stream.next_timeline().await?;
        if let Some((next, at)) = next {
            tracing::warn!("timeline {from} ends at {end}: the server is on timeline {} since {at}", next.get());
        }
        Ok(Ended::TimelineEnds(next))
    }
}
