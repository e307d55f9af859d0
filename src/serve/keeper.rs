//! Runs what is due, one kind a keeper: so nothing of a kind ever runs twice at once here.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use jiff::{SignedDuration, Timestamp};

use super::Entry;
use super::due::{Ledger, Whose, is_believed};
use super::running::Shared;
use crate::command::bounds::apart;
use crate::command::clock::Clock;
use crate::command::run_note::Noting;
use crate::command::stop::Stop;
use crate::command::{Circumstances, Failure, FailureKind, RepositorySettings};
use crate::repo::Writer;

/// What is later counts as missed.
const LATE: SignedDuration = SignedDuration::from_mins(5);
/// After so long it is asked again what could not be told.
const AGAIN: SignedDuration = SignedDuration::from_mins(1);
/// Who claimed a run and has not begun it after so long is dead.
const DEAD: SignedDuration = SignedDuration::from_mins(10);

/// Keeps one line of the timetable until it is told to stop.
pub(super) async fn keep(
    shared: Arc<Shared>,
    (repository, writer): (RepositorySettings, Writer),
    entry: Entry,
    catch_up: bool,
    stop: Stop,
) {
    let ledger = Ledger { repository, writer, kind: entry.kind };
    let mut keeper = Keeper { shared, entry, ledger, stop, trouble: false };
    // Only stopping ends it.
    keeper.go_on(catch_up).await;
}

struct Keeper {
    shared: Arc<Shared>,
    entry: Entry,
    ledger: Ledger,
    stop: Stop,
    /// Whether it was said that the repository cannot be asked.
    trouble: bool,
}

impl Keeper {
    /// `None` when it was told to stop.
    async fn go_on(&mut self, catch_up: bool) -> Option<()> {
        let mut settled = loop {
            let asked = self.ledger.settled(&self.entry.schedule, self.now()).await;
            match self.known(asked) {
                Some(settled) => break settled,
                None => self.wait(AGAIN).await?,
            }
        };
        // What was seen in time is not late, however long it takes until somebody runs it.
        let mut in_time: Option<Timestamp> = None;
        // The last try of somebody else for a due time, and when it was seen first.
        let mut others: Option<(Timestamp, u32, Timestamp)> = None;
        loop {
            let now = self.now();
            if !is_believed(settled, now) {
                tracing::warn!("the clock was set back, from {settled} or later to {now}");
                settled = now;
            }
            let Some(due) = self.entry.schedule.last_due(now).filter(|due| *due > settled) else {
                let next = self.entry.schedule.next_after(now).unwrap_or(now.saturating_add(AGAIN).unwrap_or(now));
                self.wait_until(next).await?;
                continue;
            };
            let kind = self.entry.kind;
            let late = now.duration_since(due);
            if late <= LATE {
                in_time = Some(due);
            }
            if late > LATE && !catch_up && in_time != Some(due) {
                tracing::warn!("{kind} was due at {due} and is not caught up, as `schedule.catch_up` says");
                settled = due;
                continue;
            }
            let dead = others.filter(|(of, _, seen)| *of == due && now.duration_since(*seen) >= DEAD);
            let taken = self.ledger.take(due, now, dead.map_or(0, |(_, tries, _)| tries)).await;
            match self.known(taken) {
                Some(Whose::Ours) => {
                    if late > LATE {
                        tracing::warn!("{kind} was due at {due}, and is run now");
                    }
                    self.run().await;
                    settled = due;
                }
                Some(Whose::Done) => settled = due,
                Some(Whose::Claimed(tries)) => {
                    if others.is_none_or(|(of, before, _)| (of, before) != (due, tries)) {
                        others = Some((due, tries, now));
                    }
                    self.wait(AGAIN).await?;
                }
                None => self.wait(AGAIN).await?,
            }
            if self.stop.is_asked() {
                return None;
            }
        }
    }

    fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// What the repository said; when it says nothing, that is told once.
    fn known<T>(&mut self, asked: Result<T, Failure>) -> Option<T> {
        match asked {
            Ok(known) => {
                self.trouble = false;
                Some(known)
            }
            Err(failure) => {
                if !self.trouble && failure.kind != FailureKind::Interrupted {
                    let kind = self.entry.kind;
                    tracing::error!("it cannot be told whether {kind} is due, and is tried again: {failure}");
                }
                self.trouble = true;
                None
            }
        }
    }

    async fn wait(&mut self, length: SignedDuration) -> Option<()> {
        let time = self.now().checked_add(length).unwrap_or(Timestamp::MAX);
        self.wait_until(time).await
    }

    async fn wait_until(&mut self, time: Timestamp) -> Option<()> {
        tokio::select! {
            biased;
            () = self.stop.asked() => None,
            () = self.shared.clock.sleep_until(time) => Some(()),
        }
    }

    async fn run(&self) {
        let (kind, job) = (self.entry.kind, Arc::clone(&self.entry.job));
        let noting = Noting {
            circumstances: Circumstances { now: self.now(), writer: self.ledger.writer.clone() },
            clock: Arc::clone(&self.shared.clock) as Arc<dyn Clock>,
            stop: Some(self.stop.clone()),
        };
        self.shared.known().running.insert(kind);
        tracing::info!("{kind} begins");
        let begun = std::time::Instant::now();
        let work = apart(move || async move { job.run(&noting).await });
        let outcome = AssertUnwindSafe(work).catch_unwind().await;
        self.shared.known().running.remove(&kind);
        let took = humantime::format_duration(Duration::from_secs(begun.elapsed().as_secs()));
        match outcome {
            Ok(Ok(())) => tracing::info!("{kind} is done, after {took}"),
            Ok(Err(failure)) => {
                let hint = failure.hint.as_deref().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
                tracing::error!("{kind} failed, and is tried again when it is due again: {failure}{hint}");
            }
            // The hook has told of it, and the note says so.
            Err(_) => tracing::error!("{kind} showed a defect, and is tried again when it is due again"),
        }
        self.shared.news.notify_one();
    }
}
