//! How much is stored: by the day on which it was, and against the quota. Only what is there now is known: what was deleted since is
//! drawn nowhere.

use std::collections::BTreeMap;

use jiff::ToSpan;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use maud::{Markup, html};

use super::axis::{Frame, THIN, TimeAxis, WIDE, byte_ticks};
use super::drawing::{n, patterns, time_ticks};
use super::words::{count, size};
use crate::command::overview::Overview;

/// What is drawn of a kind: its class, its bytes, its pattern.
type Layer = (&'static str, u64, Option<&'static str>);

/// Stored bytes of a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stored {
    wal: u64,
    backups: u64,
    dumps: u64,
}

impl Stored {
    fn all(self) -> u64 {
        self.wal + self.backups + self.dumps
    }

    /// From the bottom up, with the class and the pattern of each.
    fn layers(self) -> [Layer; 3] {
        [("wal", self.wal, None), ("backup", self.backups, Some("backup")), ("dump", self.dumps, Some("dump"))]
    }
}

/// Bars of one time each: a day, a week, four weeks.
struct Bars {
    days: i64,
    bars: BTreeMap<Date, Stored>,
}

/// More bars than these cannot be told apart.
const MOST_BARS: i64 = 62;
const HEIGHT: f64 = 190.0;
const TOP: f64 = 24.0;
/// Of the quota: somebody should know.
const NEARLY_FULL: f64 = 0.8;

pub(super) fn section(overview: &Overview) -> Markup {
    let bars = bars(overview);
    html! {
        section #growth aria-labelledby="h-growth" {
            h2 #h-growth { "What is stored" }
            @if total(overview).all() > 0 || overview.quota.is_some() { (quota(overview)) }
            @if let Some(bars) = &bars {
                h3 { "By " (bars.period()) " of storing" }
                @for frame in [WIDE, THIN] { (plot(bars, overview, frame)) }
                (key())
                p.note {
                    "Bytes that are there now, by the " (bars.period()) " (UTC) on which they were stored; what was deleted since is not in it."
                    @if let Some(a_day) = overview.status.sizes.wal_bytes_a_day {
                        " WAL grows by " (size(a_day)) " a day, told from " (days(overview)) "."
                    }
                }
                (table(bars))
            } @else {
                p { "Nothing is stored yet." }
            }
        }
    }
}

fn days(overview: &Overview) -> String {
    let days = overview.status.sizes.days.unwrap_or_default();
    format!("{days:.1} days with WAL")
}

fn total(overview: &Overview) -> Stored {
    let backups = overview.backups.iter().map(|backup| backup.stored_bytes).sum();
    Stored { wal: overview.status.sizes.wal_bytes, backups, dumps: overview.dump_bytes }
}

fn bars(overview: &Overview) -> Option<Bars> {
    let mut days: BTreeMap<Date, Stored> = BTreeMap::new();
    let day = |at| TimeZone::UTC.to_datetime(at).date();
    for stored in &overview.status.sizes.wal_days {
        days.entry(stored.day).or_default().wal += stored.bytes;
    }
    for backup in &overview.backups {
        days.entry(day(backup.id.begun())).or_default().backups += backup.stored_bytes;
    }
    for dump in &overview.dumps {
        days.entry(day(dump.started)).or_default().dumps += dump.stored_bytes;
    }
    let first = *days.keys().next()?;
    let today = day(overview.at);
    let whole = i64::from((today - first).get_days()).max(0) + 1;
    let step =
        [1, 7, 28].into_iter().find(|step| whole <= step * MOST_BARS).unwrap_or(28 * (whole / (28 * MOST_BARS) + 1));
    // The last bar ends today.
    let mut bars: BTreeMap<Date, Stored> = BTreeMap::new();
    for (day, stored) in days {
        let before = i64::from((today - day).get_days()).max(0) / step;
        let begin = today.checked_sub(((before + 1) * step - 1).days()).unwrap_or(day);
        let bar = bars.entry(begin).or_default();
        *bar = Stored {
            wal: bar.wal + stored.wal,
            backups: bar.backups + stored.backups,
            dumps: bar.dumps + stored.dumps,
        };
    }
    Some(Bars { days: step, bars })
}

