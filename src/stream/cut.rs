//! A file of unknown length, cut into parts as it arrives: each part is one zstd frame, and all of them one after the other are
//! what `zstd -d` reads.

use std::io::{self, Read, Write};

use super::digest::{Receipt, Sha256, Sha256Hasher};

/// A part of a file.
#[derive(Debug)]
pub struct CutPart {
    /// Its number, from 1.
    pub number: u32,
    /// The frame.
    pub bytes: Vec<u8>,
    /// The digest of the frame.
    pub sha256: Sha256,
    /// Bytes of the file in it.
    pub plain: u64,
}

/// Where parts are cut.
#[derive(Clone, Copy, Debug)]
pub struct CutSizes {
    /// A part is full when its frame has so many bytes, or a few more.
    pub stored: usize,
    /// No part has more bytes of the file: whoever reads it holds them all.
    pub plain: u64,
}

/// What a dump's parts have.
pub const SIZES: CutSizes = CutSizes { stored: 8 << 20, plain: 64 << 20 };

const BLOCK: usize = 128 << 10;

/// Reads `source` to its end and gives each part to `take`. The receipt is that of the whole file.
pub fn cut(
    mut source: impl Read,
    level: i32,
    sizes: CutSizes,
    mut take: impl FnMut(CutPart) -> io::Result<()>,
) -> io::Result<Receipt> {
    let mut hasher = Sha256Hasher::default();
    let mut block = vec![0; BLOCK.min(sizes.plain as usize)];
    let mut open: Option<Open> = None;
    let mut number = 0;
    loop {
        let length = match source.read(&mut block) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&block[..length]);
        if open.as_ref().is_some_and(|part| part.plain + length as u64 > sizes.plain)
            && let Some(full) = open.take()
        {
            take(full.close(&mut number)?)?;
        }
        let mut part = match open.take() {
            Some(part) => part,
            None => Open::new(level, sizes.stored)?,
        };
        part.frame.write_all(&block[..length])?;
        part.plain += length as u64;
        match part.frame.get_ref().len() >= sizes.stored {
            true => take(part.close(&mut number)?)?,
            false => open = Some(part),
        }
    }
    if let Some(last) = open {
        take(last.close(&mut number)?)?;
    }
    Ok(hasher.finish())
}

struct Open {
    frame: zstd::stream::write::Encoder<'static, Vec<u8>>,
    plain: u64,
}

impl Open {
    fn new(level: i32, room: usize) -> io::Result<Self> {
        let mut frame = zstd::stream::write::Encoder::new(Vec::with_capacity(room + BLOCK), level)?;
        frame.include_checksum(true)?;
        Ok(Open { frame, plain: 0 })
    }

    fn close(self, number: &mut u32) -> io::Result<CutPart> {
        *number = number.checked_add(1).ok_or_else(|| io::Error::other("the file has too many parts"))?;
        let bytes = self.frame.finish()?;
        Ok(CutPart { number: *number, sha256: Sha256::of(&bytes), bytes, plain: self.plain })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives what is there in odd pieces, as a pipe does.
    struct Pipe<'a>(&'a [u8], usize);

    impl Read for Pipe<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.1 = self.1.wrapping_mul(31) % 4099 + 1;
            let length = self.1.min(self.0.len()).min(into.len());
            into[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn all_parts_together_are_the_file(length in 0usize..300_000, stored in 1usize..60_000, plain in 4096u64..50_000, seed: u8) {
            let file: Vec<u8> = (0..length as u64).map(|i| (i * i / 7 % 251) as u8 ^ seed).collect();
            let mut parts = Vec::new();
            let receipt = cut(Pipe(&file, 7), 1, CutSizes { stored, plain }, |part| {
                parts.push(part);
                Ok(())
            }).unwrap();
            prop_assert_eq!((receipt.length, receipt.sha256), (length as u64, Sha256::of(&file)));
            let all: Vec<u8> = parts.iter().flat_map(|part| part.bytes.clone()).collect();
            prop_assert_eq!(zstd::decode_all(&all[..]).unwrap(), file);
            for (index, part) in parts.iter().enumerate() {
                prop_assert_eq!((part.number as usize, part.sha256), (index + 1, Sha256::of(&part.bytes)));
                prop_assert!(part.plain > 0 && part.plain <= plain);
                prop_assert_eq!(zstd::decode_all(&part.bytes[..]).unwrap().len() as u64, part.plain);
            }
        }
    }

    #[test]
    fn whoever_takes_parts_may_stop_it() {
        let mut taken = 0;
        let sizes = CutSizes { stored: 10, plain: 1000 };
        let stopped = cut(Pipe(&[7; 100_000], 7), 1, sizes, |_| {
            taken += 1;
            if taken == 2 { Err(io::Error::other("enough")) } else { Ok(()) }
        });
        assert_eq!((stopped.unwrap_err().to_string(), taken), ("enough".to_owned(), 2));
    }
}
