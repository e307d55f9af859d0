//! What libpq finds around itself: variables, the operating system's user, the password file, the service file.
//!
//! Sources: "The Password File" and "The Connection Service File" in PostgreSQL's documentation of libpq; `passwordFromFile`,
//! `pqGetHomeDirectory` and `pg_fe_getauthname` in its sources.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::connection_string::InvalidConninfo;
use super::parameters;

/// Where settings that are not given are looked for.
pub trait Surroundings {
    /// An environment variable.
    fn variable(&self, name: &str) -> Option<String>;
    /// A small regular file: its bytes, and its permissions.
    fn file(&self, path: &Path) -> io::Result<(Vec<u8>, u32)>;
    /// The effective user's id.
    fn user_id(&self) -> u32;
    /// Whether a directory is there.
    fn is_directory(&self, path: &Path) -> bool;
}

/// A user of the operating system.
pub struct Account {
    /// The name.
    pub name: String,
    /// The home directory.
    pub home: PathBuf,
}

/// The user that runs this process: not `$USER`, which `runuser` and services leave as it was. Users that are not in
/// `/etc/passwd` are known by their variables only.
pub fn account(around: &dyn Surroundings) -> Option<Account> {
    let users = text(around, Path::new("/etc/passwd")).unwrap_or_default();
    let id = around.user_id().to_string();
    let listed = users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let found = fields.get(2) == Some(&id.as_str());
        found.then(|| Some(Account { name: (*fields.first()?).to_owned(), home: fields.get(5)?.into() })).flatten()
    });
    let set = |name| around.variable(name).filter(|value| !value.is_empty());
    let named = || {
        let name = set("USER").or_else(|| set("LOGNAME"))?;
        Some(Account { name, home: set("HOME")?.into() })
    };
    let account = listed.or_else(named)?;
    Some(Account { home: set("HOME").map_or(account.home, PathBuf::from), ..account })
}

fn text(around: &dyn Surroundings, path: &Path) -> Option<String> {
    String::from_utf8(around.file(path).ok()?.0).ok()
}

/// What the service file says about a service.
pub fn service(
    around: &dyn Surroundings,
    home: Option<&Path>,
    service: &str,
    file: Option<&str>,
) -> Result<BTreeMap<String, String>, InvalidConninfo> {
    let own = file.map(PathBuf::from).or_else(|| home.map(|home| home.join(".pg_service.conf")));
    let system = around.variable("PGSYSCONFDIR").unwrap_or_else(|| "/etc/postgresql-common".to_owned());
    let header = format!("[{service}]");
    for file in [own, Some(PathBuf::from(system).join("pg_service.conf"))].into_iter().flatten() {
        let Some(text) = text(around, &file) else { continue };
        let mut lines = text.lines().map(str::trim).skip_while(|line| *line != header);
        if lines.next().is_none() {
            continue;
        }
        let section = lines.take_while(|line| !line.starts_with('['));
        let mut values = BTreeMap::new();
        for line in section.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let pair = line.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
            match pair.filter(|(key, _)| parameters::is_known(key) && *key != "service") {
                Some((key, value)) => values.insert(key.to_owned(), value.to_owned()),
                None => return Err(InvalidConninfo::new("the service file has a line that libpq does not know")),
            };
        }
        return Ok(values);
    }
    Err(InvalidConninfo::new("no service file defines the `service`"))
}

/// The password for a connection. A missing or unreadable file has none, as for libpq, nor has one that others can read.
pub fn password(around: &dyn Surroundings, file: &Path, wanted: [&str; 4]) -> Option<String> {
    let (bytes, mode) = around.file(file).ok()?;
    if mode & 0o077 != 0 {
        tracing::warn!("the password file is ignored, because others can read it: `chmod 600 {}`", file.display());
        return None;
    }
    let text = String::from_utf8(bytes).ok()?;
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = split_pgpass(line);
        let (password, patterns) = fields.split_last()?;
        let fits = patterns.len() == 4 && patterns.iter().zip(wanted).all(|(p, w)| p == "*" || p == w);
        fits.then(|| password.clone())
    })
}

fn split_pgpass(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let last = fields.len() - 1;
        match c {
            '\\' => fields[last].extend(chars.next()),
            ':' if fields.len() < 5 => fields.push(String::new()),
            c => fields[last].push(c),
        }
    }
    fields
}
