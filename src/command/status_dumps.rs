//! The part of `status` about logical dumps.

use jiff::Timestamp;
use serde::Serialize;

use super::check::{Finding, Level};
use crate::repo::BackupId;
use crate::repo::dumps::{DumpState, StoredDump};

/// The dumps in short.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DumpsStatus {
    /// That can be restored.
    pub whole: usize,
    /// That cannot.
    pub damaged: usize,
    /// Without a manifest.
    pub unfinished: usize,
    /// The newest that can be restored.
    pub newest: Option<BackupId>,
    /// When that one was begun: it holds what was committed by then.
    pub newest_started: Option<Timestamp>,
    /// How long ago that is.
    pub newest_age_seconds: Option<i64>,
    /// Bytes of all of them.
    pub stored_bytes: u64,
}

pub(super) fn dumps_status(dumps: &[StoredDump], now: Timestamp) -> DumpsStatus {
    let count = |wanted: fn(&DumpState) -> bool| dumps.iter().filter(|dump| wanted(&dump.state)).count();
    let newest = dumps.iter().filter_map(StoredDump::summary).max_by_key(|dump| (dump.started, dump.id));
    DumpsStatus {
        whole: count(|state| matches!(state, DumpState::Whole(_))),
        damaged: count(|state| matches!(state, DumpState::Damaged(..))),
        unfinished: count(|state| *state == DumpState::Unfinished),
        newest: newest.map(|dump| dump.id),
        newest_started: newest.map(|dump| dump.started),
        newest_age_seconds: newest.map(|dump| now.duration_since(dump.started).as_secs().max(0)),
        stored_bytes: dumps.iter().map(|dump| dump.listing.stored_bytes()).sum(),
    }
}

pub(super) fn about_dumps(dumps: &[StoredDump]) -> impl Iterator<Item = Finding> {
    dumps.iter().filter_map(|dump| match &dump.state {
        DumpState::Damaged(why, _) => {
            let message = format!("dump `{}` cannot be restored: {why}", dump.id());
            Some(Finding::not_ok("dumps", Level::Warning, message, "take another one with `pgark dump`".to_owned()))
        }
        _ => None,
    })
}
