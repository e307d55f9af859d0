//! Where a receiver begins: behind the last whole segment that the repository has of the server's own past, never where the
//! server happens to be.

use std::collections::BTreeMap;

use super::failure::{Failure, FailureKind};
use super::receive_halt::Halt;
use super::receive_segment::{Known, Making};
use super::wal_push::retrying;
use crate::postgres::{HistoryFile, Lsn, SegmentName, SegmentNumber, TimelineId, WalName};
use crate::repo::live_tail::Tail;
use crate::repo::wal_object::{Provenance, WalObject};
use crate::repo::{Archived, WalArchive};
use crate::server::Replication;
use crate::server::replication::SystemIdentity;
use crate::stream::pack;

/// Where it begins.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) timeline: TimelineId,
    /// The start of a segment.
    pub(super) from: Lsn,
    /// That, or the start of the whole segment before it: where the server may be an older copy, it is compared.
    pub(super) streams_from: Lsn,
    /// What the store has of that segment and of later ones.
    pub(super) tails: BTreeMap<SegmentName, KnownTail>,
    /// Where the tail of the first one ends.
    pub(super) reaches: Lsn,
    /// Whether the repository has WAL of the server from before.
    pub(super) goes_on: bool,
}

impl Start {
    /// At this segment, with what the store has of it and of later ones.
    pub(super) async fn at(
        archive: &WalArchive,
        making: &Making,
        timeline: TimelineId,
        from: SegmentNumber,
    ) -> Result<Self, Failure> {
        let first = making.size.name(timeline, from);
        let mut tails = BTreeMap::new();
        for segment in retrying(|| archive.tails_from(first)).await? {
            tails.insert(segment, KnownTail::find(archive, segment).await?);
        }
        let from = making.size.start(from);
        let reaches = Lsn(from.0 + tails.get(&first).map_or(0, KnownTail::end));
        Ok(Start { timeline, from, streams_from: from, tails, reaches, goes_on: true })
    }

    /// A server that believes less to be durable than the repository has may have crashed, or be the copy of an earlier
    /// state that went another way since. The last whole segment shows it.
    async fn compared(self, archive: &WalArchive, making: &Making, kept: Option<Lsn>) -> Result<Self, Failure> {
        let size = making.size;
        let last = size.containing(self.from).0.checked_sub(1).map(SegmentNumber);
        let Some(last) = last.filter(|last| kept.is_some_and(|kept| size.containing(kept) <= *last)) else {
            return Ok(self);
        };
        let name = WalName::Segment(size.name(self.timeline, last));
        match retrying(|| archive.is_stored(name)).await? {
            true => Ok(Start { streams_from: size.start(last), ..self }),
            false => Ok(self),
        }
    }
}

/// The pieces of a segment, as far as one follows the other from the segment's first byte.
#[derive(Debug, Default)]
pub(super) struct KnownTail {
    pub(super) chain: Vec<Known>,
    /// Why no piece of ours can follow: something else lies there.
    pub(super) broken: Option<String>,
}

impl KnownTail {
    /// Nearly always the last piece knows all the others, however many there are. Otherwise each is asked.
    async fn find(archive: &WalArchive, segment: SegmentName) -> Result<Self, Failure> {
        if let Some((last, stored)) = retrying(|| archive.last_of_whole_tail(segment)).await?
            && let Some(so_far) = last.so_far
        {
            let pieces = so_far.pieces + 1;
            let all = Known { offset: 0, end: last.end(), sha256: so_far.sha256, pieces, stored, last };
            return Ok(KnownTail { chain: vec![all], broken: None });
        }
        Ok(KnownTail::of(retrying(|| archive.list_tail(segment)).await?))
    }

