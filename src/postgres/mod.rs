//! The vocabulary of PostgreSQL: names, positions and file formats, as pure values.
//!
//! Nothing here does I/O, reads a clock or knows a store. Each parser names the PostgreSQL file
//! and struct that it follows; what it returns is valid by construction.

pub mod backup_files;
pub mod backup_history;
pub mod backup_label;
pub mod backup_manifest;
pub mod backup_manifest_reader;
pub mod backup_path;
pub mod conf_line;
pub mod control_details;
pub mod control_file;
pub mod ident;
pub mod lsn;
pub mod page;
pub mod recovery;
pub mod recovery_settings;
pub mod relation_file;
pub mod replication_protocol;
pub mod role_names;
pub mod segment;
pub mod tablespace_map;
pub mod timeline;
pub mod wal_chain;
pub mod wal_header;
pub mod wal_index;
mod wal_leftovers;
pub mod wal_name;
pub mod wal_record;
pub mod wal_records;
pub mod wrong_pages;
pub mod xid;

pub use backup_path::BackupPath;
pub use ident::{ClusterIdent, PgMajor, SystemId};
pub use lsn::Lsn;
pub use segment::{SegmentName, SegmentNumber, SegmentSize};
pub use timeline::{HistoryEntry, HistoryFile, TimelineId};
pub use wal_header::WalHeader;
pub use wal_index::{CommitTimes, RestorePoint, WalIndex, WalIndexer};
pub use wal_name::WalName;
pub use wrong_pages::WrongPages;
pub use xid::{Xid, XidRange};

/// Text or bytes that are not what PostgreSQL writes; the message says what is wrong with them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl Malformed {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}
