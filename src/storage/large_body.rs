//! The bytes of an object that are too many for memory: they lie in a file, behind a few that do not.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::{StoreError, StoreErrorKind};
use crate::stream::part_writer::GIVEN_BACK;

/// Bytes in front, then those of a file, which nobody changes.
#[derive(Clone, Debug)]
pub struct LargeBody {
    front: Bytes,
    file: Arc<File>,
    in_file: u64,
}

/// Read at once when all is copied.
const COPIED: u64 = 256 << 10;

impl LargeBody {
    /// `front`, and then the first `in_file` bytes of the file.
    pub fn new(front: Bytes, file: Arc<File>, in_file: u64) -> Self {
        LargeBody { front, file, in_file }
    }

    /// How many bytes there are.
    pub fn length(&self) -> u64 {
        self.front.len() as u64 + self.in_file
    }

    /// At most `length` bytes from `offset` on. Blocking.
    pub fn read_at(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let length = length.min(self.length().saturating_sub(offset)) as usize;
        let from = self.front.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        let ahead = &self.front[from..(from + length).min(self.front.len())];
        let room = if length as u64 > COPIED { length.max(GIVEN_BACK) } else { length };
        let mut bytes = Vec::with_capacity(room);
        bytes.resize(length, 0);
        bytes[..ahead.len()].copy_from_slice(ahead);
        let rest = offset.saturating_sub(self.front.len() as u64);
        self.file.read_exact_at(&mut bytes[ahead.len()..], rest)?;
        Ok(bytes)
    }

    /// As [`LargeBody::read_at`], on a thread that may block.
    pub async fn part(&self, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let body = self.clone();
        let read = tokio::task::spawn_blocking(move || body.read_at(offset, length));
        let read = read.await.unwrap_or_else(|e| Err(io::Error::other(e)));
        let failed = |e: io::Error| {
            StoreError::new(StoreErrorKind::LocalIo, format!("what waits for its upload cannot be read: {e}"))
        };
        read.map(Bytes::from).map_err(failed)
    }

    /// Writes all of it. Blocking.
    pub fn copy(&self, to: &mut impl Write) -> io::Result<()> {
        let mut offset = 0;
        while offset < self.length() {
            let bytes = self.read_at(offset, COPIED)?;
            to.write_all(&bytes)?;
            offset += bytes.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_range_is_that_of_the_whole(front in 0usize..50, in_file in 0usize..100, offset in 0u64..200, length in 0u64..200) {
            let whole: Vec<u8> = (0..front + in_file).map(|i| i as u8).collect();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&whole[front..]).unwrap();
            let body = LargeBody::new(whole[..front].to_vec().into(), Arc::new(file), in_file as u64);
            let from = whole.len().min(offset as usize);
            let to = whole.len().min(from + length as usize);
            prop_assert_eq!(&body.read_at(offset, length).unwrap(), &whole[from..to]);
            let mut copy = Vec::new();
            body.copy(&mut copy).unwrap();
            prop_assert_eq!(copy, whole);
        }
    }
}
