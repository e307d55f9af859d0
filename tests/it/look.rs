//! `list`, `show` and `status`: what is there, what can be restored, and what stands in the way.

use std::fs;
use std::time::Duration;

use pgark::postgres::control_details::{RecordedSettings, WalLevel};
use pgark::postgres::{Lsn, SystemId, TimelineId};
use pgark::repo::Generation;
use pgark::repo::manifest::{BackupSummary, FORMAT, Method, Tablespace};
use pgark::repo::manifest_entries::{BadPage, Manifest, PartEntry};
use pgark::stream::Sha256;
use serde_json::Value;

use crate::backups::{on_the_host, take_backup};
use crate::data_dir::{FakeCluster, SYSTEM_ID};
use crate::ledger::Ledger;
use crate::pitr::archiving;
use crate::postgres::Installation;
use crate::program::{Call, Outcome, finish};
use crate::repository::{Repository, segment_key};

const MIB: u64 = 1 << 20;

fn look(repository: &Repository, words: &[&str]) -> Outcome {
    Call::new(words.iter().copied()).impatient().envs(repository.env()).run()
}

pub fn report(repository: &Repository, words: &[&str], code: i32) -> Value {
    let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
    let outcome = look(repository, &words);
    assert_eq!(outcome.code, code, "{outcome:?}");
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome:?}"));
    assert_eq!(report["schema"], 1, "{report}");
    report
}

/// A backup without files: from the middle of a segment to the middle of another.
pub fn manifest(id: &str, start: u64, stop: u64, segment_size: u64) -> Manifest {
    let id: pgark::repo::BackupId = id.parse().unwrap();
    let position = |segment: u64| Lsn(segment * segment_size + segment_size / 2);
    let summary = BackupSummary {
        format: FORMAT.into(),
        id,
        generation: Generation::FIRST,
        system_identifier: SystemId(SYSTEM_ID),
        postgres_major: 15.try_into().unwrap(),
        label: "before\nthe \x1b[31mdeploy".into(),
        method: Method::Local,
        from_standby: false,
        timeline: TimelineId::FIRST,
        start_lsn: position(start),
        stop_lsn: position(stop),
        started: id.begun(),
        stopped: id.begun() + jiff::SignedDuration::from_secs(75),
        segment_size,
        page_checksums: true,
        directory_mode: None,
        tablespaces: vec![Tablespace { oid: 16400, location: "/fast/disk".into() }],
        settings: RecordedSettings {
            wal_level: WalLevel::Replica,
            max_connections: 123,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 64,
        },
        files: 0,
        plain_bytes: 0,
        parts: 0,
        stored_bytes: 0,
        bad_pages: 0,
        writer: "db1, pid 7, pgark 0.1.0".into(),
    };
    let parts = vec![PartEntry { part: 1, stored: 4, sha256: Sha256([0; 32]) }];
    let bad_pages = vec![BadPage { bad_page: "base/5/16384".to_owned().try_into().unwrap(), block: 7 }];
    let mut manifest = Manifest { summary, parts, directories: vec![], files: vec![], bad_pages };
    manifest.sum_up();
    manifest
}

pub fn put_backup(repository: &Repository, manifest: &Manifest) {
    let below = format!("main/1/backup/{}", manifest.summary.id);
    repository.put(&format!("{below}/part/00000001.tar.zst"), b"part");
    repository.put(&format!("{below}/manifest.json.zst"), &manifest.encode().unwrap());
}

fn name(number: u64) -> String {
    format!("00000001{:016X}", number)
}

pub const FIRST: &str = "20261122T100000Z-0000000a";
pub const SECOND: &str = "20261122T110000Z-0000000b";

/// Segments 1 to 9, and two backups.
pub fn archive(repository: &Repository) -> FakeCluster {
    let cluster = FakeCluster::new();
    for number in 1..=9 {
        cluster.segment(&name(number), number);
        repository.push(&cluster, &name(number)).run().quiet_success();
    }
    put_backup(repository, &manifest(FIRST, 2, 3, MIB));
    put_backup(repository, &manifest(SECOND, 5, 6, MIB));
    cluster
}

