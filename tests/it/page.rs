//! `report`: the page of real repositories. That it can be read by eyes was looked at; here it is read strictly, and its commands are
//! carried out.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use jiff::{SignedDuration, Timestamp};
use pgark::cli::args::Cli;
use pgark::command::alert_rules::AlertRules;
use pgark::command::overview::{self, Objectives, Overview, Watched};
use pgark::command::status::Status;
use pgark::command::ways::{self, Answer, Moment};
use pgark::command::{Circumstances, RepositorySettings, StoreSettings};
use pgark::page::{View, asked, page};
use pgark::repo::{Policy, RunKind, RunRecord, RunStage, Writer};
use serde_json::Value;

use crate::backups::{backed_up, on_the_host, take_backup};
use crate::look::{FIRST, SECOND, archive, manifest, put_backup};
use crate::postgres::{Account, Scratch};
use crate::program::{Call, binary};
use crate::repository::{Repository, segment_key};

const A_MINUTE: Duration = Duration::from_secs(60);
const HOSTILE: &str = "</style><script>alert('x')</script>\u{202e}gpj.exe\" onload=x ";

/// Elements that have no end.
const VOID: [&str; 3] = ["meta", "br", "input"];

/// Reads a page as strictly as XML is read: every element is closed, every attribute is quoted and there once, every `&` is a
/// reference. Gives the texts of all `pre`.
fn read_strictly(page: &str) -> Vec<String> {
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("it begins with its type");
    let mut open: Vec<&str> = Vec::new();
    let mut commands = Vec::new();
    while let Some((text, behind)) = rest.split_once('<') {
        assert!(!text.contains('>') || open.last() == Some(&"style"), "a bare `>` in {text:?}");
        references(text);
        if open.last() == Some(&"pre") {
            commands.push(text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&"));
        }
        let end = end_of_tag(behind);
        let (tag, behind) = (&behind[..end], &behind[end + 1..]);
        rest = behind;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "what is closed here: {}", &behind[..behind.len().min(80)]);
            continue;
        }
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric()), "<{tag}>");
        assert!(!["script", "link", "img", "iframe", "object", "embed", "base"].contains(&name), "<{tag}>");
        read_attributes(attributes);
        if !VOID.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest:?}");
    commands
}

/// Where a tag ends: not within the quotes of an attribute.
fn end_of_tag(text: &str) -> usize {
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '>' if !quoted => return at,
            _ => {}
        }
    }
    panic!("a tag does not end");
}

fn read_attributes(text: &str) {
    let mut seen = BTreeSet::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(['=', ' ']).unwrap_or(rest.len());
        let name = &rest[..end];
        assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{text}");
        assert!(seen.insert(name) && !name.starts_with("on") && name != "style", "{name} in {text}");
        rest = &rest[end..];
        if let Some(value) = rest.strip_prefix("=\"") {
            let (value, behind) = value.split_once('"').unwrap();
            references(value);
            assert!(!["href", "action"].contains(&name) || value.starts_with(['#', '/']), "{name}={value}");
            rest = behind;
        }
        rest = rest.strip_prefix(' ').unwrap_or_else(|| if rest.is_empty() { rest } else { panic!("{text}") });
    }
}

fn references(text: &str) {
    for behind in text.split('&').skip(1) {
        assert!(["lt;", "gt;", "quot;", "amp;"].iter().any(|known| behind.starts_with(known)), "&{behind}");
    }
}

/// Whatever the page is of.
fn assert_harmless(page: &str) {
    for word in ["http:", "https:", "<script", "@import", "javascript:", "\u{202e}"] {
        assert!(!page.contains(word), "{word}");
    }
}

