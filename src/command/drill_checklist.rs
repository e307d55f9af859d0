//! The checklist of a drill, as auditors ask for it, and its figures against what was promised.

use super::drill::{Drill, Found};
use super::drill_report::{DrillKind, DrillReport, Outcome, Point, Reason, Step};
use super::forecast::about;

/// The steps by their names.
pub(super) const PROMISE: &str = "ask what is promised";
pub(super) const PLAN: &str = "plan";
pub(super) const SPACE: &str = "ask for space";
pub(super) const FETCH: &str = "fetch";
pub(super) const REPLAY: &str = "recover";
pub(super) const JUDGE: &str = "keep the promise";
pub(super) const STRUCTURE: &str = "check the structure";
pub(super) const READ: &str = "read all tables";
pub(super) const COMPARE: &str = "compare with the dump";
pub(super) const PAGES: &str = "check the pages";
/// In front of an assertion's name.
pub(super) const ASSERT: &str = "assert: ";

const REPORTED: &str = "result reported";

/// Compares what was measured with what was promised.
pub(super) fn measure(found: &mut Found, drill: &Drill) {
    let over = |what: &str, measured: f64, limit: Option<std::time::Duration>| {
        let limit = limit.map(|limit| limit.as_secs_f64()).filter(|limit| measured > *limit)?;
        let message = format!("the measured {what} of {} is over its objective of {}", about(measured), about(limit));
        Some(Reason::warning("objective", message))
    };
    let rto = Some(found.figures.total_seconds).and_then(|seconds| over("RTO", seconds, drill.objectives.rto));
    let rpo = found.figures.loss_seconds.and_then(|seconds| over("RPO", seconds, drill.objectives.rpo));
    found.reasons.extend(rto.into_iter().chain(rpo));
}

/// The checklist of what was done so far; that it is reported is not known yet, but true for whoever reads it in the repository.
pub(super) fn points(report: &DrillReport, is_newest: bool) -> Vec<Point> {
    let outcome = |name: &str| report.steps.iter().find(|step| step.name == name).map(|step| step.outcome);
    let passed = |name: &str| outcome(name) == Some(Outcome::Passed);
    let point = |item, ticked, detail: String| Point { item, ticked, detail };

    let what = if report.kind == DrillKind::Dump { "dump" } else { "backup" };
    let backup = report.backup.map_or("none".to_owned(), |id| id.to_string());
    let fetched = match (passed(FETCH), is_newest) {
        (true, true) => point("newest backup fetched", true, format!("{what} {backup}")),
        (true, false) => {
            point("newest backup fetched", false, format!("{what} {backup} is an older one, as the target asks"))
        }
        (false, _) => point("newest backup fetched", false, "not fetched".to_owned()),
    };
    let restored = match report.kind {
        DrillKind::Dump => passed(FETCH),
        DrillKind::Full | DrillKind::Pitr | DrillKind::Disaster => passed(REPLAY) && passed(JUDGE),
    };
    let seconds = report.figures.total_seconds;
    let detail = if restored { format!("usable after {seconds:.1} s") } else { "not restored".to_owned() };
    let restored = point("restored in a test environment", restored, detail);

    let checks = [STRUCTURE, READ, COMPARE, PAGES].map(|name| (name, outcome(name)));
    let all_done = [STRUCTURE, READ].into_iter().all(passed);
    let none_failed = checks.iter().all(|(_, outcome)| !matches!(outcome, Some(Outcome::Failed | Outcome::Skipped)));
    let done: Vec<&str> =
        checks.iter().filter(|(_, outcome)| *outcome == Some(Outcome::Passed)).map(|(name, _)| *name).collect();
    let verified = point("integrity verified", all_done && none_failed, listed(&done));

    let assertions: Vec<&Step> = report.steps.iter().filter(|step| step.name.starts_with(ASSERT)).collect();
    let held = assertions.iter().filter(|step| step.outcome == Outcome::Passed).count();
    let detail = match assertions.len() {
        0 => "no assertions were run: give a file with `--sql`".to_owned(),
        all => format!("{held} of {all} assertions hold"),
    };
    let tested = point("critical functions tested", held > 0 && held == assertions.len(), detail);

    let timed = seconds > 0.0;
    let detail = if timed { format!("RTO {seconds:.1} s") } else { "it did not come so far".to_owned() };
    let timed = point("time documented", timed, detail);
    let reported = point(REPORTED, true, "in the repository".to_owned());
    vec![fetched, restored, verified, tested, timed, reported]
}

/// Corrects the last point, when it is known.
pub(super) fn reported(report: &mut DrillReport) {
    let written = report.report.is_some();
    for point in report.checklist.iter_mut().filter(|point| point.item == REPORTED && !written) {
        point.ticked = false;
        "could not be written into the repository".clone_into(&mut point.detail);
    }
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "nothing was checked".to_owned() } else { names.join(", ") }
}
