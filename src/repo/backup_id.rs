//! The name of a backup: when it was begun, and a random tail that keeps two of the same second apart.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// A backup's name, `20261122T231805Z-0a1b2c3d`: UTC, then eight hexadecimal digits.
///
/// * Names of the same repository are in the order in which backups were begun, by their hosts' clocks: for people. Decisions
///   go by LSN and by the store's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BackupId {
    begun: Timestamp,
    tail: u32,
}

/// Text that names no backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a backup's name: expected one like `20261122T231805Z-0a1b2c3d`")]
pub struct NotABackupId(String);

const FORMAT: &str = "%Y%m%dT%H%M%SZ";

impl BackupId {
    /// The name of a backup that begins now.
    pub fn new(now: Timestamp, random: u32) -> Self {
        // Whole seconds; what the epoch cannot hold does not happen.
        let begun = Timestamp::from_second(now.as_second()).unwrap_or(Timestamp::UNIX_EPOCH);
        BackupId { begun, tail: random }
    }

    /// The label of a backup for which none was given: PostgreSQL wants one.
    pub fn own_label(&self) -> String {
        format!("pgark {self}")
    }

    /// When it was begun, by its host's clock.
    pub fn begun(&self) -> Timestamp {
        self.begun
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08x}", self.begun.strftime(FORMAT), self.tail)
    }
}

impl FromStr for BackupId {
    type Err = NotABackupId;

    fn from_str(text: &str) -> Result<Self, NotABackupId> {
        let parse = || {
            let (time, tail) = text.split_once('-')?;
            let begun = jiff::civil::DateTime::strptime(FORMAT, time).ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
            let tail = u32::from_str_radix(tail, 16).ok()?;
            let id = BackupId { begun, tail };
            (id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| NotABackupId(text.to_owned()))
    }
}

crate::text_form::text_form!(BackupId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_goes_both_ways(seconds in 0i64..4_000_000_000, tail: u32) {
            let id = BackupId::new(Timestamp::from_second(seconds).unwrap(), tail);
            prop_assert_eq!(id.to_string().parse::<BackupId>().unwrap(), id);
        }
    }

    #[test]
    fn other_text_is_refused() {
        assert_eq!("20261122T231805Z-0a1b2c3d".parse::<BackupId>().unwrap().to_string(), "20261122T231805Z-0a1b2c3d");
        for text in [
            "",
            "latest",
            "20261122T231805Z",
            "20261122T231805Z-0A1B2C3D",
            "20261122T231805Z-a",
            "20261332T231805Z-0a1b2c3d",
            "../x",
        ] {
            assert!(text.parse::<BackupId>().is_err(), "{text}");
        }
    }
}
