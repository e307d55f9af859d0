//! The live PostgreSQL: how to reach it, and what it says. Knows no stores.

pub mod backup_session;
pub mod conninfo;
pub mod session;
pub mod tls;

pub use backup_session::BackupSession;
pub use conninfo::Conninfo;
pub use session::{ServerError, Session};
