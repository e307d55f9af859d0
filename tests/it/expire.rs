//! `expire`, `keep`, `unkeep` and `delete` on whole repositories: what goes, what stays, what happens when the store refuses, and
//! what somebody else does meanwhile.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use jiff::Timestamp;
use pgark::command::expire::{Expire, run_on};
use pgark::command::expire_report::ExpireReport;
use pgark::command::keep::{Changed, delete_on};
use pgark::command::store_clock::Clock;
use pgark::command::{Circumstances, Failure, FailureKind, RepositorySettings, StoreSettings};
use pgark::postgres::{ClusterIdent, Lsn, SystemId, TimelineId, WalName};
use pgark::repo::keep::Mark;
use pgark::repo::manifest::BackupSummary;
use pgark::repo::{BackupId, BackupKey, Generation, Lease, Manifest, Policy, Repository, Writer};
use pgark::storage::faulty::FaultyStore;
use pgark::storage::memory::MemoryStore;
use pgark::storage::{KeyPrefix, ObjectKey, ObjectStore, ObjectStoreExt, Put, StoreErrorKind, UserMetadata};

use crate::double::{Fault, Op, Rule, S3Double};
use crate::program::Call;
use crate::repository;
use crate::watched::watched;

pub const MIB: u64 = 1 << 20;
pub const DAY: Duration = Duration::from_secs(86400);

pub fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub fn writer() -> Writer {
    Writer { host: "db1".into(), pid: 1, version: "test" }
}

pub fn circumstances() -> Circumstances {
    Circumstances { now: Timestamp::now(), writer: writer() }
}

pub fn wanted(policy: Policy) -> Expire {
    let store = StoreSettings::Local("/nonexistent".into());
    let repository = RepositorySettings { store, cluster: "main".parse().unwrap() };
    Expire { repository, policy, dry_run: false, force: false, jobs: 4 }
}

pub fn keep_full(count: u32) -> Policy {
    Policy { keep_full: Some(count), ..Policy::default() }
}

/// A manifest as far as `expire` reads it, of a backup from one segment to another.
pub fn manifest(id: BackupId, start: u64, stop: u64) -> Manifest {
    let summary = serde_json::json!({
        "format": "pgark-backup-1", "id": id, "generation": 1, "system_identifier": "7", "postgres_major": 15,
        "label": "", "method": "local", "from_standby": false, "timeline": 1,
        "start_lsn": Lsn(start * MIB + 40).to_string(), "stop_lsn": Lsn(stop * MIB + 400).to_string(),
        "started": "2026-01-01T00:00:00Z", "stopped": "2026-01-01T00:00:00Z", "segment_size": MIB,
        "page_checksums": true, "tablespaces": [], "files": 0, "plain_bytes": 0, "parts": 0, "stored_bytes": 0,
        "settings": {
            "wal_level": "replica", "max_connections": 100, "max_worker_processes": 8, "max_wal_senders": 10,
            "max_prepared_transactions": 0, "max_locks_per_transaction": 64,
        },
        "bad_pages": 0, "writer": "w",
    });
    let summary: BackupSummary = serde_json::from_value(summary).unwrap();
    Manifest { summary, parts: vec![], directories: vec![], files: vec![], bad_pages: vec![] }
}

/// A repository in memory whose objects are as old as a test wants.
pub struct Stage {
    pub memory: Arc<MemoryStore>,
    pub repository: Repository,
    pub now: SystemTime,
}

impl Stage {
    pub async fn empty() -> Self {
        let memory = Arc::new(MemoryStore::default());
        let repository = Repository::new(memory.clone(), "main".parse().unwrap());
        let ident = ClusterIdent { system_id: SystemId(7), major: 15.try_into().unwrap() };
        repository.find_or_begin(ident, Timestamp::now(), &writer()).await.unwrap();
        Stage { memory, repository, now: SystemTime::now() }
    }

    /// A backup and ten segments a day, for so many days. Each backup is of the third and fourth segment of its day.
    pub async fn days(days: u64) -> Self {
        let stage = Stage::empty().await;
        for day in 1..=days {
            let ago = DAY * (days - day) as u32 + DAY / 2;
            for segment in 10 * day..10 * (day + 1) {
                stage.segment(segment, ago + DAY / 4).await;
            }
            stage.backup(day as u32, 10 * day + 2, 10 * day + 3, ago).await;
        }
        stage
    }

    pub async fn put(&self, key: &ObjectKey, bytes: impl Into<Bytes>, ago: Duration) {
        assert_eq!(self.memory.put(key, bytes.into(), &UserMetadata::new()).await.unwrap(), Put::Created);
        self.memory.date(key, self.now - ago);
    }

