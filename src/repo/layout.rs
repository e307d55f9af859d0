//! The layout of keys, both ways: the one file that knows where things lie.
//!
//! ```text
//! <cluster>/identity/<n>.json
//! <cluster>/<n>/wal/<timeline>/<timeline>.history.zst
//! <cluster>/<n>/wal/<timeline>/<8 hex log>/<segment>.zst
//! <cluster>/<n>/wal/<timeline>/<8 hex log>/<segment>.<8 hex>.backup.zst
//! <cluster>/<n>/wal/<timeline>/<8 hex log>/<segment>.partial.zst
//! <cluster>/<n>/wal/<timeline>/<8 hex log>/<segment>.partial.<16 hex of SHA-256>.zst
//! <cluster>/<n>/live/<timeline>/<segment>/<8 hex of the offset>.zst
//! <cluster>/<n>/backup/<backup id>/part/<8 digits>.tar.zst
//! <cluster>/<n>/backup/<backup id>/manifest.json.zst
//! <cluster>/<n>/backup/<backup id>/keep.json
//! <cluster>/dump/<dump id>/<6 digits of the file>/<8 digits of the part>.zst
//! <cluster>/dump/<dump id>/manifest.json.zst
//! <cluster>/dump/<dump id>/keep.json
//! <cluster>/record/<kind>/<name>
//! ```
//!
//! Within a timeline, keys of segments are ordered as their positions are.

use std::fmt;
use std::str::FromStr;

use super::backup_id::BackupId;
use crate::postgres::{SegmentName, TimelineId, WalName};
use crate::storage::key::InvalidKey;
use crate::storage::{KeyPrefix, ObjectKey};
use crate::stream::Sha256;

/// The name an operator gives a cluster: a single part of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

impl FromStr for ClusterName {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let key: ObjectKey = text.parse()?;
        if key.as_str().contains('/') || key.as_str().len() > 100 {
            return Err(InvalidKey(text.to_owned()));
        }
        Ok(ClusterName(text.to_owned()))
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which of the clusters that lived under one name, from 1: `pg_upgrade` and `initdb` begin a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Generation(pub u32);

impl Generation {
    /// What the first push creates.
    pub const FIRST: Generation = Generation(1);

    fn parse(text: &str) -> Option<Self> {
        let plain = !text.is_empty() && !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| text.parse().ok()).flatten().map(Generation)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a key below `wal/` names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalKey {
    /// The one place of a WAL file.
    File(WalName),
    /// A second partial segment of this name with another content; the first 16 digits of its digest.
    OtherPartial(SegmentName, String),
    /// A piece of the live tail, which lies below `live/`.
    Piece(PieceKey),
}

impl WalKey {
    /// The WAL file that it holds. A piece is a part of a segment, as a partial one is.
    pub fn name(&self) -> WalName {
        match self {
            WalKey::File(name) => *name,
            WalKey::OtherPartial(segment, _) => WalName::Partial(*segment),
            WalKey::Piece(piece) => WalName::Partial(piece.segment),
        }
    }
}

/// What a key below `live/` names: a piece of a segment that was streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceKey {
    /// The segment.
    pub segment: SegmentName,
    /// Where in the segment the piece begins.
    pub offset: u32,
}

/// What a key below `backup/` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackupKey {
    /// What makes the backup exist.
    Manifest,
    /// The word of an operator that it must stay.
    Keep,
    /// A part of its files, from 1.
    Part(u32),
}

/// What a key below `dump/` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DumpKey {
    /// What makes the dump exist.
    Manifest,
    /// The word of an operator that it must stay.
    Keep,
    /// A part of one of its files; both from 1.
    Part {
        /// The file.
        file: u32,
        /// The part.
        part: u32,
    },
}

/// The keys of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    cluster: ClusterName,
    root: KeyPrefix,
}

/// The end of the name of every compressed object.
const SUFFIX: &str = ".zst";

