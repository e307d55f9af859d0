//! Whether a segment was never finished, though its last page does not end in zeros.
//!
//! A standby that streams writes the bytes that it receives, and no more, into a file that was another segment before. Behind
//! the WAL its last page then goes on with what that segment had there, and so do the pages behind. PostgreSQL itself clears each
//! page before it writes on it.
//!
//! Source: `XLogWalRcvWrite` in `replication/walreceiver.c`; `RemoveXlogFile`, and `CopyXLogRecordToWAL` for what is behind a
//! switch, in `access/transam/xlog.c`.

use super::Lsn;
use super::wal_header::{WalHeader, u64_at};
use super::wal_record::{RECORD_HEADER, RecordHeader};

/// Of a page's header: magic number, flags, timeline, position. All pages have it.
const HEAD: usize = 16;
/// A record's first eight bytes are never apart, so at most these of a switch lie in the next segment.
const MOST_OF_SWITCH: usize = RECORD_HEADER - 8;

/// Whose page it is.
#[derive(PartialEq, Eq)]
enum Of {
    /// The segment's.
    Own,
    /// That of a segment that the file was before.
    Older,
    /// It is all zeros, as far as its header shows.
    Nothing,
    /// Nobody's.
    Nobody,
}

/// Whose page begins with this, at an offset of the segment that begins with `first`.
fn of(head: &[u8; HEAD], at: u64, first: &WalHeader) -> Of {
    let magic = u16::from_le_bytes([head[0], head[1]]);
    let position = u64_at(head, 8);
    let ours = magic == first.ident.major.page_magic();
    if ours && position == first.start.0.wrapping_add(at) {
        Of::Own
    } else if ours && position % first.segment_size.bytes() == at {
        Of::Older
    } else if head.iter().all(|byte| *byte == 0) {
        Of::Nothing
    } else {
        Of::Nobody
    }
}

/// Looks at the pages of a segment, in the pieces in which its bytes come.
#[derive(Default)]
pub(super) struct Leftovers {
    first: Option<WalHeader>,
    /// The end of a record of the segment before, if it may be a switch: what follows the first page's header.
    rest: Vec<u8>,
    /// Offset of the byte that comes next.
    at: u64,
    /// The page it lies on, as far as it is there.
    page: Vec<u8>,
    /// The last page that belongs to the segment, and its offset.
    own: Vec<u8>,
    own_at: u64,
    /// Of the pages behind that one: there is one of another segment; there is one that is neither that nor zeros.
    older: bool,
    strange: bool,
}

