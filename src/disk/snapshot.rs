//! What a data directory holds, as a base backup sees it: directories, files, tablespaces.
//!
//! The server may be running: what vanishes between two looks is left out.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::postgres::BackupPath;
use crate::postgres::backup_files::{BackupFiles, Verdict};
use crate::postgres::relation_file::{RelationFile, Unlogged};

/// A directory that the backup has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundDirectory {
    /// Below the data directory.
    pub path: BackupPath,
    /// Permission bits.
    pub mode: u32,
}

/// A file that is to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFile {
    /// Below the data directory.
    pub path: BackupPath,
    /// Its bytes when it was looked at.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// When it was changed last, in seconds since 1970.
    pub modified: i64,
    /// Which relation's pages it holds, if it does.
    pub relation: Option<RelationFile>,
}

/// A tablespace beside the data directory, or in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundTablespace {
    /// Its object id.
    pub oid: u32,
    /// Where its link leads; `None` for one that is a directory in `pg_tblspc`.
    pub location: Option<PathBuf>,
}

/// How often a tablespace is looked for that is not there: it may be being dropped.
const LOOKS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);

impl FoundTablespace {
    /// Whether its link leads to no files of this cluster, as where a disk is not mounted. The server makes its directory
    /// there before the link, and removes it just before the link.
    pub fn is_away(&self, root: &Path, rules: &BackupFiles) -> io::Result<bool> {
        if self.location.is_none() {
            return Ok(false);
        }
        let link = root.join("pg_tblspc").join(self.oid.to_string());
        let files = link.join(rules.version_directory());
        for _ in 0..LOOKS {
            let there = unless_gone(fs::metadata(&files)).map_err(|e| describe(e, &files))?.is_some();
            let linked = unless_gone(fs::symlink_metadata(&link)).map_err(|e| describe(e, &link))?.is_some();
            if there || !linked {
                return Ok(false);
            }
            std::thread::sleep(PAUSE);
        }
        Ok(true)
    }
}

/// A data directory at one moment, or nearly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By path.
    pub directories: Vec<FoundDirectory>,
    /// By path.
    pub files: Vec<FoundFile>,
    /// By object id.
    pub tablespaces: Vec<FoundTablespace>,
    /// Links, sockets and the like, which no backup copies.
    pub passed_over: Vec<PathBuf>,
    /// Those of them that stand where the cluster's data belong: without what lies behind them a copy is no backup.
    pub lacking: Vec<PathBuf>,
}

impl Snapshot {
    /// Looks through the data directory at `root`.
    pub fn take(root: &Path, rules: &BackupFiles) -> io::Result<Self> {
        let mut snapshot = Snapshot::default();
        let inner = inner_tablespaces(root);
        Walk { root, rules, inner: &inner, found: &mut snapshot }.directory(Path::new(""))?;
        for name in rules.directories_in_pg_wal() {
            let path = backup_path(&Path::new("pg_wal").join(name))?;
            snapshot.directories.push(FoundDirectory { path, mode: 0o700 });
        }
        snapshot.directories.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        snapshot.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        snapshot.tablespaces.sort_unstable_by_key(|tablespace| tablespace.oid);
        Ok(snapshot)
    }
}

struct Walk<'a> {
    root: &'a Path,
    rules: &'a BackupFiles,
    inner: &'a [PathBuf],
    found: &'a mut Snapshot,
}

