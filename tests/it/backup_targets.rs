//! Where a restore ends: before or behind the target, and on which of three timelines.

use std::time::Duration;

use crate::backups::{Restored, restore, restore_call, take_backup};
use crate::ledger::{Expect, Ledger, Mark};
use crate::pitr::{archiving, assert_clean};
use crate::postgres::{Cluster, Installation};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

fn recovered(repository: &Repository, words: &[&str]) -> Restored {
    let restored = restore(repository, words);
    restored.cluster.start();
    restored.cluster.wait_promoted(A_MINUTE);
    assert_clean(&restored.cluster);
    restored
}

/// One transaction at the edge: its row is there, or it is not, and nothing later ever is.
#[test]
fn a_target_is_inclusive_unless_told_otherwise() {
    for installation in Installation::all_wanted() {
        edge(&Repository::local(), installation);
    }
}

fn edge(repository: &Repository, installation: &'static Installation) {
    let primary = archiving(repository, installation, 1);
    primary.execute("CREATE TABLE edge (n int)");
    take_backup(repository, &primary, &[]);
    primary.execute("INSERT INTO edge VALUES (1)");
    let lsn = &primary.sql("BEGIN; INSERT INTO edge VALUES (2); SELECT pg_current_wal_insert_lsn(); COMMIT")[0][0];
    let row = &primary.sql(
        "SELECT xmin, to_char(pg_xact_commit_timestamp(xmin) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') \
         FROM edge WHERE n = 2",
    )[0];
    primary.execute("INSERT INTO edge VALUES (3)");
    primary.archive_everything(A_MINUTE);
    for target in [["--target-lsn", lsn], ["--target-xid", &row[0]], ["--target-time", &row[1]]] {
        for (more, expected) in [(&[][..], "1,2"), (&["--exclusive"][..], "1")] {
            let Restored { cluster, home: _home } = recovered(repository, &[&target, more].concat());
            let rows = cluster.value("SELECT string_agg(n::text, ',' ORDER BY n) FROM edge");
            assert_eq!(rows, expected, "{target:?} {more:?} on PostgreSQL {}", installation.version);
        }
    }
}

/// Three timelines, each forked from the one before, with a moment on each that the next one left behind.
struct Family {
    ledger: Ledger,
    /// Of timelines 1 and 2.
    backups: [String; 2],
    /// One on each timeline, behind the fork of the next.
    marks: [Mark; 3],
    /// The ends of the first two.
    ends: [crate::postgres::Position; 2],
    _servers: Vec<Cluster>,
    _homes: Vec<crate::postgres::Scratch>,
}

impl Family {
    fn grow(repository: &Repository, installation: &'static Installation) -> Self {
        let first = archiving(repository, installation, 1);
        let ledger = Ledger::create(&first);
        ledger.write(10, 5000);
        let first_backup = take_backup(repository, &first, &["--label", "one"]);
        let (first_fork, first_mark, first_end) = Self::live(&ledger, &first);
        let Restored { cluster: second, home: second_home } = Self::fork(repository, &ledger, &first_fork, 2);
        let second_backup = take_backup(repository, &second, &["--label", "two"]);
        let (second_fork, second_mark, second_end) = Self::live(&ledger, &second);
        let Restored { cluster: third, home: third_home } = Self::fork(repository, &ledger, &second_fork, 3);
        let (_, third_mark, _) = Self::live(&ledger, &third);
        Family {
            ledger,
            backups: [first_backup, second_backup],
            marks: [first_mark, second_mark, third_mark],
            ends: [first_end, second_end],
            _servers: vec![first, second, third],
            _homes: vec![second_home, third_home],
        }
    }

    /// Rows, a point to fork from, rows, a mark, rows. All archived.
    fn live(ledger: &Ledger, server: &Cluster) -> (Mark, Mark, crate::postgres::Position) {
        ledger.write(10, 5000);
        let fork = ledger.mark();
        ledger.write(10, 5000);
        let mark = ledger.mark();
        ledger.write(10, 5000);
        server.archive_everything(A_MINUTE);
        (fork, mark, ledger.tip())
    }

