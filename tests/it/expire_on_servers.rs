//! What `expire` leaves of a real cluster's repository can be restored, also when a backup is taken meanwhile.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::backups::{Restored, as_servers_user, on_the_host, restore, take_backup};
use crate::ledger::{Expect, Ledger, integrity};
use crate::pitr::{archiving, assert_clean};
use crate::postgres::Installation;
use crate::program::{Call, finish};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86400);

/// Makes what is younger than an hour look older.
fn age(repository: &Repository, by: Duration) {
    let root = repository.url();
    let root = Path::new(root.trim_start_matches("file://"));
    for key in repository.keys() {
        let file = std::fs::File::options().append(true).open(root.join(key)).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        if modified.elapsed().is_ok_and(|age| age < Duration::from_secs(3600)) {
            file.set_modified(SystemTime::now() - by).unwrap();
        }
    }
}

#[test]
fn what_is_left_can_be_restored() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let ledger = Ledger::create(&primary);
    let write = |rows| {
        ledger.write(rows, 20_000);
        primary.archive_everything(A_MINUTE);
    };
    write(10);
    let marked = take_backup(&repository, &primary, &["--keep"]);
    write(200);
    let oldest_moment = ledger.restore_point("out of the window");
    write(200);
    age(&repository, DAY * 20);
    let unwanted = take_backup(&repository, &primary, &[]);
    write(50);
    let before_window = take_backup(&repository, &primary, &[]);
    write(50);
    age(&repository, DAY * 10);
    write(50);
    let moment = ledger.restore_point("in the window");
    write(50);
    age(&repository, DAY * 3);
    let newest = take_backup(&repository, &primary, &[]);
    write(20);

    // While another backup is taken.
    let call = on_the_host(&repository, &primary, &["basebackup", "--rate", "8MiB", "--json"]);
    let running = std::thread::spawn(move || as_servers_user(&call));
    std::thread::sleep(Duration::from_secs(1));
    let expire = Call::new(["expire", "--force"])
        .envs(repository.env())
        .env("PGARK_RETENTION__KEEP_FULL", "1")
        .env("PGARK_RETENTION__WAL_WITHIN", "5d");
    let before = repository.keys().len();
    let expired = finish(expire.spawn());
    assert_eq!((expired.code, expired.stderr.as_str()), (0, ""), "{expired:?}");
    let meanwhile = running.join().unwrap();
    assert_eq!(meanwhile.code, 0, "{meanwhile:?}");
    assert!(repository.keys().len() + 8 < before, "{before} objects before, and {}", repository.keys().len());
    let has = |id: &str| repository.keys().iter().any(|key| key.contains(&format!("/{id}/manifest")));
    assert_eq!([&marked, &unwanted, &before_window, &newest].map(|id| has(id)), [true, false, true, true]);
    write(20);

    let verified = Call::new(["verify"]).envs(repository.env()).run().quiet_success();
    assert!(verified.stdout.ends_with("no damage was found\n"), "{verified:?}");
    let reach = |words: &[&str], expect: &Expect| {
        let Restored { cluster, home: _home } = restore(&repository, words);
        cluster.start();
        cluster.wait_promoted(A_MINUTE);
        ledger.judge(&cluster, expect).unwrap_or_else(|why| panic!("{words:?}: {why}"));
        assert_clean(&cluster);
        integrity(&cluster).unwrap();
    };
    reach(&["--target-name", "in the window"], &Expect::exactly(&moment));
    reach(&[&before_window, "--target-name", "in the window"], &Expect::exactly(&moment));
    reach(&[], &Expect::at_least(ledger.tip()));
    // The marked one can be restored to its own end, and to nothing behind it.
    let Restored { cluster, home: _home } = restore(&repository, &[&marked, "--target-immediate"]);
    cluster.start();
    cluster.wait_promoted(A_MINUTE);
    integrity(&cluster).unwrap();
    let lsn = oldest_moment.position.lsn.to_string();
    let home = crate::postgres::Scratch::new("s");
    let gone = crate::backups::restore_call(&repository, &home.path().join("data"), &["--target-lsn", &lsn]);
    assert_ne!(as_servers_user(&gone).code, 0);
}
