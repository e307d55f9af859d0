//! Reading once, with many results: digest, size, compressed bytes, and whatever else looks on.
//!
//! The digest is computed on a thread of its own beside the compression, so that a push takes as
//! long as the slower of both. Memory is a handful of blocks and the compressed bytes.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::mpsc;

use super::digest::{Receipt, Sha256Hasher};

const BLOCK: usize = 128 << 10;
const BLOCKS: usize = 4;

/// The result of [`pack`].
pub struct Packed {
    /// `room` free bytes, then one zstd frame with a content checksum.
    pub object: Vec<u8>,
    /// Digest and length of the plain bytes.
    pub plain: Receipt,
}

/// Compresses what `source` gives into one zstd frame behind `room` free bytes. `expected` is the plain length,
/// if known: another one is an error. `inspect` sees each block of plain bytes with its offset and may refuse. `beside`
/// sees each block too, on the thread that hashes, which has time to spare.
///
/// Blocking: run it where CPU work belongs.
pub fn pack(
    mut source: impl Read,
    expected: u64,
    level: i32,
    room: usize,
    mut inspect: impl FnMut(u64, &[u8]) -> io::Result<()>,
    mut beside: impl FnMut(&[u8]) + Send,
) -> io::Result<Packed> {
    std::thread::scope(|scope| {
        let (to_hash, blocks) = mpsc::sync_channel::<(Arc<Vec<u8>>, usize)>(BLOCKS);
        let (hashed, free) = mpsc::channel();
        let hasher = scope.spawn(move || {
            let mut hasher = Sha256Hasher::default();
            for (block, length) in blocks {
                hasher.update(&block[..length]);
                beside(&block[..length]);
                // The other side is gone only when it failed: then nobody wants the block.
                hashed.send(block).ok();
            }
            hasher.finish()
        });

        let mut encoder = encoder(expected, level, room)?;
        let mut offset = 0;
        let mut spare: Vec<Vec<u8>> = (0..BLOCKS).map(|_| Vec::new()).collect();
        loop {
            let mut block = match spare.pop() {
                Some(block) => block,
                None => reclaim(free.recv().map_err(|_| io::Error::other("the digest thread stopped"))?),
            };
            block.resize(BLOCK, 0);
            let length = fill(&mut source, &mut block)?;
            if length == 0 {
                break;
            }
            inspect(offset, &block[..length])?;
            offset += length as u64;
            if offset > expected {
                return Err(grew_or_shrank(expected, offset));
            }
            let block = Arc::new(block);
            to_hash.send((Arc::clone(&block), length)).map_err(|_| io::Error::other("the digest thread stopped"))?;
            encoder.write_all(&block[..length])?;
        }
        drop(to_hash);
        if offset != expected {
            return Err(grew_or_shrank(expected, offset));
        }
        let object = encoder.finish()?;
        let plain = hasher.join().map_err(|_| io::Error::other("the digest thread panicked"))?;
        Ok(Packed { object, plain })
    })
}

/// Writes one zstd frame with a content checksum behind `room` free bytes.
pub(super) fn encoder(
    expected: u64,
    level: i32,
    room: usize,
) -> io::Result<zstd::stream::write::Encoder<'static, Vec<u8>>> {
    let mut object = Vec::with_capacity(room + (expected as usize / 8).clamp(4 << 10, 2 << 20));
    object.resize(room, 0);
    encoder_into(object, expected, level)
}

/// Writes such a frame into any sink.
pub(super) fn encoder_into<W: Write>(
    sink: W,
    expected: u64,
    level: i32,
) -> io::Result<zstd::stream::write::Encoder<'static, W>> {
    let mut encoder = zstd::stream::write::Encoder::new(sink, level)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(expected))?;
    Ok(encoder)
}

/// A block that was hashed is free again; the compressor let go of it before asking.
fn reclaim(block: Arc<Vec<u8>>) -> Vec<u8> {
    Arc::try_unwrap(block).unwrap_or_default()
}

fn grew_or_shrank(expected: u64, read: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the file changed while it was read: expected {expected} bytes, read {read}"),
    )
}

fn fill(source: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match source.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Sha256;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn plain_bytes_come_back(length in 0usize..(5 * BLOCK / 2), seed: u8, room in 0usize..2000) {
            let plain: Vec<u8> = (0..length).map(|i| (i / 7) as u8 ^ seed).collect();
            let (mut seen, mut seen_beside) = (Vec::new(), Vec::new());
            let inspect = |offset, block: &[u8]| {
                assert_eq!(offset, seen.len() as u64);
                seen.extend_from_slice(block);
                Ok(())
            };
            let beside = |block: &[u8]| seen_beside.extend_from_slice(block);
            let packed = pack(&plain[..], length as u64, 1, room, inspect, beside).unwrap();
            prop_assert_eq!(&seen, &plain);
            prop_assert_eq!(&seen_beside, &plain);
            prop_assert_eq!(packed.plain, Receipt { sha256: Sha256::of(&plain), length: length as u64 });
            prop_assert_eq!(zstd::decode_all(&packed.object[room..]).unwrap(), plain);
        }
    }

    #[test]
    fn another_length_than_expected_is_an_error() {
        for expected in [0, 9, 11, 1 << 20] {
            assert!(pack(&[7u8; 10][..], expected, 1, 0, |_, _| Ok(()), |_| ()).is_err(), "{expected}");
        }
    }

    #[test]
    fn a_failing_source_and_a_refusal_are_errors() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("bad sector"))
            }
        }
        assert!(pack(Failing, 10, 1, 0, |_, _| Ok(()), |_| ()).is_err());
        assert!(pack(&[0u8; 10][..], 10, 1, 0, |_, _| Err(io::Error::other("no")), |_| ()).is_err());
    }
}
