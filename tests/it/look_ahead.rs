//! A push archives the next segments too, and a note acknowledges them: only those, and only as they were.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::data_dir::{FakeCluster, SYSTEM_ID};
use crate::double::{Fault, Op, Rule};
use crate::kills::{kill_after, seed};
use crate::program::{Call, finish};
use crate::repository::{Repository, segment_key};

fn name(number: u32) -> String {
    format!("00000001000000000000{number:04X}")
}

/// A cluster whose archiver has fallen behind.
fn behind(segments: std::ops::RangeInclusive<u32>) -> FakeCluster {
    let cluster = FakeCluster::new();
    for number in segments {
        cluster.segment(&name(number), u64::from(number));
        cluster.ready(&name(number));
    }
    cluster
}

/// The notes of segments that are there.
fn notes(cluster: &FakeCluster) -> Vec<PathBuf> {
    let mut notes = Vec::new();
    for own in fs::read_dir(cluster.spool()).into_iter().flatten().flatten() {
        notes.extend(fs::read_dir(own.path().join("archived")).into_iter().flatten().flatten().map(|e| e.path()));
    }
    notes.retain(|note| !note.file_name().is_some_and(|name| name.to_string_lossy().starts_with("place-")));
    notes.sort();
    notes
}

#[track_caller]
fn assert_stored(repository: &Repository, cluster: &FakeCluster, number: u32) {
    let object = repository.object(&segment_key(&name(number)));
    let object = object.unwrap_or_else(|| panic!("segment {number} is not stored"));
    let plain = fs::read(cluster.path().join("pg_wal").join(name(number))).unwrap();
    assert_eq!(zstd::decode_all(&object[..]).unwrap(), plain, "segment {number}");
}

#[test]
fn the_next_segments_go_with_the_first_and_cost_no_request_of_their_own() {
    let repository = Repository::s3();
    let cluster = behind(1..=7);
    let double = repository.double();
    // So long that everything is packed before the own segment is durable.
    double.latency(Duration::from_millis(400));
    let push = |number| repository.push(&cluster, &name(number)).env("PGARK_WAL__LOOKAHEAD", "4");
    push(1).run().quiet_success();
    for number in 1..=5 {
        assert_stored(&repository, &cluster, number);
    }
    assert!(repository.object(&segment_key(&name(6))).is_none());
    assert_eq!(notes(&cluster).len(), 4);
    cluster.done(&name(1));
    double.clear_requests();
    for number in 2..=5 {
        let said = push(number).env("PGARK_LOG__LEVEL", "info").run();
        assert!(said.code == 0 && said.stderr.contains("was archived ahead"), "{said:?}");
        cluster.done(&name(number));
    }
    assert_eq!(double.requests().len(), 0);
    assert_eq!(notes(&cluster).len(), 0, "a note is taken once");
    push(6).run().quiet_success();
    // The look at the one that follows, and both; the identity is remembered.
    let mut operations: Vec<&str> = double.requests().iter().map(|logged| logged.operation).collect();
    operations.sort_unstable();
    assert_eq!(operations, ["HeadObject", "PutObject", "PutObject"]);
    assert_stored(&repository, &cluster, 7);
}

#[test]
fn a_directory_works_alike_and_zero_switches_it_off() {
    let repository = Repository::local();
    let cluster = behind(1..=3);
    repository.push(&cluster, &name(1)).env("PGARK_WAL__LOOKAHEAD", "0").run().quiet_success();
    assert!(repository.object(&segment_key(&name(2))).is_none());
    cluster.done(&name(1));
    repository.push(&cluster, &name(2)).run().quiet_success();
    cluster.done(&name(2));
    repository.push(&cluster, &name(3)).run().quiet_success();
    for number in 1..=3 {
        assert_stored(&repository, &cluster, number);
    }
}

#[test]
fn only_finished_segments_of_the_same_timeline_go_ahead() {
    let repository = Repository::s3();
    let cluster = behind(1..=2);
    repository.double().latency(Duration::from_millis(100));
    cluster.segment(&name(3), 3);
    cluster.file("00000002.history", b"1\t0/200000\tx\n");
    cluster.ready("00000002.history");
    cluster.segment("000000020000000000000002", 9);
    cluster.ready("000000020000000000000002");
    repository.push(&cluster, &name(1)).run().quiet_success();
    let wal = repository.keys().into_iter().filter(|key| key.contains("/wal/")).collect::<Vec<_>>();
    assert_eq!(wal, [segment_key(&name(1)), segment_key(&name(2))]);
    // History goes alone.
    repository.push(&cluster, "00000002.history").run().quiet_success();
    assert_eq!(repository.keys().iter().filter(|key| key.contains("/wal/00000002/")).count(), 1);
}

