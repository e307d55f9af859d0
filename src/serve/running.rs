//! The loop that everything else hangs on: it starts the others, is alive, and stops them in good order.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::keeper::keep;
use super::looks::{self, look};
use super::receiver::receive;
use super::{Serve, http};
use crate::command::clock::Clock;
use crate::command::overview::Overview;
use crate::command::receive_progress::ReceiveProgress;
use crate::command::stop::Stop;
use crate::command::{Failure, FailureKind};
use crate::repo::RunKind;

/// What the parts of the process know of each other.
pub(super) struct Shared {
    pub(super) clock: Arc<dyn Clock>,
    known: Mutex<Known>,
    /// Something has happened that is worth a look.
    pub(super) news: tokio::sync::Notify,
}

/// What is known now.
pub(super) struct Known {
    /// When the main loop was alive last.
    pub(super) beat: Instant,
    /// By then the looks must have come round again.
    pub(super) turn: Instant,
    /// What was seen last.
    pub(super) overview: Option<Arc<Overview>>,
    /// When it was looked last.
    pub(super) looked: Option<Timestamp>,
    /// Why nothing was seen then.
    pub(super) trouble: Option<String>,
    /// What is running.
    pub(super) running: BTreeSet<RunKind>,
    /// How far the receiver is.
    pub(super) receiver: Option<Arc<ReceiveProgress>>,
}

impl Shared {
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The main loop is alive so often.
const BEAT: Duration = Duration::from_secs(5);
/// Behind the stop of everything it is waited so long for notes, and for WAL that came to be stored.
const LAST_WORDS: Duration = Duration::from_secs(15);
const A_MOMENT: Duration = Duration::from_secs(5);
/// A part that showed a defect begins again after so long.
const REPAIR: Duration = Duration::from_secs(60);

/// Serves until `stop` says so. That is success when everything that was promised holds: what the receiver told the server is durable.
pub async fn run(serve: Serve, clock: Arc<dyn Clock>, mut stop: Stop) -> Result<(), Failure> {
    let Serve { repository, writer, timetable, catch_up, receive: receiving, watched, look: every, .. } = serve;
    let (on_look, pages, notify) = (serve.on_look, serve.pages, serve.notify);
    let listener = match serve.http {
        Some(listen) => Some(http::Listener::bind(listen, pages).await?),
        None => None,
    };
    let known = Known {
        beat: Instant::now(),
        turn: Instant::now() + every + looks::LONGEST,
        overview: None,
        looked: None,
        trouble: None,
        running: BTreeSet::new(),
        receiver: None,
    };
    let shared = Arc::new(Shared { clock, known: Mutex::new(known), news: tokio::sync::Notify::new() });
    let mut parts: JoinSet<Result<(), Failure>> = JoinSet::new();
    if let Some(listener) = listener {
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        let listener = Arc::new(listener);
        parts
            .spawn(again("HTTP", stop.clone(), move || Arc::clone(&listener).serve(Arc::clone(&shared), stop.clone())));
    }
    for entry in timetable {
        let (kind, ending) = (entry.kind, stop.clone());
        let place = (repository.clone(), writer.clone());
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        let part = move || keep(Arc::clone(&shared), place.clone(), entry.clone(), catch_up, stop.clone());
        parts.spawn(again(kind.word(), ending, part));
    }
    let last_words =
        receiving.as_ref().map_or(LAST_WORDS, |settings| LAST_WORDS.max(settings.stop_deadline + A_MOMENT));
    let receiver_works = Arc::new(AtomicBool::new(receiving.is_some()));
    if let Some(settings) = receiving {
        let receiving = receive(Arc::clone(&shared), settings, writer.clone(), stop.clone());
        let at_work = Arc::clone(&receiver_works);
        parts.spawn(async move {
            let received = receiving.await;
            at_work.store(false, Ordering::Relaxed);
            received
        });
    }
    parts.spawn(look(Arc::clone(&shared), (watched, writer), every, on_look, stop.clone()));

    notify.ready("at work");
    let mut beat = interval(notify.watchdog.map_or(BEAT, |watchdog| BEAT.min(watchdog / 3)));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut status = String::new();
    loop {
        tokio::select! {
            biased;
            () = stop.asked() => break,
            _ = beat.tick() => {
                shared.known().beat = Instant::now();
                if shared.known().turn > Instant::now() {
                    notify.alive();
                }
                let now = in_words(&shared.known());
                if now != status {
                    notify.status(&now);
                    status = now;
                }
            }
        }
    }
    notify.stopping();
    let mut outcome = Ok(());
    let endings = async {
        while let Some(ended) = parts.join_next().await {
            match ended {
                Ok(Err(failure)) => outcome = Err(failure),
                Ok(Ok(())) => {}
                Err(error) => tracing::warn!("a part ended badly: {error}"),
            }
        }
    };
    if timeout(last_words, endings).await.is_err() {
        tracing::warn!("what was running did not stop in time, and is given up");
        parts.abort_all();
    }
    if receiver_works.load(Ordering::Relaxed) && outcome.is_ok() {
        let message = "the receiver did not stop in time, so WAL that came may not be durable";
        let hint = "nothing is lost: the slot keeps it, and the next start receives it again";
        outcome = Err(Failure::new(FailureKind::Deadline, message).with_hint(hint));
    }
    outcome
}

fn in_words(known: &Known) -> String {
    let running: Vec<&str> = known.running.iter().map(|kind| kind.word()).collect();
    let doing = if running.is_empty() { "waiting".to_owned() } else { format!("running {}", running.join(", ")) };
    match &known.trouble {
        Some(trouble) => format!("{doing}; {trouble}"),
        None => doing,
    }
}

/// A part that never ends by itself: one that shows a defect is begun again.
async fn again<F>(what: &'static str, mut stop: Stop, mut part: impl FnMut() -> F) -> Result<(), Failure>
where
    F: Future<Output = ()>,
{
    while AssertUnwindSafe(part()).catch_unwind().await.is_err() {
        tracing::error!("{what} showed a defect, and begins again in a minute");
        tokio::select! {
            () = sleep(REPAIR) => {}
            () = stop.asked() => break,
        }
    }
    Ok(())
}
