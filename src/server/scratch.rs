//! A throw-away server: it recovers what was restored, where nobody else reaches it, and nothing of it reaches anybody else.
//!
//! * A socket in a directory of its own is the only way in; whoever may enter that directory may log in.
//! * Its configuration is ours, not the original's: nothing is archived, streamed, logged elsewhere, preloaded or run by itself.
//!   What the original set with `ALTER SYSTEM` is overruled on the command line.
//! * It is ready when it has left recovery: with `hot_standby` off nobody sees a state before that.
//!
//! Source: `StartupXLOG` and `PerformWalRecovery`; the status line of `postmaster.pid` in `utils/pidfile.h`.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::connection_string::ConnectionString;
use super::conninfo::Conninfo;
use super::scratch_place::DATA;
use super::session::{ServerError, Session};
use super::surroundings::Surroundings;

/// What such a server is made of.
#[derive(Clone, Debug)]
pub struct ScratchSettings {
    /// The directory of all that it has; the data directory in it is called [`DATA`].
    pub home: PathBuf,
    /// Where the programs of its version are.
    pub programs: PathBuf,
    /// `shared_preload_libraries`
    pub preload: String,
    /// Limits that must not be lower than they were, by their names.
    pub limits: BTreeMap<&'static str, u32>,
}

/// A server that was started. It is killed when this is dropped.
pub struct ScratchServer {
    settings: ScratchSettings,
    child: Child,
}

/// What a server that was started is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScratchState {
    /// It recovers.
    Starting,
    /// It takes writes.
    Ready,
    /// It has ended by itself.
    Ended(ExitStatus),
}

const PORT: &str = "5432";
/// What roles and databases may have set for themselves, which counts for more than what the server was started with.
const OVERRULING_ROLES: &str =
    "-c session_preload_libraries= -c statement_timeout=0 -c default_transaction_read_only=off -c lock_timeout=0";
/// A server that is told to end at once does so within this time, or is killed.
const QUIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);
const LOG: &str = "server.log";
const CONFIG: &str = "server.conf";
const ACCESS: &str = "server.hba";
const IDENT: &str = "server.ident";
const SPOOL: &str = "spool";
const SOCKETS: &str = "s";
/// `sockaddr_un` holds 107 bytes.
const LONGEST_SOCKET: usize = 107;
/// The end of a log that is looked at for reasons.
const LOG_END: u64 = 256 << 10;

