//! A directory of plain files as a tar archive, and back: what `pg_dump --format=directory` writes has no other directories in it.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Cursor, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use crate::stream::tar_header;

const MODE: u32 = 0o600;

/// The archive, file after file in the order of their names.
#[derive(Debug)]
pub struct FlatTar {
    files: VecDeque<PathBuf>,
    open: VecDeque<Piece>,
    ended: bool,
}

#[derive(Debug)]
enum Piece {
    Bytes(Cursor<Vec<u8>>),
    File(io::Take<File>),
}

impl FlatTar {
    /// Of a directory that nobody writes to.
    pub fn of(directory: &Path) -> io::Result<Self> {
        let entries = fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path()));
        let mut files: Vec<PathBuf> = entries.collect::<io::Result<_>>()?;
        files.sort();
        Ok(FlatTar { files: files.into(), open: VecDeque::new(), ended: false })
    }

    fn begin(&mut self, path: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        let name = path.file_name().filter(|_| meta.is_file());
        let name = name.ok_or_else(|| io::Error::other(format!("`{}` is no plain file", path.display())))?;
        let size = meta.len();
        self.open.push_back(Piece::Bytes(Cursor::new(tar_header::file(Path::new(name), MODE, size, 0)?)));
        self.open.push_back(Piece::File(file.take(size)));
        self.open.push_back(Piece::Bytes(Cursor::new(vec![0; tar_header::padding(size)])));
        Ok(())
    }
}

impl Read for FlatTar {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match self.open.front_mut() {
                Some(Piece::Bytes(bytes)) => bytes.read(into)?,
                Some(Piece::File(file)) => match file.read(into)? {
                    0 if file.limit() > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    read => read,
                },
                None => match self.files.pop_front() {
                    Some(path) => {
                        self.begin(&path)?;
                        continue;
                    }
                    None if self.ended => return Ok(0),
                    None => {
                        self.ended = true;
                        self.open.push_back(Piece::Bytes(Cursor::new(tar_header::END.to_vec())));
                        continue;
                    }
                },
            };
            if read > 0 || into.is_empty() {
                return Ok(read);
            }
            self.open.pop_front();
        }
    }
}

/// Writes the files of an archive into an empty directory. One that is not of [`FlatTar`]'s kind is refused.
pub fn unpack(archive: impl Read, directory: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let mut components = path.components();
        let (Some(Component::Normal(name)), None, true) =
            (components.next(), components.next(), entry.header().entry_type().is_file())
        else {
            return Err(io::Error::other(format!("`{}` is no plain file of a dump", path.display())));
        };
        let place = directory.join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(place)?;
        io::copy(&mut entry, &mut file)?;
    }
    // Whatever stands behind the end of the archive was dumped, and is read, too.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_both_ways() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = [("toc.dat", vec![1; 700]), ("3001.dat", vec![]), ("blobs.toc", vec![2; 512])];
        for (name, content) in &files {
            fs::write(from.path().join(name), content).unwrap();
        }
        let mut archive = Vec::new();
        FlatTar::of(from.path()).unwrap().read_to_end(&mut archive).unwrap();
        unpack(&archive[..], to.path()).unwrap();
        for (name, content) in &files {
            assert_eq!(&fs::read(to.path().join(name)).unwrap(), content, "{name}");
        }
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), files.len());
        let cut = tempfile::tempdir().unwrap();
        assert!(unpack(&archive[..900], cut.path()).is_err());
    }

    #[test]
    fn nothing_leads_out_of_the_directory() {
        for (name, kind) in
            [("../x", tar::EntryType::Regular), ("a/b", tar::EntryType::Regular), ("x", tar::EntryType::Symlink)]
        {
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_mode(0o600);
            header.set_cksum();
            let place = tempfile::tempdir().unwrap();
            let refused = unpack(&[header.as_bytes(), &tar_header::END[..]].concat()[..], place.path());
            assert!(refused.unwrap_err().to_string().contains("is no plain file"), "{name}");
            assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        }
    }
}
