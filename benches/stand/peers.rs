//! Other archivers, as their manuals say that they are quickest, at our level of compression: those that are on the `PATH`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::found::{self, Found, Kind};
use crate::place::{Calls, Daemon, Place};
use crate::server::Server;

/// One of them.
#[derive(Clone)]
pub struct Peer {
    found: Found,
    pub title: String,
}

impl Peer {
    pub fn found() -> Vec<Peer> {
        let peers = found::peers().into_iter().map(|found| {
            let how = match found.kind {
                Kind::PgBackRest => "async, 2 processes, TLS",
                Kind::Walrus => "daemon, 4 at once",
            };
            Peer { title: format!("{}, {how}", found.version), found }
        });
        peers.collect()
    }

    /// It speaks TLS to stores, and nothing else.
    pub fn wants_tls(&self) -> bool {
        self.found.kind == Kind::PgBackRest
    }

    /// An empty repository of it, and how it is called.
    pub fn calls(&self, place: &Place, server: &Server, label: &str) -> Result<Calls, String> {
        match self.found.kind {
            Kind::PgBackRest => self.pgbackrest(place, server, label),
            Kind::Walrus => self.walrus(place, server, label),
        }
    }

    fn pgbackrest(&self, place: &Place, server: &Server, label: &str) -> Result<Calls, String> {
        let root = place.root().display();
        let (_, port) = server.endpoint().rsplit_once(':').unwrap();
        let config = format!("{root}/pgbackrest.conf");
        let text = format!(
            "[global]\nrepo1-type=s3\nrepo1-path=/pgbackrest-{label}\nrepo1-s3-bucket={}\nrepo1-s3-endpoint=localhost\n\
             repo1-storage-port={port}\nrepo1-storage-ca-file={}\nrepo1-s3-uri-style=path\nrepo1-s3-region=us-east-1\n\
             repo1-s3-key={}\nrepo1-s3-key-secret={}\narchive-async=y\nprocess-max=2\ncompress-type=zst\n\
             compress-level=1\nspool-path={root}/peer-spool\nlock-path={root}/lock\nlog-path={root}/log\n\
             log-level-file=off\n\n[bench]\npg1-path={root}/data\n",
            server.bucket(),
            server.var("PGARK_REPO__CA_FILE"),
            server.var("AWS_ACCESS_KEY_ID"),
            server.var("AWS_SECRET_ACCESS_KEY"),
        );
        // It looks for names in certificates, not for addresses.
        fs::write(&config, text).unwrap();
        let program = self.found.program.display().to_string();
        let words = |words: &[&str]| -> Vec<String> {
            let all = [&program, &format!("--config={config}"), "--stanza=bench"];
            all.iter().chain(words).map(|word| (*word).to_owned()).collect()
        };
        let create = words(&["--no-online", "stanza-create"]);
        let output = Command::new(&create[0]).args(&create[1..]).current_dir(place.data()).output().unwrap();
        if !output.status.success() {
            return Err(format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        Ok(Calls {
            push: words(&["archive-push", "pg_wal/{}"]),
            fetch: words(&["archive-get", "{}", "pg_wal/RECOVERYXLOG"]),
            prefix: format!("pgbackrest-{label}/"),
            ..Calls::default()
        })
    }

    fn walrus(&self, place: &Place, server: &Server, label: &str) -> Result<Calls, String> {
        let root = place.root().display();
        let socket = place.root().join("walrus.sock");
        fs::remove_file(&socket).ok();
        let prefix = format!("s3://{}/walrus-{label}", server.bucket());
        let env = [
            ("WALG_S3_PREFIX", prefix.as_str()),
            ("AWS_ENDPOINT_URL", server.endpoint()),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", server.var("AWS_ACCESS_KEY_ID")),
            ("AWS_SECRET_ACCESS_KEY", server.var("AWS_SECRET_ACCESS_KEY")),
            ("WALG_COMPRESSION_METHOD", "zstd"),
            ("WALG_COMPRESSION_LEVEL", "1"),
            ("WALG_UPLOAD_CONCURRENCY", "4"),
            ("WALG_DOWNLOAD_CONCURRENCY", "4"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let log = fs::File::create(place.root().join("walrus.log")).unwrap();
        let mut daemon = Command::new(&self.found.program);
        daemon.arg("daemon").arg("--socket").arg(&socket).current_dir(place.data()).env_clear().envs(env.clone());
        daemon.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let daemon = daemon.spawn().map_err(|error| error.to_string())?;
        let (program, socket) = (self.found.program.display().to_string(), socket.display().to_string());
        let words = |words: &[&str]| -> Vec<String> {
            let all = [program.as_str(), "daemon-client", "--socket", &socket];
            all.iter().chain(words).map(|word| (*word).to_owned()).collect()
        };
        let calls = Calls {
            push: words(&["wal-push", &format!("{root}/data/pg_wal/{{}}")]),
            fetch: words(&["wal-fetch", "{}", &format!("{root}/data/pg_wal/RECOVERYXLOG")]),
            env,
            prefix: format!("walrus-{label}/"),
            daemon: Some(Daemon(daemon)),
        };
        for _ in 0..100 {
            if Path::new(&socket).exists() {
                return Ok(calls);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(fs::read_to_string(place.root().join("walrus.log")).unwrap_or_default())
    }
}
