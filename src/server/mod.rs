//! The live PostgreSQL: how to reach it, and what it says. Knows no stores.

pub mod conninfo;
pub mod session;
pub mod tls;

pub use conninfo::Conninfo;
pub use session::{ServerError, Session};
