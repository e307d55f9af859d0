//! Walks the records of one WAL segment, in the pieces in which its bytes come.
//!
//! It finds where records begin and end, over page and piece borders, and shows the beginning of those that a
//! [`Visitor`] wants. What records mean is not its business: that is `wal_index`. Bodies are passed over, not copied, and
//! no checksum is computed, which is `wal_chain`'s business: that a record is one is told by its length, by the link to the
//! record before it and by the headers of the pages it lies on. Any bytes at all are walked without harm.
//!
//! Source: `XLogPageHeaderData` in `access/xlog_internal.h`, `XLogRecord` in `access/xlogrecord.h`, and the reader in
//! `access/transam/xlogreader.c`; the same in PostgreSQL 13 to 18.

use super::Lsn;
use super::wal_header::{FIRST_IS_CONTINUATION, WalHeader, u32_at, u64_at};
use super::wal_record::{RECORD_HEADER, RecordHeader};

const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = WalHeader::LEN as u64;
/// Records begin on multiples of this, pages hold a whole number of it: so the length of a record is never split.
const ALIGNMENT: u64 = 8;

const FIRST_IS_OVERWRITTEN_CONTINUATION: u16 = 0x8;
/// The flags that a short header may have: all but "long".
const SHORT_HEADER_FLAGS: u16 = 0xD;

/// Who looks at records.
pub trait Visitor {
    /// How many of the record's first bytes it wants to see; 0 for none. They are held in memory.
    fn wants(&self, record: &RecordHeader) -> usize;

    /// A wanted record that lies wholly in the segment: its first bytes, as many as were wanted and are there.
    fn see(&mut self, record: &RecordHeader, start: &[u8]);

    /// A record begins: what is taken from now on is of it. One that has not ended never will.
    fn begin(&mut self, _lsn: Lsn) {}

    /// The next bytes, without headers of pages. Those before the first record are the end of one that began in the
    /// segment before.
    fn take(&mut self, _bytes: &[u8]) {}

    /// All of the record was taken.
    fn end(&mut self) {}
}

/// How the walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// At the end of the segment or of its WAL: every record was passed.
    Whole,
    /// At the end of the segment, within a record that begins in it and that the visitor wants or whose kind is not
    /// known yet.
    Cut,
    /// At bytes that are not WAL, before its end.
    Damaged,
}

/// How far the WAL of a segment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// To its end.
    Full,
    /// To a switch: the rest counts for nothing.
    Switched,
    /// Only to here.
    Until(Lsn),
}

/// Where a walk came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The first page's header.
    pub header: WalHeader,
    /// The first page says that the record before it was given up: the server crashed within it.
    pub overwrites: bool,
    /// The timeline of the last page that was read.
    pub timeline: u32,
    /// How far the WAL goes.
    pub extent: Extent,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Course {
    Walking,
    /// The WAL seems to end on this page. It does if the rest is zeros and no later page belongs to the segment.
    Ending,
    /// It seems to have ended on a page before.
    Stopped,
    Switched,
    Damaged,
}

/// A walk through one segment.
pub struct WalRecords<V> {
    visitor: V,
    course: Course,
    /// Offset in the segment of the byte that comes next.
    at: u64,
    /// The first page's header, once it was read.
    first: Option<WalHeader>,
    /// What that page says besides.
    overwrites: bool,
    /// Where the WAL seems to end, or where it is damaged, and how.
    stopped: Lsn,
    damage: &'static str,
    /// The timeline of the page before.
    timeline: u32,
    page_header: Vec<u8>,
    /// Bytes of the current record that are still to come; 0 between records.
    left: u64,
    /// Where the current record begins.
    begun: Lsn,
    /// Its beginning, until `needed` bytes of it are there.
    held: Vec<u8>,
    needed: usize,
    /// The current record, once its header was read. The end of one that began in the segment before has none.
    record: Option<RecordHeader>,
    /// The record before, once one was passed.
    previous: Option<Lsn>,
}

impl<V: Visitor> WalRecords<V> {
    /// A walk that begins at the first byte of a segment.
    pub fn new(visitor: V) -> Self {
        WalRecords {
            visitor,
            course: Course::Walking,
            at: 0,
            first: None,
            overwrites: false,
            stopped: Lsn::INVALID,
            damage: "it ends too early",
            timeline: 0,
            page_header: Vec::with_capacity(WalHeader::LEN),
            left: 0,
            begun: Lsn::INVALID,
            held: Vec::new(),
            needed: 0,
            record: None,
            previous: None,
        }
    }

