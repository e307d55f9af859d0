//! Transaction numbers, which wrap around.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of a transaction: 32 bits that PostgreSQL uses again and again, in a circle.
///
/// Source: `TransactionIdPrecedes` in `access/transam/transam.c`: of two numbers the earlier one is the one from which
/// the other is reached in fewer than 2^31 steps. That holds between transactions of one time, since a cluster never
/// lets living ones lie further apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Xid(pub u32);

impl Xid {
    /// The first number that is given out. 0 means "none"; 1 and 2 are PostgreSQL's own and commit nowhere.
    pub const FIRST_NORMAL: Xid = Xid(3);

    /// Whether a transaction can have this number.
    pub fn is_normal(self) -> bool {
        self.0 >= Self::FIRST_NORMAL.0
    }

    /// Whether this transaction began before `other`, on the circle.
    pub fn precedes(self, other: Xid) -> bool {
        self.0.wrapping_sub(other.0) >= 1 << 31
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// From one transaction to another, both included; in JSON `[lowest, highest]`.
///
/// * `highest` does not precede `lowest` on the circle. As plain numbers it may be the smaller one, after a wrap-around.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "[Xid; 2]", from = "[Xid; 2]")]
pub struct XidRange {
    /// The transaction that began first.
    pub lowest: Xid,
    /// The one that began last.
    pub highest: Xid,
}

impl XidRange {
    /// A range of one.
    pub fn of(xid: Xid) -> Self {
        XidRange { lowest: xid, highest: xid }
    }

    /// The range and one more.
    pub fn with(self, xid: Xid) -> Self {
        XidRange {
            lowest: if xid.precedes(self.lowest) { xid } else { self.lowest },
            highest: if self.highest.precedes(xid) { xid } else { self.highest },
        }
    }

    /// Whether `xid` lies between the two.
    pub fn contains(self, xid: Xid) -> bool {
        !xid.precedes(self.lowest) && !self.highest.precedes(xid)
    }
}

impl From<XidRange> for [Xid; 2] {
    fn from(range: XidRange) -> Self {
        [range.lowest, range.highest]
    }
}

impl From<[Xid; 2]> for XidRange {
    fn from([lowest, highest]: [Xid; 2]) -> Self {
        XidRange { lowest, highest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_range_goes_over_the_wrap_around() {
        let xids = [u32::MAX - 1, 7, u32::MAX, 3];
        let range = xids.map(Xid).into_iter().fold(XidRange::of(Xid(u32::MAX)), XidRange::with);
        assert_eq!(range, XidRange { lowest: Xid(u32::MAX - 1), highest: Xid(7) });
        assert!(xids.into_iter().all(|xid| range.contains(Xid(xid))));
        assert!(!range.contains(Xid(8)) && !range.contains(Xid(u32::MAX - 2)));
        assert_eq!(serde_json::to_string(&range).unwrap(), format!("[{},7]", u32::MAX - 1));
    }

    proptest! {
        #[test]
        fn a_range_holds_exactly_what_lies_between(first: u32, steps in proptest::collection::vec(0u32..1 << 29, 1..20), probe in 0u32..1 << 30) {
            let at = |step: u32| Xid(first.wrapping_add(step));
            let range = steps.iter().fold(XidRange::of(at(steps[0])), |range, step| range.with(at(*step)));
            let (lowest, highest) = (*steps.iter().min().unwrap(), *steps.iter().max().unwrap());
            prop_assert_eq!(range, XidRange { lowest: at(lowest), highest: at(highest) });
            prop_assert_eq!(range.contains(at(probe)), (lowest..=highest).contains(&probe));
        }
    }
}
