//! Pages with wrong checksums, as they are found while the end of the backup is not known yet.

use super::Lsn;
use super::page::PageState;

/// The blocks of a run of a relation file whose checksums are wrong.
///
/// A page that was changed since the start may be torn, and replay puts a whole image over it. But nothing was changed behind
/// the stop: a page that says so holds rubbish where its position should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WrongPages {
    bad: Vec<u32>,
    /// With the position after the last change, as the page has it.
    changed: Vec<(Lsn, u32)>,
}

/// So many that were changed are remembered. Those that say the latest stay: if any is rubbish, it is among them.
const MOST_CHANGED: usize = 1000;

impl WrongPages {
    /// Remembers what was found at a block.
    pub fn note(&mut self, block: u32, state: PageState) {
        match state {
            PageState::Good | PageState::New => {}
            PageState::Bad { .. } => self.bad.push(block),
            PageState::ChangedSinceStart { lsn } => {
                self.changed.push((lsn, block));
                if self.changed.len() > MOST_CHANGED
                    && let Some(first) = (0..self.changed.len()).min_by_key(|at| self.changed[*at])
                {
                    self.changed.swap_remove(first);
                }
            }
        }
    }

    /// The blocks that no replay heals, in their order, now that the end of the backup is known.
    pub fn behind(mut self, stop: Lsn) -> Vec<u32> {
        self.bad.extend(self.changed.iter().filter(|(lsn, _)| *lsn > stop).map(|(_, block)| *block));
        self.bad.sort_unstable();
        self.bad
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(lsn: u64) -> PageState {
        PageState::ChangedSinceStart { lsn: Lsn(lsn) }
    }

    #[test]
    fn what_was_changed_until_the_stop_is_excused_and_what_says_later_is_not() {
        let mut wrong = WrongPages::default();
        let states =
            [PageState::Good, changed(100), PageState::Bad { expected: 1, found: 2 }, changed(101), PageState::New];
        (0..).zip(states).for_each(|(block, state)| wrong.note(block, state));
        assert_eq!(wrong.clone().behind(Lsn(99)), [1, 2, 3]);
        assert_eq!(wrong.clone().behind(Lsn(100)), [2, 3]);
        assert_eq!(wrong.behind(Lsn(101)), [2]);
    }

    #[test]
    fn rubbish_is_found_among_any_number_of_torn_pages() {
        let mut wrong = WrongPages::default();
        for block in 0..5000 {
            wrong.note(block, changed(if block == 17 { u64::MAX } else { u64::from(block) }));
        }
        assert_eq!(wrong.changed.len(), MOST_CHANGED);
        assert_eq!(wrong.behind(Lsn(5000)), [17]);
    }
}
