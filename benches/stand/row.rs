//! A row of calls, one after the other as PostgreSQL makes them, in a process of its own, so that the usage of its children is that of
//! the row; and what works beside the calls: helpers and daemons.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

use crate::bare;

/// What is done with each name.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verb {
    /// As the archiver does it: what is `.ready` is archived, and is `.done` then.
    Push,
    /// As the startup process does it, which replays for so many milliseconds before it asks again.
    Fetch(u64),
    /// A program.
    Each,
    /// Uploads a file, by a client that does nothing else: `URL PATH`.
    BarePut,
    /// Downloads: `URL`.
    BareGet,
    /// Reads a file and takes its XXH3.
    QuickDigest,
}

/// What to do.
#[derive(Clone, Serialize, Deserialize)]
pub struct Row {
    pub verb: Verb,
    /// Words with `{}` for the name.
    pub command: Vec<String>,
    pub names: Vec<String>,
    /// A running daemon that does the work.
    pub daemon: Option<u32>,
}

/// How it went.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub struct Outcome {
    pub segments: usize,
    pub wall_ms: f64,
    /// Of the calls and of what works beside them.
    pub cpu_ms: f64,
    /// Of the largest call.
    pub peak_mb: f64,
    /// Of all that works beside the calls.
    pub beside_mb: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Calls whose segment lay ready in the spool as they began.
    pub ready: usize,
    pub ready_p50_ms: f64,
    /// Of each segment.
    pub requests: f64,
    pub stored: f64,
    pub served_ms: f64,
}

impl Outcome {
    pub fn rate(&self) -> f64 {
        self.segments as f64 / self.wall_ms * 1e3
    }

    pub fn cpu(&self) -> f64 {
        self.cpu_ms / self.segments as f64
    }
}

/// The process of the row: what to do is its one word, how it went its output.
pub fn drive(words: &[String]) {
    let row: Row = serde_json::from_str(&words[0]).unwrap();
    let end = AtomicBool::new(false);
    let mut beside = Beside::new(&row);
    let mut took = Vec::new();
    let begun = Instant::now();
    let wall = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                beside.look();
            }
        });
        took.extend(row.names.iter().filter_map(|name| call(&row, name)));
        let wall = begun.elapsed();
        end.store(true, Ordering::Relaxed);
        wall
    });
    let own = matches!(row.verb, Verb::BarePut | Verb::BareGet | Verb::QuickDigest);
    let usage = getrusage(if own { UsageWho::RUSAGE_SELF } else { UsageWho::RUSAGE_CHILDREN }).expect("getrusage");
    let ms = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    let all: Vec<Duration> = took.iter().map(|(time, _)| *time).collect();
    let ready: Vec<Duration> = took.iter().filter(|(_, ready)| *ready).map(|(time, _)| *time).collect();
    let outcome = Outcome {
        segments: row.names.len(),
        wall_ms: wall.as_secs_f64() * 1e3,
        cpu_ms: ms(usage.user_time()) + ms(usage.system_time()) + beside.cpu_ms(),
        peak_mb: usage.max_rss() as f64 / 1024.0,
        beside_mb: beside.peak_mb,
        p50_ms: percentile(&all, 50),
        p99_ms: percentile(&all, 99),
        ready: ready.len(),
        ready_p50_ms: percentile(&ready, 50),
        ..Outcome::default()
    };
    println!("{}", serde_json::to_string(&outcome).unwrap());
}

