//! What a push and a fetch cost, each beside its floor in the same run: `make bench`.
//!
//! CPU time and peak memory of whole processes, on 16 MiB segments of a real pgbench run, against an S3 server that is a
//! process of its own. Wall time on a shared machine says little and is shown as a ratio only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr, clippy::panic)]

#[path = "../tests/it/double/mod.rs"]
mod double;

// `ahead` uses the rest of these.
#[allow(dead_code)]
#[path = "stand/corpus.rs"]
mod corpus;
#[path = "stand/instructions.rs"]
mod instructions;
#[allow(dead_code)]
#[path = "stand/server.rs"]
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use corpus::Load;
use server::Server;

use nix::sys::resource::{UsageWho, getrusage};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("--serve") => server::serve(&words[1..]),
        Some("--measure") => measure(&words[1..]),
        _ => bench(),
    }
}

/// Runs a program as the only child of this process, so that the children's usage is its own.
fn measure(words: &[String]) {
    let begun = Instant::now();
    let status = Command::new(&words[0]).args(&words[1..]).stdout(Stdio::null()).status().expect("run the program");
    let wall = begun.elapsed();
    assert!(status.success(), "{words:?}: {status}");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage");
    let ms = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    let cpu = ms(usage.user_time()) + ms(usage.system_time());
    println!("{cpu} {} {}", wall.as_secs_f64() * 1e3, usage.max_rss());
}

#[derive(Clone, Copy)]
struct Cost {
    cpu_ms: f64,
    wall_ms: f64,
    peak_mb: f64,
}

fn bench() {
    let pgark = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/release/pgark");
    assert!(pgark.exists(), "`make bench` builds the release first");
    let program = pgark.display().to_string();
    let place = tempfile::tempdir().unwrap();
    let corpus = corpus::corpus(place.path(), Load::Pgbench { scale: 10, transactions: 12_000, times: 1 });
    let runs = corpus.len();
    println!("corpus: {runs} segments of 16 MiB from pgbench; each row is run once for each of them:");
    println!("median CPU time and largest peak of memory of whole processes\n");
    println!("{:<28}{:>9}{:>10}{:>9}{:>9}   limit", "", "CPU ms", "wall ms", "MB", "x floor");
    let mut limits = Limits::default();
    let (packed, plain) = (text(&place.path().join("packed.zst")), text(&place.path().join("plain")));

    let version = each(&corpus, &[], |_| words(&[&program, "--version"]));
    line("pgark --version", version, None, "3 ms");
    limits.judge("--version", version.cpu_ms, 3.0, "ms");

    let mut server = Server::start();
    let zstd = each(&corpus, &[], |file| words(&["zstd", "-1", "-q", "-f", &text(file), "-o", &packed]));
    line("zstd -1", zstd, None, "floor");
    let push = each(&corpus, &server.env, |file| words(&[&program, "wal-push", &text(file)]));
    line("pgark wal-push to S3", push, Some(zstd), "1.25 x (floor + 10 ms), 20 MB");
    limits.judge("push CPU", push.cpu_ms, 1.25 * (zstd.cpu_ms + 10.0), "ms");
    limits.judge("push memory", push.peak_mb, 20.0, "MB");
    let pushing = server.requests();

    let unpack = each(&corpus, &[], |file| {
        let packing = Command::new("zstd").args(["-1", "-q", "-f", &text(file), "-o", &packed]).status();
        assert!(packing.unwrap().success());
        words(&["zstd", "-d", "-q", "-f", &packed, "-o", &plain])
    });
    line("zstd -d", unpack, None, "floor");
    let fetch = each(&corpus, &server.env, |file| {
        words(&[&program, "wal-fetch", &file.file_name().unwrap().to_string_lossy(), &plain])
    });
    line("pgark wal-fetch from S3", fetch, Some(unpack), "1.5 x (floor + 10 ms)");
    limits.judge("fetch CPU", fetch.cpu_ms, 1.5 * (unpack.cpu_ms + 10.0), "ms");
    let fetching = server.requests();

    let count = |asked: &str, operation: &str| asked.split(' ').filter(|name| *name == operation).count();
    let (puts, gets) = (count(&pushing, "PutObject"), count(&fetching, "GetObject"));
    let (others, rest) = (pushing.split(' ').count() - puts, fetching.split(' ').count() - gets);
    println!(
        "\nrequests for {runs} pushes: {puts} PutObject, {others} others; for {runs} fetches: {gets} GetObject, {rest} others"
    );
    // The first push creates the identity: another write, and the looks that tell that there was none.
    limits.judge("small requests a push", (others as f64 - 4.0) / runs as f64, 1.0, "");
    limits.judge("requests a fetch", (gets + rest) as f64 / runs as f64, 1.0, "");
    let size = fs::metadata(&pgark).unwrap().len() as f64 / (1 << 20) as f64;
    println!("binary: {size:.1} MB");
    limits.judge("binary", size, 15.0, "MB");
    let mut env = server.env.clone();
    // Another repository, so that this push is one that stores; its first one makes the repository.
    env.push(("PGARK_CLUSTER__NAME".into(), "counted".into()));
    env.push(("PGARK_WAL__LOOKAHEAD".into(), "0".into()));
    let (first, segment) = (text(&corpus[0]), text(&corpus[1]));
    once(&words(&[&program, "wal-push", &first]), &env, data_dir(&corpus[0]));
    instructions::print("one push", &words(&[&program, "wal-push", &segment]), &env, data_dir(&corpus[1]));
    let name = corpus[1].file_name().unwrap().to_string_lossy().into_owned();
    instructions::print("one fetch", &words(&[&program, "wal-fetch", &name, &plain]), &env, data_dir(&corpus[1]));
    limits.conclude();
}

