//! A gate that asks a test before each request: what somebody else does meanwhile, what fails, what has to wait.

use std::sync::Arc;

use async_trait::async_trait;
use pgark::storage::gated::{Gate, GatedStore};
use pgark::storage::memory::MemoryStore;
use pgark::storage::{ObjectStore, StoreError, StoreErrorKind};

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

/// A store in memory behind such a gate.
pub fn watched<B: Before + 'static>(inner: Arc<MemoryStore>, before: B) -> Arc<dyn ObjectStore> {
    Arc::new(GatedStore::new(inner, Watched(before)))
}

struct Watched<B>(B);

impl<B> std::fmt::Debug for Watched<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watched")
    }
}

#[async_trait]
impl<B: Before> Gate for Watched<B> {
    type Pass = ();

    async fn pass(&self, what: &'static str, name: &str) -> Result<(), StoreError> {
        self.0.before(what, name).await.map_err(|kind| {
            let error = StoreError::new(kind, format!("{what} `{name}`: refused by the test"));
            match kind {
                StoreErrorKind::LocalIo => error.with_source(std::io::Error::from_raw_os_error(5)),
                _ => error,
            }
        })
    }
}
