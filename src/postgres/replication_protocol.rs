//! What a walsender and a standby say to each other while WAL is streamed: the messages inside `CopyData`.
//!
//! Source: "Streaming Replication Protocol" in PostgreSQL's documentation; `XLogSendPhysical`, `WalSndKeepalive` and
//! `ProcessStandbyReplyMessage` in `replication/walsender.c`.

use bytes::Bytes;
use jiff::Timestamp;

use super::{Lsn, Malformed};

/// What the server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromServer {
    /// `w`: WAL.
    Wal {
        /// Where it begins.
        start: Lsn,
        /// The end of the WAL that the server could send now.
        server_end: Lsn,
        /// Never empty.
        bytes: Bytes,
    },
    /// `k`: it is alive.
    Keepalive {
        /// The end of the WAL that was sent.
        server_end: Lsn,
        /// Whether an answer is wanted at once.
        wants_answer: bool,
    },
}

/// How far a standby is, in positions behind the last byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StandbyStatus {
    /// What it received.
    pub written: Lsn,
    /// What is durable with it: the server keeps what lies behind, and lets a commit return that waits for it.
    pub flushed: Lsn,
    /// What it has replayed.
    pub applied: Lsn,
}

/// 2000-01-01, PostgreSQL's epoch, in microseconds since 1970.
const EPOCH: i64 = 946_684_800_000_000;

impl FromServer {
    /// Reads a message.
    pub fn parse(message: Bytes) -> Result<Self, Malformed> {
        let short = || Malformed::new(format!("a message of {} bytes is too short for what it is", message.len()));
        let number = |at: usize| {
            let bytes = message.get(at..).and_then(|rest| rest.first_chunk::<8>()).ok_or_else(short)?;
            Ok(u64::from_be_bytes(*bytes))
        };
        match message.first() {
            Some(b'w') => {
                let (start, server_end) = (Lsn(number(1)?), Lsn(number(9)?));
                let bytes = message.slice(25.min(message.len())..);
                if bytes.is_empty() {
                    return Err(short());
                }
                if start.0.checked_add(bytes.len() as u64).is_none() {
                    return Err(Malformed::new(format!("WAL at {start} lies behind the end of all positions")));
                }
                Ok(FromServer::Wal { start, server_end, bytes })
            }
            Some(b'k') => {
                let wants_answer = *message.get(17).ok_or_else(short)? != 0;
                Ok(FromServer::Keepalive { server_end: Lsn(number(1)?), wants_answer })
            }
            Some(other) => Err(Malformed::new(format!("a message of the unknown kind {other}"))),
            None => Err(short()),
        }
    }
}

impl StandbyStatus {
    /// The message `r`; `wants_answer` asks the server for a sign of life.
    pub fn encode(&self, now: Timestamp, wants_answer: bool) -> [u8; 34] {
        let mut message = [0; 34];
        message[0] = b'r';
        for (at, position) in [(1, self.written), (9, self.flushed), (17, self.applied)] {
            message[at..at + 8].copy_from_slice(&position.0.to_be_bytes());
        }
        message[25..33].copy_from_slice(&now.as_microsecond().saturating_sub(EPOCH).to_be_bytes());
        message[33] = u8::from(wants_answer);
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wal(start: u64, end: u64, bytes: &[u8]) -> Bytes {
        [&b"w"[..], &start.to_be_bytes(), &end.to_be_bytes(), &7u64.to_be_bytes(), bytes].concat().into()
    }

    #[test]
    fn messages_as_servers_send_them() {
        let bytes = Bytes::from_static(b"abc");
        let read = FromServer::parse(wal(0x200_0000, 0x200_0003, &bytes));
        assert_eq!(read, Ok(FromServer::Wal { start: Lsn(0x200_0000), server_end: Lsn(0x200_0003), bytes }));
        let keepalive = |wanted: u8| [&b"k\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0"[..], &[wanted]].concat();
        for (byte, wants_answer) in [(0, false), (1, true)] {
            let read = FromServer::parse(keepalive(byte).into());
            assert_eq!(read, Ok(FromServer::Keepalive { server_end: Lsn(9), wants_answer }));
        }
    }

    #[test]
    fn what_is_too_short_or_unknown_is_refused() {
        let whole = wal(1, 2, b"a");
        for length in 0..whole.len() {
            assert!(FromServer::parse(whole.slice(..length)).is_err(), "{length}");
        }
        assert!(FromServer::parse(Bytes::from_static(b"k\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0")).is_err());
        assert!(FromServer::parse(Bytes::from_static(b"s")).is_err());
        assert!(FromServer::parse(wal(u64::MAX, 2, b"ab")).is_err());
    }

    #[test]
    fn a_status_tells_positions_and_the_time() {
        let status = StandbyStatus { written: Lsn(3), flushed: Lsn(2), applied: Lsn(1) };
        let now = Timestamp::from_microsecond(EPOCH + 5).unwrap();
        let message = status.encode(now, true);
        let expected = [&b"r"[..], &3u64.to_be_bytes(), &2u64.to_be_bytes(), &1u64.to_be_bytes(), &5i64.to_be_bytes()];
        assert_eq!(message[..33], expected.concat());
        assert_eq!((message[33], status.encode(now, false)[33]), (1, 0));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let length = bytes.len();
            if let Ok(FromServer::Wal { bytes, .. }) = FromServer::parse(bytes.into()) {
                prop_assert_eq!(bytes.len() + 25, length);
            }
        }

        #[test]
        fn wal_comes_back(start in 0u64..1 << 60, end: u64, bytes in proptest::collection::vec(any::<u8>(), 1..60)) {
            let read = FromServer::parse(wal(start, end, &bytes));
            prop_assert_eq!(read, Ok(FromServer::Wal { start: Lsn(start), server_end: Lsn(end), bytes: bytes.into() }));
        }
    }
}
