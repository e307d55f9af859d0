//! The live PostgreSQL: how to reach it, and what it says. Knows no stores.

pub mod backup_session;
pub mod base_backup;
mod bound;
pub mod channel_binding;
mod connect;
pub mod connection_string;
pub mod conninfo;
mod dial;
pub mod dump_source;
pub mod handshake;
pub mod keep_alive;
pub mod parameters;
pub mod programs;
pub mod receivers;
pub mod replication;
pub mod replication_slot;
pub mod scratch;
pub mod scratch_place;
pub mod scratch_session;
pub mod session;
pub mod surroundings;
pub mod target_session;
pub mod timeline_history;
pub mod tls;
pub mod wal_stream;
mod wire;

pub use backup_session::BackupSession;
pub use base_backup::BaseBackup;
pub use connect::ConnectError;
pub use connection_string::ConnectionString;
pub use conninfo::Conninfo;
pub use replication::Replication;
pub use session::{ServerError, Session};
pub use surroundings::Surroundings;
pub use wal_stream::WalStream;
