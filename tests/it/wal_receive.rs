//! `wal-receive` on real servers: whatever happens to it, to the server and to the store, what is stored is what the server wrote,
//! without a hole from the first byte to the last.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::ledger::{Expect, Ledger};
use crate::pitr::{archiving, prepared, restore_command};
use crate::postgres::{
    Account, Cluster, Installation, Lsn, Recovery, RecoveryTarget, Scratch, StopMode, happens_within,
};
use crate::program::{Call, Outcome, finish};
use crate::repository::{Repository, history_key, segment_key};

pub const A_MINUTE: Duration = Duration::from_secs(60);
pub const MIB: u64 = 1 << 20;

/// A server whose pg_wal keeps everything, because nothing is ever archived from it.
pub fn server(installation: &'static Installation) -> Cluster {
    Cluster::builder().installation(installation).start()
}

pub fn call(repository: &Repository, cluster: &Cluster, words: &[&str]) -> Call {
    let words: Vec<&str> = ["wal-receive", "--create-slot"].into_iter().chain(words.iter().copied()).collect();
    let call = Call::new(words).impatient().envs(repository.env());
    call.env("PGARK_CLUSTER__CONNINFO", cluster.endpoint().conninfo()).env("PGARK_RECEIVE__FLUSH", "200ms")
}

/// A receiver that runs until it is told otherwise.
pub struct Running(Option<Child>);

