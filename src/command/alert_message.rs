//! What is sent of alerts: one message for all that is told by a look, as JSON for programs and as text for people.

use std::fmt::Write;

use jiff::Timestamp;
use serde::Serialize;

use crate::repo::{Alert, AlertSeverity, Notice, NoticeKind};

/// Whom a message is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct About {
    /// The cluster's name in the repository.
    pub cluster: String,
    /// The repository.
    pub repository: String,
    /// The machine that looks.
    pub host: String,
}

/// A message. Fields may be added to its JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    schema: u32,
    /// For people; chats show this field.
    pub text: String,
    /// Whether something stands.
    pub status: Status,
    /// The worst that is told to stand.
    pub severity: Option<AlertSeverity>,
    /// Whom it is about.
    #[serde(flatten)]
    pub about: About,
    /// When it was written.
    pub at: Timestamp,
    /// What is told.
    pub alerts: Vec<Notice>,
}

/// Whether something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Something does.
    Firing,
    /// All that is told is over.
    Resolved,
    /// Somebody tries whether messages arrive.
    Test,
}

/// So many are told in words.
const MOST: usize = 20;

impl Status {
    /// Its word in JSON and for commands.
    pub fn word(self) -> &'static str {
        match self {
            Status::Firing => "firing",
            Status::Resolved => "resolved",
            Status::Test => "test",
        }
    }
}

impl Message {
    /// Of these notices.
    pub fn of(alerts: Vec<Notice>, about: &About, at: Timestamp) -> Self {
        let standing = || alerts.iter().filter(|notice| notice.state != NoticeKind::Resolved);
        let severity = standing().map(|notice| notice.alert.severity).max();
        let status = if severity.is_some() { Status::Firing } else { Status::Resolved };
        let text = text(&alerts, about);
        Message { schema: 1, text, status, severity, about: about.clone(), at, alerts }
    }

    /// One that only tries the channels.
    pub fn test(about: &About, at: Timestamp) -> Self {
        let About { cluster, repository, host } = about;
        let text = format!("pgark {cluster}: a test: alerts of {repository} that {host} sends arrive here");
        Message { schema: 1, text, status: Status::Test, severity: None, about: about.clone(), at, alerts: vec![] }
    }

    /// The first line, for a subject.
    pub fn title(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }
}

fn text(alerts: &[Notice], about: &About) -> String {
    let mut text = match alerts {
        [one] => format!("pgark {}: {}", about.cluster, state(one)),
        many => {
            let over = many.iter().filter(|notice| notice.state == NoticeKind::Resolved).count();
            let worst = many.iter().filter(|notice| notice.state != NoticeKind::Resolved);
            let worst = worst.map(|notice| notice.alert.severity).max();
            match worst {
                Some(worst) => format!(
                    "pgark {}: {} alerts, the worst {worst}{}",
                    about.cluster,
                    many.len() - over,
                    if over > 0 { format!(", {over} resolved") } else { String::new() }
                ),
                None => format!("pgark {}: {over} alerts resolved", about.cluster),
            }
        }
    };
    for notice in alerts.iter().take(MOST) {
        let Alert { message, hint, .. } = &notice.alert;
        let _ = match notice.state {
            NoticeKind::Resolved => write!(text, "\n{}: it was: {message}", state(notice)),
            _ if hint.is_empty() => write!(text, "\n{}: {message}", state(notice)),
            _ => write!(text, "\n{}: {message}\n  hint: {hint}", state(notice)),
        };
    }
    if alerts.len() > MOST {
        let _ = write!(text, "\nand {} more: `pgark check --monitor` and `pgark status` tell all", alerts.len() - MOST);
    }
    let _ = write!(text, "\n{}, as {} sees it", about.repository, about.host);
    printable(&text)
}

fn state(notice: &Notice) -> String {
    let Alert { severity, .. } = &notice.alert;
    let name = notice.alert.name();
    let since = Timestamp::from_second(notice.since.as_second()).unwrap_or(notice.since);
    match notice.state {
        NoticeKind::New => format!("{severity}: {name}"),
        NoticeKind::Raised => format!("{severity} now: {name}"),
        NoticeKind::Repeated => format!("{severity} since {since}: {name}"),
        NoticeKind::Resolved => format!("resolved: {name}"),
    }
}

/// Names of objects and words of servers may hold anything.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() && letter != '\n' { '?' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About { cluster: "main".into(), repository: "s3://bucket/pg".into(), host: "db1".into() }
    }

    fn notice(state: NoticeKind, severity: AlertSeverity, rule: &str) -> Notice {
        let alert = Alert {
            rule: rule.into(),
            subject: String::new(),
            severity,
            message: "there is \x1b[31mnone".into(),
            hint: "take one".into(),
        };
        Notice { state, alert, since: "2026-11-23T12:00:00.5Z".parse().unwrap() }
    }

    fn of(notices: Vec<Notice>) -> Message {
        Message::of(notices, &about(), "2026-11-23T12:00:00Z".parse().unwrap())
    }

    #[test]
    fn one_look_is_one_message() {
        let message = of(vec![notice(NoticeKind::New, AlertSeverity::Critical, "backup-missing")]);
        assert_eq!(
            message.text,
            "pgark main: critical: backup-missing\ncritical: backup-missing: there is ?[31mnone\n  hint: take one\n\
             s3://bucket/pg, as db1 sees it"
        );
        let many = of((0..40).map(|_| notice(NoticeKind::Repeated, AlertSeverity::High, "gap")).collect());
        assert!(many.title() == "pgark main: 40 alerts, the worst high" && many.text.contains("\nand 20 more"));
        let mixed = of(vec![
            notice(NoticeKind::Raised, AlertSeverity::High, "quota"),
            notice(NoticeKind::Resolved, AlertSeverity::Critical, "gap"),
        ]);
        assert_eq!(mixed.title(), "pgark main: 1 alerts, the worst high, 1 resolved");
        assert_eq!((mixed.status, mixed.severity), (Status::Firing, Some(AlertSeverity::High)));
        let over = of(vec![notice(NoticeKind::Resolved, AlertSeverity::Critical, "gap")]);
        assert_eq!((over.title(), over.status, over.severity), ("pgark main: resolved: gap", Status::Resolved, None));
    }

    #[test]
    fn the_json_is_what_the_manual_says() {
        let message = of(vec![notice(NoticeKind::New, AlertSeverity::Critical, "gap")]);
        let json = serde_json::to_value(&message).unwrap();
        let page = include_str!("../../docs/monitor.md");
        for field in json.as_object().unwrap().keys().chain(json["alerts"][0].as_object().unwrap().keys()) {
            assert!(page.contains(&format!("\"{field}\"")), "docs/monitor.md does not show `{field}`");
        }
        assert_eq!((&json["schema"], &json["status"]), (&1.into(), &"firing".into()));
        assert_eq!(Message::test(&about(), message.at).status.word(), "test");
    }
}
