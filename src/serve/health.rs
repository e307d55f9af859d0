//! `/healthz`: whether this process does its work, for whoever starts it again if it does not.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::running::{Known, Shared};
use crate::postgres::Lsn;

/// Without a sign of life for so long the main loop is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// What is told.
#[derive(Debug, Serialize)]
pub(super) struct Health {
    schema: u32,
    /// Whether the main loop and the looks go round. The store and the server have no say in it: to start again would not help them.
    pub(super) alive: bool,
    at: Timestamp,
    /// The kinds that are running.
    running: Vec<&'static str>,
    store: StoreHealth,
    #[serde(skip_serializing_if = "Option::is_none")]
    receiver: Option<ReceiverHealth>,
}

#[derive(Debug, Serialize)]
struct StoreHealth {
    /// Whether the last look succeeded; absent: there was none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    reachable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    looked: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct ReceiverHealth {
    durable: Lsn,
    lag_bytes: u64,
    lag_seconds: f64,
    waiting: bool,
}

impl Health {
    pub(super) fn of(shared: &Shared) -> Self {
        let at = shared.clock.now();
        let known = shared.known();
        let Known { beat, turn, looked, trouble, running, receiver, .. } = &*known;
        let receiver = receiver.as_ref().map(|progress| progress.now());
        Health {
            schema: 1,
            alive: beat.elapsed() < STUCK && *turn > Instant::now(),
            at,
            running: running.iter().map(|kind| kind.word()).collect(),
            store: StoreHealth {
                reachable: looked.map(|_| trouble.is_none()),
                looked: *looked,
                error: trouble.clone(),
            },
            receiver: receiver.map(|state| ReceiverHealth {
                durable: state.durable,
                lag_bytes: state.lag_bytes(),
                lag_seconds: state.lag().as_secs_f64(),
                waiting: state.waiting,
            }),
        }
    }
}
