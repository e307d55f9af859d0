//! `init`: write the settings file, open a generation, print the lines for `postgresql.conf`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::bounds::{apart, bounded};
use super::failure::{Failure, FailureKind};
use super::wal_push::find_data_dir;
use super::{Circumstances, RepositorySettings};
use crate::disk::DataDir;
use crate::repo::Generation;

/// Writes a settings file of mode 0640, and the directories above it that are missing with 0750, whatever the umask is. As
/// root, their group becomes that of the data directory, so that the server's user can read it; `false` if nobody knows
/// that group. An existing file stays as it is.
pub fn write_settings(path: &Path, text: &str, pgdata: Option<&Path>) -> Result<bool, Failure> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            Failure::new(FailureKind::Usage, format!("`{}` is already there", path.display()))
                .with_hint("edit it, or name another file with `--config`")
        }
        _ => Failure::new(FailureKind::LocalIo, format!("cannot write `{}`: {e}", path.display())),
    };
    let is_root = rustix::process::geteuid().is_root();
    let group = pgdata.and_then(|directory| fs::metadata(directory).ok()).map(|meta| meta.gid()).filter(|_| is_root);
    let give = |file: &File, mode: u32| {
        if group.is_some() {
            std::os::unix::fs::fchown(file, None, group)?;
        }
        file.set_permissions(fs::Permissions::from_mode(mode))
    };
    if let Some(parent) = path.parent() {
        make_directories(parent, &|directory| give(&File::open(directory)?, 0o750)).map_err(failed)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let write = |file: &mut File| {
        file.write_all(text.as_bytes())?;
        give(file, 0o640)?;
        file.sync_all()
    };
    write(&mut file).map_err(|e| {
        fs::remove_file(path).ok();
        failed(e)
    })?;
    Ok(group.is_some() || !is_root)
}

/// Makes what is missing, from above.
fn make_directories(directory: &Path, give: &dyn Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    if directory.as_os_str().is_empty() || directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        make_directories(parent, give)?;
    }
    match fs::create_dir(directory) {
        Ok(()) => give(directory),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Far more than it takes.
const LONGEST: Duration = Duration::from_secs(120);

/// Opens the next generation for the cluster in the data directory.
pub async fn open_generation(
    repository: &RepositorySettings,
    pgdata: Option<PathBuf>,
    circumstances: &Circumstances,
) -> Result<Generation, Failure> {
    let (repository, circumstances) = (repository.clone(), circumstances.clone());
    let work = apart(move || async move {
        let found = match pgdata {
            // What is named counts here, not where we happen to be.
            Some(named) => DataDir::at(named).map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?,
            None => find_data_dir(Path::new(""), None)?,
        };
        let data_dir = found.ok_or_else(|| {
            Failure::new(FailureKind::Usage, "no data directory was found").with_hint("give `--pgdata DIR`")
        })?;
        let facts = data_dir.facts().map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
        let repository = repository.open().await?;
        Ok(repository.open_generation(facts.ident, circumstances.now, &circumstances.writer).await?)
    });
    bounded(work, Some(LONGEST), None).await
}

/// The lines that PostgreSQL needs. `settings` is the file that the commands name.
pub fn postgresql_conf(program: &Path, settings: Option<&Path>) -> Result<String, Failure> {
    let mut call = word(program)?;
    if let Some(settings) = settings {
        call = format!("{call} --config {}", word(settings)?);
    }
    Ok(format!(
        "wal_level = replica\n\
         archive_mode = on                  # takes effect at the next restart\n\
         archive_command = '{call} wal-push %p %f'\n\
         archive_timeout = 60               # a quiet server loses at most this many seconds\n\
         restore_command = '{call} wal-fetch %f %p'\n"
    ))
}

/// A path as a word of the shell, in a command of PostgreSQL (`%`), in a quoted value of `postgresql.conf` (`'` and `\`).
fn word(path: &Path) -> Result<String, Failure> {
    let odd = || {
        Failure::new(FailureKind::Usage, format!("`{}` cannot stand in postgresql.conf", path.display()))
            .with_hint("take a path of ordinary characters")
    };
    let text = path.to_str().filter(|text| !text.contains(char::is_control)).ok_or_else(odd)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '+' | '%');
    let quoted = match text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    };
    Ok(quoted.replace('%', "%%").replace('\\', r"\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_the_shell_and_for_postgresql() {
        for (path, written) in [
            ("/usr/bin/pgark", "/usr/bin/pgark"),
            ("/a b/c", "''/a b/c''"),
            ("/100%/c", "/100%%/c"),
            ("/it's", r"''/it''\\''''s''"),
            (r"/back\slash", r"''/back\\slash''"),
            ("/$HOME;x", "''/$HOME;x''"),
        ] {
            assert_eq!(word(Path::new(path)).unwrap(), written, "{path}");
        }
        assert!(word(Path::new("/new\nline")).is_err());
    }
}
