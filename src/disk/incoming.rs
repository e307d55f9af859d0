//! A file on its way to the place where PostgreSQL waits for it.
//!
//! It is written beside its place under another name and renamed when it is whole and verified: the place never
//! holds a wrong byte, not for a moment. There is no fsync: after a crash PostgreSQL asks again for everything that
//! it had not replayed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file that has not got its name yet; it is removed if it never gets it.
#[derive(Debug)]
pub struct Incoming {
    target: PathBuf,
    temporary: PathBuf,
    file: File,
    parent: Option<rustix::process::Pid>,
    committed: bool,
}

/// How often a file is begun anew.
const TRIES: u32 = 5;

impl Incoming {
    /// Begins a file for `target`, and sweeps up what killed predecessors left.
    pub fn create(target: &Path) -> io::Result<Self> {
        let place = Place::of(target)?;
        for _ in 0..TRIES {
            let temporary = place.temporary();
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&temporary)?;
            let incoming = Incoming::new(target, temporary, file);
            if incoming.claim()? {
                return Ok(incoming);
            }
        }
        Err(io::Error::other(format!("others keep taking the temporary files of `{}` away", target.display())))
    }

    /// Takes a file that is there already, and was opened for reading, from `source`. On failure it stays where it is.
    pub fn adopt(target: &Path, source: &Path, file: File) -> Result<Self, (File, io::Error)> {
        let place = match Place::of(target) {
            Ok(place) => place,
            Err(error) => return Err((file, error)),
        };
        let temporary = place.temporary();
        // The lock comes first: a file without one would be swept up.
        if let Err(error) = file.try_lock() {
            return Err((file, error.into()));
        }
        if let Err(error) = fs::rename(source, &temporary) {
            return Err((file, error));
        }
        Ok(Incoming::new(target, temporary, file))
    }

    fn new(target: &Path, temporary: PathBuf, file: File) -> Self {
        let parent = rustix::process::getppid();
        Incoming { target: target.to_owned(), temporary, file, parent, committed: false }
    }
    /// The lock says "alive" to a sweeping successor, and ends with this process however it ends. `false` if somebody swept
    /// the file up before it was locked.
    fn claim(&self) -> io::Result<bool> {
        match self.file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            // A file system without locks: then nobody sweeps either.
            Err(TryLockError::Error(_)) => return Ok(true),
        }
        Ok(self.file.metadata()?.nlink() > 0)
    }

    /// Reads it from the beginning.
    pub fn reader(&self) -> io::Result<File> {
        let mut file = self.file.try_clone()?;
        io::Seek::rewind(&mut file)?;
        Ok(file)
    }

    /// A writer for its content.
    pub fn writer(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Gives the file its name, if all `length` bytes are there.
    pub fn commit(mut self, length: u64) -> io::Result<()> {
        (&self.file).flush()?;
        let written = self.file.metadata()?.len();
        if written != length {
            return Err(io::Error::other(format!("{written} of {length} bytes were written")));
        }
        // PostgreSQL was killed and somebody else may be at its place: it is not waiting for this file any more.
        if rustix::process::getppid() != self.parent {
            return Err(io::Error::other("the process that asked for it is gone"));
        }
        fs::rename(&self.temporary, &self.target)?;
        self.committed = true;
        Ok(())
    }
}

/// Where temporary files for a target go.
struct Place {
    directory: PathBuf,
    stem: String,
}

impl Place {
    /// Sweeps up what killed predecessors left there.
    fn of(target: &Path) -> io::Result<Self> {
        let name = target.file_name().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("`{}` names no file", target.display()))
        })?;
        let directory = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let stem = format!(".pgark-incoming-{}.", name.to_string_lossy());
        sweep(directory, &stem);
        Ok(Place { directory: directory.to_owned(), stem })
    }

    fn temporary(&self) -> PathBuf {
        let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |age| age.subsec_nanos());
        self.directory.join(format!("{}{}-{nanos:08x}", self.stem, std::process::id()))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.committed {
            // If it stays, the next fetch sweeps it up.
            fs::remove_file(&self.temporary).ok();
        }
    }
}

/// Removes files of processes that are gone. Whatever cannot be removed harms nobody.
fn sweep(directory: &Path, stem: &str) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(stem) {
            continue;
        }
        let abandoned = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if abandoned {
            fs::remove_file(entry.path()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("RECOVERYXLOG");
        let incoming = Incoming::create(&target).unwrap();
        incoming.writer().unwrap().write_all(b"abc").unwrap();
        assert!(!target.exists());
        incoming.commit(3).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"abc");

        let incoming = Incoming::create(&target).unwrap();
        incoming.writer().unwrap().write_all(b"ab").unwrap();
        assert!(incoming.commit(3).is_err());
        drop(Incoming::create(&target).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn sweeps_up_the_dead_and_spares_the_living() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("RECOVERYXLOG");
        let left_over = directory.path().join(".pgark-incoming-RECOVERYXLOG.1-0");
        let foreign = directory.path().join(".pgark-incoming-RECOVERYHISTORY.1-0");
        fs::write(&left_over, b"half").unwrap();
        fs::write(&foreign, b"half").unwrap();
        let living = Incoming::create(&target).unwrap();
        assert!(!left_over.exists());
        assert!(foreign.exists());
        let second = Incoming::create(&target).unwrap();
        assert!(living.temporary.exists() && second.temporary.exists());
    }
}
