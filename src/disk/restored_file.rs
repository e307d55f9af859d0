//! One file of a restore: written in runs, or found to be there with the right content.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::restore_dir::at;
use crate::stream::{Sha256, Sha256Hasher};

/// A file whose runs come in any order.
#[derive(Debug)]
pub struct RestoredFile {
    file: File,
    place: PathBuf,
}

impl RestoredFile {
    /// Opens it at `place`, made if it is not there, and gives it its size.
    pub(super) fn open(place: PathBuf, size: u64, mode: u32) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(NO_FOLLOW);
        let file = options.open(&place).map_err(|e| at(&place, e))?;
        file.set_permissions(Permissions::from_mode(mode | 0o600)).map_err(|e| at(&place, e))?;
        if file.metadata().map_err(|e| at(&place, e))?.len() != size {
            file.set_len(size).map_err(|e| at(&place, e))?;
        }
        Ok(RestoredFile { file, place })
    }

    /// Writes bytes at their place.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| at(&self.place, e))
    }
}

/// `O_NOFOLLOW`: a link where a file shall be would lead elsewhere.
pub(super) const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

/// Whether a file is there with these runs, and has no other name elsewhere.
pub(super) fn has_content(place: &Path, size: u64, runs: &[(u64, Sha256)]) -> io::Result<bool> {
    let file = match OpenOptions::new().read(true).custom_flags(NO_FOLLOW).open(place) {
        Ok(file) => file,
        Err(_) => return Ok(false),
    };
    let metadata = file.metadata().map_err(|e| at(place, e))?;
    if !metadata.is_file() || metadata.len() != size || metadata.nlink() != 1 {
        return Ok(false);
    }
    let mut block = vec![0; 256 << 10];
    let mut offset = 0;
    for (length, digest) in runs {
        let end = offset + length;
        let mut hasher = Sha256Hasher::default();
        while offset < end {
            let wanted = usize::try_from(end - offset).unwrap_or(usize::MAX).min(block.len());
            file.read_exact_at(&mut block[..wanted], offset).map_err(|e| at(place, e))?;
            hasher.update(&block[..wanted]);
            offset += wanted as u64;
        }
        if hasher.finish().sha256 != *digest {
            return Ok(false);
        }
    }
    Ok(true)
}
