//! The WAL of one timeline that is stored: which segments, what is there of others, and where the timeline comes from.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::inventory::Unknown;
use super::live_tail::TailBreak;
use super::wal_runs::{Run, Runs};
use crate::postgres::{HistoryFile, Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId, WalName};
use crate::storage::Listed;

/// The WAL of one timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimelineWal {
    /// Its whole segments.
    pub segments: Runs,
    /// Segments of which an unfinished copy is there.
    pub partials: Vec<SegmentNumber>,
    /// Segments in which a base backup began, by PostgreSQL's notes.
    pub notes: Vec<SegmentNumber>,
    /// Segments of which pieces of the live tail are there.
    pub streamed: Vec<SegmentNumber>,
    /// What the live tail gives behind everything else. Its segment then is the last of `segments`, though it is not whole.
    pub tail: Option<LiveTail>,
    /// Why pieces that are there give nothing, or nothing more.
    pub tail_break: Option<TailBreak>,
    /// Where it comes from.
    pub history: History,
    /// Bytes of all its objects.
    pub stored_bytes: u64,
    /// The same by the day (UTC) on which they were stored, by the store's clock; without those of which it does not say.
    pub stored_days: BTreeMap<Date, u64>,
    /// When the newest of them was stored, by the store's clock.
    pub newest: Option<Timestamp>,
}

/// The beginning of a segment, in pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveTail {
    /// Which segment.
    pub number: SegmentNumber,
    /// Up to where it is there.
    pub end: Lsn,
}

/// A timeline's history file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum History {
    /// It is not in the repository.
    #[default]
    Absent,
    /// What it says.
    Known(HistoryFile),
    /// It cannot be read.
    Damaged(String),
}

/// While the length of segments is not known they are numbered as if they were of the smallest, which has room for every name.
pub(super) const RAW: SegmentSize = SegmentSize::SMALLEST;

impl TimelineWal {
    /// Adds an object; they come in the order of their keys.
    pub(super) fn note(&mut self, name: WalName, number: SegmentNumber, listed: &Listed) {
        let stored = listed.written();
        self.note_bytes(listed);
        self.newest = self.newest.max(stored);
        match name {
            WalName::Segment(_) => self.segments.append(Run::of(number, listed.size, stored)),
            WalName::Partial(_) if self.partials.last() == Some(&number) => {}
            WalName::Partial(_) => self.partials.push(number),
            WalName::Backup { .. } => self.notes.push(number),
            // Read later.
            WalName::History(_) => self.history = History::Damaged(String::new()),
        }
    }

    fn note_bytes(&mut self, listed: &Listed) {
        self.stored_bytes += listed.size;
        if let Some(stored) = listed.written() {
            *self.stored_days.entry(TimeZone::UTC.to_datetime(stored).date()).or_default() += listed.size;
        }
    }

    /// Adds a piece of the live tail.
    pub(super) fn note_piece(&mut self, number: SegmentNumber, listed: &Listed) {
        self.note_bytes(listed);
        self.newest = self.newest.max(listed.written());
        if self.streamed.last() != Some(&number) {
            self.streamed.push(number);
        }
    }

    /// The segment whose live tail recovery would come to: there is nothing later, and it is not there whole.
    pub(super) fn unfinished(&self) -> Option<SegmentNumber> {
        let last = self.streamed.iter().max().copied()?;
        let behind = |numbers: &[SegmentNumber]| numbers.iter().any(|number| *number > last);
        let later = self.segments.last() >= Some(last) || behind(&self.partials) || behind(&self.notes);
        (!later).then_some(last)
    }

    /// How many whole segments there are.
    pub fn whole_segments(&self) -> u64 {
        self.segments.count() - u64::from(self.tail.is_some())
    }

    /// Goes over from the provisional numbers to those of the cluster's segment size.
    pub(super) fn number(&mut self, timeline: TimelineId, size: SegmentSize, unknown: &mut Unknown) {
        let name = |number: SegmentNumber| -> SegmentName { RAW.name(timeline, number) };
        let mut segments = Runs::default();
        for mut run in std::mem::take(&mut self.segments).into_vec() {
            // Piece by piece within 4 GiB: there, numbers are consecutive whatever the size.
            loop {
                let to_border = RAW.segments_per_log() - run.first.0 % RAW.segments_per_log();
                let (piece, rest) = run.cut(to_border);
                let room = size.segments_per_log().saturating_sub(u64::from(name(piece.first).segment));
                let beyond = match size.number(name(piece.first)) {
                    Ok(first) => {
                        let (fitting, beyond) = piece.cut(room);
                        segments.append(fitting.moved_to(first));
                        beyond
                    }
                    Err(_) => Some(piece),
                };
                for number in beyond.iter().flat_map(|beyond| beyond.first.0..=beyond.last().0) {
                    unknown.note(&name(SegmentNumber(number)).to_string());
                }
                match rest {
                    Some(rest) => run = rest,
                    None => break,
                }
            }
        }
        self.segments = segments;
        let place = |number: &SegmentNumber| size.number(name(*number)).ok();
        self.partials = self.partials.iter().filter_map(place).collect();
        self.notes = self.notes.iter().filter_map(place).collect();
        self.streamed = self.streamed.iter().filter_map(place).collect();
    }

    /// The last segment that must have been whole once: it is there, or something of the next one is.
    pub fn last_trace(&self) -> Option<SegmentNumber> {
        let before = |numbers: &[SegmentNumber]| {
            let last = numbers.iter().max().and_then(|number| number.0.checked_sub(1));
            last.map(SegmentNumber)
        };
        // Of a live tail nobody knows whether its segment was ever full.
        let last = self.segments.last().filter(|last| self.tail.is_none_or(|tail| tail.number != *last));
        last.max(before(&self.partials)).max(before(&self.notes)).max(before(&self.streamed))
    }
}
