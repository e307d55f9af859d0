//! The helper of `wal-fetch`: a process of its own that keeps the next segments of a recovery on the shelf, verified.
//!
//! It goes by what was asked for last, follows the timelines of the recovery over their switches, and ends by itself: when nothing
//! is asked for any more, when the recovery ends, when PostgreSQL is gone. What it cannot fetch it leaves to `wal-fetch`.

use std::collections::BTreeSet;
use std::fs;
use std::future::ready;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Pid, test_kill_process};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::RepositorySettings;
use super::failure::{Failure, FailureKind};
use super::prefetch::{PrefetchSettings, shelf};
use crate::disk::data_dir::ClusterFacts;
use crate::disk::{DataDir, Shelf};
use crate::postgres::recovery::{RECOVERY_SIGNAL, STANDBY_SIGNAL};
use crate::postgres::{HistoryFile, SegmentName, SegmentNumber, SegmentSize, TimelineId, WalName};
use crate::repo::archive::ReadBounds;
use crate::repo::wal_object::Expected;
use crate::repo::{RepoError, WalArchive};

/// What the helper works for.
#[derive(Clone, Debug)]
pub struct PrefetchHelper {
    /// Where from.
    pub repository: RepositorySettings,
    /// How far.
    pub prefetch: PrefetchSettings,
    /// The data directory that recovers.
    pub data_dir: DataDir,
}

/// How often it looks around.
const TICK: Duration = Duration::from_millis(10);
/// How often it looks whether it is needed at all.
const ROLL_CALL: Duration = Duration::from_millis(200);
/// It ends when nothing was asked for so long.
const IDLE: Duration = Duration::from_secs(30);
/// The shelf is at least as long, where segments are small.
const LEAST_BYTES: u64 = 128 << 20;
/// And no longer, where they are large.
const MOST_BYTES: u64 = 1 << 30;
/// So much stays free on the file system.
const LEAVE_FREE: u64 = 256 << 20;
/// Requests under way for each segment that is unpacked: while some wait for a far store others are at work.
const REQUESTS_PER_JOB: usize = 4;
/// A segment that could not be fetched is left alone for so long.
const PAUSE: Duration = Duration::from_secs(1);

/// Works until it is not needed any more. Nobody hears of its failures: `wal-fetch` does without it.
pub async fn run(helper: PrefetchHelper) -> Result<(), Failure> {
    let local = |e: std::io::Error| Failure::new(FailureKind::LocalIo, e.to_string());
    let shelf = shelf(&helper.prefetch, &helper.repository, &helper.data_dir).map_err(local)?;
    let Some(_lock) = claim(&shelf).await.map_err(local)? else { return Ok(()) };
    let Some(recovery) = Recovery::of(&helper.data_dir) else { return Ok(()) };
    // Whatever is being waited for, a store that is silent for one: the recovery's end is ours.
    let outcome = tokio::select! {
        outcome = fetch_ahead(&helper, shelf.clone()) => outcome,
        () = recovery.end() => Ok(()),
    };
    shelf.keep_only(|_| false);
    outcome
}

async fn fetch_ahead(helper: &PrefetchHelper, shelf: Shelf) -> Result<(), Failure> {
    let local = |e: std::io::Error| Failure::new(FailureKind::LocalIo, e.to_string());
    let facts = helper.data_dir.facts().map_err(local)?;
    let repository = helper.repository.open().await?;
    // Nothing of ours may keep the data directory's file system from being unmounted.
    std::env::set_current_dir("/").map_err(local)?;
    let generation = repository.find_generation(facts.ident).await?;
    let size = facts.control.segment_size;
    let worker = Worker {
        shelf,
        archive: repository.archive(generation),
        facts,
        window: window(helper.prefetch.segments, size),
        requests: helper.prefetch.jobs * REQUESTS_PER_JOB,
        bounds: ReadBounds { turns: Some(Arc::new(Semaphore::new(helper.prefetch.jobs))), ..ReadBounds::default() },
        pg_wal: helper.data_dir.path().join("pg_wal"),
    };
    worker.work().await;
    Ok(())
}

/// The lock may be held for a moment by somebody who only looks whether there is a helper.
async fn claim(shelf: &Shelf) -> std::io::Result<Option<fs::File>> {
    const TRIES: u32 = 5;
    for _ in 0..TRIES {
        if let Some(lock) = shelf.claim()? {
            return Ok(Some(lock));
        }
        sleep(TICK).await;
    }
    Ok(None)
}

/// How many segments lie on the shelf.
fn window(wanted: usize, size: SegmentSize) -> u64 {
    let at_least = LEAST_BYTES.div_ceil(size.bytes());
    (wanted as u64).max(at_least).min((MOST_BYTES / size.bytes()).max(1))
}

/// A server that recovers.
struct Recovery<'a> {
    data_dir: &'a DataDir,
    postmaster: Pid,
}

