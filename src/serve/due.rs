//! What the repository says about something that is due: whether it was run, whether somebody else runs it, and whether it is ours.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::command::bounds::{apart, bounded};
use crate::command::{Failure, FailureKind, RepositorySettings};
use crate::repo::claim::{Claim, Claimed};
use crate::repo::run_record::RunName;
use crate::repo::{RunKind, Schedule, Writer};

/// Whose something is that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Ours: nobody else runs it.
    Ours,
    /// It was run, or is being run.
    Done,
    /// Somebody has claimed it and left no note of a run yet: so many tries there were.
    Claimed(u32),
}

/// Asks the repository, and claims in it.
#[derive(Clone)]
pub(super) struct Ledger {
    pub(super) repository: RepositorySettings,
    pub(super) writer: Writer,
    pub(super) kind: RunKind,
}

/// No question takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// What was noted further in the future says nothing: a clock was wrong.
const A_DAY: SignedDuration = SignedDuration::from_hours(24);

impl Ledger {
    /// Up to when everything is settled. Where this kind was never run or claimed, that is noted to be so up to now.
    pub(super) async fn settled(&self, schedule: &Schedule, now: Timestamp) -> Result<Timestamp, Failure> {
        let (runs, claims) = self.read().await?;
        if let Some(settled) = settled(&runs, &claims, now) {
            return Ok(settled);
        }
        let settled = schedule.last_due(now).unwrap_or(now);
        match self.claim(Claim { due: settled, kind: self.kind, attempt: 0 }).await {
            Err(failure) if failure.kind != FailureKind::Denied => Err(failure),
            _ => Ok(settled),
        }
    }

    /// Claims what was due then. `dead` tries are known to have come to nothing.
    pub(super) async fn take(&self, due: Timestamp, now: Timestamp, dead: u32) -> Result<Whose, Failure> {
        let (runs, claims) = self.read().await?;
        if runs.iter().any(|run| run.began >= due && is_believed(run.began, now)) {
            return Ok(Whose::Done);
        }
        let tries = claims.iter().filter(|claimed| claimed.claim.due == due).map(|claimed| claimed.claim.attempt);
        match tries.max().unwrap_or(0) {
            tries if tries > dead => Ok(Whose::Claimed(tries)),
            tries => Ok(match self.claim(Claim { due, kind: self.kind, attempt: tries + 1 }).await {
                Ok(true) => Whose::Ours,
                Ok(false) => Whose::Claimed(tries + 1),
                Err(failure) if failure.kind == FailureKind::Denied => {
                    let kind = self.kind;
                    tracing::warn!("{kind} is run unclaimed, others may run it too: {failure}");
                    Whose::Ours
                }
                Err(failure) => return Err(failure),
            }),
        }
    }

    async fn read(&self) -> Result<(Vec<RunName>, Vec<Claimed>), Failure> {
        let (settings, kind) = (self.repository.clone(), self.kind);
        let reading = apart(move || async move {
            let repository = settings.open().await?;
            let (mut runs, mut claims) = (repository.run_names().await?, repository.claims().await?);
            runs.retain(|run| run.kind == kind);
            claims.retain(|claimed| claimed.claim.kind == kind);
            Ok((runs, claims))
        });
        bounded(reading, Some(PATIENCE), None).await
    }

    async fn claim(&self, claim: Claim) -> Result<bool, Failure> {
        let (settings, writer) = (self.repository.clone(), self.writer.clone());
        let token = format!("{:016x}", RandomState::new().build_hasher().finish());
        let claiming = apart(move || async move {
            let repository = settings.open().await?;
            Ok(repository.claim(claim, &writer, &token).await?)
        });
        bounded(claiming, Some(PATIENCE), None).await
    }
}

/// Whether a time can have been noted by a clock that is about right.
pub(super) fn is_believed(time: Timestamp, now: Timestamp) -> bool {
    time.duration_since(now) <= A_DAY
}

/// Up to when everything is settled: the begin of the newest run, or where the schedule began. Claims alone say little: whoever made
/// them may have died before the run.
fn settled(runs: &[RunName], claims: &[Claimed], now: Timestamp) -> Option<Timestamp> {
    let believed = |time: &Timestamp| is_believed(*time, now);
    let begins = runs.iter().map(|run| run.began);
    let beginnings = claims.iter().filter(|claimed| claimed.claim.attempt == 0).map(|claimed| claimed.claim.due);
    let settled = begins.chain(beginnings).filter(believed).max();
    settled.or_else(|| claims.iter().map(|claimed| claimed.claim.due).filter(believed).max())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::run_record::RunStage;

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(hour * 3600).unwrap()
    }

    fn run(hour: i64) -> RunName {
        RunName { began: at(hour), pid: 1, kind: RunKind::Dump, stage: RunStage::Begun }
    }

    fn claim(hour: i64, attempt: u32) -> Claimed {
        Claimed { claim: Claim { due: at(hour), kind: RunKind::Dump, attempt }, at: None }
    }

    #[test]
    fn what_was_run_is_settled_and_a_mere_claim_is_not() {
        let now = at(1000);
        assert_eq!(settled(&[], &[], now), None);
        assert_eq!(settled(&[], &[claim(900, 0)], now), Some(at(900)));
        assert_eq!(settled(&[run(950), run(920)], &[claim(900, 0), claim(990, 1)], now), Some(at(950)));
        assert_eq!(settled(&[], &[claim(900, 1)], now), Some(at(900)));
        // By a clock that was years ahead.
        assert_eq!(settled(&[run(950), run(9000)], &[claim(8000, 0)], now), Some(at(950)));
    }
}
