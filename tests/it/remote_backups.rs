//! Base backups over the replication protocol: the same backup as the local one, from anywhere, or none.

use std::process::Child;
use std::time::Duration;

use crate::backups::{Restored, restore, restores_whole};
use crate::double::{Fault, Op, Rule};
use crate::ledger::{Expect, Ledger, integrity};
use crate::pitr::{archiving, assert_clean, restore_command};
use crate::postgres::{Account, Cluster, Installation, Scratch, StopMode};
use crate::program::{Call, Outcome, finish};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

/// A call of somebody who knows the server's address only.
fn remote(repository: &Repository, conninfo: &str, words: &[&str]) -> Call {
    let words = ["basebackup", "--remote"].into_iter().chain(words.iter().copied());
    Call::new(words).envs(repository.env()).env("PGARK_CLUSTER__CONNINFO", conninfo)
}

fn of(repository: &Repository, cluster: &Cluster, words: &[&str]) -> Call {
    remote(repository, &cluster.endpoint().conninfo(), words)
}

fn report(outcome: &Outcome) -> serde_json::Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

fn manifests(repository: &Repository) -> usize {
    repository.keys().iter().filter(|key| key.contains("/backup/") && key.contains("/manifest")).count()
}

fn parts(repository: &Repository) -> usize {
    repository.keys().iter().filter(|key| key.contains("/part/")).count()
}

/// Waits until the backup that is running has sent something.
fn wait_until_copying(cluster: &Cluster, child: &mut Child) {
    cluster.wait_until("sending a backup", A_MINUTE, || {
        assert!(child.try_wait().unwrap().is_none(), "the backup is over already");
        let sending = "SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 1000000";
        cluster.value(sending) == "1"
    });
}

/// Ends segments, as a busy primary does, until the call is over.
fn while_the_primary_works(primary: &Cluster, ledger: &Ledger, mut child: Child) -> Outcome {
    while child.try_wait().unwrap().is_none() {
        ledger.write(1, 100);
        primary.switch_wal();
        std::thread::sleep(Duration::from_millis(300));
    }
    finish(child)
}

struct Tablespaces {
    home: Scratch,
}

const NAMES: [&str; 2] = ["fast", "slow disk"];

impl Tablespaces {
    /// Two directories, one with a space in its name, that do not exist yet.
    fn new() -> Self {
        Tablespaces { home: Scratch::new("t") }
    }

    fn place(&self, name: &str) -> String {
        self.home.path().join(name).display().to_string()
    }

    fn create(&self, cluster: &Cluster) {
        for name in NAMES {
            let place = self.home.path().join(name);
            std::fs::create_dir(&place).unwrap();
            Account::of_servers().own(&place);
            let table = name.split(' ').next().unwrap();
            cluster.execute(&format!("CREATE TABLESPACE \"{name}\" LOCATION '{}'", place.display()));
            cluster.execute(&format!(
                "CREATE TABLE {table} TABLESPACE \"{name}\" AS SELECT g AS id, repeat(md5(g::text), 8) AS text \
                 FROM generate_series(1, 3000) g"
            ));
        }
    }

    fn mapped_to(&self, other: &Tablespaces) -> Vec<String> {
        let each =
            NAMES.map(|name| ["--tablespace-map".to_owned(), format!("{}={}", self.place(name), other.place(name))]);
        each.into_iter().flatten().collect()
    }
}

fn restored_with(repository: &Repository, from: &Tablespaces, to: &Tablespaces, words: &[&str]) -> Restored {
    let map = from.mapped_to(to);
    let words: Vec<&str> = map.iter().map(String::as_str).chain(words.iter().copied()).collect();
    restore(repository, &words)
}

fn assert_tablespaces(cluster: &Cluster, places: &Tablespaces) {
    for name in NAMES {
        let query = format!("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = '{name}'");
        assert_eq!(cluster.value(&query), places.place(name));
        let table = name.split(' ').next().unwrap();
        assert_eq!(
            cluster.value(&format!("SELECT count(*) FROM {table} WHERE text LIKE md5(id::text) || '%'")),
            "3000"
        );
    }
}

