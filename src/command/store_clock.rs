//! What time it is for the store: ages are told by its clock, for this machine's may be wrong.

use jiff::Timestamp;
use serde::Serialize;

use super::failure::{Failure, FailureKind};
use crate::repo::{RepoError, Repository};
use crate::storage::{Head, ObjectKey, Put, StoreError, StoreErrorKind, UserMetadata};

/// Whose clock a time is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// The store's, by an object that was written just now.
    Store,
    /// The store's, by its newest object: the present is later, so nothing looks older than it is.
    NewestObject,
    /// This machine's: good enough for a plan that is not carried out.
    ThisMachine,
}

/// A time, and whose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreTime {
    /// The time.
    pub now: Timestamp,
    /// Whose.
    pub clock: Clock,
    /// Why it is not the store's own.
    pub note: Option<String>,
}

/// The time of an object that is written for this. Where the role may not write: of the newest object there is, and never later than
/// this machine's.
pub async fn by_writing(
    repository: &Repository,
    key: &ObjectKey,
    body: Vec<u8>,
    newest: impl Future<Output = Result<Option<Timestamp>, RepoError>>,
    here: Timestamp,
) -> Result<StoreTime, Failure> {
    match repository.store.put(key, body.into(), &UserMetadata::new()).await {
        Ok(Put::Created | Put::Exists) => match written(repository, key).await? {
            Some(now) => Ok(StoreTime { now, clock: Clock::Store, note: None }),
            None => Err(Failure::new(FailureKind::Unsupported, "the store does not say when an object was written")
                .with_hint("without times by the store's clock nothing can be expired by its age")),
        },
        Err(error) if error.kind == StoreErrorKind::Denied => {
            let now = newest.await?.map_or(here, |newest| newest.min(here));
            let note =
                format!("the role cannot write below `record/`, so ages are counted from the newest object ({error})");
            Ok(StoreTime { now, clock: Clock::NewestObject, note: Some(note) })
        }
        Err(error) => Err(error.into()),
    }
}

async fn written(repository: &Repository, key: &ObjectKey) -> Result<Option<Timestamp>, StoreError> {
    Ok(match repository.store.head(key).await? {
        Head::Found(meta) => meta.modified.and_then(|time| time.try_into().ok()),
        Head::NotSeen => None,
    })
}

/// This machine's time, unless the store has objects that are newer by more than clocks may differ.
pub fn without_writing(newest: Option<Timestamp>, here: Timestamp) -> StoreTime {
    let note = "by this machine's clock: a dry run writes nothing";
    let late = newest.filter(|newest| newest.duration_since(here) > jiff::SignedDuration::from_mins(5));
    match late {
        Some(now) => StoreTime {
            now,
            clock: Clock::NewestObject,
            note: Some(format!("this machine's clock is behind the store's: it is at least {now} there")),
        },
        None => StoreTime { now: here, clock: Clock::ThisMachine, note: Some(note.to_owned()) },
    }
}
