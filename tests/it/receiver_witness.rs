//! Watches what a receiver stores, at every moment of its life: WAL without a hole from the first byte on, no object that changes, no
//! byte that is another than the server's, and never less than the server was told to be durable.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use crate::postgres::{Cluster, Endpoint, Lsn};
use crate::repository::Repository;
use crate::wal_receive::{MIB, number};

/// The positions behind the last byte that is stored without a hole, by timeline.
pub type Ends = BTreeMap<u32, Lsn>;

/// Knows what was stored at the last look, so that each look reads only what is new.
pub struct Witness {
    repository: Arc<Repository>,
    seen: Mutex<Seen>,
    primary: Mutex<Option<(Endpoint, u32)>>,
}

#[derive(Default)]
struct Seen {
    /// Each object with its length when it is unpacked.
    objects: BTreeMap<String, (Bytes, u64)>,
    begins: BTreeMap<u32, u64>,
    ends: Ends,
    /// Where the server's own WAL of a timeline lies.
    pg_wal: BTreeMap<u32, PathBuf>,
    looks: u64,
    acknowledged: u64,
}

/// Of one timeline.
#[derive(Default)]
struct Stored {
    whole: BTreeSet<u64>,
    /// By segment and offset, with their lengths.
    pieces: BTreeMap<u64, BTreeMap<u64, u64>>,
}

/// What the key of an object says.
enum Place {
    Whole { timeline: u32, segment: u64 },
    Piece { timeline: u32, segment: u64, offset: u64 },
}

impl Place {
    fn of(key: &str) -> Option<Place> {
        let stem = key.strip_suffix(".zst")?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        if let Some(rest) = stem.strip_prefix("pg/main/1/live/") {
            let parts: Vec<&str> = rest.split('/').collect();
            let [timeline, segment, offset] = parts[..] else { panic!("`{key}` is no piece") };
            let (timeline, offset) = (hex(timeline)? as u32, hex(offset)?);
            return Some(Place::Piece { timeline, segment: number(segment), offset });
        }
        let last = stem.strip_prefix("pg/main/1/wal/")?.rsplit('/').next().filter(|last| last.len() == 24)?;
        Some(Place::Whole { timeline: hex(&last[..8])? as u32, segment: number(last) })
    }

    /// Timeline, segment, offset.
    fn position(&self) -> (u32, u64, u64) {
        match *self {
            Place::Whole { timeline, segment } => (timeline, segment, 0),
            Place::Piece { timeline, segment, offset } => (timeline, segment, offset),
        }
    }
}

fn name(timeline: u32, segment: u64) -> String {
    format!("{timeline:08X}{:08X}{:08X}", segment / 4096, segment % 4096)
}

fn unpacked(key: &str, object: &[u8]) -> Vec<u8> {
    zstd::decode_all(object).unwrap_or_else(|error| panic!("{key}: {error}"))
}

impl Witness {
    pub fn new(repository: Arc<Repository>) -> Witness {
        Witness { repository, seen: Mutex::default(), primary: Mutex::default() }
    }

    /// This server streams this timeline from now on.
    pub fn ask(&self, cluster: &Cluster, timeline: u32) {
        *self.primary.lock().unwrap() = Some((cluster.endpoint().clone(), timeline));
    }

    /// The server's `pg_wal` keeps all of this timeline, to compare with.
    pub fn compare_to(&self, cluster: &Cluster, timeline: u32) {
        self.seen.lock().unwrap().pg_wal.insert(timeline, cluster.data_dir().join("pg_wal"));
    }

    /// Looks at all that is stored at this moment.
    pub fn look(&self) -> Ends {
        let mut seen = self.seen.lock().expect("the witness has nothing to object to");
        seen.look(self.repository.double().objects())
    }

    /// How often it looked, and how often with a position that the server was told.
    pub fn looks(&self) -> (u64, u64) {
        let seen = self.seen.lock().unwrap();
        (seen.looks, seen.acknowledged)
    }

    /// What the server was told to be durable is in the store.
    fn check_acknowledged(&self) {
        let Some((endpoint, timeline)) = self.primary.lock().unwrap().clone() else { return };
        let query = "select max(flush_lsn) from pg_stat_replication where application_name = 'pgark'";
        // It may be down, or not up yet.
        let Ok(rows) = endpoint.connect().and_then(|mut session| session.sql(query)) else { return };
        let Ok(told) = rows[0][0].parse::<Lsn>() else { return };
        // Where it begins, nothing is there.
        let Some(end) = self.look().get(&timeline).copied() else { return };
        assert!(end >= told, "the server was told that {told} is durable, the store has {end}");
        self.seen.lock().unwrap().acknowledged += 1;
    }

