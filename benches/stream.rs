//! What `wal-receive` costs and what it saves: how much a destroyed server loses, how long a synchronous commit takes, how fast it
//! catches up and in how much memory, and what a silent server costs. `make bench`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr, clippy::panic)]

#[path = "../tests/it/double/mod.rs"]
mod double;
// Other benches use the rest of these.
#[allow(dead_code)]
#[path = "stand/judge.rs"]
mod judge;
// The servers' own tests need it.
#[allow(unused_imports)]
#[path = "../tests/it/ledger.rs"]
mod ledger;
#[allow(unused_imports)]
#[path = "../tests/it/postgres/mod.rs"]
mod postgres;
#[allow(dead_code)]
#[path = "stand/server.rs"]
mod server;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use judge::Verdicts;
use postgres::{Cluster, ClusterBuilder, Endpoint, Lsn};
use server::Server;

const A_MINUTE: Duration = Duration::from_secs(60);
const DISASTERS: usize = 20;
const COMMITS_A_SECOND: u32 = 200;
/// Added to each answer of the store, in ms.
const LATENCIES: [u64; 3] = [0, 20, 80];
const COMMITS: usize = 100;
const SILENCE: Duration = Duration::from_secs(600);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "--serve") {
        return server::serve(&words[1..]);
    }
    let mut verdicts = Verdicts::default();
    let silence = Silence::begin();
    catch_up(&mut verdicts);
    outage(&mut verdicts);
    commits(&mut verdicts);
    disasters(&mut verdicts);
    silence.end(&mut verdicts);
    verdicts.print();
}

/// A server that archives nothing, with segments of 16 MiB.
fn builder() -> ClusterBuilder {
    Cluster::builder().wal_segment_mib(16).conf("archive_mode = off").conf("max_wal_size = '8GB'").conf("fsync = off")
}

/// A receiver, and the most memory that it was seen to have.
struct Receiver(Child);

impl Receiver {
    fn start(server: &Server, endpoint: &Endpoint, words: &[&str]) -> Self {
        let mut command = pgark(server, &["wal-receive", "--create-slot"]);
        command.args(words);
        Receiver(pgark_on(command, endpoint).spawn().expect("`make bench` builds the release first"))
    }

    fn streams(self, cluster: &Cluster) -> Self {
        let begun = "select count(flush_lsn) from pg_stat_replication where application_name = 'pgark'";
        cluster.wait_until("streamed", A_MINUTE, || cluster.value(begun) == "1");
        self
    }

