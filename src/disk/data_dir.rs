//! A cluster's data directory, looked at from outside.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::postgres::control_file::ControlFile;
use crate::postgres::recovery::{PROMOTE_SIGNAL, RECOVERY_SIGNAL, RecoveryMode, STANDBY_SIGNAL};
use crate::postgres::{ClusterIdent, PgMajor};

/// A directory that holds a cluster: `global/pg_control` is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir {
    path: PathBuf,
}

/// What `pg_control` and `PG_VERSION` say about a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterFacts {
    /// Which cluster.
    pub ident: ClusterIdent,
    /// Where its recovery would begin, and its segment size.
    pub control: ControlFile,
}

/// What `postmaster.pid` says of a server.
///
/// Source: `LOCK_FILE_LINE_START_TIME`, `LOCK_FILE_LINE_PORT` and `LOCK_FILE_LINE_SOCKET_DIR` in `utils/pidfile.h`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postmaster {
    /// When it was started, in seconds since 1970.
    pub start: i64,
    /// Its port.
    pub port: Option<u16>,
    /// Where the first of its sockets is, if it has any.
    pub socket_directory: Option<String>,
}

const CONTROL_FILE: &str = "global/pg_control";

impl DataDir {
    /// The data directory to which `wal_path` belongs: the working directory, in which PostgreSQL runs its
    /// commands; else the one that holds the `pg_wal` of an absolute path, as `pg_rewind` gives it; else `configured`.
    pub fn around(wal_path: &Path, configured: Option<&Path>) -> io::Result<Option<Self>> {
        let working = std::env::current_dir().ok();
        let above = wal_path.is_absolute().then(|| wal_path.ancestors().nth(2)).flatten().map(Path::to_path_buf);
        for candidate in [working, above, configured.map(Path::to_path_buf)].into_iter().flatten() {
            if let Some(found) = DataDir::at(candidate)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The directory, if a cluster is there.
    pub fn at(path: PathBuf) -> io::Result<Option<Self>> {
        match path.join(CONTROL_FILE).try_exists() {
            Ok(true) => Ok(Some(DataDir { path })),
            Ok(false) => Ok(None),
            Err(error) => Err(describe(error, "cannot look at", &path.join(CONTROL_FILE))),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads `pg_control` and `PG_VERSION`. The server may be writing `pg_control`: a wrong checksum is looked at again.
    pub fn facts(&self) -> io::Result<ClusterFacts> {
        let (_, control) = self.control_file()?;
        let path = self.path.join("PG_VERSION");
        let text = fs::read_to_string(&path).map_err(|e| describe(e, "cannot read", &path))?;
        let major: PgMajor =
            text.parse().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", path.display())))?;
        Ok(ClusterFacts { ident: ClusterIdent { system_id: control.system_id, major }, control })
    }

    /// The bytes of `pg_control`, with a checksum that is right.
    pub fn control_file_bytes(&self) -> io::Result<Vec<u8>> {
        self.control_file().map(|(bytes, _)| bytes)
    }

    fn control_file(&self) -> io::Result<(Vec<u8>, ControlFile)> {
        const LOOKS: u32 = 5;
        let path = self.path.join(CONTROL_FILE);
        let mut looks = 0;
        loop {
            looks += 1;
            let bytes = fs::read(&path).map_err(|e| describe(e, "cannot read", &path))?;
            match ControlFile::parse(&bytes) {
                Ok(control) => return Ok((bytes, control)),
                Err(_) if looks < LOOKS => std::thread::sleep(Duration::from_millis(20)),
                Err(error) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display())));
                }
            }
        }
    }

    /// The server that runs here; `None` if none runs.
    pub fn postmaster(&self) -> Option<Postmaster> {
        let status = fs::read_to_string(self.path.join("postmaster.pid")).ok()?;
        let line = |number: usize| status.lines().nth(number).map(str::trim).filter(|line| !line.is_empty());
        Some(Postmaster {
            start: line(2)?.parse().ok()?,
            port: line(3).and_then(|port| port.parse().ok()),
            socket_directory: line(4).map(str::to_owned),
        })
    }

    /// Whether the server was told to stop: `postmaster.pid` says so in its eighth line.
    ///
    /// Source: `LOCK_FILE_LINE_PM_STATUS` and `PM_STATUS_STOPPING` in `utils/pidfile.h`.
    pub fn server_is_stopping(&self) -> bool {
        // Without the file nobody stops, and nobody waits for us.
        let status = fs::read_to_string(self.path.join("postmaster.pid")).unwrap_or_default();
        status.lines().nth(7).is_some_and(|line| line.trim() == "stopping")
    }
}

/// What the signal files in the working directory say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoverySignals {
    /// The kind of recovery.
    pub mode: RecoveryMode,
    /// Somebody asked for a promotion, and the server has not seen it yet.
    pub promote: bool,
}

impl RecoverySignals {
    /// Looks into the working directory, where PostgreSQL runs `restore_command`. A file that cannot be looked at is
    /// an error: taking it for absent could turn a fault into an end of recovery.
    pub fn read() -> io::Result<Self> {
        // In a directory that was deleted every file looks absent.
        std::env::current_dir().map_err(|e| describe(e, "cannot find", Path::new("the working directory")))?;
        let stands =
            |name: &str| Path::new(name).try_exists().map_err(|e| describe(e, "cannot look at", Path::new(name)));
        Ok(RecoverySignals {
            mode: RecoveryMode::from_signals(stands(RECOVERY_SIGNAL)?, stands(STANDBY_SIGNAL)?),
            promote: stands(PROMOTE_SIGNAL)?,
        })
    }
}

fn describe(error: io::Error, what: &str, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}