impl Walk<'_> {
    fn directory(&mut self, below: &Path) -> io::Result<()> {
        let place = self.root.join(below);
        let Some(names) = unless_gone(names(&place)).map_err(|e| describe(e, &place))? else {
            return Ok(());
        };
        let unlogged = Unlogged::among(&names);
        for name in names {
            let path = below.join(name);
            match self.rules.verdict(&path, &unlogged) {
                Verdict::Skip => {}
                Verdict::SkipContents => self.empty_directory(&path)?,
                Verdict::Copy => self.entry(&path)?,
            }
        }
        Ok(())
    }

    fn empty_directory(&mut self, path: &Path) -> io::Result<()> {
        // Behind a link, too: a restored cluster has a directory there.
        if let Some(metadata) = self.look(path, true)? {
            self.found.directories.push(FoundDirectory { path: backup_path(path)?, mode: mode(&metadata) });
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path) -> io::Result<()> {
        let Some(metadata) = self.look(path, false)? else {
            return Ok(());
        };
        let kind = metadata.file_type();
        if path.parent() == Some(Path::new("pg_tblspc")) && (kind.is_symlink() || kind.is_dir()) {
            return self.tablespace(path, kind.is_symlink());
        }
        if kind.is_dir() {
            self.found.directories.push(FoundDirectory { path: backup_path(path)?, mode: mode(&metadata) });
            // A tablespace in the data directory is copied once, as what its link leads to.
            return if self.inner.iter().any(|inner| inner == path) { Ok(()) } else { self.directory(path) };
        }
        if !kind.is_file() {
            let vital = BackupFiles::is_vital(path);
            let list = if vital { &mut self.found.lacking } else { &mut self.found.passed_over };
            list.push(path.to_owned());
            return Ok(());
        }
        self.found.files.push(FoundFile {
            path: backup_path(path)?,
            size: metadata.len(),
            mode: mode(&metadata),
            modified: metadata.mtime(),
            relation: self.rules.relation_file(path),
        });
        Ok(())
    }

    fn tablespace(&mut self, path: &Path, link: bool) -> io::Result<()> {
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let Some(oid) = number else {
            self.found.passed_over.push(path.to_owned());
            return Ok(());
        };
        let place = self.root.join(path);
        let target = if link { unless_gone(fs::read_link(&place)).map_err(|e| describe(e, &place))? } else { None };
        if link && target.is_none() {
            return Ok(());
        }
        // A link that leads nowhere is one, too: see `FoundTablespace::is_away`.
        let mode = self.look(path, true)?.map_or(0o700, |metadata| mode(&metadata));
        self.found.tablespaces.push(FoundTablespace { oid, location: target });
        self.found.directories.push(FoundDirectory { path: backup_path(path)?, mode });
        self.directory(path)
    }

    fn look(&self, path: &Path, through_links: bool) -> io::Result<Option<Metadata>> {
        let place = self.root.join(path);
        let metadata = if through_links { fs::metadata(&place) } else { fs::symlink_metadata(&place) };
        unless_gone(metadata).map_err(|e| describe(e, &place))
    }
}

/// Tablespaces that lie in the data directory, against PostgreSQL's warning: where, below it.
fn inner_tablespaces(root: &Path) -> Vec<PathBuf> {
    let links = fs::read_dir(root.join("pg_tblspc")).into_iter().flatten().flatten();
    let links = links.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    let Ok(root) = root.canonicalize() else { return Vec::new() };
    let inner = links.filter_map(|link| Some(link.path().canonicalize().ok()?.strip_prefix(&root).ok()?.to_owned()));
    inner.collect()
}

fn names(directory: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.permissions().mode() & 0o777
}

