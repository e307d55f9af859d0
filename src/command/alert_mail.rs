//! Alerts as mail: by the local `sendmail`, or by a server that speaks SMTP.

use std::path::PathBuf;
use std::process::Command;

use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};

use super::alert_channels::Refusal;
use super::alert_message::Message;
use super::alert_program::feed;
use crate::repo::NoticeKind;
use crate::storage::s3_credentials::Secret;
use crate::storage::settings_file;

/// From whom, and to whom.
#[derive(Clone, Debug)]
pub struct Mail {
    /// The sender.
    pub from: Mailbox,
    /// The receivers, at least one.
    pub to: Vec<Mailbox>,
}

/// The local `sendmail`, or whatever is called like that.
#[derive(Clone, Debug)]
pub struct Sendmail {
    /// Where it is.
    pub program: PathBuf,
}

/// A mail server.
#[derive(Clone, Debug)]
pub struct Smtp {
    /// Its name.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How it is spoken to.
    pub encryption: Encryption,
    /// As whom to log in.
    pub login: Option<(String, Secret)>,
    /// Certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// How a mail server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// In the clear: on this machine only.
    None,
    /// In the clear until it agrees to TLS, which it must.
    StartTls,
    /// TLS from the first byte.
    Tls,
}

impl Mail {
    fn letter(&self, message: &Message) -> Result<lettre::Message, Refusal> {
        let mut letter = lettre::Message::builder().from(self.from.clone()).subject(message.title());
        for to in &self.to {
            letter = letter.to(to.clone());
        }
        let mut body = message.text.clone();
        for notice in message.alerts.iter().filter(|notice| notice.state != NoticeKind::Resolved) {
            body.push_str(&format!("\n\n{} stands since {}", notice.alert.name(), notice.since));
        }
        body.push('\n');
        letter.header(ContentType::TEXT_PLAIN).body(body).map_err(Refusal::lasting)
    }
}

impl Sendmail {
    pub(super) async fn send(&self, mail: &Mail, message: &Message) -> Result<(), Refusal> {
        let letter = mail.letter(message)?.formatted();
        let mut command = Command::new(&self.program);
        command.args(["-i", "--"]).args(mail.to.iter().map(|to| to.email.to_string()));
        feed(&mut command, letter)
            .await
            .map_err(|refusal| Refusal { why: format!("`{}`: {}", self.program.display(), refusal.why), ..refusal })
    }
}

impl Smtp {
    pub(super) async fn send(&self, mail: &Mail, message: &Message) -> Result<(), Refusal> {
        let letter = mail.letter(message)?;
        let settings = self.clone();
        let transport = tokio::task::spawn_blocking(move || settings.transport()).await.map_err(Refusal::lasting)??;
        transport.send(letter).await.map(drop).map_err(|error| match error.is_permanent() {
            true => Refusal::lasting(chain(&error)),
            false => Refusal::passing(chain(&error)),
        })
    }

    fn transport(&self) -> Result<AsyncSmtpTransport<Tokio1Executor>, Refusal> {
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&self.host).port(self.port);
        builder = builder.tls(match self.encryption {
            Encryption::None => Tls::None,
            Encryption::StartTls => Tls::Required(self.tls()?),
            Encryption::Tls => Tls::Wrapper(self.tls()?),
        });
        if let Some((user, password)) = &self.login {
            let password = password.reveal().map_err(|e| Refusal::passing(e.message))?;
            builder = builder.credentials(Credentials::new(user.clone(), password));
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(builder.hello_name(ClientId::Domain(host)).build())
    }

    fn tls(&self) -> Result<TlsParameters, Refusal> {
        let mut tls = TlsParameters::builder(self.host.clone());
        if let Some(path) = &self.ca_file {
            let wrong = |why: String| Refusal::lasting(format!("`alerts.ca_file` {}: {why}", path.display()));
            let pem = settings_file::read(path).map_err(|e| wrong(e.to_string()))?.bytes;
            tls = tls.certificate_store(CertificateStore::None);
            tls = tls.add_root_certificate(Certificate::from_pem(&pem).map_err(|e| wrong(e.to_string()))?);
        }
        tls.build_rustls().map_err(|e| Refusal::lasting(chain(&e)))
    }
}

/// What happened, with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !text.contains(&why) {
            text = format!("{text}: {why}");
        }
        cause = error.source();
    }
    text
}
