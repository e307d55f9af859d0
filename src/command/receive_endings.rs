//! How a connection of a receiver ends: told to stop, at the end of a timeline, or because the store is too slow.

use tokio::time::timeout;

use super::failure::{Failure, FailureKind};
use super::receive_halt::Halt;
use super::receive_stream::{Connection, Ended};
use super::stop::Stop;

const NOTHING_IS_LOST: &str =
    "nothing is lost while the server has it: the next start streams from where the repository ends";

impl Connection<'_> {
    /// Leaves the server alone until the store has taken what waits for it.
    pub(super) async fn let_go(self, stop: &mut Stop) -> Result<Ended, Halt> {
        let Connection { stream, mut uploads, settings, progress, store, .. } = self;
        store
            .complaints
            .say("too much WAL waits for the store: the connection to PostgreSQL is given up until it is stored");
        stream.close().await;
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
