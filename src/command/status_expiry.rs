//! The part of `status` about expiry: what `expire` would delete now, and when the next backup goes. It is the very plan of
//! `expire --dry-run`.

use jiff::Timestamp;
use serde::Serialize;

use super::Circumstances;
use super::expire::{Expire, Planned};
use super::expire_report::ExpireReport;
use super::failure::Failure;
use crate::repo::identity::Identities;
use crate::repo::outlook::next_to_go;
use crate::repo::{BackupId, Holdings, Repository};

/// What the policy lets go.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum ExpiryStatus {
    /// No policy is set: nothing goes.
    Off,
    /// There is a plan.
    Planned(ExpiryPlan),
    /// It could not be made.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// The plan in short, of all generations.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpiryPlan {
    /// Backups that would go now.
    pub backups: usize,
    /// Logical dumps that would.
    pub dumps: usize,
    /// WAL objects that would.
    pub wal: usize,
    /// All objects that would, also of backups that were never finished.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Why it would not be done without `--force`.
    pub refused: Option<String>,
    /// The next backup to go, by time alone.
    pub next: Option<NextExpiry>,
}

/// A backup, and when it goes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NextExpiry {
    /// Which.
    pub backup: BackupId,
    /// From when on the policy does not want it, by the store's clock, if nothing new is stored.
    pub at: Timestamp,
    /// How far away that is.
    pub in_seconds: i64,
}

/// Makes the plan, and changes nothing.
/// `holdings` are those of the newest generation.
pub(super) async fn look(
    repository: &Repository,
    expire: &Expire,
    circumstances: &Circumstances,
    identities: &Identities,
    holdings: Holdings,
) -> ExpiryStatus {
    match plan(repository, expire, circumstances, (identities, holdings)).await {
        Ok(plan) => ExpiryStatus::Planned(plan),
        Err(failure) => ExpiryStatus::Unknown { reason: failure.message },
    }
}

async fn plan(
    repository: &Repository,
    expire: &Expire,
    circumstances: &Circumstances,
    (identities, newest): (&Identities, Holdings),
) -> Result<ExpiryPlan, Failure> {
    let mut report = ExpireReport::new(true);
    let mut all = Vec::new();
    for identity in identities.all().iter().filter(|identity| identity.generation != newest.generation()) {
        all.push(repository.holdings(identity).await?);
    }
    all.push(newest);
    let planned = Planned::without_writing(repository, expire, circumstances, all, &mut report).await?;
    let now = planned.time.now;
    let next = (planned.generations.iter())
        .filter_map(|(holdings, plan)| next_to_go(holdings, &expire.policy, plan, now))
        .min_by_key(|next| (next.at, next.backup));
    let of_generations = || report.generations.iter().flat_map(|generation| &generation.delete);
    let going = || of_generations().chain(&report.dumps.delete);
    let of_kind = |kind: &str| going().filter(|going| going.kind == kind).count();
    let refused = report.generations.iter().find_map(|plan| {
        let why = plan.refused.as_ref()?;
        Some(format!("generation {}: {why}", plan.generation))
    });
    let refused = refused.or_else(|| report.dumps.refused.clone());
    Ok(ExpiryPlan {
        backups: of_kind("backup"),
        dumps: of_kind("dump"),
        wal: of_kind("wal"),
        objects: report.objects(),
        bytes: going().map(|going| going.bytes).sum(),
        refused,
        next: next.map(|next| {
            let in_seconds = next.at.duration_since(now).as_secs();
            NextExpiry { backup: next.backup, at: next.at, in_seconds }
        }),
    })
}
