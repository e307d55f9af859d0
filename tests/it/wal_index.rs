//! The index in the headers of archived segments, against what PostgreSQL says of the same WAL: `pg_waldump` where the
//! installation has it, and what the sessions know that wrote it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pgark::postgres::{Lsn, WalIndex, Xid, XidRange};
use pgark::repo::WalObjectHeader;

use crate::data_dir::{FakeCluster, segment};
use crate::postgres::{Cluster, Installation, Scratch};
use crate::program::Call;
use crate::repository::{Repository, segment_key};

const A_MINUTE: Duration = Duration::from_secs(60);

#[test]
fn the_index_says_what_postgresql_says() {
    for installation in Installation::all_wanted() {
        for segment_mib in [1, 16] {
            index_of_everything(installation, segment_mib);
        }
    }
}

/// What a promotion leaves of the old timeline's last segment, and the new one's first, which begins with a copy of it.
#[test]
fn partial_segments_have_an_index_too() {
    for installation in Installation::all_wanted() {
        let repository = Repository::local();
        let command = crate::pitr::archive_command();
        let builder = Cluster::builder().installation(installation).archive_command(&command);
        let primary = crate::pitr::with_environment(builder, &repository).start();
        primary.execute("CREATE TABLE t (id int)");
        let backup = primary.base_backup();
        let standby = Cluster::builder().archive_command(&command);
        let standby = crate::pitr::with_environment(standby, &repository).on_copy_of(&backup);
        standby.configure_standby("false", Some(&primary.endpoint().conninfo()));
        standby.start();
        let committed = |cluster: &Cluster| -> u32 {
            let rows = cluster.sql("BEGIN; INSERT INTO t VALUES (1); SELECT pg_current_xact_id(); COMMIT");
            rows[0][0].parse().unwrap()
        };
        let first = committed(&primary);
        for _ in 0..20 {
            committed(&primary);
        }
        let last = committed(&primary);
        standby.wait_until("up to date", A_MINUTE, || standby.value("SELECT count(*) FROM t") == "22");
        primary.kill_9();
        standby.promote();
        standby.wait_promoted(A_MINUTE);
        let later = committed(&standby);
        standby.archive_everything(A_MINUTE);
        let indexes = indexes(&repository);
        let of = |begin: &str, end: &str| {
            let found = indexes.iter().find(|(name, _)| name.starts_with(begin) && name.ends_with(end));
            found.unwrap_or_else(|| panic!("`{begin}*{end}` in {indexes:?}")).1
        };
        let range = |first, last| Some(XidRange { lowest: Xid(first), highest: Xid(last) });
        let partial = of("00000001", ".partial");
        assert!(partial.complete, "{partial:?}");
        assert_eq!(partial.xids, range(first, last));
        assert_eq!(of("00000002", "").xids, range(first, later));
    }
}

/// An index that cannot be made keeps no file from being archived, on neither way.
#[test]
fn a_segment_that_cannot_be_read_is_archived_all_the_same() {
    let (cluster, repository) = (FakeCluster::new(), Repository::local());
    let names = ["000000010000000000000002", "000000010000000000000003", "000000010000000000000004.partial"];
    for (seed, name) in names.iter().enumerate() {
        let bytes = segment(cluster.system_id, &name[..24], cluster.segment_bytes, seed as u64);
        cluster.file(name, &bytes);
        cluster.file(&format!("archive_status/{name}.ready"), b"");
    }
    // The next one would be archived ahead.
    repository.push(&cluster, names[0]).env("PGARK_WAL__LOOKAHEAD", "0").run().quiet_success();
    assert_eq!(indexes(&repository).into_values().collect::<Vec<_>>(), [WalIndex::default()]);
    let backfill = Call::new(["wal-push", "--backfill"]).envs(repository.env()).within(cluster.path());
    assert_eq!(backfill.run().code, 0);
    let unknown = names.map(|name| (name.to_owned(), WalIndex::default()));
    assert_eq!(indexes(&repository), BTreeMap::from(unknown));
    repository.fetch(&cluster, names[1]).run().quiet_success();
}

