//! From text to values. Complaints never repeat the text: a secret may have been put in the wrong place.

use std::time::Duration;

use jiff::tz::TimeZone;

use super::keys::{Key, Kind};
use crate::repo::Schedule;

/// Whether `text` can be the value of `key`.
pub fn check(key: &Key, text: &str) -> Result<(), String> {
    match key.kind {
        Kind::Text | Kind::Secret | Kind::Path if text.is_empty() => Err("must not be empty".to_owned()),
        Kind::Text | Kind::Secret | Kind::Path if text.contains('\0') => Err("must not hold a NUL byte".to_owned()),
        Kind::Text | Kind::Secret | Kind::Path => Ok(()),
        Kind::Bool => boolean(text).map(|_| ()).ok_or_else(|| "is neither true nor false".to_owned()),
        Kind::Integer(low, high) => match text.parse::<i64>() {
            Ok(number) if (low..=high).contains(&number) => Ok(()),
            _ => Err(format!("is not a whole number from {low} to {high}")),
        },
        Kind::Duration => duration(text).map(|_| ()).ok_or_else(|| NO_DURATION.to_owned()),
        Kind::Age => age(text).map(|_| ()).ok_or_else(|| "is not an age like `30d` or `1y`".to_owned()),
        Kind::Size => size(text).map(|_| ()).ok_or_else(|| "is not a size like `1MiB`".to_owned()),
        Kind::Delay => delay(text).map(|_| ()).ok_or_else(|| "is not a time like `30m`, of at most a day".to_owned()),
        Kind::Cron => Schedule::new(text, TimeZone::UTC).map(|_| ()).map_err(|why| why.to_string()),
        Kind::Choice(choices) if choices.contains(&text) => Ok(()),
        Kind::Choice(choices) => Err(format!("is not one of {}", choices.join(", "))),
    }
}

/// What is said of a text that is no duration.
pub const NO_DURATION: &str = "is not a duration like `30s` or `5m`, of at most a week";

/// `true` or `false`.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// `30s`, `5m`, `1h 30m`; more than zero, at most a week.
pub fn duration(text: &str) -> Option<Duration> {
    const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
    humantime::parse_duration(text).ok().filter(|value| !value.is_zero() && *value <= LONGEST)
}

/// `0s`, `30m`; at most a day.
pub fn delay(text: &str) -> Option<Duration> {
    const LONGEST: Duration = Duration::from_secs(24 * 3600);
    humantime::parse_duration(text).ok().filter(|value| *value <= LONGEST)
}

/// `30d`, `12w`, `1y`; more than zero, at most a thousand years.
pub fn age(text: &str) -> Option<Duration> {
    const LONGEST: Duration = Duration::from_secs(1000 * 366 * 24 * 3600);
    humantime::parse_duration(text).ok().filter(|value| !value.is_zero() && *value <= LONGEST)
}

/// `1MiB`, `64KiB`; more than zero.
pub fn size(text: &str) -> Option<u64> {
    text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()).filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_are_bounded() {
        assert_eq!(duration("5m"), Some(Duration::from_secs(300)));
        assert_eq!(duration("1500ms"), Some(Duration::from_millis(1500)));
        for text in ["", "5", "0s", "-1s", "8d", "forever"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!([size("1MiB"), size("64 KiB"), size("100")], [Some(1 << 20), Some(64 << 10), Some(100)]);
        for text in ["", "0", "-1", "1XB", "much"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn ages_are_long() {
        assert_eq!(age("30d"), Some(Duration::from_secs(30 * 86400)));
        for text in ["", "30", "0d", "-1d", "1010years", "always"] {
            assert_eq!(age(text), None, "{text}");
        }
    }
}