fn backup_path(path: &Path) -> io::Result<BackupPath> {
    BackupPath::new(path.as_os_str().as_bytes()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

/// `None` for what is not there any more.
fn unless_gone<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn describe(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("cannot read `{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tablespace_in_the_data_directory_is_copied_once() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        fs::create_dir_all(root.join("in/side/PG_15_202209061/7")).unwrap();
        fs::create_dir_all(root.join("pg_tblspc")).unwrap();
        fs::write(root.join("in/side/PG_15_202209061/7/1"), b"x").unwrap();
        fs::write(root.join("in/other"), b"x").unwrap();
        symlink(root.join("in/side"), root.join("pg_tblspc/17000")).unwrap();
        let rules = BackupFiles::new(15.try_into().unwrap(), 202_209_061);
        let snapshot = Snapshot::take(root, &rules).unwrap();
        let files: Vec<String> = snapshot.files.iter().map(|file| file.path.to_string()).collect();
        assert_eq!(files, ["in/other", "pg_tblspc/17000/PG_15_202209061/7/1"]);
        assert!(snapshot.directories.iter().any(|found| found.path.to_string() == "in/side"));
    }

    #[test]
    fn a_tablespace_without_files_is_away_unless_it_was_dropped() {
        let (place, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (root, disk) = (place.path(), elsewhere.path().join("disk"));
        fs::create_dir_all(root.join("pg_tblspc/17001")).unwrap();
        symlink(&disk, root.join("pg_tblspc/17000")).unwrap();
        let rules = BackupFiles::new(15.try_into().unwrap(), 202_209_061);
        let away = || {
            let found = Snapshot::take(root, &rules).unwrap().tablespaces;
            found.iter().map(|found| (found.oid, found.is_away(root, &rules).unwrap())).collect::<Vec<_>>()
        };
        assert_eq!(away(), [(17000, true), (17001, false)], "a link that leads nowhere");
        fs::create_dir(&disk).unwrap();
        assert_eq!(away(), [(17000, true), (17001, false)], "a mount point without its disk");
        fs::create_dir(disk.join("PG_14_202107181")).unwrap();
        assert_eq!(away(), [(17000, true), (17001, false)], "another cluster's files");
        fs::create_dir(disk.join("PG_15_202209061")).unwrap();
        assert_eq!(away(), [(17000, false), (17001, false)]);
        fs::remove_dir_all(&disk).unwrap();
        let found = Snapshot::take(root, &rules).unwrap().tablespaces;
        fs::remove_file(root.join("pg_tblspc/17000")).unwrap();
        assert!(!found[0].is_away(root, &rules).unwrap(), "it was dropped");
    }

    #[test]
    fn a_link_in_place_of_data_is_told_from_others() {
        let (place, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = place.path();
        for directory in ["base/5", "pg_multixact"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        let vital = ["base/5/1259", "base/16384", "global", "pg_multixact/members", "pg_tblspc", "pg_xact"];
        for link in vital.into_iter().chain(["log", "pg_stat_tmp", "pg_subtrans", "pg_wal", "postgresql.conf"]) {
            symlink(elsewhere.path(), root.join(link)).unwrap();
        }
        let rules = BackupFiles::new(15.try_into().unwrap(), 202_209_061);
        let mut snapshot = Snapshot::take(root, &rules).unwrap();
        snapshot.lacking.sort();
        snapshot.passed_over.sort();
        assert_eq!(
            snapshot.lacking,
            ["base/16384", "base/5/1259", "global", "pg_multixact/members", "pg_tblspc", "pg_xact"].map(PathBuf::from)
        );
        assert_eq!(snapshot.passed_over, ["log", "postgresql.conf"].map(PathBuf::from));
    }

    #[test]
    fn directories_files_and_tablespaces_are_found_and_the_rest_is_left() {
        let place = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let root = place.path();
        for directory in ["base/5", "global", "pg_wal/archive_status", "pg_tblspc", "pg_replslot/slot", "empty"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for (file, size) in [
            ("base/5/16384", 8192),
            ("base/5/16390", 8192),
            ("base/5/16390_init", 10),
            ("base/5/t3_16391", 1),
            ("base/5/pgsql_tmp1.0", 1),
            ("global/1260", 0),
            ("PG_VERSION", 3),
            ("postmaster.pid", 5),
            ("pg_wal/000000010000000000000001", 9),
            ("pg_replslot/slot/state", 1),
        ] {
            fs::write(root.join(file), vec![0; size]).unwrap();
        }
        fs::create_dir_all(elsewhere.path().join("PG_15_202209061/7")).unwrap();
        fs::create_dir_all(elsewhere.path().join("PG_14_1/7")).unwrap();
        fs::write(elsewhere.path().join("PG_15_202209061/7/1"), b"x").unwrap();
        symlink(elsewhere.path(), root.join("pg_tblspc/17000")).unwrap();
        symlink("/etc", root.join("link")).unwrap();

        let rules = BackupFiles::new(15.try_into().unwrap(), 202_209_061);
        let snapshot = Snapshot::take(root, &rules).unwrap();
        let files: Vec<String> = snapshot.files.iter().map(|file| file.path.to_string()).collect();
        assert_eq!(
            files,
            ["PG_VERSION", "base/5/16384", "base/5/16390_init", "global/1260", "pg_tblspc/17000/PG_15_202209061/7/1"]
        );
        let directories: Vec<String> = snapshot.directories.iter().map(|found| found.path.to_string()).collect();
        assert_eq!(
            directories,
            [
                "base",
                "base/5",
                "empty",
                "global",
                "pg_replslot",
                "pg_tblspc",
                "pg_tblspc/17000",
                "pg_tblspc/17000/PG_15_202209061",
                "pg_tblspc/17000/PG_15_202209061/7",
                "pg_wal",
                "pg_wal/archive_status"
            ]
        );
        assert_eq!(snapshot.passed_over, [Path::new("link")]);
        let location = Some(elsewhere.path().to_owned());
        assert_eq!(snapshot.tablespaces, [FoundTablespace { oid: 17000, location }]);
        assert_eq!((snapshot.files[1].size, snapshot.files[1].relation.is_some()), (8192, true));
    }
}
