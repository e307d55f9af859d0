//! The judge of end-to-end tests: rows committed one by one, each noted outside PostgreSQL only after its COMMIT
//! returned, with its digest and the bounds of its commit record. After any restore the ledger says which rows must
//! be there, which must not, and whether what is there is what was written.
//!
//! One ledger writes one row at a time, over threads, restarts and promotions, so that the rows of every restorable
//! state are a prefix of the rows on its timeline's history: a hole is damage wherever recovery ended.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::File,
    io::Write as _,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use crate::postgres::{Client, Cluster, Endpoint, Lsn, Position, Scratch};
#[allow(unused_imports)]
pub use crate::postgres::{integrity, unexplained};

/// A point between two rows, good for every kind of recovery target.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Every earlier row's commit ends at or before it; every later row's commit begins after it.
    pub position: Position,
    /// The transaction of the last row; an inclusive xid target.
    pub xid: String,
    /// Between the commits of the last row and the next one: `2026-11-22 20:15:00.123456+00`.
    pub time: String,
    /// The last row.
    pub row: i64,
}

impl Mark {
    /// The time as `2026-11-22T20:15:00.123456Z`.
    pub fn time_rfc3339(&self) -> String {
        self.time.replace(' ', "T").replace("+00", "Z")
    }
}

/// What a restored server must hold.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    present: Position,
    absent: Position,
}

impl Expect {
    /// Every row up to the mark and none after it.
    pub fn exactly(mark: &Mark) -> Expect {
        Expect { present: mark.position, absent: mark.position }
    }

    /// Every row up to the position; later rows of its timeline may be there.
    pub fn at_least(position: Position) -> Expect {
        Expect { present: position, absent: Position { lsn: Lsn::MAX, ..position } }
    }

    /// Every row up to the first mark and none after the second.
    pub fn between(present: &Mark, absent: &Mark) -> Expect {
        Expect { present: present.position, absent: absent.position }
    }
}

/// What the judge saw when there was nothing to object to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub rows: usize,
    pub last_row: i64,
}

/// A row that was begun. Its commit record lies after `lower` and ends at or before `upper`, which is only known
/// once COMMIT returned.
#[derive(Clone, Debug)]
struct Entry {
    id: i64,
    digest: String,
    timeline: u32,
    lower: Lsn,
    upper: Option<Lsn>,
    xid: String,
}

/// Where a row's commit lies relative to a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Before,
    After,
    Unknown,
}

struct Book {
    endpoint: Endpoint,
    entries: Vec<Entry>,
    /// Makes the payloads of different clusters differ: their system identifier.
    seed: u64,
    /// The ancestors of each timeline that was attached, with the position at which each was left.
    histories: BTreeMap<u32, Vec<(u32, Lsn)>>,
    /// A position before any later commit.
    reached: Position,
    file: File,
}

/// Shared between threads by cloning.
#[derive(Clone)]
pub struct Ledger {
    book: Arc<Mutex<Book>>,
    directory: Arc<Scratch>,
}

impl Ledger {
    /// Makes the table in a running primary.
    pub fn create(cluster: &Cluster) -> Ledger {
        cluster.execute("CREATE TABLE ledger (id bigint PRIMARY KEY, digest text NOT NULL, payload bytea NOT NULL)");
        let directory = Scratch::new("ledger");
        let book = Book {
            endpoint: cluster.endpoint().clone(),
            entries: Vec::new(),
            seed: cluster.system_id(),
            histories: BTreeMap::new(),
            reached: cluster.position(),
            file: File::create(directory.path().join("rows.tsv")).expect("create the ledger's file"),
        };
        let ledger = Ledger { book: Arc::new(Mutex::new(book)), directory: Arc::new(directory) };
        ledger.attach(cluster);
        ledger
    }

    /// Goes on with another primary that has the table, such as a promoted one.
    pub fn attach(&self, cluster: &Cluster) {
        let mut book = self.book();
        book.endpoint = cluster.endpoint().clone();
        book.reached = cluster.position();
        let timeline = book.reached.timeline;
        book.histories.insert(timeline, history(cluster, timeline));
    }

