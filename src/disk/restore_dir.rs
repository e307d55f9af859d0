//! The directory that a restore fills: refused where it could harm something, useless to PostgreSQL until it is whole.
//!
//! * Nothing is written while another server's data may lie there, and nothing outside of the directory and the tablespaces.
//! * `global/pg_control` gets its name last of all. Before it has it, PostgreSQL does not start.
//! * A restore that was killed leaves a mark by which the next one knows that it may go on here.
//! * No link leads out, but those of tablespaces and that of `pg_wal`, where nothing else than WAL may be. No file is written that
//!   has another name elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::restored_file::{NO_FOLLOW, RestoredFile, has_content};
use super::sync::{sync, sync_each};
use super::tablespace_users::running_user;
use crate::postgres::backup_files::CONTROL_FILE;
use crate::postgres::{BackupPath, WalName};
use crate::stream::Sha256;

/// A directory that is being filled.
#[derive(Debug)]
pub struct RestoreDir {
    root: PathBuf,
    /// Whether files may be there that need not come again.
    may_have_files: bool,
    /// Links that stay: of tablespaces with where they lead, and of `pg_wal`.
    links: BTreeMap<PathBuf, PathBuf>,
    /// Whether the group may read.
    group: bool,
    /// The locked mark: another restore finds the directory taken.
    _mark: File,
}

/// What stands in a directory that may be filled.
#[derive(Debug)]
pub struct Found {
    marked: bool,
    is_cluster: bool,
    links: BTreeMap<PathBuf, PathBuf>,
}

impl Found {
    /// Whether it is what a restore left that was broken off.
    pub fn is_marked(&self) -> bool {
        self.marked
    }
}

/// Why a directory is not filled.
#[derive(Debug, thiserror::Error)]
pub enum RestoreDirError {
    /// It is not empty, or a server lives there.
    #[error("{0}")]
    Refused(String),
    /// The file system failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// There while a restore is under way, and after one that was killed.
const MARK: &str = ".pgark-restoring";
/// `pg_control` until everything else is there.
const WAITING_CONTROL: &str = "global/.pgark-pg_control";
const PG_WAL: &str = "pg_wal";

impl RestoreDir {
    /// Refuses what [`RestoreDir::claim`] refuses, all but another restore that is at work. Changes nothing.
    pub fn look(root: &Path, over_old: bool) -> Result<Found, RestoreDirError> {
        let refused = |why: String| Err(RestoreDirError::Refused(format!("`{}` {why}", root.display())));
        let names = match names(root) {
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeSet::new(),
            names => names?,
        };
        // Killed after its last step but one, a restore leaves the mark in a cluster that may have run since.
        // One that cannot be looked at counts as there.
        let marked = names.contains(MARK) && !root.join(CONTROL_FILE).try_exists().unwrap_or(true);
        if names.contains("postmaster.pid") {
            return refused("has a postmaster.pid: a server runs there, or crashed there".to_owned());
        }
        let is_cluster = names.contains("PG_VERSION");
        let ours = marked || (over_old && is_cluster);
        if !ours && names.contains(MARK) {
            return refused("is not empty: a restore came to its last step there, and the cluster is whole".to_owned());
        }
        if !names.is_empty() && !ours {
            let example = names.first().map_or("", String::as_str);
            return refused(format!("is not empty: it has `{example}`"));
        }
        let mut links = BTreeMap::new();
        let wal = root.join(PG_WAL);
        if wal.is_symlink() && !wal.is_dir() {
            return refused(
                "has a link `pg_wal` that leads to no directory: mount what belongs there, or remove it".into(),
            );
        }
        if let Some(behind) = behind_link(&wal)? {
            // The link of a copied directory leads to the original's WAL, which would be removed.
            if let Some(user) = running_user(&behind, root) {
                return refused(format!(
                    "has a link `pg_wal` to `{}`, which the server uses that runs in `{}`: if it is a copy, remove the link",
                    behind.display(),
                    user.display()
                ));
            }
            if let Some(foreign) = self::names(&behind)?.into_iter().find(|name| !belongs_to_wal(name)) {
                return refused(format!("has a link `pg_wal` to `{}`, where `{foreign}` is no WAL", behind.display()));
            }
            links.insert(PathBuf::from(PG_WAL), behind);
        }
        Ok(Found { marked, is_cluster, links })
    }

