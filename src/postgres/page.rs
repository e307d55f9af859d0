//! Checksums of data pages: whether a page read from a relation file is what PostgreSQL wrote.

use super::Lsn;

/// What a page's checksum says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// The checksum is right.
    Good,
    /// All bytes are zero: the relation was extended and the page not written yet.
    New,
    /// The checksum is wrong, and the page was changed after the given position: it may have been
    /// read while it was written, and replay puts a whole image over it. No error, unless `lsn` lies
    /// behind the end of the backup, where no page of it can have been changed: see
    /// [`super::WrongPages`].
    ChangedSinceStart {
        /// The position after the page's last change.
        lsn: Lsn,
    },
    /// The checksum is wrong. A page read while it was written shows itself so, too: read it once
    /// more before you believe it.
    Bad {
        /// What the bytes sum up to.
        expected: u16,
        /// What the page says.
        found: u16,
    },
}

/// How many sums run side by side, and where each begins.
const SUMS: usize = 32;
const OFFSETS: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];
const PRIME: u32 = 16_777_619;
const ROW: usize = SUMS * 4;
/// Which of the first row's words holds `pd_checksum`, in its lower half.
const CHECKSUM_WORD: usize = 2;

/// Judges a page: all bytes of one block, as many as `blcksz` in `pg_control` (1 to 32 KiB).
///
/// `block` is the block's number in its fork, counted through all segments; a page of another block
/// is bad. `start` is the position after which changes are replayed anyway: the start of the backup.
///
/// Stricter than PostgreSQL's own checks in two ways: an empty page (`pd_upper` of 0) must be empty
/// throughout, as the server asks when it reads one, and a position after `start` excuses a wrong checksum but
/// does not stand for a right one.
///
/// Layout, little endian: 0 `pd_lsn` as two u32, the upper half first, 8 `pd_checksum` u16. Source:
/// `PageHeaderData` in `storage/bufpage.h`, `pg_checksum_page` in `storage/checksum_impl.h`,
/// `verify_page_checksum` in `backup/basebackup.c`.
pub fn verify(page: &[u8], block: u32, start: Lsn) -> PageState {
    let expected = checksum(page, block);
    let (words, _) = page.as_chunks::<4>();
    let word = |index: usize| words.get(index).map_or(0, |word| u32::from_le_bytes(*word));
    let found = word(CHECKSUM_WORD) as u16;
    if expected == found {
        return PageState::Good;
    }
    let lsn = Lsn(u64::from(word(0)) << 32 | u64::from(word(1)));
    if page.iter().all(|byte| *byte == 0) {
        PageState::New
    } else if lsn > start {
        PageState::ChangedSinceStart { lsn }
    } else {
        PageState::Bad { expected, found }
    }
}

/// The checksum that belongs on this page, never 0. That which stands there is not looked at.
///
/// The sums are independent of one another, so that the compiler works on several at a time.
fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = OFFSETS;
    let (rows, _) = page.as_chunks::<ROW>();
    if let Some((first, others)) = rows.split_first() {
        let mut first = *first;
        first[CHECKSUM_WORD * 4..][..2].fill(0);
        add(&mut sums, &first);
        for row in others {
            add(&mut sums, row);
        }
    }
    add(&mut sums, &[0; ROW]);
    add(&mut sums, &[0; ROW]);
    let sum = sums.iter().fold(block, |all, sum| all ^ sum);
    // One of 1 to 65535.
    (sum % 65_535 + 1) as u16
}

#[inline(always)]
fn add(sums: &mut [u32; SUMS], row: &[u8; ROW]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ u32::from_le_bytes(*word);
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(bytes: &[(usize, u8)]) -> Vec<u8> {
        let mut page = vec![0; 8192];
        for (at, byte) in bytes {
            page[*at] = *byte;
        }
        page
    }

    /// Block 1 of a free space map, from a PostgreSQL 15.
    fn free_space_page() -> Vec<u8> {
        page(&[(8, 95), (9, 101), (12, 24), (15, 32), (17, 32), (18, 4), (19, 32)])
    }

    /// Block 1 of a hash index, from a PostgreSQL 18: its last change ended at 0/12C9820.
    fn index_page() -> Vec<u8> {
        let header = [(4, 32), (5, 152), (6, 44), (7, 1), (8, 219), (9, 101), (12, 24), (14, 248), (15, 31), (16, 248)];
        let rest = [(17, 31), (18, 4), (19, 32), (26, 2), (28, 1), (32, 2), (34, 2), (8190, 146), (8191, 240)];
        page(&[&header[..], &rest[..]].concat())
    }

    #[test]
    fn real_pages_are_good_in_their_own_place_only() {
        for page in [free_space_page(), index_page()] {
            assert_eq!(verify(&page, 1, Lsn(0)), PageState::Good);
            assert_ne!(verify(&page, 0, Lsn(u64::MAX)), PageState::Good);
            assert_ne!(verify(&page, 131_073, Lsn(u64::MAX)), PageState::Good);
        }
    }

    #[test]
    fn a_later_change_excuses_a_wrong_sum_and_an_earlier_one_does_not() {
        let mut page = index_page();
        page[100] ^= 1;
        let changed = Lsn(0x12C_9820);
        assert_eq!(verify(&page, 1, Lsn(changed.0 - 1)), PageState::ChangedSinceStart { lsn: changed });
        let PageState::Bad { expected, found } = verify(&page, 1, changed) else { panic!() };
        assert_eq!(found, 0x65DB);
        page[8..10].copy_from_slice(&expected.to_le_bytes());
        assert_eq!(verify(&page, 1, changed), PageState::Good);
    }

    #[test]
    fn a_new_page_is_zero_throughout() {
        let mut page = vec![0; 8192];
        assert_eq!(verify(&page, 7, Lsn(0)), PageState::New);
        page[8000] = 1;
        assert!(matches!(verify(&page, 7, Lsn(0)), PageState::Bad { found: 0, .. }));
    }

    #[test]
    fn any_length_is_judged() {
        for length in [1, 9, 24, 127, 128, 4096, 32_768] {
            assert_eq!(verify(&vec![0; length], 0, Lsn(0)), PageState::New, "{length}");
            assert_ne!(verify(&vec![255; length], 0, Lsn(u64::MAX)), PageState::New, "{length}");
        }
    }

    /// With 16 bits one change in 65535 goes unseen: a fixed page, so that none of these does.
    #[test]
    fn a_flipped_bit_is_noticed_wherever_it_is() {
        let mut page: Vec<u8> = (0u32..8192).map(|i| (i * i / 7) as u8).collect();
        let sum = checksum(&page, 5);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        for at in (0..8192).step_by(31).chain(0..24) {
            page[at] ^= 1 << (at % 8);
            assert!(matches!(verify(&page, 5, Lsn(u64::MAX)), PageState::Bad { .. }), "{at}");
            page[at] ^= 1 << (at % 8);
        }
        assert_eq!(verify(&page, 5, Lsn(0)), PageState::Good);
    }

    proptest! {
        #[test]
        fn a_page_with_its_own_sum_is_good(seed: [u8; 32], block: u32) {
            let mut page: Vec<u8> = seed.iter().cycle().zip(0u32..8192).map(|(s, i)| s ^ (i / 7) as u8).collect();
            let sum = checksum(&page, block);
            prop_assert_ne!(sum, 0);
            page[8..10].copy_from_slice(&sum.to_le_bytes());
            prop_assert_eq!(verify(&page, block, Lsn(0)), PageState::Good);
        }
    }
}
