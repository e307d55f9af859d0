//! What a person should know of a plan that its choice does not depend on.

use jiff::SignedDuration;

use super::failure::Failure;
use crate::postgres::{SegmentName, SegmentNumber};
use crate::repo::Repository;
use crate::repo::restore_plan::RestorePlan;
use crate::repo::restore_target::{Request, Target};

/// Headers that are read: a plan must not take as long as the restore.
const MOST_HEADERS: usize = 2000;

/// Adds them.
pub(super) async fn warn(
    repository: &Repository,
    request: &Request,
    mut plan: RestorePlan,
) -> Result<RestorePlan, Failure> {
    let mut warnings: Vec<String> = standbys_clock(request, &plan).into_iter().collect();
    warnings.extend(new_tablespaces(repository, &plan).await?);
    plan.warnings.extend(warnings);
    Ok(plan)
}

/// When a standby's backup ended is known by the standby's clock, when transactions committed by the primary's. PostgreSQL goes by
/// the WAL alone: to a commit before the end of the backup it does not recover.
fn standbys_clock(request: &Request, plan: &RestorePlan) -> Option<String> {
    /// Clocks that are further apart are noticed otherwise.
    const DOUBTFUL: SignedDuration = SignedDuration::from_hours(1);
    let Target::Time(time) = &request.target else { return None };
    let backup = &plan.backup;
    let close = time.duration_since(backup.stopped) < DOUBTFUL;
    (backup.from_standby && close).then(|| {
        format!(
            "backup `{}` ended at {} by the clock of the standby that it was taken from: if that was behind the primary's, the target may \
             lie before the end of the backup, and PostgreSQL says so at the start; an older backup then does it",
            backup.id, backup.stopped
        )
    })
}

/// Tablespaces that the backup does not have and the WAL creates: no map has a say in their place.
async fn new_tablespaces(repository: &Repository, plan: &RestorePlan) -> Result<Vec<String>, Failure> {
    let segments = segments(plan);
    let looked_at = &segments[..segments.len().min(MOST_HEADERS)];
    let indexes = repository.read_indexes(plan.backup.generation, looked_at).await?;
    let mut warnings = Vec::new();
    for (segment, index) in &indexes {
        for new in index.iter().flat_map(|index| &index.tablespaces) {
            if plan.backup.tablespaces.iter().all(|known| known.oid != new.oid) {
                warnings.push(format!(
                    "segment `{segment}` creates a tablespace at `{}`: the restored server makes it at that very place. If another server \
                     on its host has it, both will write there",
                    new.location
                ));
            }
        }
    }
    if let Some(next) = segments.get(looked_at.len()) {
        let count = segments.len() - looked_at.len();
        warnings.push(format!(
            "whether one of the {count} segments from `{next}` on creates a tablespace was not looked at"
        ));
    }
    Ok(warnings)
}

/// All segments of the plan, in the order in which they are replayed.
pub(super) fn segments(plan: &RestorePlan) -> Vec<SegmentName> {
    let Some(size) = plan.backup.segment_size() else { return Vec::new() };
    let numbers = plan.wal.iter().flat_map(|range| {
        let first = size.number(range.first).map_or(0, |first| first.0);
        (first..first + range.segments).map(|number| size.name(range.first.timeline, SegmentNumber(number)))
    });
    numbers.take(MOST_HEADERS * 100).collect()
}