impl ScratchSettings {
    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.home.join(DATA)
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.home.join(LOG)
    }

    /// A program of the server's version, in an environment that names no other server. It is found by its working directory.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        for (variable, _) in std::env::vars_os() {
            let text = variable.to_string_lossy();
            if text.starts_with("PG") && !text.starts_with("PGARK_") {
                command.env_remove(&variable);
            }
        }
        command.env("LC_ALL", "C").env_remove("LANGUAGE");
        // The original's, and perhaps its password.
        command.env_remove("PGARK_CLUSTER__PGDATA").env_remove("PGARK_CLUSTER__CONNINFO");
        // What WAL is fetched ahead goes with the directory, and is of no use to other servers.
        command.env("PGARK_WAL__SPOOL", self.home.join(SPOOL));
        command.current_dir(&self.home);
        command
    }

    /// The same as a client of the server.
    pub fn client(&self, name: &str, user: &str) -> Command {
        let mut command = self.program(name);
        command.env("PGHOST", self.home.join(SOCKETS)).env("PGPORT", PORT).env("PGUSER", user);
        command.env("PGOPTIONS", OVERRULING_ROLES);
        command
    }

    fn overruling(&self) -> Vec<(String, String)> {
        let path = |name: &str| self.home.join(name).display().to_string();
        let mut settings: Vec<(String, String)> = [
            ("config_file", path(CONFIG)),
            ("hba_file", path(ACCESS)),
            ("ident_file", path(IDENT)),
            ("data_directory", path(DATA)),
            ("external_pid_file", String::new()),
            ("unix_socket_directories", path(SOCKETS)),
            ("unix_socket_permissions", "0700".to_owned()),
            ("unix_socket_group", String::new()),
            ("port", PORT.to_owned()),
            ("listen_addresses", String::new()),
            ("ssl", "off".to_owned()),
            ("logging_collector", "off".to_owned()),
            ("log_destination", "stderr".to_owned()),
            ("log_min_messages", "info".to_owned()),
            ("log_timezone", "UTC".to_owned()),
            ("TimeZone", "UTC".to_owned()),
            ("lc_messages", "C".to_owned()),
            ("archive_mode", "off".to_owned()),
            ("archive_command", String::new()),
            ("primary_conninfo", String::new()),
            ("primary_slot_name", String::new()),
            ("synchronous_standby_names", String::new()),
            ("hot_standby", "off".to_owned()),
            ("shared_preload_libraries", self.preload.clone()),
            ("session_preload_libraries", String::new()),
            ("local_preload_libraries", String::new()),
            ("autovacuum", "off".to_owned()),
            ("max_logical_replication_workers", "0".to_owned()),
            ("statement_timeout", "0".to_owned()),
            ("default_transaction_read_only", "off".to_owned()),
            // Its shared memory is in the data directory, and goes with it.
            ("dynamic_shared_memory_type", "mmap".to_owned()),
            ("huge_pages", "try".to_owned()),
            ("shared_buffers", "128MB".to_owned()),
            ("jit", "off".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        settings.extend(self.limits.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())));
        // Without hot_standby it may be lower than it was: nothing that is preloaded begins work of its own.
        settings.push(("max_worker_processes".to_owned(), "0".to_owned()));
        settings
    }

    /// Starts it on what was restored.
    pub fn start(&self) -> Result<ScratchServer, ServerError> {
        let failed = |what: &str, e: io::Error| ServerError(format!("{what}: {e}"));
        let socket = self.home.join(SOCKETS).join(format!(".s.PGSQL.{PORT}"));
        if socket.as_os_str().len() > LONGEST_SOCKET {
            let message = format!("the path of its socket would be too long: `{}`", socket.display());
            return Err(ServerError(message));
        }
        let write = |name: &str, text: &str| fs::write(self.home.join(name), text);
        write(CONFIG, "")
            .and_then(|()| write(ACCESS, "local all all trust\nlocal replication all reject\n"))
            .and_then(|()| write(IDENT, ""))
            .and_then(|()| fs::create_dir_all(self.home.join(SOCKETS)))
            .map_err(|e| failed("its configuration cannot be written", e))?;
        let log = || OpenOptions::new().append(true).create(true).open(self.log()).map(Stdio::from);
        let (out, err) = log().and_then(|out| Ok((out, log()?))).map_err(|e| failed("its log cannot be made", e))?;
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data());
        for (name, value) in self.overruling() {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0).spawn();
        let child = child.map_err(|e| failed("`postgres` cannot be started", e))?;
        Ok(ScratchServer { settings: self.clone(), child })
    }

    /// What the log says of why the server ended: the first word of `wal-fetch`, and the last of PostgreSQL.
    pub fn complaint(&self) -> Option<String> {
        let log = end_of(&self.log()).unwrap_or_default();
        let behind = |line: &str, mark: &str| line.split_once(mark).map(|(_, rest)| rest.trim().to_owned());
        let ours = log.lines().rev().find_map(|line| behind(line, "pgark: error: "));
        let fatal = |line: &str| ["PANIC:", "FATAL:"].iter().find_map(|mark| behind(line, mark));
        let theirs = log.lines().rev().find_map(fatal);
        match (ours, theirs) {
            (Some(ours), Some(theirs)) => Some(format!("{ours}; PostgreSQL: {theirs}")),
            (ours, theirs) => ours.or(theirs),
        }
    }

    /// How it is logged in to.
    pub fn conninfo(&self, user: &str, database: &str) -> Result<Conninfo, ServerError> {
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
        let text = format!(
            "host='{}' port={PORT} user='{}' dbname='{}' sslmode=disable options='{OVERRULING_ROLES}'",
            quoted(&self.home.join(SOCKETS).display().to_string()),
            quoted(user),
            quoted(database)
        );
        let conninfo = ConnectionString::parse(&text).and_then(|string| string.resolve(&Nothing));
        conninfo.map_err(|e| ServerError(e.to_string()))
    }

    /// Logs in.
    pub async fn session(&self, user: &str, database: &str) -> Result<Session, ServerError> {
        Ok(Session::connect(&self.conninfo(user, database)?).await?)
    }
}

impl ScratchServer {
    /// What it is made of.
    pub fn settings(&self) -> &ScratchSettings {
        &self.settings
    }

    /// What it is doing.
    pub fn state(&mut self) -> Result<ScratchState, ServerError> {
        if let Some(status) = self.child.try_wait().map_err(|e| ServerError(e.to_string()))? {
            return Ok(ScratchState::Ended(status));
        }
        let file = fs::read_to_string(self.settings.data().join("postmaster.pid")).unwrap_or_default();
        let mut lines = file.lines();
        // A file that came with the backup is another server's.
        let ours = lines.next().and_then(|line| line.trim().parse().ok()) == Some(self.child.id());
        let ready = ours && lines.nth(6).is_some_and(|status| status.trim() == "ready");
        Ok(if ready { ScratchState::Ready } else { ScratchState::Starting })
    }

    /// Tells it to write everything to disk and end.
    pub fn tell_to_stop(&self) {
        self.signal(Signal::INT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            kill_process(pid, signal).ok();
        }
    }
}

impl Drop for ScratchServer {
    fn drop(&mut self) {
        // Killed, it would leave shared memory behind; who clears its directory waits for it.
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::QUIT);
            let until = Instant::now() + QUIT;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(LOOK);
            }
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

fn end_of(path: &Path) -> io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_END)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// This server has nothing to do with what libpq finds on this machine.
struct Nothing;

impl Surroundings for Nothing {
    fn variable(&self, _: &str) -> Option<String> {
        None
    }

    fn file(&self, path: &Path) -> io::Result<(Vec<u8>, u32)> {
        Err(io::Error::new(io::ErrorKind::NotFound, format!("`{}` is not looked at", path.display())))
    }

    fn user_id(&self) -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }
}
