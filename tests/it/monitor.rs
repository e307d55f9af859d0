//! `check --monitor` and `metrics`: what watchers of others are told, judged by Prometheus' own tool.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::backups::take_backup;
use crate::documents::root;
use crate::double::{Fault, Rule};
use crate::look::{archive, manifest, put_backup};
use crate::pitr::archiving;
use crate::postgres::{Installation, Scratch};
use crate::program::{Call, Outcome};
use crate::repository::{Repository, segment_key};

fn monitor(repository: &Repository, settings: &[(&str, &str)]) -> Outcome {
    let call = Call::new(["check", "--monitor", "--no-server"]).impatient().envs(repository.env());
    let outcome = call.envs(settings.iter().map(|(name, value)| ((*name).into(), (*value).into()))).run();
    assert_eq!((outcome.stderr.as_str(), outcome.stdout.lines().count()), ("", 1), "{outcome:?}");
    outcome
}

/// A line as plugins write it: the code fits the word, and the performance data can be read.
fn parsed(outcome: &Outcome) -> (String, Vec<(String, f64)>) {
    let words = ["OK", "WARNING", "CRITICAL", "UNKNOWN"];
    let code = usize::try_from(outcome.code).unwrap();
    assert!(outcome.stdout.starts_with(&format!("PGARK {} - main: ", words[code])), "{outcome:?}");
    let (text, figures) = outcome.stdout.trim_end().split_once(" | ").unwrap_or((outcome.stdout.trim_end(), ""));
    let figure = |figure: &str| {
        let (label, values) = figure.split_once('=').unwrap();
        let value = values.split(';').next().unwrap().trim_end_matches(['s', 'B']);
        (label.to_owned(), value.parse::<f64>().unwrap_or_else(|e| panic!("{e}: {figure}")))
    };
    (text.to_owned(), figures.split_whitespace().map(figure).collect())
}

#[test]
fn one_line_for_nagios() {
    for repository in Repository::both() {
        let unknown = monitor(&repository, &[]);
        assert_eq!(unknown.code, 3);
        assert!(parsed(&unknown).0.contains("no identity"), "{unknown:?}");
        let _cluster = archive(&repository);
        let old = monitor(&repository, &[]);
        let (text, figures) = parsed(&old);
        assert_eq!(old.code, 2);
        assert!(text.contains("backup-missing: there is no base backup within the last 1day 2h"), "{text}");
        let labels: Vec<&str> = figures.iter().map(|(label, _)| label.as_str()).collect();
        assert_eq!(labels, ["alerts", "loss_window", "backup_age", "stored"]);
        let medium = [("PGARK_ALERTS__BACKUP_MISSING", "medium"), ("PGARK_ALERTS__DAMAGED", "off")];
        assert_eq!(monitor(&repository, &medium).code, 1);
        let begun = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(120);
        put_backup(&repository, &manifest(&format!("{}-0000000c", begun.strftime("%Y%m%dT%H%M%SZ")), 7, 8, 1 << 20));
        // The sample's backups have wrong pages.
        let pages = [("PGARK_ALERTS__DAMAGED", "off"), ("PGARK_OBJECTIVES__RPO", "4h")];
        let well = monitor(&repository, &pages);
        assert_eq!(well.code, 0, "{well:?}");
        let (text, figures) = parsed(&well);
        assert!(text.contains("restorable up to 0/A00000, 3 backups, 0 dumps"), "{text}");
        assert!(well.stdout.contains(";;14400;0 ") && figures[0] == ("alerts".into(), 0.0), "{well:?}");
        let stored = figures.last().unwrap().1 as u64;
        for (quota, code) in [(stored * 100 / 79, 0), (stored * 100 / 81, 1), (stored * 100 / 97, 2)] {
            let quota = monitor(&repository, &[pages[0], ("PGARK_REPO__QUOTA", &quota.to_string())]);
            assert_eq!(quota.code, code, "{quota:?}");
        }
        repository.remove(&segment_key("000000010000000000000009"));
        repository.remove(&segment_key("000000010000000000000008"));
        let cut = monitor(&repository, &pages);
        assert_eq!(cut.code, 2, "{cut:?}");
        if let Repository::S3(double) = &repository {
            double.fault(Rule::new(Fault::AccessDenied403));
            assert_eq!(monitor(&repository, &[]).code, 3);
        }
    }
    let words = ["check", "--monitor"];
    Call::new(words).env("PGARK_REPO__QUOTA", "much").run().code(3).says("PGARK_REPO__QUOTA");
    Call::new(words).run().code(3);
}

