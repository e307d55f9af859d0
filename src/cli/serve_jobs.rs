//! What `serve` runs when it is due: the commands, with the settings that they would have by themselves.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use super::args::BasebackupArgs;
use super::dump_verbs::DumpArgs;
use super::sources::{FILE_VARIABLE, Origin, Sources};
use super::verify_verb::VerifyArgs;
use super::{backup_verbs, dump_verbs, expire_verbs, keys, settings, verify_verb};
use crate::command::basebackup::Basebackup;
use crate::command::dump::Dump;
use crate::command::expire::Expire;
use crate::command::progress::Progress;
use crate::command::run_note::Noting;
use crate::command::verify::Verify;
use crate::command::{Failure, FailureKind, noted_verbs};
use crate::repo::RunKind;
use crate::serve::Job;

/// How a kind is run. `program` is this program.
pub fn job(kind: RunKind, sources: &Sources, program: &std::path::Path) -> Result<Arc<dyn Job>, Failure> {
    let drill = |words: &'static [&'static str]| Arc::new(DrillProcess::new(kind, words, sources, program));
    Ok(match kind {
        RunKind::Basebackup => {
            let remote = settings::pgdata(sources).is_none();
            let args = BasebackupArgs { remote, ..BasebackupArgs::default() };
            Arc::new(TakeBackup(backup_verbs::wanted(&args, sources)?))
        }
        RunKind::Dump => Arc::new(TakeDump(dump_verbs::wanted(&DumpArgs::default(), sources)?)),
        RunKind::Expire => Arc::new(Expiry(expire_verbs::wanted(sources)?)),
        RunKind::Verify => Arc::new(Verification(verify_verb::wanted(&VerifyArgs::default(), sources)?)),
        RunKind::DrillFull => drill(&["--kind", "full"]),
        RunKind::DrillPitr => drill(&["--kind", "pitr", "--random"]),
        RunKind::DrillDisaster => drill(&["--kind", "disaster"]),
        RunKind::DrillDump => drill(&["--kind", "dump"]),
    })
}

struct TakeBackup(Basebackup);
struct TakeDump(Dump);
struct Expiry(Expire);
struct Verification(Verify);

#[async_trait(?Send)]
impl Job for TakeBackup {
    async fn run(&self, noting: &Noting) -> Result<(), Failure> {
        noted_verbs::basebackup(self.0.clone(), noting, Arc::new(Progress::default())).await.map(drop)
    }
}

#[async_trait(?Send)]
impl Job for TakeDump {
    async fn run(&self, noting: &Noting) -> Result<(), Failure> {
        noted_verbs::dump(self.0.clone(), noting, Arc::new(Progress::default())).await.map(drop)
    }
}

#[async_trait(?Send)]
impl Job for Expiry {
    async fn run(&self, noting: &Noting) -> Result<(), Failure> {
        let report = noted_verbs::expire(&self.0, noting, |_| true).await?;
        report.failure().map_or(Ok(()), Err)
    }
}

#[async_trait(?Send)]
impl Job for Verification {
    async fn run(&self, noting: &Noting) -> Result<(), Failure> {
        let report = noted_verbs::verify(&self.0, noting).await?;
        match report.findings.first() {
            Some(finding) => {
                let message = format!("`{}`: {}", finding.key, finding.message);
                Err(Failure::new(FailureKind::Damaged, message).with_hint("see `pgark verify`"))
            }
            None => Ok(()),
        }
    }
}

/// A drill is a process of its own: it stands back for others, and may run as another user, in another environment.
struct DrillProcess {
    kind: RunKind,
    program: PathBuf,
    words: &'static [&'static str],
    environment: Vec<(OsString, OsString)>,
}

/// How often it is looked whether the drill has ended.
const LOOK: Duration = Duration::from_millis(100);

impl DrillProcess {
    /// What flags and environment gave to this process, it gives on in the environment: a command line would show secrets.
    fn new(kind: RunKind, words: &'static [&'static str], sources: &Sources, program: &std::path::Path) -> Self {
        let mut environment: Vec<(OsString, OsString)> = Vec::new();
        for key in keys::KEYS {
            let path = key.path();
            if let (Some(Origin::Flag(_) | Origin::Environment(_)), Some(value)) =
                (sources.origin(&path), sources.get(&path))
            {
                environment.push((key.variable().into(), value.into()));
            }
        }
        if sources.file.exists() {
            let file = std::path::absolute(&sources.file).unwrap_or_else(|_| sources.file.clone());
            environment.push((FILE_VARIABLE.into(), file.into()));
        }
        DrillProcess { kind, program: program.to_owned(), words, environment }
    }

    fn judged(&self, status: ExitStatus) -> Result<(), Failure> {
        let failed = |kind, how: &str| {
            Err(Failure::new(kind, format!("{} {how}", self.kind)).with_hint("its report is below `record/drill/`"))
        };
        match status.code() {
            // With warnings, too: its note says which.
            Some(0 | 1) => Ok(()),
            Some(2) => failed(FailureKind::Damaged, "failed"),
            Some(_) => failed(FailureKind::Unavailable, "could not tell whether a restore works"),
            None => failed(FailureKind::Interrupted, "was ended by a signal"),
        }
    }
}

#[async_trait(?Send)]
impl Job for DrillProcess {
    async fn run(&self, noting: &Noting) -> Result<(), Failure> {
        let mut command = Command::new(&self.program);
        command.args(["--quiet", "drill"]).args(self.words).envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // It must not speak to systemd in our name.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        let cannot = |what: &str, e: std::io::Error| {
            Failure::new(FailureKind::LocalIo, format!("`{}` cannot be {what}: {e}", self.program.display()))
        };
        let mut drill = Drilling(command.spawn().map_err(|e| cannot("started", e))?);
        let asked = async {
            match noting.stop.clone() {
                Some(mut stop) => stop.asked().await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            biased;
            ended = drill.end() => Some(ended),
            () = asked => None,
        };
        let status = match ended {
            Some(ended) => ended,
            None => {
                drill.ask_to_stop();
                drill.end().await
            }
        };
        self.judged(status.map_err(|e| cannot("waited for", e))?)
    }
}

/// The process. What is left of it when this is dropped is killed; its keeper clears up behind it.
struct Drilling(Child);

impl Drilling {
    async fn end(&mut self) -> std::io::Result<ExitStatus> {
        loop {
            match self.0.try_wait()? {
                Some(status) => return Ok(status),
                None => sleep(LOOK).await,
            }
        }
    }

    fn ask_to_stop(&self) {
        if let Some(pid) = Pid::from_raw(self.0.id().cast_signed()) {
            kill_process(pid, Signal::TERM).ok();
        }
    }
}

impl Drop for Drilling {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }
}
