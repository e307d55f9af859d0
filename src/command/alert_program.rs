//! A command that is given alerts, as JSON on its stdin. It never outlives its deadline, with all that it started.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::time::sleep;

use super::alert_channels::Refusal;
use super::alert_message::Message;

/// A command, as a shell reads it.
#[derive(Clone, Debug)]
pub struct AlertProgram {
    /// Its words.
    pub command: String,
}

impl AlertProgram {
    /// Success is its word for it that the message arrived.
    pub(super) async fn send(&self, message: &Message) -> Result<(), Refusal> {
        let mut json = serde_json::to_vec(message).map_err(Refusal::lasting)?;
        json.push(b'\n');
        let mut shell = Command::new("/bin/sh");
        // Not below PGARK_: those are our own settings, and a pgark that the command calls refuses unknown ones.
        shell.args(["-c", &self.command]).env("ALERT_STATUS", message.status.word()).env("ALERT_TEXT", &message.text);
        shell.env("ALERT_CLUSTER", &message.about.cluster).env("ALERT_REPOSITORY", &message.about.repository);
        let severity = message.severity.map_or(String::new(), |severity| severity.to_string());
        feed(shell.env("ALERT_SEVERITY", severity), json).await
    }
}

const LOOK: Duration = Duration::from_millis(10);
/// What it says last may take so long to arrive when it has ended. Whatever it left running may keep its stderr open.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// So much of what it says is told.
const MOST_WORDS: u64 = 2000;

/// Runs a program with this on its stdin, and waits for its success.
pub(super) async fn feed(command: &mut Command, input: Vec<u8>) -> Result<(), Refusal> {
    // It must not speak to systemd in our name.
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        command.env_remove(name);
    }
    let command = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().map_err(|e| Refusal::lasting(format!("it cannot be started: {e}")))?;
    let mut running = Running(child);
    let (stdin, stderr) = (running.0.stdin.take(), running.0.stderr.take());
    // One that does not read all of it may still have done its work: its exit code decides.
    std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&input).ok()));
    let (tell, said) = mpsc::channel();
    std::thread::spawn(move || {
        let mut words = Vec::new();
        if let Some(mut stderr) = stderr {
            (&mut stderr).take(MOST_WORDS).read_to_end(&mut words).ok();
            tell.send(String::from_utf8_lossy(&words).trim().replace('\n', "; ")).ok();
            // It must not stumble over a closed pipe.
            std::io::copy(&mut stderr, &mut std::io::sink()).ok();
        }
    });
    let status: ExitStatus = loop {
        match running.0.try_wait() {
            Ok(None) => sleep(LOOK).await,
            Ok(Some(status)) => break status,
            Err(error) => return Err(Refusal::lasting(format!("it cannot be waited for: {error}"))),
        }
    };
    if status.success() {
        return Ok(());
    }
    let how = match status.code() {
        Some(code) => format!("it ended with exit code {code}"),
        None => format!("it was ended ({status})"),
    };
    match said.recv_timeout(LAST_WORDS).unwrap_or_default() {
        said if said.is_empty() => Err(Refusal::lasting(how)),
        said => Err(Refusal::lasting(format!("{how}: {said}"))),
    }
}

/// It is killed, with all that it started, when nobody waits for it any more.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let (Ok(None), Some(group)) = (self.0.try_wait(), Pid::from_raw(self.0.id().cast_signed())) {
            kill_process_group(group, Signal::KILL).ok();
            self.0.wait().ok();
        }
    }
}
