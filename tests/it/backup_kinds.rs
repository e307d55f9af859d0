//! Base backups of every kind of cluster: tablespaces, a standby, `pg_wal` behind a link, relations that no backup has, large
//! ones, large segments, and load while the backup is taken.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::backups::{Restored, as_servers_user, on_the_host, restore, restore_call, restored_at, take_backup};
use crate::ledger::{Expect, Ledger, integrity};
use crate::pitr::{archiving, assert_clean, with_environment};
use crate::postgres::{Account, Cluster, Installation, Scratch, StopMode, verify_directory};
use crate::repository::Repository;
use crate::restore_faults::manifest_key;

const A_MINUTE: Duration = Duration::from_secs(60);

/// Starts a restored server, which must have all that the ledger knows, and be sound.
fn has_everything(cluster: &Cluster, ledger: &Ledger) {
    cluster.start();
    cluster.wait_promoted(A_MINUTE);
    ledger.judge(cluster, &Expect::at_least(ledger.tip())).unwrap();
}

fn is_sound(cluster: &Cluster) {
    assert_clean(cluster);
    integrity(cluster).unwrap();
}

fn empty(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() && !path.is_symlink() {
            true => fs::remove_dir_all(&path).unwrap(),
            false => fs::remove_file(&path).unwrap(),
        }
    }
}

#[test]
fn tablespaces_go_elsewhere_or_where_they_were() {
    for installation in Installation::all_wanted() {
        for repository in Repository::both() {
            tablespaces(&repository, installation);
        }
    }
}

fn tablespaces(repository: &Repository, installation: &'static Installation) {
    let primary = archiving(repository, installation, 1);
    let places = [Scratch::new("space"), Scratch::new("a space ")];
    for (name, place) in ["one", "two"].iter().zip(&places) {
        primary.execute(&format!("CREATE TABLESPACE {name} LOCATION '{}'", place.path().display()));
    }
    let ledger = Ledger::create(&primary);
    primary.execute("ALTER TABLE ledger SET TABLESPACE one");
    primary.execute("CREATE INDEX ON ledger (digest) TABLESPACE two");
    primary.execute("CREATE DATABASE elsewhere TABLESPACE two");
    ledger.write(20, 5000);
    take_backup(repository, &primary, &[]);
    ledger.write(20, 5000);
    primary.archive_everything(A_MINUTE);

    let homes = [Scratch::new("new"), Scratch::new("new one ")];
    let maps: Vec<String> = places
        .iter()
        .zip(&homes)
        .map(|(old, new)| format!("{}={}/deep/er", old.path().display(), new.path().display()))
        .collect();
    let words = ["--tablespace-map", &maps[0], "--tablespace-map", &maps[1]];
    let Restored { cluster, home: _home } = restore(repository, &words);
    has_everything(&cluster, &ledger);
    let mut links: Vec<PathBuf> = fs::read_dir(cluster.data_dir().join("pg_tblspc"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap())
        .collect();
    links.sort();
    let mut expected: Vec<PathBuf> = homes.iter().map(|home| home.path().join("deep/er")).collect();
    expected.sort();
    assert_eq!(links, expected);
    is_sound(&cluster);

    let refused = |words: &[&str]| {
        let home = Scratch::new("s");
        as_servers_user(&restore_call(repository, &home.path().join("data"), words)).code(2)
    };
    refused(&[]).says("--tablespace-map");
    refused(&["--tablespace-map", "/nowhere=/tmp/x"]).says("no tablespace at `/nowhere`");
    // Two tablespaces in one place would write over each other's files.
    let one = Scratch::new("one");
    let maps: Vec<String> =
        places.iter().map(|old| format!("{}={}", old.path().display(), one.path().display())).collect();
    refused(&["--tablespace-map", &maps[0], "--tablespace-map", &maps[1]]).says("two tablespaces");
    let inner = format!("{}/inner", maps[1]);
    refused(&["--tablespace-map", &maps[0], "--tablespace-map", &inner]).says("two tablespaces");
    refused(&["--tablespace-map", &maps[0], "--tablespace-map", &maps[0]]).says("twice");
    assert_eq!(fs::read_dir(one.path()).unwrap().count(), 0, "a refused restore wrote something");

    primary.stop(StopMode::Fast);
    [primary.data_dir(), places[0].path(), places[1].path()].into_iter().for_each(empty);
    as_servers_user(&restore_call(repository, primary.data_dir(), &[])).code(0);
    verify_directory(installation, primary.data_dir()).unwrap();
    has_everything(&primary, &ledger);
    is_sound(&primary);
}

/// PostgreSQL warns of such a place, and lets it be.
#[test]
fn a_tablespace_in_the_data_directory() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let inner = primary.data_dir().join("inner");
    fs::create_dir(&inner).unwrap();
    Account::of_servers().own(&inner);
    primary.execute(&format!("CREATE TABLESPACE inner_one LOCATION '{}'", inner.display()));
    let ledger = Ledger::create(&primary);
    primary.execute("ALTER TABLE ledger SET TABLESPACE inner_one");
    ledger.write(20, 5000);
    for method in [&[][..], &["--remote"]] {
        let id = take_backup(&repository, &primary, method);
        let manifest = zstd::decode_all(&repository.object(&manifest_key(&id)).unwrap()[..]).unwrap();
        let twice = String::from_utf8_lossy(&manifest).lines().filter(|line| line.contains("\"inner/PG_")).count();
        assert_eq!(twice, 0, "{method:?}");
        primary.archive_everything(A_MINUTE);
        let home = Scratch::new("new");
        let map = format!("{}={}/place", inner.display(), home.path().display());
        let Restored { cluster, home: _home } = restore(&repository, &[&id, "--tablespace-map", &map]);
        has_everything(&cluster, &ledger);
        is_sound(&cluster);
    }
}

