//! A note that a file was archived ahead of its turn: durable in the repository, with the content that it had then.
//!
//! The note is bound to the file as it was. One that was replaced, recycled or restored since has another inode or another
//! time of change, and its note says nothing.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Spool;
use crate::postgres::{ClusterIdent, PgMajor, SystemId, WalName};
use crate::stream::Sha256;

/// What tells a file from any other, and from itself after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// The same.
    changed: (i64, i64),
}

impl From<&Metadata> for FileState {
    fn from(stat: &Metadata) -> Self {
        FileState {
            device: stat.dev(),
            inode: stat.ino(),
            size: stat.len(),
            modified: (stat.mtime(), stat.mtime_nsec()),
            changed: (stat.ctime(), stat.ctime_nsec()),
        }
    }
}

/// The note. JSON, in a text of the spool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchivedNote {
    note: String,
    /// The repository, as its settings name it.
    repository: String,
    /// The generation in it.
    generation: String,
    system_identifier: SystemId,
    postgres_major: PgMajor,
    name: String,
    /// Of the plain file.
    sha256: Sha256,
    file: FileState,
    /// When it was written, by this host's clock.
    written: Timestamp,
}

/// The kind and version of the note.
const NOTE: &str = "pgark-archived-1";
/// An older note is not believed: what is in the store may have changed by then.
const BELIEVED: Duration = Duration::from_secs(3600);

/// A file that stands at its place and waits to be archived.
#[derive(Clone, Copy, Debug)]
pub struct Waiting<'a> {
    /// The repository, as its settings name it.
    pub repository: &'a str,
    /// Its name.
    pub name: WalName,
    /// The cluster that wrote it.
    pub ident: ClusterIdent,
    /// The file as it is now.
    pub file: FileState,
}

impl ArchivedNote {
    /// A note that this file is durable in that generation.
    pub fn new(of: Waiting<'_>, generation: String, sha256: Sha256, written: Timestamp) -> Self {
        ArchivedNote {
            note: NOTE.to_owned(),
            repository: of.repository.to_owned(),
            generation,
            system_identifier: of.ident.system_id,
            postgres_major: of.ident.major,
            name: of.name.to_string(),
            sha256,
            file: of.file,
            written,
        }
    }

    /// Puts it into the spool.
    pub fn leave(&self, spool: &Spool) -> std::io::Result<()> {
        spool.write_small(&self.name, &serde_json::to_string(self)?)
    }

    /// The note for a file, if it was left for exactly this one, and lately.
    pub fn find(spool: &Spool, file: &Waiting<'_>, now: Timestamp) -> Option<Self> {
        let text = spool.read_small(&file.name.to_string()).ok()?;
        let note: ArchivedNote = serde_json::from_str(&text).ok()?;
        let expected = ArchivedNote::new(*file, note.generation.clone(), note.sha256, note.written);
        let age = now.duration_since(note.written);
        // A note from the future was written by another clock than ours: nobody knows how old it is.
        let lately = !age.is_negative() && age.unsigned_abs() <= BELIEVED;
        (lately && note == expected).then_some(note)
    }
}

/// Removes notes that nobody will ask for any more.
pub fn sweep(spool: &Spool) {
    for name in spool.names().unwrap_or_default() {
        let old = std::fs::symlink_metadata(spool.path(&name))
            .and_then(|stat| stat.modified())
            .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > BELIEVED));
        if old {
            spool.remove(&name);
        }
    }
}
