//! How TLS is begun: with or without the question for it, in which versions, and with which certificate of ours.
//!
//! Source: `initialize_SSL` in `interfaces/libpq/fe-secure-openssl.c`, "Client Certificates" in PostgreSQL's documentation.

use std::path::{Path, PathBuf};

use super::connection_string::{ConnectionString, InvalidConninfo};
use super::surroundings::Surroundings;

/// All about TLS but whom to trust.
#[derive(Clone, PartialEq, Eq)]
pub struct Handshake {
    /// `sslnegotiation=direct`: TLS from the first byte on.
    pub is_direct: bool,
    /// The server is told the name by which it is called.
    pub tells_name: bool,
    /// TLS 1.2 may be spoken.
    pub takes_1_2: bool,
    /// TLS 1.3 may be spoken.
    pub takes_1_3: bool,
    /// Who we are, for servers that ask.
    pub identity: Option<Identity>,
}

/// A certificate with its chain, and its key, in PEM. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those that vouch for it.
    pub chain: Vec<u8>,
    /// The private key, not encrypted.
    pub key: Vec<u8>,
}

impl Default for Handshake {
    fn default() -> Self {
        Handshake { is_direct: false, tells_name: true, takes_1_2: true, takes_1_3: true, identity: None }
    }
}

impl Handshake {
    /// Reads what is given, with libpq's defaults. `is_sure`: there is no connection without TLS.
    pub(super) fn read(
        given: &ConnectionString,
        around: &dyn Surroundings,
        home: Option<&Path>,
        is_sure: bool,
    ) -> Result<Self, InvalidConninfo> {
        let is_direct = given.get("sslnegotiation").is_some_and(|word| word == "direct");
        if is_direct && !is_sure {
            return Err(InvalidConninfo::new("`sslnegotiation=direct` needs `sslmode=require` or stricter"));
        }
        let lowest = given.get("ssl_min_protocol_version").is_none_or(|version| version != "TLSv1.3");
        let highest = given.get("ssl_max_protocol_version").is_none_or(|version| version != "TLSv1.2");
        if !lowest && !highest {
            return Err(InvalidConninfo::new("no version of TLS is between the lowest and the highest that are given"));
        }
        Ok(Handshake {
            is_direct,
            tells_name: given.get("sslsni").is_none_or(|word| word != "0"),
            takes_1_2: lowest,
            takes_1_3: highest,
            identity: identity(given, around, home)?,
        })
    }
}

/// As for libpq, files in their places are enough.
fn identity(
    given: &ConnectionString,
    around: &dyn Surroundings,
    home: Option<&Path>,
) -> Result<Option<Identity>, InvalidConninfo> {
    if given.get("sslcertmode").is_some_and(|word| word == "disable") {
        return Ok(None);
    }
    let cannot = |name: &str, why: String| InvalidConninfo::new(format!("the file of `{name}` cannot be used: {why}"));
    let place = |name: &str, default: &str| {
        given.get(name).map(PathBuf::from).or_else(|| home.map(|home| home.join(".postgresql").join(default)))
    };
    let Some(certificate) = place("sslcert", "postgresql.crt") else { return Ok(None) };
    let chain = match around.file(&certificate) {
        Ok((chain, _)) => chain,
        Err(error) if given.get("sslcert").is_some() => return Err(cannot("sslcert", error.to_string())),
        Err(_) => return Ok(None),
    };
    let Some(key) = place("sslkey", "postgresql.key") else { return Ok(None) };
    let (key, mode) = around.file(&key).map_err(|error| cannot("sslkey", error.to_string()))?;
    if mode & 0o077 != 0 {
        return Err(cannot("sslkey", "others can read it: `chmod 600` it".to_owned()));
    }
    Ok(Some(Identity { chain, key }))
}
