//! `check`: is everything set up right? One line a question, each with what to do about it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::archive_command::ReadWords;
use super::bounds::{apart, bounded};
use super::failure::{Failure, FailureKind};
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
    /// The replication slot that `wal-receive` would stream from.
    pub slot: String,
    /// This binary, which `archive_command` should run.
    pub binary: Option<PathBuf>,
    /// Reads the words of `archive_command`.
    pub read_words: ReadWords,
    /// How long a switched segment may take to arrive; `None`: do not switch.
    pub switch_within: Option<Duration>,
    /// When to report what was found by then, besides the time for the switch: [`LONGEST`].
    pub deadline: Duration,
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
        // Every line that is not OK has a hint.
        let hint = failure.hint.or_else(|| Some("docs/failures.md explains the message".to_owned()));
        Finding { check, level: Level::Fail, message: failure.message, hint }
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
pub const LONGEST: Duration = Duration::from_secs(180);

/// The answers so far, which outlive a question that is never answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings(Arc<Mutex<Vec<Finding>>>);

impl Findings {
    pub(super) fn add(&self, finding: Finding) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(finding);
    }

    fn report(&self) -> CheckReport {
        CheckReport { schema: 1, findings: self.0.lock().unwrap_or_else(PoisonError::into_inner).clone() }
    }
}

/// Asks everything; a failed question does not keep the others from being asked.
pub async fn run(check: &Check, circumstances: &Circumstances) -> Result<CheckReport, Failure> {
    let deadline = check.deadline + check.switch_within.unwrap_or_default();
    let (check, circumstances, findings) = (check.clone(), circumstances.clone(), Findings::default());
    let answers = findings.clone();
    let questions = apart(move || async move {
        let repository = check_store::ask(&check, &circumstances, &answers).await;
        check_server::ask(&check, repository.as_ref(), &answers).await;
        Ok(())
    });
    within(questions, deadline, &findings).await
}

/// The questions about the store alone.
pub async fn run_store(check: &Check, circumstances: &Circumstances) -> Result<CheckReport, Failure> {
    let (deadline, check, circumstances) = (check.deadline, check.clone(), circumstances.clone());
    let findings = Findings::default();
    let answers = findings.clone();
    let questions = apart(move || async move {
        check_store::ask(&check, &circumstances, &answers).await;
        Ok(())
    });
    within(questions, deadline, &findings).await
}

async fn within(
    questions: impl Future<Output = Result<(), Failure>>,
    deadline: Duration,
    findings: &Findings,
) -> Result<CheckReport, Failure> {
    match bounded(questions, Some(deadline), None).await {
        Ok(()) => {}
        Err(failure) if failure.kind == FailureKind::Deadline => findings.add(Finding::not_ok(
            "check",
            Level::Unknown,
            format!("{}: what is not said above could not be told", failure.message),
            "something hangs: the store, the server, a disk or a mount",
        )),
        Err(failure) => return Err(failure),
    }
    Ok(findings.report())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::StoreSettings;
    use crate::repo::Writer;
    use crate::server::channel_binding::ChannelBinding;
    use crate::server::conninfo::Server;
    use crate::server::handshake::Handshake;
    use crate::server::keep_alive::KeepAlive;
    use crate::server::target_session::TargetSession;
    use crate::server::tls::Tls;

    /// A server that accepts and says nothing, and a deadline shorter than the patience with it.
    #[test]
    fn what_was_found_before_the_deadline_is_reported() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let place = tempfile::tempdir().unwrap();
        let server = Server {
            host: "127.0.0.1".into(),
            address: None,
            port: silent.local_addr().unwrap().port(),
            password: None,
        };
        let check = Check {
            repository: RepositorySettings {
                store: StoreSettings::Local(place.path().to_owned()),
                cluster: "main".parse().unwrap(),
            },
            pgdata: None,
            slot: String::new(),
            conninfo: Conninfo {
                servers: vec![server],
                user: "me".into(),
                database: "x".into(),
                application_name: None,
                options: None,
                connect_timeout: None,
                tls: Tls::Off,
                handshake: Handshake::default(),
                channel_binding: ChannelBinding::default(),
                target: TargetSession::default(),
                keep_alive: KeepAlive::default(),
                parameters: Default::default(),
            },
            binary: None,
            read_words: |_, _| Err("not asked"),
            switch_within: None,
            deadline: Duration::from_secs(2),
        };
        let writer = Writer { host: "db1".into(), pid: 1, version: "test" };
        let circumstances = Circumstances { now: jiff::Timestamp::now(), writer };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let report = runtime.block_on(run(&check, &circumstances)).unwrap();
        let level = |name: &str| report.findings.iter().find(|finding| finding.check == name).map(|found| found.level);
        assert_eq!((level("store"), level("delete")), (Some(Level::Ok), Some(Level::Ok)), "{report:?}");
        assert_eq!((level("server"), level("check")), (None, Some(Level::Unknown)), "{report:?}");
    }
}
