//! What ran: each kind's newest run, and all of the newest runs with how long they took.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::drawing::n;
use super::verdict::{Mood, badge};
use super::words::{ago, count, lasting, message, said, time};
use crate::command::overview::Overview;
use crate::repo::{RunKind, RunRecord, RunStage};

/// So many of the newest runs are listed.
const NEWEST: usize = 25;
/// So many of the newest that failed, before.
const FAILED: usize = 8;

pub(super) fn section(overview: &Overview) -> Markup {
    let runs = &overview.runs;
    let newest = runs.iter().rev().take(NEWEST).collect();
    let failed: Vec<&RunRecord> = runs.iter().rev().filter(|run| run.stage == RunStage::Failed).take(FAILED).collect();
    html! {
        section #runs aria-labelledby="h-runs" {
            h2 #h-runs { "Runs" }
            @if runs.is_empty() {
                p { "No run has left a note yet. " code { "basebackup" } ", " code { "dump" } ", " code { "expire" } ", " code { "verify" } " and " code { "drill" } " do." }
            } @else {
                (by_kind(overview))
                @if !failed.is_empty() {
                    h3 { "The newest that failed" }
                    (table(failed, overview))
                }
                h3 { "The newest of all" }
                (table(newest, overview))
            }
        }
    }
}

fn by_kind(overview: &Overview) -> Markup {
    html! {
        table.cards {
            caption { "Of each kind the newest" }
            thead { tr { th scope="col" { "Kind" } th scope="col" { "Newest" } th scope="col" { "How it ended" } th scope="col" { "Took" } th scope="col" { "Noted" } } }
            tbody {
                @for kind in RunKind::ALL {
                    @let of: Vec<&RunRecord> = overview.runs.iter().filter(|run| run.kind == kind).collect();
                    @if let Some(run) = of.last() {
                        @let failed = of.iter().filter(|run| run.stage == RunStage::Failed).count();
                        tr {
                            th scope="row" { (kind) }
                            td data-l="Newest" { (ago(run.began, overview.at)) }
                            td data-l="How it ended" { (ending(run)) }
                            td data-l="Took" { (took(run)) }
                            td data-l="Noted" {
                                (count(of.len(), "run", "runs")) @if failed > 0 { ", " (failed) " failed" }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn table(runs: Vec<&RunRecord>, overview: &Overview) -> Markup {
    let mut longest: BTreeMap<RunKind, f64> = BTreeMap::new();
    for run in &overview.runs {
        let seconds = longest.entry(run.kind).or_default();
        *seconds = seconds.max(run.seconds().unwrap_or_default());
    }
    html! {
        table.cards {
            caption { "The bars compare runs of the same kind." }
            thead { tr { th scope="col" { "Began" } th scope="col" { "Kind" } th scope="col" { "Took" } th scope="col" { "How it ended" } th scope="col" { "Host" } } }
            tbody {
                @for run in runs {
                    tr {
                        td.w data-l="Began" { (time(run.began)) }
                        td.w data-l="Kind" { (run.kind) }
                        td.w data-l="Took" { (bar(run, longest.get(&run.kind).copied().unwrap_or_default())) (took(run)) }
                        td data-l="How it ended" {
                            (ending(run))
                            @if let Some(text) = &run.message { " " (message(text)) }
                            @if let Some(hint) = &run.hint { div.note { (message(hint)) } }
                        }
                        td.soft data-l="Host" { (said(run.writer.split(',').next().unwrap_or_default())) }
                    }
                }
            }
        }
    }
}

pub(super) fn ending(run: &RunRecord) -> Markup {
    match run.stage {
        RunStage::Done => badge(Mood::Good, "done"),
        RunStage::Warned => badge(Mood::Look, "done, with a warning"),
        RunStage::Failed => badge(Mood::Bad, "failed"),
        RunStage::Begun => html! { span.badge.plain { "no end noted: at work, or killed" } },
    }
}

fn took(run: &RunRecord) -> String {
    run.seconds().map_or("—".to_owned(), lasting)
}

fn bar(run: &RunRecord, longest: f64) -> Markup {
    let part = run.seconds().filter(|_| longest > 0.0).map(|seconds| seconds / longest);
    html! {
        @if let Some(part) = part {
            svg.small viewBox="0 0 112 11" aria-hidden="true" focusable="false" {
                rect.lane x="0" y="1" width="112" height="9" rx="2" {}
                rect class=(if run.stage == RunStage::Failed { "bad" } else { "wal" }) x="0" y="1" width=(n((part * 112.0).max(1.5))) height="9" rx="2" {}
            }
        }
    }
}