    fn of(tail: Tail) -> Self {
        let mut known =
            KnownTail { chain: Vec::new(), broken: tail.unknown.first().map(|key| format!("`{key}` lies there")) };
        for piece in tail.pieces {
            let offset = piece.key.offset;
            match piece.header {
                Ok(last) if u64::from(offset) == known.end() && last.previous == known.last() => {
                    let before = known.chain.last().map_or((0, 0), |before| (before.pieces, before.stored));
                    let (end, sha256) = (last.end(), last.sha256);
                    let (pieces, stored) = (before.0 + 1, before.1 + piece.stored);
                    known.chain.push(Known { offset: u64::from(offset), end, sha256, pieces, stored, last })
                }
                Ok(_) => {
                    known.broken =
                        known.broken.or(Some(format!("its piece at {offset:#X} does not follow the one before")))
                }
                Err(why) => known.broken = known.broken.or(Some(format!("its piece at {offset:#X}: {why}"))),
            }
        }
        known
    }

    /// The offset at which the chain ends.
    fn end(&self) -> u64 {
        self.chain.last().map_or(0, |last| last.end)
    }

    fn last(&self) -> Option<crate::stream::Sha256> {
        self.chain.last().map(|known| known.last.sha256)
    }
}

/// Looks where the repository ends. `kept` is where the slot begins to keep WAL: from there on nothing was told to be durable, and
/// nothing may be missing.
pub(super) async fn find(
    archive: &WalArchive,
    making: &Making,
    history: Option<&HistoryFile>,
    server: SystemIdentity,
    kept: Option<Lsn>,
) -> Result<Start, Halt> {
    let size = making.size;
    // The server's timelines, newest first, each with its end and what followed.
    let mut path = vec![(server.timeline, None)];
    for entry in history.iter().flat_map(|history| history.entries.iter().rev()) {
        let next = path.last().map_or(server.timeline, |(timeline, _)| *timeline);
        path.push((entry.parent, Some((entry.switch, next))));
    }
    let kept_from = kept.map(|kept| size.containing(kept));
    // What the slot keeps of earlier timelines. The last segment of each is also the first of the next one.
    let mut begin = SegmentNumber(0);
    for entry in history.iter().flat_map(|history| &history.entries) {
        let end = size.containing(entry.switch);
        if let Some(first) = kept_from.map(|kept| kept.max(begin)).filter(|first| *first < end) {
            let missing = first_missing(archive, making, entry.parent, (first, end)).await?;
            if missing < end {
                let goes_on = newest_whole(archive, making, entry.parent).await?.is_some();
                let start = Start::at(archive, making, entry.parent, missing).await?;
                return Ok(Start { goes_on, ..start });
            }
        }
        begin = end;
    }
    for (timeline, end) in path {
        let from = match newest_whole(archive, making, timeline).await? {
            Some(newest) => SegmentNumber(newest.0 + 1),
            None => match retrying(|| archive.oldest_tail(timeline)).await? {
                Some(segment) => size.number(segment).map_err(|e| Failure::new(FailureKind::Damaged, e.to_string()))?,
                None => continue,
            },
        };
        let from = match kept_from.filter(|_| timeline == server.timeline) {
            Some(kept) => first_missing(archive, making, timeline, (kept.max(begin), from)).await?,
            None => from,
        };
        let start = Start::at(archive, making, timeline, from).await?;
        if let Some((switch, next)) = end.filter(|(switch, _)| start.reaches >= *switch) {
            return Ok(Start::at(archive, making, next, size.containing(switch)).await?);
        }
        return Ok(start.compared(archive, making, kept).await?);
    }
    let from = size.containing(kept.unwrap_or(server.flushed));
    let start = Start::at(archive, making, server.timeline, from).await?;
    Ok(Start { goes_on: false, ..start })
}

/// The first segment that is not stored from `first` on, at most `end`.
async fn first_missing(
    archive: &WalArchive,
    making: &Making,
    timeline: TimelineId,
    (first, end): (SegmentNumber, SegmentNumber),
) -> Result<SegmentNumber, Failure> {
    if first >= end {
        return Ok(end);
    }
    let name = |number| making.size.name(timeline, number);
    let last = SegmentNumber(end.0 - 1);
    match retrying(|| archive.first_missing(name(first), name(last), making.size)).await? {
        Some(missing) => making.size.number(missing).map_err(|e| Failure::new(FailureKind::Damaged, e.to_string())),
        None => Ok(end),
    }
}

