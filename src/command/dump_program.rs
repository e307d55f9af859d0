//! A program of PostgreSQL at work: what it writes is read as a stream, what it says is told, and it never outlives us.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::time::sleep;

use super::failure::{Failure, FailureKind};

/// Lines that are kept for the message of a failure.
const LAST_LINES: usize = 20;
/// A program that says more in one line says nothing.
const LONGEST_LINE: usize = 8 << 10;

const LOOK: Duration = Duration::from_millis(5);

/// A program that runs. It is killed, with all that it started, when this is dropped.
pub(super) struct Running {
    what: String,
    child: Child,
    said: Arc<Mutex<VecDeque<String>>>,
    listener: Option<JoinHandle<()>>,
    is_judged: bool,
}

/// Whether a line counts.
type Judge = fn(&str) -> bool;

impl Running {
    /// Starts one that writes. `what` is for messages.
    pub(super) fn start(mut command: Command, what: String) -> Result<(Self, ChildStdout), Failure> {
        let mut running = Running::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()), what, |_| true)?;
        match running.child.stdout.take() {
            Some(out) => Ok((running, out)),
            None => Err(Failure::new(FailureKind::Internal, "a program has no output")),
        }
    }

    /// Starts one that reads.
    pub(super) fn fed(mut command: Command, what: String) -> Result<(Self, ChildStdin), Failure> {
        let mut running = Running::spawn(command.stdin(Stdio::piped()).stdout(Stdio::null()), what, |_| true)?;
        match running.child.stdin.take() {
            Some(stdin) => Ok((running, stdin)),
            None => Err(Failure::new(FailureKind::Internal, "a program has no input")),
        }
    }

    /// Starts one that reads and writes files.
    pub(super) fn alone(mut command: Command, what: String) -> Result<Self, Failure> {
        Running::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()), what, |_| true)
    }

    /// Starts one that reads, and of which only some lines count: if there are any, it has failed, whatever its exit code says.
    pub(super) fn judged(mut command: Command, what: String, counts: Judge) -> Result<(Self, ChildStdin), Failure> {
        let mut running = Running::spawn(command.stdin(Stdio::piped()).stdout(Stdio::null()), what, counts)?;
        running.is_judged = true;
        match running.child.stdin.take() {
            Some(stdin) => Ok((running, stdin)),
            None => Err(Failure::new(FailureKind::Internal, "a program has no input")),
        }
    }

    fn spawn(command: &mut Command, what: String, counts: Judge) -> Result<Self, Failure> {
        let cannot = |e: std::io::Error| Failure::new(FailureKind::LocalIo, format!("{what} cannot be started: {e}"));
        let mut child = command.stderr(Stdio::piped()).process_group(0).spawn().map_err(cannot)?;
        let err = child.stderr.take();
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let (heard, name) = (Arc::clone(&said), what.clone());
        let listener = err.map(|err| {
            std::thread::spawn(move || {
                for line in BufReader::new(err).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line[..line.len().min(LONGEST_LINE)]).into_owned();
                    tracing::info!("{name}: {line}");
                    if !counts(&line) {
                        continue;
                    }
                    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    heard.push_back(line);
                    if heard.len() > LAST_LINES {
                        heard.pop_front();
                    }
                }
            })
        });
        Ok(Running { what, child, said, listener, is_judged: false })
    }

    /// Waits for its end: how long it may still work is the server's matter. Success is its own word for it.
    pub(super) async fn wait(mut self) -> Result<(), Failure> {
        let ended = loop {
            match self.child.try_wait() {
                Ok(None) => sleep(LOOK).await,
                Ok(Some(status)) => break Ok(status),
                Err(error) => break Err(error),
            }
        };
        if let Some(listener) = self.listener.take() {
            listener.join().ok();
        }
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner).make_contiguous().join("; ");
        let failed = |how: String| {
            let why = if said.is_empty() { how } else { format!("{how}: {said}") };
            Failure::new(FailureKind::Server, format!("{} {why}", self.what))
        };
        match ended {
            Ok(status) if status.success() && self.is_judged && !said.is_empty() => Err(failed("failed".to_owned())),
            Ok(status) if status.success() => {
                if !said.is_empty() {
                    tracing::warn!("{}: {said}", self.what);
                }
                Ok(())
            }
            // Its reader went away, and knows why.
            Ok(status) if status.signal() == Some(Signal::PIPE.as_raw()) => {
                Err(Failure { kind: FailureKind::LocalIo, ..failed(words(status)) })
            }
            Ok(status) => Err(failed(words(status))),
            Err(error) => Err(failed(format!("cannot be waited for: {error}"))),
        }
    }
}

fn words(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("ended with exit code {code}"),
        None => format!("was ended ({status})"),
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let (Ok(None), Some(group)) = (self.child.try_wait(), Pid::from_raw(self.child.id().cast_signed())) {
            kill_process_group(group, Signal::KILL).ok();
            self.child.wait().ok();
        }
    }
}
