//! `pgark drill` on real servers: it passes on a good repository, fails with a named reason on others, and leaves nothing behind.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::backups::{as_servers_user, backed_up, on_the_host, take_backup};
use crate::ledger::Ledger;
use crate::pitr::archiving;
use crate::postgres::{Account, Cluster, Installation, Scratch, happens_within};
use crate::program::{Call, Outcome};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

/// Where the drills of a test make their directories.
struct Ground(Scratch);

impl Ground {
    fn new() -> Self {
        Ground(Scratch::new("drill"))
    }

    fn call(&self, repository: &Repository, words: &[&str]) -> Call {
        Call::new(["drill"].iter().chain(words).copied())
            .envs(repository.env())
            .env("PGARK_DRILL__DIRECTORY", self.0.path().display().to_string())
            .env("PGARK_WAL__FETCH_RETRY", "2s")
            .env("PGARK_BACKUP__RETRY", "2s")
    }

    /// Drills to the end; nothing is left then.
    fn drill(&self, repository: &Repository, words: &[&str]) -> (Value, Outcome) {
        self.report(&self.call(repository, &[words, &["--json"]].concat()))
    }

    fn report(&self, call: &Call) -> (Value, Outcome) {
        let outcome = as_servers_user(call);
        let report = serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome:?}"));
        let left = self.left();
        assert!(left.is_empty(), "{left:?}: {outcome:?}");
        (report, outcome)
    }

    /// Directories that are there, but what the test put there.
    fn left(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        Account::of_servers().write(&path, text);
        path.display().to_string()
    }
}

#[track_caller]
fn passed((report, outcome): (Value, Outcome)) -> Value {
    assert_eq!((outcome.code, &report["level"]), (0, &Value::from("OK")), "{report:#} {}", outcome.stderr);
    report
}

#[track_caller]
fn failed((report, outcome): (Value, Outcome), code: i32, word: &str, says: &str) -> Value {
    let reason = &report["reasons"][0];
    assert_eq!((outcome.code, reason["word"].as_str()), (code, Some(word)), "{report:#} {}", outcome.stderr);
    assert!(reason["message"].as_str().unwrap().contains(says), "{report:#}");
    report
}

fn ticks(report: &Value) -> Vec<bool> {
    report["checklist"].as_array().unwrap().iter().map(|point| point["ticked"].as_bool().unwrap()).collect()
}

/// A server with three stretches of rows, a moment between the last two, and a backup before them.
fn stretches(repository: &Repository, installation: &'static Installation) -> (Cluster, Ledger, String) {
    let primary = archiving(repository, installation, 1);
    let ledger = Ledger::create(&primary);
    ledger.write(10, 2000);
    take_backup(repository, &primary, &[]);
    ledger.write(10, 20_000);
    std::thread::sleep(Duration::from_millis(100));
    let mark = ledger.mark();
    ledger.write(10, 20_000);
    primary.archive_everything(A_MINUTE);
    (primary, ledger, mark.time_rfc3339())
}

#[test]
fn each_kind_passes_on_a_good_repository() {
    for installation in Installation::all_wanted() {
        for repository in Repository::both() {
            let (_primary, _ledger, moment) = stretches(&repository, installation);
            let ground = Ground::new();
            let sql = ground.file(
                "all.sql",
                "-- name: every row\nselect count(*) = 30 from ledger;\n-- max_age: 1h\nselect clock_timestamp();",
            );
            let full = passed(ground.drill(&repository, &["--sql", &sql]));
            assert_eq!(ticks(&full), [true; 6], "{full:#}");
            assert!(full["figures"]["total_seconds"].as_f64().unwrap() > 0.0);
            assert!(full["figures"]["loss_seconds"].as_f64().is_some());

            let half = ground.file("half.sql", "select count(*) = 20 from ledger");
            let pitr = passed(ground.drill(&repository, &["--target-time", &moment, "--sql", &half]));
            assert_eq!(pitr["target"].as_str().unwrap().parse::<Timestamp>().unwrap(), moment.parse().unwrap());
            assert_eq!(pitr["seed"], Value::Null);

            let disaster = passed(ground.drill(&repository, &["--kind", "disaster", "--sql", &sql]));
            assert_eq!((&disaster["kind"], ticks(&disaster)), (&Value::from("disaster"), vec![true; 6]));

            // What is told of each in the repository is what was printed, and status goes by it.
            for (report, kind) in [(&full, "full"), (&pitr, "pitr"), (&disaster, "disaster")] {
                let place = report["report"].as_str().unwrap();
                let key = |ending: &str| {
                    repository.keys().into_iter().find(|key| key.ends_with(&format!("{place}.{ending}")))
                };
                let stored = repository.object(&key("json").unwrap()).unwrap();
                assert_eq!(&serde_json::from_slice::<Value>(&stored).unwrap(), report);
                let page = String::from_utf8(repository.object(&key("html").unwrap()).unwrap()).unwrap();
                assert!(page.contains("<h2>Checklist</h2>") && page.contains("PASSED"), "{page}");
                assert!(String::from_utf8(repository.object(&key("txt").unwrap()).unwrap()).unwrap().contains("[x]"));
                let notes = repository.keys().into_iter().filter(|key| key.contains(&format!("-drill-{kind}-")));
                assert_eq!(notes.filter(|key| key.contains("record/run/")).count(), 2);
            }
            let status = Call::new(["status", "--no-server"]).envs(repository.env());
            let said = as_servers_user(&status).stdout;
            assert!(said.contains("forecast   a restore now would take about"), "{said}");
        }
    }
}

