//! The question of `check` that nothing else can answer: a segment on its whole way, from PostgreSQL into the store.
//!
//! An object of the right name proves nothing by itself: a clone has the same system identifier and timeline. So the name
//! must be free before the switch, and PostgreSQL must say that it archived the file.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::check::{Check, Finding, Level};
use crate::postgres::{ClusterIdent, Lsn, PgMajor, SegmentNumber, SegmentSize, WalName};
use crate::repo::{RepoError, Repository};
use crate::server::Session;
use crate::server::session::{Archiver, ServerError, ServerFacts};

const CHECK: &str = "wal-switch";
const LOOK: Duration = Duration::from_millis(200);

/// Switches a segment, if that was asked for, and follows it.
pub async fn ask(check: &Check, session: &Session, facts: &ServerFacts, repository: &Repository) -> Finding {
    let Some(within) = check.switch_within else {
        return Finding::ok(CHECK, "not tried, as asked");
    };
    let Ok(major) = PgMajor::try_from(facts.version / 10_000) else {
        return Finding::not_ok(CHECK, Level::Unknown, "not tried", "see `server`");
    };
    if facts.in_recovery {
        return Finding::ok(CHECK, "not tried: a standby cannot switch; ask the primary");
    }
    if facts.archive_mode == "off" && !facts.is_only_streamed() {
        return Finding::not_ok(CHECK, Level::Unknown, "not tried: nothing is archived", "see `archive_mode`");
    }
    let ident = ClusterIdent { system_id: facts.system_id, major };
    let (name, before) = match switch(session, repository, ident).await {
        Ok(switched) => switched,
        Err(finding) => return finding,
    };
    let end = end_of(name, facts);
    let begin = Instant::now();
    let mut state = Progress::default();
    while begin.elapsed() < within {
        state = match look(session, repository, ident, (name, end), &before).await {
            Ok(state) => state,
            Err(finding) => return finding,
        };
        if state.archived && state.stored {
            let seconds = begin.elapsed().as_secs_f32();
            return Finding::ok(CHECK, format!("segment `{name}` was in the store after {seconds:.1} s"));
        }
        sleep(LOOK).await;
    }
    late(name, within, &state)
}

/// Ends the current segment, whose name must be free. Returns it, and the archiver's state before.
async fn switch(
    session: &Session,
    repository: &Repository,
    ident: ClusterIdent,
) -> Result<(WalName, Archiver), Finding> {
    let no_right = |error: ServerError| {
        let hint = "the user needs the right to execute pg_switch_wal(), or use `--no-switch`";
        Finding::not_ok(CHECK, Level::Unknown, error.to_string(), hint)
    };
    let current = session.current_segment().await.map_err(no_right)?;
    if stored(repository, ident, current).await? {
        return Err(Finding::not_ok(
            CHECK,
            Level::Fail,
            format!("segment `{current}`, in which this server still writes, is in the store already"),
            "another server with the same system identifier archives there: give one of them its own `name`",
        ));
    }
    let before = session.archiver().await.map_err(no_right)?;
    Ok((session.switch_wal().await.map_err(no_right)?, before))
}

/// What is known of a segment on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// PostgreSQL says that it was archived, or a receiver that it is durable.
    archived: bool,
    /// The last failed try was for it.
    failed: bool,
    /// The store has it.
    stored: bool,
}

async fn look(
    session: &Session,
    repository: &Repository,
    ident: ClusterIdent,
    (name, end): (WalName, Option<Lsn>),
    before: &Archiver,
) -> Result<Progress, Finding> {
    let unknown = |error: ServerError| Finding::not_ok(CHECK, Level::Unknown, error.to_string(), "see `server`");
    let now = session.archiver().await.map_err(unknown)?;
    let received = session.received_up_to().await.map_err(unknown)?;
    Ok(Progress {
        archived: has_archived(&now, before, name) || end.is_some_and(|end| received >= Some(end)),
        failed: now.failed_count > before.failed_count && now.last_failed.as_deref() == Some(&name.to_string()),
        stored: stored(repository, ident, name).await?,
    })
}

/// The position behind a segment.
fn end_of(name: WalName, facts: &ServerFacts) -> Option<Lsn> {
    let size = SegmentSize::new(u64::try_from(facts.writing.as_ref()?.1).ok()?).ok()?;
    let SegmentNumber(number) = size.number(name.segment()?).ok()?;
    Some(size.start(SegmentNumber(number + 1)))
}

/// Segments of a timeline are archived in order, so a later one will do.
fn has_archived(now: &Archiver, before: &Archiver, name: WalName) -> bool {
    let last = now.last_archived.as_deref().and_then(|last| last.parse::<WalName>().ok());
    let Some(last) = last.filter(|_| now.archived_count > before.archived_count) else {
        return false;
    };
    match (last.segment(), name.segment()) {
        (Some(last), Some(wanted)) => last >= wanted,
        // A history file hides what went before it.
        _ => now.failed_count == before.failed_count,
    }
}

fn late(name: WalName, within: Duration, state: &Progress) -> Finding {
    let seconds = within.as_secs();
    let (message, hint) = match state {
        Progress { failed: true, stored: true, .. } => (
            format!("segment `{name}` is in the store, but archive_command fails for it: another server stored it"),
            "two servers archive into one place; the server's log has pgark's message",
        ),
        Progress { failed: true, .. } => {
            (format!("archive_command fails for segment `{name}`"), "the server's log has pgark's message")
        }
        Progress { archived: true, .. } => (
            format!("PostgreSQL says that segment `{name}` is archived, but it is not in the store after {seconds} s"),
            "archive_command archives elsewhere, or says success without archiving: see `archive_command`",
        ),
        Progress { stored: true, .. } => (
            format!("segment `{name}` is in the store, but PostgreSQL has not archived it after {seconds} s"),
            "another server may have stored it; the server's log has the reason",
        ),
        _ => (
            format!("segment `{name}` was switched but is not in the store after {seconds} s"),
            "the server's log has the reason; `--within` gives it more time",
        ),
    };
    Finding::not_ok(CHECK, Level::Fail, message, hint)
}

async fn stored(repository: &Repository, ident: ClusterIdent, name: WalName) -> Result<bool, Finding> {
    let looked = async {
        match repository.find_generation(ident).await {
            Ok(generation) => Ok(repository.archive(generation).header_of(name).await?.is_some()),
            Err(RepoError::NoIdentity { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    };
    looked.await.map_err(|error: RepoError| Finding::failed(CHECK, error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archiver(archived_count: i64, last: &str, failed_count: i64) -> Archiver {
        Archiver { archived_count, last_archived: Some(last.to_owned()), failed_count, last_failed: None }
    }

    #[test]
    fn a_segment_is_archived_when_it_or_a_later_one_was() {
        let name: WalName = "000000010000000000000005".parse().unwrap();
        let before = archiver(3, "000000010000000000000004", 0);
        for (last, expected) in [
            ("000000010000000000000005", true),
            ("000000010000000000000006", true),
            ("000000010000000000000006.00000028.backup", true),
            ("000000020000000000000005", true),
            ("000000010000000000000004", false),
            ("00000002.history", true),
            ("rubbish", false),
        ] {
            assert_eq!(has_archived(&archiver(4, last, 0), &before, name), expected, "{last}");
        }
        // Nothing happened since; or something failed, and what was archived does not say.
        assert!(!has_archived(&archiver(3, "000000010000000000000005", 0), &before, name));
        assert!(!has_archived(&archiver(4, "00000002.history", 1), &before, name));
    }
}
