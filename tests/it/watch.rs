//! `status --watch`: screen after screen until a signal comes, whatever the store does meanwhile; and `list --kind`.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::look::{FIRST, SECOND, archive};
use crate::program::Call;
use crate::repository::Repository;

fn watching(repository: &Repository, words: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let words = ["status", "--no-server", "--watch", "1s"].iter().chain(words).copied();
    let mut child = Call::new(words).impatient().envs(repository.env()).spawn();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

fn line(out: &mut impl BufRead) -> String {
    let mut line = String::new();
    assert!(out.read_line(&mut line).unwrap() > 0, "the program ended");
    line
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// The exit code, and what was said on stderr.
fn end(mut child: Child) -> (Option<i32>, String) {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code(), said)
}

#[test]
fn documents_come_until_a_signal_does() {
    for repository in Repository::both() {
        archive(&repository);
        for signal in [Signal::INT, Signal::TERM] {
            let (child, mut out) = watching(&repository, &["--json"]);
            let mut looks = Vec::new();
            for _ in 0..2 {
                let document: Value = serde_json::from_str(&line(&mut out)).unwrap();
                assert_eq!((&document["schema"], &document["newest"]["lsn"]), (&1.into(), &"0/A00000".into()));
                looks.push(document["at"].as_str().unwrap().to_owned());
            }
            assert!(looks[0] < looks[1], "{looks:?}");
            send(&child, signal);
            // As the last look says: the newest backup has a bad page.
            assert_eq!(end(child), (Some(1), String::new()));
        }
    }
}

#[test]
fn screens_go_on_over_a_store_that_fails() {
    let repository = Repository::s3();
    archive(&repository);
    let (child, mut out) = watching(&repository, &[]);
    let mut until = |words: &str| {
        let mut seen = String::new();
        while !seen.contains(words) {
            seen.push_str(&line(&mut out));
        }
        seen
    };
    let first = until("timeline 1:");
    assert!(first.contains(", every 1s") && !first.contains('\x1b'), "{first}");
    repository.double().stop_listening();
    until("it could not be told: ");
    send(&child, Signal::INT);
    out.read_to_string(&mut String::new()).unwrap();
    assert_eq!(end(child), (Some(3), String::new()));
}

#[test]
fn nobody_who_reads_is_an_end_too() {
    let repository = Repository::local();
    archive(&repository);
    let (child, mut out) = watching(&repository, &["--json"]);
    line(&mut out);
    drop(out);
    assert_eq!(end(child).0, Some(1));
    for wrong in ["0s", "10ms", "soon"] {
        Call::new(["status", "--watch", wrong])
            .envs(repository.env())
            .run()
            .code(3)
            .says("is not a duration of at least");
    }
}

#[test]
fn backups_are_listed_by_a_word_of_their_kind() {
    let repository = Repository::local();
    archive(&repository);
    let ids = |kind: &str, code: i32| -> Vec<String> {
        let outcome = Call::new(["list", "--json", "--kind", kind]).impatient().envs(repository.env()).run().code(code);
        let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
        report["backups"].as_array().unwrap().iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        (ids("full", 0), ids("local", 0)),
        (vec![FIRST.into(), SECOND.into()], vec![FIRST.into(), SECOND.into()])
    );
    for none in ["remote", "standby", "damaged", "unfinished"] {
        assert_eq!(ids(none, 0), [""; 0], "{none}");
    }
    let unfinished = "20261122T120000Z-0000000c";
    repository.put(&format!("main/1/backup/{unfinished}/part/00000001.tar.zst"), b"part");
    repository.alter(&format!("main/1/backup/{FIRST}/manifest.json.zst"), |bytes| bytes.truncate(30));
    assert_eq!(ids("unfinished", 1), [FIRST, unfinished]);
    // What it was nobody can tell.
    assert_eq!((ids("full", 1), ids("remote", 1)), (vec![FIRST.into(), SECOND.into()], vec![FIRST.into()]));
    assert_eq!((ids("dump", 0), ids("all", 1).len()), (vec![], 3));
    Call::new(["list", "--kind", "incremental"]).envs(repository.env()).run().code(2);
}
