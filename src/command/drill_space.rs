//! Whether there is room for a drill, before a byte is fetched.

use std::path::Path;

use super::drill_report::{Reason, size};
use crate::repo::restore_plan::RestorePlan;

/// WAL that the server keeps at most besides what it replays: twice `max_wal_size`.
const MOST_WAL: u64 = 2 << 30;
/// For logs, temporary files, what is fetched ahead.
pub(super) const MARGIN: u64 = 128 << 20;

/// Bytes that a restore by this plan may take.
pub(super) fn needed(plan: &RestorePlan) -> u64 {
    let files = plan.backup.plain_bytes;
    let wal = plan.segments().saturating_mul(plan.backup.segment_size);
    files.saturating_add(files / 10).saturating_add(wal.min(MOST_WAL)).saturating_add(MARGIN)
}

/// Refuses where there is less than that.
pub(super) fn ask(place: &Path, needed: u64) -> Result<String, Reason> {
    let stat = rustix::fs::statvfs(place).map_err(|e| {
        Reason::failed("space", format!("how much room is in `{}` cannot be told: {e}", place.display()))
    })?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= needed {
        return Ok(format!("{} needed, {} free", size(needed), size(free)));
    }
    let message = format!("`{}` has {} free, and up to {} are needed", place.display(), size(free), size(needed));
    Err(Reason { level: super::check::Level::Unknown, ..Reason::failed("space", message) }
        .with_hint("`drill.directory` names another place"))
}