    fn peak_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).map_or(0.0, |kb| kb / 1024.0)
    }

    /// Waits for its end: wall time, and peak memory.
    fn wait(mut self) -> (Duration, f64) {
        let (begun, mut peak) = (Instant::now(), 0.0_f64);
        loop {
            peak = peak.max(self.peak_mb());
            if let Some(status) = self.0.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return (begun.elapsed(), peak);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// WAL of a table that is filled: it compresses some ten times.
const EASY: &str = "insert into t select g, g % 1000, repeat(' ', 84) from generate_series(1, 1000000) g";
/// It hardly gets smaller than half.
const HARD: &str =
    "insert into t select g, g, md5(random()::text) || md5(random()::text) from generate_series(1, 1000000) g";

fn catch_up(verdicts: &mut Verdicts) {
    println!("catching up\n{:<44}{:>9}{:>9}{:>9}", "", "MB/s", "MB", "peak MB");
    let kinds = [
        ("compresses well", 16, EASY),
        ("hardly compresses", 16, HARD),
        ("hardly compresses, in segments of 64 MiB", 64, HARD),
    ];
    for (kind, segment_mib, load) in kinds {
        let server = Server::start();
        let cluster = builder().wal_segment_mib(segment_mib).start();
        cluster.execute("create table t (a int, b int, c text)");
        let from = cluster.current_lsn();
        Receiver::start(&server, cluster.endpoint(), &["--once-to", &from.to_string()]).wait();
        (0..8).for_each(|_| cluster.execute(load));
        let to = cluster.current_lsn();
        let megabytes = (to.0 - from.0) as f64 / 1e6;
        let (took, peak) = Receiver::start(&server, cluster.endpoint(), &["--once-to", &to.to_string()]).wait();
        let rate = megabytes / took.as_secs_f64();
        println!("{kind:<44}{rate:>9.0}{megabytes:>9.0}{peak:>9.1}");
        verdicts.at_least(&format!("catching up, WAL that {kind}"), rate, 150.0, "MB/s");
        verdicts.at_most(&format!("memory while catching up, WAL that {kind}"), peak, 64.0, "MB");
    }
}

/// The store does not answer while WAL is written as fast as the server can.
fn outage(verdicts: &mut Verdicts) {
    let mut server = Server::start();
    let cluster = builder().start();
    cluster.execute("create table t (a int, b int, c text)");
    let receiver = Receiver::start(&server, cluster.endpoint(), &[]).streams(&cluster);
    server.latency(3_600_000);
    (0..3).for_each(|_| cluster.execute(HARD));
    std::thread::sleep(Duration::from_secs(5));
    verdicts.at_most("memory in an outage of the store", receiver.peak_mb(), 64.0, "MB");
}

/// How long a commit takes that waits for the store.
fn commits(verdicts: &mut Verdicts) {
    println!("\na synchronous commit, ms\n{:<24}{:>9}{:>9}{:>12}", "latency of the store", "p50", "p99", "requests");
    let mut server = Server::start();
    let cluster = builder().start();
    cluster.execute("create table t (a int)");
    let _receiver = Receiver::start(&server, cluster.endpoint(), &["--synchronous"]).streams(&cluster);
    cluster.configure("synchronous_standby_names = 'pgark'");
    cluster.reload();
    let waits = "select count(*) from pg_stat_replication where sync_state = 'sync'";
    cluster.wait_until("synchronous", A_MINUTE, || cluster.value(waits) == "1");
    let mut client = cluster.connect();
    for latency in LATENCIES {
        server.latency(latency);
        let mut took: Vec<f64> = Vec::new();
        for number in 0..COMMITS {
            let begun = Instant::now();
            client.sql(&format!("insert into t values ({number})")).unwrap();
            took.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        let requests = server.requests().split_whitespace().count() as f64 / COMMITS as f64;
        took.sort_by(f64::total_cmp);
        let (p50, p99) = (took[COMMITS / 2], took[COMMITS * 99 / 100]);
        println!("{latency:<24}{p50:>9.1}{p99:>9.1}{requests:>12.2}");
        verdicts.at_most(&format!("a synchronous commit, {latency} ms of latency"), p50, latency as f64 + 10.0, "ms");
    }
    server.latency(0);
}

/// A server that writes nothing beside the other measurements, its receiver, and the store that counts their requests.
struct Silence {
    server: Server,
    cluster: Cluster,
    _receiver: Receiver,
    since: Instant,
    position: Lsn,
}

impl Silence {
    fn begin() -> Self {
        let mut server = Server::start();
        let cluster = builder().conf("log_checkpoints = off").start();
        let receiver = Receiver::start(&server, cluster.endpoint(), &[]).streams(&cluster);
        // The server itself writes a little after its start, and what was written makes it write at its next checkpoint.
        cluster.execute("checkpoint");
        let mut position = cluster.current_lsn();
        loop {
            std::thread::sleep(Duration::from_secs(20));
            let now = cluster.current_lsn();
            if now == position {
                break;
            }
            position = now;
        }
        server.requests();
        Silence { server, cluster, _receiver: receiver, since: Instant::now(), position }
    }

    fn end(mut self, verdicts: &mut Verdicts) {
        std::thread::sleep(SILENCE.saturating_sub(self.since.elapsed()));
        let wrote = self.cluster.current_lsn().0 - self.position.0;
        verdicts.at_most("WAL that the silent server wrote", wrote as f64, 0.0, "bytes");
        let (requests, lasted) = (self.server.requests().split_whitespace().count(), self.since.elapsed().as_secs());
        verdicts.at_most(&format!("requests of a silent server in {lasted} s"), requests as f64, 0.0, "");
    }
}

/// Everything on the server's host is killed while it commits. What the store has then is told by `status`; tests restore it.
fn disasters(verdicts: &mut Verdicts) {
    let mut windows: Vec<f64> = (0..DISASTERS).map(disaster).collect();
    windows.sort_by(f64::total_cmp);
    println!("\nloss window of {DISASTERS} disasters at {COMMITS_A_SECOND} commits/s, --flush 1s, seconds");
    println!("{}", windows.iter().map(|window| format!("{window:.2}")).collect::<Vec<_>>().join(" "));
    verdicts.at_most("loss window, p99", windows[DISASTERS - 1], 2.0, "s");
}

fn disaster(round: usize) -> f64 {
    let server = Server::start();
    let cluster = builder().start();
    cluster.execute("create table t (a int)");
    let receiver = Receiver::start(&server, cluster.endpoint(), &["--flush", "1s"]).streams(&cluster);
    // Without a backup nothing can be restored.
    let backup = pgark(&server, &["basebackup", "--remote", "--quiet"]);
    assert!(pgark_on(backup, cluster.endpoint()).status().unwrap().success());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Each commit, and the position behind it.
        let writer = scope.spawn(|| {
            let mut client = cluster.connect();
            let (begun, mut commits) = (Instant::now(), Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let asked = client.sql("insert into t values (1); select pg_current_wal_insert_lsn()");
                let Ok(rows) = asked else { break };
                commits.push((Instant::now(), rows[0][0].parse::<Lsn>().unwrap()));
                let due = Duration::from_secs(1) * commits.len() as u32 / COMMITS_A_SECOND;
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
            commits
        });
        std::thread::sleep(Duration::from_millis(2500 + 137 * (round as u64 % 9)));
        let destroyed = Instant::now();
        // Left alive for a moment it would store what had come.
        drop(receiver);
        cluster.kill_9();
        stop.store(true, Ordering::Relaxed);
        let commits = writer.join().unwrap();
        let kept = restorable(&server);
        let lost = commits.iter().find(|(_, lsn)| *lsn > kept);
        lost.map_or(0.0, |(at, _)| destroyed.saturating_duration_since(*at).as_secs_f64())
    })
}

/// The newest position that can be restored.
fn restorable(server: &Server) -> Lsn {
    let output = pgark(server, &["status", "--json", "--no-server"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    report["newest"]["lsn"].as_str().expect("a newest position").parse().unwrap()
}

fn pgark(server: &Server, words: &[&str]) -> Command {
    let mut command = Command::new(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/release/pgark"));
    command.args(words).envs(server.env.iter().cloned()).stdin(Stdio::null());
    command
}

fn pgark_on(mut command: Command, endpoint: &Endpoint) -> Command {
    command.env("PGARK_CLUSTER__CONNINFO", endpoint.conninfo()).stdout(Stdio::null());
    command
}
