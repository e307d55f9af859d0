//! The same round trip on another implementation of S3: moto's server, from PyPI, which `make test` installs.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::data_dir::FakeCluster;
use crate::ledger::{Expect, Ledger};
use crate::pitr::{archive_command, restore_command};
use crate::postgres::{Cluster, Recovery, RecoveryTarget, happens_within};
use crate::program::Call;

struct Moto {
    server: Child,
    port: u16,
}

impl Moto {
    fn start() -> Self {
        let program = std::env::var("PGARK_TEST_MOTO")
            .unwrap_or_else(|_| format!("{}/target/moto/bin/moto_server", env!("CARGO_MANIFEST_DIR")));
        // Port 0: moto says on stderr which one it got.
        let mut server = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start `{program}` ({e}): tests/setup/install-moto.sh installs it"));
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
        let line =
            lines.by_ref().map(Result::unwrap).find(|line| line.contains("Running on http://")).expect("moto starts");
        let port = line.rsplit(':').next().unwrap().trim().trim_end_matches('/').parse().expect("a port");
        std::thread::spawn(move || lines.for_each(drop));
        assert!(happens_within(Duration::from_secs(30), || TcpStream::connect(("127.0.0.1", port)).is_ok()));
        Moto { server, port }
    }

    fn env(&self) -> Vec<(String, String)> {
        let pairs = [
            ("PGARK_REPO__URL", "s3://bucket/pg".to_owned()),
            ("PGARK_REPO__ENDPOINT", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_ACCESS_KEY_ID", "testing".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "testing".to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("PGARK_CONFIG", "/dev/null".to_owned()),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    fn create_bucket(&self) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let request = format!(
            "PUT /bucket HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.port
        );
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        assert!(answer.contains("200"), "{answer}");
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

#[test]
fn moto_archives_and_restores() {
    let moto = Moto::start();
    moto.create_bucket();
    let builder = Cluster::builder().archive_command(&archive_command());
    let primary = moto.env().into_iter().fold(builder, |builder, (name, value)| builder.env(name, value)).start();
    let ledger = Ledger::create(&primary);
    ledger.write(10, 1000);
    let backup = primary.base_backup();
    ledger.write(20, 20_000);
    let mark = ledger.mark();
    ledger.write(10, 20_000);
    primary.archive_everything(Duration::from_secs(60));
    for (target, expect) in [
        (RecoveryTarget::Time(mark.time.clone()), Expect::exactly(&mark)),
        (RecoveryTarget::Latest, Expect::at_least(ledger.tip())),
    ] {
        let builder = Cluster::builder();
        let restored =
            moto.env().into_iter().fold(builder, |builder, (name, value)| builder.env(name, value)).on_copy_of(&backup);
        restored.configure_recovery(&Recovery::new(restore_command(), target));
        restored.start();
        restored.wait_promoted(Duration::from_secs(60));
        ledger.judge(&restored, &expect).unwrap();
    }
}

#[test]
fn moto_keeps_archived_wal_from_being_replaced() {
    let moto = Moto::start();
    moto.create_bucket();
    let cluster = FakeCluster::new();
    let name = "000000010000000000000001";
    let push = || Call::new(["wal-push", &format!("pg_wal/{name}")]).envs(moto.env()).within(cluster.path());
    cluster.segment(name, 1);
    push().run().quiet_success();
    push().run().quiet_success();
    cluster.segment(name, 2);
    push().run().code(1);
    let check =
        Call::new(["check", "--no-switch"]).envs(moto.env()).env("PGARK_CLUSTER__CONNINFO", "host=/nonexistent").run();
    assert!(check.stdout.contains("OK       conditional-writes"), "{check:?}");
}
