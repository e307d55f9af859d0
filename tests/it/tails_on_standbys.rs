//! Standbys that know their primary by the repository alone, which `wal-receive` streams into: they follow within the unfinished
//! segment, are promoted from it, and never archive it as the whole one.

use std::time::Duration;

use crate::backups::{as_servers_user, restore, take_backup};
use crate::ledger::{Expect, Ledger, integrity};
use crate::pitr::{archive_command, restore_command, with_environment};
use crate::postgres::{Account, BaseBackup, Cluster, Installation, Scratch};
use crate::program::Call;
use crate::repository::{Repository, segment_key};
use crate::streamed_servers::{Receiver, destroy, streamed, wait_durable};

const A_MINUTE: Duration = Duration::from_secs(60);

/// A standby that archives what it gets.
fn standby(repository: &Repository, backup: &BaseBackup) -> Cluster {
    let builder = Cluster::builder().archive_command(&archive_command()).conf("wal_retrieve_retry_interval = '200ms'");
    let standby = with_environment(builder, repository).on_copy_of(backup);
    standby.configure("archive_mode = always");
    standby.configure_standby(&restore_command(), None);
    standby.start();
    standby
}

fn catches_up(standby: &Cluster, ledger: &Ledger) {
    standby.wait_until("the standby has caught up", A_MINUTE, || {
        ledger.judge(standby, &Expect::at_least(ledger.tip())).is_ok()
    });
}

fn segment_in_use(cluster: &Cluster) -> String {
    cluster.value("select pg_walfile_name(pg_current_wal_insert_lsn())")
}

/// Whether PostgreSQL has given a file to archive_command, with success.
fn handed_out(cluster: &Cluster, name: &str) -> bool {
    cluster.data_dir().join(format!("pg_wal/archive_status/{name}.done")).exists()
}

#[test]
fn a_standby_follows_the_tail_and_does_not_archive_it_as_the_segment() {
    for installation in Installation::all_wanted() {
        let repository = Repository::s3();
        let primary = streamed(installation).start();
        let receiver = Receiver::of(&repository, &primary, &["--flush", "100ms"]);
        let ledger = Ledger::create(&primary);
        let backup = primary.base_backup();
        let standby = standby(&repository, &backup);
        for _ in 0..4 {
            ledger.write(3, 300);
            catches_up(&standby, &ledger);
        }
        let begun = segment_in_use(&primary);
        standby.wait_until("the beginning was handed out", A_MINUTE, || handed_out(&standby, &begun));
        assert_eq!(repository.object(&segment_key(&begun)), None, "the beginning stands for the whole segment");
        // The whole one comes, and more.
        ledger.write(40, 50_000);
        catches_up(&standby, &ledger);
        wait_durable(&primary, ledger.tip().lsn);
        let stored = repository.object(&segment_key(&begun)).map(|object| zstd::decode_all(&object[..]).unwrap());
        let original = std::fs::read(primary.data_dir().join("pg_wal").join(&begun)).unwrap();
        assert!(stored == Some(original), "{begun} is stored as the primary wrote it");
        receiver.kill_9();
    }
}

/// The primary is destroyed, a standby goes on where the tail ends, and later the repository brings all of it back.
#[test]
fn a_standby_is_promoted_from_the_tail() {
    for installation in Installation::all_wanted() {
        let repository = Repository::s3();
        let primary = streamed(installation).start();
        let receiver = Receiver::of(&repository, &primary, &["--flush", "100ms"]);
        let ledger = Ledger::create(&primary);
        take_backup(&repository, &primary, &[]);
        let backup = primary.base_backup();
        let standby = standby(&repository, &backup);
        ledger.write(20, 20_000);
        ledger.write(3, 300);
        wait_durable(&primary, ledger.tip().lsn);
        let begun = segment_in_use(&primary);
        receiver.kill_9();
        catches_up(&standby, &ledger);
        destroy(&primary);
        standby.promote();
        standby.wait_promoted(A_MINUTE);
        ledger.attach(&standby);
        ledger.write(20, 20_000);
        ledger.write(3, 300);
        standby.archive_everything(A_MINUTE);
        assert_eq!(repository.object(&segment_key(&begun)), None, "the beginning stands for the whole segment");
        // What it has of the old timeline is no more than what is stored.
        let backfill = Call::new(["wal-push", "--backfill"]).envs(repository.env()).within(standby.data_dir());
        as_servers_user(&backfill.env("PGARK_CLUSTER__PGDATA", standby.data_dir().display().to_string())).code(0);
        assert_eq!(repository.object(&segment_key(&begun)), None, "the beginning stands for the whole segment");
        destroy(&standby);
        let restored = restore(&repository, &[]);
        restored.cluster.start();
        restored.cluster.wait_promoted(A_MINUTE);
        ledger.judge(&restored.cluster, &Expect::at_least(ledger.tip())).unwrap();
        assert_eq!(restored.cluster.timeline(), 3);
        integrity(&restored.cluster).unwrap();
    }
}

