//! Packs a part of a backup: a tar archive, cut into zstd frames so that each file can be had alone.
//!
//! Every file begins with a new frame; a large one goes on in further frames of [`PartWriter::FRAME`] plain bytes. What
//! stands in the headers is the caller's.

use std::io;

use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use super::digest::{Sha256, Sha256Hasher};

/// A part that grows in memory.
pub struct PartWriter {
    compressor: Compressor<'static>,
    frame: Vec<u8>,
    packed: Vec<u8>,
    scratch: Vec<u8>,
    extent: Option<OpenExtent>,
}

/// glibc gives memory of more than 32 MiB back to the system when it is freed (`DEFAULT_MMAP_THRESHOLD_MAX` in its `malloc.c`).
/// What is less than that it keeps for later, for each thread anew: with parts of 24 MiB, twice as much as is ever in use.
pub const GIVEN_BACK: usize = (32 << 20) + 1;

struct OpenExtent {
    at: u64,
    skip: u32,
    content: Sha256Hasher,
    frames: Vec<u32>,
}

/// Where a file's bytes, or a run of them, ended up in a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedExtent {
    /// The first byte in the part.
    pub at: u64,
    /// How many bytes in the part.
    pub stored: u64,
    /// Plain bytes in front of the file's.
    pub skip: u32,
    /// Bytes of the file.
    pub plain: u64,
    /// Their digest.
    pub sha256: Sha256,
    /// The stored bytes of each frame, where there are several.
    pub frames: Vec<u32>,
}

impl PartWriter {
    /// Plain bytes in a frame, but for the last one of an extent.
    pub const FRAME: usize = 1 << 20;

    /// An empty part, for about so many plain bytes. Room that they do not need is never touched.
    pub fn new(level: i32, plain: usize) -> io::Result<Self> {
        let room = zstd::zstd_safe::compress_bound(plain).max(GIVEN_BACK);
        let mut compressor = Compressor::new(level)?;
        compressor.set_parameter(CParameter::ChecksumFlag(true))?;
        Ok(PartWriter {
            compressor,
            frame: Vec::with_capacity(Self::FRAME),
            packed: Vec::with_capacity(room),
            scratch: Vec::with_capacity(zstd::zstd_safe::compress_bound(Self::FRAME)),
            extent: None,
        })
    }

    /// Bytes that belong to no file: headers of directories, the end of the archive.
    pub fn between(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.fill(bytes)?;
        self.flush()
    }

    /// Begins a file, or goes on with one, behind these header bytes.
    pub fn begin(&mut self, headers: &[u8]) -> io::Result<()> {
        let extent = OpenExtent {
            at: self.packed.len() as u64,
            skip: headers.len() as u32,
            content: Sha256Hasher::default(),
            frames: Vec::new(),
        };
        self.extent = Some(extent);
        self.fill(headers)
    }

    /// The next bytes of the file.
    pub fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(extent) = &mut self.extent {
            extent.content.update(bytes);
        }
        self.fill(bytes)
    }

    /// Ends the file, or the run of it, with `padding` zero bytes.
    pub fn end(&mut self, padding: usize) -> io::Result<PackedExtent> {
        self.fill(&[0; 512][..padding.min(512)])?;
        self.flush()?;
        let extent = self.extent.take().ok_or_else(|| io::Error::other("no file was begun"))?;
        let receipt = extent.content.finish();
        let frames = if extent.frames.len() > 1 { extent.frames } else { Vec::new() };
        Ok(PackedExtent {
            at: extent.at,
            stored: self.packed.len() as u64 - extent.at,
            skip: extent.skip,
            plain: receipt.length,
            sha256: receipt.sha256,
            frames,
        })
    }

    /// The part. It is never empty.
    pub fn finish(mut self) -> io::Result<Vec<u8>> {
        if self.packed.is_empty() {
            self.compress()?;
        }
        Ok(self.packed)
    }

    fn fill(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(Self::FRAME - self.frame.len()));
            self.frame.extend_from_slice(now);
            bytes = later;
            if self.frame.len() == Self::FRAME {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.frame.is_empty() { Ok(()) } else { self.compress() }
    }

    fn compress(&mut self) -> io::Result<()> {
        self.scratch.clear();
        self.scratch.reserve(zstd::zstd_safe::compress_bound(self.frame.len()));
        self.compressor.compress_to_buffer(&self.frame, &mut self.scratch)?;
        self.packed.extend_from_slice(&self.scratch);
        self.frame.clear();
        if let Some(extent) = &mut self.extent {
            extent.frames.push(self.scratch.len() as u32);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zstd_opens_what_was_packed_and_every_extent_stands_alone() {
        let mut writer = PartWriter::new(3, 0).unwrap();
        let large: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
        writer.between(b"directories").unwrap();
        let mut extents = Vec::new();
        for (header, content) in [(&b"h1"[..], &large[..]), (b"", b"tail"), (b"h3", b"")] {
            writer.begin(header).unwrap();
            content.chunks(8192).for_each(|chunk| writer.content(chunk).unwrap());
            extents.push(writer.end(3).unwrap());
        }
        let part = writer.finish().unwrap();
        let whole = [b"directoriesh1", &large[..], b"\0\0\0tail\0\0\0h3\0\0\0"].concat();
        assert_eq!(zstd::decode_all(&part[..]).unwrap(), whole);
        for (extent, content) in extents.iter().zip([&large[..], b"tail", b""]) {
            let stored = &part[extent.at as usize..][..extent.stored as usize];
            let plain = zstd::decode_all(stored).unwrap();
            assert_eq!(&plain[extent.skip as usize..][..extent.plain as usize], content);
            assert_eq!(extent.sha256, Sha256::of(content));
            let frames: u64 = extent.frames.iter().map(|frame| u64::from(*frame)).sum();
            assert!(extent.frames.is_empty() || frames == extent.stored);
        }
        assert_eq!(extents[0].frames.len(), 3);
    }

    #[test]
    fn a_part_without_anything_is_still_an_object() {
        let part = PartWriter::new(3, 0).unwrap().finish().unwrap();
        assert!(!part.is_empty());
        assert_eq!(zstd::decode_all(&part[..]).unwrap(), b"");
    }
}
