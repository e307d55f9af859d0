//! A data directory whose `pg_wal` has the corpus, in memory where there is room, and rows of calls in it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::corpus::{self, Load};
use crate::row::{Outcome, Row, Verb};
use crate::server::Server;

/// How a program archives and fetches, and under which prefix of the bucket it stores.
#[derive(Default)]
pub struct Calls {
    pub push: Vec<String>,
    pub fetch: Vec<String>,
    pub env: Vec<(String, String)>,
    pub prefix: String,
    pub daemon: Option<Daemon>,
}

/// A process that ends with this.
pub struct Daemon(pub Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

pub struct Place {
    root: tempfile::TempDir,
    /// Archived first and not measured: the first push makes the repository.
    first: String,
    pub names: Vec<String>,
}

/// Where 4 GB are free in memory, else where temporary files are.
pub fn roomy() -> PathBuf {
    let free = rustix::fs::statvfs("/dev/shm").map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    if free > 4 << 30 { "/dev/shm".into() } else { std::env::temp_dir() }
}

impl Place {
    pub fn make(load: Load, segments: usize) -> Self {
        let root = tempfile::tempdir_in(roomy()).unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let data = root.path().join("data");
        fs::create_dir(&data).unwrap();
        let segment = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        let mut names: Vec<String> = corpus::corpus(&data, load).iter().map(segment).collect();
        fs::create_dir(data.join("pg_wal/archive_status")).unwrap();
        let first = names.remove(0);
        assert!(names.len() >= segments, "only {} segments", names.len());
        for name in names.split_off(segments) {
            fs::remove_file(data.join("pg_wal").join(name)).unwrap();
        }
        Place { root, first, names }
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn data(&self) -> PathBuf {
        self.root().join("data")
    }

    /// pgark, for a cluster of this name.
    pub fn pgark(&self, program: &Path, server: &Server, cluster: &str, more: &[(&str, &str)]) -> Calls {
        let program = program.display().to_string();
        let spool = self.root().join("spool").display().to_string();
        let mut env = server.env.clone();
        let settings = [("PGARK_CLUSTER__NAME", cluster), ("PGARK_WAL__SPOOL", &spool), ("PGARK_WAL__LEVEL", "1")];
        env.extend(settings.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Calls {
            push: [program.as_str(), "wal-push", "pg_wal/{}", "{}"].map(str::to_owned).to_vec(),
            fetch: [program.as_str(), "wal-fetch", "{}", "pg_wal/RECOVERYXLOG"].map(str::to_owned).to_vec(),
            env,
            prefix: format!("pg/{cluster}/"),
            daemon: None,
        }
    }

    /// Archives so many segments, after one that does not count.
    pub fn push(&self, calls: &Calls, server: &mut Server, at_most: usize) -> Result<Outcome, String> {
        let status = self.data().join("pg_wal/archive_status");
        let mark = |names: &[String]| {
            names.iter().for_each(|name| fs::write(status.join(format!("{name}.ready")), "").unwrap());
        };
        fs::remove_dir_all(&status).unwrap();
        fs::create_dir(&status).unwrap();
        self.clear();
        let row = |names: &[String]| Row {
            verb: Verb::Push,
            command: calls.push.clone(),
            names: names.to_vec(),
            daemon: calls.daemon.as_ref().map(|daemon| daemon.0.id()),
        };
        mark(std::slice::from_ref(&self.first));
        self.run(&row(std::slice::from_ref(&self.first)), &calls.env)?;
        let names = &self.names[..at_most.min(self.names.len())];
        mark(names);
        let held = server.stored(&calls.prefix);
        let outcome = self.served(&row(names), calls, server)?;
        let stored = (server.stored(&calls.prefix) - held) / names.len() as f64;
        Ok(Outcome { stored, ..outcome })
    }

    /// Fetches so many segments as a recovery does.
    pub fn fetch(&self, calls: &Calls, server: &mut Server, at_most: usize, replay: u64) -> Result<Outcome, String> {
        self.clear();
        let data = self.data();
        fs::write(data.join("recovery.signal"), "").unwrap();
        fs::write(data.join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        let row = Row {
            verb: Verb::Fetch(replay),
            command: calls.fetch.clone(),
            names: self.names[..at_most.min(self.names.len())].to_vec(),
            daemon: calls.daemon.as_ref().map(|daemon| daemon.0.id()),
        };
        let outcome = self.served(&row, calls, server);
        fs::remove_file(data.join("postmaster.pid")).unwrap();
        fs::remove_file(data.join("recovery.signal")).unwrap();
        // Helpers look for the server five times a second, and end.
        std::thread::sleep(Duration::from_millis(600));
        outcome
    }

    /// A program for each name.
    pub fn each(&self, command: &[&str]) -> Outcome {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let row = Row { verb: Verb::Each, command, names: self.names.clone(), daemon: None };
        self.run(&row, &[]).unwrap()
    }

    /// What the driver does itself.
    pub fn bare(&self, verb: Verb, names: Vec<String>) -> Outcome {
        self.run(&Row { verb, command: Vec::new(), names, daemon: None }, &[]).unwrap()
    }

    /// What programs kept besides their repositories.
    fn clear(&self) {
        for kept in ["spool", "peer-spool", "data/pg_wal/.wal-g"] {
            fs::remove_dir_all(self.root().join(kept)).ok();
        }
    }

    fn served(&self, row: &Row, calls: &Calls, server: &mut Server) -> Result<Outcome, String> {
        server.requests();
        let before = server.cpu_ms();
        let outcome = self.run(row, &calls.env)?;
        let segments = row.names.len() as f64;
        let served_ms = (server.cpu_ms() - before) / segments;
        let requests = server.requests().split_whitespace().count() as f64 / segments;
        Ok(Outcome { served_ms, requests, ..outcome })
    }

    fn run(&self, row: &Row, env: &[(String, String)]) -> Result<Outcome, String> {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--row").arg(serde_json::to_string(row).unwrap()).current_dir(self.data());
        command.env_clear().envs(env.iter().cloned()).env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(said.into_owned());
        }
        serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {said}"))
    }
}
