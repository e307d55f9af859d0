//! What the server's thread and the test's threads share: one lock for each thing that changes.
//!
//! Nobody holds two of these locks at once, and none is held across an `await`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::fault::Script;
use super::journal::Journal;
use super::store::Store;

/// All state of one double.
pub(super) struct Shared {
    pub(super) bucket: String,
    pub(super) identity: Mutex<Identity>,
    pub(super) store: Mutex<Store>,
    pub(super) switches: Mutex<Switches>,
    pub(super) script: Mutex<Script>,
    pub(super) journal: Mutex<Journal>,
}

impl Shared {
    pub(super) fn new(bucket: String, identity: Identity) -> Self {
        Self {
            bucket,
            identity: Mutex::new(identity),
            store: Mutex::default(),
            switches: Mutex::default(),
            script: Mutex::default(),
            journal: Mutex::default(),
        }
    }

    /// The switches as they stand now.
    pub(super) fn switches(&self) -> Switches {
        *lock(&self.switches)
    }

    /// The store's clock.
    pub(super) fn now(&self) -> SystemTime {
        shifted(SystemTime::now(), self.switches().clock_offset)
    }
}

/// Who may send requests.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) access_key: String,
    pub(super) secret_key: String,
    pub(super) session_token: Option<String>,
}

impl Identity {
    pub(super) fn new(access_key: &str, secret_key: &str, session_token: Option<&str>) -> Self {
        Self {
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            session_token: session_token.map(str::to_owned),
        }
    }
}

/// How the store behaves in general, as opposed to faults, which hit single requests.
#[derive(Clone, Copy)]
pub(super) struct Switches {
    pub(super) honour_conditions: bool,
    pub(super) reject_conditions: bool,
    pub(super) complete_ignores_conditions: bool,
    pub(super) keep_metadata: bool,
    pub(super) deny_list: bool,
    pub(super) read_only: bool,
    pub(super) refuse_chunked: bool,
    pub(super) check_clock: bool,
    pub(super) bucket_present: bool,
    pub(super) latency: Duration,
    pub(super) clock_offset: i64,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            honour_conditions: true,
            reject_conditions: false,
            complete_ignores_conditions: false,
            keep_metadata: true,
            deny_list: false,
            read_only: false,
            refuse_chunked: false,
            check_clock: true,
            bucket_present: true,
            latency: Duration::ZERO,
            clock_offset: 0,
        }
    }
}

/// `time` moved by a signed number of seconds.
pub(super) fn shifted(time: SystemTime, seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { time - distance } else { time + distance }
}

/// Locks, also after a panic of another holder: a failed assertion in one thread must not hide the state from the rest.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
