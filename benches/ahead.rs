//! The table of `docs/performance.md`: archiving and fetching many segments as PostgreSQL asks for them, at a near and at a far store,
//! each beside its floors and beside the other archivers that are on the `PATH`, in turns in the same run.
//!
//! `make bench`. It is judged against the limits that the project has set itself; wall time says something on a quiet machine only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr, clippy::panic)]

#[path = "stand/bare.rs"]
mod bare;
#[path = "stand/corpus.rs"]
mod corpus;
#[path = "../tests/it/double/mod.rs"]
mod double;
#[path = "stand/found.rs"]
mod found;
#[path = "stand/judge.rs"]
mod judge;
#[path = "stand/peers.rs"]
mod peers;
#[path = "stand/place.rs"]
mod place;
#[path = "stand/row.rs"]
mod row;
#[path = "stand/server.rs"]
mod server;

use std::fs;
use std::path::PathBuf;

use corpus::Load;
use judge::Verdicts;
use peers::Peer;
use place::{Calls, Place};
use row::{Outcome, Verb};
use server::Server;

/// Each is measured so often, in turns; the quickest counts, for all.
const ROUNDS: usize = 2;
/// Added to each answer of the store, in ms.
const LATENCIES: [u64; 3] = [0, 20, 80];
/// Segments of a row without look-ahead or prefetch.
const ONE_AT_A_TIME: usize = 24;
/// Pretended replay of a segment, in ms, and segments of such a row.
const REPLAY: u64 = 100;
const REPLAYED: usize = 32;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("--serve") => server::serve(&words[1..]),
        Some("--row") => row::drive(&words[1..]),
        _ => bench(),
    }
}

fn bench() {
    let pgark = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/release/pgark");
    assert!(pgark.exists(), "`make bench` builds the release first");
    say_machine();
    let mut peers = Peer::found();
    let mut verdicts = Verdicts::default();
    let pgbench = Load::Pgbench { scale: 40, transactions: 50_000, times: 2 };
    for (kind, load, segments) in [("pgbench", pgbench, 64), ("hardly compressible", Load::Random(2_700), 16)] {
        let place = Place::make(load, segments);
        println!("\n{segments} segments of 16 MiB, {kind}; CPU, bytes and requests are those of a segment");
        let authority = place.root().join("authority.pem");
        let servers = [Server::start(), Server::with_tls(&authority)];
        let mut corpus = Corpus { kind, place, pgark: pgark.clone(), servers, floors: Floors::default() };
        corpus.floors();
        let pushed = corpus.pushes(&mut peers);
        let fetched = corpus.fetches(&mut peers);
        corpus.judge(&pushed, &fetched, &mut verdicts);
    }
    verdicts.print();
}

