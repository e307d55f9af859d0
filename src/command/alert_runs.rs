//! The rules of alerts about runs: what should have been run and was not, what was run and failed.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::alert_rules::{Alerts, Rule, age, span};
use super::list::ListedState;
use super::overview::Overview;
use crate::repo::{Expected, RunKind, RunRecord, RunStage};

/// Backups, dumps, drills and other runs that are not there in time. Where a schedule says when a kind is due, that counts; else how old
/// the newest may be.
pub(super) fn missing(overview: &Overview, alerts: &mut Alerts<'_>) {
    for kind in RunKind::ALL {
        if let Some(expected) = alerts.rules.expected.iter().find(|expected| expected.kind == kind) {
            not_by_schedule(overview, *expected, alerts);
        }
    }
    let scheduled = |kinds: &[RunKind]| alerts.rules.expected.iter().any(|expected| kinds.contains(&expected.kind));
    let within = |kinds: &[RunKind], within: Option<Duration>| within.filter(|_| !scheduled(kinds));
    let rules = alerts.rules;
    for (kinds, within) in [
        (&[RunKind::Basebackup][..], within(&[RunKind::Basebackup], rules.backup_within)),
        (&[RunKind::Dump], within(&[RunKind::Dump], rules.dump_within)),
        (&DRILLS, within(&DRILLS, rules.drill_within)),
    ] {
        if let Some(within) = within {
            not_within(overview, kinds, within, alerts);
        }
    }
}

const DRILLS: [RunKind; 4] = [RunKind::DrillFull, RunKind::DrillPitr, RunKind::DrillDisaster, RunKind::DrillDump];

/// When the newest success of a kind began and ended. Backups and dumps that are there count, whoever took them.
fn newest_success(overview: &Overview, kind: RunKind) -> Option<(Timestamp, Timestamp)> {
    let done = |run: &&RunRecord| run.kind == kind && matches!(run.stage, RunStage::Done | RunStage::Warned);
    let runs = overview.runs.iter().filter(done).map(|run| (run.began, run.ended.unwrap_or(run.began)));
    match kind {
        // What is not there any more, or is damaged, is no success, whatever its run said.
        RunKind::Basebackup => newest_backup(overview),
        RunKind::Dump => overview.dumps.iter().map(|dump| (dump.started, dump.stopped)).max(),
        _ => runs.max(),
    }
}

fn newest_backup(overview: &Overview) -> Option<(Timestamp, Timestamp)> {
    let generation = overview.status.generation;
    let whole = overview.backups.iter().filter(|b| b.state == ListedState::Whole && b.generation == generation);
    whole.filter_map(|backup| backup.facts.as_ref()).map(|facts| (facts.started, facts.stopped)).max()
}

fn not_by_schedule(overview: &Overview, expected: Expected, alerts: &mut Alerts<'_>) {
    let newest = newest_success(overview, expected.kind);
    let late = age(expected.due, overview.at);
    // A backup says when it began by the server's clock.
    let began_by_then = |began| expected.due.duration_since(began) <= clock_tolerance(alerts);
    if late < expected.tolerance || newest.is_some_and(|(began, _)| began_by_then(began)) {
        return;
    }
    let message = format!(
        "{} was due at {} by the schedule, {} ago, and is not there: {}",
        noun(expected.kind),
        seconds(expected.due),
        span(late),
        newest_words(newest, overview.at)
    );
    add_missing(expected.kind, message, alerts);
}

fn clock_tolerance(alerts: &Alerts<'_>) -> SignedDuration {
    SignedDuration::try_from(alerts.rules.clock_tolerance).unwrap_or(SignedDuration::MAX)
}

fn not_within(overview: &Overview, kinds: &[RunKind], within: Duration, alerts: &mut Alerts<'_>) {
    let newest = kinds.iter().filter_map(|kind| newest_success(overview, *kind)).max_by_key(|(_, ended)| *ended);
    if newest.is_some_and(|(_, ended)| age(ended, overview.at) <= within) {
        return;
    }
    let Some(kind) = kinds.first() else { return };
    let what = if DRILLS.contains(kind) { "no drill passed" } else { "there is no" };
    let what = if DRILLS.contains(kind) { what.to_owned() } else { format!("{what} {}", word(*kind)) };
    let message = format!("{what} within the last {}: {}", span(within), newest_words(newest, overview.at));
    match DRILLS.contains(kind) {
        // It is about all of them.
        true => alerts.add(Rule::DrillOverdue, "", message, DRILL_HINT),
        false => add_missing(*kind, message, alerts),
    }
}