    /// Takes a directory that does not exist, is empty, or is what an earlier restore left. With `over_old`, also a stopped
    /// cluster: it can be started no more from here on.
    pub fn claim(root: &Path, over_old: bool) -> Result<Self, RestoreDirError> {
        make_directory(root, 0o700)?;
        let Found { marked, is_cluster, links } = Self::look(root, over_old)?;
        fs::set_permissions(root, Permissions::from_mode(0o700)).map_err(|e| at(root, e))?;
        let Some(mark) = take_mark(root)? else {
            let message = format!("`{}` is being filled by another restore", root.display());
            return Err(RestoreDirError::Refused(message));
        };
        let dir = RestoreDir {
            root: root.to_owned(),
            may_have_files: marked || is_cluster,
            links,
            group: false,
            _mark: mark,
        };
        dir.clear_way(Path::new("global"))?;
        for control in [CONTROL_FILE, WAITING_CONTROL] {
            remove(&dir.root.join(control))?;
        }
        // After a power cut the old control file must not stand beside new files.
        let global = dir.root.join("global");
        if global.is_dir() {
            sync(&global)?;
        }
        sync(&dir.root)?;
        Ok(dir)
    }

    /// Lets the cluster's group read, as `initdb --allow-group-access` does.
    pub fn allow_group(&mut self) -> io::Result<()> {
        self.group = true;
        fs::set_permissions(&self.root, Permissions::from_mode(0o750)).map_err(|e| at(&self.root, e))
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether a file of the backup may be there already.
    pub fn may_have_files(&self) -> bool {
        self.may_have_files
    }

    /// Makes a tablespace's directory at `location`, which must be empty or not exist, and the link to it.
    pub fn make_tablespace(&mut self, oid: u32, location: &Path) -> Result<(), RestoreDirError> {
        let refused = |why: &str| {
            let message = format!("the location `{}` of tablespace {oid} {why}", location.display());
            Err(RestoreDirError::Refused(message))
        };
        let plain =
            location.is_absolute() && location.components().count() > 1 && location.iter().all(|name| name != "..");
        if !plain || overlap(location, &self.root) {
            return refused("cannot be used: map it with `--tablespace-map`");
        }
        make_directory(location, 0o700)?;
        let (real, root) = (real(location)?, real(&self.root)?);
        if overlap(&real, &root) || self.links.values().any(|other| overlap(&real, other)) {
            return refused("is in a place that is used already: map it with `--tablespace-map`");
        }
        let below = Path::new("pg_tblspc").join(oid.to_string());
        let link = self.root.join(&below);
        let ours = fs::read_link(&link).is_ok_and(|target| target == location);
        let known = ours && self.may_have_files;
        if !known && !names(location)?.is_empty() {
            return refused("is not empty: map it to another place with `--tablespace-map`");
        }
        self.clear_way(Path::new("pg_tblspc"))?;
        make_directory(&self.root.join("pg_tblspc"), 0o700)?;
        if !ours {
            remove_all(&link)?;
            symlink(location, &link).map_err(|e| at(&link, e))?;
        }
        self.links.insert(below, real);
        Ok(())
    }

    /// Makes a directory of the backup, whose parents are made. One that is there stays.
    pub fn make_directory(&self, path: &BackupPath, mode: u32) -> io::Result<()> {
        self.clear_way(path.as_path())?;
        let place = self.root.join(path.as_path());
        make_directory(&place, mode)?;
        fs::set_permissions(&place, Permissions::from_mode(mode | 0o700)).map_err(|e| at(&place, e))
    }

    /// Removes what stands where a directory shall be, but is none.
    fn clear_way(&self, below: &Path) -> io::Result<()> {
        let place = self.root.join(below);
        match fs::symlink_metadata(&place) {
            Ok(found) if !found.is_dir() && !self.links.contains_key(below) => remove(&place),
            _ => Ok(()),
        }
    }

    /// Removes everything that is neither among `directories` nor among `files`.
    pub fn remove_others(&self, directories: &BTreeSet<&BackupPath>, files: &BTreeSet<&BackupPath>) -> io::Result<()> {
        self.sweep(Path::new(""), directories, files)
    }

    fn sweep(
        &self,
        below: &Path,
        directories: &BTreeSet<&BackupPath>,
        files: &BTreeSet<&BackupPath>,
    ) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        for name in raw_names(&self.root.join(below))? {
            let path = below.join(&name);
            let place = self.root.join(&path);
            if path == Path::new(MARK) {
                continue;
            }
            // A tablespace's directory may also hold another major version's.
            let shared = below.parent() == Some(Path::new("pg_tblspc"));
            let known = BackupPath::new(path.as_os_str().as_bytes()).ok();
            let wanted_directory = known.as_ref().is_some_and(|path| directories.contains(path));
            let wanted_file = known.as_ref().is_some_and(|path| files.contains(path));
            let kind = fs::symlink_metadata(&place).map_err(|e| at(&place, e))?.file_type();
            if wanted_directory && (kind.is_dir() || self.links.contains_key(&path)) {
                self.sweep(&path, directories, files)?;
            } else if shared {
                continue;
            } else if !(wanted_file && kind.is_file()) {
                remove_all(&place)?;
            }
        }
        Ok(())
    }

