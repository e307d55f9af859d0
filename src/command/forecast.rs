//! How long a restore would take now: from what drills measured, and from what would be fetched and replayed.

use serde::Serialize;

use crate::postgres::Lsn;
use crate::repo::health::Health;
use crate::repo::run_record::{DrillFigures, RunKind, RunStage, latest_stages};
use crate::repo::{Inventory, RepoError, Repository, RunRecord};

/// What a restore to the latest would have to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RestoreWork {
    /// Bytes of files, as they are on disk.
    pub restored_bytes: u64,
    /// Bytes of WAL, as it is on disk.
    pub replayed_bytes: u64,
}

/// How long it would take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// In all, in seconds.
    pub seconds: f64,
    /// Until all files are there.
    pub fetch_seconds: f64,
    /// From then until all WAL is replayed.
    pub replay_seconds: f64,
    /// What it would have to do.
    #[serde(flatten)]
    pub work: RestoreWork,
    /// From how many drills that is told.
    pub drills: usize,
}

/// So many of the newest drills count: machines and stores change.
pub const DRILLS: usize = 5;
/// Some drills measure nothing, so a few more are read.
const READ: usize = 2 * DRILLS;

/// The kinds of runs that a forecast is made from.
pub const KINDS: [RunKind; 3] = [RunKind::DrillFull, RunKind::DrillPitr, RunKind::DrillDisaster];

/// Tells from the newest of these runs, oldest first, how long this work would take. `None`: no drill has come to its end.
///
/// What a drill takes however little there is, such as the start of the server, counts as if it grew with the bytes: small drills
/// foretell too long a time for large ones, never the other way round.
pub fn forecast(runs: &[RunRecord], work: RestoreWork) -> Option<Forecast> {
    let ended = |run: &&RunRecord| KINDS.contains(&run.kind) && !matches!(run.stage, RunStage::Begun);
    let figures = runs.iter().rev().filter(ended).filter_map(|run| run.drill.as_ref());
    // One that failed before the server was ready measured nothing.
    let figures: Vec<&DrillFigures> = figures.filter(|figures| figures.total_seconds > 0.0).take(DRILLS).collect();
    let time_for = |bytes: u64, measured: &dyn Fn(&DrillFigures) -> (u64, f64)| {
        let sums = figures.iter().map(|figures| measured(figures)).filter(|(bytes, _)| *bytes > 0);
        let (in_all, seconds) = sums.fold((0, 0.0), |(all, time), (bytes, seconds)| (all + bytes, time + seconds));
        if in_all == 0 { 0.0 } else { bytes as f64 * (seconds / in_all as f64) }
    };
    if figures.is_empty() {
        return None;
    }
    let fetch_seconds = time_for(work.restored_bytes, &|figures| (figures.restored_bytes, figures.fetch_seconds));
    let replay_seconds = time_for(work.replayed_bytes, &|figures| (figures.replayed_bytes, figures.replay_seconds));
    let seconds = fetch_seconds + replay_seconds;
    Some(Forecast { seconds, fetch_seconds, replay_seconds, work, drills: figures.len() })
}

/// The same for a restore to the latest, now. `None`: there is nothing to restore, or no drill has come to its end.
pub(super) async fn look(
    repository: &Repository,
    inventory: &Inventory,
    health: &Health,
) -> Result<Option<Forecast>, RepoError> {
    let backup = health.newest_backup.and_then(|id| inventory.backup(id)?.summary());
    let (Some(backup), Some(newest)) = (backup, &health.newest) else { return Ok(None) };
    let work = RestoreWork {
        restored_bytes: backup.plain_bytes,
        replayed_bytes: distance(backup.start_lsn, newest.position.lsn),
    };
    let mut names = latest_stages(&repository.run_names().await?);
    names.retain(|name| KINDS.contains(&name.kind) && name.stage != RunStage::Begun);
    let newest = &names[names.len().saturating_sub(READ)..];
    Ok(forecast(&repository.read_runs(newest).await?, work))
}

/// Bytes of WAL between two positions.
pub fn distance(from: Lsn, to: Lsn) -> u64 {
    to.0.saturating_sub(from.0)
}

/// A time for people: `42 min`.
pub fn about(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 90.0 => format!("{:.0} s", seconds.max(1.0)),
        seconds if seconds < 90.0 * 60.0 => format!("{:.0} min", seconds / 60.0),
        seconds if seconds < 48.0 * 3600.0 => format!("{:.1} h", seconds / 3600.0),
        seconds => format!("{:.1} days", seconds / 86400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::Writer;
    use jiff::Timestamp;

    fn drill(second: i64, kind: RunKind, stage: RunStage, figures: DrillFigures) -> RunRecord {
        let writer = Writer { host: "db1".to_owned(), pid: 7, version: "1" };
        let at = Timestamp::from_second(second).unwrap();
        let mut run = RunRecord::begun(kind, at, &writer).ended(stage, at);
        run.drill = Some(figures);
        run
    }

    fn figures(restored_bytes: u64, fetch_seconds: f64, replayed_bytes: u64, replay_seconds: f64) -> DrillFigures {
        let total_seconds = fetch_seconds + replay_seconds;
        DrillFigures {
            restored_bytes,
            fetch_seconds,
            replayed_bytes,
            replay_seconds,
            total_seconds,
            ..DrillFigures::default()
        }
    }

    #[test]
    fn a_forecast_goes_by_the_rates_of_the_newest_drills() {
        let work = RestoreWork { restored_bytes: 4000, replayed_bytes: 300 };
        assert_eq!(forecast(&[], work), None);
        let broken = drill(9, RunKind::DrillFull, RunStage::Failed, DrillFigures::default());
        let of_a_dump = drill(9, RunKind::DrillDump, RunStage::Done, figures(1, 900.0, 1, 900.0));
        let ancient = drill(1, RunKind::DrillFull, RunStage::Done, figures(1, 1e9, 1, 1e9));
        let mut runs = vec![ancient, of_a_dump, broken];
        assert_eq!(forecast(&runs[1..], work), None);
        for second in 0..DRILLS as i64 {
            let (kind, stage) = (KINDS[second as usize % 3], [RunStage::Done, RunStage::Warned][second as usize % 2]);
            runs.push(drill(10 + second, kind, stage, figures(1000, 10.0, if second == 0 { 0 } else { 100 }, 50.0)));
        }
        let told = forecast(&runs, work).unwrap();
        assert_eq!((told.fetch_seconds, told.replay_seconds, told.seconds), (40.0, 150.0, 190.0));
        assert_eq!(told.drills, DRILLS);
    }

    #[test]
    fn times_are_for_people() {
        for (seconds, text) in
            [(0.2, "1 s"), (89.0, "89 s"), (2520.0, "42 min"), (7200.0, "2.0 h"), (2.6e5, "3.0 days")]
        {
            assert_eq!(about(seconds), text);
        }
    }
}
