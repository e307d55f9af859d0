//! What is asked of a server that a drill has restored: its structure, every row, the operator's assertions, its pages.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::process::{ChildStdout, Command};
use std::time::Duration;

use jiff::Timestamp;

use super::drill_report::Reason;
use super::drill_sql::Assertion;
use super::dump_program::Running;
use super::failure::{Failure, FailureKind};
use super::forecast::about;
use crate::server::scratch::ScratchSettings;
use crate::server::scratch_session::Answer;

/// Lines of a program that are repeated.
const LINES: usize = 5;

/// A restored server, and who may do everything there.
pub(super) struct Restored<'a> {
    pub(super) server: &'a ScratchSettings,
    pub(super) user: &'a str,
    pub(super) databases: &'a [String],
}

/// Whether there is such a program beside the server's own.
pub(super) fn has_program(server: &ScratchSettings, name: &str) -> bool {
    server.programs.join(name).is_file()
}

/// `pg_amcheck` on all tables and B-trees. `deep` looks up each row in each index, too.
pub(super) async fn structure(restored: &Restored<'_>, jobs: usize, deep: bool) -> Result<String, Reason> {
    let mut command = restored.server.client("pg_amcheck", restored.user);
    command.args(["--all", "--install-missing", "--no-password", "--maintenance-db=postgres"]);
    command.arg(format!("--jobs={jobs}"));
    if deep {
        command.args(["--heapallindexed", "--parent-check", "--rootdescend"]);
    }
    let (ended, said) = watch(command, "pg_amcheck").await?;
    match ended {
        Ok(()) => {
            Ok(format!("pg_amcheck found nothing wrong{}", if deep { ", every row is in its indexes" } else { "" }))
        }
        Err(failure) if said.is_empty() => Err(failure.into()),
        Err(_) => Err(Reason::failed("corrupt", format!("pg_amcheck: {}", said.join("; "))).with_hint(
            "`pgark verify` tells whether the objects are as they were written: if so, the original has it, too",
        )),
    }
}

/// `pg_dump` of all databases to nowhere: reads every row of every table.
pub(super) async fn read_all(restored: &Restored<'_>) -> Result<String, Reason> {
    for database in restored.databases {
        let mut command = restored.server.client("pg_dump", restored.user);
        command.args(["--format=plain", "--no-password", "--file=/dev/null"]).env("PGDATABASE", database);
        let (ended, _) = watch(command, &format!("pg_dump of `{database}`")).await?;
        ended.map_err(|failure| Reason::failed("unreadable", failure.message))?;
    }
    let count = restored.databases.len();
    Ok(format!("pg_dump has read all tables of {count} database{}", if count == 1 { "" } else { "s" }))
}

/// `pg_checksums` on the files of a server that was stopped.
pub(super) async fn pages(server: &ScratchSettings) -> Result<String, Reason> {
    let mut command = server.program("pg_checksums");
    command.arg("--check").arg("-D").arg(server.data());
    let (ended, said) = watch(command, "pg_checksums").await?;
    match ended {
        Ok(()) => {
            let blocks = said.iter().find_map(|line| line.strip_prefix("Blocks scanned:"));
            Ok(format!("pg_checksums: all of {} pages are right", blocks.map_or("the", str::trim)))
        }
        Err(failure) => Err(Reason::failed("corrupt", failure.message)),
    }
}

/// Runs an assertion. Ages count from `now`.
pub(super) async fn holds(
    restored: &Restored<'_>,
    assertion: &Assertion,
    now: Timestamp,
    patience: Duration,
) -> Result<String, Reason> {
    let Assertion { name, database, sql, max_age, line } = assertion;
    let odd = |why: String| Reason::failed("assertion", format!("`{name}` (line {line}, database `{database}`) {why}"));
    let session =
        restored.server.session(restored.user, database).await.map_err(|e| odd(format!("cannot be run: {e}")))?;
    let answer = session.assertion(sql, patience).await.map_err(|e| odd(format!("cannot be run: {e}")))?;
    match (answer, max_age) {
        (Answer::Boolean(true), None) => Ok("is true".to_owned()),
        (Answer::Boolean(false), None) => Err(odd("is false".to_owned())),
        (Answer::Moment(at), Some(most)) => {
            let age = now.duration_since(at).as_secs_f64();
            let most = most.as_secs_f64();
            match age <= most {
                true => Ok(format!("{at} is {} old, at most {}", about(age.max(0.0)), about(most))),
                false => {
                    let why = format!("is stale: {at} is {} old, at most {} is allowed", about(age), about(most));
                    Err(Reason { word: "stale", ..odd(why) })
                }
            }
        }
        (Answer::Null, _) => Err(odd("is NULL".to_owned())),
        (Answer::Odd(what), _) => Err(odd(format!("gave {what}"))),
        (Answer::Boolean(_), Some(_)) => Err(odd("gave a boolean; with `max_age` it must give a time".to_owned())),
        (Answer::Moment(_), None) => Err(odd("gave a time; without `max_age` it must give a boolean".to_owned())),
    }
}

/// Runs a program to its end: how it ended, and the first lines that it wrote.
pub(super) async fn watch(command: Command, what: &str) -> Result<(Result<(), Failure>, Vec<String>), Reason> {
    let (running, out) = Running::start(command, what.to_owned())?;
    let listening = tokio::task::spawn_blocking(move || first_lines(out));
    let ended = running.wait().await;
    let said = listening.await.map_err(|_| Failure::new(FailureKind::Internal, "a thread failed"))?;
    Ok((ended, said))
}

fn first_lines(out: ChildStdout) -> Vec<String> {
    let mut lines = VecDeque::new();
    for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
        if lines.len() < LINES {
            lines.push_back(String::from_utf8_lossy(&line).trim().to_owned());
        }
    }
    lines.into()
}
