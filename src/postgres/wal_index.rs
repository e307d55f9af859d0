//! What a segment's records say to those who look for a place in the WAL: when transactions committed, which ones, and
//! the named restore points.
//!
//! The index tells *where to look*; recovery alone decides what is there. So what cannot be read is left out, and the
//! index then says that it is not complete: what it lacks is unknown, not absent.
//!
//! Source: `xl_xact_commit` and the structs behind it in `access/xact.h`, `xl_restore_point` in
//! `access/xlog_internal.h`, the headers in front of a record's data in `access/xlogrecord.h`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::wal_leftovers::Leftovers;
use super::wal_record::{RECORD_HEADER, RecordHeader, XLOG};
use super::wal_records::{Ending, Extent, Reached, Visitor, WalRecords};
use super::{Lsn, PgMajor, Xid, XidRange};

/// The most restore points that an index names.
pub const MOST_RESTORE_POINTS: usize = 64;

/// The most new tablespaces that an index names.
pub const MOST_TABLESPACES: usize = 16;

/// An index of the records that lie wholly in one segment.
///
/// * A record that lies in two segments is in neither's index: see `cut`.
/// * Aborted transactions and subtransactions are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WalIndex {
    /// The times of the commits in the segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commits: Option<CommitTimes>,
    /// The transactions that committed, a prepared one by the number that it was prepared with. Transactions in between
    /// may be running still, have committed elsewhere, or not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xids: Option<XidRange>,
    /// In the order in which they were made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub restore_points: Vec<RestorePoint>,
    /// Tablespaces that are created: replay makes each at the place where the original had it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tablespaces: Vec<NewTablespace>,
    /// Whether every commit, restore point and new tablespace that lies wholly in the segment was read. If not, what is not found
    /// here is unknown.
    pub complete: bool,
    /// Whether the last record goes on in the next segment and is, or may be, a commit or a restore point. No index has it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// Where the WAL ends in a segment that was never finished: behind it there are zeros, or what the file held before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends: Option<Lsn>,
}

/// The earliest and the latest commit time; in JSON `[first, last]`. Commit records need not be in the order of their
/// times: sessions overtake each other, and clocks are set. Recovery to a time ends before the first commit or abort, in
/// the order of the WAL, that is later: at the latest in the first segment whose `last` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "[Timestamp; 2]", from = "[Timestamp; 2]")]
pub struct CommitTimes {
    /// The earliest.
    pub first: Timestamp,
    /// The latest.
    pub last: Timestamp,
}

/// A named restore point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    /// Its name. Names are not unique: recovery ends at the first one that it meets.
    pub name: String,
    /// When it was made.
    pub time: Timestamp,
    /// Where its record begins.
    pub lsn: Lsn,
}

/// A tablespace that is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTablespace {
    /// Its object id.
    pub oid: u32,
    /// Its directory; bytes that are not UTF-8 are replaced.
    pub location: String,
}

impl From<CommitTimes> for [Timestamp; 2] {
    fn from(times: CommitTimes) -> Self {
        [times.first, times.last]
    }
}

impl From<[Timestamp; 2]> for CommitTimes {
    fn from([first, last]: [Timestamp; 2]) -> Self {
        CommitTimes { first, last }
    }
}

/// Makes the index of a segment from the pieces in which it is read.
pub struct WalIndexer {
    records: WalRecords<Collector>,
    leftovers: Leftovers,
}

impl WalIndexer {
    /// For a segment of this major version.
    pub fn new(major: PgMajor) -> Self {
        let records = WalRecords::new(Collector { major, index: WalIndex::default(), missed: false });
        WalIndexer { records, leftovers: Leftovers::default() }
    }

    /// Takes the next bytes of the segment.
    pub fn feed(&mut self, piece: &[u8]) {
        self.records.feed(piece);
        self.leftovers.feed(piece);
    }

    /// The latest commit time of all that was taken so far.
    pub fn latest_commit(&self) -> Option<Timestamp> {
        self.records.visitor().index.commits.map(|times| times.last)
    }

