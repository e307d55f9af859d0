//! One server: its processes, its log, its files. The postmaster is a direct child of the test process, so that
//! waiting reaps it and killing reaches it; everything it started is found through `processes`. Readiness is read
//! from postmaster.pid, as pg_ctl does, because asking by connection would write FATAL lines into the log.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{
    PATIENCE, account::Account, happens_within, installation::Installation, processes, sql::Endpoint,
    workplace::Scratch,
};

/// Above what the product may hold a shutdown up: 30 seconds.
const STOPS_WITHIN: Duration = Duration::from_secs(120);
const STOPS_ON_DROP_WITHIN: Duration = Duration::from_secs(10);

/// A server and its data directory, running or not. Stopped without ceremony and removed when dropped.
pub struct Cluster {
    installation: &'static Installation,
    data: PathBuf,
    endpoint: Endpoint,
    tcp: bool,
    environment: Vec<(String, String)>,
    server: Mutex<Option<Child>>,
    /// The socket and the log; the data too unless it was given.
    home: Scratch,
    also: Vec<Scratch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for sessions to end.
    Smart,
    /// Ends sessions, writes a checkpoint, waits for the archiver.
    Fast,
    /// Leaves everything to crash recovery.
    Immediate,
}

impl Cluster {
    pub(super) fn assemble(
        installation: &'static Installation,
        home: Scratch,
        data: PathBuf,
        port: u16,
        tcp: bool,
        environment: Vec<(String, String)>,
    ) -> Cluster {
        let endpoint = Endpoint { socket_directory: home.path().to_owned(), port, log: home.path().join("server.log") };
        Account::of_servers().write(&endpoint.log, "");
        Cluster { installation, data, endpoint, tcp, environment, server: Mutex::new(None), home, also: Vec::new() }
    }

    pub(super) fn keep_with(&mut self, directory: Scratch) {
        self.also.push(directory);
    }

