//! The directory of a throw-away server: made, recognised when its owner is dead, and cleared with all that runs in it.
//!
//! * Only its owner may look into it, and its name tells what it is.
//! * Who works on it holds a lock in it: one whose lock is free was left by the dead.
//! * What runs in it is found by its working directory, as PostgreSQL and its children have the data directory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How all of them are called.
pub const PREFIX: &str = "pgark-drill-";
/// The data directory within.
pub const DATA: &str = "data";
/// That of a second server, beside the first.
const ALSO: &str = "dump/data";
const LOCK: &str = "lock";
/// There where the operator wanted the directory to stay.
const KEPT: &str = "kept";
/// The lock may be about to be taken.
const YOUNG: Duration = Duration::from_secs(10);
/// A server that is told to stop at once does so within this time, or is killed.
const QUIT: Duration = Duration::from_secs(5);
const GONE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// A directory that is locked.
#[derive(Debug)]
pub struct ScratchPlace {
    path: PathBuf,
    _lock: File,
}

impl ScratchPlace {
    /// Makes one below `base`.
    pub fn make(base: &Path) -> io::Result<Self> {
        let told = |e: io::Error| {
            io::Error::new(e.kind(), format!("no scratch directory can be made in `{}`: {e}", base.display()))
        };
        let base = fs::canonicalize(base).map_err(told)?;
        let made = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&base).map_err(told)?;
        let lock = File::create(made.path().join(LOCK)).map_err(told)?;
        lock.try_lock().map_err(|e| told(e.into()))?;
        Ok(ScratchPlace { path: made.keep(), _lock: lock })
    }

    /// Where it is, without symbolic links on the way.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends all that runs in it, and removes it.
    pub fn clear(self) -> io::Result<()> {
        clear(&self.path)
    }

    /// Ends all that runs in it; the files stay, also when others are swept away.
    pub fn keep(self) -> io::Result<()> {
        evict(&self.path)?;
        File::create(self.path.join(KEPT)).map(drop)
    }
}

/// Clears what dead owners left below `base`; what could not be cleared is told with the reason.
pub fn sweep(base: &Path) -> (Vec<PathBuf>, Vec<String>) {
    let (mut cleared, mut left) = (Vec::new(), Vec::new());
    let Ok(base) = fs::canonicalize(base) else { return (cleared, left) };
    for entry in fs::read_dir(&base).into_iter().flatten().flatten() {
        let path = entry.path();
        let named = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if !named || !is_left(&path) {
            continue;
        }
        match clear(&path) {
            Ok(()) => cleared.push(path),
            Err(error) => left.push(format!("`{}` was left by a drill that was killed: {error}", path.display())),
        }
    }
    (cleared, left)
}

fn is_left(path: &Path) -> bool {
    let me = rustix::process::geteuid().as_raw();
    let ours = |meta: &fs::Metadata| meta.is_dir() && meta.uid() == me;
    let Some(meta) = path.symlink_metadata().ok().filter(ours) else { return false };
    if path.join(KEPT).exists() {
        return false;
    }
    match OpenOptions::new().write(true).open(path.join(LOCK)) {
        Ok(lock) => match lock.try_lock() {
            Ok(()) => is_old(&lock.metadata()),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
        },
        Err(error) if error.kind() == ErrorKind::NotFound => is_old(&Ok(meta)),
        Err(_) => false,
    }
}

fn is_old(meta: &io::Result<fs::Metadata>) -> bool {
    let age = meta.as_ref().ok().and_then(|meta| meta.modified().ok()).and_then(|at| at.elapsed().ok());
    age.is_some_and(|age| age > YOUNG)
}

/// Ends all that runs in a directory, and removes it.
pub fn clear(path: &Path) -> io::Result<()> {
    evict(path)?;
    let until = Instant::now() + QUIT;
    loop {
        let removed = fs::remove_dir_all(path);
        match (path.symlink_metadata(), removed) {
            (Err(error), _) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // Somebody was begun while the others were looked for, and writes there, or removes as we do.
            (_, Err(_)) if Instant::now() < until => {
                evict(path)?;
                std::thread::sleep(LOOK);
            }
            (_, other) => return other,
        }
    }
}