impl<'a> Recovery<'a> {
    fn of(data_dir: &'a DataDir) -> Option<Self> {
        Some(Recovery { data_dir, postmaster: postmaster(data_dir.path())? })
    }

    /// Waits for it.
    async fn end(&self) {
        while self.goes_on() {
            sleep(ROLL_CALL).await;
        }
    }

    fn goes_on(&self) -> bool {
        let there = |name| self.data_dir.path().join(name).exists();
        postmaster(self.data_dir.path()) == Some(self.postmaster)
            && test_kill_process(self.postmaster) != Err(rustix::io::Errno::SRCH)
            && (there(RECOVERY_SIGNAL) || there(STANDBY_SIGNAL))
    }
}

fn postmaster(data_dir: &Path) -> Option<Pid> {
    let text = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    Pid::from_raw(text.lines().next()?.trim().parse().ok()?)
}

/// A segment that was not there, or could not be fetched, bars the way to those behind it until it comes. It alone is tried again.
#[derive(Default)]
struct Bar(Option<(SegmentName, Option<Instant>)>);

impl Bar {
    /// Something was asked for: `again`, or something else, and then nothing is known.
    fn asked(&mut self, again: bool) {
        self.0 = self.0.filter(|_| again).map(|(segment, _)| (segment, None));
    }

    /// A segment was fetched, or not.
    fn done(&mut self, wanted: &[SegmentName], segment: SegmentName, fetched: bool) {
        let place = |segment| wanted.iter().position(|wanted| *wanted == segment);
        let first = |bar| place(segment) <= place(bar);
        match self.0 {
            Some((bar, _)) if fetched && bar == segment => self.0 = None,
            Some((bar, _)) if !fetched && place(bar).is_some() && !first(bar) => {}
            _ if !fetched && place(segment).is_some() => self.0 = Some((segment, Some(Instant::now()))),
            _ => {}
        }
    }

    /// What may be fetched now, in this order.
    fn free<'a>(&self, wanted: &'a [SegmentName]) -> &'a [SegmentName] {
        let Some((bar, since)) = self.0 else { return wanted };
        let Some(place) = wanted.iter().position(|wanted| *wanted == bar) else { return wanted };
        let may_be_tried = since.is_none_or(|since| since.elapsed() >= PAUSE);
        &wanted[..place + usize::from(may_be_tried)]
    }
}

struct Worker {
    shelf: Shelf,
    archive: WalArchive,
    facts: ClusterFacts,
    window: u64,
    requests: usize,
    bounds: ReadBounds,
    pg_wal: std::path::PathBuf,
}

impl Worker {
    async fn work(&self) {
        let mut under_way: JoinSet<(SegmentName, bool)> = JoinSet::new();
        let mut busy: BTreeSet<SegmentName> = BTreeSet::new();
        let mut wanted: Vec<SegmentName> = Vec::new();
        let mut last = None;
        let (mut asked_at, mut looked_at) = (Instant::now(), Instant::now());
        let mut bar = Bar::default();
        while asked_at.elapsed() < IDLE {
            let asked = self.shelf.asked().ok();
            let mut look = asked != last;
            if look {
                bar.asked(asked.map(|asked| asked.segment) == last.map(|last| last.segment));
                (last, asked_at) = (asked, Instant::now());
                wanted = asked.map(|asked| self.next_after(asked.segment)).unwrap_or_default();
                self.shelf.keep_only(|segment| wanted.contains(&segment) || busy.contains(&segment));
            }
            // There may be room again, and a bar may be lifted.
            look |= looked_at.elapsed() >= ROLL_CALL;
            tokio::select! {
                biased;
                Some(done) = under_way.join_next() => {
                    let Ok((segment, fetched)) = done else { break };
                    busy.remove(&segment);
                    bar.done(&wanted, segment, fetched);
                    look = true;
                }
                () = sleep(TICK), if !look => {}
                () = ready(()), if look => {}
            }
            if !look {
                continue;
            }
            looked_at = Instant::now();
            for segment in bar.free(&wanted) {
                if busy.len() >= self.requests || !self.has_room(busy.len() as u64 + 1) {
                    break;
                }
                if !busy.contains(segment) && !self.shelf.has(*segment) {
                    busy.insert(*segment);
                    let (shelf, archive) = (self.shelf.clone(), self.archive.clone());
                    under_way.spawn(fetch(shelf, archive, *segment, self.facts, self.bounds.clone()));
                }
            }
        }
    }

    fn has_room(&self, segments: u64) -> bool {
        let needed = LEAVE_FREE + segments * self.facts.control.segment_size.bytes();
        self.shelf.free().is_ok_and(|free| free > needed)
    }

    /// What recovery will ask for next: on each position the youngest timeline that had begun there.
    fn next_after(&self, asked: SegmentName) -> Vec<SegmentName> {
        let size = self.facts.control.segment_size;
        let Ok(number) = size.number(asked) else { return Vec::new() };
        let past = self.past_of(asked, number);
        let timeline = |number| past.as_ref().map_or(asked.timeline, |past| owner(past, number, size));
        (1..=self.window).map(|ahead| SegmentNumber(number.0 + ahead)).map(|n| size.name(timeline(n), n)).collect()
    }

