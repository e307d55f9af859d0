//! Runs leave notes: whoever watches the repository knows what ran, and how it ended, also of what was killed. And no note is in
//! the way of a run.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::backups::{as_servers_user, backed_up, on_the_host};
use crate::data_dir::FakeCluster;
use crate::double::{Fault, Op, Rule};
use crate::pitr::archiving;
use crate::postgres::{Account, Cluster, Installation};
use crate::program::{Call, finish};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

/// The notes of a kind, oldest first, the last of each run only.
pub fn runs(repository: &Repository, kind: &str) -> Vec<Value> {
    let read = |key: &String| -> Value { serde_json::from_slice(&repository.object(key).unwrap()).unwrap() };
    let keys = repository.keys();
    let notes = keys.iter().filter(|key| key.contains("/record/run/") && key.contains(&format!("-{kind}-")));
    let notes: Vec<&String> = notes.collect();
    let of = |key: &str| key.rsplit_once('-').unwrap().0.to_owned();
    let last = notes.iter().enumerate().filter(|(index, key)| {
        let next = notes.get(index + 1);
        next.is_none_or(|next| of(next) != of(key))
    });
    last.map(|(_, key)| read(key)).collect()
}

/// The only one.
#[track_caller]
fn run_of(repository: &Repository, kind: &str) -> Value {
    let runs = runs(repository, kind);
    assert_eq!(runs.len(), 1, "{runs:?}");
    runs.into_iter().next().unwrap()
}

