//! A gap behind the target: PostgreSQL reads ahead and asks for the missing segment before it sees that it may stop. It comes to
//! the target all the same, and where it does not, it goes down: it is never promoted before.

use std::time::Duration;

use crate::backups::{Restored, as_servers_user, restore, restore_call, take_backup};
use crate::ledger::{Expect, Ledger, Mark, unexplained};
use crate::pitr::{archiving, restore_command};
use crate::postgres::{Cluster, Installation, Lsn, Scratch};
use crate::repository::{Repository, segment_key};

const A_MINUTE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const UNREACHABLE: i32 = 18;

/// A backup, a restore point, a few rows more in the same segment; the next segment is missing, and there are later ones.
struct Gap {
    repository: Repository,
    ledger: Ledger,
    mark: Mark,
    /// The end of the last segment before the gap, most of which is empty.
    end: Lsn,
    /// A transaction that did not end before the gap, though later ones did.
    open: String,
    missing: String,
    /// Behind the gap.
    behind: Mark,
    _primary: Cluster,
}

impl Gap {
    fn make(installation: &'static Installation) -> Self {
        let repository = Repository::local();
        let primary = archiving(&repository, installation, 1);
        let ledger = Ledger::create(&primary);
        ledger.write(5, 1000);
        take_backup(&repository, &primary, &[]);
        ledger.write(20, 20_000);
        primary.switch_wal();
        ledger.write(5, 1000);
        let mut session = primary.connect();
        let open = session.sql("BEGIN; SELECT pg_current_xact_id()").unwrap()[0][0].clone();
        let mark = ledger.restore_point("here");
        ledger.write(2, 1000);
        primary.switch_wal();
        let end = Lsn((ledger.tip().lsn.0 / MIB + 1) * MIB);
        ledger.write(3, 1000);
        let missing = primary.switch_wal();
        ledger.write(3, 1000);
        let behind = ledger.restore_point("behind the gap");
        ledger.write(3, 1000);
        primary.archive_everything(A_MINUTE);
        repository.remove(&segment_key(&missing));
        assert_eq!(end.segment_that_starts_here(1, MIB), missing, "the gap begins where the target's segment ends");
        Gap { repository, ledger, mark, end, open, missing, behind, _primary: primary }
    }

    /// A restore that starts, and goes down without having been promoted.
    fn goes_down(&self, words: &[&str], said: &str) {
        let Restored { cluster, home: _home } = restore(&self.repository, words);
        // It can be started again, and comes no further.
        for _ in 0..2 {
            cluster.launch();
            let log = cluster.wait_down(A_MINUTE);
            assert!(log.contains(said), "{words:?}: the log does not say `{said}`:\n{log}");
            for promoted in ["archive recovery complete", "selected new timeline"] {
                assert!(!log.contains(promoted), "{words:?}: the server was promoted:\n{log}");
            }
            assert!(cluster.data_dir().join("recovery.signal").exists(), "{words:?}");
        }
    }
}

fn targets(mark: &Mark, name: &str) -> [[String; 2]; 4] {
    let pair = |flag: &str, value: &str| [flag.to_owned(), value.to_owned()];
    [
        pair("--target-time", &mark.time_rfc3339()),
        pair("--target-lsn", &mark.position.lsn.to_string()),
        pair("--target-xid", &mark.xid),
        pair("--target-name", name),
    ]
}

#[test]
fn a_target_before_a_gap_is_reached() {
    for installation in Installation::all_wanted() {
        let gap = Gap::make(installation);
        let settings =
            |cluster: &Cluster| std::fs::read_to_string(cluster.data_dir().join("postgresql.auto.conf")).unwrap();
        for [flag, value] in targets(&gap.mark, "here") {
            let Restored { cluster, home: _home } = restore(&gap.repository, &[&flag, &value]);
            assert!(settings(&cluster).contains(&format!("--accept-end-at {}", gap.missing)), "{flag}");
            cluster.start();
            cluster.wait_promoted(A_MINUTE);
            let verdict = gap.ledger.judge(&cluster, &Expect::exactly(&gap.mark));
            verdict.unwrap_or_else(|why| panic!("{flag} on PostgreSQL {}: {why}", installation.version));
            assert_eq!(unexplained(&cluster.log(), &[]), [""; 0]);
        }
        // Without that word a server that reads ahead does not come there.
        if installation.major >= 15 {
            let (command, lsn) = (restore_command(), gap.mark.position.lsn.to_string());
            let words = ["--target-lsn", &lsn, "--restore-command", &command];
            gap.goes_down(&words, "there is a gap in the archive");
        }
        // What lies behind the gap is refused by the plan, and so is the end of the archive.
        for [flag, value] in targets(&gap.behind, "behind the gap") {
            refused(&gap, &[&flag, &value]);
        }
        refused(&gap, &[]);
    }
}

fn refused(gap: &Gap, words: &[&str]) {
    let home = Scratch::new("s");
    let outcome = as_servers_user(&restore_call(&gap.repository, &home.path().join("data"), words));
    outcome.code(UNREACHABLE).says("cannot be restored").says("later WAL is there").says(&gap.missing);
    assert!(!home.path().join("data").exists(), "a refused restore wrote something");
}

#[test]
fn a_target_that_is_not_reached_before_a_gap_is_no_promotion() {
    for installation in Installation::all_wanted() {
        let gap = Gap::make(installation);
        // In the empty rest of the last segment no record begins; and the transaction never ended.
        let nowhere = Lsn(gap.end.0 - 64).to_string();
        for words in [["--target-lsn", &nowhere], ["--target-xid", &gap.open]] {
            gap.goes_down(&words, "recovery ended before configured recovery target was reached");
        }
    }
}

/// The plan does not read content: a damaged segment behind the target's stops a server that reads ahead, and the remedy of the manual helps.
#[test]
fn a_damaged_segment_behind_the_target() {
    for installation in Installation::all_wanted() {
        let gap = Gap::make(installation);
        gap.repository.put(&segment_key(&gap.missing), b"damaged");
        let lsn = gap.mark.position.lsn.to_string();
        if installation.major >= 15 {
            gap.goes_down(&["--target-lsn", &lsn], "from archive");
        }
        let command = format!("{} wal-fetch --accept-end-at {} %f %p", crate::program::binary().display(), gap.missing);
        let Restored { cluster, home: _home } =
            restore(&gap.repository, &["--target-lsn", &lsn, "--restore-command", &command]);
        cluster.start();
        cluster.wait_promoted(A_MINUTE);
        gap.ledger.judge(&cluster, &Expect::exactly(&gap.mark)).unwrap();
    }
}
