//! `check`: is everything set up right? One line a question, each with what to do about it.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::archive_command::ReadWords;
use super::bounds::bounded;
use super::failure::Failure;
use super::{Circumstances, RepositorySettings, check_server, check_store};
use crate::server::Conninfo;

/// What to check.
#[derive(Clone)]
pub struct Check {
    /// The repository.
    pub repository: RepositorySettings,
    /// The data directory, if known.
    pub pgdata: Option<PathBuf>,
    /// How to reach the server.
    pub conninfo: Conninfo,
    /// This binary, which `archive_command` should run.
    pub binary: Option<PathBuf>,
    /// Reads the words of `archive_command`.
    pub read_words: ReadWords,
    /// How long a switched segment may take to arrive; `None`: do not switch.
    pub switch_within: Option<Duration>,
}

/// The outcome of one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but somebody should look.
    Warning,
    /// Could not be told.
    Unknown,
    /// Does not work.
    Fail,
}

/// One question and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was asked.
    pub check: &'static str,
    /// The outcome.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Finding { check, level: Level::Ok, message: message.into(), hint: None }
    }

    pub(super) fn not_ok(
        check: &'static str,
        level: Level,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Finding { check, level, message: message.into(), hint: Some(hint.into()) }
    }

    pub(super) fn failed(check: &'static str, failure: Failure) -> Self {
        Finding { check, level: Level::Fail, message: failure.message, hint: failure.hint }
    }
}

/// All answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Version of this report.
    pub schema: u32,
    /// In the order of asking.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// The worst outcome.
    pub fn worst(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Unknown)
    }
}

/// Far more than all questions take, but for the switch: a hanging network file system must not hold us for ever.
const LONGEST: Duration = Duration::from_secs(180);

/// Asks everything; a failed question does not keep the others from being asked.
pub async fn run(check: &Check, circumstances: &Circumstances) -> Result<CheckReport, Failure> {
    let questions = async {
        let (mut findings, repository) = check_store::ask(check, circumstances).await;
        findings.extend(check_server::ask(check, repository.as_ref()).await);
        Ok(CheckReport { schema: 1, findings })
    };
    bounded(questions, Some(LONGEST + check.switch_within.unwrap_or_default()), None).await
}

/// The questions about the store alone.
pub async fn run_store(check: &Check, circumstances: &Circumstances) -> Result<CheckReport, Failure> {
    let questions = async {
        let (findings, _) = check_store::ask(check, circumstances).await;
        Ok(CheckReport { schema: 1, findings })
    };
    bounded(questions, Some(LONGEST), None).await
}
