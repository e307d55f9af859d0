//! Where a drill recovers to, and whether it came there.

use jiff::Timestamp;

use super::drill_report::{Place, Reason};
use super::status::{IntervalStatus, StatusReport};
use crate::postgres::{HistoryEntry, SegmentName, SegmentSize};

/// What is promised of the latest state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Promise {
    /// The end.
    pub(super) place: Place,
    /// The last segment.
    pub(super) segment: SegmentName,
}

impl Promise {
    /// By what `status` says.
    pub(super) fn of(status: &StatusReport) -> Option<Self> {
        let newest = status.newest.as_ref()?;
        let segment: SegmentName = newest.segment.parse().ok()?;
        let place = Place { lsn: newest.lsn, timeline: segment.timeline.get(), last_commit: newest.last_commit };
        Some(Promise { place, segment })
    }
}

/// Draws a moment that is promised, each as likely as any other. Only moments with a later commit count: PostgreSQL stops there.
pub(super) fn draw(status: &StatusReport, promise: &Promise, seed: u64) -> Option<Timestamp> {
    let timeline = status.timelines.iter().find(|timeline| timeline.timeline == promise.place.timeline)?;
    let span = |interval: &IntervalStatus| {
        let (from, to) = (interval.from_time?.as_microsecond(), interval.to_time?.as_microsecond());
        (from < to).then_some((from, to - from))
    };
    let spans: Vec<(i64, i64)> = timeline.intervals.iter().filter_map(span).collect();
    let all: i64 = spans.iter().map(|(_, length)| length).sum();
    if all == 0 {
        return None;
    }
    let mut drawn = (mixed(seed) % all.unsigned_abs()).cast_signed();
    for (from, length) in spans {
        if drawn < length {
            return Timestamp::from_microsecond(from + drawn).ok();
        }
        drawn -= length;
    }
    None
}

/// SplitMix64: near seeds give far numbers.
fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Commit times are those of the sessions, whose records may overtake each other by so much.
const OVERTAKING: jiff::SignedDuration = jiff::SignedDuration::from_secs(1);

/// Whether all that was promised was replayed.
///
/// A promise goes to the end of a segment, and the last record may be cut there. So it is kept where recovery ended in the last
/// segment, if the last commit that the segment tells of was replayed. `stop` is the last segment that the backup itself needs: commits
/// in it may lie before the backup's begin.
pub(super) fn kept(promise: &Promise, reached: &Place, size: SegmentSize, stop: SegmentName) -> Result<String, Reason> {
    let short = |why: String| {
        Reason::failed("short", format!("recovery fell short of what `status` promised: {why}"))
            .with_hint("`pgark verify --deep` reads all WAL, and says which segment is wrong")
    };
    let Place { lsn, timeline, last_commit } = promise.place;
    if reached.timeline != timeline {
        return Err(short(format!("it ended on timeline {}, promised was timeline {timeline}", reached.timeline)));
    }
    if reached.lsn >= lsn {
        return Ok(format!("{}, and {lsn} was promised", reached.words()));
    }
    let begin = size.number(promise.segment).map(|number| size.start(number));
    if begin.map_or(true, |begin| reached.lsn < begin) {
        return Err(short(format!("it ended at {}, promised was {lsn}", reached.lsn)));
    }
    let late = |commit: Timestamp| match reached.last_commit {
        Some(replayed) => replayed.saturating_add(OVERTAKING).map_or(true, |replayed| replayed < commit),
        None => true,
    };
    if let Some(commit) = last_commit.filter(|commit| promise.segment != stop && late(*commit)) {
        let replayed = reached.last_commit.map_or("none was replayed".to_owned(), |at| format!("replayed was {at}"));
        return Err(short(format!("its last segment has a commit of {commit}, and of commits {replayed}")));
    }
    Ok(format!("{}, where the last record of the promised segments ends", reached.words()))
}

