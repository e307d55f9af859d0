//! A decorator that caps how many requests are under way at once.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::object_store::{Continuation, Damage, Unfinished};
use super::{Get, Head, KeyPrefix, ListPage, ObjectKey, ObjectStore, Put, StoreError, StoreErrorKind, UserMetadata};

/// At most `requests` calls to the inner store at once; a body that is still being read no longer counts.
#[derive(Debug)]
pub struct LimitStore {
    inner: Arc<dyn ObjectStore>,
    permits: Semaphore,
}

impl LimitStore {
    /// Caps the requests to `inner`.
    pub fn new(inner: Arc<dyn ObjectStore>, requests: usize) -> Self {
        LimitStore { inner, permits: Semaphore::new(requests.max(1)) }
    }

    async fn permit(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        let closed = |_| StoreError::new(StoreErrorKind::Unavailable, "the store was closed");
        self.permits.acquire().await.map_err(closed)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for LimitStore {
    async fn put(&self, key: &ObjectKey, body: Bytes, user: &UserMetadata) -> Result<Put, StoreError> {
        let _permit = self.permit().await?;
        self.inner.put(key, body, user).await
    }

    async fn get(&self, key: &ObjectKey, offset: u64, same_as: Option<&str>) -> Result<Get, StoreError> {
        let _permit = self.permit().await?;
        self.inner.get(key, offset, same_as).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<Head, StoreError> {
        let _permit = self.permit().await?;
        self.inner.head(key).await
    }

    async fn list(
        &self,
        prefix: &KeyPrefix,
        from: Option<&Continuation>,
        limit: usize,
    ) -> Result<ListPage, StoreError> {
        let _permit = self.permit().await?;
        self.inner.list(prefix, from, limit).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let _permit = self.permit().await?;
        self.inner.delete(key).await
    }

    async fn unfinished(&self, prefix: &KeyPrefix) -> Result<Vec<Unfinished>, StoreError> {
        let _permit = self.permit().await?;
        self.inner.unfinished(prefix).await
    }

    async fn abandon(&self, unfinished: &Unfinished) -> Result<(), StoreError> {
        let _permit = self.permit().await?;
        self.inner.abandon(unfinished).await
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn conditional_writes(&self) -> bool {
        self.inner.conditional_writes()
    }

    async fn refuses_damage(&self, key: &ObjectKey) -> Result<Damage, StoreError> {
        let _permit = self.permit().await?;
        self.inner.refuses_damage(key).await
    }

    async fn put_in_parts(&self, key: &ObjectKey, body: Bytes) -> Result<Option<Put>, StoreError> {
        let _permit = self.permit().await?;
        self.inner.put_in_parts(key, body).await
    }
}
