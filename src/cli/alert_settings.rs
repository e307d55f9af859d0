//! From sources to the settings of alerts.

use lettre::message::{Mailbox, Mailboxes};

use super::sources::Sources;
use super::{settings, values};
use crate::command::alert::{About, AlertProgram, AlertSettings, Channel, Encryption, Mail, Sendmail, Smtp, Webhook};
use crate::command::alert_rules::{AlertRules, Rule};
use crate::command::{Failure, FailureKind};
use crate::repo::{AlertSeverity, Timing};
use crate::storage::s3_credentials::Secret;

/// What is an alert.
pub fn rules(sources: &Sources) -> Result<AlertRules, Failure> {
    let age = |name: &str| sources.get(&format!("alerts.{name}")).and_then(values::age);
    let run_within = age("run_within").ok_or_else(|| sources.complain("alerts.run_within", "is not an age"))?;
    Ok(AlertRules {
        severities: Rule::ALL.into_iter().map(|rule| (rule, severity(sources, rule))).collect(),
        backup_within: age("backup_within"),
        dump_within: age("dump_within"),
        drill_within: age("drill_within"),
        late: age("late").ok_or_else(|| sources.complain("alerts.late", "is not an age"))?,
        run_within,
        clock_tolerance: settings::duration(sources, "alerts.clock_tolerance")?,
        quota_percent: settings::integer(sources, "alerts.quota_percent")?,
        quota_full_percent: settings::integer(sources, "alerts.quota_full_percent")?,
        expected: Vec::new(),
    })
}

fn severity(sources: &Sources, rule: Rule) -> Option<AlertSeverity> {
    match sources.get(&format!("alerts.{}", rule.word().replace('-', "_")))? {
        "critical" => Some(AlertSeverity::Critical),
        "high" => Some(AlertSeverity::High),
        "medium" => Some(AlertSeverity::Medium),
        _ => None,
    }
}

/// How alerts are sent.
pub fn alerts(sources: &Sources, host: &str) -> Result<AlertSettings, Failure> {
    let duration = |name: &str| settings::duration(sources, &format!("alerts.{name}"));
    let state = settings::path(sources, "alerts.state").or_else(|| {
        let given = std::env::var_os("STATE_DIRECTORY")?;
        let first = std::env::split_paths(&given).next().filter(|first| first.is_absolute())?;
        Some(first.join("alerts.json"))
    });
    let text = |path: &str| sources.get(path).unwrap_or_default().to_owned();
    Ok(AlertSettings {
        rules: rules(sources)?,
        timing: Timing {
            high_after: duration("high_after")?,
            medium_after: duration("medium_after")?,
            settle: duration("settle")?,
            repeat: duration("repeat")?,
            repeat_most: duration("repeat_most")?,
        },
        channels: channels(sources, host)?,
        deadline: duration("deadline")?,
        state,
        about: About { cluster: text("cluster.name"), repository: text("repo.url"), host: host.to_owned() },
    })
}

fn channels(sources: &Sources, host: &str) -> Result<Vec<Channel>, Failure> {
    let mut channels = Vec::new();
    let ca_file = settings::path(sources, "alerts.ca_file");
    let url = match settings::path(sources, "alerts.webhook_file") {
        Some(_) if sources.get("alerts.webhook_url").is_some() => {
            return Err(sources.complain("alerts.webhook_url", "and `alerts.webhook_file` exclude each other"));
        }
        Some(file) => Some(Secret::in_file(file, "alerts.webhook_file")),
        None => settings::secret(sources, "alerts.webhook_url")?,
    };
    channels.extend(url.map(|url| Channel::Webhook(Webhook { url, ca_file: ca_file.clone() })));
    if let Some(to) = sources.get("alerts.mail_to") {
        let wrong = |path: &str| sources.complain(path, "is no mail address");
        let to: Mailboxes = to.parse().map_err(|_| wrong("alerts.mail_to"))?;
        let from = sources.get("alerts.mail_from").map_or_else(|| format!("pgark@{host}"), str::to_owned);
        let from: Mailbox = from.parse().map_err(|_| wrong("alerts.mail_from"))?;
        let mail = Mail { from, to: to.into_iter().collect() };
        channels.push(match sources.get("alerts.smtp_url") {
            Some(url) => {
                let password = settings::secret(sources, "alerts.smtp_password")?;
                let complain = |why: &str| sources.complain("alerts.smtp_url", why);
                let (host, port, encryption, user) = smtp(url).map_err(complain)?;
                let login = match (user, password) {
                    (Some(user), Some(password)) => Some((user, password)),
                    (None, None) => None,
                    (Some(_), None) => return Err(complain("names a user: it needs `alerts.smtp_password_file`")),
                    (None, Some(_)) => return Err(complain("must name the user of the password: `smtp://user@host`")),
                };
                Channel::Smtp(mail, Smtp { host, port, encryption, login, ca_file })
            }
            None => {
                let program = settings::path(sources, "alerts.sendmail").unwrap_or_default();
                Channel::Sendmail(mail, Sendmail { program })
            }
        });
    }
    if let Some(command) = sources.get("alerts.command") {
        channels.push(Channel::Command(AlertProgram { command: command.to_owned() }));
    }
    Ok(channels)
}

