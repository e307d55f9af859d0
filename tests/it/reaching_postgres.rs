//! `check` connects as psql would: as the operating system's user, by URI or pairs, and with TLS as strict as libpq's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::postgres::{Account, Cluster, Scratch};
use crate::program::{Call, finish};
use crate::repository::Repository;

/// What the line `server` of `check` says.
pub fn server_line(call: Call) -> String {
    let outcome = call.run();
    line(&outcome.stdout)
}

fn line(stdout: &str) -> String {
    let found = stdout.lines().find(|line| line.split_whitespace().nth(1) == Some("server"));
    found.unwrap_or_else(|| panic!("{stdout}")).to_owned()
}

pub fn check(repository: &Repository, conninfo: &str) -> Call {
    Call::new(["check", "--no-switch"]).impatient().envs(repository.env()).env("PGARK_CLUSTER__CONNINFO", conninfo)
}

/// An authority and a certificate for `localhost`, as files that the server may read.
fn certificates(place: &Path) -> (String, String, String) {
    let authority = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, name);
        let pem = ca.self_signed(&key).unwrap().pem();
        (Issuer::new(ca, key), pem)
    };
    let (issuer, ca_pem) = authority("ours");
    let (_, other_pem) = authority("other");
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    Account::of_servers().write(&place.join("server.crt"), &leaf.pem());
    Account::of_servers().write(&place.join("server.key"), &key.serialize_pem());
    fs::set_permissions(place.join("server.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let file = |name: &str, text: &str| {
        fs::write(place.join(name), text).unwrap();
        place.join(name).display().to_string()
    };
    (file("ca.pem", &ca_pem), file("other.pem", &other_pem), place.display().to_string())
}

#[test]
fn tls_is_as_strict_as_libpqs() {
    let place = Scratch::new("tls");
    let (ca, other, files) = certificates(place.path());
    let cluster = Cluster::builder().tcp().conf("ssl = on").conf(format!("ssl_cert_file = '{files}/server.crt'"));
    let cluster = cluster.conf(format!("ssl_key_file = '{files}/server.key'")).start();
    let port = cluster.tcp_port().unwrap();
    let repository = Repository::local();
    let home = Scratch::new("home");
    let tcp = |host: &str, rest: &str| format!("host={host} port={port} user=postgres dbname=postgres {rest}");
    for (host, rest, works) in [
        ("127.0.0.1", "sslmode=require".to_owned(), true),
        ("127.0.0.1", format!("sslmode=require sslrootcert={ca}"), true),
        ("127.0.0.1", format!("sslmode=require sslrootcert={other}"), false),
        ("127.0.0.1", format!("sslmode=verify-ca sslrootcert={ca}"), true),
        ("127.0.0.1", format!("sslmode=verify-ca sslrootcert={other}"), false),
        ("127.0.0.1", format!("sslmode=verify-full sslrootcert={ca}"), false),
        ("localhost", format!("sslmode=verify-full sslrootcert={ca} hostaddr=127.0.0.1"), true),
        ("localhost", format!("sslmode=verify-full sslrootcert={other} hostaddr=127.0.0.1"), false),
        // The second server of a list answers.
        ("127.0.0.2,127.0.0.1", "sslmode=require".to_owned(), true),
    ] {
        let said = server_line(check(&repository, &tcp(host, &rest)));
        assert_eq!(said.starts_with("OK"), works, "{host} {rest}: {said}");
    }
    // As with libpq, a root certificate in its place is enough to be strict, and none is an error for those who verify.
    let home_of = |call: Call| call.env("HOME", home.path().display().to_string());
    let none = home_of(check(&repository, &tcp("localhost", "sslmode=verify-full"))).run();
    assert!(none.code == 3 && none.stderr.contains("root.crt"), "{none:?}");
    fs::create_dir(home.path().join(".postgresql")).unwrap();
    fs::copy(&other, home.path().join(".postgresql/root.crt")).unwrap();
    let said = server_line(home_of(check(&repository, &tcp("127.0.0.1", "sslmode=require"))));
    assert!(said.starts_with("UNKNOWN"), "{said}");
    // A socket has no TLS.
    let socket = format!("{} sslmode=verify-full sslrootcert={other}", cluster.endpoint().conninfo());
    assert!(server_line(check(&repository, &socket)).starts_with("OK"));
    let uri = format!("postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=verify-ca&sslrootcert={ca}");
    assert!(server_line(check(&repository, &uri)).starts_with("OK"));
}

/// `runuser` and services leave `$USER` as it was.
#[test]
fn the_user_is_the_one_that_runs_the_process() {
    let account = Account::of_servers();
    let repository = Repository::local();
    if let Repository::Local(directory) = &repository {
        account.own(directory.path());
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let id = account.uid.to_string();
    let listed = users.lines().find(|line| line.split(':').nth(2) == Some(&id));
    let name = listed.expect("the user is listed").split(':').next().unwrap();
    let cluster = Cluster::builder().start();
    if name != "postgres" {
        cluster.execute(&format!("create role \"{name}\" superuser login"));
    }
    let endpoint = cluster.endpoint();
    let conninfo = format!("host={} port={} dbname=postgres", endpoint.socket_directory.display(), endpoint.port);
    let call = check(&repository, &conninfo).env("USER", "somebody-else").env("LOGNAME", "somebody-else");
    let mut command = call.command();
    let child = account.run(&mut command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let outcome = finish(child);
    assert!(line(&outcome.stdout).starts_with("OK"), "{outcome:?}");
}

#[test]
fn a_password_on_the_command_line_is_refused() {
    let repository = Repository::local();
    for conninfo in ["host=/nonexistent password=secret", "postgresql://me:secret@127.0.0.1:1/x"] {
        let call = Call::new(["check", "--no-switch", "--conninfo", conninfo]).envs(repository.env());
        let outcome = call.run().code(3).says("must not hold a password").says("passfile");
        assert!(!outcome.stderr.contains("secret"), "{outcome:?}");
        // In the environment or the file only the server's user sees it.
        assert!(server_line(check(&repository, conninfo)).starts_with("UNKNOWN"));
    }
}
