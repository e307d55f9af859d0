//! Bytes by key: the [`ObjectStore`] contract and its implementations.
//!
//! [`s3`] for S3 and what speaks it, [`local`] for a directory, [`memory`] for tests, and decorators
//! ([`gated`] with a [`limit`] or another gate, [`faulty`]) around any of them. This layer knows no WAL, no backups and no PostgreSQL.

pub mod error;
pub mod faulty;
pub mod gated;
pub mod key;
pub mod large_body;
pub mod limit;
pub mod local;
mod local_list;
pub mod location;
pub mod memory;
pub mod object_store;
pub mod s3;
pub mod s3_client;
pub mod s3_credentials;
pub mod s3_error;
pub mod s3_multipart;
pub mod settings_file;

pub use error::{StoreError, StoreErrorKind};
pub use key::{KeyPrefix, ObjectKey};
pub use large_body::LargeBody;
pub use location::Location;
pub use object_store::{
    Get, Head, ListPage, Listed, Object, ObjectMeta, ObjectStore, ObjectStoreExt, Put, UserMetadata,
};
