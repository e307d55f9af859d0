//! `serve` in this process, by a clock that the tests set, and as a process: real servers, real stores.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use pgark::cli::serve_verb;
use pgark::cli::sources::Sources;
use pgark::command::Failure;
use pgark::command::clock::Clock;
use pgark::command::run_note::{Ending, Noting, noted};
use pgark::command::stop::StopButton;
use pgark::repo::{RunKind, Writer};
use pgark::serve::{self, Job, Serve};
use serde_json::Value;
use tokio::sync::watch;

use crate::data_dir::FakeCluster;
use crate::pitr::archiving;
use crate::postgres::{Cluster, Installation, StopMode, happens_within};
use crate::program::binary;
use crate::repository::Repository;
use crate::run_notes::runs;

const A_MINUTE: Duration = Duration::from_secs(60);

/// A clock that stands until it is set.
#[derive(Debug)]
pub struct TestClock(watch::Sender<Timestamp>);

impl TestClock {
    pub fn at(time: &str) -> Arc<Self> {
        Arc::new(TestClock(watch::Sender::new(time.parse().unwrap())))
    }

    pub fn set(&self, time: &str) {
        self.0.send_replace(time.parse().unwrap());
    }

    pub fn advance(&self, length: SignedDuration) {
        self.0.send_modify(|now| *now += length);
    }
}

#[async_trait]
impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        *self.0.borrow()
    }

    async fn sleep_until(&self, time: Timestamp) {
        self.0.subscribe().wait_for(|now| *now >= time).await.ok();
    }
}

/// The settings of a repository and a server, as a file has them.
pub fn settings(repository: &Repository, cluster: Option<&Cluster>, more: &str) -> String {
    let mut text = format!("[repo]\nurl = \"{}\"\n", repository.url());
    if let Repository::S3(double) = repository {
        text.push_str(&format!(
            "endpoint = \"{}\"\nregion = \"us-east-1\"\naccess_key_id = \"{}\"\nsecret_access_key = \"{}\"\n",
            double.endpoint(),
            double.access_key(),
            double.secret_key()
        ));
    }
    let conninfo = cluster.map_or("host=/nonexistent".to_owned(), |cluster| cluster.endpoint().conninfo());
    text.push_str(&format!("[cluster]\nconninfo = \"{conninfo}\"\n"));
    if let Some(cluster) = cluster {
        text.push_str(&format!("pgdata = \"{}\"\n", cluster.data_dir().display()));
    }
    format!("{text}{more}")
}

/// What these settings serve, as the host of this name.
pub fn built(settings: &str, host: &str) -> Serve {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), settings).unwrap();
    let sources = Sources::read(vec![], std::iter::empty(), Some(file.path())).unwrap();
    let pid = host.bytes().fold(1, |sum, byte| sum + u32::from(byte));
    serve_verb::build(&sources, Writer { host: host.to_owned(), pid, version: "test" }, binary()).unwrap()
}

/// Somebody who serves in this process.
pub struct Serving {
    button: StopButton,
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

impl Serving {
    pub fn begin(serve: Serve, clock: &Arc<TestClock>) -> Self {
        let (button, stop) = StopButton::new();
        let clock = Arc::clone(clock) as Arc<dyn Clock>;
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let served = runtime.block_on(serve::run(serve, clock, stop));
            runtime.shutdown_background();
            served
        });
        Serving { button, thread: Some(thread) }
    }

    pub fn stop(mut self) {
        self.button.press();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.button.press();
    }
}

#[track_caller]
pub fn wait(what: &str, condition: impl FnMut() -> bool) {
    assert!(happens_within(A_MINUTE, condition), "{what}: not within {A_MINUTE:?}");
}

pub fn claims(repository: &Repository) -> usize {
    repository.keys().iter().filter(|key| key.contains("/record/claim/")).count()
}

fn stages(repository: &Repository, kind: &str) -> Vec<String> {
    runs(repository, kind).iter().map(|run| run["stage"].as_str().unwrap().to_owned()).collect()
}

const TIMETABLE: &str = "[serve]\nlisten = \"none\"\nlook = \"1h\"\n[schedule]\nbasebackup = \"0 1 * * *\"\n\
                         dump = \"0 2 * * *\"\nexpire = \"0 3 * * *\"\nverify = \"0 4 * * *\"\n";
