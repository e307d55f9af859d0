//! A position in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use super::Malformed;

/// A byte position in the WAL stream of a cluster, printed and parsed as PostgreSQL does: the upper
/// and the lower 32 bits in upper-case hexadecimal without leading zeros, `16/B374D848`.
///
/// Source: `XLogRecPtr` in `access/xlogdefs.h`, `LSN_FORMAT_ARGS`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Lsn(pub u64);

impl Lsn {
    /// "No position": what PostgreSQL calls `InvalidXLogRecPtr`.
    pub const INVALID: Lsn = Lsn(0);
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lsn({self})")
    }
}

impl FromStr for Lsn {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed =
            || Malformed::new(format!("`{text}` is not an LSN: expected two hexadecimal numbers like `16/B374D848`"));
        let half = |part: &str| {
            let digits = !part.is_empty() && part.len() <= 8 && part.bytes().all(|b| b.is_ascii_hexdigit());
            digits.then(|| u64::from_str_radix(part, 16).ok()).flatten().ok_or_else(malformed)
        };
        let (high, low) = text.split_once('/').ok_or_else(malformed)?;
        Ok(Lsn(half(high)? << 32 | half(low)?))
    }
}

crate::text_form::text_form!(Lsn);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prints_as_postgresql_does() {
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!(Lsn(0x0100_0028).to_string(), "0/1000028");
        assert_eq!(Lsn(u64::MAX).to_string(), "FFFFFFFF/FFFFFFFF");
    }

    #[test]
    fn refuses_what_is_no_lsn() {
        for text in ["", "/", "1", "1/", "/1", "1/2/3", "g/1", "+1/2", "1/ 2", "123456789/0", "-1/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn text_goes_both_ways(position: u64) {
            let text = Lsn(position).to_string();
            prop_assert_eq!(text.parse::<Lsn>().unwrap(), Lsn(position));
            prop_assert_eq!(text.to_lowercase().parse::<Lsn>().unwrap(), Lsn(position));
        }

        #[test]
        fn any_text_is_an_lsn_or_an_error(text in "\\PC{0,20}") {
            if let Ok(lsn) = text.parse::<Lsn>() {
                prop_assert_eq!(lsn.to_string().parse::<Lsn>().unwrap(), lsn);
            }
        }
    }
}
