//! WAL segments: their size, their number and their name.
//!
//! The size belongs to a cluster (`initdb --wal-segsize`) and is read from the segment's header or
//! from `pg_control`. It is never configured and never a global: all arithmetic hangs on it.

use std::fmt;
use std::str::FromStr;

use super::{Lsn, Malformed, TimelineId};

/// The size of a cluster's WAL segments in bytes.
///
/// * A power of two from 1 MiB to 1 GiB.
///
/// Source: `IsValidWalSegSize` in `access/xlog_internal.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentSize(u32);

/// The number of a segment, counted from position 0/0: the same for every timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(pub u64);

/// The 24 hexadecimal digits that name a segment: timeline, log file and segment within it.
///
/// * Two names of one cluster and one timeline are ordered as their positions are.
/// * Whether `segment` is in range depends on the segment size: see [`SegmentSize::number`].
///
/// Source: `XLogFileName` in `access/xlog_internal.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline the segment was written on.
    pub timeline: TimelineId,
    /// The upper 32 bits of the segment's start position.
    pub log: u32,
    /// Which segment within those 4 GiB.
    pub segment: u32,
}

impl SegmentSize {
    /// The default of `initdb`: 16 MiB.
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);
    /// The smallest there is.
    pub const SMALLEST: SegmentSize = SegmentSize(1 << 20);

    /// Takes a number of bytes for a segment size if PostgreSQL would.
    pub fn new(bytes: u64) -> Result<Self, Malformed> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size) => Ok(Self(size)),
            _ => Err(Malformed::new(format!(
                "{bytes} bytes is no WAL segment size: it must be a power of two from 1 MiB to 1 GiB"
            ))),
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// How many segments have the same upper 32 bits of their position.
    pub fn segments_per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }

    /// The number of the segment of this name, or why a cluster with this size cannot have it.
    pub fn number(self, name: SegmentName) -> Result<SegmentNumber, Malformed> {
        if u64::from(name.segment) >= self.segments_per_log() {
            return Err(Malformed::new(format!(
                "segment {name} cannot exist with segments of {} MiB: its last part must be below {:08X}",
                self.bytes() >> 20,
                self.segments_per_log()
            )));
        }
        Ok(SegmentNumber(u64::from(name.log) * self.segments_per_log() + u64::from(name.segment)))
    }

    /// The name of a segment on a timeline.
    pub fn name(self, timeline: TimelineId, number: SegmentNumber) -> SegmentName {
        SegmentName {
            timeline,
            log: (number.0 / self.segments_per_log()) as u32,
            segment: (number.0 % self.segments_per_log()) as u32,
        }
    }

    /// The first position within the segment.
    pub fn start(self, number: SegmentNumber) -> Lsn {
        Lsn(number.0 * self.bytes())
    }

    /// The segment that holds the byte at `lsn`: for the *start* of something.
    pub fn containing(self, lsn: Lsn) -> SegmentNumber {
        SegmentNumber(lsn.0 / self.bytes())
    }

    /// The segment that holds the byte before `lsn`: for the *end* of something.
    pub fn ending_at(self, lsn: Lsn) -> SegmentNumber {
        SegmentNumber(lsn.0.saturating_sub(1) / self.bytes())
    }
}

impl SegmentName {
    /// Whether this segment lies at or behind the position of `other`, whatever their timelines.
    pub fn at_or_after(self, other: SegmentName) -> bool {
        (self.log, self.segment) >= (other.log, other.segment)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:08X}{:08X}", self.timeline, self.log, self.segment)
    }
}

impl FromStr for SegmentName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = || {
            Malformed::new(format!(
                "`{text}` is not the name of a WAL segment: expected 24 upper-case hexadecimal digits"
            ))
        };
        if text.len() != 24 || !text.bytes().all(is_upper_hex) {
            return Err(malformed());
        }
        let part = |from: usize| u32::from_str_radix(&text[from..from + 8], 16).map_err(|_| malformed());
        Ok(SegmentName { timeline: text[..8].parse()?, log: part(8)?, segment: part(16)? })
    }
}

