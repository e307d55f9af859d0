//! The proof that a WAL file is absent: what may end a recovery.
//!
//! The store's own word for the missing object ([`crate::storage::Get::Missing`]) and the identity of the
//! repository come first; the caller has both. What is added here: one listing must show nothing later, for
//! then the missing file is a gap, and stopping there would lose what lies behind.

use super::archive::WalArchive;
use super::error::RepoError;
use super::layout::WalKey;
use crate::postgres::{TimelineId, WalName};
use crate::storage::object_store::Visit;
use crate::storage::{KeyPrefix, ObjectStoreExt};

/// What a missing file means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Nothing later is there: this is where the archive ends.
    Proven,
    /// Something later is there.
    Gap {
        /// Its name.
        later: WalName,
    },
}

const PAGE: usize = 100;

impl WalArchive {
    /// Judges a file that the store does not have. `recovering_on` is the timeline that recovery begins on, if
    /// known.
    ///
    /// * A segment: anything of a later segment of its timeline makes a gap.
    /// * A history file above `recovering_on` is asked for to find newer timelines: anything of a higher timeline
    ///   makes a gap. Parents' histories may be missing from a repository that was begun later, and timeline 1
    ///   never has one.
    /// * Partial segments and backup notes: their absence is just that.
    pub async fn absence_of(&self, name: WalName, recovering_on: Option<TimelineId>) -> Result<Absence, RepoError> {
        match name {
            WalName::Segment(segment) => {
                let prefix = self.layout.timeline(self.generation, segment.timeline);
                let after = self.layout.wal_file(self.generation, name);
                let later = |other: WalName| {
                    other.segment().is_some_and(|other| other != segment && other.at_or_after(segment))
                };
                self.look_behind(&prefix, after.as_str(), later).await
            }
            WalName::History(timeline)
                if timeline != TimelineId::FIRST && recovering_on.is_none_or(|own| timeline > own) =>
            {
                let prefix = self.layout.wal(self.generation);
                let after = self.layout.after_timeline(self.generation, timeline);
                self.look_behind(&prefix, &after, |other| other.timeline() > timeline).await
            }
            _ => Ok(Absence::Proven),
        }
    }

    async fn look_behind(
        &self,
        prefix: &KeyPrefix,
        after: &str,
        is_later: impl Fn(WalName) -> bool + Send + Sync,
    ) -> Result<Absence, RepoError> {
        let mut absence = Absence::Proven;
        self.store
            .visit_after(prefix, Some(after), PAGE, |listed| {
                let name = match self.layout.parse_wal(&listed.key) {
                    Some((_, WalKey::File(name))) => name,
                    Some((_, WalKey::OtherPartial(segment, _))) => WalName::Partial(segment),
                    None => return Visit::More,
                };
                if !is_later(name) {
                    return Visit::More;
                }
                absence = Absence::Gap { later: name };
                Visit::Enough
            })
            .await?;
        Ok(absence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::{Generation, Repository};
    use crate::storage::memory::MemoryStore;
    use crate::storage::{ObjectStore, UserMetadata};
    use std::sync::Arc;

    fn judge(stored: &[&str], missing: &str, recovering_on: Option<u32>) -> Absence {
        let store = Arc::new(MemoryStore::default());
        let repository = Repository::new(store.clone(), "main".parse().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            for name in stored {
                let key = match name.parse() {
                    Ok(name) => repository.layout.wal_file(Generation(1), name),
                    Err(_) => name.parse().unwrap(),
                };
                store.put(&key, "x".into(), &UserMetadata::new()).await.unwrap();
            }
            let timeline = recovering_on.and_then(TimelineId::new);
            repository.archive(Generation(1)).absence_of(missing.parse().unwrap(), timeline).await.unwrap()
        })
    }

    fn gap(later: &str) -> Absence {
        Absence::Gap { later: later.parse().unwrap() }
    }

    const N: &str = "000000010000000000000005";

    #[test]
    fn a_later_segment_makes_a_gap() {
        assert_eq!(judge(&[], N, None), Absence::Proven);
        assert_eq!(judge(&["000000010000000000000004"], N, None), Absence::Proven);
        assert_eq!(judge(&["000000010000000000000006"], N, None), gap("000000010000000000000006"));
        assert_eq!(judge(&["000000010000000100000000"], N, None), gap("000000010000000100000000"));
    }

    #[test]
    fn its_own_partial_and_other_timelines_do_not() {
        let stored = [
            "000000010000000000000005.partial",
            "000000010000000000000005.00000028.backup",
            "main/1/wal/00000001/00000000/000000010000000000000005.partial.0123456789abcdef.zst",
            "main/1/wal/00000001/00000000/unknown",
            "000000020000000000000006",
            "00000002.history",
            "main/2/wal/00000001/00000000/000000010000000000000009.zst",
        ];
        assert_eq!(judge(&stored, N, None), Absence::Proven);
    }

    #[test]
    fn a_later_partial_or_backup_note_shows_that_there_was_more() {
        for later in ["000000010000000000000006.partial", "000000010000000000000007.00000028.backup"] {
            assert_eq!(judge(&[later], N, None), gap(later));
        }
    }

    #[test]
    fn a_higher_timeline_makes_a_missing_history_a_gap_where_newer_ones_are_sought() {
        assert_eq!(judge(&["00000003.history"], "00000002.history", Some(1)), gap("00000003.history"));
        assert_eq!(judge(&["00000003.history"], "00000002.history", None), gap("00000003.history"));
        assert_eq!(judge(&["00000003.history"], "00000002.history", Some(3)), Absence::Proven);
        assert_eq!(judge(&["00000002.history", N], "00000003.history", Some(2)), Absence::Proven);
        assert_eq!(judge(&["00000002.history"], "00000001.history", Some(1)), Absence::Proven);
    }

    #[test]
    fn more_unrelated_keys_than_fit_a_page_hide_nothing() {
        let notes: Vec<String> = (0..250).map(|i| format!("{N}.{i:08X}.backup")).collect();
        let mut stored: Vec<&str> = notes.iter().map(String::as_str).collect();
        assert_eq!(judge(&stored, N, None), Absence::Proven);
        stored.push("000000010000000000000006");
        assert_eq!(judge(&stored, N, None), gap("000000010000000000000006"));
    }
}
