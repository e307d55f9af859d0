//! The names of the four kinds of files that PostgreSQL archives.

use std::fmt;
use std::str::FromStr;

use super::segment::is_upper_hex;
use super::{Malformed, SegmentName, TimelineId};

/// The name of a file that PostgreSQL hands to `archive_command` or asks of `restore_command`.
///
/// Source: `IsXLogFileName`, `IsPartialXLogFileName`, `IsBackupHistoryFileName` and
/// `IsTLHistoryFileName` in `access/xlog_internal.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalName {
    /// A complete segment.
    Segment(SegmentName),
    /// `<segment>.partial`: the unfinished last segment of a timeline that was left.
    Partial(SegmentName),
    /// `<segment>.<8 hex>.backup`: written when a base backup ends.
    Backup {
        /// The segment in which the backup starts.
        segment: SegmentName,
        /// The offset of the backup's start within it.
        offset: u32,
    },
    /// `<timeline>.history`.
    History(TimelineId),
}

impl WalName {
    /// The timeline that the name begins with.
    pub fn timeline(self) -> TimelineId {
        match self {
            WalName::Segment(segment) | WalName::Partial(segment) | WalName::Backup { segment, .. } => segment.timeline,
            WalName::History(timeline) => timeline,
        }
    }

    /// The segment that the name begins with; a history file has none.
    pub fn segment(self) -> Option<SegmentName> {
        match self {
            WalName::Segment(segment) | WalName::Partial(segment) | WalName::Backup { segment, .. } => Some(segment),
            WalName::History(_) => None,
        }
    }

    /// Whether the content is WAL, a whole segment long: true for a segment and for a partial one.
    pub fn holds_wal(self) -> bool {
        matches!(self, WalName::Segment(_) | WalName::Partial(_))
    }
}

impl fmt::Display for WalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalName::Segment(segment) => write!(f, "{segment}"),
            WalName::Partial(segment) => write!(f, "{segment}.partial"),
            WalName::Backup { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
            WalName::History(timeline) => write!(f, "{timeline}.history"),
        }
    }
}

impl FromStr for WalName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = || {
            Malformed::new(format!(
                "`{text}` is not the name of a WAL file: expected a segment (24 upper-case hexadecimal digits), \
                 `<segment>.partial`, `<segment>.<8 hex>.backup` or `<timeline>.history`"
            ))
        };
        let Some((stem, rest)) = text.split_once('.') else {
            return text.parse().map(WalName::Segment).map_err(|_| malformed());
        };
        if rest == "history" {
            return stem.parse().map(WalName::History).map_err(|_| malformed());
        }
        let segment: SegmentName = stem.parse().map_err(|_| malformed())?;
        if rest == "partial" {
            return Ok(WalName::Partial(segment));
        }
        let offset = rest.strip_suffix(".backup").ok_or_else(malformed)?;
        if offset.len() != 8 || !offset.bytes().all(is_upper_hex) {
            return Err(malformed());
        }
        let offset = u32::from_str_radix(offset, 16).map_err(|_| malformed())?;
        Ok(WalName::Backup { segment, offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_name() -> impl Strategy<Value = WalName> {
        (1u32.., any::<u32>(), any::<u32>(), any::<u32>(), 0..4).prop_map(|(timeline, log, segment, offset, kind)| {
            let timeline = TimelineId::new(timeline).unwrap();
            let segment = SegmentName { timeline, log, segment };
            match kind {
                0 => WalName::Segment(segment),
                1 => WalName::Partial(segment),
                2 => WalName::Backup { segment, offset },
                _ => WalName::History(timeline),
            }
        })
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            ".",
            "RECOVERYXLOG",
            "000000010000000000000001.Partial",
            "000000010000000000000001.partial.partial",
            "000000010000000000000001.0000002.backup",
            "000000010000000000000001.0000002a.backup",
            "000000010000000000000001.00000028.backup.zst",
            "000000010000000000000001 ",
            "../000000010000000000000001",
            "00000002.History",
            "2.history",
            "00000000.history",
            "000000010000000000000001.history",
        ] {
            assert!(text.parse::<WalName>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn names_go_both_ways(name in any_name()) {
            prop_assert_eq!(name.to_string().parse::<WalName>().unwrap(), name);
        }

        #[test]
        fn what_parses_prints_the_same(text in "[0-9A-Fa-f.]{0,26}(partial|backup|history|)") {
            if let Ok(name) = text.parse::<WalName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
