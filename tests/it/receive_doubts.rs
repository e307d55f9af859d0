//! `wal-receive` where the server, the store or somebody else gives reason for doubt: nothing stored is contradicted in silence,
//! nothing is called lost that is not, and exit code 0 stays a promise.

use std::process::Command;
use std::time::Duration;

use crate::ledger::Ledger;
use crate::pitr::archiving;
use crate::postgres::{Cluster, Installation, Scratch, StopMode, happens_within};
use crate::program::Call;
use crate::repository::{Repository, segment_key};
use crate::wal_receive::{A_MINUTE, Running, arrives, call, end, judge, receive_all, server, standby_of, stored};

/// A copy of a stopped server's data directory, and the way back to it.
struct Snapshot(Scratch);

impl Snapshot {
    fn of(cluster: &Cluster) -> Self {
        let kept = Scratch::new("snapshot");
        copy(cluster.data_dir(), &kept.path().join("data"));
        Snapshot(kept)
    }

    fn put_back(&self, cluster: &Cluster) {
        std::fs::remove_dir_all(cluster.data_dir()).unwrap();
        copy(&self.0.path().join("data"), cluster.data_dir());
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

fn wait_streaming(cluster: &Cluster) {
    let streams = "select count(*) from pg_stat_replication where state = 'streaming'";
    cluster.wait_until("streaming", A_MINUTE, || cluster.value(streams) == "1");
}

/// A server that was set back to an earlier state, and went another way on the same timeline.
#[test]
fn a_server_that_was_set_back_contradicts_what_is_stored() {
    // How much was stored of the first way: pieces of the next segment, or whole segments.
    for stores_whole in [false, true] {
        let repository = Repository::s3();
        let cluster = server(Installation::preferred());
        let ledger = Ledger::create(&cluster);
        cluster.switch_wal();
        ledger.write(1, 1000);
        receive_all(&repository, &cluster);
        cluster.stop(StopMode::Fast);
        let snapshot = Snapshot::of(&cluster);
        cluster.start();
        cluster.execute("create table first_way as select generate_series(1, 500) i");
        if stores_whole {
            cluster.execute("insert into first_way select generate_series(1, 30000)");
            cluster.switch_wal();
        }
        receive_all(&repository, &cluster);
        cluster.stop(StopMode::Fast);
        let before = repository.keys();
        let live = |keys: &[String]| keys.iter().filter(|key| key.contains("/live/")).count();
        assert!(stores_whole || live(&before) > 0, "{before:?}");
        snapshot.put_back(&cluster);
        cluster.start();
        cluster.execute("create table another_way as select generate_series(1, 70000) i");
        cluster.switch_wal();
        cluster.execute("insert into another_way values (1)");
        let outcome = call(&repository, &cluster, &["--once-to", &end(&cluster).to_string()]).run();
        outcome.code(1).says("another content is");
        assert_eq!(repository.keys(), before, "something was stored or deleted");
    }
}

/// The slot says that the server has it, and the server has not.
#[test]
fn a_segment_that_cannot_be_compared_is_named() {
    let repository = Repository::s3();
    let cluster = server(Installation::preferred());
    let ledger = Ledger::create(&cluster);
    cluster.execute("select pg_create_physical_replication_slot('behind', true)");
    ledger.write(1, 1000);
    let last = cluster.switch_wal();
    ledger.write(1, 1000);
    receive_all(&repository, &cluster);
    std::fs::remove_file(cluster.data_dir().join("pg_wal").join(&last)).unwrap();
    ledger.write(1, 1000);
    let outcome = call(&repository, &cluster, &["--slot", "behind", "--once-to", &end(&cluster).to_string()]).run();
    let outcome = outcome.code(0).says("the last whole segment is not compared with the server's");
    assert!(outcome.stderr.contains(&format!("{last} has already been removed")), "{outcome:?}");
    assert!(!repository.keys().iter().any(|key| key.contains("/record/gap/")));
}

#[test]
fn what_could_not_be_stored_is_no_success() {
    // A server that dies, and one that is stopped and waits for us in vain.
    let ends: [fn(&Cluster); 2] = [Cluster::kill_9, |cluster| {
        cluster.stop(StopMode::Fast);
    }];
    for end_server in ends {
        let repository = Repository::s3();
        let cluster = server(Installation::preferred());
        let ledger = Ledger::create(&cluster);
        receive_all(&repository, &cluster);
        let patient =
            call(&repository, &cluster, &[]).env("PGARK_RECEIVE__FLUSH", "1h").env("PGARK_WAL__STOP_DEADLINE", "1s");
        let receiver = Running::start(&patient);
        wait_streaming(&cluster);
        repository.double().stop_listening();
        ledger.write(5, 1000);
        let came = format!("select coalesce(max(write_lsn) >= '{}', false) from pg_stat_replication", ledger.tip().lsn);
        cluster.wait_until("received", A_MINUTE, || cluster.value(&came) == "t");
        end_server(&cluster);
        std::thread::sleep(Duration::from_secs(3));
        let outcome = receiver.stop();
        assert_eq!(outcome.code, 20, "{outcome:?}");
        outcome.says("durable is");
    }
}

#[test]
fn a_receiver_at_the_end_of_a_timeline_can_be_stopped_while_the_store_is_away() {
    let repository = Repository::s3();
    let archive = Repository::local();
    let primary = archiving(&archive, Installation::preferred(), 1);
    let ledger = Ledger::create(&primary);
    let standby = standby_of(&primary);
    let patient =
        call(&repository, &standby, &[]).env("PGARK_RECEIVE__FLUSH", "1h").env("PGARK_WAL__STOP_DEADLINE", "1s");
    let receiver = Running::start(&patient);
    wait_streaming(&standby);
    repository.double().stop_listening();
    ledger.write(5, 1000);
    let came = format!("select coalesce(max(write_lsn) >= '{}', false) from pg_stat_replication", ledger.tip().lsn);
    standby.wait_until("received", A_MINUTE, || standby.value(&came) == "t");
    primary.stop(StopMode::Immediate);
    standby.promote();
    std::thread::sleep(Duration::from_secs(2));
    receiver.stop().code(20).says("durable is");
}

/// More than is kept in memory is asked for: it is cut all the same.
#[test]
fn pieces_are_cut_before_memory_is_full() {
    let repository = Repository::s3();
    let cluster = Cluster::builder().wal_segment_mib(32).start();
    cluster.switch_wal();
    let words = ["--flush", "1h", "--flush-bytes", "64MiB"];
    let _receiver = Running::start(&call(&repository, &cluster, &words));
    wait_streaming(&cluster);
    for _ in 0..20 {
        cluster.execute("select pg_logical_emit_message(false, 'x', repeat('x', 1000000))");
    }
    assert!(happens_within(Duration::from_secs(30), || repository.keys().iter().any(|key| key.contains("/live/"))));
}

/// A spare has nothing to ask the store for, and bears a server that restarts before it ever streamed.
#[test]
fn a_spare_waits_in_silence_and_through_a_restart() {
    let repository = Repository::s3();
    let cluster = server(Installation::preferred());
    let ledger = Ledger::create(&cluster);
    let arrives = || arrives(&repository, &cluster, &ledger);
    let first = Running::start(&call(&repository, &cluster, &[]));
    assert!(arrives());
    std::thread::sleep(Duration::from_secs(2));
    repository.double().clear_requests();
    let looks = || repository.double().requests().iter().filter(|each| each.operation.starts_with("List")).count();
    let spare = Running::start(&call(&repository, &cluster, &[]));
    assert!(happens_within(A_MINUTE, || looks() > 0));
    std::thread::sleep(Duration::from_secs(2));
    repository.double().clear_requests();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(looks(), 0, "{:?}", repository.double().requests());
    first.kill_9();
    cluster.stop(StopMode::Immediate);
    std::thread::sleep(Duration::from_secs(4));
    cluster.start();
    assert!(arrives());
    assert_eq!(spare.stop().code, 0);
}

/// A slot of this name that is somebody else's is not touched.
#[test]
fn a_logical_slot_is_left_alone() {
    // Before PostgreSQL 15 nobody can ask what a slot is without SQL.
    for installation in Installation::all_wanted().into_iter().chain(Installation::find(14)) {
        let repository = Repository::s3();
        let cluster = Cluster::builder().installation(installation).conf("wal_level = logical").start();
        cluster.execute("select pg_create_logical_replication_slot('pgark', 'pgoutput')");
        let outcome = call(&repository, &cluster, &[]).run();
        outcome.code(17).says("pgark: error:");
        assert_eq!(cluster.value("select slot_type from pg_replication_slots"), "logical");
    }
}

/// However many pieces the last start has left, the next one reads the last.
#[test]
fn a_start_asks_for_few_pieces() {
    let repository = Repository::s3();
    let cluster = server(Installation::preferred());
    cluster.execute("create table t (i int)");
    cluster.switch_wal();
    let receiver = Running::start(&call(&repository, &cluster, &["--synchronous"]));
    wait_streaming(&cluster);
    cluster.configure("synchronous_standby_names = 'pgark'");
    cluster.reload();
    cluster.wait_until("synchronous", A_MINUTE, || {
        cluster.value("select count(*) from pg_stat_replication where sync_state = 'sync'") == "1"
    });
    let mut session = cluster.connect();
    for _ in 0..300 {
        session.sql("insert into t values (1)").unwrap();
    }
    let to = end(&cluster);
    assert!(happens_within(A_MINUTE, || judge(&repository, &cluster, 1) >= to));
    assert_eq!(receiver.stop().code, 0);
    let pieces = |repository: &Repository| stored(repository, 1).1.values().map(|pieces| pieces.len()).sum::<usize>();
    let before = pieces(&repository);
    assert!(before > 200, "{before}");
    cluster.configure("synchronous_standby_names = ''");
    cluster.reload();
    cluster.execute("insert into t values (1)");
    repository.double().clear_requests();
    receive_all(&repository, &cluster);
    let requests = repository.double().requests();
    let read = requests.iter().filter(|each| each.operation == "GetObject" && each.key.contains("/live/")).count();
    eprintln!("{before} pieces: {read} of them read, {} requests in all", requests.len());
    assert_eq!(read, 1, "{requests:?}");

    // A piece that has gone is seen all the same: nothing follows the hole.
    let live: Vec<String> = repository.keys().into_iter().filter(|key| key.contains("/live/")).collect();
    repository.remove(&live[live.len() / 2]);
    cluster.execute("insert into t values (1)");
    let receiver = Running::start(&call(&repository, &cluster, &[]));
    std::thread::sleep(Duration::from_secs(2));
    receiver.stop().says("gets no more pieces");
    assert_eq!(repository.keys().iter().filter(|key| key.contains("/live/")).count(), live.len() - 1);
}

/// A compressed segment of any size fits: it grows in a file where it is large.
#[test]
fn large_segments_are_not_held_in_memory() {
    // Two compressed segments are more.
    const MOST: u64 = 80 << 20;
    for repository in Repository::both() {
        let cluster = Cluster::builder().wal_segment_mib(64).conf("wal_keep_size = '1GB'").start();
        let bytes = "string_agg(decode(md5(i::text), 'hex'), '')";
        cluster.execute(&format!("create table noise as select {bytes} b from generate_series(1, 262144) i"));
        cluster.switch_wal();
        let receiver = Running::start(&call(&repository, &cluster, &[]));
        wait_streaming(&cluster);
        for _ in 0..6 {
            cluster.execute("select pg_logical_emit_message(false, '', b) from noise, generate_series(1, 10)");
        }
        let last = cluster.switch_wal();
        assert!(happens_within(A_MINUTE, || repository.keys().contains(&segment_key(&last))));
        let peak = receiver.memory("VmHWM").saturating_sub(receiver.memory("RssFile"));
        eprintln!("peak {} MiB", peak >> 20);
        assert!(peak < MOST, "{peak}");
        assert_eq!(receiver.stop().code, 0);
        let segments = stored(&repository, 1).0;
        assert!(segments.len() >= 4, "{segments:?}");
        for segment in segments {
            let object = repository.object(&segment_key(&segment)).unwrap();
            let plain = std::fs::read(cluster.data_dir().join("pg_wal").join(&segment)).unwrap();
            assert!(zstd::decode_all(&object[..]).unwrap() == plain, "{segment} differs from pg_wal");
            let push = Call::new(["wal-push", &format!("pg_wal/{segment}")]).envs(repository.env());
            push.env("PGARK_WAL__LOOKAHEAD", "0").within(cluster.data_dir()).run().quiet_success();
        }
    }
}

/// The disk for large segments is full, or not there: pieces are stored all the same, and commits do not wait.
#[test]
fn without_room_for_large_segments_pieces_go_on() {
    let repository = Repository::s3();
    let cluster = Cluster::builder().wal_segment_mib(64).conf("wal_keep_size = '1GB'").start();
    let nowhere = call(&repository, &cluster, &["--flush", "100ms"]).env("TMPDIR", "/nowhere/at/all");
    let receiver = Running::start(&nowhere);
    let streams = "select count(flush_lsn) from pg_stat_replication where application_name = 'pgark'";
    cluster.wait_until("streaming", A_MINUTE, || cluster.value(streams) == "1");
    let bytes = "string_agg(decode(md5(i::text), 'hex'), '')";
    cluster.execute(&format!("create table noise as select {bytes} b from generate_series(1, 262144) i"));
    cluster.execute("select pg_logical_emit_message(false, '', b) from noise, generate_series(1, 8)");
    let here = cluster.value("select pg_current_wal_flush_lsn()");
    let stored = format!("select count(*) from pg_stat_replication where flush_lsn >= '{here}'");
    cluster.wait_until("stored", A_MINUTE, || cluster.value(&stored) == "1");
    let segment = cluster.switch_wal();
    // It is tried again and again.
    cluster.wait_until("given up", A_MINUTE, || cluster.value(streams) == "0");
    let outcome = receiver.stop();
    outcome.says("cannot be put together").says("/nowhere/at/all").says("its pieces are stored");
    assert!(!repository.keys().contains(&segment_key(&segment)));
    let receiver = Running::start(&call(&repository, &cluster, &[]));
    assert!(happens_within(A_MINUTE, || repository.keys().contains(&segment_key(&segment))));
    assert_eq!(receiver.stop().code, 0);
    let plain = std::fs::read(cluster.data_dir().join("pg_wal").join(&segment)).unwrap();
    assert!(zstd::decode_all(&repository.object(&segment_key(&segment)).unwrap()[..]).unwrap() == plain);
}
