//! The local copy of a dump, beside the one in the repository: `<local_dir>/<cluster>-<system id>/<dump id>/`.
//!
//! A copy that cannot be written is no reason to give the dump up: that is said when the dump is whole.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::dump_file::Copying;
use super::failure::{Failure, FailureKind};
use crate::disk::DumpCopy;
use crate::disk::dump_copy::remove_old;
use crate::postgres::SystemId;
use crate::repo::dump_manifest::{DumpContent, DumpForm};
use crate::repo::policy::before;
use crate::repo::{BackupId, ClusterName};

/// Where copies go, and how long they stay.
#[derive(Clone, Debug)]
pub struct LocalDumps {
    /// The directory.
    pub directory: PathBuf,
    /// Older ones go; `None`: none does.
    pub keep: Option<Duration>,
}

/// A copy that is being written.
pub(super) struct LocalCopy {
    root: PathBuf,
    id: BackupId,
    copy: Option<DumpCopy>,
    /// What went wrong first.
    trouble: Mutex<Option<String>>,
}

/// What a killed run leaves goes after a day.
const DAY: Duration = Duration::from_secs(24 * 3600);

impl LocalCopy {
    pub(super) fn begin(wanted: &LocalDumps, cluster: &ClusterName, system_id: SystemId, id: BackupId) -> Self {
        let root = wanted.directory.join(format!("{cluster}-{system_id}"));
        let (copy, trouble) = match DumpCopy::begin(&root, &id.to_string()) {
            Ok(copy) => (Some(copy), None),
            Err(error) => (None, Some(format!("`{}`: {error}", root.display()))),
        };
        LocalCopy { root, id, copy, trouble: Mutex::new(trouble) }
    }

    /// A file of it; `None` where there is no copy.
    pub(super) fn file(&self, number: u32, content: &DumpContent, form: DumpForm) -> Option<Copying> {
        Some(Copying(self.copy.as_ref()?.file(&file_name(number, content, form))))
    }

    /// All of a file was written, or not.
    pub(super) fn close(&self, copied: Copying) {
        let Some(copy) = &self.copy else { return };
        if let Err(error) = copied.0.and_then(|file| copy.close(file)) {
            self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error.to_string());
        }
    }

    /// The dump exists: so does its copy from now on, and old ones go. `now` is this machine's.
    pub(super) fn finish(self, keep: Option<Duration>, now: Timestamp) -> Result<PathBuf, Failure> {
        let id = self.id;
        let no_copy = |why: String| {
            let message = format!("dump `{id}` is whole in the repository, but has no local copy: {why}");
            Failure::new(FailureKind::LocalIo, message)
        };
        if let Some(why) = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(no_copy(why));
        }
        let copy = self.copy.ok_or_else(|| no_copy("none was begun".to_owned()))?;
        let place = copy.finish().map_err(|e| no_copy(e.to_string()))?;
        let is_old = |name: &str| {
            let age = keep.unwrap_or(Duration::MAX);
            name.parse().is_ok_and(|other: BackupId| other != id && other.begun() < before(now, age))
        };
        let unfinished = |name: &str| {
            let is_dead = |other: BackupId| other.begun() < before(now, DAY) && !self.root.join(name).exists();
            name.parse().is_ok_and(is_dead)
        };
        match remove_old(&self.root, |name| is_old(name) || unfinished(name)) {
            Ok(_) => Ok(place),
            Err(error) => {
                let message = format!("dump `{id}` and its local copy are whole, but older copies stay: {error}");
                Err(Failure::new(FailureKind::LocalIo, message))
            }
        }
    }
}

/// A name that says what the file is, whatever the database is called.
fn file_name(number: u32, content: &DumpContent, form: DumpForm) -> String {
    let name = match content {
        DumpContent::Globals => "globals".to_owned(),
        DumpContent::Database { database } => {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            let written = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
            database.bytes().map(written).collect()
        }
    };
    let ending = match form {
        DumpForm::Sql => "sql",
        DumpForm::Custom => "dump",
        DumpForm::Directory => "tar",
    };
    format!("{number}-{name}.{ending}.zst")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_after_what_they_hold() {
        let database = |name: &str| DumpContent::Database { database: name.to_owned() };
        assert_eq!(file_name(1, &DumpContent::Globals, DumpForm::Sql), "1-globals.sql.zst");
        assert_eq!(file_name(2, &database("shop_1"), DumpForm::Custom), "2-shop_1.dump.zst");
        assert_eq!(file_name(3, &database("../a b"), DumpForm::Directory), "3-%2E%2E%2Fa%20b.tar.zst");
    }
}