fn say_machine() {
    let value = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = value("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1e6;
    let date = jiff::Timestamp::now().to_string();
    println!("{}; {cores} cores of {}, {memory:.0} GB", &date[..10], value("/proc/cpuinfo", "model name"));
    println!("the quickest of {ROUNDS} rounds, in turns; wall time of a call in ms, memory in MB, stored in MB");
}

/// Whose calls.
#[derive(Clone)]
enum Whose {
    /// pgark without look-ahead and prefetch.
    OneAtATime,
    OverTls,
    /// As it is by default.
    Pgark,
    /// The same while a segment is replayed.
    Replayed,
    Peer(Peer),
}

impl Whose {
    fn title(&self) -> String {
        match self {
            Whose::OneAtATime => "pgark, one at a time".into(),
            Whose::OverTls => "pgark, one at a time, TLS".into(),
            Whose::Pgark => "pgark".into(),
            Whose::Replayed => format!("pgark, {REPLAY} ms of replay"),
            Whose::Peer(peer) => peer.title.clone(),
        }
    }

    fn server(&self) -> usize {
        match self {
            Whose::OverTls => 1,
            Whose::Peer(peer) => usize::from(peer.wants_tls()),
            _ => 0,
        }
    }

    fn segments(&self) -> usize {
        match self {
            Whose::OneAtATime | Whose::OverTls => ONE_AT_A_TIME,
            Whose::Replayed => REPLAYED,
            _ => usize::MAX,
        }
    }
}

/// What was measured of whom, at which latency.
struct Measured(Vec<(Whose, u64, Outcome)>);

impl Measured {
    fn of(&self, latency: u64, whose: impl Fn(&Whose) -> bool) -> Outcome {
        let found = self.0.iter().find(|(who, at, _)| *at == latency && whose(who));
        found.map(|(_, _, outcome)| *outcome).unwrap()
    }

    fn one(&self, latency: u64) -> Outcome {
        self.of(latency, |who| matches!(who, Whose::OneAtATime))
    }

    fn pgark(&self, latency: u64) -> Outcome {
        self.of(latency, |who| matches!(who, Whose::Pgark))
    }

    /// The quickest other one.
    fn best_peer(&self, latency: u64) -> Option<f64> {
        let rates = self.0.iter().filter(|(who, at, _)| *at == latency && matches!(who, Whose::Peer(_)));
        rates.map(|(_, _, outcome)| outcome.rate()).max_by(f64::total_cmp)
    }
}

#[derive(Default)]
struct Floors {
    cp: Outcome,
    zstd: Outcome,
    unzstd: Outcome,
    sha256: Outcome,
    put: Outcome,
    get: Outcome,
    digest: Outcome,
}

struct Corpus {
    kind: &'static str,
    place: Place,
    pgark: PathBuf,
    /// Without and with TLS.
    servers: [Server; 2],
    floors: Floors,
}

impl Corpus {
    fn floors(&mut self) {
        let place = &self.place;
        let cp = place.each(&["cp", "pg_wal/{}", "copy"]);
        let zstd = place.each(&["zstd", "-1", "-q", "-f", "pg_wal/{}", "-o", "{}.zst"]);
        let unzstd = place.each(&["zstd", "-d", "-q", "-f", "{}.zst", "-o", "copy"]);
        let sha256 = place.each(&["sha256sum", "pg_wal/{}"]);
        let urls: Vec<[String; 2]> =
            place.names.iter().map(|name| bare::urls(&self.servers[0], &format!("bare/{name}"))).collect();
        let files = place.names.iter().map(|name| place.data().join(format!("{name}.zst")));
        let puts = urls.iter().zip(files).map(|([put, _], file)| format!("{put} {}", file.display()));
        let put = place.bare(Verb::BarePut, puts.collect());
        let get = place.bare(Verb::BareGet, urls.into_iter().map(|[_, get]| get).collect());
        let segments = place.names.iter().map(|name| place.data().join("pg_wal").join(name).display().to_string());
        let digest = place.bare(Verb::QuickDigest, segments.collect());
        place.each(&["rm", "-f", "{}.zst", "copy"]);
        self.servers[0].forget("bare/");
        self.floors = Floors { cp, zstd, unzstd, sha256, put, get, digest };
        heading("floors");
        for (title, outcome) in [
            ("cp", cp),
            ("zstd -1", zstd),
            ("zstd -d", unzstd),
            ("sha256sum", sha256),
            ("a bare PUT of the compressed segment", put),
            ("a bare GET", get),
            ("read and take XXH3-128", digest),
        ] {
            line(title, &outcome);
        }
    }

    /// How somebody is called, with a repository of this label.
    fn calls(&self, whose: &Whose, label: &str) -> Result<Calls, String> {
        let server = &self.servers[whose.server()];
        let pgark = |ahead: &str| {
            let settings = [("PGARK_WAL__LOOKAHEAD", ahead), ("PGARK_WAL__PREFETCH", ahead)];
            self.place.pgark(&self.pgark, server, label, &settings)
        };
        match whose {
            Whose::OneAtATime | Whose::OverTls => Ok(pgark("0")),
            Whose::Pgark | Whose::Replayed => Ok(pgark("8")),
            Whose::Peer(peer) => peer.calls(&self.place, server, label),
        }
    }

    fn pushes(&mut self, peers: &mut Vec<Peer>) -> Measured {
        self.measure("push", peers, |corpus, whose, latency, round| {
            // What the first latency leaves is fetched afterwards.
            let kept = latency == LATENCIES[0] && round == 0 && !matches!(whose, Whose::OneAtATime);
            let label = match whose {
                _ if kept => "kept".into(),
                Whose::OneAtATime => format!("alone-{latency}-{round}"),
                _ => format!("{latency}-{round}"),
            };
            let calls = corpus.calls(whose, &label)?;
            let server = &mut corpus.servers[whose.server()];
            let outcome = corpus.place.push(&calls, server, whose.segments());
            if !kept {
                server.forget(&calls.prefix);
            }
            outcome
        })
    }

    fn fetches(&mut self, peers: &mut Vec<Peer>) -> Measured {
        self.measure("fetch", peers, |corpus, whose, _, _| {
            let calls = corpus.calls(whose, "kept")?;
            let replay = if matches!(whose, Whose::Replayed) { REPLAY } else { 0 };
            corpus.place.fetch(&calls, &mut corpus.servers[whose.server()], whose.segments(), replay)
        })
    }

    /// Everybody in turns. A peer that cannot do it is left out from there on.
    fn measure(
        &mut self,
        what: &str,
        peers: &mut Vec<Peer>,
        once: impl Fn(&mut Self, &Whose, u64, usize) -> Result<Outcome, String>,
    ) -> Measured {
        let mut measured = Measured(Vec::new());
        for latency in LATENCIES {
            self.servers.iter_mut().for_each(|server| server.latency(latency));
            let mut all = vec![Whose::OneAtATime, Whose::Pgark];
            if latency == 0 {
                all.insert(1, Whose::OverTls);
            }
            if what == "fetch" {
                all.push(Whose::Replayed);
            }
            all.extend(peers.iter().cloned().map(Whose::Peer));
            let mut rounds: Vec<Vec<Outcome>> = vec![Vec::new(); all.len()];
            for round in 0..ROUNDS {
                for (whose, outcomes) in all.iter().zip(&mut rounds) {
                    if outcomes.len() < round {
                        continue;
                    }
                    match once(self, whose, latency, round) {
                        Ok(outcome) => outcomes.push(outcome),
                        Err(error) if matches!(whose, Whose::Peer(_)) => {
                            println!("{} is left out: {error}", whose.title());
                            peers.retain(|peer| peer.title != whose.title());
                        }
                        Err(error) => panic!("{}: {error}", whose.title()),
                    }
                }
            }
            heading(&format!("{what}, {latency} ms of latency"));
            for (whose, outcomes) in all.into_iter().zip(rounds) {
                let Some(quickest) = quickest(&outcomes) else { continue };
                line(&whose.title(), &quickest);
                measured.0.push((whose, latency, quickest));
            }
        }
        self.servers.iter_mut().for_each(|server| server.latency(0));
        measured
    }

    fn judge(&self, push: &Measured, fetch: &Measured, verdicts: &mut Verdicts) {
        let Floors { cp, zstd, unzstd, sha256, put, get, digest } = &self.floors;
        let is_tls = |who: &Whose| matches!(who, Whose::OverTls);
        let mut least = |what: &str, figure, limit, unit| {
            verdicts.at_least(&format!("{}: {what}", self.kind), figure, limit, unit);
        };
        let far = *LATENCIES.last().unwrap();
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(2) as f64;
        let ahead = push.pgark(0);
        let bound = cores * 1e3 / (zstd.cpu() + sha256.cpu() + ahead.served_ms);
        if let (Some(near_peer), Some(far_peer)) = (push.best_peer(0), push.best_peer(far)) {
            least("sustained push", ahead.rate() / near_peer, 1.0, "x peer");
            least(&format!("sustained push, {far} ms"), push.pgark(far).rate() / far_peer, 1.5, "x peer");
        }
        least(&format!("sustained push, of {bound:.1} a second that two cores allow"), ahead.rate() / bound, 0.85, "");
        let gain = push.pgark(far).rate() / push.one(far).rate();
        least(&format!("sustained push, {far} ms, beside one at a time"), gain, 4.0, "x");
        if let Some(peer) = fetch.best_peer(0) {
            least("sustained fetch", fetch.pgark(0).rate() / peer, 1.8, "x peer");
        }
        least("sustained fetch, beside cp", fetch.pgark(0).rate() / cp.rate(), 0.75, "x cp");

        let mut most = |what: &str, figure, limit, unit| {
            verdicts.at_most(&format!("{}: {what}", self.kind), figure, limit, unit);
        };
        most(&format!("call for what was archived ahead ({} calls)", ahead.ready), ahead.ready_p50_ms, 4.0, "ms");
        let replays = [0, far].map(|latency| fetch.of(latency, |who| matches!(who, Whose::Replayed)));
        let limit = 4.0 + digest.p50_ms;
        most(&format!("handing over ({} calls)", replays[0].ready), replays[0].ready_p50_ms, limit, "ms");
        for (latency, replay) in [0, far].iter().zip(replays) {
            let alone = replay.segments as f64 * REPLAY as f64;
            most(&format!("recovery beside replay alone, {latency} ms"), replay.wall_ms / alone, 1.1, "x");
        }
        let (pushed, fetched) = (push.one(0), fetch.one(0));
        most("one push", pushed.p50_ms, 1.1 * (zstd.p50_ms + put.p50_ms), "ms");
        most("one push over TLS, more than without", push.of(0, is_tls).p50_ms - pushed.p50_ms, 10.0, "ms");
        most("one fetch", fetched.p50_ms, 1.3 * unzstd.p50_ms + get.p50_ms, "ms");
        most("memory of one push", pushed.peak_mb, 20.0, "MB");
        most("memory of a push with look-ahead", LATENCIES.map(|at| push.pgark(at).peak_mb).max(), 64.0, "MB");
        most("memory of a fetch", LATENCIES.map(|at| fetch.pgark(at).peak_mb).max().max(fetched.peak_mb), 16.0, "MB");
        most("memory of the helper", LATENCIES.map(|at| fetch.pgark(at).beside_mb).max(), 48.0, "MB");
    }
}

trait Largest {
    fn max(self) -> f64;
}

impl<const N: usize> Largest for [f64; N] {
    fn max(self) -> f64 {
        self.into_iter().fold(0.0, f64::max)
    }
}

fn quickest(outcomes: &[Outcome]) -> Option<Outcome> {
    let quickest = outcomes.iter().copied().min_by(|a, b| a.wall_ms.total_cmp(&b.wall_ms))?;
    let most = |of: fn(&Outcome) -> f64| outcomes.iter().map(of).fold(0.0, f64::max);
    Some(Outcome { peak_mb: most(|one| one.peak_mb), beside_mb: most(|one| one.beside_mb), ..quickest })
}

fn heading(what: &str) {
    println!(
        "\n{what:<42}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
        "a second", "CPU ms", "p50", "p99", "memory", "beside", "stored", "requests"
    );
}

fn line(title: &str, outcome: &Outcome) {
    let some = |figure: f64| if figure > 0.0 { format!("{figure:.1}") } else { "-".into() };
    println!(
        "{title:<42}{:>9.1}{:>9.1}{:>9.1}{:>9.1}{:>9.1}{:>9}{:>9}{:>9}",
        outcome.rate(),
        outcome.cpu(),
        outcome.p50_ms,
        outcome.p99_ms,
        outcome.peak_mb,
        some(outcome.beside_mb),
        some(outcome.stored / 1e6),
        some(outcome.requests)
    );
}
