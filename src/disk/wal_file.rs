//! A file that PostgreSQL hands to `archive_command`: read once, checked on the way.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::archived_note::FileState;
use crate::postgres::backup_history::check_backup_history;
use crate::postgres::{HistoryFile, WalHeader, WalIndex, WalIndexer, WalName};
use crate::stream::{Packed, pack};

/// Why a file cannot be archived.
#[derive(Debug, thiserror::Error)]
pub enum WalFileError {
    /// It cannot be read.
    #[error("cannot read `{}`: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It is not what its name says.
    #[error("`{}` is not `{name}`: {reason}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The name it should have.
        name: WalName,
        /// What is wrong.
        reason: String,
    },
}

/// An opened WAL file whose first page fits its name.
#[derive(Debug)]
pub struct WalFile {
    path: PathBuf,
    name: WalName,
    file: File,
    before: Metadata,
    /// What the first page says; history and backup files have none.
    pub header: Option<WalHeader>,
}

/// History and backup files are small texts.
const LARGEST_TEXT: u64 = 16 << 20;

impl WalFile {
    /// Opens `path` and checks what can be told by length and first page. Only the first page: PostgreSQL may rightly
    /// archive a segment with a damaged page inside.
    pub fn open(path: &Path, name: WalName) -> Result<Self, WalFileError> {
        let io = |error| WalFileError::Io { path: path.to_owned(), error };
        let refused = |reason: String| WalFileError::Refused { path: path.to_owned(), name, reason };
        let file = File::open(path).map_err(io)?;
        let before = file.metadata().map_err(io)?;
        if !before.is_file() {
            return Err(refused("it is not a regular file".into()));
        }
        let header = match name {
            WalName::Segment(segment) | WalName::Partial(segment) => {
                let mut page = [0; WalHeader::LEN];
                let length = file.read_at(&mut page, 0).map_err(io)?;
                let header = WalHeader::parse(&page[..length]).map_err(|e| refused(e.to_string()))?;
                header.check(segment, before.len()).map_err(|e| refused(e.to_string()))?;
                Some(header)
            }
            WalName::History(_) | WalName::Backup { .. } if before.len() > LARGEST_TEXT => {
                return Err(refused(format!("{} bytes are too many for such a file", before.len())));
            }
            WalName::History(_) | WalName::Backup { .. } => None,
        };
        Ok(WalFile { path: path.to_owned(), name, file, before, header })
    }

    /// The file as it was when it was opened.
    pub fn state(&self) -> FileState {
        FileState::from(&self.before)
    }

    /// Reads the file once: compressed, hashed, of WAL an index made, and refused if it changed meanwhile. Blocking.
    pub fn pack(self, level: i32, room: usize) -> Result<(Packed, Option<WalIndex>), WalFileError> {
        let mut text = Vec::new();
        let mut first = None;
        let keep_text = !self.name.holds_wal();
        let inspect = |_offset: u64, block: &[u8]| {
            if keep_text {
                text.extend_from_slice(block);
            } else if first.is_none() {
                first = Some(WalHeader::parse(block));
            }
            Ok(())
        };
        let mut indexer = self.header.map(|header| WalIndexer::new(header.ident.major));
        let beside = |block: &[u8]| {
            if let Some(indexer) = &mut indexer {
                indexer.feed(block);
            }
        };
        let packed = pack(&self.file, self.before.len(), level, room, inspect, beside)
            .map_err(|error| self.while_reading(error))?;
        self.check_text(&text)?;
        if self.header != first.and_then(Result::ok) {
            return Err(self.refused("its first page changed while it was read"));
        }
        let after = self.file.metadata().map_err(|error| self.while_reading(error))?;
        if self.state() != FileState::from(&after) {
            return Err(self.refused("it changed while it was read"));
        }
        Ok((packed, indexer.map(WalIndexer::finish)))
    }

    fn check_text(&self, text: &[u8]) -> Result<(), WalFileError> {
        let checked = match self.name {
            WalName::History(timeline) => HistoryFile::parse(timeline, text).map(|_| ()),
            WalName::Backup { segment, .. } => check_backup_history(segment, text),
            WalName::Segment(_) | WalName::Partial(_) => Ok(()),
        };
        checked.map_err(|e| self.refused(e.to_string()))
    }

    fn refused(&self, reason: impl Into<String>) -> WalFileError {
        WalFileError::Refused { path: self.path.clone(), name: self.name, reason: reason.into() }
    }

    fn while_reading(&self, error: io::Error) -> WalFileError {
        match error.kind() {
            io::ErrorKind::InvalidData => self.refused(error.to_string()),
            _ => WalFileError::Io { path: self.path.clone(), error },
        }
    }
}
