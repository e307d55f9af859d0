//! Where a repository lies: the URL that an operator writes.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::KeyPrefix;

/// A parsed repository URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// `s3://bucket/prefix`
    S3 {
        /// The bucket.
        bucket: String,
        /// What stands before all keys.
        prefix: KeyPrefix,
    },
    /// `file:///path`
    Local {
        /// An absolute path.
        root: PathBuf,
    },
}

/// Text that is no repository URL. Never repeats the text: it may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a repository URL: {0}")]
pub struct InvalidLocation(&'static str);

impl FromStr for Location {
    type Err = InvalidLocation;

    fn from_str(text: &str) -> Result<Self, InvalidLocation> {
        if let Some(rest) = text.strip_prefix("s3://") {
            return s3_location(rest);
        }
        if let Some(path) = text.strip_prefix("file://") {
            let root = PathBuf::from(path);
            if !root.is_absolute() {
                return Err(InvalidLocation("a local path must be absolute: `file:///path`"));
            }
            if root.components().any(|part| matches!(part, std::path::Component::ParentDir)) {
                return Err(InvalidLocation("a local path must not contain `..`"));
            }
            return Ok(Location::Local { root });
        }
        Err(InvalidLocation("expected `s3://bucket/prefix` or `file:///path`"))
    }
}

fn s3_location(rest: &str) -> Result<Location, InvalidLocation> {
    if rest.contains('@') {
        return Err(InvalidLocation("it must not hold credentials; give them by environment, profile, role or file"));
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let named = !bucket.is_empty()
        && bucket.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        && bucket.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if !named {
        return Err(InvalidLocation("the bucket's name has characters that no bucket has"));
    }
    let prefix = prefix.parse().map_err(|_| {
        InvalidLocation("the prefix may hold letters, digits, `.`, `-`, `_` and single `/` between parts")
    })?;
    Ok(Location::S3 { bucket: bucket.to_owned(), prefix })
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::S3 { bucket, prefix } => {
                write!(f, "s3://{bucket}/{}", prefix.as_str().trim_end_matches('/'))
            }
            Location::Local { root } => write!(f, "file://{}", root.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_kinds() {
        for (text, printed) in [
            ("s3://bucket", "s3://bucket/"),
            ("s3://my-bucket/pg/main/", "s3://my-bucket/pg/main"),
            ("file:///srv/archive", "file:///srv/archive"),
        ] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn refuses_the_rest_without_repeating_it() {
        for text in [
            "",
            "bucket",
            "/srv/archive",
            "file://srv/archive",
            "file:///srv/../etc",
            "s3://",
            "s3:///prefix",
            "s3://AKIA:CANARY@bucket/prefix",
            "s3://bucket//double",
            "s3://bucket/../up",
            "http://bucket",
        ] {
            let error = text.parse::<Location>().unwrap_err().to_string();
            assert!(!error.contains("CANARY"), "{text}: {error}");
        }
    }
}
