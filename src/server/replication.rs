//! A replication connection: the commands of a walsender that are answered at once.
//!
//! `base_backup` has the one that is answered with a cluster. Source: "Streaming Replication Protocol" in PostgreSQL's
//! documentation.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;

use super::connect::{self, ConnectError, LogIn};
use super::conninfo::{Conninfo, Server};
use super::dial::Link;
use super::session::ServerError;
use super::target_session::Role;
use super::wire::{Login, Refusal, Wire, complaint, refused};
use crate::postgres::{ClusterIdent, Lsn, Malformed, PgMajor, SegmentSize, SystemId, TimelineId};

/// A connection to a walsender; it ends when this is dropped.
pub struct Replication {
    pub(super) wire: Wire,
    settings: BTreeMap<String, String>,
    server: Server,
}

/// `IDENTIFY_SYSTEM`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The system identifier.
    pub system_id: SystemId,
    /// The timeline that the server is on.
    pub timeline: TimelineId,
    /// How far its WAL is on disk.
    pub flushed: Lsn,
}

/// What a backup needs to know of a server before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerShape {
    /// The cluster.
    pub ident: ClusterIdent,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// Whether it archives: `archive_mode` is `always`, or `on` outside of recovery.
    pub archives: bool,
    /// Of its WAL.
    pub segment_size: SegmentSize,
    /// Whether its pages have checksums.
    pub page_checksums: bool,
    /// Bytes in a page.
    pub page_size: u32,
    /// Pages in a file of a relation.
    pub relation_segment_blocks: u32,
}

/// For questions that are answered at once.
const PATIENCE: Duration = Duration::from_secs(30);

impl LogIn for Replication {
    const PURPOSE: &'static str = " for replication";

    async fn log_in(link: Link, server: &Server, conninfo: &Conninfo) -> Result<Self, ServerError> {
        let mut wire = Wire::new(link.socket);
        let name = conninfo.application_name.as_deref().unwrap_or("pgark");
        // A connection that waits for an archiver is not idle. Of what the server leaves out it warns.
        let options = conninfo.options.as_deref().unwrap_or_default();
        let options = format!("{options} -c idle_session_timeout=0 -c client_min_messages=warning");
        let parameters = [("replication", "true"), ("application_name", name), ("options", options.trim_start())];
        let login = Login {
            user: &conninfo.user,
            password: server.password.as_deref(),
            channel_binding: conninfo.channel_binding,
            binding: &link.binding,
        };
        let settings = wire.log_in(login, &parameters).await?;
        Ok(Replication { wire, settings, server: server.clone() })
    }

    async fn role(&mut self) -> Result<Role, ServerError> {
        if let Some(role) = Role::reported(|name| self.settings.get(name).map(String::as_str)) {
            return Ok(role);
        }
        let is_standby = self.show("in_hot_standby").await? == "on";
        let is_read_only = is_standby || self.show("default_transaction_read_only").await? == "on";
        Ok(Role { is_standby, is_read_only })
    }
}

impl Replication {
    /// Connects to the first server that fits, and logs in.
    pub async fn connect(conninfo: &Conninfo) -> Result<Self, ConnectError> {
        connect::connect(conninfo).await
    }

    /// How this very server is reached again, and no other one of a list.
    pub fn same_server(&self, conninfo: &Conninfo) -> Conninfo {
        Conninfo { servers: vec![self.server.clone()], ..conninfo.clone() }
    }

