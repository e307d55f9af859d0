//! What tells one cluster from another: system identifier and major version.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Malformed;

/// The number that `initdb` gives a cluster and all its copies carry. Serialised as a decimal
/// string, since JSON readers lose digits of large numbers.
///
/// Source: `ControlFileData.system_identifier` in `catalog/pg_control.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl From<SystemId> for String {
    fn from(id: SystemId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for SystemId {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits
            .then(|| text.parse().ok())
            .flatten()
            .map(SystemId)
            .ok_or_else(|| Malformed::new(format!("`{text}` is not a system identifier")))
    }
}

/// A major version of PostgreSQL that pgark knows: 13 to 18.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub struct PgMajor(u32);

/// `XLOG_PAGE_MAGIC` of each major version, in `access/xlog_internal.h`.
const PAGE_MAGICS: [(u16, u32); 6] =
    [(0xD106, 13), (0xD10D, 14), (0xD110, 15), (0xD113, 16), (0xD116, 17), (0xD118, 18)];

impl PgMajor {
    /// The newest one.
    pub const NEWEST: PgMajor = PgMajor(18);

    /// The version that writes WAL pages with this magic number.
    pub fn from_page_magic(magic: u16) -> Option<Self> {
        PAGE_MAGICS.iter().find(|(known, _)| *known == magic).map(|(_, major)| PgMajor(*major))
    }

    /// The magic number of this version's WAL pages.
    pub fn page_magic(self) -> u16 {
        PAGE_MAGICS.iter().find(|(_, major)| *major == self.0).map_or(0, |(magic, _)| *magic)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for PgMajor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl From<PgMajor> for u32 {
    fn from(major: PgMajor) -> u32 {
        major.0
    }
}

impl TryFrom<u32> for PgMajor {
    type Error = Malformed;

    fn try_from(number: u32) -> Result<Self, Malformed> {
        if PAGE_MAGICS.iter().any(|(_, major)| *major == number) {
            Ok(PgMajor(number))
        } else {
            Err(Malformed::new(format!("PostgreSQL {number} is not a version that this pgark knows (13 to 18)")))
        }
    }
}

/// Reads the file `PG_VERSION` of a data directory.
impl FromStr for PgMajor {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let number: u32 = text
            .trim()
            .parse()
            .map_err(|_| Malformed::new(format!("`{}` is not a major version of PostgreSQL", text.trim())))?;
        PgMajor::try_from(number)
    }
}

/// What a generation of a repository belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClusterIdent {
    /// The system identifier.
    pub system_id: SystemId,
    /// The major version.
    pub major: PgMajor,
}

impl fmt::Display for ClusterIdent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "system identifier {}, PostgreSQL {}", self.system_id, self.major)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magic_and_version_go_both_ways() {
        for number in 13..=18 {
            let major = PgMajor::try_from(number).unwrap();
            assert_eq!(PgMajor::from_page_magic(major.page_magic()), Some(major));
        }
        assert_eq!(PgMajor::from_page_magic(0xD107), None);
        assert!(PgMajor::try_from(12).is_err());
    }

    #[test]
    fn a_system_identifier_keeps_all_its_digits_in_json() {
        let id = SystemId(u64::MAX - 1);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, "\"18446744073709551614\"");
        assert_eq!(serde_json::from_str::<SystemId>(&json).unwrap(), id);
        for bad in ["\"\"", "\"+1\"", "\"1 \"", "1", "\"18446744073709551616\""] {
            assert!(serde_json::from_str::<SystemId>(bad).is_err(), "{bad}");
        }
    }
}