impl Running {
    pub fn start(call: &Call) -> Self {
        Running(Some(call.spawn()))
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.0.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Bytes that `/proc` shows for a line of the process's status.
    pub fn memory(&self, line: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.as_ref().unwrap().id())).unwrap();
        let found = status.lines().find_map(|each| each.strip_prefix(&format!("{line}:"))).unwrap();
        found.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    }

    pub fn kill_9(mut self) -> Outcome {
        self.signal(rustix::process::Signal::KILL);
        finish(self.0.take().unwrap())
    }

    pub fn stop(mut self) -> Outcome {
        self.signal(rustix::process::Signal::TERM);
        finish(self.0.take().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// What the repository has of a timeline, compared byte by byte with a server's pg_wal: the position behind the last byte of
/// what is there without a hole.
pub fn judge(repository: &Repository, cluster: &Cluster, timeline: u32) -> Lsn {
    let (segments, pieces) = stored(repository, timeline);
    let pg_wal = cluster.data_dir().join("pg_wal");
    let name = |number: u64| format!("{timeline:08X}{:08X}{:08X}", number / 4096, number % 4096);
    let numbers: Vec<u64> = segments.iter().map(|name| number(name)).collect();
    let begin =
        numbers.first().copied().or(pieces.keys().next().map(|name| number(name))).expect("something is stored");
    for number in &numbers {
        let stored = zstd::decode_all(&repository.object(&segment_key(&name(*number))).unwrap()[..]).unwrap();
        assert!(stored == file(&pg_wal, &name(*number)), "{} differs from pg_wal", name(*number));
    }
    // Two are under way at once: the second may be there first.
    let tail = (begin..).find(|number| !numbers.contains(number)).unwrap();
    let mut end = 0;
    for (offset, piece) in pieces.get(&name(tail)).into_iter().flatten() {
        assert_eq!(*offset, end, "the tail of {} has a hole", name(tail));
        let wal = file(&pg_wal, &name(tail));
        assert!(wal[end as usize..].starts_with(piece), "a piece of {} at {offset} differs from pg_wal", name(tail));
        end += piece.len() as u64;
    }
    Lsn(tail * MIB + end)
}

fn file(directory: &Path, name: &str) -> Vec<u8> {
    fs::read(directory.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The number of a segment of 1 MiB.
pub fn number(name: &str) -> u64 {
    let part = |from: usize| u64::from_str_radix(&name[from..from + 8], 16).unwrap();
    part(8) * 4096 + part(16)
}

pub type Pieces = BTreeMap<String, BTreeMap<u64, Vec<u8>>>;

pub fn stored(repository: &Repository, timeline: u32) -> (Vec<String>, Pieces) {
    let (mut segments, mut pieces) = (Vec::new(), Pieces::new());
    for key in repository.keys() {
        let Some(stem) = key.strip_suffix(".zst") else { continue };
        let last = stem.rsplit('/').next().unwrap();
        if let Some(rest) = stem.strip_prefix(&format!("main/1/live/{timeline:08X}/")) {
            let (segment, offset) = rest.split_once('/').unwrap();
            // It may be gone by now: its segment is whole.
            let Some(object) = repository.object(&key) else { continue };
            let offset = u64::from_str_radix(offset, 16).unwrap();
            pieces.entry(segment.to_owned()).or_default().insert(offset, zstd::decode_all(&object[..]).unwrap());
        } else if stem.starts_with(&format!("main/1/wal/{timeline:08X}/")) && last.len() == 24 {
            segments.push(last.to_owned());
        }
    }
    (segments, pieces)
}

/// The end of what the server can send. Behind a switch the next record begins later than that, when there is one.
pub fn end(cluster: &Cluster) -> Lsn {
    let query =
        "select case when pg_is_in_recovery() then pg_last_wal_receive_lsn() else pg_current_wal_flush_lsn() end";
    cluster.value(query).parse().unwrap()
}

/// Receives up to where the server is.
pub fn receive_all(repository: &Repository, cluster: &Cluster) -> Outcome {
    let to = end(cluster);
    let outcome = call(repository, cluster, &["--once-to", &to.to_string()]).run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(judge(repository, cluster, cluster.timeline()) >= to);
    outcome
}

#[test]
fn what_is_stored_is_what_the_server_wrote_and_what_wal_push_stores() {
    for installation in Installation::all_wanted() {
        let repository = Repository::s3();
        let cluster = server(installation);
        let ledger = Ledger::create(&cluster);
        receive_all(&repository, &cluster);
        ledger.write(20, 300_000);
        let outcome = receive_all(&repository, &cluster);
        assert!(outcome.stdout.starts_with("reached: durable up to "), "{outcome:?}");
        cluster.switch_wal();
        receive_all(&repository, &cluster);
        // Nothing that was received is another to archive_command, which needs to read nothing to see that.
        let (segments, _) = stored(&repository, 1);
        assert!(segments.len() >= 3, "{segments:?}");
        repository.double().clear_requests();
        for segment in &segments {
            let push = Call::new(["wal-push", &format!("pg_wal/{segment}")]).envs(repository.env());
            push.env("PGARK_WAL__LOOKAHEAD", "0").within(cluster.data_dir()).run().quiet_success();
        }
        let read: Vec<_> =
            repository.double().requests().into_iter().filter(|each| each.operation == "GetObject").collect();
        assert!(read.iter().all(|each| each.key.contains("/identity/")), "{read:?}");
    }
}

#[test]
fn segments_of_another_size_are_received() {
    let repository = Repository::local();
    let cluster = Cluster::builder().wal_segment_mib(16).start();
    cluster.execute("create table t as select repeat('x', 100) from generate_series(1, 200000)");
    let to = cluster.switch_wal();
    let lsn = end(&cluster).to_string();
    assert_eq!(call(&repository, &cluster, &["--once-to", &lsn]).run().code, 0);
    let stored = repository.object(&segment_key(&to)).unwrap();
    assert!(zstd::decode_all(&stored[..]).unwrap() == file(&cluster.data_dir().join("pg_wal"), &to));
}

#[test]
fn it_agrees_with_archive_command() {
    let repository = Repository::s3();
    let cluster = archiving(&repository, Installation::preferred(), 1);
    cluster.configure("wal_keep_size = '1GB'");
    cluster.reload();
    let receiver = Running::start(&call(&repository, &cluster, &[]));
    let ledger = Ledger::create(&cluster);
    for _ in 0..5 {
        ledger.write(5, 300_000);
        cluster.archive_everything(A_MINUTE);
    }
    let to = end(&cluster);
    assert!(happens_within(A_MINUTE, || judge(&repository, &cluster, 1) >= to));
    let outcome = receiver.stop();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{outcome:?}");
    assert_eq!(cluster.value("select failed_count from pg_stat_archiver"), "0");
    let (_, pieces) = stored(&repository, 1);
    assert!(pieces.len() <= 1, "tails of whole segments stay: {:?}", pieces.keys());
}

/// What `pg_waldump` says of a segment and, where it ends before the segment does, why.
fn dumped(installation: &Installation, segment: &Path) -> (String, String) {
    // The matrix has some majors without their programs.
    let Some(program) = installation.program("pg_waldump") else { return Default::default() };
    let output = program.command().arg(segment).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (records, end) = (text(output.stdout), text(output.stderr));
    assert!(records.contains("rmgr: "), "{}: {records}{end}", segment.display());
    (records, end.replace(&*segment.display().to_string(), "segment"))
}

#[test]
fn pg_waldump_says_the_same_of_what_wal_push_stored() {
    for installation in Installation::all_wanted() {
        let [pushed, received] = Repository::both();
        let cluster = archiving(&pushed, installation, 1);
        cluster.configure("wal_keep_size = '1GB'");
        cluster.reload();
        let ledger = Ledger::create(&cluster);
        let receiver = Running::start(&call(&received, &cluster, &[]));
        for _ in 0..5 {
            ledger.write(20, 30_000);
            cluster.archive_everything(A_MINUTE);
        }
        cluster.wait_until("streamed", A_MINUTE, || {
            cluster.value("select count(flush_lsn) from pg_stat_replication where application_name = 'pgark'") == "1"
        });
        // It waits for both.
        cluster.stop(StopMode::Fast);
        assert_eq!(receiver.stop().code, 0);
        let fetched = |repository: &Repository, name: &str| {
            let place = Scratch::new("fetched");
            let file = place.path().join(name);
            let words = ["wal-fetch", name, &*file.display().to_string()];
            Call::new(words).impatient().envs(repository.env()).within(place.path()).run().quiet_success();
            Account::of_servers().own(&file);
            (fs::read(&file).unwrap(), dumped(installation, &file))
        };
        let (segments, pieces) = stored(&received, 1);
        let both = segments.iter().filter(|name| pushed.keys().contains(&segment_key(name)));
        let both: Vec<&String> = both.collect();
        assert!(both.len() >= 5, "{both:?}");
        for name in both {
            let (by_push, by_receive) = (fetched(&pushed, name), fetched(&received, name));
            assert!(by_push.0 == by_receive.0, "{name}: the bytes differ");
            assert_eq!(by_push.1, by_receive.1, "{name}");
        }
        // The last one, of its pieces, is what the server has.
        let tail = pieces.keys().next_back().expect("the server's last record is in a piece");
        let on_the_server = dumped(installation, &cluster.data_dir().join("pg_wal").join(tail));
        assert_eq!(fetched(&received, tail).1, on_the_server, "{tail}");
    }
}

#[test]
fn a_receiver_and_servers_that_die_leave_no_hole() {
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let repository = Repository::s3();
    repository.double().latency(Duration::from_millis(20));
    let cluster = server(Installation::preferred());
    let ledger = Ledger::create(&cluster);
    // From here on everything must be there.
    let begin = end(&cluster);
    receive_all(&repository, &cluster);
    for round in 0..10 {
        let receiver = Running::start(&call(&repository, &cluster, &[]));
        ledger.write(random.random_range(1..10), random.random_range(1000..200_000));
        std::thread::sleep(Duration::from_millis(random.random_range(0..900)));
        match round % 3 {
            0 => {
                cluster.stop(StopMode::Immediate);
                cluster.start();
            }
            1 => {
                cluster.kill_9();
                cluster.start();
            }
            _ => {}
        }
        ledger.write(random.random_range(1..10), random.random_range(1000..200_000));
        std::thread::sleep(Duration::from_millis(random.random_range(0..900)));
        receiver.kill_9();
        let reached = judge(&repository, &cluster, 1);
        assert!(reached >= begin, "{reached} < {begin}");
    }
    receive_all(&repository, &cluster);
}

/// The server is destroyed, the receiver lives: what it has is stored at once.
#[test]
fn what_came_of_a_server_that_dies_is_stored() {
    let repository = Repository::s3();
    let cluster = server(Installation::preferred());
    let ledger = Ledger::create(&cluster);
    receive_all(&repository, &cluster);
    let receiver = Running::start(&call(&repository, &cluster, &[]).env("PGARK_RECEIVE__FLUSH", "1h"));
    ledger.write(5, 1000);
    let tip = ledger.tip().lsn;
    let came = format!("select coalesce(max(write_lsn) >= '{tip}', false) from pg_stat_replication");
    cluster.wait_until("received", A_MINUTE, || cluster.value(&came) == "t");
    cluster.kill_9();
    assert!(happens_within(A_MINUTE, || judge(&repository, &cluster, 1) >= tip));
    receiver.kill_9();
}

#[test]
fn a_store_that_is_away_is_waited_for() {
    let repository = Repository::s3();
    let cluster = server(Installation::preferred());
    let ledger = Ledger::create(&cluster);
    let receiver = Running::start(&call(&repository, &cluster, &[]));
    let arrives = |to: Lsn| happens_within(A_MINUTE, || judged_if_any(&repository, &cluster, 1) >= to);
    assert!(happens_within(A_MINUTE, || repository.keys().iter().any(|key| key.contains("/live/"))));
    for _ in 0..2 {
        repository.double().stop_listening();
        // More than is kept in memory.
        ledger.write(40, 300_000);
        std::thread::sleep(Duration::from_secs(2));
        repository.double().resume_listening();
        ledger.write(1, 1000);
        assert!(arrives(end(&cluster)));
    }
    // A server that stops does not wait for such a store either.
    for rows in [1, 40] {
        repository.double().stop_listening();
        ledger.write(rows, 300_000);
        let took = cluster.stop(StopMode::Fast);
        assert!(took < Duration::from_secs(30), "{took:?}");
        cluster.start();
        repository.double().resume_listening();
        assert!(arrives(end(&cluster)));
    }
    let outcome = receiver.stop();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stderr.contains("trying again"), "{outcome:?}");
}

#[test]
fn a_commit_waits_until_the_store_has_it() {
    let repository = Repository::s3();
    let cluster = server(Installation::preferred());
    let ledger = Ledger::create(&cluster);
    let receiver = Running::start(&call(&repository, &cluster, &["--synchronous"]));
    cluster.wait_until("streaming", A_MINUTE, || {
        cluster.value("select count(*) from pg_stat_replication where state = 'streaming'") == "1"
    });
    cluster.configure("synchronous_standby_names = 'pgark'");
    cluster.reload();
    cluster.wait_until("synchronous", A_MINUTE, || {
        cluster.value("select count(*) from pg_stat_replication where sync_state = 'sync'") == "1"
    });
    for _ in 0..20 {
        ledger.write(1, 20_000);
        // At the very moment at which COMMIT has returned.
        let (there, acknowledged) = (judge(&repository, &cluster, 1), ledger.tip().lsn);
        assert!(there >= acknowledged, "{acknowledged} was acknowledged, the store has {there}");
    }
    repository.double().stop_listening();
    let mut session = cluster.connect();
    let commit = std::thread::spawn(move || session.sql("create table waits (i int)").map(|_| ()));
    std::thread::sleep(Duration::from_secs(2));
    assert!(!commit.is_finished(), "a commit returned without the store");
    repository.double().resume_listening();
    commit.join().unwrap().unwrap();
    assert!(judge(&repository, &cluster, 1) >= ledger.tip().lsn);
    receiver.stop();
}

#[test]
fn a_silent_server_costs_no_request() {
    let repository = Repository::s3();
    let cluster = server(Installation::preferred());
    let _receiver = Running::start(&call(&repository, &cluster, &[]));
    let settled = || {
        let lsn = end(&cluster);
        happens_within(A_MINUTE, || judged_if_any(&repository, &cluster, 1) >= lsn).then_some(lsn)
    };
    // The server's own processes may still have something to write, once or twice.
    for _ in 0..10 {
        let before = settled().expect("everything arrives");
        std::thread::sleep(Duration::from_millis(500));
        repository.double().clear_requests();
        std::thread::sleep(Duration::from_secs(4));
        let requests = repository.double().requests();
        if end(&cluster) == before {
            assert!(requests.is_empty(), "{requests:?}");
            return;
        }
    }
    panic!("the server is never silent");
}

/// Whether what is written now is stored.
pub fn arrives(repository: &Repository, cluster: &Cluster, ledger: &Ledger) -> bool {
    ledger.write(2, 1000);
    let to = end(cluster);
    happens_within(A_MINUTE, || judged_if_any(repository, cluster, 1) >= to)
}

#[test]
fn the_second_of_two_receivers_takes_over() {
    let repository = Repository::s3();
    let cluster = server(Installation::preferred());
    let ledger = Ledger::create(&cluster);
    let arrives = || arrives(&repository, &cluster, &ledger);
    // With one slot, and with two.
    for slots in [["one", "one"], ["one", "two"]] {
        let [first, second] = slots.map(|slot| {
            let receiver = Running::start(&call(&repository, &cluster, &["--slot", slot]));
            assert!(arrives());
            receiver
        });
        for _ in 0..5 {
            assert!(arrives());
        }
        first.kill_9();
        assert!(arrives());
        let outcome = second.stop();
        assert_eq!(outcome.code, 0, "{outcome:?}");
        if slots[0] == slots[1] {
            assert!(outcome.stderr.contains("another receiver is at work"), "{outcome:?}");
        }
    }
}

/// A standby that streams, archives nothing, and keeps all its WAL.
pub fn standby_of(primary: &Cluster) -> Cluster {
    let standby = Cluster::from_basebackup(&primary.base_backup());
    standby.configure("wal_keep_size = '1GB'");
    standby.configure("archive_mode = off");
    standby.configure_standby("false", Some(&primary.endpoint().conninfo()));
    standby.start();
    standby
}

#[test]
fn a_promotion_is_followed() {
    let repository = Repository::s3();
    let archive = Repository::local();
    let primary = archiving(&archive, Installation::preferred(), 1);
    let ledger = Ledger::create(&primary);
    let standby = standby_of(&primary);
    let receiver = Running::start(&call(&repository, &standby, &[]));
    ledger.write(10, 200_000);
    let sent = end(&primary);
    standby.wait_until("received", A_MINUTE, || {
        standby.value(&format!("select pg_last_wal_receive_lsn() >= '{sent}'")) == "t"
    });
    assert!(happens_within(A_MINUTE, || judged_if_any(&repository, &standby, 1) >= sent));
    primary.stop(StopMode::Fast);
    standby.promote();
    let switch: Lsn = {
        let history = fs::read_to_string(standby.data_dir().join("pg_wal/00000002.history")).unwrap();
        history.split('\t').nth(1).unwrap().parse().unwrap()
    };
    standby.execute("create table after_promotion as select generate_series(1, 50000) i");
    let to = end(&standby);
    assert!(happens_within(A_MINUTE, || {
        repository.keys().contains(&history_key("00000002")) && judged_if_any(&repository, &standby, 2) >= to
    }));
    let outcome = receiver.stop();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    // The old timeline is there up to the very point where it was left.
    let (segments, pieces) = stored(&repository, 1);
    let last = segments.iter().map(|name| number(name) + 1).max().unwrap_or_default() * MIB;
    let tail: u64 = pieces
        .iter()
        .filter(|(name, _)| number(name) * MIB == last)
        .flat_map(|(_, p)| p.values())
        .map(|p| p.len() as u64)
        .sum();
    assert_eq!(Lsn(last + tail), switch);
    // And a receiver that begins now goes straight to the new one.
    standby.execute("create table later as select generate_series(1, 5000) i");
    receive_all(&repository, &standby);
}

/// A standby's slot keeps WAL from its last restartpoint on, of the timeline that was then.
#[test]
fn a_slot_from_before_a_promotion_is_no_gap() {
    let archive = Repository::local();
    let primary = archiving(&archive, Installation::preferred(), 1);
    let ledger = Ledger::create(&primary);
    let standby = standby_of(&primary);
    for slot in ["early", "late"] {
        standby.execute(&format!("select pg_create_physical_replication_slot('{slot}', true)"));
    }
    ledger.write(20, 200_000);
    let sent = end(&primary);
    let received = format!("select pg_last_wal_receive_lsn() >= '{sent}'");
    standby.wait_until("received", A_MINUTE, || standby.value(&received) == "t");
    primary.kill_9();
    standby.promote();
    standby.execute("create table after_promotion as select generate_series(1, 50000) i");
    let to = end(&standby);
    let receive = |repository: &Repository, slot: &str| {
        let outcome = call(repository, &standby, &["--slot", slot, "--once-to", &to.to_string()]).run();
        assert_eq!(outcome.code, 0, "{slot}: {outcome:?}");
        assert!(judge(repository, &standby, 2) >= to);
    };
    // The repository has the new timeline when the old slot is used, and has nothing.
    let [goes_on, begins] = [Repository::s3(), Repository::s3()];
    receive(&goes_on, "new");
    receive(&goes_on, "early");
    receive(&begins, "late");
    // What the slot keeps of the earlier timeline is there.
    for repository in [&goes_on, &begins] {
        assert!(judge(repository, &standby, 1) > Lsn(0) && repository.keys().contains(&history_key("00000002")));
    }
    let gaps = |repository: &Repository| repository.keys().iter().any(|key| key.contains("/record/gap/"));
    assert!(!gaps(&goes_on) && !gaps(&begins));
}

pub fn judged_if_any(repository: &Repository, cluster: &Cluster, timeline: u32) -> Lsn {
    let (segments, pieces) = stored(repository, timeline);
    if segments.is_empty() && pieces.is_empty() { Lsn(0) } else { judge(repository, cluster, timeline) }
}

#[test]
fn wal_that_is_gone_is_written_down_and_passed() {
    let repository = Repository::s3();
    let cluster =
        Cluster::builder().conf("archive_mode = off").conf("max_wal_size = '2MB'").conf("wal_keep_size = 0").start();
    let ledger = Ledger::create(&cluster);
    // A slot that is made later may keep nothing from before.
    cluster.execute("select pg_create_physical_replication_slot('pgark', true)");
    let receive_all = |code: i32| {
        ledger.write(3, 300_000);
        cluster.switch_wal();
        let to = end(&cluster).to_string();
        let outcome = call(&repository, &cluster, &["--once-to", &to]).run();
        assert_eq!(outcome.code, code, "{outcome:?}");
        (to, outcome)
    };
    // What somebody else has stored in time.
    let other = Repository::local();
    let keep = || {
        let outcome = call(&other, &cluster, &["--slot", "other", "--once-to", &end(&cluster).to_string()]).run();
        assert_eq!(outcome.code, 0, "{outcome:?}");
    };
    keep();
    let (before, _) = receive_all(0);
    cluster.execute("select pg_drop_replication_slot('pgark')");
    for _ in 0..6 {
        ledger.write(3, 300_000);
        cluster.switch_wal();
        keep();
        cluster.execute("checkpoint");
    }
    let (_, outcome) = receive_all(16);
    assert!(outcome.stderr.contains("pgark: error: WAL is lost: 0/"), "{outcome:?}");
    // The next one finds no gap of its own, and one that is there already has nothing to stream.
    let (to, outcome) = receive_all(16);
    let outcome = outcome.says("is reached, but WAL before it is lost: 0/").says("hint: `pgark wal-push --backfill`");
    assert!(!outcome.stderr.contains("WAL is lost:"), "{outcome:?}");
    let once_to = |to: &str| call(&repository, &cluster, &["--once-to", to]).run();
    once_to(&to).code(16);
    once_to(&before).code(0);
    let gaps: Vec<String> = repository.keys().into_iter().filter(|key| key.contains("/record/gap/")).collect();
    let [gap] = &gaps[..] else { panic!("{gaps:?}") };
    let gap: serde_json::Value = serde_json::from_slice(&repository.object(gap).unwrap()).unwrap();
    let position = |field: &str| gap[field].as_str().unwrap().parse::<Lsn>().unwrap();
    assert!(position("from") < position("to"), "{gap}");
    let (segments, _) = stored(&repository, 1);
    let numbers: Vec<u64> = segments.iter().map(|name| number(name)).collect();
    // Exactly what the note says is missing, and nothing else.
    for lsn in numbers[0]..*numbers.last().unwrap() {
        let missing = (position("from").0 / MIB..position("to").0 / MIB).contains(&lsn);
        assert_eq!(numbers.contains(&lsn), !missing, "{lsn}: {numbers:?} {gap}");
    }
    // A note that nobody can read may speak of anything.
    let [note] = &gaps[..] else { panic!("{gaps:?}") };
    let whole = repository.object(note).unwrap();
    repository.alter(note, |bytes| bytes.truncate(9));
    assert_ne!(once_to(&to).says(note).code, 0);
    repository.alter(note, |bytes| *bytes = whole.clone());
    once_to(&to).code(16);
    // Until what is missing is there after all.
    keep();
    for key in other.keys().iter().filter(|key| key.contains("/wal/") && repository.object(key).is_none()) {
        repository.put(key, &other.object(key).unwrap());
    }
    assert_eq!(receive_all(0).1.stderr, "");
    once_to(&to).code(0);
}

/// It would be there if it had been stored, but it never was.
#[test]
fn a_position_before_the_repository_begins_is_not_reached() {
    let repository = Repository::s3();
    let cluster = Cluster::builder().conf("archive_mode = off").start();
    let early = cluster.current_lsn().to_string();
    for _ in 0..2 {
        cluster.execute("create table if not exists t (i int); insert into t values (1)");
        cluster.switch_wal();
        cluster.execute("checkpoint");
    }
    call(&repository, &cluster, &["--once-to", &early]).run().code(16).says("the repository would begin at");
    assert!(!repository.keys().iter().any(|key| key.contains("/wal/") || key.contains("/live/")));
    receive_all(&repository, &cluster);
}

#[test]
fn what_cannot_work_is_said_at_the_start() {
    let repository = Repository::s3();
    let cluster = server(Installation::preferred());
    let at = |words: &[&str]| {
        let words: Vec<&str> = ["wal-receive"].into_iter().chain(words.iter().copied()).collect();
        let call = Call::new(words).impatient().envs(repository.env());
        call.env("PGARK_CLUSTER__CONNINFO", cluster.endpoint().conninfo())
    };
    at(&[]).run().code(17).says("has no replication slot `pgark`").says("--create-slot");
    at(&["--once-to", "x"]).run().code(2).says("--once-to");
    at(&["--flush", "0s"]).run().code(2).says("--flush");
    at(&["--flush-bytes", "none"]).run().code(2).says("--flush-bytes");
    receive_all(&repository, &cluster);
    let other = server(Installation::preferred());
    call(&repository, &other, &[]).run().code(1).says("belongs to another cluster");
    cluster.stop(StopMode::Fast);
    at(&[]).run().code(17).says("cannot connect to PostgreSQL");
}

/// What archive_command never got, because the segment was not full, is recovered from its pieces.
#[test]
fn a_destroyed_server_is_recovered_from_the_tail() {
    let repository = Repository::s3();
    let cluster = archiving(&repository, Installation::preferred(), 1);
    let ledger = Ledger::create(&cluster);
    let backup = cluster.base_backup();
    let receiver = Running::start(&call(&repository, &cluster, &["--synchronous"]));
    ledger.write(20, 30_000);
    ledger.write(20, 10);
    let written = ledger.tip();
    cluster.wait_until("stored", A_MINUTE, || {
        cluster.value(&format!("select max(flush_lsn) >= '{}' from pg_stat_replication", written.lsn)) == "t"
    });
    receiver.kill_9();
    cluster.kill_9();
    let recovery = Recovery::new(restore_command(), RecoveryTarget::Latest);
    let restored = prepared(&repository, &backup, &recovery);
    restored.start();
    restored.wait_promoted(A_MINUTE);
    ledger.judge(&restored, &Expect::at_least(written)).unwrap();
}

#[test]
fn standbys_of_the_same_primary_are_the_same_wal() {
    let repository = Repository::s3();
    let archive = Repository::local();
    let primary = archiving(&archive, Installation::preferred(), 1);
    let ledger = Ledger::create(&primary);
    let backup = primary.base_backup();
    let standby = Cluster::from_basebackup(&backup);
    standby.configure_standby("false", Some(&primary.endpoint().conninfo()));
    standby.configure("archive_mode = off");
    standby.start();
    for from in [&primary, &standby, &primary] {
        ledger.write(5, 200_000);
        let to = end(&primary);
        standby.wait_until("received", A_MINUTE, || {
            standby.value(&format!("select pg_last_wal_receive_lsn() >= '{to}'")) == "t"
        });
        let outcome = call(&repository, from, &["--once-to", &to.to_string()]).run();
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{outcome:?}");
    }
}
