//! `init`: write the settings file, open a generation, print the lines for `postgresql.conf`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::bounds::{apart, bounded};
use super::failure::{Failure, FailureKind};
use super::wal_push::find_data_dir;
use super::{Circumstances, RepositorySettings};
use crate::disk::DataDir;
use crate::repo::Generation;

/// Writes a settings file of mode 0640. As root, its group becomes that of the data directory, so that the server's
/// user can read it. An existing file stays as it is.
pub fn write_settings(path: &Path, text: &str, pgdata: Option<&Path>) -> Result<(), Failure> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            Failure::new(FailureKind::Usage, format!("`{}` is already there", path.display()))
                .with_hint("edit it, or name another file with `--config`")
        }
        _ => Failure::new(FailureKind::LocalIo, format!("cannot write `{}`: {e}", path.display())),
    };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(path).map_err(failed)?;
    let write = |file: &mut fs::File| {
        file.write_all(text.as_bytes())?;
        if let Some(group) = pgdata.and_then(|directory| fs::metadata(directory).ok()).map(|meta| meta.gid())
            && rustix::process::geteuid().is_root()
        {
            std::os::unix::fs::fchown(&*file, None, Some(group))?;
        }
        file.sync_all()
    };
    write(&mut file).map_err(|e| {
        fs::remove_file(path).ok();
        failed(e)
    })
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

/// The lines that PostgreSQL needs. `options` stand between the program and its verb.
pub fn postgresql_conf(program: &Path, options: &str) -> String {
    let program = program.display();
    let space = if options.is_empty() { "" } else { " " };
    format!(
        "wal_level = replica\n\
         archive_mode = on                  # takes effect at the next restart\n\
         archive_command = '{program}{space}{options} wal-push %p %f'\n\
         archive_timeout = 60               # a quiet server loses at most this many seconds\n\
         restore_command = '{program}{space}{options} wal-fetch %f %p'\n"
    )
}