    pub async fn segment(&self, number: u64, ago: Duration) {
        self.put(&self.repository.layout.wal_file(Generation(1), segment(number)), vec![0; 100], ago).await;
    }

    pub async fn parts(&self, number: u32, ago: Duration) -> BackupId {
        let id = id(number);
        for part in 1..=3 {
            let key = self.repository.layout.backup(Generation(1), id, BackupKey::Part(part));
            self.put(&key, vec![0; 500], ago).await;
        }
        id
    }

    pub async fn backup(&self, number: u32, start: u64, stop: u64, ago: Duration) -> BackupId {
        let id = self.parts(number, ago).await;
        let key = self.repository.layout.backup(Generation(1), id, BackupKey::Manifest);
        self.put(&key, manifest(id, start, stop).encode().unwrap(), ago).await;
        id
    }

    pub async fn keys(&self) -> BTreeSet<String> {
        let all = self.memory.list(&KeyPrefix::default(), None, 100_000).await.unwrap().objects;
        all.into_iter().map(|object| object.name).filter(|name| !name.contains("/record/expire/")).collect()
    }

    /// The numbers of the backups and segments that are there.
    pub async fn there(&self) -> (Vec<u32>, Vec<u64>) {
        let keys = self.keys().await;
        let backups = (1..100).filter(|n| keys.iter().any(|key| key.contains(&format!("/{}/manifest", id(*n)))));
        let segments =
            (1..1000).filter(|n| keys.contains(self.repository.layout.wal_file(Generation(1), segment(*n)).as_str()));
        (backups.collect(), segments.collect())
    }

    pub fn through(&self, store: Arc<dyn ObjectStore>) -> Repository {
        Repository::new(store, "main".parse().unwrap())
    }
}

pub fn id(number: u32) -> BackupId {
    BackupId::new(Timestamp::UNIX_EPOCH, number)
}

pub fn segment(number: u64) -> WalName {
    let size = pgark::postgres::SegmentSize::new(MIB).unwrap();
    WalName::Segment(size.name(TimelineId::FIRST, pgark::postgres::SegmentNumber(number)))
}

pub async fn expire(repository: &Repository, expire: &Expire) -> Result<ExpireReport, Failure> {
    run_on(repository, expire, &circumstances(), |_| true).await
}

#[test]
fn what_the_policy_does_not_want_goes_and_a_second_run_finds_nothing() {
    run(async {
        let stage = Stage::days(5).await;
        let report = expire(&stage.repository, &wanted(keep_full(3))).await.unwrap();
        assert!(report.failure().is_none(), "{report:?}");
        assert_eq!((report.clock, report.deleted), (Clock::Store, 2 * 4 + 22));
        // From the start of the oldest backup that stays on.
        assert_eq!(stage.there().await, (vec![3, 4, 5], (32..60).collect()));
        let again = expire(&stage.repository, &wanted(keep_full(3))).await.unwrap();
        assert_eq!((again.done, again.deleted), (false, 0));
    });
}

#[test]
fn older_backups_keep_their_own_wal_and_the_window_begins_in_one() {
    run(async {
        let stage = Stage::days(9).await;
        let policy = Policy { wal_within: Some(DAY * 2), keep_full: Some(6), ..Policy::default() };
        expire(&stage.repository, &wanted(policy)).await.unwrap();
        // The first segments of the window are those of the eighth day: the backup of the seventh leads to them.
        let own = [42, 43, 52, 53, 62, 63];
        assert_eq!(stage.there().await, (vec![4, 5, 6, 7, 8, 9], own.into_iter().chain(72..100).collect()));
    });
}

#[test]
fn more_than_half_needs_force() {
    run(async {
        let stage = Stage::days(5).await;
        let before = stage.keys().await;
        let expire_all = wanted(keep_full(1));
        let report = expire(&stage.repository, &expire_all).await.unwrap();
        let failure = report.failure().unwrap();
        assert_eq!(failure.kind, FailureKind::Usage);
        assert!(failure.message.contains("3 of 5 backups would go at once"), "{failure}");
        assert_eq!(stage.keys().await, before);
        let report = expire(&stage.repository, &Expire { force: true, ..expire_all }).await.unwrap();
        assert!(report.failure().is_none());
        // The window is at least a day: the WAL of the fourth day is still in it, and its moments need the third backup.
        assert_eq!(stage.there().await.0, [4, 5]);
    });
}

