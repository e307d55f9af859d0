//! The ways on which alerts are sent: each is tried for itself, within a deadline, and none keeps another waiting.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout_at};

use super::alert_mail::{Mail, Sendmail, Smtp};
use super::alert_message::Message;
use super::alert_program::AlertProgram;
use super::alert_webhook::Webhook;

/// A way.
#[derive(Clone, Debug)]
pub enum Channel {
    /// A POST to a URL.
    Webhook(Webhook),
    /// Mail, by the local `sendmail`.
    Sendmail(Mail, Sendmail),
    /// Mail, by a server.
    Smtp(Mail, Smtp),
    /// A command.
    Command(AlertProgram),
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) why: String,
    /// It may be taken when it is sent again.
    pub(super) again: bool,
}

impl Refusal {
    pub(super) fn passing(why: impl fmt::Display) -> Self {
        Refusal { why: why.to_string(), again: true }
    }

    pub(super) fn lasting(why: impl fmt::Display) -> Self {
        Refusal { why: why.to_string(), again: false }
    }
}

/// What became of a message on a way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Delivery {
    /// The way.
    pub channel: &'static str,
    /// Why it did not arrive; `None`: it was taken. No secrets.
    pub problem: Option<String>,
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);

impl Channel {
    /// What it is called in logs, metrics and JSON.
    pub fn word(&self) -> &'static str {
        match self {
            Channel::Webhook(_) => "webhook",
            Channel::Sendmail(..) => "sendmail",
            Channel::Smtp(..) => "smtp",
            Channel::Command(_) => "command",
        }
    }

    async fn send_once(&self, message: &Message) -> Result<(), Refusal> {
        match self {
            Channel::Webhook(webhook) => webhook.send(message).await,
            Channel::Sendmail(mail, sendmail) => sendmail.send(mail, message).await,
            Channel::Smtp(mail, smtp) => smtp.send(mail, message).await,
            Channel::Command(program) => program.send(message).await,
        }
    }

    /// Sends, and again while that may help and there is time.
    pub async fn send(&self, message: Arc<Message>, within: Duration) -> Delivery {
        let deadline = Instant::now() + within;
        let mut pause = FIRST_PAUSE;
        let mut last: Option<String> = None;
        let problem = loop {
            let late = || {
                let late = format!("it was not taken within {}", humantime::format_duration(within));
                last.as_ref().map_or(late.clone(), |last| format!("{late}: {last}"))
            };
            match timeout_at(deadline, self.send_once(&message)).await {
                Err(_) => break Some(late()),
                Ok(Ok(())) => break None,
                Ok(Err(refusal)) if !refusal.again || Instant::now() + pause >= deadline => break Some(refusal.why),
                Ok(Err(refusal)) => last = Some(refusal.why),
            }
            sleep(pause).await;
            pause *= 2;
        };
        Delivery { channel: self.word(), problem }
    }
}

/// Sends each message on its way, all at once.
pub(super) async fn send_all(messages: Vec<(&Channel, Arc<Message>)>, within: Duration) -> Vec<Delivery> {
    join_all(messages.into_iter().map(|(channel, message)| channel.send(message, within))).await
}
