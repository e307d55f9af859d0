//! Names of objects.

use std::fmt;
use std::str::FromStr;

/// The name of an object within a store.
///
/// * Parts separated by single `/`, none empty, none beginning with a dot, at most 900 bytes in all.
/// * Parts consist of ASCII letters, digits, `.`, `-`, `_` and `=`: a key is a safe relative path, and
///   the same text in a URL.
/// * Ordered by bytes, as S3 lists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

/// What keys are listed by: nothing, or parts that each end with `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyPrefix(String);

/// Text that names no object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` cannot be the name of an object: use letters, digits, `.`, `-`, `_` and single `/` between parts")]
pub struct InvalidKey(pub String);

const LONGEST: usize = 900;

impl ObjectKey {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl KeyPrefix {
    /// The prefix as text: empty, or ending with `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of `name` below this prefix.
    pub fn key(&self, name: &str) -> Result<ObjectKey, InvalidKey> {
        format!("{}{name}", self.0).parse()
    }

    /// The prefix of the part `name` below this one.
    pub fn below(&self, name: &str) -> Result<KeyPrefix, InvalidKey> {
        format!("{}{name}", self.0).parse()
    }
}

fn valid_part(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'='))
}

impl FromStr for ObjectKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        if text.len() > LONGEST || !text.split('/').all(valid_part) {
            return Err(InvalidKey(text.to_owned()));
        }
        Ok(ObjectKey(text.to_owned()))
    }
}

impl FromStr for KeyPrefix {
    type Err = InvalidKey;

    /// Takes a prefix with or without the `/` at its end.
    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let parts = text.strip_suffix('/').unwrap_or(text);
        if parts.is_empty() && text.is_empty() {
            return Ok(KeyPrefix::default());
        }
        let key: ObjectKey = parts.parse().map_err(|_| InvalidKey(text.to_owned()))?;
        Ok(KeyPrefix(format!("{key}/")))
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_paths_that_lead_elsewhere() {
        for text in
            ["", "/", "/a", "a/", "a//b", "..", "a/../b", "a/.", ".hidden", "a/.tmp", "a b", "a\0b", "ä", "a%2Fb"]
        {
            assert!(text.parse::<ObjectKey>().is_err(), "{text:?}");
        }
        assert!("a".repeat(901).parse::<ObjectKey>().is_err());
        assert!("/".parse::<KeyPrefix>().is_err());
        assert!("a//".parse::<KeyPrefix>().is_err());
    }

    #[test]
    fn prefixes_end_with_a_slash() {
        assert_eq!("".parse::<KeyPrefix>().unwrap().as_str(), "");
        for text in ["a/b", "a/b/"] {
            let prefix: KeyPrefix = text.parse().unwrap();
            assert_eq!(prefix.as_str(), "a/b/");
            assert_eq!(prefix.key("c.zst").unwrap().as_str(), "a/b/c.zst");
            assert_eq!(prefix.below("c").unwrap().as_str(), "a/b/c/");
        }
    }

    proptest! {
        #[test]
        fn a_key_stays_below_its_root(text in "\\PC{0,40}") {
            if let Ok(key) = text.parse::<ObjectKey>() {
                let path = std::path::Path::new("/root").join(key.as_str());
                prop_assert!(path.components().all(|c| !matches!(c, std::path::Component::ParentDir)));
                prop_assert!(path.starts_with("/root"));
            }
        }
    }
}