    fn fork(repository: &Repository, ledger: &Ledger, at: &Mark, timeline: u32) -> Restored {
        let lsn = at.position.lsn.to_string();
        let restored = recovered(repository, &["--target-lsn", &lsn, "--archive-mode", "keep"]);
        ledger.attach(&restored.cluster);
        ledger.judge(&restored.cluster, &Expect::exactly(at)).unwrap();
        assert_eq!(restored.cluster.timeline(), timeline);
        restored
    }
}

#[test]
fn three_timelines() {
    for installation in Installation::all_wanted() {
        timelines(&Repository::s3(), installation);
    }
}

fn timelines(repository: &Repository, installation: &'static Installation) {
    let Family { ledger, backups: [one, two], marks, ends, .. } = &Family::grow(repository, installation);
    let at = |mark: &Mark| ["--target-lsn".to_owned(), mark.position.lsn.to_string()];
    let time = |mark: &Mark| ["--target-time".to_owned(), mark.time_rfc3339()];
    let xid = |mark: &Mark| ["--target-xid".to_owned(), mark.xid.clone()];
    let on = |timeline: &str| ["--target-timeline".to_owned(), timeline.to_owned()];
    let from = |id: &str| vec![id.to_owned()];
    let cases: Vec<(Vec<String>, Expect)> = vec![
        // What the family went on from.
        (vec![], Expect::at_least(ledger.tip())),
        (from(one), Expect::at_least(ledger.tip())),
        (time(&marks[2]).into(), Expect::exactly(&marks[2])),
        ([&from(one)[..], &xid(&marks[2])].concat(), Expect::exactly(&marks[2])),
        // What it left behind.
        ([&on("1")[..], &at(&marks[0])].concat(), Expect::exactly(&marks[0])),
        ([&on("1")[..], &time(&marks[0])].concat(), Expect::exactly(&marks[0])),
        (on("1").into(), Expect::at_least(ends[0])),
        ([&on("2")[..], &xid(&marks[1])].concat(), Expect::exactly(&marks[1])),
        ([&from(one)[..], &on("2"), &time(&marks[1])].concat(), Expect::exactly(&marks[1])),
        (on("2").into(), Expect::at_least(ends[1])),
        ([&from(one)[..], &on("current")].concat(), Expect::at_least(ends[0])),
        ([&from(two)[..], &on("current"), &at(&marks[1])].concat(), Expect::exactly(&marks[1])),
    ];
    for (words, expected) in cases {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let Restored { cluster, home: _home } = recovered(repository, &words);
        let verdict = ledger.judge(&cluster, &expected);
        verdict.unwrap_or_else(|why| panic!("{words:?} on PostgreSQL {}: {why}", installation.version));
    }
}

