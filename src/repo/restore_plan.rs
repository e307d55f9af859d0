//! What a restore will do, or in a person's words why it cannot.

use std::fmt;

use jiff::Timestamp;

use super::backup_id::BackupId;
use super::inventory::Inventory;
use super::layout::Generation;
use super::manifest::BackupSummary;
use super::restore_target::Target;
use super::timeline_path::{Step, TimelineSpan};
use crate::postgres::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId};

/// A restore that can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorePlan {
    /// From which backup.
    pub backup: BackupSummary,
    /// The timeline to follow, as `recovery_target_timeline` wants to be told.
    pub timeline: TimelineId,
    /// The timelines on the way, the backup's first.
    pub path: Vec<Step>,
    /// The WAL to replay, in this order.
    pub wal: Vec<WalRange>,
    /// What shows that the target will be reached.
    pub proof: Proof,
    /// The first segment behind that WAL which is missing, although later WAL is there.
    pub gap: Option<SegmentName>,
    /// What a person should know before.
    pub warnings: Vec<String>,
}

/// Segments of one timeline that a restore needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// The first.
    pub first: SegmentName,
    /// The last.
    pub last: SegmentName,
    /// How many.
    pub segments: u64,
    /// Their bytes in the store.
    pub stored_bytes: u64,
}

/// What shows that a target will be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// All WAL of the backup is there.
    BackupIsWhole,
    /// Nothing shows that there was more than this.
    EndOfArchive {
        /// The last segment.
        last: SegmentName,
    },
    /// Nothing shows that there was more than this, of which the last is a live tail.
    EndOfTail {
        /// Its end.
        end: Position,
    },
    /// The segment that a position lies in is there.
    SegmentIsThere {
        /// Which.
        segment: SegmentName,
        /// Nothing is there behind it: PostgreSQL stops only if a record begins at the position or behind it.
        last: bool,
    },
    /// A segment has a commit behind the moment, at which recovery stops.
    LaterCommit {
        /// Which.
        segment: SegmentName,
        /// Its last commit.
        at: Timestamp,
    },
    /// A transaction ended in one of these segments, by their transaction numbers.
    Transaction {
        /// The first that it can be.
        first: SegmentName,
        /// The last.
        last: SegmentName,
    },
    /// A segment has the restore point.
    RestorePoint {
        /// Which.
        segment: SegmentName,
        /// When it was made.
        at: Timestamp,
    },
    /// None: some WAL objects do not tell what they hold.
    Unknown {
        /// The first of them.
        segment: SegmentName,
    },
}

/// Up to where everything can be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The end of the last segment or of its live tail, exclusively.
    pub lsn: Lsn,
    /// The last segment.
    pub segment: SegmentName,
    /// Whether only its live tail is there.
    pub in_tail: bool,
}

/// Missing segments of one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The first.
    pub first: SegmentName,
    /// The last.
    pub last: SegmentName,
    /// How many.
    pub segments: u64,
}

/// Why a backup does not lie on the way to a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffPath {
    /// Which backup.
    pub backup: BackupId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Where it stopped.
    pub stop: Lsn,
    /// Where the way leaves its timeline; `None`: the way does not touch it.
    pub left_at: Option<Lsn>,
}

/// Why a target cannot be reached. In words, `it` is the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// There is no backup at all.
    NoBackup {
        /// Of which there are parts only.
        unfinished: Vec<BackupId>,
    },
    /// There are backups, but not one whose manifest can be used.
    AllDamaged(Vec<(BackupId, String)>),
    /// The backup asked for is not there.
    NoSuchBackup(BackupId),
    /// It is there, of another cluster that had this name.
    OtherGeneration {
        /// The backup.
        backup: BackupId,
        /// Its generation.
        generation: Generation,
        /// The one asked for.
        wanted: Generation,
    },
    /// It has no manifest.
    BackupUnfinished(BackupId),
    /// Its manifest cannot be used.
    BackupDamaged(BackupId, String),
    /// The timeline asked for is not there.
    NoSuchTimeline {
        /// Which.
        timeline: TimelineId,
        /// Those that are.
        known: Vec<TimelineId>,
    },
    /// Nobody knows where a timeline comes from.
    HistoryMissing {
        /// Whose history file is not there.
        timeline: TimelineId,
        /// The timeline that was to be followed.
        wanted: TimelineId,
    },
    /// The history file cannot be used.
    HistoryDamaged(TimelineId, String),
    /// No backup lies on the way to the timeline.
    NotAnAncestor {
        /// Which timeline.
        timeline: TimelineId,
        /// The backups, and why not.
        backups: Vec<OffPath>,
    },
    /// No backup ended before the target.
    BeforeFirstBackup {
        /// The backup that ended first, or the one asked for.
        backup: BackupId,
        /// Where it ended.
        stop: Lsn,
        /// When it ended.
        stopped: Timestamp,
        /// It was asked for: there may be earlier ones.
        asked_for: bool,
    },
    /// PostgreSQL would stop at a restore point of this name before the backup is consistent.
    WithinBackup {
        /// Which backup.
        backup: BackupId,
        /// Where the restore point is.
        segment: SegmentName,
    },
    /// WAL is missing on the way.
    Gap {
        /// The backup to begin with.
        backup: BackupId,
        /// What is missing.
        missing: Vec<Missing>,
        /// Up to where all is there; `None`: not even the backup's own WAL.
        newest: Option<Position>,
    },
    /// The first segment of a timeline is not archived yet, and its parent wrote on: PostgreSQL would look there.
    ForkNotArchived {
        /// The timeline.
        timeline: TimelineId,
        /// Where it begins.
        fork: Lsn,
        /// Its first segment.
        missing: SegmentName,
        /// What the parent wrote behind the fork.
        stray: SegmentName,
        /// Up to where all is there.
        newest: Position,
    },
    /// The position was written on a timeline that the way leaves before it.
    BehindTheFork {
        /// The timeline to be followed.
        timeline: TimelineId,
        /// The one that has the position.
        parent: TimelineId,
        /// Where the way leaves that.
        left_at: Lsn,
    },
    /// The archive does not go as far.
    Beyond {
        /// The target.
        target: Target,
        /// Up to where all is there.
        newest: Position,
        /// The last commit in it, if known.
        last_commit: Option<Timestamp>,
    },
    /// No segment on the way has the transaction or restore point.
    NotFound {
        /// The target.
        target: Target,
        /// The first segment that was looked at.
        first: SegmentName,
        /// The last.
        last: SegmentName,
        /// How many of them do not tell what they hold.
        silent: u64,
    },
}

