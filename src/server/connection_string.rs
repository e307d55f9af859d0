//! What an operator writes to say how the server is reached: `key = 'value' ...`, or a URI.
//!
//! Source: "Connection Strings" in PostgreSQL's documentation of libpq, and `conninfo_parse` and `conninfo_uri_parse_options`
//! in `interfaces/libpq/fe-connect.c`.

use std::collections::BTreeMap;

use super::parameters;

/// Parameters by libpq's names, as they are given. Never shown: one of them is the password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ConnectionString {
    pub(super) values: BTreeMap<String, String>,
}

/// Connection parameters that cannot be used. Never repeats their values: each may hold a password that went astray.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the connection parameters cannot be used: {0}")]
pub struct InvalidConninfo(pub(super) String);

impl InvalidConninfo {
    pub(super) fn new(why: impl Into<String>) -> Self {
        InvalidConninfo(why.into())
    }
}

impl ConnectionString {
    /// Reads either form.
    pub fn parse(text: &str) -> Result<Self, InvalidConninfo> {
        let mut string = ConnectionString::default();
        match ["postgresql://", "postgres://"].iter().find_map(|scheme| text.trim_start().strip_prefix(scheme)) {
            Some(rest) => string.read_uri(rest.trim_end())?,
            None => string.read_pairs(text)?,
        }
        Ok(string)
    }

    /// Whether it holds what no process listing may show.
    pub fn holds_secret(&self) -> bool {
        const SECRETS: [&str; 4] = ["password", "sslpassword", "scram_client_key", "oauth_client_secret"];
        SECRETS.iter().any(|name| self.values.get(*name).is_some_and(|value| !value.is_empty()))
    }

    fn read_pairs(&mut self, text: &str) -> Result<(), InvalidConninfo> {
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (key, after) =
                rest.split_once('=').ok_or_else(|| InvalidConninfo::new("`=` is missing after a name"))?;
            let key = key.trim();
            if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(InvalidConninfo::new("a parameter's name has odd characters"));
            }
            let (value, after) = read_value(after.trim_start())?;
            self.set(key, value)?;
            rest = after.trim_start();
        }
        Ok(())
    }

    /// The name is not repeated either: it may be a piece of an unquoted password.
    fn set(&mut self, key: &str, value: String) -> Result<(), InvalidConninfo> {
        if !parameters::is_known(key) {
            let place = self.values.len() + 1;
            return Err(InvalidConninfo::new(format!("parameter {place} is not one that libpq knows")));
        }
        self.values.insert(key.to_owned(), value);
        Ok(())
    }

    /// `[user[:password]@][host][:port][,...][/dbname][?name=value[&...]]`
    fn read_uri(&mut self, text: &str) -> Result<(), InvalidConninfo> {
        let (text, query) = text.split_once('?').unwrap_or((text, ""));
        let (place, database) = text.split_once('/').unwrap_or((text, ""));
        let (user, hosts) = place.rsplit_once('@').map_or((None, place), |(user, hosts)| (Some(user), hosts));
        if let Some(user) = user {
            let (user, password) = user.split_once(':').map_or((user, None), |(user, password)| (user, Some(password)));
            self.set("user", decoded(user)?)?;
            if let Some(password) = password {
                self.set("password", decoded(password)?)?;
            }
        }
        if !hosts.is_empty() {
            let (mut names, mut ports) = (Vec::new(), Vec::new());
            for host in hosts.split(',') {
                let (name, port) = host_and_port(host)?;
                names.push(decoded(name)?);
                ports.push(decoded(port)?);
            }
            self.set("host", names.join(","))?;
            self.set("port", ports.join(","))?;
        }
        if !database.is_empty() {
            self.set("dbname", decoded(database)?)?;
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| InvalidConninfo::new("`=` is missing after a name"))?;
            match (decoded(key)?.as_str(), decoded(value)?) {
                // For users of JDBC, as libpq has it.
                ("ssl", value) if value == "true" => self.set("sslmode", "require".to_owned())?,
                (key, value) => self.set(key, value)?,
            }
        }
        Ok(())
    }
}

fn host_and_port(host: &str) -> Result<(&str, &str), InvalidConninfo> {
    let Some(inside) = host.strip_prefix('[') else {
        return Ok(host.split_once(':').unwrap_or((host, "")));
    };
    let (address, rest) =
        inside.split_once(']').ok_or_else(|| InvalidConninfo::new("`]` is missing after an address"))?;
    match (rest, rest.strip_prefix(':')) {
        ("", _) => Ok((address, "")),
        (_, Some(port)) => Ok((address, port)),
        _ => Err(InvalidConninfo::new("an address in brackets is followed by something else than a port")),
    }
}

fn decoded(text: &str) -> Result<String, InvalidConninfo> {
    let bad = || InvalidConninfo::new("a percent-encoded character is not complete");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = match first {
            b'%' => {
                let (digits, after) = after.split_at_checked(2).ok_or_else(bad)?;
                let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
                bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
                after
            }
            byte => {
                bytes.push(*byte);
                after
            }
        };
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(bad()),
    }
}

fn read_value(text: &str) -> Result<(String, &str), InvalidConninfo> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if !quoted && c.is_whitespace() => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted { Err(InvalidConninfo::new("a quote is not closed")) } else { Ok((value, "")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(text: &str, name: &str) -> Option<String> {
        ConnectionString::parse(text).ok().unwrap().values.get(name).cloned()
    }

    #[test]
    fn reads_libpqs_quoting() {
        let text = r"host = /tmp  user='o\'neil x' password=a\ b dbname=''";
        for (name, value) in [("host", "/tmp"), ("user", "o'neil x"), ("password", "a b"), ("dbname", "")] {
            assert_eq!(get(text, name).as_deref(), Some(value));
        }
        for bad in ["host", "host='open", "ho st=x", "=x", "hots=x", "user=a password=two words=x"] {
            let error = ConnectionString::parse(bad).err().unwrap().to_string();
            assert!(!error.contains("words") && !error.contains("hots"), "{bad}: {error}");
        }
    }

    #[test]
    fn reads_uris() {
        let text = "postgresql://me:p%40ss@db1:6000,[::1]:6001,db3/my%20db?sslmode=require&application_name=x";
        for (name, value) in [
            ("user", "me"),
            ("password", "p@ss"),
            ("host", "db1,::1,db3"),
            ("port", "6000,6001,"),
            ("dbname", "my db"),
            ("sslmode", "require"),
            ("application_name", "x"),
        ] {
            assert_eq!(get(text, name).as_deref(), Some(value), "{name}");
        }
        assert_eq!(get("postgres://%2Fvar%2Frun/x", "host").as_deref(), Some("/var/run"));
        assert_eq!(get("postgres:///x?host=/tmp", "host").as_deref(), Some("/tmp"));
        assert_eq!(get("postgresql://", "host"), None);
        for bad in
            ["postgres://h?x", "postgres://h?nonsense=1", "postgres://%zz", "postgres://[::1", "postgres://[::1]x"]
        {
            assert!(ConnectionString::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_seen_in_both_forms() {
        for (text, secret) in [
            ("password=x", true),
            ("postgres://me:x@h", true),
            ("sslpassword=x", true),
            ("password=''", false),
            ("host=h user=me", false),
        ] {
            assert_eq!(ConnectionString::parse(text).ok().unwrap().holds_secret(), secret, "{text}");
        }
    }
}
