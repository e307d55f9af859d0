//! Alerts to a URL: a POST of JSON. The URL is a secret, for those of chats hold a token: no message tells it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::alert_channels::Refusal;
use super::alert_message::Message;
use crate::storage::s3_credentials::Secret;
use crate::storage::settings_file;

/// A URL that takes messages.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Where to.
    pub url: Secret,
    /// Certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

impl Webhook {
    pub(super) async fn send(&self, message: &Message) -> Result<(), Refusal> {
        let json = serde_json::to_vec(message).map_err(Refusal::lasting)?;
        let url = self.url.clone();
        let read = move || url.reveal().map_err(|e| Refusal::passing(e.message));
        let url = tokio::task::spawn_blocking(read).await.map_err(Refusal::lasting)??;
        let target = Target::of(&url)?;
        let tcp = TcpStream::connect((target.host.trim_matches(['[', ']']), target.port));
        let tcp = tcp.await.map_err(|e| Refusal::passing(format!("no connection: {e}")))?;
        match target.tls {
            false => post(tcp, &target, json).await,
            true => {
                let ca_file = self.ca_file.clone();
                let roots = tokio::task::spawn_blocking(move || trusted(ca_file.as_deref())).await;
                let config = tls_config(roots.map_err(Refusal::lasting)??)?;
                let name = ServerName::try_from(target.host.trim_matches(['[', ']']).to_owned());
                let name = name.map_err(|_| Refusal::lasting("the URL's host is no name"))?;
                let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
                post(tls.map_err(|e| Refusal::passing(format!("no TLS: {e}")))?, &target, json).await
            }
        }
    }
}

/// A URL, taken apart.
struct Target {
    tls: bool,
    host: String,
    port: u16,
    authority: String,
    path: String,
}

impl Target {
    fn of(url: &str) -> Result<Self, Refusal> {
        let wrong = || Refusal::lasting("the URL is none like `https://host/path`");
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        Ok(Target {
            tls,
            host: authority.host().to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

async fn post<S>(stream: S, target: &Target, json: Vec<u8>) -> Result<(), Refusal>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let broken = |e: hyper::Error| Refusal::passing(format!("the connection broke: {e}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::post(&target.path)
        .header("host", &target.authority)
        .header("content-type", "application/json")
        .header("user-agent", concat!("pgark/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::from(json)))
        .map_err(|_| Refusal::lasting("the URL cannot be asked for"))?;
    let answer = async {
        tokio::select! {
            answer = sender.send_request(request) => answer.map(|answer| answer.status()),
            Err(error) = connection => Err(error),
        }
    };
    let status = answer.await.map_err(broken)?;
    let said = || format!("the receiver answers {status}");
    match status.as_u16() {
        200..=299 => Ok(()),
        408 | 425 | 429 | 500..=599 => Err(Refusal::passing(said())),
        _ => Err(Refusal::lasting(said())),
    }
}

fn trusted(ca_file: Option<&Path>) -> Result<RootCertStore, Refusal> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        Some(path) => {
            let wrong = |why: String| Refusal::lasting(format!("`alerts.ca_file` {}: {why}", path.display()));
            let pem = settings_file::read(path).map_err(|e| wrong(e.to_string()))?.bytes;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|e| wrong(e.to_string()))?;
                roots.add(certificate).map_err(|e| wrong(e.to_string()))?;
            }
        }
    }
    match roots.is_empty() {
        true => Err(Refusal::lasting("there is no root certificate to trust")),
        false => Ok(roots),
    }
}

fn tls_config(roots: RootCertStore) -> Result<ClientConfig, Refusal> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(Refusal::lasting)?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
