//! The notes that a run leaves in the repository when it begins and when it ends, so that any host can tell what ran, and how it ended.
//!
//! A note never changes the outcome of its run: one that cannot be written in a short time is a warning.

use std::fmt;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use super::bounds::{apart, bounded};
use super::clock::{Clock, MachineClock};
use super::failure::{Failure, FailureKind};
use super::stop::Stop;
use super::{Circumstances, RepositorySettings};
use crate::repo::run_record::DrillFigures;
use crate::repo::{BackupId, RunKind, RunRecord, RunStage};

/// What a run that leaves notes gets from outside.
#[derive(Clone)]
pub struct Noting {
    /// When it begins, and who runs it.
    pub circumstances: Circumstances,
    /// By which its end is told.
    pub clock: Arc<dyn Clock>,
    /// What may end it besides signals.
    pub stop: Option<Stop>,
}

/// What the last note of a run says.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    /// How it ended.
    pub stage: RunStage,
    /// Why it failed, or what somebody should look at.
    pub message: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// The backup or dump that was made, or restored.
    pub id: Option<BackupId>,
    /// Bytes that were stored.
    pub stored_bytes: Option<u64>,
    /// What a drill measured.
    pub drill: Option<DrillFigures>,
}

/// A note may take so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same when somebody waits for the run to stop.
const LITTLE_PATIENCE: Duration = Duration::from_secs(2);
/// Longer messages are cut.
const LONGEST: usize = 4000;

impl Noting {
    /// For a run that only signals end.
    pub fn new(circumstances: Circumstances) -> Self {
        Noting { circumstances, clock: MachineClock::shared(), stop: None }
    }
}

impl fmt::Debug for Noting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Noting").field("circumstances", &self.circumstances).finish_non_exhaustive()
    }
}

impl Ending {
    /// All that was promised is done.
    pub fn done() -> Self {
        Ending { stage: RunStage::Done, message: None, hint: None, id: None, stored_bytes: None, drill: None }
    }

    /// It is done, and somebody should look.
    pub fn warned(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Ending { stage: RunStage::Warned, message: Some(message.into()), hint: Some(hint.into()), ..Ending::done() }
    }

    /// It is not done.
    pub fn failed(failure: &Failure) -> Self {
        Ending {
            stage: RunStage::Failed,
            message: Some(failure.message.clone()),
            hint: failure.hint.clone(),
            ..Ending::done()
        }
    }

    /// Of this backup or dump.
    pub fn of(mut self, id: BackupId, stored_bytes: u64) -> Self {
        (self.id, self.stored_bytes) = (Some(id), Some(stored_bytes));
        self
    }
}

/// Does `work` and leaves notes of it. `ending` says what became of it when it did not fail.
pub async fn noted<T>(
    repository: &RepositorySettings,
    kind: RunKind,
    noting: &Noting,
    work: impl Future<Output = Result<T, Failure>>,
    ending: impl FnOnce(&T) -> Ending,
) -> Result<T, Failure> {
    let Circumstances { now, writer } = &noting.circumstances;
    let begun = RunRecord::begun(kind, *now, writer);
    let first = match write(repository, &begun, PATIENCE).await {
        Err(failure) if failure.kind == FailureKind::Interrupted => {
            return Err(failure.context(format!("{kind} was not begun")));
        }
        first => first,
    };
    let outcome = tokio::select! {
        biased;
        outcome = AssertUnwindSafe(work).catch_unwind() => outcome,
        () = asked(noting.stop.clone()) => Ok(Err(Failure::new(FailureKind::Interrupted, "it was told to stop"))),
    };
    let told = match &outcome {
        Ok(Ok(done)) => ending(done),
        Ok(Err(failure)) => Ending::failed(failure),
        Err(_) => Ending::failed(&Failure::new(FailureKind::Internal, "a defect of pgark showed itself")),
    };
    // The right to write does not come back meanwhile.
    let refused = first.as_ref().is_err_and(|failure| failure.kind == FailureKind::Denied);
    let last = match first {
        Err(failure) if refused => Err(failure),
        _ => {
            let interrupted = matches!(&outcome, Ok(Err(failure)) if failure.kind == FailureKind::Interrupted);
            let patience = if interrupted { LITTLE_PATIENCE } else { PATIENCE };
            write(repository, &record(&begun, told, noting), patience).await
        }
    };
    // Who typed a wrong name begins no repository there.
    if let Some(failure) = last.err().filter(|failure| failure.kind != FailureKind::NoIdentity) {
        tracing::warn!("no note of this run was left in the repository: {failure}");
    }
    outcome.unwrap_or_else(|panic| resume_unwind(panic))
}

async fn asked(stop: Option<Stop>) {
    match stop {
        Some(mut stop) => stop.asked().await,
        None => std::future::pending().await,
    }
}

fn record(begun: &RunRecord, ending: Ending, noting: &Noting) -> RunRecord {
    let mut record = begun.ended(ending.stage, noting.clock.now());
    (record.message, record.hint) = (ending.message.map(cut), ending.hint.map(cut));
    (record.id, record.stored_bytes, record.drill) = (ending.id, ending.stored_bytes, ending.drill);
    record
}

fn cut(mut text: String) -> String {
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push_str("...");
    }
    text
}

/// On a thread of its own: a disk that does not answer must not keep the verb.
async fn write(repository: &RepositorySettings, record: &RunRecord, patience: Duration) -> Result<(), Failure> {
    let (settings, record) = (repository.clone(), record.clone());
    let writing = apart(move || async move {
        let repository = settings.open().await?;
        repository.read_identities().await?;
        Ok(repository.record_run(&record).await?)
    });
    bounded(writing, Some(patience), None).await
}
