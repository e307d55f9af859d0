//! A fetch has the next segments fetched ahead, by a helper that nobody needs: never wrong bytes, never "absent" by hearsay,
//! nothing left behind.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};

use crate::data_dir::FakeCluster;
use crate::double::{Fault, Op, Rule};
use crate::kills::seed;
use crate::program::{Call, binary, finish};
use crate::repository::{Repository, segment_key};

fn name(number: u32) -> String {
    format!("00000001000000000000{number:04X}")
}

/// A cluster that recovers, from an archive with these segments.
struct Recovering {
    cluster: FakeCluster,
    repository: Repository,
}

impl Recovering {
    fn from(repository: Repository, segments: std::ops::RangeInclusive<u32>) -> Self {
        let cluster = FakeCluster::new();
        for number in segments {
            let path = cluster.segment(&name(number), u64::from(number));
            repository.push(&cluster, &name(number)).run().quiet_success();
            fs::remove_file(path).unwrap();
        }
        let recovering = Recovering { cluster, repository };
        recovering.begin();
        recovering
    }

    /// A server runs, for all that can be seen: this process.
    fn begin(&self) {
        self.cluster.signal(&["recovery.signal"]);
        fs::write(self.cluster.path().join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
    }

    fn fetch(&self, number: u32) -> Call {
        self.repository.fetch(&self.cluster, &name(number))
    }

    #[track_caller]
    fn restored(&self, number: u32) {
        let expected = crate::data_dir::segment(self.cluster.system_id, &name(number), 1 << 20, u64::from(number));
        let bytes = fs::read(self.cluster.destination()).unwrap();
        assert!(bytes == expected, "segment {number} is not what was archived");
        fs::remove_file(self.cluster.destination()).unwrap();
    }

    /// What lies on the shelf.
    fn shelf(&self) -> PathBuf {
        let own = fs::read_dir(self.cluster.spool()).unwrap().next().unwrap().unwrap();
        own.path().join("fetched")
    }

    fn on_shelf(&self, number: u32) -> bool {
        [format!("{}.note", name(number)), name(number)].iter().all(|name| self.shelf().join(name).is_file())
    }

    #[track_caller]
    fn wait_for(&self, what: &str, arrived: impl Fn() -> bool) {
        let begun = Instant::now();
        while !arrived() {
            assert!(begun.elapsed() < Duration::from_secs(30), "no {what}: {:?}", self.helpers());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn helpers(&self) -> Vec<u32> {
        helpers_of(self.cluster.path())
    }

    fn end(&self) {
        fs::remove_file(self.cluster.path().join("postmaster.pid")).unwrap();
        self.wait_for("end of the helper", || self.helpers().is_empty());
    }
}

impl Drop for Recovering {
    fn drop(&mut self) {
        fs::remove_file(self.cluster.path().join("postmaster.pid")).ok();
        for helper in self.helpers() {
            kill(helper);
        }
    }
}

/// It may have ended by itself meanwhile.
fn kill(process: u32) {
    let process = Pid::from_raw(process as i32).unwrap();
    kill_process(process, Signal::KILL).ok();
}

/// The helpers that work for a data directory.
pub fn helpers_of(data_dir: &Path) -> Vec<u32> {
    let wanted = data_dir.canonicalize().unwrap_or(data_dir.to_owned()).display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let helper = |process: fs::DirEntry| {
        let words = fs::read_to_string(process.path().join("cmdline")).ok()?;
        let words: Vec<&str> = words.split('\0').collect();
        let directory =
            words.iter().any(|word| Path::new(word).canonicalize().is_ok_and(|path| path == Path::new(&wanted)));
        (words.contains(&"wal-prefetch") && directory).then(|| process.file_name().to_str()?.parse().ok())?
    };
    processes.filter_map(helper).collect()
}

#[test]
fn the_next_segments_wait_on_the_shelf_and_the_helper_ends_with_the_recovery() {
    for repository in Repository::both() {
        let recovering = Recovering::from(repository, 1..=12);
        recovering.fetch(1).run().quiet_success();
        recovering.restored(1);
        recovering.wait_for("segment 12", || recovering.on_shelf(12));
        assert_eq!(recovering.helpers().len(), 1);
        // The store is not needed for what is on the shelf.
        if let Repository::S3(double) = &recovering.repository {
            double.fault(Rule::new(Fault::AccessDenied403));
        }
        for number in 2..=12 {
            let said = recovering.fetch(number).env("PGARK_LOG__LEVEL", "info").run();
            assert_eq!(said.code, 0, "{said:?}");
            recovering.restored(number);
        }
        fs::remove_file(recovering.cluster.path().join("recovery.signal")).unwrap();
        recovering.wait_for("end of the helper", || recovering.helpers().is_empty());
        let left: Vec<_> = fs::read_dir(recovering.shelf()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| ["asked", "lock", "called"].contains(&name.to_str().unwrap())), "{left:?}");
    }
}

#[test]
fn absence_is_never_answered_from_hearsay() {
    let recovering = Recovering::from(Repository::s3(), 1..=2);
    recovering.fetch(1).run().quiet_success();
    recovering.wait_for("segment 2", || recovering.on_shelf(2));
    recovering.fetch(2).run().quiet_success();
    recovering.fetch(3).run().code(1);
    // It comes: the next call has it.
    recovering.cluster.segment(&name(3), 3);
    recovering.cluster.ready(&name(3));
    recovering.repository.push(&recovering.cluster, &name(3)).run().quiet_success();
    recovering.fetch(3).run().quiet_success();
    recovering.restored(3);
    // A fault is no absence either, whatever the helper knows.
    recovering.repository.double().fault(Rule::new(Fault::Status503));
    recovering.fetch(4).run().code(200);
}

/// At the end of the archive the helper waits for one segment, and does not ask for all that may come.
#[test]
fn at_the_end_of_the_archive_the_store_is_left_alone() {
    let recovering = Recovering::from(Repository::s3(), 1..=2);
    recovering.fetch(1).run().quiet_success();
    recovering.wait_for("segment 2", || recovering.on_shelf(2));
    let double = recovering.repository.double();
    let asked_for =
        |number| double.requests().iter().filter(|logged| logged.key.ends_with(&segment_key(&name(number)))).count();
    recovering.wait_for("question for segment 3", || asked_for(3) > 2);
    let all: usize = (3..=130).map(asked_for).sum();
    // Once all that may be on their way at a time, then the first alone.
    assert!(all <= 8 + asked_for(3), "{all} questions, {} of them for segment 3", asked_for(3));
}

#[test]
fn a_sequence_that_steps_back_or_jumps_gets_what_it_asks_for() {
    let recovering = Recovering::from(Repository::s3(), 1..=10);
    let mut random = StdRng::seed_from_u64(seed());
    for number in [1, 2, 2, 1, 3, 9, 4, 5, 5, 10, 1] {
        recovering.fetch(number).run().quiet_success();
        recovering.restored(number);
        std::thread::sleep(Duration::from_millis(random.random_range(0..60)));
    }
}

#[test]
fn the_helper_follows_the_timeline_over_its_switch() {
    let repository = Repository::s3();
    let (old, new) = (FakeCluster::new(), FakeCluster::with(crate::data_dir::SYSTEM_ID, 2));
    // Timeline 2 begins in segment 3, of which timeline 1 has another version, and goes on to 6.
    for number in 1..=4 {
        old.segment(&name(number), u64::from(number));
        repository.push(&old, &name(number)).run().quiet_success();
    }
    let history = b"1\t0/300100\tx\n";
    new.file("00000002.history", history);
    repository.push(&new, "00000002.history").run().quiet_success();
    let on_two = |number: u32| format!("00000002{}", &name(number)[8..]);
    for number in 3..=6 {
        new.segment(&on_two(number), u64::from(100 + number));
        repository.push(&new, &on_two(number)).run().quiet_success();
    }
    for number in 1..=4 {
        fs::remove_file(old.path().join("pg_wal").join(name(number))).unwrap();
    }
    old.file("00000002.history", history);
    let recovering = Recovering { cluster: old, repository };
    recovering.begin();
    recovering.fetch(1).run().quiet_success();
    recovering.restored(1);
    let there = |segment: &str| recovering.shelf().join(format!("{segment}.note")).is_file();
    // Several are on their way at a time, and come in any order.
    recovering.wait_for("each segment from the timeline that has it", || {
        there(&name(2)) && (3..=6).all(|number| there(&on_two(number)))
    });
    assert!(!there(&name(3)), "timeline 1 ends in segment 3");
    recovering.repository.double().fault(Rule::new(Fault::AccessDenied403));
    recovering.fetch(2).run().quiet_success();
    recovering.restored(2);
    for number in 3..=6 {
        recovering.repository.fetch(&recovering.cluster, &on_two(number)).run().quiet_success();
        let expected =
            crate::data_dir::segment(recovering.cluster.system_id, &on_two(number), 1 << 20, u64::from(100 + number));
        assert!(fs::read(recovering.cluster.destination()).unwrap() == expected);
    }
}

#[test]
fn only_a_recovery_is_served_ahead_and_zero_switches_it_off() {
    let recovering = Recovering::from(Repository::s3(), 1..=3);
    recovering.fetch(1).env("PGARK_WAL__PREFETCH", "0").run().quiet_success();
    let elsewhere = Call::new(["wal-fetch", &name(1), &format!("pg_wal/{}", name(1))]).impatient();
    let elsewhere = elsewhere.envs(recovering.repository.env()).within(recovering.cluster.path());
    elsewhere.env("PGARK_WAL__SPOOL", recovering.cluster.spool().display().to_string()).run().quiet_success();
    recovering.cluster.signal(&[]);
    recovering.fetch(1).run().quiet_success();
    assert_eq!(recovering.helpers(), [0; 0]);
    assert!(!recovering.cluster.spool().exists());
}

/// PostgreSQL hands its open files down to its commands; the helper must not keep them.
#[test]
fn the_helper_keeps_nothing_of_its_caller_open() {
    let recovering = Recovering::from(Repository::s3(), 1..=3);
    let held = recovering.cluster.path().join("held");
    fs::write(&held, "").unwrap();
    let script = format!("exec 7<{0} 250<{0}; exec {1} \"$@\"", held.display(), binary().display());
    let mut command = recovering.fetch(1).command();
    let words: Vec<_> = command.get_args().map(|word| word.to_owned()).collect();
    let mut shell = Command::new("bash");
    shell.args(["-c", &script, "bash"]).args(words).current_dir(recovering.cluster.path());
    shell.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert!(shell.status().unwrap().success());
    command.stdin(std::process::Stdio::null());
    recovering.wait_for("segment 3", || recovering.on_shelf(3));
    let helper = recovering.helpers()[0];
    let open: Vec<PathBuf> = fs::read_dir(format!("/proc/{helper}/fd"))
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
        .collect();
    let data_dir = recovering.cluster.path().canonicalize().unwrap();
    assert!(open.iter().all(|path| !path.starts_with(&data_dir)), "{open:?}");
    assert_eq!(fs::read_link(format!("/proc/{helper}/cwd")).unwrap(), Path::new("/"));
    assert!(open[..3].iter().all(|path| path == Path::new("/dev/null")), "{open:?}");
    let stat = fs::read_to_string(format!("/proc/{helper}/stat")).unwrap();
    let session: u32 = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().parse().unwrap();
    assert_eq!(session, helper, "it leads a session of its own");
    recovering.end();
}

type Poison = fn(&Recovering, &Path);

/// What may stand on the shelf for segment 2.
const POISONS: [(&str, Poison); 16] = [
    ("half-written", |_, entry| {
        let bytes = fs::read(entry).unwrap();
        fs::write(entry, &bytes[..bytes.len() / 2]).unwrap();
    }),
    ("empty", |_, entry| fs::write(entry, "").unwrap()),
    ("flipped", |_, entry| {
        let mut bytes = fs::read(entry).unwrap();
        bytes[777_777] ^= 16;
        fs::write(entry, bytes).unwrap();
    }),
    ("a flipped note", |_, entry| {
        let note = entry.with_extension("note");
        let mut bytes = fs::read(&note).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(note, bytes).unwrap();
    }),
    ("half a note", |_, entry| {
        let note = entry.with_extension("note");
        let bytes = fs::read(&note).unwrap();
        fs::write(note, &bytes[..40]).unwrap();
    }),
    ("without a note", |_, entry| fs::remove_file(entry.with_extension("note")).unwrap()),
    ("a note without it", |_, entry| fs::remove_file(entry).unwrap()),
    ("another segment, with its note", |_, entry| {
        fs::rename(entry.with_file_name(name(3)), entry).unwrap();
        let note = entry.with_extension("note");
        fs::rename(note.with_file_name(format!("{}.note", name(3))), note).unwrap();
    }),
    ("another segment under its note", |_, entry| {
        fs::rename(entry.with_file_name(name(3)), entry).unwrap();
    }),
    ("another cluster's", |recovering, entry| {
        let other = FakeCluster::with(4711, 1);
        fs::copy(other.segment(&name(2), 2), entry).unwrap();
        assert_ne!(other.system_id, recovering.cluster.system_id);
    }),
    ("another timeline's", |recovering, entry| {
        let name = format!("00000002{}", &name(2)[8..]);
        fs::write(entry, crate::data_dir::segment(recovering.cluster.system_id, &name, 1 << 20, 2)).unwrap();
    }),
    ("a directory", |_, entry| {
        fs::remove_file(entry).unwrap();
        fs::create_dir_all(entry.join("full")).unwrap();
    }),
    ("a link", |_, entry| {
        let beside = entry.with_file_name("beside");
        fs::rename(entry, &beside).unwrap();
        symlink(beside, entry).unwrap();
    }),
    ("a second name", |_, entry| fs::hard_link(entry, entry.with_file_name("beside")).unwrap()),
    ("a pipe", |_, entry| {
        fs::remove_file(entry).unwrap();
        assert!(Command::new("mkfifo").arg(entry).status().unwrap().success());
    }),
    ("unreadable", |_, entry| fs::set_permissions(entry, fs::Permissions::from_mode(0o000)).unwrap()),
];

#[test]
fn a_poisoned_shelf_gives_no_wrong_byte() {
    for (kind, poison) in POISONS {
        let recovering = Recovering::from(Repository::s3(), 1..=3);
        recovering.fetch(1).run().quiet_success();
        recovering.restored(1);
        recovering.wait_for("segment 3", || recovering.on_shelf(3) && recovering.on_shelf(2));
        // Without a helper that would set it right.
        for helper in recovering.helpers() {
            kill(helper);
        }
        recovering.wait_for("end of the helper", || recovering.helpers().is_empty());
        let entry = recovering.shelf().join(name(2));
        poison(&recovering, &entry);
        let outcome = recovering.fetch(2).run();
        assert_eq!(outcome.code, 0, "{kind}: {outcome:?}");
        recovering.restored(2);
        let left: Vec<_> = fs::read_dir(recovering.cluster.path().join("pg_wal")).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{kind}: {left:?}");
    }
}

#[test]
fn without_a_spool_or_a_helper_everything_is_right() {
    let recovering = Recovering::from(Repository::s3(), 1..=3);
    fs::write(recovering.cluster.spool(), "a file").unwrap();
    recovering.fetch(1).run().quiet_success();
    recovering.restored(1);
    fs::remove_file(recovering.cluster.spool()).unwrap();
    fs::create_dir(recovering.cluster.spool()).unwrap();
    fs::set_permissions(recovering.cluster.spool(), fs::Permissions::from_mode(0o777)).unwrap();
    recovering.fetch(2).run().quiet_success();
    recovering.restored(2);
    assert_eq!(recovering.helpers(), [0; 0]);
}

/// Another file system than the data directory's: the segment is copied, and judged on the way.
#[test]
fn the_shelf_may_be_on_another_file_system() {
    let elsewhere = ["/dev/shm", "/var/tmp"].into_iter().find(|place| {
        let device = |path: &Path| std::os::unix::fs::MetadataExt::dev(&fs::metadata(path).unwrap());
        device(Path::new(place)) != device(&std::env::temp_dir())
    });
    let Some(elsewhere) = elsewhere else {
        eprintln!("there is only one file system here");
        return;
    };
    let spool = tempfile::tempdir_in(elsewhere).unwrap();
    let recovering = Recovering::from(Repository::s3(), 1..=3);
    let fetch = |number| recovering.fetch(number).env("PGARK_WAL__SPOOL", spool.path().display().to_string());
    fetch(1).run().quiet_success();
    let shelf = || fs::read_dir(spool.path()).unwrap().next().unwrap().unwrap().path().join("fetched");
    recovering.wait_for("segment 3", || shelf().join(format!("{}.note", name(3))).is_file());
    recovering.repository.double().fault(Rule::new(Fault::AccessDenied403));
    for number in 2..=3 {
        fetch(number).run().quiet_success();
        recovering.restored(number);
    }
    recovering.end();
}

#[test]
fn two_hundred_rounds_of_racing_helpers_and_kills() {
    let mut random = StdRng::seed_from_u64(seed());
    let recovering = Recovering::from(Repository::s3(), 1..=40);
    for round in 0..200 {
        let number = 1 + round % 40;
        // Three more than the one that the fetch calls: they fight for the lock, and some are killed.
        let rivals: Vec<_> = (0..3).map(|_| call_of(&recovering).spawn()).collect();
        recovering.fetch(number).run().quiet_success();
        recovering.restored(number);
        for mut rival in rivals {
            if random.random_bool(0.7) {
                rival.kill().ok();
                finish(rival);
            } else {
                // It ends by itself: somebody else has the lock, or it goes on as the helper.
                std::thread::spawn(move || rival.wait());
            }
        }
        if random.random_bool(0.3) {
            for helper in recovering.helpers() {
                kill(helper);
            }
        }
    }
    assert!(recovering.helpers().len() <= 4);
    recovering.end();
}

#[test]
fn a_store_that_hangs_for_the_helper_holds_nobody_up() {
    let recovering = Recovering::from(Repository::s3(), 1..=4);
    // The helper's request for segment 2 gets no answer; that of the fetch does.
    recovering.repository.double().fault(Rule::new(Fault::Silence).on(Op::Get).key(&segment_key(&name(2))).once());
    recovering.fetch(1).run().quiet_success();
    recovering.restored(1);
    recovering.wait_for("segment 3", || recovering.on_shelf(3));
    let outcome = recovering.fetch(2).run().quiet_success();
    recovering.restored(2);
    assert!(outcome.took < Duration::from_secs(5), "{outcome:?}");
}

/// A helper that waits for a store which says nothing still sees that its server is gone, and ends as if nothing were wrong.
#[test]
fn a_silent_store_does_not_keep_the_helper_alive() {
    let recovering = Recovering::from(Repository::s3(), 1..=2);
    recovering.repository.double().clear_requests();
    recovering.repository.double().fault(Rule::new(Fault::Silence));
    let helper =
        call_of(&recovering).env("PGARK_REPO__REQUEST_TIMEOUT", "100s").env("PGARK_REPO__ATTEMPTS", "1").spawn();
    recovering.wait_for("request", || !recovering.repository.double().requests().is_empty());
    fs::remove_file(recovering.cluster.path().join("postmaster.pid")).unwrap();
    let outcome = finish(helper).quiet_success();
    assert!(outcome.took < Duration::from_secs(30), "{outcome:?}");
    // A fault is nothing to tell PostgreSQL of either.
    recovering.begin();
    recovering.repository.double().clear_faults();
    recovering.repository.double().fault(Rule::new(Fault::AccessDenied403));
    call_of(&recovering).run().quiet_success();
}

fn call_of(recovering: &Recovering) -> Call {
    let call = Call::new(["wal-prefetch", &recovering.cluster.path().display().to_string()]).impatient();
    let call = call.envs(recovering.repository.env()).within(recovering.cluster.path());
    call.env("PGARK_WAL__SPOOL", recovering.cluster.spool().display().to_string())
}
