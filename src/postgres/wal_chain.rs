//! Checks the records of WAL as recovery does: their checksums, and that each links to the one before, also from segment to
//! segment.
//!
//! Each segment is walked by itself, in any order and at once with others; what it says about its neighbours is small, and a
//! [`Chain`] puts it together in the order of the WAL. What records mean plays no part, so that those of later versions
//! are no damage. Behind a switch nothing is looked at, as recovery does not.
//!
//! Source: `ValidXLogRecord` and `ValidXLogRecordHeader` in `access/transam/xlogreader.c`; the checksum is CRC-32C of what
//! follows the header, then of the header's first 20 bytes. The same in PostgreSQL 13 to 18.

use super::wal_record::{RECORD_HEADER, RecordHeader};
use super::wal_records::{Extent, Reached, Visitor, WalRecords};
use super::{Lsn, SegmentSize};

/// Bytes of a record's header that its own checksum covers.
const SUMMED: usize = 20;
/// A record's first eight bytes are never apart, so at most these of its header lie in the next segment.
const MOST_OF_HEADER: usize = 16;

/// A stretch of a record: its first bytes as they are, of the others the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    lead: [u8; RECORD_HEADER],
    /// How many of them are there, and how many there may be.
    held: usize,
    most: usize,
    crc: u32,
    /// How many bytes the checksum is of.
    summed: u64,
}

impl Part {
    fn new(most: usize) -> Self {
        Part { lead: [0; RECORD_HEADER], held: 0, most, crc: 0, summed: 0 }
    }

    fn take(&mut self, bytes: &[u8]) {
        let (lead, rest) = bytes.split_at(bytes.len().min(self.most - self.held));
        self.lead[self.held..self.held + lead.len()].copy_from_slice(lead);
        self.held += lead.len();
        self.crc = crc32c::crc32c_append(self.crc, rest);
        self.summed += rest.len() as u64;
    }

    /// Adds the stretch that follows.
    fn append(&mut self, next: &Part) {
        self.take(&next.lead[..next.held]);
        self.crc = crc32c::crc32c_combine(self.crc, next.crc, next.summed as usize);
        self.summed += next.summed;
    }

    fn length(&self) -> u64 {
        self.held as u64 + self.summed
    }

    /// The header of a record of which this is the beginning.
    fn header(&self, lsn: Lsn) -> Option<RecordHeader> {
        (self.held == RECORD_HEADER).then(|| RecordHeader::parse(lsn, &self.lead))
    }

    /// Whether this is a whole record as it was written.
    fn is_right(&self, header: &RecordHeader) -> bool {
        crc32c::crc32c_append(self.crc, &self.lead[..SUMMED]) == header.crc
    }
}

/// Sums up each record.
struct Sums {
    /// The end of a record that began in the segment before, and whether it ends here.
    rest: Part,
    rest_ends: bool,
    /// The record that was begun last, until it ends.
    open: Option<(Lsn, Part)>,
    /// The first record that begins here, and the one that it links to, if its header ends here.
    first: Option<(Lsn, Lsn)>,
    /// The last one that ends here and begins here.
    last: Option<Lsn>,
    records: u64,
    /// Records with a wrong checksum, and the first of them.
    wrong: u64,
    first_wrong: Lsn,
}

impl Visitor for Sums {
    fn wants(&self, _: &RecordHeader) -> usize {
        0
    }

    fn see(&mut self, _: &RecordHeader, _: &[u8]) {}

    fn begin(&mut self, lsn: Lsn) {
        self.open = Some((lsn, Part::new(RECORD_HEADER)));
    }

    fn take(&mut self, bytes: &[u8]) {
        match &mut self.open {
            Some((_, part)) => part.take(bytes),
            None => self.rest.take(bytes),
        }
    }

    fn end(&mut self) {
        self.note_first();
        let Some((lsn, part)) = self.open.take() else {
            self.rest_ends = true;
            return;
        };
        self.records += 1;
        self.last = Some(lsn);
        if !part.header(lsn).is_some_and(|header| part.is_right(&header)) {
            if self.wrong == 0 {
                self.first_wrong = lsn;
            }
            self.wrong += 1;
        }
    }
}

impl Sums {
    fn new() -> Self {
        Sums {
            rest: Part::new(MOST_OF_HEADER),
            rest_ends: false,
            open: None,
            first: None,
            last: None,
            records: 0,
            wrong: 0,
            first_wrong: Lsn::INVALID,
        }
    }

