//! The headline: can it be restored, to which moment, with which loss, in which time? And what was promised beside what was measured.

use maud::{Markup, html};

use super::growth::percent;
use super::time_line::{length, newest_interval};
use super::words::{ago, lasting, moment, promised, size, time};
use crate::command::check::Level;
use crate::command::forecast::about;
use crate::command::overview::Overview;
use crate::repo::{AlertSeverity, RunKind, RunRecord, RunStage};

/// How it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mood {
    /// As it should be.
    Good,
    /// Somebody should look.
    Look,
    /// Somebody must act.
    Bad,
}

impl Mood {
    pub(super) fn class(self) -> &'static str {
        match self {
            Mood::Good => "good",
            Mood::Look => "look",
            Mood::Bad => "bad",
        }
    }

    /// Colour alone says nothing.
    fn sign(self) -> &'static str {
        match self {
            Mood::Good => "✓ ",
            Mood::Look => "! ",
            Mood::Bad => "✕ ",
        }
    }
}

/// A few words in a frame.
pub(super) fn badge(mood: Mood, words: &str) -> Markup {
    html! { span class={ "badge " (mood.class()) } { (mood.sign()) (words) } }
}

pub(super) fn section(overview: &Overview) -> Markup {
    let mood = mood(overview);
    html! {
        section.verdict.(mood.class()) #verdict aria-labelledby="h-verdict" {
            h2 #h-verdict { span aria-hidden="true" { (mood.sign()) } (headline(overview, mood)) }
            p { (reach(overview)) }
            @if !overview.alerts.is_empty() || overview.status.findings.iter().any(|finding| finding.level > Level::Ok) {
                p { a href="#alerts" { "What is to be done" } }
            }
        }
        dl.tiles {
            (tile("Can be restored up to", up_to(overview)))
            (tile("Would be lost now", loss(overview)))
            (tile("A restore takes", restore_time(overview)))
            (tile("Stored", stored(overview)))
        }
    }
}

fn mood(overview: &Overview) -> Mood {
    let alerts = overview.alerts.iter().map(|alert| match alert.severity {
        AlertSeverity::Critical => Mood::Bad,
        AlertSeverity::High | AlertSeverity::Medium => Mood::Look,
    });
    let findings = overview.status.findings.iter().map(|finding| match finding.level {
        Level::Ok => Mood::Good,
        Level::Warning | Level::Unknown => Mood::Look,
        Level::Fail => Mood::Bad,
    });
    let nothing = overview.status.newest.is_none().then_some(Mood::Bad);
    let broken = [loss_kept(overview), time_kept(overview)].into_iter().flatten().any(|kept| !kept);
    let unproven = newest_drill(overview).is_none_or(|drill| drill.stage == RunStage::Failed);
    let doubts = (broken || unproven).then_some(Mood::Look);
    alerts.chain(findings).chain(nothing).chain(doubts).max().unwrap_or(Mood::Good)
}

fn headline(overview: &Overview, mood: Mood) -> &'static str {
    let cannot =
        overview.status.findings.iter().any(|finding| finding.check == "latest" && finding.level == Level::Fail);
    match (overview.status.newest.is_some(), mood) {
        (false, _) => "Nothing can be restored",
        (true, _) if cannot => "The latest state cannot be restored",
        (true, Mood::Bad) => "It can be restored, but somebody must act",
        (true, Mood::Look) if newest_drill(overview).is_none() => {
            "It can be restored, as far as can be told without a drill"
        }
        (true, Mood::Look) => "It can be restored; somebody should look",
        (true, Mood::Good) => "It can be restored, and a drill has shown it",
    }
}

