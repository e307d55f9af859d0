//! What `verify` tells by listings alone: segments and parts that are not there. What follows each other is told at once, for a
//! manifest may claim any number.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;

use crate::postgres::{SegmentName, SegmentNumber, SegmentSize, WalName};
use crate::repo::holdings::HeldBackup;
use crate::repo::manifest_entries::PartEntry;
use crate::repo::{BackupKey, Holdings, WalKey};

/// Segments of one timeline, from the first to the last.
pub(super) type Run = (SegmentName, SegmentName);

/// Of each run what the listing does not have, with the words for it.
pub(super) fn missing_segments(
    holdings: &Holdings,
    size: SegmentSize,
    runs: &[Run],
) -> Vec<(WalName, String, &'static str)> {
    let segments = holdings.wal.iter().filter_map(|wal| match wal.key {
        WalKey::File(WalName::Segment(segment)) => Some(segment),
        _ => None,
    });
    let there: BTreeSet<SegmentName> = segments.collect();
    let mut missing = Vec::new();
    for (first, last) in runs {
        let present = there.range(*first..=*last).filter_map(|segment| size.number(*segment).ok());
        let (Ok(begin), Ok(end)) = (size.number(*first), size.number(*last)) else { continue };
        for gap in gaps(begin.0, end.0, present.map(|number| number.0)) {
            let name = |number| WalName::Segment(size.name(first.timeline, SegmentNumber(number)));
            let (said, them) = they_are_missing(&gap, name(*gap.end()));
            missing.push((name(*gap.start()), said, them));
        }
    }
    missing
}

/// Of these parts of a backup those that the listing does not have; and those that are not as long as they should be, with their
/// lengths.
pub(super) fn unread<'m>(
    backup: &HeldBackup,
    parts: impl Iterator<Item = &'m PartEntry>,
) -> (BTreeSet<u32>, Vec<(&'m PartEntry, u64)>) {
    let there: BTreeMap<BackupKey, u64> = backup.pieces.iter().map(|piece| (piece.key, piece.bytes)).collect();
    let (mut missing, mut wrong) = (BTreeSet::new(), Vec::new());
    for part in parts {
        match there.get(&BackupKey::Part(part.part)) {
            None => drop(missing.insert(part.part)),
            Some(size) if *size != part.stored => wrong.push((part, *size)),
            Some(_) => {}
        }
    }
    (missing, wrong)
}

/// What lies between `begin` and `end`, both included, and is not among these, which ascend.
fn gaps(begin: u64, end: u64, present: impl Iterator<Item = u64>) -> Vec<RangeInclusive<u64>> {
    let mut next = begin;
    let mut gaps = Vec::new();
    for number in present {
        if next < number {
            gaps.push(next..=number - 1);
        }
        next = number + 1;
    }
    if next <= end {
        gaps.push(next..=end);
    }
    gaps
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
