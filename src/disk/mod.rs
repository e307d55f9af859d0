//! Local files: the data directory, the WAL files that PostgreSQL hands over, the files that it waits for.
//!
//! This layer knows no stores.

pub mod archived_note;
pub mod data_dir;
pub mod dump_copy;
pub mod flat_tar;
pub mod incoming;
pub mod live_file;
pub mod place_note;
pub mod private_place;
pub mod restore_dir;
pub mod restored_file;
pub mod server_settings;
pub mod shelf;
pub mod snapshot;
pub mod spool;
mod sync;
pub mod tablespace_location;
pub mod tablespace_users;
pub mod wal_file;
pub mod whole_file;

pub use data_dir::DataDir;
pub use dump_copy::DumpCopy;
pub use flat_tar::FlatTar;
pub use incoming::Incoming;
pub use live_file::{LiveFile, PageCheck};
pub use private_place::PrivatePlace;
pub use restore_dir::{RestoreDir, RestoreDirError};
pub use shelf::Shelf;
pub use snapshot::Snapshot;
pub use spool::{Spool, temporary_place};
pub use wal_file::{WalFile, WalFileError};
