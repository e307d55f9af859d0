//! What `verify` tells by listings alone: segments and parts that are not there. What follows each other is told at once, for a
//! manifest may claim any number.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;

use crate::postgres::{SegmentNumber, WalName};
use crate::repo::health::lost_wal;
use crate::repo::manifest_entries::PartEntry;
use crate::repo::timeline_path::TimelineSpan;
use crate::repo::wal_runs::Span;
use crate::repo::{BackupListing, Inventory};

/// Of these spans what the listing does not have, by the first name, with the words for it.
pub(super) fn missing_segments(inventory: &Inventory, spans: &[TimelineSpan]) -> Vec<(WalName, String, &'static str)> {
    let mut missing = Vec::new();
    for TimelineSpan { timeline, span } in spans {
        let there = inventory.timeline(*timeline);
        for gap in there.map_or_else(|| vec![*span], |wal| wal.segments.missing(*span)) {
            let name = |number| WalName::Segment(inventory.segment_size.name(*timeline, number));
            let (said, them) = they_are_missing(&(gap.first.0..=gap.last.0), name(gap.last));
            missing.push((name(gap.first), said, them));
        }
    }
    missing
}

/// WAL that is missing between or behind what is there, though `expire` would not have left it so; without what is needed by backups,
/// of which it is said anyhow.
pub(super) fn lost(inventory: &Inventory, needed: &[TimelineSpan]) -> Vec<(WalName, String, &'static str)> {
    let mut rest = lost_wal(inventory);
    for TimelineSpan { timeline, span: need } in needed {
        let cut = |lost: TimelineSpan| {
            let TimelineSpan { timeline: on, span } = lost;
            let before =
                need.first.0.checked_sub(1).and_then(|last| Span::new(span.first, SegmentNumber(last).min(span.last)));
            let behind = Span::new(SegmentNumber(need.last.0 + 1).max(span.first), span.last);
            match on == *timeline {
                true => {
                    [before, behind].into_iter().flatten().map(|span| TimelineSpan { timeline: on, span }).collect()
                }
                false => vec![lost],
            }
        };
        rest = rest.into_iter().flat_map(cut).collect();
    }
    missing_segments(inventory, &rest)
}

/// Of these parts of a backup those that the listing does not have; and those that are not as long as they should be, with their
/// lengths.
pub(super) fn unread<'m>(
    backup: &BackupListing,
    parts: impl Iterator<Item = &'m PartEntry>,
) -> (BTreeSet<u32>, Vec<(&'m PartEntry, u64)>) {
    let there: BTreeMap<u32, u64> = backup.parts().collect();
    let (mut missing, mut wrong) = (BTreeSet::new(), Vec::new());
    for part in parts {
        match there.get(&part.part) {
            None => drop(missing.insert(part.part)),
            Some(size) if *size != part.stored => wrong.push((part, *size)),
            Some(_) => {}
        }
    }
    (missing, wrong)
}

/// Numbers that follow each other, put together.
pub(super) fn runs_of(numbers: &BTreeSet<u32>) -> Vec<RangeInclusive<u32>> {
    let mut runs: Vec<RangeInclusive<u32>> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.end().checked_add(1) == Some(*number) => *run = *run.start()..=*number,
            _ => runs.push(*number..=*number),
        }
    }
    runs
}

/// The words for one missing object, or for many up to the last; and the pronoun for them.
pub(super) fn they_are_missing(run: &RangeInclusive<u64>, last: impl fmt::Display) -> (String, &'static str) {
    match run.end() - run.start() {
        0 => ("it is missing".to_owned(), "it"),
        more => (format!("it and {more} more up to `{last}` are missing"), "them"),
    }
}
