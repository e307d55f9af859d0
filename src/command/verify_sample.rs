//! The share of the objects that `verify --sample` reads.

use std::collections::BTreeSet;

use crate::storage::ObjectKey;
use crate::stream::Sha256;

/// A share of the objects. The same seed takes the same ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// In percent.
    pub percent: f64,
    /// What the choice goes by.
    pub seed: String,
}

impl Sample {
    fn number(&self, key: &ObjectKey) -> u64 {
        let digest = Sha256::of(format!("{}\n{key}", self.seed).as_bytes());
        u64::from_be_bytes(digest.0[..8].try_into().unwrap_or_default())
    }

    fn takes(&self, key: &ObjectKey) -> bool {
        (self.number(key) as f64) < self.percent / 100.0 * u64::MAX as f64
    }

    /// Those of `keys` that are taken: of few objects at least one.
    pub(super) fn of(&self, keys: impl Iterator<Item = ObjectKey>) -> BTreeSet<ObjectKey> {
        let mut least: Option<(u64, ObjectKey)> = None;
        let mut taken = BTreeSet::new();
        for key in keys {
            if self.takes(&key) {
                taken.insert(key);
            } else if taken.is_empty() {
                let found = (self.number(&key), key);
                least = Some(least.map_or(found.clone(), |least| least.min(found)));
            }
        }
        if taken.is_empty() {
            taken.extend(least.map(|(_, key)| key));
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_never_empty_and_as_large_as_it_should_be() {
        let keys = |count: u32| (0..count).map(|number| format!("k/{number}").parse::<ObjectKey>().unwrap());
        let of = |percent, seed: &str, count| Sample { percent, seed: seed.to_owned() }.of(keys(count));
        for seed in ["a", "b", "c"] {
            assert_eq!((of(0.0001, seed, 5).len(), of(5.0, seed, 0).len(), of(100.0, seed, 500).len()), (1, 0, 500));
            assert!((300..700).contains(&of(5.0, seed, 10_000).len()), "{seed}");
            assert_eq!(of(5.0, seed, 100), of(5.0, seed, 100));
        }
        let first: BTreeSet<_> = ["a", "b", "c", "d", "e", "f"].map(|seed| of(0.0001, seed, 5)).into();
        assert!(first.len() > 1, "another one each day");
    }
}
