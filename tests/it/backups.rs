//! Base backups of real servers: what `basebackup` stores is a backup, and nothing else ever looks like one.

use std::process::Command;
use std::time::Duration;

use crate::ledger::{Expect, Ledger, integrity};
use crate::pitr::{Accident, BEFORE_THE_ACCIDENT, archiving, assert_clean, restore_command, with_environment};
use crate::postgres::{
    Account, Cluster, ClusterBuilder, Installation, Recovery, RecoveryTarget, Scratch, verify_directory,
};
use crate::program::{Call, Outcome, finish};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

/// A call of an operator on the server's host, as its user.
pub fn on_the_host(repository: &Repository, cluster: &Cluster, words: &[&str]) -> Call {
    Call::new(words.iter().copied())
        .envs(repository.env())
        .env("PGARK_CLUSTER__PGDATA", cluster.data_dir().display().to_string())
        .env("PGARK_CLUSTER__CONNINFO", cluster.endpoint().conninfo())
}

/// Runs a call as the servers' user.
pub fn as_servers_user(call: &Call) -> Outcome {
    let mut command = call.command();
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    finish(Account::of_servers().run(&mut command).spawn().expect("pgark can be started"))
}

/// Takes a backup, and returns its name.
pub fn take_backup(repository: &Repository, cluster: &Cluster, words: &[&str]) -> String {
    let words: Vec<&str> = ["basebackup", "--json"].into_iter().chain(words.iter().copied()).collect();
    let outcome = as_servers_user(&on_the_host(repository, cluster, &words)).quiet_success();
    let report: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("a report in JSON");
    report["backup"]["id"].as_str().expect("the backup has a name").to_owned()
}

/// A server with some rows and a backup, all archived.
pub fn backed_up(repository: &Repository) -> (Cluster, Ledger) {
    let primary = archiving(repository, Installation::preferred(), 1);
    let ledger = Ledger::create(&primary);
    ledger.write(10, 1000);
    take_backup(repository, &primary, &[]);
    primary.archive_everything(A_MINUTE);
    (primary, ledger)
}

#[test]
fn zstd_and_tar_restore_a_backup_by_hand() {
    for repository in Repository::both() {
        let primary = archiving(&repository, Installation::preferred(), 1);
        let ledger = Ledger::create(&primary);
        ledger.write(50, 20_000);
        let id = take_backup(&repository, &primary, &["--label", "by hand"]);
        ledger.write(20, 1000);
        primary.archive_everything(A_MINUTE);

        let home = Scratch::new("h");
        let data = home.path().join("data");
        let parts: Vec<String> =
            repository.keys().into_iter().filter(|key| key.contains(&format!("{id}/part/"))).collect();
        assert!(parts.len() >= 2, "{parts:?}");
        let archive: Vec<u8> = parts.iter().flat_map(|key| repository.object(key).unwrap()).collect();
        let packed = home.path().join("parts");
        std::fs::write(&packed, archive).unwrap();
        let script = "mkdir -m 700 $1 && zstd -dc < $0 | tar x -C $1";
        let mut by_hand = Command::new("bash");
        by_hand.args(["-euo", "pipefail", "-c", script]).arg(&packed).arg(&data);
        assert!(Account::of_servers().run(&mut by_hand).status().unwrap().success());

        verify_directory(primary.installation(), &data).unwrap();
        let restored = with_environment(Cluster::builder(), &repository).on_directory(&data);
        restored.configure_recovery(&Recovery::new(restore_command(), RecoveryTarget::Latest));
        restored.start();
        restored.wait_promoted(A_MINUTE);
        ledger.judge(&restored, &Expect::at_least(ledger.tip())).unwrap();
        assert_clean(&restored);
        integrity(&restored).unwrap();
    }
}

/// A restore that is wanted of `repository`.
pub fn restore_call(repository: &Repository, to: &std::path::Path, words: &[&str]) -> Call {
    let to = to.display().to_string();
    let words: Vec<&str> = ["restore", "--to", &to].into_iter().chain(words.iter().copied()).collect();
    Call::new(words).envs(repository.env()).env("PGARK_WAL__FETCH_RETRY", "20s")
}

/// A restored server, not started yet.
pub struct Restored {
    pub home: Scratch,
    pub cluster: Cluster,
}

/// Restores with `pgark restore`; `pg_verifybackup` must be content with the result.
pub fn restore(repository: &Repository, words: &[&str]) -> Restored {
    restored_at(repository, words, with_environment(Cluster::builder(), repository))
}

/// Archives everything, restores to the latest, and has the ledger judge the server that comes up.
pub fn restores_whole(repository: &Repository, primary: &Cluster, ledger: &Ledger) -> Restored {
    primary.archive_everything(A_MINUTE);
    let restored = restore(repository, &[]);
    restored.cluster.start();
    restored.cluster.wait_promoted(A_MINUTE);
    ledger.judge(&restored.cluster, &Expect::at_least(ledger.tip())).unwrap();
    restored
}

/// As [`restore`], for a server that the builder describes.
pub fn restored_at(repository: &Repository, words: &[&str], server: ClusterBuilder) -> Restored {
    let home = Scratch::new("s");
    let data = home.path().join("data");
    as_servers_user(&restore_call(repository, &data, words)).code(0);
    let said = std::fs::read_to_string(data.join("PG_VERSION")).unwrap();
    let installation = Installation::find(said.trim().parse().unwrap()).unwrap();
    verify_directory(installation, &data).unwrap();
    Restored { home, cluster: server.on_directory(&data) }
}

#[test]
fn every_target_in_one_command() {
    for installation in Installation::all_wanted() {
        for repository in Repository::both() {
            every_target(&repository, installation);
        }
    }
}

fn every_target(repository: &Repository, installation: &'static Installation) {
    let back_up = |primary: &Cluster| take_backup(repository, primary, &[]);
    let Accident { ledger, mark, primary: _primary, .. } = Accident::on(repository, installation, back_up);
    let (time, lsn) = (mark.time_rfc3339(), mark.position.lsn.to_string());
    let targets: [&[&str]; 4] = [
        &["--target-time", &time],
        &["--target-lsn", &lsn],
        &["--target-xid", &mark.xid],
        &["--target-name", BEFORE_THE_ACCIDENT],
    ];
    for target in targets {
        let Restored { cluster, home: _home } = restore(repository, target);
        cluster.start();
        cluster.wait_promoted(A_MINUTE);
        ledger.judge(&cluster, &Expect::exactly(&mark)).unwrap_or_else(|why| panic!("{target:?}: {why}"));
        assert_eq!(cluster.value("show archive_mode"), "off");
        assert_clean(&cluster);
        integrity(&cluster).unwrap();
    }
    let Restored { cluster, home: _home } = restore(repository, &["--target-immediate"]);
    cluster.start();
    cluster.wait_promoted(A_MINUTE);
    assert!(ledger.judge(&cluster, &Expect::exactly(&mark)).is_err(), "immediate ends before the mark");
    integrity(&cluster).unwrap();
    let Restored { cluster, home: _home } = restore(repository, &[]);
    cluster.start();
    cluster.wait_promoted(A_MINUTE);
    ledger.judge(&cluster, &Expect::at_least(ledger.tip())).unwrap();
    assert_clean(&cluster);
    integrity(&cluster).unwrap();
}
