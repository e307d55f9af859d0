//! The live tail: a segment that was not full when its server was destroyed is restored up to the last piece that is sound, and
//! never beyond. The pieces are real WAL, cut by the tests.

use std::fs;
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use pgark::postgres::{SegmentName, WalHeader};
use pgark::repo::live_piece::PieceOrigin;
use pgark::repo::{Generation, Layout, LivePiece, Writer};
use pgark::stream::frame::write_in_front;
use pgark::stream::pack;

use crate::backups::{restore, restore_call, take_backup};
use crate::data_dir::{FakeCluster, SYSTEM_ID, segment};
use crate::documents::{blocks, root};
use crate::ledger::{Expect, Ledger, Mark, integrity};
use crate::look::archive;
use crate::pitr::archiving;
use crate::postgres::{Installation, Scratch};
use crate::program::{Call, Outcome};
use crate::repository::{Repository, segment_key};

const A_MINUTE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const ONE: &str = "000000010000000000000001";
const TWO: &str = "000000010000000000000002";
const THREE: &str = "000000010000000000000003";

/// Stores the bytes between the cuts as pieces; their keys.
pub fn put_tail(repository: &Repository, name: &str, plain: &[u8], cuts: &[u32]) -> Vec<String> {
    let layout = Layout::new("main".parse().unwrap());
    let page = WalHeader::parse(plain).unwrap();
    let (mut previous, mut keys) = (None, Vec::new());
    for pair in cuts.windows(2) {
        let bytes = &plain[pair[0] as usize..pair[1] as usize];
        let packed = pack(bytes, bytes.len() as u64, 1, LivePiece::ROOM, |_, _| Ok(()), |_| ()).unwrap();
        let origin = PieceOrigin {
            segment: name.parse::<SegmentName>().unwrap(),
            offset: pair[0],
            previous,
            ident: page.ident,
            segment_size: page.segment_size,
            last_commit: None,
            written: Timestamp::now(),
            writer: Writer { host: "db1".into(), pid: 1, version: "test" },
        };
        let piece = LivePiece::build(origin, packed).unwrap();
        previous = Some(piece.header.sha256);
        let key = layout.live_piece(Generation::FIRST, piece.key).to_string();
        repository.put(&key, &piece.bytes);
        keys.push(key);
    }
    keys
}

fn flip(bytes: &mut [u8]) {
    let at = bytes.len() - 5;
    bytes[at] ^= 1;
}

/// A repository of each kind with a whole segment and the beginning of the next, the bytes of that, and the keys of its pieces.
fn with_tail() -> Vec<(Repository, FakeCluster, Vec<u8>, Vec<String>)> {
    let both = Repository::both().into_iter().map(|repository| {
        let cluster = FakeCluster::new();
        cluster.segment(ONE, 1);
        repository.push(&cluster, ONE).run().quiet_success();
        let plain = segment(SYSTEM_ID, TWO, MIB, 2);
        let keys = put_tail(&repository, TWO, &plain, &CUTS);
        cluster.signal(&["recovery.signal"]);
        (repository, cluster, plain, keys)
    });
    both.collect()
}

const CUTS: [u32; 5] = [0, 100_000, 100_001, 400_000, 700_000];

/// What was fetched is the segment up to there, and zeros behind.
#[track_caller]
fn fetched(cluster: &FakeCluster, plain: &[u8], end: u32) {
    let bytes = fs::read(cluster.destination()).unwrap();
    assert_eq!(bytes.len(), plain.len());
    let end = end as usize;
    assert!(bytes[..end] == plain[..end] && bytes[end..].iter().all(|byte| *byte == 0), "not the first {end} bytes");
    fs::remove_file(cluster.destination()).unwrap();
}

#[test]
fn a_segment_is_joined_of_its_pieces_and_the_whole_one_wins() {
    for (repository, cluster, plain, _) in with_tail() {
        repository.fetch(&cluster, TWO).run().quiet_success();
        fetched(&cluster, &plain, 700_000);
        repository.fetch(&cluster, THREE).run().code(1);
        cluster.segment(TWO, 9);
        repository.push(&cluster, TWO).run().quiet_success();
        repository.fetch(&cluster, TWO).run().quiet_success();
        assert_eq!(fs::read(cluster.destination()).unwrap(), segment(SYSTEM_ID, TWO, MIB, 9));
    }
}

