//! Bytes that come one after the other and may become too many for memory: then they go to a file that has no name.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

/// Takes bytes; holds at most `limit` of them in memory.
#[derive(Debug)]
pub struct Growing {
    grown: Grown,
    room: usize,
    limit: usize,
    place: PathBuf,
}

/// What has grown.
#[derive(Debug)]
pub enum Grown {
    /// The free room that was asked for, then all bytes.
    Memory(Vec<u8>),
    /// All bytes, and how many they are. Nothing is free in front of them.
    File(File, u64),
}

impl Growing {
    /// Behind `room` free bytes. Files are made in `place`, and are gone when they are closed.
    pub fn new(room: usize, limit: usize, place: PathBuf) -> Self {
        Growing { grown: Grown::Memory(vec![0; room]), room, limit, place }
    }

    /// What came.
    pub fn finish(self) -> Grown {
        self.grown
    }
}

impl Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let in_place =
            |e: io::Error| io::Error::new(e.kind(), format!("no temporary file in `{}`: {e}", self.place.display()));
        if let Grown::Memory(held) = &mut self.grown
            && held.len() + bytes.len() > self.limit.max(self.room)
        {
            let mut file = tempfile::tempfile_in(&self.place).map_err(in_place)?;
            file.write_all(&held[self.room..]).map_err(in_place)?;
            self.grown = Grown::File(file, (held.len() - self.room) as u64);
        }
        match &mut self.grown {
            Grown::Memory(held) => held.extend_from_slice(bytes),
            Grown::File(file, length) => {
                file.write_all(bytes).map_err(in_place)?;
                *length += bytes.len() as u64;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_is_too_much_for_memory_is_in_a_file() {
        for (limit, in_file) in [(100, false), (14, false), (13, true), (0, true)] {
            let mut growing = Growing::new(4, limit, std::env::temp_dir());
            growing.write_all(b"01234").unwrap();
            growing.write_all(b"56789").unwrap();
            match growing.finish() {
                Grown::Memory(held) => assert!(!in_file && held == b"\0\0\0\x000123456789"),
                Grown::File(file, length) => {
                    let mut held = [0; 10];
                    file.read_exact_at(&mut held, 0).unwrap();
                    assert!(in_file && length == 10 && &held == b"0123456789");
                }
            }
        }
    }
}