impl Leftovers {
    /// Takes the next bytes of the segment.
    pub(super) fn feed(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            piece = self.pass_inner_pages(piece);
            let size = self.first.map_or(WalHeader::LEN, |first| first.page_size as usize);
            let (now, later) = piece.split_at(piece.len().min(size - self.page.len()));
            self.page.extend_from_slice(now);
            self.at += now.len() as u64;
            piece = later;
            if self.page.len() == size {
                match self.first {
                    Some(first) => self.judge_page(&first),
                    None => match WalHeader::parse(&self.page) {
                        Ok(header) => self.first = Some(header),
                        // No segment: nothing is claimed of it.
                        Err(_) => return,
                    },
                }
            }
        }
    }

    /// Nothing of a page need be kept that another one of the segment's own follows: that is nearly every page.
    fn pass_inner_pages<'a>(&mut self, mut piece: &'a [u8]) -> &'a [u8] {
        let Some(first) = self.first.filter(|_| self.page.is_empty()) else { return piece };
        let size = first.page_size as usize;
        let is_own = |bytes: &[u8], at: u64| bytes.first_chunk().is_some_and(|head| of(head, at, &first) == Of::Own);
        while piece.len() >= 2 * size && is_own(piece, self.at) && is_own(&piece[size..], self.at + size as u64) {
            piece = &piece[size..];
            self.at += size as u64;
        }
        piece
    }

    fn judge_page(&mut self, first: &WalHeader) {
        let at = self.at - self.page.len() as u64;
        match self.page.first_chunk().map(|head| of(head, at, first)) {
            Some(Of::Own) => {
                std::mem::swap(&mut self.own, &mut self.page);
                (self.own_at, self.older, self.strange) = (at, false, false);
            }
            Some(Of::Older) => self.older = true,
            Some(Of::Nobody) => self.strange = true,
            Some(Of::Nothing) | None => {}
        }
        if at == 0 {
            let rest = self.own.iter().skip(WalHeader::LEN).take(MOST_OF_SWITCH.min(first.continued as usize));
            self.rest = rest.copied().collect();
        }
        self.page.clear();
    }

    /// Whether a walk that found no WAL at `stopped` met the end of a segment that was never finished. Else that is damage.
    ///
    /// * At least one whole page is behind the one where it stopped, and none of them belongs to the segment: each is zeros, or
    ///   of the segment that the file was before. A segment that was finished has pages of its own to its very end.
    /// * One that was switched ends in zeros. So if all those pages are zeros, the page where it stopped must end in the switch of
    ///   the other segment.
    /// * On the very last page nobody can tell: there the WAL ends only where zeros follow, which is no damage to the walk.
    pub(super) fn explain(&self, stopped: Lsn) -> bool {
        let Some(first) = self.first else { return false };
        let page = u64::from(first.page_size);
        let Some(offset) = stopped.0.checked_sub(first.start.0) else { return false };
        // The header of what is no record may go on on the next page.
        let here = [offset, offset + RECORD_HEADER as u64 - 1].map(|at| at / page * page);
        let whole = self.at == first.segment_size.bytes() && self.page.is_empty();
        let behind = self.own_at + page < first.segment_size.bytes();
        let of_another = self.older || self.ends_in_another_switch(&first, offset);
        whole && behind && !self.strange && here.contains(&self.own_at) && of_another
    }

    /// Whether the last page of its own, behind the WAL, ends in a switch of another segment, or in what the WAL left of one.
    fn ends_in_another_switch(&self, first: &WalHeader, offset: u64) -> bool {
        let stopped = offset.saturating_sub(self.own_at) as usize;
        self.last_record(first).is_some_and(|(begin, record, is_right)| {
            let overwritten = begin < stopped && stopped < begin + RECORD_HEADER;
            record.ends_the_segment() && (overwritten || begin >= stopped && is_right && record.previous < first.start)
        })
    }

    /// What the last page of its own ends in before zeros, as if it were a record without a body; with its offset on that page,
    /// and whether it is one.
    fn last_record(&self, first: &WalHeader) -> Option<(usize, RecordHeader, bool)> {
        let last = self.own.iter().rposition(|byte| *byte != 0)?;
        let begin = (last + 1).next_multiple_of(8).checked_sub(RECORD_HEADER)?;
        let bytes = self.own.get(begin..)?.first_chunk()?;
        let record = RecordHeader::parse(Lsn(first.start.0.wrapping_add(self.own_at + begin as u64)), bytes);
        let is_right =
            record.length as usize == RECORD_HEADER && crc32c::crc32c(&bytes[..RECORD_HEADER - 4]) == record.crc;
        Some((begin, record, is_right))
    }

    /// Whether the segment was switched, so that it is whole, though a walk took its WAL to end at `end`.
    pub(super) fn was_switched(&self, end: Lsn) -> bool {
        let Some(first) = self.first else { return false };
        // Damage can hide a switch from the walk: the record before seems to be longer than it is.
        let hidden = self.last_record(&first).is_some_and(|(_, record, is_right)| {
            is_right && record.ends_the_segment() && record.previous >= first.start && record.lsn < end
        });
        hidden || self.is_switch(&first, end)
    }

    /// Whether all WAL of a segment, up to `end`, is the end of a switch that began in the segment before: then it is whole. All
    /// of a switch is a header; the kind of record is in its last eight bytes.
    fn is_switch(&self, first: &WalHeader, end: Lsn) -> bool {
        let continued = first.continued as usize;
        let mut header = [0; RECORD_HEADER];
        if !matches!(continued, 8 | MOST_OF_SWITCH) || self.rest.len() != continued {
            return false;
        }
        header[RECORD_HEADER - continued..].copy_from_slice(&self.rest);
        end.0 == first.start.0 + (WalHeader::LEN + continued) as u64
            && RecordHeader::parse(first.start, &header).ends_the_segment()
    }
}

