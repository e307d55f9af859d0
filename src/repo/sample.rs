//! Inventories for tests, said in a few words.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::backups::{BackupListing, Piece};
use super::inventory::{Inventory, Unknown};
use super::manifest::{BackupSummary, FORMAT, Method};
use super::restore_target::Indexes;
use super::stored_backups::{BackupState, StoredBackup};
use super::timeline_wal::{History, LiveTail};
use super::wal_runs::Run;
use super::{BackupId, BackupKey, Generation};
use crate::postgres::control_details::{RecordedSettings, WalLevel};
use crate::postgres::timeline::HistoryEntry;
use crate::postgres::wal_index::{CommitTimes, RestorePoint, WalIndex};
use crate::postgres::{
    ClusterIdent, HistoryFile, Lsn, SegmentName, SegmentNumber, SegmentSize, SystemId, TimelineId, Xid, XidRange,
};

pub(super) const SIZE: SegmentSize = SegmentSize::SMALLEST;

pub(super) fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

/// Seconds after a fixed moment.
pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_795_000_000 + seconds).unwrap()
}

/// A position in hundredths of a segment: `lsn(5, 50)` is the middle of segment 5.
pub(super) fn lsn(segment: u64, hundredths: u64) -> Lsn {
    Lsn(segment * SIZE.bytes() + SIZE.bytes() * hundredths / 100)
}

pub(super) fn segment(number: u32, segment: u64) -> SegmentName {
    SIZE.name(timeline(number), SegmentNumber(segment))
}

/// The name of a backup that was begun at a moment.
pub(super) fn id(seconds: i64) -> BackupId {
    BackupId::new(at(seconds), 0xA)
}

pub(super) fn empty() -> Inventory {
    Inventory {
        generation: Generation::FIRST,
        ident: ClusterIdent { system_id: SystemId(7), major: 15.try_into().unwrap() },
        segment_size: SIZE,
        timelines: BTreeMap::new(),
        backups: Vec::new(),
        unknown: Unknown::default(),
    }
}

pub(super) fn summary(id: BackupId, on: u32, start: Lsn, stop: Lsn, stopped: Timestamp) -> BackupSummary {
    BackupSummary {
        format: FORMAT.into(),
        id,
        generation: Generation::FIRST,
        system_identifier: SystemId(7),
        postgres_major: 15.try_into().unwrap(),
        label: "nightly".into(),
        method: Method::Local,
        from_standby: false,
        timeline: timeline(on),
        start_lsn: start,
        stop_lsn: stop,
        started: id.begun(),
        stopped,
        segment_size: SIZE.bytes(),
        page_checksums: true,
        directory_mode: None,
        tablespaces: vec![],
        settings: RecordedSettings {
            wal_level: WalLevel::Replica,
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 64,
        },
        files: 1,
        plain_bytes: 40 << 20,
        parts: 1,
        stored_bytes: 10 << 20,
        bad_pages: 0,
        writer: "db1".into(),
    }
}

impl Inventory {
    /// With segments of a timeline, 1000 bytes each, stored a minute apart.
    pub(super) fn with_wal(mut self, on: u32, segments: impl IntoIterator<Item = u64>) -> Self {
        let wal = self.timelines.entry(timeline(on)).or_default();
        for number in segments {
            let stored = Some(at(number as i64 * 60));
            wal.segments.append(Run::of(SegmentNumber(number), 1000, stored));
            wal.stored_bytes += 1000;
            wal.newest = wal.newest.max(stored);
        }
        self
    }

    /// With a live tail behind the segments, up to a position.
    pub(super) fn with_tail(mut self, on: u32, end: Lsn) -> Self {
        let number = SIZE.containing(end);
        self = self.with_wal(on, [number.0]);
        let wal = self.timelines.entry(timeline(on)).or_default();
        wal.streamed.push(number);
        wal.tail = Some(LiveTail { number, end });
        self
    }

    pub(super) fn with_history(mut self, of: u32, entries: &[(u32, Lsn)]) -> Self {
        let entry = |(parent, switch): &(u32, Lsn)| HistoryEntry {
            parent: timeline(*parent),
            switch: *switch,
            reason: "no recovery target specified".into(),
        };
        let history = HistoryFile { timeline: timeline(of), entries: entries.iter().map(entry).collect() };
        self.timelines.entry(timeline(of)).or_default().history = History::Known(history);
        self
    }

    /// With a backup that was begun at a moment and took ten seconds.
    pub(super) fn with_backup(self, begun: i64, on: u32, start: Lsn, stop: Lsn) -> Self {
        let summary = summary(id(begun), on, start, stop, at(begun + 10));
        self.with_state(begun, BackupState::Whole(Box::new(summary)))
    }

    pub(super) fn with_state(mut self, begun: i64, state: BackupState) -> Self {
        let piece = |key, bytes| Piece { key, bytes, modified: Some(at(begun + 12)) };
        let mut pieces = vec![piece(BackupKey::Part(1), 10 << 20)];
        if state != BackupState::Unfinished {
            pieces.insert(0, piece(BackupKey::Manifest, 0));
        }
        let listing = BackupListing { id: id(begun), pieces };
        self.backups.push(StoredBackup { listing, state });
        self.backups.sort_by_key(|backup| backup.listing.id);
        self
    }
}

/// A segment that tells all: commits between two moments, transactions between two numbers.
pub(super) fn index(commits: Option<(i64, i64)>, xids: Option<(u32, u32)>, points: &[(&str, Lsn)]) -> WalIndex {
    let point = |(name, lsn): &(&str, Lsn)| RestorePoint { name: (*name).to_owned(), time: at(0), lsn: *lsn };
    WalIndex {
        commits: commits.map(|(first, last)| CommitTimes { first: at(first), last: at(last) }),
        xids: xids.map(|(lowest, highest)| XidRange { lowest: Xid(lowest), highest: Xid(highest) }),
        restore_points: points.iter().map(point).collect(),
        tablespaces: vec![],
        complete: true,
        cut: false,
        ends: None,
    }
}

/// What is told by segments of timeline 1: each has commits in its minute, ten transactions, and a restore point of its number.
pub(super) fn plain_indexes(names: &[SegmentName]) -> Indexes {
    let index_of = |name: &SegmentName| {
        let number = SIZE.number(*name).unwrap().0;
        let (seconds, xid) = (number as i64 * 60, number as u32 * 10);
        let point = format!("point-{number}");
        (*name, Some(index(Some((seconds, seconds + 50)), Some((xid, xid + 9)), &[(&point, lsn(number, 50))])))
    };
    names.iter().map(index_of).collect()
}
