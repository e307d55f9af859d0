//! Files that settings name: secrets, certificates, settings themselves. Small, and regular: to open a pipe would wait for
//! somebody who may never write into it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// No such file is larger.
pub const LARGEST: u64 = 1 << 20;

/// A file that was read.
#[derive(Clone, PartialEq, Eq)]
pub struct SettingsFile {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
}

/// Reads a regular file of at most [`LARGEST`] bytes.
pub fn read(path: &Path) -> io::Result<SettingsFile> {
    let refused = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file: File = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(refused("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > LARGEST {
        true => Err(refused("it is larger than 1 MiB")),
        false => Ok(SettingsFile { bytes, mode: meta.mode() & 0o7777 }),
    }
}

/// The same for text.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?.bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_directories_and_large_files_are_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let large = directory.path().join("large");
        File::create(&large).unwrap().set_len(LARGEST + 1).unwrap();
        for path in [&pipe, directory.path(), &large, Path::new("/dev/null")] {
            assert!(read(path).is_err(), "{}", path.display());
        }
        let small = directory.path().join("small");
        std::fs::write(&small, "text").unwrap();
        assert_eq!(read_text(&small).unwrap(), "text");
    }
}