impl Bars {
    fn period(&self) -> String {
        match self.days {
            1 => "day".to_owned(),
            7 => "week".to_owned(),
            days => format!("{} weeks", days / 7),
        }
    }

    /// The end of a bar that begins on a day.
    fn end(&self, begin: Date) -> Date {
        begin.checked_add(self.days.days()).unwrap_or(begin)
    }
}

fn plot(bars: &Bars, overview: &Overview, frame: Frame) -> Markup {
    let id = format!("growth-{}", frame.class());
    let midnight = |date: Date| TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0)).unwrap_or(overview.at);
    let (first, last) = (bars.bars.keys().next().copied(), bars.bars.keys().next_back().copied());
    let (Some(first), Some(last)) = (first, last) else { return html! {} };
    let today = TimeZone::UTC.to_datetime(overview.at).date();
    let axis = TimeAxis::new(midnight(first), midnight(bars.end(last.max(today))), frame);
    let most = bars.bars.values().map(|bar| bar.all()).max().unwrap_or_default();
    let ticks = byte_ticks(most, 4);
    let top = ticks.last().copied().unwrap_or(1).max(1) as f64;
    let y = |bytes: u64| TOP + HEIGHT * (1.0 - bytes as f64 / top);
    let bottom = TOP + HEIGHT;
    html! {
        svg class=(frame.class()) viewBox=(format!("0 0 {} {}", n(frame.width), n(bottom + 40.0))) role="img"
            aria-labelledby={ (id) "-t" } aria-describedby="growth-note" {
            title id={ (id) "-t" } { "Bytes that are stored now, by the " (bars.period()) " of storing. The table below says the same." }
            (patterns(&id))
            @for bytes in &ticks {
                path.grid d=(format!("M{} {}H{}", n(frame.left), n(y(*bytes)), n(frame.width - frame.right))) {}
                @if frame.thin {
                    text.soft x=(n(frame.left)) y=(n(y(*bytes) - 4.0)) { (size(*bytes)) }
                } @else {
                    text.soft x=(n(frame.left - 10.0)) y=(n(y(*bytes) + 4.0)) text-anchor="end" { (size(*bytes)) }
                }
            }
            (time_ticks(&axis.ticks(), frame, (bottom, bottom)))
            @for (begin, bar) in &bars.bars {
                @let (left, right) = (axis.x(midnight(*begin)), axis.x(midnight(bars.end(*begin))));
                @let width = ((right - left) * 0.8).clamp(1.0, 48.0);
                @let x = (left + right - width) / 2.0;
                g {
                    title { (begin) ": WAL " (size(bar.wal)) ", backups " (size(bar.backups)) ", dumps " (size(bar.dumps)) }
                    @for (below, (class, bytes, pattern)) in stacked(*bar) {
                        @let (from, to) = (y(below + bytes), y(below));
                        rect class=(class) x=(n(x)) y=(n(from)) width=(n(width)) height=(n(to - from)) {}
                        @if let Some(pattern) = pattern {
                            rect x=(n(x)) y=(n(from)) width=(n(width)) height=(n(to - from)) fill={ "url(#" (id) "-" (pattern) ")" } {}
                        }
                    }
                }
            }
        }
    }
}

/// What lies below each layer; layers of nothing are left out.
fn stacked(bar: Stored) -> Vec<(u64, Layer)> {
    let mut below = 0;
    let mut layers = Vec::new();
    for layer in bar.layers().into_iter().filter(|(_, bytes, _)| *bytes > 0) {
        layers.push((below, layer));
        below += layer.1;
    }
    layers
}

fn key() -> Markup {
    html! {
        ul.key {
            @for (name, layer) in [("WAL", 0), ("backups", 1), ("dumps", 2)] {
                @let (class, _, pattern) = Stored { wal: 1, backups: 1, dumps: 1 }.layers()[layer];
                li {
                    svg viewBox="0 0 26 16" aria-hidden="true" focusable="false" {
                        (patterns(&format!("growth-key-{class}")))
                        rect class=(class) x="1" y="2" width="24" height="12" {}
                        @if let Some(pattern) = pattern {
                            rect x="1" y="2" width="24" height="12" fill={ "url(#growth-key-" (class) "-" (pattern) ")" } {}
                        }
                    }
                    (name)
                }
            }
        }
    }
}

