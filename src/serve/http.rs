//! The listener: few connections, short ones, and nothing outside of this host without a token or TLS.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::Pages;
use super::answer::answer;
use super::running::Shared;
use crate::command::stop::Stop;
use crate::command::{Failure, FailureKind};
use crate::stream::Sha256;

/// Where it is listened.
///
/// * Outside of this host only with a token or TLS.
#[derive(Clone)]
pub struct Listen {
    address: SocketAddr,
    guard: Guard,
    tls: Option<Arc<ServerConfig>>,
}

/// Who is answered.
#[derive(Clone, Debug)]
pub(super) enum Guard {
    /// Everybody.
    None,
    /// Who names this host.
    ThisHost,
    /// Who knows the token with this digest.
    Token(Sha256),
}

/// The shortest token that is worth its name.
const SHORTEST: usize = 16;
const CONNECTIONS: usize = 64;
const HEADERS: Duration = Duration::from_secs(10);
const CONNECTION: Duration = Duration::from_secs(60);
const BUFFER: usize = 16 << 10;

impl Listen {
    /// At this address, for those who know the token, over TLS.
    pub fn new(address: SocketAddr, token: Option<&str>, tls: Option<Arc<ServerConfig>>) -> Result<Self, Failure> {
        if token.is_some_and(|token| token.len() < SHORTEST) {
            let message = format!("the token is shorter than {SHORTEST} characters");
            return Err(Failure::new(FailureKind::Usage, message).with_hint("`openssl rand -hex 32` makes a good one"));
        }
        let here = address.ip().is_loopback();
        let guard = match token {
            Some(token) => Guard::Token(Sha256::of(token.as_bytes())),
            None if here => Guard::ThisHost,
            None if tls.is_some() => Guard::None,
            None => {
                let message =
                    format!("`{address}` can be reached from other hosts, and neither a token nor TLS is set");
                return Err(Failure::new(FailureKind::Usage, message).with_hint(
                    "set `token_file`, or `tls_cert` and `tls_key`, under `[serve]`; or listen on 127.0.0.1",
                ));
            }
        };
        Ok(Listen { address, guard, tls })
    }

    /// Where.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl fmt::Debug for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listen").field("address", &self.address).finish_non_exhaustive()
    }
}

/// It listens.
pub(super) struct Listener {
    socket: TcpListener,
    listen: Listen,
    pages: Pages,
    slots: Arc<Semaphore>,
}

impl Listener {
    pub(super) async fn bind(listen: Listen, pages: Pages) -> Result<Self, Failure> {
        let cannot = |e: std::io::Error| {
            Failure::new(FailureKind::LocalIo, format!("cannot listen on `{}`: {e}", listen.address))
                .with_hint("set another `listen` under `[serve]`, or `none`")
        };
        let socket = TcpListener::bind(listen.address).await.map_err(cannot)?;
        if let Ok(address) = socket.local_addr() {
            tracing::info!("listening on {address}");
        }
        Ok(Listener { socket, listen, pages, slots: Arc::new(Semaphore::new(CONNECTIONS)) })
    }

    /// Answers until it is told to stop.
    pub(super) async fn serve(self: Arc<Self>, shared: Arc<Shared>, mut stop: Stop) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.asked() => return,
                accepted = self.socket.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                // Such as too many open files.
                Err(error) => {
                    tracing::warn!("a connection was not accepted: {error}");
                    sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            // Who comes now is one too many.
            let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else { continue };
            let (own, shared) = (Arc::clone(&self), Arc::clone(&shared));
            tokio::spawn(async move {
                timeout(CONNECTION, own.connection(stream, &shared)).await.ok();
                drop(slot);
            });
        }
    }

    async fn connection(&self, stream: TcpStream, shared: &Shared) {
        match &self.listen.tls {
            None => self.talk(stream, shared).await,
            Some(tls) => {
                let acceptor = TlsAcceptor::from(Arc::clone(tls));
                if let Ok(Ok(stream)) = timeout(HEADERS, acceptor.accept(stream)).await {
                    self.talk(stream, shared).await;
                }
            }
        }
    }

    async fn talk(&self, stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) {
        let service = service_fn(async |request| {
            Ok::<_, Infallible>(answer(&request, &self.listen.guard, &self.pages, shared).await)
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(BUFFER);
        if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
            tracing::debug!("a connection ended badly: {error}");
        }
    }
}
