//! Receivers, servers and stores that fail at random, again and again, under a load of commits: what is stored has no hole and no byte
//! that is another than the server's, and `pgark restore` alone brings back every commit before its end.

use std::fs::OpenOptions;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::backups::{restore, take_backup};
use crate::double::{Fault, Op, Rule, S3Double};
use crate::kills::seed;
use crate::ledger::{BackgroundWriter, Expect, Ledger, integrity};
use crate::postgres::{Cluster, Installation, Lsn, Position, Scratch, StopMode};
use crate::program::Call;
use crate::receiver_witness::{Ends, Watch, Witness};
use crate::repository::Repository;
use crate::wal_receive::call;

const A_MINUTE: Duration = Duration::from_secs(60);

/// How often each happens in one test, and in all of them.
const KILLS: [u32; 2] = [25, 25];
const RESTARTS: [u32; 2] = [25, 25];
const OUTAGES: [u32; 2] = [10, 10];
const SCHEDULES: [u32; 2] = [10, 10];
const PROMOTIONS: u32 = 5;
const _: () = assert!(KILLS[0] + KILLS[1] >= 50 && RESTARTS[0] + RESTARTS[1] >= 50);
const _: () = assert!(OUTAGES[0] + OUTAGES[1] >= 20 && SCHEDULES[0] + SCHEDULES[1] >= 20 && PROMOTIONS >= 5);

/// A receiver that is started again when it ends, as a service manager does.
struct Receiver {
    call: Call,
    child: Option<Child>,
    home: Scratch,
    kills: u32,
    /// How often it ended by itself.
    ends: u32,
}

impl Receiver {
    fn of(repository: &Repository, conninfo: &str, cluster: &Cluster) -> Receiver {
        let call = call(repository, cluster, &[]).env("PGARK_CLUSTER__CONNINFO", conninfo);
        Receiver { call, child: None, home: Scratch::new("receiver"), kills: 0, ends: 0 }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.home.path().join("said")).unwrap_or_default()
    }

    /// Runs with this way to cut pieces, if it does not run.
    fn run(&mut self, random: &mut StdRng) {
        if self.is_running() {
            return;
        }
        let ways = [("FLUSH", "100ms"), ("FLUSH", "200ms"), ("SYNCHRONOUS", "true"), ("FLUSH_BYTES", "16KiB")];
        self.start(*ways.choose(random).unwrap());
    }

    fn start(&mut self, (name, value): (&str, &str)) {
        let said = OpenOptions::new().append(true).create(true).open(self.home.path().join("said")).unwrap();
        let call = self.call.clone().env(&format!("PGARK_RECEIVE__{name}"), value);
        self.child = Some(call.command().stdout(Stdio::null()).stderr(said).spawn().expect("pgark can be started"));
    }

    fn is_running(&mut self) -> bool {
        let Some(child) = &mut self.child else { return false };
        let Some(status) = child.try_wait().unwrap() else { return true };
        self.child = None;
        self.ends += 1;
        // The server, or the store, could not be reached when it began.
        let code = status.code();
        assert!(matches!(code, Some(10 | 11 | 12 | 14 | 17)), "it ended with {status}:\n{}", self.said());
        false
    }

    fn kill_9(&mut self) {
        self.is_running();
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
            self.kills += 1;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("the receiver said:\n{}", self.said());
        }
    }
}

/// A server under load, its receiver, and the witness.
struct World {
    watch: Option<Watch>,
    load: Option<BackgroundWriter>,
    receiver: Receiver,
    witness: Arc<Witness>,
    cluster: Cluster,
    ledger: Ledger,
    repository: Arc<Repository>,
    random: StdRng,
    timeline: u32,
    restarts: u32,
    rows: u32,
    arrivals: Vec<Duration>,
    begun: Instant,
}

