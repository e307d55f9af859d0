//! The half of `check` that asks PostgreSQL: its settings and its archiver.

use std::path::Path;

use super::archive_command::judge;
use super::check::{Check, Finding, Findings, Level};
use super::{check_archiver, check_receiver, check_switch};
use crate::disk::DataDir;
use crate::postgres::{ClusterIdent, PgMajor};
use crate::repo::{RepoError, Repository};
use crate::server::Session;
use crate::server::session::ServerFacts;

/// Adds what is found about the server, if it can be reached.
pub(super) async fn ask(check: &Check, repository: Option<&Repository>, findings: &Findings) {
    let hint = "run check where the server runs, as its user, or give `--conninfo`";
    let unknown = |error: String, hint: &str| Finding::not_ok("server", Level::Unknown, error, hint);
    let session = match Session::connect(&check.conninfo).await {
        Ok(session) => session,
        Err(error) => return findings.add(unknown(error.message, error.hint.as_deref().unwrap_or(hint))),
    };
    let facts = match session.facts(&check.slot).await {
        Ok(facts) => facts,
        Err(error) => return findings.add(unknown(error.to_string(), hint)),
    };
    findings.add(server(&facts));
    if let Some(pgdata) = &check.pgdata {
        findings.add(data_directory(pgdata, &facts, session.data_directory().await));
    }
    findings.add(archive_mode(&facts));
    findings.add(wal_level(&facts));
    if !facts.is_only_streamed() {
        findings.add(archive_command(check, &facts).await);
        findings.add(check_archiver::judge(&facts));
    }
    check_receiver::judge(&facts.receiving).into_iter().for_each(|finding| findings.add(finding));
    if let Some(repository) = repository {
        findings.add(cluster(&facts, repository).await);
        findings.add(check_switch::ask(check, &session, &facts, repository).await);
    }
}

fn server(facts: &ServerFacts) -> Finding {
    let (major, minor) = (facts.version / 10_000, facts.version % 10_000);
    match PgMajor::try_from(major) {
        Ok(_) if major >= 14 => Finding::ok("server", format!("PostgreSQL {major}.{minor} answers")),
        _ => Finding::not_ok(
            "server",
            Level::Fail,
            format!("PostgreSQL {major}.{minor} is not supported"),
            "pgark is made and tested for PostgreSQL 14 to 18",
        ),
    }
}

/// What is set must be what the server runs. Blocking.
fn data_directory(pgdata: &Path, facts: &ServerFacts, servers: Option<String>) -> Finding {
    const CHECK: &str = "pgdata";
    let shown = pgdata.display();
    let hint = "set `pgdata` under `[cluster]`, or PGDATA, to the data directory of this server, or leave it away";
    let found = DataDir::at(pgdata.to_owned()).and_then(|found| found.map(|found| found.facts()).transpose());
    let own = match found {
        Ok(Some(own)) => own,
        Ok(None) => {
            return Finding::not_ok(CHECK, Level::Fail, format!("`{shown}` is no data directory"), hint);
        }
        // The directory is the server's user's alone: others cannot look.
        Err(error) => return Finding::ok(CHECK, format!("`{shown}` was not looked at: {error}")),
    };
    if own.ident.system_id != facts.system_id {
        let message = format!("`{shown}` holds another cluster ({}) than the server runs", own.ident);
        return Finding::not_ok(CHECK, Level::Fail, message, hint);
    }
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    match servers.map(|servers| real(Path::new(&servers)) == real(pgdata)) {
        Some(false) => Finding::not_ok(
            CHECK,
            Level::Warning,
            format!("`{shown}` holds the same cluster, but the server runs in another directory"),
            hint,
        ),
        _ => Finding::ok(CHECK, format!("`{shown}` holds the cluster that the server runs")),
    }
}

fn archive_mode(facts: &ServerFacts) -> Finding {
    let message = format!("archive_mode is `{}`", facts.archive_mode);
    match facts.archive_mode.as_str() {
        "on" | "always" => Finding::ok("archive_mode", message),
        _ if facts.is_only_streamed() => Finding::ok("archive_mode", format!("{message}: wal-receive stores the WAL")),
        _ => Finding::not_ok("archive_mode", Level::Fail, message, "set `archive_mode = on` and restart the server"),
    }
}

fn wal_level(facts: &ServerFacts) -> Finding {
    let message = format!("wal_level is `{}`", facts.wal_level);
    match facts.wal_level.as_str() {
        "replica" | "logical" => Finding::ok("wal_level", message),
        _ => Finding::not_ok("wal_level", Level::Fail, message, "set `wal_level = replica` and restart the server"),
    }
}

async fn archive_command(check: &Check, facts: &ServerFacts) -> Finding {
    const CHECK: &str = "archive_command";
    if !facts.archive_library.is_empty() {
        let message = "archive_library is set: PostgreSQL archives by it, and does not run archive_command";
        return Finding::not_ok(CHECK, Level::Fail, message, "set `archive_library = ''` and reload");
    }
    let (text, binary) = (facts.archive_command.clone(), check.binary.clone());
    let (own, read) = (check.repository.clone(), check.read_words);
    let judged = tokio::task::spawn_blocking(move || judge(&text, binary.as_deref(), &own, read)).await;
    judged.unwrap_or_else(|_| {
        Finding::not_ok(CHECK, Level::Unknown, "the thread that reads it failed", "run check again")
    })
}

async fn cluster(facts: &ServerFacts, repository: &Repository) -> Finding {
    const CHECK: &str = "cluster";
    let Ok(major) = PgMajor::try_from(facts.version / 10_000) else {
        return Finding::not_ok(CHECK, Level::Unknown, "the server's version is not known", "see `server`");
    };
    let ident = ClusterIdent { system_id: facts.system_id, major };
    match repository.find_generation(ident).await {
        Ok(generation) => Finding::ok(CHECK, format!("this server is generation {generation} of the repository")),
        // Where data lies without an identity the first push is refused.
        Err(RepoError::NoIdentity { .. }) => match repository.refuse_lost_identity().await {
            Ok(()) => Finding::ok(CHECK, "this server will begin generation 1"),
            Err(error) => Finding::failed(CHECK, error.into()),
        },
        Err(error) => Finding::failed(CHECK, error.into()),
    }
}
