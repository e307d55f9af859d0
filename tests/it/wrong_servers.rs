//! Backups of which one half is another server's: the files of a primary with the session of its standby, or the end of
//! another timeline than the start's.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::backups::{Restored, as_servers_user, backed_up, on_the_host, restored_at, take_backup};
use crate::ledger::Expect;
use crate::pitr::{archive_command, archiving, with_environment};
use crate::postgres::{Account, Cluster, Installation, StopMode};
use crate::program::{Call, finish};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

fn parts(repository: &Repository) -> usize {
    repository.keys().iter().filter(|key| key.contains("/part/")).count()
}

fn manifests(repository: &Repository) -> usize {
    repository.keys().iter().filter(|key| key.contains("/backup/") && key.contains("/manifest")).count()
}

fn files_and_session(repository: &Repository, files: &Cluster, session: &Cluster) -> Call {
    on_the_host(repository, files, &["basebackup"]).env("PGARK_CLUSTER__CONNINFO", session.endpoint().conninfo())
}

/// The lines of `postmaster.pid` that tell when a server was started, its port and its sockets.
fn forge(files: &Path, like: &Path) {
    let lines = |of: &Path| -> Vec<String> {
        let text = std::fs::read_to_string(of.join("postmaster.pid")).unwrap();
        text.lines().map(str::to_owned).collect()
    };
    let (mut mine, theirs) = (lines(files), lines(like));
    mine[2..5].clone_from_slice(&theirs[2..5]);
    Account::of_servers().write(&files.join("postmaster.pid"), &(mine.join("\n") + "\n"));
}

/// Both were started in the same moment, as when a host boots.
#[test]
fn the_files_of_a_primary_and_the_session_of_its_standby() {
    for installation in Installation::all_wanted() {
        let repository = Repository::local();
        let primary = archiving(&repository, installation, 1);
        take_backup(&repository, &primary, &[]);
        primary.archive_everything(A_MINUTE);
        let Restored { cluster: standby, home: _home } =
            restored_at(&repository, &["--standby"], with_environment(Cluster::builder(), &repository));
        standby.start();
        standby.stop(StopMode::Fast);
        primary.stop(StopMode::Fast);
        standby.start();
        primary.start();
        let before = parts(&repository);
        for (files, session) in [(&standby, &primary), (&primary, &standby)] {
            let call = files_and_session(&repository, files, session);
            as_servers_user(&call).code(2).says("no backup was made").says("does not run in").says("port");
        }
        // Were ports and sockets the same, as in two containers, `pg_control` still tells them apart.
        let of_standby = std::fs::read_to_string(standby.data_dir().join("postmaster.pid")).unwrap();
        forge(standby.data_dir(), primary.data_dir());
        as_servers_user(&files_and_session(&repository, &standby, &primary)).code(2).says("it is no standby");
        Account::of_servers().write(&standby.data_dir().join("postmaster.pid"), &of_standby);
        forge(primary.data_dir(), standby.data_dir());
        as_servers_user(&files_and_session(&repository, &primary, &standby)).code(2).says("it is a standby");
        assert_eq!((parts(&repository), manifests(&repository)), (before, 1));
    }
}

fn spawn(call: &Call) -> Child {
    let mut command = call.command();
    Account::of_servers().run(command.stdout(Stdio::piped()).stderr(Stdio::piped())).spawn().unwrap()
}

/// A standby follows another server to its timeline while it is backed up. The old primary goes on archiving the old timeline, so
/// that all segments of the label's timeline are there.
#[test]
fn a_standby_that_goes_to_another_timeline() {
    let repository = Repository::local();
    let (primary, ledger) = backed_up(&repository);
    let server = || {
        let builder = Cluster::builder().archive_command(&archive_command());
        with_environment(builder, &repository).conf("wal_retrieve_retry_interval = '100ms'")
    };
    let standbys = [0, 1].map(|_| restored_at(&repository, &["--standby", "--archive-mode", "keep"], server()));
    let [next, follower] = standbys.each_ref().map(|restored| &restored.cluster);
    for standby in [next, follower] {
        standby.start();
        standby.wait_until("caught up", A_MINUTE, || ledger.judge(standby, &Expect::at_least(ledger.tip())).is_ok());
    }
    follower.wait_until("at the same end", A_MINUTE, || next.current_lsn() == follower.current_lsn());

    let mut child = spawn(&on_the_host(&repository, follower, &["basebackup", "--rate", "1MiB", "--wal-wait", "10s"]));
    let started = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgark' \
                   AND state = 'idle' AND query ~ 'pg_(start_backup|backup_start)'";
    follower.wait_until("copying", A_MINUTE, || follower.value(started) == "1");
    next.promote();
    next.execute("CHECKPOINT");
    next.archive_everything(A_MINUTE);
    follower.wait_until("on the new timeline", A_MINUTE, || {
        follower.execute("CHECKPOINT");
        follower.value("SELECT min_recovery_end_timeline FROM pg_control_recovery()") == "2"
    });
    for _ in 0..8 {
        primary.archive_everything(A_MINUTE);
    }
    assert!(child.try_wait().unwrap().is_none(), "the backup was over too early");
    let outcome = finish(child).code(17).says("no backup was made");
    outcome.says("began on timeline 1, and the server is on timeline 2 now");
    assert_eq!(manifests(&repository), 1);
}
