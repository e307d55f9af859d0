//! The time line: what can be restored on each timeline, what is missing, and the backups, dumps and drills beside it.

use std::fmt::Display;

use jiff::{SignedDuration, Timestamp, ToSpan};
use maud::{Markup, html};

use super::axis::{Frame, THIN, TimeAxis, WIDE};
use super::drawing::{Mark, n, patterns, time_ticks};
use super::stock::dump_name;
use super::words::{lasting, moment, said, time, time_if};
use crate::command::list::{ListedBackup, ListedState};
use crate::command::overview::Overview;
use crate::command::status::{GapStatus, IntervalStatus, TimelineStatus};
use crate::repo::{RunRecord, RunStage};

/// So many of the newest timelines are drawn; the table has all.
const LANES: usize = 6;
/// So many marks of a kind are drawn.
const MARKS: usize = 400;
/// A longer time is drawn once more, the end of it enlarged.
const LONG_HOURS: i64 = 72;

/// When, what, and in words.
type Marked = (Timestamp, Mark, String);

pub(super) fn section(overview: &Overview) -> Markup {
    let begin = begin(overview);
    html! {
        section #time-line aria-labelledby="h-time-line" {
            h2 #h-time-line { "What can be restored" }
            @match begin {
                None => p { "Nothing yet: there is neither a backup nor a dump." },
                Some(begin) => {
                    @let enlarged = overview.at.checked_sub(24.hours()).ok();
                    @let is_long = overview.at.duration_since(begin).as_hours() > LONG_HOURS;
                    @let room = SignedDuration::from_secs(overview.at.duration_since(begin).as_secs() / 60);
                    (both(overview, begin.checked_sub(room).unwrap_or(begin), "all", "From the oldest that is stored to now"))
                    @if let Some(from) = enlarged.filter(|_| is_long) {
                        h3 { "The last 24 hours" }
                        (both(overview, from, "day", "The last 24 hours"))
                    }
                    (key())
                    (older_drills(overview, begin))
                }
            }
            (table(overview))
        }
    }
}

/// The first moment that is drawn.
fn begin(overview: &Overview) -> Option<Timestamp> {
    let intervals = overview.status.timelines.iter().flat_map(|timeline| &timeline.intervals);
    let backups = overview.backups.iter().map(started);
    let dumps = overview.dumps.iter().map(|dump| dump.started);
    intervals.filter_map(|interval| interval.from_time.or(interval.to_time)).chain(backups).chain(dumps).min()
}

fn started(backup: &ListedBackup) -> Timestamp {
    backup.facts.as_ref().map_or(backup.id.begun(), |facts| facts.started)
}

fn both(overview: &Overview, from: Timestamp, id: &str, title: &str) -> Markup {
    html! {
        @for frame in [WIDE, THIN] {
            (Drawing { overview, axis: TimeAxis::new(from, overview.at, frame), frame, id: &format!("{id}-{}", frame.class()) }
                .svg(title))
        }
    }
}

struct Drawing<'a> {
    overview: &'a Overview,
    axis: TimeAxis,
    frame: Frame,
    id: &'a str,
}