impl World {
    /// A server that archives nothing, with a backup; its `pg_wal` keeps all if `keeps_wal`, else what slots keep.
    fn new(keeps_wal: bool) -> World {
        let random = StdRng::seed_from_u64(seed());
        let repository = Arc::new(Repository::s3());
        repository.double().latency(Duration::from_millis(2));
        let keep = if keeps_wal { "wal_keep_size = '8GB'" } else { "max_wal_size = '4MB'" };
        let builder = Cluster::builder().conf("archive_mode = off").conf("max_wal_senders = 10").conf(keep);
        let cluster = builder.start();
        let witness = Arc::new(Witness::new(Arc::clone(&repository)));
        if keeps_wal {
            witness.compare_to(&cluster, 1);
        }
        witness.ask(&cluster, 1);
        let watch = Some(witness.watch());
        let ledger = Ledger::create(&cluster);
        let receiver = Receiver::of(&repository, &cluster.endpoint().conninfo(), &cluster);
        let mut world = World {
            watch,
            load: None,
            receiver,
            witness,
            cluster,
            ledger,
            repository,
            random,
            timeline: 1,
            restarts: 0,
            rows: 0,
            arrivals: Vec::new(),
            begun: Instant::now(),
        };
        world.write();
        world
    }

    /// Begins the load, if there is none.
    fn write(&mut self) {
        if self.load.is_none() {
            self.load = Some(self.ledger.write_in_background(150, 5000));
        }
    }

    /// Ends it, if the server has not done that.
    fn rest(&mut self) {
        let report = self.load.take().map(BackgroundWriter::stop);
        self.rows += report.map_or(0, |report| report.rows);
    }

    fn backed_up(mut self) -> World {
        self.receiver.run(&mut self.random);
        let begun = "select count(flush_lsn) from pg_stat_replication where application_name = 'pgark'";
        self.cluster.wait_until("streamed", A_MINUTE, || self.cluster.value(begun) == "1");
        take_backup(&self.repository, &self.cluster, &[]);
        self.begun = Instant::now();
        self
    }

