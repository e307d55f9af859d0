//! The path of a file in a backup: always below the place it is restored to.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A path relative to the data directory, of one or more names.
///
/// * No name is empty, `.` or `..`, has a NUL or a slash, or more than 255 bytes; there are at most 32.
/// * In text and JSON, bytes outside printable ASCII and `%` are written as `%` and two hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BackupPath(Box<[u8]>);

/// What is not such a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no path inside a data directory")]
pub struct NotABackupPath(String);

const DEEPEST: usize = 32;
const LONGEST_NAME: usize = 255;

impl BackupPath {
    /// The path of these bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, NotABackupPath> {
        let mut names = 0;
        let mut good = bytes.len() <= 4096;
        for name in bytes.split(|byte| *byte == b'/') {
            names += 1;
            good &=
                !name.is_empty() && name != b"." && name != b".." && !name.contains(&0) && name.len() <= LONGEST_NAME;
        }
        if !good || names > DEEPEST {
            return Err(NotABackupPath(String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned()));
        }
        Ok(BackupPath(bytes.into()))
    }

    /// For the local file system.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The directory it is in; `None` if that is the data directory itself.
    pub fn parent(&self) -> Option<BackupPath> {
        let slash = self.0.iter().rposition(|byte| *byte == b'/')?;
        Some(BackupPath(self.0[..slash].into()))
    }

    /// Its last name.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }
}

impl fmt::Display for BackupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0 {
            match byte {
                b'%' => f.write_str("%25")?,
                b' '..=b'~' => write!(f, "{}", char::from(*byte))?,
                other => write!(f, "%{other:02X}")?,
            }
        }
        Ok(())
    }
}

impl From<BackupPath> for String {
    fn from(path: BackupPath) -> String {
        path.to_string()
    }
}

impl TryFrom<String> for BackupPath {
    type Error = NotABackupPath;

    fn try_from(text: String) -> Result<Self, NotABackupPath> {
        let refused = || NotABackupPath(text.chars().take(200).collect());
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            match byte {
                b'%' => {
                    let pair = [rest.next().ok_or_else(refused)?, rest.next().ok_or_else(refused)?];
                    let digits = std::str::from_utf8(&pair).map_err(|_| refused())?;
                    bytes.push(u8::from_str_radix(digits, 16).map_err(|_| refused())?);
                }
                b' '..=b'~' => bytes.push(byte),
                _ => return Err(refused()),
            }
        }
        let path = BackupPath::new(&bytes)?;
        // One way to write each: two names for one file would slip through the search for doubles.
        if path.to_string() == text { Ok(path) } else { Err(refused()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_name_goes_both_ways(names in proptest::collection::vec(proptest::collection::vec(1u8.., 1..20), 1..5)) {
            let bytes = names.join(&b'/');
            if let Ok(path) = BackupPath::new(&bytes) {
                prop_assert_eq!(BackupPath::try_from(path.to_string()).unwrap(), path);
            }
        }

        #[test]
        fn text_never_leads_out(text in ".{0,60}") {
            if let Ok(path) = BackupPath::try_from(text) {
                let only_names = path.as_path().components().all(|c| matches!(c, std::path::Component::Normal(_)));
                prop_assert!(path.as_path().is_relative() && only_names);
            }
        }
    }

    #[test]
    fn ways_out_are_refused() {
        for text in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            ".",
            "a/.",
            "a%00b",
            "%2e%2e/x",
            "a%2Fb",
            "a%",
            "a%2",
            "ä",
        ] {
            assert!(BackupPath::try_from(text.to_owned()).is_err(), "{text}");
        }
        assert_eq!(
            BackupPath::try_from("pg_tblspc/1/a%25%C3%A4".to_owned()).unwrap().as_bytes(),
            "pg_tblspc/1/a%ä".as_bytes()
        );
    }
}