impl Drawing<'_> {
    fn svg(&self, title: &str) -> Markup {
        let timelines = &self.overview.status.timelines;
        let seen: Vec<&TimelineStatus> = timelines.iter().filter(|timeline| self.is_seen(timeline)).collect();
        let timelines = &seen[seen.len().saturating_sub(LANES)..];
        let step = if self.frame.thin { 42.0 } else { 34.0 };
        let mut lanes: Vec<(String, Markup)> = Vec::new();
        let lane_y = |index: usize| index as f64 * step + if self.frame.thin { 30.0 } else { 18.0 };
        for timeline in timelines {
            let y = lane_y(lanes.len());
            lanes.push((format!("timeline {}", timeline.timeline), self.timeline(timeline, y)));
        }
        let marks: [(&str, Vec<Marked>); 3] =
            [("backups", self.backups()), ("dumps", self.dumps()), ("drills", self.drills())];
        for (name, marks) in marks.into_iter().filter(|(_, marks)| !marks.is_empty()) {
            let y = lane_y(lanes.len());
            lanes.push((name.to_owned(), self.marks(&marks, y)));
        }
        let bottom = lane_y(lanes.len()) - if self.frame.thin { 22.0 } else { 14.0 };
        let height = bottom + 40.0;
        html! {
            svg class=(self.frame.class()) viewBox=(format!("0 0 {} {}", n(self.frame.width), n(height))) role="img"
                aria-labelledby={ (self.id) "-t " (self.id) "-d" } {
                title id={ (self.id) "-t" } { (title) }
                desc id={ (self.id) "-d" } { (self.described()) " The table below says the same." }
                (patterns(self.id))
                @for index in 0..lanes.len() {
                    rect.lane x=(n(self.frame.left)) y=(n(lane_y(index) - 12.0)) width=(n(self.frame.room())) height="24" rx="4" {}
                }
                (time_ticks(&self.axis.ticks(), self.frame, (lane_y(0) - 12.0, bottom)))
                @for (index, (name, drawn)) in lanes.iter().enumerate() {
                    @if self.frame.thin {
                        text x=(n(self.frame.left)) y=(n(lane_y(index) - 16.0)) { (name) }
                    } @else {
                        text x=(n(self.frame.left - 10.0)) y=(n(lane_y(index) + 4.5)) text-anchor="end" { (name) }
                    }
                    (drawn)
                }
            }
        }
    }

    fn described(&self) -> String {
        let intervals =
            self.overview.status.timelines.iter().flat_map(|of| of.intervals.iter().map(|i| (of.timeline, i)));
        let one = |(timeline, interval): (u32, &IntervalStatus)| {
            let at = |at: Option<Timestamp>| at.map_or("an unknown time".to_owned(), moment);
            format!("Timeline {timeline}: any moment from {} to {}. ", at(interval.from_time), at(interval.to_time))
        };
        let said: String = intervals.rev().take(8).map(one).collect();
        format!("{said}{} ", super::words::count(self.overview.status.gaps.len(), "gap.", "gaps."))
    }

    fn timeline(&self, timeline: &TimelineStatus, y: f64) -> Markup {
        let gaps = self.overview.status.gaps.iter().filter(|gap| gap.timeline == timeline.timeline);
        let lost = self.overview.status.lost.iter().filter(|lost| lost.timeline == timeline.timeline);
        let newest = self.overview.status.newest.as_ref();
        let risk = newest.filter(|newest| timeline_of(&newest.segment) == Some(timeline.timeline));
        html! {
            @for interval in &timeline.intervals {
                @if let Some((from, to)) = self.ends(interval) {
                    @let title = format!("timeline {}: any moment from {} to {}", timeline.timeline, moment(from), moment(to));
                    (self.bar(from, to, y, "wal", None, &title))
                }
            }
            @for gap in gaps {
                @if let Some((from, to)) = place_of(gap, timeline, self.axis.to) {
                    @let title = format!("{}: {}, {} to {}", gap_word(gap.kind), segments(gap), moment(from), moment(to));
                    @if gap.kind == "expired" {
                        (self.bar(from, to, y, "spent", None, &title))
                    } @else {
                        (self.bar(from, to, y, "gap", Some("gap"), &title))
                    }
                }
            }
            @for lost in lost {
                @if self.axis.has(lost.found) {
                    (Mark::Broken.at(self.axis.x(lost.found), y, &format!("lost WAL, found at {}", moment(lost.found))))
                }
            }
            @if let Some(from) = risk.and_then(|newest| newest.stored.or(newest.last_commit)) {
                (self.bar(from, self.axis.to, y, "risk", Some("risk"), "not stored yet: it would be lost with the server"))
            }
        }
    }

    /// Whether anything of a timeline is drawn. Where it began or ended outside, its lane would be empty.
    fn is_seen(&self, timeline: &TimelineStatus) -> bool {
        let within =
            |interval: &IntervalStatus| self.ends(interval).is_some_and(|(from, to)| self.axis.meets(from, to));
        let lost = self.overview.status.lost.iter().filter(|lost| lost.timeline == timeline.timeline);
        timeline.intervals.iter().any(within) || lost.map(|lost| lost.found).any(|found| self.axis.has(found))
    }

    fn ends(&self, interval: &IntervalStatus) -> Option<(Timestamp, Timestamp)> {
        let from = interval.from_time.or(interval.to_time)?;
        Some((from, interval.to_time.unwrap_or(from).max(from)))
    }

    /// Nothing that lies outside; what is very short can still be seen, if it is worth it.
    fn bar(&self, from: Timestamp, to: Timestamp, y: f64, class: &str, pattern: Option<&str>, title: &str) -> Markup {
        if !self.axis.meets(from, to) {
            return html! {};
        }
        let x = self.axis.x(from);
        let width = self.axis.x(to) - x;
        if width < 1.5 && class == "risk" {
            return html! {};
        }
        let x = x.min(self.frame.width - self.frame.right - 3.0);
        let fill = pattern.map(|pattern| format!("url(#{}-{pattern})", self.id));
        html! {
            rect class=(class) x=(n(x)) y=(n(y - 9.0)) width=(n(width.max(3.0))) height="18" rx="2" fill=[fill] { title { (title) } }
        }
    }

    fn marks(&self, marks: &[Marked], y: f64) -> Markup {
        let shown = &marks[marks.len().saturating_sub(MARKS)..];
        html! {
            @for (at, mark, title) in shown {
                (mark.at(self.axis.x(*at), y, title))
            }
        }
    }

    fn backups(&self) -> Vec<Marked> {
        let marks = self.overview.backups.iter().filter(|backup| self.axis.has(started(backup))).map(|backup| {
            let (mark, word) = match backup.state {
                ListedState::Whole => (Mark::Backup, "backup"),
                ListedState::Damaged => (Mark::Broken, "damaged backup"),
                ListedState::Unfinished => (Mark::Unfinished, "unfinished backup"),
            };
            (started(backup), mark, titled(word, started(backup), &backup.id))
        });
        marks.collect()
    }

    fn dumps(&self) -> Vec<Marked> {
        let dumps = self.overview.dumps.iter().filter(|dump| self.axis.has(dump.started));
        dumps.map(|dump| (dump.started, Mark::Dump, titled("dump", dump.started, &dump_name(dump)))).collect()
    }

    fn drills(&self) -> Vec<Marked> {
        let drills = self.overview.runs.iter().filter(|run| run.kind.is_drill() && self.axis.has(run.began));
        let mark = |run: &RunRecord| match run.stage {
            RunStage::Done => Mark::Passed,
            RunStage::Failed => Mark::Failed,
            RunStage::Warned | RunStage::Begun => Mark::Doubtful,
        };
        drills.map(|run| (run.began, mark(run), titled(run.kind.word(), run.began, &run.stage.word()))).collect()
    }
}

