//! What a restore holds in the repository while it is at work, and the second look that makes this worth something.
//!
//! The lease names the plan's backup, so the plan comes first. Meanwhile `expire`, that saw no lease, may have deleted what the plan
//! needs: therefore the same plan is made once more behind the lease, before anything here is touched. What is there then, stays.

use super::Circumstances;
use super::failure::{Failure, FailureKind};
use super::holding::Holding;
use crate::repo::Repository;
use crate::repo::lease::Lease;
use crate::repo::restore_plan::RestorePlan;
use crate::repo::restore_target::{Request, TargetTimeline};

/// Takes the lease and looks again whether the plan can still be carried out.
pub(super) async fn hold_and_look_again<'a>(
    repository: &'a Repository,
    plan: &RestorePlan,
    request: &Request,
    circumstances: &Circumstances,
) -> Result<Holding<'a>, Failure> {
    let (backup, writer) = (&plan.backup, circumstances.writer.to_string());
    let lease = Lease::new(backup.generation, backup.id, backup.start_lsn, None, writer);
    let holding = Holding::take(repository, lease, circumstances, "the server has recovered").await;
    match look_again(repository, plan, request).await {
        Ok(()) => Ok(holding),
        Err(failure) => {
            holding.release().await;
            Err(failure)
        }
    }
}

async fn look_again(repository: &Repository, plan: &RestorePlan, request: &Request) -> Result<(), Failure> {
    let backup = plan.backup.id;
    // The same way, whatever was promoted meanwhile.
    let timeline = match plan.origin_is_unknown() {
        true => TargetTimeline::Current,
        false => TargetTimeline::Number(plan.timeline),
    };
    let same = Request { backup: Some(backup), timeline, ..request.clone() };
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