#[test]
fn nothing_goes_ahead_when_the_own_segment_fails_or_past_what_somebody_else_stored() {
    let repository = Repository::s3();
    let (cluster, other) = (behind(1..=6), FakeCluster::new());
    repository.double().latency(Duration::from_millis(300));
    // Another server wrote the third segment of this timeline.
    other.segment(&name(3), 99);
    repository.push(&other, &name(3)).run().quiet_success();
    repository.push(&cluster, &name(1)).run().quiet_success();
    cluster.done(&name(1));
    assert_stored(&repository, &cluster, 2);
    for number in 4..=6 {
        assert!(repository.object(&segment_key(&name(number))).is_none(), "{number} is past the other's");
    }
    repository.push(&cluster, &name(2)).run().quiet_success();
    cluster.done(&name(2));
    repository.push(&cluster, &name(3)).run().code(1).says("another content");
    assert_eq!(repository.keys().iter().filter(|key| key.contains("/wal/")).count(), 3);
    assert_eq!(notes(&cluster).len(), 0);
}

/// Places are looked at in the first generation while the right one is being found out.
#[test]
fn a_later_generation_has_places_of_its_own() {
    let repository = Repository::s3();
    let (old, new) = (behind(1..=3), FakeCluster::with(SYSTEM_ID + 7, 1));
    for number in 1..=3 {
        repository.push(&old, &name(number)).run().quiet_success();
    }
    for number in 1..=6 {
        new.segment(&name(number), u64::from(number + 50));
        new.ready(&name(number));
    }
    let init = Call::new(["init", "--new-generation"]).envs(repository.env()).within(new.path()).run();
    assert_eq!(init.code, 0, "{init:?}");
    // The fourth is taken in the second generation only; the second and third in the first only.
    let other = FakeCluster::with(SYSTEM_ID + 7, 1);
    other.segment(&name(4), 99);
    repository.push(&other, &name(4)).run().quiet_success();
    repository.double().latency(Duration::from_millis(300));
    repository.push(&new, &name(1)).run().quiet_success();
    let stored = |number| repository.object(&segment_key(&name(number)).replace("/1/wal/", "/2/wal/")).is_some();
    assert_eq!([1, 2, 3, 4, 5, 6].map(stored), [true, true, true, true, false, false]);
    assert_eq!(notes(&new).len(), 2);
}

/// Of segments that are larger than all the memory for others one still goes ahead.
#[test]
fn a_large_segment_goes_ahead_alone() {
    let repository = Repository::s3();
    let cluster = FakeCluster::with_segments_of(128 << 20);
    for number in 1..=3 {
        cluster.segment(&name(number), u64::from(number));
        cluster.ready(&name(number));
    }
    repository.double().latency(Duration::from_millis(300));
    let call = repository.push(&cluster, &name(1)).env("PGARK_REPO__REQUEST_TIMEOUT", "30s");
    call.env("PGARK_WAL__PUSH_DEADLINE", "60s").run().quiet_success();
    assert_stored(&repository, &cluster, 2);
    assert!(repository.object(&segment_key(&name(3))).is_none());
}

#[test]
fn nothing_goes_ahead_of_a_segment_that_cannot_be_stored() {
    let repository = Repository::s3();
    let cluster = behind(1..=4);
    repository.double().latency(Duration::from_millis(200));
    repository.double().fault(Rule::new(Fault::AccessDenied403).on(Op::Put).key(&name(1)));
    let failed = repository.push(&cluster, &name(1)).run();
    assert!(failed.code > 1, "{failed:?}");
    assert_eq!(repository.keys().iter().filter(|key| key.contains("/wal/")).count(), 0);
    repository.double().clear_faults();
    for number in 1..=4 {
        repository.push(&cluster, &name(number)).run().quiet_success();
        cluster.done(&name(number));
        assert_stored(&repository, &cluster, number);
    }
}

/// What was archived before a crash is archived again, and is no obstacle.
#[test]
fn a_segment_that_is_there_already_goes_first_all_the_same() {
    let repository = Repository::s3();
    let cluster = behind(1..=3);
    repository.push(&cluster, &name(1)).env("PGARK_WAL__LOOKAHEAD", "0").run().quiet_success();
    repository.double().latency(Duration::from_millis(300));
    repository.push(&cluster, &name(1)).run().quiet_success();
    for number in 1..=3 {
        assert_stored(&repository, &cluster, number);
    }
    let order: Vec<String> = repository.double().requests().into_iter().map(|logged| logged.key).collect();
    let last = |number| order.iter().rposition(|key| key.ends_with(&segment_key(&name(number))));
    assert!(last(1) < last(2) && last(1) < last(3), "{order:?}");
}

