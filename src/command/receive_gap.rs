//! WAL that the server has removed before it was stored: it is written down, told loudly, and streaming goes on behind it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;

use super::failure::{Failure, FailureKind};
use super::receive_halt::persistently;
use super::receive_halt::{Complaints, Halt};
use super::receive_segment::Making;
use super::wal_push::retrying;
use crate::postgres::replication_protocol::FromServer;
use crate::postgres::{HistoryFile, Lsn, SegmentNumber, TimelineId};
use crate::repo::gap::{Gap, RecordedGap};
use crate::repo::{Generation, Repository};
use crate::server::wal_stream::Streamed;
use crate::server::{Conninfo, Replication};

/// Where streaming goes on.
pub(super) type Onwards = (TimelineId, Lsn);

/// How long a server may take to find out whether it has a segment.
const LOOK: Duration = Duration::from_secs(10);

/// Finds the oldest segment that the server still has behind the one at `from`, and writes down what is missing behind `reaches`.
pub(super) async fn pass(
    conninfo: &Conninfo,
    (repository, generation): (&Repository, Generation),
    making: &Making,
    (timeline, from, reaches): (TimelineId, Lsn, Lsn),
    reason: String,
    complaints: &Complaints,
) -> Result<Onwards, Halt> {
    let mut server = Replication::connect(conninfo).await?;
    let now = server.identify_system().await?;
    let (end, next) = match now.timeline == timeline {
        true => (now.flushed, None),
        false => {
            let text = server.timeline_history(now.timeline).await?.unwrap_or_default();
            let history = HistoryFile::parse(now.timeline, &text);
            let history = history.map_err(|e| Failure::new(FailureKind::Server, e.to_string()))?;
            let at = history.entries.iter().position(|entry| entry.parent == timeline);
            let at = at.ok_or_else(|| Failure::new(FailureKind::Server, "PostgreSQL was never on this timeline"))?;
            let next = history.entries.get(at + 1).map_or(now.timeline, |entry| entry.parent);
            (history.entries[at].switch, Some(next))
        }
    };
    drop(server);
    let (size, mut missing) = (making.size, making.size.containing(from).0);
    let mut there = size.containing(end).0.max(missing);
    let onwards = match next {
        // Nothing of that timeline is left.
        Some(next) if !has(conninfo, timeline, size.start(SegmentNumber(there))).await? => {
            (next, size.start(size.containing(end)))
        }
        _ => {
            // Servers remove the oldest first.
            while there > missing + 1 {
                let middle = missing + (there - missing) / 2;
                match has(conninfo, timeline, size.start(SegmentNumber(middle))).await? {
                    true => there = middle,
                    false => missing = middle,
                }
            }
            (timeline, size.start(SegmentNumber(there)))
        }
    };
    let to = if onwards.0 == timeline { onwards.1 } else { end };
    let gap = Gap::new(generation, timeline, [reaches, to], reason.clone(), Timestamp::now(), &making.writer);
    persistently(complaints, || repository.record_gap(&gap)).await?;
    tracing::error!(
        "WAL is lost: {reaches} to {to} of timeline {} is neither in the repository nor on the server ({reason}); streaming goes on \
         behind it, and no backup from before can be recovered beyond {reaches}: take a new one",
        timeline.get()
    );
    Ok(onwards)
}

/// The timelines of a server's past, each with where it was left.
pub(super) type Past = Vec<(TimelineId, Option<Lsn>)>;

/// Refuses to promise what comes before `to` where some of it is lost still, whoever found that and when.
pub(super) async fn refuse_lost(
    (repository, generation): (&Repository, Generation),
    past: &Past,
    to: Lsn,
) -> Result<(), Failure> {
    let mut recorded = retrying(|| repository.all_gaps(generation)).await?;
    let on_it = |gap: &Gap| {
        let left = past.iter().find(|(timeline, _)| *timeline == gap.timeline);
        gap.from < to && left.is_some_and(|(_, left)| left.is_none_or(|left| gap.from < left))
    };
    recorded.retain(|recorded| on_it(&recorded.gap));
    if recorded.is_empty() {
        return Ok(());
    }
    let identities = retrying(|| repository.read_identities()).await?;
    let identity = identities.all().iter().find(|identity| identity.generation == generation);
    let gone = || Failure::new(FailureKind::Damaged, format!("generation {generation} of the repository is gone"));
    let identity = identity.ok_or_else(gone)?;
    let inventory = retrying(|| repository.take_inventory(identity)).await?;
    let Some(RecordedGap { key, gap, .. }) = recorded.iter().find(|recorded| recorded.gap.is_open(&inventory)) else {
        return Ok(());
    };
    let message = format!(
        "{to} is reached, but WAL before it is lost: {} to {} of timeline {}, as `{key}` says",
        gap.from,
        gap.to,
        gap.timeline.get()
    );
    Err(Failure::new(FailureKind::Gap, message).with_hint(
        "`pgark wal-push --backfill` where a `pg_wal` still has it; else take a new backup: none from before can be recovered beyond it. \
         `pgark expire` forgets it when nothing that can be restored comes to it",
    ))
}

/// Whether the server can stream from here. Without the slot: that is for streaming.
async fn has(conninfo: &Conninfo, timeline: TimelineId, from: Lsn) -> Result<bool, Halt> {
    let server = Replication::connect(conninfo).await?;
    let Some(mut stream) = server.start_wal(None, timeline, from).await? else { return Ok(true) };
    // It answers other questions before it looks for the segment: only WAL is proof.
    let looked = async {
        loop {
            match stream.next().await {
                Ok(Streamed::Message(FromServer::Keepalive { .. })) => {}
                other => return other,
            }
        }
    };
    let late =
        |_| Failure::new(FailureKind::Server, format!("PostgreSQL did not say whether it has WAL from {from} on"));
    let first = timeout(LOOK, looked).await.map_err(late)?.map_err(Halt::from);
    match first {
        Ok(Streamed::Message(_) | Streamed::TimelineEnds) => {
            stream.close().await;
            Ok(true)
        }
        Err(Halt::Removed(_)) => Ok(false),
        Err(other) => Err(other),
    }
}
