//! What a backup needs besides the files that are found: tablespaces that are mounted, the history of its timeline, a repository
//! that is not among the files.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::backups::{Restored, as_servers_user, backed_up, on_the_host, restore, restored_at, take_backup};
use crate::ledger::{Expect, Ledger};
use crate::pitr::{archive_command, archiving, with_environment};
use crate::postgres::{Account, Cluster, Installation, Scratch};
use crate::program::{Call, finish};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);
const BAD_INPUT: i32 = 3;
const SERVER: i32 = 17;
const METHODS: [&[&str]; 2] = [&["basebackup"], &["basebackup", "--remote"]];

fn manifests(repository: &Repository) -> usize {
    repository.keys().iter().filter(|key| key.contains("/backup/") && key.contains("/manifest")).count()
}

fn rename(from: &Path, to: &Path) {
    let mut moving = Command::new("mv");
    assert!(Account::of_servers().run(moving.arg("-T").args([from, to])).status().unwrap().success());
}

fn make(directory: &Path) {
    fs::create_dir(directory).unwrap();
    Account::of_servers().own(directory);
}

/// The server runs on without it, and says nothing until somebody asks for a table.
#[test]
fn no_backup_without_a_tablespace_whose_disk_is_away() {
    for installation in Installation::all_wanted() {
        let repository = Repository::local();
        let primary = archiving(&repository, installation, 1);
        let disks = Scratch::new("disks");
        let (place, away) = (disks.path().join("fast"), disks.path().join("away"));
        make(&place);
        primary.execute(&format!("CREATE TABLESPACE fast LOCATION '{}'", place.display()));
        let ledger = Ledger::create(&primary);
        primary.execute("ALTER TABLE ledger SET TABLESPACE fast");
        ledger.write(20, 5000);
        primary.execute("CHECKPOINT");
        for mount_point in [false, true] {
            rename(&place, &away);
            if mount_point {
                make(&place);
            }
            for words in METHODS {
                let outcome = as_servers_user(&on_the_host(&repository, &primary, words)).code(BAD_INPUT);
                let outcome = outcome.says("no backup was made").says(&place.display().to_string());
                outcome.says("they would not be in the backup").says("hint: is its disk mounted?");
            }
            if mount_point {
                fs::remove_dir(&place).unwrap();
            }
            rename(&away, &place);
        }
        assert_eq!(manifests(&repository), 0);

        // It goes away while it is copied: what is not there any more is not taken for dropped.
        let slowly = on_the_host(&repository, &primary, &["basebackup", "--rate", "8MiB"]);
        let mut command = slowly.command();
        let child = Account::of_servers().run(command.stdout(Stdio::piped()).stderr(Stdio::piped())).spawn().unwrap();
        let holds = |key: &String| key.contains("/record/restore/");
        primary.wait_until("copying", A_MINUTE, || repository.keys().iter().any(holds));
        std::thread::sleep(Duration::from_millis(500));
        rename(&place, &away);
        finish(child).code(BAD_INPUT).says("no backup was made").says("they would not be in the backup");
        rename(&away, &place);
        assert_eq!(manifests(&repository), 0);

        // One that is dropped is no matter.
        make(&away);
        primary.execute(&format!("CREATE TABLESPACE passing LOCATION '{}'", away.display()));
        for words in METHODS {
            let slowly: Vec<&str> = words.iter().copied().chain(["--rate", "8MiB"]).collect();
            let before = repository.keys().iter().filter(|key| holds(key)).count();
            let mut command = on_the_host(&repository, &primary, &slowly).command();
            let child =
                Account::of_servers().run(command.stdout(Stdio::piped()).stderr(Stdio::piped())).spawn().unwrap();
            primary
                .wait_until("copying", A_MINUTE, || repository.keys().iter().filter(|key| holds(key)).count() > before);
            std::thread::sleep(Duration::from_millis(500));
            primary.execute("DROP TABLESPACE IF EXISTS passing");
            finish(child).quiet_success();
        }
        primary.archive_everything(A_MINUTE);
        let home = Scratch::new("new");
        let map = format!("{}={}/place", place.display(), home.path().display());
        let Restored { cluster, home: _home } = restore(&repository, &["--tablespace-map", &map]);
        cluster.start();
        cluster.wait_promoted(A_MINUTE);
        ledger.judge(&cluster, &Expect::at_least(ledger.tip())).unwrap();
    }
}

#[test]
fn no_backup_without_the_history_of_its_timeline() {
    let repository = Repository::local();
    let (_primary, ledger) = backed_up(&repository);
    let builder = with_environment(Cluster::builder().archive_command(&archive_command()), &repository);
    let Restored { cluster: next, home: _home } =
        restored_at(&repository, &["--standby", "--archive-mode", "keep"], builder);
    next.start();
    next.promote();
    next.execute("CHECKPOINT");
    next.archive_everything(A_MINUTE);
    let key = "main/1/wal/00000002/00000002.history.zst";
    assert!(repository.object(key).is_some());
    repository.remove(key);
    let (history, hidden) = (next.data_dir().join("pg_wal/00000002.history"), next.data_dir().join("hidden"));
    rename(&history, &hidden);
    let before = manifests(&repository);
    for words in METHODS {
        let call = on_the_host(&repository, &next, words).env("PGARK_BACKUP__ARCHIVE_WAIT", "5s");
        let outcome = as_servers_user(&call).code(SERVER).says("no backup was made");
        outcome.says("`00000002.history` is not in the repository").says("hint: `pgark wal-push --backfill`");
    }
    assert_eq!(manifests(&repository), before);
    rename(&hidden, &history);
    as_servers_user(&on_the_host(&repository, &next, &["wal-push", "--backfill"])).code(0);
    for words in METHODS {
        as_servers_user(&on_the_host(&repository, &next, words)).quiet_success();
        next.archive_everything(A_MINUTE);
        let Restored { cluster, home: _home } = restore(&repository, &[]);
        cluster.start();
        cluster.wait_promoted(A_MINUTE);
        ledger.judge(&cluster, &Expect::at_least(ledger.tip())).unwrap();
    }
}

#[test]
fn no_backup_into_what_is_backed_up() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let disks = Scratch::new("disks");
    primary.execute(&format!("CREATE TABLESPACE fast LOCATION '{}'", disks.path().display()));
    for place in [primary.data_dir().join("archive"), disks.path().join("archive")] {
        make(&place);
        let call = on_the_host(&repository, &primary, &["basebackup"]);
        let call = call.env("PGARK_REPO__URL", format!("file://{}", place.display()));
        as_servers_user(&call)
            .code(2)
            .says("no backup was made")
            .says("which is to be backed up")
            .says("hint: move it");
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
    }
    take_backup(&repository, &primary, &[]);
}

/// A report that nobody can read is no reason to say that there is no backup.
#[test]
fn a_report_that_cannot_be_written() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let call: Call = on_the_host(&repository, &primary, &["basebackup", "--json"]);
    let mut command = call.command();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let child = Account::of_servers().run(command.stdout(full).stderr(Stdio::piped())).spawn().unwrap();
    let outcome = child.wait_with_output().unwrap();
    let said = String::from_utf8(outcome.stderr).unwrap();
    assert_eq!(outcome.status.code(), Some(4), "{said}");
    assert!(said.contains("is whole, but nothing can tell of it") && said.contains("No space left"), "{said}");
    assert!(!said.contains("no backup was made"), "{said}");
    assert_eq!(manifests(&repository), 1);
}
