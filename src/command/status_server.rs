//! The part of `status` about the server: whether it answers, is the right one, and archives.

use std::time::Duration;

use serde::Serialize;

use super::check::{Finding, Level};
use super::{check_archiver, check_receiver};
use crate::postgres::{ClusterIdent, Lsn, PgMajor};
use crate::server::receivers::Receiving;
use crate::server::session::ServerFacts;
use crate::server::{Conninfo, Session};

/// What the server says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum ServerStatus {
    /// It answers.
    Reachable {
        /// `archive_mode`
        archive_mode: String,
        /// `archive_timeout`, in seconds.
        archive_timeout: i64,
        /// Whether it is a standby.
        in_recovery: bool,
        /// The file whose archiving fails.
        failing: Option<String>,
        /// What fails or does not get on, in words.
        trouble: Option<String>,
        /// Failures since its statistics were reset.
        failed_count: i64,
        /// Who streams its WAL.
        receiver: Option<ReceiverStatus>,
        /// How far its clock is ahead of this machine's.
        clock_ahead_seconds: Option<f64>,
    },
    /// It does not.
    Unreachable {
        /// Why.
        reason: String,
    },
}

/// A receiver of pgark, or its slot, as the server sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReceiverStatus {
    /// What it has reported as durable; `None`: it is away, or we may not know.
    pub durable: Option<Lsn>,
    /// Bytes behind the end of the server's WAL.
    pub behind_bytes: Option<i64>,
    /// Bytes of WAL that its slot makes the server keep.
    pub kept_bytes: Option<i64>,
    /// What is wrong, in words.
    pub trouble: Option<String>,
}

fn receiver_status(receiving: &Receiving) -> Option<ReceiverStatus> {
    let there = receiving.durable.is_some() || receiving.slot.is_some();
    there.then(|| ReceiverStatus {
        durable: receiving.durable,
        behind_bytes: receiving.behind,
        kept_bytes: receiving.slot.as_ref().and_then(|slot| slot.kept),
        trouble: check_receiver::trouble(receiving).map(|finding| finding.message),
    })
}

/// The server is a side matter here.
const SERVER_PATIENCE: Duration = Duration::from_secs(3);

pub(super) async fn ask_server(conninfo: Option<&Conninfo>, slot: &str) -> Option<Result<ServerFacts, String>> {
    let asking = async {
        let session = Session::connect(conninfo?).await.map_err(|e| e.to_string());
        match session {
            Ok(session) => Some(session.facts(slot).await.map_err(|e| e.to_string())),
            Err(error) => Some(Err(error)),
        }
    };
    let late = || Some(Err(format!("PostgreSQL gave no answer within {} s", SERVER_PATIENCE.as_secs())));
    tokio::time::timeout(SERVER_PATIENCE, asking).await.unwrap_or_else(|_| late())
}

pub(super) fn about_server(facts: &ServerFacts, ident: ClusterIdent) -> Vec<Finding> {
    let theirs = PgMajor::try_from(facts.version / 10_000).ok();
    let theirs = theirs.map(|major| ClusterIdent { system_id: facts.system_id, major });
    if let Some(theirs) = theirs.filter(|theirs| *theirs != ident) {
        let message =
            format!("the server that answers is another cluster: {theirs}; the newest generation has {ident}");
        let hint = "give `--conninfo` of the right server, or `--no-server`";
        return vec![Finding::not_ok("server", Level::Warning, message, hint)];
    }
    let receiver = check_receiver::trouble(&facts.receiving);
    if facts.is_only_streamed() {
        return receiver.into_iter().collect();
    }
    if facts.archive_mode == "off" && !facts.in_recovery {
        let hint = "set `archive_mode = on` and restart the server, or let `pgark wal-receive` stream";
        let message = "the server does not archive: archive_mode is `off`";
        let archiver = Finding::not_ok("archiver", Level::Fail, message, hint);
        return [archiver].into_iter().chain(receiver).collect();
    }
    check_archiver::trouble(facts).into_iter().chain(receiver).collect()
}

pub(super) fn server_status(facts: Result<ServerFacts, String>) -> ServerStatus {
    match facts {
        Err(reason) => ServerStatus::Unreachable { reason },
        Ok(facts) => ServerStatus::Reachable {
            trouble: check_archiver::trouble(&facts).map(|finding| finding.message),
            archive_mode: facts.archive_mode,
            archive_timeout: facts.archive_timeout,
            in_recovery: facts.in_recovery,
            failing: facts.failing,
            failed_count: facts.failed_count,
            receiver: receiver_status(&facts.receiving),
            clock_ahead_seconds: facts.clock_ahead,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::check_archiver::tests::facts;
    use crate::postgres::SystemId;

    #[test]
    fn the_archiver_is_judged_where_it_should_work() {
        // Neither a timeout nor anything archived yet.
        let facts = ServerFacts { archive_timeout: 0, last_archived: None, writing: None, ..facts() };
        let ident = ClusterIdent { system_id: SystemId(1), major: 15.try_into().unwrap() };
        let levels = |change: fn(&mut ServerFacts)| {
            let mut facts = facts.clone();
            change(&mut facts);
            about_server(&facts, ident).iter().map(|finding| (finding.check, finding.level)).collect::<Vec<_>>()
        };
        // What cannot be told is no finding here.
        assert_eq!(levels(|_| {}), []);
        assert_eq!(levels(|facts| facts.system_id = SystemId(2)), [("server", Level::Warning)]);
        assert_eq!(levels(|facts| facts.archive_mode = "off".into()), [("archiver", Level::Fail)]);
        let streamed = |facts: &mut ServerFacts| {
            (facts.archive_mode, facts.receiving) = ("off".into(), check_receiver::tests::receiving())
        };
        assert_eq!(levels(streamed), []);
        assert_eq!(levels(|facts| facts.failing = Some("x".into())), [("archiver", Level::Fail)]);
        // The command hangs.
        assert_eq!(levels(|facts| facts.waiting = Some((1, 600.0))), [("archiver", Level::Fail)]);
        // The primary archives.
        assert_eq!(levels(|facts| (facts.in_recovery, facts.archive_mode) = (true, "off".into())), []);
        assert_eq!(levels(|facts| (facts.in_recovery, facts.waiting) = (true, Some((1, 600.0)))), []);
    }
}