/// A recovery to a moment before the fork of the timeline that it follows: PostgreSQL notes that timeline 2 was left before it began.
/// What timeline 1 wrote between the two does not lie on the way to timeline 3.
#[test]
fn back_before_a_fork() {
    for installation in Installation::all_wanted() {
        let repository = &Repository::local();
        let first = archiving(repository, installation, 1);
        first.execute("CREATE TABLE steps (n int)");
        take_backup(repository, &first, &["--label", "one"]);
        let step = |server: &Cluster, n: u32| {
            server.execute(&format!("INSERT INTO steps VALUES ({n})"));
            server.value("SELECT pg_current_wal_insert_lsn()")
        };
        let early = step(&first, 1);
        first.switch_wal();
        step(&first, 2);
        take_backup(repository, &first, &["--label", "beside"]);
        let late = step(&first, 3);
        step(&first, 4);
        first.archive_everything(A_MINUTE);
        let keep = ["--archive-mode", "keep"];
        let second = recovered(repository, &[&["--target-lsn", &late][..], &keep].concat());
        step(&second.cluster, 5);
        second.cluster.archive_everything(A_MINUTE);
        let third = recovered(repository, &[&["--target-lsn", &early][..], &keep].concat());
        assert_eq!(third.cluster.timeline(), 3);
        let after = step(&third.cluster, 6);
        // As far as the backup beside the way, and farther.
        for _ in 0..8 {
            third.cluster.execute("CREATE TABLE IF NOT EXISTS filler (n int); INSERT INTO filler VALUES (1)");
            third.cluster.switch_wal();
        }
        step(&third.cluster, 7);
        third.cluster.archive_everything(A_MINUTE);
        let history = std::fs::read_to_string(third.cluster.data_dir().join("pg_wal/00000003.history")).unwrap();
        let switches: Vec<crate::postgres::Lsn> =
            history.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse().ok()).collect();
        assert!(switches.len() == 2 && switches[1] < switches[0], "{history}");

        for (words, expected) in
            [(&[][..], "1,6,7"), (&["--target-lsn", &after][..], "1,6"), (&["--target-timeline", "2"][..], "1,2,3,5")]
        {
            let Restored { cluster, home: _home } = recovered(repository, words);
            let rows = cluster.value("SELECT string_agg(n::text, ',' ORDER BY n) FROM steps");
            assert_eq!(rows, expected, "{words:?} on PostgreSQL {}", installation.version);
            let label = std::fs::read_to_string(cluster.data_dir().join("backup_label.old")).unwrap();
            assert_eq!(label.contains("LABEL: one\n"), !words.contains(&"2"), "{words:?}: {label}");
        }
    }
}

/// The server came to its timeline before pgark did, and nobody has the history file any more.
#[test]
fn a_timeline_of_which_nobody_knows_where_it_comes_from() {
    for installation in Installation::all_wanted() {
        let repository = &Repository::local();
        let first = archiving(repository, installation, 1);
        first.execute("CREATE TABLE steps (n int)");
        take_backup(repository, &first, &[]);
        first.archive_everything(A_MINUTE);
        let second = recovered(repository, &["--archive-mode", "keep"]);
        let id = take_backup(repository, &second.cluster, &[]);
        second.cluster.execute("INSERT INTO steps VALUES (1)");
        let lsn = second.cluster.value("SELECT pg_current_wal_insert_lsn()");
        second.cluster.execute("INSERT INTO steps VALUES (2)");
        second.cluster.archive_everything(A_MINUTE);
        second.cluster.stop(crate::postgres::StopMode::Fast);
        repository.remove("main/1/wal/00000002/00000002.history.zst");
        for (words, expected) in
            [(&[][..], "1,2"), (&["--target-lsn", &lsn], "1"), (&["--target-timeline", "current"], "1,2")]
        {
            let call =
                restore_call(repository, std::path::Path::new("/nonexistent"), &[words, &["--dry-run"]].concat());
            let plan = call.run().code(0).stdout;
            assert!(plan.contains(&id) && plan.contains("`00000002.history` is missing"), "{plan}");
            let Restored { cluster, home: _home } = recovered(repository, words);
            assert_eq!(cluster.value("SELECT string_agg(n::text, ',' ORDER BY n) FROM steps"), expected, "{words:?}");
            assert_eq!(cluster.timeline(), 3);
        }
    }
}

