//! When something is due, by a cron expression in a time zone. Pure: the time is an argument.
//!
//! Five fields: minute, hour, day of the month, month, day of the week, as in crontab(5). Where clocks go forward, what was due in the
//! hour that is left out is due right after it; where they go back, a fixed time is due once, and what repeats, such as every ten
//! minutes, goes on repeating.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Unit};

use super::layout::ClusterName;
use super::run_record::RunKind;
use crate::stream::Sha256;

/// When something is due.
///
/// * It comes again: there is a next time after each of this century.
#[derive(Clone, Debug)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
    delay: SignedDuration,
}

/// Why a text is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotASchedule(String);

impl Schedule {
    /// By an expression like `0 1 * * *`, in a time zone.
    pub fn new(expression: &str, zone: TimeZone) -> Result<Self, NotASchedule> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(expression).map_err(|why| {
            NotASchedule(format!("is no cron expression of five fields, like `0 1 * * *` for one o'clock: {why}"))
        })?;
        let schedule = Schedule { cron, zone, delay: SignedDuration::ZERO };
        // Such as the 30th of February.
        match schedule.next_after(Timestamp::UNIX_EPOCH) {
            Some(_) => Ok(schedule),
            None => Err(NotASchedule("never comes".to_owned())),
        }
    }

    /// The same, always so much later.
    pub fn delayed(self, delay: Duration) -> Self {
        Schedule { delay: SignedDuration::try_from(delay).unwrap_or_default(), ..self }
    }

    /// The first due time after a time.
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let next = self.cron.find_next_occurrence(&self.local(time)?, false).ok()?;
        next.timestamp().checked_add(self.delay).ok()
    }

    /// The last due time that is not after a time.
    pub fn last_due(&self, time: Timestamp) -> Option<Timestamp> {
        let last = self.cron.find_previous_occurrence(&self.local(time)?, true).ok()?;
        last.timestamp().checked_add(self.delay).ok()
    }

    /// In whole seconds: due times are.
    fn local(&self, time: Timestamp) -> Option<jiff::Zoned> {
        let time = time.checked_sub(self.delay).ok()?;
        let rounding = jiff::TimestampRound::new().smallest(Unit::Second).mode(jiff::RoundMode::Floor);
        Some(time.round(rounding).ok()?.to_zoned(self.zone.clone()))
    }
}