#[test]
fn every_verb_says_what_it_did() {
    for repository in Repository::both() {
        let (primary, _ledger) = backed_up(&repository);
        let run = run_of(&repository, "basebackup");
        let listed = Call::new(["list", "--json"]).envs(repository.env()).run().quiet_success();
        let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
        let backup = &listed["backups"][0];
        assert_eq!([&run["stage"], &run["id"]], [&Value::from("done"), &backup["id"]]);
        assert!(run["stored_bytes"].as_u64() > Some(100), "{run}");
        let time = |name: &str| run[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        assert!(time("began") < time("ended"), "{run}");

        as_servers_user(&on_the_host(&repository, &primary, &["dump"])).quiet_success();
        let run = run_of(&repository, "dump");
        assert!(run["stage"] == "done" && run["id"].is_string() && run["stored_bytes"].as_u64() > Some(100), "{run}");

        Call::new(["verify"]).envs(repository.env()).run().quiet_success();
        assert_eq!(run_of(&repository, "verify")["stage"], "done");
        let expire = Call::new(["expire", "--dry-run"]).envs(repository.env());
        expire.env("PGARK_RETENTION__KEEP_FULL", "1").run().quiet_success();
        assert_eq!(runs(&repository, "expire"), [Value::Null; 0], "a dry run leaves nothing");
        Call::new(["expire"]).envs(repository.env()).env("PGARK_RETENTION__KEEP_FULL", "1").run().quiet_success();
        assert_eq!(run_of(&repository, "expire")["stage"], "done");
        // Nothing of this is taken for something else.
        let status = Call::new(["status", "--no-server", "--json"]).envs(repository.env()).run();
        assert!(!status.stdout.contains("record/"), "{status:?}");
        let plan = Call::new(["expire", "--dry-run", "--json"]).envs(repository.env()).run().quiet_success();
        assert!(!plan.stdout.contains("record/"), "{plan:?}");
    }
}

#[test]
fn failures_and_doubts_are_told_with_their_reason() {
    let repository = Repository::local();
    let (primary, _ledger) = backed_up(&repository);
    let nobody =
        on_the_host(&repository, &primary, &["basebackup"]).env("PGARK_CLUSTER__CONNINFO", "host=/nonexistent");
    as_servers_user(&nobody).code(17);
    let failed = runs(&repository, "basebackup").pop().unwrap();
    let message = failed["message"].as_str().unwrap();
    assert!(failed["stage"] == "failed" && message.starts_with("no backup was made: "), "{failed}");
    assert!(failed["ended"].is_string());

    let part = repository.keys().into_iter().find(|key| key.contains("/part/")).unwrap();
    repository.alter(&part, |bytes| bytes[100] ^= 1);
    Call::new(["verify"]).envs(repository.env()).run().code(2);
    let damaged = run_of(&repository, "verify");
    assert!(damaged["stage"] == "failed" && damaged["message"].as_str().unwrap().contains(&part), "{damaged}");
}

/// Begins a backup that takes a while, and hands it over when it is noted.
fn slow_backup(repository: &Repository) -> (Cluster, std::process::Child) {
    let primary = archiving(repository, Installation::preferred(), 1);
    primary.archive_everything(A_MINUTE);
    let mut command = on_the_host(repository, &primary, &["basebackup", "--rate", "1MiB"]).command();
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = Account::of_servers().run(&mut command).spawn().unwrap();
    primary.wait_until("it copies", A_MINUTE, || repository.keys().iter().any(|key| key.contains("/record/restore/")));
    (primary, child)
}

#[test]
fn a_stopped_run_says_so_and_a_killed_one_stays_begun() {
    for (signal, stage, word) in [(Signal::TERM, "failed", "SIGTERM"), (Signal::KILL, "begun", "null")] {
        let repository = Repository::local();
        let (_primary, child) = slow_backup(&repository);
        kill_process(Pid::from_child(&child), signal).unwrap();
        finish(child);
        let run = run_of(&repository, "basebackup");
        assert!(run["stage"] == stage && run["message"].to_string().contains(word), "{run}");
    }
}

/// A repository with a segment: enough for `verify`.
fn with_a_segment() -> Repository {
    let repository = Repository::s3();
    let cluster = FakeCluster::new();
    cluster.segment("000000010000000000000001", 1);
    repository.push(&cluster, "000000010000000000000001").run().quiet_success();
    repository
}

#[test]
fn a_note_that_cannot_be_written_is_a_warning() {
    let repository = with_a_segment();
    for fault in [Fault::AccessDenied403, Fault::Silence, Fault::Status503] {
        repository.double().clear_faults();
        repository.double().fault(Rule::new(fault.clone()).on(Op::Put).key("record/run/"));
        let verified = Call::new(["verify"]).envs(repository.env()).impatient().run().code(0);
        assert!(verified.stdout.ends_with("no damage was found\n"), "{verified:?}");
        verified.says("no note of this run was left in the repository");
        assert_eq!(runs(&repository, "verify"), [Value::Null; 0], "{fault:?}");
    }
}

#[test]
fn a_wrong_name_begins_no_repository() {
    let repository = with_a_segment();
    for words in [["verify", "--cluster", "mian"], ["expire", "--cluster", "mian"]] {
        Call::new(words).envs(repository.env()).run();
    }
    assert!(repository.keys().iter().all(|key| key.starts_with("main/")), "{:?}", repository.keys());
}

#[test]
fn expire_deletes_old_notes_but_never_the_newest_of_a_kind() {
    let repository = with_a_segment();
    let note = |day: u64, kind: &str, stage: &str| {
        let nanoseconds = (1_600_000_000 + day * 86400) * 1_000_000_000;
        format!("main/record/run/{nanoseconds:020}-7-{kind}-{stage}.json")
    };
    let old = [note(1, "dump", "begun"), note(1, "dump", "done"), note(1, "verify", "failed")];
    let kept = [note(3, "dump", "done"), note(4, "verify", "begun"), note(2, "verify", "done")];
    for key in old.iter().chain(&kept) {
        repository.put(key, b"{}");
    }
    Call::new(["expire"]).envs(repository.env()).env("PGARK_RETENTION__KEEP_FULL", "1").run().quiet_success();
    let there = |key: &String| repository.keys().contains(key);
    assert_eq!(old.iter().filter(|key| there(key)).count(), 0);
    assert_eq!(kept.iter().filter(|key| there(key)).count(), 3, "{:?}", repository.keys());
}
