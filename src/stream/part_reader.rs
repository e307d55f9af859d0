//! Takes files out of a part of a backup as its bytes come: the other way of `part_writer`.
//!
//! Each wanted run is unpacked, bounded by what the manifest promises, and compared with its digest.

use std::io;

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::digest::{Sha256, Sha256Hasher};
use super::unpack::UnpackError;

/// A run of a file's bytes that a reader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedExtent {
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
}

/// Who takes the bytes. After an error of the reader they are rubbish.
pub trait PartSink {
    /// The next bytes of the wanted run with this index.
    fn content(&mut self, index: usize, bytes: &[u8]) -> io::Result<()>;

    /// The run is whole and its digest is right.
    fn whole(&mut self, index: usize) -> io::Result<()>;
}

/// Reads one part from its first byte on.
pub struct PartReader<S> {
    wanted: Vec<WantedExtent>,
    sink: S,
    decoder: Decoder<'static>,
    block: Vec<u8>,
    /// Bytes of the part that have come.
    position: u64,
    /// Which run is due, and how far it is.
    index: usize,
    unpacked: u64,
    hasher: Sha256Hasher,
    /// What zstd still expects: 0 between two frames.
    pending: usize,
}

const BLOCK: usize = 256 << 10;
/// Frames of parts have at most 1 MiB: a larger window is not ours.
const WINDOW_LOG_MAX: u32 = 21;
/// What may fill the last block of a tar archive.
const PADDING: u64 = 511;

impl<S: PartSink> PartReader<S> {
    /// `wanted` is in the order of the part, and no two runs overlap.
    pub fn new(wanted: Vec<WantedExtent>, sink: S) -> Result<Self, UnpackError> {
        let apart = wanted.windows(2).all(|pair| pair[0].at.saturating_add(pair[0].stored) <= pair[1].at);
        if !apart {
            return Err(UnpackError::Damaged("the manifest has two files in one place".to_owned()));
        }
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
        // That of a frame is for those who unpack by hand. Here the digest is compared, of each byte that is given away.
        decoder.set_parameter(DParameter::ForceIgnoreChecksum(true))?;
        Ok(PartReader {
            wanted,
            sink,
            decoder,
            block: vec![0; BLOCK],
            position: 0,
            index: 0,
            unpacked: 0,
            hasher: Sha256Hasher::default(),
            pending: 0,
        })
    }

    /// Takes the next bytes of the part.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), UnpackError> {
        while let Some(wanted) = self.wanted.get(self.index).copied() {
            let before = wanted.at.saturating_sub(self.position).min(bytes.len() as u64);
            self.position += before;
            bytes = &bytes[before as usize..];
            if bytes.is_empty() {
                return Ok(());
            }
            let left = wanted.at + wanted.stored - self.position;
            let (now, later) = bytes.split_at(left.min(bytes.len() as u64) as usize);
            self.unpack(&wanted, now)?;
            self.position += now.len() as u64;
            bytes = later;
            if self.position == wanted.at + wanted.stored {
                self.finish_run(&wanted)?;
            }
        }
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn unpack(&mut self, wanted: &WantedExtent, stored: &[u8]) -> Result<(), UnpackError> {
        let mut input = InBuffer::around(stored);
        loop {
            let consumed = input.pos();
            let mut output = OutBuffer::around(&mut self.block[..]);
            let damaged = |e: io::Error| UnpackError::Damaged(format!("the compressed bytes are damaged: {e}"));
            self.pending = self.decoder.run(&mut input, &mut output).map_err(damaged)?;
            let length = output.as_slice().len();
            let progress = length > 0 || input.pos() > consumed;
            self.take(wanted, length)?;
            let exhausted = input.pos() == stored.len();
            if exhausted && (length < BLOCK || self.pending == 0) {
                return Ok(());
            }
            if !progress {
                return Err(UnpackError::Damaged("the compressed bytes are damaged: no progress".into()));
            }
        }
    }

    /// Gives the file's share of what was just unpacked to the sink.
    fn take(&mut self, wanted: &WantedExtent, length: usize) -> Result<(), UnpackError> {
        let skip = u64::from(wanted.skip);
        let begin = self.unpacked;
        self.unpacked += length as u64;
        if self.unpacked > skip + wanted.plain + PADDING {
            return Err(UnpackError::Damaged(format!("it holds more than the {} bytes it promises", wanted.plain)));
        }
        let from = skip.clamp(begin, self.unpacked) - begin;
        let to = (skip + wanted.plain).clamp(begin, self.unpacked) - begin;
        let content = &self.block[from as usize..to as usize];
        if !content.is_empty() {
            self.hasher.update(content);
            self.sink.content(self.index, content)?;
        }
        Ok(())
    }

