//! Where a restore ends: before or behind the target, and on which of three timelines.

use std::time::Duration;

use crate::backups::{Restored, restore, take_backup};
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