#[test]
fn a_dump_is_restored_and_held_against_the_rest() {
    let repository = Repository::local();
    let (primary, ledger) = backed_up(&repository);
    primary.execute("create table emptied as select 1 as one");
    as_servers_user(&on_the_host(&repository, &primary, &["dump"])).code(0);
    primary.archive_everything(A_MINUTE);
    let ground = Ground::new();
    let sql = ground.file("dump.sql", "select count(*) = 10 from ledger;\n-- max_age: 1h\nselect clock_timestamp()");
    let dump = passed(ground.drill(&repository, &["--kind", "dump", "--sql", &sql]));
    assert_eq!(ticks(&dump), [true; 6], "{dump:#}");

    ledger.write(5, 2000);
    primary.archive_everything(A_MINUTE);
    let disaster = passed(ground.drill(&repository, &["--kind", "disaster"]));
    let seen =
        disaster["steps"].as_array().unwrap().iter().find(|step| step["name"] == "compare with the dump").unwrap();
    assert!(seen["detail"].as_str().unwrap().starts_with("1 of 2 tables have as many rows as in dump"), "{seen}");

    primary.execute("truncate emptied");
    primary.archive_everything(A_MINUTE);
    let emptied = ground.drill(&repository, &["--kind", "disaster"]);
    failed(emptied, 1, "differs", "1 tables have no rows any more: `public.emptied` in `postgres` had 1");

    let dump = repository
        .keys()
        .into_iter()
        .find(|key| key.contains("dump/") && !key.contains("manifest") && !key.contains("record"))
        .unwrap();
    repository.alter(&dump, |bytes| {
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
    });
    failed(ground.drill(&repository, &["--kind", "dump"]), 2, "damaged", "");
}

/// A dump has the places of the tablespaces, and the environment another server: a drill goes to neither.
#[test]
fn a_drill_of_a_dump_stays_within_its_directory() {
    let repository = Repository::local();
    let fast = Scratch::new("fast");
    Account::of_servers().own(fast.path());
    let (primary, _ledger) = backed_up(&repository);
    primary.execute(&format!("create tablespace fast location '{}'", fast.path().display()));
    primary.execute("create table there tablespace fast as select 1 as one");
    as_servers_user(&on_the_host(&repository, &primary, &["dump"])).code(0);
    let state = || {
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(fast.path()).unwrap());
        let entries = std::fs::read_dir(fast.path()).unwrap().map(|entry| entry.unwrap().path());
        (mode, entries.collect::<Vec<PathBuf>>())
    };
    let before = state();
    let ground = Ground::new();
    let sql = ground.file(
        "there.sql",
        "select spcname = 'fast' from pg_class c join pg_tablespace t on t.oid = reltablespace where relname = 'there'",
    );
    let call = ground.call(&repository, &["--kind", "dump", "--sql", &sql, "--json"]);
    let elsewhere = [("PGHOSTADDR", "127.0.0.1"), ("PGHOST", "elsewhere"), ("PGOPTIONS", "-c nonsense=1")];
    let call = elsewhere.into_iter().fold(call, |call, (name, value)| call.env(name, value));
    passed(ground.report(&call));
    assert_eq!(state(), before);
}

/// What the cluster's databases set for themselves, and its segments' size, are no hindrance.
#[test]
fn large_segments_and_settings_of_databases() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 64);
    primary.execute("create table t as select 1 as one");
    primary.execute("alter database postgres set default_transaction_read_only = on");
    take_backup(&repository, &primary, &[]);
    primary.archive_everything(A_MINUTE);
    passed(Ground::new().drill(&repository, &[]));
}