    /// Compares all that is there with files as `pg_receivewal` writes them. Gives how many objects that were.
    pub fn compare_with(&self, directory: &Path) -> usize {
        let seen = self.seen.lock().unwrap();
        let mut compared = 0;
        for (key, (object, _)) in &seen.objects {
            let Some(place) = Place::of(key) else { continue };
            compare(directory, key, &place, &unpacked(key, object));
            compared += 1;
        }
        compared
    }

    /// Looks all the time, from a thread of its own.
    pub fn watch(self: &Arc<Self>) -> Watch {
        let (witness, stop) = (Arc::clone(self), Arc::new(AtomicBool::new(false)));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                witness.look();
                witness.check_acknowledged();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Watch { stop, thread: Some(thread) }
    }
}

/// A witness at work.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// What it saw that must not be is a panic here.
    pub fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().expect("the witness has nothing to object to");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Seen {
    fn look(&mut self, objects: BTreeMap<String, Bytes>) -> Ends {
        self.looks += 1;
        let mut timelines: BTreeMap<u32, Stored> = BTreeMap::new();
        let known = std::mem::take(&mut self.objects);
        for (key, object) in objects {
            assert!(!key.contains("/record/gap/"), "{}", String::from_utf8_lossy(&object));
            let Some(place) = Place::of(&key) else { continue };
            let length = match known.get(&key) {
                Some((before, length)) => {
                    assert_eq!(before.as_ptr(), object.as_ptr(), "`{key}` was written again");
                    *length
                }
                None => {
                    let bytes = unpacked(&key, &object);
                    if let Some(pg_wal) = self.pg_wal.get(&place.position().0) {
                        compare(pg_wal, &key, &place, &bytes);
                    }
                    bytes.len() as u64
                }
            };
            match place {
                Place::Whole { timeline, segment } => {
                    assert_eq!(length, MIB, "{key}");
                    timelines.entry(timeline).or_default().whole.insert(segment);
                }
                Place::Piece { timeline, segment, offset } => {
                    timelines.entry(timeline).or_default().pieces.entry(segment).or_default().insert(offset, length);
                }
            }
            self.objects.insert(key, (object, length));
        }
        for key in known.keys().filter(|key| !self.objects.contains_key(*key)) {
            let is_whole = Place::of(key).is_some_and(|place| {
                let (timeline, segment, _) = place.position();
                timelines.get(&timeline).is_some_and(|stored| stored.whole.contains(&segment))
            });
            assert!(is_whole, "`{key}` is gone");
        }
        let ends: Ends = timelines.iter().map(|(timeline, stored)| (*timeline, self.end(*timeline, stored))).collect();
        for (timeline, before) in &self.ends {
            let now = ends.get(timeline);
            assert!(now.is_some_and(|now| now >= before), "timeline {timeline} was stored up to {before}, now {now:?}");
        }
        self.ends.clone_from(&ends);
        ends
    }

    /// The end of a timeline, which has no hole.
    fn end(&mut self, timeline: u32, stored: &Stored) -> Lsn {
        let Stored { whole, pieces } = stored;
        let begin = *whole.first().or(pieces.keys().next()).expect("something is stored");
        let before = *self.begins.entry(timeline).or_insert(begin);
        assert_eq!(begin, before, "timeline {timeline} begins elsewhere");
        let tail = (begin..).find(|segment| !whole.contains(segment)).unwrap_or(begin);
        let name = name(timeline, tail);
        assert!(whole.last().is_none_or(|last| *last < tail), "{name} is missing: {whole:?}");
        assert!(pieces.keys().all(|segment| *segment <= tail), "there are pieces behind {name}: {pieces:?}");
        let mut end = 0;
        for (offset, length) in pieces.get(&tail).into_iter().flatten() {
            assert_eq!(*offset, end, "the tail of {name} has a hole: {pieces:?}");
            end += length;
        }
        Lsn(tail * MIB + end)
    }
}

/// A directory of WAL has the same bytes.
fn compare(directory: &Path, key: &str, place: &Place, bytes: &[u8]) {
    let (timeline, segment, offset) = place.position();
    let file = directory.join(name(timeline, segment));
    let partial = file.with_extension("partial");
    let wal = fs::read(&file).or_else(|_| fs::read(&partial)).unwrap_or_else(|error| panic!("{key}: {error}"));
    let wal = wal.get(offset as usize..).unwrap_or_default();
    assert!(wal.starts_with(bytes), "{key} differs from {}", file.display());
}
