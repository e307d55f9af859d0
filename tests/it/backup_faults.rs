//! Backups that are broken off, in every way: no manifest without everything behind it, a clear message, nothing left running, and
//! the next backup is fine. And a page that is damaged, which ends no backup.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};

use crate::backups::{Restored, as_servers_user, on_the_host, restore, restored_at, restores_whole, take_backup};
use crate::double::{Fault, Op, Rule};
use crate::kills::{kill_after, seed};
use crate::ledger::{Expect, Ledger, unexplained};
use crate::pitr::{archive_command, archiving, assert_clean, with_environment};
use crate::postgres::{Account, Cluster, Installation, StopMode};
use crate::program::{Call, finish};
use crate::repository::Repository;
use crate::restore_faults::manifest_key;

const A_MINUTE: Duration = Duration::from_secs(60);
const SERVER: i32 = 17;
/// Slow enough to be met in the middle.
const SLOWLY: [&str; 3] = ["basebackup", "--rate", "6MiB"];

fn spawn(call: &Call) -> Child {
    let mut command = call.command();
    Account::of_servers().run(command.stdout(Stdio::piped()).stderr(Stdio::piped())).spawn().unwrap()
}

const SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgark'";

/// Waits until the backup has begun, and its files are being copied.
fn wait_copying(cluster: &Cluster) {
    let started = format!("{SESSIONS} AND state = 'idle' AND query ~ 'pg_(start_backup|backup_start)'");
    cluster.wait_until("copying", A_MINUTE, || cluster.value(&started) == "1");
}

/// The server has ended the backup when its session is gone.
fn nothing_runs(cluster: &Cluster) {
    cluster.wait_until("without a session of pgark", A_MINUTE, || cluster.value(SESSIONS) == "0");
}

fn set_archive_command(cluster: &Cluster, command: &str) {
    cluster.configure(&format!("archive_command = '{command}'"));
    cluster.reload();
    cluster.wait_until("reloaded", A_MINUTE, || cluster.value("SHOW archive_command") == command);
}

/// The backups of which there is a manifest.
fn manifests(repository: &Repository) -> BTreeSet<String> {
    let keys = repository.keys();
    let ids = keys.iter().filter_map(|key| key.strip_suffix("/manifest.json.zst"));
    ids.map(|key| key.rsplit('/').next().unwrap().to_owned()).collect()
}

/// Every part is there as the manifest has it, and so is the WAL from start to stop.
fn is_whole(repository: &Repository, id: &str) {
    let manifest = zstd::decode_all(&repository.object(&manifest_key(id)).unwrap()[..]).unwrap();
    let lines: Vec<serde_json::Value> =
        manifest.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let mut parts = 0;
    for part in lines.iter().filter(|line| line["part"].is_u64()) {
        let key = format!("main/1/backup/{id}/part/{:08}.tar.zst", part["part"].as_u64().unwrap());
        let length = repository.object(&key).unwrap_or_else(|| panic!("`{key}` is missing")).len();
        assert_eq!(length as u64, part["stored"].as_u64().unwrap(), "{key}");
        parts += 1;
    }
    assert_eq!(lines[0]["parts"], parts);
    assert!(lines.last().unwrap()["lines"].as_u64().unwrap() as usize == lines.len() - 1);
    let position = |key: &str| lines[0][key].as_str().unwrap().parse::<crate::postgres::Lsn>().unwrap();
    for number in position("start_lsn").0 >> 20..=(position("stop_lsn").0 - 1) >> 20 {
        let name = format!("00000001{:08X}{:08X}", number >> 12, number & 0xFFF);
        assert!(repository.object(&crate::repository::segment_key(&name)).is_some(), "{id} without `{name}`");
    }
}

