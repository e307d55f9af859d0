//! Who streams WAL from a server for pgark, as the server sees it: its walsenders and the replication slot.
//!
//! Sources: the views `pg_stat_replication` and `pg_replication_slots`. What another user's walsender has flushed is shown to
//! superusers and members of `pg_monitor` only.

use super::session::{ServerError, Session, reason};
use crate::postgres::{Lsn, Malformed};

/// What a server says about those who stream from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receiving {
    /// The furthest position that a receiver has reported as durable; `None`: there is no receiver, or we may not know.
    pub durable: Option<Lsn>,
    /// Bytes of WAL between that position and the end of what the server has written.
    pub behind: Option<i64>,
    /// The slot of the name that was asked about.
    pub slot: Option<SlotFacts>,
    /// `max_slot_wal_keep_size` in MB; -1: no limit.
    pub keep_limit: i64,
}

/// A physical replication slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotFacts {
    /// Its name.
    pub name: String,
    /// Whether somebody streams from it.
    pub active: bool,
    /// `wal_status`: `reserved`, `extended`, `unreserved` or `lost`; absent in a slot that was never used.
    pub wal_status: Option<String>,
    /// Bytes of WAL that it makes the server keep.
    pub kept: Option<i64>,
}

/// Receivers call themselves so, or by a name that begins so. A base backup's walsender has flushed nothing.
const DURABLE: &str = "select max(flush_lsn) from pg_stat_replication where application_name like 'pgark%'";

impl Session {
    /// Asks about receivers and the slot of this name.
    pub async fn receiving(&self, slot: &str) -> Result<Receiving, ServerError> {
        let end = "case when pg_is_in_recovery() then pg_last_wal_receive_lsn() else pg_current_wal_lsn() end";
        let sql = format!(
            "select d.lsn::text, pg_wal_lsn_diff({end}, d.lsn)::int8, \
             (select setting::int8 from pg_settings where name = 'max_slot_wal_keep_size') from ({DURABLE}) d(lsn)"
        );
        let row = self.one(&sql).await?;
        let odd = |e: tokio_postgres::Error| ServerError(reason(&e));
        let durable: Option<String> = row.try_get(0).map_err(odd)?;
        let durable = durable.map(|lsn| lsn.parse().map_err(|e: Malformed| ServerError(e.to_string()))).transpose()?;
        // A name of a slot has letters, digits and underscores only: see `ReplicationSlotValidateName`.
        let plain = slot.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        let sql = format!(
            "select active, wal_status, pg_wal_lsn_diff({end}, restart_lsn)::int8 from pg_replication_slots \
             where slot_type = 'physical' and slot_name = '{}' union all select null, null, null limit 1",
            if plain { slot } else { "" }
        );
        let found = self.one(&sql).await?;
        let active: Option<bool> = found.try_get(0).map_err(odd)?;
        let slot = match active {
            None => None,
            Some(active) => Some(SlotFacts {
                name: slot.to_owned(),
                active,
                wal_status: found.try_get(1).map_err(odd)?,
                kept: found.try_get(2).map_err(odd)?,
            }),
        };
        let (behind, keep_limit) = (row.try_get(1).map_err(odd)?, row.try_get(2).map_err(odd)?);
        Ok(Receiving { durable, behind, slot, keep_limit })
    }

    /// The furthest position that a receiver of pgark has reported as durable.
    pub async fn received_up_to(&self) -> Result<Option<Lsn>, ServerError> {
        let row = self.one(&format!("select d.lsn::text from ({DURABLE}) d(lsn)")).await?;
        let lsn: Option<String> = row.try_get(0).map_err(|e| ServerError(reason(&e)))?;
        lsn.map(|lsn| lsn.parse().map_err(|e: Malformed| ServerError(e.to_string()))).transpose()
    }
}
