//! The way to a server: a socket, and TLS on top.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::conninfo::{Conninfo, Server};
use super::tls::{Tls, client_config};

/// A byte stream to a server, whatever it runs over.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A peer that vanished is noticed after a minute, also while nobody has anything to say.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// Connects to the first server that answers, which is given back, too. No word of PostgreSQL's protocol is spoken but the
/// question for TLS.
pub(super) async fn dial(conninfo: &Conninfo) -> Result<(Box<dyn Socket>, &Server), String> {
    let patience = conninfo.connect_timeout.unwrap_or(PATIENCE);
    let mut last = "no server is named".to_owned();
    for server in &conninfo.servers {
        last = match timeout(patience, connect(server, &conninfo.tls)).await {
            Ok(Ok(socket)) => return Ok((socket, server)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", patience.as_secs()),
        };
    }
    Err(last)
}

async fn connect(server: &Server, tls: &Tls) -> io::Result<Box<dyn Socket>> {
    if server.is_socket() {
        let path = Path::new(&server.host).join(format!(".s.PGSQL.{}", server.port));
        return Ok(Box::new(UnixStream::connect(path).await?));
    }
    let mut socket = match server.address {
        Some(address) => TcpStream::connect((address, server.port)).await?,
        None => TcpStream::connect((server.host.as_str(), server.port)).await?,
    };
    socket.set_nodelay(true)?;
    keep_alive(&socket)?;
    if *tls == Tls::Off {
        return Ok(Box::new(socket));
    }
    let mut question = BytesMut::new();
    frontend::ssl_request(&mut question);
    socket.write_all(&question).await?;
    match (socket.read_u8().await?, tls) {
        (b'S', _) => {}
        (_, Tls::IfOffered) => return Ok(Box::new(socket)),
        _ => return Err(io::Error::other("the server does not offer TLS")),
    }
    let mut connector = MakeRustlsConnect::new(client_config(tls)?);
    let Ok(connector) = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut connector, &server.host);
    Ok(Box::new(connector.connect(socket).await?))
}

fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    let (idle, between, times) = KEEPALIVE;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, idle)?;
    sockopt::set_tcp_keepintvl(socket, between)?;
    sockopt::set_tcp_keepcnt(socket, times)?;
    Ok(())
}