#[test]
fn an_empty_repository_is_said_to_be_empty() {
    for repository in Repository::both() {
        let outcome = look(&repository, &["list"]).quiet_success();
        assert!(outcome.stdout.contains("is empty"), "{outcome:?}");
        assert_eq!(report(&repository, &["list"], 0)["backups"].as_array().unwrap().len(), 0);
        look(&repository, &["status", "--no-server"]).code(3).says("has no identity");
    }
}

#[test]
fn backups_are_listed_and_shown() {
    for repository in Repository::both() {
        archive(&repository);
        let listed = report(&repository, &["backup-list"], 0);
        let backup = &listed["backups"][1];
        assert_eq!(backup["id"], SECOND);
        assert_eq!(
            (&backup["wal_first"], &backup["wal_last"]),
            (&Value::from(name(5)), &Value::from(name(6))),
            "{backup}"
        );
        for (field, value) in [
            ("state", Value::from("whole")),
            ("method", "local".into()),
            ("seconds", 75.0.into()),
            ("timeline", 1.into()),
            ("start_lsn", "0/580000".into()),
            ("stop_lsn", "0/680000".into()),
            ("wal_segments", 2.into()),
            ("kept", false.into()),
            ("bad_pages", 1.into()),
        ] {
            assert_eq!(backup[field], value, "{field} of {backup}");
        }
        let text = look(&repository, &["list"]).quiet_success().stdout;
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("before the ?[31mdeploy") && !text.contains('\x1b'), "{text}");

        let shown = look(&repository, &["show", SECOND]).quiet_success().stdout;
        for words in ["/fast/disk", "max_connections = 123", "all of it", "base/5/16384: 7", "0/680000", "db1, pid 7"] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
        look(&repository, &["show", "20261122T110000Z-0000000c"]).code(2).says("there is no backup");
        look(&repository, &["show", "yesterday"]).code(2).says("is not a backup's name");

        repository.put(&format!("main/1/backup/{SECOND}/keep.json"), b"{}");
        repository.remove(&segment_key(&name(6)));
        let shown = look(&repository, &["show", SECOND]).code(1).stdout;
        assert!(shown.contains(&format!("no: {} missing", name(6))) && shown.contains("yes"), "{shown}");
    }
}

#[test]
fn damaged_and_unfinished_backups_appear_as_such() {
    for repository in Repository::both() {
        archive(&repository);
        repository.alter(&format!("main/1/backup/{SECOND}/manifest.json.zst"), |bytes| bytes.truncate(30));
        repository.put("main/1/backup/20261122T120000Z-0000000c/part/00000001.tar.zst", b"part");
        let listed = report(&repository, &["list"], 1);
        let states: Vec<&str> =
            listed["backups"].as_array().unwrap().iter().map(|b| b["state"].as_str().unwrap()).collect();
        assert_eq!(states, ["whole", "damaged", "unfinished"]);
        let text = look(&repository, &["list"]).code(1).stdout;
        assert!(text.contains(&format!("{SECOND} is damaged: ")), "{text}");
        look(&repository, &["show", SECOND]).code(1);
        // The older one can still be restored to the end: that is a warning.
        let status = report(&repository, &["status", "--no-server"], 1);
        assert_eq!(status["backups"]["newest"], FIRST, "{status}");

        repository.remove(&format!("main/1/backup/{FIRST}/part/00000001.tar.zst"));
        let text = look(&repository, &["list"]).code(1).stdout;
        assert!(text.contains("part/00000001.tar.zst"), "the missing part is named: {text}");
        let status = report(&repository, &["status", "--no-server"], 2);
        assert_eq!(status["newest"], Value::Null, "{status}");
    }
}

