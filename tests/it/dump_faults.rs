//! Dumps and faults: a dump exists or it does not, whatever fails, and nothing outlives pgark.

use std::time::Duration;

use crate::backups::as_servers_user;
use crate::double::{Fault, Op, Rule};
use crate::dumps::{at_server, call, server, sql, take_dump};
use crate::kills::{kill_after, seed};
use crate::postgres::{Account, Cluster, Installation, Scratch, happens_within};
use crate::program::{Call, finish};
use crate::repository::Repository;

pub const A_MINUTE: Duration = Duration::from_secs(60);

/// A process and all that it started, with their command lines.
pub fn descendants(root: u32) -> Vec<(u32, String)> {
    let mut found = vec![root];
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
    };
    let all: Vec<u32> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    loop {
        let more: Vec<u32> = (all.iter().copied())
            .filter(|pid| !found.contains(pid) && parent(*pid).is_some_and(|parent| found.contains(&parent)))
            .collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    let line = |pid: u32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    found.into_iter().map(|pid| (pid, String::from_utf8_lossy(&line(pid)).replace('\0', " "))).collect()
}

fn impatient(call: Call) -> Call {
    call.impatient().env("PGARK_DUMP__RETRY", "3s").env("PGARK_DUMP__LOCK_WAIT", "20s")
}

/// A server with `megabytes` that do not compress.
fn large(megabytes: u32) -> Cluster {
    let cluster = server(Installation::preferred());
    cluster.execute("create database shop");
    let rows = format!(
        "create table t (i int, bytes bytea);
         alter table t alter bytes set storage external;
         insert into t select i, decode(string_agg(md5(i * 1000.0 || ':' || j), ''), 'hex')
         from generate_series(1, {megabytes} * 16) as i, generate_series(1, 4096) as j group by i"
    );
    sql(&cluster, "shop", &rows);
    cluster
}

fn manifests(repository: &Repository) -> usize {
    repository.keys().iter().filter(|key| key.ends_with("manifest.json.zst")).count()
}

#[test]
fn faults_of_the_store_are_borne_or_there_is_no_dump() {
    let cluster = large(24);
    let repository = Repository::s3();
    let dump = || as_servers_user(&impatient(at_server(&repository, &cluster, &["dump", "--database", "shop"])));
    for fault in [Fault::Status503, Fault::ResetBeforeHeaders, Fault::LostReply] {
        repository.double().fault(Rule::new(fault.clone()).on(Op::Put).key("/dump/").skip(1).times(3));
        dump().quiet_success();
        repository.double().clear_faults();
    }
    let dumps = manifests(&repository);
    assert_eq!(dumps, 3);
    for (fault, code) in [(Fault::Status503, 10), (Fault::AccessDenied403, 11), (Fault::NoSuchBucket404, 12)] {
        repository.double().fault(Rule::new(fault).on(Op::Put).key("/dump/").skip(2));
        dump().code(code).says("no dump was made").says("stay, 2 parts, until `pgark expire` collects them");
        repository.double().clear_faults();
    }
    assert_eq!(manifests(&repository), dumps);
    // Where the last answer is lost for good, nobody knows, and it says so.
    repository.double().fault(Rule::new(Fault::LostReply).on(Op::Put).key("manifest.json"));
    dump().code(10).says("whether the dump was made is not known");
}

/// A store that is slow holds pg_dump back: memory does not grow with what is dumped.
#[test]
fn a_slow_store_costs_no_memory() {
    let cluster = large(160);
    let repository = Repository::s3();
    repository.double().latency(Duration::from_millis(100));
    let mut command = at_server(&repository, &cluster, &["dump", "--database", "shop"]).command();
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = Account::of_servers().run(&mut command).spawn().unwrap();
    let (pid, mut most) = (child.id(), 0);
    let watching = std::thread::spawn(move || finish(child));
    while !watching.is_finished() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
        most = most.max(line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024);
        std::thread::sleep(Duration::from_millis(5));
    }
    watching.join().unwrap().quiet_success();
    eprintln!("{most} MiB at most, for a dump of some 320 MiB");
    assert!(most < 150, "{most} MiB");
}

#[test]
fn what_pg_dump_does_not_do_is_no_dump() {
    let repository = Repository::local();
    let cluster = large(1);
    let dump = |words: &[&str]| {
        let words: Vec<&str> = ["dump", "--database", "shop"].into_iter().chain(words.iter().copied()).collect();
        as_servers_user(&impatient(at_server(&repository, &cluster, &words)))
    };
    let place = Scratch::new("elsewhere");
    Account::of_servers().own(place.path());
    let file = format!("--file={}", place.path().join("x").display());
    dump(&["--", "--nonsense"]).code(17).says("unrecognized option");
    dump(&["--", &file]).code(2).says("leave `--file` and `--format` to pgark");
    dump(&["--", "--format=plain"]).code(2).says("leave `--file`");
    dump(&["--", "--table=nowhere"]).code(17).says("no matching tables");
    call(&repository, &cluster, &["dump", "--database", "nowhere"]).code(2).says("no database `nowhere`");
    // A role that may not read everything has no dump at all.
    cluster.execute("create role blind login");
    let blind = cluster.endpoint().conninfo().replace("user=postgres", "user=blind");
    let call = at_server(&repository, &cluster, &["dump", "--database", "shop"]).env("PGARK_CLUSTER__CONNINFO", &blind);
    as_servers_user(&call).code(17).says("permission denied");
    // The server's programs are asked for by version.
    let call = at_server(&repository, &cluster, &["dump"]).env("PGARK_CLUSTER__BINDIR", "/nonexistent");
    as_servers_user(&call).code(17).says("no `pg_dump` of PostgreSQL");
    // The server goes away in the middle.
    let mut session = cluster.endpoint().connect_to("shop").unwrap();
    session.sql("begin; lock table t in access exclusive mode").unwrap();
    let mut command = at_server(&repository, &cluster, &["dump", "--database", "shop"]).command();
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = Account::of_servers().run(&mut command).spawn().unwrap();
    cluster.wait_until("pg_dump waits", A_MINUTE, || {
        cluster.value("select count(*) from pg_locks where not granted") == "1"
    });
    cluster.execute("select pg_terminate_backend(pid) from pg_locks where not granted");
    finish(child).code(17).says("no dump was made");
    assert_eq!(manifests(&repository), 0);
    let list = call_list(&repository);
    assert!(!list.contains("whole"), "{list}");
}