/// From a primary, a standby is restored; from the standby, another server.
#[test]
fn from_a_primary_and_from_a_standby() {
    for installation in Installation::all_wanted() {
        let repository = Repository::local();
        let primary = archiving(&repository, installation, 16);
        let ledger = Ledger::create(&primary);
        let at_home = Tablespaces::new();
        at_home.create(&primary);
        // One file that is cut over two parts.
        primary.execute(
            "CREATE TABLE large AS SELECT g AS id, repeat(md5(g::text), 30) AS t FROM generate_series(1, 40000) g",
        );
        ledger.write(30, 20_000);
        let outcome = of(&repository, &primary, &["--json", "--label", "it's the first"]).run().quiet_success();
        let first = report(&outcome)["backup"].clone();
        assert_eq!((first["method"].as_str(), first["from_standby"].as_bool()), (Some("remote"), Some(false)));
        assert_eq!((first["label"].as_str(), first["bad_pages"].as_u64()), (Some("it's the first"), Some(0)));
        assert!(first["parts"].as_u64() >= Some(3), "{first}");
        ledger.write(10, 1000);

        let on_standby = Tablespaces::new();
        let Restored { cluster: standby, home: _home } =
            restored_with(&repository, &at_home, &on_standby, &["--standby"]);
        standby.configure_standby(&restore_command(), Some(&primary.endpoint().conninfo()));
        standby.start();
        let caught_up = || ledger.judge(&standby, &Expect::at_least(ledger.tip())).is_ok();
        standby.wait_until("the standby has caught up", A_MINUTE, caught_up);
        assert_tablespaces(&standby, &on_standby);

        let child = of(&repository, &standby, &["--json"]).spawn();
        let second = while_the_primary_works(&primary, &ledger, child).quiet_success();
        assert_eq!(report(&second)["backup"]["from_standby"].as_bool(), Some(true));
        ledger.write(10, 1000);
        primary.archive_everything(A_MINUTE);

        let elsewhere = Tablespaces::new();
        let Restored { cluster, home: _home } = restored_with(&repository, &on_standby, &elsewhere, &[]);
        cluster.start();
        cluster.wait_promoted(A_MINUTE);
        ledger.judge(&cluster, &Expect::at_least(ledger.tip())).unwrap();
        assert_tablespaces(&cluster, &elsewhere);
        assert_eq!(cluster.value("SELECT count(*) FROM large WHERE t LIKE md5(id::text) || '%'"), "40000");
        assert_clean(&cluster);
        integrity(&cluster).unwrap();
    }
}

#[test]
fn zstd_and_tar_open_what_came_over_the_wire() {
    let repository = Repository::s3();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let places = Tablespaces::new();
    places.create(&primary);
    of(&repository, &primary, &[]).run().quiet_success();
    let keys = repository.keys().into_iter().filter(|key| key.contains("/part/"));
    let archive: Vec<u8> = keys.flat_map(|key| repository.object(&key).unwrap()).collect();
    let plain = zstd::decode_all(&archive[..]).unwrap();
    let mut listing = tar::Archive::new(&plain[..]);
    let names: Vec<String> =
        listing.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    assert!(names.iter().any(|name| name.starts_with("pg_tblspc/") && name.matches('/').count() == 4), "{names:?}");
    let end = ["backup_label", "backup_manifest", "tablespace_map", "global/pg_control"];
    assert_eq!(names[names.len() - 4..], end);
}

