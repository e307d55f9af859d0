//! The settings file: TOML, every key known, every complaint with its place.

use std::io;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Key, Kind};
use super::values;
use crate::command::{Failure, FailureKind};
use crate::storage::settings_file;

/// A value that a file gives.
#[derive(Debug)]
pub struct FileValue {
    /// Of which setting.
    pub key: &'static Key,
    /// As text.
    pub text: String,
    /// The line in the file, from 1.
    pub line: usize,
}

/// Reads a file. One that is not there is no error unless it `must_exist`.
pub fn read(path: &Path, must_exist: bool) -> Result<Vec<FileValue>, Failure> {
    // What people name when they want none.
    if path == Path::new("/dev/null") {
        return Ok(Vec::new());
    }
    match settings_file::read_text(path) {
        Ok(text) => parse(path, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => Ok(Vec::new()),
        Err(error) => {
            let failure = Failure::new(
                FailureKind::Usage,
                format!("cannot read the settings file `{}`: {error}", path.display()),
            );
            Err(match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    failure.with_hint("the server's user must be able to read it: see `ls -l`")
                }
                _ => failure,
            })
        }
    }
}

fn parse(path: &Path, text: &str) -> Result<Vec<FileValue>, Failure> {
    let at = |span: Range<usize>, what: String| {
        let (line, column) = place(text, span.start);
        Failure::new(FailureKind::Usage, format!("{}:{line}:{column}: {what}", path.display()))
            .with_hint("`pgark config example` shows all settings")
    };
    // Only the message: the parser's whole text repeats the line, which may hold a secret.
    let document = DeTable::parse(text)
        .map_err(|e| at(e.span().unwrap_or_default(), format!("this is not TOML: {}", first_line(e.message()))))?;
    let mut values = Vec::new();
    for (section, table) in document.get_ref().iter() {
        let name = section.get_ref();
        if !keys::KEYS.iter().any(|key| key.section == name.as_ref()) {
            return Err(at(section.span(), format!("unknown section `{name}`")));
        }
        let DeValue::Table(table) = table.get_ref() else {
            return Err(at(section.span(), format!("`{name}` is a section: write `[{name}]`")));
        };
        for (entry, span, value) in entries(name, table) {
            let unknown = || at(span, format!("unknown key `{name}.{entry}`{}", similar(name, &entry)));
            let key = keys::find(name, &entry).ok_or_else(unknown)?;
            if values.iter().any(|before: &FileValue| before.key.path() == key.path()) {
                return Err(at(value.span(), format!("`{}` is set twice", key.path())));
            }
            let text_value = as_text(key, value).map_err(|why| at(value.span(), format!("`{}`: {why}", key.path())))?;
            values::check(key, &text_value).map_err(|why| at(value.span(), format!("`{}`: {why}", key.path())))?;
            values.push(FileValue { key, text: text_value, line: place(text, value.span().start).0 });
        }
    }
    Ok(values)
}

/// The entries of a section, those of a table in it as `table_entry`: `drill.full` means `drill_full`.
fn entries<'t, 'v>(section: &str, table: &'t DeTable<'v>) -> Vec<(String, Range<usize>, &'t Spanned<DeValue<'v>>)> {
    let each = table.iter().flat_map(|(entry, value)| {
        let (name, below) = (entry.get_ref().to_string(), format!("{}_", entry.get_ref()));
        let is_group = keys::KEYS.iter().any(|key| key.section == section && key.name.starts_with(&below));
        match value.get_ref() {
            DeValue::Table(inner) if is_group && keys::find(section, &name).is_none() => {
                inner.iter().map(|(last, value)| (format!("{below}{}", last.get_ref()), last.span(), value)).collect()
            }
            _ => vec![(name, entry.span(), value)],
        }
    });
    each.collect()
}