fn evict(path: &Path) -> io::Result<()> {
    // A server that is killed leaves its shared memory behind; one that quits does not.
    let postmasters: Vec<Pid> = [DATA, ALSO].iter().filter_map(|data| postmaster(&path.join(data))).collect();
    let alive = || inhabitants(path).into_iter().filter(|pid| postmasters.contains(pid)).collect::<Vec<Pid>>();
    for postmaster in alive() {
        kill_process(postmaster, Signal::QUIT).ok();
    }
    let until = Instant::now() + QUIT;
    while Instant::now() < until && !alive().is_empty() {
        std::thread::sleep(LOOK);
    }
    let until = Instant::now() + GONE;
    loop {
        let left = inhabitants(path);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            let message = format!("processes {left:?} that work in `{}` do not end", path.display());
            return Err(io::Error::new(ErrorKind::TimedOut, message));
        }
        for pid in left {
            kill_process(pid, Signal::KILL).ok();
        }
        std::thread::sleep(LOOK);
    }
}

/// The process that `postmaster.pid` names.
fn postmaster(data: &Path) -> Option<Pid> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok().and_then(Pid::from_raw)
}

/// The living processes that work in the directory, and helpers that fetch WAL for its server.
pub fn inhabitants(path: &Path) -> Vec<Pid> {
    let me = std::process::id();
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers
        .filter(|pid| *pid != me && lives_in(Path::new(&format!("/proc/{pid}")), path))
        .filter_map(|pid| Pid::from_raw(pid.cast_signed()))
        .collect()
}

fn lives_in(process: &Path, path: &Path) -> bool {
    let works_there = || fs::read_link(process.join("cwd")).is_ok_and(|at| at.starts_with(path));
    let fetches_for_it = || {
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        let data = path.join(DATA);
        words.any(|word| word == b"wal-prefetch") && words.any(|word| word == data.as_os_str().as_encoded_bytes())
    };
    // What is dead and not yet waited for has no working directory any more.
    works_there() || fetches_for_it()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_runs_in_it_goes_with_it() {
        let base = tempfile::tempdir().unwrap();
        let place = ScratchPlace::make(base.path()).unwrap();
        let path = place.path().to_owned();
        let mut inside = Command::new("sleep").arg("600").current_dir(&path).spawn().unwrap();
        let mut outside = Command::new("sleep").arg("600").current_dir(base.path()).spawn().unwrap();
        assert_eq!(sweep(base.path()), (vec![], vec![]));
        // Its parent is not the one that ends it: it waits for a zombie no longer than for the dead.
        let reaper = std::thread::spawn(move || inside.wait().unwrap());
        place.clear().unwrap();
        assert!(!path.exists() && !reaper.join().unwrap().success());
        assert_eq!(outside.try_wait().unwrap(), None);
        outside.kill().unwrap();
        outside.wait().unwrap();
    }

    #[test]
    fn only_what_the_dead_left_is_swept_away() {
        let base = tempfile::tempdir().unwrap();
        let make = |old: bool| {
            let place = ScratchPlace::make(base.path()).unwrap();
            let path = place.path().to_owned();
            if old {
                let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
                File::options().write(true).open(path.join(LOCK)).unwrap().set_modified(hour_ago).unwrap();
            }
            (path, place)
        };
        let (at_work, _held) = make(true);
        let (young, _) = make(false);
        let (old, _) = make(true);
        let (kept, place) = make(true);
        place.keep().unwrap();
        fs::create_dir(base.path().join("other")).unwrap();
        assert_eq!(sweep(base.path()).0, std::slice::from_ref(&old));
        assert!(at_work.exists() && young.exists() && kept.exists() && !old.exists());
        assert!(base.path().join("other").exists());
    }
}
