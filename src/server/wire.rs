//! PostgreSQL's messages over a socket: framing, deadlines, the login.
//!
//! Source: "Frontend/Backend Protocol" in PostgreSQL's documentation. The messages themselves are `postgres-protocol`'s.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::{COPY_OUT_RESPONSE_TAG, ErrorFields, Header, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::channel_binding::{Binding, ChannelBinding};
use super::dial::Socket;
use super::session::ServerError;

/// A connection on which messages go back and forth.
pub(super) struct Wire {
    socket: Box<dyn Socket>,
    inbox: BytesMut,
}

/// What the server says when it complains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Complaint {
    /// The five characters of `errcodes.txt`.
    pub(super) code: String,
    pub(super) message: String,
    /// The function in PostgreSQL's sources; unlike the message it is in no language.
    pub(super) routine: String,
}

/// Why a command was not carried out.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The server says so; the connection can go on.
    Complaint(Complaint),
    /// The connection is of no use any more.
    Broken(ServerError),
}

impl From<ServerError> for Refusal {
    fn from(error: ServerError) -> Self {
        Refusal::Broken(error)
    }
}

impl From<Refusal> for ServerError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Complaint(complaint) => ServerError(complaint.message),
            Refusal::Broken(error) => error,
        }
    }
}

/// Who logs in, and how it is proven.
#[derive(Clone, Copy)]
pub(super) struct Login<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<&'a str>,
    pub(super) channel_binding: ChannelBinding,
    pub(super) binding: &'a Binding,
}

/// `CopyBothResponse`, which `postgres-protocol` does not know.
const COPY_BOTH_RESPONSE_TAG: u8 = b'W';
/// No message of a walsender comes near.
const LONGEST_MESSAGE: usize = 64 << 20;
const ROOM: usize = 256 << 10;
/// For each step of the login, and for sending.
const PATIENCE: Duration = Duration::from_secs(10);

impl Wire {
    pub(super) fn new(socket: Box<dyn Socket>) -> Self {
        Wire { socket, inbox: BytesMut::with_capacity(ROOM) }
    }

    /// Sends what `write` puts together.
    pub(super) async fn send(
        &mut self,
        write: impl FnOnce(&mut BytesMut) -> io::Result<()>,
    ) -> Result<(), ServerError> {
        let mut message = BytesMut::new();
        write(&mut message).map_err(|e| ServerError(e.to_string()))?;
        match timeout(PATIENCE, self.socket.write_all(&message)).await {
            Ok(sent) => sent.map_err(|e| lost(&e)),
            Err(_) => Err(silent(PATIENCE)),
        }
    }

    /// The next message, if it begins to arrive within `patience` and goes on doing so. Nothing is lost when this is dropped. A `CopyBothResponse` is
    /// given as the `CopyOutResponse` that it equals but for its tag.
    pub(super) async fn next(&mut self, patience: Duration) -> Result<Message, ServerError> {
        loop {
            let malformed = |e: io::Error| ServerError(format!("PostgreSQL sent what is not its protocol: {e}"));
            if let Some(header) = Header::parse(&self.inbox).map_err(malformed)? {
                let length = usize::try_from(header.len()).unwrap_or(usize::MAX);
                if length > LONGEST_MESSAGE {
                    return Err(malformed(io::Error::other(format!("a message of {length} bytes"))));
                }
                if header.tag() == COPY_BOTH_RESPONSE_TAG {
                    self.inbox[0] = COPY_OUT_RESPONSE_TAG;
                }
                if let Some(message) = Message::parse(&mut self.inbox).map_err(malformed)? {
                    return Ok(message);
                }
            }
            self.inbox.reserve(ROOM);
            let mut room = (&mut self.inbox).limit(ROOM);
            match timeout(patience, self.socket.read_buf(&mut room)).await {
                Ok(Ok(0)) => return Err(ServerError("PostgreSQL closed the connection".to_owned())),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(lost(&error)),
                Err(_) => return Err(silent(patience)),
            }
        }
    }

