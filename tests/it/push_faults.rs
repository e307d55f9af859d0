//! `wal-push`: what is archived, what is refused, what is a conflict, and what stays as it was.

use std::fs;

use crate::data_dir::{FakeCluster, SYSTEM_ID, segment};
use crate::double::{Fault, Op, Rule, S3Double};
use crate::postgres::Scratch;
use crate::program::{Call, finish};
use crate::repository::{Repository, history_key, segment_key};

const ONE: &str = "000000010000000000000001";
const TWO: &str = "000000010000000000000002";

#[test]
fn zstd_opens_what_was_pushed_and_the_identity_is_created_once() {
    for repository in Repository::both() {
        let cluster = FakeCluster::new();
        let path = cluster.segment(ONE, 1);
        for _ in 0..3 {
            repository.push(&cluster, ONE).run().quiet_success();
        }
        assert_eq!(repository.keys(), [segment_key(ONE), "main/identity/1.json".to_owned()]);
        let object = repository.object(&segment_key(ONE)).unwrap();
        assert_eq!(zstd::decode_all(&object[..]).unwrap(), fs::read(path).unwrap());
        let identity = String::from_utf8(repository.object("main/identity/1.json").unwrap()).unwrap();
        assert!(identity.contains(&format!("\"system_identifier\":\"{SYSTEM_ID}\"")), "{identity}");
    }
}

#[test]
fn another_content_is_a_conflict_and_the_first_stays() {
    for repository in Repository::both() {
        let cluster = FakeCluster::new();
        cluster.segment(ONE, 1);
        repository.push(&cluster, ONE).run().quiet_success();
        let before = repository.object(&segment_key(ONE)).unwrap();
        let path = cluster.segment(ONE, 2);
        let outcome = repository.push(&cluster, ONE).run().code(1);
        let digest: String = <sha2::Sha256 as sha2::Digest>::digest(fs::read(path).unwrap())
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert!(outcome.stderr.contains(&digest) && outcome.stderr.matches("sha256").count() == 2, "{outcome:?}");
        assert_eq!(outcome.stderr.matches("pid").count(), 2, "{outcome:?}");
        assert_eq!(repository.object(&segment_key(ONE)).unwrap(), before);
    }
}

#[test]
fn a_conflict_is_judged_without_metadata_too() {
    let repository = Repository::s3();
    repository.double().keep_metadata(false);
    let cluster = FakeCluster::new();
    cluster.segment(ONE, 1);
    repository.push(&cluster, ONE).run().quiet_success();
    repository.push(&cluster, ONE).run().quiet_success();
    cluster.segment(ONE, 2);
    repository.push(&cluster, ONE).run().code(1);
}

#[test]
fn a_damaged_object_does_not_pass_for_an_equal_one() {
    for repository in Repository::both() {
        let cluster = FakeCluster::new();
        cluster.segment(ONE, 1);
        repository.push(&cluster, ONE).run().quiet_success();
        for damage in [|bytes: &mut Vec<u8>| bytes.truncate(5000), Vec::clear] {
            repository.alter(&segment_key(ONE), damage);
            repository.push(&cluster, ONE).run().code(14);
        }
    }
    // A directory keeps no metadata: the content itself must be equal.
    let repository = Repository::local();
    let cluster = FakeCluster::new();
    cluster.segment(ONE, 1);
    repository.push(&cluster, ONE).run().quiet_success();
    repository.alter(&segment_key(ONE), |bytes| {
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
    });
    repository.push(&cluster, ONE).run().code(14);
}

#[test]
fn a_call_for_help_archives_nothing_and_says_so() {
    for words in [&["wal-push", "pg_wal/x", ONE, "--help"][..], &["--version", "wal-push", "pg_wal/x", ONE]] {
        assert_eq!(Call::new(words).run().code, 2, "{words:?}");
    }
}

#[test]
fn a_segment_that_is_still_written_is_refused() {
    let repository = Repository::local();
    let cluster = FakeCluster::new();
    cluster.segment(ONE, 1);
    fs::write(cluster.path().join("postmaster.pid"), "1\n").unwrap();
    repository.push(&cluster, ONE).run().code(3).says("not finished");
    fs::write(cluster.path().join(format!("pg_wal/archive_status/{ONE}.ready")), "").unwrap();
    repository.push(&cluster, ONE).run().quiet_success();
}

