//! A repository that is copied to another store while its cluster lives (docs/move.md): no row is lost, and the next backup, the next
//! segment and the next restore find all that the old place had.

use std::time::Duration;

use serde_json::Value;

use crate::backups::{restores_whole, take_backup};
use crate::ledger::Ledger;
use crate::pitr::{archive_command, with_environment};
use crate::postgres::{Account, Cluster};
use crate::program::{Call, binary};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

/// What `aws s3 sync` and `rsync` do: the objects come over, their metadata need not.
fn copy(old: &Repository, new: &Repository) {
    let there = new.keys();
    for key in old.keys().into_iter().filter(|key| !there.contains(key)) {
        new.put(&key, &old.object(&key).unwrap());
    }
    if let Repository::Local(directory) = new {
        let mut own = std::process::Command::new("chown");
        let owner = std::fs::metadata(directory.path()).unwrap();
        let (uid, gid) = (std::os::unix::fs::MetadataExt::uid(&owner), std::os::unix::fs::MetadataExt::gid(&owner));
        assert!(own.arg("-R").arg(format!("{uid}:{gid}")).arg(directory.path()).status().unwrap().success());
    }
}

fn newest(repository: &Repository) -> Value {
    let outcome = Call::new(["status", "--no-server", "--json"]).envs(repository.env()).run().code(0);
    let status: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_ne!(status["newest"]["lsn"], Value::Null);
    status["newest"]["lsn"].clone()
}

fn archive_to(cluster: &Cluster, command: &str) {
    cluster.execute(&format!("alter system set archive_command = '{command}'"));
    cluster.reload();
}

/// The page's way, from `old` to `new`; the cluster's environment is that of both.
fn move_over(cluster: &Cluster, ledger: &Ledger, old: &Repository, new: &Repository) {
    copy(old, new);
    ledger.write(10, 1000);
    cluster.archive_everything(A_MINUTE);
    archive_to(cluster, "false");
    ledger.write(10, 1000);
    copy(old, new);
    assert_eq!(newest(old), newest(new));
    Call::new(["verify"]).envs(new.env()).run().code(0);
    archive_to(cluster, &format!("{} --repo {} wal-push %p %f", binary().display(), new.url()));
    cluster.archive_everything(A_MINUTE);
    assert_ne!(newest(old), newest(new), "it goes on at the new place");
    restores_whole(new, cluster, ledger);
    let id = take_backup(new, cluster, &[]);
    ledger.write(10, 1000);
    let restored = restores_whole(new, cluster, ledger);
    drop(restored);
    assert!(!old.keys().iter().any(|key| key.contains(&id)));
}

#[test]
fn from_a_directory_to_s3_and_to_another_directory() {
    let [first, second, third] = [Repository::local(), Repository::s3(), Repository::local()];
    let builder = with_environment(Cluster::builder(), &second).archive_command(&archive_command());
    let builder = builder.wal_segment_mib(1).env("PGARK_REPO__URL", first.url());
    let cluster = builder.start();
    for repository in [&first, &third] {
        let Repository::Local(directory) = repository else { unreachable!() };
        Account::of_servers().own(directory.path());
    }
    let ledger = Ledger::create(&cluster);
    ledger.write(10, 1000);
    take_backup(&first, &cluster, &[]);
    move_over(&cluster, &ledger, &first, &second);
    move_over(&cluster, &ledger, &second, &third);
}

/// Copies without metadata are compared by what they hold: the same again is success, another content is not.
#[test]
fn copies_without_metadata_are_judged_by_their_content() {
    let (old, new) = (Repository::local(), Repository::s3());
    let cluster = crate::data_dir::FakeCluster::new();
    let name = "000000010000000000000001";
    cluster.segment(name, 1);
    old.push(&cluster, name).run().quiet_success();
    copy(&old, &new);
    new.push(&cluster, name).run().code(0);
    cluster.segment(name, 2);
    new.push(&cluster, name).run().code(1);
}
