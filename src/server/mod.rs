//! The live PostgreSQL: how to reach it, and what it says. Knows no stores.

pub mod backup_session;
pub mod connection_string;
pub mod conninfo;
pub mod parameters;
pub mod session;
pub mod surroundings;
pub mod tls;

pub use backup_session::BackupSession;
pub use connection_string::ConnectionString;
pub use conninfo::Conninfo;
pub use session::{ServerError, Session};
pub use surroundings::Surroundings;
