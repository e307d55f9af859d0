//! `START_REPLICATION PHYSICAL`: the WAL of one timeline as it is written, and what is told back.
//!
//! Source: "Streaming Replication Protocol" in PostgreSQL's documentation; `StartReplication` and `WalSndLoop` in
//! `replication/walsender.c`.

use std::time::Duration;

use jiff::Timestamp;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend::{self, CopyData};

use super::replication::{Replication, as_text, columns};
use super::replication_slot::quoted;
use super::session::ServerError;
use super::wire::{Complaint, Wire, complaint, refused};
use crate::postgres::replication_protocol::{FromServer, StandbyStatus};
use crate::postgres::{Lsn, Malformed, TimelineId};

/// A connection on which WAL comes.
pub struct WalStream {
    wire: Wire,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Streamed {
    /// WAL, or a sign of life.
    Message(FromServer),
    /// The timeline ends here: no WAL comes any more. Nothing comes behind it but what [`WalStream::next_timeline`] reads.
    TimelineEnds,
}

/// Why there is no WAL.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The server has removed the segment that was asked for.
    #[error("{0}")]
    Removed(String),
    /// Somebody else uses the slot.
    #[error("{0}")]
    SlotInUse(String),
    /// There is no slot of this name.
    #[error("{0}")]
    SlotMissing(String),
    /// The slot cannot be used any more: what it kept was removed.
    #[error("{0}")]
    SlotLost(String),
    /// Anything else.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// For what is answered at once.
const PATIENCE: Duration = Duration::from_secs(30);
/// Whoever waits for WAL watches the time: a server may have nothing to say for weeks.
const ANY_TIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// For a farewell.
const FAREWELL: Duration = Duration::from_secs(2);

impl Replication {
    /// Begins to stream a timeline's WAL. `None` if it ends where this begins.
    pub async fn start_wal(
        self,
        slot: Option<&str>,
        timeline: TimelineId,
        from: Lsn,
    ) -> Result<Option<WalStream>, StreamError> {
        let slot = slot.map(|slot| format!("SLOT {} ", quoted(slot))).unwrap_or_default();
        let command = format!("START_REPLICATION {slot}PHYSICAL {from} TIMELINE {}", timeline.get());
        let mut stream = WalStream { wire: self.wire };
        stream.wire.send(|out| frontend::query(&command, out)).await?;
        loop {
            match stream.wire.next(PATIENCE).await? {
                Message::CopyOutResponse(_) => return Ok(Some(stream)),
                Message::RowDescription(_) => return Ok(None),
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                other => return Err(failed(other)),
            }
        }
    }
}

impl WalStream {
    /// The next message. Nothing is lost when this is dropped.
    pub async fn next(&mut self) -> Result<Streamed, StreamError> {
        loop {
            match self.wire.next(ANY_TIME).await? {
                Message::CopyData(body) => {
                    let odd = |e: Malformed| ServerError(format!("PostgreSQL's WAL stream is not one: {e}"));
                    return Ok(Streamed::Message(FromServer::parse(body.into_bytes()).map_err(odd)?));
                }
                Message::CopyDone => return Ok(Streamed::TimelineEnds),
                Message::CommandComplete(_) => return Err(ServerError("PostgreSQL is stopping".to_owned()).into()),
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                other => return Err(failed(other)),
            }
        }
    }

    /// Tells how far we are.
    pub async fn tell(
        &mut self,
        status: &StandbyStatus,
        now: Timestamp,
        wants_answer: bool,
    ) -> Result<(), ServerError> {
        let status = status.encode(now, wants_answer);
        let message = CopyData::new(&status[..]).map_err(|e| ServerError(e.to_string()))?;
        let write = |out: &mut bytes::BytesMut| {
            message.write(out);
            Ok(())
        };
        self.wire.send(write).await
    }

    /// After [`Streamed::TimelineEnds`]: which timeline the server goes on with, and where it began.
    pub async fn next_timeline(mut self) -> Result<Option<(TimelineId, Lsn)>, ServerError> {
        self.end_copy().await?;
        let mut next = None;
        loop {
            match self.wire.next(PATIENCE).await? {
                Message::DataRow(body) => {
                    let row = columns(&body)?;
                    let text = |at: usize| row.get(at).and_then(Option::as_deref).and_then(as_text);
                    let timeline = text(0).and_then(|text| text.parse().ok()).and_then(TimelineId::new);
                    next = timeline.zip(text(1).and_then(|text| text.parse().ok()));
                }
                Message::ReadyForQuery(_) => return Ok(next),
                Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::CopyData(_)
                | Message::NoticeResponse(_)
                | Message::ParameterStatus(_) => {}
                other => return Err(refused(other)),
            }
        }
    }

    /// Says farewell, so that the server logs no broken connection; it need not be there any more.
    pub async fn close(mut self) {
        let farewell = async {
            self.end_copy().await?;
            while !matches!(self.wire.next(FAREWELL).await?, Message::ReadyForQuery(_) | Message::ErrorResponse(_)) {}
            self.wire
                .send(|out| {
                    frontend::terminate(out);
                    Ok(())
                })
                .await
        };
        let outcome: Result<Result<(), ServerError>, _> = tokio::time::timeout(FAREWELL, farewell).await;
        drop(outcome);
    }

    async fn end_copy(&mut self) -> Result<(), ServerError> {
        let write = |out: &mut bytes::BytesMut| {
            frontend::copy_done(out);
            Ok(())
        };
        self.wire.send(write).await
    }
}

fn failed(message: Message) -> StreamError {
    match message {
        Message::ErrorResponse(body) => judged(complaint(body.fields())),
        other => refused(other).into(),
    }
}

/// By the codes of `errcodes.txt`: the words are in the server's language.
fn judged(complaint: Complaint) -> StreamError {
    let Complaint { code, message, .. } = complaint;
    match code.as_str() {
        // `ERRCODE_UNDEFINED_FILE`: `WalSndSegmentOpen`, `CheckXLogRemoved`
        "58P01" => StreamError::Removed(message),
        // `ERRCODE_OBJECT_IN_USE`
        "55006" => StreamError::SlotInUse(message),
        // `ERRCODE_UNDEFINED_OBJECT`
        "42704" => StreamError::SlotMissing(message),
        // `ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE`
        "55000" => StreamError::SlotLost(message),
        _ => StreamError::Server(ServerError(message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_told_apart_by_their_codes() {
        let of = |code: &str| judged(Complaint { code: code.into(), message: "m".into(), ..Complaint::default() });
        assert!(matches!(of("58P01"), StreamError::Removed(_)));
        assert!(matches!(of("55006"), StreamError::SlotInUse(_)));
        assert!(matches!(of("42704"), StreamError::SlotMissing(_)));
        assert!(matches!(of("55000"), StreamError::SlotLost(_)));
        assert_eq!(of("57P01").to_string(), "m");
    }
}
