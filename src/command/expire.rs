//! `expire`: delete what the policy no longer wants and nothing needs.
//!
//! Plan, show, do. The plan is made anew from what is there just before each backup is deleted, and again before and while WAL is
//! deleted: what does not stand in both stays. So a backup that is finished meanwhile, a mark or a lease counts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::bounds::bounded;
use super::expire_delete::Deleter;
use super::expire_records::{forget, record, record_key, tidy};
use super::expire_report::{DumpsReport, ExpireReport, GenerationReport};
use super::failure::{Failure, FailureKind};
use super::store_clock::{self, StoreTime};
use super::{Circumstances, RepositorySettings};
use crate::repo::dump_retention::DumpPlan;
use crate::repo::keep::Mark;
use crate::repo::policy::before;
use crate::repo::retention::{Deletion, Doomed, GRACE};
use crate::repo::{BackupId, ExpirePlan, Holdings, Policy, Repository};
use crate::storage::object_store::Unfinished;
use crate::storage::{ObjectKey, StoreErrorKind};

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Expire {
    /// Where.
    pub repository: RepositorySettings,
    /// What is to stay.
    pub policy: Policy,
    /// Only the plan.
    pub dry_run: bool,
    /// More than half may go.
    pub force: bool,
    /// Deletions at once.
    pub jobs: usize,
}

/// Makes the plan, shows it to `agree`, and carries it out if that says so. A dry run ends with the plan.
pub async fn run(
    expire: &Expire,
    circumstances: &Circumstances,
    agree: impl FnOnce(&ExpireReport) -> bool,
) -> Result<ExpireReport, Failure> {
    let repository = expire.repository.open().await?;
    bounded(run_on(&repository, expire, circumstances, agree), None, None).await
}

/// The same on a repository that is open.
pub async fn run_on(
    repository: &Repository,
    expire: &Expire,
    circumstances: &Circumstances,
    agree: impl FnOnce(&ExpireReport) -> bool,
) -> Result<ExpireReport, Failure> {
    let mut report = ExpireReport::new(expire.dry_run);
    report.nothing_set = expire.policy.is_empty();
    let planned = Planned::make(repository, expire, circumstances, &mut report).await?;
    if expire.dry_run {
        return Ok(report);
    }
    tidy(repository, planned.time.now).await;
    if planned.is_nothing() || !agree(&report) {
        forget(repository, circumstances).await;
        return Ok(report);
    }
    let mut deleter = Deleter::new(repository, expire.jobs);
    for (holdings, plan) in &planned.generations {
        if plan.refused.is_none() || expire.force {
            let at = (planned.time.now, circumstances);
            carry_out(repository, &expire.policy, at, (holdings, plan), &mut deleter).await?;
        }
    }
    if planned.dumps.refused.is_none() || expire.force {
        for doomed in &planned.dumps.delete {
            deleter.dump(doomed, expire.policy.dump_keep_within, (planned.time.now, circumstances)).await;
        }
    }
    deleter.sized(planned.leases.iter().chain(&planned.gaps).map(|key| (key.clone(), 0)).collect()).await;
    for unfinished in &planned.unfinished {
        deleter.abandon(unfinished).await;
    }
    report.done = true;
    report.deleted = deleter.deleted;
    report.deleted_bytes = deleter.bytes;
    report.failed = deleter.failed;
    report.spared = deleter.spared.iter().chain(&deleter.spared_dumps).map(ToString::to_string).collect();
    record(repository, circumstances, &report.in_short()).await;
    Ok(report)
}

/// All plans of a run.
pub(super) struct Planned {
    pub(super) time: StoreTime,
    pub(super) generations: Vec<(Holdings, ExpirePlan)>,
    pub(super) dumps: DumpPlan,
    leases: Vec<ObjectKey>,
    /// Notes of gaps to which nothing comes that can be restored.
    gaps: Vec<ObjectKey>,
    unfinished: Vec<Unfinished>,
}

