//! The policy of `expire`: which backups it wants to stay, by their number and age.
//!
//! Ages are those of manifests, by the store's clock; days, weeks and months are those of UTC.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// What an operator wants to be kept. Nothing set: everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// So many of the newest backups.
    pub keep_full: Option<u32>,
    /// All that are younger.
    pub keep_within: Option<Duration>,
    /// The newest of each of the last so many days that have one.
    pub keep_daily: Option<u32>,
    /// The same of weeks.
    pub keep_weekly: Option<u32>,
    /// The same of months.
    pub keep_monthly: Option<u32>,
    /// How far back any moment can be restored; older backups can be restored to their own end. Not set: as far as the oldest
    /// backup that is kept.
    pub wal_within: Option<Duration>,
    /// Never fewer backups than these; at least 1.
    pub min_full: u32,
    /// Logical dumps stay that are younger. Not set: all do.
    pub dump_keep_within: Option<Duration>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy::NONE
    }
}

/// A rule of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// No rule says which backups are to go.
    None,
    /// `min_full`
    MinFull,
    /// `keep_full`
    Full,
    /// `keep_within`
    Within,
    /// `keep_daily`
    Daily,
    /// `keep_weekly`
    Weekly,
    /// `keep_monthly`
    Monthly,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::None => "no `keep_...` is set",
            Rule::MinFull => "min_full",
            Rule::Full => "keep_full",
            Rule::Within => "keep_within",
            Rule::Daily => "keep_daily",
            Rule::Weekly => "keep_weekly",
            Rule::Monthly => "keep_monthly",
        })
    }
}

impl Policy {
    /// No rule at all.
    pub const NONE: Policy = Policy {
        keep_full: None,
        keep_within: None,
        keep_daily: None,
        keep_weekly: None,
        keep_monthly: None,
        wal_within: None,
        min_full: 1,
        dump_keep_within: None,
    };

    /// Whether it wants no backup and no WAL to be deleted.
    pub fn is_empty(&self) -> bool {
        !self.chooses() && self.wal_within.is_none()
    }

    fn chooses(&self) -> bool {
        let counts = [self.keep_full, self.keep_daily, self.keep_weekly, self.keep_monthly];
        counts.iter().any(Option::is_some) || self.keep_within.is_some()
    }

    /// For each backup, given by its time and the newest first, the rules that want it.
    pub fn wanted(&self, newest_first: &[Timestamp], now: Timestamp) -> Vec<BTreeSet<Rule>> {
        let mut wanted = vec![BTreeSet::new(); newest_first.len()];
        if !self.chooses() {
            return vec![BTreeSet::from([Rule::None]); newest_first.len()];
        }
        let begin = self.keep_within.map(|age| before(now, age));
        for (index, (time, rules)) in newest_first.iter().zip(&mut wanted).enumerate() {
            let among = |count: u32| index < count as usize;
            let rule = |holds: bool, rule| holds.then_some(rule);
            rules.extend(rule(among(self.min_full.max(1)), Rule::MinFull));
            rules.extend(rule(self.keep_full.is_some_and(among), Rule::Full));
            rules.extend(rule(begin.is_some_and(|begin| *time >= begin), Rule::Within));
        }
        // Two numbers that name a day, a week or a month.
        type Period = fn(Timestamp) -> (i16, i16);
        let periods: [(Option<u32>, Rule, Period); 3] = [
            (self.keep_daily, Rule::Daily, |time| (date(time).year(), date(time).day_of_year())),
            (self.keep_weekly, Rule::Weekly, |time| {
                let week = date(time).iso_week_date();
                (week.year(), week.week().into())
            }),
            (self.keep_monthly, Rule::Monthly, |time| (date(time).year(), date(time).month().into())),
        ];
        for (count, rule, period) in periods {
            let mut seen = BTreeSet::new();
            for (time, rules) in newest_first.iter().zip(&mut wanted) {
                if seen.len() < count.unwrap_or_default() as usize && seen.insert(period(*time)) {
                    rules.insert(rule);
                }
            }
        }
        wanted
    }
}

fn date(time: Timestamp) -> jiff::civil::Date {
    time.to_zoned(TimeZone::UTC).date()
}

/// So long before a time, or the beginning of time.
pub fn before(time: Timestamp, age: Duration) -> Timestamp {
    let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
    time.checked_sub(age).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Policy = Policy::NONE;

    /// Backups of 2026, as `month-day hour`, newest first; the ones that are wanted.
    fn wanted<'a>(policy: Policy, times: &[&'a str], now: &str) -> Vec<&'a str> {
        let parse = |text: &str| {
            let (date, hour) = text.split_once(' ').unwrap();
            format!("2026-{date}T{hour}:00:00Z").parse::<Timestamp>().unwrap()
        };
        let parsed: Vec<Timestamp> = times.iter().map(|text| parse(text)).collect();
        let rules = policy.wanted(&parsed, parse(now));
        times.iter().zip(rules).filter(|(_, rules)| !rules.is_empty()).map(|(time, _)| *time).collect()
    }

    const TIMES: [&str; 8] =
        ["11-22 23", "11-22 01", "11-21 01", "11-16 01", "11-15 23", "11-08 01", "10-31 01", "08-01 01"];

    #[test]
    fn nothing_set_keeps_everything() {
        assert_eq!(wanted(NONE, &TIMES, "11-23 00").len(), 8);
        assert!(NONE.is_empty());
        let only_wal = Policy { wal_within: Some(Duration::from_secs(1)), ..NONE };
        assert_eq!(wanted(only_wal.clone(), &TIMES, "11-23 00").len(), 8);
        assert!(!only_wal.is_empty());
    }

    #[test]
    fn each_rule_keeps_its_own() {
        let days = |days: u64| Some(Duration::from_secs(days * 86400));
        let now = "11-23 00";
        for (policy, expected) in [
            (Policy { keep_full: Some(3), ..NONE }, &TIMES[..3]),
            (Policy { keep_within: days(7), ..NONE }, &TIMES[..4]),
            (Policy { keep_within: days(0), ..NONE }, &TIMES[..1]),
            (Policy { keep_within: days(0), min_full: 2, ..NONE }, &TIMES[..2]),
            (Policy { keep_within: Some(Duration::MAX), ..NONE }, &TIMES[..]),
            (Policy { keep_daily: Some(2), ..NONE }, &["11-22 23", "11-21 01"]),
            // The week begins on a Monday, as the 16th was.
            (Policy { keep_weekly: Some(2), ..NONE }, &["11-22 23", "11-15 23"]),
            (Policy { keep_monthly: Some(3), ..NONE }, &["11-22 23", "10-31 01", "08-01 01"]),
            (Policy { keep_full: Some(0), min_full: 0, ..NONE }, &TIMES[..1]),
        ] {
            assert_eq!(wanted(policy.clone(), &TIMES, now), expected, "{policy:?}");
        }
    }
}
