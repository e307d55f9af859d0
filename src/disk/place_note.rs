//! A note of where the WAL of a timeline belongs in the repository, as the store has just said.
//!
//! A call reads the cluster's identity, or the history of its timeline, before it stores anything. While an archiver catches up, its next
//! calls would be told the same.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Spool;
use crate::postgres::{ClusterIdent, PgMajor, SystemId, TimelineId};
use crate::stream::Sha256;

/// What the store was asked about.
#[derive(Clone, Copy, Debug)]
pub struct PlaceSought<'a> {
    /// The repository, as its settings name it.
    pub repository: &'a str,
    /// The cluster.
    pub ident: ClusterIdent,
    /// The timeline.
    pub timeline: TimelineId,
    /// The content of its history file, where it lies beside the segment: the repository has the same.
    pub history: Option<Sha256>,
}

/// The note. JSON, in a text of the spool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaceNote {
    note: String,
    repository: String,
    system_identifier: SystemId,
    postgres_major: PgMajor,
    timeline: TimelineId,
    history: Option<Sha256>,
    /// The answer: the number of the generation.
    pub generation: u32,
    /// When the store gave it, by this host's clock.
    asked: Timestamp,
}

/// The kind and version of the note.
const NOTE: &str = "pgark-place-1";
/// No longer than a single call may rely on its own question.
const BELIEVED: Duration = Duration::from_secs(60);

impl PlaceNote {
    /// A note of what the store answered.
    pub fn new(sought: PlaceSought<'_>, generation: u32, asked: Timestamp) -> Self {
        PlaceNote {
            note: NOTE.to_owned(),
            repository: sought.repository.to_owned(),
            system_identifier: sought.ident.system_id,
            postgres_major: sought.ident.major,
            timeline: sought.timeline,
            history: sought.history,
            generation,
            asked,
        }
    }

    /// Puts it into the spool.
    pub fn leave(&self, spool: &Spool) -> std::io::Result<()> {
        spool.write_small(&name(self.timeline), &serde_json::to_string(self)?)
    }

    /// The note of exactly this question, if it was left a moment ago.
    pub fn find(spool: &Spool, sought: PlaceSought<'_>, now: Timestamp) -> Option<Self> {
        let text = spool.read_small(&name(sought.timeline)).ok()?;
        let note: PlaceNote = serde_json::from_str(&text).ok()?;
        let age = now.duration_since(note.asked);
        let lately = !age.is_negative() && age.unsigned_abs() <= BELIEVED;
        (lately && note == PlaceNote::new(sought, note.generation, note.asked)).then_some(note)
    }

    /// Takes it back.
    pub fn forget(spool: &Spool, timeline: TimelineId) {
        spool.remove(&name(timeline));
    }
}

/// No WAL file has such a name.
fn name(timeline: TimelineId) -> String {
    format!("place-{timeline}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DataDir;
    use jiff::ToSpan;

    fn sought() -> PlaceSought<'static> {
        let ident = ClusterIdent { system_id: SystemId(7), major: 15.try_into().unwrap() };
        PlaceSought { repository: "s3://b/x", ident, timeline: TimelineId::FIRST, history: None }
    }

    #[test]
    fn only_the_same_question_of_a_moment_ago_is_answered() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("data");
        std::fs::create_dir_all(data.join("global")).unwrap();
        std::fs::write(data.join("global/pg_control"), b"").unwrap();
        let data = DataDir::at(data).unwrap().unwrap();
        let spool = Spool::open(Some(&root.path().join("spool")), "r", &data, "archived").unwrap();
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        assert!(PlaceNote::find(&spool, sought(), now).is_none());
        PlaceNote::new(sought(), 3, now).leave(&spool).unwrap();
        assert_eq!(PlaceNote::find(&spool, sought(), now + 60.seconds()).unwrap().generation, 3);
        // Too old, or of another clock.
        assert!(PlaceNote::find(&spool, sought(), now + 61.seconds()).is_none());
        assert!(PlaceNote::find(&spool, sought(), now - 1.seconds()).is_none());
        let other = ClusterIdent { system_id: SystemId(8), ..sought().ident };
        let newer = ClusterIdent { major: 16.try_into().unwrap(), ..sought().ident };
        for foreign in [
            PlaceSought { repository: "s3://b/y", ..sought() },
            PlaceSought { ident: other, ..sought() },
            PlaceSought { ident: newer, ..sought() },
            PlaceSought { timeline: TimelineId::new(2).unwrap(), ..sought() },
            PlaceSought { history: Some(Sha256::of(b"")), ..sought() },
        ] {
            assert!(PlaceNote::find(&spool, foreign, now).is_none(), "{foreign:?}");
        }
        // Under the name of another timeline it says nothing either.
        let second = TimelineId::new(2).unwrap();
        std::fs::copy(spool.path(&name(TimelineId::FIRST)), spool.path(&name(second))).unwrap();
        assert!(PlaceNote::find(&spool, PlaceSought { timeline: second, ..sought() }, now).is_none());
        PlaceNote::forget(&spool, TimelineId::FIRST);
        assert!(PlaceNote::find(&spool, sought(), now).is_none());
    }
}
