//! Finds the programs of PostgreSQL majors on this machine: those that the variable `PGARK_TEST_PG_<major>` names (a
//! prefix or its `bin`), the system's under /usr/lib/postgresql, or those that tests/setup/install-postgres-matrix.sh
//! put under target/postgres. A tree that the servers' user may not read is copied to the workplace.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Seek},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use super::{account::Account, happens_within, workplace};

/// The oldest and the newest major that this project knows.
const OLDEST: u32 = 14;
const NEWEST: u32 = 18;
const SYSTEM: &str = "/usr/lib/postgresql";
const RUNS_WITHIN: Duration = Duration::from_secs(180);

/// The programs of one major. Only `initdb`, `pg_ctl` and `postgres` are sure to be there.
#[derive(Debug)]
pub struct Installation {
    pub major: u32,
    /// As `postgres --version` says it, such as `15.18`.
    pub version: String,
    pub bin: PathBuf,
    library_path: Option<PathBuf>,
    pub pg_basebackup: Option<PathBuf>,
    pub pg_waldump: Option<PathBuf>,
    pub pg_amcheck: Option<PathBuf>,
    pub pg_checksums: Option<PathBuf>,
    pub pg_receivewal: Option<PathBuf>,
    pub pg_verifybackup: Option<PathBuf>,
    pub psql: Option<PathBuf>,
}

/// A program together with the installation whose environment it needs.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    pub path: &'a Path,
    installation: &'a Installation,
}