    /// Logs in with these parameters besides the user; what the server then says of its settings.
    pub(super) async fn log_in(
        &mut self,
        login: Login<'_>,
        parameters: &[(&str, &str)],
    ) -> Result<BTreeMap<String, String>, ServerError> {
        let all = [("user", login.user)].into_iter().chain(parameters.iter().copied());
        self.send(|out| frontend::startup_message(all, out)).await?;
        self.authenticate(login).await?;
        let mut settings = BTreeMap::new();
        loop {
            match self.next(PATIENCE).await? {
                Message::ParameterStatus(status) => {
                    let text = |of: io::Result<&str>| of.map(str::to_owned).map_err(|e| ServerError(e.to_string()));
                    settings.insert(text(status.name())?, text(status.value())?);
                }
                Message::BackendKeyData(_) | Message::NoticeResponse(_) => {}
                Message::ReadyForQuery(_) => return Ok(settings),
                other => return Err(refused(other)),
            }
        }
    }

    async fn authenticate(&mut self, login: Login<'_>) -> Result<(), ServerError> {
        let no_password = || ServerError("the server wants a password, and none is set".to_owned());
        let password = || login.password.ok_or_else(no_password);
        match self.next(PATIENCE).await? {
            Message::AuthenticationOk => return login.unbound(),
            Message::AuthenticationCleartextPassword => {
                login.unbound()?;
                let password = password()?;
                self.send(|out| frontend::password_message(password.as_bytes(), out)).await?;
            }
            Message::AuthenticationMd5Password(body) => {
                login.unbound()?;
                let answer = md5_hash(login.user.as_bytes(), password()?.as_bytes(), body.salt());
                self.send(|out| frontend::password_message(answer.as_bytes(), out)).await?;
            }
            Message::AuthenticationSasl(body) => {
                let mechanisms: Vec<String> =
                    body.mechanisms().map(|name| Ok(name.to_owned())).collect().map_err(malformed)?;
                let (mechanism, binding) = login.mechanism(&mechanisms)?;
                self.scram(password()?, mechanism, binding).await?;
            }
            other => return Err(refused(other)),
        }
        match self.next(PATIENCE).await? {
            Message::AuthenticationOk => Ok(()),
            other => Err(refused(other)),
        }
    }

    async fn scram(
        &mut self,
        password: &str,
        mechanism: &str,
        binding: sasl::ChannelBinding,
    ) -> Result<(), ServerError> {
        let mut scram = ScramSha256::new(password.as_bytes(), binding);
        self.send(|out| frontend::sasl_initial_response(mechanism, scram.message(), out)).await?;
        match self.next(PATIENCE).await? {
            Message::AuthenticationSaslContinue(body) => scram.update(body.data()).map_err(malformed)?,
            other => return Err(refused(other)),
        }
        self.send(|out| frontend::sasl_response(scram.message(), out)).await?;
        match self.next(PATIENCE).await? {
            Message::AuthenticationSaslFinal(body) => scram.finish(body.data()).map_err(malformed),
            other => Err(refused(other)),
        }
    }
}

impl Login<'_> {
    /// A login that is not bound to the connection.
    fn unbound(&self) -> Result<(), ServerError> {
        match self.channel_binding {
            ChannelBinding::Disable | ChannelBinding::Prefer => Ok(()),
            ChannelBinding::Require => Err(ServerError(
                "`channel_binding=require`, and the server asks for no login that can be bound to the connection: it \
                 needs `scram-sha-256` in its pg_hba.conf, and a password that is stored so"
                    .to_owned(),
            )),
        }
    }

    /// Which of those that the server offers. It is told, too, that we could have bound the login: one who takes an offer out on
    /// its way is found out so.
    fn mechanism(&self, offered: &[String]) -> Result<(&'static str, sasl::ChannelBinding), ServerError> {
        let offers = |mechanism: &str| offered.iter().any(|each| each == mechanism);
        let hash = match self.binding {
            Binding::EndPoint(hash) if self.channel_binding != ChannelBinding::Disable => Some(hash),
            _ => None,
        };
        match hash {
            Some(hash) if offers(SCRAM_SHA_256_PLUS) => {
                return Ok((SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash.clone())));
            }
            _ => self.unbound()?,
        }
        match (offers(SCRAM_SHA_256), hash) {
            (true, Some(_)) => Ok((SCRAM_SHA_256, sasl::ChannelBinding::unrequested())),
            (true, None) => Ok((SCRAM_SHA_256, sasl::ChannelBinding::unsupported())),
            (false, _) => Err(ServerError("the server offers no way to log in that pgark knows".to_owned())),
        }
    }
}

