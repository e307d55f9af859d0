//! Tests of the harness itself, on every wanted major: servers start, archive, are copied, recovered, killed and
//! promoted; and the ledger accepts what is right and objects to every kind of wrong.

use std::{os::unix::fs::MetadataExt, path::Path, process::Command, time::Duration};

use super::*;
use crate::ledger::{Expect, Ledger};

const SECONDS_30: Duration = Duration::from_secs(30);

/// An archive made of `cp`.
struct Shelf(Scratch);

impl Shelf {
    fn new() -> Shelf {
        Shelf(Scratch::new("shelf"))
    }

    fn archive_command(&self) -> String {
        let shelf = self.0.path().display();
        format!("test ! -f '{shelf}/%f' && cp '%p' '{shelf}/%f.new' && mv '{shelf}/%f.new' '{shelf}/%f'")
    }

    fn restore_command(&self) -> String {
        format!("cp '{}/%f' '%p'", self.0.path().display())
    }

    fn cluster(&self, installation: &'static Installation) -> Cluster {
        Cluster::builder().installation(installation).archive_command(&self.archive_command()).start()
    }

    fn recovered(&self, backup: &BaseBackup, target: RecoveryTarget) -> Cluster {
        let cluster = Cluster::from_basebackup(backup);
        cluster.configure_recovery(&Recovery::new(self.restore_command(), target));
        cluster.start();
        cluster.wait_promoted(SECONDS_30);
        cluster
    }
}

