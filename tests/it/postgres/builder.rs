//! Describes a cluster before it exists: major, segment size, configuration, environment of the server. Then makes
//! it: by initdb, on a directory that something else restored, or on a copy of a base backup.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
};

use super::{
    account::Account,
    basebackup::BaseBackup,
    cluster::Cluster,
    installation::{Installation, run},
    workplace::Scratch,
};

/// What a cluster shall be. Archiving is on and, until there is an `archive_command`, WAL piles up as `.ready`.
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    installation: &'static Installation,
    segment_mib: u32,
    checksums: bool,
    tcp: bool,
    settings: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Cluster {
    /// A cluster of the preferred major with segments of 1 MiB.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder {
            installation: Installation::preferred(),
            segment_mib: 1,
            checksums: true,
            tcp: false,
            settings: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// On a copy of the backup, so that one backup serves many recoveries.
    pub fn from_basebackup(backup: &BaseBackup) -> Cluster {
        Cluster::builder().on_copy_of(backup)
    }
}

impl ClusterBuilder {
    /// For the ways that run initdb; a directory that exists says itself which major it needs.
    pub fn installation(mut self, installation: &'static Installation) -> ClusterBuilder {
        self.installation = installation;
        self
    }

    pub fn major(self, major: u32) -> ClusterBuilder {
        let found = Installation::find(major).unwrap_or_else(|| panic!("PostgreSQL {major} is not installed"));
        self.installation(found)
    }

    pub fn wal_segment_mib(mut self, mib: u32) -> ClusterBuilder {
        self.segment_mib = mib;
        self
    }

    pub fn checksums(mut self, on: bool) -> ClusterBuilder {
        self.checksums = on;
        self
    }

    /// Listens on 127.0.0.1 too, on a port that was free a moment ago.
    pub fn tcp(mut self) -> ClusterBuilder {
        self.tcp = true;
        self
    }

    /// One line of postgresql.conf; later lines win over earlier ones and over the harness's own.
    pub fn conf(mut self, line: impl Into<String>) -> ClusterBuilder {
        self.settings.push(line.into());
        self
    }

    pub fn archive_command(self, command: &str) -> ClusterBuilder {
        self.conf(format!("archive_command = {}", quoted(command)))
    }

    pub fn autovacuum(self) -> ClusterBuilder {
        self.conf("autovacuum = on")
    }

    /// A variable of the server's environment, and so of its archive_command and restore_command.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> ClusterBuilder {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Makes a new cluster and starts it.
    pub fn start(self) -> Cluster {
        let cluster = self.initialise();
        cluster.start();
        cluster
    }

    /// Makes a new cluster, with a system identifier of its own, and leaves it stopped.
    pub fn initialise(self) -> Cluster {
        let home = Scratch::new("c");
        let data = home.path().join("data");
        let mut initdb = self.installation.command("initdb");
        initdb.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
        initdb.arg(format!("--wal-segsize={}", self.segment_mib));
        if self.checksums {
            initdb.arg("--data-checksums");
        } else if self.installation.major >= 18 {
            initdb.arg("--no-data-checksums");
        }
        run(&mut initdb).unwrap_or_else(|error| panic!("{error}"));
        let mut settings = own_settings(self.segment_mib);
        settings.extend(self.settings.iter().cloned());
        append(&data.join("postgresql.conf"), &settings);
        let installation = self.installation;
        self.assemble(installation, home, data)
    }

    /// Takes a data directory as it is: its postgresql.conf stays, but for the lines given to this builder. It is
    /// not removed afterwards.
    pub fn on_directory(self, data: &Path) -> Cluster {
        let said = fs::read_to_string(data.join("PG_VERSION"))
            .unwrap_or_else(|error| panic!("no data directory in `{}`: {error}", data.display()));
        let major = said.trim().parse().unwrap_or_else(|_| panic!("PG_VERSION says `{said}`"));
        let installation = Installation::find(major).unwrap_or_else(|| panic!("PostgreSQL {major} is not installed"));
        let meta = fs::metadata(data).expect("stat the data directory");
        let (owner, servers) = (meta.uid(), Account::of_servers().uid);
        assert_eq!(owner, servers, "`{}` belongs to user {owner}, servers run as {servers}", data.display());
        let mode = meta.permissions().mode() & 0o777;
        assert!(mode & 0o027 == 0, "PostgreSQL refuses the mode {mode:o} of `{}`", data.display());
        if !self.settings.is_empty() {
            append(&data.join("postgresql.conf"), &self.settings);
        }
        self.assemble(installation, Scratch::new("c"), data.to_owned())
    }

    /// As [`ClusterBuilder::on_directory`], on a copy of the backup that goes with the cluster.
    pub fn on_copy_of(self, backup: &BaseBackup) -> Cluster {
        let home = Scratch::new("r");
        let data = home.path().join("data");
        let mut copying = Command::new("cp");
        copying.args(["-a", "--reflink=auto"]).arg(backup.directory()).arg(&data);
        run(Account::of_servers().run(&mut copying)).unwrap_or_else(|error| panic!("{error}"));
        let mut cluster = self.on_directory(&data);
        cluster.keep_with(home);
        cluster
    }

    fn assemble(self, installation: &'static Installation, home: Scratch, data: PathBuf) -> Cluster {
        let port = if self.tcp { free_port() } else { next_port() };
        Cluster::assemble(installation, home, data, port, self.tcp, self.environment)
    }
}

/// A string as postgresql.conf wants it.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

fn own_settings(segment_mib: u32) -> Vec<String> {
    let mut lines: Vec<String> = [
        "archive_command = ''",
        "archive_mode = on",
        "autovacuum = off",
        "fsync = on",
        "hot_standby = on",
        "jit = off",
        "log_checkpoints = off",
        "log_line_prefix = '%m [%p] '",
        "log_min_messages = info",
        "log_timezone = 'UTC'",
        "max_connections = 20",
        "max_wal_senders = 4",
        "shared_buffers = 16MB",
        "timezone = 'UTC'",
        "track_commit_timestamp = on",
        "wal_level = replica",
    ]
    .map(String::from)
    .into();
    lines.push(format!("max_wal_size = {}MB", 16 * segment_mib));
    lines.push(format!("min_wal_size = {}MB", 2 * segment_mib));
    lines
}

fn append(file: &Path, lines: &[String]) {
    let before = fs::read_to_string(file).unwrap_or_default();
    Account::of_servers().write(file, &format!("{before}\n{}\n", lines.join("\n")));
}

/// Names the socket, which lies in a directory of its own: any number will do.
fn next_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_001);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a free port");
    listener.local_addr().expect("the port that was bound").port()
}