impl RestorePlan {
    pub(super) fn with_warnings(mut self, more: Vec<String>) -> Self {
        self.warnings.extend(more);
        self
    }

    /// Whether nobody knows where the timeline comes from: PostgreSQL follows it only if it is told to stay on the backup's.
    pub fn origin_is_unknown(&self) -> bool {
        let begin = self.path.last().map_or(Lsn::INVALID, |step| step.begin);
        self.timeline != TimelineId::FIRST && begin == Lsn::INVALID
    }

    /// For `wal-fetch --accept-end-at`: a missing segment that shall not stop this recovery. From 15 on PostgreSQL reads ahead, and
    /// asks for what lies behind the target before it sees that it may stop. With a target nothing can be lost: if it is not reached
    /// before that segment, PostgreSQL stops with an error.
    pub fn accept_end_at(&self, target: &Target) -> Option<SegmentName> {
        match target {
            Target::Latest => None,
            // `expire` may delete what lies behind the backup, and leave later WAL.
            Target::Immediate => self.gap.or_else(|| self.behind_the_backup()),
            Target::Time(_) | Target::Lsn(_) | Target::Xid(_) | Target::Name(_) => self.gap,
        }
    }

    fn behind_the_backup(&self) -> Option<SegmentName> {
        let size = self.backup.segment_size()?;
        let last = size.ending_at(self.backup.stop_lsn);
        Some(size.name(self.timeline, SegmentNumber(last.0 + 1)))
    }

    /// How many segments are replayed.
    pub fn segments(&self) -> u64 {
        self.wal.iter().map(|range| range.segments).sum()
    }

    /// Their bytes in the store.
    pub fn wal_bytes(&self) -> u64 {
        self.wal.iter().map(|range| range.stored_bytes).sum()
    }
}

impl Position {
    /// The end of what is there of a segment.
    pub fn within(inventory: &Inventory, segment: SegmentName, number: SegmentNumber) -> Self {
        let in_tail = inventory.tail_of(segment.timeline, number).is_some();
        Position { lsn: inventory.end_of(segment.timeline, number), segment, in_tail }
    }
}

impl Missing {
    /// What is missing, by name.
    pub fn of(missing: TimelineSpan, size: SegmentSize) -> Self {
        let (first, last) = (missing.first_name(size), missing.last_name(size));
        Missing { first, last, segments: missing.span.count() }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.segments {
            1 => write!(f, "`{}`", self.first),
            count => write!(f, "`{}` to `{}` ({count} segments)", self.first, self.last),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.in_tail { "the end of the live tail of" } else { "the end of" };
        write!(f, "{} ({what} segment `{}`)", self.lsn, self.segment)
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Proof::BackupIsWhole => f.write_str("all WAL of the backup is in the repository"),
            Proof::EndOfArchive { last } => {
                write!(f, "no WAL is missing up to `{last}`, and nothing shows that there was more")
            }
            Proof::EndOfTail { end } => {
                write!(f, "no WAL is missing up to {end}, and nothing shows that there was more")
            }
            Proof::SegmentIsThere { segment, last: false } => {
                write!(f, "segment `{segment}`, in which it lies, is in the repository")
            }
            Proof::SegmentIsThere { segment, last: true } => write!(
                f,
                "segment `{segment}`, in which it lies, is the last that can be replayed: PostgreSQL stops there if a record begins \
                 at the target or behind it, and says so if not"
            ),
            Proof::LaterCommit { segment, at } => {
                write!(f, "segment `{segment}` has a commit of {at}, behind the target")
            }
            Proof::Transaction { first, last } if first == last => {
                write!(f, "by its transaction numbers it ended in segment `{first}`")
            }
            Proof::Transaction { first, last } => {
                write!(f, "by their transaction numbers it ended in one of the segments `{first}` to `{last}`")
            }
            Proof::RestorePoint { segment, at } => write!(f, "segment `{segment}` has it, made at {at}"),
            Proof::Unknown { segment } => write!(
                f,
                "none: `{segment}` and perhaps others do not tell which transactions they hold; PostgreSQL will find the target, or say \
                 that it was not reached"
            ),
        }
    }
}
