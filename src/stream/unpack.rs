//! Decompression with a digest, into any writer, bounded by the length that was promised.

use std::io::{self, Write};

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::digest::{Receipt, Sha256Hasher};

/// The largest zstd window that is accepted: 2^27 bytes, what `zstd -d` accepts by itself.
const WINDOW_LOG_MAX: u32 = 27;
const BLOCK: usize = 128 << 10;

/// Why bytes could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The compressed bytes are damaged, end too early, or hold more than was promised.
    #[error("{0}")]
    Damaged(String),
    /// The plain bytes could not be written.
    #[error("{0}")]
    Write(#[from] io::Error),
}

/// Decompresses zstd frames piece by piece, hashing and writing the plain bytes.
///
/// * Never writes more than `promised` bytes.
pub struct Unpacker<W> {
    decoder: Decoder<'static>,
    hasher: Sha256Hasher,
    writer: W,
    promised: u64,
    written: u64,
    block: Vec<u8>,
    /// What zstd still expects: 0 between two frames.
    pending: usize,
}

impl<W: Write> Unpacker<W> {
    /// Unpacks `promised` plain bytes into `writer`.
    pub fn new(writer: W, promised: u64) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(zstd::stream::raw::DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
        Ok(Unpacker {
            decoder,
            hasher: Sha256Hasher::default(),
            writer,
            promised,
            written: 0,
            block: vec![0; BLOCK],
            pending: 0,
        })
    }

    /// Takes the next compressed bytes.
    pub fn push(&mut self, compressed: &[u8]) -> Result<(), UnpackError> {
        let mut input = InBuffer::around(compressed);
        while !compressed.is_empty() {
            let consumed = input.pos();
            let mut output = OutBuffer::around(&mut self.block[..]);
            self.pending = self
                .decoder
                .run(&mut input, &mut output)
                .map_err(|e| UnpackError::Damaged(format!("the compressed bytes are damaged: {e}")))?;
            let plain = output.as_slice();
            let full = plain.len() == BLOCK;
            let progress = !plain.is_empty() || input.pos() > consumed;
            self.written += plain.len() as u64;
            if self.written > self.promised {
                let promised = self.promised;
                return Err(UnpackError::Damaged(format!("it holds more than the {promised} bytes it promises")));
            }
            self.hasher.update(plain);
            self.writer.write_all(plain)?;
            let exhausted = input.pos() == compressed.len();
            // At the end of a frame nothing is left inside: asking on would begin a frame that never comes.
            if exhausted && (!full || self.pending == 0) {
                return Ok(());
            }
            if !progress {
                return Err(UnpackError::Damaged("the compressed bytes are damaged: no progress".into()));
            }
        }
        Ok(())
    }

    /// Ends the input: the receipt of the plain bytes and the writer.
    pub fn finish(mut self) -> Result<(Receipt, W), UnpackError> {
        if self.pending != 0 || self.written != self.promised {
            let Unpacker { written, promised, .. } = self;
            return Err(UnpackError::Damaged(format!("it ends after {written} of {promised} plain bytes")));
        }
        self.writer.flush()?;
        Ok((self.hasher.finish(), self.writer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Sha256;
    use proptest::prelude::*;

    fn unpack(pieces: &[&[u8]], promised: u64) -> Result<(Receipt, Vec<u8>), UnpackError> {
        let mut unpacker = Unpacker::new(Vec::new(), promised)?;
        for piece in pieces {
            unpacker.push(piece)?;
        }
        unpacker.finish()
    }

    fn plain(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i / 5) as u8).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn any_cut_gives_the_same(length in 0usize..400_000, frames in 1usize..4, cut in 0usize..2000) {
            let plain = plain(length);
            let size = length / frames + 1;
            let compressed: Vec<u8> = plain.chunks(size).flat_map(|c| zstd::encode_all(c, 1).unwrap()).collect();
            let cut = cut.min(compressed.len());
            let (receipt, out) = unpack(&[&compressed[..cut], &compressed[cut..]], length as u64).unwrap();
            prop_assert_eq!(receipt, Receipt { sha256: Sha256::of(&plain), length: length as u64 });
            prop_assert_eq!(out, plain);
        }

        #[test]
        fn truncation_is_noticed(length in 1usize..100_000, keep in 0.0f64..1.0) {
            let compressed = zstd::encode_all(&plain(length)[..], 1).unwrap();
            let keep = (compressed.len() as f64 * keep) as usize;
            prop_assert!(unpack(&[&compressed[..keep]], length as u64).is_err());
        }
    }

    #[test]
    fn a_bomb_stops_at_the_promise() {
        let bomb = zstd::encode_all(&vec![0u8; 64 << 20][..], 1).unwrap();
        let mut unpacker = Unpacker::new(Vec::new(), 1000).unwrap();
        assert!(matches!(unpacker.push(&bomb), Err(UnpackError::Damaged(_))));
    }

    #[test]
    fn less_than_promised_and_garbage_behind_are_errors() {
        let mut compressed = zstd::encode_all(&plain(1000)[..], 1).unwrap();
        assert!(unpack(&[&compressed], 1001).is_err());
        compressed.extend(b"garbage");
        assert!(unpack(&[&compressed], 1000).is_err());
    }
}
