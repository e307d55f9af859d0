//! A SQL session with the server: settings, state of the archiver, a WAL switch.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_postgres::config::{self, SslMode, SslNegotiation};
use tokio_postgres::{Client, Config};

use super::bound::{Bound, HasTls};
use super::channel_binding::{Binding, ChannelBinding};
use super::connect::{self, ConnectError, LogIn};
use super::conninfo::{Conninfo, Server};
use super::dial::Link;
use super::receivers::Receiving;
use super::target_session::Role;
use crate::postgres::{SystemId, WalName};

/// The server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServerError(pub String);

/// A connection; it ends when this is dropped.
pub struct Session {
    client: Client,
    reported: Option<Role>,
}

/// What `pg_stat_archiver` and a few settings say.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerFacts {
    /// `server_version_num`
    pub version: u32,
    /// The system identifier.
    pub system_id: SystemId,
    /// `archive_mode`
    pub archive_mode: String,
    /// `wal_level`
    pub wal_level: String,
    /// `archive_command`
    pub archive_command: String,
    /// `archive_library`, of PostgreSQL 15 and newer: where it is set, `archive_command` is not run.
    pub archive_library: String,
    /// `archive_timeout` in seconds.
    pub archive_timeout: i64,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// Failures that the archiver has counted.
    pub failed_count: i64,
    /// The file that failed last, if nothing was archived since.
    pub failing: Option<String>,
    /// The newest file that was archived, and how many seconds ago, since the statistics began.
    pub last_archived: Option<(String, f64)>,
    /// The segment that is being written, and how many bytes a segment has; of a standby unknown.
    pub writing: Option<(String, i64)>,
    /// Files that wait for the archiver, and the age of the oldest in seconds, if the user may see that.
    pub waiting: Option<(i64, f64)>,
    /// Who streams from it.
    pub receiving: Receiving,
    /// How many seconds its clock is ahead of this machine's.
    pub clock_ahead: Option<f64>,
}

impl ServerFacts {
    /// Whether nothing but a receiver stores its WAL.
    pub fn is_only_streamed(&self) -> bool {
        self.archive_mode == "off" && self.receiving.durable.is_some()
    }
}

/// `pg_stat_archiver` at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archiver {
    /// Files that were archived.
    pub archived_count: i64,
    /// The newest of them.
    pub last_archived: Option<String>,
    /// Tries that failed.
    pub failed_count: i64,
    /// Of which file the last one was.
    pub last_failed: Option<String>,
}

const PATIENCE: Duration = Duration::from_secs(10);

impl LogIn for Session {
    const PURPOSE: &'static str = "";

    async fn log_in(link: Link, server: &Server, conninfo: &Conninfo) -> Result<Self, ServerError> {
        let config = configure(conninfo, server, &link.binding);
        let connecting = config.connect_raw(Bound(link), HasTls);
        let (client, connection) = connecting.await.map_err(|e| ServerError(reason(&e)))?;
        let reported = Role::reported(|name| connection.parameter(name));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("the connection to PostgreSQL ended: {error}");
            }
        });
        Ok(Session { client, reported })
    }

    async fn role(&mut self) -> Result<Role, ServerError> {
        if let Some(role) = self.reported {
            return Ok(role);
        }
        let sql = "select pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only') = 'on'";
        let row = self.one(sql).await?;
        let told = |at: usize| row.try_get::<_, bool>(at).map_err(|e| ServerError(reason(&e)));
        Ok(Role { is_standby: told(0)?, is_read_only: told(1)? })
    }
}

impl Session {
    /// Connects to the first server that fits.
    pub async fn connect(conninfo: &Conninfo) -> Result<Self, ConnectError> {
        connect::connect(conninfo).await
    }