fn promtool() -> PathBuf {
    let own = root().join("target/promtool/usr/bin/promtool");
    let installed = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&installed).map(|place| place.join("promtool"));
    let found = places.chain([own]).find(|path| path.exists());
    found.expect("promtool judges this test: tests/setup/install-promtool.sh installs it")
}

fn judged(words: &[&str], input: &str) {
    let mut tool = Command::new(promtool());
    tool.args(words).current_dir(root()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut tool = tool.spawn().unwrap();
    tool.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = tool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}\n{input}");
    assert!(words[0] != "check" || words[1] != "metrics" || said.is_empty(), "{said}");
}

#[test]
fn the_rules_for_prometheus_hold() {
    judged(&["check", "rules", "docs/alerts.yml"], "");
    judged(&["test", "rules", "tests/prometheus/alerts_test.yml"], "");
}

/// With a real server, a real backup and a real receiver's absence.
#[test]
fn metrics_of_a_real_repository_are_clean() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    take_backup(&repository, &primary, &[]);
    let call = |words: &[&str]| {
        let call = Call::new(words.iter().copied()).impatient().envs(repository.env());
        call.env("PGARK_CLUSTER__CONNINFO", primary.endpoint().conninfo()).env("PGARK_REPO__QUOTA", "1GiB")
    };
    let outcome = call(&["metrics"]).run().quiet_success();
    judged(&["check", "metrics"], &outcome.stdout);
    for line in [
        "pgark_up{cluster=\"main\"} 1.0",
        "pgark_server_up{cluster=\"main\"} 1.0",
        "pgark_archiver_failing{cluster=\"main\"} 0.0",
        "pgark_backups{cluster=\"main\",state=\"whole\"} 1.0",
        "pgark_alert_active{cluster=\"main\",rule=\"backup-missing\",subject=\"\",severity=\"critical\"} 0.0",
        "pgark_quota_bytes{cluster=\"main\"} 1073741824.0",
    ] {
        assert!(outcome.stdout.lines().any(|said| said == line), "{line}: {}", outcome.stdout);
    }
    let ahead = outcome
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("pgark_clock_ahead_seconds{cluster=\"main\",clock=\"server\"} "));
    assert!(ahead.unwrap().parse::<f64>().unwrap().abs() < 5.0, "{ahead:?}");

    let place = Scratch::new("textfile");
    let file = place.path().join("pgark.prom");
    let words = ["metrics", "--no-server", "--textfile", file.to_str().unwrap()];
    call(&words).run().quiet_success();
    let text = fs::read_to_string(&file).unwrap();
    judged(&["check", "metrics"], &text);
    assert!(text.contains("pgark_up{cluster=\"main\"} 1.0") && !text.contains("pgark_server_up"));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644, "node_exporter is another user");
    // What cannot be looked at is told, too: the file is not left as it was.
    call(&words).env("PGARK_REPO__URL", "file:///nonexistent/x").run().code(12);
    let text = fs::read_to_string(&file).unwrap();
    judged(&["check", "metrics"], &text);
    assert!(text.contains("pgark_up{cluster=\"main\"} 0.0") && !text.contains("pgark_backups"), "{text}");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing is left behind");
    let nowhere = ["metrics", "--no-server", "--textfile", "/nonexistent/pgark.prom"];
    call(&nowhere).run().code(4).says("/nonexistent/pgark.prom");
}
