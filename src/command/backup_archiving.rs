//! Without WAL a backup is worthless: that archiving works is shown before, that all of it has arrived after.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::basebackup::Basebackup;
use super::failure::{Failure, FailureKind};
use crate::postgres::{ClusterIdent, Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId, WalName};
use crate::repo::manifest::BackupSummary;
use crate::repo::{Generation, Repository};
use crate::server::BackupSession;
use crate::server::backup_session::ServerAtBackup;

/// How often is looked whether a segment has arrived.
const LOOK: Duration = Duration::from_millis(100);
const HINT: &str = "`pgark check` finds out why; the server's log has the archiver's messages";

/// A backup without the WAL that was written meanwhile is worthless: that archiving works is shown before, on a segment that is
/// new. A standby cannot end a segment: there the end of the backup shows it.
pub(super) async fn prove_archiving(
    archive_wait: Duration,
    session: &BackupSession,
    server: &ServerAtBackup,
    repository: &Repository,
    ident: ClusterIdent,
) -> Result<Generation, Failure> {
    if server.in_recovery {
        return Ok(repository.find_generation(ident).await?);
    }
    if !server.archives {
        return Err(not_archiving());
    }
    let segment = session.switch_wal().await?;
    let begin = Instant::now();
    while begin.elapsed() < archive_wait {
        if session.last_archived().await?.is_some_and(|last| is_archived(&last, segment)) {
            let generation = repository.find_generation(ident).await?;
            let header = repository.archive(generation).header_of(segment).await?;
            if header.is_some_and(|header| header.ident() == ident) {
                return Ok(generation);
            }
            let message = format!("the server has archived `{segment}`, but not into {}", repository.describe());
            return Err(Failure::new(FailureKind::Server, message).with_hint(HINT));
        }
        sleep(LOOK).await;
    }
    Err(too_late(segment, archive_wait))
}

/// Whether an archiver whose last file was `last` has archived `segment`: names of one timeline are in order.
fn is_archived(last: &str, segment: WalName) -> bool {
    let segment = segment.to_string();
    last.get(..24).is_some_and(|last| last[..8] == segment[..8] && *last >= *segment)
}

/// The same for who may not end a segment: a backup of a primary begins with a new one, so the segment before its start is
/// archived now, or was before.
pub(super) async fn prove_by_segment_before(
    archive_wait: Duration,
    repository: &Repository,
    generation: Generation,
    (start, timeline, size): (Lsn, TimelineId, SegmentSize),
) -> Result<(), Failure> {
    let SegmentNumber(first) = size.containing(start);
    let before = size.name(timeline, SegmentNumber(first.saturating_sub(1)));
    let begin = Instant::now();
    while begin.elapsed() < archive_wait {
        match repository.archive(generation).first_missing(before, before, size).await {
            Ok(None) => return Ok(()),
            Err(error) if !error.is_temporary() => return Err(error.into()),
            _ => sleep(LOOK).await,
        }
    }
    Err(too_late(before, archive_wait))
}

/// A server whose backups are worthless.
pub(super) fn not_archiving() -> Failure {
    let message = "the server does not archive its WAL (`archive_mode` is off)";
    Failure::new(FailureKind::Server, message).with_hint(HINT)
}

fn too_late(segment: impl Display, waited: Duration) -> Failure {
    let waited = humantime::format_duration(waited);
    let message =
        format!("segment `{segment}` was not archived within {waited}: without its WAL a backup is worthless");
    Failure::new(FailureKind::Server, message).with_hint(HINT)
}

/// Without all WAL from start to stop the copy can never be made consistent.
pub(super) async fn wait_for_wal(
    settings: &Basebackup,
    repository: &Repository,
    backup: &BackupSummary,
    session: Option<&BackupSession>,
) -> Result<(), Failure> {
    let (Some((first, last)), Some(size)) = (backup.wal_needed(), backup.segment_size()) else {
        return Err(Failure::new(FailureKind::Internal, "the backup has no segment size"));
    };
    let archive = repository.archive(backup.generation);
    let begin = Instant::now();
    loop {
        let missing = match archive.first_missing(first, last, size).await {
            Ok(None) => match was_archived_here(session, backup, last).await? {
                true => return Ok(()),
                false => format!("this server has not archived `{last}`, though one of this name is in the repository"),
            },
            Ok(Some(segment)) => format!("segment `{segment}` is not in the repository"),
            Err(error) if error.is_temporary() => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        if begin.elapsed() >= settings.wal_wait {
            let waited = humantime::format_duration(settings.wal_wait);
            let message = format!("after {waited}, {missing}: the copy is not complete without `{first}` to `{last}`");
            let hint = match backup.from_standby {
                true => {
                    "a standby waits for its primary to fill the segment: `select pg_switch_wal()` there; `--wal-wait` gives more time"
                }
                false => "`pgark check` finds out why; `--wal-wait` gives more time",
            };
            return Err(Failure::new(FailureKind::Server, message).with_hint(hint));
        }
        sleep(LOOK).await;
    }
}

/// A segment of this name may be another server's: a clone's, or an old primary's. A standby's WAL is archived by its primary, and
/// who has no session cannot ask.
async fn was_archived_here(
    session: Option<&BackupSession>,
    backup: &BackupSummary,
    last: SegmentName,
) -> Result<bool, Failure> {
    match session {
        Some(session) if !backup.from_standby => {
            let archived = session.last_archived().await?;
            Ok(archived.is_some_and(|archived| is_archived(&archived, WalName::Segment(last))))
        }
        _ => Ok(true),
    }
}