    /// Asks for everything that `check` judges. `slot` is a receiver's.
    pub async fn facts(&self, slot: &str) -> Result<ServerFacts, ServerError> {
        let asked = Timestamp::now();
        let row = self
            .one(
                "select current_setting('server_version_num')::int8, \
                 (select system_identifier from pg_control_system()), current_setting('archive_mode'), \
                 current_setting('wal_level'), current_setting('archive_command'), \
                 (select setting::int8 from pg_settings where name = 'archive_timeout'), pg_is_in_recovery(), \
                 a.failed_count, case when a.last_failed_time > coalesce(a.last_archived_time, '-infinity') \
                 then a.last_failed_wal end, coalesce(current_setting('archive_library', true), ''), \
                 a.last_archived_wal, extract(epoch from now() - a.last_archived_time)::float8, \
                 case when not pg_is_in_recovery() then pg_walfile_name(pg_current_wal_insert_lsn()) end, \
                 (select setting::int8 from pg_settings where name = 'wal_segment_size'), \
                 extract(epoch from clock_timestamp())::float8 from pg_stat_archiver a",
            )
            .await?;
        let waiting = self
            .one(
                "select count(*), coalesce(extract(epoch from now() - min(modification)), 0)::float8 \
                 from pg_ls_archive_statusdir() where name like '%.ready'",
            )
            .await;
        let text = |at: usize| row.try_get::<_, String>(at).map_err(|e| ServerError(reason(&e)));
        let number = |at: usize| row.try_get::<_, i64>(at).map_err(|e| ServerError(reason(&e)));
        Ok(ServerFacts {
            version: u32::try_from(number(0)?).map_err(|e| ServerError(e.to_string()))?,
            system_id: SystemId(number(1)?.cast_unsigned()),
            archive_mode: text(2)?,
            wal_level: text(3)?,
            archive_command: text(4)?,
            archive_library: text(9)?,
            archive_timeout: number(5)?,
            in_recovery: row.try_get(6).map_err(|e| ServerError(reason(&e)))?,
            failed_count: number(7)?,
            failing: row.try_get(8).map_err(|e| ServerError(reason(&e)))?,
            last_archived: row.try_get(10).ok().zip(row.try_get(11).ok()),
            writing: row.try_get(12).ok().zip(row.try_get(13).ok()),
            // The right to look is that of superusers and of pg_monitor.
            waiting: waiting.ok().and_then(|row| Some((row.try_get(0).ok()?, row.try_get(1).ok()?))),
            receiving: self.receiving(slot).await?,
            clock_ahead: row.try_get(14).ok().map(|theirs: f64| theirs - asked.as_duration().as_secs_f64()),
        })
    }

    /// Where the server's data directory is, if the user may know.
    pub async fn data_directory(&self) -> Option<String> {
        // The right to know is that of superusers and of pg_read_all_settings.
        self.one("select current_setting('data_directory')").await.ok()?.try_get(0).ok()
    }

    /// Writes a little WAL, so that the current segment can be switched, and returns its name.
    pub async fn current_segment(&self) -> Result<WalName, ServerError> {
        // A transaction with an id writes a commit record: a segment without anything in it is not switched.
        self.one("select txid_current()").await?;
        // The insert position is never on the boundary of two segments, where `pg_walfile_name` means the one before.
        wal_name(&self.one("select pg_walfile_name(pg_current_wal_insert_lsn())").await?, 0)
    }

    /// Ends the current segment, and returns its name: it will be archived now.
    pub async fn switch_wal(&self) -> Result<WalName, ServerError> {
        wal_name(&self.one("select pg_walfile_name(pg_switch_wal())").await?, 0)
    }

    /// What the archiver has done so far.
    pub async fn archiver(&self) -> Result<Archiver, ServerError> {
        let sql = "select archived_count, last_archived_wal, failed_count, last_failed_wal from pg_stat_archiver";
        let row = self.one(sql).await?;
        let bad = |e: tokio_postgres::Error| ServerError(reason(&e));
        Ok(Archiver {
            archived_count: row.try_get(0).map_err(bad)?,
            last_archived: row.try_get(1).map_err(bad)?,
            failed_count: row.try_get(2).map_err(bad)?,
            last_failed: row.try_get(3).map_err(bad)?,
        })
    }

    /// The connection, for questions of other rooms.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) async fn one(&self, sql: &str) -> Result<tokio_postgres::Row, ServerError> {
        // With its types given it leaves no statement behind, whose end would be told to a client that may be gone by then.
        let asking = self.client.query_typed_one(sql, &[]);
        let late = |_| ServerError(format!("PostgreSQL gave no answer within {} s", PATIENCE.as_secs()));
        timeout(PATIENCE, asking).await.map_err(late)?.map_err(|e| ServerError(reason(&e)))
    }
}

fn wal_name(row: &tokio_postgres::Row, at: usize) -> Result<WalName, ServerError> {
    let name: String = row.try_get(at).map_err(|e| ServerError(reason(&e)))?;
    name.parse().map_err(|e: crate::postgres::Malformed| ServerError(e.to_string()))
}

fn configure(conninfo: &Conninfo, server: &Server, binding: &Binding) -> Config {
    let mut config = Config::new();
    config.user(&conninfo.user).dbname(&conninfo.database);
    config.application_name(conninfo.application_name.as_deref().unwrap_or("pgark"));
    if let Some(options) = &conninfo.options {
        config.options(options);
    }
    if let Some(password) = &server.password {
        config.password(password);
    }
    config.channel_binding(match conninfo.channel_binding {
        ChannelBinding::Disable => config::ChannelBinding::Disable,
        ChannelBinding::Prefer => config::ChannelBinding::Prefer,
        ChannelBinding::Require => config::ChannelBinding::Require,
    });
    // The link has its TLS already: there is nothing to ask the server for.
    match binding {
        Binding::NoTls => config.ssl_mode(SslMode::Disable),
        Binding::NoHash | Binding::EndPoint(_) => {
            config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct)
        }
    };
    config
}

/// The server's own words, or the cause of a broken connection.
pub(super) fn reason(error: &tokio_postgres::Error) -> String {
    if let Some(answer) = error.as_db_error() {
        return answer.message().to_owned();
    }
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
