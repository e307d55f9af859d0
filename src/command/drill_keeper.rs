//! The keeper of a drill's directory: a process of our own that outlives us by as long as it takes to clear up.
//!
//! It makes the directory, and holds the end of a pipe whose other end is ours alone. However we end, the pipe does: then it ends all
//! that works in the directory, and removes it. Nobody but it removes anything, unless it is gone before us.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use super::failure::{Failure, FailureKind};
use crate::server::scratch_place;

/// How the keeper is called: a program and its words. The directory to make its own in is added.
#[derive(Clone, Debug)]
pub struct KeeperCall {
    /// This program.
    pub program: PathBuf,
    /// The hidden verb, and flags.
    pub words: Vec<String>,
}

/// What is written into the pipe where the directory shall stay.
pub const KEEP: &str = "keep\n";
/// As long as a server may take to end, and more.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(10);

/// A keeper at work.
pub(super) struct Keeper {
    child: Child,
    pipe: Option<ChildStdin>,
    path: PathBuf,
}

impl Keeper {
    /// Starts one, and waits until it has made the directory.
    pub(super) fn hire(call: &KeeperCall, base: &Path) -> Result<Self, Failure> {
        let cannot = |e: std::io::Error| {
            Failure::new(FailureKind::LocalIo, format!("the keeper of the scratch directory cannot be started: {e}"))
        };
        let mut command = Command::new(&call.program);
        command.args(&call.words).arg(base).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(cannot)?;
        let (pipe, out) = (child.stdin.take(), child.stdout.take());
        let mut keeper = Keeper { child, pipe, path: PathBuf::new() };
        let mut line = String::new();
        // A path is not longer than this.
        let read = out.map(|out| BufReader::new(out.take(16 << 10)).read_line(&mut line));
        let path = line.strip_suffix('\n').filter(|path| !path.is_empty());
        match (read, path) {
            (Some(Ok(_)), Some(path)) => {
                keeper.path = PathBuf::from(path);
                Ok(keeper)
            }
            _ => {
                let message = format!("no scratch directory could be made in `{}`", base.display());
                Err(Failure::new(FailureKind::LocalIo, message)
                    .with_hint("the line above says why; `drill.directory` names another place"))
            }
        }
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Has all ended that works in the directory, and it removed unless it shall stay.
    pub(super) fn dismiss(mut self, keep: bool) -> Result<(), Failure> {
        if let Some(mut pipe) = self.pipe.take().filter(|_| keep) {
            pipe.write_all(KEEP.as_bytes()).ok();
        }
        self.end(keep)
    }

    fn end(&mut self, keep: bool) -> Result<(), Failure> {
        drop(self.pipe.take());
        let until = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < until => std::thread::sleep(LOOK),
                Ok(status) => break status,
                Err(_) => break None,
            }
        };
        if status.is_some_and(|status| status.success()) || self.path.as_os_str().is_empty() {
            return Ok(());
        }
        self.child.kill().ok();
        self.child.wait().ok();
        if keep {
            return Ok(());
        }
        // It was killed itself, or could not: so we do.
        scratch_place::clear(&self.path).map_err(|e| {
            Failure::new(FailureKind::LocalIo, format!("`{}` cannot be cleared: {e}", self.path.display()))
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if self.pipe.is_some() {
            self.end(false).ok();
        }
    }
}