/// A lost identity is not written anew for whoever comes first, whatever else lies there.
#[test]
fn a_lost_identity_is_not_hidden_by_stray_objects() {
    for repository in Repository::both() {
        let cluster = FakeCluster::new();
        cluster.segment(ONE, 1);
        repository.push(&cluster, ONE).run().quiet_success();
        repository.remove("main/identity/1.json");
        for stray in ["main/-x/note", "main/.x", "main/!", "main/01/x"] {
            repository.put(stray, b"x");
        }
        if let Repository::S3(double) = &repository {
            double.put_raw("pg/main/", b"", &[]);
        }
        let other = FakeCluster::with(SYSTEM_ID + 1, 1);
        other.segment(TWO, 1);
        repository.push(&other, TWO).run().code(14).says("but no identity");
        assert!(!repository.keys().iter().any(|key| key.contains("identity/") || key.contains(TWO)));
    }
}

#[test]
fn two_clusters_in_one_place_are_kept_apart() {
    for repository in Repository::both() {
        let cluster = FakeCluster::new();
        cluster.segment(ONE, 1);
        repository.push(&cluster, ONE).run().quiet_success();
        let keys = repository.keys();
        let other = FakeCluster::with(SYSTEM_ID + 1, 1);
        other.segment(TWO, 1);
        other.file("00000002.history", b"1\t0/200000\tx\n");
        for name in [TWO, "00000002.history"] {
            repository.push(&other, name).run().code(1).says("belongs to another cluster");
        }
        // A segment of the other cluster that lies in ours.
        let foreign = segment(SYSTEM_ID + 1, TWO, 1 << 20, 3);
        cluster.file(TWO, &foreign);
        repository.push(&cluster, TWO).run().code(1).says("another cluster");
        assert_eq!(repository.keys(), keys);
    }
}

