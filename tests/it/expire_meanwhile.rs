//! What begins while `expire` or `delete` is at work, at every moment: a mark, and a restore. Either it fails and says so, or the
//! backup is whole and has its WAL.
//!
//! Both parties run at once on one store, and a gate lets their requests through in every order of the form "so many of one, so
//! many of the other, the rest of the first, the rest of the other".

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use futures_util::FutureExt;
use jiff::Timestamp;
use pgark::command::expire_report::ExpireReport;
use pgark::command::keep::{Changed, delete_on, keep_on};
use pgark::command::{Failure, FailureKind};
use pgark::postgres::Lsn;
use pgark::repo::keep::Mark;
use pgark::repo::{BackupKey, Generation, Lease, Repository};
use pgark::storage::{Head, ObjectStoreExt, Put, StoreErrorKind};

use crate::expire::{MIB, Stage, circumstances, expire, id, keep_full, run, segment, wanted};
use crate::watched::{Before, watched};

/// How many requests of a party may go through.
#[derive(Debug, Default)]
struct Gate(Mutex<(usize, Vec<Waker>)>);

impl Gate {
    fn open(&self, requests: usize) {
        let mut gate = self.0.lock().unwrap();
        gate.0 = requests;
        gate.1.drain(..).for_each(Waker::wake);
    }

    fn left(&self) -> usize {
        self.0.lock().unwrap().0
    }

    fn pass(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut gate = self.0.lock().unwrap();
        match gate.0 {
            0 => {
                gate.1.push(context.waker().clone());
                Poll::Pending
            }
            _ => {
                gate.0 -= 1;
                Poll::Ready(())
            }
        }
    }
}

#[async_trait]
impl Before for Arc<Gate> {
    async fn before(&self, _: &'static str, _: &str) -> Result<(), StoreErrorKind> {
        std::future::poll_fn(|context| self.pass(context)).await;
        Ok(())
    }
}

/// A party and what it ended with.
struct Party<'a, T> {
    work: Pin<Box<dyn Future<Output = T> + 'a>>,
    gate: Arc<Gate>,
    done: Option<T>,
}

impl<'a, T> Party<'a, T> {
    fn new<F: Future<Output = T> + 'a>(stage: &'a Stage, work: impl FnOnce(Repository) -> F) -> Self {
        let gate = Arc::new(Gate::default());
        let store = watched(stage.memory.clone(), gate.clone());
        Party { work: Box::pin(work(stage.through(store))), gate, done: None }
    }

    /// Lets so many requests through, unless it ends before.
    async fn go(&mut self, requests: usize) {
        self.gate.open(requests);
        while self.done.is_none() {
            self.done = (&mut self.work).now_or_never();
            if self.gate.left() == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        self.gate.open(0);
    }

    async fn end(mut self) -> T {
        self.go(usize::MAX).await;
        self.done.unwrap()
    }
}

const DOOMED: u32 = 2;
const BOTH_KINDS: &str = "the moments were not all hit";

