//! The way to a server: a socket, and TLS on top.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_rustls::TlsConnector;

use super::channel_binding::Binding;
use super::conninfo::{Conninfo, Server};
use super::tls::{PROTOCOL, Tls, client_config};

/// A byte stream to a server, whatever it runs over.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// Bytes go back and forth, and no word of PostgreSQL's protocol was spoken but the question for TLS.
pub(super) struct Link {
    pub(super) socket: Box<dyn Socket>,
    pub(super) binding: Binding,
}

/// Where a server listens.
pub(super) enum Place {
    Path(PathBuf),
    Address(SocketAddr),
}

impl Place {
    pub(super) fn address(&self) -> Option<IpAddr> {
        match self {
            Place::Path(_) => None,
            Place::Address(address) => Some(address.ip()),
        }
    }

    pub(super) fn describe(&self, server: &Server) -> String {
        match self {
            Place::Address(address) if address.ip().to_string() != server.host => {
                format!("{} ({})", server.describe(), address.ip())
            }
            _ => server.describe(),
        }
    }
}

/// All places of a server: a name may have several addresses.
pub(super) async fn places(server: &Server) -> io::Result<Vec<Place>> {
    if server.is_socket() {
        return Ok(vec![Place::Path(Path::new(&server.host).join(format!(".s.PGSQL.{}", server.port)))]);
    }
    if let Some(address) = server.address {
        return Ok(vec![Place::Address((address, server.port).into())]);
    }
    let found: Vec<Place> = lookup_host((server.host.as_str(), server.port)).await?.map(Place::Address).collect();
    match found.is_empty() {
        true => Err(io::Error::other("the name has no address")),
        false => Ok(found),
    }
}

/// Connects.
pub(super) async fn dial(place: &Place, server: &Server, conninfo: &Conninfo) -> io::Result<Link> {
    let tls = &conninfo.tls;
    let address = match place {
        Place::Path(path) => return Ok(plain(UnixStream::connect(path).await?)),
        Place::Address(address) => address,
    };
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    conninfo.keep_alive.apply(&socket)?;
    if *tls == Tls::Off {
        return Ok(plain(socket));
    }
    if !conninfo.handshake.is_direct {
        let mut question = BytesMut::new();
        frontend::ssl_request(&mut question);
        socket.write_all(&question).await?;
        match (socket.read_u8().await?, tls) {
            (b'S', _) => {}
            (_, Tls::IfOffered) => return Ok(plain(socket)),
            _ => return Err(io::Error::other("the server does not offer TLS")),
        }
    }
    let config = client_config(tls, &conninfo.handshake)?;
    let name = ServerName::try_from(server.host.clone()).map_err(io::Error::other)?;
    let socket = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    let (_, session) = socket.get_ref();
    if conninfo.handshake.is_direct && session.alpn_protocol() != Some(PROTOCOL) {
        return Err(io::Error::other("the server does not take `sslnegotiation=direct`: PostgreSQL 17 or newer does"));
    }
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    let binding = certificate.map_or(Binding::NoHash, |certificate| Binding::to(certificate));
    Ok(Link { socket: Box::new(socket), binding })
}

fn plain(socket: impl Socket + 'static) -> Link {
    Link { socket: Box::new(socket), binding: Binding::NoTls }
}