#[test]
fn a_standby_is_backed_up() {
    for installation in Installation::all_wanted() {
        for repository in Repository::both() {
            standby(&repository, installation);
        }
    }
}

/// The standby lives on the archive alone, and is itself restored by pgark.
fn standby(repository: &Repository, installation: &'static Installation) {
    let primary = archiving(repository, installation, 1);
    let ledger = Ledger::create(&primary);
    ledger.write(10, 5000);
    take_backup(repository, &primary, &[]);
    ledger.write(10, 5000);
    primary.archive_everything(A_MINUTE);
    let quick = with_environment(Cluster::builder(), repository).conf("wal_retrieve_retry_interval = '100ms'");
    let Restored { cluster: standby, home: _home } = restored_at(repository, &["--standby"], quick);
    standby.start();
    standby.wait_until("caught up", A_MINUTE, || ledger.judge(&standby, &Expect::at_least(ledger.tip())).is_ok());
    assert!(standby.is_in_recovery());

    let writer = ledger.write_in_background(50, 2000);
    let done = AtomicBool::new(false);
    let id = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                primary.switch_wal();
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        let outcome = as_servers_user(&on_the_host(repository, &standby, &["basebackup", "--json"]));
        done.store(true, Ordering::Relaxed);
        let report: serde_json::Value = serde_json::from_str(&outcome.quiet_success().stdout).unwrap();
        assert_eq!(report["backup"]["from_standby"], true);
        report["backup"]["id"].as_str().unwrap().to_owned()
    });
    assert_eq!(writer.stop().ended_by, None);
    primary.archive_everything(A_MINUTE);
    let Restored { cluster, home: _home } = restore(repository, &[&id]);
    has_everything(&cluster, &ledger);
    is_sound(&cluster);
}

