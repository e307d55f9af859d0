//! Which notes of runs stay: enough to tell what became of each kind, and never without end.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use super::Repository;
use super::error::RepoError;
use super::policy::before;
use super::run_record::{RunName, RunStage, latest_stages};

/// Where a drill's reports lie, by the name of its run.
pub const DRILL: &str = "drill";
/// How they end.
pub const REPORTS: [&str; 3] = ["json", "txt", "html"];
/// Of so many runs the notes stay.
const RUNS: usize = 1000;
/// And of none that is older.
const OLDEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// The notes that nobody needs any more. Those of the newest run of each kind stay, and of the newest that went well.
pub fn outdated(names: &[RunName], now: Timestamp) -> Vec<RunName> {
    let begin = before(now, OLDEST);
    let went_well = |run: &RunName| matches!(run.stage, RunStage::Done | RunStage::Warned);
    let (mut newest, mut best) = (BTreeSet::new(), BTreeSet::new());
    let mut gone = BTreeSet::new();
    for (index, run) in latest_stages(names).iter().rev().enumerate() {
        let is_newest = newest.insert(run.kind);
        let is_best = went_well(run) && best.insert(run.kind);
        if !is_newest && !is_best && (index >= RUNS || run.began < begin) {
            gone.insert((run.began, run.pid, run.kind));
        }
    }
    names.iter().filter(|name| gone.contains(&(name.began, name.pid, name.kind))).copied().collect()
}

impl Repository {
    /// Deletes the notes of runs that nobody needs any more, and before them the reports of their drills.
    pub async fn tidy_runs(&self, now: Timestamp) -> Result<(), RepoError> {
        for name in outdated(&self.run_names().await?, now) {
            if name.kind.is_drill() {
                for ending in REPORTS {
                    let report = format!("{}.{ending}", name.without_stage());
                    let key =
                        self.layout.record(DRILL, &report).map_err(|e| RepoError::damaged(&report, e.to_string()))?;
                    self.store.delete(&key).await?;
                }
            }
            self.store.delete(&self.run_key(name)?).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::run_record::RunKind;
    use super::*;

    const DAY: i64 = 86400;

    fn name(day: i64, kind: RunKind, stage: RunStage) -> RunName {
        RunName { began: Timestamp::from_second(day * DAY).unwrap(), pid: 7, kind, stage }
    }

    #[test]
    fn a_year_stays_and_the_newest_of_each_kind() {
        let at = |day: i64| Timestamp::from_second(day * DAY).unwrap();
        let good = [RunStage::Begun, RunStage::Done].map(|stage| name(10, RunKind::Verify, stage));
        let killed = name(20, RunKind::Verify, RunStage::Begun);
        let old = [RunStage::Begun, RunStage::Done].map(|stage| name(5, RunKind::Verify, stage));
        let young = name(900, RunKind::Dump, RunStage::Begun);
        let names: Vec<RunName> = [old, good].concat().into_iter().chain([killed, young]).collect();
        assert_eq!(outdated(&names, at(1000)), old);
        assert_eq!(outdated(&names, at(200)), []);
    }

    #[test]
    fn so_many_stay() {
        let runs = |kind| (0..RUNS as i64 + 3).map(move |minute| name(1000, kind, RunStage::Done).later(minute));
        let many: Vec<RunName> = runs(RunKind::Expire).chain([name(999, RunKind::Dump, RunStage::Failed)]).collect();
        let now = Timestamp::from_second(1001 * DAY).unwrap();
        let gone = outdated(&many, now);
        assert_eq!(gone, many[..3]);
    }

    impl RunName {
        fn later(self, minutes: i64) -> Self {
            RunName { began: self.began + jiff::SignedDuration::from_mins(minutes), ..self }
        }
    }
}
