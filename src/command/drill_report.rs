//! What a drill found: its steps, its figures, a checklist; for people, as lines.

use jiff::{Timestamp, Unit};
use serde::Serialize;

use super::check::Level;
use super::failure::{Failure, FailureKind};
use super::forecast::about;
use super::overview::Objectives;
use crate::postgres::Lsn;
use crate::repo::BackupId;
use crate::repo::run_record::{DrillFigures, RunKind};

/// What is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DrillKind {
    /// Everything that is promised.
    Full,
    /// A moment.
    Pitr,
    /// Everything, with nothing but the URL and the credentials.
    Disaster,
    /// The newest dump.
    Dump,
}

impl DrillKind {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            DrillKind::Full => "full",
            DrillKind::Pitr => "pitr",
            DrillKind::Disaster => "disaster",
            DrillKind::Dump => "dump",
        }
    }

    /// What its runs are noted as.
    pub fn run(self) -> RunKind {
        match self {
            DrillKind::Full => RunKind::DrillFull,
            DrillKind::Pitr => RunKind::DrillPitr,
            DrillKind::Disaster => RunKind::DrillDisaster,
            DrillKind::Dump => RunKind::DrillDump,
        }
    }
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All is well.
    Passed,
    /// It is not.
    Failed,
    /// It was not done, although it should be.
    Skipped,
}

/// A step of a drill.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took.
    pub seconds: f64,
    /// What was seen.
    pub detail: String,
}

/// A place in the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Place {
    /// The position.
    pub lsn: Lsn,
    /// Its timeline.
    pub timeline: u32,
    /// The last transaction before it, if that is known.
    pub last_commit: Option<Timestamp>,
}

/// Why a drill did not pass.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reason {
    /// A word that stays the same: the kind of a failure (docs/exit-codes.md), or one of `short`, `corrupt`, `assertion`, `stale`,
    /// `space`, `differs`, `objective`, `incomplete`.
    pub word: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was seen.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A point of the checklist.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// What must be done.
    pub item: &'static str,
    /// Whether it was.
    pub ticked: bool,
    /// How, or why not.
    pub detail: String,
}

/// What a drill found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DrillReport {
    pub(super) schema: u32,
    /// What was restored.
    pub kind: DrillKind,
    /// What it shows.
    pub level: Level,
    /// When it began, by this machine's clock.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// Host, process, program.
    pub writer: String,
    /// The repository.
    pub repository: String,
    /// The backup that it began with, or the dump.
    pub backup: Option<BackupId>,
    /// The moment that was asked for.
    pub target: Option<Timestamp>,
    /// What it was drawn with, if it was.
    pub seed: Option<u64>,
    /// What `status` promised when it began.
    pub promised: Option<Place>,
    /// What was reached.
    pub reached: Option<Place>,
    /// What was measured.
    pub figures: DrillFigures,
    /// What was promised to those whose data it is.
    pub objectives: Objectives,
    /// What was done.
    pub steps: Vec<Step>,
    /// Why it did not pass, the worst first.
    pub reasons: Vec<Reason>,
    /// What an auditor asks for.
    pub checklist: Vec<Point>,
    /// Where the reports lie in the repository, without their ending; `None`: they could not be written.
    pub report: Option<String>,
    /// The directory, where it was to stay.
    pub kept: Option<std::path::PathBuf>,
}

impl Reason {
    /// Of a failure.
    pub fn of(failure: &Failure) -> Self {
        let level = match failure.kind {
            FailureKind::Usage
            | FailureKind::BadInput
            | FailureKind::Unavailable
            | FailureKind::Unsupported
            | FailureKind::LocalIo
            | FailureKind::Interrupted
            | FailureKind::Internal => Level::Unknown,
            FailureKind::Conflict
            | FailureKind::Denied
            | FailureKind::WrongPlace
            | FailureKind::Damaged
            | FailureKind::Gap
            | FailureKind::NoIdentity
            | FailureKind::Unreachable
            | FailureKind::Deadline
            | FailureKind::Server => Level::Fail,
        };
        Reason { word: failure.kind.word(), level, message: failure.message.clone(), hint: failure.hint.clone() }
    }

    /// That a restore is shown not to work.
    pub fn failed(word: &'static str, message: impl Into<String>) -> Self {
        Reason { word, level: Level::Fail, message: message.into(), hint: None }
    }

