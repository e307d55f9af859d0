//! Alerts, sent: what stands is judged by its memory of the looks before, and what is due goes out on every channel.
//!
//! The memory lies in a file, so that a new process tells nothing twice. It is written before anything is sent, with what is owed to each
//! channel: what a channel did not take is sent with its next message, at the next look. A message may so arrive twice, but is never lost.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

pub use super::alert_channels::Channel;
use super::alert_channels::{Delivery, send_all};
pub use super::alert_mail::{Encryption, Mail, Sendmail, Smtp};
pub use super::alert_message::{About, Message};
pub use super::alert_program::AlertProgram;
use super::alert_rules::{self, AlertRules};
pub use super::alert_webhook::Webhook;
use super::failure::{Failure, FailureKind};
use super::overview::Overview;
use crate::repo::alert_state::{Looked, NoticeKind};
use crate::repo::{Alert, AlertMemory, Notice, Timing};

/// How alerts are sent.
#[derive(Clone, Debug)]
pub struct AlertSettings {
    /// What is an alert.
    pub rules: AlertRules,
    /// When it is told.
    pub timing: Timing,
    /// On which ways.
    pub channels: Vec<Channel>,
    /// How long each way may take.
    pub deadline: Duration,
    /// What remembers what was told; `None`: nothing does.
    pub state: Option<PathBuf>,
    /// Whom it is about.
    pub about: About,
}

/// What a look made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AlarmReport {
    schema: u32,
    /// What stands.
    pub alerts: Vec<Alert>,
    /// What was told now.
    pub told: Vec<Notice>,
    /// What became of it on each way.
    pub deliveries: Vec<Delivery>,
}

/// Watches over the looks.
#[derive(Debug)]
pub struct Alarm {
    settings: AlertSettings,
    kept: Kept,
    /// What is known of each way that does not take messages now.
    failing: BTreeMap<&'static str, Failing>,
    /// Held as long as this process tells.
    _lock: Option<File>,
}

/// A way that does not take messages.
#[derive(Clone, Copy, Debug)]
struct Failing {
    tries: u32,
    /// Before that it is tried again only when there is something new.
    next: Timestamp,
}

/// Pauses between tries grow up to this.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_hours(1);

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    format: String,
    memory: AlertMemory,
    /// What each way has not taken yet.
    owed: BTreeMap<String, Vec<Notice>>,
}

const FORMAT: &str = "pgark-alerts-1";
/// No more is owed to a way: the newest.
const MOST_OWED: usize = 200;
/// The file is small.
const LARGEST: u64 = 16 << 20;

impl Alarm {
    /// With the memory of the last process. A file that cannot be read is as none, with a warning: alerts are told again.
    ///
    /// Only one process tells at a time: a second one fails.
    pub fn new(settings: AlertSettings) -> Result<Self, Failure> {
        let lock = settings.state.as_deref().map(locked).transpose()?.flatten();
        let kept = settings.state.as_deref().map_or(Ok(None), read).unwrap_or_else(|error| {
            let path = settings.state.as_deref().unwrap_or(Path::new("")).display();
            tracing::warn!("`{path}` cannot be read ({error}): what it remembers is told again");
            None
        });
        Ok(Alarm { settings, kept: kept.unwrap_or_default(), failing: BTreeMap::new(), _lock: lock })
    }

    /// Takes a look in, sends what is due, and waits no longer for it than the deadline.
    pub async fn look(&mut self, looked: Result<&Overview, &Failure>, now: Timestamp) -> AlarmReport {
        let blind = looked.err().and_then(|failure| alert_rules::blind(failure, &self.settings.rules));
        let alerts: Vec<Alert> = match looked {
            Ok(overview) => overview.alerts.clone(),
            Err(_) => blind.iter().cloned().collect(),
        };
        let found = match looked {
            Ok(overview) => Looked::Found(&alerts, alert_rules::untold(overview)),
            Err(_) => Looked::Blind(blind.as_ref()),
        };
        let before = self.kept.clone();
        let told = self.kept.memory.look(found, now, &self.settings.timing);
        for channel in &self.settings.channels {
            owe(self.kept.owed.entry(channel.word().to_owned()).or_default(), &told);
        }
        self.keep(&before);
        let urgent = told.iter().any(|notice| matches!(notice.state, NoticeKind::New | NoticeKind::Raised));
        let deliveries = self.deliver(now, urgent).await;
        AlarmReport { schema: 1, alerts, told, deliveries }
    }

    /// Sends a test message on every way.
    pub async fn test(&self, now: Timestamp) -> Vec<Delivery> {
        let message = Arc::new(Message::test(&self.settings.about, now));
        let messages = self.settings.channels.iter().map(|channel| (channel, Arc::clone(&message))).collect();
        send_all(messages, self.settings.deadline).await
    }

    /// Every way, and whether it takes messages, as far as is known.
    pub fn channels(&self) -> impl Iterator<Item = (&'static str, bool)> {
        let words = self.settings.channels.iter().map(Channel::word);
        words.map(|word| (word, !self.failing.contains_key(word)))
    }

