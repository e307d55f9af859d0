//! Why the repository could not do or answer something.

use super::layout::Generation;
use crate::postgres::ClusterIdent;
use crate::storage::{StoreError, StoreErrorKind};

/// A failure in the repository, as far as callers decide by it.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// The store did not answer as it should.
    #[error(transparent)]
    Store(#[from] StoreError),

    /// No identity object: nothing was ever pushed here, or the URL or cluster name is another.
    #[error("{repository} has no identity: nothing was archived here yet, or its URL or cluster name is another")]
    NoIdentity {
        /// Where was looked.
        repository: String,
    },

    /// Objects without an identity.
    #[error(
        "{repository} holds `{example}` but no identity: somebody deleted it, or other things lie under this prefix"
    )]
    LostIdentity {
        /// Where was looked.
        repository: String,
        /// One of the objects.
        example: String,
    },

    /// The repository belongs to other clusters.
    #[error("{repository} belongs to another cluster: {known}; this one has {ident}")]
    ForeignCluster {
        /// Where was looked.
        repository: String,
        /// This cluster.
        ident: ClusterIdent,
        /// The generations there are, as text.
        known: String,
    },

    /// An object does not hold what it should.
    #[error("`{key}`: {reason}")]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A generation that cannot be opened.
    #[error("generation {generation} cannot be opened: {reason}")]
    Generation {
        /// Which.
        generation: Generation,
        /// Why.
        reason: String,
    },

    /// Plain bytes could not be written to their local destination.
    #[error("{0}")]
    Destination(#[source] std::io::Error),
}

impl RepoError {
    pub(crate) fn damaged(key: &impl ToString, reason: impl Into<String>) -> Self {
        RepoError::Damaged { key: key.to_string(), reason: reason.into() }
    }

    /// Whether it says nothing about other objects.
    pub fn is_of_one_object(&self) -> bool {
        use StoreErrorKind::{Changed, Denied, LocalIo};
        matches!(self, RepoError::Store(error) if matches!(error.kind, Denied | LocalIo | Changed))
    }

    /// Whether the same call may succeed a little later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, RepoError::Store(error) if error.is_temporary())
    }
}
