//! `global/pg_control`: whose cluster this is and where its recovery would begin.

use super::{Malformed, SegmentSize, SystemId, TimelineId};

/// The part of `pg_control` that archiving needs; [`super::control_details`] has what backups need.
///
/// Layout, little endian, the same from PostgreSQL 13 to 18 up to byte 256: 0 `system_identifier`
/// u64, 8 `pg_control_version` u32, 16 `state` u32, 48 `checkPointCopy.ThisTimeLineID` u32, 144 `minRecoveryPointTLI`
/// u32, 208 `floatFormat` f64 (1234567.0), 228 `xlog_seg_size` u32. The CRC-32C of all bytes before
/// it stands at 288 (versions 1300 to 1799, PostgreSQL 13 to 17) or 292 (1800, PostgreSQL 18).
///
/// Source: `ControlFileData` and `CheckPoint` in `catalog/pg_control.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// The system identifier.
    pub system_id: SystemId,
    /// The timeline on which recovery from here begins: the last checkpoint's, or that of the
    /// minimum recovery point where it is later.
    pub timeline: TimelineId,
    /// The size of the cluster's WAL segments.
    pub segment_size: SegmentSize,
    /// Whether the cluster was in archive recovery when the file was written.
    pub in_archive_recovery: bool,
}

/// `DBState` in `catalog/pg_control.h`.
const DB_IN_ARCHIVE_RECOVERY: u32 = 5;

impl ControlFile {
    /// Reads the bytes of the file; a wrong checksum is an error.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let fields = ControlFields::check(bytes)?;
        let timeline = TimelineId::new(fields.u32_at(48).max(fields.u32_at(144)))
            .ok_or_else(|| Malformed::new("pg_control is on timeline 0, which does not exist"))?;
        Ok(ControlFile {
            system_id: SystemId(fields.u64_at(0)),
            timeline,
            segment_size: SegmentSize::new(u64::from(fields.u32_at(228)))?,
            in_archive_recovery: fields.u32_at(16) == DB_IN_ARCHIVE_RECOVERY,
        })
    }
}

/// The bytes of a control file whose version, checksum and byte order are right.
pub(super) struct ControlFields<'a>(&'a [u8; COMMON]);

/// How many bytes have the same layout in all known versions.
const COMMON: usize = 256;

impl<'a> ControlFields<'a> {
    pub(super) fn check(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let too_short = || Malformed::new(format!("pg_control is only {} bytes long", bytes.len()));
        let fields = Self(bytes.first_chunk().ok_or_else(too_short)?);
        let crc_at = match fields.u32_at(8) {
            1300..1800 => 288,
            1800 => 292,
            version => {
                return Err(Malformed::new(format!(
                    "pg_control has version {version}, which this pgark does not know"
                )));
            }
        };
        let (covered, crc) = bytes.split_at_checked(crc_at).ok_or_else(too_short)?;
        let crc = crc.first_chunk::<4>().ok_or_else(too_short)?;
        if crc32c::crc32c(covered) != u32::from_le_bytes(*crc) {
            return Err(Malformed::new("the checksum of pg_control is wrong"));
        }
        if f64::from_bits(fields.u64_at(208)) != 1_234_567.0 {
            return Err(Malformed::new("pg_control was written on another kind of machine"));
        }
        Ok(fields)
    }

    /// The four bytes from `at` on, all within the common layout.
    pub(super) fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    /// The eight bytes from `at` on.
    pub(super) fn u64_at(&self, at: usize) -> u64 {
        u64::from(self.u32_at(at)) | u64::from(self.u32_at(at + 4)) << 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(version: u32, system_id: u64, checkpoint_timeline: u32, recovery_timeline: u32, size: u32) -> Vec<u8> {
        let crc_at = if version == 1800 { 292 } else { 288 };
        let mut bytes = vec![0; 8192];
        bytes[0..8].copy_from_slice(&system_id.to_le_bytes());
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        bytes[48..52].copy_from_slice(&checkpoint_timeline.to_le_bytes());
        bytes[144..148].copy_from_slice(&recovery_timeline.to_le_bytes());
        bytes[208..216].copy_from_slice(&1_234_567.0f64.to_le_bytes());
        bytes[228..232].copy_from_slice(&size.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn takes_the_later_of_both_timelines() {
        for (checkpoint, recovery, expected) in [(1, 0, 1), (2, 3, 3), (3, 2, 3)] {
            let control = ControlFile::parse(&encode(1300, 5, checkpoint, recovery, 1 << 20)).unwrap();
            assert_eq!(control.timeline.get(), expected);
        }
    }

    #[test]
    fn refuses_short_files_and_unknown_versions() {
        let bytes = encode(1300, 5, 1, 0, 1 << 20);
        for length in 0..292 {
            assert!(ControlFile::parse(&bytes[..length]).is_err(), "{length}");
        }
        assert!(ControlFile::parse(&encode(1201, 5, 1, 0, 1 << 20)).is_err());
        assert!(ControlFile::parse(&encode(1900, 5, 1, 0, 1 << 20)).is_err());
    }

    proptest! {
        #[test]
        fn fields_come_back_and_one_flipped_bit_is_noticed(
            new_layout: bool, system_id: u64, timeline in 1u32.., bits in 20u32..=30, at in 0usize..288, bit in 0u8..8,
        ) {
            let version = if new_layout { 1800 } else { 1300 };
            let mut bytes = encode(version, system_id, timeline, 0, 1 << bits);
            let control = ControlFile::parse(&bytes).unwrap();
            prop_assert_eq!(control.system_id, SystemId(system_id));
            prop_assert_eq!(control.timeline.get(), timeline);
            prop_assert_eq!(control.segment_size.bytes(), 1 << bits);
            bytes[at] ^= 1 << bit;
            prop_assert!(ControlFile::parse(&bytes).is_err());
        }
    }
}
