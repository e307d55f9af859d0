//! What a backup waits for: that WAL comes at all, before it copies, and all of it in the end, whatever happens to the session or
//! to the server's statistics meanwhile.

use std::process::{Child, Stdio};
use std::time::Duration;

use crate::backups::{Restored, as_servers_user, on_the_host, restored_at, restores_whole, take_backup};
use crate::double::{Fault, Op, Rule};
use crate::ledger::Ledger;
use crate::pitr::{archive_command, archiving, with_environment};
use crate::postgres::{Account, Cluster, Installation, StopMode};
use crate::program::{Call, finish};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

fn spawn(call: &Call) -> Child {
    let mut command = call.command();
    Account::of_servers().run(command.stdout(Stdio::piped()).stderr(Stdio::piped())).spawn().unwrap()
}

fn parts(repository: &Repository) -> usize {
    repository.keys().iter().filter(|key| key.contains("/part/")).count()
}

fn set_archive_command(cluster: &Cluster, command: &str) {
    cluster.configure(&format!("archive_command = '{command}'"));
    cluster.reload();
    cluster.wait_until("reloaded", A_MINUTE, || cluster.value("SHOW archive_command") == command);
}

/// Nothing of the primary comes into this repository any more: a standby's backup does not begin to copy.
#[test]
fn a_standby_whose_wal_does_not_come() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    take_backup(&repository, &primary, &[]);
    primary.archive_everything(A_MINUTE);
    let Restored { cluster: standby, home: _home } =
        restored_at(&repository, &["--standby"], with_environment(Cluster::builder(), &repository));
    standby.start();
    let before = parts(&repository);
    let keys = repository.keys();
    keys.iter().filter(|key| key.contains("/wal/")).for_each(|key| repository.remove(key));
    for words in [&["basebackup"][..], &["basebackup", "--remote"]] {
        let call = on_the_host(&repository, &standby, words).env("PGARK_BACKUP__ARCHIVE_WAIT", "2s");
        let outcome = as_servers_user(&call.env("PGARK_BACKUP__WAL_WAIT", "2s")).code(17);
        outcome
            .says("no backup was made")
            .says("was not archived within 2s")
            .says("the standby's primary must archive");
        if words.len() == 1 {
            assert_eq!(parts(&repository), before);
        }
    }
}

/// Begins a backup and lets it come to the point where it waits for its last WAL.
fn waiting_for_wal(repository: &Repository, primary: &Cluster) -> Child {
    let before = parts(repository);
    let call = on_the_host(repository, primary, &["basebackup", "--rate", "10MiB", "--wal-wait", "40s"]);
    let child = spawn(&call.impatient());
    primary.wait_until("copying", A_MINUTE, || {
        let started = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgark' \
                       AND state = 'idle' AND query ~ 'pg_(start_backup|backup_start)'";
        primary.value(started) == "1"
    });
    set_archive_command(primary, "false");
    primary.wait_until("done with the files", A_MINUTE, || {
        // After the stop it asks what was archived.
        let stopped = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgark' \
                       AND state = 'idle' AND query ~ 'pg_(stop_backup|backup_stop|stat_archiver|stat_replication)'";
        primary.value(stopped) == "1" && parts(repository) >= before + 2
    });
    child
}

#[test]
fn a_server_that_restarts_or_forgets_while_its_wal_is_waited_for() {
    let repository = Repository::s3();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let ledger = Ledger::create(&primary);
    ledger.write(10, 1000);

    // The session is lost: it is not needed any more.
    let child = waiting_for_wal(&repository, &primary);
    primary.configure(&format!("archive_command = '{}'", archive_command()));
    primary.stop(StopMode::Fast);
    primary.start();
    finish(child).quiet_success();

    // The statistics, which say what was archived, are reset between the archiving and the next look.
    let child = waiting_for_wal(&repository, &primary);
    let double = repository.double();
    double.fault(Rule::new(Fault::Status503).on(Op::List).key("/wal/"));
    set_archive_command(&primary, &archive_command());
    primary.wait_until("done archiving", A_MINUTE, || primary.unarchived().is_empty());
    primary.execute("SELECT pg_stat_reset_shared('archiver')");
    double.clear_faults();
    finish(child).quiet_success();

    ledger.write(10, 1000);
    restores_whole(&repository, &primary, &ledger);
}

/// A limit of a role on transactions, which PostgreSQL has since 17, is no limit on a spread checkpoint.
#[test]
fn a_role_with_a_short_transaction_timeout() {
    let Some(installation) = (17..=18).filter_map(Installation::find).next() else {
        eprintln!("not run: PostgreSQL 17 or 18 is not installed");
        return;
    };
    let repository = Repository::local();
    let primary = archiving(&repository, installation, 1);
    primary.configure("checkpoint_timeout = '30s'\ncheckpoint_completion_target = 0.2");
    primary.reload();
    primary.execute("CREATE TABLE dirty AS SELECT g, repeat('x', 500) FROM generate_series(1, 10000) g");
    primary.execute("ALTER ROLE postgres SET transaction_timeout = '500ms'");
    primary.execute("UPDATE dirty SET g = -g");
    take_backup(&repository, &primary, &["--checkpoint", "spread"]);
    let log = primary.log();
    assert!(!log.contains("transaction timeout"), "{log}");
}