#[cfg(test)]
mod tests {
    use super::super::wal_chain::ChainWalker;
    use super::super::wal_index::WalIndexer;
    use super::super::wal_record::{XLOG, XLOG_SWITCH};
    use super::super::wal_records::tests::Wal;
    use super::*;
    use proptest::prelude::*;

    const SIZE: usize = 1 << 20;
    const PAGE: usize = 8 << 10;
    const START: u64 = 0x12_3450_0000;

    fn ends_in(segment: &[u8], piece: usize) -> Option<usize> {
        let mut indexer = WalIndexer::new(15.try_into().unwrap());
        segment.chunks(piece).for_each(|piece| indexer.feed(piece));
        indexer.finish().ends.map(|end| (end.0 - START) as usize)
    }

    fn ends(segment: &[u8]) -> Option<usize> {
        ends_in(segment, SIZE)
    }

    /// A segment that is full of records of these lengths, and where they end.
    fn full(start: u64, page: usize, rest: usize, lengths: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let mut wal = Wal::at(start, 15, page, &vec![0xAA; rest]);
        let mut ends = Vec::new();
        for length in lengths.iter().cycle() {
            if !wal.record(10, 0, 5, &vec![*length as u8; *length]).1 {
                break;
            }
            ends.push(wal.bytes.len());
        }
        (wal.segment(), ends)
    }

    /// One that was switched after so many records.
    fn switched(start: u64, records: usize) -> Vec<u8> {
        let mut wal = Wal::at(start, 15, PAGE, &[]);
        for _ in 0..records {
            wal.record(10, 0, 5, &[3; 100]);
        }
        wal.record(XLOG, XLOG_SWITCH, 0, &[]);
        wal.segment()
    }

    fn over(new: &[u8], cut: usize, old: &[u8]) -> Vec<u8> {
        [&new[..cut], &old[cut..]].concat()
    }

    fn of_this_position(page: usize, rest: usize, lengths: &[usize]) -> (Vec<u8>, Vec<usize>) {
        full(START, page, rest, lengths)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn a_beginning_over_an_older_segment_is_told_wherever_it_is_cut(
            page in prop_oneof![Just(1usize << 10), Just(8 << 10), Just(64 << 10)],
            rests in (0usize..100, 0usize..5000).prop_filter("may be a switch", |(new, _)| ![8, 16].contains(new)),
            new in proptest::collection::vec(0usize..3000, 1..20),
            old in proptest::collection::vec(0usize..3000, 1..20),
            cut in WalHeader::LEN..SIZE,
            at_a_record: bool,
            piece in 1usize..20_000,
        ) {
            let (whole, borders) = of_this_position(page, rests.0, &new);
            prop_assert_eq!(ends_in(&whole, piece), None);
            let last = borders.partition_point(|border| *border <= cut);
            let cut = if at_a_record && last > 0 { borders[last - 1] } else { cut };
            let (older, _) = full(0x11_0000_0000, page, rests.1, &old);
            let begun = over(&whole, cut, &older);
            let found = ends_in(&begun, piece);
            prop_assert_eq!(found, ends(&begun));
            let page_end = cut.next_multiple_of(page);
            if page_end < SIZE {
                let end = found.unwrap();
                let before = borders.iter().take_while(|border| **border <= cut).last().copied().unwrap_or(WalHeader::LEN);
                prop_assert!((before..=page_end).contains(&end), "cut at {cut}, ends at {end}");
                // The end of a record is the end of the WAL, unless the beginning of another seems to fill the page.
                if at_a_record && last > 0 && page_end - cut > 16 {
                    prop_assert_eq!(end, cut);
                }
            } else {
                prop_assert_eq!(found, None);
            }
        }

        #[test]
        fn a_damaged_segment_is_not_taken_for_a_beginning(
            damage in proptest::collection::vec((WalHeader::LEN..SIZE - 2 * PAGE, any::<u8>()), 1..20),
            garbage in WalHeader::LEN..SIZE - 2 * PAGE,
            length in 0..PAGE,
            shift in 1usize..100,
        ) {
            let (mut whole, _) = of_this_position(PAGE, 0, &[100, 3, 1000]);
            let (older, _) = full(0x11_0000_0000, PAGE, shift, &[90, 70, 2000]);
            whole[garbage..garbage + length].copy_from_slice(&older[garbage..garbage + length]);
            damage.iter().for_each(|(at, byte)| whole[*at] ^= byte);
            prop_assert_eq!(ends(&whole), None);
        }
    }

