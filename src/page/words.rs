//! Words of the page: times, durations and sizes for people, and text from elsewhere, which is hostile until it has been here.

use std::time::Duration;

use jiff::Timestamp;
use maud::{Markup, html};

/// Longer messages are cut.
const LONGEST: usize = 600;

/// Text from elsewhere: in one line, without what would move or turn the text around it, and isolated from that.
pub(super) fn said(text: &str) -> Markup {
    html! { bdi { (harmless(text)) } }
}

/// The same where only text can stand.
pub(super) fn harmless(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let whole: String = words.join(" ").chars().map(|c| if misleads(c) { '\u{fffd}' } else { c }).collect();
    match whole.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &whole[..end]),
        None => whole,
    }
}

/// Controls, marks that turn the direction of what follows, and what has no width.
pub(super) fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(c, '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Text with parts in backticks, as messages have them: these stand as code.
pub(super) fn message(text: &str) -> Markup {
    let text = harmless(text);
    let parts: Vec<&str> = text.split('`').collect();
    // An odd one has no partner.
    let whole = parts.len() % 2 == 1;
    html! {
        bdi {
            @if whole {
                @for (index, part) in parts.iter().enumerate() {
                    @if index % 2 == 1 { code { (part) } } @else { (part) }
                }
            } @else { (text) }
        }
    }
}

/// A moment, for people and machines.
pub(super) fn time(at: Timestamp) -> Markup {
    html! { time datetime=(at.strftime("%Y-%m-%dT%H:%M:%SZ")) { (moment(at)) } }
}

/// A moment in UTC, to the second.
pub(super) fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A moment, or that it is not known.
pub(super) fn time_if(at: Option<Timestamp>) -> Markup {
    at.map_or_else(|| html! { span.soft { "not known" } }, time)
}

/// How long before another moment, in words.
pub(super) fn ago(at: Timestamp, now: Timestamp) -> String {
    match now.duration_since(at).as_secs() {
        ..0 => "in the future".to_owned(),
        0 => "just now".to_owned(),
        seconds => format!("{} ago", lasting(seconds as f64)),
    }
}

/// A duration in its two largest units.
pub(super) fn lasting(seconds: f64) -> String {
    if seconds < 10.0 {
        let tenths = (seconds.max(0.0) * 10.0).round() / 10.0;
        return format!("{tenths} s");
    }
    let whole = seconds.round() as u64;
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let first = UNITS.iter().position(|(unit, _)| whole >= *unit).unwrap_or(3);
    let (unit, name) = UNITS[first];
    let begin = format!("{} {name}", whole / unit);
    match UNITS.get(first + 1) {
        Some((next, name)) if (whole % unit) / next > 0 => format!("{begin} {} {name}", (whole % unit) / next),
        _ => begin,
    }
}

/// The same of a setting.
pub(super) fn promised(duration: Duration) -> String {
    lasting(duration.as_secs_f64())
}

/// A size.
pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

/// One of them, or several.
pub(super) fn count(number: usize, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_only_text() {
        let hostile = "</bdi><script>alert(1)</script> \"x\" & \u{202e}gnp\u{2066}\u{7}\n  new\u{200f}line";
        let shown = said(hostile).into_string();
        assert_eq!(
            shown,
            "<bdi>&lt;/bdi&gt;&lt;script&gt;alert(1)&lt;/script&gt; &quot;x&quot; &amp; \u{fffd}gnp\u{fffd}\u{fffd} new\u{fffd}line</bdi>"
        );
        assert_eq!(harmless(&"x".repeat(5000)).chars().count(), LONGEST + 1);
        assert_eq!(message("take `<b>` now").into_string(), "<bdi>take <code>&lt;b&gt;</code> now</bdi>");
        assert_eq!(message("one ` only").into_string(), "<bdi>one ` only</bdi>");
    }

    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, words) in [
            (0.0, "0 s"),
            (0.04, "0 s"),
            (3.26, "3.3 s"),
            (59.6, "1 min"),
            (61.0, "1 min 1 s"),
            (3600.0, "1 h"),
            (3661.0, "1 h 1 min"),
            (90_000.0, "1 d 1 h"),
            (-1.0, "0 s"),
        ] {
            assert_eq!(lasting(seconds), words);
        }
    }
}