    /// Takes the next bytes of the segment.
    pub fn feed(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() && !self.is_over() {
            let page_size = self.first.map_or(LONG_HEADER, |first| u64::from(first.page_size));
            let within = if self.first.is_some() { self.at % page_size } else { self.at };
            let header = if self.at < page_size { LONG_HEADER } else { SHORT_HEADER };
            let room = if within < header { header - within } else { page_size - within };
            let (now, later) = piece.split_at(piece.len().min(room as usize));
            piece = later;
            if within < header {
                self.page_header.extend_from_slice(now);
                self.at += now.len() as u64;
                if now.len() as u64 == room {
                    self.enter_page();
                    self.page_header.clear();
                }
            } else {
                let end = self.at + now.len() as u64;
                self.walk(now);
                self.at = end;
            }
        }
    }

    /// The visitor, and how the walk ended.
    pub fn finish(self) -> (V, Ending) {
        let at_the_end = self.first.is_some_and(|first| self.at >= first.segment_size.bytes());
        let begun_here = self.record.is_some() || !self.held.is_empty();
        let wanted = self.record.is_none_or(|record| self.visitor.wants(&record) > 0);
        let ending = match self.course {
            Course::Switched => Ending::Whole,
            Course::Damaged => Ending::Damaged,
            _ if !at_the_end => Ending::Damaged,
            Course::Walking if begun_here && wanted => Ending::Cut,
            Course::Walking | Course::Ending | Course::Stopped => Ending::Whole,
        };
        (self.visitor, ending)
    }

    /// Where the walk came to; or where it found what is no WAL, and what.
    pub fn reached(&self) -> Result<Reached, (Lsn, &'static str)> {
        let here = self.position();
        let Some(header) = self.first.filter(|_| self.is_over()) else {
            return Err((here, self.damage));
        };
        let extent = match self.course {
            Course::Walking => Extent::Full,
            Course::Switched => Extent::Switched,
            Course::Ending | Course::Stopped => Extent::Until(self.stopped),
            Course::Damaged => return Err((self.stopped, self.damage)),
        };
        Ok(Reached { header, overwrites: self.overwrites, timeline: self.timeline, extent })
    }

    /// The same of the beginning of a segment, of which no more is there.
    pub fn reached_so_far(&self) -> Result<Reached, (Lsn, &'static str)> {
        match self.first.filter(|_| !self.is_over()) {
            None => self.reached(),
            Some(header) => {
                let end = if self.course == Course::Walking { self.position() } else { self.stopped };
                let extent = Extent::Until(end);
                Ok(Reached { header, overwrites: self.overwrites, timeline: self.timeline, extent })
            }
        }
    }

    /// Who looks.
    pub fn visitor(&self) -> &V {
        &self.visitor
    }

    fn damaged(&mut self, at: Lsn, how: &'static str) {
        self.course = Course::Damaged;
        (self.stopped, self.damage) = (at, how);
    }

    fn is_over(&self) -> bool {
        matches!(self.course, Course::Switched | Course::Damaged)
            || self.first.is_some_and(|first| self.at >= first.segment_size.bytes())
    }

    /// The page's header is there, and `at` is behind it.
    fn enter_page(&mut self) {
        let Some(first) = self.first else {
            return self.enter_segment();
        };
        let Some(&header) = self.page_header.first_chunk::<{ SHORT_HEADER as usize }>() else {
            return;
        };
        let magic = u16::from_le_bytes([header[0], header[1]]);
        let flags = u16::from_le_bytes([header[2], header[3]]);
        let (timeline, position) = (u32_at(&header, 4), Lsn(u64_at(&header, 8)));
        let here = Lsn(first.start.0.wrapping_add(self.at - SHORT_HEADER));
        // Not yet written: zeros, or what the file held when it was another segment.
        let belongs = magic == first.ident.major.page_magic() && position == here;
        match self.course {
            Course::Walking if !belongs => (self.course, self.stopped) = (Course::Stopped, here),
            Course::Ending if !belongs => self.course = Course::Stopped,
            Course::Ending | Course::Stopped if belongs => {
                self.damaged(self.stopped, "the WAL seems to end, but later pages follow")
            }
            Course::Walking if flags & !SHORT_HEADER_FLAGS != 0 => self.damaged(here, "the page has unknown flags"),
            Course::Walking if timeline < self.timeline => {
                self.damaged(here, "the page is of an older timeline than the one before")
            }
            _ => {}
        }
        if self.course == Course::Walking {
            self.timeline = timeline;
            self.go_on(here, flags, u64::from(u32_at(&header, 16)));
        }
    }