impl Installation {
    /// None when the major is not on this machine; a panic when it is but does not run.
    pub fn find(major: u32) -> Option<&'static Installation> {
        static FOUND: Mutex<BTreeMap<u32, Option<&'static Installation>>> = Mutex::new(BTreeMap::new());
        // A panic below is this major's own and will come again: the map is never half changed.
        let mut found = FOUND.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *found.entry(major).or_insert_with(|| Some(Box::leak(Box::new(probe(major, &locate(major)?)))))
    }

    /// The majors that `PGARK_TEST_MAJORS` names, or the system's newest; a missing one is a panic.
    pub fn all_wanted() -> Vec<&'static Installation> {
        let wanted = match std::env::var("PGARK_TEST_MAJORS") {
            Ok(majors) if !majors.trim().is_empty() => majors
                .split([' ', ','])
                .filter(|word| !word.is_empty())
                .map(|word| word.parse().unwrap_or_else(|_| panic!("`{word}` in PGARK_TEST_MAJORS is no major")))
                .collect(),
            _ => vec![newest_of_system()],
        };
        let find = |major| {
            Installation::find(major).unwrap_or_else(|| {
                panic!(
                    "no PostgreSQL {major}: looked at $PGARK_TEST_PG_{major}, {SYSTEM} and {}\n\
                     hint: tests/setup/install-postgres-matrix.sh {major}",
                    matrix(major).display()
                )
            })
        };
        wanted.into_iter().map(find).collect()
    }

    /// The newest of the wanted majors, for tests that need no particular one.
    pub fn preferred() -> &'static Installation {
        Installation::all_wanted().into_iter().max_by_key(|found| found.major).expect("at least one major is wanted")
    }

    /// A program by its name, if this installation has it.
    pub fn program(&self, name: &str) -> Option<Program<'_>> {
        let path = match name {
            "pg_basebackup" => self.pg_basebackup.as_deref(),
            "pg_waldump" => self.pg_waldump.as_deref(),
            "pg_amcheck" => self.pg_amcheck.as_deref(),
            "pg_checksums" => self.pg_checksums.as_deref(),
            "pg_receivewal" => self.pg_receivewal.as_deref(),
            "pg_verifybackup" => self.pg_verifybackup.as_deref(),
            "psql" => self.psql.as_deref(),
            other => panic!("`{other}` is not among the programs that tests ask for"),
        };
        path.map(|path| Program { path, installation: self })
    }

    /// `pg_basebackup` of this major or, as it works with older servers too, of the next newer one that has it.
    pub fn basebackup_program(&self) -> Program<'_> {
        let newer = (self.major + 1..=NEWEST).filter_map(Installation::find);
        self.program("pg_basebackup")
            .or_else(|| newer.filter_map(|found| found.program("pg_basebackup")).next())
            .unwrap_or_else(|| panic!("no `pg_basebackup` of PostgreSQL {} or newer is installed", self.major))
    }

    /// `pg_verifybackup` of this major or, as it reads older manifests too, of the next newer one that has it. Since 17 a manifest
    /// names the cluster, and the program reads `pg_control`: then no other major's will do.
    pub fn verifybackup_program(&self) -> Program<'_> {
        let newer = self.major + 1..=if self.major < 17 { NEWEST } else { self.major };
        self.program("pg_verifybackup")
            .or_else(|| {
                newer.filter_map(Installation::find).filter_map(|found| found.program("pg_verifybackup")).next()
            })
            .unwrap_or_else(|| panic!("no `pg_verifybackup` for PostgreSQL {} is installed", self.major))
    }

    /// `pg_checksums` of this major, or of another with the same version of `pg_control`.
    pub fn checksums_program(&self) -> Program<'_> {
        // `PG_CONTROL_VERSION` is 1300 from 13 to 16, and another in each later one.
        let alike = (OLDEST..=16).filter(|_| self.major <= 16).rev();
        self.program("pg_checksums")
            .or_else(|| alike.filter_map(Installation::find).filter_map(|found| found.program("pg_checksums")).next())
            .unwrap_or_else(|| panic!("no `pg_checksums` for PostgreSQL {} is installed", self.major))
    }

    /// The installation whose `pg_dump` and `pg_restore` work with servers of this one: itself, or the next newer one that has them.
    pub fn with_dump_programs(&'static self) -> &'static Installation {
        let has_them = |found: &&'static Installation| found.bin.join("pg_dump").is_file();
        let newer = (self.major + 1..=NEWEST).filter_map(Installation::find);
        Some(self).into_iter().chain(newer).find(has_them).expect("an installation with pg_dump")
    }

    /// What pgark needs in its environment to run this one's programs.
    pub fn env_of_programs(&self) -> Vec<(String, String)> {
        let mut env = vec![("PGARK_CLUSTER__BINDIR".to_owned(), self.bin.display().to_string())];
        env.extend(self.library_path.iter().map(|path| ("LD_LIBRARY_PATH".to_owned(), path.display().to_string())));
        env
    }

    /// A program of the installation, such as `initdb`, with the environment of [`Program::command`].
    pub fn command(&self, name: &str) -> Command {
        Program { path: &self.bin.join(name), installation: self }.command()
    }

    fn environment(&self, command: &mut Command) {
        command.env_clear();
        command.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", self.bin.display()));
        command.env("LANG", "C.UTF-8").env("TZ", "UTC").env("HOME", workplace::directory());
        if let Some(library_path) = &self.library_path {
            command.env("LD_LIBRARY_PATH", library_path);
        }
    }
}

impl Program<'_> {
    pub fn major(&self) -> u32 {
        self.installation.major
    }

    /// Runs as the servers' user, in the workplace, with nothing in its environment but what PostgreSQL needs.
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.path);
        self.installation.environment(&mut command);
        command.current_dir(workplace::directory()).stdin(Stdio::null());
        Account::of_servers().run(&mut command);
        command
    }
}

