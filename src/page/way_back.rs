//! The way back: commands to copy, for a moment that the visitor picks or for those that are offered.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use maud::{Markup, html};

use super::View;
use super::verdict::{Mood, badge};
use super::words::{count, message, moment, size, time};
use crate::command::overview::Overview;
use crate::command::ways::{Answer, Moment, Way};

/// Where a restore goes, until somebody puts another directory there.
const TO: &str = "/var/lib/postgresql/restored";

/// The moment that a visitor asks for, as the query of the address says it; `None`: it does not ask.
///
/// What a browser sends for a `datetime-local` field is UTC here, as the field says. An offset is taken, too.
pub fn asked(query: &str) -> Option<Result<Timestamp, String>> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("at="))?;
    let text = decoded(value);
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    // A `+` of an offset arrives as a space where it was not encoded.
    let offset = |text: &str| text.parse::<Timestamp>().ok();
    let utc = || text.parse::<DateTime>().ok().and_then(|local| TimeZone::UTC.to_timestamp(local).ok());
    let at = offset(text).or_else(|| offset(&text.replacen(' ', "+", 1))).or_else(utc);
    Some(at.ok_or_else(|| format!("`{text}` is no time like `2026-11-22T14:05:00`")))
}

/// `%3A` and `+`, as forms encode. What is no such code stays.
fn decoded(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len().min(200));
    let mut rest = value.as_bytes();
    while let Some((first, behind)) = rest.split_first().filter(|_| bytes.len() < 200) {
        let code = || u8::from_str_radix(std::str::from_utf8(behind.get(..2)?).ok()?, 16).ok();
        rest = behind;
        match (first, if *first == b'%' { code() } else { None }) {
            (_, Some(byte)) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            (b'+', None) => bytes.push(b' '),
            (other, None) => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn section(overview: &Overview, view: &View) -> Markup {
    let (asked, offered): (Vec<&Way>, Vec<&Way>) = view.ways.iter().partition(|way| is_asked(way, view));
    html! {
        section #restore aria-labelledby="h-restore" {
            h2 #h-restore { "Restore" }
            @if view.form { (form(overview, view)) }
            @match &view.asked {
                Some(Err(why)) => p role="alert" { (badge(Mood::Bad, "cannot be read")) " " (message(why)) },
                Some(Ok(at)) if asked.is_empty() => p role="alert" { "Nothing is known of " (moment(*at)) "." },
                Some(Ok(_)) => @for way in &asked { (one(way, view, &headline(way, true))) },
                None => {}
            }
            @if overview.status.newest.is_none() {
                p { "There is nothing that could be restored." }
            } @else {
                p {
                    "Run as the owner of the new cluster, on the host where it shall be; " code { "--dry-run" } " prints the plan first. Credentials and an endpoint come from the settings there. "
                    "A server that is started on the directory then recovers."
                }
                @for way in &offered { (one(way, view, &headline(way, false))) }
                h3 { "Any other moment" }
                pre tabindex="0" { (command(view, &["--target-time 'TIME'".to_owned()])) }
                p.note {
                    "TIME is like " code { "2026-11-22 14:05:00+01:00" } ". pgark takes the newest backup that stopped before it, and says so when there is no way."
                }
            }
        }
    }
}

fn is_asked(way: &Way, view: &View) -> bool {
    matches!((&view.asked, way.moment), (Some(Ok(asked)), Moment::Time { at }) if *asked == at)
}

fn form(overview: &Overview, view: &View) -> Markup {
    let local = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%S").to_string();
    let intervals = overview.status.timelines.iter().flat_map(|timeline| &timeline.intervals);
    let first = intervals.filter_map(|interval| interval.from_time).min();
    let value = view.asked.as_ref().and_then(|asked| asked.as_ref().ok()).copied();
    html! {
        form method="get" action="/#restore" {
            label {
                "Moment to go back to, in UTC" br;
                input type="datetime-local" name="at" step="1" required min=[first.map(local)] max=(local(overview.at)) value=[value.map(local)];
            }
            button type="submit" { "Show the command" }
        }
    }
}

fn headline(way: &Way, asked: bool) -> Markup {
    html! {
        @match way.moment {
            Moment::Latest => "The latest state",
            Moment::Time { at } if asked => (time(at)),
            Moment::Time { at } => { "An hour ago: " (time(at)) },
            Moment::Backup { .. } => "As a backup left it: the first moment from there",
            Moment::LastBefore { at, .. } => { "Just before the last commit that is there of an older time: " (time(at)) },
        }
        @if let Some(timeline) = way.timeline { ", on timeline " (timeline) }
    }
}

fn one(way: &Way, view: &View, headline: &Markup) -> Markup {
    html! {
        h3 { (headline) }
        @match &way.answer {
            Answer::Reachable { backup, ends_on, fetched_bytes, warnings } => {
                pre tabindex="0" { (command(view, &target(way))) }
                p.note { "Begins with backup " code { (backup) } ", ends on timeline " (ends_on) ", reads " (size(*fetched_bytes)) "." }
                @for warning in warnings { p.note { (badge(Mood::Look, "note")) " " (message(warning)) } }
            },
            Answer::Unreachable { reason, hint } => {
                p { (badge(Mood::Look, "cannot be restored")) " " (message(reason)) }
                p.note { (message(hint)) }
            }
        }
    }
}

fn target(way: &Way) -> Vec<String> {
    let time = |at: Timestamp| {
        let fraction =
            if at.subsec_nanosecond() == 0 { "%Y-%m-%d %H:%M:%S+00:00" } else { "%Y-%m-%d %H:%M:%S.%6f+00:00" };
        format!("--target-time {}", shell_word(&at.strftime(fraction).to_string()))
    };
    let mut words = match way.moment {
        Moment::Latest => Vec::new(),
        Moment::Time { at } => vec![time(at)],
        Moment::Backup { backup } => vec![format!("--target-immediate --target-timeline current {backup}")],
        Moment::LastBefore { at, .. } => vec![time(at), "--exclusive".to_owned()],
    };
    if let Some(timeline) = way.timeline {
        words.push(format!("--target-timeline {timeline}"));
    }
    words
}

fn command(view: &View, target: &[String]) -> String {
    let words: Vec<String> = view.program.iter().map(|word| shell_word(word)).collect();
    let (program, flags) = words.split_first().map_or(("pgark", &[][..]), |(program, flags)| (program.as_str(), flags));
    let mut lines = vec![format!("{program} restore")];
    lines.extend((!flags.is_empty()).then(|| flags.join(" ")));
    lines.push(format!("--to {TO}"));
    lines.extend(target.iter().cloned());
    lines.join(" \\\n    ")
}

/// A word as the shell leaves it alone, and as it is seen.
fn shell_word(text: &str) -> String {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-:%+,@=".contains(&b));
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// How many ways are open, for the contents.
pub(super) fn open_ways(view: &View) -> String {
    let open = view.ways.iter().filter(|way| matches!(way.answer, Answer::Reachable { .. })).count();
    count(open, "way", "ways")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_visitor_asks_for() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        for (query, found) in [
            ("at=2026-11-23T12%3A05", "2026-11-23T12:05:00Z"),
            ("x=1&at=2026-11-23T12:05:07", "2026-11-23T12:05:07Z"),
            ("at=2026-11-23T12%3A05%3A00%2B01%3A00", "2026-11-23T11:05:00Z"),
            ("at=2026-11-23T12:05:00+01:00", "2026-11-23T11:05:00Z"),
            ("at=2026-11-23+12:05:00Z", "2026-11-23T12:05:00Z"),
        ] {
            assert_eq!(asked(query), Some(Ok(at(found))), "{query}");
        }
        for query in ["", "at=", "at=%20", "form=2"] {
            assert_eq!(asked(query), None, "{query}");
        }
        for query in ["at=yesterday", "at=%3Cscript%3E", "at=%ff%", "at=2026-13-41T00:00", "at=%F0%9F"] {
            assert!(asked(query).unwrap().is_err(), "{query}");
        }
        let long = asked(&format!("at={}", "é".repeat(100_000))).unwrap().unwrap_err();
        assert!(long.len() < 1000);
    }

    /// The last commit before a gap is named to the microsecond, as PostgreSQL counts.
    #[test]
    fn moments_keep_their_fractions() {
        let at = "2026-11-22T13:05:00.070809Z".parse().unwrap();
        let answer = Answer::Unreachable { reason: String::new(), hint: String::new() };
        let way = Way { moment: Moment::LastBefore { at, timeline: 2 }, timeline: Some(2), answer };
        let words = ["--target-time '2026-11-22 13:05:00.070809+00:00'", "--exclusive", "--target-timeline 2"];
        assert_eq!(target(&way), words);
    }

    #[test]
    fn words_of_a_command_are_quoted() {
        assert_eq!(shell_word("s3://bucket/a b;rm -rf '$HOME'"), r"'s3://bucket/a b;rm -rf '\''$HOME'\'''");
        assert_eq!(shell_word("s3://bucket/pg"), "s3://bucket/pg");
    }
}
