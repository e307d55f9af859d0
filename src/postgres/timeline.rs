//! Timelines and their history files.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use super::segment::is_upper_hex;
use super::{Lsn, Malformed};

/// The number of a timeline, from 1; eight hexadecimal digits in file names.
///
/// Source: `TimeLineID` in `access/xlogdefs.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// Timeline 1, which every cluster begins with and which never has a history file.
    pub const FIRST: TimelineId = TimelineId(NonZeroU32::MIN);

    /// A timeline of this number; 0 is none.
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}", self.0)
    }
}

impl FromStr for TimelineId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let number = (text.len() == 8 && text.bytes().all(is_upper_hex))
            .then(|| u32::from_str_radix(text, 16).ok())
            .flatten()
            .and_then(TimelineId::new);
        number.ok_or_else(|| {
            Malformed::new(format!(
                "`{text}` is not a timeline: expected 8 upper-case hexadecimal digits, not all zero"
            ))
        })
    }
}

/// One switch in a timeline's past: `parent` was left at `switch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The timeline that was left.
    pub parent: TimelineId,
    /// Where it was left: its WAL counts up to here, exclusively.
    pub switch: Lsn,
    /// What PostgreSQL noted as the reason.
    pub reason: String,
}

/// The content of a `.history` file: the ancestors of a timeline, oldest first.
///
/// * Parents ascend and stay below the file's own timeline.
/// * At least one entry: timeline 1 has no history file.
///
/// Lines are `<decimal timeline>\t<X/X>\t<reason>\n`; blank lines and lines that begin with `#` are
/// passed over. Source: `readTimeLineHistory` in `access/transam/timeline.c`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFile {
    /// The timeline whose past this is.
    pub timeline: TimelineId,
    /// The switches, oldest first.
    pub entries: Vec<HistoryEntry>,
}

impl HistoryFile {
    /// Reads the text of `timeline`'s history file.
    pub fn parse(timeline: TimelineId, bytes: &[u8]) -> Result<Self, Malformed> {
        let bad = |what: String| Malformed::new(format!("history file of timeline {timeline}: {what}"));
        let text = std::str::from_utf8(bytes).map_err(|_| bad("is not UTF-8 text".into()))?;
        let mut entries: Vec<HistoryEntry> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let content = line.trim_start();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let entry = parse_line(content).map_err(|e| bad(format!("line {}: {e}", index + 1)))?;
            if entry.parent >= timeline {
                return Err(bad(format!("line {}: timeline {} is not an ancestor", index + 1, entry.parent.get())));
            }
            if entries.last().is_some_and(|last| last.parent >= entry.parent) {
                return Err(bad(format!("line {}: timelines must ascend", index + 1)));
            }
            entries.push(entry);
        }
        if entries.is_empty() {
            return Err(bad("names no parent timeline".into()));
        }
        Ok(HistoryFile { timeline, entries })
    }
}

impl fmt::Display for HistoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.entries {
            writeln!(f, "{}\t{}\t{}", entry.parent.get(), entry.switch, entry.reason)?;
        }
        Ok(())
    }
}

fn parse_line(line: &str) -> Result<HistoryEntry, Malformed> {
    let mut fields = line.splitn(3, char::is_whitespace);
    let mut field = |name: &str| {
        fields.next().filter(|text| !text.is_empty()).ok_or_else(|| Malformed::new(format!("the {name} is missing")))
    };
    let number = field("timeline")?;
    let parent = number
        .parse::<u32>()
        .ok()
        .and_then(TimelineId::new)
        .ok_or_else(|| Malformed::new(format!("`{number}` is not a timeline number")))?;
    let switch = field("switch position")?.parse()?;
    let reason = fields.next().unwrap_or_default().trim().to_owned();
    Ok(HistoryEntry { parent, switch, reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    #[test]
    fn reads_what_postgresql_writes() {
        let text = b"1\t0/3000000\tno recovery target specified\n\n2\t0/5000108\tbefore 2026-11-22 10:00:00+00\n";
        let history = HistoryFile::parse(timeline(3), text).unwrap();
        assert_eq!(history.entries.len(), 2);
        assert_eq!(history.entries[1].parent, timeline(2));
        assert_eq!(history.entries[1].switch, Lsn(0x500_0108));
        assert_eq!(history.entries[0].reason, "no recovery target specified");
    }

    #[test]
    fn refuses_what_cannot_be_a_history() {
        let refused: [(&[u8], u32); 8] = [
            (b"", 2),
            (b"# only a comment\n", 2),
            (b"2\t0/3000000\tself\n", 2),
            (b"3\t0/3000000\tchild\n", 2),
            (b"2\t0/3000000\tx\n1\t0/4000000\ty\n", 3),
            (b"1\n", 2),
            (b"one\t0/1\tx\n", 2),
            (b"\xff\xfe", 2),
        ];
        for (text, number) in refused {
            assert!(HistoryFile::parse(timeline(number), text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_are_eight_upper_case_digits() {
        assert_eq!("0000000A".parse::<TimelineId>().unwrap(), timeline(10));
        for text in ["00000000", "0000000a", "A", "", "+000000A", "0000000000000001"] {
            assert!(text.parse::<TimelineId>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn histories_go_both_ways(
            parents in proptest::collection::btree_set(1u32..1000, 1..8),
            switches in proptest::collection::vec(any::<u64>(), 8),
            reason in "[a-z0-9:+-]{1,10}( [a-z0-9:+-]{1,10}){0,3}",
        ) {
            let entries: Vec<_> = parents
                .iter()
                .zip(switches)
                .map(|(parent, switch)| HistoryEntry {
                    parent: timeline(*parent),
                    switch: Lsn(switch),
                    reason: reason.clone(),
                })
                .collect();
            let history = HistoryFile { timeline: timeline(1000), entries };
            let again = HistoryFile::parse(timeline(1000), history.to_string().as_bytes()).unwrap();
            prop_assert_eq!(again, history);
        }

        #[test]
        fn any_bytes_are_a_history_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(history) = HistoryFile::parse(timeline(9), &bytes) {
                prop_assert!(history.entries.iter().all(|entry| entry.parent < timeline(9)));
            }
        }
    }
}
