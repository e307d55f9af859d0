//! A physical replication slot: with one the server keeps the WAL that a receiver has not confirmed.
//!
//! Source: "Streaming Replication Protocol" in PostgreSQL's documentation, `replication/slot.c`.

use super::replication::{Replication, as_text};
use super::session::ServerError;
use super::wire::Refusal;
use crate::postgres::{Lsn, Malformed, PgMajor};

/// What the server says of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// There is none of this name.
    Missing,
    /// It is there, and so is WAL from here on. `None`: it holds nothing, because it was never used, or is lost.
    There(Option<Lsn>),
    /// This server does not tell: one before PostgreSQL 15.
    NotTold,
}

/// `ERRCODE_DUPLICATE_OBJECT`
const DUPLICATE_OBJECT: &str = "42710";

impl Replication {
    /// Asks about a slot.
    pub async fn slot(&mut self, major: PgMajor, name: &str) -> Result<Slot, ServerError> {
        if major.get() < 15 {
            return Ok(Slot::NotTold);
        }
        let row = self.first_row(&format!("READ_REPLICATION_SLOT {}", quoted(name))).await?.unwrap_or_default();
        let column = |at: usize| row.get(at).and_then(Option::as_deref).and_then(as_text);
        match column(0) {
            None => Ok(Slot::Missing),
            Some(_) => {
                let restart = column(1).map(str::parse).transpose();
                Ok(Slot::There(restart.map_err(|e: Malformed| ServerError(e.to_string()))?))
            }
        }
    }

    /// Makes a physical slot that keeps WAL from now on. False if there is one of this name.
    pub async fn create_slot(&mut self, name: &str) -> Result<bool, ServerError> {
        match self.first_row(&format!("CREATE_REPLICATION_SLOT {} PHYSICAL RESERVE_WAL", quoted(name))).await {
            Ok(_) => Ok(true),
            Err(Refusal::Complaint(complaint)) if complaint.code == DUPLICATE_OBJECT => Ok(false),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Drops a slot that nobody uses.
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), ServerError> {
        self.first_row(&format!("DROP_REPLICATION_SLOT {}", quoted(name))).await?;
        Ok(())
    }
}

/// An identifier of the replication grammar.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