    /// What the page says about the record that it begins with must be what the page before left over.
    fn go_on(&mut self, here: Lsn, flags: u16, remaining: u64) {
        if flags & FIRST_IS_OVERWRITTEN_CONTINUATION != 0 {
            // The server crashed within a record, and went on here as if it had never begun.
            self.left = 0;
            self.needed = 0;
            self.held.clear();
            self.record = None;
        } else if (flags & FIRST_IS_CONTINUATION != 0) != (self.left > 0) || self.left > 0 && remaining != self.left {
            self.damaged(here, "the page does not go on with the record that the page before begins");
        }
    }

    fn enter_segment(&mut self) {
        let Ok(header) = WalHeader::parse(&self.page_header) else {
            return self.damaged(Lsn::INVALID, "the first page has no header");
        };
        self.first = Some(header);
        self.overwrites = self.page_header[2] & FIRST_IS_OVERWRITTEN_CONTINUATION as u8 != 0;
        self.timeline = header.timeline.get();
        self.left = u64::from(header.continued);
    }

    /// Goes over bytes of one page, behind its header.
    fn walk(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.course == Course::Walking {
            let passed = if self.left > 0 {
                self.within_record(bytes)
            } else if self.held.is_empty() && !self.at.is_multiple_of(ALIGNMENT) {
                bytes.len().min((ALIGNMENT - self.at % ALIGNMENT) as usize)
            } else {
                self.at_record(bytes)
            };
            self.at += passed as u64;
            bytes = &bytes[passed..];
        }
        // PostgreSQL clears a page before it writes the first record on it.
        if self.course == Course::Ending && bytes.iter().any(|byte| *byte != 0) {
            self.damaged(self.stopped, "no record begins here, though the page goes on");
        }
    }

    /// At the beginning of a record. Gives how many bytes were used; the course says whether to go on.
    fn at_record(&mut self, bytes: &[u8]) -> usize {
        if let (true, Some(start)) = (self.held.is_empty(), bytes.first_chunk::<RECORD_HEADER>()) {
            let record = RecordHeader::parse(self.position(), start);
            if !self.accepts_length(record.length) || !self.accepts(&record) {
                return 0;
            }
            // Nearly every record lies in one piece: nothing is copied.
            if let Some(whole) = bytes.get(..record.length as usize) {
                self.visitor.begin(record.lsn);
                self.visitor.take(whole);
                self.pass(record, whole);
                return whole.len();
            }
        }
        if self.held.is_empty() {
            self.begun = self.position();
        }
        // Never more than to the end of the page: a whole number of eights is left there.
        let taken = bytes.len().min(ALIGNMENT as usize - self.held.len());
        self.held.extend_from_slice(&bytes[..taken]);
        if let Some(start) = self.held.first_chunk::<{ ALIGNMENT as usize }>() {
            let (length, xid) = (u32_at(start, 0), u32_at(start, 4));
            if self.accepts_length(length) {
                self.left = u64::from(length) - ALIGNMENT;
                self.needed = RECORD_HEADER;
                self.visitor.begin(self.begun);
                self.visitor.take(&self.held);
            } else if xid != 0 {
                self.damaged(self.begun, "no record begins here, though the page goes on");
            }
        }
        taken
    }