#[test]
fn status_tells_what_can_be_restored() {
    for repository in Repository::both() {
        archive(&repository);
        let no_server = [("PGARK_CLUSTER__CONNINFO", "host=/nonexistent")];
        let call = Call::new(["info", "--json"]).impatient().envs(repository.env());
        let outcome = no_server.iter().fold(call, |call, (name, value)| call.env(name, *value)).run();
        let status: Value = serde_json::from_str(&outcome.stdout).unwrap();
        // Of its own the newest backup has a page with a wrong checksum.
        assert_eq!(outcome.code, 1, "{status}");
        assert_eq!(status["findings"].as_array().unwrap().len(), 1, "{status}");
        assert_eq!(status["server"]["state"], "unreachable");
        assert_eq!((&status["newest"]["lsn"], &status["newest"]["segment"]), (&"0/A00000".into(), &name(9).into()));
        assert!(status["newest"]["age_seconds"].as_i64().is_some_and(|age| (0..120).contains(&age)), "{status}");
        let interval = &status["timelines"][0]["intervals"][0];
        assert_eq!((&interval["from_lsn"], &interval["to_lsn"]), (&"0/380000".into(), &"0/A00000".into()));
        assert_eq!((&interval["backup"], &interval["from_time"]), (&FIRST.into(), &"2026-11-22T10:01:15Z".into()));
        assert_eq!(status["sizes"]["wal_segments"], 9);

        // A gap between the backups loses older moments only.
        repository.remove(&segment_key(&name(4)));
        let status = report(&repository, &["status", "--no-server"], 1);
        assert_eq!((&status["gaps"][0]["kind"], &status["gaps"][0]["first"]), (&"past".into(), &name(4).into()));
        assert_eq!(status["timelines"][0]["intervals"].as_array().unwrap().len(), 2, "{status}");
        // One behind the newest backup cuts.
        repository.remove(&segment_key(&name(8)));
        let status = report(&repository, &["status", "--no-server"], 2);
        assert_eq!((&status["gaps"][1]["kind"], &status["gaps"][1]["last"]), (&"cuts".into(), &name(8).into()));
        assert_eq!(status["newest"]["lsn"], "0/800000", "{status}");
        let text = look(&repository, &["status", "--no-server", "--color", "always"]).code(2).stdout;
        for words in [
            format!("missing {}: older moments are lost", name(4)),
            format!("missing {}: the newest backup cannot be followed further", name(8)),
            "FAIL".to_owned(),
        ] {
            assert!(text.contains(&words), "{words}: {text}");
        }
    }
}

/// Look-ahead stores several segments at once: a later one may be there before an earlier one.
#[test]
fn a_hole_that_closes_in_a_moment_is_none() {
    for repository in Repository::both() {
        archive(&repository);
        let late = repository.object(&segment_key(&name(8))).unwrap();
        repository.remove(&segment_key(&name(8)));
        let looking = Call::new(["status", "--no-server", "--json"]).envs(repository.env()).spawn();
        std::thread::sleep(Duration::from_millis(700));
        repository.put(&segment_key(&name(8)), &late);
        let outcome = finish(looking).code(1);
        let status: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(status["gaps"].as_array().unwrap().len(), 0, "{status}");
        assert_eq!(status["newest"]["lsn"], "0/A00000", "{status}");
    }
}