type Server = (String, u16, Encryption, Option<String>);

/// Takes the URL of a mail server apart. Only to this very machine anything goes in the clear.
fn smtp(url: &str) -> Result<Server, &'static str> {
    const SHAPE: &str = "must be like `smtp://user@host:587` or `smtps://user@host`, without a password";
    let (tls, rest) = match url.split_once("://") {
        Some(("smtp", rest)) => (false, rest),
        Some(("smtps", rest)) => (true, rest),
        _ => return Err(SHAPE),
    };
    let (user, place) = match rest.rsplit_once('@') {
        Some((user, _)) if user.contains(':') || user.is_empty() => return Err(SHAPE),
        Some((user, place)) => (Some(user.replace("%40", "@")), place),
        None => (None, rest),
    };
    let authority: http::uri::Authority = place.trim_end_matches('/').parse().map_err(|_| SHAPE)?;
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let here = ["localhost", "127.0.0.1", "::1"].contains(&host.as_str());
    let (encryption, port) = match (tls, here) {
        (true, _) => (Encryption::Tls, 465),
        (false, true) => (Encryption::None, 25),
        (false, false) => (Encryption::StartTls, 587),
    };
    Ok((host, authority.port_u16().unwrap_or(port), encryption, user))
}

/// A failure unless there is a way to send on.
pub fn some_channel(settings: &AlertSettings) -> Result<(), Failure> {
    match settings.channels.is_empty() {
        false => Ok(()),
        true => Err(Failure::new(FailureKind::Usage, "nobody would get alerts: no way to send them is set")
            .with_hint("set `webhook_file`, `mail_to` or `command` under `[alerts]`: docs/monitor.md")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::keys;

    #[test]
    fn every_rule_has_a_setting_with_its_severity() {
        for rule in Rule::ALL {
            let key = keys::find("alerts", &rule.word().replace('-', "_")).unwrap_or_else(|| panic!("{rule}"));
            let severity = rule.severity().map_or("off".to_owned(), |severity| severity.to_string());
            assert_eq!(key.default, Some(severity.as_str()), "{rule}");
        }
    }

    #[test]
    fn mail_servers_elsewhere_need_tls() {
        let of = |url: &str| smtp(url).ok();
        let server = |host: &str, port, encryption, user: Option<&str>| {
            Some((host.to_owned(), port, encryption, user.map(str::to_owned)))
        };
        assert_eq!(of("smtp://mail.example"), server("mail.example", 587, Encryption::StartTls, None));
        assert_eq!(of("smtp://127.0.0.2:25"), server("127.0.0.2", 25, Encryption::StartTls, None));
        assert_eq!(of("smtp://localhost"), server("localhost", 25, Encryption::None, None));
        assert_eq!(of("smtp://[::1]:2525/"), server("::1", 2525, Encryption::None, None));
        assert_eq!(of("smtps://me%40x@m.example"), server("m.example", 465, Encryption::Tls, Some("me@x")));
        for wrong in
            ["", "mail.example", "http://mail.example", "smtp://user:secret@mail.example", "smtp://@m", "smtp://"]
        {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