fn as_text(key: &Key, value: &Spanned<DeValue<'_>>) -> Result<String, String> {
    match (key.kind, value.get_ref()) {
        (Kind::Bool, DeValue::Boolean(value)) => Ok(value.to_string()),
        (Kind::Integer(..), DeValue::Integer(value)) if value.radix() == 10 => Ok(value.as_str().replace('_', "")),
        (Kind::Bool, _) => Err("must be true or false, without quotes".to_owned()),
        (Kind::Integer(low, high), _) => Err(format!("must be a whole number from {low} to {high}, without quotes")),
        (_, DeValue::String(value)) => Ok(value.to_string()),
        _ => Err("must be a string, in quotes".to_owned()),
    }
}

fn similar(section: &str, name: &str) -> String {
    let elsewhere = keys::KEYS.iter().find(|key| key.name == name && key.section != section);
    elsewhere.map_or(String::new(), |key| format!("; there is `{}`", key.path()))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(text: &str) -> String {
        parse(Path::new("f.toml"), text).unwrap_err().message
    }

    #[test]
    fn a_group_of_keys_can_be_dotted_or_a_table() {
        for text in [
            "[schedule]\ndrill.full = \"0 4 1 * *\"\n",
            "[schedule.drill]\nfull = \"0 4 1 * *\"\n",
            "schedule.drill_full = \"0 4 1 * *\"\n",
        ] {
            let values = parse(Path::new("f"), text).unwrap();
            assert_eq!((values[0].key.path().as_str(), values[0].text.as_str()), ("schedule.drill_full", "0 4 1 * *"));
        }
        let twice = "[schedule]\ndrill.full = \"0 4 1 * *\"\ndrill_full = \"0 4 1 * *\"\n";
        assert!(complaint(twice).ends_with("`schedule.drill_full` is set twice"), "{}", complaint(twice));
        assert_eq!(complaint("[schedule]\ndrill.fool = \"\"\n"), "f.toml:2:7: unknown key `schedule.drill_fool`");
        let bad = complaint("[schedule]\ndump = \"0 25 * * *\"\n");
        assert!(bad.starts_with("f.toml:2:8: `schedule.dump`: is no cron expression of five fields"), "{bad}");
    }

    #[test]
    fn reads_every_kind() {
        let text = "[repo]\nurl = \"s3://b\"\npath_style = true\n[wal]\nlevel = 3\nfetch_retry = \"5m\"\n";
        let values = parse(Path::new("f"), text).unwrap();
        let seen: Vec<_> = values.iter().map(|v| (v.key.path(), v.text.clone(), v.line)).collect();
        assert!(seen.contains(&("repo.path_style".into(), "true".into(), 3)));
        assert!(seen.contains(&("wal.level".into(), "3".into(), 5)));
        assert_eq!(seen.len(), 4);
    }

    #[test]
    fn complaints_have_a_place_and_no_secret() {
        for (text, expected) in [
            ("[repo]\nurll = \"x\"\n", "f.toml:2:1: unknown key `repo.urll`"),
            ("[wal]\nurl = \"x\"\n", "f.toml:2:1: unknown key `wal.url`; there is `repo.url`"),
            ("[rep]\n", "f.toml:1:2: unknown section `rep`"),
            ("[wal]\nlevel = 99\n", "f.toml:2:9: `wal.level`: is not a whole number from 1 to 19"),
            ("[wal]\nlevel = \"1\"\n", "f.toml:2:9: `wal.level`: must be a whole number from 1 to 19, without quotes"),
            (
                "[repo]\nsecret_access_key = 123456789\n",
                "f.toml:2:21: `repo.secret_access_key`: must be a string, in quotes",
            ),
            ("wal = 1\n", "f.toml:1:1: `wal` is a section: write `[wal]`"),
        ] {
            assert_eq!(complaint(text), expected);
        }
        for text in [
            "[repo]\nsecret_access_key = CANARY\n",
            "[repo]\nsecret_access_key = \"CANARY\n",
            "[repo]\nsecret_access_key = \"CANARY\" x\n",
            "[repo]\nsecret_access_key = [\"CANARY\"]\n",
            "[repo]\nsecret_access_key = \"CANARY\\q\"\n",
        ] {
            let message = complaint(text);
            assert!(message.starts_with("f.toml:2:") && !message.contains("CANARY"), "{message}");
        }
    }
}
