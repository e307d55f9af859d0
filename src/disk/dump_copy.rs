//! A copy of a dump in a local directory: it gets its name when all of it is on disk.
//!
//! ```text
//! <root>/<dump>/<file>...        what was written
//! <root>/<dump>/SHA256SUMS       for `sha256sum -c`
//! <root>/.<dump>.incoming/       one that is not whole
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::sync::sync;
use crate::stream::{Sha256, Sha256Hasher};

/// A copy that is being written; what is there of it goes if it is never finished.
#[derive(Debug)]
pub struct DumpCopy {
    temporary: PathBuf,
    place: PathBuf,
    sums: Mutex<Vec<(String, Sha256)>>,
}

/// A file of it.
pub struct CopiedFile {
    name: String,
    file: File,
    hasher: Sha256Hasher,
}

const BEHIND: &str = ".incoming";
const SUMS: &str = "SHA256SUMS";

impl DumpCopy {
    /// Begins the copy `name` below `root`, which is made if need be.
    pub fn begin(root: &Path, name: &str) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        let temporary = root.join(format!(".{name}{BEHIND}"));
        DirBuilder::new().mode(0o700).create(&temporary)?;
        Ok(DumpCopy { temporary, place: root.join(name), sums: Mutex::new(Vec::new()) })
    }

    /// Begins a file.
    pub fn file(&self, name: &str) -> io::Result<CopiedFile> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.temporary.join(name))?;
        Ok(CopiedFile { name: name.to_owned(), file, hasher: Sha256Hasher::default() })
    }

    /// Makes a file durable: all of it was written.
    pub fn close(&self, copied: CopiedFile) -> io::Result<()> {
        copied.file.sync_all()?;
        let sum = (copied.name, copied.hasher.finish().sha256);
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).push(sum);
        Ok(())
    }

    /// All files were written: the copy gets its name, for good. Where it is.
    pub fn finish(self) -> io::Result<PathBuf> {
        let mut sums = std::mem::take(&mut *self.sums.lock().unwrap_or_else(PoisonError::into_inner));
        sums.sort();
        let mut list = self.file(SUMS)?;
        for (name, sum) in &sums {
            list.write_all(format!("{sum}  {name}\n").as_bytes())?;
        }
        list.file.sync_all()?;
        sync(&self.temporary)?;
        fs::rename(&self.temporary, &self.place)?;
        sync(self.place.parent().unwrap_or(Path::new("/")))?;
        Ok(self.place.clone())
    }
}

impl Write for CopiedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for DumpCopy {
    fn drop(&mut self) {
        // Once it has its name there is nothing under this one.
        fs::remove_dir_all(&self.temporary).ok();
    }
}

/// Removes the copies, and what is left of unfinished ones, for whose names `is_old` says so. Anything else stays. Those that went.
pub fn remove_old(root: &Path, is_old: impl Fn(&str) -> bool) -> io::Result<Vec<String>> {
    let mut gone = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let unfinished = name.strip_prefix('.').and_then(|name| name.strip_suffix(BEHIND));
        if entry.file_type()?.is_dir() && is_old(unfinished.unwrap_or(&name)) {
            fs::remove_dir_all(entry.path())?;
            gone.push(name);
        }
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(place: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_copy_gets_its_name_when_it_is_whole() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("main");
        let copy = DumpCopy::begin(&root, "d1").unwrap();
        let mut file = copy.file("1.sql").unwrap();
        file.write_all(b"abc").unwrap();
        copy.close(file).unwrap();
        assert_eq!(names(&root), [".d1.incoming"]);
        copy.finish().unwrap();
        assert_eq!(names(&root), ["d1"]);
        let sums = fs::read_to_string(root.join("d1/SHA256SUMS")).unwrap();
        assert_eq!(sums, format!("{}  1.sql\n", Sha256::of(b"abc")));
        drop(DumpCopy::begin(&root, "d2").unwrap());
        assert_eq!(names(&root), ["d1"]);
    }

    #[test]
    fn only_what_is_named_as_old_goes() {
        let place = tempfile::tempdir().unwrap();
        for name in ["old", "new", ".old2.incoming", "other", ".other"] {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        fs::write(place.path().join("old3"), "a file").unwrap();
        let mut gone = remove_old(place.path(), |name| name.starts_with("old")).unwrap();
        gone.sort();
        assert_eq!(gone, [".old2.incoming", "old"]);
        assert_eq!(names(place.path()), [".other", "new", "old3", "other"]);
    }
}
