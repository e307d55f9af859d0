//! `verify --deep`: no false alarm about the WAL of real servers, and damage that the digest does not show.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use pgark::postgres::SegmentSize;
use pgark::repo::wal_object::{Provenance, WalObject};
use pgark::repo::{WalObjectHeader, Writer};
use pgark::stream::pack;

use crate::backups::take_backup;
use crate::ledger::Ledger;
use crate::pitr::{archiving, restore_command, with_environment};
use crate::postgres::{Cluster, Installation, Recovery, RecoveryTarget};
use crate::program::{Call, Outcome};
use crate::repository::{Repository, segment_key};

const A_MINUTE: Duration = Duration::from_secs(60);

fn verify(repository: &Repository, words: &[&str]) -> Outcome {
    let words = ["verify"].iter().chain(words).copied();
    Call::new(words).impatient().envs(repository.env()).run()
}

fn pgbench(cluster: &Cluster, words: &[&str]) -> Command {
    let mut command = cluster.installation().command("pgbench");
    command.arg("-h").arg(&cluster.endpoint().socket_directory);
    command.args(["-p", &cluster.endpoint().port.to_string(), "-U", "postgres"]).args(words).arg("postgres");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Records of all sizes, also larger than segments, and switches.
fn load(cluster: &Cluster, ledger: &Ledger) {
    cluster.execute("SELECT pg_logical_emit_message(false, 'pgark', repeat('large ', 700000))");
    ledger.write(20, 20_000);
    cluster.switch_wal();
    for statement in [
        "CREATE TABLE passing AS SELECT g, md5(g::text) AS digest FROM generate_series(1, 5000) g",
        "CREATE INDEX ON passing (digest)",
        "DELETE FROM passing WHERE g % 3 = 0",
        "VACUUM passing",
        "CHECKPOINT",
        "UPDATE passing SET digest = 'x'",
        "DROP TABLE passing",
    ] {
        cluster.execute(statement);
    }
    if cluster.installation().bin.join("pgbench").exists() {
        assert!(pgbench(cluster, &["-i", "-s", "1", "-q"]).status().unwrap().success());
        assert!(pgbench(cluster, &["-c", "2", "-t", "300"]).status().unwrap().success());
    }
    cluster.switch_wal();
    ledger.write(20, 5000);
}

fn segments(repository: &Repository) -> Vec<String> {
    let keys = repository.keys().into_iter().filter(|key| key.contains("/wal/") && key.ends_with(".zst"));
    let names = keys.map(|key| key.rsplit('/').next().unwrap().trim_end_matches(".zst").to_owned());
    names.filter(|name| name.len() == 24).collect()
}

/// Crashes under load, a promotion of a standby whose primary is killed, and a restore to an earlier moment: three timelines.
#[test]
fn the_wal_of_real_servers_raises_no_alarm() {
    for installation in Installation::all_wanted() {
        let repository = Repository::local();
        let primary = archiving(&repository, installation, 1);
        let ledger = Ledger::create(&primary);
        let id = take_backup(&repository, &primary, &[]);
        let backup = primary.base_backup();
        load(&primary, &ledger);
        for _ in 0..3 {
            // A kill in the middle of large records leaves one without its end.
            let message =
                "SELECT pg_logical_emit_message(false, 'pgark', repeat('cut ', 500000)) FROM generate_series(1, 50)";
            std::thread::scope(|scope| {
                let writing = scope.spawn(|| primary.try_sql(message));
                let begin = primary.current_lsn();
                primary.wait_until("WAL is written", A_MINUTE, || primary.current_lsn().0 > begin.0 + (9 << 20));
                primary.kill_9();
                writing.join().unwrap().ok();
            });
            primary.start();
        }
        let standby = Cluster::builder().archive_command(&crate::pitr::archive_command());
        let standby = with_environment(standby, &repository).on_copy_of(&backup);
        standby.configure_standby(&restore_command(), Some(&primary.endpoint().conninfo()));
        standby.start();
        load(&primary, &ledger);
        let fork = ledger.mark();
        ledger.write(20, 5000);
        let tip = ledger.tip().lsn;
        standby.wait_until("up to date", A_MINUTE, || {
            standby.value(&format!("SELECT pg_last_wal_replay_lsn() >= '{tip}'")) == "t"
        });
        primary.archive_everything(A_MINUTE);
        primary.kill_9();
        standby.promote();
        standby.wait_promoted(A_MINUTE);
        ledger.attach(&standby);
        load(&standby, &ledger);
        standby.archive_everything(A_MINUTE);
        let third = with_environment(Cluster::builder(), &repository).on_copy_of(&backup);
        let target = RecoveryTarget::Lsn(fork.position.lsn);
        third.configure_recovery(&Recovery::new(restore_command(), target).on_timeline(1).archiving());
        third.start();
        third.wait_promoted(A_MINUTE);
        ledger.attach(&third);
        load(&third, &ledger);
        third.archive_everything(A_MINUTE);

        let all = segments(&repository);
        let timelines = |number: &str| all.iter().filter(|name| name.starts_with(number)).count();
        assert!(["00000001", "00000002", "00000003"].iter().all(|number| timelines(number) > 3), "{all:?}");
        let outcome = verify(&repository, &["--wal-only", "--deep", "--jobs", "4"]).quiet_success();
        eprintln!("PostgreSQL {}: {}", installation.version, outcome.stdout);
        let report = verify(&repository, &["--deep", "--json"]).quiet_success().stdout;
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert!(report["records"].as_u64().unwrap() > 5000, "{report}");
        assert!(verify(&repository, &["--wal-only", "--json"]).quiet_success().stdout.contains("\"records\": null"));
        verify(&repository, &[&id, "--deep"]).quiet_success();
        for seed in ["a", "b", "c"] {
            verify(&repository, &["--wal-only", "--deep", "--sample", "40%", "--seed", seed]).quiet_success();
        }
        // Behind a missing one a new chain begins.
        for name in [&all[all.len() / 3], &all[all.len() / 2], &all[all.len() - 3]] {
            repository.remove(&segment_key(name));
            // Missing WAL is all that is found, if a backup can still be followed to it.
            let found = verify(&repository, &["--wal-only", "--deep"]).stdout;
            assert!(!found.contains("DAMAGED") && !found.contains("UNKNOWN"), "{found}");
        }
    }
}

/// The object as pgark would have stored it, had the segment been so.
fn repack(repository: &Repository, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let key = segment_key(name);
    let before = repository.object(&key).unwrap();
    let (header, frame) = WalObjectHeader::read(&key.parse().unwrap(), &before).unwrap().unwrap();
    let mut plain = zstd::decode_all(&before[frame..]).unwrap();
    change(&mut plain);
    let length = plain.len() as u64;
    let packed = pack(&plain[..], length, 1, WalObject::ROOM, |_, _| Ok(()), |_| {}).unwrap();
    let from = Provenance {
        name: name.parse().unwrap(),
        ident: header.ident(),
        segment_size: header.segment_size.map(|size| SegmentSize::new(size).unwrap()),
        written: header.written,
        writer: Writer { host: "db1".into(), pid: 1, version: "0" },
    };
    let object = WalObject::build(from, packed, header.index).unwrap();
    repository.alter(&key, |bytes| *bytes = object.bytes.to_vec());
    before
}

fn plain(repository: &Repository, name: &str) -> Vec<u8> {
    let mut plain = Vec::new();
    let object = repository.object(&segment_key(name)).unwrap();
    zstd::Decoder::new(&object[..]).unwrap().read_to_end(&mut plain).unwrap();
    plain
}

#[test]
fn damage_under_a_right_digest_is_found_by_its_records() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    primary.execute("CREATE TABLE t (line text)");
    primary.execute("INSERT INTO t SELECT 'needle ' || i FROM generate_series(1, 40000) i");
    primary.execute("SELECT pg_logical_emit_message(false, 'pgark', repeat('haystack ', 400000))");
    primary.execute("INSERT INTO t SELECT 'needle ' || i FROM generate_series(1, 10000) i");
    primary.archive_everything(A_MINUTE);
    verify(&repository, &["--deep"]).quiet_success();

    let all = segments(&repository);
    let has =
        |name: &str, word: &[u8]| plain(&repository, name).windows(word.len()).filter(|found| *found == word).count();
    let rows = all.iter().find(|name| has(name, b"needle ") > 5000).expect("a segment full of rows");
    let message: Vec<&String> = all.iter().filter(|name| has(name, b"haystack ") > 10_000).collect();
    assert!(message.len() >= 3, "{message:?}");
    let middle = message[1];
    let row = plain(&repository, rows).windows(7).position(|found| found == b"needle ").unwrap();
    let page = 8192;
    // Where, what is changed, and what is said: bits of a row, of a record over borders, and of pages' headers.
    let damages: [(&str, usize, &str); 8] = [
        (rows, row, "has a wrong checksum"),
        (rows, row + 3, "has a wrong checksum"),
        (middle, 3 * page + 100, "which begins in the segment before, has a wrong checksum"),
        (rows, page, "the WAL seems to end, but later pages follow"),
        (rows, 5 * page + 9, "the WAL seems to end, but later pages follow"),
        (rows, 5 * page + 3, "the page has unknown flags"),
        (middle, 5 * page + 16, "the page does not go on with the record"),
        (middle, 16, "the page does not go on with the record"),
    ];
    for (name, at, words) in damages {
        let before = repack(&repository, name, |plain| plain[at] ^= 4);
        verify(&repository, &[]).quiet_success();
        let found = verify(&repository, &["--deep"]);
        assert_eq!(found.code, 2, "{at}: {found:?}");
        assert_eq!(found.stdout.matches("DAMAGED").count(), 1, "{at}: {found:?}");
        assert!(found.stdout.starts_with("DAMAGED main/1/wal/") && found.stdout.contains(words), "{at}: {found:?}");
        repository.alter(&segment_key(name), |bytes| *bytes = before);
    }
    verify(&repository, &["--deep"]).quiet_success();
    // Any bit of a record, anywhere in the rows.
    let bits: Vec<usize> = (0..40).map(|n| row + n * 15_013).filter(|at| *at < 1 << 20).collect();
    let mut found = 0;
    for at in &bits {
        let before = repack(&repository, rows, |plain| plain[*at] ^= 1 << (at % 8));
        let outcome = verify(&repository, &["--deep"]);
        assert!([0, 2].contains(&outcome.code), "{at}: {outcome:?}");
        found += usize::from(outcome.code == 2);
        repository.alter(&segment_key(rows), |bytes| *bytes = before);
    }
    // The others lie between records, where nothing is.
    assert!(found * 10 > bits.len() * 8, "{found} of {}", bits.len());
}