/// PostgreSQL stops at the first restore point of a name that it meets, also within the backup, and then it refuses.
#[test]
fn a_restore_point_of_a_name_that_is_used_again() {
    for installation in Installation::all_wanted() {
        let repository = &Repository::local();
        let first = archiving(repository, installation, 1);
        first.execute("CREATE TABLE steps (n int)");
        let step = |n: u32| {
            first.execute(&format!("INSERT INTO steps VALUES ({n})"));
            first.execute("SELECT pg_create_restore_point('nightly')");
        };
        let one = take_backup(repository, &first, &[]);
        step(1);
        first.switch_wal();
        // While the second backup is taken.
        let busy = std::sync::atomic::AtomicBool::new(true);
        let two = std::thread::scope(|scope| {
            scope.spawn(|| {
                while busy.load(std::sync::atomic::Ordering::SeqCst) {
                    first.execute("SELECT pg_create_restore_point('nightly')");
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            let id = take_backup(repository, &first, &["--rate", "20MiB"]);
            busy.store(false, std::sync::atomic::Ordering::SeqCst);
            id
        });
        step(2);
        first.execute("INSERT INTO steps VALUES (3)");
        first.archive_everything(A_MINUTE);
        let name = ["--target-name", "nightly"];
        let data = std::path::Path::new("/nonexistent");
        let of_two = restore_call(repository, data, &[&[&two[..]][..], &name, &["--dry-run"]].concat()).run();
        of_two.code(18).says("within the backup").says("--target-lsn");
        let plan = restore_call(repository, data, &[&name[..], &["--dry-run"]].concat()).run().code(0).stdout;
        assert!(plan.contains(&one) && plan.contains("was made again"), "{plan}");
        let Restored { cluster, home: _home } = recovered(repository, &name);
        assert_eq!(cluster.value("SELECT string_agg(n::text, ',' ORDER BY n) FROM steps"), "1");
    }
}

/// A server was promoted in the middle of a segment that the archive does not have, as the manual brings it, and has archived its
/// history alone: the latest is the end of the segment before, and from there things go on.
#[test]
fn before_the_first_segment_of_a_timeline_is_archived() {
    for installation in Installation::all_wanted() {
        let repository = &Repository::local();
        let first = archiving(repository, installation, 1);
        first.execute("CREATE TABLE steps (n int)");
        take_backup(repository, &first, &[]);
        first.execute("INSERT INTO steps VALUES (1)");
        first.archive_everything(A_MINUTE);
        first.execute("INSERT INTO steps VALUES (2)");
        first.kill_9();
        let keep = ["--archive-mode", "keep"];
        let rows = |server: &Cluster| server.value("SELECT string_agg(n::text, ',' ORDER BY n) FROM steps");

        let second = restore(repository, &keep);
        let script = "cp -n $0/pg_wal/00000001???????????????? $1/pg_wal/ || true";
        let mut copying = std::process::Command::new("sh");
        copying.args(["-c", script]).arg(first.data_dir()).arg(second.cluster.data_dir());
        assert!(crate::postgres::Account::of_servers().run(&mut copying).status().unwrap().success());
        second.cluster.start();
        second.cluster.wait_promoted(A_MINUTE);
        assert_eq!(rows(&second.cluster), "1,2");
        let history = "main/1/wal/00000002/00000002.history.zst";
        second.cluster.wait_until("the history is archived", A_MINUTE, || repository.object(history).is_some());
        assert!(
            !repository.keys().iter().any(|key| key.contains("/wal/00000002/00000000/")),
            "{:?}",
            repository.keys()
        );

        let call = restore_call(repository, std::path::Path::new("/nonexistent"), &["--dry-run"]);
        assert!(call.run().quiet_success().stdout.contains("nothing that timeline 2 wrote since"));
        let third = recovered(repository, &keep);
        assert_eq!((rows(&third.cluster), third.cluster.timeline()), ("1".to_owned(), 3));
        third.cluster.execute("INSERT INTO steps VALUES (3)");
        third.cluster.archive_everything(A_MINUTE);
        assert_eq!(rows(&recovered(repository, &[]).cluster), "1,3");
        // And the one before goes on, too.
        second.cluster.execute("INSERT INTO steps VALUES (4)");
        second.cluster.archive_everything(A_MINUTE);
        assert_eq!(rows(&recovered(repository, &["--target-timeline", "2"]).cluster), "1,2,4");
        assert_eq!(rows(&recovered(repository, &[]).cluster), "1,3");
    }
}
