//! The part of `status` about bytes: how many there are, and how fast they become more.

use jiff::civil::Date;
use serde::Serialize;

use crate::repo::Inventory;
use crate::repo::health::Health;

/// How much there is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SizesStatus {
    /// Bytes of WAL objects.
    pub wal_bytes: u64,
    /// Whole segments.
    pub wal_segments: u64,
    /// Bytes of backups.
    pub backup_bytes: u64,
    /// Stored bytes of WAL a day; `None`: less than an hour is covered.
    pub wal_bytes_a_day: Option<u64>,
    /// The days that this is told from.
    pub days: Option<f64>,
    /// Bytes of the WAL objects that are there, by the day (UTC) on which they were stored, as far as the store says when.
    pub wal_days: Vec<DayBytes>,
}

/// What was stored on a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DayBytes {
    /// Which, in UTC.
    pub day: Date,
    /// Bytes that are there still.
    pub bytes: u64,
}

pub(super) fn sizes(inventory: &Inventory, health: &Health) -> SizesStatus {
    SizesStatus {
        wal_bytes: inventory.wal_bytes(),
        wal_segments: inventory.timelines.values().map(|wal| wal.whole_segments()).sum(),
        backup_bytes: inventory.backup_bytes(),
        wal_bytes_a_day: health.growth.map(|growth| growth.bytes_a_day as u64),
        days: health.growth.map(|growth| growth.days),
        wal_days: inventory.wal_days().into_iter().map(|(day, bytes)| DayBytes { day, bytes }).collect(),
    }
}
