//! A backup that waits for days: `expire` leaves it alone, however old its parts are.

use std::process::Command;
use std::time::Duration;

use crate::backups::{on_the_host, restores_whole};
use crate::ledger::Ledger;
use crate::pitr::{archive_command, archiving};
use crate::postgres::{Account, Installation};
use crate::program::{Call, finish};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

fn keys(repository: &Repository, below: &str) -> Vec<String> {
    repository.keys().into_iter().filter(|key| key.contains(below)).collect()
}

/// Objects that were written so long ago.
fn written(repository: &Repository, keys: &[String], ago: &str) {
    let root = repository.url();
    let root = root.strip_prefix("file://").unwrap();
    for key in keys {
        let done = Command::new("touch").args(["-d", &format!("{ago} ago"), &format!("{root}/{key}")]).status();
        assert!(done.unwrap().success());
    }
}

fn expire(repository: &Repository) {
    let words = ["expire", "--yes", "--force"];
    let call = Call::new(words).envs(repository.env()).env("PGARK_RETENTION__KEEP_FULL", "1");
    call.run().code(0);
}

#[test]
fn expire_leaves_a_backup_alone_that_waits_for_days() {
    for source in [&[][..], &["--remote"]] {
        let repository = Repository::local();
        let primary = archiving(&repository, Installation::preferred(), 1);
        let ledger = Ledger::create(&primary);
        ledger.write(20, 20_000);
        // The archiver works when the backup begins, and no longer when it ends.
        let call = on_the_host(&repository, &primary, &[&["basebackup", "--rate", "8MiB"], source].concat());
        let mut command = call.command();
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = Account::of_servers().run(&mut command).spawn().unwrap();
        primary.wait_until("copying", A_MINUTE, || !keys(&repository, "/record/restore/").is_empty());
        primary.configure("archive_command = 'false'");
        primary.reload();
        let all_there =
            || child.try_wait().unwrap().is_none() && primary.unarchived().iter().any(|name| name.ends_with(".backup"));
        primary.wait_until("waiting for its WAL", A_MINUTE, all_there);
        // The last part is stored after the end of the backup in the server.
        let mut parts = keys(&repository, "/part/");
        primary.wait_until("done with its parts", A_MINUTE, || {
            std::thread::sleep(Duration::from_millis(700));
            let before = std::mem::replace(&mut parts, keys(&repository, "/part/"));
            before == parts
        });

        written(&repository, &parts, "3 days");
        written(&repository, &keys(&repository, "/wal/"), "3 days");
        expire(&repository);
        assert_eq!(keys(&repository, "/part/"), parts, "parts of a backup at work were deleted");

        let archive = archive_command();
        primary.configure(&format!("archive_command = '{archive}'"));
        primary.reload();
        finish(child).quiet_success();
        assert_eq!(keys(&repository, "/record/restore/"), [""; 0], "the lease is released");
        restores_whole(&repository, &primary, &ledger);
    }
}

/// What a backup left that was killed.
#[test]
fn a_dead_lease_holds_nothing() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let ledger = Ledger::create(&primary);
    ledger.write(20, 20_000);
    let kept = crate::backups::take_backup(&repository, &primary, &[]);
    let call = on_the_host(&repository, &primary, &["basebackup", "--rate", "6MiB"]);
    let mut command = call.command();
    let mut child = Account::of_servers().run(&mut command).spawn().unwrap();
    primary.wait_until("storing", A_MINUTE, || {
        keys(&repository, "/part/").iter().any(|key| !key.contains(&kept) && key.ends_with(".zst"))
            || child.try_wait().unwrap().is_some()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let (parts, leases) = (|| keys(&repository, "/part/"), || keys(&repository, "/record/restore/"));
    let dead: Vec<String> = parts().into_iter().filter(|key| !key.contains(&kept) && key.ends_with(".zst")).collect();
    assert!(!dead.is_empty() && leases().len() == 1, "{dead:?}");
    written(&repository, &dead, "3 days");
    expire(&repository);
    assert!(dead.iter().all(|key| parts().contains(key)), "the lease is young: {:?}", parts());
    written(&repository, &leases(), "25 hours");
    expire(&repository);
    assert!(parts().iter().all(|key| key.contains(&kept)), "{:?}", parts());
    written(&repository, &leases(), "3 days");
    expire(&repository);
    assert_eq!(leases(), [""; 0]);
}
