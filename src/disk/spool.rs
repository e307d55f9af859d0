//! A private directory for what may be lost at any time: notes of what is archived, segments that were fetched ahead.
//!
//! Nothing in it is ever believed without a check, and deleting it harms nobody. It must be safe all the same: what another user
//! could write there would reach PostgreSQL, and what another user could read is the database.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::DataDir;
use crate::stream::Sha256;

/// A directory of the spool that belongs to one data directory and one repository.
#[derive(Clone, Debug)]
pub struct Spool {
    directory: PathBuf,
}

/// Where packages put it.
const SYSTEM_PLACE: &str = "/var/spool/pgark";
/// Where any user may have one.
const USERS_PLACE: &str = "/var/tmp";
/// Follows no link, and does not wait for a pipe.
pub(super) const NO_LINKS: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits() as i32;
/// A small file is not larger than this.
const SMALL: u64 = 16 << 10;

/// Where files without a name are made: `TMPDIR`, else `/var/tmp`. What lies in `/tmp` may lie in memory.
pub fn temporary_place() -> PathBuf {
    let configured = std::env::var_os("TMPDIR").filter(|place| !place.is_empty());
    configured.map_or_else(|| PathBuf::from(USERS_PLACE), PathBuf::from)
}

impl Spool {
    /// The part of the spool for this data directory and `repository`, made if it is not there; `kind` keeps uses apart.
    ///
    /// The place is `configured`, else `/var/spool/pgark` where that is ours, else one for this user in `/var/tmp`.
    pub fn open(configured: Option<&Path>, repository: &str, data_dir: &DataDir, kind: &str) -> io::Result<Self> {
        let root = match configured {
            Some(root) => root.to_owned(),
            None => default_place(),
        };
        let within = fs::canonicalize(data_dir.path())?;
        make_private(&root)?;
        let root = fs::canonicalize(root)?;
        check(&root, 0o022)?;
        if root.starts_with(&within) {
            return Err(unsafe_place(&root, "it lies in the data directory, and would be backed up"));
        }
        // The directory itself, not its name: another cluster may be put there one day.
        let stat = fs::metadata(&within)?;
        let whose = format!("{repository}\n{}\n{}", stat.dev(), stat.ino());
        let own = root.join(Sha256::of(whose.as_bytes()).short());
        let directory = own.join(kind);
        for part in [&own, &directory] {
            make_private(part)?;
            check(part, 0o077)?;
        }
        Ok(Spool { directory })
    }

    /// Where a file of this name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Opens a file that we made: regular, ours, not a link.
    pub fn open_file(&self, name: &str) -> io::Result<File> {
        let file = OpenOptions::new().read(true).custom_flags(NO_LINKS).open(self.path(name))?;
        let stat = file.metadata()?;
        if !stat.is_file() || stat.uid() != rustix::process::geteuid().as_raw() {
            return Err(unsafe_place(&self.path(name), "it is not a file of ours"));
        }
        Ok(file)
    }

    /// Reads a small text that was written with [`Spool::write_small`].
    ///
    /// A text carries its own digest: one that was half written, or damaged, is an error.
    pub fn read_small(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        self.open_file(name)?.take(SMALL).read_to_string(&mut text)?;
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("`{name}` is damaged"));
        let (digest, body) = text.split_once('\n').ok_or_else(damaged)?;
        if digest != Sha256::of(body.as_bytes()).to_string() {
            return Err(damaged());
        }
        Ok(body.to_owned())
    }

    /// Writes a small text under a name, whole or not at all.
    pub fn write_small(&self, name: &str, body: &str) -> io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.directory)?;
        file.write_all(format!("{}\n{body}", Sha256::of(body.as_bytes())).as_bytes())?;
        file.persist(self.path(name)).map(|_| ()).map_err(|e| e.error)
    }

    /// Removes a file, or whatever else stands under its name. What cannot be removed is not believed either.
    pub fn remove(&self, name: &str) {
        let path = self.path(name);
        if fs::remove_file(&path).is_err() && fs::symlink_metadata(&path).is_ok_and(|stat| stat.is_dir()) {
            fs::remove_dir_all(&path).ok();
        }
    }

    /// The names that are there.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let names =
            fs::read_dir(&self.directory)?.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()));
        names.collect()
    }
}