/// Whether recovery stopped because of the target: PostgreSQL notes the first transaction behind it.
pub(super) fn stopped_at(target: Timestamp, last: &HistoryEntry, reached: &Place) -> Result<String, Reason> {
    let wrong = |why: String| Reason::failed("short", format!("recovery did not stop at {target}: {why}"));
    let noted = last.reason.trim();
    let Some(behind) = noted.strip_prefix("before ").or_else(|| noted.strip_prefix("after ")) else {
        return Err(wrong(format!("PostgreSQL noted `{noted}` as the reason")));
    };
    let stop: Timestamp =
        behind.trim().parse().map_err(|_| wrong(format!("the reason `{noted}` holds no time that can be read")))?;
    if stop < target {
        return Err(wrong(format!("it stopped at a transaction of {stop}")));
    }
    // What PostgreSQL tells of as the last transaction may be a restore point between both.
    match reached.last_commit {
        Some(replayed) if replayed > target && replayed > stop => {
            Err(wrong(format!("a transaction of {replayed} was replayed")))
        }
        _ => Ok(format!("{}, stopped before a transaction of {stop}", reached.words())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{Lsn, TimelineId};

    const SIZE: u64 = 16 << 20;

    fn at(second: i64) -> Option<Timestamp> {
        Some(Timestamp::from_second(second).unwrap())
    }

    fn place(lsn: u64, timeline: u32, commit: Option<Timestamp>) -> Place {
        Place { lsn: Lsn(lsn), timeline, last_commit: commit }
    }

    #[test]
    fn a_promise_is_kept_to_the_last_whole_record() {
        let size = SegmentSize::new(SIZE).unwrap();
        let name = |number: u64| size.name(TimelineId::FIRST, crate::postgres::SegmentNumber(number));
        let promise = Promise { place: place(4 * SIZE, 1, at(1000)), segment: name(3) };
        let judge = |reached: Place, stop| kept(&promise, &reached, size, name(stop)).map_err(|reason| reason.message);
        assert!(judge(place(4 * SIZE, 1, None), 1).is_ok());
        assert!(judge(place(4 * SIZE - 99, 1, at(1000)), 1).is_ok());
        assert!(judge(place(3 * SIZE + 99, 1, None), 3).is_ok());
        for (reached, says) in [
            (place(4 * SIZE, 2, at(1000)), "ended on timeline 2, promised was timeline 1"),
            (place(3 * SIZE - 1, 1, at(1000)), "ended at 0/2FFFFFF, promised was 0/4000000"),
            (place(4 * SIZE - 99, 1, at(900)), "replayed was 1970-01-01T00:15:00Z"),
            (place(4 * SIZE - 99, 1, None), "none was replayed"),
        ] {
            assert!(judge(reached, 1).unwrap_err().contains(says), "{reached:?}");
        }
    }

    #[test]
    fn a_moment_is_reached_when_something_behind_it_was_found() {
        let target = at(1000).unwrap();
        let judge = |reason: &str, last: Option<Timestamp>| {
            let entry = HistoryEntry { parent: TimelineId::FIRST, switch: Lsn(99), reason: reason.to_owned() };
            stopped_at(target, &entry, &place(99, 1, last)).map_err(|reason| reason.message)
        };
        assert!(judge("before 1970-01-01 00:16:41.5+00", at(999)).is_ok());
        assert!(judge("before 1970-01-01 00:16:41+00", None).is_ok());
        assert!(judge("before 1970-01-01 00:16:42+00", at(1001)).is_ok(), "a restore point");
        assert!(judge("before 1970-01-01 00:16:39+00", None).unwrap_err().contains("stopped at a transaction"));
        assert!(judge("before 1970-01-01 00:16:41+00", at(1002)).unwrap_err().contains("was replayed"));
        assert!(judge("no recovery target specified", at(999)).unwrap_err().contains("as the reason"));
    }

    #[test]
    fn near_seeds_draw_far_numbers() {
        let drawn: std::collections::BTreeSet<u64> = (0..1000).map(|seed| mixed(seed) % 97).collect();
        assert_eq!(drawn.len(), 97);
    }
}