    /// The index of all that was taken.
    pub fn finish(self) -> WalIndex {
        let ends = match self.records.reached() {
            Ok(Reached { extent: Extent::Until(end), .. }) => Some(end),
            Err((stopped, _)) if self.leftovers.explain(stopped) => Some(stopped),
            _ => None,
        };
        let ends = ends.filter(|end| !self.leftovers.was_switched(*end));
        let (collector, ending) = self.records.finish();
        let complete = !collector.missed && (ending != Ending::Damaged || ends.is_some());
        WalIndex { complete, cut: ending == Ending::Cut, ends, ..collector.index }
    }
}

/// `RM_XACT_ID`.
const TRANSACTIONS: u8 = 1;
/// `XLOG_XACT_OPMASK`, and what is under it.
const OPERATION: u8 = 0x70;
const COMMIT: u8 = 0x00;
const COMMIT_PREPARED: u8 = 0x30;
/// `XLOG_XACT_HAS_INFO`: the flags say what follows the commit time.
const HAS_FLAGS: u8 = 0x80;
/// Of the resource manager `XLOG`.
const RESTORE_POINT: u8 = 0x70;

/// `RM_TBLSPC_ID`, and `XLOG_TBLSPC_CREATE` of `commands/tablespace.h`.
const TABLESPACES: u8 = 5;
const CREATE: u8 = 0x00;

/// Enough for the time of a commit, and for a whole restore point.
const START: usize = 128;
/// Commits of prepared transactions are read whole; beyond 64 KiB (16 000 subtransactions) they count as not readable.
const LARGEST_PREPARED: usize = 64 << 10;
/// `MAXFNAMELEN`, with the NUL.
const NAME: usize = 64;
/// A path of `MAXPGPATH` with all that stands before it.
const LARGEST_CREATE: usize = 1100;

#[derive(Clone, Copy)]
enum Kind {
    Commit,
    CommitPrepared,
    RestorePoint,
    Tablespace,
}

fn kind(record: &RecordHeader) -> Option<Kind> {
    match (record.manager, record.info) {
        (TRANSACTIONS, info) if info & OPERATION == COMMIT => Some(Kind::Commit),
        (TRANSACTIONS, info) if info & OPERATION == COMMIT_PREPARED => Some(Kind::CommitPrepared),
        (XLOG, info) if info & 0xF0 == RESTORE_POINT => Some(Kind::RestorePoint),
        (TABLESPACES, info) if info & 0xF0 == CREATE => Some(Kind::Tablespace),
        _ => None,
    }
}

struct Collector {
    major: PgMajor,
    index: WalIndex,
    /// Something could not be read.
    missed: bool,
}

impl Visitor for Collector {
    fn wants(&self, record: &RecordHeader) -> usize {
        match kind(record) {
            None => 0,
            Some(Kind::CommitPrepared) => LARGEST_PREPARED,
            Some(Kind::Commit | Kind::RestorePoint) => START,
            Some(Kind::Tablespace) => LARGEST_CREATE,
        }
    }

    fn see(&mut self, record: &RecordHeader, start: &[u8]) {
        let Some(kind) = kind(record) else { return };
        let read = main_data(record, start).and_then(|data| match kind {
            Kind::Commit => self.commit(data, Some(record.xid)),
            Kind::CommitPrepared => self.commit(data, prepared_xid(self.major, record, data)),
            Kind::RestorePoint => self.restore_point(record.lsn, data),
            Kind::Tablespace => self.tablespace(data),
        });
        self.missed |= read.is_none();
    }
}

/// `None`: not all could be read, or kept.
impl Collector {
    fn commit(&mut self, data: &[u8], xid: Option<Xid>) -> Option<()> {
        let time = time(data)?;
        let known = self.index.commits.unwrap_or(CommitTimes { first: time, last: time });
        self.index.commits = Some(CommitTimes { first: known.first.min(time), last: known.last.max(time) });
        let xid = xid.filter(|xid| xid.is_normal())?;
        self.index.xids = Some(self.index.xids.map_or(XidRange::of(xid), |range| range.with(xid)));
        Some(())
    }

    fn restore_point(&mut self, lsn: Lsn, data: &[u8]) -> Option<()> {
        let time = time(data)?;
        let name = data.get(8..8 + NAME)?.split(|byte| *byte == 0).next().filter(|name| name.len() < NAME)?;
        let name = std::str::from_utf8(name).ok()?.to_owned();
        if self.index.restore_points.len() == MOST_RESTORE_POINTS {
            return None;
        }
        self.index.restore_points.push(RestorePoint { name, time, lsn });
        Some(())
    }
}

