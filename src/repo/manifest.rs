//! A backup's summary: the first line of its manifest, and all that `list`, `status` and the choice of a backup need.
//!
//! The manifest (`manifest.json.zst`) is JSON, one object a line, in zstd frames:
//!
//! ```text
//! the summary                                        alone in the first frame: one small read gives it
//! {"part":1,"stored":4711,"sha256":"..."}            each part object
//! {"directory":"base/1","mode":448}                  each directory
//! {"file":"base/1/1259","mode":384,...}              each file, with its extents
//! {"bad_page":"base/1/1259","block":7}               each page whose checksum was wrong
//! {"lines":812,"sha256":"..."}                       the end: how many lines stand before it, and their digest
//! ```
//!
//! A backup exists when its manifest does. `manifest_entries` has the other lines.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::backup_id::BackupId;
use super::layout::Generation;
use super::wal_runs::Span;
use crate::postgres::control_details::RecordedSettings;
use crate::postgres::{ClusterIdent, Lsn, PgMajor, SegmentName, SegmentSize, SystemId, TimelineId};

/// What the first line of a manifest has to say.
pub const FORMAT: &str = "pgark-backup-1";

/// A backup in short. Readers pass over fields that they do not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSummary {
    /// [`FORMAT`]
    pub format: String,
    /// Its name.
    pub id: BackupId,
    /// Of the repository.
    pub generation: Generation,
    /// The cluster.
    pub system_identifier: SystemId,
    /// The cluster's major version.
    pub postgres_major: PgMajor,
    /// The operator's words.
    pub label: String,
    /// How the files were read.
    pub method: Method,
    /// Taken from a standby.
    pub from_standby: bool,
    /// The timeline of start and stop.
    pub timeline: TimelineId,
    /// Where replay must begin.
    pub start_lsn: Lsn,
    /// Where replay must have come before the copy is consistent.
    pub stop_lsn: Lsn,
    /// When the backup started, by the server's clock.
    pub started: Timestamp,
    /// When it stopped, by the server's clock: no earlier moment can be restored from it.
    pub stopped: Timestamp,
    /// Bytes in a WAL segment.
    pub segment_size: u64,
    /// Whether the cluster has page checksums.
    pub page_checksums: bool,
    /// Tablespaces besides the two that every cluster has.
    pub tablespaces: Vec<Tablespace>,
    /// Settings that a restored server must not have lower.
    pub settings: RecordedSettings,
    /// How many files there are.
    pub files: u64,
    /// Their bytes.
    pub plain_bytes: u64,
    /// How many part objects there are.
    pub parts: u32,
    /// Their bytes.
    pub stored_bytes: u64,
    /// How many pages had a wrong checksum; the manifest lists them.
    pub bad_pages: u64,
    /// Who took it.
    pub writer: String,
}

/// How a backup's files were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// From the data directory.
    Local,
    /// Over the replication protocol.
    Remote,
}

/// A tablespace that an operator created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its object id: its files are below `pg_tblspc/<oid>`.
    pub oid: u32,
    /// Where it was.
    pub location: String,
}

impl BackupSummary {
    /// The cluster.
    pub fn ident(&self) -> ClusterIdent {
        ClusterIdent { system_id: self.system_identifier, major: self.postgres_major }
    }

    /// The cluster's segment size; `None` if the manifest claims one that no cluster has.
    pub fn segment_size(&self) -> Option<SegmentSize> {
        SegmentSize::new(self.segment_size).ok()
    }

    /// The segments without which the copy cannot be made consistent, of a cluster with this size of segments.
    pub fn own_wal(&self, size: SegmentSize) -> Span {
        Span { first: size.containing(self.start_lsn), last: size.ending_at(self.stop_lsn) }
    }

    /// The first and the last of them.
    pub fn wal_needed(&self) -> Option<(SegmentName, SegmentName)> {
        let size = self.segment_size()?;
        let span = self.own_wal(size);
        Some((size.name(self.timeline, span.first), size.name(self.timeline, span.last)))
    }

    /// What is wrong with a summary that was found under `id` in `generation`.
    pub fn check(&self, generation: Generation, id: BackupId) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("format `{}` needs another version of pgark", self.format));
        }
        if self.id != id || self.generation != generation {
            return Err(format!("it is the manifest of `{}` in generation {}", self.id, self.generation));
        }
        if self.start_lsn >= self.stop_lsn || self.segment_size().is_none() {
            return Err(format!("it claims WAL from {} to {}", self.start_lsn, self.stop_lsn));
        }
        Ok(())
    }
}