#[test]
fn a_drawn_moment_is_reached_and_drawn_again_with_its_seed() {
    let repository = Repository::local();
    let (_primary, _ledger, _) = stretches(&repository, Installation::preferred());
    let ground = Ground::new();
    let first = passed(ground.drill(&repository, &["--random"]));
    let seed = first["seed"].as_u64().unwrap().to_string();
    println!("seed {seed}");
    let again = passed(ground.drill(&repository, &["--kind", "pitr", "--seed", &seed]));
    assert_eq!((&again["target"], &again["reached"]), (&first["target"], &first["reached"]));
    ground.call(&repository, &["--kind", "full", "--random"]).run().code(3).says("go with `--kind pitr`");
}

#[test]
fn each_fault_has_its_name() {
    let repository = Repository::local();
    let (primary, ledger) = backed_up(&repository);
    ledger.write(40, 40_000);
    primary.archive_everything(A_MINUTE);
    let ground = Ground::new();
    passed(ground.drill(&repository, &[]));

    let wrong = ground.file("wrong.sql", "select true;\n-- name: enough rows\nselect count(*) > 999 from ledger");
    let report = failed(ground.drill(&repository, &["--sql", &wrong]), 2, "assertion", "`enough rows` (line 3");
    assert_eq!(ticks(&report), [true, true, true, false, true, true]);
    let stale = ground.file("stale.sql", "-- max_age: 1h\nselect now() - interval '2 hours'");
    failed(ground.drill(&repository, &["--sql", &stale]), 2, "stale", "is 2.0 h old, at most 60 min is allowed");
    for (sql, says) in [
        ("select null::boolean", "is NULL"),
        ("select 1", "gave a value of type int4"),
        ("select true, true", "gave 2 columns, not one"),
        ("select true where false", "gave 0 rows, not one"),
        ("select nonsense", "column \"nonsense\" does not exist"),
        ("-- database: nowhere\nselect true", "database \"nowhere\" does not exist"),
        ("-- max_age: 1h\nselect true", "gave a boolean"),
        ("select now()", "gave a time"),
    ] {
        let odd = ground.file("odd.sql", sql);
        failed(ground.drill(&repository, &["--sql", &odd]), 2, "assertion", says);
    }

    // A promise of minutes is not kept by a machine; one of hours is not missed.
    let slow =
        ground.call(&repository, &["--json"]).env("PGARK_OBJECTIVES__RTO", "1ms").env("PGARK_OBJECTIVES__RPO", "9h");
    let report = failed(ground.report(&slow), 1, "objective", "the measured RTO of");
    assert_eq!(report["reasons"].as_array().unwrap().len(), 1, "{report:#}");

    let late = ground.call(&repository, &["--json"]).env("PGARK_DRILL__DEADLINE", "30ms");
    failed(ground.report(&late), 2, "deadline", "the deadline of 30ms passed");

    let keys = repository.keys();
    let key = |part: &str| keys.iter().rfind(|key| key.contains(part)).unwrap().clone();
    // Of several segments behind the backup, one in the middle.
    let segments: Vec<&String> = keys.iter().filter(|key| key.contains("/wal/") && key.ends_with(".zst")).collect();
    let middle = segments[segments.len() - 2].clone();
    let name = Path::new(&middle).file_stem().unwrap().to_string_lossy().into_owned();

    let content = repository.object(&middle).unwrap();
    repository.remove(&middle);
    failed(ground.drill(&repository, &[]), 2, "unreachable", &name);
    let mut damaged = content.clone();
    let at = damaged.len() * 2 / 3;
    damaged[at] ^= 1;
    repository.put(&middle, &damaged);
    failed(ground.drill(&repository, &[]), 2, "recovery", &name);
    repository.put(&middle, &content);

    let part = key("/part/");
    let mut damaged = repository.object(&part).unwrap();
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    repository.put(&part, &damaged);
    let report = failed(ground.drill(&repository, &[]), 2, "damaged", "/part/");
    assert_eq!(ticks(&report), [false, false, false, false, false, true]);
}

#[test]
fn wrong_credentials_are_told_though_nothing_can_be_noted() {
    let repository = Repository::s3();
    let (_primary, _ledger) = backed_up(&repository);
    let ground = Ground::new();
    for kind in ["full", "disaster"] {
        let call = ground.call(&repository, &["--json", "--kind", kind]);
        let call = call.env("AWS_SECRET_ACCESS_KEY", "wrong").env("PGARK_REPO__SECRET_ACCESS_KEY", "wrong");
        let (report, outcome) = ground.report(&call.without("PGARK_REPO__SECRET_ACCESS_KEY_FILE"));
        failed((report.clone(), outcome), 2, "denied", "");
        assert_eq!((ticks(&report), &report["report"]), (vec![false; 6], &Value::Null));
    }
}

