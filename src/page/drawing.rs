//! What the plots are drawn with: numbers as SVG takes them, marks that differ by shape, fills that differ by pattern.

use maud::{Markup, html};

use super::axis::{Frame, Tick};

/// A number of a drawing: a tenth of a pixel is enough, and stays the same everywhere.
pub(super) fn n(value: f64) -> String {
    let rounded = (value * 10.0).round() / 10.0;
    // No `-0`.
    format!("{}", if rounded == 0.0 { 0.0 } else { rounded })
}

/// The patterns of a drawing. Each drawing has its own: those of one that is not shown cannot be used.
pub(super) fn patterns(id: &str) -> Markup {
    html! {
        defs {
            pattern id={ (id) "-gap" } width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                path.lb d="M0 0V7" {}
            }
            pattern id={ (id) "-risk" } width="5" height="5" patternUnits="userSpaceOnUse" {
                path.ll d="M0 5L5 0" {}
            }
            pattern id={ (id) "-backup" } width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                path.lp d="M0 0V6" {}
            }
            pattern id={ (id) "-dump" } width="6" height="6" patternUnits="userSpaceOnUse" {
                path.lp d="M0 3H6" {}
            }
        }
    }
}

/// A mark on a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// A whole backup.
    Backup,
    /// One without a manifest.
    Unfinished,
    /// One that cannot be used, or a loss.
    Broken,
    /// A dump.
    Dump,
    /// A drill that passed.
    Passed,
    /// One that somebody should look at.
    Doubtful,
    /// One that failed.
    Failed,
}

impl Mark {
    /// Around a point, with a title for those who point at it.
    pub(super) fn at(self, x: f64, y: f64, title: &str) -> Markup {
        let place = format!("translate({} {})", n(x), n(y));
        html! { g transform=(place) { title { (title) } (self.shape()) } }
    }

    /// Around 0.
    pub(super) fn shape(self) -> Markup {
        match self {
            Mark::Backup => html! { path class="backup rim" d="M0-8L7 0L0 8L-7 0Z" {} },
            Mark::Unfinished => html! { path class="hollow" d="M0-7L6 0L0 7L-6 0Z" {} },
            Mark::Broken => {
                html! { path class="halo" d="M-5-5L5 5M5-5L-5 5" {} path class="strike" d="M-5-5L5 5M5-5L-5 5" {} }
            }
            Mark::Dump => html! { rect class="dump rim" x="-5.5" y="-5.5" width="11" height="11" {} },
            Mark::Passed => html! { circle class="good rim" r="6.5" {} },
            Mark::Doubtful => html! { path class="look rim" d="M0-7L7 6H-7Z" {} },
            Mark::Failed => html! { path class="strike" d="M-4-4L4 4M4-4L-4 4" {} circle class="strike" r="8.5" {} },
        }
    }

    /// For the key below a plot.
    pub(super) fn key(self) -> Markup {
        html! { svg viewBox="-13 -10 26 20" aria-hidden="true" focusable="false" { (self.shape()) } }
    }
}

/// The ticks of time below a plot that is `height` high, with lines up to `top`.
pub(super) fn time_ticks(ticks: &[Tick], frame: Frame, (top, bottom): (f64, f64)) -> Markup {
    html! {
        path.base d=(format!("M{} {}H{}", n(frame.left), n(bottom), n(frame.width - frame.right))) {}
        @for tick in ticks {
            path.grid d=(format!("M{} {}V{}", n(tick.x), n(top), n(bottom))) {}
            (label(&tick.label, tick.x, bottom + 16.0, frame))
            @if let Some(under) = &tick.under {
                @if !crowded(ticks, tick) { (label(under, tick.x, bottom + 32.0, frame)) }
            }
        }
    }
}

/// Whether a tick's second line would touch that of the one before it.
fn crowded(ticks: &[Tick], tick: &Tick) -> bool {
    let before = ticks.iter().rev().find(|other| other.x < tick.x && other.under.is_some());
    let room = |other: &Tick| other.under.as_ref().map_or(0.0, |under| under.len() as f64 * 7.0 + 10.0);
    before.is_some_and(|other| tick.x - other.x < room(other))
}

/// Words in the middle below a point, but within the drawing.
fn label(text: &str, x: f64, y: f64, frame: Frame) -> Markup {
    let half = text.len() as f64 * 3.4;
    let (x, anchor) = if x - half < 2.0 {
        (2.0, "start")
    } else if x + half > frame.width - 2.0 {
        (frame.width - 2.0, "end")
    } else {
        (x, "middle")
    };
    html! { text.soft x=(n(x)) y=(n(y)) text-anchor=(anchor) { (text) } }
}