#[test]
fn without_a_policy_only_what_is_dead_goes() {
    for min_full in [1, 3] {
        run(async {
            let stage = Stage::days(5).await;
            let before = stage.keys().await;
            let dead = stage.parts(70, DAY * 2).await;
            let lease = Lease::new(Generation(1), dead, Lsn(22 * MIB), None, "r".into());
            let key = stage.repository.hold(&lease, Timestamp::now(), 1).await.unwrap();
            stage.memory.date(&key, stage.now - DAY * 3);
            let report = expire(&stage.repository, &wanted(Policy { min_full, ..Policy::default() })).await.unwrap();
            assert!(report.nothing_set && report.failure().is_none(), "{report:?}");
            assert_eq!((report.deleted, stage.keys().await), (4, before));
        });
    }
}

/// Notes of the newest hundred runs stay, and none of a run that deleted nothing.
#[test]
fn records_do_not_grow_for_ever() {
    run(async {
        let stage = Stage::days(5).await;
        let names = || async {
            let all = stage.memory.list(&"main/record/".parse().unwrap(), None, 10_000).await.unwrap().objects;
            all.into_iter().map(|object| object.name).collect::<Vec<_>>()
        };
        for run in 0..150 {
            for what in ["begun", "done"] {
                // One more digit: the order is that of numbers.
                let key = format!("main/record/expire/{}-7-{what}.json", 999_999_950 + run);
                stage.put(&key.parse().unwrap(), "{}", DAY * 9).await;
            }
        }
        stage.put(&"main/record/expire/what-is-this".parse().unwrap(), "?", DAY * 9).await;
        let note = stage.repository.announce(id(9), Timestamp::now(), &writer()).await.unwrap().unwrap();
        stage.memory.date(&note, stage.now - DAY * 2);
        stage.repository.announce(id(8), Timestamp::now(), &writer()).await.unwrap().unwrap();
        assert!(!expire(&stage.repository, &wanted(Policy::default())).await.unwrap().done);
        let left = names().await;
        // Of the hundred one was this run's, which deleted nothing.
        assert_eq!(left.len(), 2 * 99 + 2, "{left:?}");
        assert!(!left.iter().any(|name| name.contains("/999999")), "{left:?}");
        assert!(left.iter().any(|name| name.ends_with("what-is-this")));
        assert!(left.iter().any(|name| name.contains(&format!("going/{}", id(8)))), "{left:?}");
        assert!(expire(&stage.repository, &wanted(keep_full(3))).await.unwrap().done);
        assert_eq!(names().await.len(), left.len() + 2);
    });
}

#[test]
fn without_a_policy_and_in_a_dry_run_nothing_is_written_or_deleted() {
    run(async {
        let stage = Stage::days(5).await;
        let all = || async { stage.memory.list(&KeyPrefix::default(), None, 10_000).await.unwrap().objects };
        let before = all().await;
        let report = expire(&stage.repository, &wanted(Policy::default())).await.unwrap();
        assert!(report.nothing_set && report.failure().is_none());
        let dry_run = Expire { dry_run: true, ..wanted(keep_full(3)) };
        let report = expire(&stage.repository, &dry_run).await.unwrap();
        assert_eq!((report.objects(), report.done, report.failure().is_none()), (30, false, true));
        let no = run_on(&stage.repository, &wanted(keep_full(3)), &circumstances(), |_| false).await.unwrap();
        assert!(!no.done);
        let after: Vec<_> = all().await.into_iter().filter(|object| !object.name.contains("/record/")).collect();
        assert_eq!(after, before);
    });
}

/// Whatever fails, and whenever: what is needed stays, a backup without its manifest is the worst that is left, and runs without
/// faults end where a single one would have.
#[test]
fn after_faults_the_next_run_finishes() {
    let expected = run(async {
        let stage = Stage::days(7).await;
        expire(&stage.repository, &wanted(keep_full(4))).await.unwrap();
        stage.keys().await
    });
    let (mut failed, mut broken) = (0, 0);
    for seed in 0..60 {
        run(async {
            let stage = Stage::days(7).await;
            let all = stage.keys().await;
            for round in 0..4 {
                let faulty = FaultyStore::new(stage.memory.clone(), seed * 100 + round, 12);
                match expire(&stage.through(Arc::new(faulty)), &wanted(keep_full(4))).await {
                    Ok(report) if report.failed.is_empty() => {
                        assert!(report.failure().is_none(), "seed {seed} {:?}", report);
                    }
                    Ok(report) => {
                        assert_eq!(report.failure().unwrap().kind, FailureKind::Unavailable);
                        failed += 1;
                    }
                    Err(failure) => {
                        assert_eq!(failure.kind, FailureKind::Unavailable);
                        broken += 1;
                    }
                }
                let left = stage.keys().await;
                assert!(left.is_superset(&expected), "seed {seed}");
                for number in 1..=7 {
                    let has = |keys: &BTreeSet<String>, what: &str| {
                        keys.iter().filter(|key| key.contains(&format!("/{}/{what}", id(number)))).count()
                    };
                    if has(&left, "part") < has(&all, "part") {
                        assert_eq!(has(&left, "manifest"), 0, "seed {seed}: parts went before the manifest");
                    }
                }
            }
            let report = expire(&stage.repository, &wanted(keep_full(4))).await.unwrap();
            assert!(report.failure().is_none(), "seed {seed} {:?}", report);
            let mut keys = stage.keys().await;
            // Whether what failed was deleted nobody knows: what says that it may be stays for a day.
            keys.retain(|key| !key.contains("/record/going/"));
            assert_eq!(keys, expected, "seed {seed}");
        });
    }
    assert!(failed > 20 && broken > 5, "{failed} {broken}");
}

