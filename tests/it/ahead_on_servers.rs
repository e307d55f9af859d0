//! Look-ahead and prefetch as real servers use them: a backlog that is caught up, recoveries beside each other, stops in every mode.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::kills::{kill_after, seed};
use crate::ledger::{Expect, Ledger};
use crate::pitr::{archiving, assert_clean, prepared, restore_command, with_environment};
use crate::postgres::{BaseBackup, Cluster, Installation, Recovery, RecoveryTarget, Scratch, StopMode};
use crate::prefetch::helpers_of;
use crate::program::{Call, finish};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

/// A server with a backup and some 30 segments after it, which were archived while the archiver had a backlog.
fn with_backlog(repository: &Repository, ledger: impl FnOnce(&Cluster) -> Ledger) -> (Cluster, Ledger, BaseBackup) {
    let double = repository.double();
    let primary = archiving(repository, Installation::preferred(), 1);
    let ledger = ledger(&primary);
    ledger.write(5, 1000);
    let backup = primary.base_backup();
    double.stop_listening();
    ledger.write(40, 600_000);
    primary.switch_wal();
    assert!(primary.unarchived().len() > 10, "{:?}", primary.unarchived());
    double.latency(Duration::from_millis(60));
    double.resume_listening();
    primary.archive_everything(A_MINUTE);
    double.latency(Duration::ZERO);
    (primary, ledger, backup)
}

#[test]
fn a_backlog_is_archived_ahead_and_recovered_whole() {
    let repository = Repository::s3();
    let (primary, ledger, backup) = with_backlog(&repository, Ledger::create);
    let ahead = primary.log().matches("was archived ahead").count();
    assert!(ahead > 5, "only {ahead} segments went ahead");
    // Two recoveries on one host, from one archive.
    let recovery = Recovery::new(restore_command(), RecoveryTarget::Latest);
    let recovering = [(); 2].map(|()| prepared(&repository, &backup, &recovery));
    recovering.iter().for_each(Cluster::launch);
    for restored in &recovering {
        restored.wait_promoted(A_MINUTE);
        ledger.judge(restored, &Expect::at_least(ledger.tip())).unwrap();
        assert_clean(restored);
        no_helper_within(restored, Duration::from_secs(5));
    }
}

/// The test is the archiver: it kills the calls, calls again, and goes on when one succeeded.
#[test]
fn two_hundred_killed_calls_with_look_ahead_and_every_row_is_restored() {
    const ROUNDS: u32 = 200;
    let mut random = StdRng::seed_from_u64(seed());
    let repository = Repository::s3();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let ledger = Ledger::create(&primary);
    ledger.write(5, 1000);
    let backup = primary.base_backup();
    primary.configure("archive_command = ''");
    primary.reload();
    let spool = Scratch::new("spool");
    let call = |name: &str| {
        let words = ["wal-push".to_owned(), format!("pg_wal/{name}")];
        let spool = spool.path().join("spool").display().to_string();
        Call::new(words).envs(repository.env()).env("PGARK_WAL__SPOOL", spool).within(primary.data_dir())
    };
    let (mut rounds, mut killed) = (0, 0);
    while rounds < ROUNDS {
        ledger.write(10, 600_000);
        primary.switch_wal();
        for name in primary.unarchived() {
            let mut code = 137;
            while code == 137 && rounds < ROUNDS {
                repository.double().latency(Duration::from_millis(random.random_range(0..10)));
                code = kill_after(call(&name).spawn(), random.random_range(Duration::ZERO..Duration::from_millis(80)));
                assert!(matches!(code, 0 | 137), "{name}: {code}");
                (rounds, killed) = (rounds + 1, killed + u32::from(code == 137));
            }
            if code == 137 {
                finish(call(&name).spawn()).quiet_success();
            }
            let status = |state: &str| primary.data_dir().join(format!("pg_wal/archive_status/{name}.{state}"));
            std::fs::rename(status("ready"), status("done")).unwrap();
        }
        // What is done may be recycled: a note must not hold for the segment that its file becomes.
        primary.execute("CHECKPOINT");
    }
    assert!(killed > 40, "only {killed} of {ROUNDS} were killed in time");
    repository.double().latency(Duration::ZERO);
    let restored = prepared(&repository, &backup, &Recovery::new(restore_command(), RecoveryTarget::Latest));
    restored.launch();
    restored.wait_promoted(A_MINUTE);
    ledger.judge(&restored, &Expect::at_least(ledger.tip())).unwrap();
    assert_clean(&restored);
}

#[test]
fn no_helper_outlives_its_server() {
    let repository = Repository::s3();
    let (primary, _ledger, backup) = with_backlog(&repository, Ledger::create);
    drop(primary);
    let stop = |standby: &Cluster, how: usize| match how {
        0 => drop(standby.stop(StopMode::Smart)),
        1 => drop(standby.stop(StopMode::Fast)),
        2 => drop(standby.stop(StopMode::Immediate)),
        _ => standby.kill_9(),
    };
    for how in 0..4 {
        let standby = with_environment(Cluster::builder(), &repository).on_copy_of(&backup);
        standby.configure_standby(&restore_command(), None);
        standby.launch();
        let begun = Instant::now();
        while helpers_of(standby.data_dir()).is_empty() {
            assert!(begun.elapsed() < A_MINUTE, "no helper: {}", standby.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        standby.wait_until("hot standby", A_MINUTE, || standby.is_ready());
        stop(&standby, how);
        no_helper_within(&standby, Duration::from_secs(5));
        // And again: a recovery that is restarted goes on where it was.
        standby.launch();
        standby.wait_until("hot standby again", A_MINUTE, || standby.is_ready());
        standby.stop(StopMode::Fast);
        no_helper_within(&standby, Duration::from_secs(5));
    }
}

#[track_caller]
fn no_helper_within(cluster: &Cluster, time: Duration) {
    let begun = Instant::now();
    while !helpers_of(cluster.data_dir()).is_empty() {
        assert!(begun.elapsed() < time, "a helper is left: {:?}", helpers_of(cluster.data_dir()));
        std::thread::sleep(Duration::from_millis(20));
    }
}
