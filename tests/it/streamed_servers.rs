//! Servers whose WAL nobody but `wal-receive` stores: they are checked and backed up, and destroyed with everything on them. What
//! `pgark restore` brings back is judged by the ledger.

use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::backups::{Restored, as_servers_user, on_the_host, restore, restored_at, take_backup};
use crate::ledger::{Expect, Ledger, integrity};
use crate::pitr::{archiving, with_environment};
use crate::postgres::{Cluster, ClusterBuilder, Installation, Lsn, Position};
use crate::program::{Call, finish};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

/// It archives nothing.
pub fn streamed(installation: &'static Installation) -> ClusterBuilder {
    Cluster::builder().installation(installation).conf("archive_mode = off").conf("max_slot_wal_keep_size = '1GB'")
}

/// A receiver of this server that has begun to store.
pub struct Receiver(Child);

impl Receiver {
    pub fn of(repository: &Repository, cluster: &Cluster, words: &[&str]) -> Self {
        let words: Vec<&str> = ["wal-receive", "--create-slot"].into_iter().chain(words.iter().copied()).collect();
        let call = Call::new(words).envs(repository.env());
        let receiver = Receiver(call.env("PGARK_CLUSTER__CONNINFO", cluster.endpoint().conninfo()).spawn());
        let begun = "select count(flush_lsn) from pg_stat_replication where application_name = 'pgark'";
        cluster.wait_until("streamed", A_MINUTE, || cluster.value(begun) == "1");
        receiver
    }

