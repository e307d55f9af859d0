//! The proof that a WAL file is absent: what may end a recovery.
//!
//! The store's own word for the missing object ([`crate::storage::Get::Missing`]) and the identity of the
//! repository come first; the caller has both. What is added here: nothing may show that the missing file once was.
//! Then it is a gap, and stopping there would lose what lies behind.

use std::fmt;

use super::archive::{ReadBounds, WalArchive};
use super::error::RepoError;
use super::wal_object::Expected;
use crate::postgres::{ClusterIdent, HistoryFile, SegmentName, SegmentSize, TimelineId, WalName};
use crate::storage::ObjectStoreExt;
use crate::storage::object_store::Visit;

/// What a missing file means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Nothing shows that there ever was one: this is where the archive ends.
    Proven,
    /// The segment is not there whole, but its beginning is, in pieces of the live tail; and nothing later.
    Unfinished,
    /// Something shows that there was.
    Gap {
        /// What: the name of a WAL file, or the whole key of a piece of the live tail or of something that this pgark does not
        /// know.
        later: String,
    },
}

/// What is known about the cluster that asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asking {
    /// Which it is.
    pub ident: Option<ClusterIdent>,
    /// The size of its segments.
    pub segment_size: Option<SegmentSize>,
    /// The timeline on which its recovery begins.
    pub recovering_on: Option<TimelineId>,
}

const PAGE: usize = 100;

impl WalArchive {
    /// Judges a file that the store does not have.
    ///
    /// * A segment: anything of a later segment of its timeline makes a gap. So does a later timeline that left this one
    ///   behind the segment: its history shows that this timeline went on, though nobody archived it.
    /// * A history file above `recovering_on` is asked for to find newer timelines: anything of a higher timeline
    ///   makes a gap. Parents' histories may be missing from a repository that was begun later, and timeline 1
    ///   never has one.
    /// * Pieces of the live tail count as what they are pieces of. Those of the segment itself say that it is unfinished.
    /// * An object there whose name is not known counts as later, too.
    /// * Partial segments and backup notes: their absence is just that.
    pub async fn absence_of(&self, name: WalName, asking: &Asking, bounds: &ReadBounds) -> Result<Absence, RepoError> {
        match name {
            WalName::Segment(segment) => self.absence_of_segment(segment, asking, bounds).await,
            WalName::History(timeline)
                if timeline != TimelineId::FIRST && asking.recovering_on.is_none_or(|own| timeline > own) =>
            {
                let after = self.layout.after_timeline(self.generation, timeline);
                let later = match self.next_behind(&after, |_| false).await? {
                    Some(later) => Some(later),
                    None => {
                        self.next_piece_behind(&format!("{}~", self.layout.live_timeline(self.generation, timeline)))
                            .await?
                    }
                };
                Ok(later.map_or(Absence::Proven, |later| Absence::Gap { later: later.to_string() }))
            }
            _ => Ok(Absence::Proven),
        }
    }

    async fn absence_of_segment(
        &self,
        segment: SegmentName,
        asking: &Asking,
        bounds: &ReadBounds,
    ) -> Result<Absence, RepoError> {
        let own = |other: WalName| match other {
            WalName::History(timeline) => timeline == segment.timeline,
            other => other.segment() == Some(segment),
        };
        let mut after = self.layout.wal_file(self.generation, WalName::Segment(segment)).as_str().to_owned();
        while let Some(later) = self.next_behind(&after, own).await? {
            if let Some(gap) = self.gap_behind(segment, &later, asking, bounds).await? {
                return Ok(gap);
            }
            let Some(timeline) = later.timeline() else { break };
            after = self.layout.after_timeline(self.generation, timeline);
        }
        self.absence_by_pieces(segment, asking, bounds).await
    }

    async fn absence_by_pieces(
        &self,
        segment: SegmentName,
        asking: &Asking,
        bounds: &ReadBounds,
    ) -> Result<Absence, RepoError> {
        let tail = self.layout.live_segment(self.generation, segment);
        let (mut after, mut absence) = (tail.to_string(), Absence::Proven);
        while let Some(later) = self.next_piece_behind(&after).await? {
            if later.to_string().starts_with(tail.as_str()) {
                (after, absence) = (format!("{tail}~"), Absence::Unfinished);
                continue;
            }
            if let Some(gap) = self.gap_behind(segment, &later, asking, bounds).await? {
                return Ok(gap);
            }
            let Some(timeline) = later.timeline() else { break };
            after = format!("{}~", self.layout.live_timeline(self.generation, timeline));
        }
        Ok(absence)
    }

