//! A decorator that asks a gate before each request: what limits requests, and what a test does or refuses meanwhile.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::object_store::{Continuation, Damage, Unfinished};
use super::{Get, Head, KeyPrefix, LargeBody, ListPage, ObjectKey, ObjectStore, Put, StoreError, UserMetadata};

/// What is asked.
#[async_trait]
pub trait Gate: Debug + Send + Sync {
    /// Kept until the request was answered.
    type Pass: Send;

    /// Lets a request through, now or later, or fails it: by its kind (`put`, `get`, `head`, `list`, `delete`, `unfinished`, `abandon` or
    /// `probe`), and its key or prefix.
    async fn pass(&self, request: &'static str, name: &str) -> Result<Self::Pass, StoreError>;
}

/// A store behind a gate. A body that is still being read is past it.
#[derive(Debug)]
pub struct GatedStore<G> {
    inner: Arc<dyn ObjectStore>,
    gate: G,
}

impl<G: Gate> GatedStore<G> {
    /// Puts the gate before `inner`.
    pub fn new(inner: Arc<dyn ObjectStore>, gate: G) -> Self {
        GatedStore { inner, gate }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<G: Gate> ObjectStore for GatedStore<G> {
    async fn put(&self, key: &ObjectKey, body: Bytes, user: &UserMetadata) -> Result<Put, StoreError> {
        let _pass = self.gate.pass("put", key.as_str()).await?;
        self.inner.put(key, body, user).await
    }

    async fn put_large(&self, key: &ObjectKey, body: &LargeBody, user: &UserMetadata) -> Result<Put, StoreError> {
        let _pass = self.gate.pass("put", key.as_str()).await?;
        self.inner.put_large(key, body, user).await
    }

    async fn put_in_parts(&self, key: &ObjectKey, body: Bytes) -> Result<Option<Put>, StoreError> {
        let _pass = self.gate.pass("put", key.as_str()).await?;
        self.inner.put_in_parts(key, body).await
    }

    async fn get(&self, key: &ObjectKey, offset: u64, same_as: Option<&str>) -> Result<Get, StoreError> {
        let _pass = self.gate.pass("get", key.as_str()).await?;
        self.inner.get(key, offset, same_as).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<Head, StoreError> {
        let _pass = self.gate.pass("head", key.as_str()).await?;
        self.inner.head(key).await
    }

    async fn list(
        &self,
        prefix: &KeyPrefix,
        from: Option<&Continuation>,
        limit: usize,
    ) -> Result<ListPage, StoreError> {
        let _pass = self.gate.pass("list", prefix.as_str()).await?;
        self.inner.list(prefix, from, limit).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let _pass = self.gate.pass("delete", key.as_str()).await?;
        self.inner.delete(key).await
    }

    async fn unfinished(&self, prefix: &KeyPrefix) -> Result<Vec<Unfinished>, StoreError> {
        let _pass = self.gate.pass("unfinished", prefix.as_str()).await?;
        self.inner.unfinished(prefix).await
    }

    async fn abandon(&self, unfinished: &Unfinished) -> Result<(), StoreError> {
        let _pass = self.gate.pass("abandon", &unfinished.name).await?;
        self.inner.abandon(unfinished).await
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn conditional_writes(&self) -> bool {
        self.inner.conditional_writes()
    }

    async fn refuses_damage(&self, key: &ObjectKey) -> Result<Damage, StoreError> {
        let _pass = self.gate.pass("probe", key.as_str()).await?;
        self.inner.refuses_damage(key).await
    }
}
