//! A file that others read at any moment: it appears whole, or the old one stays.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::sync::sync;

/// For all to read, as far as the user's mask lets them.
const MODE: u32 = 0o644;

/// Puts the file in its place, instead of one that is there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file =
        tempfile::Builder::new().prefix(".pgark-").permissions(Permissions::from_mode(MODE)).tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_file_stays_until_the_new_one_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("page.html");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o600, 0o600);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o133, 0, "nobody else writes");
        // In the place of a directory nothing is put, and nothing is left behind.
        let taken = directory.path().join("taken");
        std::fs::create_dir_all(taken.join("in")).unwrap();
        assert!(replace(&taken, b"x").is_err());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
        assert!(replace(&directory.path().join("absent/page.html"), b"x").is_err());
    }
}
