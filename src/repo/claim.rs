//! Who does what is due: of several that see the same due time, one.
//!
//! `record/claim/<nanoseconds of the due time>-<kind>-<attempt>.json`, create-only: whoever creates it does the work. Attempt 0 is
//! nobody's: it says that everything up to then is settled, as when a schedule is used for the first time. Another attempt may follow when
//! the one before left no note of a run, for its writer may have died in between.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::Serialize;

use super::Repository;
use super::error::RepoError;
use super::run_record::RunKind;
use super::wal_object::Writer;
use crate::storage::object_store::Visit;
use crate::storage::{Listed, ObjectKey, ObjectStoreExt, Put, UserMetadata};

/// A claim, as its name says. They sort by the due time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// When it was due.
    pub due: Timestamp,
    /// What.
    pub kind: RunKind,
    /// Which try; 0: nothing is to be done.
    pub attempt: u32,
}

/// A claim in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Which.
    pub claim: Claim,
    /// When it was made, by the store's clock.
    pub at: Option<Timestamp>,
}

/// A name that is none of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a claim")]
pub struct NotAClaim;

#[derive(Serialize)]
struct Body {
    format: &'static str,
    kind: RunKind,
    due: Timestamp,
    writer: String,
    /// So that a lost reply is told from another's claim.
    token: String,
}

const KIND: &str = "claim";
const FORMAT: &str = "pgark-claim-1";
const LARGEST: usize = 64 << 10;
const PAGE: usize = 1000;
/// So many stay.
const KEPT: usize = 1000;

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanoseconds = u64::try_from(self.due.as_nanosecond()).unwrap_or(0);
        write!(f, "{nanoseconds:020}-{}-{}.json", self.kind, self.attempt)
    }
}

impl FromStr for Claim {
    type Err = NotAClaim;

    fn from_str(text: &str) -> Result<Self, NotAClaim> {
        let read = || {
            let (name, attempt) = text.strip_suffix(".json")?.rsplit_once('-')?;
            let (due, kind) = name.split_once('-')?;
            let claim = Claim {
                due: Timestamp::from_nanosecond(due.parse::<u64>().ok()?.into()).ok()?,
                kind: RunKind::ALL.into_iter().find(|known| known.word() == kind)?,
                attempt: attempt.parse().ok()?,
            };
            (claim.to_string() == text).then_some(claim)
        };
        read().ok_or(NotAClaim)
    }
}

impl Repository {
    fn claim_key(&self, claim: Claim) -> Result<ObjectKey, RepoError> {
        let name = claim.to_string();
        self.layout.record(KIND, &name).map_err(|e| RepoError::damaged(&name, e.to_string()))
    }

    /// Claims what is due; whether it is ours now. `token` is like no other's.
    pub async fn claim(&self, claim: Claim, writer: &Writer, token: &str) -> Result<bool, RepoError> {
        let key = self.claim_key(claim)?;
        let Claim { kind, due, .. } = claim;
        let body = Body { format: FORMAT, kind, due, writer: writer.to_string(), token: token.to_owned() };
        let mut json = serde_json::to_vec(&body).map_err(|e| RepoError::damaged(&key, e.to_string()))?;
        json.push(b'\n');
        let bytes = bytes::Bytes::from(json);
        match self.store.put(&key, bytes.clone(), &UserMetadata::new()).await? {
            Put::Created => Ok(true),
            Put::Exists => Ok(self.store.read_small(&key, LARGEST).await? == Some(bytes)),
        }
    }

    /// All claims, oldest due time first. One listing.
    pub async fn claims(&self) -> Result<Vec<Claimed>, RepoError> {
        let prefix = self.layout.records(KIND);
        let mut claims = Vec::new();
        let visit = |listed: &Listed| {
            let claim = listed.name.strip_prefix(prefix.as_str()).and_then(|name| name.parse::<Claim>().ok());
            claims.extend(claim.map(|claim| Claimed { claim, at: listed.written() }));
            Visit::More
        };
        self.store.visit_after(&prefix, None, PAGE, visit).await?;
        claims.sort_unstable_by_key(|claimed| claimed.claim);
        Ok(claims)
    }

    /// Deletes old claims. The newest of each kind stays.
    pub async fn tidy_claims(&self) -> Result<(), RepoError> {
        let claims = self.claims().await?;
        let old = claims.len().saturating_sub(KEPT);
        let (old, young) = claims.split_at(old);
        let newer = |index: usize, kind| old[index + 1..].iter().chain(young).any(|claimed| claimed.claim.kind == kind);
        for (index, claimed) in old.iter().enumerate() {
            if newer(index, claimed.claim.kind) {
                self.store.delete(&self.claim_key(claimed.claim)?).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryStore;
    use std::sync::Arc;

    fn claim(seconds: i64, kind: RunKind, attempt: u32) -> Claim {
        Claim { due: Timestamp::from_second(seconds).unwrap(), kind, attempt }
    }

    fn repository() -> Repository {
        Repository::new(Arc::new(MemoryStore::default()), "main".parse().unwrap())
    }

    fn writer() -> Writer {
        Writer { host: "db1".to_owned(), pid: 7, version: "1" }
    }

    #[test]
    fn names_come_back() {
        for kind in RunKind::ALL {
            let claim = claim(1_790_000_000, kind, 3);
            assert_eq!(claim.to_string().parse(), Ok(claim));
        }
        for odd in ["", "x", "01790000000000000000-dump.json", "01790000000000000000-dump-01.json"] {
            assert_eq!(odd.parse::<Claim>(), Err(NotAClaim), "{odd}");
        }
    }

    #[tokio::test]
    async fn one_of_several_gets_it() {
        let repository = repository();
        let due = claim(100, RunKind::Dump, 1);
        assert!(repository.claim(due, &writer(), "a").await.unwrap());
        assert!(!repository.claim(due, &writer(), "b").await.unwrap());
        assert!(repository.claim(due, &writer(), "a").await.unwrap(), "a lost reply is no refusal");
        assert!(repository.claim(claim(100, RunKind::Verify, 1), &writer(), "b").await.unwrap());
        assert_eq!(repository.claims().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn they_do_not_grow_for_ever() {
        let repository = repository();
        let rare = claim(1, RunKind::DrillDisaster, 0);
        repository.claim(rare, &writer(), "a").await.unwrap();
        for second in 0..KEPT as i64 + 5 {
            repository.claim(claim(second, RunKind::Dump, 1), &writer(), "a").await.unwrap();
        }
        repository.tidy_claims().await.unwrap();
        let left = repository.claims().await.unwrap();
        assert_eq!((left.len(), left[0].claim), (KEPT + 1, rare));
    }
}