fn call_list(repository: &Repository) -> String {
    Call::new(["list", "--json"]).envs(repository.env()).run().stdout
}

/// SIGTERM leaves no dump and no program, whatever pg_dump is busy with.
#[test]
fn a_signal_leaves_no_program_and_no_dump() {
    let cluster = large(1);
    for words in
        [&["dump", "--database", "shop"][..], &["dump", "--database", "shop", "--format", "directory", "-j", "2"]]
    {
        let repository = Repository::local();
        let scratch = Scratch::new("scratch");
        Account::of_servers().own(scratch.path());
        let mut session = cluster.endpoint().connect_to("shop").unwrap();
        session.sql("begin; lock table t in access exclusive mode").unwrap();
        let call = at_server(&repository, &cluster, words);
        let mut command = call.env("PGARK_DUMP__SCRATCH", scratch.path().display().to_string()).command();
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let child = Account::of_servers().run(&mut command).spawn().unwrap();
        let locked = || sql(&cluster, "shop", "select count(*) from pg_locks where not granted")[0][0].clone();
        assert!(happens_within(A_MINUTE, || locked() == "1"));
        let programs = descendants(child.id());
        assert!(programs.len() > 1, "{programs:?}");
        crate::postgres::processes::send(child.id().cast_signed(), rustix::process::Signal::TERM);
        finish(child).code(21).says("no dump was made").says("interrupted by SIGTERM");
        for (pid, line) in programs {
            assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{line} lives");
        }
        assert_eq!(manifests(&repository), 0);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing is left below {:?}", scratch.path());
    }
}

/// Killed at any moment, a dump exists whole or not at all, and the next one is not hindered.
#[test]
fn kill_9_leaves_a_whole_dump_or_none() {
    let cluster = large(16);
    let repository = Repository::local();
    let id = take_dump(&repository, &cluster, &["--database", "shop"]);
    let seed = seed();
    eprintln!("seed {seed}");
    let mut random = seed;
    for _ in 0..12 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let delay = Duration::from_millis((random >> 33) % 700);
        let mut command = at_server(&repository, &cluster, &["dump", "--database", "shop"]).command();
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        kill_after(Account::of_servers().run(&mut command).spawn().unwrap(), delay);
    }
    // What lost its reader ends by itself.
    let is_gone = || cluster.value("select count(*) from pg_stat_activity where application_name = 'pg_dump'") == "0";
    assert!(happens_within(A_MINUTE, is_gone));
    let verified = Call::new(["verify", "--json"]).envs(repository.env()).run().code(0);
    let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!(report["dumps"], manifests(&repository));
    cluster.execute("create database copy template template0");
    call(&repository, &cluster, &["dump-restore", &id, "--into", "copy"]).quiet_success();
}

/// A damaged or missing part, wherever it is, leaves nothing in the target database, however it is restored.
#[test]
fn what_is_damaged_does_not_get_into_a_database() {
    let cluster = large(24);
    cluster.execute("create database target template template0");
    let is_empty = || sql(&cluster, "target", "select count(*) from pg_class where relname = 't'")[0][0] == "0";
    for repository in Repository::both() {
        let id = take_dump(&repository, &cluster, &["--database", "shop"]);
        let keys = repository.keys();
        let parts: Vec<&String> =
            keys.iter().filter(|key| key.starts_with(&format!("main/dump/{id}/000001/"))).collect();
        assert!(parts.len() > 2, "{parts:?}");
        for part in [parts[0], parts[1], parts[parts.len() - 1]] {
            let whole = repository.object(part).unwrap();
            let flip = |bytes: &mut Vec<u8>| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            };
            for missing in [false, true] {
                if missing {
                    repository.remove(part)
                } else {
                    repository.alter(part, flip)
                }
                for words in [
                    &["--into", "target"][..],
                    &["--into", "target", "--jobs", "2"],
                    &["--into", "target", "--table", "t"],
                ] {
                    let words: Vec<&str> = ["dump-restore", &id].into_iter().chain(words.iter().copied()).collect();
                    let call = impatient(at_server(&repository, &cluster, &words));
                    as_servers_user(&call).code(14).says(part);
                    assert!(happens_within(A_MINUTE, is_empty), "{words:?}");
                }
                let words = ["dump-restore", &id, "--create", "--clean"];
                call(&repository, &cluster, &words).code(14).says("nothing was restored");
                assert_eq!(sql(&cluster, "shop", "select count(*) > 0 from t")[0][0], "t", "it was not dropped");
                let verified = call(&repository, &cluster, &["verify", &id]);
                assert_eq!(verified.code, 2, "{verified:?}");
                assert!(verified.stdout.contains(part.as_str()), "{verified:?}");
                repository.put(part, &whole);
            }
        }
        // A file that cannot be whole is not written.
        let place = Scratch::new("to");
        Account::of_servers().own(place.path());
        repository.alter(parts[1], |bytes| bytes.truncate(100));
        let file = place.path().join("x");
        call(&repository, &cluster, &["dump-restore", &id, "--to", file.to_str().unwrap()]).code(14);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