fn titled(what: &str, at: Timestamp, more: &dyn Display) -> String {
    format!("{what} of {}: {more}", moment(at))
}

/// By the name of one of its segments.
fn timeline_of(segment: &str) -> Option<u32> {
    u32::from_str_radix(segment.get(..8)?, 16).ok()
}

/// A gap has no times: it lies between the last commit before it and the first moment behind it.
fn place_of(gap: &GapStatus, timeline: &TimelineStatus, now: Timestamp) -> Option<(Timestamp, Timestamp)> {
    let before = timeline.intervals.iter().filter(|interval| interval.last_segment < gap.missing.first);
    let behind = timeline.intervals.iter().filter(|interval| interval.last_segment > gap.missing.last);
    let from = before.filter_map(|interval| interval.to_time.or(interval.from_time)).max()?;
    let to = behind.filter_map(|interval| interval.from_time.or(interval.to_time)).min().unwrap_or(now);
    (from < to).then_some((from, to))
}

fn gap_word(kind: &str) -> &'static str {
    match kind {
        "cuts" => "missing, the newest backup cannot be followed further",
        "past" => "missing, these moments are lost",
        _ => "expired: backups before it keep only their own WAL",
    }
}

fn segments(gap: &GapStatus) -> String {
    let missing = &gap.missing;
    match missing.first == missing.last {
        true => format!("segment {}", missing.first),
        false => format!("{} segments, {} to {}", missing.segments, missing.first, missing.last),
    }
}