/// A day later `expire` removes all that the killed ones left, and nothing else. How many those were.
fn remains_expire(repository: &Repository) -> usize {
    let whole = manifests(repository);
    let of = |key: &String| Some(key.split_once("/backup/")?.1.split('/').next()?.to_owned());
    let ids = || -> BTreeSet<String> { repository.keys().iter().filter_map(of).collect() };
    let stray: Vec<String> = ids().difference(&whole).cloned().collect();
    let expire = || {
        let call = Call::new(["expire"]).envs(repository.env()).env("PGARK_RETENTION__KEEP_FULL", "1000");
        finish(call.spawn()).code(0)
    };
    expire();
    let young: Vec<String> = ids().difference(&whole).cloned().collect();
    assert_eq!(young, stray, "what may be at work stays");
    repository.keys().iter().for_each(|key| repository.age(key, Duration::from_secs(3 * 86400)));
    // A mark lands before the manifest: what was killed between the two stays until it is taken away.
    for id in stray.iter().filter(|id| repository.keys().iter().any(|key| key.ends_with(&format!("{id}/keep.json")))) {
        Call::new(["unkeep", id]).envs(repository.env()).run().quiet_success();
    }
    expire();
    assert_eq!((ids(), manifests(repository)), (whole.clone(), whole));
    assert!(!repository.keys().iter().any(|key| key.contains(".pgark-tmp-")), "{:?}", repository.keys());
    stray.len()
}

#[test]
fn twenty_five_killed_backups() {
    let mut random = StdRng::seed_from_u64(seed());
    let (mut killed, mut stray) = (0, 0);
    for (repository, rounds) in Repository::both().into_iter().zip([13, 12]) {
        let primary = archiving(&repository, Installation::preferred(), 1);
        let ledger = Ledger::create(&primary);
        ledger.write(100, 20_000);
        let call = on_the_host(&repository, &primary, &["basebackup", "--keep"]);
        let usual = (0..3).map(|_| as_servers_user(&call).quiet_success().took).min().unwrap();
        let mut known = manifests(&repository);
        for round in 0..rounds {
            let code = kill_after(spawn(&call), random.random_range(Duration::ZERO..usual));
            assert!(matches!(code, 0 | 137), "round {round}: {code}");
            killed += u32::from(code == 137);
            let now = manifests(&repository);
            let keys = repository.keys();
            let marked = keys.iter().filter_map(|key| key.strip_suffix("/keep.json"));
            assert!(marked.into_iter().all(|backup| keys.contains(&format!("{backup}/manifest.json.zst"))), "{keys:?}");
            let new: Vec<&String> = now.difference(&known).collect();
            assert!(new.len() <= 1 && (code == 137 || new.len() == 1), "round {round}: {code}, {new:?}");
            new.into_iter().for_each(|id| is_whole(&repository, id));
            known = now;
            if round % 5 == 0 {
                known.insert(take_backup(&repository, &primary, &[]));
            }
        }
        nothing_runs(&primary);
        let id = take_backup(&repository, &primary, &[]);
        is_whole(&repository, &id);
        primary.archive_everything(A_MINUTE);
        stray += remains_expire(&repository);
        let Restored { cluster, home: _home } = restore(&repository, &[]);
        cluster.start();
        cluster.wait_promoted(A_MINUTE);
        ledger.judge(&cluster, &Expect::at_least(ledger.tip())).unwrap();
    }
    assert!(killed >= 15, "only {killed} of 25 were killed in time");
    assert!(stray >= 3, "only {stray} of {killed} killed backups left something");
}

#[test]
fn a_lost_session_and_a_signal() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let call = on_the_host(&repository, &primary, &SLOWLY);
    let child = spawn(&call);
    wait_copying(&primary);
    primary.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgark'");
    finish(child).code(SERVER).says("no backup was made").says("session of the backup was lost");
    for (signal, name) in [(Signal::INT, "SIGINT"), (Signal::TERM, "SIGTERM")] {
        let child = spawn(&call);
        wait_copying(&primary);
        kill_process(Pid::from_child(&child), signal).unwrap();
        finish(child).code(21).says("no backup was made").says(name);
        nothing_runs(&primary);
    }
    assert_eq!(manifests(&repository), BTreeSet::new());
    assert!(primary.log().contains("aborting backup due to backend exiting"), "the server did not end the backup");
    take_backup(&repository, &primary, &[]);
    assert_eq!(manifests(&repository).len(), 1);

    // A server that goes down takes the backup with it.
    let child = spawn(&call);
    wait_copying(&primary);
    primary.stop(StopMode::Fast);
    finish(child).code(SERVER).says("no backup was made");
    assert_eq!(manifests(&repository).len(), 1);
    primary.start();
    take_backup(&repository, &primary, &[]);
}