const KINDS: [&str; 4] = ["basebackup", "dump", "expire", "verify"];

#[test]
fn what_is_due_runs_and_what_was_missed_is_caught_up_once_by_whoever_comes() {
    for repository in Repository::both() {
        let primary = archiving(&repository, Installation::preferred(), 1);
        primary.archive_everything(A_MINUTE);
        let all = || KINDS.map(|kind| stages(&repository, kind).len());
        let clock = TestClock::at("2026-11-20T00:30:00Z");
        let settings = settings(&repository, Some(&primary), TIMETABLE);

        let first = Serving::begin(built(&settings, "one"), &clock);
        wait("the beginning is noted", || claims(&repository) == 4);
        clock.set("2026-11-20T01:00:00Z");
        wait("the backup is there", || stages(&repository, "basebackup") == ["done"]);
        assert_eq!(all(), [1, 0, 0, 0]);
        clock.set("2026-11-20T04:00:01Z");
        wait("all have run", || KINDS.iter().all(|kind| stages(&repository, kind) == ["done"]));
        first.stop();

        // Two days later another host has it.
        clock.set("2026-11-22T12:00:00Z");
        let second = Serving::begin(built(&settings, "another"), &clock);
        wait("all were caught up", || KINDS.iter().all(|kind| stages(&repository, kind) == ["done", "done"]));
        second.stop();
        let third = Serving::begin(built(&settings, "third"), &clock);
        // It has had its say when the next thing that is due was run.
        clock.set("2026-11-23T01:00:00Z");
        wait("the next backup", || stages(&repository, "basebackup").len() == 3);
        assert_eq!(all(), [3, 2, 2, 2]);
        third.stop();

        clock.set("2026-11-25T12:00:00Z");
        let patient = settings.replace("[schedule]\n", "[schedule]\ncatch_up = false\n");
        let fourth = Serving::begin(built(&patient, "fourth"), &clock);
        clock.set("2026-11-26T01:04:00Z");
        wait("the next backup", || stages(&repository, "basebackup").len() == 4);
        assert_eq!(all(), [4, 2, 2, 2]);
        fourth.stop();
    }
}

#[test]
fn two_at_once_do_everything_once() {
    let repository = Repository::s3();
    let primary = archiving(&repository, Installation::preferred(), 1);
    primary.archive_everything(A_MINUTE);
    let clock = TestClock::at("2026-11-20T00:30:00Z");
    let settings = settings(&repository, Some(&primary), TIMETABLE);
    let both = ["one", "two"].map(|host| Serving::begin(built(&settings, host), &clock));
    wait("the beginning is noted", || claims(&repository) == 4);
    for day in 20..23 {
        clock.set(&format!("2026-11-{day}T05:00:00Z"));
        let count = day - 19;
        wait("all have run", || KINDS.iter().all(|kind| stages(&repository, kind) == vec!["done"; count]));
        // Who came too late has seen it by the next minutes.
        for _ in 0..3 {
            clock.advance(SignedDuration::from_mins(2));
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(KINDS.map(|kind| stages(&repository, kind).len()), [count; 4]);
    }
    // Each due time has one claim.
    assert_eq!(claims(&repository), 4 + 3 * 4);
    for serving in both {
        serving.stop();
    }
}

#[test]
fn who_claims_and_dies_is_replaced() {
    let repository = with_a_segment();
    let clock = TestClock::at("2026-11-20T03:59:00Z");
    let claim = |time: &str, attempt: u32| {
        let due: Timestamp = time.parse().unwrap();
        format!("main/record/claim/{:020}-verify-{attempt}.json", due.as_nanosecond())
    };
    repository.put(&claim("2026-11-19T04:00:00Z", 0), b"{}");
    repository.put(&claim("2026-11-20T04:00:00Z", 1), b"{}");
    let text = settings(&repository, None, "[serve]\nlisten = \"none\"\n[schedule]\nverify = \"0 4 * * *\"\n");
    let serving = Serving::begin(built(&text, "one"), &clock);
    clock.set("2026-11-20T04:00:30Z");
    for _ in 0..9 {
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(stages(&repository, "verify"), [""; 0]);
        clock.advance(SignedDuration::from_mins(1));
    }
    wait("it is taken over", || {
        clock.advance(SignedDuration::from_mins(1));
        std::thread::sleep(Duration::from_millis(50));
        stages(&repository, "verify") == ["done"]
    });
    assert!(repository.keys().contains(&claim("2026-11-20T04:00:00Z", 2)));
    serving.stop();
}

#[test]
fn a_failure_is_noted_and_tried_again_when_it_is_due_again() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    primary.archive_everything(A_MINUTE);
    let clock = TestClock::at("2026-11-20T00:30:00Z");
    let serving = Serving::begin(built(&settings(&repository, Some(&primary), TIMETABLE), "one"), &clock);
    wait("the beginning is noted", || claims(&repository) == 4);
    primary.stop(StopMode::Fast);
    clock.set("2026-11-20T02:30:00Z");
    wait("both fail", || ["basebackup", "dump"].iter().all(|kind| stages(&repository, kind) == ["failed"]));
    let failed: Value = runs(&repository, "dump").remove(0);
    assert!(failed["message"].as_str().unwrap().starts_with("no dump was made"), "{failed}");
    primary.start();
    clock.set("2026-11-21T02:30:00Z");
    wait("both are done", || ["basebackup", "dump"].iter().all(|kind| stages(&repository, kind) == ["failed", "done"]));
    serving.stop();
}

