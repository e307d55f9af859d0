//! The ways to an S3 store: TLS with a certificate authority of one's own, and every place credentials can come from.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;

use crate::data_dir::FakeCluster;
use crate::double::S3Double;
use crate::postgres::Scratch;
use crate::program::Call;

const ONE: &str = "000000010000000000000001";

/// A call without any credentials yet.
fn push(double: &S3Double, cluster: &FakeCluster) -> Call {
    cluster.segment(ONE, 1);
    let call = Call::new(["wal-push", &format!("pg_wal/{ONE}")]).impatient().within(cluster.path());
    call.env("PGARK_REPO__URL", format!("s3://{}/pg", double.bucket())).env("PGARK_REPO__ENDPOINT", double.endpoint())
}

fn with_keys(call: Call, double: &S3Double) -> Call {
    call.env("AWS_ACCESS_KEY_ID", double.access_key()).env("AWS_SECRET_ACCESS_KEY", double.secret_key())
}

fn file(place: &Scratch, name: &str, text: &str) -> String {
    let path = place.path().join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn tls_with_an_authority_of_ones_own() {
    let double = S3Double::builder().tls().start();
    let cluster = FakeCluster::new();
    let place = Scratch::new("ca");
    let call = || with_keys(push(&double, &cluster), &double);
    call().run().code(10).says("ca_file");
    let ca = file(&place, "ca.pem", double.ca_pem().unwrap());
    call().env("PGARK_REPO__CA_FILE", ca.clone()).run().quiet_success();
    let fetch = Call::new(["wal-fetch", ONE, "pg_wal/RECOVERYXLOG"]).impatient().within(cluster.path());
    let fetch = with_keys(fetch, &double).env("PGARK_REPO__URL", format!("s3://{}/pg", double.bucket()));
    fetch.env("PGARK_REPO__ENDPOINT", double.endpoint()).env("PGARK_REPO__CA_FILE", ca).run().quiet_success();
    let other = S3Double::builder().tls().start();
    let stranger = file(&place, "other.pem", other.ca_pem().unwrap());
    call().env("PGARK_REPO__CA_FILE", stranger).run().code(10);
    call().env("PGARK_REPO__CA_FILE", "/nonexistent.pem").run().code(12).says("ca_file");
    call().env("PGARK_REPO__CA_FILE", file(&place, "empty.pem", "")).run().code(12).says("no PEM certificate");
}

#[test]
fn credentials_from_settings_and_files() {
    let double = S3Double::builder().session_token("the-token").start();
    let cluster = FakeCluster::new();
    let place = Scratch::new("keys");
    let secret = file(&place, "secret", &format!("{}\n", double.secret_key()));
    let token = file(&place, "token", "the-token\n");
    let call = || push(&double, &cluster).env("PGARK_REPO__ACCESS_KEY_ID", double.access_key());
    call().env("PGARK_REPO__SECRET_ACCESS_KEY_FILE", secret.clone()).run().code(11);
    let whole = call().env("PGARK_REPO__SECRET_ACCESS_KEY_FILE", secret).env("PGARK_REPO__SESSION_TOKEN_FILE", token);
    whole.run().quiet_success();
    call().run().code(2).says("secret_access_key_file");
    call().env("PGARK_REPO__SECRET_ACCESS_KEY_FILE", "/nonexistent").run().code(12).says("repo.secret_access_key_file");
}

#[test]
fn credentials_from_a_profile() {
    let double = S3Double::start();
    let cluster = FakeCluster::new();
    let place = Scratch::new("profile");
    let keys = |name: &str| {
        format!(
            "[{name}]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            double.access_key(),
            double.secret_key()
        )
    };
    let credentials = file(
        &place,
        "credentials",
        &format!("{}\n[wrong]\naws_access_key_id=x\naws_secret_access_key=y\n", keys("pg")),
    );
    let call = || {
        push(&double, &cluster)
            .env("AWS_SHARED_CREDENTIALS_FILE", credentials.clone())
            .env("AWS_CONFIG_FILE", "/nonexistent")
    };
    call().env("AWS_PROFILE", "pg").run().quiet_success();
    call().env("PGARK_REPO__PROFILE", "pg").run().quiet_success();
    call().env("PGARK_REPO__PROFILE", "pg").env("PGARK_REPO__CREDENTIALS", "profile").run().quiet_success();
    call().env("PGARK_REPO__PROFILE", "wrong").run().code(11);
    call().env("PGARK_REPO__PROFILE", "none").run().code(11).says("credentials");
    call().run().code(11).says("credentials");
}

/// A container's credentials endpoint: any HTTP server that gives this JSON.
#[test]
fn credentials_from_a_container() {
    let double = S3Double::builder().session_token("the-token").start();
    let cluster = FakeCluster::new();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let body = format!(
        "{{\"AccessKeyId\":\"{}\",\"SecretAccessKey\":\"{}\",\"Token\":\"the-token\",\"Expiration\":\"2099-01-01T00:00:00Z\"}}",
        double.access_key(),
        double.secret_key()
    );
    std::thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).unwrap();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let uri = format!("http://127.0.0.1:{port}/credentials");
    let call = || push(&double, &cluster).env("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri.clone());
    call().run().quiet_success();
    call().env("PGARK_REPO__CREDENTIALS", "container").run().quiet_success();
}

/// Without any credentials the instance's metadata service is asked last; where it is silent, that is short.
#[test]
fn no_credentials_at_all_is_a_quick_failure() {
    let double = S3Double::start();
    let cluster = FakeCluster::new();
    let outcome = push(&double, &cluster).without("AWS_EC2_METADATA_DISABLED").run();
    assert!(outcome.took.as_secs() < 8, "{outcome:?}");
    outcome.code(11).says("credentials");
}