    /// Behind the first eight bytes of a record, or in the end of one that began in the segment before. Gives how many
    /// bytes were used.
    fn within_record(&mut self, bytes: &[u8]) -> usize {
        let mut taken = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if self.held.len() < self.needed {
            taken = taken.min(self.needed - self.held.len());
            self.held.extend_from_slice(&bytes[..taken]);
        }
        self.left -= taken as u64;
        self.visitor.take(&bytes[..taken]);
        if let (None, Some(start)) = (self.record, self.held.first_chunk::<RECORD_HEADER>()) {
            let record = RecordHeader::parse(self.begun, start);
            if !self.accepts(&record) {
                return taken;
            }
            self.needed = self.visitor.wants(&record).min(record.length as usize).max(RECORD_HEADER);
            self.record = Some(record);
        }
        if self.left == 0 {
            let held = std::mem::take(&mut self.held);
            match self.record.take() {
                Some(record) => self.pass(record, &held),
                None => self.visitor.end(),
            }
            self.held = held;
            self.held.clear();
            self.needed = 0;
        }
        taken
    }

    fn pass(&mut self, record: RecordHeader, start: &[u8]) {
        let wanted = self.visitor.wants(&record).min(start.len());
        if wanted > 0 {
            self.visitor.see(&record, &start[..wanted]);
        }
        self.visitor.end();
        self.previous = Some(record.lsn);
        if record.ends_the_segment() {
            self.course = Course::Switched;
        }
    }

    fn accepts_length(&mut self, length: u32) -> bool {
        let here = if self.held.is_empty() { self.position() } else { self.begun };
        match length as usize {
            0 => (self.course, self.stopped) = (Course::Ending, here),
            1..RECORD_HEADER => self.damaged(here, "no record is that short"),
            _ => return true,
        }
        false
    }

    /// Records are linked backwards: what merely looks like one is not.
    fn accepts(&mut self, record: &RecordHeader) -> bool {
        let linked = match self.previous {
            Some(previous) => record.previous == previous,
            None => record.previous < record.lsn,
        };
        if !linked {
            self.damaged(record.lsn, "the record is not linked to the one before");
        }
        linked
    }

    fn position(&self) -> Lsn {
        Lsn(self.first.map_or(0, |first| first.start.0).wrapping_add(self.at))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::PgMajor;
    use super::super::wal_record::{XLOG, XLOG_SWITCH};
    use super::*;
    use proptest::prelude::*;

    const SIZE: usize = 1 << 20;

    /// Writes a segment as PostgreSQL does.
    pub struct Wal {
        pub bytes: Vec<u8>,
        major: PgMajor,
        start: u64,
        page: usize,
        previous: u64,
    }

    impl Wal {
        /// A segment of 1 MiB that begins with the last `continued` bytes of a record.
        pub fn new(major: u32, page: usize, continued: usize) -> Self {
            Wal::at(0x12_3450_0000, major, page, &vec![0xAA; continued])
        }

        /// A segment of 1 MiB that begins here, with the end of a record.
        pub fn at(start: u64, major: u32, page: usize, rest: &[u8]) -> Self {
            let major = PgMajor::try_from(major).unwrap();
            let mut wal = Wal { bytes: Vec::new(), major, start, page, previous: start - 0x100 };
            wal.write(rest, true);
            wal
        }

        pub fn here(&self) -> u64 {
            self.start + self.bytes.len() as u64
        }

        fn page_header(&mut self, flags: u16, remaining: usize) {
            let first = self.bytes.is_empty();
            let here = self.here();
            self.bytes.extend(self.major.page_magic().to_le_bytes());
            self.bytes.extend((flags | if first { 2 } else { 0 }).to_le_bytes());
            self.bytes.extend(1u32.to_le_bytes());
            self.bytes.extend(here.to_le_bytes());
            self.bytes.extend((remaining as u64).to_le_bytes());
            if first {
                self.bytes.extend(7u64.to_le_bytes());
                self.bytes.extend((SIZE as u32).to_le_bytes());
                self.bytes.extend((self.page as u32).to_le_bytes());
            }
        }

        /// `within`: the bytes continue a record that the page before begins. Gives whether all of them fit.
        fn write(&mut self, mut bytes: &[u8], mut within: bool) -> bool {
            loop {
                if self.bytes.len() == SIZE {
                    return bytes.is_empty();
                }
                if self.bytes.len().is_multiple_of(self.page) {
                    let continues = within && !bytes.is_empty();
                    self.page_header(u16::from(continues), if continues { bytes.len() } else { 0 });
                }
                let room = self.page - self.bytes.len() % self.page;
                let (now, later) = bytes.split_at(bytes.len().min(room));
                self.bytes.extend(now);
                bytes = later;
                within = true;
                if bytes.is_empty() {
                    self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
                    return true;
                }
            }
        }

        /// Writes a record, or as much of it as fits. Gives its position, and whether all of it fits.
        pub fn record(&mut self, manager: u8, info: u8, xid: u32, body: &[u8]) -> (Lsn, bool) {
            if self.bytes.len() < SIZE && self.bytes.len().is_multiple_of(self.page) {
                self.page_header(0, 0);
            }
            let here = self.here();
            let mut record = ((RECORD_HEADER + body.len()) as u32).to_le_bytes().to_vec();
            record.extend(xid.to_le_bytes());
            record.extend(self.previous.to_le_bytes());
            record.extend([info, manager, 0, 0]);
            let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
            record.extend(crc.to_le_bytes());
            record.extend(body);
            self.previous = here;
            (Lsn(here), self.write(&record, false))
        }

        /// The server crashed within the last record, at the end of a page, and goes on with the next one.
        pub fn overwrite_last(&mut self, last: Lsn, before: Lsn) {
            let end = ((last.0 - self.start) as usize).next_multiple_of(self.page);
            self.bytes.truncate(end);
            self.page_header(8, 0);
            self.previous = before.0;
        }

        /// The whole segment, filled up with zeros.
        pub fn segment(mut self) -> Vec<u8> {
            self.bytes.resize(SIZE, 0);
            self.bytes
        }
    }

    /// Sees the first bytes of all records but those of manager 9.
    #[derive(Default)]
    struct All {
        wanted: usize,
        seen: Seen,
    }

    impl Visitor for All {
        fn wants(&self, record: &RecordHeader) -> usize {
            if record.manager == 9 { 0 } else { self.wanted }
        }

        fn see(&mut self, record: &RecordHeader, start: &[u8]) {
            assert_eq!(start.len(), self.wanted.min(record.length as usize));
            self.seen.push((record.lsn, start.to_vec()));
        }
    }

    /// Positions of records, and their first bytes or their bodies.
    type Seen = Vec<(Lsn, Vec<u8>)>;

    fn walk<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, wanted: usize) -> (Seen, Ending) {
        let mut records = WalRecords::new(All { wanted, seen: Vec::new() });
        pieces.into_iter().for_each(|piece| records.feed(piece));
        let (all, ending) = records.finish();
        (all.seen, ending)
    }