#[test]
fn pg_wal_behind_a_link_and_what_no_backup_has() {
    let repository = Repository::local();
    let command = crate::pitr::archive_command();
    let primary = with_environment(Cluster::builder().archive_command(&command), &repository).initialise();
    let elsewhere = Scratch::new("wal");
    let (wal, linked) = (primary.data_dir().join("pg_wal"), elsewhere.path().join("pg_wal"));
    let mut moving = std::process::Command::new("mv");
    assert!(Account::of_servers().run(moving.args([&wal, &linked])).status().unwrap().success());
    symlink(&linked, &wal).unwrap();
    primary.start();
    let ledger = Ledger::create(&primary);
    ledger.write(10, 1000);
    primary.execute("CREATE UNLOGGED TABLE fleeting AS SELECT g FROM generate_series(1, 10000) g");
    primary.execute("CREATE INDEX ON fleeting (g)");
    let mut session = primary.connect();
    session.sql("CREATE TEMPORARY TABLE mine AS SELECT g FROM generate_series(1, 10000) g").unwrap();
    let temporary = session.sql("SELECT pg_relation_filepath('mine')").unwrap()[0][0].clone();
    let fleeting = primary.value("SELECT pg_relation_filepath('fleeting')");
    primary.execute("CHECKPOINT");
    assert!(primary.data_dir().join(&temporary).exists() && primary.data_dir().join(&fleeting).exists());
    take_backup(&repository, &primary, &[]);
    session.sql("SELECT count(*) FROM mine").expect("the session lived through the backup");
    ledger.write(10, 1000);
    primary.archive_everything(A_MINUTE);

    let Restored { cluster, home: _home } = restore(&repository, &[]);
    assert!(!cluster.data_dir().join(&temporary).exists(), "a temporary table was restored");
    assert!(!cluster.data_dir().join(&fleeting).exists(), "an unlogged table was restored");
    assert!(cluster.data_dir().join(format!("{fleeting}_init")).exists());
    assert!(!cluster.data_dir().join("pg_wal").is_symlink());
    has_everything(&cluster, &ledger);
    assert_eq!(cluster.value("SELECT count(*) FROM fleeting"), "0");
    cluster.execute("INSERT INTO fleeting VALUES (1)");
    is_sound(&cluster);
}

#[test]
fn what_the_operator_asks_for_is_in_the_manifest() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    primary.configure("checkpoint_timeout = '30s'\ncheckpoint_completion_target = 0.1");
    primary.reload();
    let words = ["basebackup", "--json", "--label", "before the 'move'", "--keep", "--checkpoint", "spread"];
    let outcome = as_servers_user(&on_the_host(&repository, &primary, &words)).quiet_success();
    let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(report["backup"]["label"], "before the 'move'");
    let id = report["backup"]["id"].as_str().unwrap();
    assert!(repository.keys().contains(&format!("main/1/backup/{id}/keep.json")), "{:?}", repository.keys());
    let outcome = as_servers_user(&on_the_host(&repository, &primary, &["basebackup", "--rate", "40MiB"]));
    assert!(outcome.quiet_success().stdout.contains("backup "));
    assert_eq!(repository.keys().iter().filter(|key| key.ends_with("keep.json")).count(), 1);
    for (words, said) in [
        (["--rate", "fast"], "--rate"),
        (["--checkpoint", "soon"], "checkpoint"),
        (["--label", &"x".repeat(2000)], "label"),
        (["--jobs", "0"], "jobs"),
    ] {
        let words = ["basebackup"].into_iter().chain(words);
        let words: Vec<&str> = words.collect();
        let outcome = as_servers_user(&on_the_host(&repository, &primary, &words));
        assert!((2..99).contains(&outcome.code) && outcome.stderr.contains(said), "{words:?}: {outcome:?}");
    }
    // Before anything is copied.
    let before = repository.keys();
    for label in ["two\nlines", "cut\r", "bell\u{7}"] {
        for method in [&["basebackup", "--label", label][..], &["basebackup", "--remote", "--label", label]] {
            as_servers_user(&on_the_host(&repository, &primary, method))
                .code(2)
                .says("no backup was made")
                .says("label");
        }
    }
    assert_eq!(repository.keys(), before);
}

