//! `wal-fetch`: what is not a fault of the wire. Damage at rest, gaps, wrong places, local disks, words, and the ways in
//! which each may look like an absence.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::data_dir::{FakeCluster, SYSTEM_ID, segment};
use crate::postgres::Scratch;
use crate::program::{Call, finish};
use crate::repository::{Repository, history_key, segment_key};

const ONE: &str = "000000010000000000000001";
const TWO: &str = "000000010000000000000002";
const THREE: &str = "000000010000000000000003";
const FOUR: &str = "000000010000000000000004";
const MODES: [(&[&str], i32); 3] = [(&["recovery.signal"], 200), (&["standby.signal"], 1), (&[], 200)];

/// A repository of each kind that holds these segments.
fn archived(names: &[&str]) -> Vec<(Repository, FakeCluster)> {
    let both = Repository::both().into_iter().map(|repository| {
        let cluster = FakeCluster::new();
        for (seed, name) in names.iter().enumerate() {
            cluster.segment(name, seed as u64);
            repository.push(&cluster, name).run().quiet_success();
        }
        (repository, cluster)
    });
    both.collect()
}

#[test]
fn what_was_pushed_comes_back_and_nothing_else_is_there() {
    for (repository, cluster) in archived(&[ONE, TWO]) {
        for name in [ONE, TWO, ONE] {
            repository.fetch(&cluster, name).run().quiet_success();
            let expected = fs::read(cluster.path().join("pg_wal").join(name)).unwrap();
            assert_eq!(fs::read(cluster.destination()).unwrap(), expected);
        }
        for name in [THREE, "00000002.history", "00000001.history", "000000010000000000000002.partial"] {
            repository.fetch(&cluster, name).run().code(1);
        }
    }
}