    #[test]
    fn it_is_damage_to_those_who_check_the_records() {
        let (whole, borders) = of_this_position(PAGE, 0, &[100]);
        let cut = borders[500];
        let begun = over(&whole, cut, &full(0x11_0000_0000, PAGE, 40, &[300]).0);
        assert_eq!(ends(&begun), Some(cut));
        let mut walker = ChainWalker::default();
        walker.feed(&begun);
        let fault = walker.finish().fault.unwrap();
        assert!(fault.contains(&format!("damaged at {}", Lsn(START + cut as u64))), "{fault}");
        // Nothing that PostgreSQL wrote is behind it.
        let strange = [&begun[..cut.next_multiple_of(PAGE)], &vec![7; SIZE][cut.next_multiple_of(PAGE)..]].concat();
        assert_eq!(ends(&strange), None);
        assert_eq!(ends(&begun[..SIZE - PAGE]), None);
    }

    #[test]
    fn on_the_last_page_only_zeros_end_it() {
        let (whole, borders) = of_this_position(PAGE, 0, &[100]);
        let last = borders[borders.len() - 20];
        assert!(last > SIZE - PAGE);
        let (older, _) = full(0x11_0000_0000, PAGE, 40, &[300]);
        assert_eq!(ends(&over(&whole, last, &older)), None);
        assert_eq!(ends(&over(&whole, last, &[0; SIZE])), Some(last));
        assert_eq!(ends(&over(&whole, SIZE - PAGE, &older)), Some(SIZE - PAGE));
    }

    /// Where little is written, each segment is a page or two, a switch, and zeros.
    #[test]
    fn the_older_one_may_have_been_switched() {
        let (whole, borders) = of_this_position(PAGE, 0, &[40]);
        for records in [3, 20, 50, 200] {
            let older = switched(0x11_0000_0000, records);
            for cut in borders[1..300].iter().step_by(3) {
                assert_eq!(ends(&over(&whole, *cut, &older)), Some(*cut), "{records}");
            }
        }
    }

    /// A switched segment with a damaged record is damaged, and whole.
    #[test]
    fn one_that_was_switched_itself_is_whole() {
        for records in [1, 3, 70] {
            let whole = switched(START, records);
            let used = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            assert_eq!(ends(&whole), None);
            // But for what says that the last record is a switch and ends there.
            let unsaid = [used - 23..used - 20, used - 8..used - 6];
            let said = |at: &usize| at % PAGE >= WalHeader::LEN && !unsaid.iter().any(|bytes| bytes.contains(at));
            for at in (WalHeader::LEN..used).filter(said).step_by(5) {
                let mut damaged = whole.clone();
                damaged[at] ^= 0x11;
                assert_eq!(ends(&damaged), None, "{records} records, damaged at {at} of {used}");
            }
        }
    }

    #[test]
    fn the_end_of_a_record_is_a_switch_only_if_it_says_so() {
        let header = |info: u8, manager: u8| {
            let mut rest = vec![0x22; 8];
            rest.extend([info, manager, 0, 0, 1, 2, 3, 4]);
            rest
        };
        let ends = |rest: &[u8]| {
            let begun = Wal::at(START, 15, PAGE, rest).segment();
            let cut = (WalHeader::LEN + rest.len()).next_multiple_of(8);
            let ended = ends(&begun);
            assert!(ended.is_none_or(|end| end == cut));
            ended.is_some()
        };
        for (info, manager, is_switch) in [(0x40, 0, true), (0x4F, 0, true), (0x40, 1, false), (0x30, 0, false)] {
            let rest = header(info, manager);
            assert_eq!(!ends(&rest), is_switch, "{info:X} {manager}");
            assert_eq!(!ends(&rest[8..]), is_switch, "{info:X} {manager}");
        }
        for length in [1, 7, 9, 15, 17, 24] {
            assert!(ends(&vec![0; length]), "{length}");
        }
    }
}
