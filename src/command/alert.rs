//! Alerts, sent: what stands is judged by its memory of the looks before, and what is due goes out on every channel.
//!
//! The memory lies in a file, so that a new process tells nothing twice. It is written before anything is sent, with what is owed to each
//! channel: what a channel did not take is sent with its next message, at the next look. A message may so arrive twice, but is never lost.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use super::alert_channels::Channel;
use super::alert_channels::{Delivery, send_all};
pub use super::alert_mail::{Encryption, Mail, Sendmail, Smtp};
pub use super::alert_message::{About, Message};
pub use super::alert_program::AlertProgram;
use super::alert_rules::{self, AlertRules};
pub use super::alert_webhook::Webhook;
use super::failure::Failure;
use super::overview::Overview;
use crate::repo::alert_state::Looked;
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
    /// Why each way does not take messages now.
    failing: BTreeMap<&'static str, String>,
}

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
    pub fn new(settings: AlertSettings) -> Self {
        let kept = settings.state.as_deref().map_or(Ok(None), read).unwrap_or_else(|error| {
            let path = settings.state.as_deref().unwrap_or(Path::new("")).display();
            tracing::warn!("`{path}` cannot be read ({error}): what it remembers is told again");
            None
        });
        Alarm { settings, kept: kept.unwrap_or_default(), failing: BTreeMap::new() }
    }

    /// Takes a look in, sends what is due, and waits no longer for it than the deadline.
    pub async fn look(&mut self, looked: Result<&Overview, &Failure>, now: Timestamp) -> AlarmReport {
        let blind = looked.err().and_then(|failure| alert_rules::blind(failure, &self.settings.rules));
        let alerts: Vec<Alert> = match looked {
            Ok(overview) => overview.alerts.clone(),
            Err(_) => blind.iter().cloned().collect(),
        };
        let found = match looked {
            Ok(_) => Looked::Found(&alerts),
            Err(_) => Looked::Blind(blind.as_ref()),
        };
        let before = self.kept.clone();
        let told = self.kept.memory.look(found, now, &self.settings.timing);
        for channel in &self.settings.channels {
            owe(self.kept.owed.entry(channel.word().to_owned()).or_default(), &told);
        }
        self.keep(&before);
        let deliveries = self.deliver(now).await;
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

    async fn deliver(&mut self, now: Timestamp) -> Vec<Delivery> {
        let owed = |channel: &Channel| {
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
                    self.failing.insert(delivery.channel, problem.clone());
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
