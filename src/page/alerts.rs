//! What somebody must be told of: alerts, the worst first, and what `status` finds besides.

use maud::{Markup, html};

use super::verdict::{Mood, badge};
use super::words::{message, moment, said};
use crate::command::check::{Finding, Level};
use crate::command::overview::Overview;
use crate::repo::{Alert, AlertSeverity};

pub(super) fn section(overview: &Overview) -> Markup {
    let mut alerts: Vec<&Alert> = overview.alerts.iter().collect();
    alerts.sort_by_key(|alert| std::cmp::Reverse(alert.severity));
    // What an alert says in the same words is not said twice.
    let told = |finding: &&Finding| !alerts.iter().any(|alert| alert.message == finding.message);
    let findings: Vec<&Finding> =
        overview.status.findings.iter().filter(|finding| finding.level > Level::Ok).filter(told).collect();
    html! {
        section #alerts aria-labelledby="h-alerts" {
            h2 #h-alerts { "Alerts" }
            @if alerts.is_empty() && findings.is_empty() {
                p { "None." }
            }
            ul.alerts {
                @for alert in &alerts { (one(alert_mood(alert), &severity(alert), &about(alert), (&alert.message, Some(&alert.hint)))) }
                @for finding in &findings {
                    @let hint = finding.hint.as_deref();
                    (one(finding_mood(finding), word(finding.level), finding.check, (&finding.message, hint)))
                }
            }
        }
    }
}

/// What is shown is old.
pub(super) fn blind(overview: &Overview, trouble: &str) -> Markup {
    let text = format!(
        "This page shows what was seen at {}. Since then the repository cannot be looked at: {trouble}",
        moment(overview.at)
    );
    html! {
        section #blind aria-label="No newer look" {
            ul.alerts { (one(Mood::Bad, "critical", "old", (&text, None))) }
        }
    }
}

fn one(mood: Mood, word: &str, about: &str, (text, hint): (&str, Option<&str>)) -> Markup {
    html! {
        li class=(mood.class()) {
            div { (badge(mood, word)) " " span.soft { (said(about)) } }
            p { (message(text)) }
            @if let Some(hint) = hint.filter(|hint| !hint.is_empty()) { p.note { (message(hint)) } }
        }
    }
}

fn alert_mood(alert: &Alert) -> Mood {
    if alert.severity == AlertSeverity::Critical { Mood::Bad } else { Mood::Look }
}

fn severity(alert: &Alert) -> String {
    let soon = match alert.severity {
        AlertSeverity::Critical => "at once",
        AlertSeverity::High => "within an hour",
        AlertSeverity::Medium => "within a day",
    };
    format!("{}: {soon}", alert.severity)
}

fn about(alert: &Alert) -> String {
    match alert.subject.is_empty() {
        true => alert.rule.clone(),
        false => format!("{}, {}", alert.rule, alert.subject),
    }
}

fn finding_mood(finding: &Finding) -> Mood {
    if finding.level == Level::Fail { Mood::Bad } else { Mood::Look }
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "in order",
        Level::Warning => "warning",
        Level::Unknown => "not known",
        Level::Fail => "failed",
    }
}
