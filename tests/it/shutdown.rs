//! A server that is told to stop does stop, also with the store dead or silent; and what it could not archive is archived
//! after the next start.

use std::time::Duration;

use crate::double::{Fault, Rule};
use crate::ledger::Ledger;
use crate::pitr::archiving;
use crate::postgres::{Cluster, Installation, StopMode};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

fn stops_in_time(break_it: impl Fn(&Repository), mend: impl Fn(&Repository)) {
    let repository = Repository::s3();
    let cluster = archiving(&repository, Installation::preferred(), 1);
    let ledger = Ledger::create(&cluster);
    ledger.write(5, 1000);
    cluster.archive_everything(A_MINUTE);
    break_it(&repository);
    ledger.write(20, 20_000);
    cluster.switch_wal();
    // The archiver is at it when the order to stop comes.
    std::thread::sleep(Duration::from_secs(1));
    let took = cluster.stop(StopMode::Fast);
    assert!(took < Duration::from_secs(30), "pg_ctl stop -m fast took {took:?}:\n{}", cluster.log());
    assert_no_process_of(&cluster);
    mend(&repository);
    cluster.start();
    cluster.archive_everything(A_MINUTE);
    assert_eq!(cluster.unarchived(), [""; 0]);
}

/// pgark's processes have the data directory as their working directory.
fn assert_no_process_of(cluster: &Cluster) {
    let data_dir = cluster.data_dir().canonicalize().unwrap();
    let left: Vec<_> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|process| std::fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == data_dir))
        .map(|process| std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default())
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn with_a_store_that_refuses() {
    stops_in_time(
        |repository| repository.double().stop_listening(),
        |repository| repository.double().resume_listening(),
    );
}

#[test]
fn with_a_store_that_is_silent() {
    stops_in_time(
        |repository| {
            repository.double().fault(Rule::new(Fault::Silence));
        },
        |repository| repository.double().clear_faults(),
    );
}

#[test]
fn an_immediate_stop_leaves_nothing_behind() {
    let repository = Repository::s3();
    let cluster = archiving(&repository, Installation::preferred(), 1);
    repository.double().fault(Rule::new(Fault::Silence));
    let ledger = Ledger::create(&cluster);
    ledger.write(20, 20_000);
    cluster.switch_wal();
    std::thread::sleep(Duration::from_millis(500));
    let took = cluster.stop(StopMode::Immediate);
    assert!(took < Duration::from_secs(10), "{took:?}");
    std::thread::sleep(Duration::from_millis(200));
    assert_no_process_of(&cluster);
    repository.double().clear_faults();
    cluster.start();
    cluster.archive_everything(A_MINUTE);
}