    /// Opens a file of the backup for writing runs of its bytes, and gives it its size.
    pub fn open_file(&self, path: &BackupPath, size: u64, mode: u32) -> io::Result<RestoredFile> {
        RestoredFile::open(self.place_of(path), size, mode)
    }

    /// Whether a file is there with these runs (length and digest), and nothing else. Any other file is removed.
    pub fn keep_file(&self, path: &BackupPath, size: u64, mode: u32, runs: &[(u64, Sha256)]) -> io::Result<bool> {
        let place = self.place_of(path);
        let fits = has_content(&place, size, runs)?;
        match fits {
            true => fs::set_permissions(&place, Permissions::from_mode(mode | 0o600)).map_err(|e| at(&place, e))?,
            // Written over in place, it would change wherever else it has a name.
            false => remove(&place)?,
        }
        Ok(fits)
    }

    fn place_of(&self, path: &BackupPath) -> PathBuf {
        match path.as_bytes() == CONTROL_FILE.as_bytes() {
            true => self.root.join(WAITING_CONTROL),
            false => self.root.join(path.as_path()),
        }
    }

    /// Writes a small file of our own, durably, below `directory`.
    pub fn write(&self, directory: &str, name: &str, content: &[u8]) -> io::Result<()> {
        let place = self.root.join(directory).join(name);
        let temporary = self.root.join(directory).join(format!(".pgark-new-{name}"));
        remove_all(&temporary)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|e| at(&temporary, e))?;
        if self.group {
            file.set_permissions(Permissions::from_mode(0o640)).map_err(|e| at(&temporary, e))?;
        }
        file.write_all(content).and_then(|()| file.sync_all()).map_err(|e| at(&temporary, e))?;
        fs::rename(&temporary, &place).map_err(|e| at(&place, e))
    }

