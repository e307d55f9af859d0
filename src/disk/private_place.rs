//! A directory for files on their way, which nobody else can read. It goes when this is dropped.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

/// Such a directory.
#[derive(Debug)]
pub struct PrivatePlace(TempDir);

/// More than file systems need for themselves.
const SPARE: u64 = 16 << 20;

impl PrivatePlace {
    /// Makes one below `parent`, where `needed` bytes must be free.
    pub fn below(parent: &Path, needed: u64) -> io::Result<Self> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("`{}`: {e}", parent.display()));
        let stat = rustix::fs::statvfs(parent).map_err(|e| named(e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < needed.saturating_add(SPARE) {
            let message = format!("{needed} bytes are needed, and {free} are free");
            return Err(named(io::Error::new(io::ErrorKind::StorageFull, message)));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix("pgark-").permissions(Permissions::from_mode(0o700));
        builder.tempdir_in(parent).map(PrivatePlace).map_err(named)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_before_anything_is_made() {
        let parent = tempfile::tempdir().unwrap();
        let refused = PrivatePlace::below(parent.path(), u64::MAX / 2).unwrap_err().to_string();
        assert!(refused.contains("are needed"), "{refused}");
        let place = PrivatePlace::below(parent.path(), 1).unwrap();
        assert_eq!(place.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        drop(place);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