    fn pause(&mut self, up_to_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.random.random_range(0..up_to_ms)));
    }

    fn look(&self) -> Ends {
        self.witness.look()
    }

    /// Waits until all that is committed now is stored.
    fn arrives(&mut self) {
        let (tip, begun) = (self.ledger.tip().lsn, Instant::now());
        while self.look().get(&self.timeline).is_none_or(|end| *end < tip) {
            self.receiver.run(&mut self.random);
            if begun.elapsed() > A_MINUTE {
                let said = self.receiver.said();
                panic!("{tip} did not arrive: {:?}; {}\n{said}", self.look(), self.cluster.endpoint().log_tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.arrivals.push(begun.elapsed());
    }

    /// Ends the server in one of many ways, and starts it again. Meanwhile something else may happen.
    fn restart(&mut self, meanwhile: impl FnOnce(&mut World)) {
        match self.random.random_range(0..4) {
            0 => drop(self.cluster.stop(StopMode::Fast)),
            1 => drop(self.cluster.stop(StopMode::Immediate)),
            _ => self.cluster.kill_9(),
        }
        self.rest();
        meanwhile(self);
        self.cluster.start();
        self.restarts += 1;
        self.write();
    }

    /// The server is destroyed. What its repository says and what comes of it.
    fn judge(mut self, kind: &str) {
        self.rest();
        self.receiver.run(&mut self.random);
        self.arrives();
        let kills = self.receiver.kills;
        self.receiver.kill_9();
        self.watch.take().unwrap().stop();
        let end = self.look()[&self.timeline];
        assert!(end >= self.ledger.tip().lsn);

        let verify = Call::new(["verify"]).envs(self.repository.env()).run();
        assert_eq!(verify.code, 0, "{verify:?}");
        let status = Call::new(["status", "--no-server", "--json"]).envs(self.repository.env()).run();
        let status: Value = serde_json::from_str(&status.stdout).unwrap_or_else(|_| panic!("{status:?}"));
        assert_eq!(status["newest"]["lsn"].as_str(), Some(&*end.to_string()), "{status:#}");

        self.cluster.kill_9();
        std::fs::remove_dir_all(self.cluster.data_dir()).unwrap();
        let restored = restore(&self.repository, &[]);
        restored.cluster.start();
        restored.cluster.wait_promoted(A_MINUTE);
        let whole = Expect::at_least(Position { timeline: self.timeline, lsn: end });
        let verdict = self.ledger.judge(&restored.cluster, &whole).unwrap();
        integrity(&restored.cluster).unwrap();

        let (looks, acknowledged) = self.witness.looks();
        let slowest = self.arrivals.iter().max().unwrap();
        let mean = self.arrivals.iter().sum::<Duration>() / self.arrivals.len() as u32;
        eprintln!(
            "{kind}: {kills} kills, {} restarts, {} rows written, {} restored; {looks} looks, {acknowledged} with an acknowledged \
             position; arrived after {mean:?}, {slowest:?} at most; the receiver ended by itself {} times; {:?}",
            self.restarts,
            self.rows,
            verdict.rows,
            self.receiver.ends,
            self.begun.elapsed()
        );
        assert!(looks > 50 && acknowledged > 10 && self.rows > 100);
    }
}

/// Kills receivers and servers, at times both at once.
fn deaths(world: &mut World, kills: u32, restarts: u32) {
    let (mut kills, mut round) = (kills + world.receiver.kills, 0);
    let mut restarts = restarts + world.restarts;
    while world.receiver.kills < kills || world.restarts < restarts {
        round += 1;
        assert!(round < 1000);
        kills = kills.max(world.receiver.kills);
        restarts = restarts.max(world.restarts);
        world.receiver.run(&mut world.random);
        let latency = world.random.random_range(0..40);
        world.repository.double().latency(Duration::from_millis(latency));
        world.pause(300);
        let (dies, falls) = (world.receiver.kills < kills, world.restarts < restarts);
        match world.random.random_range(0..4) {
            // Only the receiver.
            0 if dies => world.receiver.kill_9(),
            // Only the server.
            1 if falls => world.restart(|_| ()),
            // The receiver, and the next one finds a server that is down.
            2 if dies && falls => {
                world.receiver.kill_9();
                let early = world.random.random_bool(0.5);
                world.restart(|world| {
                    if early {
                        world.receiver.run(&mut world.random);
                    }
                });
            }
            // The server, and then the receiver that waits for it.
            3 if dies && falls => world.restart(|world| {
                world.pause(300);
                world.receiver.kill_9();
            }),
            _ => {}
        }
        if world.random.random_bool(0.3) {
            world.cluster.execute("checkpoint");
        }
        if world.random.random_bool(0.2) {
            // Several segments at once.
            world.cluster.execute("select pg_logical_emit_message(false, 'chaos', repeat('x', 3000000))");
        }
        if world.random.random_bool(0.2) {
            world.cluster.switch_wal();
        }
        if world.random.random_bool(0.3) {
            world.arrives();
        }
    }
}

#[test]
fn receivers_and_servers_that_die() {
    let mut world = World::new(true).backed_up();
    deaths(&mut world, KILLS[0], RESTARTS[0]);
    assert!(world.receiver.kills >= KILLS[0] && world.restarts >= RESTARTS[0]);
    world.judge("deaths");
}

/// `pg_receivewal` streams the same WAL from a slot of its own. It is started again when the server has died.
struct Other {
    child: Option<Child>,
    home: Scratch,
}

impl Other {
    fn call(&self, cluster: &Cluster, words: &[&str]) -> std::process::Command {
        let program = Installation::preferred().program("pg_receivewal").expect("pg_receivewal is installed");
        let mut command = program.command();
        command.args(["-d", &cluster.endpoint().conninfo(), "--slot", "other", "--no-loop", "--synchronous"]);
        command.arg("-D").arg(self.home.path()).args(words).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn run(&mut self, cluster: &Cluster) {
        if self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some()) {
            self.child = Some(self.call(cluster, &[]).spawn().unwrap());
        }
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.end();
    }
}

/// Nothing but its slot keeps WAL for the receiver: what it is told to be durable and is not is lost.
#[test]
fn receivers_and_servers_that_die_beside_pg_receivewal() {
    let world = World::new(false);
    world.cluster.execute("select pg_create_physical_replication_slot('other', true)");
    let mut other = Other { child: None, home: Scratch::new("other") };
    let mut world = world.backed_up();
    let rounds = 5;
    for _ in 0..rounds {
        other.run(&world.cluster);
        deaths(&mut world, KILLS[1] / rounds, RESTARTS[1] / rounds);
    }
    assert!(world.receiver.kills >= KILLS[1] && world.restarts >= RESTARTS[1]);
    world.rest();
    world.arrives();
    other.end();
    let end = world.look()[&1].to_string();
    // The slot is free when the server has seen that the other end is gone.
    world.cluster.wait_until("received by pg_receivewal, too", A_MINUTE, || {
        other.call(&world.cluster, &["--endpos", &end]).status().unwrap().success()
    });
    assert!(world.witness.compare_with(other.home.path()) > 10);
    world.judge("deaths beside pg_receivewal");
}

/// Ways in which a store is away.
#[derive(Clone, Copy, Debug)]
enum Away {
    Refuses,
    Hangs,
    Overloaded,
    Denies,
    BucketGone,
}

impl Away {
    fn begin(self, repository: &Repository) {
        let double = repository.double();
        match self {
            Away::Refuses => double.stop_listening(),
            Away::BucketGone => double.remove_bucket(),
            Away::Hangs => Self::always(double, Fault::Silence),
            Away::Overloaded => Self::always(double, Fault::Status503),
            Away::Denies => Self::always(double, Fault::AccessDenied403),
        }
    }

    fn always(double: &S3Double, fault: Fault) {
        double.fault(Rule::new(fault));
    }

    fn end(repository: &Repository) {
        repository.double().clear_faults();
        repository.double().restore_bucket();
        repository.double().resume_listening();
    }
}

fn outages(count: u32, kind: &str) {
    let mut world = World::new(true).backed_up();
    let ways = [Away::Refuses, Away::Hangs, Away::Overloaded, Away::Denies, Away::BucketGone];
    for round in 0..count {
        let away = ways[round as usize % ways.len()];
        world.pause(200);
        away.begin(&world.repository);
        world.pause(800);
        // Something else fails, too.
        match world.random.random_range(0..4) {
            0 => {
                world.receiver.kill_9();
                world.receiver.run(&mut world.random);
            }
            1 => world.restart(|_| ()),
            2 => world.restart(|world| world.receiver.kill_9()),
            _ => {}
        }
        world.pause(800);
        Away::end(&world.repository);
        world.arrives();
        let took = world.arrivals.last().unwrap();
        eprintln!("outage {round}, {away:?}: all there {took:?} after it");
    }
    world.judge(kind);
}

#[test]
fn ten_outages_of_the_store() {
    outages(OUTAGES[0], "outages");
}

#[test]
fn ten_more_outages_of_the_store() {
    outages(OUTAGES[1], "more outages");
}

/// Rules for a while, drawn at random.
fn schedule(random: &mut StdRng) -> Vec<Rule> {
    let faults = [
        Fault::ResetBeforeHeaders,
        Fault::ResetAfterHeaders,
        Fault::ResetMidBody(None),
        Fault::Truncate,
        Fault::Status500,
        Fault::Status503,
        Fault::LostReply,
        Fault::OkWithErrorBody,
        Fault::Silence,
        Fault::Trickle(Duration::from_millis(1)),
        Fault::Error(400, "BadDigest"),
        Fault::Error(400, "RequestTimeout"),
        Fault::Error(409, "ConditionalRequestConflict"),
        Fault::Error(503, "SlowDown"),
    ];
    let mut rules: Vec<Rule> = (0..random.random_range(2..6))
        .map(|_| {
            let rule = Rule::new(faults.choose(random).unwrap().clone());
            let op = *[Op::Any, Op::Put, Op::Put, Op::Get, Op::Head, Op::List, Op::Delete].choose(random).unwrap();
            let rule = match random.random_range(0..4) {
                0 => rule.key("/live/"),
                1 => rule.key("/wal/"),
                _ => rule,
            };
            rule.on(op).chance(random.random_range(0.1..0.7)).seed(random.random())
        })
        .collect();
    // In each of them a PUT that was performed and looks as if it was not, and one that is performed when nobody waits for it any more.
    rules.push(Rule::new(Fault::Late(Duration::from_millis(400))).on(Op::Put).chance(0.3).seed(random.random()));
    rules.push(Rule::new(Fault::LostReply).on(Op::Put).chance(0.1).seed(random.random()));
    // Listings have no digest: only content can be seen to be damaged.
    rules.push(Rule::new(Fault::BitFlip(None)).on(Op::Get).chance(0.05).seed(random.random()));
    rules
}

fn schedules(count: u32, kind: &str) {
    let mut world = World::new(true).backed_up();
    let mut fired = 0;
    for round in 0..count {
        let rules = schedule(&mut world.random);
        let latency = world.random.random_range(0..40);
        world.repository.double().latency(Duration::from_millis(latency));
        let ids: Vec<_> = rules.iter().map(|rule| world.repository.double().fault(rule.clone())).collect();
        let begun = Instant::now();
        let fired_now = |world: &World| ids.iter().map(|id| world.repository.double().fired(*id)).sum::<usize>();
        let (least, time) = (world.random.random_range(5..15), world.random.random_range(500..1500));
        while begun.elapsed() < Duration::from_millis(time) || fired_now(&world) < least {
            world.receiver.run(&mut world.random);
            world.pause(200);
            if world.random.random_bool(0.2) {
                world.receiver.kill_9();
            }
            assert!(begun.elapsed() < A_MINUTE, "{rules:?} never fire");
        }
        let count = fired_now(&world);
        world.repository.double().clear_faults();
        world.arrives();
        eprintln!(
            "schedule {round}: {count} faults, all there {:?} after it: {rules:?}",
            world.arrivals.last().unwrap()
        );
        fired += count;
    }
    eprintln!("{fired} faults in {count} schedules");
    world.judge(kind);
}

#[test]
fn ten_fault_schedules_of_the_store() {
    schedules(SCHEDULES[0], "schedules");
}

#[test]
fn ten_more_fault_schedules_of_the_store() {
    schedules(SCHEDULES[1], "more schedules");
}

/// How a primary goes, and what else fails then.
#[derive(Clone, Copy, Debug)]
enum Handover {
    /// In order.
    Switchover,
    Crash,
    /// The receiver has stored what the standby never got: some of it in whole segments.
    StandbyBehind,
    ReceiverDead,
    StoreAway,
}

#[test]
fn promotions_of_standbys() {
    let mut world = World::new(true);
    let backup = world.cluster.base_backup();
    let standbys: Vec<Cluster> = (0..PROMOTIONS).map(|_| Cluster::from_basebackup(&backup)).collect();
    let endpoints = || [&world.cluster].into_iter().chain(&standbys).map(Cluster::endpoint);
    let hosts: Vec<String> = endpoints().map(|each| each.socket_directory.display().to_string()).collect();
    let ports: Vec<String> = endpoints().map(|each| each.port.to_string()).collect();
    let conninfo = format!("host={} port={} user=postgres dbname=postgres", hosts.join(","), ports.join(","));
    world.receiver = Receiver::of(&world.repository, &conninfo, &world.cluster);
    let mut world = world.backed_up();
    let mut ways =
        [Handover::Switchover, Handover::Crash, Handover::StandbyBehind, Handover::ReceiverDead, Handover::StoreAway];
    ways.shuffle(&mut world.random);
    let mut former = Vec::new();
    for (standby, way) in standbys.into_iter().zip(ways) {
        standby.configure_standby("false", Some(&world.cluster.endpoint().conninfo()));
        standby.start();
        let has = |lsn: Lsn| {
            let query = format!("select coalesce(pg_last_wal_receive_lsn() >= '{lsn}', false)");
            standby.wait_until("received by the standby", A_MINUTE, || standby.value(&query) == "t");
        };
        has(world.ledger.tip().lsn);
        world.arrives();
        match way {
            Handover::Switchover => {
                world.cluster.stop(StopMode::Fast);
                world.rest();
                has(world.ledger.tip().lsn);
            }
            Handover::StandbyBehind => {
                standby.execute("alter system set primary_conninfo = ''");
                standby.reload();
                let streams = "select count(*) from pg_stat_wal_receiver";
                standby.wait_until("cut off", A_MINUTE, || standby.value(streams) == "0");
                for _ in 0..3 {
                    world.cluster.switch_wal();
                    world.pause(300);
                }
                world.arrives();
                world.cluster.kill_9();
            }
            Handover::ReceiverDead => {
                world.receiver.kill_9();
                world.pause(300);
                world.cluster.kill_9();
            }
            Handover::StoreAway => {
                Away::Refuses.begin(&world.repository);
                world.pause(300);
                world.cluster.kill_9();
            }
            Handover::Crash => world.cluster.kill_9(),
        }
        world.rest();
        // The receiver may find the standby before it is promoted.
        world.pause(500);
        world.timeline += 1;
        world.witness.compare_to(&standby, world.timeline);
        standby.promote();
        world.witness.ask(&standby, world.timeline);
        assert_eq!(standby.timeline(), world.timeline);
        world.ledger.attach(&standby);
        former.push(std::mem::replace(&mut world.cluster, standby));
        world.write();
        world.pause(500);
        Away::end(&world.repository);
        world.arrives();
        let took = world.arrivals.last().unwrap();
        eprintln!("timeline {}, {way:?}: followed {took:?} after it", world.timeline);
        // All of the old timeline up to where it was left.
        let text = world.cluster.data_dir().join(format!("pg_wal/{:08X}.history", world.timeline));
        let text = std::fs::read_to_string(text).unwrap();
        let switch: Lsn = text.lines().last().unwrap().split('\t').nth(1).unwrap().parse().unwrap();
        let end = world.look()[&(world.timeline - 1)];
        assert!(end >= switch, "timeline {} is stored up to {end}, it was left at {switch}", world.timeline - 1);
    }
    assert_eq!(world.timeline, 1 + PROMOTIONS);
    world.judge("promotions");
}

/// Each with a slot of its own, and both at work at times.
#[test]
fn two_receivers_that_die() {
    let mut world = World::new(true).backed_up();
    let mut second = Receiver::of(&world.repository, &world.cluster.endpoint().conninfo(), &world.cluster);
    second.call = second.call.clone().env("PGARK_RECEIVE__SLOT", "second");
    for _ in 0..20 {
        second.run(&mut world.random);
        world.receiver.run(&mut world.random);
        let latency = world.random.random_range(0..60);
        world.repository.double().latency(Duration::from_millis(latency));
        world.pause(800);
        match world.random.random_range(0..3) {
            0 => second.kill_9(),
            1 => world.receiver.kill_9(),
            _ => {}
        }
        if world.random.random_bool(0.2) {
            world.cluster.execute("select pg_logical_emit_message(false, 'chaos', repeat('x', 3000000))");
        }
        // The one that waits takes over ten seconds after the other was killed.
        if world.random.random_bool(0.1) {
            world.arrives();
        }
    }
    assert!(second.kills > 0);
    second.kill_9();
    world.judge("two receivers");
}

/// A store may perform what it was asked by a receiver that is dead by then, when the next one has looked already.
#[test]
fn a_piece_of_a_killed_receiver_that_comes_late() {
    let mut world = World::new(true).backed_up();
    world.rest();
    world.arrives();
    // The one that runs now cuts in no time, and the next one after the piece has come.
    let late = world
        .repository
        .double()
        .fault(Rule::new(Fault::Late(Duration::from_millis(1500))).on(Op::Put).key("/live/").once());
    world.ledger.write(3, 1000);
    let fired = || world.repository.double().fired(late) == 1;
    world.cluster.wait_until("on its way", A_MINUTE, fired);
    world.receiver.kill_9();
    world.receiver.start(("FLUSH", "2500ms"));
    world.ledger.write(3, 1000);
    world.arrives();
    let took = *world.arrivals.last().unwrap();
    eprintln!("all there {took:?} after it; the receiver said:\n{}", world.receiver.said());
    assert!(!world.receiver.said().contains("another receiver is at work"), "{}", world.receiver.said());
}