    /// Removes a file, if it is there.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        remove(&self.root.join(name))
    }

    /// Reads a small file; empty if there is none.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let place = self.root.join(name);
        match fs::read(&place) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(at(&place, error)),
        }
    }

    /// Makes these files, then their directories durable, then gives `pg_control` its name: from now on PostgreSQL can start here.
    pub fn finish<'a>(
        self,
        elsewhere: &BTreeMap<u32, PathBuf>,
        files: impl Iterator<Item = &'a BackupPath>,
        directories: impl Iterator<Item = &'a BackupPath>,
    ) -> io::Result<()> {
        // All that is to be written, in one go: one after the other would be slow.
        for place in [&self.root].into_iter().chain(elsewhere.values()).chain([&self.root.join("pg_wal")]) {
            let directory = File::open(place).map_err(|e| at(place, e))?;
            rustix::fs::syncfs(&directory).map_err(|e| at(place, e.into()))?;
        }
        sync_each(&files.map(|path| self.place_of(path)).collect::<Vec<_>>())?;
        sync_each(&directories.map(|path| self.root.join(path.as_path())).collect::<Vec<_>>())?;
        sync(&self.root)?;
        let control = self.root.join(CONTROL_FILE);
        sync(&self.root.join(WAITING_CONTROL))?;
        fs::rename(self.root.join(WAITING_CONTROL), &control).map_err(|e| at(&control, e))?;
        sync(&self.root.join("global"))?;
        remove(&self.root.join(MARK))?;
        sync(&self.root)
    }
}

/// Makes the mark and locks it; `None` if another process has it.
fn take_mark(root: &Path) -> io::Result<Option<File>> {
    const WORDS: &[u8] = b"A restore by pgark is under way, or was broken off: run it again.\n";
    let place = root.join(MARK);
    if fs::symlink_metadata(&place).is_ok_and(|found| !found.is_file() || found.nlink() != 1) {
        remove_all(&place)?;
    }
    let open =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).custom_flags(NO_FOLLOW).open(&place);
    let mark = open.map_err(|e| at(&place, e))?;
    match mark.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(None),
        // A file system without locks: then nobody else is told.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    mark.write_all_at(WORDS, 0).and_then(|()| mark.sync_all()).map_err(|e| at(&place, e))?;
    Ok(Some(mark))
}

fn make_directory(place: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().recursive(true).mode(mode | 0o700).create(place) {
        Ok(()) => Ok(()),
        Err(_) if place.is_dir() => Ok(()),
        Err(error) => Err(at(place, error)),
    }
}

fn raw_names(directory: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let names = fs::read_dir(directory).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
    names.map_err(|e| at(directory, e))
}

fn names(directory: &Path) -> io::Result<BTreeSet<String>> {
    Ok(raw_names(directory)?.into_iter().map(|name| name.to_string_lossy().into_owned()).collect())
}

fn remove(place: &Path) -> io::Result<()> {
    match fs::remove_file(place) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(at(place, error)),
        _ => Ok(()),
    }
}

fn remove_all(place: &Path) -> io::Result<()> {
    match fs::symlink_metadata(place) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(place).map_err(|e| at(place, e)),
        _ => remove(place),
    }
}

pub(super) fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

fn real(place: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(place).map_err(|e| at(place, e))
}

/// The directory behind a link; `None` if there is no link, or it leads to none.
fn behind_link(place: &Path) -> io::Result<Option<PathBuf>> {
    if place.is_symlink() && place.is_dir() { real(place).map(Some) } else { Ok(None) }
}