/// Somebody marks a backup, or holds it, just before it is deleted.
#[test]
fn a_mark_or_a_lease_that_comes_meanwhile_counts() {
    for lease in [false, true] {
        run(async {
            let stage = Stage::days(6).await;
            let lists = AtomicUsize::new(0);
            let doomed = id(2);
            let (memory, other) = (stage.memory.clone(), stage.repository.clone());
            let store = watched(memory, move |what: &str, name: &str| {
                // The third listing of backups: the plan is made, and looked at again.
                if what == "list" && name.ends_with("/backup/") && lists.fetch_add(1, Ordering::SeqCst) == 1 {
                    let act = async {
                        let lease_of_it = Lease::new(Generation(1), doomed, Lsn(22 * MIB), None, "r".into());
                        if lease {
                            other.hold(&lease_of_it, Timestamp::now(), 1).await.unwrap();
                        } else {
                            other.keep(Generation(1), doomed, Timestamp::now(), "", &writer()).await.unwrap();
                        }
                    };
                    futures_util::FutureExt::now_or_never(act).expect("memory answers at once");
                }
                Ok(())
            });
            expire(&stage.through(store), &wanted(keep_full(4))).await.unwrap();
            assert_eq!(stage.there().await, (vec![2, 3, 4, 5, 6], (22..70).collect()), "lease: {lease}");
        });
    }
}

/// What cannot be restored takes nobody's place: as many that can be stay beside it, and the newest of those for ever.
#[test]
fn backups_without_their_wal_or_parts_do_not_count() {
    run(async {
        let stage = Stage::days(7).await;
        for lost in [53, 62, 73] {
            let key = stage.repository.layout.wal_file(Generation(1), segment(lost));
            stage.memory.delete(&key).await.unwrap();
        }
        let delete = async |number: u32| {
            delete_on(&stage.repository, id(number), false, &circumstances(), |_| true).await.map_err(|e| e.message)
        };
        let refused = delete(4).await.unwrap_err();
        assert!(refused.contains("is the newest backup of its generation that can be restored"), "{refused}");
        assert_eq!(delete(7).await, Ok(Changed::Now));
        let report = expire(&stage.repository, &wanted(keep_full(2))).await.unwrap();
        assert!(report.failure().is_none(), "{report:?}");
        let (backups, segments) = stage.there().await;
        assert_eq!((backups, segments[0]), (vec![3, 4, 5, 6], 32));
    });
}

/// Otherwise it would look whole, and could not be restored.
#[test]
fn a_backup_that_cannot_be_deleted_keeps_its_wal() {
    run(async {
        let stage = Stage::days(6).await;
        let forced = Expire { force: true, ..wanted(Policy { wal_within: Some(DAY), ..keep_full(3) }) };
        let stuck = stage.repository.layout.backup(Generation(1), id(2), BackupKey::Manifest).to_string();
        let store =
            watched(stage.memory.clone(), move |what: &str, name: &str| match what == "delete" && name == stuck {
                true => Err(StoreErrorKind::Unavailable),
                false => Ok(()),
            });
        let report = expire(&stage.through(store), &forced).await.unwrap();
        assert_eq!(report.failure().unwrap().kind, FailureKind::Unavailable);
        let (backups, segments) = stage.there().await;
        assert_eq!((backups, &segments[..4]), (vec![2, 4, 5, 6], &[22, 23, 42, 43][..]));
        let again = expire(&stage.repository, &forced).await.unwrap();
        assert!(again.failure().is_none(), "{again:?}");
        assert_eq!(stage.there().await.1[..2], [42, 43]);
    });
}

/// Some objects are held: the rest goes.
#[test]
fn a_role_that_may_delete_some_objects_deletes_all_it_may() {
    run(async {
        let stage = Stage::days(9).await;
        let store = watched(stage.memory.clone(), |what: &str, name: &str| {
            match what == "delete" && name.contains("/000000010000000000000") {
                true if name.contains("/wal/") && name < "main/1/wal/00000001/00000000/00000001000000000000001F" => {
                    Err(StoreErrorKind::Denied)
                }
                _ => Ok(()),
            }
        });
        let report = expire(&stage.through(store), &wanted(keep_full(5))).await.unwrap();
        assert_eq!(report.failure().unwrap().kind, FailureKind::Denied);
        assert_eq!((report.failed.len(), stage.there().await.1), (21, (10..31).chain(52..100).collect()));
    });
}

