//! Scales of the plots: time from left to right with ticks that people count in, bytes from the bottom up.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// The room a plot has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Frame {
    /// All of it.
    pub width: f64,
    /// Left of the plot, for words.
    pub left: f64,
    /// Right of it.
    pub right: f64,
    /// For a phone: words stand above what they name.
    pub thin: bool,
}

/// On a desk.
pub(super) const WIDE: Frame = Frame { width: 1040.0, left: 92.0, right: 24.0, thin: false };
/// On a phone.
pub(super) const THIN: Frame = Frame { width: 344.0, left: 10.0, right: 14.0, thin: true };

impl Frame {
    /// Both frames have their own class, of which the style shows one.
    pub(super) fn class(self) -> &'static str {
        if self.thin { "thin" } else { "wide" }
    }

    /// The width of the plot itself.
    pub(super) fn room(self) -> f64 {
        self.width - self.left - self.right
    }
}

/// A scale of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TimeAxis {
    /// The left end.
    pub from: Timestamp,
    /// The right end.
    pub to: Timestamp,
    frame: Frame,
}

/// A mark on a scale of time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    /// Where.
    pub x: f64,
    /// What it says.
    pub label: String,
    /// The day or year, where it is another than that of the tick before.
    pub under: Option<String>,
}

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// Between ticks, in seconds.
const STEPS: [i64; 15] = [
    MINUTE,
    5 * MINUTE,
    10 * MINUTE,
    15 * MINUTE,
    30 * MINUTE,
    HOUR,
    2 * HOUR,
    3 * HOUR,
    6 * HOUR,
    12 * HOUR,
    DAY,
    2 * DAY,
    4 * DAY,
    7 * DAY,
    14 * DAY,
];
/// The same in months.
const MONTHS: [i32; 7] = [1, 2, 3, 6, 12, 24, 60];
/// A Monday.
const MONDAY: i64 = 4 * DAY;
/// A label and the space around it.
const LABEL: f64 = 62.0;

impl TimeAxis {
    /// From one moment to another; at least a minute.
    pub(super) fn new(from: Timestamp, to: Timestamp, frame: Frame) -> Self {
        let least = to.checked_sub(MINUTE.seconds()).unwrap_or(to);
        TimeAxis { from: from.min(least), to, frame }
    }

    /// Where a moment lies; what is before or behind is at the end.
    pub(super) fn x(&self, at: Timestamp) -> f64 {
        let whole = self.to.duration_since(self.from).as_secs_f64();
        let part = at.duration_since(self.from).as_secs_f64() / whole;
        self.frame.left + part.clamp(0.0, 1.0) * self.frame.room()
    }

    /// Whether a moment lies on it.
    pub(super) fn has(&self, at: Timestamp) -> bool {
        self.from <= at && at <= self.to
    }

    /// Whether some of a time lies on it.
    pub(super) fn meets(&self, from: Timestamp, to: Timestamp) -> bool {
        to >= self.from && from <= self.to
    }

    /// The ticks, as many as there is room for.
    pub(super) fn ticks(&self) -> Vec<Tick> {
        let most = (self.frame.room() / LABEL).max(2.0) as i64;
        let length = self.to.as_second() - self.from.as_second();
        let (moments, step) = match STEPS.iter().find(|step| length / **step < most) {
            Some(step) => (self.even(*step), *step),
            None => (self.months(most), 30 * DAY),
        };
        let mut last_under = String::new();
        let mut ticks = Vec::new();
        for at in moments {
            let day = step >= DAY;
            let (label, under) = match (step, at.hour(), at.minute()) {
                (step, ..) if step >= 30 * DAY => (at.strftime("%b").to_string(), at.strftime("%Y").to_string()),
                _ if day => (at.strftime("%-d %b").to_string(), at.strftime("%Y").to_string()),
                _ => (at.strftime("%H:%M").to_string(), at.strftime("%-d %b %Y").to_string()),
            };
            let Ok(stamp) = TimeZone::UTC.to_timestamp(at) else { continue };
            let changed = under != last_under;
            last_under.clone_from(&under);
            ticks.push(Tick { x: self.x(stamp), label, under: changed.then_some(under) });
        }
        ticks
    }

