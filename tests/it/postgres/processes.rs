//! Finds and kills the processes of a server through /proc: those that descend from the postmaster and those whose
//! working directory is the data directory (the archiver's and the startup process's commands among them).

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::happens_within;

const GONE_WITHIN: Duration = Duration::from_secs(20);

struct Process {
    pid: i32,
    parent: i32,
    zombie: bool,
    directory: Option<PathBuf>,
}

/// Sends a signal; a process that is gone already is fine.
pub fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// Stops the postmaster so that it starts nothing more, then kills it and everything below it. The caller reaps it.
pub fn kill_tree(postmaster: i32, data_directory: &Path) {
    send(postmaster, Signal::STOP);
    let mut victims = descendants(postmaster);
    victims.extend(inhabitants(data_directory));
    send(postmaster, Signal::KILL);
    victims.iter().for_each(|&pid| send(pid, Signal::KILL));
    let gone = happens_within(GONE_WITHIN, || {
        let alive: BTreeSet<i32> = all().iter().filter(|process| !process.zombie).map(|process| process.pid).collect();
        victims.is_disjoint(&alive)
    });
    assert!(gone, "processes {victims:?} of the server survived SIGKILL for {GONE_WITHIN:?}");
    kill_all_in(data_directory);
}

/// Kills every process that works in the directory or below it, and waits until none is left.
pub fn kill_all_in(directory: &Path) {
    let gone = happens_within(GONE_WITHIN, || {
        let left = inhabitants(directory);
        left.iter().for_each(|&pid| send(pid, Signal::KILL));
        left.is_empty()
    });
    assert!(gone, "processes in `{}` survived SIGKILL for {GONE_WITHIN:?}", directory.display());
}

/// The living processes that work in the directory or below it.
pub fn inhabitants(directory: &Path) -> BTreeSet<i32> {
    let me = std::process::id() as i32;
    all()
        .into_iter()
        .filter(|process| process.pid != me && !process.zombie)
        .filter(|process| process.directory.as_ref().is_some_and(|at| at.starts_with(directory)))
        .map(|process| process.pid)
        .collect()
}

fn descendants(ancestor: i32) -> BTreeSet<i32> {
    let processes = all();
    let mut found = BTreeSet::from([ancestor]);
    loop {
        let more: Vec<i32> = processes
            .iter()
            .filter(|process| found.contains(&process.parent) && !found.contains(&process.pid))
            .map(|process| process.pid)
            .collect();
        if more.is_empty() {
            found.remove(&ancestor);
            return found;
        }
        found.extend(more);
    }
}

fn all() -> Vec<Process> {
    fs::read_dir("/proc")
        .expect("read /proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(process)
        .collect()
}

fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may contain anything; state and parent follow the last bracket.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let directory = fs::read_link(format!("/proc/{pid}/cwd")).ok();
    Some(Process { pid, parent, zombie, directory })
}