#[test]
fn a_lost_connection_leaves_no_backup() {
    for installation in Installation::all_wanted() {
        let repository = Repository::local();
        let primary = archiving(&repository, installation, 1);
        let ledger = Ledger::create(&primary);
        ledger.write(10, 1000);
        let mut child = of(&repository, &primary, &["--rate", "4MiB"]).spawn();
        wait_until_copying(&primary, &mut child);
        primary.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'");
        let outcome = finish(child).code(17).says("no backup was made").says("PostgreSQL");
        assert!(outcome.stderr.contains("terminating connection") || outcome.stderr.contains("closed"), "{outcome:?}");
        assert_eq!(manifests(&repository), 0);

        let mut child = of(&repository, &primary, &["--rate", "4MiB"]).spawn();
        wait_until_copying(&primary, &mut child);
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
        finish(child).code(21).says("interrupted by SIGINT");
        assert_eq!(manifests(&repository), 0);
        let gone = || primary.value("SELECT count(*) FROM pg_stat_progress_basebackup") == "0";
        primary.wait_until("rid of the walsender", A_MINUTE, gone);

        of(&repository, &primary, &[]).run().quiet_success();
        assert_eq!(manifests(&repository), 1);
    }
}

/// Relations come, shrink and go while they are sent.
#[test]
fn of_a_server_at_work() {
    for installation in Installation::all_wanted() {
        let repository = Repository::local();
        let primary = archiving(&repository, installation, 16);
        let ledger = Ledger::create(&primary);
        ledger.write(30, 20_000);
        primary.execute("CREATE TABLE shrinks AS SELECT g, repeat('x', 500) FROM generate_series(1, 20000) g");
        let writer = ledger.write_in_background(50, 5000);
        let mut child = of(&repository, &primary, &["--rate", "6MiB"]).spawn();
        wait_until_copying(&primary, &mut child);
        let mut session = primary.connect();
        let mut rounds = 0;
        while child.try_wait().unwrap().is_none() {
            let name = format!("passing_{rounds}");
            let statements = format!(
                "CREATE TABLE {name} AS SELECT g, repeat('y', 300) FROM generate_series(1, 3000) g; \
                 CREATE INDEX ON {name} (g); DELETE FROM shrinks WHERE g > 15000 - {rounds} * 100; VACUUM shrinks; \
                 UPDATE {name} SET g = -g; DROP TABLE {name}"
            );
            statements.split(';').for_each(|one| drop(session.sql(one).unwrap()));
            rounds += 1;
        }
        finish(child).quiet_success();
        assert!(rounds > 2, "only {rounds} rounds");
        assert_eq!(writer.stop().ended_by, None);
        let Restored { cluster, home: _home } = restores_whole(&repository, &primary, &ledger);
        assert_clean(&cluster);
        integrity(&cluster).unwrap();
    }
}

#[test]
fn a_standby_that_is_promoted_meanwhile_gives_no_backup() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let ledger = Ledger::create(&primary);
    ledger.write(10, 1000);
    of(&repository, &primary, &[]).run().quiet_success();
    let Restored { cluster: standby, home: _home } = restore(&repository, &["--standby"]);
    standby.configure_standby(&restore_command(), Some(&primary.endpoint().conninfo()));
    standby.start();
    let mut child = of(&repository, &standby, &["--rate", "4MiB"]).spawn();
    wait_until_copying(&standby, &mut child);
    standby.promote();
    finish(child).code(17).says("no backup was made").says("promoted");
    assert_eq!(manifests(&repository), 1);
}

#[test]
fn an_outage_of_the_store_is_borne_or_reported() {
    let repository = Repository::s3();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let ledger = Ledger::create(&primary);
    ledger.write(10, 1000);
    let impatient = |call: Call| {
        call.env("PGARK_REPO__REQUEST_TIMEOUT", "1s")
            .env("PGARK_REPO__CONNECT_TIMEOUT", "1s")
            .env("PGARK_REPO__ATTEMPTS", "1")
    };
    let parts_fail = || repository.double().fault(Rule::new(Fault::Status503).on(Op::Put).key("/part/"));
    let rule = parts_fail();
    let lasting = impatient(of(&repository, &primary, &[])).env("PGARK_BACKUP__RETRY", "2s");
    lasting.run().code(10).says("no backup was made");
    assert_eq!((manifests(&repository), parts(&repository)), (0, 0));
    assert!(repository.double().fired(rule) > 1);

    let child = impatient(of(&repository, &primary, &["--json"])).env("PGARK_BACKUP__RETRY", "60s").spawn();
    std::thread::sleep(Duration::from_secs(3));
    repository.double().clear_faults();
    finish(child).quiet_success();
    assert_eq!(manifests(&repository), 1);
    restores_whole(&repository, &primary, &ledger);
}

