//! A drill begins anew, as the same process with another user or environment: PostgreSQL refuses to run as root, and after a disaster
//! there is nothing but the URL and the credentials.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::args::Global;
use super::drill_verb::DrillArgs;
use super::keys::KEYS;
use super::settings;
use super::sources::{FILE_VARIABLE, Origin, Sources};
use crate::command::drill::DrillKind;
use crate::command::{Failure, FailureKind};

/// A user of the operating system.
struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: PathBuf,
}

/// Whose servers they mostly are.
const USUAL: &str = "postgres";
/// Variables that say how this host reaches the world, not which server it has.
const OF_THE_HOST: [&str; 13] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "TMPDIR",
    "TZ",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "https_proxy",
    "no_proxy",
    "RUST_BACKTRACE",
];
/// Settings that an operator on an empty host would give. Sections, or single settings.
const ON_AN_EMPTY_HOST: [&str; 8] =
    ["repo", "drill", "objectives", "log", "cluster.name", "cluster.bindir", "backup.jobs", "backup.retry"];

/// Comes back where nothing has to change; otherwise only when it cannot.
pub fn begin(args: &DrillArgs, kind: DrillKind, global: &Global, sources: &Sources) -> Result<(), Failure> {
    let is_root = rustix::process::geteuid().is_root();
    if args.begun_anew && is_root {
        return Err(Failure::new(FailureKind::Usage, "PostgreSQL does not run as root")
            .with_hint("`drill.user` names a user that it can run as"));
    }
    if args.begun_anew || (!is_root && kind != DrillKind::Disaster) {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
    let mut command = Command::new(&program);
    match kind {
        DrillKind::Disaster => {
            empty_host(&mut command, args, global, sources);
        }
        DrillKind::Full | DrillKind::Pitr | DrillKind::Dump => {
            command.args(std::env::args_os().skip(1)).arg("--begun-anew");
        }
    }
    let mut who = String::new();
    if is_root {
        let user = user(kind, sources)?;
        command.uid(user.uid).gid(user.gid);
        command.env("HOME", &user.home).env("USER", &user.name).env("LOGNAME", &user.name);
        who = format!(" as `{}`", user.name);
    }
    let error = command.exec();
    let message = format!("`{}` cannot be run{who}: {error}", program.display());
    Err(Failure::new(FailureKind::LocalIo, message)
        .with_hint("the program must lie where that user can read it; `drill.user` names another one"))
}

/// Nothing but what is known after a disaster.
fn empty_host(command: &mut Command, args: &DrillArgs, global: &Global, sources: &Sources) {
    command.args(["drill", "--kind", "disaster", "--begun-anew"]);
    for (flag, path) in [("--sql", &args.sql), ("--html", &args.html)] {
        if let Some(path) = path {
            command.arg(flag).arg(std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        }
    }
    for (flag, given) in [("--keep", args.keep), ("--json", args.json), ("--quiet", global.quiet)] {
        if given {
            command.arg(flag);
        }
    }
    command.env_clear().env(FILE_VARIABLE, "/dev/null");
    for (name, value) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if OF_THE_HOST.contains(&text.as_ref()) || text.starts_with("AWS_") || text.starts_with("SSL_CERT_") {
            command.env(&name, value);
        }
    }
    for key in KEYS {
        let path = key.path();
        let known = ON_AN_EMPTY_HOST.contains(&key.section) || ON_AN_EMPTY_HOST.contains(&path.as_str());
        let given = sources.origin(&path).is_some_and(|origin| *origin != Origin::Default);
        if let Some(value) = sources.get(&path).filter(|_| known && given) {
            command.env(key.variable(), value);
        }
    }
}

fn user(kind: DrillKind, sources: &Sources) -> Result<User, Failure> {
    let users = users();
    let named = |name: &str| users.iter().position(|user| user.name == name);
    let owner = || {
        // After a disaster there is no data directory.
        let pgdata = settings::pgdata(sources).filter(|_| kind != DrillKind::Disaster)?;
        let uid = std::fs::metadata(pgdata).ok()?.uid();
        users.iter().position(|user| user.uid == uid && uid != 0)
    };
    let found = match sources.get("drill.user") {
        Some(name) => named(name).ok_or_else(|| sources.complain("drill.user", "there is no such user"))?,
        None => owner().or_else(|| named(USUAL)).ok_or_else(|| {
            Failure::new(FailureKind::Usage, "PostgreSQL does not run as root, and there is no user `postgres`")
                .with_hint("`drill.user` names a user that it can run as")
        })?,
    };
    users.into_iter().nth(found).ok_or_else(|| Failure::new(FailureKind::Internal, "a user is gone"))
}

fn users() -> Vec<User> {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        Some(User {
            name: (*fields.first()?).to_owned(),
            uid: fields.get(2)?.parse().ok()?,
            gid: fields.get(3)?.parse().ok()?,
            home: fields.get(5).map(PathBuf::from)?,
        })
    };
    text.lines().filter_map(user).collect()
}

/// Makes this process, and all that it starts, give way to others: at the processors, and at disks whose scheduler knows priorities.
pub fn stand_back(nice: i32) {
    if nice == 0 {
        return;
    }
    rustix::process::nice(nice).ok();
    let lowest = ["-c", "2", "-n", "7", "-p"];
    let mut ionice = Command::new(if Path::new("/usr/bin/ionice").exists() { "/usr/bin/ionice" } else { "ionice" });
    ionice.args(lowest).arg(std::process::id().to_string());
    let ended: io::Result<_> = ionice.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !ended.is_ok_and(|status| status.success()) {
        tracing::info!("the priority at the disk could not be lowered: there is no `ionice` that does it");
    }
}