impl Collector {
    /// `xl_tblspc_create_rec`: the object id, then the path with its NUL.
    fn tablespace(&mut self, data: &[u8]) -> Option<()> {
        let oid = u32_in(data, 0)?;
        let (path, _) = data.get(4..)?.split_at_checked(data.get(4..)?.iter().position(|byte| *byte == 0)?)?;
        if self.index.tablespaces.len() == MOST_TABLESPACES {
            return None;
        }
        let location = String::from_utf8_lossy(path).into_owned();
        self.index.tablespaces.push(NewTablespace { oid, location });
        Some(())
    }
}

/// The main data of a record without blocks, as commits and restore points are, as far as it is in `start`.
fn main_data<'a>(record: &RecordHeader, start: &'a [u8]) -> Option<&'a [u8]> {
    const DATA_SHORT: u8 = 255;
    const DATA_LONG: u8 = 254;
    const ORIGIN: u8 = 253;
    const TOP_LEVEL_XID: u8 = 252;
    let mut at = RECORD_HEADER;
    let (header, length) = loop {
        match *start.get(at)? {
            ORIGIN => at += 1 + 2,
            TOP_LEVEL_XID => at += 1 + 4,
            DATA_SHORT => break (1 + 1, u32::from(*start.get(at + 1)?)),
            DATA_LONG => break (1 + 4, u32_in(start, at + 1)?),
            _ => return None,
        }
    };
    // Nothing but the main data follows.
    (at as u64 + header as u64 + u64::from(length) == u64::from(record.length)).then(|| start.get(at + header..))?
}

/// The transaction that was prepared; the record itself belongs to none. It stands behind lists of varying length, of
/// which each begins with the number of its items.
fn prepared_xid(major: PgMajor, record: &RecordHeader, data: &[u8]) -> Option<Xid> {
    // `XACT_XINFO_HAS_*`
    const DATABASE: u32 = 1 << 0;
    const PREPARED: u32 = 1 << 4;
    let statistic = if major.get() < 18 { 12 } else { 16 };
    let lists: [(u32, usize); 4] = [
        (1 << 1, 4),         // subtransactions
        (1 << 2, 12),        // relations to remove
        (1 << 8, statistic), // statistics to remove, since 15
        (1 << 3, 16),        // invalidation messages
    ];
    let flags = if record.info & HAS_FLAGS != 0 { u32_in(data, 8)? } else { 0 };
    let mut at: usize = 8 + 4 + if flags & DATABASE != 0 { 8 } else { 0 };
    for (flag, item) in lists {
        if flags & flag != 0 {
            let items = usize::try_from(u32_in(data, at)?).ok()?;
            at = items.checked_mul(item)?.checked_add(at + 4)?;
        }
    }
    if flags & PREPARED != 0 { u32_in(data, at).map(Xid) } else { None }
}

fn time(data: &[u8]) -> Option<Timestamp> {
    /// 2000-01-01, PostgreSQL's epoch, in microseconds since 1970.
    const EPOCH: i64 = 946_684_800_000_000;
    let since = i64::from_le_bytes(*data.first_chunk()?);
    Timestamp::from_microsecond(since.checked_add(EPOCH)?).ok()
}

fn u32_in(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_le_bytes(*four))
}

#[cfg(test)]
mod tests {
    use super::super::wal_record::XLOG_SWITCH;
    use super::super::wal_records::tests::Wal;
    use super::*;
    use proptest::prelude::*;

    const ABORT: u8 = 0x20;
    const ABORT_PREPARED: u8 = 0x40;
    /// 2026-11-22T21:36:19.237240Z
    const MOMENT: i64 = 848_698_579_237_240;

    fn moment(later: i64) -> Timestamp {
        let first: Timestamp = "2026-11-22T21:36:19.237240Z".parse().unwrap();
        Timestamp::from_microsecond(first.as_microsecond() + later).unwrap()
    }

    fn data(main: &[u8]) -> Vec<u8> {
        match u8::try_from(main.len()) {
            Ok(length) => [&[255, length], main].concat(),
            Err(_) => [&[254][..], &(main.len() as u32).to_le_bytes(), main].concat(),
        }
    }

    fn commit(later: i64) -> Vec<u8> {
        data(&(MOMENT + later).to_le_bytes())
    }

