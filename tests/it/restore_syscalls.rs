//! In which order a restore changes things on disk, by its system calls: what a power cut leaves can then never be started.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::backups::{as_servers_user, restore_call, take_backup};
use crate::pitr::archiving;
use crate::postgres::{Account, Installation, Scratch, StopMode};
use crate::program::finish;
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

/// What a call does to the directory that is restored.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Act {
    /// Something is written, made, removed or renamed there: by the call's whole line.
    Change(String),
    /// This file or directory is made durable.
    Sync(String),
}

/// Calls in the order in which they began, of all threads.
fn acts(trace: &str, root: &str) -> Vec<Act> {
    let calls = trace.lines().filter_map(|line| line.split_once(' ').map(|(_, call)| call.trim_start()));
    let here = |call: &str| call.contains(&format!("{root}/"));
    let act = |call: &str| {
        let name = call.split('(').next()?;
        match name {
            "fsync" | "fdatasync" => {
                let path = call.split_once('<')?.1.split_once('>')?.0;
                Some(Act::Sync(path.strip_prefix(root)?.trim_start_matches('/').to_owned()))
            }
            "openat" | "open"
                if !["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"].iter().any(|flag| call.contains(flag)) =>
            {
                None
            }
            _ if here(call) && !call.contains(" resumed>") => Some(Act::Change(call.to_owned())),
            _ => None,
        }
    };
    calls.filter_map(act).collect()
}

/// Where there is no strace, or no right to use it, nobody can look.
fn can_trace() -> bool {
    let tried = Account::of_servers().run(Command::new("strace").args(["-o", "/dev/null", "true"])).status();
    tried.is_ok_and(|status| status.success())
}

#[test]
fn the_old_pg_control_is_gone_for_good_before_anything_else_changes() {
    if !can_trace() {
        eprintln!("not tested: there is no strace that could be used");
        return;
    }
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    primary.execute("CREATE TABLE t AS SELECT generate_series(1, 10000) AS i");
    take_backup(&repository, &primary, &[]);
    primary.execute("UPDATE t SET i = i + 1");
    primary.archive_everything(A_MINUTE);
    primary.stop(StopMode::Fast);
    let home = Scratch::new("trace");
    Account::of_servers().own(home.path());
    let fresh = home.path().join("fresh");
    for (to, words) in [(primary.data_dir(), &["--delta"][..]), (&fresh, &[])] {
        let log = home.path().join("trace");
        let call = restore_call(&repository, to, words).command();
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-s", "16", "-e"]).arg(
            "trace=open,openat,creat,write,pwrite64,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,rmdir,symlink,\
             symlinkat,link,linkat,truncate,ftruncate,fsync,fdatasync",
        );
        command.arg("-o").arg(&log).arg(call.get_program()).args(call.get_args());
        command.envs(call.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(Account::of_servers().run(&mut command).spawn().unwrap()).code(0);
        let root = std::fs::canonicalize(to).unwrap().display().to_string();
        let acts = acts(&std::fs::read_to_string(&log).unwrap(), &root);
        let at = |wanted: &Act| acts.iter().position(|act| act == wanted).unwrap_or_else(|| panic!("no {wanted:?}"));
        let change = |what: &str, name: &str| {
            let path = format!("{root}/{name}\"");
            let found = |act: &Act| matches!(act, Act::Change(call) if call.starts_with(what) && call.contains(&path));
            acts.iter().position(found).unwrap_or_else(|| panic!("no {what} of {name}"))
        };

        if to == primary.data_dir() {
            let removed = change("unlink", "global/pg_control");
            let durable = removed + acts[removed..].iter().position(|act| *act == Act::Sync("global".into())).unwrap();
            let early = acts[..durable].iter().filter(|act| {
                let harmless = [".pgark-restoring", "global/pg_control\"", "global/.pgark-pg_control\""];
                matches!(act, Act::Change(call) if !harmless.iter().any(|name| call.contains(&format!("{root}/{name}"))))
            });
            assert_eq!(early.collect::<Vec<_>>(), [] as [&Act; 0]);
            assert!(at(&Act::Sync(String::new())) > removed, "the directory itself");
        }

        // And at the end: all is durable before pg_control has its name, and that is before the mark goes.
        let named = change("rename", "global/.pgark-pg_control");
        let late = acts[named + 1..].iter().filter(|act| matches!(act, Act::Change(_))).collect::<Vec<_>>();
        let removal = format!("unlink(\"{root}/.pgark-restoring\")");
        assert!(matches!(late[..], [Act::Change(call)] if call.starts_with(&removal)), "{late:?}");
        let unmarked = change("unlink", ".pgark-restoring");
        assert!(acts[named..unmarked].contains(&Act::Sync("global".into())), "{:?}", &acts[named..]);
        let mut files = Vec::new();
        below(to, to, &mut files);
        assert!(files.len() > 900, "{}", files.len());
        for file in files {
            // Some get their names only when they are durable.
            let file = match &file[..] {
                "global/pg_control" => "global/.pgark-pg_control".to_owned(),
                "recovery.signal" | "postgresql.auto.conf" => format!(".pgark-new-{file}"),
                _ => file,
            };
            assert!(
                acts[..named].contains(&Act::Sync(file.clone())),
                "`{file}` is not synced before pg_control has its name"
            );
        }
    }
    assert_eq!(as_servers_user(&restore_call(&repository, &fresh, &[])).code, 2);
}

/// All files and directories there, by their paths below `root`. The server's own notes of a start are none of a restore's.
fn below(root: &std::path::Path, place: &std::path::Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(place).unwrap() {
        let path = entry.unwrap().path();
        found.push(path.strip_prefix(root).unwrap().display().to_string());
        if path.is_dir() && !path.is_symlink() {
            below(root, &path, found);
        }
    }
}
