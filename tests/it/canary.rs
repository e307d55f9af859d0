//! No secret ever shows: a canary in every slot where a credential can be, and every output is searched.

use std::fs;

use crate::data_dir::FakeCluster;
use crate::double::{Fault, Rule};
use crate::postgres::Scratch;
use crate::program::{Call, Outcome};
use crate::repository::Repository;

const CANARY: &str = "CANARY0123456789";
const ONE: &str = "000000010000000000000001";

fn searched(what: &str, outcome: Outcome) -> i32 {
    assert!(!outcome.stdout.contains(CANARY) && !outcome.stderr.contains(CANARY), "{what}: {outcome:?}");
    outcome.code
}

/// Everything that a call could say, with the settings that make it talk.
fn all_outputs(what: &str, prepare: impl Fn(Call) -> Call) {
    outputs(what, &[None, Some(Fault::AccessDenied403), Some(Fault::Status500), Some(Fault::Silence)], prepare);
}

fn outputs(what: &str, faults: &[Option<Fault>], prepare: impl Fn(Call) -> Call) {
    let repository = Repository::s3();
    let cluster = FakeCluster::new();
    cluster.segment(ONE, 1);
    let path = format!("pg_wal/{ONE}");
    let calls: [&[&str]; 7] = [
        &["-vvv", "wal-push", &path],
        &["-vvv", "wal-fetch", ONE, "pg_wal/RECOVERYXLOG"],
        &["-vvv", "--log-format", "json", "wal-push", &path],
        &["-vvv", "check", "--no-switch"],
        &["config", "show", "--origin"],
        &["config", "show", "--json"],
        &["config", "check"],
    ];
    for fault in faults {
        repository.double().clear_faults();
        if let Some(fault) = fault {
            repository.double().fault(Rule::new(fault.clone()));
        }
        for words in calls {
            let call = Call::new(words).impatient().envs(repository.env()).within(cluster.path());
            let call = call.env("PGARK_WAL__FETCH_RETRY", "1s").env("PGARK_WAL__PUSH_DEADLINE", "1s");
            searched(what, prepare(call).run());
        }
    }
}

#[test]
fn in_the_environment() {
    all_outputs("environment", |call| {
        call.env("AWS_ACCESS_KEY_ID", CANARY).env("AWS_SECRET_ACCESS_KEY", CANARY).env("AWS_SESSION_TOKEN", CANARY)
    });
    all_outputs("settings in the environment", |call| {
        call.env("PGARK_REPO__ACCESS_KEY_ID", CANARY)
            .env("PGARK_REPO__SECRET_ACCESS_KEY", CANARY)
            .env("PGARK_REPO__SESSION_TOKEN", CANARY)
            .env("PGARK_CLUSTER__CONNINFO", format!("host=/nonexistent password={CANARY}"))
            .env("PGPASSWORD", CANARY)
    });
}