#[test]
fn what_is_missing_or_damaged_ends_it_exactly_there() {
    for (repository, cluster, plain, keys) in with_tail() {
        let objects: Vec<Vec<u8>> = keys.iter().map(|key| repository.object(key).unwrap()).collect();
        for (at, key) in keys.iter().enumerate() {
            let mend = || {
                if repository.object(key).is_some() {
                    repository.remove(key);
                }
                repository.put(key, &objects[at]);
            };
            let ends = |named: &str| {
                let outcome = repository.fetch(&cluster, TWO).run();
                if at == 0 {
                    // Something was there: no proof that recovery has come to the end.
                    outcome.code(200).says(named).says("nothing of its live tail can be used");
                    assert!(!cluster.destination().exists());
                    let words = ["wal-fetch", TWO, "pg_wal/RECOVERYXLOG", "--accept-end-at", TWO];
                    let accepted = Call::new(words).impatient().envs(repository.env()).within(cluster.path());
                    accepted.run().code(1).says(named);
                } else {
                    outcome.code(0).says(named);
                    fetched(&cluster, &plain, CUTS[at]);
                }
            };
            repository.alter(key, |bytes| flip(bytes));
            ends(key);
            mend();
            repository.alter(key, |bytes| *bytes = objects[(at + 1) % 4].clone());
            ends(key);
            mend();
            if let Some(next) = keys.get(at + 1) {
                repository.remove(key);
                ends(next);
                mend();
            }
        }
        repository.fetch(&cluster, TWO).run().quiet_success();
        fetched(&cluster, &plain, 700_000);
        // Another cluster's.
        let other = Repository::local();
        let theirs = put_tail(&other, TWO, &segment(SYSTEM_ID + 1, TWO, MIB, 2), &CUTS);
        repository.alter(&keys[2], |bytes| *bytes = other.object(&theirs[2]).unwrap());
        repository.fetch(&cluster, TWO).run().code(0).says("another cluster");
        fetched(&cluster, &plain, CUTS[2]);
    }
}

#[test]
fn pieces_of_a_later_segment_make_a_gap() {
    for (repository, cluster, plain, keys) in with_tail() {
        let later = put_tail(&repository, THREE, &segment(SYSTEM_ID, THREE, MIB, 3), &[0, 5000]);
        repository.fetch(&cluster, TWO).run().code(200).says(TWO).says(&later[0]);
        assert!(!cluster.destination().exists());
        let words = ["wal-fetch", TWO, "pg_wal/RECOVERYXLOG", "--accept-end-at", TWO];
        Call::new(words).impatient().envs(repository.env()).within(cluster.path()).run().code(0).says(&later[0]);
        fetched(&cluster, &plain, 700_000);
        // Without pieces of its own it is as any other gap.
        keys.iter().for_each(|key| repository.remove(key));
        repository.fetch(&cluster, TWO).run().code(200).says(TWO).says(&later[0]);
        // When all pieces are there, nothing is missing.
        put_tail(&repository, TWO, &plain, &[0, 600_000, MIB as u32]);
        repository.fetch(&cluster, TWO).run().quiet_success();
        fetched(&cluster, &plain, MIB as u32);
        repository.fetch(&cluster, THREE).run().quiet_success();
    }
}