    fn lsns(segment: &[u8]) -> (Vec<Lsn>, Ending) {
        let (seen, ending) = walk([segment], 24);
        (seen.into_iter().map(|(lsn, _)| lsn).collect(), ending)
    }

    fn some_records(wal: &mut Wal, count: usize) -> Vec<Lsn> {
        (0..count).map(|i| wal.record(10, 0, 5, &vec![i as u8; i * 37 % 500]).0).collect()
    }

    fn any_wal() -> impl Strategy<Value = (Vec<u8>, Seen, Ending)> {
        let record =
            (prop_oneof![Just(9u8), Just(10)], prop_oneof![4 => 0usize..300, 1 => 0usize..40_000], any::<u8>());
        let records = proptest::collection::vec(record, 0..120);
        let page = prop_oneof![Just(1usize << 10), Just(8 << 10), Just(64 << 10)];
        (14u32..=18, page, 0usize..20_000, records).prop_map(|(major, page, continued, records)| {
            let mut wal = Wal::new(major, page, continued);
            let (mut expected, mut ending) = (Vec::new(), Ending::Whole);
            for (manager, length, fill) in records {
                if wal.bytes.len() == SIZE {
                    break;
                }
                let body = vec![fill; length];
                let (lsn, fits) = wal.record(manager, fill, 5, &body);
                if fits && manager != 9 {
                    expected.push((lsn, body));
                } else if !fits && manager != 9 {
                    ending = Ending::Cut;
                }
            }
            (wal.segment(), expected, ending)
        })
    }

