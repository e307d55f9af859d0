//! The `restore_command` of a restored server: this binary, with what it takes to find the same repository.

use std::path::Path;

use super::sources::{DEFAULT_FILE, Origin, Sources};
use crate::command::{Failure, FailureKind};

/// The command, and the settings that stand in our environment alone: the server must have them, too.
pub fn write(sources: &Sources) -> Result<(String, Vec<String>), Failure> {
    let program = std::env::current_exe().map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
    let mut words = vec![quoted(&program)?];
    if sources.file.exists() && sources.file != Path::new(DEFAULT_FILE) {
        let file = std::path::absolute(&sources.file).unwrap_or_else(|_| sources.file.clone());
        words.extend(["--config".to_owned(), quoted(&file)?]);
    }
    let mut in_environment = Vec::new();
    for (path, flag) in [("repo.url", "--repo"), ("cluster.name", "--cluster")] {
        let given = matches!(sources.origin(path), Some(Origin::Flag(_) | Origin::Environment(_)));
        if let Some(value) = sources.get(path).filter(|_| given) {
            words.extend([flag.to_owned(), quoted(Path::new(value))?]);
        }
    }
    for key in super::keys::KEYS.iter().filter(|key| key.section == "repo" && key.name != "url") {
        if let Some(Origin::Environment(variable)) = sources.origin(&key.path()) {
            in_environment.push(variable.clone());
        }
    }
    // Credentials and places that AWS's own tools take from there.
    if sources.get("repo.url").is_some_and(|url| url.starts_with("s3:")) {
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("AWS_")).collect();
        names.sort_unstable();
        in_environment.extend(names);
    }
    Ok((format!("{} wal-fetch %f %p", words.join(" ")), in_environment))
}

/// A word as the shell and PostgreSQL leave it alone: PostgreSQL takes `%` for its own.
fn quoted(word: &Path) -> Result<String, Failure> {
    let text = word.to_str().ok_or_else(|| {
        Failure::new(FailureKind::Usage, format!("`{}` is not UTF-8: give `--restore-command`", word.display()))
    })?;
    Ok(shell_word(&text.replace('%', "%%")))
}

/// A word as the shell leaves it alone.
pub fn shell_word(text: &str) -> String {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-:%+,@=".contains(&b));
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_program_as_they_are() {
        for (word, written) in [
            ("/usr/bin/pgark", "/usr/bin/pgark"),
            ("s3://bucket/a b", "'s3://bucket/a b'"),
            ("it's", r"'it'\''s'"),
            ("50%f", "50%%f"),
        ] {
            assert_eq!(quoted(Path::new(word)).unwrap(), written);
        }
    }
}
