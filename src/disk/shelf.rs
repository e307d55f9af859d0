//! The shelf: segments that were fetched and verified ahead of their turn, on their way from the helper to `wal-fetch`.
//!
//! A segment on the shelf is a file under its name, with a note beside it that says whose it is and what its digest is. The note
//! comes last; a file without a note, or with another content than the note says, is rubbish.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Incoming, Spool};
use crate::postgres::{ClusterIdent, SegmentName, WalHeader};
use crate::stream::quick_digest::{QuickDigest, QuickDigesting};

/// The shelf of one recovery.
#[derive(Clone, Debug)]
pub struct Shelf {
    spool: Spool,
    repository: String,
}

/// What is beside a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    note: String,
    /// The repository, as its settings name it.
    repository: String,
    ident: ClusterIdent,
    name: String,
    /// Bytes.
    length: u64,
    /// Of the content.
    xxh3: String,
    /// By this host's clock.
    written: Timestamp,
}

/// What was asked for last, for the helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The segment.
    pub segment: SegmentName,
    /// When, by the clock of the file system.
    pub at: std::time::SystemTime,
}

/// A segment, and where PostgreSQL waits for it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Which.
    pub segment: SegmentName,
    /// Of this cluster.
    pub ident: ClusterIdent,
    /// Its bytes.
    pub size: u64,
    /// `%p`
    pub target: &'a Path,
}

const NOTE: &str = "pgark-fetched-2";
const ASKED: &str = "asked";
const LOCK: &str = "lock";
const CALLED: &str = "called";
/// What is older is fetched again.
const BELIEVED: Duration = Duration::from_secs(3600);

impl Shelf {
    /// The shelf in this part of the spool.
    pub fn new(spool: Spool, repository: String) -> Self {
        Shelf { spool, repository }
    }

    /// Notes what PostgreSQL asks for: the helper goes on from there.
    pub fn ask(&self, segment: SegmentName) -> io::Result<()> {
        self.spool.write_small(ASKED, &segment.to_string())
    }

    /// What was asked for last.
    pub fn asked(&self) -> io::Result<Asked> {
        let at = fs::symlink_metadata(self.spool.path(ASKED))?.modified()?;
        let segment = self.spool.read_small(ASKED)?.parse();
        Ok(Asked { segment: segment.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?, at })
    }

    /// The right to be the one helper here; `None`: there is one. It ends with the file, and so with the process.
    pub fn claim(&self) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(super::spool::NO_LINKS);
        let lock = options.open(self.spool.path(LOCK))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Notes that a helper was called.
    pub fn note_call_of_helper(&self) -> io::Result<()> {
        self.spool.write_small(CALLED, "")
    }

    /// Whether one was called so lately.
    pub fn helper_was_called_within(&self, time: Duration) -> bool {
        let called = fs::symlink_metadata(self.spool.path(CALLED)).and_then(|stat| stat.modified());
        called.is_ok_and(|called| called.elapsed().is_ok_and(|age| age < time))
    }