/// The file that a server had of a full segment becomes that of later ones, as PostgreSQL recycles it. Gives its content.
fn recycle(full: &str, primary: &Cluster, standby: &Cluster) -> Vec<u8> {
    let bytes = std::fs::read(primary.data_dir().join("pg_wal").join(full)).unwrap();
    let number = u32::from_str_radix(&full[16..], 16).unwrap();
    for later in number + 1..number + 10 {
        let name = format!("{}{later:08X}", &full[..16]);
        let file = standby.data_dir().join("pg_wal").join(name);
        if !file.exists() {
            std::fs::write(&file, &bytes).unwrap();
            Account::of_servers().own(&file);
        }
    }
    bytes
}

fn full_segment(primary: &Cluster, ledger: &Ledger) -> String {
    let full = segment_in_use(primary);
    while segment_in_use(primary) == full {
        ledger.write(3, 3000);
    }
    full
}

/// A server that keeps its WAL, what was written, and a segment that is full of it.
fn with_full_segment(installation: &'static Installation) -> (Cluster, Ledger, String) {
    let primary = streamed(installation).conf("wal_keep_size = '64MB'").start();
    let ledger = Ledger::create(&primary);
    primary.switch_wal();
    let full = full_segment(&primary, &ledger);
    (primary, ledger, full)
}

/// It streams into files that were other segments: what is behind the WAL is no zeros.
#[test]
fn a_standby_that_streams_does_not_archive_what_it_never_received() {
    for installation in Installation::all_wanted() {
        let repository = Repository::s3();
        let (primary, ledger, older) = with_full_segment(installation);
        let backup = primary.base_backup();
        let between = Cluster::builder().conf("archive_mode = off").on_copy_of(&backup);
        between.configure_standby("false", Some(&primary.endpoint().conninfo()));
        between.start();
        let builder = Cluster::builder().archive_command(&archive_command());
        let standby = with_environment(builder, &repository).on_copy_of(&backup);
        standby.configure("archive_mode = always");
        standby.configure_standby("false", Some(&between.endpoint().conninfo()));
        let older = recycle(&older, &primary, &standby);
        standby.start();
        full_segment(&primary, &ledger);
        full_segment(&primary, &ledger);
        ledger.write(3, 300);
        catches_up(&standby, &ledger);
        let begun = segment_in_use(&primary);
        primary.kill_9();
        let file = std::fs::read(standby.data_dir().join("pg_wal").join(&begun)).unwrap();
        assert_eq!(file[file.len() / 2..], older[older.len() / 2..], "{begun} was another segment");
        between.promote();
        ledger.attach(&between);
        ledger.write(3, 300);
        catches_up(&standby, &ledger);
        standby.wait_until("the beginning was handed out", A_MINUTE, || handed_out(&standby, &begun));
        assert_eq!(repository.object(&segment_key(&begun)), None, "the beginning stands for the whole segment");
        let partial = repository.object(&segment_key(&format!("{begun}.partial"))).expect("the beginning is kept");
        assert!(zstd::decode_all(&partial[..]).unwrap() == file, "{begun} is kept as it is");
    }
}

#[test]
fn the_whole_segment_is_stored_after_its_beginning() {
    for installation in Installation::all_wanted() {
        let repository = Repository::s3();
        let (primary, ledger, older) = with_full_segment(installation);
        ledger.write(3, 300);
        let cut = (primary.current_lsn().0 % primary.segment_bytes()) as usize;
        let begun = full_segment(&primary, &ledger);
        let [older, whole] =
            [&older, &begun].map(|name| std::fs::read(primary.data_dir().join("pg_wal").join(name)).unwrap());
        let home = Scratch::new("beginning");
        let file = home.path().join(&begun);
        let push = Call::new(["wal-push".into(), file.clone().into_os_string()]).envs(repository.env());
        for _ in 0..2 {
            std::fs::write(&file, [&whole[..cut], &older[cut..]].concat()).unwrap();
            push.run().code(0).says("was never finished");
        }
        assert_eq!(repository.object(&segment_key(&begun)), None);
        std::fs::write(&file, &whole).unwrap();
        push.run().quiet_success();
        let stored = repository.object(&segment_key(&begun)).unwrap();
        assert!(zstd::decode_all(&stored[..]).unwrap() == whole);
        // Now all that is in the beginning is there.
        std::fs::write(&file, [&whole[..cut], &older[cut..]].concat()).unwrap();
        push.run().quiet_success();
    }
}