const DRILL_HINT: &str = "run `pgark drill`: a restore that was never tried may not work";

fn add_missing(kind: RunKind, message: String, alerts: &mut Alerts<'_>) {
    let logs = "the log of whoever runs it says why; `pgark";
    match kind {
        RunKind::Basebackup => {
            alerts.add(Rule::BackupMissing, "", message, format!("{logs} basebackup` takes one now"));
        }
        RunKind::Dump => alerts.add(Rule::DumpMissing, "", message, format!("{logs} dump --all` takes one now")),
        kind if DRILLS.contains(&kind) => alerts.add(Rule::DrillOverdue, kind.word(), message, DRILL_HINT),
        kind => alerts.add(Rule::RunMissing, kind.word(), message, format!("{logs} {kind}` runs it now")),
    }
}

fn word(kind: RunKind) -> &'static str {
    match kind {
        RunKind::Basebackup => "base backup",
        kind => kind.word(),
    }
}

fn noun(kind: RunKind) -> String {
    match kind {
        RunKind::Basebackup | RunKind::Dump => format!("a {}", word(kind)),
        kind => format!("a run of `{kind}`"),
    }
}

fn newest_words(newest: Option<(Timestamp, Timestamp)>, now: Timestamp) -> String {
    match newest {
        None => "there never was one".to_owned(),
        Some((_, ended)) => format!("the newest ended at {}, {} ago", seconds(ended), span(age(ended, now))),
    }
}

fn seconds(time: Timestamp) -> String {
    let whole = Timestamp::from_second(time.as_second()).unwrap_or(time);
    whole.to_string()
}

/// The newest run of each kind: did it fail, was it killed, has it a warning?
pub(super) fn failed(overview: &Overview, alerts: &mut Alerts<'_>) {
    for kind in RunKind::ALL {
        let Some(run) = newest_told(overview, kind, alerts.rules.run_within) else { continue };
        let subject = if DRILLS.contains(&kind) { kind.word() } else { "" };
        let began = seconds(run.began);
        let why = run.message.as_deref().unwrap_or("it left no word");
        let hint = |otherwise: &str| run.hint.clone().unwrap_or_else(|| otherwise.to_owned());
        match run.stage {
            RunStage::Failed => {
                let message = format!("`{kind}`, begun at {began}, failed: {why}");
                alerts.add(failed_rule(kind), subject, message, hint("its log says more"));
            }
            RunStage::Begun => {
                let message = format!(
                    "`{kind}`, begun at {began} by {}, has not ended after {}: it hangs, or was killed",
                    run.writer,
                    span(age(run.began, overview.at))
                );
                alerts.add(failed_rule(kind), subject, message, "look for its process and its log; run it again");
            }
            RunStage::Warned => {
                let message = format!("`{kind}`, begun at {began}, was done with a warning: {why}");
                alerts.add(Rule::RunWarned, kind.word(), message, hint("its report says more"));
            }
            RunStage::Done => {}
        }
    }
}

/// The newest run of a kind that has ended, or should have: one that is at work says nothing yet.
fn newest_told(overview: &Overview, kind: RunKind, run_within: Duration) -> Option<&RunRecord> {
    let at_work = |run: &&RunRecord| run.stage == RunStage::Begun && age(run.began, overview.at) <= run_within;
    let of_kind = overview.runs.iter().filter(|run| run.kind == kind && !at_work(run));
    of_kind.max_by_key(|run| (run.began, run.ended))
}

fn failed_rule(kind: RunKind) -> Rule {
    match kind {
        RunKind::Basebackup => Rule::BackupFailed,
        RunKind::Dump => Rule::DumpFailed,
        RunKind::Expire => Rule::ExpireFailed,
        RunKind::Verify => Rule::VerifyFailed,
        RunKind::DrillFull | RunKind::DrillPitr | RunKind::DrillDisaster | RunKind::DrillDump => Rule::DrillFailed,
    }
}

/// The newest drill of the whole cluster that passed and measured.
pub(super) fn newest_measured(overview: &Overview) -> Option<&RunRecord> {
    let measured = |run: &&RunRecord| {
        let passed = matches!(run.stage, RunStage::Done | RunStage::Warned) && run.drill.is_some();
        passed && DRILLS.contains(&run.kind) && run.kind != RunKind::DrillDump
    };
    overview.runs.iter().filter(measured).max_by_key(|run| run.began)
}
