//! pgark keeps a PostgreSQL cluster restorable to any moment.
//!
//! The folders are the architecture; imports point only to the right (a test holds it):
//!
//! ```text
//! main -> cli -> serve -> page -> command -> { disk, server, repo } -> { postgres, stream, storage }
//! ```
//!
//! Three promises settle every question of design: never lie (exit 0 means durable, or restored
//! and verified), never in the way, never a lock-in. `docs/architecture.md` tells the rest.

pub mod cli;
pub mod command;
pub mod disk;
pub mod page;
pub mod postgres;
pub mod repo;
pub mod serve;
pub mod server;
pub mod storage;
pub mod stream;
mod text_form;