#[test]
fn what_fails_ahead_is_told_by_its_own_call_only() {
    let repository = Repository::s3();
    let cluster = behind(1..=3);
    repository.double().latency(Duration::from_millis(300));
    let rule = repository.double().fault(Rule::new(Fault::AccessDenied403).on(Op::Put).key(&name(2)));
    repository.push(&cluster, &name(1)).run().quiet_success();
    assert!(repository.double().fired(rule) > 0, "it was tried");
    assert_eq!(notes(&cluster).len(), 1);
    cluster.done(&name(1));
    let failed = repository.push(&cluster, &name(2)).run();
    assert!(failed.code > 1, "{failed:?}");
    repository.double().clear_faults();
    repository.push(&cluster, &name(2)).run().quiet_success();
}

/// The own segment is durable: a store that hangs for the others, a deadline and a signal change nothing about that.
#[test]
fn a_store_that_hangs_for_the_others_does_not_keep_the_own_segment() {
    let repository = Repository::s3();
    let cluster = behind(1..=4);
    repository.double().latency(Duration::from_millis(50));
    repository.double().fault(Rule::new(Fault::Silence).on(Op::Put).key(&name(2)));
    let call = repository.push(&cluster, &name(1)).env("PGARK_REPO__REQUEST_TIMEOUT", "60s");
    let outcome = call.env("PGARK_WAL__PUSH_DEADLINE", "60s").run().quiet_success();
    assert!(outcome.took < Duration::from_secs(10), "{outcome:?}");
    for number in [1, 3, 4] {
        assert_stored(&repository, &cluster, number);
    }
    // A deadline within the patience for the others: two round trips, and as long again.
    let cluster = behind(5..=6);
    repository.double().latency(Duration::from_millis(700));
    repository.double().fault(Rule::new(Fault::Silence).on(Op::Put).key(&name(6)));
    let call = repository.push(&cluster, &name(5)).env("PGARK_REPO__REQUEST_TIMEOUT", "60s");
    call.env("PGARK_WAL__PUSH_DEADLINE", "2400ms").run().quiet_success();
    assert_stored(&repository, &cluster, 5);
}

#[test]
fn no_spool_no_look_ahead_and_no_failure() {
    let repository = Repository::s3();
    repository.double().latency(Duration::from_millis(50));
    let cluster = behind(1..=2);
    fs::create_dir(cluster.spool()).unwrap();
    fs::set_permissions(cluster.spool(), fs::Permissions::from_mode(0o777)).unwrap();
    let outcome = repository.push(&cluster, &name(1)).env("PGARK_LOG__LEVEL", "info").run();
    assert!(outcome.code == 0 && outcome.stderr.contains("no look-ahead"), "{outcome:?}");
    assert!(repository.object(&segment_key(&name(2))).is_none());
    fs::remove_dir(cluster.spool()).unwrap();
    fs::write(cluster.spool(), "a file").unwrap();
    repository.push(&cluster, &name(2)).run().quiet_success();
}

/// What a note for segment 2 may meet. After each, the call must do the work itself: the object is gone from the store, so
/// that an acknowledgement by the note shows.
type Poison = fn(&FakeCluster, &Path);