/// By the store's clock: this machine's may say what it wants.
#[test]
fn a_mark_for_a_time_counts_until_then() {
    run(async {
        let stage = Stage::days(5).await;
        let offset = |seconds: i64| Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        for (number, until) in [(1, Some(offset(3600))), (2, Some(offset(-1))), (3, None)] {
            let mark = Mark { until, reason: "because".into() };
            let put = stage.repository.mark(Generation(1), id(number), Timestamp::now(), &mark, &writer()).await;
            assert_eq!(put.unwrap(), Put::Created);
            assert_eq!(stage.repository.read_mark(Generation(1), id(number)).await.unwrap(), Some(mark));
        }
        let policy = Policy { wal_within: Some(DAY), ..keep_full(2) };
        let mut wanted = wanted(policy);
        wanted.force = true;
        let mut wrong = circumstances();
        wrong.now = offset(86400 * 1000);
        let report = run_on(&stage.repository, &wanted, &wrong, |_| true).await.unwrap();
        assert_eq!(stage.there().await.0, [1, 3, 4, 5]);
        let reasons: Vec<String> =
            report.generations[0].keep.iter().take(2).map(|kept| kept.reasons.join(", ")).collect();
        assert!(reasons[0].starts_with("marked by `keep` until 2"), "{reasons:?}");
        assert_eq!(reasons[1], "marked by `keep`");
        assert!(!stage.keys().await.iter().any(|key| key.contains(&id(2).to_string())), "its mark went with it");
    });
}

/// A restore begins, or a backup is finished, after the backups were deleted and before their WAL is.
#[test]
fn wal_that_is_needed_meanwhile_stays() {
    for lease in [false, true] {
        run(async {
            let stage = Stage::days(6).await;
            let (memory, other) = (stage.memory.clone(), stage.repository.clone());
            let done = Mutex::new(false);
            let inner = stage.memory.clone();
            let store = watched(stage.memory.clone(), move |what: &str, name: &str| {
                let mut done = done.lock().unwrap();
                if what == "delete" && name.contains(&format!("{}/part/00000003", id(2))) && !*done {
                    *done = true;
                    let act = async {
                        if lease {
                            let lease =
                                Lease::new(Generation(1), id(3), Lsn(15 * MIB), Some(Lsn(17 * MIB)), "r".into());
                            other.hold(&lease, Timestamp::now(), 1).await.unwrap();
                        } else {
                            // An old one whose manifest comes late.
                            let key = other.layout.backup(Generation(1), id(50), BackupKey::Manifest);
                            let bytes = manifest(id(50), 15, 16).encode().unwrap();
                            inner.put(&key, bytes, &UserMetadata::new()).await.unwrap();
                        }
                    };
                    futures_util::FutureExt::now_or_never(act).expect("memory answers at once");
                }
                Ok(())
            });
            expire(&stage.through(store), &wanted(keep_full(4))).await.unwrap();
            let (_, segments) = stage.there().await;
            // The late backup is the newest now: all WAL from its start on stays.
            let first = if lease { vec![15, 16] } else { (15..32).collect() };
            assert_eq!(segments, first.into_iter().chain(32..70).collect::<Vec<u64>>(), "lease: {lease}");
            drop(memory);
        });
    }
}

#[test]
fn what_a_dead_backup_left_goes_after_a_day_and_what_runs_stays() {
    run(async {
        let stage = Stage::days(3).await;
        let dead = stage.parts(70, DAY * 2).await;
        let running = stage.parts(71, DAY / 2).await;
        let marked = stage.parts(72, DAY * 9).await;
        stage.repository.keep(Generation(1), marked, Timestamp::now(), "", &writer()).await.unwrap();
        stage.put(&"main/1/backup/what/is/this".parse().unwrap(), "?", DAY * 90).await;
        stage.put(&"main/1/wal/00000001/00000000/strange.zst".parse().unwrap(), "?", DAY * 90).await;
        let report = expire(&stage.repository, &wanted(keep_full(3))).await.unwrap();
        assert_eq!(report.deleted, 3, "{report:?}");
        let keys = stage.keys().await;
        let has = |text: &str| keys.iter().any(|key| key.contains(text));
        assert!(!has(&dead.to_string()) && has(&running.to_string()) && has(&marked.to_string()));
        assert!(has("what/is/this") && has("strange"));
    });
}