fn reach(overview: &Overview) -> Markup {
    match newest_interval(overview) {
        Some((timeline, interval)) => html! {
            "Any moment "
            @match interval.from_time { Some(from) => { "from " (time(from)) }, None => "since the fork" }
            @match interval.to_time { Some(to) => { " to " (time(to)) }, None => " on" }
            @if let Some(length) = length(interval) { " (" (length) ")" }
            ", on timeline " (timeline.timeline)
            @if other_intervals(overview) > 0 { ", and older ones: see the time line" }
            "."
        },
        None if overview.status.backups.whole == 0 => {
            html! { "There is no backup that can be used. " code { "pgark basebackup" } " takes one." }
        }
        None => html! { "No backup can be made consistent with the WAL that is there." },
    }
}

fn other_intervals(overview: &Overview) -> usize {
    let all: usize = overview.status.timelines.iter().map(|timeline| timeline.intervals.len()).sum();
    all.saturating_sub(1)
}

/// What a tile says.
struct Said {
    big: String,
    badge: Option<Markup>,
    note: Markup,
}

fn tile(title: &str, said: Said) -> Markup {
    html! {
        div.tile {
            dt { (title) }
            dd.big { (said.big) }
            @if let Some(badge) = said.badge { dd { (badge) } }
            dd.note { (said.note) }
        }
    }
}

fn up_to(overview: &Overview) -> Said {
    let Some(newest) = &overview.status.newest else {
        return Said {
            big: "—".to_owned(),
            badge: Some(badge(Mood::Bad, "nothing")),
            note: html! { "No moment can be reached." },
        };
    };
    let commit = newest.last_commit;
    let big = commit.or(newest.stored).map_or("not known".to_owned(), |at| ago(at, overview.at));
    let note = html! {
        @match commit {
            Some(at) => { "the last commit that is stored: " (time(at)) },
            None => { "its newest WAL has no commit" @if let Some(at) = newest.stored { "; stored at " (time(at)) } },
        }
        "; LSN " (newest.lsn)
    };
    Said { big, badge: None, note }
}

/// Whether less is lost than was promised; `None`: nothing was, or it is not known.
fn loss_kept(overview: &Overview) -> Option<bool> {
    let lost = overview.status.newest.as_ref()?.age_seconds?;
    Some(lost as f64 <= overview.objectives.rpo?.as_secs_f64())
}

fn loss(overview: &Overview) -> Said {
    let age = overview.status.newest.as_ref().and_then(|newest| newest.age_seconds);
    let big = match age {
        Some(age) => format!("up to {}", lasting(age as f64)),
        None if overview.status.newest.is_none() => "everything".to_owned(),
        None => "not known".to_owned(),
    };
    let note = html! {
        @match overview.objectives.rpo {
            Some(rpo) => { "objective (RPO): under " (promised(rpo)) },
            None => { "no objective is set (" code { "rpo" } ")" },
        }
        @if age.is_some() { "; the time since the newest WAL was stored" }
    };
    Said { big, badge: kept(loss_kept(overview)), note }
}

fn kept(kept: Option<bool>) -> Option<Markup> {
    kept.map(
        |kept| if kept { badge(Mood::Good, "within the objective") } else { badge(Mood::Look, "over the objective") },
    )
}

/// The newest drill of the whole cluster that ended.
pub(super) fn newest_drill(overview: &Overview) -> Option<&RunRecord> {
    let whole = |run: &&RunRecord| matches!(run.kind, RunKind::DrillFull | RunKind::DrillPitr | RunKind::DrillDisaster);
    overview.runs.iter().rev().filter(whole).find(|run| run.stage != RunStage::Begun)
}

/// The newest drill that measured how long a restore takes.
fn measured(overview: &Overview) -> Option<(&RunRecord, f64)> {
    let whole = |run: &&RunRecord| matches!(run.kind, RunKind::DrillFull | RunKind::DrillPitr | RunKind::DrillDisaster);
    let passed = |run: &&RunRecord| matches!(run.stage, RunStage::Done | RunStage::Warned);
    overview
        .runs
        .iter()
        .rev()
        .filter(whole)
        .filter(passed)
        .find_map(|run| Some((run, run.drill.as_ref()?.total_seconds)))
}

fn time_kept(overview: &Overview) -> Option<bool> {
    let (_, seconds) = measured(overview)?;
    Some(seconds <= overview.objectives.rto?.as_secs_f64())
}

