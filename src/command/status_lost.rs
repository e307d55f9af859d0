//! WAL that `status` knows to be lost: a receiver wrote down that the server had removed it.

use jiff::Timestamp;
use serde::Serialize;

use super::check::{Finding, Level};
use crate::postgres::Lsn;
use crate::repo::gap::{Gap, RecordedGap};
use crate::repo::health::{GapKind, Health};
use crate::repo::{Inventory, RepoError, Repository};

/// WAL that was never stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LostStatus {
    /// Of this timeline.
    pub timeline: u32,
    /// The first position that is missing.
    pub from: Lsn,
    /// The first that is there again.
    pub to: Lsn,
    /// What the server said.
    pub reason: String,
    /// When it was found, by the clock of whoever found it.
    pub found: Timestamp,
}

/// What is lost still. One that was archived since is not, nor one that nothing comes to any more.
pub(super) async fn lost_wal(repository: &Repository, inventory: &Inventory) -> Result<Vec<Gap>, RepoError> {
    let recorded = repository.gaps(inventory.generation).await?.into_iter().map(|RecordedGap { gap, .. }| gap);
    Ok(recorded.filter(|gap| gap.is_open(inventory) && gap.is_reached(inventory)).collect())
}

pub(super) fn lost_status(gap: &Gap) -> LostStatus {
    let Gap { timeline, from, to, reason, found, .. } = gap;
    LostStatus { timeline: timeline.get(), from: *from, to: *to, reason: reason.clone(), found: *found }
}

/// A warning, unless the missing segments are one already.
pub(super) fn about_lost(gap: &Gap, inventory: &Inventory, health: &Health) -> Option<Finding> {
    let size = inventory.segment_size;
    let told = health.gaps.iter().filter(|told| told.kind != GapKind::Expired).any(|told| {
        let (first, last) = (told.missing.first, told.missing.last);
        let number = |name| size.number(name).ok();
        first.timeline == gap.timeline
            && number(first).is_some_and(|first| first <= size.ending_at(gap.to))
            && number(last).is_some_and(|last| last >= size.containing(gap.from))
    });
    let (timeline, found) = (gap.timeline.get(), gap.found);
    let message = format!(
        "WAL is lost: {} to {} of timeline {timeline} was removed by the server before it was stored, as was found at {found} ({})",
        gap.from, gap.to, gap.reason
    );
    let hint = "no backup from before can be recovered beyond it: take a new one; `pgark wal-push --backfill` where a `pg_wal` still has \
                it";
    (!told).then(|| Finding::not_ok("gap", Level::Warning, message, hint))
}
