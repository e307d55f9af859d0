//! What a restore refuses, or warns of, before it touches anything: each was found by somebody who tried to do harm.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::backups::{as_servers_user, restore_call, take_backup};
use crate::double::{Fault, Op, Rule};
use crate::pitr::archiving;
use crate::postgres::{Account, Cluster, Installation, Scratch, StopMode};
use crate::program::{Call, Outcome, finish};
use crate::repository::Repository;
use crate::restore_faults::manifest_key;
use crate::restore_over::{assert_same, tree};

const A_MINUTE: Duration = Duration::from_secs(60);

fn start(call: &Call) -> std::process::Child {
    let mut command = call.command();
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    Account::of_servers().run(&mut command).spawn().expect("pgark can be started")
}

fn stopped_primary(repository: &Repository) -> (Cluster, String) {
    let primary = archiving(repository, Installation::preferred(), 1);
    primary.execute("create table t as select generate_series(1, 1000) as i");
    let id = take_backup(repository, &primary, &[]);
    primary.archive_everything(A_MINUTE);
    primary.stop(StopMode::Fast);
    (primary, id)
}

fn delta(repository: &Repository, to: &Path, words: &[&str]) -> Outcome {
    as_servers_user(&restore_call(repository, to, &[&["--delta"], words].concat()))
}

/// `expire` deletes between the plan and the lease: WAL, parts or the manifest. The old cluster can still be started.
#[test]
fn what_is_deleted_behind_the_plan_is_seen_before_anything_is_touched() {
    let repository = Repository::s3();
    let double = repository.double();
    let (primary, id) = stopped_primary(&repository);
    let before = tree(primary.data_dir());
    let of = |part: &str| repository.keys().into_iter().filter(|key| key.contains(part)).collect::<Vec<_>>();
    let wal = of("/wal/");
    let losses = [wal[wal.len() - 3..].to_vec(), of(&format!("{id}/part/")), vec![manifest_key(&id)]];
    for lost in losses {
        let rule = double.fault(Rule::new(Fault::Silence).on(Op::Put).key("record/restore/").once());
        let call = restore_call(&repository, primary.data_dir(), &["--delta"]).env("PGARK_REPO__REQUEST_TIMEOUT", "3s");
        let running = start(&call);
        let begun = Instant::now();
        while double.fired(rule) == 0 {
            assert!(begun.elapsed() < A_MINUTE, "no lease is written");
            std::thread::sleep(Duration::from_millis(5));
        }
        let kept: Vec<_> = lost.iter().map(|key| (key.clone(), repository.object(key).unwrap())).collect();
        lost.iter().for_each(|key| repository.remove(key));
        finish(running)
            .code(18)
            .says("was deleted since the plan was made")
            .says("nothing was written or removed here");
        assert_same(&before, &tree(primary.data_dir()));
        assert_eq!(of("record/restore/"), [] as [String; 0], "a lease of what is not there");
        kept.iter().for_each(|(key, bytes)| repository.put(key, bytes));
        double.clear_faults();
    }
    delta(&repository, primary.data_dir(), &[]).code(0);
}

