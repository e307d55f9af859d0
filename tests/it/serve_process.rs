//! `pgark serve` as a process: how it is stopped, what it tells systemd, and what it answers over HTTP.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;

use crate::backups::on_the_host;
use crate::double::{Fault, Op, Rule};
use crate::pitr::archiving;
use crate::postgres::{Account, Installation, Scratch};
use crate::program::{Call, Outcome, finish};
use crate::repository::Repository;
use crate::run_notes::runs;
use crate::serve::{wait, with_a_segment};

const A_MINUTE: Duration = Duration::from_secs(60);

/// A port that nobody has.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// As the servers' user.
fn start(call: &Call) -> Child {
    let mut command = call.command();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Account::of_servers().run(&mut command).spawn().unwrap()
}

fn stop(child: Child) -> Outcome {
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    finish(child)
}

/// What is answered to these bytes until the connection is closed; empty: nothing.
fn exchange(port: u16, request: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    stream.set_read_timeout(Some(A_MINUTE)).unwrap();
    stream.write_all(request.as_bytes()).ok();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok();
    String::from_utf8_lossy(&answer).into_owned()
}

pub fn get(port: u16, path: &str, more: &str) -> String {
    exchange(port, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n"))
}

pub fn code(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

pub fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default()
}

/// Serves at this port, and is ready.
fn listening(repository: &Repository, port: u16, more: &[(&str, &str)]) -> Child {
    let listen = format!("127.0.0.1:{port}");
    let mut call = Call::new(["serve", "--listen", &listen]).envs(repository.env());
    call = call.env("PGARK_CLUSTER__CONNINFO", "host=/nonexistent").env("PGARK_SERVE__LOOK", "1s");
    for (name, value) in more {
        call = call.env(name, *value);
    }
    let child = call.spawn();
    wait("it listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    child
}

#[test]
fn a_stop_ends_a_running_backup_which_says_so() {
    let repository = Repository::s3();
    let primary = archiving(&repository, Installation::preferred(), 1);
    primary.archive_everything(A_MINUTE);
    // Some days ago everything was settled: the backup is late.
    let settled = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(72);
    repository.put(&format!("main/record/claim/{:020}-basebackup-0.json", settled.as_nanosecond()), b"{}");
    repository.double().fault(Rule::new(Fault::Silence).on(Op::Put).key("/part/"));
    let call = on_the_host(&repository, &primary, &["serve", "--listen", "none"]);
    let child = start(&call.env("PGARK_SCHEDULE__BASEBACKUP", "0 1 * * *"));
    wait("it copies", || repository.keys().iter().any(|key| key.contains("/record/restore/")));
    let outcome = stop(child);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, ""), "{outcome:?}");
    let run = runs(&repository, "basebackup").remove(0);
    let message = run["message"].as_str().unwrap_or_default();
    assert!(run["stage"] == "failed" && (message.contains("interrupted") || message.contains("told to stop")), "{run}");
}

#[test]
fn the_receiver_inside_stores_what_comes_and_stops_in_good_order() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    primary.archive_everything(A_MINUTE);
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let call = on_the_host(&repository, &primary, &["serve", "--listen", &listen]);
    let call = call.env("PGARK_SERVE__RECEIVE", "true").env("PGARK_RECEIVE__CREATE_SLOT", "true");
    let child = start(&call.env("PGARK_SERVE__LOOK", "1s"));
    primary.execute("CREATE TABLE streamed AS SELECT 1 AS one");
    wait("WAL is streamed", || repository.keys().iter().any(|key| key.contains("/live/")));
    primary.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
    primary.execute("INSERT INTO streamed VALUES (2)");
    let position = primary.value("SELECT pg_current_wal_flush_lsn()");
    let health = || -> Value { serde_json::from_str(body(&get(port, "/healthz", ""))).unwrap_or_default() };
    let number = |lsn: &str| lsn.parse::<pgark::postgres::Lsn>().ok();
    wait("it is durable", || health()["receiver"]["durable"].as_str().and_then(number) >= number(&position));
    let outcome = stop(child);
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