    fn note_first(&mut self) {
        if let (None, Some((lsn, part))) = (self.first, &self.open) {
            self.first = part.header(*lsn).map(|header| (*lsn, header.previous));
        }
    }
}

/// Walks one segment, in the pieces in which its bytes come.
pub struct ChainWalker(WalRecords<Sums>);

/// What a walk through a segment found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Records that lie wholly in it.
    pub records: u64,
    /// What is wrong.
    pub fault: Option<String>,
    /// What it says about its neighbours; `None`: it is damaged, and says nothing.
    pub link: Option<SegmentLink>,
}

/// What a segment says about its neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentLink {
    reached: Reached,
    rest: Part,
    rest_ends: bool,
    first: Option<(Lsn, Lsn)>,
    last: Option<Lsn>,
    open: Option<(Lsn, Part)>,
}

impl Default for ChainWalker {
    fn default() -> Self {
        ChainWalker(WalRecords::new(Sums::new()))
    }
}

impl ChainWalker {
    /// Takes the next bytes of the segment.
    pub fn feed(&mut self, piece: &[u8]) {
        self.0.feed(piece);
    }

    /// What was found in a whole segment.
    pub fn finish(self) -> Walked {
        let reached = self.0.reached();
        self.walked(reached)
    }

    /// What was found in the beginning of one.
    pub fn finish_beginning(self) -> Walked {
        let reached = self.0.reached_so_far();
        self.walked(reached)
    }

    fn walked(self, reached: Result<Reached, (Lsn, &'static str)>) -> Walked {
        let (mut sums, _) = self.0.finish();
        sums.note_first();
        let records = sums.records;
        let fault = match (&reached, sums.wrong) {
            (Err((at, how)), _) => Some(format!("its WAL is damaged at {at}: {how}")),
            (Ok(_), 0) => None,
            (Ok(_), 1) => Some(format!("the record at {} has a wrong checksum", sums.first_wrong)),
            (Ok(_), wrong) => Some(format!("{wrong} records have wrong checksums, the first at {}", sums.first_wrong)),
        };
        let Sums { rest, rest_ends, open, first, last, .. } = sums;
        let link = reached.ok().map(|reached| SegmentLink { reached, rest, rest_ends, first, last, open });
        Walked { records, fault, link }
    }
}

impl SegmentLink {
    /// The size of the cluster's segments.
    pub fn segment_size(&self) -> SegmentSize {
        self.reached.header.segment_size
    }

    /// The timeline of its last page.
    pub fn timeline(&self) -> u32 {
        self.reached.timeline
    }

    fn start(&self) -> Lsn {
        self.reached.header.start
    }

    fn end(&self) -> Lsn {
        Lsn(self.start().0.saturating_add(self.segment_size().bytes()))
    }

    /// Bytes of the record before that its first page announces.
    fn continued(&self) -> u64 {
        u64::from(self.reached.header.continued)
    }
}

/// The record that a segment leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    None,
    /// It begins here, and this is what is there of it.
    Record(Lsn, Part),
    /// It begins where nobody looked; so many bytes are to come.
    Unseen(u64),
}

/// The WAL up to the end of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    end: Lsn,
    extent: Extent,
    timeline: u32,
    /// The last record that is whole, if it was seen.
    last: Option<Lsn>,
    open: Open,
}

impl Chain {
    /// A chain that begins with a segment: what was before it nobody saw.
    pub fn begin(link: &SegmentLink) -> Self {
        let open = if link.continued() > 0 { Open::Unseen(link.continued()) } else { Open::None };
        let before = Chain { end: link.start(), extent: Extent::Full, timeline: 0, last: None, open };
        // Nothing that is not known can be contradicted.
        before.go_on(link).0
    }

    /// Whether a segment begins where this chain ends.
    pub fn leads_to(&self, link: &SegmentLink) -> bool {
        self.end == link.start()
    }

