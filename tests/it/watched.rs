//! A store in memory that asks a test before each request: what somebody else does meanwhile, what fails, what has to wait.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use pgark::storage::memory::MemoryStore;
use pgark::storage::object_store::{Continuation, Damage, Unfinished};
use pgark::storage::{
    Get, Head, KeyPrefix, ListPage, ObjectKey, ObjectStore, Put, StoreError, StoreErrorKind, UserMetadata,
};

/// Asked before each request, by its kind and its key or prefix.
#[async_trait]
pub trait Before: Send + Sync {
    /// May wait, do something, or make the request fail.
    async fn before(&self, what: &'static str, name: &str) -> Result<(), StoreErrorKind>;
}

#[async_trait]
impl<F: Fn(&str, &str) -> Result<(), StoreErrorKind> + Send + Sync> Before for F {
    async fn before(&self, what: &'static str, name: &str) -> Result<(), StoreErrorKind> {
        self(what, name)
    }
}

/// The store.
pub struct Watched<B> {
    pub inner: Arc<MemoryStore>,
    pub before: B,
}

impl<B> std::fmt::Debug for Watched<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watched")
    }
}

impl<B: Before> Watched<B> {
    async fn ask(&self, what: &'static str, name: &str) -> Result<(), StoreError> {
        self.before.before(what, name).await.map_err(|kind| {
            let error = StoreError::new(kind, format!("{what} `{name}`: refused by the test"));
            match kind {
                StoreErrorKind::LocalIo => error.with_source(std::io::Error::from_raw_os_error(5)),
                _ => error,
            }
        })
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<B: Before> ObjectStore for Watched<B> {
    async fn put(&self, key: &ObjectKey, body: Bytes, user: &UserMetadata) -> Result<Put, StoreError> {
        self.ask("put", key.as_str()).await?;
        self.inner.put(key, body, user).await
    }

    async fn put_in_parts(&self, key: &ObjectKey, body: Bytes) -> Result<Option<Put>, StoreError> {
        self.ask("put", key.as_str()).await?;
        self.inner.put_in_parts(key, body).await
    }

    async fn get(&self, key: &ObjectKey, offset: u64, same_as: Option<&str>) -> Result<Get, StoreError> {
        self.ask("get", key.as_str()).await?;
        self.inner.get(key, offset, same_as).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<Head, StoreError> {
        self.ask("head", key.as_str()).await?;
        self.inner.head(key).await
    }

    async fn list(
        &self,
        prefix: &KeyPrefix,
        from: Option<&Continuation>,
        limit: usize,
    ) -> Result<ListPage, StoreError> {
        self.ask("list", prefix.as_str()).await?;
        self.inner.list(prefix, from, limit).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.ask("delete", key.as_str()).await?;
        self.inner.delete(key).await
    }

    async fn unfinished(&self, prefix: &KeyPrefix) -> Result<Vec<Unfinished>, StoreError> {
        self.ask("unfinished", prefix.as_str()).await?;
        self.inner.unfinished(prefix).await
    }

    async fn abandon(&self, unfinished: &Unfinished) -> Result<(), StoreError> {
        self.ask("abandon", &unfinished.name).await?;
        self.inner.abandon(unfinished).await
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn conditional_writes(&self) -> bool {
        self.inner.conditional_writes()
    }

    async fn refuses_damage(&self, key: &ObjectKey) -> Result<Damage, StoreError> {
        self.inner.refuses_damage(key).await
    }
}
