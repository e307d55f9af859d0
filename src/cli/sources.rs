//! Where each setting's value comes from: flag, environment, file or default, in this order.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::config_file;
use super::keys::{KEYS, Key};
use super::values;
use crate::command::{Failure, FailureKind};

/// The file that is read if no other is named.
pub const DEFAULT_FILE: &str = "/etc/pgark/pgark.toml";
/// Names another file.
pub const FILE_VARIABLE: &str = "PGARK_CONFIG";

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag of this name.
    Flag(&'static str),
    /// A variable of this name.
    Environment(String),
    /// This line of a file.
    File(PathBuf, usize),
    /// Nobody had a wish.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(flag) => write!(f, "flag {flag}"),
            Origin::Environment(variable) => write!(f, "environment {variable}"),
            Origin::File(path, line) => write!(f, "file {}:{line}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// The value of every setting that has one, with its origin.
#[derive(Debug)]
pub struct Sources {
    values: BTreeMap<String, (String, Origin)>,
    /// The file that was read or would be.
    pub file: PathBuf,
}

/// A flag that stands for a setting.
#[derive(Debug)]
pub struct FlagValue {
    /// The setting's `section.name`.
    pub path: &'static str,
    /// The flag.
    pub flag: &'static str,
    /// What was given.
    pub text: String,
}

impl Sources {
    /// Reads all sources. `environment` is the process's, `file` that of `--config`: it must exist, as must one that
    /// [`FILE_VARIABLE`] names.
    pub fn read(
        flags: Vec<FlagValue>,
        environment: impl Iterator<Item = (String, String)>,
        file: Option<&Path>,
    ) -> Result<Self, Failure> {
        let environment = ours(environment);
        let named = file.map(Path::to_path_buf).or_else(|| environment.get(FILE_VARIABLE).map(PathBuf::from));
        match named {
            Some(named) => Self::layer(flags, environment, named, true),
            None => Self::layer(flags, environment, PathBuf::from(DEFAULT_FILE), false),
        }
    }

    /// The same for `init`, whose file need not be there yet; no other is read.
    pub fn read_for_new_file(
        flags: Vec<FlagValue>,
        environment: impl Iterator<Item = (String, String)>,
        file: &Path,
    ) -> Result<Self, Failure> {
        Self::layer(flags, ours(environment), file.to_owned(), false)
    }

    fn layer(
        flags: Vec<FlagValue>,
        environment: BTreeMap<String, String>,
        file: PathBuf,
        must_exist: bool,
    ) -> Result<Self, Failure> {
        let mut values = BTreeMap::new();
        for key in KEYS {
            if let Some(default) = key.default {
                values.insert(key.path(), (default.to_owned(), Origin::Default));
            }
        }
        for value in config_file::read(&file, must_exist)? {
            values.insert(value.key.path(), (value.text, Origin::File(file.clone(), value.line)));
        }
        for (variable, text) in environment {
            if variable == FILE_VARIABLE {
                continue;
            }
            let unknown = || {
                Failure::new(FailureKind::Usage, format!("unknown setting in the environment: `{variable}`"))
                    .with_hint("variables are named PGARK_SECTION__KEY; `pgark config show` lists them")
            };
            let key = KEYS.iter().find(|key| key.variable() == variable).ok_or_else(unknown)?;
            check(key, &text, &variable)?;
            values.insert(key.path(), (text, Origin::Environment(variable)));
        }
        for FlagValue { path, flag, text } in flags {
            if let Some(key) = KEYS.iter().find(|key| key.path() == path) {
                check(key, &text, flag)?;
            }
            values.insert(path.to_owned(), (text, Origin::Flag(flag)));
        }
        Ok(Sources { values, file })
    }

    /// The value of `section.name`.
    pub fn get(&self, path: &str) -> Option<&str> {
        self.values.get(path).map(|(text, _)| text.as_str())
    }

    /// Where it comes from.
    pub fn origin(&self, path: &str) -> Option<&Origin> {
        self.values.get(path).map(|(_, origin)| origin)
    }

    /// A failure about this setting, with its origin.
    pub fn complain(&self, path: &str, why: impl fmt::Display) -> Failure {
        let origin = self.origin(path).map_or("not set".to_owned(), Origin::to_string);
        Failure::new(FailureKind::Usage, format!("`{path}` ({origin}): {why}"))
    }
}

fn ours(environment: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    environment.filter(|(name, _)| name.starts_with("PGARK_")).collect()
}

fn check(key: &Key, text: &str, place: &str) -> Result<(), Failure> {
    values::check(key, text).map_err(|why| Failure::new(FailureKind::Usage, format!("`{place}`: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        flags: &[(&'static str, &str)],
        environment: &[(&str, &str)],
        file: Option<&Path>,
    ) -> Result<Sources, Failure> {
        let flags = flags.iter().map(|(path, text)| FlagValue { path, flag: "--flag", text: (*text).to_owned() });
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let missing = std::path::Path::new("/nonexistent/pgark.toml");
        match file {
            Some(file) => Sources::read(flags.collect(), environment, Some(file)),
            None => {
                // The machine's own file must not matter to a test.
                let empty = tempfile::NamedTempFile::new().unwrap();
                assert!(Sources::read(vec![], std::iter::empty(), Some(missing)).is_err());
                Sources::read(flags.collect(), environment, Some(empty.path()))
            }
        }
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[wal]\nlevel = 3\npush_deadline = \"30s\"\nfetch_retry = \"1m\"\n").unwrap();
        let environment = [("PGARK_WAL__PUSH_DEADLINE", "20s"), ("PGARK_WAL__FETCH_RETRY", "20s"), ("HOME", "/")];
        let sources = read(&[("wal.push_deadline", "10s")], &environment, Some(file.path())).unwrap();
        let seen = |path: &str| (sources.get(path).unwrap().to_owned(), sources.origin(path).unwrap().clone());
        assert_eq!(seen("wal.push_deadline"), ("10s".into(), Origin::Flag("--flag")));
        assert_eq!(seen("wal.fetch_retry"), ("20s".into(), Origin::Environment("PGARK_WAL__FETCH_RETRY".into())));
        assert_eq!(seen("wal.level"), ("3".into(), Origin::File(file.path().to_owned(), 2)));
        assert_eq!(seen("wal.standby_retry"), ("10s".into(), Origin::Default));
        assert_eq!(sources.get("repo.url"), None);
    }

    #[test]
    fn misspelt_variables_are_errors_without_their_value() {
        for (name, value) in
            [("PGARK_WAL__LEVLE", "CANARY"), ("PGARK_WAL", "CANARY"), ("PGARK_REPO__ACCESS_KEY_ID", "")]
        {
            let message = read(&[], &[(name, value)], None).unwrap_err().message;
            assert!(message.contains(name) && !message.contains("CANARY"), "{message}");
        }
    }
}
