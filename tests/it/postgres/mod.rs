//! Real PostgreSQL servers for the integration tests: finds installations, makes clusters, copies and recovers them.
//!
//! Everything here is synchronous, works from several test threads at once, runs PostgreSQL as an unprivileged user
//! when the tests are root, puts a deadline on every wait and shows the end of the server's log when it panics.
//! What the rows of a cluster must be is the business of `crate::ledger`.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod account;
mod basebackup;
mod builder;
mod cluster;
mod installation;
mod integrity;
pub mod processes;
mod recovery;
#[cfg(test)]
mod self_test;
mod sql;
mod state;
mod wal;
mod workplace;

use std::time::{Duration, Instant};

#[allow(unused_imports)]
pub use self::{
    account::Account,
    basebackup::{BaseBackup, verify_directory},
    builder::ClusterBuilder,
    cluster::{Cluster, StopMode},
    installation::{Installation, Program, run},
    integrity::{integrity, unexplained},
    recovery::{Recovery, RecoveryTarget},
    sql::{Client, Endpoint, Rows},
    wal::{Lsn, Position},
    workplace::{Scratch, installed_binary},
};

/// How long a server may take for something that is over in a second on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks every 20 ms; false when the deadline passed first.
pub fn happens_within(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if begun.elapsed() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The last lines of a text, for messages.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
