//! What ends a command from outside: a deadline, a signal, a server that stops.

use std::future::pending;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::Builder;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
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

/// Runs work on a thread and a runtime of its own, so that bounds around it hold although it blocks: a disk that does not
/// answer can be read by anything, also by the SDK. When this is dropped the work is dropped too, if that takes no
/// longer than a moment; otherwise it is left behind.
pub async fn apart<T, F>(work: impl FnOnce() -> F + Send + 'static) -> Result<T, Failure>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Failure>>,
{
    let (tell, outcome) = oneshot::channel();
    let (goes_on, cancelled) = oneshot::channel::<()>();
    let (alive, end) = channel::<()>();
    let cannot = |e: std::io::Error| Failure::new(FailureKind::LocalIo, format!("cannot start: {e}"));
    let task = move || {
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(tell.send(Err(cannot(error)))),
        };
        let done = runtime.block_on(async {
            tokio::select! {
                biased;
                _ = cancelled => None,
                done = work() => Some(done),
            }
        });
        // Whatever its threads still do is abandoned.
        runtime.shutdown_background();
        if let Some(done) = done {
            tell.send(done).ok();
        }
        drop(alive);
    };
    let thread = std::thread::Builder::new().name("work".to_owned()).stack_size(STACK).spawn(task).map_err(cannot)?;
    let waiting = Apart { goes_on: Some(goes_on), end };
    let Ok(done) = outcome.await else {
        // It panicked: so do we, without a second message.
        drop(waiting);
        return match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => Err(Failure::new(FailureKind::Internal, "the thread that works ended without a word")),
        };
    };
    done
}

/// As much as the first thread of a process has.
const STACK: usize = 8 << 20;
/// How long work may take to be dropped, as when a temporary file is removed.
const A_MOMENT: Duration = Duration::from_millis(300);

struct Apart {
    goes_on: Option<oneshot::Sender<()>>,
    end: Receiver<()>,
}

impl Drop for Apart {
    fn drop(&mut self) {
        drop(self.goes_on.take());
        // Nothing is ever sent: the thread hangs up when it ends.
        self.end.recv_timeout(A_MOMENT).ok();
    }
}

/// A server that may be told to stop while it waits for us.
#[derive(Clone, Debug)]
pub struct Stopping {
    /// Its data directory, once it is found.
    pub pgdata: Arc<OnceLock<PathBuf>>,
    /// How long we may still take then.
    pub grace: Duration,
}

/// Waits for a signal that ends a command; its name.
pub async fn any_signal() -> &'static str {
    Signals::catch().any().await
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
        let ignored = ignored_signals();
        let wanted = wanted.into_iter().filter(|(_, kind)| ignored & (1 << (kind.as_raw_value() - 1)) == 0);
        // Without a handler a signal ends the process at once, which is safe too.
        let caught = wanted.filter_map(|(name, kind)| Some((name, signal(kind).ok()?)));
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

/// The signals that are ignored now, number 1 in the lowest bit. Who started us wants it so, as `nohup` does for SIGHUP and shells for
/// SIGINT of what they start in the background: a handler would undo it.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
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
    loop {
        sleep(LOOK).await;
        let Some(pgdata) = pgdata.get().cloned() else { continue };
        let looked =
            move || DataDir::at(pgdata).is_ok_and(|found| found.is_some_and(|found| found.server_is_stopping()));
        if tokio::task::spawn_blocking(looked).await.unwrap_or(false) {
            break;
        }
    }
    sleep(grace).await;
    grace
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn bounds_hold_around_work_that_blocks() {
        let begun = std::time::Instant::now();
        let work = apart(|| async {
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        });
        let failure = run(bounded(work, Some(Duration::from_millis(50)), None)).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Deadline);
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn work_that_is_given_up_is_dropped() {
        let dropped = Arc::new(OnceLock::new());
        struct Guard(Arc<OnceLock<()>>);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.set(()).ok();
            }
        }
        let guard = Guard(Arc::clone(&dropped));
        let work = apart(move || async move {
            let _guard = guard;
            pending::<Result<(), Failure>>().await
        });
        assert!(run(bounded(work, Some(Duration::from_millis(50)), None)).is_err());
        assert!(dropped.get().is_some());
    }

    #[test]
    fn outcomes_and_panics_come_through() {
        assert_eq!(run(apart(|| async { Ok(7) })).unwrap(), 7);
        let panicked =
            std::panic::catch_unwind(|| run(apart(|| async { panic!("on purpose") as Result<(), Failure> })));
        assert!(panicked.is_err());
    }
}