/// A relation in several parts, and segments of PostgreSQL's usual size.
#[test]
fn a_large_relation_with_large_segments() {
    let repository = Repository::s3();
    let primary = archiving(&repository, Installation::preferred(), 16);
    let ledger = Ledger::create(&primary);
    ledger.write(10, 1000);
    primary.execute("CREATE TABLE big (id int PRIMARY KEY, filler text)");
    primary.execute("ALTER TABLE big ALTER filler SET STORAGE PLAIN");
    primary
        .execute("INSERT INTO big SELECT g, rpad(md5(g::text), 7900, md5(g::text)) FROM generate_series(1, 12800) g");
    let digest = "SELECT md5(string_agg(md5(filler), '' ORDER BY id)) FROM big";
    let expected = primary.value(digest);
    let id = take_backup(&repository, &primary, &["--jobs", "3"]);
    ledger.write(10, 1000);
    primary.archive_everything(A_MINUTE);
    let parts = repository.keys().iter().filter(|key| key.contains(&format!("{id}/part/"))).count();
    assert!(parts >= 5, "{parts} parts");
    let Restored { cluster, home: _home } = restore(&repository, &["--jobs", "3"]);
    has_everything(&cluster, &ledger);
    assert_eq!(cluster.value(digest), expected);
    is_sound(&cluster);
}

/// Rows, relations that come and go, and pgbench where there is one, while the backup takes its time.
#[test]
fn a_backup_under_load() {
    for installation in Installation::all_wanted() {
        for repository in Repository::both() {
            under_load(&repository, installation);
        }
    }
}

const COME_AND_GO: [&str; 9] = [
    "CREATE TABLE passing AS SELECT g, md5(g::text) AS digest FROM generate_series(1, 3000) g",
    "CREATE INDEX ON passing (digest)",
    "DELETE FROM passing WHERE g % 3 = 0 OR g > 1000",
    "VACUUM passing",
    "ALTER TABLE passing ADD COLUMN more int DEFAULT 7",
    "VACUUM FULL passing",
    "TRUNCATE passing",
    "INSERT INTO passing VALUES (1, 'x')",
    "DROP TABLE passing",
];

fn under_load(repository: &Repository, installation: &'static Installation) {
    let primary = archiving(repository, installation, 1);
    let ledger = Ledger::create(&primary);
    ledger.write(100, 5000);
    let bench = |words: &[&str]| {
        let mut command = installation.command("pgbench");
        command.arg("-h").arg(&primary.endpoint().socket_directory);
        command.args(["-p", &primary.endpoint().port.to_string(), "-U", "postgres"]).args(words).arg("postgres");
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command
    };
    let has_pgbench = installation.bin.join("pgbench").exists();
    if has_pgbench {
        assert!(bench(&["-i", "-s", "1", "-q"]).status().unwrap().success());
    } else {
        eprintln!("PostgreSQL {}: without pgbench, which is not shipped", installation.version);
    }

    let writer = ledger.write_in_background(100, 3000);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = has_pgbench.then(|| bench(&["-c", "1", "-T", "60", "-R", "100"]).spawn().unwrap());
        let rounds = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                COME_AND_GO.iter().for_each(|statement| primary.execute(statement));
                rounds += 1;
            }
            rounds
        });
        take_backup(repository, &primary, &["--rate", "15MiB"]);
        done.store(true, Ordering::Relaxed);
        assert!(rounds.join().unwrap() > 0);
        if let Some(mut client) = client {
            client.kill().unwrap();
            client.wait().unwrap();
        }
    });
    assert_eq!(writer.stop().ended_by, None);
    primary.archive_everything(A_MINUTE);
    let Restored { cluster, home: _home } = restore(repository, &[]);
    has_everything(&cluster, &ledger);
    if has_pgbench {
        let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history), \
                    (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history)";
        assert_eq!(cluster.sql(sums)[0], ["t", "t"]);
    }
    is_sound(&cluster);
}
