//! Which segments of a timeline are stored: runs of consecutive numbers, at four bytes a segment.

use jiff::Timestamp;

use crate::postgres::SegmentNumber;

/// From one segment to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The first.
    pub first: SegmentNumber,
    /// The last; not below the first.
    pub last: SegmentNumber,
}

impl Span {
    /// No segment has a higher number, whatever the size.
    pub const LAST: SegmentNumber = SegmentNumber(u64::MAX / (1 << 20));

    /// From one segment to another; `None` if the last would be below the first.
    pub fn new(first: SegmentNumber, last: SegmentNumber) -> Option<Span> {
        (first <= last).then_some(Span { first, last })
    }

    /// Everything from a segment on.
    pub fn onward(first: SegmentNumber) -> Span {
        Span { first, last: Span::LAST.max(first) }
    }

    /// Whether a segment is in it.
    pub fn has(self, number: SegmentNumber) -> bool {
        self.first <= number && number <= self.last
    }

    /// Whether all of another is in it.
    pub fn covers(self, other: Span) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// What is in both.
    pub fn common(self, other: Span) -> Option<Span> {
        Span::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// How many.
    pub fn count(self) -> u64 {
        self.last.0 - self.first.0 + 1
    }
}

/// Segments without one missing between them.
///
/// * Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first segment.
    pub first: SegmentNumber,
    sizes: Vec<u32>,
    /// When the first one was stored, by the store's clock.
    pub first_stored: Option<Timestamp>,
    /// When the last one was stored.
    pub last_stored: Option<Timestamp>,
}

impl Run {
    /// A run of one.
    pub fn of(number: SegmentNumber, bytes: u64, stored: Option<Timestamp>) -> Self {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Run { first: number, sizes: vec![bytes], first_stored: stored, last_stored: stored }
    }

    /// The last segment.
    pub fn last(&self) -> SegmentNumber {
        SegmentNumber(self.first.0 + self.sizes.len() as u64 - 1)
    }

    /// First and last.
    pub fn span(&self) -> Span {
        Span { first: self.first, last: self.last() }
    }

    /// The first `count` segments, at least one, and the rest.
    pub fn cut(mut self, count: u64) -> (Run, Option<Run>) {
        let count = usize::try_from(count.max(1)).unwrap_or(usize::MAX);
        if count >= self.sizes.len() {
            return (self, None);
        }
        let first = SegmentNumber(self.first.0 + count as u64);
        let sizes = self.sizes.split_off(count);
        let rest = Run { first, sizes, first_stored: None, last_stored: self.last_stored.take() };
        (self, Some(rest))
    }

    /// The same segments under other numbers.
    pub fn moved_to(self, first: SegmentNumber) -> Run {
        Run { first, ..self }
    }

    /// The stored bytes of those of its segments that lie in a span.
    pub fn bytes(&self, span: Span) -> u64 {
        let Some(common) = self.span().common(span) else { return 0 };
        let (from, to) = (common.first.0 - self.first.0, common.last.0 - self.first.0);
        self.sizes[from as usize..=to as usize].iter().map(|bytes| u64::from(*bytes)).sum()
    }
}

/// The runs of a timeline, ascending, with at least one segment missing between two of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs(Vec<Run>);

impl Runs {
    /// Adds segments that lie behind all others; what is there already is passed over.
    pub fn append(&mut self, run: Run) {
        match self.0.last_mut() {
            Some(last) if run.first <= last.last() => {}
            Some(last) if run.first.0 == last.last().0 + 1 => {
                last.sizes.extend_from_slice(&run.sizes);
                last.last_stored = run.last_stored;
            }
            _ => self.0.push(run),
        }
    }

    /// Takes the very last segment away.
    pub fn drop_last(&mut self) {
        if let Some(run) = self.0.pop() {
            let whole = run.sizes.len() as u64;
            if whole > 1 {
                let (run, _) = run.cut(whole - 1);
                self.0.push(run);
            }
        }
    }

    /// The runs, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Run> {
        self.0.iter()
    }

    /// The runs themselves.
    pub fn into_vec(self) -> Vec<Run> {
        self.0
    }

    /// No segment at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The run that a segment is in.
    pub fn containing(&self, number: SegmentNumber) -> Option<&Run> {
        let behind = self.0.partition_point(|run| run.first <= number);
        self.0[..behind].last().filter(|run| number <= run.last())
    }

    /// Whether a segment is stored.
    pub fn has(&self, number: SegmentNumber) -> bool {
        self.containing(number).is_some()
    }

    /// The very first segment.
    pub fn first(&self) -> Option<SegmentNumber> {
        self.0.first().map(|run| run.first)
    }

    /// The very last segment.
    pub fn last(&self) -> Option<SegmentNumber> {
        self.0.last().map(Run::last)
    }

    /// How many segments there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|run| run.span().count()).sum()
    }

    /// The stored bytes of the segments in a span.
    pub fn bytes(&self, span: Span) -> u64 {
        self.0.iter().map(|run| run.bytes(span)).sum()
    }

    /// What of a span is stored, ascending.
    pub fn within(&self, span: Span) -> impl Iterator<Item = Span> {
        let behind = self.0.partition_point(|run| run.last() < span.first);
        self.0[behind..].iter().map_while(move |run| run.span().common(span))
    }

    /// What of a span is not stored.
    pub fn missing(&self, span: Span) -> Vec<Span> {
        let mut missing = Vec::new();
        let mut next = span.first;
        for there in self.within(span) {
            if next < there.first {
                missing.push(Span { first: next, last: SegmentNumber(there.first.0 - 1) });
            }
            next = SegmentNumber(there.last.0 + 1);
        }
        if next <= span.last {
            missing.push(Span { first: next, last: span.last });
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn span(first: u64, last: u64) -> Span {
        Span { first: SegmentNumber(first), last: SegmentNumber(last) }
    }

    proptest! {
        /// Against a plain set of numbers.
        #[test]
        fn runs_are_the_set(numbers in proptest::collection::btree_set(0u64..60, 0..50), from in 0u64..60, length in 0u64..30) {
            let mut runs = Runs::default();
            for number in &numbers {
                runs.append(Run::of(SegmentNumber(*number), number + 1, None));
            }
            let range = span(from, from + length);
            let inside: BTreeSet<u64> = numbers.iter().copied().filter(|n| (from..=from + length).contains(n)).collect();
            prop_assert_eq!(runs.count(), numbers.len() as u64);
            prop_assert_eq!(runs.bytes(range), inside.iter().map(|n| n + 1).sum::<u64>());
            let missing: BTreeSet<u64> = runs.missing(range).into_iter().flat_map(|s| s.first.0..=s.last.0).collect();
            prop_assert_eq!(missing, (from..=from + length).filter(|n| !numbers.contains(n)).collect::<BTreeSet<_>>());
            let mut fewer = runs.clone();
            fewer.drop_last();
            prop_assert_eq!(fewer.count(), runs.count().saturating_sub(1));
            prop_assert!(runs.last().is_none_or(|last| !fewer.has(last)));
            for number in 0..60 {
                prop_assert_eq!(runs.has(SegmentNumber(number)), numbers.contains(&number));
            }
            let ends: Vec<_> = runs.iter().map(Run::span).collect();
            prop_assert!(ends.windows(2).all(|pair| pair[0].last.0 + 1 < pair[1].first.0));
        }
    }
}