    pub fn kill_9(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let child = std::mem::replace(&mut self.0, std::process::Command::new("true").spawn().unwrap());
        finish(child).quiet_success();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

pub fn wait_durable(cluster: &Cluster, to: Lsn) {
    let durable = format!("select coalesce(max(flush_lsn) >= '{to}', false) from pg_stat_replication");
    cluster.wait_until("durable", A_MINUTE, || cluster.value(&durable) == "t");
}

/// As if the machine had burnt down.
pub fn destroy(cluster: &Cluster) {
    cluster.kill_9();
    std::fs::remove_dir_all(cluster.data_dir()).unwrap();
}

fn restored(repository: &Repository) -> Restored {
    let restored = restore(repository, &[]);
    restored.cluster.start();
    restored.cluster.wait_promoted(A_MINUTE);
    restored
}

#[test]
fn without_any_archive_command() {
    for installation in Installation::all_wanted() {
        for repository in Repository::both() {
            let primary = streamed(installation).start();
            let refused = as_servers_user(&on_the_host(&repository, &primary, &["basebackup"]));
            refused.code(17).says("no `pgark wal-receive` streams it");
            let receiver = Receiver::of(&repository, &primary, &[]);
            let ledger = Ledger::create(&primary);
            ledger.write(10, 1000);
            take_backup(&repository, &primary, &[]);
            ledger.write(30, 50_000);
            take_backup(&repository, &primary, &["--remote"]);
            ledger.write(5, 1000);
            wait_durable(&primary, ledger.tip().lsn);
            // Several segments, and the unfinished one.
            receiver.kill_9();
            destroy(&primary);
            let restored = restored(&repository);
            ledger.judge(&restored.cluster, &Expect::at_least(ledger.tip())).unwrap();
            integrity(&restored.cluster).unwrap();
        }
    }
}

/// The disasters below, in small, on every major.
#[test]
fn without_any_archive_command_while_rows_are_committed() {
    for installation in Installation::all_wanted() {
        let windows = disasters(installation, 2, &["--flush", "1s"], false);
        assert!(windows.iter().all(|window| *window < Duration::from_secs(10)), "{windows:?}");
        let windows = disasters(installation, 2, &["--synchronous"], true);
        assert!(windows.iter().all(|window| *window == Duration::ZERO), "{windows:?}");
    }
}

#[test]
fn with_an_archive_command_too() {
    for installation in Installation::all_wanted() {
        receiver_and_archive_command(installation);
    }
}

fn receiver_and_archive_command(installation: &'static Installation) {
    let repository = Repository::s3();
    let primary = archiving(&repository, installation, 1);
    let receiver = Receiver::of(&repository, &primary, &[]);
    let ledger = Ledger::create(&primary);
    take_backup(&repository, &primary, &[]);
    ledger.write(60, 50_000);
    primary.archive_everything(A_MINUTE);
    ledger.write(3, 1000);
    wait_durable(&primary, ledger.tip().lsn);
    receiver.kill_9();
    destroy(&primary);
    ledger.judge(&restored(&repository).cluster, &Expect::at_least(ledger.tip())).unwrap();
}

#[test]
fn check_and_status_know_the_receiver() {
    let repository = Repository::s3();
    let primary = streamed(Installation::preferred()).start();
    let check = |words: &[&str]| {
        let words: Vec<&str> = ["check"].into_iter().chain(words.iter().copied()).collect();
        as_servers_user(&on_the_host(&repository, &primary, &words))
    };
    let receiver = Receiver::of(&repository, &primary, &[]);
    primary.switch_wal();
    wait_durable(&primary, primary.current_lsn());
    let well = check(&[]);
    assert_eq!(well.code, 0, "{well:?}");
    for said in ["wal-receive stores the WAL", "WAL is streamed, durable up to", "was in the store after"] {
        assert!(well.stdout.contains(said), "`{said}`: {well:?}");
    }
    take_backup(&repository, &primary, &[]);
    let status = as_servers_user(&on_the_host(&repository, &primary, &["status"]));
    assert!(status.code == 0 && status.stdout.contains("streamed up to"), "{status:?}");
    receiver.stop();
    // Nobody streams: what the slot keeps fills the disk.
    let alone = check(&["--no-switch"]);
    assert!(alone.code != 0 && alone.stdout.contains("nobody streams from slot `pgark`"), "{alone:?}");
    let status = as_servers_user(&on_the_host(&repository, &primary, &["status"]));
    assert!(status.code != 0 && status.stdout.contains("nobody streams from slot `pgark`"), "{status:?}");
    // The slot is lost.
    primary.configure("max_slot_wal_keep_size = '1MB'");
    primary.reload();
    for _ in 0..8 {
        primary.switch_wal();
    }
    primary.execute("checkpoint");
    let lost = check(&["--no-switch"]);
    assert!(lost.code != 0 && lost.stdout.contains("slot `pgark` is lost"), "{lost:?}");
}

/// Positions that were acknowledged, with the moments at which that was seen.
fn observed(ledger: &Ledger, stop: &AtomicBool) -> Vec<(Instant, Position)> {
    let mut seen = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        seen.push((Instant::now(), ledger.tip()));
        std::thread::sleep(Duration::from_millis(5));
    }
    seen
}

/// Server after server is destroyed while rows are committed, and each restored one goes on.
fn disasters(installation: &'static Installation, rounds: usize, words: &[&str], synchronous: bool) -> Vec<Duration> {
    let repository = Repository::s3();
    let first = streamed(installation).start();
    let ledger = Ledger::create(&first);
    let mut server = Restored { home: crate::postgres::Scratch::new("d"), cluster: first };
    let mut windows = Vec::new();
    for round in 0..rounds {
        let cluster = &server.cluster;
        let receiver = Receiver::of(&repository, cluster, words);
        if round == 0 {
            take_backup(&repository, cluster, &[]);
        }
        if synchronous {
            cluster.configure("synchronous_standby_names = 'pgark'");
            cluster.reload();
            let waits = "select count(*) from pg_stat_replication where sync_state = 'sync'";
            cluster.wait_until("synchronous", A_MINUTE, || cluster.value(waits) == "1");
        }
        let stop = AtomicBool::new(false);
        let writer = ledger.write_in_background(200, 100);
        let (seen, destroyed) = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| observed(&ledger, &stop));
            std::thread::sleep(Duration::from_millis(2200 + 137 * (round as u64 % 7)));
            let destroyed = Instant::now();
            destroy(cluster);
            stop.store(true, Ordering::Relaxed);
            (watcher.join().unwrap(), destroyed)
        });
        receiver.kill_9();
        let report = writer.stop();
        assert!(report.rows > 20, "round {round}: {report:?}");
        let restored = {
            let settings = with_environment(Cluster::builder(), &repository);
            // A restored server is its own again, and waits for nobody until somebody streams.
            restored_at(&repository, &[], settings.conf("synchronous_standby_names = ''"))
        };
        restored.cluster.start();
        restored.cluster.wait_promoted(A_MINUTE);
        let kept = |position: Position| ledger.judge(&restored.cluster, &Expect::at_least(position)).is_ok();
        // The newest position of which every row is there.
        let lost = seen.partition_point(|(_, position)| kept(*position));
        let window = seen.get(lost).map_or(Duration::ZERO, |(at, _)| destroyed.saturating_duration_since(*at));
        windows.push(window);
        assert!(lost > 0, "round {round}: nothing that was committed is there");
        ledger.judge(&restored.cluster, &Expect::at_least(seen[lost - 1].1)).unwrap();
        ledger.attach(&restored.cluster);
        server = restored;
    }
    integrity(&server.cluster).unwrap();
    eprintln!("loss windows: {windows:?}");
    windows
}

#[test]
fn twenty_disasters_lose_next_to_nothing() {
    let windows = disasters(Installation::preferred(), 20, &["--flush", "1s"], false);
    // The bench measures it; this much is lost by no accident of a busy machine.
    assert!(windows.iter().all(|window| *window < Duration::from_secs(10)), "{windows:?}");
}

#[test]
fn twenty_disasters_lose_no_commit_of_a_synchronous_receiver() {
    let windows = disasters(Installation::preferred(), 20, &["--synchronous"], true);
    assert!(windows.iter().all(|window| *window == Duration::ZERO), "{windows:?}");
}
