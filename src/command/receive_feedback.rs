//! What a receiver tells the server, and when: after every movement of the durable position, when asked, and often enough to
//! be taken for alive.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::postgres::Lsn;
use crate::postgres::replication_protocol::StandbyStatus;

/// The positions of one connection.
///
/// * `durable` moves only forward, and never beyond `received`.
#[derive(Debug)]
pub(super) struct Positions {
    received: Lsn,
    durable: Lsn,
    server_end: Lsn,
    told_at: Instant,
    every: Duration,
    /// When what begins at a position came; of what came together only the first.
    came: VecDeque<(Lsn, Instant)>,
}

/// The longest silence of ours.
const AT_LEAST_EVERY: Duration = Duration::from_secs(10);
/// What comes within this time counts as having come together.
const TOGETHER: Duration = Duration::from_millis(50);

impl Positions {
    /// Of a stream that begins here. The server bears silence for `timeout`.
    pub(super) fn new(from: Lsn, timeout: Option<Duration>, now: Instant) -> Self {
        let every = timeout.map_or(AT_LEAST_EVERY, |timeout| AT_LEAST_EVERY.min(timeout / 3));
        let came = VecDeque::new();
        Positions { received: from, durable: from, server_end: Lsn::INVALID, told_at: now, every, came }
    }

    pub(super) fn received(&self) -> Lsn {
        self.received
    }

    pub(super) fn durable(&self) -> Lsn {
        self.durable
    }

    pub(super) fn server_end(&self) -> Lsn {
        self.server_end
    }

    /// So many bytes came.
    pub(super) fn receive(&mut self, bytes: usize, now: Instant) {
        if self.came.back().is_none_or(|(_, at)| now.duration_since(*at) >= TOGETHER) {
            self.came.push_back((self.received, now));
        }
        self.received = Lsn(self.received.0 + bytes as u64);
    }

    /// The server told the end of its WAL.
    pub(super) fn hear(&mut self, server_end: Lsn) {
        self.server_end = self.server_end.max(server_end);
    }

    /// All before this position is durable. Whether that is news.
    pub(super) fn settle(&mut self, durable: Lsn) -> bool {
        let durable = durable.min(self.received);
        if durable <= self.durable {
            return false;
        }
        self.durable = durable;
        // The first entry is that of the oldest byte which is not durable.
        while self.came.get(1).is_some_and(|(at, _)| *at <= durable)
            || (durable == self.received && !self.came.is_empty())
        {
            self.came.pop_front();
        }
        true
    }

    /// When the oldest byte came that is not durable.
    pub(super) fn behind_since(&self) -> Option<Instant> {
        self.came.front().map(|(_, at)| *at)
    }

    /// When the server must hear of us.
    pub(super) fn due(&self) -> Instant {
        self.told_at + self.every
    }

    /// What is told now.
    pub(super) fn tell(&mut self, now: Instant) -> StandbyStatus {
        self.told_at = now;
        StandbyStatus { written: self.received, flushed: self.durable, applied: self.durable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_short_timeout_of_the_server_makes_us_talk_more() {
        let now = Instant::now();
        let every = |timeout: Option<u64>| Positions::new(Lsn(0), timeout.map(Duration::from_secs), now).due() - now;
        assert_eq!([every(None), every(Some(60)), every(Some(3))].map(|time| time.as_secs()), [10, 10, 1]);
    }

    proptest! {
        /// Whatever comes and is settled in whatever order: nothing is told that did not come or was not settled.
        #[test]
        fn positions_never_run_ahead(steps in proptest::collection::vec((any::<bool>(), 1usize..1000), 1..50)) {
            let begun = Instant::now();
            let mut positions = Positions::new(Lsn(500), None, begun);
            let (mut received, mut durable) = (500, 500);
            for (count, (comes, bytes)) in steps.into_iter().enumerate() {
                let now = begun + Duration::from_secs(count as u64);
                if comes {
                    received += bytes as u64;
                    positions.receive(bytes, now);
                } else {
                    let to = 400 + bytes as u64;
                    let news = to.min(received) > durable;
                    durable = durable.max(to.min(received));
                    prop_assert_eq!(positions.settle(Lsn(to)), news);
                }
                let status = positions.tell(now);
                prop_assert_eq!((status.written, status.flushed), (Lsn(received), Lsn(durable)));
                prop_assert_eq!(positions.behind_since().is_some(), durable < received);
            }
        }
    }
}
