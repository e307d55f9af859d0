//! Compressing what arrives little by little, with its digest: the counterpart of [`pack`](super::pack()), which reads a file.

use std::io::{self, Write};

use super::digest::{Receipt, Sha256Hasher};
use super::pack::{Packed, encoder, encoder_into};

/// Takes bytes as they come and gives what [`pack`](super::pack()) would give for all of them.
pub struct Packer<W: Write = Vec<u8>> {
    encoder: zstd::stream::write::Encoder<'static, W>,
    hasher: Sha256Hasher,
    expected: u64,
    length: u64,
}

impl Packer {
    /// For `expected` plain bytes, compressed behind `room` free bytes.
    pub fn new(expected: u64, level: i32, room: usize) -> io::Result<Self> {
        let encoder = encoder(expected, level, room)?;
        Ok(Packer { encoder, hasher: Sha256Hasher::default(), expected, length: 0 })
    }

    /// The object. Fewer bytes than were expected are an error.
    pub fn finish(self) -> io::Result<Packed> {
        let (object, plain) = self.finish_into()?;
        Ok(Packed { object, plain })
    }
}

impl<W: Write> Packer<W> {
    /// For `expected` plain bytes, compressed into `sink`.
    pub fn into(sink: W, expected: u64, level: i32) -> io::Result<Self> {
        let encoder = encoder_into(sink, expected, level)?;
        Ok(Packer { encoder, hasher: Sha256Hasher::default(), expected, length: 0 })
    }

    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.length += bytes.len() as u64;
        if self.length > self.expected {
            return Err(self.other_length());
        }
        self.hasher.update(bytes);
        self.encoder.write_all(bytes)
    }

    /// The digest of what came until now.
    pub fn so_far(&self) -> Receipt {
        self.hasher.clone().finish()
    }

    /// The sink with all compressed bytes, and the receipt of the plain ones. Fewer than were expected are an error.
    pub fn finish_into(self) -> io::Result<(W, Receipt)> {
        if self.length != self.expected {
            return Err(self.other_length());
        }
        Ok((self.encoder.finish()?, self.hasher.finish()))
    }

    fn other_length(&self) -> io::Error {
        let (expected, came) = (self.expected, self.length);
        io::Error::new(io::ErrorKind::InvalidData, format!("expected {expected} bytes, {came} came"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::pack;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// Whoever archives the same file puts the same bytes, be it read or received.
        #[test]
        fn the_object_is_that_of_pack(length in 0usize..400_000, seed: u8, cuts in proptest::collection::vec(1usize..70_000, 1..20)) {
            let plain: Vec<u8> = (0..length).map(|i| ((i / 7) as u8 ^ seed).wrapping_mul((i % 251) as u8)).collect();
            let mut packer = Packer::new(length as u64, 1, 100).unwrap();
            let (mut rest, mut cuts) = (&plain[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                packer.push(piece).unwrap();
                rest = behind;
            }
            let ours = packer.finish().unwrap();
            let read = pack(&plain[..], length as u64, 1, 100, |_, _| Ok(()), |_| ()).unwrap();
            prop_assert_eq!(ours.plain, read.plain);
            prop_assert_eq!(ours.object, read.object);
        }
    }

    #[test]
    fn another_length_than_expected_is_an_error() {
        let mut packer = Packer::new(3, 1, 0).unwrap();
        packer.push(b"ab").unwrap();
        assert!(packer.push(b"cd").is_err());
        let mut packer = Packer::new(3, 1, 0).unwrap();
        packer.push(b"ab").unwrap();
        assert!(packer.finish().is_err());
    }
}