#[test]
fn pages_with_wrong_checksums_are_listed_and_the_backup_is_kept() {
    for installation in Installation::all_wanted() {
        let repository = Repository::local();
        let primary = archiving(&repository, installation, 1);
        primary.execute("CREATE TABLE rotten AS SELECT g, repeat('x', 500) FROM generate_series(1, 300) g");
        primary.execute("CHECKPOINT");
        let file = primary.value("SELECT pg_relation_filepath('rotten')");
        primary.stop(StopMode::Fast);
        let path = primary.data_dir().join(&file);
        let mut bytes = std::fs::read(&path).unwrap();
        for block in [3, 5] {
            bytes[block * 8192 + 5000] ^= 0x10;
        }
        std::fs::write(&path, bytes).unwrap();
        primary.start();
        let outcome = of(&repository, &primary, &["--json"]).run();
        assert_eq!(outcome.code, 1, "{outcome:?}");
        let said = report(&outcome);
        assert_eq!(said["bad_pages"], serde_json::json!([format!("{file}: block 3"), format!("{file}: block 5")]));
        assert_eq!((said["damaged"].as_bool(), said["backup"]["bad_pages"].as_u64()), (Some(true), Some(2)));
        assert!(outcome.stderr.contains(&format!("a page has a wrong checksum: {file}: block 3")), "{outcome:?}");
        assert_eq!(manifests(&repository), 1);
        // What came is what is there: the copy is true to the original, and pg_verifybackup is content with it.
        let Restored { cluster, home: _home } = restore(&repository, &[]);
        cluster.start();
    }
}

/// `pg_hba.conf` of a server whose roles may do what side-cars are usually allowed to.
fn with_passwords(cluster: &Cluster) {
    let conf = cluster.data_dir().join("pg_hba.conf");
    let rules = "local all postgres trust\n\
                 host replication scram 127.0.0.1/32 scram-sha-256\n\
                 host replication,all md5 127.0.0.1/32 md5\n\
                 host replication,all plain 127.0.0.1/32 password\n";
    Account::of_servers().write(&conf, rules);
    for (role, encryption) in [("scram", "scram-sha-256"), ("md5", "md5"), ("plain", "scram-sha-256")] {
        cluster.execute(&format!(
            "SET password_encryption = '{encryption}'; CREATE ROLE {role} LOGIN REPLICATION PASSWORD 's3cret-{role}'"
        ));
    }
    cluster.reload();
}