impl Layout {
    /// The layout below a cluster's name.
    pub fn new(cluster: ClusterName) -> Self {
        let root = prefix(format!("{cluster}/"));
        Layout { cluster, root }
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Everything of the cluster.
    pub fn root(&self) -> &KeyPrefix {
        &self.root
    }

    /// All identities.
    pub fn identities(&self) -> KeyPrefix {
        prefix(format!("{}identity/", self.root))
    }

    /// The identity of a generation.
    pub fn identity(&self, generation: Generation) -> ObjectKey {
        key(format!("{}identity/{generation}.json", self.root))
    }

    /// The generation whose identity has this key.
    pub fn parse_identity(&self, key: &ObjectKey) -> Option<Generation> {
        let name = key.as_str().strip_prefix(self.identities().as_str())?;
        Generation::parse(name.strip_suffix(".json")?)
    }

    /// Whether an object of this name belongs to what generations hold, and not to identities, dumps or records.
    pub fn is_generation_data(&self, name: &str) -> bool {
        let below = name.strip_prefix(self.root.as_str());
        below.and_then(|rest| rest.split_once('/')).is_some_and(|(first, _)| Generation::parse(first).is_some())
    }

    /// Everything of a generation but its identity.
    pub fn generation(&self, generation: Generation) -> KeyPrefix {
        prefix(format!("{}{generation}/", self.root))
    }

    /// All WAL of a generation.
    pub fn wal(&self, generation: Generation) -> KeyPrefix {
        prefix(format!("{}{generation}/wal/", self.root))
    }

    /// All WAL of a timeline.
    pub fn timeline(&self, generation: Generation, timeline: TimelineId) -> KeyPrefix {
        prefix(format!("{}{generation}/wal/{timeline}/", self.root))
    }

    /// Greater than every key of this timeline, smaller than every key of the next.
    pub fn after_timeline(&self, generation: Generation, timeline: TimelineId) -> String {
        format!("{}{generation}/wal/{timeline}/~", self.root)
    }

    /// The place of a WAL file.
    pub fn wal_file(&self, generation: Generation, name: WalName) -> ObjectKey {
        let timeline = self.timeline(generation, name.timeline());
        key(match name.segment() {
            Some(segment) => format!("{timeline}{:08X}/{name}{SUFFIX}", segment.log),
            None => format!("{timeline}{name}{SUFFIX}"),
        })
    }

    /// The place of what [`Layout::parse_wal`] or [`Layout::parse_live`] found.
    pub fn wal_key(&self, generation: Generation, found: &WalKey) -> ObjectKey {
        match found {
            WalKey::File(name) => self.wal_file(generation, *name),
            WalKey::OtherPartial(segment, digest) => self.other_partial_at(generation, *segment, digest),
            WalKey::Piece(piece) => self.live_piece(generation, *piece),
        }
    }

    /// The place of another partial segment of this name.
    pub fn other_partial(&self, generation: Generation, segment: SegmentName, content: Sha256) -> ObjectKey {
        self.other_partial_at(generation, segment, &content.short())
    }

    fn other_partial_at(&self, generation: Generation, segment: SegmentName, digest: &str) -> ObjectKey {
        let timeline = self.timeline(generation, segment.timeline);
        key(format!("{timeline}{:08X}/{segment}.partial.{digest}{SUFFIX}", segment.log))
    }

    /// What a key below [`Layout::wal`] names; `None` for a key that is not one of ours.
    pub fn parse_wal(&self, key: &ObjectKey) -> Option<(Generation, WalKey)> {
        let below = key.as_str().strip_prefix(self.root.as_str())?;
        let (generation, rest) = below.split_once("/wal/")?;
        let generation = Generation::parse(generation)?;
        let stem = rest.rsplit('/').next()?.strip_suffix(SUFFIX)?;
        let (found, canonical) = match other_partial(stem) {
            Some((segment, digest)) => {
                let timeline = self.timeline(generation, segment.timeline);
                let canonical = format!("{timeline}{:08X}/{stem}{SUFFIX}", segment.log);
                (WalKey::OtherPartial(segment, digest), canonical)
            }
            None => {
                let name: WalName = stem.parse().ok()?;
                (WalKey::File(name), self.wal_file(generation, name).as_str().to_owned())
            }
        };
        (canonical == key.as_str()).then_some((generation, found))
    }

    /// The live tail of a generation: all pieces of segments that were streamed.
    pub fn live(&self, generation: Generation) -> KeyPrefix {
        prefix(format!("{}{generation}/live/", self.root))
    }

    /// The pieces of a timeline.
    pub fn live_timeline(&self, generation: Generation, timeline: TimelineId) -> KeyPrefix {
        prefix(format!("{}{timeline}/", self.live(generation)))
    }

    /// The pieces of a segment.
    pub fn live_segment(&self, generation: Generation, segment: SegmentName) -> KeyPrefix {
        prefix(format!("{}{segment}/", self.live_timeline(generation, segment.timeline)))
    }

    /// The place of a piece.
    pub fn live_piece(&self, generation: Generation, piece: PieceKey) -> ObjectKey {
        let PieceKey { segment, offset } = piece;
        key(format!("{}{offset:08X}{SUFFIX}", self.live_segment(generation, segment)))
    }

    /// What a key below [`Layout::live`] names; `None` for a key that is not one of ours.
    pub fn parse_live(&self, name: &str) -> Option<(Generation, PieceKey)> {
        let (generation, rest) = name.strip_prefix(self.root.as_str())?.split_once("/live/")?;
        let generation = Generation::parse(generation)?;
        let mut parts = rest.rsplit('/');
        let offset = u32::from_str_radix(parts.next()?.strip_suffix(SUFFIX)?, 16).ok()?;
        let piece = PieceKey { segment: parts.next()?.parse().ok()?, offset };
        (self.live_piece(generation, piece).as_str() == name).then_some((generation, piece))
    }

    /// All backups of a generation.
    pub fn backups(&self, generation: Generation) -> KeyPrefix {
        prefix(format!("{}{generation}/backup/", self.root))
    }

    /// All pieces of a backup.
    pub fn backup_prefix(&self, generation: Generation, id: BackupId) -> KeyPrefix {
        prefix(format!("{}{id}/", self.backups(generation)))
    }

    /// The place of a piece of a backup.
    pub fn backup(&self, generation: Generation, id: BackupId, piece: BackupKey) -> ObjectKey {
        let backup = format!("{}{id}/", self.backups(generation));
        key(match piece {
            BackupKey::Manifest => format!("{backup}manifest.json{SUFFIX}"),
            BackupKey::Keep => format!("{backup}keep.json"),
            BackupKey::Part(number) => format!("{backup}part/{number:08}.tar{SUFFIX}"),
        })
    }

    /// What a key below [`Layout::backups`] names; `None` for a key that is not one of ours.
    pub fn parse_backup(&self, name: &str) -> Option<(Generation, BackupId, BackupKey)> {
        let (generation, rest) = name.strip_prefix(self.root.as_str())?.split_once("/backup/")?;
        let generation = Generation::parse(generation)?;
        let (id, piece) = rest.split_once('/')?;
        let id: BackupId = id.parse().ok()?;
        let piece = match piece {
            "keep.json" => BackupKey::Keep,
            "manifest.json.zst" => BackupKey::Manifest,
            part => {
                let number = part.strip_prefix("part/")?.strip_suffix(".tar.zst")?;
                BackupKey::Part(number.bytes().all(|b| b.is_ascii_digit()).then(|| number.parse().ok()).flatten()?)
            }
        };
        (self.backup(generation, id, piece).as_str() == name).then_some((generation, id, piece))
    }

    /// All logical dumps.
    pub fn dumps(&self) -> KeyPrefix {
        prefix(format!("{}dump/", self.root))
    }

    /// All pieces of a dump.
    pub fn dump_prefix(&self, id: BackupId) -> KeyPrefix {
        prefix(format!("{}{id}/", self.dumps()))
    }

    /// The place of a piece of a dump.
    pub fn dump(&self, id: BackupId, piece: DumpKey) -> ObjectKey {
        let dump = self.dump_prefix(id);
        key(match piece {
            DumpKey::Manifest => format!("{dump}manifest.json{SUFFIX}"),
            DumpKey::Keep => format!("{dump}keep.json"),
            DumpKey::Part { file, part } => format!("{dump}{file:06}/{part:08}{SUFFIX}"),
        })
    }

    /// What a key below [`Layout::dumps`] names; `None` for a key that is not one of ours.
    pub fn parse_dump(&self, name: &str) -> Option<(BackupId, DumpKey)> {
        let (id, piece) = name.strip_prefix(self.dumps().as_str())?.split_once('/')?;
        let id: BackupId = id.parse().ok()?;
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let piece = match piece {
            "keep.json" => DumpKey::Keep,
            "manifest.json.zst" => DumpKey::Manifest,
            part => {
                let (file, part) = part.strip_suffix(SUFFIX)?.split_once('/')?;
                DumpKey::Part { file: number(file)?, part: number(part)? }
            }
        };
        (self.dump(id, piece).as_str() == name).then_some((id, piece))
    }

    /// All notes of a kind.
    pub fn records(&self, kind: &'static str) -> KeyPrefix {
        prefix(format!("{}record/{kind}/", self.root))
    }

    /// A note of a kind: probes, runs, drills.
    pub fn record(&self, kind: &str, name: &str) -> Result<ObjectKey, InvalidKey> {
        self.root.below("record")?.below(kind)?.key(name)
    }
}

fn other_partial(stem: &str) -> Option<(SegmentName, String)> {
    let (segment, digest) = stem.split_once(".partial.")?;
    let digits = digest.len() == 16 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    digits.then(|| segment.parse().ok()).flatten().map(|segment| (segment, digest.to_owned()))
}

/// A key made of parts that are valid by construction.
fn key(text: String) -> ObjectKey {
    match text.parse() {
        Ok(key) => key,
        Err(error) => unreachable!("{error}"),
    }
}

/// A prefix made of parts that are valid by construction.
fn prefix(text: String) -> KeyPrefix {
    match text.parse() {
        Ok(prefix) => prefix,
        Err(error) => unreachable!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{SegmentNumber, SegmentSize};
    use proptest::prelude::*;

    fn layout() -> Layout {
        Layout::new("main".parse().unwrap())
    }

    #[test]
    fn keys_are_where_the_format_says() {
        let layout = layout();
        let at = |name: &str| layout.wal_file(Generation(3), name.parse().unwrap()).to_string();
        assert_eq!(at("0000000100000002000000FF"), "main/3/wal/00000001/00000002/0000000100000002000000FF.zst");
        assert_eq!(at("00000002.history"), "main/3/wal/00000002/00000002.history.zst");
        assert_eq!(layout.identity(Generation(1)).as_str(), "main/identity/1.json");
        assert_eq!(
            at("000000010000000200000003.00000028.backup"),
            "main/3/wal/00000001/00000002/000000010000000200000003.00000028.backup.zst"
        );
    }

    #[test]
    fn foreign_keys_are_not_ours() {
        let layout = layout();
        for text in [
            "main/1/wal/00000001/00000002/000000010000000300000003.zst",
            "main/1/wal/00000002/00000002/000000010000000200000003.zst",
            "main/1/wal/00000001/000000010000000200000003.zst",
            "main/1/wal/00000001/00000002/000000010000000200000003",
            "main/1/wal/00000001/00000002/000000010000000200000003.gz",
            "main/01/wal/00000001/00000002/000000010000000200000003.zst",
            "main/0/wal/00000001/00000002/000000010000000200000003.zst",
            "other/1/wal/00000001/00000002/000000010000000200000003.zst",
            "main/1/wal/00000001/00000002/000000010000000200000003.partial.0123.zst",
            "main/identity/1.json",
        ] {
            assert_eq!(layout.parse_wal(&text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn foreign_keys_are_no_pieces() {
        let layout = layout();
        let known = "main/1/live/00000001/000000010000000200000003/00A00000.zst";
        assert!(layout.parse_live(known).is_some());
        for text in [
            "main/1/live/00000001/000000010000000200000003/A00000.zst",
            "main/1/live/00000001/000000010000000200000003/00a00000.zst",
            "main/1/live/00000001/000000010000000200000003/+0A00000.zst",
            "main/1/live/00000001/000000010000000200000003/00A00000.zst.age",
            "main/1/live/00000002/000000010000000200000003/00A00000.zst",
            "main/1/live/000000010000000200000003/00A00000.zst",
            "main/0/live/00000001/000000010000000200000003/00A00000.zst",
            "other/1/live/00000001/000000010000000200000003/00A00000.zst",
        ] {
            assert_eq!(layout.parse_live(text), None, "{text}");
        }
    }

    #[test]
    fn generation_data_is_told_from_the_rest() {
        let layout = layout();
        for (text, expected) in [
            ("main/1/wal/x", true),
            ("main/12/backup/y", true),
            ("main/identity/1.json", false),
            ("main/record/probe/1", false),
            ("main/dump/1/part", false),
        ] {
            assert_eq!(layout.is_generation_data(text), expected, "{text}");
        }
    }

    #[test]
    fn cluster_names_are_one_part() {
        for text in ["", "a/b", ".a", "..", "a b", &"a".repeat(101)] {
            assert!(text.parse::<ClusterName>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn keys_go_both_ways(timeline in 1u32.., log: u32, segment: u32, offset: u32, generation in 1u32.., kind in 0..5, digest: [u8; 32]) {
            let layout = layout();
            let timeline = TimelineId::new(timeline).unwrap();
            let segment = SegmentName { timeline, log, segment };
            let generation = Generation(generation);
            let name = match kind {
                0 => WalName::Segment(segment),
                1 => WalName::Partial(segment),
                2 => WalName::Backup { segment, offset },
                3 => WalName::History(timeline),
                _ => {
                    let key = layout.other_partial(generation, segment, Sha256(digest));
                    let parsed = layout.parse_wal(&key);
                    let found = WalKey::OtherPartial(segment, Sha256(digest).short());
                    prop_assert_eq!(layout.wal_key(generation, &found), key);
                    prop_assert_eq!(parsed, Some((generation, found)));
                    return Ok(());
                }
            };
            prop_assert_eq!(layout.parse_wal(&layout.wal_file(generation, name)), Some((generation, WalKey::File(name))));
        }

        #[test]
        fn backup_keys_go_both_ways(seconds in 0i64..4_000_000_000, tail: u32, generation in 1u32.., part in 1u32..100_000_000) {
            let layout = layout();
            let id = BackupId::new(jiff::Timestamp::from_second(seconds).unwrap(), tail);
            for piece in [BackupKey::Manifest, BackupKey::Keep, BackupKey::Part(part)] {
                let key = layout.backup(Generation(generation), id, piece);
                prop_assert_eq!(layout.parse_backup(key.as_str()), Some((Generation(generation), id, piece)));
            }
        }

        #[test]
        fn dump_keys_go_both_ways(seconds in 0i64..4_000_000_000, tail: u32, file in 1u32..1_000_000, part in 1u32..100_000_000) {
            let layout = layout();
            let id = BackupId::new(jiff::Timestamp::from_second(seconds).unwrap(), tail);
            for piece in [DumpKey::Manifest, DumpKey::Keep, DumpKey::Part { file, part }] {
                prop_assert_eq!(layout.parse_dump(layout.dump(id, piece).as_str()), Some((id, piece)));
            }
        }

        #[test]
        fn keys_of_pieces_go_both_ways_and_are_ordered(timeline in 1u32.., log: u32, segment: u32, offset: u32, other: u32, generation in 1u32..) {
            let layout = layout();
            let segment = SegmentName { timeline: TimelineId::new(timeline).unwrap(), log, segment };
            let at = |offset| layout.live_piece(Generation(generation), PieceKey { segment, offset });
            let found = Some((Generation(generation), PieceKey { segment, offset }));
            prop_assert_eq!(layout.parse_live(at(offset).as_str()), found);
            prop_assert_eq!(at(offset).cmp(&at(other)), offset.cmp(&other));
            prop_assert_eq!(layout.parse_wal(&at(offset)), None);
        }

        #[test]
        fn order_of_keys_is_order_of_positions(bits in 20u32..=30, a in 0u64..1 << 32, b in 0u64..1 << 32, timeline in 1u32..) {
            let size = SegmentSize::new(1 << bits).unwrap();
            let timeline = TimelineId::new(timeline).unwrap();
            let at = |number| layout().wal_file(Generation(1), WalName::Segment(size.name(timeline, SegmentNumber(number))));
            prop_assert_eq!(a.cmp(&b), at(a).cmp(&at(b)));
        }

        #[test]
        fn timelines_end_before_the_next_begins(timeline in 1u32..u32::MAX, log: u32, segment: u32) {
            let layout = layout();
            let number = |timeline| TimelineId::new(timeline).unwrap();
            let file = |timeline| layout.wal_file(Generation(1), WalName::Segment(SegmentName { timeline: number(timeline), log, segment }));
            let end = layout.after_timeline(Generation(1), number(timeline));
            prop_assert!(file(timeline).as_str() < end.as_str());
            prop_assert!(end.as_str() < file(timeline + 1).as_str());
            prop_assert!(end.as_str() < layout.wal_file(Generation(1), WalName::History(number(timeline + 1))).as_str());
        }
    }
}
