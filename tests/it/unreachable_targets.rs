//! What `pgark restore` says of every target that cannot be reached, word for word, and with which exit code: before a byte is
//! written.

use jiff::{SignedDuration, Timestamp};
use pgark::postgres::wal_index::{CommitTimes, RestorePoint, WalIndex};
use pgark::postgres::{ClusterIdent, Lsn, SegmentSize, SystemId, Xid, XidRange};
use pgark::repo::Writer;
use pgark::repo::wal_object::{Provenance, WalObject};
use pgark::stream::pack;

use crate::data_dir::{FakeCluster, SYSTEM_ID, segment};
use crate::look::{manifest, put_backup};
use crate::postgres::Scratch;
use crate::program::Call;
use crate::repository::{Repository, segment_key};

const MIB: u64 = 1 << 20;
const FIRST: &str = "20261122T100000Z-0000000a";
const SECOND: &str = "20261122T110000Z-0000000b";
const THIRD: &str = "20261122T120000Z-0000000c";

fn name(timeline: u32, number: u64) -> String {
    format!("{timeline:08X}{number:016X}")
}

/// When the commits of a segment begin: a minute for each, and an hour between the two backups.
fn minute(number: u64) -> Timestamp {
    let begin: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
    let minutes = if number < 5 { number as i64 - 2 } else { 60 + number as i64 - 5 };
    begin + SignedDuration::from_mins(minutes)
}

/// A segment with ten transactions in the first fifty seconds of its minute, and a restore point.
fn put_segment(repository: &Repository, timeline: u32, number: u64) {
    let name = name(timeline, number);
    let begin = minute(number);
    let point = RestorePoint { name: format!("point-{number}"), time: begin, lsn: Lsn(number * MIB + 4096) };
    let index = WalIndex {
        commits: Some(CommitTimes { first: begin, last: begin + SignedDuration::from_secs(50) }),
        xids: Some(XidRange { lowest: Xid(number as u32 * 10), highest: Xid(number as u32 * 10 + 9) }),
        restore_points: vec![point],
        tablespaces: vec![],
        complete: true,
        cut: false,
        ends: None,
    };
    let bytes = segment(SYSTEM_ID, &name, MIB, number);
    let packed = pack(&bytes[..], MIB, 1, WalObject::ROOM, |_, _| Ok(()), |_| ()).unwrap();
    let from = Provenance {
        name: name.parse().unwrap(),
        ident: ClusterIdent { system_id: SystemId(SYSTEM_ID), major: 15.try_into().unwrap() },
        segment_size: Some(SegmentSize::new(MIB).unwrap()),
        written: minute(number),
        writer: Writer { host: "db1".into(), pid: 7, version: "0" },
    };
    repository.put(&segment_key(&name), &WalObject::build(from, packed, Some(index)).unwrap().bytes);
}

/// Segments 1 to 9 of timeline 1, and two backups: from the middle of segment 2 to that of 3, and from 5 to 6.
fn archive() -> Repository {
    let repository = archive_without_backups();
    put_backup(&repository, &manifest(FIRST, 2, 3, MIB));
    put_backup(&repository, &manifest(SECOND, 5, 6, MIB));
    repository
}

fn archive_without_backups() -> Repository {
    let (repository, cluster) = (Repository::local(), FakeCluster::new());
    cluster.segment(&name(1, 1), 1);
    repository.push(&cluster, &name(1, 1)).run().quiet_success();
    (2..=9).for_each(|number| put_segment(&repository, 1, number));
    repository
}

/// Timeline `timeline` left its parent at the middle of a segment.
fn promoted(repository: Repository, timeline: u32, at: u64, own: &[u64]) -> Repository {
    let cluster = FakeCluster::new();
    let history = format!("{timeline:08X}.history");
    let switch = Lsn(at * MIB + MIB / 2);
    cluster.file(&history, format!("1\t{switch}\tno recovery target specified\n").as_bytes());
    repository.push(&cluster, &history).run().quiet_success();
    own.iter().for_each(|number| put_segment(&repository, timeline, *number));
    repository
}

fn without(repository: Repository, keys: &[String]) -> Repository {
    keys.iter().for_each(|key| repository.remove(key));
    repository
}

fn damaged(repository: Repository, id: &str) -> Repository {
    repository.alter(&format!("main/1/backup/{id}/manifest.json.zst"), |bytes| bytes.truncate(30));
    repository
}