    /// That somebody should look.
    pub fn warning(word: &'static str, message: impl Into<String>) -> Self {
        Reason { level: Level::Warning, ..Reason::failed(word, message) }
    }

    /// With advice.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Failure> for Reason {
    fn from(failure: Failure) -> Self {
        Reason::of(&failure)
    }
}

impl DrillReport {
    /// The verdict in words.
    pub fn verdict(&self) -> &'static str {
        match self.level {
            Level::Ok => "PASSED",
            Level::Warning => "PASSED with warnings",
            Level::Unknown => "could not be told",
            Level::Fail => "FAILED",
        }
    }

    /// The report as lines for people.
    pub fn text(&self) -> String {
        let at = |time: Timestamp| time.round(Unit::Second).unwrap_or(time);
        let mut text = format!("drill {}: {}\n", self.kind.word(), self.verdict());
        for reason in &self.reasons {
            text.push_str(&format!(
                "  {:<9} {}: {}\n",
                level_word(reason.level),
                reason.word,
                one_line(&reason.message)
            ));
            if let Some(hint) = &reason.hint {
                text.push_str(&format!("  {:<9} hint: {}\n", "", one_line(hint)));
            }
        }
        text.push_str(&format!("  began     {}, ended {}\n", at(self.began), at(self.ended)));
        text.push_str(&format!("  from      {} by {}\n", self.repository, self.writer));
        for (name, value) in self.facts() {
            text.push_str(&format!("  {name:<9} {value}\n"));
        }
        text.push_str("steps\n");
        for step in &self.steps {
            let word = outcome_word(step.outcome);
            text.push_str(&format!(
                "  {word:<8}{:>8.1} s  {:<20} {}\n",
                step.seconds,
                one_line(&step.name),
                one_line(&step.detail)
            ));
        }
        text.push_str("checklist\n");
        for point in &self.checklist {
            let tick = if point.ticked { "[x]" } else { "[ ]" };
            text.push_str(&format!("  {tick} {:<32} {}\n", point.item, one_line(&point.detail)));
        }
        if let Some(kept) = &self.kept {
            text.push_str(&format!("kept in {}\n", kept.display()));
        }
        match &self.report {
            Some(report) => text.push_str(&format!("report in the repository: {report}.html (.json, .txt)\n")),
            None => text.push_str("no report could be written into the repository\n"),
        }
        text
    }

    /// What was restored and measured, by name.
    pub(super) fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = Vec::new();
        if let Some(backup) = self.backup {
            facts.push((if self.kind == DrillKind::Dump { "dump" } else { "backup" }, backup.to_string()));
        }
        if let Some(target) = self.target {
            let seed = self.seed.map(|seed| format!(", drawn with --seed {seed}")).unwrap_or_default();
            facts.push(("target", format!("{target}{seed}")));
        }
        facts.extend(self.promised.map(|place| ("promised", place.words())));
        facts.extend(self.reached.map(|place| ("reached", place.words())));
        let figures = &self.figures;
        let objective = |limit: Option<std::time::Duration>| match limit {
            Some(limit) => format!(" (objective {})", about(limit.as_secs_f64())),
            None => String::new(),
        };
        if figures.total_seconds > 0.0 {
            facts.push((
                "RTO",
                format!(
                    "{:.1} s measured{}: {:.1} s to fetch {}, {:.1} s to replay {} of WAL",
                    figures.total_seconds,
                    objective(self.objectives.rto),
                    figures.fetch_seconds,
                    size(figures.restored_bytes),
                    figures.replay_seconds,
                    size(figures.replayed_bytes)
                ),
            ));
        }
        if let Some(loss) = figures.loss_seconds {
            let objective = objective(self.objectives.rpo);
            facts.push(("RPO", format!("{loss:.0} s measured{objective}: the age of the newest commit restored")));
        }
        facts
    }
}

impl Place {
    pub(super) fn words(&self) -> String {
        let commit = self.last_commit.map(|at| format!(", last commit {at}")).unwrap_or_default();
        format!("{} on timeline {}{commit}", self.lsn, self.timeline)
    }
}

pub(super) fn level_word(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Warning => "warning",
        Level::Unknown => "unknown",
        Level::Fail => "failure",
    }
}

pub(super) fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "FAILED",
        Outcome::Skipped => "skipped",
    }
}

pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

/// Text from elsewhere in one line.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace(char::is_control, "?")
}
