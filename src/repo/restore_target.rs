//! What a restore is asked for, and what WAL objects tell about the moments they hold.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;

use super::backup_id::BackupId;
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

/// What a segment tells about its own records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentIndex {
    /// Every record was looked at: what is not listed is not there.
    pub whole: bool,
    /// The earliest and the latest time of a commit.
    pub commits: Option<(Timestamp, Timestamp)>,
    /// From which to which transaction some ended, on the circle of their numbers.
    pub xids: Option<(u32, u32)>,
    /// The named restore points, in their order.
    pub restore_points: Vec<RestorePoint>,
}

/// A named restore point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorePoint {
    /// Its name.
    pub name: String,
    /// Where its record begins, if known.
    pub lsn: Option<Lsn>,
}

/// What is known of segments so far; `None` of one whose object tells nothing.
pub type Indexes = BTreeMap<SegmentName, Option<SegmentIndex>>;

impl SegmentIndex {
    /// Whether `xid` may have ended here.
    pub fn may_end(&self, xid: u32) -> bool {
        self.xids.is_some_and(|(low, high)| xid.wrapping_sub(low) <= high.wrapping_sub(low))
    }

    /// The restore point of this name.
    pub fn restore_point(&self, name: &str) -> Option<&RestorePoint> {
        self.restore_points.iter().find(|point| point.name == name)
    }
}