fn unfinished(repository: Repository, id: &str) -> Repository {
    repository.put(&format!("main/1/backup/{id}/part/00000001.tar.zst"), b"part");
    repository
}

fn said(repository: &Repository, words: &[&str]) -> String {
    let home = Scratch::new("s");
    let to = home.path().join("data");
    let words: Vec<&str> = ["restore", "--to", to.to_str().unwrap()].iter().chain(words).copied().collect();
    let outcome = Call::new(words).envs(repository.env()).run();
    assert!(!to.exists(), "something was written");
    let text = format!("exit {}\n{}{}", outcome.code, outcome.stdout, outcome.stderr);
    text.replace(&repository.url(), "file:///REPO")
}

#[test]
fn every_unreachable_target_says_why() {
    let gap = || without(archive(), &[segment_key(&name(1, 8))]);
    let cases: Vec<(&str, Repository, &[&str])> = vec![
        ("no backup", archive_without_backups(), &[]),
        ("parts only", unfinished(archive_without_backups(), THIRD), &[]),
        ("no such backup", archive(), &[THIRD]),
        ("no backup's name", archive(), &["yesterday"]),
        ("a backup in parts", unfinished(archive(), THIRD), &[THIRD]),
        ("a damaged manifest", damaged(archive(), SECOND), &[SECOND]),
        ("all manifests damaged", damaged(damaged(archive(), FIRST), SECOND), &[]),
        ("a gap before an LSN", gap(), &["--target-lsn", "0/880000"]),
        ("a gap before a time", gap(), &["--target-time", "2026-11-22 11:04:10+00"]),
        ("a gap before a transaction", gap(), &["--target-xid", "93"]),
        ("a gap before a restore point", gap(), &["--target-name", "point-9"]),
        ("a gap before the latest", gap(), &[]),
        ("a gap within the backup", without(archive(), &[segment_key(&name(1, 6))]), &[SECOND, "--target-immediate"]),
        ("an LSN before the first backup", archive(), &["--target-lsn", "0/200000"]),
        ("a time before the first backup", archive(), &["--target-time", "2026-11-22 11:00:00+01:00"]),
        ("a transaction before the first backup", archive(), &["--target-xid", "12"]),
        ("a backup that stopped behind the LSN", archive(), &[SECOND, "--target-lsn", "0/580000"]),
        ("a backup that stopped behind the time", archive(), &[SECOND, "--target-time", "2026-11-22 10:30:00Z"]),
        ("a time without an offset", archive(), &["--target-time", "2026-11-22 10:30:00"]),
        ("a time in words", archive(), &["--target-time", "yesterday"]),
        ("a time beyond the archive", archive(), &["--target-time", "2026-11-23 00:00:00Z"]),
        ("an LSN beyond the archive", archive(), &["--target-lsn", "1/0"]),
        ("no LSN", archive(), &["--target-lsn", "0-5"]),
        ("an unknown restore point", archive(), &["--target-name", "before-the-deploy"]),
        ("a transaction that never committed", archive(), &["--target-xid", "4711"]),
        ("an unknown timeline", promoted(archive(), 2, 7, &[7, 8]), &["--target-timeline", "3"]),
        ("no timeline", archive(), &["--target-timeline", "newest"]),
        ("a timeline that is no descendant", promoted(archive(), 2, 2, &[2, 3]), &["--target-timeline", "2"]),
        (
            "a timeline without a history",
            {
                let repository = archive();
                put_segment(&repository, 2, 7);
                repository
            },
            &["--target-timeline", "2"],
        ),
        ("an LSN of the timeline that was left", promoted(archive(), 2, 7, &[7, 8]), &["--target-lsn", "0/980000"]),
        ("a fork that is not archived", promoted(archive(), 2, 7, &[]), &[]),
        ("a restore point, exclusively", archive(), &["--target-name", "point-7", "--exclusive"]),
        ("two targets", archive(), &["--target-xid", "71", "--target-lsn", "0/700000"]),
        ("and one that is reached: before a gap", gap(), &["--target-lsn", "0/740000", "--dry-run"]),
    ];
    let mut text = String::new();
    for (case, repository, words) in &cases {
        text.push_str(&format!(
            "# {case}\n$ {}\n{}\n",
            [&["pgark", "restore"], *words].concat().join(" "),
            said(repository, words)
        ));
    }
    insta::assert_snapshot!(text);
}
