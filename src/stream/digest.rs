//! SHA-256 as a value, and the receipt of what passed by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest;

/// A SHA-256 digest; 64 lower-case hexadecimal digits in text and in JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Sha256(pub [u8; 32]);

/// What is not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 digest: expected 64 lower-case hexadecimal digits")]
pub struct NotADigest;

impl Sha256 {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Sha256(sha2::Sha256::digest(bytes).into())
    }

    /// The first 16 digits, to tell two contents apart in a name or a message.
    pub fn short(&self) -> String {
        self.to_string()[..16].to_owned()
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl FromStr for Sha256 {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(NotADigest);
        }
        let mut digest = [0; 32];
        for (index, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| NotADigest)?;
        }
        Ok(Sha256(digest))
    }
}

crate::text_form::text_form!(Sha256);

/// Digest and length of bytes that were read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The digest of all bytes.
    pub sha256: Sha256,
    /// How many bytes there were.
    pub length: u64,
}

/// Takes bytes as they pass and gives the [`Receipt`] at the end.
#[derive(Clone, Default)]
pub struct Sha256Hasher {
    state: sha2::Sha256,
    length: u64,
}

impl Sha256Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.length += bytes.len() as u64;
    }

    /// The receipt of all bytes taken.
    pub fn finish(self) -> Receipt {
        Receipt { sha256: Sha256(self.state.finalize().into()), length: self.length }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_digest_of_nothing_is_known() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Sha256::of(b"").to_string(), empty);
        assert!(empty.to_uppercase().parse::<Sha256>().is_err());
    }

    proptest! {
        #[test]
        fn text_goes_both_ways(bytes: [u8; 32]) {
            prop_assert_eq!(Sha256(bytes).to_string().parse::<Sha256>().unwrap(), Sha256(bytes));
        }

        #[test]
        fn pieces_give_the_digest_of_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..500), cut in 0usize..500) {
            let cut = cut.min(bytes.len());
            let mut hasher = Sha256Hasher::default();
            hasher.update(&bytes[..cut]);
            hasher.update(&bytes[cut..]);
            prop_assert_eq!(hasher.finish(), Receipt { sha256: Sha256::of(&bytes), length: bytes.len() as u64 });
        }
    }
}
