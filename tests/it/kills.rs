//! kill -9 at random points, then the same call again: one object, the right bytes, nothing in the way.

use std::fs;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};

use crate::data_dir::FakeCluster;
use crate::program::{Call, finish};
use crate::repository::{Repository, segment_key};

pub fn seed() -> u64 {
    let seed = std::env::var("PGARK_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("seed {seed} (PGARK_TEST_SEED={seed} replays it)");
    seed
}

pub fn kill_after(child: std::process::Child, delay: Duration) -> i32 {
    let mut child = child;
    std::thread::sleep(delay);
    child.kill().expect("kill -9");
    finish(child).code
}

/// How long the call takes here and now, on its third and so warm run at the latest: kills are spread over that time.
fn usual(call: &Call) -> Duration {
    (0..3).map(|_| call.run().quiet_success().took).min().unwrap_or_default()
}

#[test]
fn two_hundred_killed_pushes() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut killed = 0;
    for repository in Repository::both() {
        let cluster = FakeCluster::with_segments_of(4 << 20);
        cluster.segment("000000010000000100000000", 0);
        let usual = usual(&repository.push(&cluster, "000000010000000100000000"));
        for round in 0..100u32 {
            let name = format!("0000000100000000{:08X}", round + 1);
            let path = cluster.segment(&name, u64::from(round));
            let delay = random.random_range(Duration::ZERO..usual);
            let code = kill_after(repository.push(&cluster, &name).spawn(), delay);
            killed += u32::from(code == 137);
            assert!(matches!(code, 0 | 137), "round {round}: {code}");
            let plain = fs::read(&path).unwrap();
            let stored = || repository.object(&segment_key(&name));
            if let Some(object) = stored() {
                assert_eq!(zstd::decode_all(&object[..]).unwrap(), plain, "round {round}");
            } else {
                assert_eq!(code, 137, "round {round}: exit 0 without an object");
            }
            repository.push(&cluster, &name).run().quiet_success();
            assert_eq!(zstd::decode_all(&stored().unwrap()[..]).unwrap(), plain, "round {round}");
            fs::remove_file(path).unwrap();
        }
    }
    assert!(killed > 40, "only {killed} of 200 were killed in time");
}

#[test]
fn two_hundred_killed_fetches() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut killed = 0;
    for repository in Repository::both() {
        let cluster = FakeCluster::with_segments_of(4 << 20);
        let name = "000000010000000000000001";
        let plain = fs::read(cluster.segment(name, 1)).unwrap();
        repository.push(&cluster, name).run().quiet_success();
        cluster.signal(&["recovery.signal"]);
        let usual = usual(&repository.fetch(&cluster, name));
        fs::remove_file(cluster.destination()).unwrap();
        for round in 0..100 {
            let delay = random.random_range(Duration::ZERO..usual);
            let code = kill_after(repository.fetch(&cluster, name).spawn(), delay);
            killed += u32::from(code == 137);
            match fs::read(cluster.destination()) {
                Ok(bytes) => assert_eq!(bytes, plain, "round {round}"),
                Err(_) => assert_eq!(code, 137, "round {round}: exit 0 without a file"),
            }
            fs::remove_file(cluster.destination()).ok();
            repository.fetch(&cluster, name).run().quiet_success();
            assert_eq!(fs::read(cluster.destination()).unwrap(), plain, "round {round}");
            let left: Vec<_> =
                fs::read_dir(cluster.path().join("pg_wal")).unwrap().map(|e| e.unwrap().file_name()).collect();
            // archive_status, the segment and what was restored: the killed fetch's file was swept up.
            assert_eq!(left.len(), 3, "round {round}: {left:?}");
            fs::remove_file(cluster.destination()).unwrap();
        }
    }
    assert!(killed > 40, "only {killed} of 200 were killed in time");
}

#[test]
fn signals_end_a_call_at_once_and_cleanly() {
    let repository = Repository::s3();
    let cluster = FakeCluster::new();
    let name = "000000010000000000000001";
    cluster.segment(name, 1);
    repository.push(&cluster, name).run().quiet_success();
    cluster.segment("000000010000000000000002", 2);
    repository.double().fault(crate::double::Rule::new(crate::double::Fault::Silence));
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP] {
        let calls = [
            (repository.push(&cluster, "000000010000000000000002").env("PGARK_WAL__PUSH_DEADLINE", "60s"), 21),
            (repository.fetch(&cluster, name).env("PGARK_WAL__FETCH_RETRY", "60s"), 200),
        ];
        for (call, code) in calls {
            let child = call.env("PGARK_REPO__REQUEST_TIMEOUT", "60s").spawn();
            std::thread::sleep(Duration::from_millis(300));
            kill_process(Pid::from_child(&child), signal).unwrap();
            let outcome = finish(child).code(code).says("interrupted by SIG");
            assert!(outcome.took < Duration::from_secs(2), "{outcome:?}");
        }
    }
    let left = fs::read_dir(cluster.path().join("pg_wal")).unwrap().count();
    assert_eq!(left, 3, "something was left in pg_wal");
}
