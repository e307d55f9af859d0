//! What ends a command from outside: a deadline, a signal, a server that stops.

use std::future::pending;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use super::failure::{Failure, FailureKind};
use crate::disk::DataDir;

/// Runs `work` until it is done or one of the bounds is reached. Dropping `work` must be safe at any point.
pub async fn bounded<T>(
    work: impl Future<Output = Result<T, Failure>>,
    deadline: Option<Duration>,
    stopping: Option<Stopping>,
) -> Result<T, Failure> {
    let signals = Signals::catch();
    tokio::select! {
        biased;
        done = work => done,
        name = signals.any() => Err(Failure::new(FailureKind::Interrupted, format!("interrupted by {name}"))),
        after = passed(deadline) => {
            let message = format!("the deadline of {} passed", humantime::format_duration(after));
            Err(Failure::new(FailureKind::Deadline, message))
        }
        after = server_stops(stopping) => {
            let grace = humantime::format_duration(after);
            let message = format!("PostgreSQL is stopping and the store did not answer within {grace}");
            Err(Failure::new(FailureKind::Deadline, message)
                .with_hint("nothing is lost: the file stays in pg_wal and is archived after the next start"))
        }
    }
}

/// A server that may be told to stop while it waits for us.
#[derive(Clone, Debug)]
pub struct Stopping {
    /// Its data directory.
    pub pgdata: PathBuf,
    /// How long we may still take then.
    pub grace: Duration,
}

/// How often the server's state is looked at: a file of 100 bytes.
const LOOK: Duration = Duration::from_millis(200);

/// The signals that end a command. They are caught from the moment this is made.
struct Signals(Vec<(&'static str, Signal)>);

impl Signals {
    fn catch() -> Self {
        let wanted = [
            ("SIGTERM", SignalKind::terminate()),
            ("SIGINT", SignalKind::interrupt()),
            ("SIGQUIT", SignalKind::quit()),
            ("SIGHUP", SignalKind::hangup()),
        ];
        // Without a handler a signal ends the process at once, which is safe too.
        let caught = wanted.into_iter().filter_map(|(name, kind)| Some((name, signal(kind).ok()?)));
        Signals(caught.collect())
    }

    async fn any(mut self) -> &'static str {
        if self.0.is_empty() {
            return pending().await;
        }
        let each = self.0.iter_mut().map(|(name, signal)| {
            Box::pin(async move {
                signal.recv().await;
                *name
            })
        });
        futures_util::future::select_all(each).await.0
    }
}

async fn passed(deadline: Option<Duration>) -> Duration {
    match deadline {
        Some(deadline) => {
            sleep(deadline).await;
            deadline
        }
        None => pending().await,
    }
}

async fn server_stops(stopping: Option<Stopping>) -> Duration {
    let Some(Stopping { pgdata, grace }) = stopping else {
        return pending().await;
    };
    let Ok(Some(server)) = DataDir::at(pgdata) else {
        return pending().await;
    };
    while !server.server_is_stopping() {
        sleep(LOOK).await;
    }
    sleep(grace).await;
    grace
}