    fn prepared(later: i64, flags: u32, lists: &[u8], xid: u32) -> Vec<u8> {
        let main = [&(MOMENT + later).to_le_bytes()[..], &flags.to_le_bytes(), lists, &xid.to_le_bytes(), b"gid\0"];
        data(&main.concat())
    }

    fn restore_point(name: &[u8]) -> Vec<u8> {
        let mut main = MOMENT.to_le_bytes().to_vec();
        main.extend(name);
        main.resize(8 + NAME, 0);
        data(&main)
    }

    fn wal() -> Wal {
        wal_after(0)
    }

    fn wal_after(continued: usize) -> Wal {
        Wal::new(18, 8 << 10, continued)
    }

    fn index(wal: Wal) -> WalIndex {
        index_of(&wal.segment())
    }

    /// But for the end, as most of these segments are not full.
    fn index_of(segment: &[u8]) -> WalIndex {
        WalIndex { ends: None, ..whole_index_of(segment) }
    }

    fn whole_index_of(segment: &[u8]) -> WalIndex {
        let mut indexer = WalIndexer::new(18.try_into().unwrap());
        indexer.feed(segment);
        indexer.finish()
    }

    #[test]
    fn a_segment_that_was_never_finished_tells_where_its_wal_ends() {
        let ends = |wal: Wal| whole_index_of(&wal.segment()).ends;
        let mut begun = wal();
        begun.record(10, 0, 900, &[7; 20_000]);
        let here = Some(Lsn(begun.here()));
        assert_eq!(ends(begun), here);
        // In the middle of a record, which nobody sees before the next page.
        let mut bytes = wal();
        bytes.record(10, 0, 900, &[7; 20_000]);
        let start = bytes.here() / (1 << 20) * (1 << 20);
        let mut bytes = bytes.segment();
        bytes[2 * 8192..].fill(0);
        assert_eq!(whole_index_of(&bytes).ends, Some(Lsn(start + 2 * 8192)));
        // A switch ends it.
        let mut switched = wal();
        switched.record(10, 0, 900, &[7; 500]);
        switched.record(XLOG, XLOG_SWITCH, 0, &[]);
        assert_eq!(ends(switched), None);
        for continued in [8, 16, 24, 400] {
            assert!(ends(wal_after(continued)).is_some(), "{continued}");
        }
        let mut behind = wal_after(16);
        behind.record(10, 0, 900, &[7; 500]);
        assert!(ends(behind).is_some());
        // A full one.
        let mut full = wal();
        while full.record(10, 0, 900, &[7; 5000]).1 {}
        assert_eq!(ends(full), None);
    }

    fn xids(lowest: u32, highest: u32) -> Option<XidRange> {
        Some(XidRange { lowest: Xid(lowest), highest: Xid(highest) })
    }

    fn times(first: i64, last: i64) -> Option<CommitTimes> {
        Some(CommitTimes { first: moment(first), last: moment(last) })
    }

    #[test]
    fn commits_and_restore_points_are_found_and_aborts_are_not() {
        let mut wal = wal();
        wal.record(10, COMMIT, 900, &[0; 500]);
        for (xid, later) in [(1002, 20), (1000, 10), (1001, 30)] {
            wal.record(TRANSACTIONS, COMMIT, xid, &commit(later));
        }
        wal.record(TRANSACTIONS, ABORT, 1, &commit(-50));
        wal.record(TRANSACTIONS, ABORT_PREPARED | HAS_FLAGS, 0, &prepared(50, 1 << 4, &[], 2000));
        let (lsn, _) = wal.record(XLOG, RESTORE_POINT, 0, &restore_point("vor dem Unfall: Ölpest".as_bytes()));
        let name = "vor dem Unfall: Ölpest".to_owned();
        let expected = WalIndex {
            commits: times(10, 30),
            xids: xids(1000, 1002),
            restore_points: vec![RestorePoint { name, time: moment(0), lsn }],
            tablespaces: vec![],
            complete: true,
            cut: false,
            ends: None,
        };
        assert_eq!(index(wal), expected);
        assert_eq!(index(wal_after(0)), WalIndex { complete: true, ..WalIndex::default() });
    }

