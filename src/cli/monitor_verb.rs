//! `check --monitor`: one line for Nagios, Icinga and their kin, from the rules of alerts.
//!
//! Source of the form: "Monitoring Plugins Development Guidelines": `SERVICE STATUS: text | 'label'=value[unit];warn;crit;min;max`.

use std::time::Duration;

use super::check_verb::CheckArgs;
use super::run::{block_on, circumstances};
use super::sources::Sources;
use super::{exit, output, settings};
use crate::command::Failure;
use crate::command::alert_rules::AlertRules;
use crate::command::bounds::{apart, bounded};
use crate::command::check::Level;
use crate::command::list::ListedState;
use crate::command::overview::{self, Overview};
use crate::repo::{Alert, AlertSeverity};

/// Nagios gives up after 60 s.
const PATIENCE: Duration = Duration::from_secs(50);
/// So many alerts are told in the line, and so much of each.
const MOST: usize = 5;
const LONGEST: usize = 300;

/// `pgark check --monitor`
pub fn monitor(args: &CheckArgs, sources: &Sources) -> u8 {
    let cluster = sources.get("cluster.name").unwrap_or_default();
    let looked = look(args, sources);
    let (level, line) = match &looked {
        Ok((overview, rules)) => (level(&overview.alerts), line(overview, rules, cluster)),
        Err(failure) => (Level::Unknown, format!("PGARK UNKNOWN - {cluster}: {}", plain(&failure.message))),
    };
    match output::print(&format!("{line}\n")) {
        Ok(()) => exit::checked(level),
        Err(_) => exit::checked(Level::Unknown),
    }
}

fn look(args: &CheckArgs, sources: &Sources) -> Result<(Overview, AlertRules), Failure> {
    let watched = settings::watched(sources, !args.no_server)?;
    let rules = watched.rules.clone();
    let circumstances = circumstances();
    // A directory on a disk that does not answer must not hold the line back.
    let looking = apart(move || async move { overview::run(&watched, &circumstances).await });
    Ok((block_on(bounded(looking, Some(PATIENCE), None))?, rules))
}

fn level(alerts: &[Alert]) -> Level {
    match alerts.iter().map(|alert| alert.severity).max() {
        None => Level::Ok,
        Some(AlertSeverity::Medium) => Level::Warning,
        Some(AlertSeverity::High | AlertSeverity::Critical) => Level::Fail,
    }
}

fn line(overview: &Overview, rules: &AlertRules, cluster: &str) -> String {
    let word = match level(&overview.alerts) {
        Level::Ok => "OK",
        Level::Warning => "WARNING",
        Level::Fail => "CRITICAL",
        Level::Unknown => "UNKNOWN",
    };
    let text = match overview.alerts.as_slice() {
        [] => well(overview),
        alerts => {
            let some = alerts.iter().take(MOST).map(|alert| format!("{}: {}", alert.name(), short(&alert.message)));
            let mut some: Vec<String> = some.collect();
            if alerts.len() > MOST {
                some.push(format!("and {} more", alerts.len() - MOST));
            }
            some.join("; ")
        }
    };
    format!("PGARK {word} - {cluster}: {} | {}", plain(&text), figures(overview, rules))
}

fn well(overview: &Overview) -> String {
    let whole = overview.backups.iter().filter(|backup| backup.state == ListedState::Whole).count();
    let newest = overview.status.newest.as_ref();
    let up_to =
        newest.map_or("nothing is archived yet".to_owned(), |newest| format!("restorable up to {}", newest.lsn));
    format!("{up_to}, {whole} backups, {} dumps", overview.dumps.len())
}

/// Performance data: value, warning, critical, least, most.
fn figures(overview: &Overview, rules: &AlertRules) -> String {
    let mut figures = vec![format!("alerts={};;;0", overview.alerts.len())];
    let limit = |limit: Option<Duration>| limit.map_or(String::new(), |limit| limit.as_secs().to_string());
    let mut seconds = |label: &str, value: Option<f64>, most: Option<Duration>| {
        figures.extend(value.map(|value| format!("{label}={value:.0}s;;{};0", limit(most))));
    };
    let objectives = overview.objectives;
    seconds("loss_window", overview.loss_window().map(|window| window.as_secs_f64()), objectives.rpo);
    let age = |time: Option<jiff::Timestamp>| time.map(|time| overview.at.duration_since(time).as_secs_f64().max(0.0));
    let whole = overview.backups.iter().filter(|backup| backup.state == ListedState::Whole);
    let backup = whole.filter_map(|backup| backup.facts.as_ref()).map(|facts| facts.stopped).max();
    seconds("backup_age", age(backup), rules.backup_within);
    seconds("dump_age", age(overview.dumps.iter().map(|dump| dump.stopped).max()), rules.dump_within);
    seconds("restore_time", overview.measured_restore_seconds(), objectives.rto);
    let stored = overview.stored_bytes();
    figures.push(match overview.quota {
        None => format!("stored={stored}B;;;0"),
        Some(quota) => {
            let part = |percent: u8| u128::from(quota) * u128::from(percent) / 100;
            let (fills, full) = (part(rules.quota_percent), part(rules.quota_full_percent));
            format!("stored={stored}B;{fills};{full};0;{quota}")
        }
    });
    figures.join(" ")
}

fn short(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

/// A line has one line, and its text ends at the first `|`.
fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect::<String>().replace('|', "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn severities_become_levels_and_text_stays_in_its_line() {
        let alert = |severity| Alert {
            rule: "gap".into(),
            subject: String::new(),
            severity,
            message: "m".into(),
            hint: "h".into(),
        };
        let of = |severities: &[AlertSeverity]| level(&severities.iter().copied().map(alert).collect::<Vec<_>>());
        assert_eq!(of(&[]), Level::Ok);
        assert_eq!(of(&[AlertSeverity::Medium]), Level::Warning);
        assert_eq!(of(&[AlertSeverity::Medium, AlertSeverity::High]), Level::Fail);
        assert_eq!(of(&[AlertSeverity::Critical]), Level::Fail);
        assert_eq!(plain("a|b\nc\x1b"), "a/b c ");
        assert_eq!(short(&"ä".repeat(LONGEST)), "ä".repeat(LONGEST));
        assert_eq!(short(&"ä".repeat(LONGEST + 1)), format!("{}...", "ä".repeat(LONGEST)));
    }
}
