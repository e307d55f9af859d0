//! TLS to the server, by libpq's `sslmode`: who verifies what.

use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, SupportedProtocolVersion, version};

use super::handshake::{Handshake, Identity};

/// What is asked of TLS.
#[derive(Clone, PartialEq, Eq)]
pub enum Tls {
    /// None.
    Off,
    /// Encryption where the server offers it.
    IfOffered,
    /// Encryption, to whoever answers.
    Encrypted,
    /// And a certificate of one of these authorities.
    VerifyAuthority(Roots),
    /// And the certificate must name the host.
    VerifyHost(Roots),
}

/// Authorities that are trusted.
#[derive(Clone, PartialEq, Eq)]
pub enum Roots {
    /// The system's.
    System,
    /// Those in this PEM text.
    Pem(Vec<u8>),
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Tls::Off => "off",
            Tls::IfOffered => "if offered",
            Tls::Encrypted => "encrypted",
            Tls::VerifyAuthority(_) => "verify the authority",
            Tls::VerifyHost(_) => "verify the host",
        })
    }
}

/// What PostgreSQL calls its protocol, so that no server of another one is taken for it.
pub(super) const PROTOCOL: &[u8] = b"postgresql";

/// The configuration for this.
pub fn client_config(tls: &Tls, handshake: &Handshake) -> io::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let versions: [(bool, &'static SupportedProtocolVersion); 2] =
        [(handshake.takes_1_3, &version::TLS13), (handshake.takes_1_2, &version::TLS12)];
    let versions: Vec<_> = versions.into_iter().filter(|(takes, _)| *takes).map(|(_, version)| version).collect();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_protocol_versions(&versions).map_err(io::Error::other)?;
    let unnamed =
        |roots| builder.clone().dangerous().with_custom_certificate_verifier(Arc::new(Verifier { provider, roots }));
    let builder = match tls {
        Tls::VerifyHost(roots) => builder.with_root_certificates(trusted(roots)?),
        Tls::VerifyAuthority(roots) => unnamed(Some(trusted(roots)?)),
        Tls::Off | Tls::IfOffered | Tls::Encrypted => unnamed(None),
    };
    let mut config = match &handshake.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = own(identity).map_err(|e| io::Error::other(format!("our own certificate: {e}")))?;
            builder.with_client_auth_cert(chain, key).map_err(io::Error::other)?
        }
    };
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.enable_sni = handshake.tells_name;
    Ok(config)
}

type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn own(identity: &Identity) -> Result<Own, rustls::pki_types::pem::Error> {
    let chain = CertificateDer::pem_slice_iter(&identity.chain).collect::<Result<_, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_slice(&identity.key)?))
}

fn trusted(roots: &Roots) -> io::Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::System => drop(store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        Roots::Pem(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                store.add(certificate.map_err(io::Error::other)?).map_err(io::Error::other)?;
            }
        }
    }
    match store.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::InvalidData, "there is no root certificate to trust")),
        false => Ok(store),
    }
}

/// Does not look at the host's name, and, without roots, at nothing: what libpq does below `verify-full` and `verify-ca`.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    roots: Option<RootCertStore>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let algorithms = self.provider.signature_verification_algorithms.all;
            let certificate = ParsedCertificate::try_from(certificate)?;
            verify_server_cert_signed_by_trust_anchor(&certificate, roots, chain, now, algorithms)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
