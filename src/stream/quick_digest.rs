//! A digest that is quick enough to be taken again and again: the XXH3, with 128 bits, of the XXH3s of stretches of 4 MiB.
//!
//! It finds what goes wrong by accident, some ten times as fast as SHA-256. It is for our own private files, whose content was
//! compared with a SHA-256 when they were written; what comes from the store is never judged by it. The stretches of a file are
//! read by several threads, for somebody waits.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use twox_hash::XxHash3_128;

/// The digest; 32 hexadecimal digits in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuickDigest(u128);

impl std::fmt::Display for QuickDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

const STRETCH: u64 = 4 << 20;
const BLOCK: u64 = 256 << 10;
const MOST_THREADS: usize = 4;

impl QuickDigest {
    /// Of a file, from its beginning to its end.
    pub fn of_file(file: &File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let stretches = length.div_ceil(STRETCH);
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
        let next = AtomicU64::new(0);
        let digests = Mutex::new(vec![0; stretches as usize]);
        let work = || -> io::Result<()> {
            let mut block = vec![0; BLOCK.min(length) as usize];
            loop {
                let stretch = next.fetch_add(1, Ordering::Relaxed);
                if stretch >= stretches {
                    return Ok(());
                }
                let end = length.min((stretch + 1) * STRETCH);
                let digest = of_range(file, stretch * STRETCH, end, &mut block)?;
                let mut digests = digests.lock().map_err(|_| io::Error::other("a thread that reads failed"))?;
                digests[stretch as usize] = digest;
            }
        };
        thread::scope(|scope| {
            let others: Vec<_> = (1..threads.min(stretches as usize)).map(|_| scope.spawn(work)).collect();
            let own = work();
            let joined = others
                .into_iter()
                .map(|other| other.join().unwrap_or_else(|_| Err(io::Error::other("a thread that reads failed"))));
            joined.fold(own, Result::and)
        })?;
        let digests = digests.into_inner().map_err(|_| io::Error::other("a thread that reads failed"))?;
        Ok(Self::of_stretches(&digests))
    }

    fn of_stretches(digests: &[u128]) -> Self {
        let bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.to_be_bytes()).collect();
        QuickDigest(XxHash3_128::oneshot(&bytes))
    }
}

fn of_range(file: &File, mut at: u64, end: u64, block: &mut [u8]) -> io::Result<u128> {
    let mut hasher = XxHash3_128::new();
    while at < end {
        let room = block.len().min((end - at) as usize);
        let block = &mut block[..room];
        file.read_exact_at(block, at)?;
        hasher.write(block);
        at += room as u64;
    }
    Ok(hasher.finish_128())
}

/// A writer that takes the digest of what passes by.
pub struct QuickDigesting<W> {
    inner: W,
    stretches: Vec<u128>,
    /// Of the stretch that is being written, and how much of it there is.
    hasher: XxHash3_128,
    filled: u64,
}

impl<W> QuickDigesting<W> {
    /// Writes to `inner`.
    pub fn new(inner: W) -> Self {
        QuickDigesting { inner, stretches: Vec::new(), hasher: XxHash3_128::new(), filled: 0 }
    }

    /// The digest of all that was written, and the writer.
    pub fn finish(mut self) -> (QuickDigest, W) {
        if self.filled > 0 {
            self.stretches.push(self.hasher.finish_128());
        }
        (QuickDigest::of_stretches(&self.stretches), self.inner)
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (STRETCH - self.filled) as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.hasher.write(now);
            self.filled += now.len() as u64;
            if self.filled == STRETCH {
                self.stretches.push(self.hasher.finish_128());
                (self.hasher, self.filled) = (XxHash3_128::new(), 0);
            }
            bytes = later;
        }
    }
}

impl<W: Write> Write for QuickDigesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.take(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streamed(bytes: &[u8], size: usize) -> QuickDigest {
        let mut digesting = QuickDigesting::new(Vec::new());
        bytes.chunks(size).for_each(|chunk| digesting.write_all(chunk).unwrap());
        let (digest, written) = digesting.finish();
        assert_eq!(written, bytes);
        digest
    }

    #[test]
    fn a_file_has_the_digest_of_what_was_written_however_it_came() {
        let stretch = STRETCH as usize;
        for length in [0, 1, 100_000, stretch - 1, stretch, stretch + 1, 3 * stretch, 5 * stretch + 7] {
            let bytes: Vec<u8> = (0..length).map(|i| (i / 3) as u8).collect();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            let digest = QuickDigest::of_file(&file).unwrap();
            let sizes = if length > 100_000 { vec![4096, 100_001, length] } else { vec![1, 7, 4096] };
            for size in sizes {
                assert_eq!(streamed(&bytes, size), digest, "{length} bytes in pieces of {size}");
            }
        }
        // Of nothing, as the reference has it.
        assert_eq!(streamed(&[], 1).to_string(), "99aa06d3014798d86001c324468d497f");
    }

    #[test]
    fn every_byte_and_its_place_count() {
        let stretch = STRETCH as usize;
        let bytes: Vec<u8> = (0..2 * stretch + 5).map(|i| (i % 251) as u8).collect();
        let whole = streamed(&bytes, 65_536);
        for at in [0, stretch - 1, stretch, 2 * stretch, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert_ne!(streamed(&flipped, 65_536), whole, "{at}");
        }
        let mut swapped = bytes[stretch..2 * stretch].to_vec();
        swapped.extend_from_slice(&bytes[..stretch]);
        swapped.extend_from_slice(&bytes[2 * stretch..]);
        assert_ne!(streamed(&swapped, 65_536), whole);
        assert_ne!(streamed(&bytes[..2 * stretch], 65_536), whole);
    }
}