#[test]
fn a_store_that_dies_and_one_that_comes_back() {
    let repository = Repository::s3();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let double = repository.double();
    let call =
        on_the_host(&repository, &primary, &["basebackup", "--keep"]).impatient().env("PGARK_BACKUP__RETRY", "2s");
    for (fault, code) in [
        (Fault::ResetBeforeHeaders, 10),
        (Fault::Silence, 10),
        (Fault::Status503, 10),
        (Fault::AccessDenied403, 11),
        (Fault::NoSuchBucket404, 12),
    ] {
        double.fault(Rule::new(fault).on(Op::Put).key("/part/").skip(1));
        as_servers_user(&call).code(code).says("no backup was made").says("/part/");
        double.clear_faults();
        double.fault(Rule::new(Fault::ResetBeforeHeaders).on(Op::Put).key("manifest.json"));
        // The store may have it all the same: a reset says nothing.
        let unsure =
            as_servers_user(&call).code(10).says("whether the backup was made is not known").says("`pgark list`");
        assert!(unsure.stderr.contains("manifest.json") && !unsure.stderr.contains("no backup"), "{unsure:?}");
        double.clear_faults();
        nothing_runs(&primary);
    }
    assert_eq!(manifests(&repository), BTreeSet::new());
    double.fault(Rule::new(Fault::AccessDenied403).on(Op::Put).key("manifest.json"));
    as_servers_user(&call).code(11).says("no backup was made").says("manifest.json");
    double.clear_faults();
    // It is there, and the store does not say so.
    double.fault(Rule::new(Fault::LostReply).on(Op::Put).key("manifest.json"));
    as_servers_user(&call).code(10).says("whether the backup was made is not known");
    double.clear_faults();
    let whole = manifests(&repository);
    assert_eq!(whole.len(), 1);
    repository.remove(&crate::restore_faults::manifest_key(whole.first().unwrap()));
    let marks = || repository.keys().iter().filter(|key| key.ends_with("keep.json")).count();
    assert_eq!(marks(), 0, "what was never finished is not kept for ever");
    double.fault(Rule::new(Fault::AccessDenied403).on(Op::Put).key("keep.json"));
    let whole = as_servers_user(&call).code(11).says("is whole, but `--keep` does not hold").says("hint: `pgark keep ");
    assert!(!whole.stderr.contains("no backup was made"), "{whole:?}");
    assert_eq!((manifests(&repository).len(), marks()), (1, 0));
    double.clear_faults();

    // What ends in time is borne, at the very end too, and a lost reply is no failure.
    let patient = call.env("PGARK_BACKUP__RETRY", "60s");
    for (key, fault) in [
        ("/part/", Fault::Status503),
        ("/part/", Fault::LostReply),
        ("manifest.json", Fault::Status503),
        ("manifest.json", Fault::LostReply),
        ("keep.json", Fault::Status503),
        ("keep.json", Fault::LostReply),
    ] {
        let before = manifests(&repository).len();
        let rule = double.fault(Rule::new(fault).on(Op::Put).key(key).times(3));
        let keeping = on_the_host(&repository, &primary, &["basebackup", "--keep"]).impatient();
        as_servers_user(&keeping.env("PGARK_BACKUP__RETRY", "60s")).quiet_success();
        assert!(double.fired(rule) > 0);
        double.clear_faults();
        assert_eq!(manifests(&repository).len(), before + 1);
    }
    as_servers_user(&patient).quiet_success();
    manifests(&repository).iter().for_each(|id| is_whole(&repository, id));
    assert_clean(&primary);
}

/// What was stored is gone before the end, as with a lifecycle rule or a hand that tidies up.
#[test]
fn a_part_that_goes_away_meanwhile() {
    for repository in Repository::both() {
        let primary = archiving(&repository, Installation::preferred(), 1);
        let child = spawn(&on_the_host(&repository, &primary, &SLOWLY));
        wait_copying(&primary);
        // Its WAL does not come, so that it waits with all parts stored.
        set_archive_command(&primary, "false");
        let parts = || repository.keys().into_iter().filter(|key| key.contains("/part/")).collect::<Vec<_>>();
        let has_control = |key: &String| repository.object(key).is_some_and(|bytes| bytes.len() < 1 << 20);
        primary.wait_until("done with the files", A_MINUTE, || parts().iter().any(has_control));
        let gone = parts().remove(0);
        repository.remove(&gone);
        set_archive_command(&primary, &archive_command());
        finish(child).code(14).says("no backup was made").says(&gone).says("is gone").says("hint");
        assert_eq!(manifests(&repository), BTreeSet::new());
        nothing_runs(&primary);
    }
}

