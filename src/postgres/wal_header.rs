//! The header on the first page of a WAL segment.

use super::{ClusterIdent, Lsn, Malformed, PgMajor, SegmentName, SegmentSize, SystemId, TimelineId};

/// What the first page of a segment says about it.
///
/// * The segment size is valid and the first page starts on a multiple of it.
///
/// Layout, 40 bytes, little endian: 0 `xlp_magic` u16, 2 `xlp_info` u16 (0x2: this long form),
/// 4 `xlp_tli` u32, 8 `xlp_pageaddr` u64, 16 `xlp_rem_len` u32 and 4 bytes of padding, 24 `xlp_sysid`
/// u64, 32 `xlp_seg_size` u32, 36 `xlp_xlog_blcksz` u32.
///
/// Source: `XLogLongPageHeaderData` in `access/xlog_internal.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalHeader {
    /// Whose segment this is.
    pub ident: ClusterIdent,
    /// The timeline on which the first page was written: the parent's, in the first segment after a
    /// switch, since PostgreSQL copies the part before the switch.
    pub timeline: TimelineId,
    /// The position of the first byte.
    pub start: Lsn,
    /// The size of the cluster's segments.
    pub segment_size: SegmentSize,
    /// The size of a WAL page: a power of two from 1 KiB to 64 KiB, nearly always 8 KiB.
    pub page_size: u32,
    /// How many bytes of a record that began in the segment before come first; 0 if a record begins here.
    pub continued: u32,
}

impl WalHeader {
    /// How many bytes [`WalHeader::parse`] needs.
    pub const LEN: usize = 40;

    /// Reads the header at the beginning of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let Some(header) = bytes.first_chunk::<{ Self::LEN }>() else {
            return Err(Malformed::new(format!(
                "{} bytes are too few for a WAL page header of {}",
                bytes.len(),
                Self::LEN
            )));
        };
        let magic = u16::from_le_bytes([header[0], header[1]]);
        let major = PgMajor::from_page_magic(magic).ok_or_else(|| {
            Malformed::new(format!(
                "the first page has magic number {magic:04X}, which no PostgreSQL from 13 to 18 writes"
            ))
        })?;
        let flags = u16::from_le_bytes([header[2], header[3]]);
        check_flags(flags)?;
        let timeline = TimelineId::new(u32_at(header, 4))
            .ok_or_else(|| Malformed::new("the first page is on timeline 0, which does not exist"))?;
        let segment_size = SegmentSize::new(u64::from(u32_at(header, 32)))?;
        let page_size = u32_at(header, 36);
        if !page_size.is_power_of_two() || !(1 << 10..=1 << 16).contains(&page_size) {
            return Err(Malformed::new(format!("{page_size} bytes is no size of a WAL page")));
        }
        let start = Lsn(u64_at(header, 8));
        if !start.0.is_multiple_of(segment_size.bytes()) {
            return Err(Malformed::new(format!("the first page claims position {start}, where no segment begins")));
        }
        let ident = ClusterIdent { system_id: SystemId(u64_at(header, 24)), major };
        let continued = if flags & FIRST_IS_CONTINUATION != 0 { u32_at(header, 16) } else { 0 };
        Ok(WalHeader { ident, timeline, start, segment_size, page_size, continued })
    }

    /// Whether a file of `length` bytes that begins with this header is the segment `name`.
    pub fn check(&self, name: SegmentName, length: u64) -> Result<(), Malformed> {
        if length != self.segment_size.bytes() {
            return Err(Malformed::new(format!(
                "it is {length} bytes long, but its header says that segments are {} bytes",
                self.segment_size.bytes()
            )));
        }
        let number = self.segment_size.number(name)?;
        if self.start != self.segment_size.start(number) {
            return Err(Malformed::new(format!(
                "its first page is at position {}, but segment {name} begins at {}",
                self.start,
                self.segment_size.start(number)
            )));
        }
        if self.timeline > name.timeline {
            return Err(Malformed::new(format!(
                "its first page was written on timeline {}, later than the {} in its name",
                self.timeline.get(),
                name.timeline.get()
            )));
        }
        Ok(())
    }
}

/// `XLP_FIRST_IS_CONTRECORD`: the page begins with the rest of a record.
pub(super) const FIRST_IS_CONTINUATION: u16 = 0x1;

fn check_flags(flags: u16) -> Result<(), Malformed> {
    const LONG_HEADER: u16 = 0x2;
    const ALL_FLAGS: u16 = 0xF;
    if flags & LONG_HEADER == 0 || flags & !ALL_FLAGS != 0 {
        return Err(Malformed::new(format!("the first page has flags {flags:04X}, which no first page has")));
    }
    Ok(())
}