/// What the sessions know.
#[derive(Default)]
struct Known {
    committed: BTreeSet<u32>,
    /// A prepared transaction whose commit is the only one in its segment.
    alone: u32,
    points: Vec<String>,
}

fn index_of_everything(installation: &'static Installation, segment_mib: u32) {
    let repository = Repository::local();
    let builder = Cluster::builder().installation(installation).wal_segment_mib(segment_mib);
    let builder = crate::pitr::with_environment(builder.archive_command(&crate::pitr::archive_command()), &repository);
    let cluster = builder.conf("max_prepared_transactions = 10").conf("wal_level = logical").start();
    let known = work(&cluster);
    cluster.archive_everything(A_MINUTE);

    let indexes = indexes(&repository);
    assert!(indexes.len() > 3, "{} segments", indexes.len());
    assert!(indexes.values().all(|index| index.complete), "{indexes:?}");
    let names: Vec<&str> = indexes.values().flat_map(|i| &i.restore_points).map(|point| point.name.as_str()).collect();
    // One of them may lie in two segments: then an index says that it is cut.
    let cuts = indexes.values().filter(|index| index.cut).count();
    let all_but_cut = |found: usize, all: usize| found <= all && found + cuts >= all;
    assert!(all_but_cut(names.len(), known.points.len()), "{names:?}, {:?}", known.points);
    assert!(names.iter().all(|name| known.points.iter().any(|point| point == name)), "{names:?}");
    let held = |xid: &&u32| indexes.values().any(|index| index.xids.is_some_and(|range| range.contains(Xid(**xid))));
    let found = known.committed.iter().filter(held).count();
    assert!(all_but_cut(found, known.committed.len()), "{found} of {}", known.committed.len());
    judge_by_sql(&cluster, &known, &indexes);
    judge_by_waldump(installation, &cluster, &repository, &indexes);
}

/// What makes a commit record long: relations and statistics to remove, messages, a subtransaction.
const EVERYTHING: &str = "DROP TABLE doomed; CREATE TABLE doomed (id int PRIMARY KEY); SAVEPOINT s; \
                          INSERT INTO doomed VALUES (1); RELEASE s";

/// Commits, aborts, subtransactions, prepared transactions with all that their commit records can carry, restore points, and
/// records over many pages and segments.
fn work(cluster: &Cluster) -> Known {
    let mut known = Known::default();
    let mut session = cluster.connect();
    let mut run = |statements: &str| session.sql(statements).unwrap_or_else(|error| panic!("{statements}: {error}"));
    run("CREATE TABLE t (id serial PRIMARY KEY, payload text); CREATE TABLE doomed (id int PRIMARY KEY)");
    for round in 0..6 {
        for row in 0..60 {
            let rows = run(&format!(
                "BEGIN; INSERT INTO t (payload) VALUES (repeat('x', {})); SELECT pg_current_xact_id(); COMMIT",
                (row * 37) % 1900
            ));
            known.committed.insert(rows[0][0].parse().unwrap());
            if row % 10 == 0 {
                run("BEGIN; INSERT INTO t (payload) VALUES ('never'); ROLLBACK");
                run("BEGIN; INSERT INTO t (payload) VALUES ('a'); SAVEPOINT s; INSERT INTO t (payload) VALUES ('b'); \
                     RELEASE s; COMMIT");
            }
        }
        let prepared = run(&format!("BEGIN; {EVERYTHING}; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'kept'"));
        run("BEGIN; INSERT INTO t (payload) VALUES ('never'); PREPARE TRANSACTION 'lost'");
        run("INSERT INTO t (payload) VALUES ('between')");
        run("COMMIT PREPARED 'kept'");
        run("ROLLBACK PREPARED 'lost'");
        known.committed.insert(prepared[0][0].parse().unwrap());
        let name = format!("Runde {round}: \"größer\" als \\ und '%'");
        run(&format!("SELECT pg_create_restore_point('{}')", name.replace('\'', "''")));
        known.points.push(name);
        // Longer than a segment of 1 MiB: a segment in the middle holds nothing but a part of one record.
        run("SELECT pg_logical_emit_message(true, 'large', repeat('y', 2500000))");
        run("SELECT pg_logical_emit_message(false, 'medium', repeat('z', 30000))");
        if round % 2 == 1 {
            run("SELECT pg_switch_wal()");
        }
    }
    // Small transactions over the borders of segments.
    run("SET synchronous_commit = off");
    run("DO $$ BEGIN FOR i IN 1..20000 LOOP INSERT INTO t (payload) VALUES ('x'); COMMIT; END LOOP; END $$");
    run("CHECKPOINT");
    let alone = run(&format!("BEGIN; {EVERYTHING}; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'alone'"));
    known.alone = alone[0][0].parse().unwrap();
    run("SELECT pg_switch_wal()");
    run("COMMIT PREPARED 'alone'");
    run("SELECT pg_switch_wal()");
    for number in 0..10 {
        let name = format!("of ten, {number}");
        run(&format!("SELECT pg_create_restore_point('{name}')"));
        known.points.push(name);
    }
    known
}