    /// Whether something shows that the segment's timeline went on behind it.
    async fn gap_behind(
        &self,
        segment: SegmentName,
        later: &Behind,
        asking: &Asking,
        bounds: &ReadBounds,
    ) -> Result<Option<Absence>, RepoError> {
        let gap = || Absence::Gap { later: later.to_string() };
        let Some(timeline) = later.timeline().filter(|timeline| *timeline != segment.timeline) else {
            return Ok(Some(gap()));
        };
        Ok(match self.history_of(timeline, asking, bounds).await? {
            // A timeline that nobody can tell the origin of: it may come from behind the segment.
            None => Some(gap()),
            Some(history) if went_on_behind(&history, segment, asking.segment_size) => {
                Some(Absence::Gap { later: WalName::History(timeline).to_string() })
            }
            Some(_) => None,
        })
    }

    async fn history_of(
        &self,
        timeline: TimelineId,
        asking: &Asking,
        bounds: &ReadBounds,
    ) -> Result<Option<HistoryFile>, RepoError> {
        let name = WalName::History(timeline);
        let expected = Expected { name, ident: asking.ident, segment_size: None };
        let Some((_, text)) = self.read(expected, Vec::new(), bounds).await? else {
            return Ok(None);
        };
        let history = HistoryFile::parse(timeline, &text);
        history.map(Some).map_err(|e| RepoError::damaged(&self.layout.wal_file(self.generation, name), e.to_string()))
    }

    /// The first object of the generation's WAL behind a key that is not `own`.
    async fn next_behind(
        &self,
        after: &str,
        own: impl Fn(WalName) -> bool + Send + Sync,
    ) -> Result<Option<Behind>, RepoError> {
        let mut found = None;
        self.store
            .visit_after(&self.layout.wal(self.generation), Some(after), PAGE, |listed| {
                let known = listed.name.parse().ok().and_then(|key| self.layout.parse_wal(&key));
                let name = match known {
                    Some((_, key)) => key.name(),
                    // A newer pgark's object, or a name damaged on the way: it may well be what is looked for.
                    None => {
                        found = Some(Behind::Unknown(listed.name.clone()));
                        return Visit::Enough;
                    }
                };
                if own(name) {
                    return Visit::More;
                }
                found = Some(Behind::File(name));
                Visit::Enough
            })
            .await?;
        Ok(found)
    }

    /// The first object of the generation's live tail behind a key.
    async fn next_piece_behind(&self, after: &str) -> Result<Option<Behind>, RepoError> {
        let mut found = None;
        self.store
            .visit_after(&self.layout.live(self.generation), Some(after), 1, |listed| {
                found = Some(match self.layout.parse_live(&listed.name) {
                    Some((_, piece)) => Behind::Piece(piece.segment.timeline, listed.name.clone()),
                    None => Behind::Unknown(listed.name.clone()),
                });
                Visit::Enough
            })
            .await?;
        Ok(found)
    }
}

enum Behind {
    File(WalName),
    Piece(TimelineId, String),
    Unknown(String),
}

impl Behind {
    fn timeline(&self) -> Option<TimelineId> {
        match self {
            Behind::File(name) => Some(name.timeline()),
            Behind::Piece(timeline, _) => Some(*timeline),
            Behind::Unknown(_) => None,
        }
    }
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Behind::File(name) => name.fmt(f),
            Behind::Piece(_, key) | Behind::Unknown(key) => f.write_str(key),
        }
    }
}