#[derive(Default)]
struct Limits {
    missed: Vec<String>,
}

impl Limits {
    fn judge(&mut self, name: &str, value: f64, limit: f64, unit: &str) {
        if value > limit {
            self.missed.push(format!("{name}: {value:.2} {unit}, the limit is {limit:.2}"));
        }
    }

    fn conclude(self) {
        match self.missed.is_empty() {
            true => println!("\nall limits are met"),
            false => println!("\nMISSED\n{}", self.missed.join("\n")),
        }
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Runs a command once for each segment, so that nothing is archived twice and every row has the same work.
fn each(corpus: &[PathBuf], env: &[(String, String)], command: impl Fn(&Path) -> Vec<String>) -> Cost {
    let mut costs: Vec<Cost> = corpus.iter().map(|segment| once(&command(segment), env, data_dir(segment))).collect();
    let peak_mb = costs.iter().map(|cost| cost.peak_mb).fold(0.0, f64::max);
    costs.sort_by(|a, b| a.cpu_ms.total_cmp(&b.cpu_ms));
    Cost { peak_mb, ..costs[costs.len() / 2] }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The corpus lies in the `pg_wal` of a data directory: PostgreSQL runs its commands there.
fn data_dir(segment: &Path) -> &Path {
    segment.ancestors().nth(2).unwrap()
}

fn once(command: &[String], env: &[(String, String)], directory: &Path) -> Cost {
    let output = Command::new(std::env::current_exe().unwrap())
        .arg("--measure")
        .args(command)
        .current_dir(directory)
        .env_clear()
        .envs(env.iter().cloned())
        .env("PATH", "/usr/bin:/bin")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{command:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let numbers: Vec<f64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    Cost { cpu_ms: numbers[0], wall_ms: numbers[1], peak_mb: numbers[2] / 1024.0 }
}

fn line(name: &str, cost: Cost, floor: Option<Cost>, limit: &str) {
    let ratio = floor.map_or(String::new(), |floor| format!("{:.2}", cost.cpu_ms / floor.cpu_ms));
    println!("{name:<28}{:>9.1}{:>10.1}{:>9.1}{ratio:>9}   {limit}", cost.cpu_ms, cost.wall_ms, cost.peak_mb);
}
