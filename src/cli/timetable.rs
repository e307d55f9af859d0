//! When runs are due, by `[schedule]`.

use jiff::tz::TimeZone;

use super::sources::Sources;
use super::values;
use crate::command::Failure;
use crate::repo::{ClusterName, RunKind, Schedule, schedule};

/// The kinds that are due at some time, and when.
pub fn schedules(sources: &Sources, cluster: &ClusterName) -> Result<Vec<(RunKind, Schedule)>, Failure> {
    let zone = zone(sources)?;
    let jitter = sources.get("schedule.jitter").and_then(values::delay).unwrap_or_default();
    let mut schedules = Vec::new();
    for kind in RunKind::ALL {
        let path = path(kind);
        let Some(expression) = sources.get(&path) else { continue };
        let schedule = Schedule::new(expression, zone.clone()).map_err(|why| sources.complain(&path, why))?;
        schedules.push((kind, schedule.delayed(schedule::delay(cluster, kind, jitter))));
    }
    Ok(schedules)
}

/// The setting that says when a kind is due.
fn path(kind: RunKind) -> String {
    format!("schedule.{}", kind.word().replace('-', "_"))
}

fn zone(sources: &Sources) -> Result<TimeZone, Failure> {
    const ZONE: &str = "schedule.timezone";
    match sources.get(ZONE).unwrap_or("UTC") {
        "UTC" => Ok(TimeZone::UTC),
        name => TimeZone::get(name).map_err(|_| {
            let failure = sources.complain(ZONE, "is no time zone that this machine knows");
            failure.with_hint("write `Europe/Berlin` or `UTC`; the package `tzdata` has them")
        }),
    }
}