    /// One line per event: `begin` before a row is sent, `commit` after its COMMIT returned.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("rows.tsv")
    }

    /// Commits rows one by one.
    pub fn write(&self, rows: usize, payload_bytes: usize) {
        let mut client = self.connect().unwrap_or_else(|error| panic!("connect: {error}"));
        for _ in 0..rows {
            let written = self.book().write_row(&mut client, payload_bytes);
            written.unwrap_or_else(|error| panic!("write a row: {error}; {}", self.book().endpoint.log_tail()));
        }
    }

    /// Commits rows in a thread until it is told to stop or the server ends it.
    pub fn write_in_background(&self, rows_per_second: u32, payload_bytes: usize) -> BackgroundWriter {
        let mut client = self.connect().unwrap_or_else(|error| panic!("connect: {error}"));
        let (ledger, stop) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let told = stop.clone();
        let interval = Duration::from_secs(1) / rows_per_second;
        let thread = std::thread::spawn(move || {
            let (begun, mut report) = (Instant::now(), BackgroundReport { rows: 0, ended_by: None });
            while !told.load(Ordering::Relaxed) && report.ended_by.is_none() {
                match ledger.book().write_row(&mut client, payload_bytes) {
                    Ok(()) => report.rows += 1,
                    Err(error) => report.ended_by = Some(error),
                }
                std::thread::sleep((interval * report.rows).saturating_sub(begun.elapsed()));
            }
            report
        });
        BackgroundWriter { stop, thread: Some(thread) }
    }

    /// Marks this moment. For a time target to be reached, a row must follow.
    pub fn mark(&self) -> Mark {
        self.marked("SELECT pg_logical_emit_message(false, 'ledger', 'mark')")
    }

    /// Marks this moment by a named restore point too.
    pub fn restore_point(&self, name: &str) -> Mark {
        self.marked(&format!("SELECT pg_create_restore_point('{name}')"))
    }

    /// A position that every acknowledged row of the attached cluster is before.
    pub fn tip(&self) -> Position {
        self.book().reached
    }

    pub fn acknowledged(&self) -> usize {
        self.book().entries.iter().filter(|entry| entry.upper.is_some()).count()
    }

    /// Compares a running server with what must be there; says what is wrong with it.
    pub fn judge(&self, restored: &Cluster, expect: &Expect) -> Result<Verdict, String> {
        let mut client = restored.endpoint().connect()?;
        // A server that was recovered to before the ledger's time has no such table.
        let there = !client.sql("SELECT 1 FROM pg_class WHERE oid = to_regclass('ledger')")?.is_empty();
        let rows = if there { client.numbered_bytes("SELECT id, payload FROM ledger")? } else { vec![] };
        let rows: BTreeMap<i64, String> = rows.into_iter().map(|(id, bytes)| (id, digest(&bytes))).collect();
        let wrong = self.book().objections(&rows, expect);
        if wrong.is_empty() {
            return Ok(Verdict { rows: rows.len(), last_row: rows.keys().next_back().copied().unwrap_or(0) });
        }
        let shown = wrong[..wrong.len().min(10)].join("\n  ");
        Err(format!("{} objections to {} rows, expecting {expect:?}:\n  {shown}", wrong.len(), rows.len()))
    }

    /// No row is written between the commits before and after this.
    fn marked(&self, record: &str) -> Mark {
        let mut book = self.book();
        let mut client = book.endpoint.connect().unwrap_or_else(|error| panic!("connect: {error}"));
        let mut ask = |query: &str| client.sql(query).unwrap_or_else(|error| panic!("`{query}`: {error}"));
        std::thread::sleep(Duration::from_millis(2));
        let rows = ask("SELECT pg_walfile_name(pg_current_wal_insert_lsn()), pg_current_wal_insert_lsn(), \
                        to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'");
        // Something follows the position, so that a target there is reached.
        ask(record);
        std::thread::sleep(Duration::from_millis(2));
        let position = position(&rows[0][0], &rows[0][1]).unwrap_or_else(|error| panic!("{error}"));
        book.reached = position;
        let last = book.entries.iter().rfind(|entry| entry.upper.is_some());
        Mark {
            position,
            xid: last.map(|entry| entry.xid.clone()).unwrap_or_default(),
            time: rows[0][2].clone(),
            row: last.map(|entry| entry.id).unwrap_or_default(),
        }
    }

    fn connect(&self) -> Result<Client, String> {
        let endpoint = self.book().endpoint.clone();
        endpoint.connect()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Book {
    fn write_row(&mut self, client: &mut Client, payload_bytes: usize) -> Result<(), String> {
        let id = self.entries.last().map_or(1, |entry| entry.id + 1);
        let payload = payload(self.seed, id, payload_bytes);
        let digest = digest(&payload);
        let Position { timeline, lsn } = self.reached;
        let begun = Entry { id, digest: digest.clone(), timeline, lower: lsn, upper: None, xid: String::new() };
        writeln!(self.file, "begin\t{id}\t{digest}").expect("append to the ledger's file");
        self.entries.push(begun);

        let rows = client.sql(&format!(
            "BEGIN; INSERT INTO ledger VALUES ({id}, '{digest}', '\\x{}'); \
             SELECT pg_walfile_name(pg_current_wal_insert_lsn()), pg_current_wal_insert_lsn(); COMMIT; \
             SELECT pg_current_wal_insert_lsn(), xmin, pg_xact_commit_timestamp(xmin) FROM ledger WHERE id = {id}",
            hex(&payload)
        ))?;
        let [before, after] = rows.as_slice() else { return Err(format!("unexpected answer {rows:?}")) };
        let lower = position(&before[0], &before[1])?;
        let upper: Lsn = after[0].parse()?;
        let (xid, time) = (&after[1], &after[2]);
        writeln!(self.file, "commit\t{id}\t{}\t{}\t{upper}\t{xid}\t{time}\t{digest}", lower.timeline, lower.lsn)
            .expect("append to the ledger's file");
        self.reached = Position { timeline: lower.timeline, lsn: upper };
        let entry = self.entries.last_mut().expect("it was pushed above");
        (entry.timeline, entry.lower, entry.upper) = (lower.timeline, lower.lsn, Some(upper));
        entry.xid.clone_from(xid);
        Ok(())
    }

    /// Everything that is wrong with the rows that a server holds.
    fn objections(&self, rows: &BTreeMap<i64, String>, expect: &Expect) -> Vec<String> {
        let known: BTreeSet<i64> = self.entries.iter().map(|entry| entry.id).collect();
        let mut wrong: Vec<String> = rows
            .keys()
            .filter(|id| !known.contains(id))
            .map(|id| format!("row {id} was never written by this ledger"))
            .collect();
        let tip = Position { lsn: Lsn::MAX, ..expect.absent };
        let newest = rows.keys().rfind(|id| known.contains(id) && self.side(self.entry(**id), tip) != Side::After);
        for entry in &self.entries {
            let id = entry.id;
            let acknowledged = entry.upper.is_some();
            match rows.get(&id) {
                Some(digest) if *digest != entry.digest => {
                    wrong.push(format!("row {id} is not what was written: digest {digest}, not {}", entry.digest));
                }
                Some(_) if self.side(entry, expect.absent) == Side::After => {
                    wrong.push(format!("row {id} is there, committed after {} ({entry:?})", expect.absent));
                }
                None if self.side(entry, expect.present) == Side::Before => {
                    wrong.push(format!("row {id} is missing, committed before {} ({entry:?})", expect.present));
                }
                None if acknowledged
                    && self.side(entry, tip) == Side::Before
                    && newest.is_some_and(|new| id < *new) =>
                {
                    wrong.push(format!("row {id} is missing, and later rows are there ({entry:?})"));
                }
                _ => {}
            }
        }
        wrong
    }

    fn entry(&self, id: i64) -> &Entry {
        &self.entries[self.entries.binary_search_by_key(&id, |entry| entry.id).expect("a known row")]
    }

    /// On the history that leads to the position. A row that this history left behind counts as after it.
    fn side(&self, entry: &Entry, at: Position) -> Side {
        let ancestors = self.histories.get(&at.timeline);
        let ancestors =
            ancestors.unwrap_or_else(|| panic!("the ledger was never attached to timeline {}", at.timeline));
        let left_at = ancestors.iter().find(|(timeline, _)| *timeline == entry.timeline).map(|(_, lsn)| *lsn);
        let limit = match left_at {
            _ if entry.timeline == at.timeline => at.lsn,
            // A position on the child before the switch is nowhere: the parent's rows are bounded by both.
            Some(left_at) => left_at.min(at.lsn),
            None => return Side::After,
        };
        match entry.upper {
            Some(upper) if upper <= limit => Side::Before,
            _ if entry.lower >= limit => Side::After,
            _ => Side::Unknown,
        }
    }
}

/// A thread that writes rows.
pub struct BackgroundWriter {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<BackgroundReport>>,
}

/// What a background writer did: the rows it got acknowledged, and the error that ended it if nobody stopped it.
#[derive(Clone, Debug)]
pub struct BackgroundReport {
    pub rows: u32,
    pub ended_by: Option<String>,
}

impl BackgroundWriter {
    pub fn stop(mut self) -> BackgroundReport {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("stopped once").join().expect("the writer's thread")
    }
}

impl Drop for BackgroundWriter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The lines `<parent>\t<position>\t<reason>` of the timeline's history file; timeline 1 has none.
fn history(cluster: &Cluster, timeline: u32) -> Vec<(u32, Lsn)> {
    if timeline == 1 {
        return Vec::new();
    }
    let path = cluster.data_dir().join(format!("pg_wal/{timeline:08X}.history"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read `{}`: {error}", path.display()));
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    lines.map(|line| parse(line).unwrap_or_else(|| panic!("`{line}` in `{}`", path.display()))).collect()
}

fn position(segment: &str, lsn: &str) -> Result<Position, String> {
    let timeline = segment.get(..8).and_then(|timeline| u32::from_str_radix(timeline, 16).ok());
    Ok(Position { timeline: timeline.ok_or_else(|| format!("`{segment}` is no segment"))?, lsn: lsn.parse()? })
}

/// Bytes that do not compress and that differ from row to row: a digest in counter mode.
fn payload(seed: u64, id: i64, bytes: usize) -> Vec<u8> {
    let blocks = (0u64..).flat_map(|block| {
        let input = [seed.to_le_bytes(), id.to_le_bytes(), block.to_le_bytes()].concat();
        Sha256::digest(input).to_vec()
    });
    blocks.take(bytes).collect()
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
