//! TLS to the server, by libpq's `sslmode`: who verifies what.

use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

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

/// The configuration for this.
pub fn client_config(tls: &Tls) -> io::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    Ok(match tls {
        Tls::VerifyHost(roots) => builder.with_root_certificates(trusted(roots)?).with_no_client_auth(),
        Tls::VerifyAuthority(roots) => {
            let verifier = Verifier { provider, roots: Some(trusted(roots)?) };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
        }
        Tls::Off | Tls::IfOffered | Tls::Encrypted => {
            let verifier = Verifier { provider, roots: None };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
        }
    })
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