fn settings(repository: &Repository) -> RepositorySettings {
    let root = repository.url().trim_start_matches("file://").into();
    RepositorySettings { store: StoreSettings::Local(root), cluster: "main".parse().unwrap() }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn overview_of(repository: &Repository) -> Overview {
    let policy = Policy::NONE;
    let status = Status { repository: settings(repository), conninfo: None, slot: "pgark".to_owned(), policy };
    let watched = Watched {
        status,
        objectives: Objectives::default(),
        quota: None,
        schedules: vec![],
        rules: AlertRules::default(),
    };
    let writer = Writer { host: "test".to_owned(), pid: 1, version: "0" };
    overview::run(&watched, &Circumstances { now: Timestamp::now(), writer }).await.unwrap()
}

/// A server's repository in S3: no secrets on the page, and each command on it does what it says.
#[test]
fn the_commands_on_the_page_restore() {
    let repository = Repository::s3();
    let (primary, ledger) = backed_up(&repository);
    ledger.write(10, 1000);
    take_backup(&repository, &primary, &["--label", HOSTILE.trim()]);
    ledger.write(10, 1000);
    primary.archive_everything(A_MINUTE);
    let place = Scratch::new("page");
    let file = place.path().join("page.html");
    let written = file.display().to_string();
    let conninfo = format!("{} password=open-sesame", primary.endpoint().conninfo());
    let call = on_the_host(&repository, &primary, &["report", "--html", &written]);
    call.env("PGARK_CLUSTER__CONNINFO", conninfo).env("PGARK_REPO__QUOTA", "1GiB").run().quiet_success();
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing lies beside it");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o444, 0o444, "a web server can read it");

    let text = fs::read_to_string(&file).unwrap();
    assert_harmless(&text);
    let secrets = repository.env().into_iter().filter(|(name, _)| name.contains("SECRET") || name.contains("KEY"));
    let secrets: Vec<String> = secrets.map(|(_, secret)| secret).chain(["open-sesame".to_owned()]).collect();
    assert!(secrets.len() >= 2, "{secrets:?}");
    assert!(secrets.iter().all(|secret| !text.contains(secret)), "{secrets:?}");
    assert!(text.contains("It can be restored") && text.contains("of 1.0 GiB"), "{text}");

    let commands = read_strictly(&text);
    // The newest, both backups' first moments, the pattern. A moment of an hour ago was never.
    assert!(commands.len() >= 3, "{commands:?}");
    for (index, command) in commands.iter().enumerate() {
        let to = place.path().join(format!("data{index}"));
        let command = command.replace("'TIME'", "'2026-11-22 14:05:00+01:00'");
        let is_pattern = command.contains("2026-11-22 14:05");
        let words: Vec<String> = split(&command.replace("\\\n", " "));
        Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{command}: {error}"));
        let there = command.replace("/var/lib/postgresql/restored", &to.display().to_string());
        let there = there.replacen("pgark", &binary().display().to_string(), 1);
        let mut bash = Command::new("bash");
        bash.args(["-c", &format!("{there} --dry-run")]).envs(repository.env());
        let output = Account::of_servers().run(&mut bash).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(if is_pattern { 18 } else { 0 }), "{there}: {said}");
    }

    let report = on_the_host(&repository, &primary, &["report", "--json"]).run().quiet_success();
    let report: Value = serde_json::from_str(&report.stdout).unwrap();
    assert_eq!((&report["schema"], report["backups"].as_array().unwrap().len()), (&1.into(), 2));
    let days = report["status"]["sizes"]["wal_days"].as_array().unwrap();
    let sum: u64 = days.iter().map(|day| day["bytes"].as_u64().unwrap()).sum();
    assert_eq!(sum, report["status"]["sizes"]["wal_bytes"].as_u64().unwrap(), "all of it was stored on some day");

    // Where it cannot be written the old one stays.
    let words = ["report", "--no-server", "--html", "/nonexistent/page.html"];
    Call::new(words).envs(repository.env()).run().code(4).says("cannot write `/nonexistent/page.html`");
    let to_stdout = Call::new(["report", "--no-server", "--html", "-"]).envs(repository.env()).run().quiet_success();
    read_strictly(&to_stdout.stdout);
}

/// Words as a shell splits them, as far as the page quotes.
fn split(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in command.split('\'').enumerate() {
        match index % 2 {
            1 => words.push(part.to_owned()),
            _ => words.extend(part.split_whitespace().map(str::to_owned)),
        }
    }
    words
}