    /// Goes on with the next segment; with it comes what does not fit together.
    pub fn go_on(&self, link: &SegmentLink) -> (Self, Option<String>) {
        let (last, open, fault) = self.pass_over(link);
        let extent = match link.reached.extent {
            // What ends here may have been a switch: then the whole segment belongs to it.
            Extent::Until(_) if link.first.is_none() && self.ends_with_a_switch(link) => Extent::Switched,
            extent => extent,
        };
        let next = Chain {
            end: link.end(),
            extent,
            timeline: link.timeline(),
            last: link.last.or(last),
            open: match link.open {
                Some((lsn, part)) if link.reached.extent == Extent::Full => Open::Record(lsn, part),
                _ if link.first.is_none() && link.reached.extent == Extent::Full => open,
                _ => Open::None,
            },
        };
        (next, fault)
    }

    /// Whether the record that a segment leaves open and the next one ends is a switch, as far as anybody saw it.
    fn ends_with_a_switch(&self, link: &SegmentLink) -> bool {
        let switch = |lsn, mut part: Part| {
            part.append(&link.rest);
            part.header(lsn).is_some_and(|header| header.ends_the_segment())
        };
        link.rest_ends
            && match self.open {
                Open::Record(lsn, part) => switch(lsn, part),
                Open::Unseen(due) => due <= MOST_OF_HEADER as u64,
                Open::None => false,
            }
    }

    /// From the end of the segment before to the first record of the next: the last whole record before it, what is still
    /// open, and what is wrong.
    fn pass_over(&self, link: &SegmentLink) -> (Option<Lsn>, Open, Option<String>) {
        let broken = |fault: String| (None, Open::None, Some(fault));
        let begins_anew = link.first.is_some_and(|(_, previous)| previous == Lsn::INVALID);
        if let Extent::Until(end) = self.extent {
            return broken(format!("the WAL before it ends at {end}, within the segment before"));
        }
        if link.reached.header.timeline.get() < self.timeline {
            return broken("its first page is of an older timeline than the segment before".to_owned());
        }
        let (mut last, mut open) = (self.last, Open::None);
        // Else the server crashed within the open record, and went on as if it had never begun.
        if !link.reached.overwrites {
            let due = self.open.due();
            if due != link.continued() && !begins_anew {
                let announced = link.continued();
                return broken(format!(
                    "{due} bytes of a record are due from the segment before, but it begins with {announced}"
                ));
            }
            match self.open {
                Open::Record(lsn, mut part) => {
                    part.append(&link.rest);
                    match part.header(lsn).filter(|_| link.rest_ends) {
                        None => open = Open::Record(lsn, part),
                        Some(header) if last.is_some_and(|last| header.previous != last) => {
                            return broken(unlinked(lsn));
                        }
                        Some(header) if !part.is_right(&header) => {
                            return broken(format!(
                                "the record at {lsn}, which begins in the segment before, has a wrong checksum"
                            ));
                        }
                        Some(_) => last = Some(lsn),
                    }
                }
                Open::Unseen(_) if link.rest_ends => last = None,
                Open::Unseen(due) => open = Open::Unseen(due.saturating_sub(link.rest.length())),
                Open::None => {}
            }
        }
        let fault = match (link.first, last) {
            (Some(_), Some(_)) if begins_anew => Some(
                "WAL begins anew in it, as after `pg_resetwal`: recovery does not come here from before".to_owned(),
            ),
            (Some((lsn, previous)), Some(last)) if previous != last => Some(unlinked(lsn)),
            _ => None,
        };
        (last, open, fault)
    }
}

impl Open {
    /// Bytes that are to come.
    fn due(&self) -> u64 {
        match self {
            Open::None => 0,
            Open::Unseen(due) => *due,
            Open::Record(_, part) => {
                let length = u32::from_le_bytes([part.lead[0], part.lead[1], part.lead[2], part.lead[3]]);
                u64::from(length).saturating_sub(part.length())
            }
        }
    }
}

fn unlinked(lsn: Lsn) -> String {
    format!("the record at {lsn} is not linked to the last one of the segment before")
}

#[cfg(test)]
mod tests {
    use super::super::PgMajor;
    use super::super::wal_record::{XLOG, XLOG_SWITCH};
    use super::*;
    use proptest::prelude::*;

    const SEGMENT: usize = 1 << 20;
    const PAGE: usize = 8 << 10;

    /// WAL of any length, from the beginning of a segment on.
    struct Wal {
        bytes: Vec<u8>,
        start: u64,
        previous: u64,
        /// Where bytes of records lie.
        records: Vec<std::ops::Range<usize>>,
    }