    async fn deliver(&mut self, now: Timestamp, urgent: bool) -> Vec<Delivery> {
        // One that does its work and then fails would do it again at each look.
        let waits = |channel: &Channel| {
            let failing = self.failing.get(channel.word());
            !urgent && failing.is_some_and(|failing| now < failing.next)
        };
        let owed = |channel: &Channel| {
            if waits(channel) {
                return None;
            }
            let owed = self.kept.owed.get(channel.word()).filter(|owed| !owed.is_empty())?;
            Some(Arc::new(Message::of(owed.clone(), &self.settings.about, now)))
        };
        let messages: Vec<_> =
            self.settings.channels.iter().filter_map(|channel| Some((channel, owed(channel)?))).collect();
        let deliveries = send_all(messages, self.settings.deadline).await;
        let before = self.kept.clone();
        for delivery in &deliveries {
            match &delivery.problem {
                None => {
                    self.kept.owed.remove(delivery.channel);
                    self.failing.remove(delivery.channel);
                }
                Some(problem) => {
                    tracing::error!("alerts do not go out by {}: {problem}; they are sent again", delivery.channel);
                    let tries = self.failing.get(delivery.channel).map_or(0, |failing| failing.tries);
                    let pause = SignedDuration::from_mins(1_i64 << tries.min(6)).min(LONGEST_PAUSE);
                    let next = now.checked_add(pause).unwrap_or(now);
                    self.failing.insert(delivery.channel, Failing { tries: tries + 1, next });
                }
            }
        }
        self.keep(&before);
        deliveries
    }

    /// Writes the file, if there is one and something is new.
    fn keep(&mut self, before: &Kept) {
        let Some(path) = self.settings.state.as_deref().filter(|_| self.kept != *before) else { return };
        self.kept.format = FORMAT.to_owned();
        if let Err(error) = write(path, &self.kept) {
            tracing::error!(
                "`{}` cannot be written ({error}): a new process tells again what it does not know",
                path.display()
            );
        }
    }
}

/// Takes the lock beside the file; `None`: there can be none, so that the file cannot be written either.
fn locked(state: &Path) -> Result<Option<File>, Failure> {
    let mut path = state.as_os_str().to_owned();
    path.push(".lock");
    let lock = match File::options().create(true).append(true).open(&path) {
        Ok(lock) => lock,
        Err(error) => {
            tracing::warn!(
                "`{}` cannot be made ({error}): another process may tell the same",
                Path::new(&path).display()
            );
            return Ok(None);
        }
    };
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => {
            let message = format!("another process tells alerts by `{}`", state.display());
            Err(Failure::new(FailureKind::Conflict, message).with_hint(
                "`pgark serve` and `pgark alert` do the same: run one of them, or give each a `state` of its own",
            ))
        }
        Err(TryLockError::Error(error)) => {
            tracing::warn!(
                "`{}` cannot be locked ({error}): another process may tell the same",
                Path::new(&path).display()
            );
            Ok(None)
        }
    }
}

/// Of an alert only the newest word is owed. What was never told and is over need not be.
fn owe(owed: &mut Vec<Notice>, told: &[Notice]) {
    for notice in told {
        owed.retain(|old| !old.alert.is_same(&notice.alert));
        owed.push(notice.clone());
    }
    let surplus = owed.len().saturating_sub(MOST_OWED);
    owed.drain(..surplus);
}

fn read(path: &Path) -> io::Result<Option<Kept>> {
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let kept: Kept = serde_json::from_reader(io::BufReader::new(io::Read::take(file, LARGEST)))?;
    match kept.format == FORMAT {
        true => Ok(Some(kept)),
        false => Err(io::Error::other(format!("its format is `{}`, not `{FORMAT}`", kept.format))),
    }
}

/// Under another name first: a process that is killed leaves the old one or the new.
fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    serde_json::to_writer(&mut file, kept)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that does its work and then fails is not asked to do it again each minute.
    #[tokio::test]
    async fn a_way_that_fails_is_tried_less_and_less_often() {
        let place = tempfile::tempdir().unwrap();
        let told = place.path().join("told");
        let command = format!("echo >> {}; exit 1", told.display());
        let timing = Timing {
            high_after: Duration::ZERO,
            medium_after: Duration::ZERO,
            settle: Duration::from_secs(3600),
            repeat: Duration::from_secs(24 * 3600),
            repeat_most: Duration::from_secs(24 * 3600),
        };
        let about = About { cluster: "main".into(), repository: "r".into(), host: "h".into() };
        let mut alarm = Alarm::new(AlertSettings {
            rules: AlertRules::default(),
            timing,
            channels: vec![Channel::Command(AlertProgram { command })],
            deadline: Duration::from_secs(5),
            state: None,
            about,
        })
        .unwrap();
        let away = Failure::new(FailureKind::Unavailable, "it does not answer");
        let tries = || std::fs::read_to_string(&told).unwrap_or_default().lines().count();
        let mut before = 0;
        let mut tried = Vec::new();
        for minute in 0..128 {
            let now = Timestamp::from_second(1_795_000_000 + minute * 60).unwrap();
            alarm.look(Err(&away), now).await;
            if tries() > before {
                tried.push(minute);
            }
            before = tries();
        }
        assert_eq!(tried, [0, 1, 3, 7, 15, 31, 63, 123]);
    }
}
