//! What becomes of dumps: `list`, `show`, `status`, `verify`, `keep`, `delete`, `expire`, and copies on this machine.

use std::time::Duration;

use serde_json::Value;

use crate::dumps::{at_server, call, server, take_dump};
use crate::postgres::{Account, Cluster, Installation, Scratch};
use crate::program::{Call, Outcome};
use crate::repository::Repository;

const DAY: Duration = Duration::from_secs(86_400);

fn with_a_database(name: &str) -> Cluster {
    let cluster = server(Installation::preferred());
    cluster.execute(&format!("create database {name}"));
    cluster.execute("create table t as select generate_series(1, 1000) as i");
    cluster
}

fn run(repository: &Repository, words: &[&str]) -> Outcome {
    Call::new(words.iter().copied()).envs(repository.env()).run()
}

fn json(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

fn age(repository: &Repository, id: &str, days: u32) {
    let keys: Vec<String> = repository.keys().into_iter().filter(|key| key.contains(id)).collect();
    keys.iter().for_each(|key| repository.age(key, DAY * days));
}

fn dumps(repository: &Repository) -> Vec<String> {
    let mut ids: Vec<String> = (repository.keys().iter())
        .filter_map(|key| Some(key.strip_prefix("main/dump/")?.split('/').next()?.to_owned()))
        .collect();
    ids.dedup();
    ids
}

#[test]
fn dumps_are_listed_shown_and_verified() {
    let cluster = with_a_database("shop");
    for repository in Repository::both() {
        call(&repository, &cluster, &["dump-restore"]).code(18).says("there is no dump in the repository");
        call(&repository, &cluster, &["dump-restore", "20200101T000000Z-00000000"]).code(2).says("there is no dump");
        call(&repository, &cluster, &["dump-restore", "yesterday"]).code(2);
        let first = take_dump(&repository, &cluster, &["--label", "before the migration"]);
        let second = take_dump(&repository, &cluster, &["--database", "shop", "--keep"]);
        let list = run(&repository, &["list"]).code(0);
        assert!(
            list.stdout.contains("before the migration") && list.stdout.contains("has no backup"),
            "{}",
            list.stdout
        );
        assert!(!run(&repository, &["list", "--kind", "full"]).stdout.contains(&first));
        let listed = json(&run(&repository, &["list", "--kind", "dump", "--json"]));
        assert_eq!((&listed["schema"], &listed["dumps"][0]["id"]), (&1.into(), &first.as_str().into()));
        assert_eq!(listed["dumps"][0]["databases"], serde_json::json!(["postgres", "shop", "template1"]));
        assert_eq!(listed["dumps"][1]["kept"], true);
        assert_eq!(listed["dumps"].as_array().map(Vec::len), Some(2));

        let shown = run(&repository, &["show", &second]).quiet_success();
        assert!(shown.stdout.contains("database shop, custom"), "{}", shown.stdout);
        assert_eq!(json(&run(&repository, &["show", &first, "--json"]))["details"]["files"][0]["content"], "globals");
        run(&repository, &["show", "20200101T000000Z-00000000"]).code(2).says("no backup or dump");

        let verified = json(&run(&repository, &["verify", "--json"]).code(0));
        assert_eq!((&verified["dumps"], &verified["parts"]), (&2.into(), &5.into()));
        assert_eq!(json(&run(&repository, &["verify", &second, "--json"]).code(0))["dumps"], 1);
        assert_eq!(run(&repository, &["verify", "--wal-only"]).code, 3);
        let sample = json(&run(&repository, &["verify", "--sample", "1%", "--json"]).code(0));
        assert_eq!((&sample["dumps"], &sample["parts"]), (&2.into(), &1.into()));

        let call = at_server(&repository, &cluster, &["status", "--json", "--no-server"]);
        let status = json(&call.run());
        assert_eq!((&status["dumps"]["whole"], &status["dumps"]["newest"]), (&2.into(), &second.as_str().into()));

        // A part that is gone is seen by a listing, a changed one by reading.
        let part = format!("main/dump/{first}/000002/00000001.zst");
        let whole = repository.object(&part).unwrap();
        repository.alter(&part, |bytes| bytes[9] ^= 1);
        assert_eq!(run(&repository, &["verify"]).code, 2);
        repository.remove(&part);
        let list = run(&repository, &["list"]);
        assert_eq!(list.code, 1, "{list:?}");
        assert!(list.stdout.contains("1 of its 4 parts are missing"), "{}", list.stdout);
        assert_eq!(run(&repository, &["show", &first]).code, 1);
        let status = run(&repository, &["status", "--no-server"]);
        assert!(status.stdout.contains("1; the newest is") && status.stdout.contains("1 damaged"), "{}", status.stdout);
        repository.put(&part, &whole);
        run(&repository, &["list"]).code(0);
    }
}

#[test]
fn old_dumps_expire_and_the_last_of_each_database_stays() {
    let cluster = with_a_database("shop");
    for repository in Repository::both() {
        let take = |days: u32, words: &[&str]| {
            let id = take_dump(&repository, &cluster, words);
            age(&repository, &id, days);
            id
        };
        let oldest = take(50, &[]);
        let everything = take(40, &[]);
        let marked = take(39, &["--database", "shop", "--keep"]);
        let shop = take(38, &["--database", "shop"]);
        let young = take(29, &["--database", "shop"]);
        let newest = take(1, &["--database", "shop"]);
        let dead = take(2, &[]);
        repository.remove(&format!("main/dump/{dead}/manifest.json.zst"));
        let expire = |words: &[&str]| {
            let words: Vec<&str> = ["expire"].into_iter().chain(words.iter().copied()).collect();
            Call::new(words).envs(repository.env()).env("PGARK_RETENTION__DUMP_KEEP_WITHIN", "30d").run()
        };
        // Without a policy only remains would go.
        let plan = json(&run(&repository, &["expire", "--dry-run", "--json"]).code(0));
        assert_eq!(plan["dumps"]["delete"].as_array().map(Vec::len), Some(1), "{plan}");
        assert_eq!(
            (&plan["dumps"]["delete"][0]["kind"], &plan["dumps"]["delete"][0]["name"]),
            (&"remains".into(), &dead.as_str().into())
        );

        let plan = expire(&["--dry-run"]).code(0);
        for words in [
            format!("delete  dump {oldest}"),
            format!("delete  dump {shop}"),
            format!("delete  remains of a dump {dead}"),
            format!("keep    dump {marked}: marked by `keep`"),
            format!("keep    dump {young}: dump_keep_within"),
            format!("keep    dump {newest}: newest"),
            "the newest with globals".to_owned(),
        ] {
            assert!(plan.stdout.contains(&words), "{words}: {}", plan.stdout);
        }
        assert_eq!(dumps(&repository).len(), 7, "a dry run deletes nothing");
        let done = expire(&[]).code(0);
        assert!(done.stdout.contains("objects deleted"), "{done:?}");
        let mut left = vec![everything.clone(), marked.clone(), young.clone(), newest.clone()];
        left.sort();
        assert_eq!(dumps(&repository), left);
        assert_eq!(expire(&[]).stdout.lines().last(), Some("nothing is to be deleted"));

        // By hand.
        run(&repository, &["delete", &newest, "--yes"]).code(2).says("is the newest dump");
        run(&repository, &["delete", &marked, "--yes"]).code(2).says("is marked");
        let unkept = run(&repository, &["unkeep", &marked]).quiet_success();
        assert_eq!(unkept.stdout, format!("dump {marked} may be expired\n"));
        run(&repository, &["keep", &everything, "--until", "90d", "--reason", "audit"]).quiet_success();
        let shown = run(&repository, &["show", &everything]).stdout;
        assert!(shown.contains(": audit"), "{shown}");
        assert!(run(&repository, &["delete", &young, "--dry-run"]).stdout.contains("would be deleted"));
        run(&repository, &["delete", &young, "--yes"]).quiet_success();
        run(&repository, &["keep", &young]).code(2).says("is not in the repository");
        expire(&[]).code(0);
        let mut left = vec![everything, newest];
        left.sort();
        assert_eq!(dumps(&repository), left);
    }
}

/// More than half of the dumps do not go at once, unless somebody means it.
#[test]
fn more_than_half_is_refused() {
    let cluster = with_a_database("shop");
    let repository = Repository::local();
    for days in [50, 40, 1] {
        let id = take_dump(&repository, &cluster, &["--database", "shop"]);
        age(&repository, &id, days);
    }
    let expire = |words: &[&str]| {
        let words: Vec<&str> = ["expire"].into_iter().chain(words.iter().copied()).collect();
        Call::new(words).envs(repository.env()).env("PGARK_RETENTION__DUMP_KEEP_WITHIN", "30d").run()
    };
    expire(&[]).code(2).says("2 of 3 dumps would go at once");
    assert_eq!(dumps(&repository).len(), 3);
    expire(&["--force"]).code(0);
    assert_eq!(dumps(&repository).len(), 1);
}

/// A copy on this machine: whole or not there, checked by `sha256sum`, removed when it is old, and never anything else.
#[test]
fn copies_stay_as_long_as_they_should() {
    let cluster = with_a_database("shop");
    let repository = Repository::local();
    let place = Scratch::new("local");
    Account::of_servers().own(place.path());
    let directory = place.path().display().to_string();
    let words = ["dump", "--local-dir", &directory, "--local-keep", "7d", "--json"];
    let report = json(&call(&repository, &cluster, &words).quiet_success());
    let copy = std::path::PathBuf::from(report["local"].as_str().unwrap());
    let mut check = std::process::Command::new("sha256sum");
    let checked = check.args(["-c", "SHA256SUMS"]).current_dir(&copy).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    // What stands there is what stands in the repository.
    let shop = std::fs::read(copy.join("3-shop.dump.zst")).unwrap();
    let id = report["dump"]["id"].as_str().unwrap();
    assert_eq!(Some(shop), repository.object(&format!("main/dump/{id}/000003/00000001.zst")));

    let root = copy.parent().unwrap();
    let young = |days: i64| {
        let begun = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
        begun.strftime("%Y%m%dT%H%M%SZ-00000001").to_string()
    };
    let (old, recent, dead) = (young(8), young(6), young(2));
    for name in [old.as_str(), &recent, &format!(".{dead}.incoming"), "mine", &format!("{old}.bak")] {
        std::fs::create_dir(root.join(name)).unwrap();
        Account::of_servers().own(&root.join(name));
    }
    call(&repository, &cluster, &words).quiet_success();
    let names: Vec<String> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    assert!(!names.contains(&old) && names.contains(&recent) && names.contains(&"mine".to_owned()), "{names:?}");

    // A copy that cannot be written does not spoil the dump, and is not passed over either.
    let words = ["dump", "--local-dir", "/proc/nowhere"];
    call(&repository, &cluster, &words).code(4).says("is whole in the repository, but has no local copy");
    assert_eq!(dumps(&repository).len(), 3);
}