/// The last of the whole segments of a timeline that follow each other. A receiver that was killed may have stored one while
/// the one before it was still under way.
async fn newest_whole(
    archive: &WalArchive,
    making: &Making,
    timeline: TimelineId,
) -> Result<Option<SegmentNumber>, Failure> {
    let damaged = |e: crate::postgres::Malformed| Failure::new(FailureKind::Damaged, e.to_string());
    let Some(newest) = retrying(|| archive.newest_segment(timeline)).await? else { return Ok(None) };
    let newest = making.size.number(newest).map_err(damaged)?;
    let is_stored = |back: u64| async move {
        let Some(number) = newest.0.checked_sub(back) else { return Ok(false) };
        let name = WalName::Segment(making.size.name(timeline, SegmentNumber(number)));
        retrying(|| archive.is_stored(name)).await
    };
    match is_stored(1).await? {
        false if is_stored(2).await? => Ok(Some(SegmentNumber(newest.0 - 2))),
        _ => Ok(Some(newest)),
    }
}

/// Stores the history of the server's timeline, and of those before it that the server still has: they are there before any
/// segment of theirs. Gives that of the server's own timeline.
pub(super) async fn put_histories(
    server: &mut Replication,
    archive: &WalArchive,
    making: &Making,
    timeline: TimelineId,
) -> Result<Option<HistoryFile>, Halt> {
    if timeline == TimelineId::FIRST {
        return Ok(None);
    }
    let missing =
        || Failure::new(FailureKind::Server, format!("PostgreSQL has no history of its timeline {}", timeline.get()));
    let text = server.timeline_history(timeline).await?.ok_or_else(missing)?;
    let malformed = |e: crate::postgres::Malformed| Failure::new(FailureKind::Server, e.to_string());
    let history = HistoryFile::parse(timeline, &text).map_err(malformed)?;
    let mut texts = BTreeMap::from([(timeline, text)]);
    for parent in history.entries.iter().map(|entry| entry.parent).filter(|parent| *parent > TimelineId::FIRST) {
        texts.extend(server.timeline_history(parent).await?.map(|text| (parent, text)));
    }
    for (timeline, text) in texts {
        put_history(archive, making, timeline, &text).await?;
    }
    Ok(Some(history))
}

async fn put_history(archive: &WalArchive, making: &Making, timeline: TimelineId, text: &[u8]) -> Result<(), Halt> {
    let name = WalName::History(timeline);
    let cannot = |e: std::io::Error| Failure::new(FailureKind::Internal, e.to_string());
    let packed = pack(text, text.len() as u64, making.level, WalObject::ROOM, |_, _| Ok(()), |_| ()).map_err(cannot)?;
    let from = Provenance {
        name,
        ident: making.ident,
        segment_size: None,
        written: jiff::Timestamp::now(),
        writer: making.writer.clone(),
    };
    let object = WalObject::build(from, packed, None)?;
    // Nearly always it is there.
    if retrying(|| archive.header_of(name)).await?.is_some_and(|stored| stored.plain() == object.header.plain()) {
        return Ok(());
    }
    match retrying(|| archive.put(name, &object)).await? {
        Archived::Conflict { theirs, writer, .. } => {
            let message = format!("another history is archived as `{name}`: sha256 {theirs} by {writer}");
            Err(Halt::Refused(
                Failure::new(FailureKind::Conflict, message)
                    .with_hint("two servers were promoted to the same timeline: give one of them a `name` of its own"),
            ))
        }
        _ => Ok(()),
    }
}

/// What shows whether another receiver is at work: the last whole segment of a timeline, and the last piece behind it.
pub(super) async fn mark(
    archive: &WalArchive,
    making: &Making,
    timeline: TimelineId,
) -> Result<(Option<SegmentName>, Option<u32>), Failure> {
    let newest = retrying(|| archive.newest_segment(timeline)).await?;
    let next = match newest.map(|newest| making.size.number(newest)) {
        Some(Ok(number)) => Some(making.size.name(timeline, SegmentNumber(number.0 + 1))),
        _ => retrying(|| archive.oldest_tail(timeline)).await?,
    };
    let piece = match next {
        Some(next) => retrying(|| archive.last_piece(next)).await?,
        None => None,
    };
    Ok((newest, piece))
}
