//! How far a receiver is, for whoever shows it, watches it or exports it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::postgres::{Lsn, TimelineId};

/// What a receiver moves and others read.
#[derive(Debug, Default)]
pub struct ReceiveProgress(Mutex<ReceiveState>);

/// A moment of a receiver.
#[derive(Clone, Debug, Default)]
pub struct ReceiveState {
    /// The timeline that is streamed.
    pub timeline: Option<TimelineId>,
    /// The end of the server's WAL, as far as it told.
    pub server_end: Lsn,
    /// The end of what came.
    pub received: Lsn,
    /// The end of what is durable in the repository, without a hole since this receiver began.
    pub durable: Lsn,
    /// Bytes of WAL that came; what came again after a break counts again.
    pub received_bytes: u64,
    /// Bytes of the objects that were put.
    pub stored_bytes: u64,
    /// Pieces that were put.
    pub pieces: u64,
    /// Segments that were put, or were there.
    pub segments: u64,
    /// Times that streaming began.
    pub connections: u64,
    /// Gaps that were found.
    pub gaps: u64,
    /// Whether WAL came that could not be stored before its connection was given up. What streams again asks for it again.
    pub given_up: bool,
    /// Whether another receiver is at work, and this one waits.
    pub waiting: bool,
    /// When `durable` moved last.
    pub durable_at: Option<Instant>,
    /// When the oldest byte came that is not durable yet.
    pub behind_since: Option<Instant>,
}

impl ReceiveState {
    /// Bytes of WAL that the server has and the repository does not.
    pub fn lag_bytes(&self) -> u64 {
        self.server_end.max(self.received).0.saturating_sub(self.durable.0)
    }

    /// For how long a byte has been here without being durable.
    pub fn lag(&self) -> Duration {
        self.behind_since.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// How long ago `durable` moved last.
    pub fn since_durable(&self) -> Option<Duration> {
        self.durable_at.map(|at| at.elapsed())
    }

    /// Times that streaming began again.
    pub fn reconnects(&self) -> u64 {
        self.connections.saturating_sub(1)
    }
}

impl ReceiveProgress {
    /// How far it is now.
    pub fn now(&self) -> ReceiveState {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut ReceiveState)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lags_are_those_of_the_moment() {
        let progress = ReceiveProgress::default();
        assert_eq!((progress.now().lag_bytes(), progress.now().lag()), (0, Duration::ZERO));
        progress.change(|state| {
            state.server_end = Lsn(9);
            state.received = Lsn(7);
            state.durable = Lsn(4);
            state.connections = 3;
        });
        let now = progress.now();
        assert_eq!((now.lag_bytes(), now.reconnects(), now.since_durable()), (5, 2, None));
    }
}
