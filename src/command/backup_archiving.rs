//! Without WAL a backup is worthless: that archiving works is shown before; [`super::backup_wal`] waits for all of it after.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::failure::{Failure, FailureKind};
use crate::postgres::{ClusterIdent, Lsn, SegmentNumber, SegmentSize, TimelineId, WalName};
use crate::repo::{Generation, RepoError, Repository};
use crate::server::backup_session::ServerAtBackup;
use crate::server::{BackupSession, ServerError};

const HINT: &str = "`pgark check` finds out why; the server's log has the archiver's messages";

/// A backup without the WAL that was written meanwhile is worthless: that archiving works is shown before, on a segment that is
/// new. A standby cannot end a segment: see [`prove_by_segments_of_standby`].
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
    if !server.archives && session.received_up_to().await?.is_none() {
        return Err(not_archiving());
    }
    let segment = session.switch_wal().await?;
    let begin = Instant::now();
    while begin.elapsed() < archive_wait {
        if is_stored_by(session, segment).await? {
            let generation = repository.find_generation(ident).await?;
            let header = repository.archive(generation).header_of(segment).await?;
            if header.is_some_and(|header| header.ident() == ident) {
                return Ok(generation);
            }
            let message = format!("the server has archived `{segment}`, but not into {}", repository.describe());
            return Err(Failure::new(FailureKind::Server, message).with_hint(HINT));
        }
        sleep(short_pause(begin.elapsed())).await;
    }
    Err(too_late(segment, archive_wait))
}

/// Whether this server says that its archiver, or a receiver that streams from it, has stored a segment.
pub(super) async fn is_stored_by(session: &BackupSession, segment: WalName) -> Result<bool, ServerError> {
    if session.last_archived().await?.is_some_and(|last| is_archived(&last, segment)) {
        return Ok(true);
    }
    let Some(name) = segment.segment() else { return Ok(false) };
    let Some(durable) = session.received_up_to().await? else { return Ok(false) };
    let size = session.segment_size().await?;
    Ok(size.number(name).is_ok_and(|number| durable >= size.start(SegmentNumber(number.0 + 1))))
}

/// How long to wait for a segment before the next look: a tenth of a second at first, later seconds, for a look may cost money.
pub(super) fn pause(waited: Duration) -> Duration {
    (waited / 4).clamp(Duration::from_millis(100), Duration::from_secs(5))
}

/// The same where only the server is asked, which costs nothing: an archiver at work takes some hundredths of a second for a segment.
pub(super) fn short_pause(waited: Duration) -> Duration {
    (waited / 4).clamp(Duration::from_millis(5), Duration::from_secs(5))
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
            _ => sleep(pause(begin.elapsed())).await,
        }
    }
    Err(too_late(before, archive_wait))
}

/// So many timelines before a standby's are looked at: in the first segment of one, the segment before is its parent's.
const PARENTS: u32 = 16;

/// The same for a standby, whose backup starts at its last restartpoint: its primary has archived the segment of the start, or has
/// not filled it yet and archived the one before.
pub(super) async fn prove_by_segments_of_standby(
    archive_wait: Duration,
    repository: &Repository,
    generation: Generation,
    (start, timeline, size): (Lsn, TimelineId, SegmentSize),
) -> Result<(), Failure> {
    let first = size.containing(start);
    let before = SegmentNumber(first.0.saturating_sub(1));
    let parents = (1..timeline.get()).rev().take(PARENTS as usize).filter_map(TimelineId::new);
    let mut names = vec![size.name(timeline, before), size.name(timeline, first)];
    names.extend(parents.map(|parent| size.name(parent, before)));
    let archive = repository.archive(generation);
    let any = async || {
        for name in &names {
            if archive.first_missing(*name, *name, size).await?.is_none() {
                return Ok(true);
            }
        }
        Ok::<_, RepoError>(false)
    };
    let begin = Instant::now();
    while begin.elapsed() < archive_wait {
        match any().await {
            Ok(true) => return Ok(()),
            Err(error) if !error.is_temporary() => return Err(error.into()),
            _ => sleep(pause(begin.elapsed())).await,
        }
    }
    Err(too_late(names[0], archive_wait).with_hint(
        "the standby's primary must archive into this repository; if it has only begun to, try again after its next checkpoint",
    ))
}

/// Who recovers on a timeline needs its history file. It is archived before the timeline's first segment.
pub(super) async fn prove_history(
    archive_wait: Duration,
    repository: &Repository,
    generation: Generation,
    timeline: TimelineId,
) -> Result<(), Failure> {
    if timeline == TimelineId::FIRST {
        return Ok(());
    }
    let history = WalName::History(timeline);
    let begin = Instant::now();
    while begin.elapsed() < archive_wait {
        match repository.archive(generation).is_stored(history).await {
            Ok(true) => return Ok(()),
            Err(error) if !error.is_temporary() => return Err(error.into()),
            _ => sleep(pause(begin.elapsed())).await,
        }
    }
    let timeline = timeline.get();
    let message =
        format!("`{history}` is not in the repository: without it nothing is restored on timeline {timeline}");
    Err(Failure::new(FailureKind::Server, message).with_hint(
        "`pgark wal-push --backfill` archives it where `pg_wal` has it, on this server or another of the cluster; \
         a promotion begins a timeline that has one",
    ))
}

/// A server whose backups are worthless.
pub(super) fn not_archiving() -> Failure {
    let message = "the server does not archive its WAL (`archive_mode` is off), and no `pgark wal-receive` streams it";
    Failure::new(FailureKind::Server, message).with_hint(HINT)
}

fn too_late(segment: impl Display, waited: Duration) -> Failure {
    let waited = humantime::format_duration(waited);
    let message =
        format!("segment `{segment}` was not archived within {waited}: without its WAL a backup is worthless");
    Failure::new(FailureKind::Server, message).with_hint(HINT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_minutes_of_waiting_are_few_looks() {
        for (pause, first) in [(pause as fn(_) -> _, 100), (short_pause, 5)] {
            let (mut waited, mut looks) = (Duration::ZERO, 0);
            while waited < Duration::from_secs(600) {
                waited += pause(waited);
                looks += 1;
            }
            assert!((100..200).contains(&looks), "{looks}");
            assert_eq!(pause(Duration::ZERO), Duration::from_millis(first));
        }
    }
}
