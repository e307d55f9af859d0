//! The choice of the server: each that is named is tried in turn, with all its addresses, until one lets us in and is what
//! was wanted.
//!
//! Source: "Specifying Multiple Hosts" in PostgreSQL's documentation of libpq. Unlike libpq a server that refuses the login does
//! not end the search.

use std::io;
use std::time::Duration;

use tokio::time::timeout;

use super::conninfo::{Conninfo, Server};
use super::dial::{Link, Place, dial, places};
use super::session::ServerError;
use super::target_session::{Role, TargetSession};

/// No server could be connected to, or none that is wanted.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ConnectError {
    /// Which servers, and why for each of them.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl From<ConnectError> for ServerError {
    fn from(error: ConnectError) -> Self {
        ServerError(error.message)
    }
}

/// What is made of a link to a server.
pub(super) trait LogIn: Sized + Send {
    /// What is connected for, for messages.
    const PURPOSE: &'static str;

    /// Logs in. The server has the address that was reached.
    fn log_in(
        link: Link,
        server: &Server,
        conninfo: &Conninfo,
    ) -> impl Future<Output = Result<Self, ServerError>> + Send;

    /// What the server is.
    fn role(&mut self) -> impl Future<Output = Result<Role, ServerError>> + Send;
}

/// How long one address of a server may take, from its look-up to the end of the login.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why an address was not taken.
enum Why {
    Failed(String),
    Unwanted(&'static str),
}

/// Connects to the first server that fits.
pub(super) async fn connect<C: LogIn>(conninfo: &Conninfo) -> Result<C, ConnectError> {
    let mut reasons = Vec::new();
    for target in conninfo.target.passes() {
        reasons.clear();
        for server in &conninfo.servers {
            let found = in_time(conninfo, async { places(server).await.map_err(|e| e.to_string()) }).await;
            let found = match found {
                Ok(found) => found,
                Err(why) => {
                    reasons.push((server.describe(), Why::Failed(why)));
                    continue;
                }
            };
            for place in found {
                match attempt(conninfo, server, &place, *target).await {
                    Ok(connection) => return Ok(connection),
                    Err(why) => reasons.push((place.describe(server), why)),
                }
            }
        }
    }
    Err(refused(conninfo, C::PURPOSE, &reasons))
}

async fn attempt<C: LogIn>(
    conninfo: &Conninfo,
    server: &Server,
    place: &Place,
    target: TargetSession,
) -> Result<C, Why> {
    let connecting = async {
        let link = dial(place, server, conninfo).await.map_err(|e: io::Error| e.to_string())?;
        if let Some(why) = conninfo.channel_binding.refuses(&link.binding) {
            return Err(why.to_owned());
        }
        let reached = Server { address: place.address().or(server.address), ..server.clone() };
        let mut connection = C::log_in(link, &reached, conninfo).await.map_err(|e| e.0)?;
        let unwanted = match target {
            TargetSession::Any => None,
            _ => target.refuses(connection.role().await.map_err(|e| e.0)?),
        };
        Ok((connection, unwanted))
    };
    match in_time(conninfo, connecting).await {
        Ok((connection, None)) => Ok(connection),
        Ok((_, Some(unwanted))) => Err(Why::Unwanted(unwanted)),
        Err(why) => Err(Why::Failed(why)),
    }
}

async fn in_time<T>(conninfo: &Conninfo, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let patience = conninfo.connect_timeout.unwrap_or(PATIENCE);
    timeout(patience, work).await.unwrap_or_else(|_| Err(format!("no answer within {} s", patience.as_secs())))
}

fn refused(conninfo: &Conninfo, purpose: &str, reasons: &[(String, Why)]) -> ConnectError {
    let words = |why: &Why| match why {
        Why::Failed(why) => why.clone(),
        Why::Unwanted(why) => (*why).to_owned(),
    };
    let all: Vec<String> = match reasons {
        [(_, why)] => vec![words(why)],
        _ => reasons.iter().map(|(place, why)| format!("{place}: {}", words(why))).collect(),
    };
    let is_unwanted = reasons.iter().any(|(_, why)| matches!(why, Why::Unwanted(_)));
    let hint = is_unwanted.then(|| {
        format!(
            "`target_session_attrs={}` takes none of these servers: name all of them in `host`, or ask for another kind",
            conninfo.target.word()
        )
    });
    let message = format!("cannot connect to PostgreSQL{purpose} ({}): {}", conninfo.describe(), all.join("; "));
    ConnectError { message, hint }
}