const POISONS: [(&str, Poison); 14] = [
    ("half-written", |_, note| {
        let bytes = fs::read(note).unwrap();
        fs::write(note, &bytes[..bytes.len() / 2]).unwrap();
    }),
    ("empty", |_, note| fs::write(note, "").unwrap()),
    ("flipped", |_, note| {
        let mut bytes = fs::read(note).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(note, bytes).unwrap();
    }),
    ("deleted", |_, note| fs::remove_file(note).unwrap()),
    ("of another segment", |_, note| {
        let other = note.with_file_name(name(3));
        fs::rename(other, note).unwrap();
    }),
    ("a directory", |_, note| {
        fs::remove_file(note).unwrap();
        fs::create_dir_all(note.join("full")).unwrap();
    }),
    ("a link", |_, note| {
        let beside = note.with_file_name("beside");
        fs::rename(note, &beside).unwrap();
        symlink(&beside, note).unwrap();
    }),
    ("unreadable", |_, note| {
        fs::remove_file(note).unwrap();
        symlink("/proc/1/mem", note).unwrap();
    }),
    ("an endless file", |_, note| {
        fs::remove_file(note).unwrap();
        symlink("/dev/zero", note).unwrap();
    }),
    ("another file of the same content", |cluster, _| {
        let path = cluster.path().join("pg_wal").join(name(2));
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    }),
    ("a recycled file of the same name", |cluster, _| {
        let path = cluster.path().join("pg_wal").join(name(2));
        let times = fs::metadata(&path).unwrap().modified().unwrap();
        cluster.segment(&name(2), 77);
        fs::File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
    }),
    ("touched", |cluster, _| {
        let path = cluster.path().join("pg_wal").join(name(2));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    }),
    ("renamed to and fro", |cluster, _| {
        let path = cluster.path().join("pg_wal").join(name(2));
        fs::rename(&path, path.with_extension("x")).unwrap();
        fs::rename(path.with_extension("x"), &path).unwrap();
    }),
    ("another spool", |cluster, _| fs::remove_dir_all(cluster.spool()).unwrap()),
];

#[test]
fn poisoned_notes_acknowledge_nothing() {
    let repository = Repository::s3();
    let double = repository.double();
    double.latency(Duration::from_millis(200));
    for (kind, poison) in POISONS {
        let cluster = behind(1..=3);
        repository.push(&cluster, &name(1)).run().quiet_success();
        let note = notes(&cluster).into_iter().find(|note| note.ends_with(name(2)));
        let note = note.unwrap_or_else(|| panic!("{kind}: no note was left"));
        assert!(double.remove(&format!("pg/{}", segment_key(&name(2)))), "{kind}");
        poison(&cluster, &note);
        let outcome = repository.push(&cluster, &name(2)).run();
        assert_eq!(outcome.code, 0, "{kind}: {outcome:?}");
        assert_stored(&repository, &cluster, 2);
        for key in double.keys() {
            double.remove(&key);
        }
    }
}

/// The note was good, but for another place: nothing of it holds there.
#[test]
fn a_note_holds_for_one_repository_one_cluster_and_one_directory() {
    let repository = Repository::s3();
    repository.double().latency(Duration::from_millis(60));
    let cluster = behind(1..=2);
    repository.push(&cluster, &name(1)).run().quiet_success();
    let elsewhere = repository.push(&cluster, &name(2)).env("PGARK_CLUSTER__NAME", "other");
    elsewhere.run().quiet_success();
    assert!(repository.object(&segment_key(&name(2)).replace("main/", "other/")).is_some());
    let (local, copy) = (Repository::local(), behind(1..=2));
    local.push(&cluster, &name(2)).run().quiet_success();
    assert_stored(&local, &cluster, 2);
    // Two data directories with one spool.
    let shared = local.push(&copy, &name(2)).env("PGARK_WAL__SPOOL", cluster.spool().display().to_string());
    shared.env("PGARK_CLUSTER__NAME", "copy").run().quiet_success();
    assert!(local.object(&segment_key(&name(2)).replace("main/", "copy/")).is_some());
}

#[test]
fn two_hundred_killed_pushes_with_look_ahead() {
    let mut random = StdRng::seed_from_u64(seed());
    for repository in Repository::both() {
        const SEGMENTS: u32 = 400;
        let cluster = behind(1..=SEGMENTS);
        let (mut number, mut killed) = (1, 0);
        while killed < 100 && number < SEGMENTS {
            let push = repository.push(&cluster, &name(number)).env("PGARK_WAL__LOOKAHEAD", "3");
            let delay = random.random_range(Duration::ZERO..Duration::from_millis(40));
            let code = kill_after(push.spawn(), delay);
            assert!(matches!(code, 0 | 137), "segment {number}: {code}");
            killed += u32::from(code == 137);
            if code == 137 && random.random_bool(0.5) {
                continue;
            }
            if code == 137 {
                finish(push.spawn()).quiet_success();
            }
            assert_stored(&repository, &cluster, number);
            cluster.done(&name(number));
            // PostgreSQL removes it or takes it for another one: no note of it may be believed for what comes next.
            fs::remove_file(cluster.path().join("pg_wal").join(name(number))).unwrap();
            number += 1;
        }
        // On a machine that is quicker than the kills they are fewer.
        assert!(killed >= 30, "only {killed} were killed in time");
        for number in 1..number {
            assert!(repository.object(&segment_key(&name(number))).is_some(), "{number}");
        }
    }
}