fn key() -> Markup {
    let box_of = |class: &'static str, fill: Option<&'static str>| {
        html! {
            svg viewBox="0 0 26 16" aria-hidden="true" focusable="false" {
                (patterns(&format!("key-{class}")))
                rect class=(class) x="1" y="2" width="24" height="12" rx="2" fill=[fill] {}
            }
        }
    };
    html! {
        ul.key {
            li { (box_of("wal", None)) "any moment can be restored" }
            li { (box_of("gap", Some("url(#key-gap-gap)"))) "gap: lost" }
            li { (box_of("spent", None)) "expired" }
            li { (box_of("risk", Some("url(#key-risk-risk)"))) "not stored yet" }
            li { (Mark::Backup.key()) "backup" }
            li { (Mark::Unfinished.key()) "unfinished" }
            li { (Mark::Broken.key()) "damaged or lost" }
            li { (Mark::Dump.key()) "dump" }
            li { (Mark::Passed.key()) "drill passed" }
            li { (Mark::Doubtful.key()) "with a warning" }
            li { (Mark::Failed.key()) "failed" }
        }
    }
}

fn older_drills(overview: &Overview, begin: Timestamp) -> Markup {
    let older = overview.runs.iter().filter(|run| run.kind.is_drill() && run.began < begin).count();
    html! {
        @if older > 0 {
            p.note { (super::words::count(older, "drill is", "drills are")) " older than anything that is stored, and not drawn." }
        }
    }
}

fn table(overview: &Overview) -> Markup {
    let timelines = &overview.status.timelines;
    let found = timelines.iter().any(|timeline| !timeline.intervals.is_empty());
    let troubled = !overview.status.gaps.is_empty() || !overview.status.lost.is_empty();
    html! {
        @if found || troubled {
            details {
                summary { "The same as a table" }
                table.cards {
                    caption { "Moments that can be restored. The end is the last commit that is stored: recovery to a time needs a commit behind it." }
                    thead { tr { th scope="col" { "Timeline" } th scope="col" { "From" } th scope="col" { "To" } th scope="col" { "LSN" } th scope="col" { "First backup" } } }
                    tbody {
                        @for timeline in timelines.iter().rev() {
                            @for interval in timeline.intervals.iter().rev() {
                                tr {
                                    td data-l="Timeline" { (timeline.timeline) }
                                    td data-l="From" { (time_if(interval.from_time)) }
                                    td data-l="To" { (time_if(interval.to_time)) }
                                    td data-l="LSN" { (interval.from_lsn) " to " (interval.to_lsn) }
                                    td data-l="First backup" { code { (interval.backup) } }
                                }
                            }
                        }
                    }
                }
                @if troubled {
                    table.cards {
                        caption { "Missing WAL" }
                        thead { tr { th scope="col" { "Timeline" } th scope="col" { "What" } th scope="col" { "Meaning" } } }
                        tbody {
                            @for gap in &overview.status.gaps {
                                tr {
                                    td data-l="Timeline" { (gap.timeline) }
                                    td data-l="What" { (segments(gap)) }
                                    td data-l="Meaning" { (gap_word(gap.kind)) }
                                }
                            }
                            @for lost in &overview.status.lost {
                                tr {
                                    td data-l="Timeline" { (lost.timeline) }
                                    td data-l="What" { (lost.from) " to " (lost.to) }
                                    td data-l="Meaning" {
                                        "removed by the server before it was stored, found at " (time(lost.found)) ": " (said(&lost.reason))
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// How far back any moment of the newest timeline's last interval can be restored.
pub(super) fn newest_interval(overview: &Overview) -> Option<(&TimelineStatus, &IntervalStatus)> {
    let newest = overview.status.newest.as_ref()?;
    let timeline = timeline_of(&newest.segment)?;
    let of = overview.status.timelines.iter().find(|of| of.timeline == timeline)?;
    Some((of, of.intervals.iter().max_by_key(|interval| interval.to_lsn)?))
}

/// In words, how long an interval is.
pub(super) fn length(interval: &IntervalStatus) -> Option<String> {
    Some(lasting(interval.to_time?.duration_since(interval.from_time?).as_secs_f64()))
}
