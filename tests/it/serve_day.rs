//! `pgark serve` with all of its parts on a real server: a drill that is due, an alert that is told and resolved, the page with the
//! way back to a moment, metrics of what was seen.

use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::backups::{backed_up, on_the_host};
use crate::postgres::{Account, Scratch, happens_within};
use crate::program::finish;
use crate::repository::Repository;
use crate::run_notes::runs;
use crate::serve::wait;
use crate::serve_process::{body, code, free_port, get};

/// What the alerts' command was given, in order: state and name of each.
fn told(path: &std::path::Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let messages = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let notices = messages.flat_map(|message| message.unwrap()["alerts"].as_array().unwrap().clone());
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    notices.map(|notice| (word(&notice["state"]), word(&notice["rule"]))).collect()
}

#[test]
fn a_day_with_a_drill_an_alert_and_a_visitor() {
    let repository = Repository::local();
    let (primary, ledger) = backed_up(&repository);
    let moment = ledger.mark().time_rfc3339();
    for _ in 0..4 {
        ledger.write(5, 1000);
        primary.execute("select pg_switch_wal()");
    }
    primary.archive_everything(Duration::from_secs(60));
    let place = Scratch::new("day");
    Account::of_servers().own(place.path());
    let messages = place.path().join("messages");
    let port = free_port();
    let call = on_the_host(&repository, &primary, &["serve", "--listen", &format!("127.0.0.1:{port}")])
        .env("PGARK_SERVE__LOOK", "1s")
        .env("PGARK_SCHEDULE__DRILL_FULL", "* * * * *")
        .env("PGARK_DRILL__DIRECTORY", place.path().display().to_string())
        .env("PGARK_OBJECTIVES__RTO", "1h")
        .env("PGARK_ALERTS__COMMAND", format!("cat >> {}", messages.display()))
        .env("PGARK_ALERTS__STATE", place.path().join("state").display().to_string())
        .env("PGARK_ALERTS__HIGH_AFTER", "1s")
        .env("PGARK_ALERTS__MEDIUM_AFTER", "1s")
        .env("PGARK_ALERTS__SETTLE", "1s");
    let mut command = call.command();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = Account::of_servers().run(&mut command).spawn().unwrap();
    wait("it listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    wait("it has looked", || code(&get(port, "/", "")) == "200");

    // Somebody asks for a moment.
    let asked = get(port, &format!("/?at={moment}"), "");
    assert!(body(&asked).contains("--target-time"), "{asked}");
    let asked = get(port, "/?at=1999-12-31T23:59:59Z", "");
    assert!(body(&asked).contains("cannot be restored"), "{asked}");
    let metrics = get(port, "/metrics", "");
    assert!(body(&metrics).contains("\npgark_up{cluster=\"main\"} 1.0\n"), "{metrics}");
    assert!(body(&metrics).contains("pgark_newest_restorable_timestamp_seconds{"), "{metrics}");

    // A segment behind the backup is lost, and found again.
    let segments = || repository.keys().into_iter().filter(|key| key.contains("/1/wal/") && key.ends_with(".zst"));
    let lost = segments().nth_back(2).unwrap();
    let object = repository.object(&lost).unwrap();
    repository.remove(&lost);
    let has = |state: &str, rule: &str| told(&messages).contains(&(state.to_owned(), rule.to_owned()));
    wait("the loss is told", || has("new", "gap") || has("new", "not-restorable"));
    repository.put(&lost, &object);
    let path = match &repository {
        Repository::Local(directory) => directory.path().join(&lost),
        Repository::S3(_) => unreachable!(),
    };
    Account::of_servers().own(&path);
    wait("its end is told", || has("resolved", "gap") || has("resolved", "not-restorable"));

    // A drill is due each minute, and one that failed for want of that segment is followed by another.
    let drilled = || runs(&repository, "drill-full").iter().any(|run| run["stage"] == "done");
    assert!(happens_within(Duration::from_secs(200), drilled), "{:?}", runs(&repository, "drill-full"));
    let metric = "pgark_drill_restore_seconds{cluster=\"main\",kind=\"drill-full\"} ";
    wait("its figures are told", || body(&get(port, "/metrics", "")).contains(metric));
    wait("its checklist is shown", || body(&get(port, "/", "")).contains("time documented"));

    // The look fails when the store is away, and says so.
    let root = path.ancestors().find(|path| path.join("main").is_dir()).unwrap().to_owned();
    let away = root.with_extension("away");
    std::fs::rename(&root, &away).unwrap();
    wait("metrics say so", || body(&get(port, "/metrics", "")).contains("\npgark_up{cluster=\"main\"} 0.0\n"));
    wait("the alert says so", || has("new", "store-unreachable"));
    std::fs::rename(&away, &root).unwrap();
    wait("it comes back", || has("resolved", "store-unreachable"));

    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(finish(child).code, 0);
    let left = || std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().path());
    wait("no drill is left", || left().all(|path| path.is_file()));
}