/// It is there, and says that it goes on; only this pgark cannot read it.
#[test]
fn what_another_version_wrote_ends_no_recovery_by_itself() {
    for (repository, cluster, plain, keys) in with_tail() {
        let accepted = |end: u32| {
            let words = ["wal-fetch", TWO, "pg_wal/RECOVERYXLOG", "--accept-end-at", TWO];
            Call::new(words).impatient().envs(repository.env()).within(cluster.path()).run().code(0);
            fetched(&cluster, &plain, end);
        };
        let odd = format!("{}.age", keys[3]);
        repository.put(&odd, b"sealed");
        repository.fetch(&cluster, TWO).run().code(200).says(&odd).says("--accept-end-at");
        assert!(!cluster.destination().exists());
        accepted(CUTS[4]);
        repository.remove(&odd);
        let mut newer = Vec::new();
        write_in_front(&mut newer, 0, br#"{"format":"pgark-live-2"}"#).unwrap();
        repository.alter(&keys[2], |bytes| *bytes = newer);
        repository.fetch(&cluster, TWO).run().code(200).says(&keys[2]).says("`pgark-live-2` needs another version");
        accepted(CUTS[2]);
    }
}

/// As a synchronous receiver leaves them.
#[test]
fn thousands_of_pieces_are_joined_with_a_request_for_each() {
    let repository = Repository::s3();
    let cluster = FakeCluster::new();
    let plain = segment(SYSTEM_ID, TWO, MIB, 2);
    let cuts: Vec<u32> = (0..=2500).map(|number| number * 400).collect();
    put_tail(&repository, TWO, &plain, &cuts);
    repository.put("main/identity/1.json", &identity_of(&cluster));
    cluster.signal(&["recovery.signal"]);
    repository.double().latency(Duration::from_millis(3));
    repository.double().clear_requests();
    repository.fetch(&cluster, TWO).run().quiet_success();
    fetched(&cluster, &plain, 1_000_000);
    let requests = repository.double().requests().len();
    assert!((2500..2520).contains(&requests), "{requests} requests");
}

/// The identity that a repository of this cluster has.
fn identity_of(cluster: &FakeCluster) -> Vec<u8> {
    let other = Repository::local();
    cluster.segment(ONE, 1);
    other.push(cluster, ONE).run().quiet_success();
    other.object("main/identity/1.json").unwrap()
}

fn report(repository: &Repository, words: &[&str], code: i32) -> Value {
    let words = words.iter().copied().chain(["--json"]);
    let outcome = Call::new(words).impatient().envs(repository.env()).run();
    assert_eq!(outcome.code, code, "{outcome:?}");
    serde_json::from_str(&outcome.stdout).unwrap()
}

fn verify(repository: &Repository, words: &[&str]) -> Outcome {
    let words = ["verify"].into_iter().chain(words.iter().copied());
    Call::new(words).impatient().envs(repository.env()).env("PGARK_BACKUP__RETRY", "2s").run()
}

const TEN: &str = "00000001000000000000000A";

#[test]
fn status_tells_up_to_the_last_sound_piece() {
    // The newest backup has a bad page, which is another warning.
    let look = |repository: &Repository| report(repository, &["status", "--no-server"], 1);
    let about_tails = |status: &Value| -> Vec<String> {
        let findings = status["findings"].as_array().unwrap().iter().filter(|finding| finding["check"] == "tail");
        findings.map(|finding| finding["message"].as_str().unwrap().to_owned()).collect()
    };
    for repository in Repository::both() {
        archive(&repository);
        let plain = segment(SYSTEM_ID, TEN, MIB, 10);
        let keys = put_tail(&repository, TEN, &plain, &CUTS);
        let status = look(&repository);
        let newest = &status["newest"];
        assert_eq!((&newest["lsn"], &newest["segment"]), (&"0/AAAE60".into(), &TEN.into()), "{newest}");
        assert_eq!((&newest["live"], status["sizes"]["wal_segments"].as_u64()), (&true.into(), Some(9)));
        assert!(newest["age_seconds"].as_i64().unwrap() < 60);
        assert_eq!(about_tails(&status), [""; 0]);
        assert_eq!(status["timelines"][0]["intervals"][0]["to_lsn"], "0/AAAE60");
        // The second piece is damaged.
        repository.alter(&keys[1], |bytes| flip(bytes));
        let status = look(&repository);
        assert_eq!(status["newest"]["lsn"], "0/A186A0", "{status}");
        assert!(about_tails(&status)[0].contains(&keys[1]), "{status}");
        // Nothing of it is left; then the whole segment comes.
        repository.alter(&keys[0], |bytes| flip(bytes));
        let status = look(&repository);
        assert_eq!((&status["newest"]["lsn"], &status["newest"]["live"]), (&"0/A00000".into(), &false.into()));
        let cluster = FakeCluster::new();
        cluster.segment(TEN, 10);
        repository.push(&cluster, TEN).run().quiet_success();
        let status = look(&repository);
        assert_eq!((&status["newest"]["lsn"], &status["newest"]["live"]), (&"0/B00000".into(), &false.into()));
    }
}

#[test]
fn a_restore_is_planned_up_to_the_last_piece() {
    for repository in Repository::both() {
        archive(&repository);
        let plain = segment(SYSTEM_ID, TEN, MIB, 10);
        put_tail(&repository, TEN, &plain, &CUTS);
        let to = std::path::Path::new("/nonexistent/restored");
        let plan = |words: &[&str]| restore_call(&repository, to, &[words, &["--dry-run"]].concat()).run();
        let latest = plan(&[]);
        assert!(latest.stdout.contains("0/AAAE60 (the end of the live tail of segment"), "{latest:?}");
        plan(&["--target-lsn", "0/AAAE5F"]).code(0);
        plan(&["--target-lsn", "0/AAAE60"]).code(18).says("0/AAAE60 (the end of the live tail of segment");
    }
}

#[test]
fn verify_reads_every_piece_and_the_chain() {
    for repository in Repository::both() {
        archive(&repository);
        let plain = segment(SYSTEM_ID, TEN, MIB, 10);
        let keys = put_tail(&repository, TEN, &plain, &CUTS);
        let whole = verify(&repository, &["--wal-only"]);
        assert!(whole.code == 0 && whole.stdout.contains("13 WAL"), "{whole:?}");
        let second = repository.object(&keys[1]).unwrap();
        repository.alter(&keys[1], |bytes| flip(bytes));
        let named = |verdict: &str, key: &str| {
            let found = report(&repository, &["verify", "--wal-only"], 2);
            let findings = found["findings"].as_array().unwrap();
            assert_eq!(findings.len(), 1, "{found}");
            assert_eq!((&findings[0]["verdict"], &findings[0]["key"]), (&verdict.into(), &key.into()), "{found}");
        };
        named("damaged", &keys[1]);
        repository.remove(&keys[1]);
        named("missing", &keys[2]);
        repository.put(&keys[1], &second);
        // One that begins within another.
        let other = Repository::local();
        let strays = put_tail(&other, TEN, &plain, &[0, 50_000, 150_000]);
        repository.put(&strays[1], &other.object(&strays[1]).unwrap());
        named("damaged", &strays[1]);
        repository.remove(&strays[1]);
        assert_eq!(verify(&repository, &["--wal-only"]).code, 0);
    }
}

/// What `wal-fetch` says of it, `verify` and `status` say, too.
#[test]
fn what_another_version_wrote_is_named_as_what_stops_a_recovery() {
    for repository in Repository::both() {
        archive(&repository);
        let plain = segment(SYSTEM_ID, TEN, MIB, 10);
        let keys = put_tail(&repository, TEN, &plain, &CUTS);
        let named = |key: &str, end: &str| {
            let found = report(&repository, &["verify", "--wal-only"], 3);
            let findings = found["findings"].as_array().unwrap();
            assert_eq!(findings.len(), 1, "{found}");
            assert_eq!((&findings[0]["verdict"], &findings[0]["key"]), (&"unknown".into(), &key.into()), "{found}");
            let status = report(&repository, &["status", "--no-server"], 1);
            let findings_of_status = status["findings"].as_array().unwrap().iter();
            let told: Vec<_> = findings_of_status.filter(|finding| finding["check"] == "tail").collect();
            let [told] = &told[..] else { panic!("{status}") };
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let (verified, message, hint) =
                (text(&findings[0]["message"]), text(&told["message"]), text(&told["hint"]));
            assert!(verified.contains(&format!("goes on behind byte {end}, and a recovery stops there")), "{verified}");
            assert!(message.contains("goes on behind what this pgark can read") && message.contains(key), "{message}");
            assert!(hint.contains("a recovery stops there with an error"), "{hint}");
            for said in [verified, hint] {
                assert!(said.contains(&format!("--accept-end-at {TEN}")), "{said}");
            }
        };
        let odd = format!("{}.age", keys[3]);
        repository.put(&odd, b"sealed");
        named(&odd, "0xAAE60");
        repository.remove(&odd);
        let mut newer = Vec::new();
        write_in_front(&mut newer, 0, br#"{"format":"pgark-live-2"}"#).unwrap();
        repository.alter(&keys[2], |bytes| *bytes = newer);
        named(&keys[2], &format!("{:#X}", CUTS[2]));
    }
}

#[test]
fn expire_takes_the_pieces_of_whole_segments_and_leaves_the_newest_wal() {
    for repository in Repository::both() {
        let cluster = archive(&repository);
        let nine = "000000010000000000000009";
        let old = put_tail(&repository, nine, &segment(SYSTEM_ID, nine, MIB, 9), &[0, 1000, 2000]);
        let live = put_tail(&repository, TEN, &segment(SYSTEM_ID, TEN, MIB, 10), &CUTS);
        let expired =
            Call::new(["expire"]).impatient().envs(repository.env()).env("PGARK_RETENTION__KEEP_FULL", "10").run();
        assert_eq!(expired.code, 0, "{expired:?}");
        let keys = repository.keys();
        assert!(old.iter().all(|key| !keys.contains(key)), "{expired:?}");
        assert!(live.iter().all(|key| keys.contains(key)), "{expired:?}");
        assert!(keys.contains(&segment_key(nine)));
        cluster.signal(&["recovery.signal"]);
        repository.fetch(&cluster, TEN).run().quiet_success();
    }
}

/// docs/restore-by-hand.md, as far as it is about pieces.
#[test]
fn cat_zstd_and_truncate_join_a_tail() {
    let repository = Repository::local();
    let plain = segment(SYSTEM_ID, THREE, 16 * MIB, 3);
    put_tail(&repository, THREE, &plain, &[0, 8192, 8193, 5_000_000]);
    let blocks = blocks(&root().join("docs/restore-by-hand.md"), "sh");
    let script = blocks.iter().find(|block| block.contains("truncate -s")).unwrap();
    let place = Scratch::new("tail");
    let script = script.replace("/srv/archive", repository.url().trim_start_matches("file://"));
    let script = script.replace("/tmp", &place.path().display().to_string());
    let output = Command::new("bash").args(["-euo", "pipefail", "-c", &script]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let joined = fs::read(place.path().join(THREE)).unwrap();
    assert_eq!(joined.len(), plain.len());
    assert!(joined[..5_000_000] == plain[..5_000_000] && joined[5_000_000..].iter().all(|byte| *byte == 0));
}

/// A destroyed server whose last segment is in the repository in pieces, cut at each of the marks.
struct Disaster {
    repository: Repository,
    ledger: Ledger,
    marks: Vec<Mark>,
    cuts: Vec<u32>,
    keys: Vec<String>,
    name: String,
    plain: Vec<u8>,
}

impl Disaster {
    fn strike(repository: Repository, installation: &'static Installation) -> Self {
        let primary = archiving(&repository, installation, 16);
        let ledger = Ledger::create(&primary);
        ledger.write(10, 2000);
        take_backup(&repository, &primary, &[]);
        ledger.write(20, 20_000);
        primary.switch_wal();
        primary.archive_everything(A_MINUTE);
        let mut marks = Vec::new();
        for _ in 0..5 {
            ledger.write(4, 3000);
            marks.push(ledger.mark());
        }
        ledger.write(4, 3000);
        let name = primary.value("SELECT pg_walfile_name(pg_current_wal_lsn())");
        let end = primary.value("SELECT pg_walfile_name_offset(pg_current_wal_flush_lsn())::text");
        let end: u32 = end.trim_matches(['(', ')']).split(',').nth(1).unwrap().parse().unwrap();
        let within =
            |mark: &Mark| mark.position.lsn.to_string().split_once('/').map(|(_, low)| low.to_owned()).unwrap();
        let offset = |mark: &Mark| u32::from_str_radix(&within(mark), 16).unwrap() % (16 << 20);
        let cuts: Vec<u32> = [0].into_iter().chain(marks.iter().map(offset)).chain([end]).collect();
        assert!(cuts.is_sorted(), "{cuts:?}: the marks lie in several segments");
        let plain = fs::read(primary.data_dir().join("pg_wal").join(&name)).unwrap();
        primary.kill_9();
        let keys = put_tail(&repository, &name, &plain, &cuts);
        Disaster { repository, ledger, marks, cuts, keys, name, plain }
    }

    /// Restores, and compares with the ledger.
    fn recover(&self, words: &[&str], expect: &Expect) {
        let restored = restore(&self.repository, words);
        restored.cluster.start();
        restored.cluster.wait_promoted(A_MINUTE);
        self.ledger.judge(&restored.cluster, expect).unwrap_or_else(|why| panic!("{words:?}: {why}"));
        integrity(&restored.cluster).unwrap();
    }
}

#[test]
fn a_destroyed_server_is_restored_up_to_its_last_piece() {
    for installation in Installation::all_wanted() {
        let disaster = Disaster::strike(Repository::s3(), installation);
        let Disaster { repository, ledger, marks, keys, .. } = &disaster;
        let status = report(repository, &["status", "--no-server"], 0);
        assert_eq!(
            (&status["newest"]["live"], &status["newest"]["segment"]),
            (&true.into(), &disaster.name.as_str().into())
        );
        assert!(!status["newest"]["last_commit"].is_null(), "{status}");
        disaster.recover(&[], &Expect::at_least(ledger.tip()));
        let last = &marks[4];
        let (lsn, time) = (last.position.lsn.to_string(), marks[2].time_rfc3339());
        disaster.recover(&["--target-lsn", &lsn], &Expect::exactly(last));
        disaster.recover(&["--target-time", &time], &Expect::exactly(&marks[2]));
        disaster.recover(&["--target-xid", &marks[1].xid], &Expect::exactly(&marks[1]));

        // Damaged, missing and swapped: exactly what lies before it is there.
        let objects: Vec<Vec<u8>> = keys.iter().map(|key| repository.object(key).unwrap()).collect();
        repository.alter(&keys[5], |bytes| flip(bytes));
        disaster.recover(&[], &Expect::exactly(&marks[4]));
        repository.remove(&keys[3]);
        disaster.recover(&[], &Expect::exactly(&marks[2]));
        repository.alter(&keys[2], |bytes| *bytes = objects[1].clone());
        disaster.recover(&[], &Expect::exactly(&marks[1]));
        let status = report(repository, &["status", "--no-server"], 1);
        assert!(status["newest"]["lsn"].as_str().unwrap().ends_with(&format!("{:X}", disaster.cuts[2])), "{status}");
    }
}

/// A record that was wrong when its piece was made: every digest is right.
#[test]
fn verify_deep_walks_the_tail() {
    let disaster = Disaster::strike(Repository::local(), Installation::preferred());
    let Disaster { repository, cuts, keys, name, plain, .. } = &disaster;
    let records = |found: &Value| found["records"].as_u64().unwrap();
    let sound = report(repository, &["verify", "--wal-only", "--deep"], 0);
    // Cut in the middle of a record it is sound, too.
    keys.iter().for_each(|key| repository.remove(key));
    let middle = cuts[5] - 1500;
    let put = |plain: &[u8]| put_tail(repository, name, plain, &[0, cuts[1], middle]);
    let shorter = put(plain);
    let cut = report(repository, &["verify", "--wal-only", "--deep"], 0);
    shorter.iter().for_each(|key| repository.remove(key));
    put_tail(repository, name, plain, &[0, 8192]);
    let begun = report(repository, &["verify", "--wal-only", "--deep"], 0);
    assert!(records(&sound) > records(&cut) && records(&cut) > records(&begun), "{sound} {cut} {begun}");
    repository.keys().iter().filter(|key| key.contains("/live/")).for_each(|key| repository.remove(key));
    let mut wrong = plain.clone();
    // In the payload of a row.
    wrong[cuts[2] as usize - 1000] ^= 1;
    put(&wrong);
    report(repository, &["verify", "--wal-only"], 0);
    let found = report(repository, &["verify", "--wal-only", "--deep"], 2);
    let finding = &found["findings"][0];
    assert!(finding["message"].as_str().unwrap().contains("wrong checksum"), "{found}");
    assert!(finding["key"].as_str().unwrap().contains(&format!("/live/00000001/{name}")), "{found}");
}
