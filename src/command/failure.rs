//! Why a command failed: a kind that decides the exit code, a message and a hint.

use std::fmt;

use crate::disk::WalFileError;
use crate::repo::RepoError;
use crate::server::{ConnectError, ServerError};
use crate::storage::{StoreError, StoreErrorKind};

/// What went wrong, as far as exit codes and retries tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// Wrong flags, settings or arguments.
    Usage,
    /// Another content, or another cluster, has this place.
    Conflict,
    /// The file to be archived is not what its name says.
    BadInput,
    /// The store does not answer, or not now.
    Unavailable,
    /// The store refuses.
    Denied,
    /// The bucket or directory does not exist, or the settings cannot reach it.
    WrongPlace,
    /// The store lacks a feature.
    Unsupported,
    /// What the repository holds is damaged.
    Damaged,
    /// A segment is missing and later ones are there.
    Gap,
    /// The repository has no identity.
    NoIdentity,
    /// What was asked for cannot be restored.
    Unreachable,
    /// A local file or disk failed.
    LocalIo,
    /// The deadline passed.
    Deadline,
    /// A signal came.
    Interrupted,
    /// The database server does not answer or refuses.
    Server,
    /// A defect of pgark.
    Internal,
}

impl FailureKind {
    /// All kinds, for tables and their tests.
    pub const ALL: [FailureKind; 16] = [
        FailureKind::Usage,
        FailureKind::Conflict,
        FailureKind::BadInput,
        FailureKind::Unavailable,
        FailureKind::Denied,
        FailureKind::WrongPlace,
        FailureKind::Unsupported,
        FailureKind::Damaged,
        FailureKind::Gap,
        FailureKind::NoIdentity,
        FailureKind::Unreachable,
        FailureKind::LocalIo,
        FailureKind::Deadline,
        FailureKind::Interrupted,
        FailureKind::Server,
        FailureKind::Internal,
    ];

    /// A word for logs and JSON.
    pub fn word(self) -> &'static str {
        match self {
            FailureKind::Usage => "usage",
            FailureKind::Conflict => "conflict",
            FailureKind::BadInput => "bad-input",
            FailureKind::Unavailable => "unavailable",
            FailureKind::Denied => "denied",
            FailureKind::WrongPlace => "wrong-place",
            FailureKind::Unsupported => "unsupported",
            FailureKind::Damaged => "damaged",
            FailureKind::Gap => "gap",
            FailureKind::NoIdentity => "no-identity",
            FailureKind::Unreachable => "unreachable",
            FailureKind::LocalIo => "local-io",
            FailureKind::Deadline => "deadline",
            FailureKind::Interrupted => "interrupted",
            FailureKind::Server => "server",
            FailureKind::Internal => "internal",
        }
    }
}

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// What happened to which segment, key or file, and why. No secrets.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Failure { kind, message: message.into(), hint: None }
    }

    /// With advice.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With what was tried in front: outermost context first.
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let kind = match error.kind {
            StoreErrorKind::Unavailable | StoreErrorKind::Unexpected => FailureKind::Unavailable,
            StoreErrorKind::Denied => FailureKind::Denied,
            StoreErrorKind::NoSuchContainer | StoreErrorKind::Misconfigured => FailureKind::WrongPlace,
            StoreErrorKind::Changed => FailureKind::Damaged,
            StoreErrorKind::Unsupported => FailureKind::Unsupported,
            StoreErrorKind::LocalIo => FailureKind::LocalIo,
        };
        Failure { kind, message: error.message, hint: error.hint }
    }
}

impl From<RepoError> for Failure {
    fn from(error: RepoError) -> Self {
        let message = error.to_string();
        match error {
            RepoError::Store(error) => error.into(),
            RepoError::NoIdentity { .. } => Failure::new(FailureKind::NoIdentity, message)
                .with_hint("compare `url` and `name` with those of the server that archives"),
            RepoError::LostIdentity { .. } => Failure::new(FailureKind::Damaged, message)
                .with_hint("put `identity/1.json` back (docs/format.md), or use another prefix or cluster name"),
            RepoError::ForeignCluster { .. } => Failure::new(FailureKind::Conflict, message).with_hint(
                "give this cluster a `name` or URL of its own; after pg_upgrade or initdb run `pgark init --new-generation`",
            ),
            RepoError::Damaged { .. } => Failure::new(FailureKind::Damaged, message),
            RepoError::Generation { .. } => Failure::new(FailureKind::Conflict, message),
            RepoError::Destination(_) => Failure::new(FailureKind::LocalIo, message),
        }
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        Failure::new(FailureKind::Server, error.to_string())
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Failure { kind: FailureKind::Server, message: error.message, hint: error.hint }
    }
}

impl From<WalFileError> for Failure {
    fn from(error: WalFileError) -> Self {
        let kind = match error {
            WalFileError::Io { .. } => FailureKind::LocalIo,
            WalFileError::Refused { .. } => FailureKind::BadInput,
        };
        Failure::new(kind, error.to_string())
    }
}
