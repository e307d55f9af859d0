//! Every connection parameter that libpq knows, and what is made of it here: followed, passed over because it changes
//! nothing that matters, or refused because a connection without it would be weaker than the one that was asked for.
//!
//! Source: `PQconninfoOptions` in `interfaces/libpq/fe-connect.c` of PostgreSQL 18.

use std::collections::BTreeMap;

use super::connection_string::InvalidConninfo;

/// What is made of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// It is followed.
    Followed,
    /// It changes nothing that matters here.
    PassedOver,
    /// Only these values can be promised.
    Only(&'static [&'static str]),
}

use Use::{Followed, Only, PassedOver};

const TARGETS: [&str; 6] = ["any", "read-write", "read-only", "primary", "standby", "prefer-standby"];

/// Name, environment variable, use.
const PARAMETERS: [(&str, &str, Use); 53] = [
    ("host", "PGHOST", Followed),
    ("hostaddr", "PGHOSTADDR", Followed),
    ("port", "PGPORT", Followed),
    ("dbname", "PGDATABASE", Followed),
    ("user", "PGUSER", Followed),
    ("password", "PGPASSWORD", Followed),
    ("passfile", "PGPASSFILE", Followed),
    ("service", "PGSERVICE", Followed),
    ("servicefile", "PGSERVICEFILE", Followed),
    ("connect_timeout", "PGCONNECT_TIMEOUT", Followed),
    ("application_name", "PGAPPNAME", Followed),
    ("fallback_application_name", "", Followed),
    ("options", "PGOPTIONS", Followed),
    ("sslmode", "PGSSLMODE", Followed),
    ("sslrootcert", "PGSSLROOTCERT", Followed),
    ("client_encoding", "PGCLIENTENCODING", PassedOver),
    ("keepalives", "", Followed),
    ("keepalives_idle", "", Followed),
    ("keepalives_interval", "", Followed),
    ("keepalives_count", "", Followed),
    ("tcp_user_timeout", "", Followed),
    ("sslcompression", "PGSSLCOMPRESSION", PassedOver),
    ("sslsni", "PGSSLSNI", Followed),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Only(&["TLSv1.2", "TLSv1.3"])),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION", PassedOver),
    ("krbsrvname", "PGKRBSRVNAME", PassedOver),
    ("gsslib", "PGGSSLIB", PassedOver),
    ("gssdelegation", "PGGSSDELEGATION", PassedOver),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS", Only(&["disable"])),
    ("authtype", "", PassedOver),
    ("tty", "", PassedOver),
    ("channel_binding", "PGCHANNELBINDING", Only(&["disable", "prefer", "require"])),
    ("gssencmode", "PGGSSENCMODE", Only(&["prefer", "disable"])),
    ("sslnegotiation", "PGSSLNEGOTIATION", Only(&["postgres", "direct"])),
    ("sslcertmode", "PGSSLCERTMODE", Only(&["allow", "disable"])),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Only(&["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"])),
    ("min_protocol_version", "PGMINPROTOCOLVERSION", Only(&["3.0"])),
    ("target_session_attrs", "PGTARGETSESSIONATTRS", Only(&TARGETS)),
    ("requiressl", "PGREQUIRESSL", Only(&["0"])),
    ("replication", "", Only(&["false", "off", "no", "0"])),
    ("sslcert", "PGSSLCERT", Followed),
    ("sslkey", "PGSSLKEY", Followed),
    ("sslpassword", "", Only(&[])),
    ("sslcrl", "PGSSLCRL", Only(&[])),
    ("sslcrldir", "PGSSLCRLDIR", Only(&[])),
    ("sslkeylogfile", "", Only(&[])),
    ("requirepeer", "PGREQUIREPEER", Only(&[])),
    ("require_auth", "PGREQUIREAUTH", Only(&[])),
    ("scram_client_key", "", Only(&[])),
    ("scram_server_key", "", Only(&[])),
    ("oauth_issuer", "", Only(&[])),
    ("oauth_client_id", "", Only(&[])),
    ("oauth_client_secret", "", Only(&[])),
];

/// Whether libpq knows it.
pub fn is_known(name: &str) -> bool {
    // `oauth_scope` goes with the other three, which are refused.
    name == "oauth_scope" || PARAMETERS.iter().any(|(known, ..)| *known == name)
}

/// Each variable that stands for a parameter.
pub fn variables() -> impl Iterator<Item = (&'static str, &'static str)> {
    PARAMETERS.iter().map(|(name, variable, _)| (*variable, *name)).filter(|(variable, _)| !variable.is_empty())
}

/// Refuses what cannot be promised.
pub fn check(values: &BTreeMap<String, String>) -> Result<(), InvalidConninfo> {
    for (name, _, meaning) in PARAMETERS {
        let (Only(allowed), Some(value)) = (meaning, values.get(name)) else { continue };
        if value.is_empty() || allowed.contains(&value.as_str()) {
            continue;
        }
        return Err(InvalidConninfo::new(match allowed {
            [] => format!("`{name}` is not supported"),
            _ => format!("`{name}` is supported as {} only", allowed.join(" or ")),
        }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_weaker_is_refused_and_the_rest_is_not() {
        let judge = |name: &str, value: &str| check(&[(name.to_owned(), value.to_owned())].into());
        for (name, value) in [
            ("channel_binding", "always"),
            ("load_balance_hosts", "random"),
            ("sslcrl", "/x"),
            ("require_auth", "scram-sha-256"),
            ("gssencmode", "require"),
            ("target_session_attrs", "master"),
            ("ssl_min_protocol_version", "TLSv1.4"),
            ("sslnegotiation", "ssh"),
            ("requirepeer", "postgres"),
        ] {
            let error = judge(name, value).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        for (name, value) in [
            ("channel_binding", "require"),
            ("gssencmode", "disable"),
            ("keepalives", "1"),
            ("sslcert", ""),
            ("target_session_attrs", "prefer-standby"),
            ("options", "-c x=y"),
        ] {
            assert!(is_known(name) && judge(name, value).is_ok(), "{name}");
        }
        assert!(!is_known("pasword"));
    }
}
