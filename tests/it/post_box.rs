//! Where alerts arrive: a real HTTP receiver and a real mail server on sockets of this machine, with or without TLS, which answer as
//! they are told to and keep what they were given.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// How a receiver speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    Plainly,
    /// TLS from the first byte.
    Tls,
    /// TLS when it is asked for; mail only.
    StartTls,
}

/// What a receiver was given, and how it goes on.
#[derive(Default)]
struct State {
    taken: Mutex<Vec<Taken>>,
    /// Statuses of the next answers; then 200.
    answers: Mutex<VecDeque<u16>>,
    stops: AtomicBool,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The request's first line and headers, or what the mail client said before the letter.
    pub head: String,
    pub body: String,
    pub with_tls: bool,
}

/// A receiver. It ends when this is dropped.
pub struct PostBox {
    state: Arc<State>,
    pub port: u16,
    pub ca_pem: String,
    address: String,
    thread: Option<JoinHandle<()>>,
}

impl PostBox {
    pub fn http(speaks: Speaks) -> Self {
        Self::start("127.0.0.1", speaks, http)
    }

    /// `address` is of this machine: 127.0.0.1, or 127.0.0.2, which pgark takes for elsewhere.
    pub fn smtp(address: &str, speaks: Speaks) -> Self {
        Self::start(address, speaks, smtp)
    }

    fn start(address: &str, speaks: Speaks, serve: fn(Box<dyn Wire>, Option<Arc<ServerConfig>>, &State)) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let (config, ca_pem) = tls(address);
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.stops.load(Ordering::SeqCst) {
                    break;
                }
                stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                let wire: Box<dyn Wire> = match speaks {
                    Speaks::Tls => {
                        let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                        Box::new(StreamOwned::new(connection, stream))
                    }
                    _ => Box::new(Plain(stream)),
                };
                let upgrade = (speaks == Speaks::StartTls).then(|| Arc::clone(&config));
                serve(wire, upgrade, &shared);
            }
        });
        PostBox { state, port, ca_pem, address: address.to_owned(), thread: Some(thread) }
    }

    pub fn answer(&self, statuses: &[u16]) {
        self.state.answers.lock().unwrap().extend(statuses);
    }

    /// What was taken since the last call.
    pub fn take(&self) -> Vec<Taken> {
        std::mem::take(&mut self.state.taken.lock().unwrap())
    }
}

impl Drop for PostBox {
    fn drop(&mut self) {
        self.state.stops.store(true, Ordering::SeqCst);
        TcpStream::connect((self.address.as_str(), self.port)).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// A connection without TLS, yet.
struct Plain(TcpStream);

impl Read for Plain {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Plain {
    fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
        self.0.write(from)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

fn tls(address: &str) -> (Arc<ServerConfig>, String) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new([address.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
        .unwrap();
    (Arc::new(config), ca_pem)
}

fn http(wire: Box<dyn Wire>, _: Option<Arc<ServerConfig>>, state: &State) {
    let mut reader = BufReader::new(wire);
    let mut head = String::new();
    while reader.read_line(&mut head).is_ok_and(|read| read > 2) {}
    let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let Some(length) = length else { return };
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let status = state.answers.lock().unwrap().pop_front().unwrap_or(200);
    if status == 200 {
        let body = String::from_utf8(body).unwrap();
        state.taken.lock().unwrap().push(Taken { head, body, with_tls: false });
    }
    if status != 0 {
        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
        reader.get_mut().write_all(answer.as_bytes()).ok();
        reader.get_mut().flush().ok();
    }
}

fn smtp(mut wire: Box<dyn Wire>, upgrade: Option<Arc<ServerConfig>>, state: &State) {
    let mut said = String::new();
    let mut with_tls = false;
    wire.write_all(b"220 post box\r\n").ok();
    let mut reader = BufReader::new(wire);
    loop {
        let mut line = String::new();
        if !reader.read_line(&mut line).is_ok_and(|read| read > 0) {
            return;
        }
        said.push_str(&line);
        let verb = line.split_whitespace().next().unwrap_or_default().to_uppercase();
        let answer = match verb.as_str() {
            "EHLO" if upgrade.is_some() && !with_tls => "250-post box\r\n250 STARTTLS\r\n".to_owned(),
            "EHLO" => "250-post box\r\n250 AUTH PLAIN LOGIN\r\n".to_owned(),
            "STARTTLS" => "220 go on\r\n".to_owned(),
            "AUTH" => "235 welcome\r\n".to_owned(),
            "DATA" => "354 go on\r\n".to_owned(),
            "QUIT" => "221 bye\r\n".to_owned(),
            _ => "250 ok\r\n".to_owned(),
        };
        if reader.get_mut().write_all(answer.as_bytes()).and_then(|()| reader.get_mut().flush()).is_err() {
            return;
        }
        match verb.as_str() {
            "STARTTLS" => {
                let connection = ServerConnection::new(Arc::clone(upgrade.as_ref().unwrap())).unwrap();
                reader = BufReader::new(Box::new(StreamOwned::new(connection, reader.into_inner())));
                with_tls = true;
            }
            "DATA" => {
                let mut body = String::new();
                while !body.ends_with("\r\n.\r\n") && reader.read_line(&mut body).is_ok_and(|read| read > 0) {}
                let status = state.answers.lock().unwrap().pop_front().unwrap_or(250);
                if status == 250 {
                    state.taken.lock().unwrap().push(Taken { head: said.clone(), body, with_tls });
                }
                let answer = format!("{status} so it is\r\n");
                if reader.get_mut().write_all(answer.as_bytes()).and_then(|()| reader.get_mut().flush()).is_err() {
                    return;
                }
            }
            "QUIT" => return,
            _ => {}
        }
    }
}
