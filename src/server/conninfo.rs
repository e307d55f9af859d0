//! Connection settings as users of libpq expect: a conninfo string, a service file, `PG*` variables, `.pgpass`.
//!
//! Sources: "Connection Strings", "Environment Variables", "The Password File" and "The Connection Service File" in
//! PostgreSQL's documentation of libpq.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Connection parameters by libpq's names. Never shown: one of them is the password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Conninfo {
    values: BTreeMap<String, String>,
}

/// A conninfo string that cannot be read. Never repeats it: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the connection string cannot be read: {0}")]
pub struct InvalidConninfo(String);

/// The environment variables that stand for parameters.
const VARIABLES: [(&str, &str); 12] = [
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGPORT", "port"),
    ("PGDATABASE", "dbname"),
    ("PGUSER", "user"),
    ("PGPASSWORD", "password"),
    ("PGPASSFILE", "passfile"),
    ("PGSERVICE", "service"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGAPPNAME", "application_name"),
];

impl Conninfo {
    /// Reads `key = 'value' ...` with libpq's quoting.
    pub fn parse(text: &str) -> Result<Self, InvalidConninfo> {
        let mut values = BTreeMap::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (key, after) =
                rest.split_once('=').ok_or_else(|| InvalidConninfo("`=` is missing after a name".into()))?;
            let key = key.trim();
            if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(InvalidConninfo("a parameter's name has odd characters".into()));
            }
            let (value, after) = read_value(after.trim_start())?;
            values.insert(key.to_owned(), value);
            rest = after.trim_start();
        }
        Ok(Conninfo { values })
    }

    /// Fills in what is not given: from the service file, from `variable`s, and libpq's defaults.
    pub fn resolve(mut self, variable: impl Fn(&str) -> Option<String>) -> Result<Self, InvalidConninfo> {
        let service = self.values.get("service").cloned().or_else(|| variable("PGSERVICE"));
        if let Some(service) = service {
            self.fill(read_service(&service, &variable)?);
        }
        for (name, parameter) in VARIABLES {
            if let Some(value) = variable(name).filter(|value| !value.is_empty()) {
                self.values.entry(parameter.to_owned()).or_insert(value);
            }
        }
        let user = variable("USER").or_else(|| variable("LOGNAME")).unwrap_or_else(|| "postgres".to_owned());
        let user = self.values.entry("user".to_owned()).or_insert(user).clone();
        self.values.entry("dbname".to_owned()).or_insert(user);
        self.values.entry("port".to_owned()).or_insert("5432".to_owned());
        if self.get("host").is_none() && self.get("hostaddr").is_none() {
            let debian = Path::new("/var/run/postgresql");
            let directory = if debian.is_dir() { "/var/run/postgresql" } else { "/tmp" };
            self.values.insert("host".to_owned(), directory.to_owned());
        }
        if self.get("password").is_none() {
            let default = variable("HOME").map(|home| PathBuf::from(home).join(".pgpass"));
            let passfile = self.get("passfile").map(PathBuf::from).or(default);
            if let Some(password) = passfile.and_then(|file| self.look_up_password(&file)) {
                self.values.insert("password".to_owned(), password);
            }
        }
        Ok(self)
    }

    /// A parameter.
    pub fn get(&self, parameter: &str) -> Option<&str> {
        self.values.get(parameter).map(String::as_str)
    }

    /// The server for messages: no password.
    pub fn describe(&self) -> String {
        let of = |name| self.get(name).unwrap_or_default();
        format!("host `{}`, port {}, database `{}`, user `{}`", of("host"), of("port"), of("dbname"), of("user"))
    }

    fn fill(&mut self, other: BTreeMap<String, String>) {
        for (key, value) in other {
            self.values.entry(key).or_insert(value);
        }
    }

    /// The password for this connection. A missing or unreadable file has none, as for libpq.
    fn look_up_password(&self, file: &Path) -> Option<String> {
        let text = std::fs::read_to_string(file).ok()?;
        let host = match self.get("host") {
            Some(host) if !host.starts_with('/') => host,
            Some(_) => "localhost",
            None => self.get("hostaddr").unwrap_or_default(),
        };
        let wanted = [host, self.get("port")?, self.get("dbname")?, self.get("user")?];
        text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
            let fields = split_pgpass(line);
            let (password, patterns) = fields.split_last()?;
            let fits = patterns.len() == 4 && patterns.iter().zip(wanted).all(|(p, w)| p == "*" || p == w);
            fits.then(|| password.clone())
        })
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
    if quoted { Err(InvalidConninfo("a quote is not closed".into())) } else { Ok((value, "")) }
}

fn split_pgpass(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let last = fields.len() - 1;
        match c {
            '\\' => fields[last].extend(chars.next()),
            ':' => fields.push(String::new()),
            c => fields[last].push(c),
        }
    }
    fields
}

fn read_service(
    service: &str,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, InvalidConninfo> {
    let own = variable("PGSERVICEFILE")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".pg_service.conf")));
    let system = variable("PGSYSCONFDIR").map(|directory| PathBuf::from(directory).join("pg_service.conf"));
    for file in [own, system].into_iter().flatten() {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let header = format!("[{service}]");
        let mut lines = text.lines().map(str::trim).skip_while(|line| *line != header);
        if lines.next().is_none() {
            continue;
        }
        let section = lines.take_while(|line| !line.starts_with('['));
        let entries = section.filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
        return Ok(entries.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect());
    }
    Err(InvalidConninfo(format!("no service file defines the service `{service}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_libpqs_quoting() {
        let conninfo = Conninfo::parse(r"host = /tmp  user='o\'neil x' password=a\ b dbname=''").unwrap();
        assert_eq!(conninfo.get("host"), Some("/tmp"));
        assert_eq!(conninfo.get("user"), Some("o'neil x"));
        assert_eq!(conninfo.get("password"), Some("a b"));
        assert_eq!(conninfo.get("dbname"), Some(""));
        for bad in ["host", "host='open", "ho st=x", "=x"] {
            assert!(Conninfo::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn given_beats_service_beats_environment_beats_default() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("services");
        std::fs::write(&file, "[other]\nhost=no\n[prod]\n# x\nhost=db1\nport=6000\n[next]\nuser=no\n").unwrap();
        let passfile = directory.path().join("pgpass");
        std::fs::write(&passfile, "# comment\n*:*:*:nobody:wrong\ndb1:6001:*:me:a\\:b\n").unwrap();
        let variable = |name: &str| match name {
            "PGSERVICEFILE" => Some(file.display().to_string()),
            "PGPASSFILE" => Some(passfile.display().to_string()),
            "PGHOST" => Some("ignored".to_owned()),
            "PGUSER" => Some("me".to_owned()),
            _ => None,
        };
        let resolved = Conninfo::parse("service=prod port=6001").unwrap().resolve(variable).unwrap();
        assert_eq!(resolved.describe(), "host `db1`, port 6001, database `me`, user `me`");
        assert_eq!(resolved.get("password"), Some("a:b"));
        assert!(Conninfo::parse("service=none").unwrap().resolve(variable).is_err());
    }
}