    #[test]
    fn a_prepared_transaction_counts_by_its_own_number() {
        let list = |items: u32, size: usize| {
            let mut list = items.to_le_bytes().to_vec();
            list.resize(4 + items as usize * size, 0xFF);
            list
        };
        // On 14 bit 8 means nothing: it is never set.
        for (major, statistic) in [(15, 12), (17, 12), (18, 16)] {
            let lists = [vec![0; 8], list(3, 4), list(1, 12), list(2, statistic), list(700, 16)].concat();
            for (flags, lists) in [(1 << 4, &[][..]), (0x1F | 1 << 7 | 1 << 8 | 1 << 30, &lists)] {
                let mut wal = Wal::new(major, 8 << 10, 0);
                wal.record(TRANSACTIONS, COMMIT_PREPARED | HAS_FLAGS, 0, &prepared(5, flags, lists, 4711));
                let mut indexer = WalIndexer::new(major.try_into().unwrap());
                wal.segment().chunks(100).for_each(|piece| indexer.feed(piece));
                let expected =
                    WalIndex { commits: times(5, 5), xids: xids(4711, 4711), complete: true, ..WalIndex::default() };
                assert_eq!(WalIndex { ends: None, ..indexer.finish() }, expected, "{major}");
            }
        }
    }

    #[test]
    fn what_stands_before_the_data_is_passed_over() {
        let mut wal = wal();
        let origin = [&[253, 1, 0, 252, 1, 2, 3, 4][..], &commit(1)].concat();
        wal.record(TRANSACTIONS, COMMIT | HAS_FLAGS, 1000, &origin);
        let large = data(&[&(MOMENT + 2).to_le_bytes()[..], &[9; 100_000]].concat());
        wal.record(TRANSACTIONS, COMMIT | HAS_FLAGS, 1001, &large);
        let expected = WalIndex { commits: times(1, 2), xids: xids(1000, 1001), complete: true, ..WalIndex::default() };
        assert_eq!(index(wal), expected);
    }

    #[test]
    fn what_cannot_be_read_is_left_out_and_said() {
        let huge = prepared(1, 0x12, &[&20_000u32.to_le_bytes()[..], &[1; 80_000]].concat(), 4711);
        let wrong = [
            (TRANSACTIONS, COMMIT, 1000, data(&i64::MAX.to_le_bytes())),
            (TRANSACTIONS, COMMIT, 1000, data(&(i64::MAX / 2).to_le_bytes())),
            (TRANSACTIONS, COMMIT, 1000, data(&[0; 7])),
            (TRANSACTIONS, COMMIT, 1000, vec![]),
            (TRANSACTIONS, COMMIT, 1000, vec![255]),
            (TRANSACTIONS, COMMIT, 1000, [&commit(1)[..], &[0]].concat()),
            (TRANSACTIONS, COMMIT, 1000, [&[0; 20], &commit(1)[..]].concat()),
            (TRANSACTIONS, COMMIT, 0, commit(1)),
            (TRANSACTIONS, COMMIT_PREPARED, 0, commit(1)),
            (TRANSACTIONS, COMMIT_PREPARED | HAS_FLAGS, 0, commit(1)),
            (TRANSACTIONS, COMMIT_PREPARED | HAS_FLAGS, 0, prepared(1, 0x12, &u32::MAX.to_le_bytes(), 4711)),
            (TRANSACTIONS, COMMIT_PREPARED | HAS_FLAGS, 0, huge),
            (XLOG, RESTORE_POINT, 0, restore_point(&[b'x'; NAME])),
            (XLOG, RESTORE_POINT, 0, restore_point(b"caf\xE9")),
            (XLOG, RESTORE_POINT, 0, commit(1)),
        ];
        for (manager, info, xid, body) in wrong {
            let mut wal = wal();
            wal.record(TRANSACTIONS, COMMIT, 900, &commit(1));
            wal.record(manager, info, xid, &body);
            wal.record(TRANSACTIONS, COMMIT, 901, &commit(1));
            let expected = WalIndex { commits: times(1, 1), xids: xids(900, 901), ..WalIndex::default() };
            assert_eq!(index(wal), expected, "{info:X} {:?}", body.get(..20));
        }
    }

    #[test]
    fn too_many_restore_points_are_said() {
        for (count, complete) in [(MOST_RESTORE_POINTS, true), (MOST_RESTORE_POINTS + 1, false)] {
            let mut wal = wal();
            for number in 0..count {
                wal.record(XLOG, RESTORE_POINT, 0, &restore_point(number.to_string().as_bytes()));
            }
            let index = index(wal);
            assert_eq!((index.complete, index.restore_points.len()), (complete, MOST_RESTORE_POINTS));
            assert!(index.restore_points.iter().enumerate().all(|(number, point)| point.name == number.to_string()));
        }
    }