fn default_place() -> PathBuf {
    let system = PathBuf::from(SYSTEM_PLACE);
    match check(&system, 0o022) {
        Ok(()) => system,
        Err(_) => PathBuf::from(USERS_PLACE).join(format!("pgark-{}", rustix::process::geteuid().as_raw())),
    }
}

/// Makes a directory that only we may enter; one that is there already is not touched.
fn make_private(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(|e| io::Error::new(e.kind(), format!("cannot make `{}`: {e}", directory.display()))),
    }
}

/// A directory, no link, of ours, without these permissions.
fn check(directory: &Path, forbidden: u32) -> io::Result<()> {
    let stat = fs::symlink_metadata(directory)?;
    let wrong = if !stat.is_dir() {
        "it is not a directory"
    } else if stat.uid() != rustix::process::geteuid().as_raw() {
        "it belongs to another user"
    } else if stat.mode() & forbidden != 0 {
        "other users have too many rights there"
    } else {
        return Ok(());
    };
    Err(unsafe_place(directory, wrong))
}

fn unsafe_place(path: &Path, wrong: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, format!("`{}` is not used: {wrong}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    struct Place {
        root: tempfile::TempDir,
        data: DataDir,
    }

    fn place() -> Place {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("data");
        fs::create_dir_all(data.join("global")).unwrap();
        fs::write(data.join("global/pg_control"), b"").unwrap();
        Place { data: DataDir::at(data).unwrap().unwrap(), root }
    }

    fn open(place: &Place, repository: &str) -> io::Result<Spool> {
        Spool::open(Some(&place.root.path().join("spool")), repository, &place.data, "archived")
    }

    #[test]
    fn uses_are_kept_apart() {
        let place = place();
        let (one, other) = (open(&place, "s3://one").unwrap(), open(&place, "s3://other").unwrap());
        one.write_small("x", "text\nof two lines").unwrap();
        assert_eq!(one.read_small("x").unwrap(), "text\nof two lines");
        assert!(other.read_small("x").is_err());
        assert_eq!(open(&place, "s3://one").unwrap().names().unwrap(), ["x"]);
        let mode = fs::metadata(one.directory()).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn what_others_could_write_is_not_used() {
        let place = place();
        let root = place.root.path().join("spool");
        open(&place, "r").unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(open(&place, "r").is_err());
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        let own = open(&place, "r").unwrap().directory().parent().unwrap().to_owned();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o750)).unwrap();
        assert!(open(&place, "r").is_err());
        fs::remove_dir_all(&own).unwrap();
        let elsewhere = place.root.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, &own).unwrap();
        assert!(open(&place, "r").is_err());
        fs::remove_file(&own).unwrap();
        fs::write(&own, b"").unwrap();
        assert!(open(&place, "r").is_err());
    }

    #[test]
    fn never_in_the_data_directory() {
        let place = place();
        let within = place.data.path().join("spool");
        assert!(Spool::open(Some(&within), "r", &place.data, "archived").is_err());
    }

    #[test]
    fn poisoned_texts_are_errors() {
        let place = place();
        let spool = open(&place, "r").unwrap();
        spool.write_small("x", "body").unwrap();
        let whole = fs::read(spool.path("x")).unwrap();
        for cut in 0..whole.len() {
            fs::write(spool.path("x"), &whole[..cut]).unwrap();
            assert!(spool.read_small("x").is_err(), "{cut}");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(spool.path("x"), &flipped).unwrap();
            assert!(spool.read_small("x").is_err(), "{bit}");
        }
        fs::write(spool.path("whole"), &whole).unwrap();
        spool.remove("x");
        symlink(spool.path("whole"), spool.path("x")).unwrap();
        assert!(spool.read_small("x").is_err());
        spool.remove("x");
        fs::create_dir(spool.path("x")).unwrap();
        assert!(spool.read_small("x").is_err());
        spool.remove("x");
        assert_eq!(spool.names().unwrap(), ["whole"]);
    }
}