#[test]
fn systemd_is_told() {
    let repository = with_a_segment();
    let place = Scratch::new("n");
    let path = place.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(A_MINUTE)).unwrap();
    let call = Call::new(["serve", "--listen", "none"]).envs(repository.env());
    let call = call.env("PGARK_CLUSTER__CONNINFO", "host=/nonexistent").env("WATCHDOG_USEC", "300000");
    let child = call.env("NOTIFY_SOCKET", path.display().to_string()).spawn();
    let next = || {
        let mut bytes = [0; 4096];
        let length = socket.recv(&mut bytes).expect("systemd is told something");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    assert!(next().starts_with("READY=1\nSTATUS="));
    let mut signs = 0;
    while signs < 5 {
        signs += usize::from(next() == "WATCHDOG=1\n");
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    while !next().starts_with("STOPPING=1\n") {}
    assert_eq!(finish(child).code, 0);
}

#[test]
fn what_is_asked_over_http_is_answered_or_refused() {
    let repository = with_a_segment();
    let port = free_port();
    let child = listening(&repository, port, &[]);
    wait("it has looked", || code(&get(port, "/", "")) == "200");
    let page = get(port, "/?time=1", "");
    for header in ["content-security-policy: default-src 'none'", "x-content-type-options: nosniff", "no-referrer"] {
        assert!(page.contains(header), "{header}: {page}");
    }
    assert!(get(port, "/metrics", "").contains("application/openmetrics-text"));
    let health: Value = serde_json::from_str(body(&get(port, "/healthz", ""))).unwrap();
    assert_eq!((&health["alive"], &health["store"]["reachable"]), (&Value::from(true), &Value::from(true)), "{health}");
    assert_eq!(code(&get(port, "/other", "")), "404");
    let head = exchange(port, "HEAD /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!((code(&head), body(&head)), ("200", ""));
    for method in ["POST", "DELETE", "PUT", "OPTIONS"] {
        let request =
            format!("{method} / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        assert_eq!(code(&exchange(port, &request)), "405");
    }
    // A page from elsewhere whose name points here.
    let foreign = exchange(port, "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert_eq!(code(&foreign), "421");
    for rubbish in ["\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\u{16}\u{3}\u{1}\u{2}\u{0}"] {
        let answer = exchange(port, &format!("{rubbish}GET / x\r\n\r\n"));
        assert!(answer.is_empty() || code(&answer) == "400", "{rubbish:?}: {answer}");
    }
    let endless = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert_ne!(code(&exchange(port, &endless)), "200");
    assert_eq!(code(&get(port, "/healthz", "")), "200");
    assert_eq!(stop(child).code, 0);
}

/// Those who say nothing are let go, and keep nobody out for long.
#[test]
fn slow_ones_are_let_go() {
    let repository = with_a_segment();
    let port = free_port();
    let child = listening(&repository, port, &[]);
    let begun = Instant::now();
    let slow: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: lo").ok();
            stream
        })
        .collect();
    wait("others are answered again", || code(&get(port, "/healthz", "")) == "200");
    assert!(begun.elapsed() < A_MINUTE);
    for mut stream in slow {
        stream.set_read_timeout(Some(A_MINUTE)).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).ok();
        assert!(!String::from_utf8_lossy(&rest).contains(" 200 "));
    }
    assert_eq!(stop(child).code, 0);
}

#[test]
fn outside_of_this_host_only_with_a_token_or_tls() {
    let repository = with_a_segment();
    let place = Scratch::new("t");
    let token = place.path().join("token");
    let serve = |address: &str| {
        let call = Call::new(["serve", "--listen", address]).envs(repository.env());
        call.env("PGARK_CLUSTER__CONNINFO", "host=/nonexistent")
    };
    for address in ["0.0.0.0:0", "[::]:0"] {
        serve(address).run().code(2).says("neither a token nor TLS is set");
    }
    serve("localhost").run().code(2).says("must be an address and a port");
    std::fs::write(&token, "short\n").unwrap();
    let file = token.display().to_string();
    serve("0.0.0.0:0").env("PGARK_SERVE__TOKEN_FILE", file.as_str()).run().code(2).says("shorter than 16");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    serve(&taken.local_addr().unwrap().to_string()).run().code(4).says("cannot listen on");

    std::fs::write(&token, "correct-horse-battery\n").unwrap();
    let port = free_port();
    let child = listening(&repository, port, &[("PGARK_SERVE__TOKEN_FILE", &file)]);
    for path in ["/", "/metrics", "/healthz", "/?token=correct-horse-battery"] {
        let refused = get(port, path, "");
        assert_eq!(code(&refused), "401");
        assert!(refused.contains("www-authenticate: Basic"), "{refused}");
        assert_eq!(code(&get(port, path, "Authorization: Bearer correct-horse-batterz\r\n")), "401");
    }
    assert_eq!(code(&get(port, "/healthz", "Authorization: Bearer correct-horse-battery\r\n")), "200");
    // :correct-horse-battery
    let basic = "Authorization: Basic OmNvcnJlY3QtaG9yc2UtYmF0dGVyeQ==\r\n";
    assert_eq!(code(&get(port, "/healthz", basic)), "200");
    let said = stop(child);
    assert!(said.code == 0 && !said.stderr.contains("correct-horse"), "{said:?}");
}

#[test]
fn over_tls() {
    let repository = with_a_segment();
    let place = Scratch::new("t");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let write = |name: &str, text: String| {
        let path = place.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (cert, key) = (write("cert.pem", made.cert.pem()), write("key.pem", made.signing_key.serialize_pem()));
    let port = free_port();
    let child = listening(&repository, port, &[("PGARK_SERVE__TLS_CERT", &cert), ("PGARK_SERVE__TLS_KEY", &key)]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(made.cert.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(("127.0.0.1", port)).unwrap());
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok();
    assert_eq!(code(&String::from_utf8_lossy(&answer)), "200");
    assert_ne!(code(&get(port, "/healthz", "")), "200", "not in the clear");
    assert_eq!(stop(child).code, 0);
    let half = Call::new(["config", "check"]).envs(repository.env()).env("PGARK_SERVE__TLS_CERT", cert.as_str());
    half.run().code(2).says("needs `serve.tls_key` beside it");
}

#[test]
fn settings_that_make_no_sense_are_told_at_once() {
    let repository = Repository::local();
    for verb in [&["config", "check"][..], &["serve", "--listen", "none"]] {
        let call = Call::new(verb.iter().copied()).envs(repository.env());
        let call = call.env("PGARK_CLUSTER__CONNINFO", "host=/nonexistent");
        call.clone().env("PGARK_SCHEDULE__DUMP", "0 25 * * *").run().code(2).says("cron expression of five fields");
        call.clone().env("PGARK_SCHEDULE__DUMP", "0 0 31 2 *").run().code(2).says("never comes");
        let zone = call.env("PGARK_SCHEDULE__TIMEZONE", "Europe/Berlyn");
        zone.run().code(2).says("`schedule.timezone` (environment PGARK_SCHEDULE__TIMEZONE)").says("no time zone");
    }
}