/// Whatever somebody wrote into the store.
#[test]
fn what_the_repository_says_stays_text() {
    let repository = Repository::local();
    archive(&repository);
    let mut hostile = manifest("20261122T115000Z-0000000c", 8, 9, 1 << 20);
    hostile.summary.label = HOSTILE.into();
    put_backup(&repository, &hostile);
    repository.remove(&segment_key("000000010000000000000004"));
    repository.put("main/1/backup/20261122T120000Z-0000000d/part/00000001.tar.zst", b"part");
    let text = run(async {
        let opened = settings(&repository).open().await.unwrap();
        let writer = Writer { host: HOSTILE.to_owned(), pid: 7, version: "0" };
        let begun = RunRecord::begun(RunKind::DrillFull, Timestamp::now() - SignedDuration::from_mins(9), &writer);
        let mut failed = begun.ended(RunStage::Failed, Timestamp::now());
        (failed.message, failed.hint) = (Some(HOSTILE.to_owned()), Some(HOSTILE.to_owned()));
        opened.record_run(&begun).await.unwrap();
        opened.record_run(&failed).await.unwrap();
        let overview = overview_of(&repository).await;
        page(&overview, &View { asked: asked("at=%3Cscript%3E"), form: true, ..View::default() })
    });
    read_strictly(&text);
    assert_harmless(&text);
    assert!(text.matches("&lt;script&gt;").count() >= 4, "the label, the host, the message and the hint are told");
    for words in ["drill-full", FIRST, SECOND, "gap", "unfinished", "is no time"] {
        assert!(text.contains(words), "{words}");
    }
}

/// What `serve` answers to its form: the plan that `restore` would make.
#[test]
fn a_moment_that_was_picked_has_its_command() {
    let repository = Repository::local();
    let (primary, ledger) = backed_up(&repository);
    ledger.write(5, 1000);
    primary.archive_everything(A_MINUTE);
    // The field has whole seconds: the next one begins behind all of the above, and ends before all of what follows.
    std::thread::sleep(Duration::from_millis(1100));
    let before = Timestamp::now();
    std::thread::sleep(Duration::from_millis(100));
    ledger.write(5, 1000);
    primary.archive_everything(A_MINUTE);
    let answer = |at: Timestamp| {
        run(async {
            let overview = overview_of(&repository).await;
            let mut moments = ways::moments(&overview);
            moments.push(Moment::Time { at });
            let ways = ways::run(&settings(&repository), &moments).await.unwrap();
            let view = View {
                program: settings(&repository).call(),
                ways: ways.clone(),
                form: true,
                asked: Some(Ok(at)),
                ..View::default()
            };
            (page(&overview, &view), ways)
        })
    };
    let query = format!("at={}", before.strftime("%Y-%m-%dT%H%%3A%M%%3A%S"));
    let at = asked(&query).unwrap().unwrap();
    let (text, ways) = answer(at);
    let way = ways.iter().find(|way| way.moment == Moment::Time { at }).unwrap();
    assert!(matches!(way.answer, Answer::Reachable { ends_on: 1, .. }), "{way:?}");
    let commands = read_strictly(&text);
    let target = format!("--target-time '{}'", at.strftime("%Y-%m-%d %H:%M:%S+00:00"));
    assert!(commands.iter().any(|command| command.contains(&target)), "{commands:?}");
    let place = Scratch::new("picked");
    let words = ["--target-time", &at.to_string(), "--dry-run"];
    crate::backups::restore_call(&repository, &place.path().join("data"), &words).run().code(0);

    // Before the backup, and in the future: said, not guessed.
    for at in [before - SignedDuration::from_hours(9), before + SignedDuration::from_hours(9)] {
        let (text, ways) = answer(at);
        let way = ways.iter().find(|way| way.moment == Moment::Time { at }).unwrap();
        assert!(matches!(way.answer, Answer::Unreachable { .. }), "{way:?}");
        assert!(read_strictly(&text).iter().all(|command| !command.contains(&at.strftime("%H:%M:%S").to_string())));
        assert!(text.contains("cannot be restored"), "{text}");
    }
}

#[test]
fn an_empty_repository_has_no_page() {
    for repository in Repository::both() {
        let place = Scratch::new("page");
        let file = place.path().join("page.html").display().to_string();
        let words = ["report", "--no-server", "--html", &file];
        Call::new(words).envs(repository.env()).run().code(15).says("has no identity");
        assert!(!Path::new(&file).exists());
        Call::new(["report", "--no-server"]).envs(repository.env()).run().code(2).says("--html");
    }
}
