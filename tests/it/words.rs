//! What pgark says, word for word: exit code, stdout and stderr of calls that people make.

use crate::data_dir::FakeCluster;
use crate::program::{Call, Outcome};
use crate::repository::Repository;

fn shown(outcome: &Outcome) -> String {
    let part = |name: &str, text: &str| match text {
        "" => String::new(),
        text => format!("--- {name}\n{text}"),
    };
    format!("exit {}\n{}{}", outcome.code, part("stdout", &outcome.stdout), part("stderr", &outcome.stderr))
}

fn call(words: &[&str]) -> String {
    shown(&Call::new(words).run())
}

#[test]
fn without_words() {
    insta::assert_snapshot!(call(&[]));
}

#[test]
fn help() {
    insta::assert_snapshot!(call(&["--help"]));
}

#[test]
fn help_of_wal_push() {
    insta::assert_snapshot!(call(&["wal-push", "-h"]));
}

#[test]
fn help_of_wal_fetch() {
    insta::assert_snapshot!(call(&["wal-fetch", "-h"]));
}

#[test]
fn help_of_basebackup() {
    insta::assert_snapshot!(call(&["basebackup", "-h"]));
}

#[test]
fn help_of_serve() {
    insta::assert_snapshot!(call(&["serve", "--help"]));
}

#[test]
fn help_of_check_and_init() {
    insta::assert_snapshot!(format!("{}\n{}", call(&["check", "-h"]), call(&["init", "-h"])));
}

#[test]
fn help_of_list_show_and_status() {
    let calls = [call(&["list", "-h"]), call(&["show", "-h"]), call(&["status", "-h"])];
    insta::assert_snapshot!(calls.join("\n"));
}

#[test]
fn help_of_report() {
    insta::assert_snapshot!(call(&["report", "-h"]));
}

#[test]
fn help_of_alert_and_metrics() {
    insta::assert_snapshot!(format!("{}\n{}", call(&["alert", "-h"]), call(&["metrics", "-h"])));
}

#[test]
fn no_repository() {
    insta::assert_snapshot!(call(&["wal-push", "000000010000000000000001"]));
}

#[test]
fn wrong_words() {
    let calls = [
        &["wal-push"][..],
        &["wal-psuh", "x"],
        &["wal-push", "not-a-segment", "--repo", "file:///tmp"],
        &["wal-fetch", "000000010000000000000001"],
        &["wal-fetch", "000000010000000000000001", "p", "--repo", "s3://key:secret@bucket/x"],
        &["config", "show", "--repo", "s3://key:secret@bucket/x", "--cluster", "a/b"],
        &["config", "check", "--repo", "s3://bucket/x", "--cluster", "a/b"],
        &["check", "--within", "soon"],
    ];
    let said: Vec<String> = calls.iter().map(|words| format!("$ pgark {}\n{}", words.join(" "), call(words))).collect();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn settings_with_their_origin() {
    let words = ["config", "show", "--origin", "--repo", "s3://bucket/pg", "-v"];
    let outcome = Call::new(words).env("PGARK_WAL__LEVEL", "3").env("PGARK_REPO__SECRET_ACCESS_KEY", "hidden").run();
    insta::assert_snapshot!(shown(&outcome));
}

#[test]
fn an_example_of_all_settings_can_be_read_back() {
    let example = Call::new(["config", "example"]).run().quiet_success().stdout;
    let file = tempfile::NamedTempFile::new().unwrap();
    // Every line that has a default, switched on.
    let switched_on: Vec<String> = example
        .lines()
        .filter(|line| !line.contains("\"...\""))
        .map(|line| match line.strip_prefix("# ") {
            Some(setting) if setting.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => setting.to_owned(),
            _ => line.to_owned(),
        })
        .collect();
    std::fs::write(file.path(), switched_on.join("\n")).unwrap();
    let path = file.path().display().to_string();
    let words = ["config", "check", "--repo", "file:///tmp", "--config", &path];
    let outcome = Call::new(words).without("PGARK_CONFIG").run().quiet_success();
    assert_eq!(outcome.stdout, "the settings are in order\n");
    insta::assert_snapshot!(example);
}

#[test]
fn failures_have_a_hint() {
    let cluster = FakeCluster::new();
    let repository = Repository::local();
    cluster.segment("000000010000000000000001", 1);
    cluster.segment("000000010000000000000003", 1);
    for name in ["000000010000000000000001", "000000010000000000000003"] {
        repository.push(&cluster, name).run().quiet_success();
    }
    cluster.signal(&["recovery.signal"]);
    let gap = repository.fetch(&cluster, "000000010000000000000002").run();
    let unmounted =
        repository.push(&cluster, "000000010000000000000001").env("PGARK_REPO__URL", "file:///nonexistent").run();
    let text = format!("{}\n{}", shown(&gap), shown(&unmounted));
    insta::assert_snapshot!(text.replace(&repository.url(), "file:///REPO"));
}

#[test]
fn failures_as_json() {
    let outcome = Call::new(["wal-push", "000000010000000000000001", "--log-format", "json"]).run();
    let fields: serde_json::Value = serde_json::from_str(&outcome.stderr).unwrap();
    assert_eq!((outcome.code, fields["kind"].as_str()), (2, Some("usage")), "{outcome:?}");
}

#[test]
fn completions_and_the_manual_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(Call::new(["completions", shell]).run().quiet_success().stdout.contains("wal-fetch"), "{shell}");
    }
    assert!(Call::new(["man"]).run().quiet_success().stdout.contains(".TH"));
    assert!(Call::new(["--version"]).run().quiet_success().stdout.starts_with("pgark 0."));
}