    /// Asks who the server is.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ServerError> {
        let row = self.one_row("IDENTIFY_SYSTEM").await?;
        let odd =
            || ServerError("PostgreSQL's answer to IDENTIFY_SYSTEM has another form than was expected".to_owned());
        let text = |at: usize| row.get(at).and_then(Option::as_deref).and_then(as_text).ok_or_else(odd);
        Ok(SystemIdentity {
            system_id: text(0)?.to_owned().try_into().map_err(|e: Malformed| ServerError(e.to_string()))?,
            timeline: text(1)?.parse().ok().and_then(TimelineId::new).ok_or_else(odd)?,
            flushed: text(2)?.parse().map_err(|e: Malformed| ServerError(e.to_string()))?,
        })
    }

    /// A setting's value, as `SHOW` gives it.
    pub async fn show(&mut self, setting: &str) -> Result<String, ServerError> {
        let row = self.one_row(&format!("SHOW {setting}")).await?;
        let value = row.into_iter().next().flatten();
        let value = value.as_deref().and_then(as_text).map(str::to_owned);
        value.ok_or_else(|| ServerError(format!("PostgreSQL shows no value for `{setting}`")))
    }

    /// Asks for everything that a backup needs to know.
    pub async fn shape(&mut self) -> Result<ServerShape, ServerError> {
        let malformed = |e: Malformed| ServerError(e.to_string());
        let system_id = self.identify_system().await?.system_id;
        let version: u32 = self.number("server_version_num").await?;
        let major = PgMajor::try_from(version / 10_000).map_err(malformed)?;
        // Reported at the login from PostgreSQL 14 on.
        let in_recovery = self.settings.get("in_hot_standby").is_some_and(|value| value == "on");
        let archive_mode = self.show("archive_mode").await?;
        let page_size: u32 = self.number("block_size").await?;
        let relation_segment = self.size("segment_size").await?;
        Ok(ServerShape {
            ident: ClusterIdent { system_id, major },
            in_recovery,
            archives: archive_mode == "always" || (archive_mode == "on" && !in_recovery),
            segment_size: SegmentSize::new(self.size("wal_segment_size").await?).map_err(malformed)?,
            page_checksums: self.show("data_checksums").await? == "on",
            page_size,
            relation_segment_blocks: u32::try_from(relation_segment / u64::from(page_size.max(1))).unwrap_or(u32::MAX),
        })
    }

    /// How long the server bears a standby that says nothing; `None`: for ever.
    pub async fn sender_timeout(&mut self) -> Result<Option<Duration>, ServerError> {
        let text = self.show("wal_sender_timeout").await?;
        let timeout = parse_duration(&text)
            .ok_or_else(|| ServerError(format!("PostgreSQL shows `{text}` for `wal_sender_timeout`")))?;
        Ok(Some(timeout).filter(|timeout| !timeout.is_zero()))
    }

    async fn number(&mut self, setting: &str) -> Result<u32, ServerError> {
        let text = self.show(setting).await?;
        text.parse().map_err(|_| ServerError(format!("PostgreSQL shows `{text}` for `{setting}`, which is no number")))
    }

    async fn size(&mut self, setting: &str) -> Result<u64, ServerError> {
        let text = self.show(setting).await?;
        parse_size(&text)
            .ok_or_else(|| ServerError(format!("PostgreSQL shows `{text}` for `{setting}`, which is no size")))
    }

    async fn one_row(&mut self, command: &str) -> Result<Vec<Option<Bytes>>, ServerError> {
        let row = self.first_row(command).await?;
        row.ok_or_else(|| ServerError(format!("PostgreSQL gave no answer to `{command}`")))
    }

    /// The first row of a command's result, if it has any.
    pub(super) async fn first_row(&mut self, command: &str) -> Result<Option<Vec<Option<Bytes>>>, Refusal> {
        self.wire.send(|out| frontend::query(command, out)).await?;
        let mut first = None;
        let mut outcome = Ok(());
        loop {
            match self.wire.next(PATIENCE).await? {
                Message::DataRow(body) => first = first.or(Some(columns(&body)?)),
                Message::ReadyForQuery(_) => break,
                Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::NoticeResponse(_)
                | Message::ParameterStatus(_) => {}
                // The connection can be used again when the server says so.
                Message::ErrorResponse(body) => outcome = Err(Refusal::Complaint(complaint(body.fields()))),
                other => return Err(refused(other).into()),
            }
        }
        outcome.map(|()| first)
    }
}

/// The columns of a row, `None` for nulls.
pub(super) fn columns(row: &DataRowBody) -> Result<Vec<Option<Bytes>>, ServerError> {
    let cut = |range: Option<std::ops::Range<usize>>| Ok(range.map(|range| row.buffer_bytes().slice(range)));
    row.ranges().map(cut).collect().map_err(|e| ServerError(e.to_string()))
}

pub(super) fn as_text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// `16MB` and its like, as `SHOW` writes settings that have a unit. Source: `convert_int_from_base_unit` in
/// `utils/misc/guc.c`.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let unit: u64 = match &text[digits..] {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit)
}

/// `1min` and its like. Source: as above.
fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let unit: u64 = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        // Zero has none.
        "" => 1,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let of = |text| parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(
            [of("0"), of("1500ms"), of("1min"), of("2s"), of("1d")].map(Option::unwrap),
            [0, 1500, 60_000, 2000, 86_400_000]
        );
        assert_eq!([of(""), of("min"), of("1 min"), of("-1"), of("1week")], [None; 5]);
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("8192"), Some(8192));
        assert_eq!(parse_size("16MB"), Some(16 << 20));
        assert_eq!(parse_size("1GB"), Some(1 << 30));
        for bad in ["", "MB", "1 GB", "-1", "1XB", "99999999999TB"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }
}
