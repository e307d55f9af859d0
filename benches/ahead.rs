//! What look-ahead and prefetch bring: many segments in a row, as PostgreSQL asks for them, at a near and at a far store.
//!
//! `make bench`. Wall time of whole sequences, each beside what it would be without, and beside floors of the same run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr, clippy::panic)]

#[path = "stand/corpus.rs"]
mod corpus;
#[path = "../tests/it/double/mod.rs"]
mod double;
#[path = "stand/server.rs"]
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use corpus::Load;
use nix::sys::resource::{UsageWho, getrusage};
use server::Server;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("--serve") => server::serve(),
        Some("--push") => drive(&words[1..], push_all),
        Some("--fetch") => drive(&words[1..], fetch_all),
        Some("--each") => drive(&words[1..], each),
        _ => bench(),
    }
}

/// How a sequence went.
#[derive(Clone, Copy)]
struct Sequence {
    segments: usize,
    wall_ms: f64,
    cpu_ms: f64,
    peak_mb: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Sequence {
    fn rate(&self) -> f64 {
        self.segments as f64 / self.wall_ms * 1e3
    }
}

/// Runs a sequence as the only children of this process, so that their usage is its own.
fn drive(words: &[String], sequence: impl Fn(&[String]) -> Vec<Duration>) {
    let begun = Instant::now();
    let mut calls = sequence(words);
    let wall = begun.elapsed();
    calls.sort_unstable();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage");
    let ms = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    let at = |part: usize| calls[(calls.len() * part / 100).min(calls.len() - 1)].as_secs_f64() * 1e3;
    println!(
        "{} {} {} {} {} {}",
        calls.len(),
        wall.as_secs_f64() * 1e3,
        ms(usage.user_time()) + ms(usage.system_time()),
        usage.max_rss() as f64 / 1024.0,
        at(50),
        at(99)
    );
}

fn timed(command: &mut Command) -> Duration {
    let begun = Instant::now();
    let status = command.stdin(Stdio::null()).status().expect("run the program");
    assert!(status.success(), "{command:?}: {status}");
    begun.elapsed()
}

/// As the archiver does it: PROGRAM, then the names.
fn push_all(words: &[String]) -> Vec<Duration> {
    let (program, names) = words.split_first().unwrap();
    let push = |name: &String| {
        let took = timed(Command::new(program).args(["wal-push", &format!("pg_wal/{name}"), name]));
        let status = |state: &str| format!("pg_wal/archive_status/{name}.{state}");
        fs::rename(status("ready"), status("done")).unwrap();
        took
    };
    names.iter().map(push).collect()
}

/// As the startup process does it: PROGRAM, milliseconds of pretended replay, then the names.
fn fetch_all(words: &[String]) -> Vec<Duration> {
    let [program, replay, names @ ..] = words else { panic!("{words:?}") };
    let replay = Duration::from_millis(replay.parse().unwrap());
    let fetch = |name: &String| {
        let took = timed(Command::new(program).args(["wal-fetch", name, "pg_wal/RECOVERYXLOG"]));
        fs::remove_file("pg_wal/RECOVERYXLOG").unwrap();
        std::thread::sleep(replay);
        took
    };
    names.iter().map(fetch).collect()
}

/// A shell line, once for each name in `$1`.
fn each(words: &[String]) -> Vec<Duration> {
    let (script, names) = words.split_first().unwrap();
    names.iter().map(|name| timed(Command::new("sh").args(["-c", script, "sh", name]))).collect()
}

/// A data directory whose `pg_wal` has the corpus.
struct Stand {
    place: tempfile::TempDir,
    names: Vec<String>,
    pgark: String,
}

impl Stand {
    fn make(pgark: &Path, load: Load, at_most: usize) -> Self {
        let roomy = Path::new("/dev/shm").is_dir();
        let place = tempfile::tempdir_in(if roomy { "/dev/shm".into() } else { std::env::temp_dir() }).unwrap();
        let mut names: Vec<String> = corpus::corpus(place.path(), load)
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        names.truncate(at_most);
        fs::create_dir_all(place.path().join("pg_wal/archive_status")).unwrap();
        Stand { place, names, pgark: pgark.display().to_string() }
    }

    fn run(&self, words: &[&str], names: &[String], env: &[(String, String)]) -> Sequence {
        let spool = self.place.path().parent().unwrap().join(format!("pgark-bench-spool-{}", std::process::id()));
        fs::remove_dir_all(&spool).ok();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(words).args(names).current_dir(self.place.path()).env_clear().envs(env.iter().cloned());
        command.env("PATH", "/usr/bin:/bin").env("PGARK_WAL__SPOOL", &spool).stderr(Stdio::inherit());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let numbers: Vec<f64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
        fs::remove_dir_all(&spool).ok();
        let [segments, wall_ms, cpu_ms, peak_mb, p50_ms, p99_ms] = numbers[..] else { panic!("{text}") };
        Sequence { segments: segments as usize, wall_ms, cpu_ms, peak_mb, p50_ms, p99_ms }
    }