/// Runs a program to its end, with a deadline; what it said is the error when it fails.
pub fn run(command: &mut Command) -> Result<String, String> {
    let mut said = tempfile::tempfile().map_err(|error| error.to_string())?;
    let output = || said.try_clone().map(Stdio::from).map_err(|error| error.to_string());
    command.stdin(Stdio::null()).stdout(output()?).stderr(output()?);
    let mut child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
    let mut status = None;
    happens_within(RUNS_WITHIN, || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let mut text = Vec::new();
    said.rewind().and_then(|()| said.read_to_end(&mut text)).map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&text).into_owned();
    match status {
        Some(status) if status.success() => Ok(text),
        Some(status) => Err(format!("{command:?}: {status}\n{text}")),
        None => Err(format!("{command:?}: killed, not done after {RUNS_WITHIN:?}\n{text}")),
    }
}

fn matrix(major: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/postgres/{major}"))
}

/// The directory that holds `bin`.
fn locate(major: u32) -> Option<PathBuf> {
    let variable = format!("PGARK_TEST_PG_{major}");
    if let Some(named) = std::env::var_os(&variable) {
        let named = PathBuf::from(named);
        let prefix = if named.join("postgres").is_file() { named.join("..") } else { named.clone() };
        assert!(prefix.join("bin/postgres").is_file(), "{variable}: no `postgres` in `{}`", named.display());
        return Some(prefix);
    }
    let places = [Path::new(SYSTEM).join(major.to_string()), matrix(major)];
    places.into_iter().find(|prefix| prefix.join("bin/postgres").is_file())
}

fn newest_of_system() -> u32 {
    fs::read_dir(SYSTEM)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|major| *major >= OLDEST && Path::new(SYSTEM).join(format!("{major}/bin/postgres")).is_file())
        .max()
        .unwrap_or_else(|| panic!("no PostgreSQL under {SYSTEM}\nhint: tests/setup/install-postgres.sh"))
}

fn probe(major: u32, prefix: &Path) -> Installation {
    let attempt = |prefix: &Path| version_of(prefix, None).or_else(|_| version_of(prefix, Some(&prefix.join("lib"))));
    attempt(prefix)
        .or_else(|_| attempt(&readable_copy(major, prefix)))
        .and_then(|found| if found.major == major { Ok(found) } else { Err(format!("it is {}", found.version)) })
        .unwrap_or_else(|error| panic!("PostgreSQL {major} in `{}` does not work: {error}", prefix.display()))
}

fn version_of(prefix: &Path, library_path: Option<&Path>) -> Result<Installation, String> {
    let bin = prefix.join("bin").canonicalize().map_err(|error| error.to_string())?;
    let optional = |name: &str| Some(bin.join(name)).filter(|path| path.is_file());
    let mut found = Installation {
        major: 0,
        version: String::new(),
        library_path: library_path.map(Path::to_owned),
        pg_basebackup: optional("pg_basebackup"),
        pg_waldump: optional("pg_waldump"),
        pg_amcheck: optional("pg_amcheck"),
        pg_checksums: optional("pg_checksums"),
        pg_receivewal: optional("pg_receivewal"),
        pg_verifybackup: optional("pg_verifybackup"),
        psql: optional("psql"),
        bin,
    };
    run(found.command("initdb").arg("--version"))?;
    let said = run(found.command("postgres").arg("--version"))?;
    // `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`
    found.version = said.split_whitespace().nth(2).unwrap_or_default().to_owned();
    let major = found.version.split('.').next().and_then(|major| major.parse().ok());
    found.major = major.ok_or_else(|| format!("`{said}` names no version"))?;
    Ok(found)
}

/// The whole tree, because the programs find their libraries and their share directory relative to themselves.
fn readable_copy(major: u32, prefix: &Path) -> PathBuf {
    let copy = workplace::directory().join(format!("postgres{major}"));
    let mut copying = Command::new("cp");
    copying.arg("-a").arg(prefix.canonicalize().expect("the prefix exists")).arg(&copy);
    run(&mut copying).unwrap_or_else(|error| panic!("copy PostgreSQL {major}: {error}"));
    run(Command::new("chmod").arg("-R").arg("a+rX").arg(&copy)).unwrap_or_else(|error| panic!("{error}"));
    copy
}
