//! What a generation holds: WAL by timeline, backups, and what is not known. `stocktaking` takes it.
//!
//! Memory grows with the number of gaps and of backups' objects, and by four bytes a segment; [`super::holdings`] adds every object
//! of WAL.

use std::collections::BTreeMap;

use jiff::civil::Date;

use super::BackupId;
use super::layout::Generation;
use super::manifest::BackupSummary;
use super::stored_backups::StoredBackup;
use super::timeline_wal::{History, LiveTail, TimelineWal};
use crate::postgres::{ClusterIdent, HistoryFile, Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId};

/// All that one generation of a repository holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// Which generation.
    pub generation: Generation,
    /// Its cluster.
    pub ident: ClusterIdent,
    /// The length of its segments. Without any segment or backup, the default.
    pub segment_size: SegmentSize,
    /// The timelines of which there is anything, even if only a history file.
    pub timelines: BTreeMap<TimelineId, TimelineWal>,
    /// The backups, whole or not, in the order of their names.
    pub backups: Vec<StoredBackup>,
    /// Objects that this pgark does not know.
    pub unknown: Unknown,
}

/// Objects that this pgark does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unknown {
    /// How many.
    pub count: u64,
    /// The first few keys.
    pub examples: Vec<String>,
}

const MOST_EXAMPLES: usize = 5;

impl Inventory {
    /// The backups that exist.
    pub fn whole_backups(&self) -> impl Iterator<Item = &BackupSummary> {
        self.backups.iter().filter_map(StoredBackup::summary)
    }

    /// What the manifests say that can be read, also of backups that cannot be restored.
    pub fn manifests(&self) -> impl Iterator<Item = &BackupSummary> {
        self.backups.iter().filter_map(StoredBackup::manifest)
    }

    /// The length of segments as the newest backup tells it.
    pub fn told_segment_size(&self) -> Option<SegmentSize> {
        let ours = self.manifests().filter(|summary| summary.ident() == self.ident);
        self.whole_backups().last().or(ours.last()).and_then(BackupSummary::segment_size)
    }

    /// Goes over from the provisional numbers of segments to those of a size.
    pub(super) fn number(&mut self, size: SegmentSize) {
        self.segment_size = size;
        for (timeline, wal) in &mut self.timelines {
            wal.number(*timeline, size, &mut self.unknown);
        }
    }

    /// A backup by its name.
    pub fn backup(&self, id: BackupId) -> Option<&StoredBackup> {
        self.backups.iter().find(|backup| backup.listing.id == id)
    }

    /// A timeline's WAL, if there is any.
    pub fn timeline(&self, timeline: TimelineId) -> Option<&TimelineWal> {
        self.timelines.get(&timeline)
    }

    /// The live tail that a segment of a timeline is, if it is not there whole.
    pub fn tail_of(&self, timeline: TimelineId, number: SegmentNumber) -> Option<&LiveTail> {
        self.timeline(timeline)?.tail.as_ref().filter(|tail| tail.number == number)
    }

    /// Up to where a segment of a timeline is there: to its end, or to that of the live tail.
    pub fn end_of(&self, timeline: TimelineId, number: SegmentNumber) -> Lsn {
        let end = self.segment_size.start(SegmentNumber(number.0 + 1));
        self.tail_of(timeline, number).map_or(end, |tail| tail.end)
    }

    /// Whether a segment of this name is there, or the beginning of it.
    pub fn has(&self, segment: SegmentName) -> bool {
        let number = self.segment_size.number(segment).ok();
        self.timeline(segment.timeline).zip(number).is_some_and(|(wal, number)| wal.segments.has(number))
    }

    /// The history files that can be read.
    pub fn histories(&self) -> impl Iterator<Item = &HistoryFile> {
        self.timelines.values().filter_map(|wal| match &wal.history {
            History::Known(history) => Some(history),
            _ => None,
        })
    }

    /// The bytes of all WAL objects.
    pub fn wal_bytes(&self) -> u64 {
        self.timelines.values().map(|wal| wal.stored_bytes).sum()
    }

    /// The same by the day on which they were stored.
    pub fn wal_days(&self) -> BTreeMap<Date, u64> {
        let mut days = BTreeMap::new();
        for (day, bytes) in self.timelines.values().flat_map(|wal| &wal.stored_days) {
            *days.entry(*day).or_default() += bytes;
        }
        days
    }

    /// The bytes of all backups' objects, whole or not.
    pub fn backup_bytes(&self) -> u64 {
        self.backups.iter().map(|backup| backup.listing.stored_bytes()).sum()
    }
}

impl Unknown {
    pub(super) fn note(&mut self, name: &str) {
        self.count += 1;
        if self.examples.len() < MOST_EXAMPLES {
            self.examples.push(name.to_owned());
        }
    }
}
