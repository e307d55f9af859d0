//! `channel_binding` with real servers and their certificates, and with one in the middle who has another certificate.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::postgres::{Account, Cluster, Scratch, StopMode, run};
use crate::program::{Call, Outcome};
use crate::reaching_postgres::{check, server_line};
use crate::repository::Repository;

/// A certificate that vouches for itself, for `localhost`, and its key.
type Pair = (String, String);

fn of_rcgen(algorithm: &'static rcgen::SignatureAlgorithm) -> Pair {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// Of kinds that only openssl makes.
fn of_openssl(words: &[&str]) -> Pair {
    let place = Scratch::new("openssl");
    let file = |name: &str| place.path().join(name);
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"]).args(words);
    openssl.args(["-addext", "subjectAltName=DNS:localhost", "-keyout"]).arg(file("key")).arg("-out").arg(file("crt"));
    run(&mut openssl).unwrap_or_else(|error| panic!("{error}"));
    (fs::read_to_string(file("crt")).unwrap(), fs::read_to_string(file("key")).unwrap())
}

/// A server with TLS whose users log in each in their own way.
struct Server {
    cluster: Cluster,
    files: Scratch,
}

impl Server {
    fn new() -> Self {
        let files = Scratch::new("tls");
        let place = files.path().display();
        let cluster = Cluster::builder().tcp().conf(format!("ssl_cert_file = '{place}/server.crt'"));
        let cluster = cluster.conf(format!("ssl_key_file = '{place}/server.key'")).start();
        for (user, encryption, method) in
            [("scram", "scram-sha-256", "scram-sha-256"), ("hashed", "md5", "md5"), ("trusted", "md5", "trust")]
        {
            cluster.execute(&format!(
                "set password_encryption = '{encryption}'; create role {user} superuser login password 'secret'"
            ));
            let hba = cluster.data_dir().join("pg_hba.conf");
            let before = fs::read_to_string(&hba).unwrap();
            let lines = ["all", "replication"].map(|database| format!("host {database} {user} samehost {method}\n"));
            Account::of_servers().write(&hba, &format!("{}{before}", lines.concat()));
        }
        cluster.reload();
        Server { cluster, files }
    }

    fn shows(&self, (certificate, key): &Pair) {
        Account::of_servers().write(&self.files.path().join("server.crt"), certificate);
        Account::of_servers().write(&self.files.path().join("server.key"), key);
        let key = self.files.path().join("server.key");
        fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
        self.cluster.stop(StopMode::Fast);
        self.cluster.configure("ssl = on");
        self.cluster.start();
    }

    fn port(&self) -> u16 {
        self.cluster.tcp_port().unwrap()
    }
}

fn conninfo(port: u16, user: &str, rest: &str) -> String {
    format!("host=localhost hostaddr=127.0.0.1 port={port} user={user} password=secret dbname=postgres {rest}")
}

/// Both clients of ours: the session, and the replication connection. What they say if they are refused.
fn connects(repository: &Repository, conninfo: &str) -> Result<(), String> {
    let said = server_line(check(repository, conninfo));
    let receive = Call::new(["wal-receive", "--create-slot", "--once-to", "0/1"]).impatient().envs(repository.env());
    let received: Outcome = receive.env("PGARK_CLUSTER__CONNINFO", conninfo).run();
    let refused = received.stderr.contains("cannot connect to PostgreSQL for replication");
    assert_eq!(said.starts_with("OK"), !refused, "{conninfo}: {said} {received:?}");
    if refused { Err(format!("{said}\n{}", received.stderr)) } else { Ok(()) }
}

#[test]
fn a_login_is_bound_to_certificates_of_all_kinds() {
    let (server, repository) = (Server::new(), Repository::local());
    for (kind, pair, can) in [
        ("ECDSA with SHA-256", of_rcgen(&PKCS_ECDSA_P256_SHA256), true),
        ("ECDSA with SHA-384", of_rcgen(&PKCS_ECDSA_P384_SHA384), true),
        ("RSA with SHA-256", of_openssl(&["-newkey", "rsa:2048", "-sha256"]), true),
        ("RSA with SHA-512", of_openssl(&["-newkey", "rsa:2048", "-sha512"]), true),
        (
            "ECDSA with SHA-512",
            of_openssl(&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-sha512"]),
            true,
        ),
        (
            "RSA-PSS with SHA-384",
            of_openssl(&["-newkey", "rsa:2048", "-sha384", "-sigopt", "rsa_padding_mode:pss"]),
            true,
        ),
        ("Ed25519", of_openssl(&["-newkey", "ed25519"]), false),
    ] {
        server.shows(&pair);
        for (binding, works) in [("disable", true), ("prefer", true), ("require", can)] {
            let rest = format!("sslmode=require channel_binding={binding}");
            let outcome = connects(&repository, &conninfo(server.port(), "scram", &rest));
            assert_eq!(outcome.is_ok(), works, "{kind} {binding}: {outcome:?}");
        }
    }
}

#[test]
fn a_login_that_cannot_be_bound_is_refused_where_it_must_be() {
    let (server, repository) = (Server::new(), Repository::local());
    server.shows(&of_rcgen(&PKCS_ECDSA_P256_SHA256));
    for (user, rest, words) in [
        ("scram", "sslmode=disable", "needs TLS"),
        ("hashed", "sslmode=require", "channel binding"),
        ("trusted", "sslmode=require", "channel binding"),
    ] {
        connects(&repository, &conninfo(server.port(), user, rest)).unwrap();
        let required = conninfo(server.port(), user, &format!("{rest} channel_binding=require"));
        let said = connects(&repository, &required).unwrap_err().replace("channel_binding", "channel binding");
        assert!(said.contains(words), "{user} {rest}: {said}");
        // The variable counts as much as the word.
        let call = check(&repository, &conninfo(server.port(), user, rest)).env("PGCHANNELBINDING", "require");
        assert!(server_line(call).starts_with("UNKNOWN"));
    }
    // There is no TLS over a socket.
    let socket = format!("{} channel_binding=require", server.cluster.endpoint().conninfo());
    assert!(connects(&repository, &socket).unwrap_err().contains("needs TLS"));
}

/// Who has a certificate of their own, and passes everything on to the server, over TLS, too.
struct Middle {
    port: u16,
    _runtime: tokio::runtime::Runtime,
}

impl Middle {
    /// `strips`: the offer of logins that can be bound does not arrive.
    fn of(server: &Server, known: &Pair, strips: bool) -> Self {
        let provider = Arc::new(ring::default_provider());
        let (certificate, key) = of_rcgen(&PKCS_ECDSA_P256_SHA256);
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let acting = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let acting = acting.unwrap().with_no_client_auth().with_single_cert(vec![der(&certificate)], key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(der(&known.0)).unwrap();
        let asking = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let asking = asking.with_root_certificates(roots).with_no_client_auth();
        let ends = (TlsAcceptor::from(Arc::new(acting)), TlsConnector::from(Arc::new(asking)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let to = server.port();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((client, _)) = listener.accept().await {
                let ends = ends.clone();
                tokio::spawn(async move { pass_on(client, to, ends, strips).await.ok() });
            }
        });
        Middle { port, _runtime: runtime }
    }
}

async fn pass_on(
    mut client: TcpStream,
    to: u16,
    (acceptor, connector): (TlsAcceptor, TlsConnector),
    strips: bool,
) -> std::io::Result<()> {
    let mut question = [0; 8];
    client.read_exact(&mut question).await?;
    client.write_all(b"S").await?;
    let mut server = TcpStream::connect(("127.0.0.1", to)).await?;
    server.write_all(&question).await?;
    assert_eq!(server.read_u8().await?, b'S');
    let client = acceptor.accept(client).await?;
    let server = connector.connect(ServerName::try_from("localhost").unwrap(), server).await?;
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let there = async {
        copy(&mut from_client, &mut to_server).await?;
        to_server.shutdown().await
    };
    let back = async {
        if strips {
            let mut header = [0; 5];
            from_server.read_exact(&mut header).await?;
            let length = u32::from_be_bytes(header[1..].try_into().unwrap()) - 4;
            let mut offer = vec![0; length as usize];
            from_server.read_exact(&mut offer).await?;
            assert!(String::from_utf8_lossy(&offer).contains("SCRAM-SHA-256-PLUS\0"));
            to_client.write_all(b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0").await?;
        }
        copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::try_join!(there, back)?;
    Ok(())
}

/// `sslmode=require` takes any certificate: what keeps the password's use from the one in the middle is the binding.
#[test]
fn nobody_in_the_middle_can_use_a_login() {
    let (server, repository) = (Server::new(), Repository::local());
    let known = of_rcgen(&PKCS_ECDSA_P256_SHA256);
    server.shows(&known);
    for (strips, binding, refusal) in [
        (false, "disable", None),
        (false, "prefer", Some("channel binding check failed")),
        (false, "require", Some("channel binding check failed")),
        (true, "disable", None),
        // The server sees that its offer did not arrive.
        (true, "prefer", Some("SCRAM channel binding negotiation error")),
        (true, "require", Some("channel")),
    ] {
        let middle = Middle::of(&server, &known, strips);
        let rest = format!("sslmode=require channel_binding={binding}");
        match (connects(&repository, &conninfo(middle.port, "scram", &rest)), refusal) {
            (Ok(()), None) => {}
            (Err(said), Some(words)) if said.contains(words) => {}
            (outcome, _) => panic!("strips: {strips}, {binding}: {outcome:?}"),
        }
    }
}

/// Who must show a certificate, and in which way TLS begins.
#[test]
fn certificates_of_clients_and_versions_of_tls() {
    let (server, repository) = (Server::new(), Repository::local());
    let pair = of_rcgen(&PKCS_ECDSA_P256_SHA256);
    server.shows(&pair);
    let scram =
        |rest: &str| connects(&repository, &conninfo(server.port(), "scram", &format!("sslmode=require {rest}")));
    scram("ssl_min_protocol_version=TLSv1.3").unwrap();
    let direct = scram("sslnegotiation=direct channel_binding=require");
    assert_eq!(direct.is_ok(), server.cluster.installation().major >= 17, "{direct:?}");
    scram("ssl_max_protocol_version=TLSv1.2").unwrap();
    server.cluster.configure("ssl_max_protocol_version = 'TLSv1.2'");
    server.shows(&pair);
    scram("").unwrap();
    scram("ssl_min_protocol_version=TLSv1.3").unwrap_err();
    // The server takes certificates of this authority, and asks for one.
    let file = |name: &str, text: &str, mode: u32| {
        let path = server.files.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    let authority = of_openssl(&["-newkey", "rsa:2048", "-sha256"]);
    let (authority_file, authority_key) = (file("ca.crt", &authority.0, 0o644), file("ca.key", &authority.1, 0o600));
    let (key, request, certificate) = ("client.key", "client.csr", "client.crt");
    let at = |name: &str| server.files.path().join(name);
    let openssl = |words: &[&str]| run(Command::new("openssl").args(words)).unwrap_or_else(|error| panic!("{error}"));
    let text = |path: &Path| path.display().to_string();
    openssl(&[
        "req",
        "-new",
        "-nodes",
        "-newkey",
        "rsa:2048",
        "-subj",
        "/CN=scram",
        "-keyout",
        &text(&at(key)),
        "-out",
        &text(&at(request)),
    ]);
    let extensions = file("extensions", "basicConstraints=CA:FALSE\n", 0o644);
    openssl(&[
        "x509",
        "-req",
        "-in",
        &text(&at(request)),
        "-CA",
        &authority_file,
        "-CAkey",
        &authority_key,
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        &extensions,
        "-out",
        &text(&at(certificate)),
    ]);
    Account::of_servers().own(Path::new(&authority_file));
    server.cluster.configure(&format!("ssl_ca_file = '{authority_file}'"));
    let hba = server.cluster.data_dir().join("pg_hba.conf");
    let before = fs::read_to_string(&hba)
        .unwrap()
        .replace("samehost scram-sha-256", "samehost scram-sha-256 clientcert=verify-full");
    Account::of_servers().write(
        &hba,
        &before
            .replace("host all scram", "hostssl all scram")
            .replace("host replication scram", "hostssl replication scram"),
    );
    server.shows(&pair);
    assert!(scram("").unwrap_err().contains("certificate"));
    let (certificate, key) = (text(&at(certificate)), text(&at(key)));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let own = format!("sslcert={certificate} sslkey={key}");
    scram(&own).unwrap();
    scram(&format!("{own} channel_binding=require")).unwrap();
    scram(&format!("{own} sslcertmode=disable")).unwrap_err();
    // As for libpq, nobody else may read the key.
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let refused = check(&repository, &conninfo(server.port(), "scram", &format!("sslmode=require {own}"))).run();
    refused.code(3).says("chmod 600");
}