    #[test]
    fn new_tablespaces_are_named() {
        let created = |oid: u32, path: &[u8]| data(&[&oid.to_le_bytes()[..], path].concat());
        let long = [&[b'/'; 1023][..], b"\0"].concat();
        let mut wal = wal();
        wal.record(TABLESPACES, CREATE, 900, &created(16384, b"/srv/fast\0"));
        wal.record(TABLESPACES, 0x10, 900, &data(&16384u32.to_le_bytes()));
        wal.record(TABLESPACES, CREATE, 901, &created(16390, &long));
        let found = index(wal);
        let named: Vec<_> = found.tablespaces.iter().map(|new| (new.oid, new.location.len())).collect();
        assert_eq!((named, found.complete), (vec![(16384, 9), (16390, 1023)], true));
        for wrong in [created(1, b"/open"), data(&[1, 2]), data(&[])] {
            let mut wal = wal_after(0);
            wal.record(TABLESPACES, CREATE, 900, &wrong);
            assert_eq!(index(wal), WalIndex::default());
        }
    }

    #[test]
    fn a_commit_that_two_segments_share_is_in_none() {
        let mut wal = wal();
        let filler = (1 << 20) - 32 - wal.bytes.len() - 127 * 24 - RECORD_HEADER;
        wal.record(10, 0, 5, &vec![0; filler]);
        wal.record(TRANSACTIONS, COMMIT, 1000, &commit(1));
        assert_eq!(index(wal), WalIndex { complete: true, cut: true, ..WalIndex::default() });
        let mut next = wal_after(2);
        next.record(TRANSACTIONS, COMMIT, 1001, &commit(1));
        let expected = WalIndex { commits: times(1, 1), xids: xids(1001, 1001), complete: true, ..WalIndex::default() };
        assert_eq!(index(next), expected);
    }

    #[test]
    fn json_goes_both_ways() {
        let point = RestorePoint { name: "a".into(), time: moment(0), lsn: Lsn(0x1_0000_00F8) };
        let (restore_points, tablespaces) = (vec![point], vec![NewTablespace { oid: 5, location: "/a".into() }]);
        let (commits, xids) = (times(0, 1), xids(7, 3));
        let ends = Some(Lsn(0x1_0000_0100));
        let full = WalIndex { commits, xids, restore_points, tablespaces, complete: true, cut: true, ends };
        let json = r#"{"commits":["2026-11-22T21:36:19.23724Z","2026-11-22T21:36:19.237241Z"],"xids":[7,3],"restore_points":[{"name":"a","time":"2026-11-22T21:36:19.23724Z","lsn":"1/F8"}],"tablespaces":[{"oid":5,"location":"/a"}],"complete":true,"cut":true,"ends":"1/100"}"#;
        assert_eq!(serde_json::to_string(&full).unwrap(), json);
        assert_eq!(serde_json::from_str::<WalIndex>(json).unwrap(), full);
        let empty = WalIndex { complete: true, ..WalIndex::default() };
        assert_eq!(serde_json::to_string(&empty).unwrap(), r#"{"complete":true}"#);
        assert_eq!(serde_json::from_str::<WalIndex>("{}").unwrap(), WalIndex::default());
    }

    proptest! {
        #[test]
        fn records_of_any_content_do_no_harm(records in proptest::collection::vec((0u8..2, any::<u8>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..150)), 0..50)) {
            let mut wal = wal();
            for (manager, info, xid, body) in records {
                wal.record(manager, info, xid, &body);
            }
            let segment = wal.segment();
            let mut indexer = WalIndexer::new(18.try_into().unwrap());
            segment.chunks(777).for_each(|piece| indexer.feed(piece));
            prop_assert_eq!(indexer.finish(), whole_index_of(&segment));
        }

        #[test]
        fn data_of_any_content_does_no_harm(op in 0u8..8, flags: u32, lists in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut wal = wal();
            let main = [&MOMENT.to_le_bytes()[..], &flags.to_le_bytes(), &lists].concat();
            wal.record(TRANSACTIONS, op << 4 | HAS_FLAGS, 1000, &data(&main));
            index(wal);
        }
    }
}