    pub fn installation(&self) -> &'static Installation {
        self.installation
    }

    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// For 127.0.0.1, if the builder was told so.
    pub fn tcp_port(&self) -> Option<u16> {
        self.tcp.then_some(self.endpoint.port)
    }

    /// A variable of the server's environment from the next start on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Adds a line to postgresql.conf, for the next start or [`Cluster::reload`].
    pub fn configure(&self, line: &str) {
        let file = self.data.join("postgresql.conf");
        let before = fs::read_to_string(&file).expect("read postgresql.conf");
        Account::of_servers().write(&file, &format!("{before}{line}\n"));
    }

    pub fn reload(&self) {
        processes::send(self.postmaster().expect("the server runs"), Signal::HUP);
    }

    /// Starts the server and waits until it accepts connections: as a primary, or read-only in recovery.
    pub fn start(&self) {
        self.launch();
        self.wait_until("ready", PATIENCE, || self.exit_status().is_some() || self.is_accepting());
        assert!(self.is_running(), "the server ended as it was started; {}", self.endpoint.log_tail());
    }

    /// Starts the server and waits for nothing.
    pub fn launch(&self) {
        let ended = self.exit_status().is_some();
        let mut server = self.server();
        assert!(ended || server.is_none(), "the server runs already");
        let log = || OpenOptions::new().append(true).open(&self.endpoint.log).map(Stdio::from).expect("open the log");
        let mut command = self.installation.command("postgres");
        command.arg("-D").arg(&self.data);
        command.arg("-c").arg(format!("unix_socket_directories={}", self.endpoint.socket_directory.display()));
        command.arg("-c").arg(format!("port={}", self.endpoint.port));
        command.arg("-c").arg(format!("listen_addresses={}", if self.tcp { "127.0.0.1" } else { "" }));
        command.current_dir(self.home.path()).env("HOME", self.home.path());
        command.env("PGARK_WAL__SPOOL", self.home.path().join("spool"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdout(log()).stderr(log());
        *server = Some(command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}")));
    }

    /// Starts a server that must end by itself before it is ready, and gives what it logged meanwhile.
    pub fn start_expecting_failure(&self) -> String {
        let before = self.log().len();
        self.launch();
        self.wait_until("down or ready", PATIENCE, || self.exit_status().is_some() || self.is_accepting());
        assert!(!self.is_running(), "the server was to fail and became ready; {}", self.endpoint.log_tail());
        self.log().split_off(before)
    }

    /// Waits for a server that must end by itself, and gives the whole log.
    pub fn wait_down(&self, deadline: Duration) -> String {
        self.wait_until("down", deadline, || self.exit_status().is_some() || !self.is_running());
        self.log()
    }

    /// Stops a running server and tells how long that took.
    pub fn stop(&self, mode: StopMode) -> Duration {
        let begun = Instant::now();
        self.signal(mode);
        self.wait_until("down", STOPS_WITHIN, || !self.is_running());
        begun.elapsed()
    }

    /// As a power cut does to processes: SIGKILL for the postmaster and all it started. Returns when all are gone.
    pub fn kill_9(&self) {
        let postmaster = self.postmaster().expect("the server runs");
        processes::kill_tree(postmaster, &self.data);
        self.wait_until("reaped", PATIENCE, || !self.is_running());
    }

    /// SIGKILL for the postmaster alone: its children notice and leave, commands that they run go on.
    pub fn kill_9_postmaster(&self) {
        processes::send(self.postmaster().expect("the server runs"), Signal::KILL);
        self.wait_until("reaped", PATIENCE, || !self.is_running());
    }

    pub fn is_running(&self) -> bool {
        let mut server = self.server();
        if server.as_mut().is_some_and(|child| child.try_wait().expect("wait for the server").is_some()) {
            *server = None;
        }
        server.is_some()
    }

    /// Whether it takes connections, read-only ones included.
    pub fn is_ready(&self) -> bool {
        self.is_running() && self.is_accepting() && self.endpoint.connect().is_ok()
    }

    /// The process id of the running postmaster.
    pub fn postmaster(&self) -> Option<i32> {
        self.is_running().then(|| self.server().as_ref().map(|child| child.id() as i32)).flatten()
    }

    /// All that was logged since the cluster was made, over restarts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.endpoint.log).expect("read the log")).into_owned()
    }

    /// Waits for a condition; the panic at the deadline shows the end of the log.
    pub fn wait_until(&self, what: &str, deadline: Duration, condition: impl FnMut() -> bool) {
        let happened = happens_within(deadline, condition);
        assert!(happened, "not {what} within {deadline:?}; {}", self.endpoint.log_tail());
    }

    /// By the postmaster's status line, which costs no connection. `standby` is a server without hot standby.
    pub(super) fn is_accepting(&self) -> bool {
        matches!(self.status().as_str(), "ready" | "standby")
    }

    /// The eighth line of postmaster.pid (`LOCK_FILE_LINE_PM_STATUS` in pidfile.h); empty for another postmaster's.
    fn status(&self) -> String {
        let file = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let mut lines = file.lines();
        let owner = lines.next().and_then(|line| line.trim().parse().ok());
        let ours = self.server().as_ref().is_some_and(|child| owner == Some(child.id()));
        lines.nth(6).filter(|_| ours).unwrap_or_default().trim().to_owned()
    }

    /// How the server ended, without forgetting it: `is_running` does that.
    fn exit_status(&self) -> Option<ExitStatus> {
        self.server().as_mut().and_then(|child| child.try_wait().expect("wait for the server"))
    }

    fn signal(&self, mode: StopMode) {
        let signal = match mode {
            StopMode::Smart => Signal::TERM,
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        };
        processes::send(self.postmaster().expect("the server runs"), signal);
    }

    fn server(&self) -> MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("PostgreSQL {}; {}", self.installation.version, self.endpoint.log_tail());
        }
        if let Some(postmaster) = self.postmaster() {
            self.signal(StopMode::Immediate);
            if !happens_within(STOPS_ON_DROP_WITHIN, || !self.is_running()) {
                processes::kill_tree(postmaster, &self.data);
                let _ = self.server().as_mut().map(Child::wait);
            }
        }
        // An archive_command may outlive its server.
        processes::kill_all_in(&self.data);
    }
}
