//! PostgreSQL's own programs: where they are, and how one is told which server is meant without a secret on its command line.
//!
//! Source: "The Connection Service File" in PostgreSQL's documentation of libpq; `parseServiceFile` in `fe-connect.c`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::conninfo::Conninfo;
use super::session::ServerError;
use crate::postgres::PgMajor;

/// A program that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Where.
    pub path: PathBuf,
    /// What `--version` says, like `pg_dump (PostgreSQL) 15.20`.
    pub version: String,
    major: u32,
}

/// Where packages put PostgreSQL's programs: Debian's, and those of the PostgreSQL project for Red Hat's systems.
const PLACES: [(&str, &str); 2] = [("/usr/lib/postgresql/", "/bin"), ("/usr/pgsql-", "/bin")];

/// Finds the program for a server of this version: its own, or else the oldest newer one, for programs refuse newer servers.
/// `given` is the only place that is looked at, if there is one.
pub fn find(program: &str, server: PgMajor, given: Option<&Path>, path: &str) -> Result<Program, ServerError> {
    let places: Vec<PathBuf> = match given {
        Some(given) => vec![given.to_owned()],
        None => {
            let majors = server.get()..=PgMajor::NEWEST.get();
            let packaged =
                majors.flat_map(|major| PLACES.map(|(before, behind)| format!("{before}{major}{behind}").into()));
            packaged.chain(std::env::split_paths(path).filter(|place| place.is_absolute())).collect()
        }
    };
    let found = places.iter().filter_map(|place| version_of(&place.join(program)));
    let fitting = found.filter(|found| found.major >= server.get()).min_by_key(|found| found.major);
    fitting.ok_or_else(|| {
        let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        ServerError(format!("no `{program}` of PostgreSQL {server} or newer is in {}", places.join(", ")))
    })
}

/// Where the programs of exactly this version are: a server starts on no other's files.
pub fn directory(server: PgMajor, given: Option<&Path>, path: &str) -> Result<PathBuf, ServerError> {
    let found = find("postgres", server, given, path)?;
    match found.path.parent() {
        Some(place) if found.major == server.get() => Ok(place.to_owned()),
        _ => {
            Err(ServerError(format!("`postgres` of PostgreSQL {server} is not installed: there is {}", found.version)))
        }
    }
}

fn version_of(path: &Path) -> Option<Program> {
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    let number = version.split(") ").nth(1)?;
    let major = number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    output.status.success().then(|| Program { path: path.to_owned(), version, major })
}

/// How programs reach the server: a service file that nobody else can read. It goes when this is dropped.
pub struct ProgramConnection {
    directory: TempDir,
}

const SERVICE: &str = "pgark";
/// A server that is gone is noticed within two minutes, unless somebody wants it otherwise.
const KEEP_ALIVE: [(&str, &str); 4] =
    [("connect_timeout", "10"), ("keepalives_idle", "60"), ("keepalives_interval", "10"), ("keepalives_count", "6")];
/// Parameters that name where to look for others, or the database, which each call names for itself.
const ELSEWHERE: [&str; 3] = ["service", "servicefile", "dbname"];

impl ProgramConnection {
    /// For the servers that we would connect to ourselves. The file is made below `place`.
    pub fn new(conninfo: &Conninfo, place: &Path) -> Result<Self, ServerError> {
        let cannot = |e: io::Error| ServerError(format!("no connection file can be made: {e}"));
        let directory = tempfile::Builder::new().prefix("pgark-").tempdir_in(place).map_err(cannot)?;
        let text = service_file(&conninfo.parameters)?;
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(directory.path().join(SERVICE));
        file.as_mut()
            .map_err(|e| cannot(io::Error::new(e.kind(), e.to_string())))?
            .write_all(text.as_bytes())
            .map_err(cannot)?;
        Ok(ProgramConnection { directory })
    }

    /// Tells a program where the server is, and that alone.
    pub fn tell<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        // What the file does not name would be taken from the environment: of another server.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("PG") && !name.starts_with("PGARK_")) {
                command.env_remove(name);
            }
        }
        command.env("PGSERVICEFILE", self.directory.path().join(SERVICE))
    }

    /// What names the server, for `--dbname`.
    pub fn service() -> String {
        format!("service={SERVICE}")
    }

    /// What names a database of the server, for `--dbname`.
    pub fn database(name: &str) -> String {
        let quoted = name.replace('\\', "\\\\").replace('\'', "\\'");
        format!("service={SERVICE} dbname='{quoted}'")
    }
}

fn service_file(parameters: &BTreeMap<String, String>) -> Result<String, ServerError> {
    let mut text = format!("[{SERVICE}]\n");
    for (name, value) in
        parameters.iter().filter(|(name, value)| !ELSEWHERE.contains(&name.as_str()) && !value.is_empty())
    {
        // What is around a value in the file counts for nothing, and a line break ends it.
        if value.trim() != value || value.contains(['\n', '\r']) {
            let message = format!(
                "`{name}` begins or ends with a blank, or has a line break: PostgreSQL's programs cannot be told it"
            );
            return Err(ServerError(message));
        }
        text.push_str(&format!("{name}={value}\n"));
    }
    for (name, value) in KEEP_ALIVE.iter().filter(|(name, _)| !parameters.contains_key(*name)) {
        text.push_str(&format!("{name}={value}\n"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_databases_are_named_as_libpq_reads_them() {
        assert_eq!(ProgramConnection::database(r"a 'b' \c"), r"service=pgark dbname='a \'b\' \\c'");
    }

    #[test]
    fn all_that_says_where_the_server_is_goes_into_the_file() {
        let all = [("host", "db1,db2"), ("password", "a=b #c"), ("service", "x"), ("dbname", "y"), ("sslmode", "")];
        let all = all.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let text = service_file(&all.clone().into()).unwrap();
        assert!(text.starts_with("[pgark]\nhost=db1,db2\npassword=a=b #c\nconnect_timeout=10\n"), "{text}");
        assert!(!text.contains("sslmode") && !text.contains("dbname"));
        for odd in ["x ", " x", "a\nb"] {
            assert!(service_file(&[("password".to_owned(), odd.to_owned())].into()).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn the_servers_own_program_is_taken_and_else_a_newer_one() {
        let place = tempfile::tempdir().unwrap();
        let put = |major: &str| {
            use std::os::unix::fs::PermissionsExt;
            let path = place.path().join(major).join("pg_dump");
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, format!("#!/bin/sh\necho 'pg_dump (PostgreSQL) {major}.3 (Debian {major}.3-1)'\n"))
                .unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            place.path().join(major)
        };
        let path = std::env::join_paths(["13", "18", "17"].map(put)).unwrap();
        let path = path.to_str().unwrap();
        let of = |major: u32, given: Option<&Path>| {
            find("pg_dump", major.try_into().unwrap(), given, path).map(|found| found.major).map_err(|e| e.to_string())
        };
        // Those of the system may be there, too.
        assert!(of(16, None).unwrap() <= 17);
        assert_eq!(of(18, None), Ok(18));
        assert_eq!(of(15, Some(&place.path().join("18"))), Ok(18));
        assert!(of(15, Some(&place.path().join("13"))).unwrap_err().contains("15 or newer"));
        assert!(of(15, Some(&place.path().join("none"))).is_err());
    }
}
