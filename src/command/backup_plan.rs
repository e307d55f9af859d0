//! How a backup's files are spread over parts: pure.
//!
//! The parts in their order are one tar archive. Small files share a part, large ones go on in the next.

/// One part to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartPlan {
    /// Its number, from 1.
    pub number: u32,
    /// What it holds, in order.
    pub pieces: Vec<Piece>,
}

/// A run of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The file's index.
    pub file: usize,
    /// Its first byte.
    pub from: u64,
    /// The byte behind its last.
    pub to: u64,
    /// How many parts the file is spread over.
    pub of: u32,
}

impl Piece {
    /// Whether the file has no other pieces.
    pub fn is_whole(&self) -> bool {
        self.of == 1
    }
}

/// Plain bytes in a part: whole pages, and little enough to be held in memory more than once.
pub const PART: u64 = 24 << 20;
/// Files in a part: an object of tiny files shall not become a very long list.
const MOST_FILES: usize = 8192;

/// Fills parts one after the other.
#[derive(Debug)]
pub struct PartFiller {
    number: u32,
    pieces: usize,
    room: u64,
}

impl Default for PartFiller {
    /// At the beginning of the first part.
    fn default() -> Self {
        PartFiller { number: 1, pieces: 0, room: PART }
    }
}

impl PartFiller {
    /// The number of the part that so many more bytes, [`PART`] at most, go into.
    pub fn place(&mut self, bytes: u64) -> u32 {
        if self.pieces > 0 && (bytes > self.room || self.pieces >= MOST_FILES) {
            *self = PartFiller { number: self.number + 1, pieces: 0, room: PART };
        }
        self.pieces += 1;
        self.room = self.room.saturating_sub(bytes);
        self.number
    }
}

/// Where a file of this size is cut: the first byte of each piece, and the one behind its last. An empty file is one piece.
pub fn cuts(size: u64) -> impl ExactSizeIterator<Item = (u64, u64)> {
    let pieces = u32::try_from(size.div_ceil(PART)).unwrap_or(u32::MAX).max(1);
    (0..pieces).map(move |piece| {
        let from = u64::from(piece) * PART;
        (from, size.min(from + PART))
    })
}

/// Spreads files of these sizes, in their order. There is at least one part.
pub fn plan_parts(sizes: &[u64]) -> Vec<PartPlan> {
    let mut parts = vec![PartPlan { number: 1, pieces: Vec::new() }];
    let mut filler = PartFiller::default();
    for (file, size) in sizes.iter().copied().enumerate() {
        let of = cuts(size).len() as u32;
        for (from, to) in cuts(size) {
            let number = filler.place(to - from);
            if parts.len() < number as usize {
                parts.push(PartPlan { number, pieces: Vec::new() });
            }
            if let Some(part) = parts.last_mut() {
                part.pieces.push(Piece { file, from, to, of });
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_byte_is_in_one_piece_and_no_part_is_too_large(sizes in proptest::collection::vec(
            prop_oneof![0u64..10_000, 0u64..200_000_000], 0..200)) {
            let parts = plan_parts(&sizes);
            let mut next = (0, 0);
            for (index, part) in parts.iter().enumerate() {
                prop_assert_eq!(part.number as usize, index + 1);
                prop_assert!(part.pieces.iter().map(|p| p.to - p.from).sum::<u64>() <= PART);
                for piece in &part.pieces {
                    prop_assert_eq!((piece.file, piece.from), next);
                    next = if piece.to == sizes[piece.file] { (piece.file + 1, 0) } else { (piece.file, piece.to) };
                }
            }
            prop_assert_eq!(next, (sizes.len(), 0));
            let pieces = |file| parts.iter().flat_map(|p| &p.pieces).filter(|p| p.file == file).count();
            for piece in parts.iter().flat_map(|part| &part.pieces) {
                prop_assert_eq!(piece.of as usize, pieces(piece.file));
            }
        }
    }

    #[test]
    fn a_thousand_tiny_files_are_one_object() {
        assert_eq!(plan_parts(&[100; 1000]).len(), 1);
        assert_eq!(plan_parts(&[]).len(), 1);
    }
}