#[test]
fn status_of_a_server_that_archives() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let ledger = Ledger::create(&primary);
    ledger.write(20, 1000);
    let id = take_backup(&repository, &primary, &["--label", "for status"]);
    ledger.write(20, 1000);
    primary.archive_everything(Duration::from_secs(60));
    let call = |words: &[&str]| on_the_host(&repository, &primary, words).run();
    let status: Value = serde_json::from_str(&call(&["status", "--json"]).quiet_success().stdout).unwrap();
    assert_eq!((&status["backups"]["newest"], &status["server"]["state"]), (&id.as_str().into(), &"reachable".into()));
    let newest: Lsn = status["newest"]["lsn"].as_str().unwrap().parse().unwrap();
    assert!(newest.0 >= ledger.tip().lsn.0, "all that was archived: {status}");
    let interval = &status["timelines"][0]["intervals"][0];
    let time = |field: &str| interval[field].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(time("from_time") < time("to_time"), "{interval}");
    let text = call(&["status"]).quiet_success().stdout;
    assert!(text.contains("OK: the latest state can be restored") && text.contains("primary"), "{text}");
    let shown = call(&["show", &id]).quiet_success().stdout;
    assert!(shown.contains("for status") && shown.contains("all of it"), "{shown}");

    // A command that hangs is not counted by PostgreSQL, nor is one that fails before it has.
    primary.execute("alter system set archive_command = 'sleep 20; false'");
    primary.execute("select pg_reload_conf()");
    for _ in 0..9 {
        ledger.write(1, 1000);
        primary.switch_wal();
    }
    let waiting = call(&["status"]).code(1).stdout;
    assert!(waiting.contains("finished files wait to be archived") && !waiting.contains("does not fail"), "{waiting}");
    primary.wait_until("archiving fails", Duration::from_secs(60), || {
        primary.value("select failed_count > 0 and last_failed_time > last_archived_time from pg_stat_archiver") == "t"
    });
    let outcome = call(&["status"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stdout.contains("archiver"), "{outcome:?}");
}

/// Also with a policy, whose plan goes by what was listed.
#[test]
fn status_looks_at_everything_once() {
    let repository = Repository::s3();
    archive(&repository);
    for stray in ["main/1/aside", "main/1/backup-old/x", "main/1/wal/\u{e9}", "main/1/zzz"] {
        repository.put(stray, b"?");
    }
    let unknown = |status: &Value| {
        let findings = status["findings"].as_array().unwrap().iter();
        findings
            .filter_map(|finding| finding["message"].as_str())
            .find(|said| said.contains("not known"))
            .map(str::to_owned)
    };
    let plain = report(&repository, &["status", "--no-server"], 1);
    repository.double().clear_requests();
    let call = Call::new(["status", "--json", "--no-server"]).impatient().envs(repository.env());
    let outcome = call.env("PGARK_RETENTION__KEEP_FULL", "9").run().code(1);
    let status: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(status["expiry"]["state"], "planned", "{status}");
    assert!(unknown(&status).unwrap().starts_with("4 objects"), "{status}");
    assert!(unknown(&plain).unwrap().starts_with("4 objects"), "{plain}");
    for field in ["timelines", "gaps", "sizes"] {
        assert_eq!(status[field], plain[field], "{field}");
    }
    let read = repository.double().requests().iter().filter(|logged| logged.key.ends_with("manifest.json.zst")).count();
    assert_eq!(read, status["backups"]["whole"].as_u64().unwrap() as usize, "each manifest once");
}

/// How long it takes is measured by `make bench`.
#[test]
fn status_of_a_large_archive() {
    const SEGMENTS: u64 = 100_000;
    const SIZE: u64 = 16 * MIB;
    let repository = Repository::local();
    let first = FakeCluster::with_segments_of(SIZE);
    first.segment(&name(1), 1);
    repository.push(&first, &name(1)).run().quiet_success();
    let root = std::path::PathBuf::from(repository.url().trim_start_matches("file://"));
    for number in 2..=SEGMENTS {
        let segment = format!("00000001{:08X}{:08X}", number / 256, number % 256);
        let path = root.join(segment_key(&segment));
        if number % 256 == 0 {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        fs::write(path, b"x").unwrap();
    }
    let mut backup = manifest(FIRST, 2, 3, SIZE);
    backup.bad_pages.clear();
    backup.sum_up();
    put_backup(&repository, &backup);
    let status = report(&repository, &["status", "--no-server"], 0);
    assert_eq!(status["sizes"]["wal_segments"], SEGMENTS, "{status}");
}