/// Whether the segment's timeline was left at a position behind the segment. The segment in which it was left does not
/// count: the later timeline has its own copy of it.
fn went_on_behind(history: &HistoryFile, segment: SegmentName, size: Option<SegmentSize>) -> bool {
    let left_at = history.entries.iter().find(|entry| entry.parent == segment.timeline).map(|entry| entry.switch);
    match (left_at, size) {
        (None, _) => false,
        (Some(switch), Some(size)) => size.number(segment).is_ok_and(|number| number < size.containing(switch)),
        // Without a data directory nobody says how long segments are: the upper half of the position decides.
        (Some(switch), None) => u64::from(segment.log) < switch.0 >> 32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::SystemId;
    use crate::repo::wal_object::{Provenance, WalObject, Writer};
    use crate::repo::{Generation, Repository};
    use crate::storage::memory::MemoryStore;
    use crate::storage::{ObjectStore, UserMetadata};
    use crate::stream::pack;
    use std::sync::Arc;

    fn judge(stored: &[&str], missing: &str, recovering_on: Option<u32>) -> Absence {
        judge_with_histories(stored, &[], missing, recovering_on)
    }

    fn judge_with_histories(
        stored: &[&str],
        histories: &[(&str, &str)],
        missing: &str,
        recovering_on: Option<u32>,
    ) -> Absence {
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
            for (name, text) in histories {
                let object = history_object(name, text);
                let key = repository.layout.wal_file(Generation(1), name.parse().unwrap());
                store.put(&key, object.bytes, &UserMetadata::new()).await.unwrap();
            }
            let asking = Asking {
                ident: None,
                segment_size: Some(SegmentSize::DEFAULT),
                recovering_on: recovering_on.and_then(TimelineId::new),
            };
            let archive = repository.archive(Generation(1));
            archive.absence_of(missing.parse().unwrap(), &asking, &ReadBounds::default()).await.unwrap()
        })
    }

    fn history_object(name: &str, text: &str) -> WalObject {
        let packed = pack(text.as_bytes(), text.len() as u64, 1, WalObject::ROOM, |_, _| Ok(()), |_| ()).unwrap();
        let from = Provenance {
            name: name.parse().unwrap(),
            ident: ClusterIdent { system_id: SystemId(7), major: 15.try_into().unwrap() },
            segment_size: None,
            written: jiff::Timestamp::UNIX_EPOCH,
            writer: Writer { host: "db1".into(), pid: 1, version: "0" },
        };
        WalObject::build(from, packed, None).unwrap()
    }

    fn gap(later: &str) -> Absence {
        Absence::Gap { later: later.to_owned() }
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
            "main/2/wal/00000001/00000000/000000010000000000000009.zst",
        ];
        assert_eq!(judge(&stored, N, None), Absence::Proven);
    }

    /// Segments are 16 MiB here: 5 ends at 0/6000000.
    #[test]
    fn a_timeline_that_was_left_later_makes_a_gap() {
        let judge =
            |histories: &[(&str, &str)]| judge_with_histories(&["000000020000000000000009"], histories, N, None);
        let left_at = |switch: &str| format!("1\t{switch}\tx\n");
        for (switch, expected) in [
            ("0/6000000", gap("00000002.history")),
            ("0/9000028", gap("00000002.history")),
            ("1/0", gap("00000002.history")),
            ("0/5FFFFFF", Absence::Proven),
            ("0/5000028", Absence::Proven),
            ("0/3000000", Absence::Proven),
        ] {
            assert_eq!(judge(&[("00000002.history", &left_at(switch))]), expected, "left at {switch}");
        }
        // The third timeline tells, not the second.
        let second = ("00000002.history", "1\t0/3000000\tx\n");
        let third = ("00000003.history", "1\t0/7000000\ty\n");
        assert_eq!(judge(&[second, third]), gap("00000003.history"));
        // One whose origin nobody knows.
        assert_eq!(judge(&[]), gap("000000020000000000000009"));
    }

    #[test]
    fn what_is_not_known_is_not_passed_over() {
        let unknown = "main/1/wal/00000001/00000000/000000010000000000000006.zst.age";
        assert_eq!(judge(&[unknown], N, None), gap(unknown));
        assert_eq!(judge(&["main/1/wal/00000001/00000000/000000010000000000000004.zst.age"], N, None), Absence::Proven);
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
    fn pieces_count_as_what_they_are_pieces_of() {
        let piece = |name: &str| format!("main/1/live/{}/{name}/00000000.zst", &name[..8]);
        let (own, later) = (piece(N), piece("000000010000000000000006"));
        let (before, other) = (piece("000000010000000000000004"), piece("000000020000000000000009"));
        assert_eq!(judge(&[&own], N, None), Absence::Unfinished);
        assert_eq!(judge(&[&before], N, None), Absence::Proven);
        for stored in [&[later.as_str()][..], &[&own, &later]] {
            assert_eq!(judge(stored, N, None), gap(&later));
        }
        assert_eq!(judge(&[&own, "000000010000000000000006"], N, None), gap("000000010000000000000006"));
        // Of another timeline its origin tells, where anybody knows it.
        assert_eq!(judge(&[&own, &other], N, None), gap(&other));
        let forked = |at: &str| judge_with_histories(&[&own, &other], &[("00000002.history", at)], N, None);
        assert_eq!(forked("1\t0/3000000\tx\n"), Absence::Unfinished);
        assert_eq!(forked("1\t0/7000000\tx\n"), gap("00000002.history"));
        // Whoever seeks newer timelines must see those that are only streamed.
        assert_eq!(judge(&[&other], "00000001.history", None), Absence::Proven);
        assert_eq!(
            judge(&[&piece("000000030000000000000009")], "00000002.history", Some(1)),
            gap(&piece("000000030000000000000009"))
        );
        assert_eq!(judge(&[&other], "00000002.history", Some(1)), Absence::Proven);
        let unknown = "main/1/live/00000001/000000010000000000000006/00000000.zst.age";
        assert_eq!(judge(&[&own, unknown], N, None), gap(unknown));
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