/// A part of `jitter` that is the same on every host and in every run, and another one for other clusters and kinds: so many
/// clusters with the same settings do not begin at the same moment.
pub fn delay(cluster: &ClusterName, kind: RunKind, jitter: Duration) -> Duration {
    let digest = Sha256::of(format!("{cluster} {kind}").as_bytes());
    let number = digest.0.iter().take(4).fold(0, |number, byte| number << 8 | u64::from(*byte));
    Duration::from_secs(number % (jitter.as_secs() + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(expression: &str) -> Schedule {
        Schedule::new(expression, TimeZone::UTC).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn next(schedule: &Schedule, after: &str, count: usize) -> Vec<String> {
        let mut time = at(after);
        let mut next = || {
            time = schedule.next_after(time).unwrap();
            time.to_string()
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn due_times_are_those_of_crontab() {
        let daily = utc("0 1 * * *");
        assert_eq!(next(&daily, "2026-11-22T00:59:59.5Z", 2), ["2026-11-22T01:00:00Z", "2026-11-23T01:00:00Z"]);
        assert_eq!(next(&daily, "2026-11-22T01:00:00.5Z", 1), ["2026-11-23T01:00:00Z"]);
        assert_eq!(daily.last_due(at("2026-11-22T01:00:00Z")), Some(at("2026-11-22T01:00:00Z")));
        assert_eq!(daily.last_due(at("2026-11-22T01:00:00.5Z")), Some(at("2026-11-22T01:00:00Z")));
        assert_eq!(daily.last_due(at("2026-11-22T00:59:59.9Z")), Some(at("2026-11-21T01:00:00Z")));
        let quarterly = utc("30 3 1 */3 *");
        assert_eq!(next(&quarterly, "2026-11-22T00:00:00Z", 2), ["2027-01-01T03:30:00Z", "2027-04-01T03:30:00Z"]);
        let leap = utc("0 0 29 2 *");
        assert_eq!(next(&leap, "2026-01-01T00:00:00Z", 2), ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]);
        assert_eq!(leap.last_due(at("2026-01-01T00:00:00Z")), Some(at("2024-02-29T00:00:00Z")));
        assert_eq!(next(&utc("0 4 * * SUN"), "2026-11-22T05:00:00Z", 1), ["2026-11-29T04:00:00Z"]);
    }

    #[test]
    fn next_and_last_agree() {
        for expression in ["0 1 * * *", "*/7 * * * *", "0 0 1 1 *", "15 2 * * 1-5", "0 0 13 * FRI"] {
            let schedule = utc(expression).delayed(Duration::from_secs(77));
            let mut time = at("2026-02-03T04:05:06.7Z");
            for _ in 0..100 {
                let next = schedule.next_after(time).unwrap();
                assert!(next > time, "{expression}");
                assert_eq!(schedule.last_due(next), Some(next), "{expression}");
                let before = next - SignedDuration::from_secs(1);
                assert!(schedule.last_due(before).unwrap() <= before, "{expression}");
                assert_eq!(schedule.next_after(before), Some(next), "{expression}");
                time = next;
            }
        }
    }

    #[test]
    fn clocks_that_change_leave_nothing_out() {
        let berlin = || TimeZone::get("Europe/Berlin").unwrap();
        let daily = Schedule::new("30 2 * * *", berlin()).unwrap();
        // 2026-03-29: 02:00 to 03:00 does not exist.
        let spring = next(&daily, "2026-03-27T12:00:00Z", 3);
        assert_eq!(spring, ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
        // 2026-10-25: 02:00 to 03:00 comes twice.
        let autumn = next(&daily, "2026-10-24T12:00:00Z", 2);
        assert_eq!(autumn, ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
        assert_eq!(daily.last_due(at("2026-10-25T12:00:00Z")), Some(at("2026-10-25T00:30:00Z")));
        let hourly = Schedule::new("0 * * * *", berlin()).unwrap();
        for begin in ["2026-10-24T22:00:00Z", "2026-03-28T22:00:00Z"] {
            let due = next(&hourly, begin, 6);
            let due: Vec<Timestamp> = due.iter().map(|due| at(due)).collect();
            assert!(due.windows(2).all(|pair| pair[1].duration_since(pair[0]).as_hours() == 1), "{due:?}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for text in ["", "1", "* * * *", "0 0 1 * * *", "61 * * * *", "0 25 * * *", "a b c d e", "0 1 * * *; rm"] {
            let why = Schedule::new(text, TimeZone::UTC).unwrap_err().to_string();
            assert!(why.starts_with("is no cron expression of five fields"), "{text}: {why}");
        }
        assert_eq!(Schedule::new("0 0 30 2 *", TimeZone::UTC).unwrap_err().to_string(), "never comes");
    }

    #[test]
    fn jitter_is_the_same_everywhere_and_not_more_than_wanted() {
        let name = |text: &str| text.parse::<ClusterName>().unwrap();
        let jitter = Duration::from_secs(600);
        let clusters: Vec<Duration> =
            (0..100).map(|number| delay(&name(&format!("c{number}")), RunKind::Dump, jitter)).collect();
        assert!(clusters.iter().all(|delay| *delay <= jitter));
        assert!(clusters.iter().any(|delay| *delay != clusters[0]));
        assert_eq!(delay(&name("main"), RunKind::Basebackup, jitter), Duration::from_secs(413));
        assert_eq!(delay(&name("main"), RunKind::Dump, Duration::ZERO), Duration::ZERO);
        let later = utc("0 1 * * *").delayed(Duration::from_secs(90));
        assert_eq!(later.last_due(at("2026-11-22T01:01:29Z")), Some(at("2026-11-21T01:01:30Z")));
        assert_eq!(later.next_after(at("2026-11-22T01:01:29Z")), Some(at("2026-11-22T01:01:30Z")));
    }
}