    impl std::fmt::Debug for Wal {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{} bytes in {} pieces of records", self.bytes.len(), self.records.len())
        }
    }

    impl Wal {
        fn new() -> Self {
            Wal { bytes: Vec::new(), start: 0x12_3450_0000, previous: 0x12_344F_FF00, records: Vec::new() }
        }

        fn page_header(&mut self, flags: u16, remaining: usize) {
            let first = self.bytes.len().is_multiple_of(SEGMENT);
            let here = self.start + self.bytes.len() as u64;
            self.bytes.extend(PgMajor::try_from(15).unwrap().page_magic().to_le_bytes());
            self.bytes.extend((flags | if first { 2 } else { 0 }).to_le_bytes());
            self.bytes.extend(1u32.to_le_bytes());
            self.bytes.extend(here.to_le_bytes());
            self.bytes.extend((remaining as u64).to_le_bytes());
            if first {
                self.bytes.extend(7u64.to_le_bytes());
                self.bytes.extend((SEGMENT as u32).to_le_bytes());
                self.bytes.extend((PAGE as u32).to_le_bytes());
            }
        }

        fn record(&mut self, manager: u8, info: u8, body: &[u8]) {
            if self.bytes.len().is_multiple_of(PAGE) {
                self.page_header(0, 0);
            }
            let lsn = self.start + self.bytes.len() as u64;
            let mut record = ((RECORD_HEADER + body.len()) as u32).to_le_bytes().to_vec();
            record.extend(5u32.to_le_bytes());
            record.extend(self.previous.to_le_bytes());
            record.extend([info, manager, 0, 0]);
            record.extend(crc32c::crc32c_append(crc32c::crc32c(body), &record).to_le_bytes());
            record.extend(body);
            self.previous = lsn;
            let mut left = &record[..];
            loop {
                let room = PAGE - self.bytes.len() % PAGE;
                let (now, later) = left.split_at(left.len().min(room));
                let begin = self.bytes.len();
                self.bytes.extend(now);
                self.records.push(begin..self.bytes.len());
                left = later;
                if left.is_empty() {
                    break;
                }
                self.page_header(1, left.len());
            }
            self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        }

        fn switch(&mut self) {
            self.record(XLOG, XLOG_SWITCH, &[]);
            self.bytes.resize(self.bytes.len().next_multiple_of(SEGMENT), 0);
        }

        /// Fills the segment up to its last `room` bytes.
        fn fill(&mut self, room: usize) {
            loop {
                let at = self.bytes.len() % SEGMENT;
                let headers = (SEGMENT - 1 - at) / PAGE * 24;
                match (SEGMENT - at).checked_sub(room + headers + RECORD_HEADER) {
                    Some(left @ 0..200) => break self.record(10, 0, &vec![7; left]),
                    // Where too little is left the next segment is filled.
                    _ => self.record(10, 0, &[6; 100]),
                }
            }
            assert_eq!(SEGMENT - self.bytes.len() % SEGMENT, room);
        }

        fn whole(mut self) -> Vec<u8> {
            self.bytes.resize(self.bytes.len().next_multiple_of(SEGMENT), 0);
            self.bytes
        }
    }

    fn walk(segment: &[u8]) -> Walked {
        let mut walker = ChainWalker::default();
        segment.chunks(10_007).for_each(|piece| walker.feed(piece));
        walker.finish()
    }

    /// What is wrong, by the number of the segment.
    fn faults(wal: &[u8]) -> Vec<(usize, String)> {
        let mut faults = Vec::new();
        let mut chain: Option<Chain> = None;
        for (number, segment) in wal.chunks(SEGMENT).enumerate() {
            let walked = walk(segment);
            faults.extend(walked.fault.map(|fault| (number, fault)));
            chain = walked.link.map(|link| match &chain {
                Some(chain) => {
                    assert!(chain.leads_to(&link));
                    let (next, fault) = chain.go_on(&link);
                    faults.extend(fault.map(|fault| (number, fault)));
                    next
                }
                None => Chain::begin(&link),
            });
        }
        faults
    }

    fn any_wal() -> impl Strategy<Value = Wal> {
        let length = prop_oneof![20 => 0usize..400, 4 => 0usize..40_000, 1 => 0usize..2_500_000];
        let end = prop_oneof![Just(None), (0usize..8).prop_map(|eights| Some(eights * 8))];
        let segment = (proptest::collection::vec((length, any::<u8>()), 0..60), end);
        proptest::collection::vec(segment, 1..5).prop_map(|segments| {
            let mut wal = Wal::new();
            for (records, end) in segments {
                records.iter().for_each(|(length, fill)| wal.record(10, 0, &vec![*fill; *length]));
                match end {
                    Some(0) | None => wal.switch(),
                    Some(room) => {
                        wal.fill(room);
                        wal.record(11, 0, &vec![1; room * 3]);
                    }
                }
            }
            wal.switch();
            wal
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn whole_wal_has_no_fault_from_any_segment_on(wal in any_wal()) {
            let wal = wal.whole();
            for from in 0..wal.len() / SEGMENT {
                prop_assert_eq!(faults(&wal[from * SEGMENT..]), []);
            }
        }

        #[test]
        fn a_changed_bit_of_any_record_is_found(wal in any_wal(), range: proptest::sample::Index, at: proptest::sample::Index, bit in 0u8..8) {
            let range = wal.records[range.index(wal.records.len())].clone();
            let mut wal = wal.whole();
            let position = range.start + at.index(range.len());
            // A length that leads to pages that were never written looks like the end of the WAL. Only a later segment contradicts that.
            prop_assume!(position >= range.start + 4 || range.start / SEGMENT + 1 < wal.len() / SEGMENT);
            wal[position] ^= 1 << bit;
            let found = faults(&wal);
            prop_assert!(!found.is_empty(), "{position}");
            // Of a record over borders the last segment tells.
            let segment = position / SEGMENT;
            prop_assert!(found[0].0 >= segment && found.len() <= 2, "{segment}: {found:?}");
        }
    }

    #[test]
    fn a_switch_over_a_border_takes_the_next_segment_with_it() {
        for room in [8, 16] {
            let mut wal = Wal::new();
            wal.fill(room);
            wal.switch();
            wal.record(10, 0, &[1; 50]);
            wal.switch();
            let wal = wal.whole();
            assert_eq!(wal.len(), 3 * SEGMENT);
            assert_eq!(faults(&wal), []);
            assert_eq!(faults(&wal[SEGMENT..]), []);
        }
    }

    #[test]
    fn a_record_that_a_crash_cut_off_at_a_border_is_passed_over() {
        let mut wal = Wal::new();
        wal.record(10, 0, &[1; 50]);
        wal.fill(64);
        let before = wal.previous;
        wal.record(10, 0, &[1; 500]);
        wal.bytes.truncate(SEGMENT);
        wal.page_header(8, 0);
        wal.previous = before;
        wal.record(XLOG, 0xD0, &[0; 16]);
        wal.switch();
        let good = wal.whole();
        assert_eq!(faults(&good), []);
        // Without the mark recovery does not go on.
        let mut bad = good.clone();
        bad[SEGMENT + 2] = 2;
        assert_eq!(
            faults(&bad),
            [(1, "460 bytes of a record are due from the segment before, but it begins with 0".into())]
        );
    }

    #[test]
    fn segments_that_do_not_belong_together_are_told() {
        let one = || {
            let mut wal = Wal::new();
            wal.record(10, 0, &[1; 50]);
            wal
        };
        let mut early = one();
        early.bytes.resize(SEGMENT, 0);
        let end = Lsn(early.start + 40 + 80);
        early.record(10, 0, &[1; 50]);
        let found = faults(&early.whole());
        assert_eq!(found, [(1, format!("the WAL before it ends at {end}, within the segment before"))]);

        let mut anew = one();
        anew.switch();
        anew.previous = 0;
        anew.record(10, 0, &[1; 50]);
        let found = faults(&anew.whole());
        assert!(found.len() == 1 && found[0].1.contains("begins anew"), "{found:?}");

        let mut other = one();
        other.switch();
        other.previous -= 8;
        other.record(10, 0, &[1; 50]);
        let found = faults(&other.whole());
        assert!(found.len() == 1 && found[0].1.contains("is not linked"), "{found:?}");
    }

    #[test]
    fn what_lies_behind_the_end_is_no_damage() {
        let mut wal = Wal::new();
        wal.record(10, 0, &[1; 50]);
        wal.record(XLOG, XLOG_SWITCH, &[]);
        let end = wal.bytes.len();
        let mut wal = wal.whole();
        wal[end + 100] = 1;
        assert_eq!(faults(&wal), []);
    }
}