fn percentile(times: &[Duration], part: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = (times.len() * part / 100).min(times.len().saturating_sub(1));
    times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// How long a call took, and whether its segment lay ready; `None` if no call was needed.
fn call(row: &Row, name: &str) -> Option<(Duration, bool)> {
    match row.verb {
        Verb::Push => {
            let status = |state: &str| format!("pg_wal/archive_status/{name}.{state}");
            // Who archives ahead may have said so already: the archiver looks again before it calls.
            if !Path::new(&status("ready")).exists() {
                return None;
            }
            let ready = is_ready("archived", name);
            let took = run(&row.command, name);
            fs::rename(status("ready"), status("done")).ok();
            Some((took, ready))
        }
        Verb::Fetch(replay) => {
            let ready = is_ready("fetched", name);
            let took = run(&row.command, name);
            let length = |path: &str| fs::metadata(path).unwrap().len();
            assert_eq!(length("pg_wal/RECOVERYXLOG"), length(&format!("pg_wal/{name}")), "{name}");
            fs::remove_file("pg_wal/RECOVERYXLOG").unwrap();
            std::thread::sleep(Duration::from_millis(replay));
            Some((took, ready))
        }
        Verb::Each => Some((run(&row.command, name), false)),
        Verb::BarePut => {
            let (url, path) = name.split_once(' ').unwrap();
            Some((bare::put(url, &fs::read(path).unwrap()), false))
        }
        Verb::BareGet => Some((bare::get(name), false)),
        Verb::QuickDigest => Some((bare::quick_digest(Path::new(name)), false)),
    }
}

fn run(words: &[String], name: &str) -> Duration {
    let words: Vec<String> = words.iter().map(|word| word.replace("{}", name)).collect();
    let begun = Instant::now();
    let status = Command::new(&words[0]).args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.unwrap_or_else(|error| panic!("{}: {error}", words[0]));
    assert!(status.success(), "{words:?}: {status}");
    begun.elapsed()
}

/// Whether it lies in pgark's spool, or what a call needs to know of it.
fn is_ready(kind: &str, name: &str) -> bool {
    let Some(spool) = std::env::var_os("PGARK_WAL__SPOOL") else { return false };
    let uses = fs::read_dir(spool).into_iter().flatten().flatten();
    let entries = uses.flat_map(|entry| fs::read_dir(entry.path().join(kind)).into_iter().flatten().flatten());
    let names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let about: Vec<&String> = names.iter().filter(|known| known.starts_with(name)).collect();
    !about.is_empty() && !about.iter().any(|known| known.ends_with(".growing"))
}

/// Processes of the same program that are not our calls.
struct Beside {
    program: PathBuf,
    daemon: Option<u32>,
    /// Those that were there before.
    strangers: HashSet<u32>,
    cpu_ms: HashMap<u32, f64>,
    before_ms: f64,
    peak_mb: f64,
}

impl Beside {
    fn new(row: &Row) -> Self {
        let program = row.command.first().and_then(|program| fs::canonicalize(program).ok()).unwrap_or_default();
        let strangers = pids().into_iter().filter(|pid| Some(*pid) != row.daemon).collect();
        let before_ms = row.daemon.and_then(seen).map_or(0.0, |seen| seen.cpu_ms);
        Beside { program, daemon: row.daemon, strangers, cpu_ms: HashMap::new(), before_ms, peak_mb: 0.0 }
    }

    fn look(&mut self) {
        let mut sum = 0.0;
        for pid in pids().into_iter().filter(|pid| !self.strangers.contains(pid)) {
            let Some(seen) = seen(pid) else { continue };
            let same = || fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program == self.program);
            if self.daemon == Some(pid) || (seen.parent != std::process::id() && same()) {
                self.cpu_ms.insert(pid, seen.cpu_ms);
                sum += peak_mb(pid);
            }
        }
        self.peak_mb = self.peak_mb.max(sum);
    }

    fn cpu_ms(&self) -> f64 {
        self.cpu_ms.values().sum::<f64>() - if self.cpu_ms.is_empty() { 0.0 } else { self.before_ms }
    }
}

struct Seen {
    parent: u32,
    cpu_ms: f64,
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn seen(pid: u32) -> Option<Seen> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // In hundredths of a second: `utime` and `stime` in proc(5).
    let ticks = fields.get(11..13)?.iter().filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>();
    Some(Seen { parent: fields.get(1)?.parse().ok()?, cpu_ms: ticks * 10.0 })
}

fn peak_mb(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).map_or(0.0, |kb| kb / 1024.0)
}
