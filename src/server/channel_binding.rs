//! Channel binding: a login that holds for this TLS connection only, so that nobody in the middle can use it.
//!
//! Sources: RFC 5929, section 4 (`tls-server-end-point`); `pg_SASL_init` in `fe-auth.c` and `pgtls_get_peer_certificate_hash` in
//! `fe-secure-openssl.c`.

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_cert::der::asn1::ContextSpecific;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::oid::db::rfc5912;
use x509_cert::der::{AnyRef, Decode, Reader, SliceReader, TagNumber};
use x509_cert::spki::AlgorithmIdentifierRef;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChannelBinding {
    /// None.
    Disable,
    /// Wherever both sides can.
    #[default]
    Prefer,
    /// A login without it is refused.
    Require,
}

/// To what a login can be bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    /// There is no TLS.
    NoTls,
    /// The certificate's signature has no hash function of its own, as that of Ed25519: the standard names none for it.
    NoHash,
    /// To this hash of the server's certificate.
    EndPoint(Vec<u8>),
}

impl ChannelBinding {
    /// By libpq's word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "disable" => Some(ChannelBinding::Disable),
            "prefer" => Some(ChannelBinding::Prefer),
            "require" => Some(ChannelBinding::Require),
            _ => None,
        }
    }

    /// Why a login over this cannot be bound though it must be.
    pub(super) fn refuses(self, binding: &Binding) -> Option<&'static str> {
        match binding {
            _ if self != ChannelBinding::Require => None,
            Binding::NoTls => Some("`channel_binding=require` needs TLS, and this connection has none"),
            Binding::NoHash => Some(
                "`channel_binding=require` cannot be kept: the server's certificate is signed without a hash function \
                 (as with Ed25519), and nothing can be bound to it",
            ),
            Binding::EndPoint(_) => None,
        }
    }
}

impl Binding {
    /// To a server's certificate.
    pub(super) fn to(certificate: &[u8]) -> Self {
        let hash = signature(certificate).ok().and_then(|algorithm| digest_of(&algorithm));
        hash.map_or(Binding::NoHash, |digest| Binding::EndPoint(digest(certificate)))
    }
}

/// The second field of a certificate; nothing else of it matters here.
fn signature(certificate: &[u8]) -> x509_cert::der::Result<AlgorithmIdentifierRef<'_>> {
    SliceReader::new(certificate)?.sequence(|fields| {
        AnyRef::decode(fields)?;
        let algorithm = AlgorithmIdentifierRef::decode(fields)?;
        AnyRef::decode(fields)?;
        Ok(algorithm)
    })
}

/// Of ANSI X9.62.
const ECDSA_WITH_SHA_1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.1");

type Hash = fn(&[u8]) -> Vec<u8>;

fn sha256(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
}

/// MD5 and SHA-1 count as SHA-256.
fn digest_of(algorithm: &AlgorithmIdentifierRef<'_>) -> Option<Hash> {
    match algorithm.oid {
        rfc5912::ID_RSASSA_PSS => hash(pss_hash(algorithm)?),
        rfc5912::MD_5_WITH_RSA_ENCRYPTION
        | rfc5912::SHA_1_WITH_RSA_ENCRYPTION
        | ECDSA_WITH_SHA_1
        | rfc5912::SHA_256_WITH_RSA_ENCRYPTION
        | rfc5912::ECDSA_WITH_SHA_256 => Some(sha256),
        rfc5912::SHA_224_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_224 => hash(rfc5912::ID_SHA_224),
        rfc5912::SHA_384_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_384 => hash(rfc5912::ID_SHA_384),
        rfc5912::SHA_512_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_512 => hash(rfc5912::ID_SHA_512),
        _ => None,
    }
}

fn hash(of: ObjectIdentifier) -> Option<Hash> {
    match of {
        rfc5912::ID_SHA_1 | rfc5912::ID_SHA_256 => Some(sha256),
        rfc5912::ID_SHA_224 => Some(|bytes| Sha224::digest(bytes).to_vec()),
        rfc5912::ID_SHA_384 => Some(|bytes| Sha384::digest(bytes).to_vec()),
        rfc5912::ID_SHA_512 => Some(|bytes| Sha512::digest(bytes).to_vec()),
        _ => None,
    }
}

/// The first of `RSASSA-PSS-params`, RFC 4055; where it is not given it is SHA-1.
fn pss_hash(algorithm: &AlgorithmIdentifierRef<'_>) -> Option<ObjectIdentifier> {
    let parameters = algorithm.parameters?;
    let mut fields = SliceReader::new(parameters.value()).ok()?;
    let first = ContextSpecific::<AlgorithmIdentifierRef<'_>>::decode_explicit(&mut fields, TagNumber::N0).ok()?;
    Some(first.map_or(rfc5912::ID_SHA_1, |hash| hash.value.oid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_binds_nothing() {
        for bytes in [&b""[..], b"\x30\x00", b"\x30\x03\x02\x01\x01", &[0x30; 40], &[0xff; 40]] {
            assert_eq!(Binding::to(bytes), Binding::NoHash, "{bytes:?}");
        }
    }

    #[test]
    fn require_wants_something_to_bind_to() {
        let hash = Binding::EndPoint(vec![1]);
        for (word, refused) in [("disable", [false; 3]), ("prefer", [false; 3]), ("require", [true, true, false])] {
            let wanted = ChannelBinding::parse(word).unwrap();
            let judged = [&Binding::NoTls, &Binding::NoHash, &hash].map(|binding| wanted.refuses(binding).is_some());
            assert_eq!(judged, refused, "{word}");
        }
    }
}
