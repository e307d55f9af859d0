//! Alerts that go out: to a real HTTP receiver, a real mail server, a sendmail, a command; each once at its time, and resolved.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::data_dir::FakeCluster;
use crate::double::{Fault, Rule};
use crate::look::{FIRST, archive, manifest, put_backup};
use crate::post_box::{PostBox, Speaks};
use crate::postgres::Scratch;
use crate::program::{Call, Outcome};
use crate::repository::{Repository, segment_key};

const CANARY: &str = "CANARY0123456789";

/// A watched repository: WAL of now and backups of long ago, which is an alert. That they have wrong pages is not, here.
struct Watch {
    repository: Repository,
    place: Scratch,
    _cluster: FakeCluster,
}

impl Watch {
    fn of(repository: Repository) -> Self {
        let cluster = archive(&repository);
        Watch { repository, place: Scratch::new("watch"), _cluster: cluster }
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.place.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn script(&self, name: &str, text: &str) -> String {
        let path = self.file(name, &format!("#!/bin/sh\n{text}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.place.path().join(name)).unwrap_or_default()
    }

    fn call(&self, words: &[&str]) -> Call {
        let state = self.place.path().join("alerts.json").display().to_string();
        let call = Call::new(words.iter().copied()).impatient().envs(self.repository.env());
        call.env("PGARK_ALERTS__STATE", state)
            .env("PGARK_ALERTS__DEADLINE", "4s")
            .env("PGARK_ALERTS__SETTLE", "1ms")
            .env("PGARK_ALERTS__DAMAGED", "off")
    }

    fn alert(&self, channel: &[(&str, String)]) -> Outcome {
        let pairs = channel.iter().map(|(name, value)| (format!("PGARK_ALERTS__{name}"), value.clone()));
        let outcome = self.call(&["alert", "--no-server"]).envs(pairs).run();
        assert!(!format!("{outcome:?}").contains(CANARY), "{outcome:?}");
        outcome
    }

    /// A backup that ends the alert.
    fn back_up(&self) {
        let now = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(120);
        let id = format!("{}-0000000c", now.strftime("%Y%m%dT%H%M%SZ"));
        put_backup(&self.repository, &manifest(&id, 7, 8, 1 << 20));
    }
}

fn json(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}"))
}

#[test]
fn an_alert_goes_out_once_and_is_resolved_once() {
    for repository in Repository::both() {
        let watch = Watch::of(repository);
        let receiver = PostBox::http(Speaks::Plainly);
        let url = format!("http://127.0.0.1:{}/services/{CANARY}?x=y", receiver.port);
        let by = [("WEBHOOK_FILE", watch.file("url", &format!("{url}\n")))];
        let first = watch.alert(&by).code(0);
        assert!(
            first.stdout.contains("critical: backup-missing") && first.stdout.contains("sent by webhook"),
            "{first:?}"
        );
        let taken = receiver.take();
        assert_eq!(taken.len(), 1);
        assert!(taken[0].head.starts_with(&format!("POST /services/{CANARY}?x=y HTTP/1.1")), "{taken:?}");
        let message = json(&taken[0].body);
        assert_eq!((&message["status"], &message["severity"]), (&"firing".into(), &"critical".into()));
        assert_eq!(message["alerts"].as_array().unwrap().len(), 1);
        let alert = &message["alerts"][0];
        assert_eq!((&alert["rule"], &alert["state"]), (&"backup-missing".into(), &"new".into()));
        assert!(message["text"].as_str().unwrap().starts_with("pgark main: critical: backup-missing\n"));
        // Another process remembers, and a state that says nothing is started anew.
        let second = watch.alert(&by).code(0);
        assert!(second.stdout.contains("critical: backup-missing") && !second.stdout.contains("sent"), "{second:?}");
        assert_eq!(receiver.take(), []);
        watch.back_up();
        // Gone for the first time; then for long enough.
        watch.alert(&by).code(0);
        watch.alert(&by).code(0);
        let taken = receiver.take();
        assert_eq!(taken.len(), 1, "{taken:?}");
        let message = json(&taken[0].body);
        assert_eq!((&message["status"], &message["alerts"][0]["state"]), (&"resolved".into(), &"resolved".into()));
        assert_eq!(message["severity"], Value::Null);
        let last = watch.alert(&by).code(0);
        assert!(last.stdout.contains("no alert stands"), "{last:?}");
        assert_eq!(receiver.take(), []);
        assert!(!watch.read("alerts.json").contains(CANARY));
    }
}

#[test]
fn a_store_that_is_away_is_one_alert_and_resolves_nothing() {
    let watch = Watch::of(Repository::s3());
    let receiver = PostBox::http(Speaks::Plainly);
    let url = format!("http://127.0.0.1:{}/", receiver.port);
    let by = [("WEBHOOK_URL", url), ("HIGH_AFTER", "1ms".to_owned())];
    watch.alert(&by).code(0);
    assert_eq!(receiver.take().len(), 1);
    watch.repository.double().fault(Rule::new(Fault::Status503));
    watch.alert(&by).code(10);
    watch.alert(&by).code(10).says("pgark");
    let taken = receiver.take();
    assert_eq!(taken.len(), 1, "{taken:?}");
    let message = json(&taken[0].body);
    let rules: Vec<&str> = message["alerts"].as_array().unwrap().iter().map(|a| a["rule"].as_str().unwrap()).collect();
    assert_eq!(rules, ["store-unreachable"]);
    watch.repository.double().clear_faults();
    watch.alert(&by).code(0);
    watch.alert(&by).code(0);
    let taken = receiver.take();
    assert_eq!(taken.len(), 1, "{taken:?}");
    let message = json(&taken[0].body);
    assert_eq!((&message["alerts"][0]["rule"], &message["status"]), (&"store-unreachable".into(), &"resolved".into()));
    assert_eq!(message["alerts"].as_array().unwrap().len(), 1, "what stood before stands");
}

#[test]
fn what_is_not_taken_is_sent_again() {
    let watch = Watch::of(Repository::local());
    let receiver = PostBox::http(Speaks::Plainly);
    let by = [("WEBHOOK_URL", format!("http://127.0.0.1:{}/{CANARY}", receiver.port))];
    // Within a call, where it may help.
    receiver.answer(&[503, 0]);
    watch.alert(&by).code(0);
    assert_eq!(receiver.take().len(), 1);
    // With the next call, where it may not.
    let watch = Watch::of(Repository::local());
    receiver.answer(&[404]);
    let refused = watch.alert(&by).code(1);
    assert!(refused.stderr.contains("404") && refused.stdout.contains("NOT sent by webhook"), "{refused:?}");
    assert_eq!(receiver.take(), []);
    watch.alert(&by).code(0);
    assert_eq!(json(&receiver.take()[0].body)["alerts"][0]["state"], "new");
    watch.alert(&by).code(0);
    assert_eq!(receiver.take(), []);
}

#[test]
fn only_one_process_tells() {
    let watch = Watch::of(Repository::local());
    let lock = fs::File::create(watch.place.path().join("alerts.json.lock")).unwrap();
    lock.lock().unwrap();
    let by = [("COMMAND", format!("cat >> {}", watch.file("told", "")))];
    watch.alert(&by).code(1).says("another process tells alerts");
    assert_eq!(watch.read("told"), "");
    drop(lock);
    watch.alert(&by).code(0);
    assert_ne!(watch.read("told"), "");
}

#[test]
fn every_way_is_tried_for_itself() {
    let watch = Watch::of(Repository::local());
    let receiver = PostBox::http(Speaks::Plainly);
    let pid = watch.place.path().join("pid").display().to_string();
    // It hangs, with a child that does, too.
    let hangs = watch.script("hangs", &format!("sleep 1000 &\necho $! > {pid}\nwait"));
    let sendmail = watch.script("sendmail", "echo cannot >&2; exit 75");
    let by = [
        ("WEBHOOK_URL", format!("http://127.0.0.1:{}/", receiver.port)),
        ("COMMAND", hangs),
        ("MAIL_TO", "dba@example.org".to_owned()),
        ("SENDMAIL", sendmail),
    ];
    let outcome = watch.alert(&by).code(1);
    assert_eq!(receiver.take().len(), 1);
    for said in [
        "sent by webhook",
        "NOT sent by sendmail: `",
        "exit code 75: cannot",
        "NOT sent by command: it was not taken within 4s",
    ] {
        assert!(outcome.stdout.contains(said), "{said}: {outcome:?}");
    }
    let pid = watch.read("pid").trim().to_owned();
    let ended = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    // It was killed; the kernel takes its moment.
    for _ in 0..1000 {
        if ended(&pid) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(ended(&pid), "the command's child lives");
    // Only those who did not take it get it now.
    let lives =
        watch.script("sendmail", &format!("cat > {}/letter; echo $@ > {0}/words", watch.place.path().display()));
    let command =
        format!("cat > {}/json; echo \"$ALERT_SEVERITY $ALERT_STATUS\" > {0}/told", watch.place.path().display());
    let by = [by[0].clone(), ("COMMAND", command), by[2].clone(), ("SENDMAIL", lives)];
    watch.alert(&by).code(0);
    assert_eq!(receiver.take(), []);
    assert_eq!(watch.read("words").trim(), "-i -- dba@example.org");
    let letter = watch.read("letter");
    assert!(
        letter.contains("Subject: pgark main: critical: backup-missing\r\n") && letter.contains("To: dba@example.org"),
        "{letter}"
    );
    assert_eq!(watch.read("told").trim(), "critical firing");
    assert_eq!(json(&watch.read("json"))["alerts"][0]["rule"], "backup-missing");
}

#[test]
fn https_is_verified() {
    let watch = Watch::of(Repository::local());
    let receiver = PostBox::http(Speaks::Tls);
    let stranger = PostBox::http(Speaks::Tls);
    let url = ("WEBHOOK_URL", format!("https://127.0.0.1:{}/{CANARY}", receiver.port));
    let outcome = watch.alert(std::slice::from_ref(&url)).code(1);
    assert!(outcome.stdout.contains("no TLS"), "{outcome:?}");
    let other = ("CA_FILE", watch.file("other.pem", &stranger.ca_pem));
    assert!(watch.alert(&[url.clone(), other]).code(1).stdout.contains("no TLS"));
    assert_eq!(receiver.take(), []);
    let ca = ("CA_FILE", watch.file("ca.pem", &receiver.ca_pem));
    watch.alert(&[url, ca]).code(0);
    assert_eq!(receiver.take().len(), 1);
}

#[test]
fn mail_goes_out_by_a_server_that_is_trusted() {
    let watch = Watch::of(Repository::local());
    let to = ("MAIL_TO", "dba@example.org, Öl <on-call@example.org>".to_owned());
    let password = ("SMTP_PASSWORD_FILE", watch.file("password", &format!("{CANARY}\n")));
    // Elsewhere: without TLS nothing is told, not even the password.
    let plain = PostBox::smtp("127.0.0.2", Speaks::Plainly);
    let at = |port: u16| ("SMTP_URL", format!("smtp://me@127.0.0.2:{port}"));
    watch.alert(&[to.clone(), at(plain.port), password.clone()]).code(1);
    assert_eq!(plain.take(), []);
    let server = PostBox::smtp("127.0.0.2", Speaks::StartTls);
    watch.alert(&[to.clone(), at(server.port), password.clone()]).code(1);
    assert_eq!(server.take(), []);
    let ca = ("CA_FILE", watch.file("ca.pem", &server.ca_pem));
    watch.alert(&[to.clone(), at(server.port), password.clone(), ca]).code(0);
    let taken = server.take();
    assert_eq!(taken.len(), 1);
    assert!(taken[0].with_tls && taken[0].head.contains("AUTH PLAIN"), "{taken:?}");
    for word in ["RCPT TO:<dba@example.org>", "RCPT TO:<on-call@example.org>"] {
        assert!(taken[0].head.contains(word), "{taken:?}");
    }
    assert!(taken[0].body.contains("backup-missing"), "{taken:?}");
    // TLS from the first byte.
    let watch = Watch::of(Repository::local());
    let server = PostBox::smtp("127.0.0.1", Speaks::Tls);
    let url = ("SMTP_URL", format!("smtps://127.0.0.1:{}", server.port));
    let ca = ("CA_FILE", watch.file("ca.pem", &server.ca_pem));
    watch.alert(&[to.clone(), url, ca]).code(0);
    assert_eq!(server.take().len(), 1);
    // On this machine in the clear; a server that says "later" is asked again.
    let watch = Watch::of(Repository::local());
    let here = PostBox::smtp("127.0.0.1", Speaks::Plainly);
    here.answer(&[451]);
    watch.alert(&[to.clone(), ("SMTP_URL", format!("smtp://127.0.0.1:{}", here.port))]).code(0);
    assert_eq!(here.take().len(), 1);
    // A password does not belong into the URL.
    let refused = watch.alert(&[to, ("SMTP_URL", format!("smtp://me:{CANARY}@127.0.0.1"))]).code(2);
    refused.says("without a password");
}

#[test]
fn a_test_message_says_what_became_of_it() {
    let watch = Watch::of(Repository::local());
    let receiver = PostBox::http(Speaks::Plainly);
    let test = |url: String| watch.call(&["alert", "--test"]).env("PGARK_ALERTS__WEBHOOK_URL", url).run();
    let outcome = test(format!("http://127.0.0.1:{}/", receiver.port)).quiet_success();
    assert_eq!(outcome.stdout, "sent by webhook\n");
    assert_eq!(json(&receiver.take()[0].body)["status"], "test");
    let outcome = test(format!("http://127.0.0.1:1/{CANARY}")).code(1);
    assert!(outcome.stdout.contains("NOT sent by webhook: no connection") && !outcome.stdout.contains(CANARY));
    for odd in [format!("ftp://{CANARY}"), CANARY.to_owned(), format!("https://me:{CANARY}@host/")] {
        let outcome = test(odd).code(1);
        assert!(
            outcome.stdout.contains("the URL is none like") && !format!("{outcome:?}").contains(CANARY),
            "{outcome:?}"
        );
    }
    watch.call(&["alert", "--test"]).run().code(2).says("no way to send them is set");
    let forgetful = watch.call(&["alert"]).without("PGARK_ALERTS__STATE").env("PGARK_ALERTS__COMMAND", "true");
    forgetful.run().code(2).says("set `state` under `[alerts]`");
    assert_eq!(watch.read("alerts.json"), "");
}

#[test]
fn no_log_tells_a_secret() {
    let watch = Watch::of(Repository::local());
    for url in [format!("http://127.0.0.1:1/{CANARY}"), format!("https://127.0.0.1:1/{CANARY}"), CANARY.to_owned()] {
        for words in [&["-vvv", "alert", "--no-server"][..], &["-vvv", "alert", "--test"], &["config", "show"]] {
            let call = watch.call(words).env("PGARK_ALERTS__WEBHOOK_URL", url.clone());
            let call = call.env("PGARK_ALERTS__SMTP_PASSWORD", CANARY).env("PGARK_ALERTS__MAIL_TO", "a@b.example");
            let outcome = call.env("PGARK_ALERTS__SMTP_URL", "smtp://me@127.0.0.1:1").run();
            assert!(!format!("{outcome:?}").contains(CANARY), "{outcome:?}");
        }
    }
}

#[test]
fn a_memory_that_cannot_be_read_is_begun_anew() {
    let watch = Watch::of(Repository::local());
    watch.file("alerts.json", "{\"format\": \"pgark-alerts-9\"");
    let by = [("COMMAND", format!("cat >> {}/json", watch.place.path().display()))];
    watch.alert(&by).code(0).says("what it remembers is told again");
    watch.alert(&by).code(0);
    assert_eq!(watch.read("json").lines().count(), 1);
}

/// All that is told by a look is one message: a backup that is damaged, WAL that is missing, and no backup in time.
#[test]
fn a_storm_is_one_message() {
    let watch = Watch::of(Repository::local());
    watch.repository.remove(&segment_key("000000010000000000000004"));
    watch.repository.alter(&format!("main/1/backup/{FIRST}/manifest.json.zst"), |bytes| bytes.truncate(40));
    let by = [
        ("COMMAND", format!("cat >> {}/json", watch.place.path().display())),
        ("HIGH_AFTER", "1ms".to_owned()),
        ("MEDIUM_AFTER", "1ms".to_owned()),
        ("DAMAGED", "high".to_owned()),
    ];
    watch.alert(&by).code(0);
    watch.alert(&by).code(0);
    let told = watch.read("json");
    let messages: Vec<Value> = told.lines().map(json).collect();
    assert_eq!(messages.len(), 2, "{told}");
    assert_eq!(messages[0]["alerts"].as_array().unwrap().len(), 1, "critical at once: {told}");
    assert!(messages[1]["alerts"].as_array().unwrap().len() >= 2, "the others together: {told}");
}