    fn finish_run(&mut self, wanted: &WantedExtent) -> Result<(), UnpackError> {
        let receipt = std::mem::take(&mut self.hasher).finish();
        if self.pending != 0 || receipt.length != wanted.plain {
            let (got, promised) = (receipt.length, wanted.plain);
            return Err(UnpackError::Damaged(format!("a file ends after {got} of {promised} bytes")));
        }
        if receipt.sha256 != wanted.sha256 {
            let (got, promised) = (receipt.sha256, wanted.sha256);
            return Err(UnpackError::Damaged(format!(
                "content with the digest {got} stands where {promised} was stored"
            )));
        }
        self.sink.whole(self.index)?;
        self.index += 1;
        self.unpacked = 0;
        Ok(())
    }

    /// Ends the input: every wanted run has come.
    pub fn finish(self) -> Result<S, UnpackError> {
        match self.wanted.len() - self.index {
            0 => Ok(self.sink),
            missing => Err(UnpackError::Damaged(format!("it ended before {missing} of its files"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{PackedExtent, PartWriter};
    use proptest::prelude::*;

    #[derive(Default)]
    struct Files(Vec<(Vec<u8>, bool)>);

    impl PartSink for Files {
        fn content(&mut self, index: usize, bytes: &[u8]) -> io::Result<()> {
            self.0.resize(self.0.len().max(index + 1), Default::default());
            self.0[index].0.extend(bytes);
            Ok(())
        }

        fn whole(&mut self, index: usize) -> io::Result<()> {
            self.0.resize(self.0.len().max(index + 1), Default::default());
            self.0[index].1 = true;
            Ok(())
        }
    }

    fn wanted(packed: &PackedExtent) -> WantedExtent {
        let PackedExtent { at, stored, skip, plain, sha256, .. } = *packed;
        WantedExtent { at, stored, skip, plain, sha256 }
    }

    fn packed(sizes: &[usize]) -> (Vec<u8>, Vec<Vec<u8>>, Vec<WantedExtent>) {
        let mut writer = PartWriter::new(1, 0).unwrap();
        let mut contents = Vec::new();
        let mut extents = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let content: Vec<u8> = (0..*size).map(|i| (i / 9 + index) as u8).collect();
            writer.begin(&[1; 512]).unwrap();
            writer.content(&content).unwrap();
            extents.push(wanted(&writer.end((512 - size % 512) % 512).unwrap()));
            contents.push(content);
        }
        (writer.finish().unwrap(), contents, extents)
    }

    fn read(part: &[u8], piece: usize, extents: Vec<WantedExtent>) -> Result<Files, UnpackError> {
        let mut reader = PartReader::new(extents, Files::default())?;
        for piece in part.chunks(piece) {
            reader.push(piece)?;
        }
        reader.finish()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn any_choice_in_any_pieces(sizes in proptest::collection::vec(0usize..2_500_000, 1..5), piece in 1usize..300_000, choice: u8) {
            let piece = piece.max(50);
            let (part, contents, extents) = packed(&sizes);
            let chosen: Vec<usize> = (0..sizes.len()).filter(|i| choice & 1 << i != 0).collect();
            let files = read(&part, piece, chosen.iter().map(|i| extents[*i]).collect()).unwrap();
            for (found, index) in files.0.iter().zip(&chosen) {
                prop_assert!(found.1 && found.0 == contents[*index]);
            }
            prop_assert_eq!(files.0.len(), chosen.len());
        }

        #[test]
        fn no_flip_and_no_cut_passes(at in 0.0f64..1.0, bit in 0u8..8) {
            let (mut part, contents, extents) = packed(&[3000, 0, 70_000]);
            let at = (part.len() as f64 * at) as usize;
            prop_assert!(read(&part[..at], 1000, extents.clone()).is_err());
            part[at] ^= 1 << bit;
            if let Ok(files) = read(&part, 1000, extents) {
                // A bit of a zstd header may carry no meaning.
                prop_assert!(files.0.iter().zip(&contents).all(|(found, content)| found.0 == *content));
            }
        }
    }

    #[test]
    fn the_digest_decides_and_not_the_checksum_of_a_frame() {
        let (mut part, contents, mut extents) = packed(&[1000]);
        *part.last_mut().unwrap() ^= 1;
        assert!(zstd::decode_all(&part[..]).is_err());
        assert_eq!(read(&part, 100, extents.clone()).unwrap().0, [(contents[0].clone(), true)]);
        extents[0].sha256.0[0] ^= 1;
        assert!(read(&part, 100, extents).is_err());
    }

    #[test]
    fn swapped_files_and_bombs_are_refused() {
        let (part, _, mut extents) = packed(&[1000, 1000]);
        let digest = extents[0].sha256;
        extents[0].sha256 = std::mem::replace(&mut extents[1].sha256, digest);
        assert!(read(&part, 100, extents).is_err());
        let (part, _, mut extents) = packed(&[3_000_000]);
        extents[0].plain = 10;
        assert!(read(&part, 100, extents.clone()).is_err());
        assert!(PartReader::new(vec![extents[0], extents[0]], Files::default()).is_err());
    }
}