#[test]
fn what_is_not_what_its_name_says_is_refused_before_anything_is_stored() {
    let good = || segment(SYSTEM_ID, ONE, 1 << 20, 1);
    let change = |change: fn(&mut Vec<u8>)| {
        let mut bytes = good();
        change(&mut bytes);
        bytes
    };
    let bad: Vec<(&str, &str, Vec<u8>)> = vec![
        ("empty", ONE, vec![]),
        ("short", ONE, good()[..1 << 19].to_vec()),
        ("a byte short", ONE, good()[..(1 << 20) - 1].to_vec()),
        ("a byte long", ONE, [good(), vec![0]].concat()),
        ("zeroes", ONE, vec![0; 1 << 20]),
        ("another segment's", ONE, segment(SYSTEM_ID, TWO, 1 << 20, 1)),
        ("a later timeline's", ONE, segment(SYSTEM_ID, "000000020000000000000001", 1 << 20, 1)),
        ("of an unknown version", ONE, change(|bytes| bytes[0] = 0x19)),
        ("without the long header", ONE, change(|bytes| bytes[2] = 0)),
        ("of another segment size", ONE, change(|bytes| bytes[34] = 0x20)),
        ("an empty history", "00000002.history", vec![]),
        ("a history that names itself", "00000002.history", b"2\t0/200000\tx\n".to_vec()),
        (
            "a backup note of another segment",
            "000000010000000000000001.00000028.backup",
            b"START WAL LOCATION: 0/200028 (file 000000010000000000000002)\nSTOP WAL LOCATION: 0/1\n".to_vec(),
        ),
        ("an empty backup note", "000000010000000000000001.00000028.backup", vec![]),
    ];
    for repository in Repository::both() {
        let cluster = FakeCluster::new();
        for (what, name, bytes) in &bad {
            cluster.file(name, bytes);
            let outcome = repository.push(&cluster, name).run();
            assert_eq!(outcome.code, 3, "{what}: {outcome:?}");
            assert!(outcome.stderr.contains(name), "{what}: {outcome:?}");
        }
        repository.push(&cluster, "000000010000000000000077").run().code(4);
        fs::create_dir(cluster.path().join("pg_wal").join(TWO)).unwrap();
        let directory = repository.push(&cluster, TWO).run();
        assert!(matches!(directory.code, 3 | 4), "{directory:?}");
        assert!(repository.keys().iter().all(|key| !key.contains("/wal/")), "{:?}", repository.keys());
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_refused() {
    let repository = Repository::local();
    // Large enough that somebody can be quicker than the reader.
    let cluster = FakeCluster::with_segments_of(64 << 20);
    let path = cluster.segment(ONE, 1);
    let mut refused = 0;
    for round in 0..5u8 {
        let child = repository.push(&cluster, ONE).spawn();
        std::thread::sleep(std::time::Duration::from_millis(30 + 20 * u64::from(round)));
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_at(&file, &[round + 1], 60 << 20).unwrap();
        let outcome = crate::program::finish(child);
        match outcome.code {
            3 => refused += 1,
            // The change came before or after the reading: then what is stored is what was read.
            0 | 1 => {}
            _ => panic!("{outcome:?}"),
        }
    }
    assert!(refused > 0, "the file was never changed in time");
}

#[test]
fn histories_backups_and_partials_are_archived() {
    for repository in Repository::both() {
        let cluster = FakeCluster::new();
        let note: &[u8] = b"START WAL LOCATION: 0/100028 (file 000000010000000000000001)\nSTOP WAL LOCATION: 0/100100 (file 000000010000000000000001)\n";
        cluster.file("000000010000000000000001.00000028.backup", note);
        cluster.file("00000002.history", b"1\t0/200000\tx\n");
        cluster.segment("000000010000000000000002.partial", 2);
        for name in ["00000002.history", "000000010000000000000001.00000028.backup", "000000010000000000000002.partial"]
        {
            for _ in 0..2 {
                repository.push(&cluster, name).run().quiet_success();
            }
            repository.fetch(&cluster, name).run().quiet_success();
            let expected = fs::read(cluster.path().join("pg_wal").join(name)).unwrap();
            assert_eq!(fs::read(cluster.destination()).unwrap(), expected);
        }
    }
}

#[test]
fn a_second_different_partial_is_kept_beside_the_first() {
    for repository in Repository::both() {
        let cluster = FakeCluster::new();
        let name = "000000010000000000000002.partial";
        cluster.segment(name, 1);
        repository.push(&cluster, name).run().quiet_success();
        cluster.segment(name, 2);
        for _ in 0..2 {
            let outcome = repository.push(&cluster, name).run().code(0);
            assert!(outcome.stderr.contains("warning: another"), "{outcome:?}");
        }
        let partials: Vec<_> = repository.keys().into_iter().filter(|key| key.contains(".partial")).collect();
        assert_eq!(partials.len(), 2, "{partials:?}");
    }
}

#[test]
fn the_history_of_a_segments_timeline_goes_first() {
    for repository in Repository::both() {
        let cluster = FakeCluster::with(SYSTEM_ID, 2);
        let name = "000000020000000000000003";
        cluster.segment(name, 1);
        cluster.file("00000002.history", b"1\t0/200000\tx\n");
        repository.push(&cluster, name).run().quiet_success();
        assert!(repository.keys().contains(&history_key("00000002")), "{:?}", repository.keys());
        // Two servers promoted to one timeline: nothing of the second gets in.
        cluster.file("00000002.history", b"1\t0/280000\tanother server\n");
        cluster.segment("000000020000000000000004", 1);
        repository.push(&cluster, "000000020000000000000004").run().code(1).says("00000002.history");
        assert!(!repository.keys().contains(&segment_key("000000020000000000000004")));
    }
}

#[test]
fn a_history_needs_a_data_directory_to_say_whose_it_is() {
    let repository = Repository::local();
    let cluster = FakeCluster::new();
    let path = cluster.file("00000002.history", b"1\t0/200000\tx\n");
    let elsewhere = crate::postgres::Scratch::new("elsewhere");
    let copy = elsewhere.path().join("00000002.history");
    fs::copy(path, &copy).unwrap();
    let call = Call::new(["wal-push".to_owned(), copy.display().to_string()]).envs(repository.env());
    call.clone().within(elsewhere.path()).run().code(3).says("--pgdata");
    call.env("PGARK_CLUSTER__PGDATA", cluster.path().display().to_string())
        .within(elsewhere.path())
        .run()
        .quiet_success();
}

#[test]
fn an_archive_whose_disk_is_not_mounted_is_not_begun_anew() {
    let cluster = FakeCluster::new();
    cluster.segment(ONE, 1);
    let call = Call::new(["wal-push", &format!("pg_wal/{ONE}")]).within(cluster.path());
    call.env("PGARK_REPO__URL", "file:///nonexistent/archive").run().code(12).says("mkdir -p");
}

#[test]
fn data_without_its_identity_is_not_adopted() {
    for repository in Repository::both() {
        let cluster = FakeCluster::new();
        cluster.segment(ONE, 1);
        cluster.segment(TWO, 2);
        repository.push(&cluster, ONE).run().quiet_success();
        repository.remove("main/identity/1.json");
        repository.push(&cluster, TWO).run().code(14).says("no identity");
        assert!(!repository.keys().contains(&segment_key(TWO)));
    }
}

#[test]
fn a_store_without_conditional_writes_is_used_only_when_told_so() {
    let repository = Repository::s3();
    repository.double().reject_conditions(true);
    let cluster = FakeCluster::new();
    cluster.segment(ONE, 1);
    repository.push(&cluster, ONE).run().code(13).says("head-then-put");
    let weak = || repository.push(&cluster, ONE).env("PGARK_REPO__CONDITIONAL_PUT", "head-then-put");
    for _ in 0..2 {
        let outcome = weak().run().code(0);
        assert!(outcome.stderr.contains("warning: `conditional_put"), "{outcome:?}");
    }
    cluster.segment(ONE, 2);
    weak().run().code(1);
}

#[test]
fn a_large_object_goes_in_parts_create_only() {
    let repository = Repository::s3();
    let cluster = FakeCluster::with_segments_of(128 << 20);
    let path = cluster.segment(ONE, 1);
    let patient = || {
        repository.push(&cluster, ONE).env("PGARK_WAL__PUSH_DEADLINE", "60s").env("PGARK_REPO__REQUEST_TIMEOUT", "10s")
    };
    // The first try is told 200 with an error inside: that is no success.
    let rule = repository.double().fault(Rule::new(Fault::OkWithErrorBody).on(Op::Complete).once());
    patient().run().quiet_success();
    assert_eq!(repository.double().fired(rule), 1);
    assert_eq!(zstd::decode_all(&repository.object(&segment_key(ONE)).unwrap()[..]).unwrap(), fs::read(&path).unwrap());
    patient().run().quiet_success();
    assert!(repository.double().open_uploads().is_empty());
    let lasting = Repository::s3();
    lasting.double().fault(Rule::new(Fault::OkWithErrorBody).on(Op::Complete));
    lasting.push(&cluster, ONE).env("PGARK_WAL__PUSH_DEADLINE", "60s").run().code(10);
    assert!(!lasting.keys().contains(&segment_key(ONE)));
}

#[test]
fn backfill_archives_every_finished_file_and_goes_on_after_a_failure() {
    for repository in Repository::both() {
        let cluster = FakeCluster::new();
        let done = |name: &str| {
            fs::write(cluster.path().join(format!("pg_wal/archive_status/{name}.done")), "").unwrap();
        };
        for (seed, name) in [ONE, TWO, "000000010000000000000003", "000000010000000000000004"].iter().enumerate() {
            cluster.segment(name, seed as u64);
        }
        cluster.file("00000002.history", b"1\t0/400000\tx\n");
        for name in [ONE, TWO, "000000010000000000000003", "00000002.history"] {
            done(name);
        }
        repository.push(&cluster, ONE).run().quiet_success();
        cluster.file(TWO, b"damaged");
        let call = Call::new(["wal-push", "--backfill", "--json"]).envs(repository.env()).within(cluster.path());
        let outcome = call.run();
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(outcome.stdout.contains("\"schema\": 1") && outcome.stdout.contains("too few"), "{outcome:?}");
        cluster.segment(TWO, 1);
        let outcome = call.run().quiet_success();
        assert!(outcome.stdout.contains(TWO), "{outcome:?}");
        let keys = repository.keys();
        for name in [ONE, TWO, "000000010000000000000003"] {
            assert!(keys.contains(&segment_key(name)), "{name}");
        }
        assert!(keys.contains(&history_key("00000002")));
        // It has no status file: PostgreSQL has not finished it.
        assert!(!keys.contains(&segment_key("000000010000000000000004")));
    }
}

/// A pipe stands for a disk that does not answer: to read it waits for ever.
#[test]
fn files_that_never_answer_do_not_hold_a_command() {
    use std::time::Duration;
    let place = Scratch::new("pipes");
    let pipe = place.path().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let pipe = pipe.display().to_string();
    let repository = Repository::S3(S3Double::builder().tls().start());
    let cluster = FakeCluster::new();
    cluster.segment(ONE, 1);
    let calls =
        || [repository.push(&cluster, ONE).env("PGARK_WAL__PUSH_DEADLINE", "1s"), repository.fetch(&cluster, ONE)];
    // What pgark reads itself must be a regular file.
    for (name, said) in [
        ("PGARK_REPO__SECRET_ACCESS_KEY_FILE", "`repo.secret_access_key_file` names: it is not a regular file"),
        ("PGARK_REPO__CA_FILE", "it is not a regular file"),
        ("PGARK_CONFIG", "it is not a regular file"),
    ] {
        for call in calls() {
            let call =
                call.env("PGARK_REPO__ACCESS_KEY_ID", "id").env("PGARK_REPO__SECRET_ACCESS_KEY_FILE", "/etc/hostname");
            let outcome = call.env(name, pipe.clone()).run().says(said);
            assert!(outcome.code != 0 && outcome.code != 1 && outcome.took < Duration::from_secs(10), "{outcome:?}");
        }
    }
    // What the SDK reads, and what lies in the data directory, hangs; the bounds hold.
    let profile = |call: Call| {
        let call = call.without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY").without("AWS_REGION");
        call.env("AWS_SHARED_CREDENTIALS_FILE", pipe.clone()).env("AWS_CONFIG_FILE", "/nonexistent")
    };
    let [push, fetch] = calls();
    let outcome = profile(push).run().code(20);
    assert!(outcome.took < Duration::from_secs(10), "{outcome:?}");
    let outcome = profile(fetch).run().code(200);
    assert!(outcome.took < Duration::from_secs(15), "{outcome:?}");
    let [push, _] = calls();
    let child = profile(push.env("PGARK_WAL__PUSH_DEADLINE", "60s")).spawn();
    std::thread::sleep(Duration::from_millis(500));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    let outcome = finish(child).code(21).says("interrupted by SIGTERM");
    assert!(outcome.took < Duration::from_secs(10), "{outcome:?}");
    let control = cluster.path().join("global/pg_control");
    fs::remove_file(&control).unwrap();
    fs::hard_link(&pipe, &control).unwrap();
    let [push, fetch] = calls();
    assert!(push.run().code(20).took < Duration::from_secs(10));
    assert!(fetch.run().code(200).took < Duration::from_secs(15));
}

/// As the format says, also for a writer that is stricter: a reader of the same group relies on it.
#[test]
fn modes_in_a_directory_do_not_depend_on_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let repository = Repository::local();
    let cluster = FakeCluster::new();
    cluster.segment(ONE, 1);
    let Repository::Local(root) = &repository else { unreachable!() };
    let push = repository.push(&cluster, ONE).command();
    let mut strict = std::process::Command::new("sh");
    strict.args(["-c", "umask 077; exec \"$0\" \"$@\""]).arg(push.get_program()).args(push.get_args());
    strict
        .env_clear()
        .envs(push.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .current_dir(cluster.path());
    assert!(strict.status().unwrap().success());
    let mode = |key: &str| fs::metadata(root.path().join(key)).unwrap().permissions().mode() & 0o777;
    for (key, expected) in
        [("main", 0o750), ("main/1/wal", 0o750), ("main/identity/1.json", 0o640), (&segment_key(ONE), 0o640)]
    {
        assert_eq!(mode(key), expected, "{key}");
    }
}
