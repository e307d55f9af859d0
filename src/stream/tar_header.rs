//! Headers of tar archives, by the `tar` crate, for writers that pack contents themselves.

use std::io;
use std::path::Path;

use tar::{Builder, EntryType, Header};

/// The bytes that stand before a file of `size` bytes: one block of 512, more for a long name.
pub fn file(path: &Path, mode: u32, size: u64, modified: i64) -> io::Result<Vec<u8>> {
    header(path, EntryType::Regular, mode, size, modified)
}

/// The bytes of a directory.
pub fn directory(path: &Path, mode: u32) -> io::Result<Vec<u8>> {
    header(path, EntryType::Directory, mode, 0, 0)
}

/// How many bytes fill the last block of a file of `size` bytes.
pub fn padding(size: u64) -> usize {
    (size.wrapping_neg() % 512) as usize
}

/// What ends an archive.
pub const END: [u8; 1024] = [0; 1024];

/// PostgreSQL's user on most systems; who unpacks without root owns everything anyway.
const OWNER: &str = "postgres";

fn header(path: &Path, kind: EntryType, mode: u32, size: u64, modified: i64) -> io::Result<Vec<u8>> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(u64::try_from(modified).unwrap_or_default());
    header.set_uid(0);
    header.set_gid(0);
    header.set_username(OWNER)?;
    header.set_groupname(OWNER)?;
    let mut builder = Builder::new(Vec::new());
    builder.append_data(&mut header, path, io::empty())?;
    // Dropping the builder would write the archive's end.
    let mut bytes = builder.into_inner()?;
    bytes.truncate(bytes.len() - END.len());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn tar_reads_what_stands_behind_these_headers() {
        let long = "d/".repeat(150) + "name";
        let mut archive = directory(Path::new("d"), 0o700).unwrap();
        for (path, content) in [("d/a", &b"abc"[..]), (&long, b""), ("z", &[7; 512])] {
            archive.extend(file(Path::new(path), 0o600, content.len() as u64, 5).unwrap());
            archive.extend(content);
            archive.extend(vec![0; padding(content.len() as u64)]);
        }
        archive.extend(END);
        let mut found = Vec::new();
        for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.push((entry.path().unwrap().display().to_string(), content.len(), entry.header().mode().unwrap()));
        }
        let expected = [("d", 0, 0o700), ("d/a", 3, 0o600), (&long, 0, 0o600), ("z", 512, 0o600)];
        assert_eq!(found, expected.map(|(path, size, mode)| (path.to_owned(), size, mode)));
    }
}
