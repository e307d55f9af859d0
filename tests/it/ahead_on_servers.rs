//! Look-ahead and prefetch as real servers use them: a backlog that is caught up, recoveries beside each other, stops in every mode.

use std::time::{Duration, Instant};

use crate::ledger::{Expect, Ledger};
use crate::pitr::{archiving, assert_clean, prepared, restore_command, with_environment};
use crate::postgres::{BaseBackup, Cluster, Installation, Recovery, RecoveryTarget, StopMode};
use crate::prefetch::helpers_of;
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
