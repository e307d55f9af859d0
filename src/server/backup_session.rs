//! The session in which a base backup lives: start, stop, and what the server knows about itself.
//!
//! If this session ends, so does the backup: a copy without its stop is worthless.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, ToSql, Type};

use super::conninfo::Conninfo;
use super::session::{ServerError, Session, reason};
use crate::postgres::{Lsn, SegmentSize, SystemId};

/// A session that may hold a backup.
pub struct BackupSession {
    session: Session,
    version: u32,
}

/// What a backup records about its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAtBackup {
    /// `server_version_num`
    pub version: u32,
    /// The system identifier.
    pub system_id: SystemId,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Whether it archives: `archive_mode` is `always`, or `on` outside of recovery.
    pub archives: bool,
    /// When the postmaster started, in seconds since 1970.
    pub postmaster_start: i64,
    /// `port`
    pub port: u16,
    /// `unix_socket_directories`, if the user may know.
    pub socket_directories: Option<String>,
}

/// What the server says at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// Where replay must begin.
    pub lsn: Lsn,
    /// The server's clock.
    pub at: Timestamp,
}

/// What the server says at the stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Where replay must come.
    pub lsn: Lsn,
    /// The server's clock.
    pub at: Timestamp,
    /// The content of `backup_label`, byte for byte.
    pub label: Vec<u8>,
    /// The content of `tablespace_map`; empty without tablespaces.
    pub tablespace_map: Vec<u8>,
}

/// For questions that are answered at once.
const PATIENCE: Duration = Duration::from_secs(30);
/// For a checkpoint, which may be spread over `checkpoint_timeout`, a day at most.
const CHECKPOINT: Duration = Duration::from_secs(25 * 3600);

impl BackupSession {
    /// Connects, and lifts the limits on how long a session may be idle.
    pub async fn connect(conninfo: &Conninfo) -> Result<Self, ServerError> {
        let session = Session::connect(conninfo).await?;
        let mut backup = BackupSession { session, version: 0 };
        let row = backup.ask("select current_setting('server_version_num')::int8", &[], PATIENCE).await?;
        backup.version = u32::try_from(get::<i64>(&row, 0)?).map_err(|e| ServerError(e.to_string()))?;
        backup.ask("select set_config('statement_timeout', '0', false)", &[], PATIENCE).await?;
        backup.ask("select set_config('lock_timeout', '0', false)", &[], PATIENCE).await?;
        backup.ask("select set_config('idle_session_timeout', '0', false)", &[], PATIENCE).await?;
        if backup.version >= 170_000 {
            backup.ask("select set_config('transaction_timeout', '0', false)", &[], PATIENCE).await?;
        }
        Ok(backup)
    }

    /// What a backup records.
    pub async fn server(&self) -> Result<ServerAtBackup, ServerError> {
        let row = self
            .ask(
                "select (select system_identifier from pg_control_system()), pg_is_in_recovery(), \
                 current_setting('archive_mode'), extract(epoch from pg_postmaster_start_time())::int8, \
                 (select setting::int8 from pg_settings where name = 'port'), \
                 (select setting from pg_settings where name = 'unix_socket_directories')",
                &[],
                PATIENCE,
            )
            .await?;
        let in_recovery: bool = get(&row, 1)?;
        let archive_mode: String = get(&row, 2)?;
        Ok(ServerAtBackup {
            version: self.version,
            system_id: SystemId(get::<i64>(&row, 0)?.cast_unsigned()),
            in_recovery,
            archives: archive_mode == "always" || (archive_mode == "on" && !in_recovery),
            postmaster_start: get(&row, 3)?,
            port: u16::try_from(get::<i64>(&row, 4)?).map_err(|e| ServerError(e.to_string()))?,
            socket_directories: get(&row, 5)?,
        })
    }

    /// Begins the backup. Waits for a checkpoint: `fast` makes it hurry.
    pub async fn start(&self, label: &str, fast: bool) -> Result<Started, ServerError> {
        let sql = match self.version {
            ..150_000 => "select pg_start_backup($1, $2, false)::text, extract(epoch from clock_timestamp())::float8",
            _ => "select pg_backup_start($1, $2)::text, extract(epoch from clock_timestamp())::float8",
        };
        let row = self.ask(sql, &[(&label, Type::TEXT), (&fast, Type::BOOL)], CHECKPOINT).await?;
        Ok(Started { lsn: lsn(&row, 0)?, at: moment(&row, 1)? })
    }