/// How full it is: a bar for people who see, words for all.
fn quota(overview: &Overview) -> Markup {
    let stored = total(overview);
    let parts = format!(
        "WAL {}, {} of {}, {} of {}",
        size(stored.wal),
        size(stored.backups),
        count(overview.backups.len(), "backup", "backups"),
        size(stored.dumps),
        count(overview.dumps.len(), "dump", "dumps")
    );
    html! {
        p {
            strong { (size(stored.all())) }
            @if let Some(quota) = overview.quota {
                " of " (size(quota)) ", " (percent(stored.all(), quota))
            }
            ": " (parts) "."
            @if overview.quota.is_none() {
                span.note { " No quota is set (" code { "quota" } " under " code { "[repo]" } ")." }
            }
        }
        @if let Some(quota) = overview.quota {
            @for frame in [WIDE, THIN] { (meter(stored, quota, frame)) }
        }
    }
}

/// Of a quota, rounded so that nothing looks full that is not.
pub(super) fn percent(bytes: u64, quota: u64) -> String {
    match quota {
        0 => "over it".to_owned(),
        quota => format!("{:.0} %", (bytes as f64 / quota as f64 * 100.0).floor()),
    }
}

fn meter(stored: Stored, quota: u64, frame: Frame) -> Markup {
    let id = format!("quota-{}", frame.class());
    let frame = Frame { left: 2.0, right: 2.0, ..frame };
    let whole = (quota.max(stored.all()) as f64).max(1.0) * if stored.all() > quota { 1.03 } else { 1.0 };
    let x = |bytes: f64| frame.left + bytes / whole * frame.room();
    let (full, nearly) = (x(quota as f64), x(quota as f64 * NEARLY_FULL));
    html! {
        svg class=(frame.class()) viewBox=(format!("0 0 {} {}", n(frame.width), if frame.thin { 60 } else { 46 })) role="img" aria-labelledby={ (id) "-t" } {
            title id={ (id) "-t" } { (size(stored.all())) " of the quota of " (size(quota)) ", " (percent(stored.all(), quota)) }
            (patterns(&id))
            rect.lane x=(n(frame.left)) y="4" width=(n(frame.room())) height="18" rx="3" {}
            @for (below, (class, bytes, pattern)) in stacked(stored) {
                @let (from, to) = (x(below as f64), x((below + bytes) as f64));
                rect class=(class) x=(n(from)) y="4" width=(n(to - from)) height="18" {}
                @if let Some(pattern) = pattern {
                    rect x=(n(from)) y="4" width=(n(to - from)) height="18" fill={ "url(#" (id) "-" (pattern) ")" } {}
                }
            }
            path.warn d=(format!("M{} 1V26", n(nearly))) {}
            path.quota d=(format!("M{} 1V26", n(full - 1.0))) {}
            text.soft x=(n(nearly - 4.0)) y="41" text-anchor="end" { "80 %" }
            text.soft x=(n(full)) y=(if frame.thin { 56 } else { 41 }) text-anchor="end" { "quota " (size(quota)) }
        }
    }
}

fn table(bars: &Bars) -> Markup {
    html! {
        details {
            summary { "The same as a table" }
            table {
                caption #growth-note { "Bytes that are there now, in UTC" }
                thead { tr { th scope="col" { "From" } th.n scope="col" { "WAL" } th.n scope="col" { "Backups" } th.n scope="col" { "Dumps" } } }
                tbody {
                    @for (begin, bar) in bars.bars.iter().rev() {
                        tr {
                            td.w { (begin) }
                            td.n { (size(bar.wal)) }
                            td.n { (size(bar.backups)) }
                            td.n { (size(bar.dumps)) }
                        }
                    }
                }
            }
        }
    }
}