    fn push(&self, cluster: &str, at_most: usize, lookahead: usize, env: &[(String, String)]) -> Sequence {
        let names = &self.names[..at_most.min(self.names.len())];
        for entry in fs::read_dir(self.place.path().join("pg_wal/archive_status")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for name in names {
            fs::write(self.place.path().join(format!("pg_wal/archive_status/{name}.ready")), "").unwrap();
        }
        let env = with(env, &[("PGARK_CLUSTER__NAME", cluster), ("PGARK_WAL__LOOKAHEAD", &lookahead.to_string())]);
        self.run(&["--push", &self.pgark], names, &env)
    }

    fn fetch(&self, at_most: usize, (prefetch, replay): (usize, u64), env: &[(String, String)]) -> Sequence {
        let names = &self.names[..at_most.min(self.names.len())];
        let standing = self.place.path();
        fs::write(standing.join("recovery.signal"), "").unwrap();
        fs::write(standing.join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        let env = with(env, &[("PGARK_CLUSTER__NAME", "all"), ("PGARK_WAL__PREFETCH", &prefetch.to_string())]);
        let sequence = self.run(&["--fetch", &self.pgark, &replay.to_string()], names, &env);
        fs::remove_file(standing.join("postmaster.pid")).unwrap();
        fs::remove_file(standing.join("recovery.signal")).unwrap();
        // The helper looks for the server five times a second.
        std::thread::sleep(Duration::from_millis(600));
        sequence
    }

    fn floor(&self, script: &str) -> Sequence {
        self.run(&["--each", script], &self.names, &[])
    }
}

fn with(env: &[(String, String)], more: &[(&str, &str)]) -> Vec<(String, String)> {
    let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    env.iter().cloned().chain(more).collect()
}

fn line(name: &str, sequence: Sequence, remark: &str) {
    println!(
        "{name:<44}{:>8.1}{:>10.1}{:>9.1}{:>9.1}{:>9.1}   {remark}",
        sequence.rate(),
        sequence.cpu_ms / sequence.segments as f64,
        sequence.p50_ms,
        sequence.p99_ms,
        sequence.peak_mb
    );
}

fn bench() {
    let pgark = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/release/pgark");
    assert!(pgark.exists(), "`make bench` builds the release first");
    println!("{:<44}{:>8}{:>10}{:>9}{:>9}{:>9}", "", "a second", "CPU ms", "p50 ms", "p99 ms", "MB");
    for (kind, load, at_most) in
        [("pgbench", Load::Pgbench(75_000), 64), ("hardly compressible", Load::Random(2_500), 16)]
    {
        let stand = Stand::make(&pgark, load, at_most);
        println!("\n{} segments of 16 MiB, {kind}", stand.names.len());
        one_corpus(&stand);
    }
}

fn one_corpus(stand: &Stand) {
    line("cp", stand.floor("cp pg_wal/$1 copy"), "floor");
    let zstd = stand.floor("zstd -1 -q -f pg_wal/$1 -o $1.zst");
    line("zstd -1", zstd, "floor");
    line("zstd -d", stand.floor("zstd -d -q -f $1.zst -o copy"), "floor");
    let sha = stand.floor("sha256sum pg_wal/$1 >/dev/null");
    line("sha256sum", sha, "floor");
    stand.floor("rm -f $1.zst copy");
    let mut server = Server::start();
    for latency in [0, 20, 80] {
        server.latency(latency);
        let before = server.cpu_ms();
        let alone = stand.push(&format!("alone-{latency}"), 24, 0, &server.env);
        let served = (server.cpu_ms() - before) / alone.segments as f64;
        line(&format!("push, one at a time, {latency} ms"), alone, "");
        let all = if latency == 0 { "all".to_owned() } else { format!("ahead-{latency}") };
        server.requests();
        let ahead = stand.push(&all, 64, 8, &server.env);
        let requests = server.requests().split(' ').count() as f64 / ahead.segments as f64;
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let one = (zstd.cpu_ms + sha.cpu_ms) / zstd.segments as f64 + served;
        let bound = cores.min(2.0) / one * 1e3;
        let remark = format!(
            "{:.2} x one at a time; {:.2} of the {bound:.0} that two cores allow; {requests:.1} requests a segment",
            ahead.rate() / alone.rate(),
            ahead.rate() / bound
        );
        line(&format!("push, look-ahead 8, {latency} ms"), ahead, &remark);
    }
    for latency in [0, 20, 80] {
        server.latency(latency);
        let alone = stand.fetch(24, (0, 0), &server.env);
        line(&format!("fetch, one at a time, {latency} ms"), alone, "");
        let ahead = stand.fetch(64, (8, 0), &server.env);
        let remark = format!("{:.2} x one at a time", ahead.rate() / alone.rate());
        line(&format!("fetch, prefetch 8, {latency} ms"), ahead, &remark);
        let replayed = stand.fetch(32, (8, 100), &server.env);
        let remark = format!("{:.3} x replay alone", replayed.wall_ms / (replayed.segments as f64 * 100.0));
        line(&format!("fetch, prefetch 8, 100 ms of replay, {latency} ms"), replayed, &remark);
    }
}