    fn even(&self, step: i64) -> Vec<DateTime> {
        let origin = if step % (7 * DAY) == 0 { MONDAY } else { 0 };
        let from = self.from.as_second() - origin;
        let first = from + (step - from.rem_euclid(step)) % step + origin;
        let seconds = (0..).map(|index| first + index * step).take_while(|second| *second <= self.to.as_second());
        seconds.filter_map(|second| Some(TimeZone::UTC.to_datetime(Timestamp::from_second(second).ok()?))).collect()
    }

    fn months(&self, most: i64) -> Vec<DateTime> {
        let (from, to) = (TimeZone::UTC.to_datetime(self.from), TimeZone::UTC.to_datetime(self.to));
        let number = |at: DateTime| i32::from(at.year()) * 12 + i32::from(at.month()) - 1;
        let (first, last) = (number(from) + 1, number(to));
        let step = MONTHS.into_iter().find(|step| i64::from((last - first) / step) < most).unwrap_or(120);
        let begin = |number: i32| {
            let (year, month) = (number.div_euclid(12), number.rem_euclid(12) + 1);
            Date::new(i16::try_from(year).ok()?, i8::try_from(month).ok()?, 1).ok().map(|date| date.at(0, 0, 0, 0))
        };
        (first..=last).filter(|number| number % step == 0).filter_map(begin).collect()
    }
}

/// A scale of bytes from 0 to a round number, and its ticks.
pub(super) fn byte_ticks(most: u64, wanted: u64) -> Vec<u64> {
    let mut step = 1u64;
    while most > step.saturating_mul(wanted) {
        step = step.saturating_mul(2);
    }
    (0..=most.div_ceil(step).max(1)).map(|index| index.saturating_mul(step)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(from: &str, to: &str, frame: Frame) -> Vec<(String, Option<String>)> {
        let axis = TimeAxis::new(from.parse().unwrap(), to.parse().unwrap(), frame);
        let ticks = axis.ticks();
        assert!(ticks.windows(2).all(|two| two[1].x - two[0].x > 40.0), "{ticks:?}");
        ticks.into_iter().map(|tick| (tick.label, tick.under)).collect()
    }

    #[test]
    fn ticks_are_where_people_count() {
        let day = axis("2026-11-22T17:10:00Z", "2026-11-23T17:10:00Z", WIDE);
        assert_eq!(day[0], ("18:00".into(), Some("22 Nov 2026".into())));
        assert!(day.contains(&("00:00".into(), Some("23 Nov 2026".into()))));
        assert_eq!(day.len(), 12);
        let month = axis("2026-10-24T00:00:00Z", "2026-11-23T17:10:00Z", WIDE);
        assert_eq!(month[0], ("26 Oct".into(), Some("2026".into())));
        let weeks = axis("2026-10-24T00:00:00Z", "2026-11-23T17:10:00Z", THIN);
        assert_eq!(weeks[0].0, "26 Oct", "a Monday: {weeks:?}");
        let years = axis("2020-03-05T00:00:00Z", "2026-11-23T17:10:00Z", THIN);
        assert!(years.len() >= 2 && years.iter().all(|(label, _)| label == "Jan"), "{years:?}");
        let half = axis("2026-05-05T00:00:00Z", "2026-11-23T17:10:00Z", WIDE);
        assert!(half.len() > 5, "{half:?}");
        let short = axis("2026-11-23T17:09:30Z", "2026-11-23T17:09:31Z", THIN);
        assert_eq!(short.len(), 1, "{short:?}");
    }

    #[test]
    fn bytes_are_counted_in_powers_of_two() {
        assert_eq!(byte_ticks(100, 4), [0, 32, 64, 96, 128]);
        assert_eq!(byte_ticks(0, 4), [0, 1]);
        assert_eq!(byte_ticks(3 << 30, 4), [0, 1 << 30, 2 << 30, 3 << 30]);
        assert!(byte_ticks(u64::MAX, 4).len() <= 6);
    }
}