#[test]
fn a_role_that_cannot_write_expires_by_the_newest_object() {
    run(async {
        let stage = Stage::days(5).await;
        let store = watched(
            stage.memory.clone(),
            |what: &str, _: &str| if what == "put" { Err(StoreErrorKind::Denied) } else { Ok(()) },
        );
        let policy = Policy { keep_within: Some(DAY * 3), ..Policy::default() };
        let report = expire(&stage.through(store), &wanted(policy)).await.unwrap();
        assert_eq!(report.clock, Clock::NewestObject);
        assert!(report.notes.iter().any(|note| note.contains("cannot write below `record/`")), "{:?}", report.notes);
        // The newest object is half a day old, so this is the plan of half a day ago.
        assert_eq!(stage.there().await.0, [2, 3, 4, 5]);
    });
}

#[test]
fn a_role_that_cannot_delete_says_so_and_gives_up() {
    run(async {
        let stage = Stage::days(9).await;
        let before = stage.keys().await;
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let store = watched(stage.memory.clone(), move |what: &str, _: &str| match what {
            "delete" => {
                count.fetch_add(1, Ordering::SeqCst);
                Err(StoreErrorKind::Denied)
            }
            _ => Ok(()),
        });
        let report = expire(&stage.through(store), &wanted(keep_full(5))).await.unwrap();
        let failure = report.failure().unwrap();
        assert_eq!(failure.kind, FailureKind::Denied);
        assert!(failure.message.contains("lacks the right to delete (s3:DeleteObject"), "{failure}");
        assert_eq!(stage.keys().await, before);
        assert!(asked.load(Ordering::SeqCst) < 20, "{asked:?}");
    });
}

/// The clock of the host that expires says nothing.
#[test]
fn a_clock_that_jumped_changes_nothing() {
    for years in [-30, 30] {
        run(async {
            let stage = Stage::days(5).await;
            let policy = Policy { keep_within: Some(DAY * 3), ..Policy::default() };
            let now = Timestamp::now() + jiff::SignedDuration::from_hours(24 * 365 * years);
            let wrong = Circumstances { now, writer: writer() };
            run_on(&stage.repository, &wanted(policy), &wrong, |_| true).await.unwrap();
            assert_eq!(stage.there().await.0, [3, 4, 5], "{years}");
        });
    }
}

#[test]
fn a_manifest_that_cannot_be_read_freezes_the_wal() {
    run(async {
        let stage = Stage::days(6).await;
        let key = stage.repository.layout.backup(Generation(1), id(2), BackupKey::Manifest);
        stage.memory.corrupt(&key, |bytes| bytes.truncate(9));
        let report = expire(&stage.repository, &wanted(keep_full(4))).await.unwrap();
        assert!(report.generations[0].wal_frozen.is_some());
        assert_eq!(stage.there().await, (vec![2, 3, 4, 5, 6], (10..70).collect()));
        let read = stage.memory.read_small(&key, 100).await.unwrap();
        assert!(read.is_some());
    });
}

/// On S3: by the clock of the store, with uploads that were never completed, and in pages.
#[test]
fn a_bucket_is_expired_and_old_uploads_are_aborted() {
    let double = S3Double::start();
    double.check_clock(false);
    run(async {
        let store = crate::conformance::s3(&double).await;
        let repository = Repository::new(store.clone(), "main".parse().unwrap());
        let ident = ClusterIdent { system_id: SystemId(7), major: 15.try_into().unwrap() };
        repository.find_or_begin(ident, Timestamp::now(), &writer()).await.unwrap();
        let put = async |key: ObjectKey, bytes: Bytes| {
            let put = store.put(&key, bytes, &UserMetadata::new()).await.unwrap();
            assert_eq!(put, Put::Created);
        };
        let broken = [Op::Complete, Op::Abort].map(|op| Rule::new(Fault::Status500).on(op));
        for (day, begin) in [(20, 1), (10, 1001), (0, 2001)] {
            double.clock_offset(-day * 86400 - 7200);
            for number in begin..begin + if day == 20 { 1000 } else { 10 } {
                put(repository.layout.wal_file(Generation(1), segment(number)), vec![0; 10].into()).await;
            }
            let id = id(begin as u32);
            put(repository.layout.backup(Generation(1), id, BackupKey::Part(1)), vec![0; 90_000].into()).await;
            repository.put_manifest(&manifest(id, begin + 2, begin + 3)).await.unwrap();
            for rule in &broken {
                double.fault(rule.clone());
            }
            let upload = repository.layout.backup(Generation(1), id, BackupKey::Part(7));
            store.put(&upload, vec![0; 33 << 20].into(), &UserMetadata::new()).await.unwrap_err();
            double.clear_faults();
        }
        double.clock_offset(0);
        assert_eq!(double.open_uploads().len(), 3);
        let report = expire(&repository, &wanted(keep_full(2))).await.unwrap();
        assert!(report.failure().is_none(), "{report:?}");
        assert_eq!((report.clock, report.deleted), (Clock::Store, 2 + 1000 + 2 + 2));
        let uploads = double.open_uploads();
        assert!(uploads.len() == 1 && uploads[0].0.contains(&id(2001).to_string()), "{uploads:?}");
        assert!(!double.keys().iter().any(|key| key.contains(&id(1).to_string())));
        // A role that may only read.
        double.clock_offset(-3 * 86400);
        put(repository.layout.backup(Generation(1), id(5), BackupKey::Part(1)), "x".into()).await;
        double.clock_offset(0);
        double.read_only(true);
        let report = expire(&repository, &wanted(keep_full(2))).await.unwrap();
        assert_eq!((report.clock, report.failure().unwrap().kind), (Clock::NewestObject, FailureKind::Denied));
    });
}

