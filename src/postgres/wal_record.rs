//! What every WAL record begins with.
//!
//! Source: `XLogRecord` in `access/xlogrecord.h`; the same in PostgreSQL 13 to 18.

use super::wal_header::{u32_at, u64_at};
use super::{Lsn, Xid};

/// Bytes that every record begins with.
pub const RECORD_HEADER: usize = 24;

/// `RM_XLOG_ID`, the resource manager of the WAL itself.
pub const XLOG: u8 = 0;
pub(super) const XLOG_SWITCH: u8 = 0x40;

/// What every record begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Where the record begins.
    pub lsn: Lsn,
    /// All its bytes, these included.
    pub length: u32,
    /// The transaction it belongs to; 0 for none.
    pub xid: Xid,
    /// Where the record before it begins.
    pub previous: Lsn,
    /// The kind of record, as its resource manager numbers them.
    pub info: u8,
    /// The resource manager.
    pub manager: u8,
    /// Of the rest of the record, then of the 20 bytes before this.
    pub crc: u32,
}

impl RecordHeader {
    /// Reads it, for a record that begins at `lsn`.
    pub(super) fn parse(lsn: Lsn, bytes: &[u8; RECORD_HEADER]) -> Self {
        RecordHeader {
            lsn,
            length: u32_at(bytes, 0),
            xid: Xid(u32_at(bytes, 4)),
            previous: Lsn(u64_at(bytes, 8)),
            info: bytes[16],
            manager: bytes[17],
            crc: u32_at(bytes, 20),
        }
    }

    /// Whether it is a switch: the rest of its segment holds no record.
    pub(super) fn ends_the_segment(&self) -> bool {
        self.manager == XLOG && self.info & 0xF0 == XLOG_SWITCH
    }
}