fn on_each_major(test: impl Fn(&'static Installation)) {
    for installation in Installation::all_wanted() {
        eprintln!("PostgreSQL {} in {}", installation.version, installation.bin.display());
        test(installation);
    }
}

#[test]
fn recovers_to_a_time_and_to_the_latest_and_the_judge_tells_them_apart() {
    on_each_major(|installation| {
        let shelf = Shelf::new();
        let cluster = shelf.cluster(installation);
        let ledger = Ledger::create(&cluster);
        ledger.write(20, 500);
        let backup = cluster.base_backup();
        backup.verify().unwrap();
        ledger.write(10, 2000);
        let mark = ledger.mark();
        ledger.write(10, 10);
        cluster.archive_everything(SECONDS_30);

        let at_time = shelf.recovered(&backup, RecoveryTarget::Time(mark.time.clone()));
        let verdict = ledger.judge(&at_time, &Expect::exactly(&mark)).unwrap();
        assert_eq!((verdict.rows, verdict.last_row), (30, mark.row));
        let objections = ledger.judge(&at_time, &Expect::at_least(ledger.tip())).unwrap_err();
        assert!(objections.contains("row 31 is missing, committed before"), "{objections}");
        assert_eq!(at_time.timeline(), 2);
        assert_eq!(at_time.system_id(), cluster.system_id());
        assert!(at_time.log().contains("restored log file"), "{}", at_time.log());
        integrity(&at_time).unwrap();
        assert_eq!(unexplained(&at_time.log(), &[]), [""; 0]);

        let latest = shelf.recovered(&backup, RecoveryTarget::Latest);
        assert_eq!(ledger.judge(&latest, &Expect::at_least(ledger.tip())).unwrap().rows, 40);
        let objections = ledger.judge(&latest, &Expect::exactly(&mark)).unwrap_err();
        assert!(objections.contains("row 31 is there, committed after"), "{objections}");
        judge_objects_to_damage(&ledger, &latest);
        let table = latest.data_dir().join(latest.value("SELECT pg_relation_filepath('ledger')"));
        integrity(&latest).unwrap();
        let mut pages = std::fs::read(&table).unwrap();
        pages[8000] ^= 1;
        std::fs::write(&table, pages).unwrap();
        latest.start();
        integrity(&latest).expect_err("a damaged page");
        assert_eq!(unexplained(&latest.log(), &[]), [""; 0]);
        assert_eq!(ledger.acknowledged(), 40);
        assert_eq!(std::fs::read_to_string(ledger.path()).unwrap().matches("commit\t").count(), 40);
    });
}

/// Breaks a sound server in one way after the other.
fn judge_objects_to_damage(ledger: &Ledger, server: &Cluster) {
    let sound = Expect::at_least(ledger.tip());
    let cases = [
        ("DELETE FROM ledger WHERE id = 7", "row 7 is missing"),
        ("DELETE FROM ledger WHERE id = 40", "row 40 is missing"),
        ("INSERT INTO ledger VALUES (1000, '', '')", "row 1000 was never written"),
        (
            "UPDATE ledger SET payload = set_byte(payload, 3, get_byte(payload, 3) # 1) WHERE id = 9",
            "row 9 is not what",
        ),
        ("UPDATE ledger SET payload = ''", "40 objections"),
        ("DROP TABLE ledger", "40 objections"),
    ];
    for (damage, objection) in cases {
        server.execute(&format!("CREATE TABLE sound AS SELECT * FROM ledger; {damage}"));
        let said = ledger.judge(server, &sound).expect_err(damage);
        assert!(said.contains(objection), "after `{damage}`: {said}");
        server.execute(
            "DROP TABLE IF EXISTS ledger; ALTER TABLE sound RENAME TO ledger; ALTER TABLE ledger ADD PRIMARY KEY (id)",
        );
        ledger.judge(server, &sound).unwrap();
    }
    // A hole before the newest row is damage even where none of the rows is asked for.
    let nothing = Expect::at_least(Position { timeline: 1, lsn: Lsn(0) });
    server.execute("CREATE TABLE sound AS SELECT * FROM ledger; DELETE FROM ledger WHERE id = 33");
    let said = ledger.judge(server, &nothing).unwrap_err();
    assert!(said.contains("row 33 is missing, and later rows are there"), "{said}");
    server.execute("DELETE FROM ledger WHERE id >= 33");
    ledger.judge(server, &nothing).unwrap();
}

#[test]
fn recovers_to_every_other_kind_of_target() {
    on_each_major(|installation| {
        let shelf = Shelf::new();
        let cluster = shelf.cluster(installation);
        let ledger = Ledger::create(&cluster);
        ledger.write(5, 100);
        let copied = ledger.mark();
        let backup = cluster.base_backup();
        ledger.write(5, 100);
        let first = ledger.mark();
        ledger.write(5, 100);
        let second = ledger.restore_point("before the accident");
        ledger.write(5, 100);
        cluster.archive_everything(SECONDS_30);

        let judged = |target, expect: &Expect| {
            let server = shelf.recovered(&backup, target);
            let verdict = ledger.judge(&server, expect).unwrap();
            assert_eq!(unexplained(&server.log(), &[]), [""; 0]);
            verdict.last_row
        };
        assert_eq!(judged(RecoveryTarget::Lsn(first.position.lsn), &Expect::exactly(&first)), 10);
        assert_eq!(judged(RecoveryTarget::Xid(first.xid.clone()), &Expect::exactly(&first)), 10);
        assert_eq!(judged(RecoveryTarget::Name("before the accident".into()), &Expect::exactly(&second)), 15);
        assert_eq!(judged(RecoveryTarget::Immediate, &Expect::between(&copied, &first)), 5);
    });
}

#[test]
fn a_server_that_cannot_reach_its_target_goes_down_and_its_log_is_unexplained() {
    on_each_major(|installation| {
        let shelf = Shelf::new();
        let cluster = shelf.cluster(installation);
        let backup = cluster.base_backup();
        let restored = Cluster::from_basebackup(&backup);
        restored.configure_recovery(&Recovery::new(shelf.restore_command(), RecoveryTarget::Lsn(Lsn(1 << 40))));
        restored.launch();
        let log = restored.wait_down(SECONDS_30);
        assert!(!restored.is_running());
        assert_eq!(unexplained(&log, &[]).len(), 1, "{log}");
        assert_eq!(unexplained(&log, &["recovery ended before configured recovery target was reached"]), [""; 0]);

        cluster.stop(StopMode::Smart);
        cluster.configure("no_such_setting = 1");
        let log = cluster.start_expecting_failure();
        assert!(log.contains("no_such_setting"), "{log}");
    });
}

#[test]
fn rows_survive_kill_9_and_no_process_does() {
    on_each_major(|installation| {
        // A command that is still there when everything else is killed.
        let cluster = Cluster::builder().installation(installation).archive_command("sleep 1000").start();
        let ledger = Ledger::create(&cluster);
        let writer = ledger.write_in_background(200, 300);
        cluster.wait_until("30 rows", SECONDS_30, || ledger.acknowledged() >= 30);
        let mark = ledger.mark();
        let segment = cluster.switch_wal();
        cluster.wait_until("archiving", SECONDS_30, || {
            processes::inhabitants(cluster.data_dir()).iter().any(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("sleep"))
            })
        });
        assert!(!cluster.is_archived(&segment));
        assert!(cluster.unarchived().contains(&segment));
        cluster.kill_9();
        assert!(processes::inhabitants(cluster.data_dir()).is_empty());
        assert!(!cluster.is_running() && !cluster.is_ready());
        let report = writer.stop();
        assert!(report.ended_by.is_some() && report.rows as usize == ledger.acknowledged(), "{report:?}");

        cluster.start();
        assert!(cluster.is_ready() && !cluster.is_in_recovery());
        ledger.judge(&cluster, &Expect::at_least(ledger.tip())).unwrap();
        assert!(ledger.judge(&cluster, &Expect::exactly(&mark)).is_ok() == (mark.row as u32 == report.rows));
        ledger.write(3, 30);
        ledger.judge(&cluster, &Expect::at_least(ledger.tip())).unwrap();
        cluster.kill_9_postmaster();
        // The archiver goes on waiting for its command.
        cluster.wait_until("alone", SECONDS_30, || processes::inhabitants(cluster.data_dir()).len() <= 3);
    });
}

