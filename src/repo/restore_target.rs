//! What a restore is asked for.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;

use super::backup_id::BackupId;
use crate::postgres::wal_index::WalIndex;
use crate::postgres::{Lsn, SegmentName, TimelineId};

/// Where recovery shall stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Behind the commits of this moment.
    Time(Timestamp),
    /// At this position.
    Lsn(Lsn),
    /// At the end of this transaction.
    Xid(u32),
    /// At this restore point.
    Name(String),
    /// As soon as the backup is consistent.
    Immediate,
    /// At the end of the archive.
    Latest,
}

/// Which timeline recovery shall follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetTimeline {
    /// The highest.
    #[default]
    Latest,
    /// The backup's own.
    Current,
    /// This one.
    Number(TimelineId),
}

/// What to restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where to stop.
    pub target: Target,
    /// Stop just before the target instead of just behind it.
    pub exclusive: bool,
    /// Which timeline to follow.
    pub timeline: TargetTimeline,
    /// From this backup and no other.
    pub backup: Option<BackupId>,
}

impl Request {
    /// To a target on the latest timeline, from whatever backup fits.
    pub fn to(target: Target) -> Self {
        Request { target, exclusive: false, timeline: TargetTimeline::Latest, backup: None }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Time(time) => write!(f, "{time}"),
            Target::Lsn(lsn) => write!(f, "{lsn}"),
            Target::Xid(xid) => write!(f, "transaction {xid}"),
            Target::Name(name) => write!(f, "restore point `{name}`"),
            Target::Immediate => f.write_str("the end of the backup"),
            Target::Latest => f.write_str("the end of the archive"),
        }
    }
}

/// What is known of segments so far; `None` of one whose object tells nothing.
pub type Indexes = BTreeMap<SegmentName, Option<WalIndex>>;