/// What a restore asks for, in its order: the lease, the WAL, the manifest.
async fn restore(repository: &Repository) -> Result<(), String> {
    let lease = Lease::new(Generation(1), id(DOOMED), Lsn(22 * MIB + 40), None, "r".into());
    repository.hold(&lease, Timestamp::now(), 1).await.map_err(|e| e.to_string())?;
    for number in [22, 23] {
        let key = repository.layout.wal_file(Generation(1), segment(number));
        if repository.store.head(&key).await.unwrap() == Head::NotSeen {
            return Err(format!("`{key}` is missing"));
        }
    }
    match repository.read_manifest(Generation(1), id(DOOMED)).await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("there is no such backup".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// What is missing of the backup and its WAL.
async fn missing(stage: &Stage, manifest: bool) -> Vec<String> {
    let layout = &stage.repository.layout;
    let piece = |piece| layout.backup(Generation(1), id(DOOMED), piece);
    let mut keys = vec![piece(BackupKey::Part(1)), piece(BackupKey::Part(2)), piece(BackupKey::Part(3))];
    keys.extend(manifest.then(|| piece(BackupKey::Manifest)));
    keys.extend([22, 23].map(|number| layout.wal_file(Generation(1), segment(number))));
    let mut missing = Vec::new();
    for key in keys {
        if stage.memory.read_small(&key, 1 << 20).await.unwrap().is_none() {
            missing.push(key.to_string());
        }
    }
    missing
}

/// Plays all orders. `check` is told which one, and what the other party ended with.
async fn in_all_orders<D, O, DF, OF>(
    deleting: impl Fn(Repository) -> DF,
    other: impl Fn(Repository) -> OF,
    check: impl AsyncFn(&Stage, String, D, O),
) where
    DF: Future<Output = D>,
    OF: Future<Output = O>,
{
    for before in 0.. {
        let mut ended_before = false;
        for between in 0.. {
            let stage = Stage::days(6).await;
            let mut first = Party::new(&stage, &deleting);
            let mut second = Party::new(&stage, &other);
            first.go(before).await;
            ended_before = first.done.is_some();
            second.go(between).await;
            let all = second.done.is_some();
            let deleted = first.end().await;
            let outcome = second.end().await;
            check(&stage, format!("{before} requests, then {between} of the other"), deleted, outcome).await;
            if all {
                break;
            }
        }
        if ended_before {
            assert!(before > 10, "{BOTH_KINDS}: {before}");
            break;
        }
    }
}

fn expired(outcome: Result<ExpireReport, Failure>, order: &str) {
    let report = outcome.unwrap();
    assert!(report.failure().is_none(), "{order}: {report:?}");
}

#[test]
fn a_backup_that_is_marked_in_time_is_whole() {
    run(async {
        let (kept, refused) = (Mutex::new(0), Mutex::new(0));
        let expiring = |repository| async move { expire(&repository, &wanted(keep_full(4))).await };
        let keeping =
            |repository| async move { keep_on(&repository, id(DOOMED), &Mark::default(), &circumstances()).await };
        in_all_orders(expiring, keeping, async |stage, order, report, outcome| {
            expired(report, &order);
            match outcome {
                Ok(_) => {
                    assert_eq!(missing(stage, true).await, Vec::<String>::new(), "{order}");
                    *kept.lock().unwrap() += 1;
                }
                Err(failure) => {
                    let said =
                        ["is being deleted", "was deleted in this moment", "is not in the repo", "has no manifest"];
                    assert_eq!(failure.kind, FailureKind::Usage, "{order}: {failure}");
                    assert!(said.iter().any(|said| failure.message.contains(said)), "{order}: {failure}");
                    *refused.lock().unwrap() += 1;
                }
            }
            // Neither a note nor a mark is left of what is gone.
            let keys = stage.keys().await;
            assert!(!keys.iter().any(|key| key.contains("/record/going/")), "{order}");
            let of_it = || keys.iter().filter(|key| key.contains(&format!("backup/{}", id(DOOMED))));
            let marks = of_it().filter(|key| key.ends_with("keep.json")).count();
            assert!(of_it().count() == 0 || (of_it().count(), marks) == (5, 1), "{order}: {keys:?}");
        })
        .await;
        assert!(*kept.lock().unwrap() > 10 && *refused.lock().unwrap() > 10, "{BOTH_KINDS}: {kept:?} {refused:?}");
    });
}

#[test]
fn a_restore_that_begins_in_time_finds_everything() {
    run(async {
        let (done, refused) = (Mutex::new(0), Mutex::new(0));
        let expiring = |repository| async move { expire(&repository, &wanted(keep_full(4))).await };
        let restoring = |repository| async move { restore(&repository).await };
        in_all_orders(expiring, restoring, async |stage, order, report, outcome| {
            expired(report, &order);
            match outcome {
                // It has read the manifest.
                Ok(()) => {
                    assert_eq!(missing(stage, false).await, Vec::<String>::new(), "{order}");
                    *done.lock().unwrap() += 1;
                }
                Err(_) => *refused.lock().unwrap() += 1,
            }
        })
        .await;
        assert!(*done.lock().unwrap() > 10 && *refused.lock().unwrap() > 10, "{BOTH_KINDS}: {done:?} {refused:?}");
    });
}

/// The same against `delete`, which leaves WAL alone.
#[test]
fn delete_leaves_what_is_named_in_time() {
    run(async {
        let (both, refused) = (Mutex::new(0), Mutex::new(0));
        let deleting =
            |repository| async move { delete_on(&repository, id(DOOMED), false, &circumstances(), |_| true).await };
        let naming = |repository| async move {
            let restored = restore(&repository).await.is_ok();
            (restored, keep_on(&repository, id(DOOMED), &Mark::default(), &circumstances()).await.is_ok())
        };
        in_all_orders(deleting, naming, async |stage, order, deleted, (restored, kept)| {
            if let Err(failure) = &deleted {
                assert!(failure.message.contains("marked") || failure.message.contains("in use"), "{order}: {failure}");
                *refused.lock().unwrap() += 1;
            }
            if restored || kept {
                assert!(deleted.is_err(), "{order}");
                assert_eq!(missing(stage, kept).await, Vec::<String>::new(), "{order}");
                *both.lock().unwrap() += 1;
            }
        })
        .await;
        assert!(*both.lock().unwrap() > 10 && *refused.lock().unwrap() > 10, "{BOTH_KINDS}: {both:?} {refused:?}");
    });
}

/// Whoever is asked may think for an hour.
#[test]
fn delete_looks_again_after_the_answer() {
    run(async {
        let stage = Stage::days(6).await;
        let mark = async || {
            stage
                .repository
                .keep(Generation(1), id(DOOMED), Timestamp::now(), "", &circumstances().writer)
                .await
                .unwrap()
        };
        let agree = |_: &pgark::repo::BackupListing| mark().now_or_never() == Some(Put::Created);
        let failure = delete_on(&stage.repository, id(DOOMED), false, &circumstances(), agree).await.unwrap_err();
        assert!(failure.message.contains("is marked as one that must stay"), "{failure}");
        assert_eq!(missing(&stage, true).await, Vec::<String>::new());
        stage.repository.unkeep(Generation(1), id(DOOMED)).await.unwrap();
        let deleted = delete_on(&stage.repository, id(DOOMED), false, &circumstances(), |_| true).await.unwrap();
        assert_eq!(deleted, Changed::Now);
    });
}