fn header(object: &[u8]) -> WalObjectHeader {
    WalObjectHeader::read(&"k".parse().unwrap(), object).unwrap().expect("a whole header").0
}

fn indexes(repository: &Repository) -> BTreeMap<String, WalIndex> {
    let segments = repository.keys().into_iter().filter_map(|key| {
        let name = key.rsplit('/').next()?.strip_suffix(".zst")?.to_owned();
        let header = header(&repository.object(&key)?);
        let holds_wal = name.len() == 24 || name.ends_with(".partial");
        assert_eq!(header.index.is_some(), holds_wal, "{name}");
        Some((name, header.index?))
    });
    segments.collect()
}

/// `track_commit_timestamp` keeps the times that the commit records have.
fn judge_by_sql(cluster: &Cluster, known: &Known, indexes: &BTreeMap<String, WalIndex>) {
    let time = |xid: u32| {
        let query = format!("SELECT extract(epoch FROM pg_xact_commit_timestamp('{xid}'::xid)) * 1000000");
        jiff::Timestamp::from_microsecond(cluster.value(&query).parse::<f64>().unwrap() as i64).unwrap()
    };
    for xid in &known.committed {
        let time = time(*xid);
        let there = indexes.values().any(|index| {
            index.xids.is_some_and(|range| range.contains(Xid(*xid)))
                && index.commits.is_some_and(|commits| (commits.first..=commits.last).contains(&time))
        });
        assert!(there || indexes.values().any(|index| index.cut), "transaction {xid} at {time}");
    }
    for range in indexes.values().filter_map(|index| index.xids) {
        // Nobody knows any more what became of those of `initdb`.
        for xid in [range.lowest, range.highest].into_iter().filter(|xid| xid.0 > 3) {
            assert_eq!(cluster.value(&format!("SELECT pg_xact_status('{xid}'::xid8)")), "committed", "{xid}");
        }
    }
    let (alone, time) = (XidRange::of(Xid(known.alone)), time(known.alone));
    let of_alone: Vec<_> = indexes.values().filter(|index| index.xids == Some(alone)).collect();
    assert_eq!(of_alone.len(), 1, "{alone:?} in {indexes:?}");
    assert_eq!(of_alone[0].commits, Some([time, time].into()));
}

/// A record as `pg_waldump` shows it.
struct Dumped {
    lsn: u64,
    manager: String,
    description: String,
}