#[test]
fn roles_that_may_replicate_and_no_more() {
    for installation in Installation::all_wanted() {
        let repository = Repository::local();
        let builder = Cluster::builder().installation(installation).tcp();
        let builder = builder.archive_command(&crate::pitr::archive_command());
        let primary = crate::pitr::with_environment(builder, &repository).start();
        let ledger = Ledger::create(&primary);
        ledger.write(10, 1000);
        with_passwords(&primary);
        let conninfo = |role: &str, password: &str| {
            format!(
                "host=127.0.0.1 port={} user={role} dbname=postgres password={password}",
                primary.tcp_port().unwrap()
            )
        };
        for role in ["scram", "md5", "plain"] {
            let outcome = remote(&repository, &conninfo(role, "s3cret-wrong"), &[]).run().code(17);
            let outcome = outcome.says("password authentication failed").says("for replication");
            assert!(!outcome.stderr.contains("s3cret"), "{outcome:?}");
            let none = remote(&repository, &conninfo(role, "''"), &[]).run().code(17);
            assert!(none.stderr.contains("password"), "{none:?}");
        }
        assert_eq!((manifests(&repository), parts(&repository)), (0, 0));
        // Nothing is in the repository yet: who may not end a segment needs one that is.
        primary.archive_everything(A_MINUTE);
        for role in ["scram", "md5", "plain"] {
            let before = jiff::Timestamp::now();
            let outcome = remote(&repository, &conninfo(role, &format!("s3cret-{role}")), &["--json"]).run();
            let backup = report(&outcome.quiet_success())["backup"].clone();
            let at = |what: &str| backup[what].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
            let (started, stopped) = (at("started"), at("stopped"));
            let second = jiff::SignedDuration::from_secs(1);
            assert!(started + second >= before && started <= stopped, "{before} {backup}");
            assert!(stopped <= jiff::Timestamp::now() + 5 * second, "{backup}");
        }
        ledger.write(10, 1000);
        primary.archive_everything(A_MINUTE);
        let Restored { cluster, home: _home } = restore(&repository, &[]);
        Account::of_servers().write(&cluster.data_dir().join("pg_hba.conf"), "local all all trust\n");
        cluster.start();
        cluster.wait_promoted(A_MINUTE);
        ledger.judge(&cluster, &Expect::at_least(ledger.tip())).unwrap();
    }
}

#[test]
fn over_tls() {
    let repository = Repository::local();
    // Not every build has TLS; the system's does.
    let mut installations = (14..=18).rev().filter_map(Installation::find);
    let of_system = |found: &&Installation| found.bin.starts_with("/usr/lib/postgresql");
    let installation = installations.find(of_system).expect("PostgreSQL of the system");
    let builder = Cluster::builder().installation(installation).tcp();
    let primary = crate::pitr::with_environment(builder.archive_command(&crate::pitr::archive_command()), &repository)
        .initialise();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (primary.data_dir().join("server.crt"), primary.data_dir().join("server.key"));
    Account::of_servers().write(&certificate, &made.cert.pem());
    Account::of_servers().write(&key, &made.signing_key.serialize_pem());
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    primary.configure("ssl = on");
    let rules = "local all all trust\nhostssl replication,all postgres 127.0.0.1/32 trust\n";
    Account::of_servers().write(&primary.data_dir().join("pg_hba.conf"), rules);
    primary.start();
    let port = primary.tcp_port().unwrap();
    let conninfo = |more: &str| format!("host=localhost hostaddr=127.0.0.1 port={port} user=postgres {more}");
    let root = certificate.display();
    for good in ["", "sslmode=require", &format!("sslmode=verify-full sslrootcert='{root}'")] {
        remote(&repository, &conninfo(good), &[]).run().quiet_success();
    }
    remote(&repository, &conninfo("sslmode=disable"), &[]).run().code(17).says("pg_hba.conf");
    let other = format!("host=127.0.0.1 port={port} user=postgres sslmode=verify-full sslrootcert='{root}'");
    remote(&repository, &other, &[]).run().code(17).says("certificate");
    assert_eq!(manifests(&repository), 3);
}

#[test]
fn a_server_that_does_not_archive_is_told_so() {
    let repository = Repository::local();
    let silent = Cluster::builder().conf("archive_mode = off").start();
    of(&repository, &silent, &[]).run().code(17).says("does not archive its WAL");
    let other = archiving(&repository, Installation::preferred(), 1);
    other.archive_everything(A_MINUTE);
    let stranger = Cluster::builder().archive_command("true").start();
    let outcome = of(&repository, &stranger, &[]).run();
    assert!(outcome.code == 1 || outcome.code == 17, "{outcome:?}");
    assert_eq!((manifests(&repository), parts(&repository)), (0, 0));
}
