//! Listing a directory tree as S3 lists keys: in byte order, from any point, in pages.

use std::fs;
use std::io;
use std::path::Path;

use super::object_store::{Continuation, Unfinished};
use super::{ListPage, Listed};

/// How names of files begin that are not finished.
pub const TEMPORARY: &str = ".pgark-tmp-";

/// Every file below `prefix` that is not finished.
pub fn list_temporary(root: &Path, prefix: &str) -> io::Result<Vec<Unfinished>> {
    let mut found = Vec::new();
    let mut directories = vec![prefix.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = match fs::read_dir(root.join(&directory)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{directory}{name}");
            if name.starts_with(TEMPORARY) {
                // It may have got its name by now.
                let Ok(meta) = entry.metadata() else { continue };
                found.push(Unfinished { name: path.clone(), begun: meta.modified().ok(), token: path });
            } else if !name.starts_with('.') && fs::metadata(entry.path()).is_ok_and(|meta| meta.is_dir()) {
                directories.push(format!("{path}/"));
            }
        }
    }
    Ok(found)
}

/// The first `limit` objects below `root` whose keys begin with `prefix` and are greater than `after`.
pub fn list_page(root: &Path, prefix: &str, after: &str, limit: usize) -> io::Result<ListPage> {
    let mut page = Page { after, wanted: limit + 1, objects: Vec::new() };
    page.walk(&root.join(prefix), prefix)?;
    let mut objects = page.objects;
    let more = objects.len() > limit;
    objects.truncate(limit);
    let last = objects.last().map(|last| Continuation::After(last.name.clone()));
    Ok(ListPage { objects, more: last.filter(|_| more) })
}

struct Page<'a> {
    after: &'a str,
    wanted: usize,
    objects: Vec<Listed>,
}

impl Page<'_> {
    fn walk(&mut self, directory: &Path, prefix: &str) -> io::Result<()> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            // Nothing was stored here, or it was deleted while we were on the way.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            let mut name = entry.file_name().to_string_lossy().into_owned();
            // Hidden files are none of ours but for those that are not finished.
            if name.starts_with('.') {
                continue;
            }
            // As a key, a directory's name goes on with a slash, and sorts so.
            // A part that was moved to another disk is a link.
            let kind = match entry.file_type()? {
                kind if kind.is_symlink() => fs::metadata(entry.path())?.file_type(),
                kind => kind,
            };
            if kind.is_dir() {
                name.push('/');
            }
            names.push(name);
        }
        names.sort_unstable();
        for name in names {
            if self.objects.len() >= self.wanted {
                return Ok(());
            }
            let key = format!("{prefix}{name}");
            if name.ends_with('/') {
                if key.as_str() > self.after || self.after.starts_with(&key) {
                    self.walk(&directory.join(&name), &key)?;
                }
            } else if key.as_str() > self.after {
                self.add(&directory.join(&name), &key)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, key: &str) -> io::Result<()> {
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if !meta.is_file() {
            return Err(io::Error::other(format!("`{}` is neither a file nor a directory", path.display())));
        }
        self.objects.push(Listed { name: key.to_owned(), size: meta.len(), modified: meta.modified().ok() });
        Ok(())
    }
}