pub(super) fn u32_at<const N: usize>(header: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

pub(super) fn u64_at<const N: usize>(header: &[u8; N], at: usize) -> u64 {
    u64::from(u32_at(header, at)) | u64::from(u32_at(header, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    fn encode(major: u32, timeline: u32, start: u64, system_id: u64, size: u32) -> [u8; WalHeader::LEN] {
        let mut bytes = [0; WalHeader::LEN];
        bytes[0..2].copy_from_slice(&PgMajor::try_from(major).unwrap().page_magic().to_le_bytes());
        bytes[2..4].copy_from_slice(&7u16.to_le_bytes());
        bytes[4..8].copy_from_slice(&timeline.to_le_bytes());
        bytes[8..16].copy_from_slice(&start.to_le_bytes());
        bytes[24..32].copy_from_slice(&system_id.to_le_bytes());
        bytes[32..36].copy_from_slice(&size.to_le_bytes());
        bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
        bytes
    }

    #[test]
    fn reads_the_first_40_bytes_of_a_real_segment() {
        // pg_wal/000000010000000000000001 of a PostgreSQL 15 right after initdb.
        let bytes = encode(15, 1, 16 << 20, 7_301_234_567_890_123_456, 16 << 20);
        let header = WalHeader::parse(&bytes).unwrap();
        assert_eq!(header.ident.major.get(), 15);
        assert_eq!(header.start, Lsn(16 << 20));
        header.check("000000010000000000000001".parse().unwrap(), 16 << 20).unwrap();
        header.check("000000020000000000000001".parse().unwrap(), 16 << 20).unwrap();
    }

    #[test]
    fn names_what_does_not_fit() {
        let header = WalHeader::parse(&encode(16, 2, 3 << 20, 1, 1 << 20)).unwrap();
        let check = |name: &str, length| header.check(name.parse().unwrap(), length).map_err(|e| e.to_string());
        assert!(check("000000020000000000000003", 1 << 20).is_ok());
        assert!(check("000000020000000000000003", (1 << 20) - 1).unwrap_err().contains("bytes long"));
        assert!(check("000000020000000000000004", 1 << 20).unwrap_err().contains("begins at 0/400000"));
        assert!(check("000000010000000000000003", 1 << 20).unwrap_err().contains("timeline 2"));
        assert!(check("000000020000000000001000", 1 << 20).unwrap_err().contains("cannot exist"));
        for length in 0..WalHeader::LEN {
            assert!(WalHeader::parse(&encode(16, 2, 3 << 20, 1, 1 << 20)[..length]).is_err());
        }
    }

    proptest! {
        #[test]
        fn fields_come_back(major in 13u32..=18, timeline in 1u32.., number in 0u64..1 << 30, system_id: u64, bits in 20u32..=30) {
            let header = WalHeader::parse(&encode(major, timeline, number << bits, system_id, 1 << bits)).unwrap();
            prop_assert_eq!(header.ident.major.get(), major);
            prop_assert_eq!(header.ident.system_id, SystemId(system_id));
            prop_assert_eq!(header.timeline.get(), timeline);
            prop_assert_eq!(header.start, Lsn(number << bits));
            let name = header.segment_size.name(header.timeline, SegmentNumber::from_start(header));
            prop_assert!(header.check(name, 1 << bits).is_ok());
        }
    }

    use super::super::SegmentNumber;
    impl SegmentNumber {
        fn from_start(header: WalHeader) -> Self {
            header.segment_size.containing(header.start)
        }
    }

    /// A mutated header may be accepted only where it still says the same of everything that counts.
    #[test]
    fn of_100_000_mutated_headers_none_is_wrongly_accepted() {
        let original = encode(15, 3, 0x1234 << 24, 7_301_234_567_890_123_456, 16 << 20);
        let truth = WalHeader::parse(&original).unwrap();
        let name: SegmentName = "000000030000001200000034".parse().unwrap();
        truth.check(name, 16 << 20).unwrap();
        let mutation = proptest::collection::vec((0..WalHeader::LEN, 1u8..), 1..4);
        let mut runner = TestRunner::new(Config { cases: 100_000, failure_persistence: None, ..Config::default() });
        let outcome = runner.run(&mutation, |changes| {
            let mut bytes = original;
            for (at, flip) in changes {
                bytes[at] ^= flip;
            }
            let accepted = WalHeader::parse(&bytes)
                .ok()
                .filter(|header| header.ident == truth.ident && header.check(name, 16 << 20).is_ok());
            if let Some(header) = accepted {
                prop_assert_eq!(header.start, truth.start);
                prop_assert_eq!(header.segment_size, truth.segment_size);
                prop_assert!(header.timeline <= name.timeline);
                // Only the timeline of the page (a parent's is legal), the three informative flags,
                // the length of a continued record, padding and the page size may differ.
                let tolerated = |at: usize| matches!(at, 2 | 4 | 16..24 | 36..40);
                let differs = (0..WalHeader::LEN).find(|at| bytes[*at] != original[*at] && !tolerated(*at));
                prop_assert_eq!(differs, None);
            }
            Ok(())
        });
        outcome.unwrap();
    }
}
