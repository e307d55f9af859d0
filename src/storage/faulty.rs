//! A decorator that misbehaves on purpose: seeded faults for tests of what stands above a store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::object_store::{Continuation, Damage, Unfinished};
use super::{
    Get, Head, KeyPrefix, LargeBody, ListPage, Object, ObjectKey, ObjectStore, Put, StoreError, StoreErrorKind,
    UserMetadata,
};

/// Fails about one call in `one_in`, by a sequence that the seed decides: before the call, after it (the reply is
/// lost), or in the middle of a body.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    one_in: u64,
    state: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Before,
    After,
}

impl FaultyStore {
    /// Wraps `inner`; `one_in` 0 never fails.
    pub fn new(inner: Arc<dyn ObjectStore>, seed: u64, one_in: u64) -> Self {
        FaultyStore { inner, one_in, state: AtomicU64::new(seed) }
    }

    /// splitmix64: a small sequence that a seed replays.
    fn next(&self) -> u64 {
        let mut z = self.state.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn draw(&self) -> Fault {
        match self.next() {
            n if self.one_in == 0 || !n.is_multiple_of(self.one_in) => Fault::None,
            n if (n / self.one_in).is_multiple_of(2) => Fault::Before,
            _ => Fault::After,
        }
    }

    async fn around<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let broken = || StoreError::new(StoreErrorKind::Unavailable, "a fault was injected");
        match self.draw() {
            Fault::None => call.await,
            Fault::Before => Err(broken()),
            Fault::After => call.await.and_then(|_| Err(broken())),
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for FaultyStore {
    async fn put(&self, key: &ObjectKey, body: Bytes, user: &UserMetadata) -> Result<Put, StoreError> {
        self.around(self.inner.put(key, body, user)).await
    }

    async fn put_large(&self, key: &ObjectKey, body: &LargeBody, user: &UserMetadata) -> Result<Put, StoreError> {
        self.around(self.inner.put_large(key, body, user)).await
    }

    async fn get(&self, key: &ObjectKey, offset: u64, same_as: Option<&str>) -> Result<Get, StoreError> {
        let fault = self.draw();
        if fault == Fault::Before {
            return Err(StoreError::new(StoreErrorKind::Unavailable, "a fault was injected"));
        }
        match self.inner.get(key, offset, same_as).await? {
            Get::Found(object) if fault == Fault::After => {
                let broken = StoreError::new(StoreErrorKind::Unavailable, "a fault was injected into the body");
                let body = object.body.take(1).map(halve).chain(stream::iter([Err(broken)])).boxed();
                Ok(Get::Found(Object { meta: object.meta, body }))
            }
            other => Ok(other),
        }
    }

    async fn head(&self, key: &ObjectKey) -> Result<Head, StoreError> {
        self.around(self.inner.head(key)).await
    }

    async fn list(
        &self,
        prefix: &KeyPrefix,
        from: Option<&Continuation>,
        limit: usize,
    ) -> Result<ListPage, StoreError> {
        self.around(self.inner.list(prefix, from, limit)).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.around(self.inner.delete(key)).await
    }

    async fn unfinished(&self, prefix: &KeyPrefix) -> Result<Vec<Unfinished>, StoreError> {
        self.around(self.inner.unfinished(prefix)).await
    }

    async fn abandon(&self, unfinished: &Unfinished) -> Result<(), StoreError> {
        self.around(self.inner.abandon(unfinished)).await
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn conditional_writes(&self) -> bool {
        self.inner.conditional_writes()
    }

    async fn refuses_damage(&self, key: &ObjectKey) -> Result<Damage, StoreError> {
        self.around(self.inner.refuses_damage(key)).await
    }

    async fn put_in_parts(&self, key: &ObjectKey, body: Bytes) -> Result<Option<Put>, StoreError> {
        self.around(self.inner.put_in_parts(key, body)).await
    }
}

fn halve(piece: Result<Bytes, StoreError>) -> Result<Bytes, StoreError> {
    piece.map(|bytes| bytes.slice(..bytes.len() / 2))
}
