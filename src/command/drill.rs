//! `drill`: a restore on trial. It restores into a directory of its own, recovers to what is promised, looks whether all of it is there
//! and right, measures, and reports.
//!
//! Nothing is left of it: another process, the keeper, clears up however this one ends.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::bounds::bounded;
use super::check::Level;
use super::drill_checklist;
use super::drill_keeper::Keeper;
pub use super::drill_keeper::KeeperCall;
use super::drill_note;
pub use super::drill_report::{DrillKind, DrillReport};
use super::drill_report::{Outcome, Place, Reason, Step};
use super::drill_restored;
use super::drill_sql::Assertion;
use super::failure::{Failure, FailureKind};
use super::overview::Objectives;
use super::progress::Progress;
use super::restore_files::Fetching;
use super::run_note::{Noting, noted};
use super::{Circumstances, RepositorySettings};
use crate::repo::BackupId;
use crate::repo::run_record::DrillFigures;

/// A drill that is wanted.
#[derive(Clone)]
pub struct Drill {
    /// What is restored.
    pub kind: DrillKind,
    /// Where from.
    pub repository: RepositorySettings,
    /// To this moment; `None` with `pitr`: to one that is drawn.
    pub target: Option<Timestamp>,
    /// What it is drawn with.
    pub seed: u64,
    /// The server's `restore_command`.
    pub restore_command: String,
    /// How files are fetched.
    pub fetching: Fetching,
    /// Where the scratch directory is made.
    pub directory: PathBuf,
    /// Who keeps it.
    pub keeper: KeeperCall,
    /// Whether it stays.
    pub keep: bool,
    /// What must hold.
    pub assertions: Vec<Assertion>,
    /// How long one of them may take.
    pub assertion_deadline: Duration,
    /// Where PostgreSQL's programs are, if that was said.
    pub programs: Option<PathBuf>,
    /// `$PATH`
    pub path: String,
    /// A role of the cluster to log in as; `None`: as its files have it.
    pub role: Option<String>,
    /// Libraries that the server cannot do without.
    pub preload: String,
    /// Whether indexes are compared with their tables.
    pub deep: bool,
    /// What was promised to those whose data it is.
    pub objectives: Objectives,
    /// How long all of it may take.
    pub deadline: Duration,
}

/// What is known so far: it survives whatever ends the work.
#[derive(Default)]
pub(super) struct Found {
    pub(super) backup: Option<BackupId>,
    pub(super) is_newest: bool,
    pub(super) target: Option<Timestamp>,
    pub(super) promised: Option<Place>,
    pub(super) reached: Option<Place>,
    pub(super) figures: DrillFigures,
    pub(super) steps: Vec<Step>,
    pub(super) reasons: Vec<Reason>,
}

/// What a drill writes down as it goes.
#[derive(Clone, Default)]
pub(super) struct Journal(Arc<Mutex<Found>>);

impl Journal {
    pub(super) fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a step, and writes down what came of it; with a failure the drill cannot go on.
    pub(super) async fn step<T>(
        &self,
        name: &str,
        work: impl Future<Output = Result<(T, String), Reason>>,
    ) -> Result<T, Reason> {
        let begun = Instant::now();
        let (outcome, detail, done) = match work.await {
            Ok((done, detail)) => (Outcome::Passed, detail, Ok(done)),
            Err(reason) => (Outcome::Failed, reason.message.clone(), Err(reason)),
        };
        let seconds = begun.elapsed().as_secs_f64();
        self.found().steps.push(Step { name: name.to_owned(), outcome, seconds, detail });
        done
    }

    /// The same of a step after which the drill goes on.
    pub(super) async fn look(&self, name: &str, work: impl Future<Output = Result<String, Reason>>) {
        if let Err(reason) = self.step(name, async { work.await.map(|detail| ((), detail)) }).await {
            self.found().reasons.push(reason);
        }
    }

    /// A step that should be done and cannot.
    pub(super) fn skip(&self, name: &str, why: &str) {
        let mut found = self.found();
        let step = Step { name: name.to_owned(), outcome: Outcome::Skipped, seconds: 0.0, detail: why.to_owned() };
        found.steps.push(step);
        found.reasons.push(Reason::warning("incomplete", format!("{name} was not done: {why}")));
    }
}

/// Does it, and leaves notes of it. What is wrong with the restore is in the report.
pub async fn run(drill: Drill, noting: &Noting, progress: Arc<Progress>) -> Result<DrillReport, Failure> {
    let (repository, kind) = (drill.repository.clone(), drill.kind.run());
    let circumstances = &noting.circumstances;
    let work = async {
        let begun = Instant::now();
        let journal = Journal::default();
        let (ended, kept) = work(&drill, &journal, circumstances, progress, begun).await;
        if let Err(reason) = ended {
            journal.found().reasons.push(reason);
        }
        let mut report = report(&drill, &journal, circumstances, noting.clock.now()).await;
        report.kept = kept;
        drill_note::report(&drill.repository, kind, circumstances, &mut report).await;
        drill_checklist::reported(&mut report);
        Ok(report)
    };
    noted(&repository, kind, noting, work, drill_note::ending).await
}

/// All between the first and the last note.
async fn work(
    drill: &Drill,
    journal: &Journal,
    circumstances: &Circumstances,
    progress: Arc<Progress>,
    begun: Instant,
) -> (Result<(), Reason>, Option<PathBuf>) {
    let keeper = match Keeper::hire(&drill.keeper, &drill.directory) {
        Ok(keeper) => keeper,
        Err(failure) => return (Err(failure.into()), None),
    };
    let home = keeper.path().to_owned();
    let trying = async {
        // The outcome of the trial is not the trial's own failure.
        Ok(drill_restored::restore_and_look(drill, journal, &home, circumstances, progress, begun).await)
    };
    let ended = match bounded(trying, Some(drill.deadline), None).await {
        Ok(ended) => ended,
        Err(failure) => Err(failure.into()),
    };
    let keep = drill.keep;
    let cleared = tokio::task::spawn_blocking(move || keeper.dismiss(keep)).await;
    match cleared {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => journal.found().reasons.push(failure.into()),
        Err(_) => journal.found().reasons.push(Failure::new(FailureKind::Internal, "a thread failed").into()),
    }
    (ended, keep.then_some(home))
}

/// Puts together what was found.
async fn report(drill: &Drill, journal: &Journal, circumstances: &Circumstances, ended: Timestamp) -> DrillReport {
    let repository = match drill.repository.open().await {
        Ok(repository) => repository.describe(),
        Err(_) => drill.repository.place(),
    };
    let mut found = journal.found();
    drill_checklist::measure(&mut found, drill);
    found.reasons.sort_by_key(|reason| std::cmp::Reverse(reason.level));
    let mut report = DrillReport {
        schema: 1,
        kind: drill.kind,
        level: found.reasons.first().map_or(Level::Ok, |reason| reason.level),
        began: circumstances.now,
        ended,
        writer: circumstances.writer.to_string(),
        repository,
        backup: found.backup,
        target: found.target,
        seed: found.target.filter(|_| drill.target.is_none()).map(|_| drill.seed),
        promised: found.promised,
        reached: found.reached,
        figures: found.figures.clone(),
        objectives: drill.objectives,
        steps: found.steps.clone(),
        reasons: found.reasons.clone(),
        checklist: Vec::new(),
        report: None,
        kept: None,
    };
    report.checklist = drill_checklist::points(&report, found.is_newest);
    report
}
