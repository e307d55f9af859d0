//! A small synchronous SQL client over the server's Unix socket: tokio-postgres on a runtime of its own, so that
//! tests are plain functions. Values come back as text; every call has a deadline.

use std::{path::PathBuf, time::Duration};

use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

use super::tail;

/// The result of a query: text values, NULL as the empty string. Rows of several statements follow each other.
pub type Rows = Vec<Vec<String>>;

const CONNECT_WITHIN: Duration = Duration::from_secs(20);
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// Where a server listens and logs; stays valid while its cluster exists, running or not.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub socket_directory: PathBuf,
    pub port: u16,
    pub log: PathBuf,
}

impl Endpoint {
    /// As a libpq connection string, for `primary_conninfo` and for programs.
    pub fn conninfo(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.socket_directory.display(), self.port)
    }

    pub fn connect(&self) -> Result<Client, String> {
        self.connect_to("postgres")
    }

    /// A session in another database.
    pub fn connect_to(&self, database: &str) -> Result<Client, String> {
        let mut config = Config::new();
        config.host_path(&self.socket_directory).port(self.port).user("postgres").dbname(database);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        let client = runtime.block_on(async {
            let connected = tokio::time::timeout(CONNECT_WITHIN, config.connect(NoTls)).await;
            let (client, connection) =
                connected.map_err(|_| format!("no connection within {CONNECT_WITHIN:?}"))?.map_err(describe)?;
            // Runs whenever a query blocks on this runtime.
            tokio::spawn(connection);
            Ok::<_, String>(client)
        })?;
        Ok(Client { client, runtime })
    }

    pub fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        format!("end of {}:\n{}", self.log.display(), tail(&String::from_utf8_lossy(&log), 40))
    }
}

/// One session. The server sees it end when this is dropped.
pub struct Client {
    client: tokio_postgres::Client,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// Runs one or more statements.
    pub fn sql(&mut self, statements: &str) -> Result<Rows, String> {
        let messages = self.within_deadline(self.client.simple_query(statements))?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect())
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Runs a query with two columns, bigint and bytea.
    pub fn numbered_bytes(&mut self, query: &str) -> Result<Vec<(i64, Vec<u8>)>, String> {
        let rows = self.within_deadline(self.client.query(query, &[]))?;
        rows.iter().map(|row| Ok((row.try_get(0).map_err(describe)?, row.try_get(1).map_err(describe)?))).collect()
    }

    fn within_deadline<T>(&self, answer: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, String> {
        let answer = async { tokio::time::timeout(ANSWER_WITHIN, answer).await };
        self.runtime.block_on(answer).map_err(|_| format!("no answer within {ANSWER_WITHIN:?}"))?.map_err(describe)
    }
}

fn describe(error: tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(refusal) => format!("{}: {} ({})", refusal.severity(), refusal.message(), refusal.code().code()),
        None => match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}
