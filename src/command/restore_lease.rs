//! What a restore holds in the repository while it is at work, and the second look that makes this worth something.
//!
//! The lease names the plan's backup, so the plan comes first. Meanwhile `expire`, that saw no lease, may have deleted what the plan
//! needs: therefore the same plan is made once more behind the lease, before anything here is touched. What is there then, stays.

use std::convert::Infallible;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use super::Circumstances;
use super::failure::{Failure, FailureKind};
use crate::repo::lease::{Lease, VALID};
use crate::repo::restore_plan::RestorePlan;
use crate::repo::restore_target::{Request, TargetTimeline};
use crate::repo::{RepoError, Repository};
use crate::storage::ObjectKey;

/// Takes the lease and looks again whether the plan can still be carried out.
pub(super) async fn hold_and_look_again(
    repository: &Repository,
    plan: &RestorePlan,
    request: &Request,
    circumstances: &Circumstances,
) -> Result<(), Failure> {
    let lease = hold(repository, plan, circumstances, circumstances.now).await;
    let looked = look_again(repository, plan, request).await;
    if let (Err(_), Some(lease)) = (&looked, lease)
        && let Err(error) = repository.release(&lease).await
    {
        tracing::info!("`{lease}` stays until it counts no more: {error}");
    }
    looked
}

/// Tells `expire` again and again.
pub(super) async fn keep_holding(
    repository: &Repository,
    plan: &RestorePlan,
    circumstances: &Circumstances,
) -> Infallible {
    const AGAIN: Duration = Duration::from_secs(VALID.as_secs() / 4);
    let mut now = circumstances.now;
    loop {
        sleep(AGAIN).await;
        now = now.saturating_add(AGAIN).unwrap_or(now);
        hold(repository, plan, circumstances, now).await;
    }
}

/// Tells `expire` what this restore needs, and the recovery that follows. A role that may not write is no reason to stop a
/// restore.
async fn hold(
    repository: &Repository,
    plan: &RestorePlan,
    circumstances: &Circumstances,
    now: Timestamp,
) -> Option<ObjectKey> {
    let (backup, writer) = (&plan.backup, &circumstances.writer);
    let lease = Lease::new(backup.generation, backup.id, backup.start_lsn, None, writer.to_string());
    let held = repository.hold(&lease, now, writer.pid).await;
    let warn = |error: &RepoError| {
        let id = backup.id;
        tracing::warn!(
            "`expire` cannot be told that `{id}` is in use: do not run it until the server has recovered ({error})"
        );
    };
    held.inspect_err(warn).ok()
}

async fn look_again(repository: &Repository, plan: &RestorePlan, request: &Request) -> Result<(), Failure> {
    let backup = plan.backup.id;
    // The same way, whatever was promoted meanwhile.
    let same = Request { backup: Some(backup), timeline: TargetTimeline::Number(plan.timeline), ..request.clone() };
    let identities = repository.read_identities().await?;
    let identity = identities.all().iter().find(|identity| identity.generation == plan.backup.generation);
    let identity = identity.ok_or_else(|| gone(plan, "its generation is not there any more"))?;
    let inventory = repository.take_inventory(identity).await?;
    match repository.plan_restore(&inventory, &same).await? {
        Ok(_) => Ok(()),
        Err(why) => Err(gone(plan, &why.to_string())),
    }
}

/// Why a plan that was good a moment ago is not any more.
pub(super) fn gone(plan: &RestorePlan, why: &str) -> Failure {
    let id = plan.backup.id;
    let message = format!("backup `{id}`, or WAL that it needs, was deleted since the plan was made: {why}");
    Failure::new(FailureKind::Unreachable, message).with_hint(
        "nothing was written or removed here; `pgark expire` may have run: restore another, `pgark list` shows them",
    )
}