fn dump(installation: &'static Installation, repository: &Repository, names: &[&String]) -> Vec<Dumped> {
    let place = Scratch::new("dump");
    for name in names {
        let plain = zstd::decode_all(&repository.object(&segment_key(name)).unwrap()[..]).unwrap();
        let path = place.path().join(name);
        std::fs::write(&path, plain).unwrap();
        crate::postgres::Account::of_servers().own(&path);
    }
    let mut command = installation.program("pg_waldump").unwrap().command();
    command.arg("-p").arg(place.path()).args([names[0], names[names.len() - 1]]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(|line| {
        // rmgr: Transaction len (rec/tot):     34/    34, tx:        746, lsn: 0/01A1B2C8, prev 0/..., desc: COMMIT ...
        let (_, rest) = line.split_once("rmgr: ").unwrap_or_else(|| panic!("{line}"));
        let (manager, rest) = rest.split_once(' ').unwrap();
        let (_, rest) = rest.split_once("lsn: ").unwrap();
        let (lsn, rest) = rest.split_once(',').unwrap();
        let (_, description) = rest.split_once("desc: ").unwrap();
        let tx = line.split_once("tx: ").unwrap().1.split_once(',').unwrap().0.trim();
        let (high, low) = lsn.split_once('/').unwrap();
        let lsn = u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap();
        Dumped { lsn, manager: manager.to_owned(), description: format!("{tx} {description}") }
    });
    lines.collect()
}

/// Every time, every transaction, every restore point, segment by segment.
fn judge_by_waldump(
    installation: &'static Installation,
    cluster: &Cluster,
    repository: &Repository,
    indexes: &BTreeMap<String, WalIndex>,
) {
    if installation.program("pg_waldump").is_none() {
        return;
    }
    let names: Vec<&String> = indexes.keys().filter(|name| name.len() == 24).collect();
    let records = dump(installation, repository, &names);
    assert!(records.len() > 1000, "{} records", records.len());
    let size = cluster.segment_bytes();
    let segment = |lsn: u64| crate::postgres::Lsn(lsn).segment_that_starts_here(1, size);
    let mut expected: BTreeMap<String, WalIndex> =
        names.iter().map(|name| ((*name).clone(), WalIndex { complete: true, ..WalIndex::default() })).collect();
    for (record, next) in records.iter().zip(records[1..].iter().map(Some).chain([None])) {
        let (xid, what) = record.description.split_once(' ').unwrap();
        let commits = record.manager == "Transaction" && what.starts_with("COMMIT");
        let point = record.manager == "XLOG" && what.starts_with("RESTORE_POINT");
        let index = expected.get_mut(&segment(record.lsn)).unwrap();
        // If the next segment does not begin with the next record, it begins with the rest of this one.
        let cut = next.is_some_and(|next| segment(next.lsn) != segment(record.lsn) && next.lsn % size != 40);
        if cut {
            let here = size - record.lsn % size;
            index.cut = here < 24 || commits || point;
        } else if commits {
            // COMMIT 2026-11-22 21:36:19.237240 UTC; COMMIT_PREPARED 746: 2026-11-22 ...
            let (xid, time) = match what.strip_prefix("COMMIT_PREPARED ") {
                Some(prepared) => prepared.split_once(": ").unwrap(),
                None => (xid, what.strip_prefix("COMMIT ").unwrap()),
            };
            let xid = Xid(xid.parse().unwrap());
            index.xids = Some(index.xids.map_or([xid, xid].into(), |range| range.with(xid)));
            let time = time.split_once(" UTC").unwrap().0.replace(' ', "T");
            let time: jiff::Timestamp = format!("{time}Z").parse().unwrap();
            let known = index.commits.unwrap_or([time, time].into());
            index.commits = Some([known.first.min(time), known.last.max(time)].into());
        } else if point {
            // The name only: `pg_waldump` does not show the time.
            let name = what.strip_prefix("RESTORE_POINT ").unwrap().to_owned();
            let time = jiff::Timestamp::UNIX_EPOCH;
            index.restore_points.push(pgark::postgres::RestorePoint { name, time, lsn: Lsn(record.lsn) });
        }
    }
    for (name, expected) in &expected {
        let mut found = indexes[name].clone();
        for point in &mut found.restore_points {
            assert!(
                found.commits.is_none_or(|c| (c.first.duration_until(point.time)).as_secs().abs() < 600),
                "{point:?}"
            );
            point.time = jiff::Timestamp::UNIX_EPOCH;
        }
        assert_eq!(&found, expected, "{name} of PostgreSQL {}", installation.version);
    }
}