/// A job with a defect.
struct Defect(pgark::command::RepositorySettings);

#[async_trait(?Send)]
impl Job for Defect {
    async fn run(&self, noting: &Noting) -> Result<(), Failure> {
        let work = async { panic!("on purpose") as Result<(), Failure> };
        noted(&self.0, RunKind::Verify, noting, work, |()| Ending::done()).await
    }
}

/// A repository with a segment: enough for `verify`.
pub fn with_a_segment() -> Repository {
    let repository = Repository::local();
    let cluster = FakeCluster::new();
    cluster.segment("000000010000000000000001", 1);
    repository.push(&cluster, "000000010000000000000001").run().quiet_success();
    repository
}

#[test]
fn a_defect_of_one_thing_leaves_the_others_at_work() {
    let repository = with_a_segment();
    let clock = TestClock::at("2026-11-20T00:30:00Z");
    let text = settings(
        &repository,
        None,
        "[serve]\nlisten = \"none\"\n[schedule]\nverify = \"0 * * * *\"\nexpire = \"5 * * * *\"\n",
    );
    let mut serve = built(&text, "one");
    let broken = serve.timetable.iter_mut().find(|entry| entry.kind == RunKind::Verify).unwrap();
    broken.job = Arc::new(Defect(serve.repository.clone()));
    let serving = Serving::begin(serve, &clock);
    wait("the beginning is noted", || claims(&repository) == 2);
    clock.set("2026-11-20T01:00:00Z");
    wait("it failed", || stages(&repository, "verify") == ["failed"]);
    assert_eq!(runs(&repository, "verify")[0]["message"], "a defect of pgark showed itself");
    clock.set("2026-11-20T02:05:00Z");
    wait("it failed again", || stages(&repository, "verify") == ["failed", "failed"]);
    wait("the other is done", || stages(&repository, "expire").last().is_some_and(|stage| stage == "done"));
    serving.stop();
}

#[test]
fn a_store_that_is_away_when_something_is_due_is_asked_until_it_is_back() {
    let repository = Repository::s3();
    let cluster = FakeCluster::new();
    cluster.segment("000000010000000000000001", 1);
    repository.push(&cluster, "000000010000000000000001").run().quiet_success();
    let clock = TestClock::at("2026-11-20T00:30:00Z");
    let text = settings(&repository, None, "[serve]\nlisten = \"none\"\n[schedule]\nverify = \"0 1 * * *\"\n");
    let text = text.replace("[cluster]", "attempts = 1\nrequest_timeout = \"1s\"\n[cluster]");
    let serving = Serving::begin(built(&text, "one"), &clock);
    wait("the beginning is noted", || claims(&repository) == 1);
    repository.double().stop_listening();
    clock.set("2026-11-20T01:00:00Z");
    std::thread::sleep(Duration::from_secs(2));
    repository.double().resume_listening();
    wait("it is run", || {
        clock.advance(SignedDuration::from_mins(1));
        std::thread::sleep(Duration::from_millis(100));
        stages(&repository, "verify") == ["done"]
    });
    serving.stop();
}