/// A copy of a data directory has the original's links: under `--delta` its tablespaces are those of the server that lives.
#[test]
fn delta_over_a_copied_directory_leaves_the_originals_tablespaces() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let (space, home) = (Scratch::new("space"), Scratch::new("copy"));
    let place = space.path().display().to_string();
    primary.execute(&format!("create tablespace apart location '{place}'"));
    primary.execute("create table far tablespace apart as select generate_series(1, 1000) as i");
    take_backup(&repository, &primary, &[]);
    primary.archive_everything(A_MINUTE);
    let copy = home.path().join("data");
    let script = "cp -a $0 $1 && rm $1/postmaster.pid";
    let mut copying = Command::new("sh");
    copying.args(["-c", script]).arg(primary.data_dir()).arg(&copy);
    assert!(Account::of_servers().run(&mut copying).status().unwrap().success());

    let before = tree(space.path());
    let map = format!("{place}={place}");
    let running = format!("is in use by the server that runs in `{}`", primary.data_dir().display());
    for words in [&[][..], &["--tablespace-map", &map][..], &["--dry-run"][..]] {
        delta(&repository, &copy, words).code(2).says(&running);
    }
    primary.stop(StopMode::Fast);
    let copied = tree(&copy);
    delta(&repository, &copy, &[]).code(2).says(&format!("say `--tablespace-map {map}`"));
    assert_same(&before, &tree(space.path()));
    assert_same(&copied, &tree(&copy));
    primary.start();
    assert_eq!(primary.value("select count(*) from far"), "1000");
    primary.stop(StopMode::Fast);
    // Its own: named, they are written over.
    delta(&repository, primary.data_dir(), &[]).code(2).says(&map);
    delta(&repository, primary.data_dir(), &["--tablespace-map", &map]).code(0);
    primary.start();
    primary.wait_promoted(A_MINUTE);
    assert_eq!(primary.value("select count(*) from far"), "1000");
}

/// Segments that PostgreSQL could not archive are in `pg_wal` alone, which `--delta` empties.
#[test]
fn delta_asks_before_it_loses_wal() {
    for repository in Repository::both() {
        let primary = archiving(&repository, Installation::preferred(), 1);
        take_backup(&repository, &primary, &[]);
        primary.archive_everything(A_MINUTE);
        primary.configure("archive_command = 'false'");
        primary.reload();
        primary.wait_until("unable to archive", A_MINUTE, || primary.value("show archive_command") == "false");
        primary.execute("create table late as select generate_series(1, 1000) as i");
        let last = primary.switch_wal();
        primary.stop(StopMode::Fast);
        let waiting = primary.data_dir().join(format!("pg_wal/archive_status/{last}.ready"));
        assert!(waiting.exists(), "{}", waiting.display());

        let before = tree(primary.data_dir());
        for words in [&[][..], &["--dry-run"][..]] {
            delta(&repository, primary.data_dir(), words).code(2).says(&last).says("wal-push --backfill");
        }
        assert_same(&before, &tree(primary.data_dir()));
        let pgdata = primary.data_dir().display().to_string();
        let backfill = Call::new(["wal-push", "--backfill", "--pgdata", &pgdata]).envs(repository.env());
        assert_eq!(as_servers_user(&backfill).code, 0);
        assert!(waiting.exists(), "only the server takes it away");
        delta(&repository, primary.data_dir(), &["--dry-run"]).code(0);
        // As if it had not been archived.
        let key = repository.keys().into_iter().find(|key| key.contains(&last)).unwrap();
        repository.remove(&key);
        delta(&repository, primary.data_dir(), &[]).code(2).says(&last);
        delta(&repository, primary.data_dir(), &["--discard-wal"]).code(0);
        assert!(!waiting.exists());
    }
}

/// `--dry-run` refuses what the restore would refuse, and only looks.
#[test]
fn a_dry_run_looks_at_the_place() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    take_backup(&repository, &primary, &[]);
    primary.archive_everything(A_MINUTE);
    let home = Scratch::new("place");
    let fresh = home.path().join("fresh");
    let dry =
        |to: &Path, words: &[&str]| as_servers_user(&restore_call(&repository, to, &[&["--dry-run"], words].concat()));
    dry(primary.data_dir(), &[]).code(2).says("postmaster.pid");
    dry(primary.data_dir(), &["--delta"]).code(2).says("postmaster.pid");
    dry(&fresh, &["--tablespace-map", "/nowhere=/x"]).code(2).says("has no tablespace at `/nowhere`");
    dry(&fresh, &[]).quiet_success();
    assert!(!fresh.exists());
    primary.stop(StopMode::Fast);
    dry(primary.data_dir(), &[]).code(2).says("is not empty");
    dry(primary.data_dir(), &["--delta"]).quiet_success();
    let closed = home.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    // Whoever may read the repository may make a plan.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    dry(&closed, &[]).code(0).says("whether this place can be used is not known");
}