    fn pieces<'a>(mut bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        for size in sizes.iter().cycle() {
            if bytes.is_empty() {
                break;
            }
            let (now, later) = bytes.split_at(bytes.len().min(*size));
            pieces.push(now);
            bytes = later;
        }
        pieces
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn every_record_is_found_over_all_borders((segment, expected, ending) in any_wal(), sizes in proptest::collection::vec(1usize..9000, 1..20)) {
            let (seen, ended) = walk(pieces(&segment, &sizes), 50);
            let cut_in_header = ended == Ending::Cut && ending == Ending::Whole;
            prop_assert!(ended == ending || cut_in_header, "{ended:?}");
            prop_assert_eq!(seen.len(), expected.len());
            for ((lsn, start), (expected_lsn, body)) in seen.iter().zip(&expected) {
                prop_assert_eq!(lsn, expected_lsn);
                prop_assert_eq!(&start[24..], &body[..body.len().min(26)]);
            }
            prop_assert_eq!(walk([&segment[..]], 50), (seen, ended));
        }

        #[test]
        fn changed_bytes_do_no_harm_in_any_pieces(
            (mut segment, _, _) in any_wal(),
            changes in proptest::collection::vec((prop_oneof![0usize..64, 0usize..SIZE], any::<u8>()), 0..40),
            zeroed in (0usize..SIZE, 0usize..20_000),
            sizes in proptest::collection::vec(1usize..20_000, 1..20),
        ) {
            for (at, byte) in changes {
                segment[at] ^= byte;
            }
            let (from, length) = zeroed;
            segment[from..(from + length).min(SIZE)].fill(0);
            prop_assert_eq!(walk(pieces(&segment, &sizes), 200), walk([&segment[..]], 200));
        }

        #[test]
        fn any_bytes_behind_a_header_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..30_000), sizes in proptest::collection::vec(1usize..300, 1..20)) {
            let mut segment = Wal::new(15, 1 << 10, 0).bytes;
            segment.extend(&bytes);
            let whole = walk([&segment[..]], 200);
            prop_assert_eq!(walk(pieces(&segment, &sizes), 200), whole);
            walk([&bytes[..]], 200);
        }
    }

    #[test]
    fn byte_by_byte_is_as_good_as_whole() {
        let mut wal = Wal::new(17, 1 << 10, 2500);
        some_records(&mut wal, 200);
        wal.record(10, 0, 5, &[1; 9000]);
        some_records(&mut wal, 20);
        let segment = wal.segment();
        let (seen, ending) = walk([&segment[..]], 300);
        assert_eq!((seen.len(), ending), (221, Ending::Whole));
        assert_eq!(walk(segment.chunks(1), 300), (seen, ending));
    }

    #[test]
    fn behind_a_switch_nothing_counts() {
        let mut wal = Wal::new(15, 8 << 10, 0);
        let expected = some_records(&mut wal, 100);
        let (switch, _) = wal.record(XLOG, XLOG_SWITCH, 0, &[]);
        let end = wal.bytes.len();
        some_records(&mut wal, 1000);
        let mut segment = wal.segment();
        segment[end..end + 50].fill(0xEE);
        let (mut found, ending) = lsns(&segment);
        assert_eq!((found.pop(), ending), (Some(switch), Ending::Whole));
        assert_eq!(found, expected);
    }

    #[test]
    fn zeros_and_older_pages_end_the_wal() {
        let mut wal = Wal::new(15, 8 << 10, 0);
        let expected = some_records(&mut wal, 100);
        let page_end = wal.bytes.len().next_multiple_of(8 << 10);
        let mut segment = wal.segment();
        assert_eq!(lsns(&segment), (expected.clone(), Ending::Whole));
        // What the file held as an earlier segment.
        let mut older = Wal { start: 0x11_0000_0000, ..Wal::new(15, 8 << 10, 0) };
        older.bytes.clear();
        some_records(&mut older, 4000);
        segment[page_end..].copy_from_slice(&older.segment()[page_end..]);
        assert_eq!(lsns(&segment), (expected, Ending::Whole));
    }

    #[test]
    fn a_record_without_its_rest_does_not_count() {
        let mut wal = Wal::new(15, 8 << 10, 0);
        let expected = some_records(&mut wal, 20);
        let (broken, _) = wal.record(10, 0, 5, &[1; 20_000]);
        let mut segment = wal.segment();
        let page_end = ((broken.0 - 0x12_3450_0000) as usize).next_multiple_of(8 << 10);
        segment[page_end..].fill(0);
        assert_eq!(lsns(&segment), (expected, Ending::Whole));
    }

    #[test]
    fn a_hole_is_damage() {
        let mut wal = Wal::new(15, 8 << 10, 0);
        some_records(&mut wal, 1000);
        let end = wal.bytes.len();
        assert!(end % (8 << 10) > 2048);
        let segment = wal.segment();
        assert_eq!(lsns(&segment).1, Ending::Whole);
        let last = (end & !((8 << 10) - 1)) + 512;
        for hole in [8 << 10..16 << 10, 9 << 10..10 << 10, 16 << 10..24 << 10, last..last + 512] {
            let mut segment = segment.clone();
            segment[hole.clone()].fill(0);
            assert_eq!(lsns(&segment).1, Ending::Damaged, "{hole:?}");
        }
        assert_eq!(lsns(&segment[..SIZE - 1]).1, Ending::Damaged);
        assert_eq!(lsns(&[]).1, Ending::Damaged);
    }

    #[test]
    fn a_record_that_a_crash_cut_off_is_passed_over() {
        let mut wal = Wal::new(15, 8 << 10, 0);
        let mut expected = some_records(&mut wal, 20);
        let (broken, _) = wal.record(10, 0, 5, &[1; 20_000]);
        wal.overwrite_last(broken, expected[19]);
        expected.extend(some_records(&mut wal, 20));
        assert_eq!(lsns(&wal.segment()), (expected, Ending::Whole));
    }

    #[test]
    fn what_is_not_linked_is_not_a_record() {
        let mut wal = Wal::new(15, 8 << 10, 0);
        let expected = some_records(&mut wal, 20);
        wal.previous -= 8;
        some_records(&mut wal, 20);
        assert_eq!(lsns(&wal.segment()), (expected, Ending::Damaged));
    }

    #[test]
    fn the_first_record_links_to_an_earlier_one() {
        let mut wal = Wal::new(15, 8 << 10, 0);
        wal.previous = wal.here();
        some_records(&mut wal, 20);
        assert_eq!(lsns(&wal.segment()), (vec![], Ending::Damaged));
    }

    #[test]
    fn a_page_that_contradicts_is_damage() {
        let mut wal = Wal::new(15, 8 << 10, 0);
        some_records(&mut wal, 10);
        wal.record(10, 0, 5, &[1; 30_000]);
        let expected = some_records(&mut wal, 10);
        let segment = wal.segment();
        assert_eq!(lsns(&segment).1, Ending::Whole);
        // On the second page of the long record: flags, timeline, and how much of it is left.
        for (at, byte) in [(2, 0), (2, 3), (2, 0x11), (3, 1), (4, 0), (16, 0xFF), (19, 1)] {
            let mut segment = segment.clone();
            segment[(16 << 10) + at] = byte;
            let (found, ending) = lsns(&segment);
            assert_eq!((found.len(), ending), (10, Ending::Damaged), "{at}");
            assert!(!found.contains(&expected[0]));
        }
        // A continuation of nothing.
        let mut wal = Wal::new(15, 8 << 10, 0);
        some_records(&mut wal, 1);
        let room = (8 << 10) - wal.bytes.len() - RECORD_HEADER;
        wal.record(10, 0, 5, &vec![0; room]);
        some_records(&mut wal, 1);
        let mut segment = wal.segment();
        assert_eq!(lsns(&segment).0.len(), 3);
        segment[(8 << 10) + 2] = 1;
        assert_eq!(lsns(&segment).1, Ending::Damaged);
    }

    #[test]
    fn the_last_record_may_go_on_in_the_next_segment() {
        for room in (8..80).step_by(8) {
            for (manager, kind_known) in [(9, Ending::Whole), (10, Ending::Cut)] {
                let mut wal = Wal::new(15, 8 << 10, 0);
                let filler = SIZE - room - wal.bytes.len() - (SIZE / (8 << 10) - 1) * 24 - RECORD_HEADER;
                wal.record(10, 0, 5, &vec![0; filler]);
                assert_eq!(wal.bytes.len(), SIZE - room);
                wal.record(manager, 0, 5, &[0; 100]);
                let expected = if room < RECORD_HEADER { Ending::Cut } else { kind_known };
                assert_eq!(lsns(&wal.segment()).1, expected, "{room}");
            }
        }
        // Of a record that neither begins nor ends here, the first segment tells.
        assert_eq!(lsns(&Wal::new(15, 8 << 10, 3 * SIZE).segment()), (vec![], Ending::Whole));
    }
}
