//! Runs pgark as PostgreSQL would: a process of its own, a clean environment, a working directory.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::postgres::installed_binary;

/// A place where the servers' user can run pgark too.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<&'static Path> = OnceLock::new();
    BINARY.get_or_init(|| installed_binary(Path::new(env!("CARGO_BIN_EXE_pgark"))))
}

/// No call of a test takes longer.
const LIMIT: Duration = Duration::from_secs(120);

/// A call that is being prepared.
#[derive(Clone, Debug)]
pub struct Call {
    words: Vec<OsString>,
    environment: Vec<(String, String)>,
    directory: PathBuf,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The exit code, or 128 and the signal.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Call {
    /// Settings that make failing quick, in an environment without anything else.
    pub fn new<W: Into<OsString>>(words: impl IntoIterator<Item = W>) -> Self {
        let environment = [
            ("PATH", "/usr/bin:/bin"),
            ("HOME", "/nonexistent"),
            ("LANG", "C.UTF-8"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("PGARK_CONFIG", empty_settings()),
        ];
        Call {
            words: words.into_iter().map(Into::into).collect(),
            environment: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            directory: std::env::temp_dir(),
        }
    }

    /// Deadlines so short that a test can wait for them.
    pub fn impatient(self) -> Self {
        self.env("PGARK_REPO__REQUEST_TIMEOUT", "1s")
            .env("PGARK_REPO__STALL_TIMEOUT", "1s")
            .env("PGARK_REPO__CONNECT_TIMEOUT", "1s")
            .env("PGARK_REPO__ATTEMPTS", "2")
            .env("PGARK_WAL__FETCH_RETRY", "3s")
            .env("PGARK_WAL__STANDBY_RETRY", "2s")
            .env("PGARK_WAL__PUSH_DEADLINE", "5s")
    }

    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.retain(|(existing, _)| existing != name);
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    pub fn envs(self, pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        pairs.into_iter().fold(self, |call, (name, value)| call.env(&name, value))
    }

    pub fn without(mut self, name: &str) -> Self {
        self.environment.retain(|(existing, _)| existing != name);
        self
    }

    pub fn within(mut self, directory: &Path) -> Self {
        self.directory = directory.to_owned();
        self
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.args(&self.words).env_clear().envs(self.environment.iter().cloned()).current_dir(&self.directory);
        command.stdin(Stdio::null());
        command
    }

    /// Starts the call and leaves it running.
    pub fn spawn(&self) -> Child {
        self.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("pgark can be started")
    }

    /// Runs the call to its end.
    pub fn run(&self) -> Outcome {
        finish(self.spawn())
    }
}

/// Waits for a call that was spawned.
pub fn finish(mut child: Child) -> Outcome {
    let begun = Instant::now();
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let mut stderr = child.stderr.take().expect("stderr is piped");
    let out = std::thread::spawn(move || read_all(&mut stdout));
    let err = std::thread::spawn(move || read_all(&mut stderr));
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait for pgark") {
            break status;
        }
        if begun.elapsed() > LIMIT {
            child.kill().ok();
            panic!("pgark did not end within {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let code =
        status.code().unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0));
    let (stdout, stderr) = (out.join().expect("stdout"), err.join().expect("stderr"));
    Outcome { code, stdout, stderr, took: begun.elapsed() }
}

fn read_all(from: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).expect("read what pgark says");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn empty_settings() -> &'static str {
    static FILE: OnceLock<String> = OnceLock::new();
    FILE.get_or_init(|| {
        let path = binary().parent().expect("a directory").join("empty.toml");
        std::fs::write(&path, "").expect("write an empty settings file");
        path.display().to_string()
    })
}

impl Outcome {
    /// Success and not a word on stderr: unexpected warnings fail a test.
    #[track_caller]
    pub fn quiet_success(self) -> Self {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{self:?}");
        self
    }

    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        // PostgreSQL's log is not flooded, and every failure says what to look for.
        assert!(self.stderr.lines().count() <= 3, "{self:?}");
        self
    }

    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "`{text}` is not in {self:?}");
        self
    }
}