/// What is noted before a run.
#[derive(Serialize)]
struct Begin<'a> {
    format: &'a str,
    begun: Timestamp,
    policy: BTreeMap<&'a str, String>,
    force: bool,
    writer: String,
}

const FORMAT: &str = "pgark-expire-1";

impl Planned {
    pub(super) async fn make(
        repository: &Repository,
        expire: &Expire,
        circumstances: &Circumstances,
        report: &mut ExpireReport,
    ) -> Result<Self, Failure> {
        let identities = repository.read_identities().await?;
        let mut all = Vec::new();
        let time = match expire.dry_run {
            true => {
                for identity in identities.all() {
                    all.push(repository.holdings(identity).await?);
                }
                return Planned::without_writing(repository, expire, circumstances, all, report).await;
            }
            // The clock first: what is written after it is young.
            false => {
                let begin = Begin {
                    format: FORMAT,
                    begun: circumstances.now,
                    policy: in_words(&expire.policy),
                    force: expire.force,
                    writer: circumstances.writer.to_string(),
                };
                let unwritable = |e: serde_json::Error| Failure::new(FailureKind::Internal, format!("no record: {e}"));
                let body = serde_json::to_vec(&begin).map_err(unwritable)?;
                let look = async {
                    let mut newest = None;
                    for identity in identities.all() {
                        newest = newest.max(repository.holdings(identity).await?.newest());
                    }
                    newest = newest.max(repository.held_dumps().await?.newest());
                    Ok(newest)
                };
                let key = record_key(repository, circumstances, "begun")?;
                let time = store_clock::by_writing(repository, &key, body, look, circumstances.now).await?;
                for identity in identities.all() {
                    all.push(repository.holdings(identity).await?);
                }
                time
            }
        };
        Planned::of(repository, expire, (all, time), report).await
    }

    /// The plan for what is there, by this machine's clock.
    pub(super) async fn without_writing(
        repository: &Repository,
        expire: &Expire,
        circumstances: &Circumstances,
        all: Vec<Holdings>,
        report: &mut ExpireReport,
    ) -> Result<Self, Failure> {
        let time = store_clock::without_writing(newest(&all), circumstances.now);
        Planned::of(repository, expire, (all, time), report).await
    }