/// What PostgreSQL, or `restore_command`, puts into `pg_wal`.
fn belongs_to_wal(name: &str) -> bool {
    const PREFIXES: [&str; 6] = ["archive_status", "summaries", "RECOVERY", "xlogtemp.", "pg_wal_", ".pgark-"];
    name.parse::<WalName>().is_ok() || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

pub(super) fn at(place: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("`{}`: {error}", place.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> BackupPath {
        BackupPath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_could_be_harmed_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("data");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("notes"), b"mine").unwrap();
        assert!(matches!(RestoreDir::claim(&root, false), Err(RestoreDirError::Refused(_))));
        assert!(matches!(RestoreDir::claim(&root, true), Err(RestoreDirError::Refused(_))), "no cluster");
        fs::write(root.join("PG_VERSION"), b"15").unwrap();
        fs::write(root.join("postmaster.pid"), b"1").unwrap();
        assert!(matches!(RestoreDir::claim(&root, true), Err(RestoreDirError::Refused(_))), "a server");
        assert_eq!(fs::read(root.join("notes")).unwrap(), b"mine");
    }

    #[test]
    fn pg_control_comes_last_and_a_broken_restore_may_go_on() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("data");
        for round in 0..2 {
            let dir = RestoreDir::claim(&root, false).unwrap();
            assert!(matches!(RestoreDir::claim(&root, false), Err(RestoreDirError::Refused(_))), "two at once");
            assert_eq!(dir.may_have_files(), round == 1);
            for directory in ["global", "pg_wal"] {
                dir.make_directory(&path(directory), 0o700).unwrap();
            }
            dir.open_file(&path(CONTROL_FILE), 3, 0o600).unwrap().write(0, b"abc").unwrap();
            assert!(!root.join(CONTROL_FILE).exists());
            if round == 1 {
                dir.finish(&BTreeMap::new(), [&path(CONTROL_FILE)].into_iter(), [&path("global")].into_iter()).unwrap();
            }
        }
        assert_eq!(fs::read(root.join(CONTROL_FILE)).unwrap(), b"abc");
        assert!(!root.join(MARK).exists());
        assert!(matches!(RestoreDir::claim(&root, false), Err(RestoreDirError::Refused(_))), "it is whole now");
    }

    #[test]
    fn others_are_removed_and_links_are_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("data");
        let outside = place.path().join("outside");
        fs::write(&outside, b"theirs").unwrap();
        let dir = RestoreDir::claim(&root, false).unwrap();
        dir.make_directory(&path("base"), 0o700).unwrap();
        dir.make_directory(&path("old"), 0o700).unwrap();
        fs::write(root.join("base/1"), b"1").unwrap();
        fs::write(root.join("base/2"), b"2").unwrap();
        symlink(&outside, root.join("base/3")).unwrap();
        assert!(dir.open_file(&path("base/3"), 1, 0o600).is_err());
        let (base, one) = (path("base"), path("base/1"));
        dir.remove_others(&BTreeSet::from([&base]), &BTreeSet::from([&one])).unwrap();
        assert_eq!(names(&root.join("base")).unwrap(), BTreeSet::from(["1".to_owned()]));
        assert!(!root.join("old").exists());
        assert_eq!(fs::read(&outside).unwrap(), b"theirs");
        assert!(dir.keep_file(&one, 1, 0o640, &[(1, Sha256::of(b"1"))]).unwrap());
        assert_eq!(fs::metadata(root.join("base/1")).unwrap().mode() & 0o777, 0o640);
        assert!(!dir.keep_file(&one, 1, 0o640, &[(1, Sha256::of(b"2"))]).unwrap());
        assert!(!root.join("base/1").exists());
    }

    #[test]
    fn tablespaces_go_to_empty_places_only() {
        let place = tempfile::tempdir().unwrap();
        let mut dir = RestoreDir::claim(&place.path().join("data"), false).unwrap();
        let full = place.path().join("full");
        fs::create_dir(&full).unwrap();
        fs::write(full.join("x"), b"").unwrap();
        for location in [
            full.as_path(),
            Path::new("/"),
            Path::new("relative"),
            Path::new("/a/../b"),
            &dir.root.join("in"),
            place.path(),
        ] {
            assert!(dir.make_tablespace(5, location).is_err(), "{}", location.display());
        }
        let good = place.path().join("new/space");
        dir.make_tablespace(5, &good).unwrap();
        assert_eq!(fs::read_link(dir.root.join("pg_tblspc/5")).unwrap(), good);
        let alias = place.path().join("alias");
        symlink(place.path().join("new"), &alias).unwrap();
        for location in [&good, &good.join("inner"), &alias.join("space")] {
            assert!(dir.make_tablespace(6, location).is_err(), "{}", location.display());
        }
    }
}