#[test]
fn the_ledger_follows_a_promotion() {
    on_each_major(|installation| {
        let shelf = Shelf::new();
        let primary = shelf.cluster(installation);
        let ledger = Ledger::create(&primary);
        ledger.write(5, 100);
        let backup = primary.base_backup();
        let standby = Cluster::from_basebackup(&backup);
        standby.configure_standby(&shelf.restore_command(), None);
        standby.start();
        assert!(standby.is_in_recovery());
        ledger.write(5, 100);
        let shared = ledger.mark();
        primary.archive_everything(SECONDS_30);
        standby.wait_until("caught up", SECONDS_30, || standby.current_lsn() >= shared.position.lsn);
        ledger.judge(&standby, &Expect::exactly(&shared)).unwrap();

        // Written, acknowledged, and lost with the primary.
        ledger.write(5, 100);
        let (lost, lost_tip) = (ledger.mark(), ledger.tip());
        primary.kill_9();
        standby.promote();
        ledger.attach(&standby);
        ledger.write(5, 100);
        assert_eq!(ledger.tip().timeline, 2);
        standby.archive_everything(SECONDS_30);

        let restored = shelf.recovered(&backup, RecoveryTarget::Latest);
        assert_eq!(restored.timeline(), 3);
        let verdict = ledger.judge(&restored, &Expect::at_least(ledger.tip())).unwrap();
        assert_eq!((verdict.rows, verdict.last_row), (15, 20));
        assert!(ledger.judge(&restored, &Expect::at_least(lost_tip)).is_err());
        primary.start();
        assert_eq!(ledger.judge(&primary, &Expect::exactly(&lost)).unwrap().last_row, 15);
        assert!(ledger.judge(&primary, &Expect::at_least(ledger.tip())).is_err());
    });
}

#[test]
fn a_standby_streams() {
    on_each_major(|installation| {
        let shelf = Shelf::new();
        let primary = shelf.cluster(installation);
        let ledger = Ledger::create(&primary);
        let standby = Cluster::from_basebackup(&primary.base_backup());
        standby.configure_standby(&shelf.restore_command(), Some(&primary.endpoint().conninfo()));
        standby.start();
        let writer = ledger.write_in_background(500, 100);
        primary.wait_until("20 rows", SECONDS_30, || ledger.acknowledged() >= 20);
        let report = writer.stop();
        assert_eq!(report.ended_by, None);
        let mark = ledger.mark();
        standby.wait_until("caught up", SECONDS_30, || standby.current_lsn() >= mark.position.lsn);
        ledger.judge(&standby, &Expect::exactly(&mark)).unwrap();
        assert!(primary.stop(StopMode::Fast) < SECONDS_30);
        assert_eq!(unexplained(&primary.log(), &[]), [""; 0]);
    });
}

#[test]
fn segments_of_other_sizes_and_a_tcp_port() {
    on_each_major(|installation| {
        let shelf = Shelf::new();
        let builder = Cluster::builder().installation(installation).archive_command(&shelf.archive_command());
        let cluster = builder.wal_segment_mib(64).checksums(false).tcp().env("SOME_NAME", "value").start();
        assert_eq!(cluster.segment_bytes(), 64 << 20);
        assert_eq!(cluster.value("SHOW data_checksums"), "off");
        for _ in 0..3 {
            let segment = cluster.archive_everything(SECONDS_30);
            let stored = std::fs::metadata(shelf.0.path().join(segment)).unwrap();
            assert_eq!((stored.len(), stored.uid()), (64 << 20, Account::of_servers().uid));
        }
        std::net::TcpStream::connect(("127.0.0.1", cluster.tcp_port().unwrap())).unwrap();
        let environment = std::fs::read(format!("/proc/{}/environ", cluster.postmaster().unwrap())).unwrap();
        let environment = String::from_utf8_lossy(&environment).into_owned();
        assert!(environment.contains("SOME_NAME=value") && !environment.contains("CARGO"), "{environment}");
    });
}

#[test]
fn the_binary_is_copied_once_and_runs_as_the_servers_user() {
    let copy = installed_binary(Path::new("/usr/bin/id"));
    assert_eq!(copy, installed_binary(Path::new("/usr/bin/id")));
    let output = Account::of_servers().run(Command::new(copy).arg("-u")).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), Account::of_servers().uid.to_string());
}

#[test]
fn positions_and_segments_have_postgres_names() {
    let lsn: Lsn = "1/2A0000F8".parse().unwrap();
    assert_eq!(lsn.to_string(), "1/2A0000F8");
    assert_eq!(lsn.segment_that_starts_here(3, 16 << 20), "00000003000000010000002A");
    assert_eq!(Lsn(1 << 32).segment_that_ends_here(1, 1 << 20), "000000010000000000000FFF");
    assert_eq!(Lsn(1 << 32).segment_that_starts_here(1, 1 << 20), "000000010000000100000000");
    assert!("1-2".parse::<Lsn>().is_err());
}