/// Where the tests may not mount, there is no small disk.
#[test]
fn too_little_room_is_noticed_before_a_byte_is_fetched() {
    let repository = Repository::local();
    let (_primary, _ledger) = backed_up(&repository);
    let ground = Ground::new();
    let small = ground.0.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=20m,mode=0777", "tmpfs"]).arg(&small).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("not tested: no right to mount a small tmpfs");
        return;
    }
    let call = ground.call(&repository, &["--json"]).env("PGARK_DRILL__DIRECTORY", small.display().to_string());
    let outcome = as_servers_user(&call);
    let left: Vec<_> = std::fs::read_dir(&small).unwrap().collect();
    Command::new("umount").arg(&small).status().unwrap();
    std::fs::remove_dir(&small).unwrap();
    assert!(left.is_empty(), "{left:?}");
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let report = failed((report, outcome), 3, "space", "has 20.0 MiB free, and up to");
    assert!(report["steps"].as_array().unwrap().iter().all(|step| step["name"] != "fetch"), "{report:#}");
}

/// The processes that work in the directory or below it.
fn at_work(directory: &Path) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let links = processes.filter_map(|process| std::fs::read_link(process.path().join("cwd")).ok());
    links.filter(|at| at.starts_with(directory)).count()
}

/// Whether a drill in this directory has come to a moment.
type Moment = Box<dyn Fn(&PathBuf) -> bool>;

#[test]
fn killed_at_any_moment_it_leaves_no_process_and_no_directory() {
    let repository = Repository::local();
    let (primary, ledger) = backed_up(&repository);
    ledger.write(60, 40_000);
    primary.archive_everything(A_MINUTE);
    let ground = Ground::new();
    let home = || ground.left().pop();
    let data = |name: &'static str| move |home: &PathBuf| home.join("data").join(name).exists();
    let log = |text: &'static str| {
        move |home: &PathBuf| std::fs::read_to_string(home.join("server.log")).is_ok_and(|log| log.contains(text))
    };
    // The beginning, the fetch, the start, the recovery, the checks.
    let moments: [Moment; 5] = [
        Box::new(|_| true),
        Box::new(data("base")),
        Box::new(data("postmaster.pid")),
        Box::new(log("restored log file")),
        Box::new(log("ready to accept connections")),
    ];
    for signal in ["KILL", "TERM"] {
        for (number, moment) in moments.iter().enumerate() {
            let mut command = ground.call(&repository, &[]).command();
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            let mut child = Account::of_servers().run(&mut command).spawn().unwrap();
            let came = happens_within(A_MINUTE, || home().is_some_and(|home| moment(&home)));
            assert!(came, "moment {number} did not come");
            let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
            assert!(sent.unwrap().success());
            child.wait().unwrap();
            let gone = || ground.left().is_empty() && at_work(ground.0.path()) == 0;
            assert!(happens_within(A_MINUTE, gone), "{signal} at moment {number}: {:?}", ground.left());
        }
    }
    passed(ground.drill(&repository, &[]));
}

/// When the whole group is killed at once, as a service that does not stop, the next drill clears up.
#[test]
fn what_is_left_of_a_drill_and_its_keeper_is_cleared_by_the_next() {
    let repository = Repository::local();
    let (_primary, _ledger) = backed_up(&repository);
    let ground = Ground::new();
    let left = ground.0.path().join("pgark-drill-dead");
    std::fs::create_dir_all(left.join("data")).unwrap();
    std::fs::write(left.join("lock"), "").unwrap();
    for path in [&left, &left.join("data"), &left.join("lock")] {
        Account::of_servers().own(path);
    }
    let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    std::fs::File::options().write(true).open(left.join("lock")).unwrap().set_modified(hour_ago).unwrap();
    let mut sleeper = Command::new("sleep");
    let mut sleeper = Account::of_servers().run(sleeper.arg("600").current_dir(left.join("data"))).spawn().unwrap();
    let reaper = std::thread::spawn(move || sleeper.wait().unwrap());
    passed(ground.drill(&repository, &[]));
    assert!(!reaper.join().unwrap().success());
}

/// Root may call it: it then runs as another user. What stays with `--keep` is that user's.
#[test]
fn root_drills_as_another_user() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let repository = Repository::local();
    let (primary, _ledger) = backed_up(&repository);
    let ground = Ground::new();
    for words in [&["--json"][..], &["--json", "--kind", "disaster"], &["--json", "--keep"]] {
        let call =
            ground.call(&repository, words).env("PGARK_CLUSTER__PGDATA", primary.data_dir().display().to_string());
        let outcome = call.run().code(0);
        let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(report["kept"].is_string(), words.contains(&"--keep"), "{report:#}");
    }
    let [kept] = &ground.left()[..] else { panic!("{:?}", ground.left()) };
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(kept.join("data")).unwrap().uid(), Account::of_servers().uid);
    assert_eq!(at_work(kept), 0);
    std::fs::remove_dir_all(kept).unwrap();
}