#[test]
fn a_standby_that_is_promoted_meanwhile() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let first = take_backup(&repository, &primary, &[]);
    primary.archive_everything(A_MINUTE);
    let server = with_environment(Cluster::builder(), &repository).conf("wal_retrieve_retry_interval = '100ms'");
    let Restored { cluster: standby, home: _home } = restored_at(&repository, &["--standby"], server);
    standby.start();
    let child = spawn(&on_the_host(&repository, &standby, &SLOWLY));
    wait_copying(&standby);
    standby.promote();
    finish(child).code(SERVER).says("no backup was made").says("promoted");
    assert_eq!(manifests(&repository), BTreeSet::from([first]));
    nothing_runs(&standby);
}

#[test]
fn without_wal_there_is_no_backup() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    take_backup(&repository, &primary, &[]);
    let whole = manifests(&repository);
    let set = |command: &str| set_archive_command(&primary, command);
    let parts = || repository.keys().iter().filter(|key| key.contains("/part/")).count();

    // Refused before a byte is copied.
    let before = parts();
    for broken in ["false", "true"] {
        set(broken);
        let call = on_the_host(&repository, &primary, &["basebackup"]).env("PGARK_BACKUP__ARCHIVE_WAIT", "2s");
        let said = if broken == "false" { "was not archived within 2s" } else { "not into" };
        as_servers_user(&call).code(SERVER).says("no backup was made").says(said).says("hint");
        nothing_runs(&primary);
    }
    assert_eq!(parts(), before, "something was copied");

    // Broken in the middle: all is copied, and it is still no backup.
    set(&archive_command());
    let words = [&SLOWLY[..], &["--wal-wait", "3s"]].concat();
    let child = spawn(&on_the_host(&repository, &primary, &words));
    wait_copying(&primary);
    set("false");
    finish(child).code(SERVER).says("no backup was made").says("after 3s").says("is not in the repository");
    assert!(parts() > before);
    assert_eq!(manifests(&repository), whole);
    set(&archive_command());
    take_backup(&repository, &primary, &[]);
    assert_eq!(unexplained(&primary.log(), &[]), [""; 0]);

    let silent = with_environment(Cluster::builder().conf("archive_mode = off"), &repository).start();
    as_servers_user(&on_the_host(&repository, &silent, &["basebackup"])).code(SERVER).says("archive_mode");
    // The files of one server, the session of another.
    let other = on_the_host(&repository, &primary, &["basebackup"])
        .env("PGARK_CLUSTER__CONNINFO", silent.endpoint().conninfo());
    as_servers_user(&other).code(2).says("does not run in");
}

/// Flips a byte of a page of a stopped server.
fn damage(primary: &Cluster, path: &str, block: u64) {
    primary.execute("CHECKPOINT");
    primary.stop(StopMode::Fast);
    let file = std::fs::File::options().read(true).write(true).open(primary.data_dir().join(path)).unwrap();
    let (mut byte, at) = ([0], block * 8192 + 6000);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    primary.start();
}

#[test]
fn a_damaged_page_is_listed_and_the_backup_is_there() {
    for checksums in [true, false] {
        let repository = Repository::local();
        let builder = Cluster::builder().checksums(checksums).archive_command(&archive_command());
        let primary = with_environment(builder, &repository).start();
        let ledger = Ledger::create(&primary);
        ledger.write(20, 1000);
        primary.execute("CREATE TABLE victim AS SELECT g, md5(g::text) FROM generate_series(1, 5000) g");
        let path = primary.value("SELECT pg_relation_filepath('victim')");
        damage(&primary, &path, 7);
        let outcome = as_servers_user(&on_the_host(&repository, &primary, &["basebackup", "--json"]));
        let outcome = outcome.code(i32::from(checksums));
        let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        let bad = if checksums { vec![format!("{path}: block 7")] } else { Vec::new() };
        assert_eq!(report["bad_pages"], serde_json::json!(bad));
        assert_eq!(report["backup"]["bad_pages"], bad.len());
        assert_eq!(outcome.stderr.contains("wrong checksum"), checksums, "{outcome:?}");
        is_whole(&repository, report["backup"]["id"].as_str().unwrap());
        ledger.write(10, 1000);
        let Restored { cluster, home: _home } = restores_whole(&repository, &primary, &ledger);
        assert_eq!(cluster.try_sql("SELECT count(md5) FROM victim").is_err(), checksums);
    }
}
