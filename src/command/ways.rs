//! The ways back: for a number of moments what a restore would begin with, or why it cannot be done. One inventory serves all.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::bounds::bounded;
use super::failure::{Failure, FailureKind};
use super::overview::Overview;
use super::status::IntervalStatus;
use super::{RepositorySettings, plan_warnings};
use crate::postgres::TimelineId;
use crate::repo::intervals::restorable_intervals;
use crate::repo::restore_plan::RestorePlan;
use crate::repo::restore_target::{Request, Target, TargetTimeline};
use crate::repo::{BackupId, Inventory, Repository};

/// A moment that somebody may want to go back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "moment", rename_all = "kebab-case")]
pub enum Moment {
    /// The newest.
    Latest,
    /// This one: on the latest timeline, and on others that have it, too.
    Time {
        /// When.
        at: Timestamp,
    },
    /// The first that a backup can give: where it stopped.
    Backup {
        /// Which.
        backup: BackupId,
    },
    /// Just before the last commit of an interval of a timeline: no commit behind it is there, at which recovery could stop.
    LastBefore {
        /// That commit.
        at: Timestamp,
        /// Of which timeline.
        timeline: u32,
    },
}

/// A moment, and how to go back to it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Way {
    /// Which moment.
    #[serde(flatten)]
    pub moment: Moment,
    /// The timeline that has to be named, as it is not the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// How, or why not.
    #[serde(flatten)]
    pub answer: Answer,
}

/// Whether a moment can be restored.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Answer {
    /// It can.
    Reachable {
        /// The backup that a restore begins with.
        backup: BackupId,
        /// The timeline that it ends on.
        ends_on: u32,
        /// Stored bytes of the backup's files and of the WAL to replay.
        fetched_bytes: u64,
        /// What a person should know before.
        warnings: Vec<String>,
    },
    /// It cannot.
    Unreachable {
        /// Why.
        reason: String,
        /// What to do.
        hint: String,
    },
}

/// Of so many of the newest intervals the ends are offered.
const INTERVALS: usize = 4;
/// The moment before which somebody may have made a mistake.
const A_WHILE: SignedDuration = SignedDuration::from_hours(1);

/// The moments that a report should offer: the newest, an hour ago, and the ends of the newest intervals.
pub fn moments(overview: &Overview) -> Vec<Moment> {
    let mut moments = vec![Moment::Latest];
    moments.extend(overview.at.checked_sub(A_WHILE).ok().map(|at| Moment::Time { at }));
    let intervals = overview.status.timelines.iter().flat_map(|of| of.intervals.iter().map(|i| (of.timeline, i)));
    let newest = intervals.clone().next_back();
    for (timeline, interval) in intervals.rev().take(INTERVALS) {
        let is_newest = newest.is_some_and(|(_, newest)| newest == interval);
        moments.extend(ends(timeline, interval, is_newest, overview));
    }
    moments
}

fn ends(timeline: u32, interval: &IntervalStatus, is_newest: bool, overview: &Overview) -> Vec<Moment> {
    let stopped = |id: BackupId| {
        let backup = overview.backups.iter().find(|backup| backup.id == id)?;
        Some(backup.facts.as_ref()?.timeline == timeline)
    };
    let begin = stopped(interval.backup).unwrap_or(false).then_some(Moment::Backup { backup: interval.backup });
    let end = interval.to_time.filter(|_| !is_newest).map(|at| Moment::LastBefore { at, timeline });
    end.into_iter().chain(begin).collect()
}

/// Finds them.
pub async fn run(settings: &RepositorySettings, moments: &[Moment]) -> Result<Vec<Way>, Failure> {
    let finding = async {
        let repository = settings.open().await?;
        let identities = repository.read_identities().await?;
        let none = || Failure::new(FailureKind::NoIdentity, "the repository has no generation");
        let inventory = repository.take_inventory(identities.newest().ok_or_else(none)?).await?;
        let mut ways = Vec::new();
        for moment in moments {
            ways.extend(ways_to(&repository, &inventory, *moment).await?);
        }
        Ok(ways)
    };
    bounded(finding, None, None).await
}

async fn ways_to(repository: &Repository, inventory: &Inventory, moment: Moment) -> Result<Vec<Way>, Failure> {
    let to = |target| Request::to(target);
    let request = match moment {
        Moment::Latest => to(Target::Latest),
        Moment::Time { at } => to(Target::Time(at)),
        Moment::Backup { backup } => {
            Request { backup: Some(backup), timeline: TargetTimeline::Current, ..to(Target::Immediate) }
        }
        Moment::LastBefore { at, timeline } => {
            let timeline = TimelineId::new(timeline).map_or(TargetTimeline::Latest, TargetTimeline::Number);
            Request { exclusive: true, timeline, ..to(Target::Time(at)) }
        }
    };
    let (answer, ends_on) = answer(repository, inventory, &request).await?;
    let named = match request.timeline {
        TargetTimeline::Number(number) => Some(number.get()),
        _ => None,
    };
    let mut ways = vec![Way { moment, timeline: named, answer }];
    if let Moment::Time { .. } = moment {
        ways.extend(aside(repository, inventory, &request, ends_on).await?);
        // A way beside says more than that there is none on the latest.
        if ways.len() > 1 {
            ways.retain(|way| matches!(way.answer, Answer::Reachable { .. }));
        }
    }
    Ok(ways)
}

/// The same moment on timelines that were left aside: what was written there is another story.
async fn aside(
    repository: &Repository,
    inventory: &Inventory,
    request: &Request,
    latest: Option<TimelineId>,
) -> Result<Vec<Way>, Failure> {
    let Target::Time(at) = request.target else { return Ok(Vec::new()) };
    let mut ways = Vec::new();
    let mut seen: BTreeSet<TimelineId> = latest.into_iter().collect();
    for timeline in restorable_intervals(inventory).into_keys().rev() {
        let request = Request { timeline: TargetTimeline::Number(timeline), ..request.clone() };
        if let (answer @ Answer::Reachable { .. }, Some(ends_on)) = answer(repository, inventory, &request).await?
            && seen.insert(ends_on)
        {
            ways.push(Way { moment: Moment::Time { at }, timeline: Some(timeline.get()), answer });
        }
    }
    Ok(ways)
}

/// The answer, and the timeline on which recovery stops.
async fn answer(
    repository: &Repository,
    inventory: &Inventory,
    request: &Request,
) -> Result<(Answer, Option<TimelineId>), Failure> {
    let plan: RestorePlan = match repository.plan_restore(inventory, request).await? {
        Ok(plan) => plan,
        Err(why) => return Ok((Answer::Unreachable { reason: why.to_string(), hint: why.hint() }, None)),
    };
    let plan = plan_warnings::warn(repository, request, plan).await?;
    let ends_on = plan.wal.last().map_or(plan.backup.timeline, |range| range.last.timeline);
    let fetched_bytes = plan.backup.stored_bytes + plan.wal.iter().map(|range| range.stored_bytes).sum::<u64>();
    let answer =
        Answer::Reachable { backup: plan.backup.id, ends_on: ends_on.get(), fetched_bytes, warnings: plan.warnings };
    Ok((answer, Some(ends_on)))
}