    /// Begins to put a segment on the shelf.
    pub fn begin(&self, segment: SegmentName) -> io::Result<Growing> {
        let path = self.spool.path(&growing(segment));
        fs::remove_file(&path).ok();
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Growing { shelf: self.clone(), segment, file: Some(file) })
    }

    /// How much of a segment the helper has; `None`: it is not at it.
    pub fn grown(&self, segment: SegmentName) -> Option<u64> {
        fs::symlink_metadata(self.spool.path(&growing(segment))).ok().map(|stat| stat.len())
    }

    /// Whether a segment is there, for all that its names say.
    pub fn has(&self, segment: SegmentName) -> bool {
        [noted(segment), segment.to_string()].iter().all(|name| self.spool.path(name).is_file())
    }

    /// Takes a segment off the shelf and gives it its place, if it is what its note says. `false`: there is none that could
    /// be taken.
    pub fn hand_over(&self, wanted: &Wanted<'_>, now: Timestamp) -> io::Result<bool> {
        let taken = self.take(wanted, now);
        self.drop_segment(wanted.segment);
        let segment = wanted.segment;
        match taken {
            Ok(incoming) => incoming.commit(wanted.size).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => {
                tracing::info!("what was fetched ahead of `{segment}` is not used: {error}");
                Ok(false)
            }
        }
    }

    fn take(&self, wanted: &Wanted<'_>, now: Timestamp) -> io::Result<Incoming> {
        let Wanted { segment, ident, size, target } = *wanted;
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let note: Note = serde_json::from_str(&self.spool.read_small(&noted(segment))?)?;
        let expected = self.note(segment, ident, size, note.xxh3.clone(), note.written);
        let age = now.duration_since(note.written);
        if note != expected || age.is_negative() || age.unsigned_abs() > BELIEVED {
            return Err(wrong("its note is of another segment, cluster or time"));
        }
        let file = self.spool.open_file(&segment.to_string())?;
        let stat = file.metadata()?;
        if stat.len() != size || stat.nlink() != 1 {
            return Err(wrong("it has another length, or another name besides"));
        }
        // On the same file system it changes hands as it is, and is judged where nobody else comes by.
        let source = self.spool.path(&segment.to_string());
        let (incoming, written) = match Incoming::adopt(target, &source, file) {
            Ok(incoming) => (incoming, None),
            Err((file, error)) if error.kind() == io::ErrorKind::CrossesDevices => {
                let incoming = Incoming::create(target)?;
                let sink = incoming.writer()?;
                (incoming, Some((file, sink)))
            }
            Err((_, error)) => return Err(error),
        };
        let reader = incoming.reader()?;
        let digest = match written {
            Some((file, sink)) => copy(file, sink)?,
            None => QuickDigest::of_file(&reader)?,
        };
        if digest.to_string() != note.xxh3 {
            return Err(wrong("its content was damaged"));
        }
        let mut page = [0; WalHeader::LEN];
        reader.read_exact_at(&mut page, 0)?;
        let header = WalHeader::parse(&page).map_err(|e| wrong(&e.to_string()))?;
        header.check(segment, size).map_err(|e| wrong(&e.to_string()))?;
        if header.ident != ident {
            return Err(wrong("it is of another cluster"));
        }
        Ok(incoming)
    }

    /// Removes what does not belong to these segments; half a segment too, unless somebody is at it.
    pub fn keep_only(&self, wanted: impl Fn(SegmentName) -> bool) {
        for name in self.spool.names().unwrap_or_default() {
            let stem = name.trim_end_matches(".note").trim_end_matches(".growing");
            // What begins with a dot is being written.
            let keep = [ASKED, LOCK, CALLED].contains(&name.as_str())
                || name.starts_with('.')
                || stem.parse().is_ok_and(&wanted);
            if !keep {
                self.spool.remove(&name);
            }
        }
    }

    /// Bytes that are free on its file system.
    pub fn free(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(self.spool.directory())?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn drop_segment(&self, segment: SegmentName) {
        self.spool.remove(&noted(segment));
        self.spool.remove(&segment.to_string());
    }

    fn note(&self, segment: SegmentName, ident: ClusterIdent, length: u64, xxh3: String, written: Timestamp) -> Note {
        let (note, repository) = (NOTE.to_owned(), self.repository.clone());
        Note { note, repository, ident, name: segment.to_string(), length, xxh3, written }
    }
}

fn noted(segment: SegmentName) -> String {
    format!("{segment}.note")
}

fn growing(segment: SegmentName) -> String {
    format!("{segment}.growing")
}

/// The digest of a file, all of which goes to `sink`.
fn copy(file: File, sink: impl Write) -> io::Result<QuickDigest> {
    let mut digesting = QuickDigesting::new(sink);
    io::copy(&mut BufReader::with_capacity(256 << 10, file), &mut digesting)?;
    Ok(digesting.finish().0)
}

/// A segment that is on its way to the shelf; it is removed if it never gets there.
pub struct Growing {
    shelf: Shelf,
    segment: SegmentName,
    file: Option<File>,
}

impl Growing {
    /// Takes its content.
    pub fn writer(&self) -> io::Result<QuickDigesting<File>> {
        let file = self.file.as_ref().ok_or_else(|| io::Error::other("it is on the shelf already"))?;
        Ok(QuickDigesting::new(file.try_clone()?))
    }

    /// Puts it on the shelf, verified as it is.
    pub fn finish(mut self, written: QuickDigesting<File>, ident: ClusterIdent, now: Timestamp) -> io::Result<()> {
        let (digest, file) = written.finish();
        let length = file.metadata()?.len();
        let Shelf { spool, .. } = &self.shelf;
        // Whatever stands there is not what belongs there, and a directory could not be replaced.
        self.shelf.drop_segment(self.segment);
        fs::rename(spool.path(&growing(self.segment)), spool.path(&self.segment.to_string()))?;
        self.file = None;
        let note = self.shelf.note(self.segment, ident, length, digest.to_string(), now);
        spool.write_small(&noted(self.segment), &serde_json::to_string(&note)?)
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            self.shelf.spool.remove(&growing(self.segment));
        }
    }
}