    /// Ends the backup. Does not wait for the archiver: that is checked in the repository.
    pub async fn stop(&self) -> Result<Stopped, ServerError> {
        let sql = match self.version {
            ..150_000 => {
                "select lsn::text, labelfile, spcmapfile, extract(epoch from clock_timestamp())::float8 \
                 from pg_stop_backup(false, false)"
            }
            _ => {
                "select lsn::text, labelfile, spcmapfile, extract(epoch from clock_timestamp())::float8 \
                 from pg_backup_stop(false)"
            }
        };
        let row = self.ask(sql, &[], CHECKPOINT).await?;
        Ok(Stopped {
            lsn: lsn(&row, 0)?,
            label: get::<String>(&row, 1)?.into_bytes(),
            tablespace_map: get::<Option<String>>(&row, 2)?.unwrap_or_default().into_bytes(),
            at: moment(&row, 3)?,
        })
    }

    /// The server's clock.
    pub async fn clock(&self) -> Result<Timestamp, ServerError> {
        moment(&self.ask("select extract(epoch from clock_timestamp())::float8", &[], PATIENCE).await?, 0)
    }

    /// Whether [`BackupSession::switch_wal`] is allowed.
    pub async fn may_switch_wal(&self) -> Result<bool, ServerError> {
        get(&self.ask("select has_function_privilege('pg_switch_wal()', 'execute')", &[], PATIENCE).await?, 0)
    }

    /// Writes a little WAL and ends the segment; the name of the segment that is archived now.
    pub async fn switch_wal(&self) -> Result<crate::postgres::WalName, ServerError> {
        // Where nothing was written since the last switch, there would be nothing to end.
        self.session.current_segment().await?;
        self.session.switch_wal().await
    }

    /// The last file that the server's archiver archived.
    pub async fn last_archived(&self) -> Result<Option<String>, ServerError> {
        get(&self.ask("select last_archived_wal from pg_stat_archiver", &[], PATIENCE).await?, 0)
    }

    /// How far a receiver of pgark has stored the server's WAL, as it has told the server.
    pub async fn received_up_to(&self) -> Result<Option<Lsn>, ServerError> {
        self.session.received_up_to().await
    }

    /// Of its WAL.
    pub async fn segment_size(&self) -> Result<SegmentSize, ServerError> {
        let sql = "select setting::int8 from pg_settings where name = 'wal_segment_size'";
        let bytes: i64 = get(&self.ask(sql, &[], PATIENCE).await?, 0)?;
        SegmentSize::new(bytes.cast_unsigned()).map_err(|e| ServerError(e.to_string()))
    }

    /// Whether a tablespace is in the catalogs.
    pub async fn has_tablespace(&self, oid: u32) -> Result<bool, ServerError> {
        let sql = "select exists (select from pg_tablespace where oid = $1)";
        get(&self.ask(sql, &[(&oid, Type::OID)], PATIENCE).await?, 0)
    }

    /// Whether the session still lives. A server that does not answer counts as gone.
    pub async fn is_alive(&self) -> Result<(), ServerError> {
        self.ask("select 1::int8", &[], PATIENCE).await.map(|_| ())
    }

    async fn ask(
        &self,
        sql: &str,
        values: &[(&(dyn ToSql + Sync), Type)],
        patience: Duration,
    ) -> Result<Row, ServerError> {
        let late = |_| ServerError(format!("PostgreSQL gave no answer within {} s", patience.as_secs()));
        // See `Session::one`: nothing may be under way when the last answer has come.
        let asking = self.session.client().query_typed_one(sql, values);
        timeout(patience, asking).await.map_err(late)?.map_err(|e| ServerError(reason(&e)))
    }
}

pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, at: usize) -> Result<T, ServerError> {
    row.try_get(at).map_err(|e| ServerError(reason(&e)))
}

fn lsn(row: &Row, at: usize) -> Result<Lsn, ServerError> {
    get::<String>(row, at)?.parse().map_err(|e: crate::postgres::Malformed| ServerError(e.to_string()))
}

pub(super) fn moment(row: &Row, at: usize) -> Result<Timestamp, ServerError> {
    let microseconds = get::<f64>(row, at)? * 1e6;
    Timestamp::from_microsecond(microseconds as i64).map_err(|e| ServerError(e.to_string()))
}