/// Reads a complaint; also one that is not whole.
pub(super) fn complaint(mut fields: ErrorFields<'_>) -> Complaint {
    let mut complaint = Complaint::default();
    while let Ok(Some(field)) = fields.next() {
        let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => complaint.code = text(),
            b'M' => complaint.message = text(),
            b'R' => complaint.routine = text(),
            _ => {}
        }
    }
    complaint
}

/// What a message means that is no answer to what was asked.
pub(super) fn refused(message: Message) -> ServerError {
    match message {
        Message::ErrorResponse(body) => ServerError(complaint(body.fields()).message),
        Message::AuthenticationGss | Message::AuthenticationSspi | Message::AuthenticationKerberosV5 => {
            ServerError("the server wants a way to log in that pgark does not know".to_owned())
        }
        _ => ServerError("PostgreSQL sent a message that does not belong there".to_owned()),
    }
}

fn malformed(error: io::Error) -> ServerError {
    ServerError(format!("the login failed: {error}"))
}

fn lost(error: &io::Error) -> ServerError {
    ServerError(format!("the connection to PostgreSQL was lost: {error}"))
}

fn silent(patience: Duration) -> ServerError {
    ServerError(format!("PostgreSQL was silent for {} s", patience.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    /// A server that says these bytes and then listens, or goes.
    async fn said(bytes: &[u8], stays: bool) -> Wire {
        let (ours, mut theirs) = duplex(1 << 20);
        theirs.write_all(bytes).await.unwrap();
        tokio::spawn(async move {
            let mut heard = Vec::new();
            if stays {
                theirs.read_to_end(&mut heard).await.ok();
            }
        });
        Wire::new(Box::new(ours))
    }

    const AUTHENTICATED: &[u8] = b"R\0\0\0\x08\0\0\0\0";

    async fn log_in(bytes: &[u8], password: &str) -> Result<BTreeMap<String, String>, String> {
        let password = Some(password).filter(|password| !password.is_empty());
        let (channel_binding, binding) = (ChannelBinding::Prefer, &Binding::NoTls);
        let login = Login { user: "me", password, channel_binding, binding };
        said(bytes, true).await.log_in(login, &[("replication", "true")]).await.map_err(|e| e.0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_given_up() {
        let error = said(b"", true).await.next(Duration::from_secs(60)).await.err().unwrap();
        assert_eq!(error.0, "PostgreSQL was silent for 60 s");
        // The beginning of a message is none.
        let error = said(b"Z\0\0", true).await.next(Duration::from_secs(60)).await.err().unwrap();
        assert_eq!(error.0, "PostgreSQL was silent for 60 s");
    }

    #[tokio::test]
    async fn what_is_no_protocol_is_refused() {
        let cases: [(&[u8], &str); 4] = [
            (b"", "closed the connection"),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not its protocol"),
            (b"d\x7f\xff\xff\xffx", "a message of"),
            (b"d\0\0\0\x01", "not its protocol"),
        ];
        for (bytes, words) in cases {
            let error = said(bytes, false).await.next(Duration::from_secs(5)).await.err().unwrap();
            assert!(error.0.contains(words), "{words}: {error}");
        }
    }

    #[tokio::test]
    async fn a_copy_in_both_directions_is_a_copy() {
        let mut wire = said(b"W\0\0\0\x07\0\0\0d\0\0\0\x06ab", true).await;
        assert!(matches!(wire.next(PATIENCE).await.unwrap(), Message::CopyOutResponse(_)));
        let Message::CopyData(body) = wire.next(PATIENCE).await.unwrap() else { panic!("no data") };
        assert_eq!(body.data(), b"ab");
    }

    #[tokio::test]
    async fn the_login_ends_with_settings_or_a_reason() {
        let settings = [AUTHENTICATED, b"S\0\0\0\x16in_hot_standby\0on\0", b"Z\0\0\0\x05I"].concat();
        assert_eq!(log_in(&settings, "").await.unwrap()["in_hot_standby"], "on");
        let cleartext = b"R\0\0\0\x08\0\0\0\x03";
        let refusal = b"E\0\0\0\x1bSFATAL\0C28P01\0Mno way\0\0";
        let refused = [&cleartext[..], &refusal[..]].concat();
        assert_eq!(log_in(&refused, "x").await.unwrap_err(), "no way");
        assert!(log_in(cleartext, "").await.unwrap_err().contains("wants a password"));
        assert!(log_in(b"R\0\0\0\x08\0\0\0\x07", "").await.unwrap_err().contains("does not know"));
        // Who cannot prove to know the password, too, is not the server.
        let liar = [&b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0"[..], b"R\0\0\0\x08\0\0\0\0"].concat();
        assert!(log_in(&liar, "x").await.is_err());
    }

    #[test]
    fn a_login_is_bound_wherever_it_can_be() {
        use {Binding::*, ChannelBinding::*};
        let (plain, both, none) = ("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS SCRAM-SHA-256", "OTHER");
        let hash = EndPoint(b"hash".to_vec());
        for (channel_binding, binding, offered, chosen) in [
            (Prefer, &hash, both, Some((SCRAM_SHA_256_PLUS, "p=tls-server-end-point,,"))),
            (Require, &hash, both, Some((SCRAM_SHA_256_PLUS, "p=tls-server-end-point,,"))),
            (Disable, &hash, both, Some((SCRAM_SHA_256, "n,,"))),
            // The server is told that the offer did not arrive.
            (Prefer, &hash, plain, Some((SCRAM_SHA_256, "y,,"))),
            (Disable, &hash, plain, Some((SCRAM_SHA_256, "n,,"))),
            (Require, &hash, plain, None),
            (Prefer, &NoHash, both, Some((SCRAM_SHA_256, "n,,"))),
            (Require, &NoHash, both, None),
            (Prefer, &NoTls, plain, Some((SCRAM_SHA_256, "n,,"))),
            (Require, &NoTls, plain, None),
            (Prefer, &hash, none, None),
        ] {
            let login = Login { user: "me", password: None, channel_binding, binding };
            let offered: Vec<String> = offered.split(' ').map(str::to_owned).collect();
            let found = login.mechanism(&offered).ok().map(|(mechanism, binding)| {
                let first = ScramSha256::new(b"x", binding).message().to_vec();
                (mechanism, String::from_utf8(first).unwrap())
            });
            let found = found.as_ref().map(|(mechanism, first)| (*mechanism, first.split("n=").next().unwrap()));
            assert_eq!(found, chosen, "{channel_binding:?} {binding:?} {offered:?}");
        }
    }

    #[tokio::test]
    async fn no_password_leaves_for_a_login_that_must_be_bound() {
        let binding = &Binding::EndPoint(b"hash".to_vec());
        let login = Login { user: "me", password: Some("x"), channel_binding: ChannelBinding::Require, binding };
        let ready = [AUTHENTICATED, b"Z\0\0\0\x05I"].concat();
        let scram = [&b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0"[..], &ready].concat();
        let md5 = [&b"R\0\0\0\x0c\0\0\0\x05salt"[..], &ready].concat();
        let cleartext = [&b"R\0\0\0\x08\0\0\0\x03"[..], &ready].concat();
        for bytes in [ready, scram, md5, cleartext] {
            let error = said(&bytes, true).await.log_in(login, &[]).await.unwrap_err();
            assert!(error.0.contains("channel_binding=require"), "{error}");
        }
    }
}
