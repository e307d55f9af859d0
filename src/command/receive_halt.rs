//! Why a connection of a receiver ended, as far as what follows depends on it; and how trouble that lasts is told.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, sleep};

use super::failure::{Failure, FailureKind};
use crate::repo::RepoError;
use crate::server::wal_stream::StreamError;
use crate::server::{ConnectError, ServerError};

/// Why it ended.
#[derive(Debug)]
pub(super) enum Halt {
    /// Another receiver is at work: it stored what this one was about to.
    Another(String),
    /// Another receiver is at work: it has the slot.
    SlotInUse(String),
    /// The server has removed the WAL that comes next.
    Removed(String),
    /// The slot keeps nothing any more.
    SlotLost(String),
    /// What is stored and what the server sends exclude each other: trying again does not help.
    Refused(Failure),
    /// Anything else: trying again may help.
    Failed(Failure),
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Halt::Failed(failure)
    }
}

impl From<ServerError> for Halt {
    fn from(error: ServerError) -> Self {
        Halt::Failed(error.into())
    }
}

impl From<ConnectError> for Halt {
    fn from(error: ConnectError) -> Self {
        Halt::Failed(error.into())
    }
}

impl From<RepoError> for Halt {
    fn from(error: RepoError) -> Self {
        Halt::Failed(error.into())
    }
}

impl From<StreamError> for Halt {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Removed(why) => Halt::Removed(why),
            StreamError::SlotInUse(why) => Halt::SlotInUse(why),
            StreamError::SlotLost(why) => Halt::SlotLost(why),
            StreamError::SlotMissing(why) => Halt::Failed(
                Failure::new(FailureKind::Server, why).with_hint("`--create-slot` makes the replication slot"),
            ),
            StreamError::Server(error) => error.into(),
        }
    }
}

/// Trouble that may last: said once, and then every 30 s.
#[derive(Debug, Default)]
pub(super) struct Complaints(Mutex<Option<Instant>>);

const SAY_EVERY: Duration = Duration::from_secs(30);
const LEAST_PAUSE: Duration = Duration::from_millis(250);
/// Commits may wait for the end of it, as they do for PostgreSQL's own receivers (`wal_retrieve_retry_interval`).
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Complaints {
    /// Says what is wrong, unless that was done a moment ago.
    pub(super) fn say(&self, what: &str) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            *said = Some(Instant::now());
            tracing::warn!("{what}");
        }
    }

    /// All is well again.
    pub(super) fn settle(&self, what: &str) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            tracing::warn!("{what}");
        }
    }
}

/// Growing pauses without end.
pub(super) fn pauses() -> impl Iterator<Item = Duration> + Send {
    let pauses = ExponentialBuilder::new().with_min_delay(LEAST_PAUSE).with_max_delay(LONGEST_PAUSE);
    pauses.with_jitter().without_max_times().build().chain(std::iter::repeat(LONGEST_PAUSE))
}

/// Asks the store until it has answered: what came from the server must not be lost because the store is away. Only what it
/// holds can stop this.
pub(super) async fn persistently<T, F>(complaints: &Complaints, mut ask: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, RepoError>>,
{
    let mut pauses = pauses();
    loop {
        match ask().await {
            Ok(done) => {
                complaints.settle("the store answers again");
                return Ok(done);
            }
            Err(error @ RepoError::Store(_)) => complaints.say(&format!("{error}; trying again")),
            Err(error) => return Err(error.into()),
        }
        sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
    }
}
