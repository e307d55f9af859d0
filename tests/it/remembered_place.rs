//! An archiver that catches up asks for its cluster's place once in a while, not in every call: and never believes an answer that was
//! not given to it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::data_dir::FakeCluster;
use crate::double::{Fault, Op, Rule};
use crate::repository::{Repository, segment_key};

fn name(timeline: u32, number: u32) -> String {
    format!("{timeline:08X}00000000000000{number:02X}")
}

/// A cluster on this timeline whose archiver has fallen behind.
fn behind(timeline: u32, segments: u32) -> FakeCluster {
    let cluster = FakeCluster::new();
    for number in 1..=segments {
        cluster.segment(&name(timeline, number), u64::from(number));
        cluster.ready(&name(timeline, number));
    }
    cluster
}

fn push(repository: &Repository, cluster: &FakeCluster, name: &str) {
    repository.push(cluster, name).env("PGARK_WAL__LOOKAHEAD", "1").run().quiet_success();
    cluster.done(name);
}

fn questions(repository: &Repository) -> usize {
    let requests = repository.double().requests();
    repository.double().clear_requests();
    requests.iter().filter(|logged| matches!(logged.operation, "GetObject" | "ListObjectsV2")).count()
}

fn note(cluster: &FakeCluster, timeline: u32) -> PathBuf {
    let own = fs::read_dir(cluster.spool()).unwrap().next().unwrap().unwrap();
    own.path().join("archived").join(format!("place-{timeline:08X}"))
}

#[test]
fn the_place_is_asked_for_once_while_the_archiver_catches_up() {
    let repository = Repository::s3();
    let cluster = behind(1, 5);
    repository.double().latency(Duration::from_millis(100));
    push(&repository, &cluster, &name(1, 1));
    assert!(questions(&repository) > 0 && note(&cluster, 1).exists());
    for number in 2..=5 {
        push(&repository, &cluster, &name(1, number));
    }
    assert_eq!(questions(&repository), 0);
    for number in 1..=5 {
        assert!(repository.object(&segment_key(&name(1, number))).is_some(), "{number}");
    }
}

/// One segment now and then: its place is asked for each time.
#[test]
fn an_archiver_that_keeps_up_remembers_nothing() {
    let repository = Repository::s3();
    for number in 1..=2 {
        let cluster = behind(1, number);
        push(&repository, &cluster, &name(1, number));
        assert!(questions(&repository) > 0 && !note(&cluster, 1).exists());
    }
}

#[test]
fn on_a_later_timeline_its_history_is_a_part_of_the_question() {
    let repository = Repository::s3();
    let cluster = behind(2, 4);
    cluster.file("00000002.history", b"1\t0/200000\tno recovery target specified\n");
    repository.double().latency(Duration::from_millis(100));
    push(&repository, &cluster, &name(2, 1));
    assert!(questions(&repository) > 0);
    push(&repository, &cluster, &name(2, 2));
    push(&repository, &cluster, &name(2, 3));
    assert_eq!(questions(&repository), 0);
    // Another server promoted to the same timeline took the place of this one, in the same directory.
    cluster.file("00000002.history", b"1\t0/300000\tno recovery target specified\n");
    let twin = repository.push(&cluster, &name(2, 4)).env("PGARK_WAL__LOOKAHEAD", "1").run();
    // What was archived ahead is this very file; the next one is not.
    assert_eq!(twin.code, 0, "{twin:?}");
    cluster.segment(&name(2, 5), 5);
    cluster.ready(&name(2, 5));
    let twin = repository.push(&cluster, &name(2, 5)).env("PGARK_WAL__LOOKAHEAD", "1").run();
    twin.code(1).says("another content is archived as `00000002.history`");
}

#[test]
fn a_failure_makes_the_next_call_ask_again() {
    let repository = Repository::s3();
    let cluster = behind(1, 4);
    repository.double().latency(Duration::from_millis(100));
    push(&repository, &cluster, &name(1, 1));
    push(&repository, &cluster, &name(1, 2));
    repository.double().fault(Rule::new(Fault::AccessDenied403).on(Op::Put).key(&name(1, 3)));
    let failed = repository.push(&cluster, &name(1, 3)).env("PGARK_WAL__LOOKAHEAD", "1").run();
    assert!(failed.code > 1 && !note(&cluster, 1).exists(), "{failed:?}");
    repository.double().clear_faults();
    repository.double().clear_requests();
    push(&repository, &cluster, &name(1, 3));
    assert!(questions(&repository) > 0);
}

#[test]
fn a_damaged_or_old_note_is_no_answer() {
    let repository = Repository::s3();
    let cluster = behind(1, 12);
    repository.double().latency(Duration::from_millis(60));
    let mut number = 1;
    // Two calls each: the one that asks, and the one for what was archived ahead.
    let mut twice = |why: &str| {
        repository.double().clear_requests();
        push(&repository, &cluster, &name(1, number));
        assert!(questions(&repository) > 0, "{why}");
        push(&repository, &cluster, &name(1, number + 1));
        number += 2;
    };
    twice("nothing is known");
    let whole = fs::read(note(&cluster, 1)).unwrap();
    fs::write(note(&cluster, 1), &whole[..whole.len() / 2]).unwrap();
    twice("half of it");
    let mut flipped = whole.clone();
    flipped[whole.len() - 20] ^= 1;
    fs::write(note(&cluster, 1), flipped).unwrap();
    twice("a bit is flipped");
    fs::remove_file(note(&cluster, 1)).unwrap();
    std::os::unix::fs::symlink("/dev/zero", note(&cluster, 1)).unwrap();
    twice("a link");
    // The right digest, but of another time.
    let body = String::from_utf8(whole).unwrap().split_once('\n').unwrap().1.to_owned();
    let asked = body.split_once("\"asked\":\"").unwrap().1.split_once('"').unwrap().0.to_owned();
    let old = body.replace(&asked, "2026-01-01T00:00:00Z");
    let digest = pgark::stream::Sha256::of(old.as_bytes());
    fs::remove_file(note(&cluster, 1)).unwrap();
    fs::write(note(&cluster, 1), format!("{digest}\n{old}")).unwrap();
    twice("an old one");
}

/// When the store is far away all places are looked at while the own segment is still being compressed.
#[test]
fn a_far_store_is_asked_about_all_places_at_once() {
    let repository = Repository::s3();
    let cluster = FakeCluster::with_segments_of(64 << 20);
    for number in 1..=4 {
        cluster.segment(&name(1, number), u64::from(number));
        cluster.ready(&name(1, number));
    }
    let push = |number| repository.push(&cluster, &name(1, number)).env("PGARK_WAL__PUSH_DEADLINE", "60s");
    push(1).env("PGARK_WAL__LOOKAHEAD", "0").run().quiet_success();
    cluster.done(&name(1, 1));
    repository.double().clear_requests();
    repository.double().latency(Duration::from_millis(300));
    push(2).env("PGARK_WAL__JOBS", "1").run().quiet_success();
    let requests = repository.double().requests();
    let at = |operation: &str, number| {
        let key = segment_key(&name(1, number));
        requests.iter().position(|logged| logged.operation == operation && logged.key.ends_with(&key))
    };
    assert!(at("HeadObject", 4).is_some() && at("HeadObject", 4) < at("PutObject", 2), "{requests:?}");
}