#[test]
fn in_files() {
    let place = Scratch::new("secrets");
    let file = |name: &str, text: String| {
        let path = place.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let secret = file("secret", format!("{CANARY}\n"));
    all_outputs("files", |call| {
        call.env("PGARK_REPO__ACCESS_KEY_ID", "id")
            .env("PGARK_REPO__SECRET_ACCESS_KEY_FILE", secret.clone())
            .env("PGARK_REPO__SESSION_TOKEN_FILE", secret.clone())
    });
    let broken = [
        format!("[repo]\nsecret_access_key = {CANARY}\n"),
        format!("[repo]\nsecret_access_key = \"{CANARY}\n"),
        format!("[repo]\nsecret_access_key = [\"{CANARY}\"]\n"),
        format!("[repo]\naccess_key_id = \"x\"\nsecret_access_key = \"{CANARY}\"\nsecret_access_key = \"{CANARY}\"\n"),
        format!("[repo]\nsecret_access_key = \"{CANARY}\" \"{CANARY}\"\n"),
        format!("[cluster]\nconninfo = \"host='{CANARY}\"\n"),
        format!("[repo]\naccess_key_id = \"{CANARY}\"\nsecret_access_key = \"{CANARY}\"\n"),
    ];
    for (index, text) in broken.into_iter().enumerate() {
        let path = file(&format!("broken{index}.toml"), text);
        all_outputs("a broken settings file", |call| call.env("PGARK_CONFIG", path.clone()));
    }
    let profiles = [
        format!(
            "[default]\naws_access_key_id = {CANARY}\naws_secret_access_key = {CANARY}\naws_session_token={CANARY}\n"
        ),
        format!("[default]\naws_secret_access_key = {CANARY}\n"),
        format!("[default\naws_secret_access_key = {CANARY}\n"),
        format!("aws_secret_access_key = {CANARY}\n"),
        format!("[default]\n{CANARY}\n"),
    ];
    for (index, text) in profiles.into_iter().enumerate() {
        let path = file(&format!("profile{index}"), text);
        all_outputs("a profile", |call| {
            let call = call.without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY");
            call.env("AWS_SHARED_CREDENTIALS_FILE", path.clone()).env("AWS_CONFIG_FILE", "/nonexistent")
        });
    }
}

#[test]
fn where_it_does_not_belong() {
    for (name, value) in [
        ("PGARK_REPO__URL", format!("s3://id:{CANARY}@bucket/x")),
        ("PGARK_REPO__ENDPOINT", format!("https://id:{CANARY}@host")),
        ("PGARK_REPO__SECRET_ACCESS_KEYS", CANARY.to_owned()),
        ("PGARK_SECRET", CANARY.to_owned()),
        // The secret where its file's path belongs, and where nobody expects one.
        ("PGARK_REPO__SESSION_TOKEN_FILE", CANARY.to_owned()),
        ("PGARK_REPO__SECRET_ACCESS_KEY_FILE", format!("/{CANARY}")),
        ("PGARK_CLUSTER__CONNINFO", format!("user=me;password={CANARY} host=/nonexistent")),
        ("PGARK_CLUSTER__CONNINFO", format!("host=/nonexistent port=5432;{CANARY}")),
        ("PGARK_CLUSTER__CONNINFO", format!("host=/nonexistent sslmode={CANARY}")),
        ("PGARK_CLUSTER__CONNINFO", format!("host=/nonexistent {CANARY}=x")),
        ("PGARK_CLUSTER__CONNINFO", format!("host=/nonexistent dbname='x password={CANARY}'")),
        ("PGARK_CLUSTER__CONNINFO", format!("postgresql://me:{CANARY}@127.0.0.1:1/x")),
        ("PGSERVICE", CANARY.to_owned()),
        ("PGSSLMODE", CANARY.to_owned()),
        ("PGARK_REPO__CREDENTIALS", CANARY.to_owned()),
        ("PGARK_REPO__SIGN_PAYLOAD", CANARY.to_owned()),
        ("PGARK_REPO__ATTEMPTS", CANARY.to_owned()),
        ("PGARK_REPO__REQUEST_TIMEOUT", CANARY.to_owned()),
    ] {
        // Settings are refused before the store is asked, or never shown.
        outputs(name, &[None, Some(Fault::AccessDenied403)], |call| {
            let call = call.env("PGARK_REPO__ACCESS_KEY_ID", "id");
            let call = call.env("PGARK_REPO__SECRET_ACCESS_KEY_FILE", "/etc/hostname");
            call.env(name, value.clone())
        });
    }
    let url = format!("s3://id:{CANARY}@bucket/x");
    for words in
        [&["--repo", &url, "config", "show"][..], &["--repo", &url, "wal-push", ONE], &["--repo", &url, "check"]]
    {
        searched("a flag", Call::new(words).run());
    }
    for words in [
        &["check", "--within", CANARY][..],
        &["wal-push", ONE, "--deadline", CANARY],
        &["--repo", "file:///tmp", "check", "--conninfo", &format!("password={CANARY}")],
        &["wal-push", ONE, "--secret-access-key", "x"],
    ] {
        searched("a flag with a value", Call::new(words).run());
    }
}

/// A process listing shows every word: there is no flag for a secret.
#[test]
fn no_flag_takes_a_secret() {
    for verb in
        [&["--help"][..], &["wal-push", "--help"], &["wal-fetch", "--help"], &["init", "--help"], &["check", "--help"]]
    {
        let help = Call::new(verb).run().quiet_success().stdout.to_lowercase();
        for word in ["--secret", "--access-key", "--token", "--password"] {
            assert!(!help.contains(word), "{word} in {verb:?}");
        }
    }
}
