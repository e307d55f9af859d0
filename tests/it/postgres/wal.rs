//! Positions in the write-ahead log and the names of segments, written down here a second time so that the tests do
//! not measure the product with its own ruler. Names follow `XLogFileName` in PostgreSQL's `xlog_internal.h`.

use std::{fmt, str::FromStr};

/// A byte position in the WAL, shown as PostgreSQL does: `1/2A0000F8`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// The name of the segment that holds the last byte before this position.
    pub fn segment_that_ends_here(self, timeline: u32, segment_bytes: u64) -> String {
        segment_name(timeline, (self.0.max(1) - 1) / segment_bytes, segment_bytes)
    }

    /// The name of the segment that holds the first byte after this position.
    pub fn segment_that_starts_here(self, timeline: u32, segment_bytes: u64) -> String {
        segment_name(timeline, self.0 / segment_bytes, segment_bytes)
    }
}

fn segment_name(timeline: u32, number: u64, segment_bytes: u64) -> String {
    let per_log = (1u64 << 32) / segment_bytes;
    format!("{timeline:08X}{:08X}{:08X}", number / per_log, number % per_log)
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = String;

    fn from_str(text: &str) -> Result<Lsn, String> {
        let parse = |half: &str| u32::from_str_radix(half, 16).map_err(|_| format!("`{text}` is no WAL position"));
        let (high, low) = text.split_once('/').ok_or_else(|| format!("`{text}` is no WAL position"))?;
        Ok(Lsn((u64::from(parse(high)?) << 32) | u64::from(parse(low)?)))
    }
}

/// A WAL position on a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub timeline: u32,
    pub lsn: Lsn,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on timeline {}", self.lsn, self.timeline)
    }
}