/// The program on a directory: the words, and what a killed writer left there.
#[test]
fn the_program_expires_a_directory() {
    let repository = repository::Repository::local();
    let root = std::path::PathBuf::from(repository.url().trim_start_matches("file://"));
    run(async {
        let stage = Stage::days(4).await;
        for object in stage.memory.list(&KeyPrefix::default(), None, 10_000).await.unwrap().objects {
            let bytes = stage.memory.read_small(&object.name.parse().unwrap(), 1 << 20).await.unwrap().unwrap();
            repository.put(&object.name, &bytes);
            age(&root.join(&object.name), object.modified.unwrap());
        }
    });
    for (name, ago) in [(".pgark-tmp-1-0-0", DAY * 2), (".pgark-tmp-2-0-0", DAY / 2)] {
        let path = root.join("main/1/wal").join(name);
        std::fs::write(&path, "half").unwrap();
        age(&path, SystemTime::now() - ago);
    }
    let call =
        |words: &[&str]| Call::new(words.iter().copied()).envs(repository.env()).env("PGARK_RETENTION__KEEP_FULL", "2");
    let nothing = call(&["expire", "--dry-run"]).without("PGARK_RETENTION__KEEP_FULL").run().quiet_success();
    let said: Vec<&str> = nothing.stdout.lines().filter(|line| !line.starts_with("note ")).collect();
    assert_eq!(said[0], "no policy is set under [retention]: only what dead backups left is collected");
    assert!(said.len() == 2 && said[1].contains(".pgark-tmp-1-0-0"), "{nothing:?}");
    let first = id(1).to_string();
    call(&["keep", &first, "--reason", "because"]).run().quiet_success();
    assert!(call(&["keep", &first]).run().quiet_success().stdout.contains("was marked before"));
    call(&["delete", &first]).run().code(2).says("is marked as one that must stay");
    call(&["delete", &id(4).to_string()])
        .run()
        .code(2)
        .says("is the newest backup of its generation that can be restored");
    call(&["delete", &id(9).to_string()]).run().code(2).says("is not in the repository");

    let plan = call(&["expire", "--dry-run"]).run().quiet_success().stdout;
    let window = plan.split("since ").nth(1).unwrap().split(' ').next().unwrap();
    insta::assert_snapshot!(plan.replace(window, "THEN"));
    let json = call(&["expire", "--dry-run", "--json"]).run().quiet_success().stdout;
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["schema"], 1);
    // `status` makes the same plan.
    let status = |name: &str, value: &str| {
        let outcome = call(&["status", "--no-server", "--json"]).env(name, value).run();
        serde_json::from_str::<serde_json::Value>(&outcome.stdout).unwrap()["expiry"].clone()
    };
    let expiry = status("PGARK_RETENTION__KEEP_FULL", "2");
    let going = report["generations"][0]["delete"].as_array().unwrap();
    let sum = |field: &str| going.iter().map(|going| going[field].as_u64().unwrap()).sum::<u64>();
    let kind = |kind: &str| going.iter().filter(|going| going["kind"] == kind).count();
    assert!(kind("backup") == 1 && kind("wal") == 2, "{report}");
    assert_eq!(
        (&expiry["backups"], &expiry["wal"], &expiry["bytes"]),
        (&kind("backup").into(), &kind("wal").into(), &sum("bytes").into()),
        "{expiry}"
    );
    assert_eq!((&expiry["objects"], &expiry["next"]), (&(sum("objects") + 1).into(), &serde_json::Value::Null));
    let text = call(&["status", "--no-server"]).run().stdout;
    assert!(text.contains("`pgark expire` would delete 1 backup and "), "{text}");
    let off = call(&["status", "--no-server"]).without("PGARK_RETENTION__KEEP_FULL").run().stdout;
    assert!(off.contains("no policy is set under [retention]"), "{off}");

    // One that is marked for a time goes when that is over, or when it is too old, whichever is later.
    let manifest = |number: u32| root.join(format!("main/1/backup/{}/manifest.json.zst", id(number)));
    let written = |number: u32| Timestamp::try_from(manifest(number).metadata().unwrap().modified().unwrap()).unwrap();
    let next = |expected: BackupId, at: Timestamp| {
        let found = call(&["status", "--no-server", "--json"])
            .env("PGARK_RETENTION__KEEP_WITHIN", "10d")
            .env("PGARK_RETENTION__KEEP_FULL", "1")
            .run();
        let found: serde_json::Value = serde_json::from_str(&found.stdout).unwrap();
        let next = &found["expiry"]["next"];
        assert_eq!(next["backup"], expected.to_string(), "{found}");
        let late = next["at"].as_str().unwrap().parse::<Timestamp>().unwrap().duration_since(at).as_secs();
        assert!((0..=2).contains(&late), "{late} s: {found}");
    };
    let ten_days = jiff::SignedDuration::from_hours(240);
    next(id(2), written(2) + ten_days);
    let until = (written(1) + ten_days + ten_days).round(jiff::Unit::Second).unwrap();
    let kept =
        call(&["keep", &first, "--until", &until.to_string(), "--reason", "for the audit"]).run().quiet_success();
    assert_eq!(kept.stdout, format!("backup {first} stays until {until}\n"));
    call(&["keep", &first, "--until", "2020-01-01T00:00:00Z"]).run().code(2).says("is past");
    call(&["keep", &first, "--until", "soon"]).run().code(2).says("neither a time with an offset nor a duration");
    let listed = call(&["list"]).run().stdout;
    assert!(listed.contains(&format!("until {until}")), "{listed}");
    let shown = call(&["show", &first]).run().stdout;
    assert!(shown.contains(&format!("until {until}: for the audit")), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&call(&["list", "--json"]).run().stdout).unwrap();
    assert_eq!(
        (&json["backups"][0]["kept"], &json["backups"][0]["kept_until"], &json["backups"][0]["kept_reason"]),
        (&true.into(), &until.to_string().into(), &"for the audit".into())
    );
    call(&["delete", &first]).run().code(2).says("is marked as one that must stay");
    call(&["unkeep", &id(2).to_string()]).run().quiet_success();
    call(&["keep", &id(2).to_string(), "--until", "300d"]).run().quiet_success();
    call(&["keep", &id(3).to_string()]).run().quiet_success();
    next(id(1), until);
    // A mark that is over: as `list` says, and `keep` without a time replaces it.
    let key = format!("main/1/backup/{first}/keep.json");
    repository.alter(&key, |bytes| {
        *bytes = br#"{"format":"pgark-keep-1","reason":"old","until":"2026-01-01T00:00:00Z"}"#.to_vec();
    });
    let shown = call(&["show", &first]).run().stdout;
    assert!(shown.contains("no longer, since 2026-01-01T00:00:00Z: old"), "{shown}");
    for number in [2, 3] {
        call(&["unkeep", &id(number).to_string()]).run().quiet_success();
    }
    let again = call(&["keep", &first, "--reason", "because"]).run().quiet_success();
    assert_eq!(again.stdout, format!("backup {first} stays until `pgark unkeep`\n"));

    let done = call(&["expire"]).run().quiet_success().stdout;
    assert!(done.ends_with(" deleted, 2.9 KiB\n") || done.contains("objects deleted"), "{done}");
    let keys = repository.keys();
    assert!(keys.iter().any(|key| key.ends_with(".pgark-tmp-2-0-0")), "it may be at work");
    assert!(!keys.iter().any(|key| key.ends_with(".pgark-tmp-1-0-0")));
    let manifests: Vec<&String> = keys.iter().filter(|key| key.ends_with("manifest.json.zst")).collect();
    assert_eq!(manifests.len(), 3, "{manifests:?}");

    call(&["unkeep", &first]).run().quiet_success();
    let third = id(3).to_string();
    assert!(call(&["delete", &first, "--dry-run"]).run().quiet_success().stdout.contains("would be deleted"));
    call(&["delete", &first]).run().quiet_success();
    call(&["delete", &third]).run().quiet_success();
    assert!(!repository.keys().iter().any(|key| key.contains(&first) || key.contains(&third)));
}

fn age(path: &std::path::Path, modified: SystemTime) {
    std::fs::File::options().append(true).open(path).unwrap().set_modified(modified).unwrap();
}
