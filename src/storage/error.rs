//! Why a store did not do what it was asked.

use std::error::Error;
use std::fmt;

/// The decision that an error asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// No answer, or one that says "later": connection, time-out, 5xx, throttling. Trying again may help.
    Unavailable,
    /// An answer that no healthy store gives: a 404 without `NoSuchKey`, a proxy's page, a broken
    /// body. It proves nothing. Trying again may help.
    Unexpected,
    /// Refused: credentials are missing, wrong or lack a right.
    Denied,
    /// The bucket or the root directory does not exist.
    NoSuchContainer,
    /// Settings that cannot work: wrong region, bad endpoint, unreadable certificate file.
    Misconfigured,
    /// The object is not the one that was opened before.
    Changed,
    /// The store cannot do what is needed, such as conditional writes.
    Unsupported,
    /// The local file system failed: no space, no permission, a bad disk.
    LocalIo,
}

/// An operation on a store that failed.
#[derive(Debug)]
pub struct StoreError {
    /// What to do about it.
    pub kind: StoreErrorKind,
    /// What was tried, on which object, and what came back.
    pub message: String,
    /// What the operator can do, if known.
    pub hint: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl StoreError {
    /// An error of this kind.
    pub fn new(kind: StoreErrorKind, message: impl Into<String>) -> Self {
        StoreError { kind, message: message.into(), hint: None, source: None }
    }

    /// With advice for the operator.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With the error behind it.
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether a local disk gave back that it cannot read this any more (`EIO`).
    pub fn is_bad_medium(&self) -> bool {
        const EIO: i32 = 5;
        let mut source = self.source();
        while let Some(error) = source {
            if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.raw_os_error() == Some(EIO)) {
                return true;
            }
            source = error.source();
        }
        false
    }

    /// Whether the same call may succeed a little later.
    pub fn is_temporary(&self) -> bool {
        matches!(self.kind, StoreErrorKind::Unavailable | StoreErrorKind::Unexpected)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as &(dyn Error + 'static))
    }
}
