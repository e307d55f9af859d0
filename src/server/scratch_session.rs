//! What a throw-away server is asked once it has recovered.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_postgres::types::Type;

use super::session::{ServerError, Session, reason};
use crate::postgres::{Lsn, TimelineId};

/// What recovery has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The timeline that it writes now.
    pub timeline: TimelineId,
    /// The end of the last record that was replayed.
    pub replayed: Option<Lsn>,
    /// The time of the last transaction that was replayed.
    pub last_commit: Option<Timestamp>,
    /// Whether its pages have checksums.
    pub checksums: bool,
    /// Whether `pg_amcheck` has what it needs.
    pub has_amcheck: bool,
    /// Roles that may do everything, the first one first.
    pub superusers: Vec<String>,
    /// The databases that can be connected to, in the order of their names.
    pub databases: Vec<String>,
}

/// What an assertion gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// `true` or `false`.
    Boolean(bool),
    /// A time.
    Moment(Timestamp),
    /// NULL.
    Null,
    /// Neither one row with one column, nor of a type that can be judged.
    Odd(String),
}

impl Session {
    /// Asks what recovery has come to.
    pub async fn recovered(&self) -> Result<Recovered, ServerError> {
        let row = self
            .one(
                "select pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8), \
                 pg_catalog.pg_last_wal_replay_lsn()::text, \
                 (extract(epoch from pg_catalog.pg_last_xact_replay_timestamp()) * 1000000)::int8, \
                 pg_catalog.current_setting('data_checksums') = 'on', \
                 exists (select 1 from pg_catalog.pg_available_extensions where name = 'amcheck'), \
                 array(select rolname::text from pg_catalog.pg_roles where rolsuper and rolcanlogin order by oid), \
                 array(select datname::text from pg_catalog.pg_database where datallowconn order by 1)",
            )
            .await?;
        let bad = |e: tokio_postgres::Error| ServerError(reason(&e));
        let timeline: String = row.try_get(0).map_err(bad)?;
        let timeline = u32::from_str_radix(&timeline, 16).ok().and_then(TimelineId::new);
        let replayed: Option<String> = row.try_get(1).map_err(bad)?;
        let last_commit: Option<i64> = row.try_get(2).map_err(bad)?;
        Ok(Recovered {
            timeline: timeline.ok_or_else(|| ServerError("the server does not tell its timeline".to_owned()))?,
            replayed: replayed.and_then(|text| text.parse().ok()),
            last_commit: last_commit.and_then(|at| Timestamp::from_microsecond(at).ok()),
            checksums: row.try_get(3).map_err(bad)?,
            has_amcheck: row.try_get(4).map_err(bad)?,
            superusers: row.try_get(5).map_err(bad)?,
            databases: row.try_get(6).map_err(bad)?,
        })
    }

    /// Runs a statement that says whether all is well.
    pub async fn assertion(&self, sql: &str, patience: Duration) -> Result<Answer, ServerError> {
        let asking = self.client().query(sql, &[]);
        let late = |_| ServerError(format!("no answer within {}", humantime::format_duration(patience)));
        let rows = timeout(patience, asking).await.map_err(late)?.map_err(|e| ServerError(reason(&e)))?;
        let [row] = rows.as_slice() else {
            return Ok(Answer::Odd(format!("{} rows, not one", rows.len())));
        };
        let [column] = row.columns() else {
            return Ok(Answer::Odd(format!("{} columns, not one", row.len())));
        };
        let bad = |e: tokio_postgres::Error| ServerError(reason(&e));
        let answer = match *column.type_() {
            Type::BOOL => row.try_get::<_, Option<bool>>(0).map_err(bad)?.map(Answer::Boolean),
            Type::TIMESTAMPTZ | Type::TIMESTAMP => {
                let at = row.try_get::<_, Option<SystemTime>>(0).map_err(bad)?;
                match at.map(Timestamp::try_from) {
                    Some(Err(error)) => return Ok(Answer::Odd(error.to_string())),
                    Some(Ok(at)) => Some(Answer::Moment(at)),
                    None => None,
                }
            }
            ref other => return Ok(Answer::Odd(format!("a value of type {other}"))),
        };
        Ok(answer.unwrap_or(Answer::Null))
    }

    /// How many rows each table has that belongs to a person, by its quoted name: exact, so it reads all of them.
    pub async fn row_counts(&self, patience: Duration) -> Result<Vec<(String, i64)>, ServerError> {
        let late = |_| ServerError(format!("no answer within {}", humantime::format_duration(patience)));
        let sql = "select c.oid::pg_catalog.regclass::text, pg_catalog.quote_ident(n.nspname) || '.' || \
                   pg_catalog.quote_ident(c.relname) from pg_catalog.pg_class c \
                   join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
                   where c.relkind = 'r' and c.relpersistence = 'p' and n.nspname <> 'information_schema' \
                   and n.nspname !~ '^pg_' order by 2";
        let tables = self.client().query(sql, &[]);
        let tables = timeout(patience, tables).await.map_err(late)?.map_err(|e| ServerError(reason(&e)))?;
        let mut counts = Vec::with_capacity(tables.len());
        for row in tables {
            let name: String = row.try_get(1).map_err(|e| ServerError(reason(&e)))?;
            let sql = format!("select pg_catalog.count(*) from only {name}");
            let counting = self.client().query_one(sql.as_str(), &[]);
            let counted = timeout(patience, counting).await.map_err(late)?.map_err(|e| ServerError(reason(&e)))?;
            counts.push((name, counted.try_get(0).map_err(|e| ServerError(reason(&e)))?));
        }
        Ok(counts)
    }
}