    /// The youngest timeline whose history has the segment that was asked for on its way: the histories that PostgreSQL fetched lie
    /// in `pg_wal`.
    fn past_of(&self, asked: SegmentName, number: SegmentNumber) -> Option<HistoryFile> {
        let size = self.facts.control.segment_size;
        let files = fs::read_dir(&self.pg_wal).ok()?.flatten();
        let histories = files.filter_map(|file| {
            let Ok(WalName::History(timeline)) = file.file_name().to_str()?.parse() else { return None };
            HistoryFile::parse(timeline, &fs::read(file.path()).ok()?).ok()
        });
        histories.filter(|past| owner(past, number, size) == asked.timeline).max_by_key(|past| past.timeline)
    }
}

/// The timeline that a recovery along this history takes a segment from.
///
/// Source: `XLogFileReadAnyTLI` in `access/transam/xlogrecovery.c`.
fn owner(past: &HistoryFile, number: SegmentNumber, size: SegmentSize) -> TimelineId {
    let mut timeline = past.timeline;
    // From the newest on: recovered to before the fork of the timeline that was followed, a history has a smaller switch behind a
    // larger one.
    for entry in past.entries.iter().rev() {
        if number >= size.containing(entry.switch) {
            break;
        }
        timeline = entry.parent;
    }
    timeline
}

/// Fetches a segment to the shelf; `false`: it is not there now.
async fn fetch(
    shelf: Shelf,
    archive: WalArchive,
    segment: SegmentName,
    facts: ClusterFacts,
    bounds: ReadBounds,
) -> (SegmentName, bool) {
    let fetched = try_fetch(&shelf, &archive, segment, facts, &bounds).await;
    (segment, fetched.unwrap_or(false))
}

async fn try_fetch(
    shelf: &Shelf,
    archive: &WalArchive,
    segment: SegmentName,
    facts: ClusterFacts,
    bounds: &ReadBounds,
) -> Result<bool, RepoError> {
    let expected = Expected {
        name: WalName::Segment(segment),
        ident: Some(facts.ident),
        segment_size: Some(facts.control.segment_size),
    };
    let growing = shelf.begin(segment).map_err(RepoError::Destination)?;
    let sink = growing.writer().map_err(RepoError::Destination)?;
    let Some((_, written)) = archive.read(expected, sink, bounds).await? else { return Ok(false) };
    growing.finish(written, facts.ident, Timestamp::now()).map_err(RepoError::Destination)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shelf_has_a_least_and_a_most() {
        let size = |mib: u64| SegmentSize::new(mib << 20).unwrap();
        assert_eq!(window(8, size(16)), 8);
        assert_eq!(window(8, size(1)), 128);
        assert_eq!(window(8, size(64)), 8);
        assert_eq!(window(8, size(1024)), 1);
        assert_eq!(window(64, size(16)), 64);
        assert_eq!(window(64, size(64)), 16);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_missing_is_tried_alone_until_it_comes() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let wanted: Vec<SegmentName> = (1..=4).map(|n| size.name(TimelineId::FIRST, SegmentNumber(n))).collect();
        let mut bar = Bar::default();
        assert_eq!(bar.free(&wanted), wanted);
        // All were asked for at once, and the last answer is not the last word.
        for missing in [2, 1, 3] {
            bar.done(&wanted, wanted[missing], false);
        }
        assert_eq!(bar.free(&wanted), &wanted[..1]);
        sleep(PAUSE).await;
        assert_eq!(bar.free(&wanted), &wanted[..2]);
        bar.done(&wanted, wanted[1], false);
        assert_eq!(bar.free(&wanted), &wanted[..1]);
        bar.asked(true);
        assert_eq!(bar.free(&wanted), &wanted[..2]);
        bar.done(&wanted, wanted[1], true);
        assert_eq!(bar.free(&wanted), wanted);
        bar.done(&wanted, wanted[3], false);
        bar.asked(false);
        assert_eq!(bar.free(&wanted), wanted);
    }

    #[test]
    fn segments_belong_to_the_timeline_that_had_begun() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let text = b"1\t0/3000028\tx\n2\t0/5000000\ty\n";
        let past = HistoryFile::parse(TimelineId::new(3).unwrap(), text).unwrap();
        let owners: Vec<u32> = (1..=6).map(|n| owner(&past, SegmentNumber(n), size).get()).collect();
        assert_eq!(owners, [1, 1, 2, 2, 3, 3]);
        let back = b"1\t0/5000028\tx\n2\t0/3000000\ty\n";
        let past = HistoryFile::parse(TimelineId::new(3).unwrap(), back).unwrap();
        let owners: Vec<u32> = (1..=6).map(|n| owner(&past, SegmentNumber(n), size).get()).collect();
        assert_eq!(owners, [1, 1, 3, 3, 3, 3]);
    }
}