    async fn of(
        repository: &Repository,
        expire: &Expire,
        (all, time): (Vec<Holdings>, StoreTime),
        report: &mut ExpireReport,
    ) -> Result<Self, Failure> {
        let old = before(time.now, GRACE);
        let plan = |holdings: Holdings| {
            let plan = ExpirePlan::make(&holdings, &expire.policy, time.now);
            (holdings, plan)
        };
        let generations: Vec<(Holdings, ExpirePlan)> = all.into_iter().map(plan).collect();
        let leases = repository.all_leases().await?.into_iter();
        let leases = leases.filter(|held| held.written.is_some_and(|written| written < before(old, GRACE)));
        let mut gaps = Vec::new();
        if !expire.policy.is_empty() {
            for (holdings, _) in generations.iter().filter(|(_, plan)| plan.wal_frozen.is_none()) {
                let recorded = repository.gaps(holdings.generation()).await?.into_iter();
                let recorded = recorded.filter(|recorded| recorded.written.is_some_and(|written| written < old));
                let idle = recorded.filter(|recorded| !recorded.gap.is_reached(&holdings.inventory));
                gaps.extend(idle.map(|recorded| recorded.key));
            }
        }
        let dumps = DumpPlan::make(&repository.held_dumps().await?, expire.policy.dump_keep_within, time.now);
        let mut unfinished = Vec::new();
        match repository.store.unfinished(repository.layout.root()).await {
            Ok(found) => unfinished = found,
            Err(error) if matches!(error.kind, StoreErrorKind::Denied | StoreErrorKind::Unsupported) => {
                report.notes.push(format!("old uploads cannot be looked for: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
        unfinished.retain(|unfinished| {
            unfinished.begun.and_then(|begun| Timestamp::try_from(begun).ok()).is_some_and(|begun| begun < old)
        });
        let leases = leases.map(|held| held.key).collect();
        let planned = Planned { time, generations, dumps, leases, gaps, unfinished };
        report.dumps = DumpsReport::of(&repository.layout, &planned.dumps);
        report.now = planned.time.now;
        report.clock = planned.time.clock;
        report.notes.extend(planned.time.note.clone());
        report.generations = planned
            .generations
            .iter()
            .map(|(held, plan)| GenerationReport::of(&repository.layout, held, plan))
            .collect();
        report.unfinished = planned.unfinished.iter().map(|unfinished| unfinished.name.clone()).collect();
        report.forced = expire.force;
        Ok(planned)
    }

    fn is_nothing(&self) -> bool {
        self.generations.iter().all(|(_, plan)| plan.delete.is_empty())
            && self.dumps.delete.is_empty()
            && self.leases.is_empty()
            && self.gaps.is_empty()
            && self.unfinished.is_empty()
    }
}

fn in_words(policy: &Policy) -> BTreeMap<&'static str, String> {
    let number = |number: Option<u32>| number.map(|number| number.to_string());
    let age = |age: Option<Duration>| age.map(|age| humantime::format_duration(age).to_string());
    let all = [
        ("keep_full", number(policy.keep_full)),
        ("keep_within", age(policy.keep_within)),
        ("keep_daily", number(policy.keep_daily)),
        ("keep_weekly", number(policy.keep_weekly)),
        ("keep_monthly", number(policy.keep_monthly)),
        ("wal_within", age(policy.wal_within)),
        ("min_full", number(Some(policy.min_full))),
        ("dump_keep_within", age(policy.dump_keep_within)),
    ];
    all.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

fn newest(all: &[Holdings]) -> Option<Timestamp> {
    all.iter().filter_map(Holdings::newest).max()
}

/// After so many WAL objects it is looked again who needs some.
const LOOK_AGAIN: usize = 1000;

async fn carry_out(
    repository: &Repository,
    policy: &Policy,
    (now, circumstances): (Timestamp, &Circumstances),
    (holdings, plan): (&Holdings, &ExpirePlan),
    deleter: &mut Deleter<'_>,
) -> Result<(), Failure> {
    let is_wal = |deletion: &&Deletion| matches!(deletion.what, Doomed::Wal(_));
    let mut present = holdings.clone();
    let still = |present: &Holdings| plan.still(&ExpirePlan::make(present, policy, now));
    if plan.delete.iter().any(|deletion| !is_wal(&deletion)) {
        repository.look_again(&mut present).await?;
        for deletion in still(&present).iter().filter(|deletion| !is_wal(deletion)) {
            let stands = |present: &Holdings| still(present).contains(deletion);
            deleter.backup(&mut present, deletion, (now, circumstances), stands).await;
        }
    }
    let wal: Vec<&Deletion> = plan.delete.iter().filter(is_wal).collect();
    let doomed: Vec<BackupId> = plan.delete.iter().filter_map(|deletion| deletion.what.backup()).collect();
    for chunk in wal.chunks(LOOK_AGAIN) {
        if deleter.has_given_up() {
            return Ok(());
        }
        repository.look_again(&mut present).await?;
        // A backup that could not be deleted is still one, and so needs its WAL.
        let left = (doomed.iter())
            .filter(|id| present.inventory.backup(**id).is_some_and(|backup| backup.listing.manifest().is_some()));
        let left: Vec<BackupId> = left.copied().collect();
        present.marks.extend(left.into_iter().map(|id| (id, Mark::default())));
        let still: BTreeSet<Doomed> = still(&present).into_iter().map(|deletion| deletion.what).collect();
        let left = chunk.iter().filter(|deletion| still.contains(&deletion.what));
        let keys = left.flat_map(|deletion| {
            let keys = deletion.keys(&repository.layout, plan.generation);
            keys.into_iter().map(|key| (key, deletion.bytes))
        });
        deleter.sized(keys.collect()).await;
    }
    Ok(())
}