#[test]
fn damage_at_rest_is_never_restored() {
    type Damage = (&'static str, fn(&mut Vec<u8>));
    let damages: [Damage; 8] = [
        ("a flipped bit in the body", |bytes| {
            let at = bytes.len() * 2 / 3;
            bytes[at] ^= 0x10;
        }),
        ("a flipped bit in the header", |bytes| bytes[60] ^= 1),
        ("a flipped bit in the header's length", |bytes| bytes[5] ^= 1),
        ("the last byte gone", |bytes| bytes.truncate(bytes.len() - 1)),
        ("half of it gone", |bytes| bytes.truncate(bytes.len() / 2)),
        ("empty", Vec::clear),
        ("a byte more", |bytes| bytes.push(0)),
        ("something else", |bytes| *bytes = b"<html>not WAL</html>".to_vec()),
    ];
    for (repository, cluster) in archived(&[ONE, TWO]) {
        let whole = repository.object(&segment_key(TWO)).unwrap();
        for (what, damage) in damages {
            repository.alter(&segment_key(TWO), damage);
            for (signals, code) in MODES {
                cluster.signal(signals);
                let outcome = repository.fetch(&cluster, TWO).run();
                assert_eq!(outcome.code, code, "{what}: {outcome:?}");
                assert!(outcome.stderr.contains(TWO), "{what}: {outcome:?}");
                assert!(!cluster.destination().exists(), "{what}");
            }
            repository.alter(&segment_key(TWO), |bytes| *bytes = whole.clone());
        }
        cluster.signal(&[]);
        repository.fetch(&cluster, TWO).run().quiet_success();
    }
}

#[test]
fn a_swapped_object_is_never_restored() {
    for (repository, cluster) in archived(&[ONE, TWO]) {
        let one = repository.object(&segment_key(ONE)).unwrap();
        repository.alter(&segment_key(TWO), |bytes| *bytes = one);
        cluster.signal(&["recovery.signal"]);
        repository.fetch(&cluster, TWO).run().code(200).says(ONE);
        assert!(!cluster.destination().exists());
    }
}

#[test]
fn another_clusters_segment_is_never_restored() {
    for (repository, cluster) in archived(&[ONE]) {
        let other = FakeCluster::with(SYSTEM_ID + 1, 1);
        let theirs = Repository::local();
        other.segment(ONE, 9);
        theirs.push(&other, ONE).run().quiet_success();
        let object = theirs.object(&segment_key(ONE)).unwrap();
        repository.alter(&segment_key(ONE), |bytes| *bytes = object);
        cluster.signal(&["recovery.signal"]);
        repository.fetch(&cluster, ONE).run().code(200).says("another cluster");
        assert!(!cluster.destination().exists());
    }
}

/// The header may be forged whole; the page inside still tells.
#[test]
fn a_page_that_contradicts_its_header_is_never_restored() {
    for (repository, cluster) in archived(&[ONE]) {
        // Another segment's bytes under this header: zstd and digest are right, made by hand.
        let plain = segment(SYSTEM_ID, TWO, 1 << 20, 5);
        let digest: String =
            <sha2::Sha256 as sha2::Digest>::digest(&plain).iter().map(|b| format!("{b:02x}")).collect();
        let frames = zstd::encode_all(&plain[..], 1).unwrap();
        let json = format!(
            "{{\"format\":\"pgark-wal-1\",\"name\":\"{ONE}\",\"system_identifier\":\"{SYSTEM_ID}\",\"postgres_major\":15,\
             \"segment_size\":1048576,\"plain_length\":1048576,\"sha256\":\"{digest}\",\"stored_length\":{},\
             \"written\":\"2026-01-01T00:00:00Z\",\"writer\":\"forger\"}}",
            frames.len()
        );
        let mut object = Vec::new();
        object.extend(0x184D_2A50u32.to_le_bytes());
        object.extend((json.len() as u32 + 12).to_le_bytes());
        object.extend(b"pgarkWAL");
        object.extend(crc32c::crc32c(json.as_bytes()).to_le_bytes());
        object.extend(json.as_bytes());
        object.extend(frames);
        repository.alter(&segment_key(ONE), |bytes| *bytes = object);
        cluster.signal(&["recovery.signal"]);
        repository.fetch(&cluster, ONE).run().code(200).says("begins at");
        assert!(!cluster.destination().exists());
    }
}

#[test]
fn a_gap_is_an_error_that_names_both_sides_unless_it_is_accepted() {
    for (repository, cluster) in archived(&[ONE, TWO, THREE]) {
        repository.remove(&segment_key(TWO));
        for (signals, code) in MODES {
            cluster.signal(signals);
            repository.fetch(&cluster, TWO).run().code(code).says(TWO).says(THREE).says("--accept-end-at");
            repository.fetch(&cluster, FOUR).run().code(1);
        }
        cluster.signal(&["recovery.signal"]);
        let accepting = |name: &str, end: &str| {
            let words = ["wal-fetch", name, "pg_wal/RECOVERYXLOG", "--accept-end-at", end];
            Call::new(words).impatient().envs(repository.env()).within(cluster.path()).run()
        };
        accepting(TWO, TWO).code(1).says("recovery ends here");
        accepting(TWO, ONE).code(200);
        accepting(TWO, THREE).code(200);
        // What is there is still restored: the word is for what is missing.
        assert_eq!(accepting(THREE, THREE).code, 0);
        fs::remove_file(cluster.destination()).unwrap();
        // The same position of a parent timeline.
        accepting(TWO, "000000020000000000000002").code(1);
        // A damaged one may be given up as well, an unreachable one may not.
        repository.alter(&segment_key(THREE), |bytes| bytes.truncate(3000));
        accepting(THREE, THREE).code(1).says("recovery ends here");
        let elsewhere = Call::new(["wal-fetch", TWO, "pg_wal/RECOVERYXLOG", "--accept-end-at", TWO]);
        elsewhere.impatient().env("PGARK_REPO__URL", "file:///nonexistent").within(cluster.path()).run().code(200);
        assert!(!cluster.destination().exists());
    }
}

/// Look-ahead stores several segments at once: a later one may be there before an earlier one.
#[test]
fn a_gap_that_closes_in_a_moment_is_none() {
    for (repository, cluster) in archived(&[ONE, TWO, THREE]) {
        let late = repository.object(&segment_key(TWO)).unwrap();
        for (signals, _) in MODES {
            cluster.signal(signals);
            repository.remove(&segment_key(TWO));
            let fetching = repository.fetch(&cluster, TWO).spawn();
            std::thread::sleep(Duration::from_millis(500));
            repository.put(&segment_key(TWO), &late);
            finish(fetching).quiet_success();
            fs::remove_file(cluster.destination()).unwrap();
        }
    }
}

#[test]
fn a_missing_history_below_a_higher_one_is_a_gap() {
    for repository in Repository::both() {
        let cluster = FakeCluster::new();
        cluster.segment(ONE, 1);
        cluster.file("00000002.history", b"1\t0/200000\tx\n");
        cluster.file("00000003.history", b"1\t0/200000\tx\n2\t0/300000\ty\n");
        for name in [ONE, "00000002.history", "00000003.history"] {
            repository.push(&cluster, name).run().quiet_success();
        }
        repository.remove(&history_key("00000002"));
        cluster.signal(&["recovery.signal"]);
        repository.fetch(&cluster, "00000002.history").run().code(200).says("00000003.history");
        repository.fetch(&cluster, "00000004.history").run().code(1);
        repository.fetch(&cluster, "00000001.history").run().code(1);
        // A server that is on timeline 3 already asks for its parents' histories, which may be older than the archive.
        let later = FakeCluster::with(SYSTEM_ID, 3);
        later.signal(&["recovery.signal"]);
        repository.fetch(&later, "00000002.history").run().code(1);
    }
}

#[test]
fn without_an_identity_nothing_is_absent_in_recovery() {
    for repository in Repository::both() {
        let cluster = FakeCluster::new();
        for (signals, code) in [(&["recovery.signal"][..], 200), (&["standby.signal"], 1), (&[], 1)] {
            cluster.signal(signals);
            repository.fetch(&cluster, ONE).run().code(code).says("has no identity");
        }
        cluster.signal(&["standby.signal", "promote"]);
        repository.fetch(&cluster, ONE).run().code(200);
    }
}

#[test]
fn a_foreign_or_damaged_identity_is_no_absence() {
    for (repository, cluster) in archived(&[ONE]) {
        let stranger = FakeCluster::with(SYSTEM_ID + 1, 1);
        stranger.signal(&["recovery.signal"]);
        repository.fetch(&stranger, TWO).run().code(200).says("belongs to another cluster");
        repository.fetch(&stranger, ONE).run().code(200).says("belongs to another cluster");
        for damage in [&b"{}"[..], b"", b"<html></html>"] {
            repository.alter("main/identity/1.json", |bytes| *bytes = damage.to_vec());
            cluster.signal(&["recovery.signal"]);
            repository.fetch(&cluster, TWO).run().code(200).says("identity");
        }
    }
}

#[test]
fn a_standby_that_is_promoted_or_strict_stops_at_a_fault() {
    for (repository, cluster) in archived(&[ONE, TWO]) {
        repository.alter(&segment_key(TWO), |bytes| bytes.truncate(2000));
        cluster.signal(&["standby.signal"]);
        repository.fetch(&cluster, TWO).run().code(1);
        repository.fetch(&cluster, TWO).env("PGARK_WAL__STRICT_STANDBY", "true").run().code(200);
        cluster.signal(&["standby.signal", "promote"]);
        repository.fetch(&cluster, TWO).run().code(200);
        // An absence stays an absence.
        repository.fetch(&cluster, THREE).run().code(1);
    }
}

#[test]
fn a_partial_segment_is_never_taken_for_the_segment() {
    for (repository, cluster) in archived(&[ONE]) {
        cluster.segment("000000010000000000000002.partial", 4);
        repository.push(&cluster, "000000010000000000000002.partial").run().quiet_success();
        cluster.signal(&["recovery.signal"]);
        repository.fetch(&cluster, TWO).run().code(1);
        assert!(!cluster.destination().exists());
    }
}

#[test]
fn wrong_words_and_settings_stop_recovery_in_every_mode() {
    let repository = Repository::local();
    let cluster = FakeCluster::new();
    cluster.segment(ONE, 1);
    repository.push(&cluster, ONE).run().quiet_success();
    let bad_file = cluster.path().join("bad.toml");
    fs::write(&bad_file, "[wal]\nfetch_retyr = \"1m\"\n").unwrap();
    let bad_file = bad_file.display().to_string();
    let words: [&[&str]; 13] = [
        &["wal-fetch"],
        &["wal-fetch", ONE],
        &["wal-fetch", ONE, "pg_wal/RECOVERYXLOG", "more"],
        &["wal-fetch", "--no-such-flag", ONE, "pg_wal/RECOVERYXLOG"],
        &["wal-fetch", "not-a-segment", "pg_wal/RECOVERYXLOG"],
        &["wal-fetch", ONE, "pg_wal/RECOVERYXLOG", "--accept-end-at", "x"],
        &["wal-fetch", ONE, "pg_wal/RECOVERYXLOG", "--repo", "ftp://x"],
        &["wal-fetch", ONE, "pg_wal/RECOVERYXLOG", "--config", "/nonexistent.toml"],
        &["wal-fetch", ONE, "pg_wal/RECOVERYXLOG", "--config", &bad_file],
        &["wal-fetch", ONE, "pg_wal/RECOVERYXLOG", "--help"],
        &["wal_fetch", ONE, "pg_wal/RECOVERYXLOG"],
        &[ONE, "pg_wal/RECOVERYXLOG"],
        &["--version", ONE, "pg_wal/RECOVERYXLOG"],
    ];
    for (signals, _) in MODES {
        cluster.signal(signals);
        for words in words {
            let outcome = Call::new(words).impatient().envs(repository.env()).within(cluster.path()).run();
            assert_eq!(outcome.code, 200, "{words:?}: {outcome:?}");
        }
        let call = || repository.fetch(&cluster, ONE);
        for (name, value) in [
            ("PGARK_WAL__FETCH_RETRY", "soon"),
            ("PGARK_WAL__FETCH_RETYR", "1m"),
            ("PGARK_REPO__URL", "s3://key:secret@bucket"),
            ("PGARK_CLUSTER__NAME", "../other"),
            ("PGARK_CONFIG", "/nonexistent.toml"),
        ] {
            call().env(name, value).run().code(200);
        }
    }
    assert!(!cluster.destination().exists());
    assert_eq!(Call::new(["wal-fetch", "--help"]).run().code, 0);
}

#[test]
fn a_place_that_cannot_be_written_is_no_absence() {
    for (repository, cluster) in archived(&[ONE]) {
        cluster.signal(&["recovery.signal"]);
        let to = |path: &str| {
            Call::new(["wal-fetch", ONE, path]).impatient().envs(repository.env()).within(cluster.path()).run()
        };
        to("no/such/directory/RECOVERYXLOG").code(200);
        to("/proc/RECOVERYXLOG").code(200);
        fs::create_dir_all(cluster.path().join("pg_wal/occupied")).unwrap();
        to("pg_wal/occupied").code(200);
    }
}

#[test]
fn a_full_disk_is_no_absence() {
    for (repository, cluster) in archived(&[ONE]) {
        cluster.signal(&["recovery.signal"]);
        let small = Scratch::new("full");
        let mount = ["-t", "tmpfs", "-o", "size=256k", "tmpfs"];
        let mounted = Command::new("mount").args(mount).arg(small.path()).status().expect("run mount");
        // Without the right to mount, /dev/full is the disk that is always full.
        let place = if mounted.success() { small.path().to_owned() } else { "/dev".into() };
        let target = if mounted.success() { place.join("RECOVERYXLOG") } else { "/dev/full".into() };
        let words = ["wal-fetch".into(), ONE.into(), target.display().to_string()];
        let outcome = Call::new(words).impatient().envs(repository.env()).within(cluster.path()).run();
        let left = fs::read_dir(&place).unwrap().count();
        if mounted.success() {
            Command::new("umount").arg(small.path()).status().expect("run umount");
            assert_eq!(left, 0, "something was left behind");
            outcome.clone().says("No space left");
        }
        outcome.code(200);
    }
}

#[test]
fn wrong_credentials_and_buckets_are_no_absence() {
    let repository = Repository::s3();
    let cluster = FakeCluster::new();
    cluster.segment(ONE, 1);
    repository.push(&cluster, ONE).run().quiet_success();
    for (signals, code) in MODES {
        cluster.signal(signals);
        for name in [ONE, TWO, "00000002.history"] {
            let call = || repository.fetch(&cluster, name);
            call().env("AWS_SECRET_ACCESS_KEY", "wrong").run().code(code).says("SignatureDoesNotMatch");
            call().env("AWS_ACCESS_KEY_ID", "wrong").run().code(code).says("InvalidAccessKeyId");
            call().env("PGARK_REPO__URL", "s3://no-such-bucket/pg").run().code(code).says("NoSuchBucket");
            call().without("AWS_SECRET_ACCESS_KEY").without("AWS_ACCESS_KEY_ID").run().code(code);
            repository.double().deny_list(true);
            if name != ONE {
                call().run().code(code).says("AccessDenied");
            }
            repository.double().deny_list(false);
        }
        let elsewhere = repository.url().replace("/pg", "/other");
        let code = if signals == ["recovery.signal"] { 200 } else { 1 };
        repository.fetch(&cluster, TWO).env("PGARK_REPO__URL", elsewhere).run().code(code).says("no identity");
    }
}

/// The name that `pg_rewind` and people use: an absolute path, from anywhere.
#[test]
fn the_data_directory_is_found_around_an_absolute_path() {
    for (repository, cluster) in archived(&[ONE]) {
        let target = cluster.path().join("pg_wal").join("restored");
        let words = ["wal-fetch".to_owned(), ONE.to_owned(), target.display().to_string()];
        Call::new(words).impatient().envs(repository.env()).run().quiet_success();
        assert_eq!(fs::read(&target).unwrap(), fs::read(cluster.path().join("pg_wal").join(ONE)).unwrap());
    }
}

#[test]
fn a_later_generation_is_found_by_the_cluster_that_asks() {
    for (repository, cluster) in archived(&[ONE, TWO]) {
        let upgraded = FakeCluster::with(SYSTEM_ID + 7, 1);
        upgraded.segment(ONE, 77);
        upgraded.segment(THREE, 78);
        repository.push(&upgraded, ONE).run().code(1).says("--new-generation");
        let init = Call::new(["init", "--new-generation"]).envs(repository.env()).within(upgraded.path()).run();
        assert_eq!((init.code, init.stdout.as_str()), (0, "opened generation 2\n"), "{init:?}");
        repository.push(&upgraded, ONE).run().quiet_success();
        repository.push(&upgraded, THREE).run().quiet_success();
        for asking in [&upgraded, &cluster] {
            asking.signal(&["recovery.signal"]);
            repository.fetch(asking, ONE).run().quiet_success();
            let own = fs::read(asking.path().join("pg_wal").join(ONE)).unwrap();
            assert_eq!(fs::read(asking.destination()).unwrap(), own);
        }
        repository.fetch(&upgraded, TWO).run().code(200).says("gap");
        repository.fetch(&upgraded, FOUR).run().code(1);
        repository.fetch(&cluster, THREE).run().code(1);
        // Without a data directory the newest generation is meant.
        let target = Scratch::new("out");
        let path = target.path().join(ONE);
        let words = ["wal-fetch".to_owned(), ONE.to_owned(), path.display().to_string()];
        Call::new(words).impatient().envs(repository.env()).run().quiet_success();
        assert_eq!(fs::read(&path).unwrap(), fs::read(upgraded.path().join("pg_wal").join(ONE)).unwrap());
    }
}

/// At the end of a promotion the signal files are gone when PostgreSQL asks for the parent's history, which it has itself. A
/// failure would leave it on its old timeline, where it would write over what the archive holds.
#[test]
fn the_last_question_of_a_promotion_does_not_fail() {
    for (repository, cluster) in archived(&[ONE]) {
        let ask = |name: &str, env: (&str, &str)| {
            let call = Call::new(["wal-fetch", name, "pg_wal/RECOVERYHISTORY"]).impatient().envs(repository.env());
            call.within(cluster.path()).env("PGARK_WAL__FETCH_RETRY", "300ms").env(env.0, env.1).run().code
        };
        let outage = ("PGARK_REPO__URL", "file:///nonexistent");
        assert_eq!(ask("00000001.history", outage), 1);
        cluster.file("00000002.history", b"1\t0/200000\tx\n");
        assert_eq!(ask("00000002.history", outage), 200, "not in recovery");
        cluster.in_archive_recovery();
        assert_eq!(ask("00000002.history", outage), 1);
        assert_eq!(ask("00000003.history", outage), 200, "it has no copy");
        assert_eq!(ask("00000002.history", ("PGARK_WAL__FETCH_RETRY", "soon")), 200, "a usage error");
        cluster.file("00000002.history", b"not a history");
        assert_eq!(ask("00000002.history", outage), 200, "its copy is damaged");
        cluster.file("00000002.history", b"1\t0/200000\tx\n");
        cluster.signal(&["recovery.signal"]);
        assert_eq!(ask("00000002.history", outage), 200, "a recovery that goes on");
    }
}