fn restore_time(overview: &Overview) -> Said {
    let objective = html! {
        @match overview.objectives.rto {
            Some(rto) => { "objective (RTO): under " (promised(rto)) },
            None => { "no objective is set (" code { "rto" } ")" },
        }
    };
    let forecast = html! {
        @if let Some(forecast) = overview.forecast() { "; a restore now would take about " (about(forecast.seconds)) }
    };
    match measured(overview) {
        Some((drill, seconds)) => Said {
            big: lasting(seconds),
            badge: kept(time_kept(overview)),
            note: html! { (objective) "; measured by the " (drill.kind) " of " (time(drill.began)) (forecast) },
        },
        None => Said {
            big: "not measured yet".to_owned(),
            badge: None,
            note: html! { (objective) "; run " code { "pgark drill" } (forecast) },
        },
    }
}

fn stored(overview: &Overview) -> Said {
    let bytes = overview.stored_bytes();
    let Some(quota) = overview.quota else {
        return Said { big: size(bytes), badge: None, note: html! { "no quota is set" } };
    };
    let full = bytes as f64 / quota.max(1) as f64;
    let mood = if full >= 0.8 { Mood::Look } else { Mood::Good };
    let words = format!("{} of {}", percent(bytes, quota), size(quota));
    Said { big: size(bytes), badge: Some(badge(mood, &words)), note: html! { "backups, WAL and dumps together" } }
}

/// Promises beside measurements.
pub(super) fn objectives(overview: &Overview) -> Markup {
    let drill = newest_drill(overview);
    let figures = drill.and_then(|drill| drill.drill.as_ref());
    let age = overview.status.newest.as_ref().and_then(|newest| newest.age_seconds);
    let none = || html! { span.soft { "not measured yet" } };
    let seconds = |value: Option<f64>| value.map_or_else(none, |value| html! { (lasting(value)) });
    let is_kept = |value: Option<bool>| kept(value).unwrap_or_else(|| html! { span.badge.plain { "cannot be told" } });
    let longest =
        overview.runs.iter().filter_map(|run| run.drill.as_ref()).map(|figures| figures.total_seconds).reduce(f64::max);
    html! {
        section #objectives aria-labelledby="h-objectives" {
            h2 #h-objectives { "Objectives and what was measured" }
            table.cards {
                thead { tr { th scope="col" { "Objective" } th scope="col" { "Promised" } th scope="col" { "Now" } th scope="col" { "Newest drill" } th scope="col" { "Judgement" } } }
                tbody {
                    tr {
                        th scope="row" { "RPO: work that may be lost" }
                        td data-l="Promised" { (overview.objectives.rpo.map_or("not set".to_owned(), |rpo| format!("under {}", promised(rpo)))) }
                        td data-l="Now" { (seconds(age.map(|age| age as f64))) }
                        td data-l="Newest drill" { (seconds(figures.and_then(|figures| figures.loss_seconds))) }
                        td data-l="Judgement" { (is_kept(loss_kept(overview))) }
                    }
                    tr {
                        th scope="row" { "RTO: how long a restore takes" }
                        td data-l="Promised" { (overview.objectives.rto.map_or("not set".to_owned(), |rto| format!("under {}", promised(rto)))) }
                        td data-l="Now" {
                            @match overview.forecast() { Some(forecast) => { "about " (about(forecast.seconds)) }, None => span.soft { "no forecast" } }
                        }
                        td data-l="Newest drill" { (seconds(figures.map(|figures| figures.total_seconds))) }
                        td data-l="Judgement" { (is_kept(time_kept(overview))) }
                    }
                }
            }
            @if let Some(longest) = longest {
                p.note { "The longest restore of all drills that are noted took " (lasting(longest)) "." }
            }
            p.note {
                "What would be lost now is the time since the newest WAL was stored, by the store's clock, up to " (moment(overview.at))
                ". On an idle server it grows without anything being lost."
            }
        }
    }
}
