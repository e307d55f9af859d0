//! What a logical dump asks a server before its programs run.

use jiff::Timestamp;

use super::backup_session::{get, moment};
use super::session::{ServerError, Session};
use crate::postgres::{ClusterIdent, SystemId};

/// A server that is to be dumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpSource {
    /// The cluster.
    pub ident: ClusterIdent,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// The server's clock.
    pub now: Timestamp,
    /// The databases that can be connected to, in the order of their names: all but `template0`.
    pub databases: Vec<String>,
}

impl Session {
    /// Asks what a dump needs to know.
    pub async fn dump_source(&self) -> Result<DumpSource, ServerError> {
        let row = self
            .one(
                "select (select system_identifier from pg_catalog.pg_control_system()), \
                 pg_catalog.current_setting('server_version_num')::int8, pg_catalog.pg_is_in_recovery(), \
                 extract(epoch from pg_catalog.clock_timestamp())::float8, \
                 array(select datname::text from pg_catalog.pg_database where datallowconn order by 1)",
            )
            .await?;
        let version: i64 = get(&row, 1)?;
        let major = u32::try_from(version / 10_000).ok().and_then(|major| major.try_into().ok());
        let unknown = || ServerError(format!("PostgreSQL {} is not a version that pgark knows", version / 10_000));
        Ok(DumpSource {
            ident: ClusterIdent {
                system_id: SystemId(get::<i64>(&row, 0)?.cast_unsigned()),
                major: major.ok_or_else(unknown)?,
            },
            in_recovery: get(&row, 2)?,
            now: moment(&row, 3)?,
            databases: get(&row, 4)?,
        })
    }

    /// The server's clock.
    pub async fn clock(&self) -> Result<Timestamp, ServerError> {
        moment(&self.one("select extract(epoch from pg_catalog.clock_timestamp())::float8").await?, 0)
    }
}
