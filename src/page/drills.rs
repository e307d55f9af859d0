//! The newest drill: its checklist and its figures, and what other kinds last said.

use maud::{Markup, html};

use super::View;
use super::runs::ending;
use super::words::{ago, lasting, message, said, size, time};
use crate::command::checklist::Point;
use crate::command::overview::{Overview, newest_drill};
use crate::repo::run_record::DrillFigures;
use crate::repo::{RunKind, RunRecord, RunStage};

pub(super) fn section(overview: &Overview, view: &View) -> Markup {
    let newest = newest_drill(overview);
    html! {
        section #drills aria-labelledby="h-drills" {
            h2 #h-drills { "Drills" }
            @match newest {
                None => p { "No restore was proven yet. " code { "pgark drill" } " restores into a scratch directory, measures it and throws it away." },
                Some(drill) => {
                    p { "The newest, " strong { (drill.kind) } ", " (ago(drill.began, overview.at)) ": " (ending(drill)) }
                    @if let Some(text) = &drill.message { p { (message(text)) } }
                    @if let Some(hint) = &drill.hint { p.note { (message(hint)) } }
                    @if !view.checklist.is_empty() { (checklist(&view.checklist)) }
                    @if let Some(figures) = &drill.drill { (figures_of(drill, figures)) }
                    (each_kind(overview))
                }
            }
        }
    }
}

fn checklist(points: &[Point]) -> Markup {
    html! {
        ul.check {
            @for point in points {
                li {
                    @if point.ticked {
                        span aria-hidden="true" { "☑ " } (said(&point.item))
                    } @else {
                        span aria-hidden="true" { "☐ " } strong { "not ticked: " (said(&point.item)) }
                    }
                    @if !point.detail.is_empty() { span.note { " — " (message(&point.detail)) } }
                }
            }
        }
    }
}

fn figures_of(drill: &RunRecord, figures: &DrillFigures) -> Markup {
    let rows = [
        ("Files fetched", lasting(figures.fetch_seconds), size(figures.restored_bytes)),
        ("WAL replayed", lasting(figures.replay_seconds), size(figures.replayed_bytes)),
        ("Until the server could be used", lasting(figures.total_seconds), String::new()),
    ];
    html! {
        table.slim {
            caption { "What it measured" }
            thead { tr { th scope="col" { "Step" } th.n scope="col" { "Took" } th.n scope="col" { "Bytes" } } }
            tbody {
                @for (step, took, bytes) in rows {
                    tr { th scope="row" { (step) } td.n { (took) } td.n { (bytes) } }
                }
                @if let Some(loss) = figures.loss_seconds {
                    tr { th scope="row" { "Age of the newest row" } td.n { (lasting(loss)) } td.n {} }
                }
            }
        }
        p.note {
            "Begun at " (time(drill.began))
            @if let Some(id) = &drill.id { ", with " code { (id) } }
            @if let Some(report) = &figures.report { "; its report is " code { "record/drill/" (said(report)) } " in the repository" }
            "."
        }
    }
}

fn each_kind(overview: &Overview) -> Markup {
    const KINDS: [RunKind; 4] = [RunKind::DrillFull, RunKind::DrillPitr, RunKind::DrillDisaster, RunKind::DrillDump];
    html! {
        table.cards {
            caption { "Of each kind the newest" }
            thead { tr { th scope="col" { "Kind" } th scope="col" { "When" } th scope="col" { "How it ended" } th scope="col" { "Took" } } }
            tbody {
                @for kind in KINDS {
                    @let newest = overview.runs.iter().rev().find(|run| run.kind == kind && run.stage != RunStage::Begun);
                    tr {
                        th scope="row" { (kind) }
                        @match newest {
                            Some(run) => {
                                td data-l="When" { (time(run.began)) }
                                td data-l="How it ended" { (ending(run)) }
                                td data-l="Took" { (run.drill.as_ref().map(|figures| figures.total_seconds).or(run.seconds()).map_or("—".to_owned(), lasting)) }
                            },
                            None => {
                                td data-l="When" { span.soft { "never, as far as is noted" } }
                                td data-l="How it ended" { "—" }
                                td data-l="Took" { "—" }
                            },
                        }
                    }
                }
            }
        }
    }
}