/// PostgreSQL writes names in upper case only; lower case is another file.
pub(super) fn is_upper_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'A'..=b'F')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_size() -> impl Strategy<Value = SegmentSize> {
        (20u32..=30).prop_map(|bits| SegmentSize::new(1 << bits).unwrap())
    }

    #[test]
    fn sizes_are_powers_of_two_in_range() {
        for bytes in [0, 1, 1 << 19, (1 << 20) + 1, 3 << 20, 1 << 31, 1 << 32, u64::MAX] {
            assert!(SegmentSize::new(bytes).is_err(), "{bytes}");
        }
        for bits in 20..=30 {
            assert_eq!(SegmentSize::new(1 << bits).unwrap().bytes(), 1 << bits);
        }
    }

    #[test]
    fn names_as_postgresql_makes_them() {
        let timeline = TimelineId::new(1).unwrap();
        let name = |size: u64, lsn: u64| {
            let size = SegmentSize::new(size).unwrap();
            size.name(timeline, size.containing(Lsn(lsn))).to_string()
        };
        assert_eq!(name(16 << 20, 0x1_0000_0000), "000000010000000100000000");
        assert_eq!(name(16 << 20, 0xFFFF_FFFF), "0000000100000000000000FF");
        assert_eq!(name(1 << 20, 0xFFFF_FFFF), "000000010000000000000FFF");
        assert_eq!(name(1 << 30, 0xFFFF_FFFF), "000000010000000000000003");
    }

    #[test]
    fn an_end_on_a_border_belongs_to_the_segment_before() {
        let size = SegmentSize::DEFAULT;
        assert_eq!(size.containing(Lsn(32 << 20)), SegmentNumber(2));
        assert_eq!(size.ending_at(Lsn(32 << 20)), SegmentNumber(1));
        assert_eq!(size.ending_at(Lsn((32 << 20) + 1)), SegmentNumber(2));
    }

    #[test]
    fn lower_case_and_timeline_zero_are_refused() {
        for text in [
            "00000001000000000000000a",
            "000000000000000000000001",
            "00000001000000000000000",
            "0000000100000000000000001",
            "00000001 00000000000000A",
            "+0000001000000000000000A",
        ] {
            assert!(text.parse::<SegmentName>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn name_number_and_position_agree(size in any_size(), timeline in 1u32.., number in 0u64..1 << 32) {
            let number = SegmentNumber(number % ((1 << 32) * size.segments_per_log()));
            let name = size.name(TimelineId::new(timeline).unwrap(), number);
            prop_assert_eq!(size.number(name).unwrap(), number);
            prop_assert_eq!(name.to_string().parse::<SegmentName>().unwrap(), name);
            prop_assert_eq!(size.containing(size.start(number)), number);
            prop_assert_eq!(size.ending_at(Lsn(size.start(number).0 + size.bytes())), number);
        }

        #[test]
        fn order_of_names_is_order_of_numbers(size in any_size(), a in 0u64..1 << 40, b in 0u64..1 << 40) {
            let timeline = TimelineId::new(7).unwrap();
            let bound = (1u64 << 32) * size.segments_per_log();
            let (a, b) = (SegmentNumber(a % bound), SegmentNumber(b % bound));
            let (name_a, name_b) = (size.name(timeline, a), size.name(timeline, b));
            prop_assert_eq!(a.cmp(&b), name_a.cmp(&name_b));
            prop_assert_eq!(a.cmp(&b), name_a.to_string().cmp(&name_b.to_string()));
        }

        #[test]
        fn a_part_out_of_range_is_refused(size in any_size(), log: u32, segment: u32) {
            let name = SegmentName { timeline: TimelineId::new(1).unwrap(), log, segment };
            prop_assert_eq!(size.number(name).is_ok(), u64::from(segment) < size.segments_per_log());
        }
    }
}
