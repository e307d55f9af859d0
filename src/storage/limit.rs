//! A gate that caps how many requests are under way at once.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::gated::Gate;
use super::{StoreError, StoreErrorKind};

/// So many requests at once; others wait.
#[derive(Debug)]
pub struct Limit(Arc<Semaphore>);

impl Limit {
    /// At most this many, and at least one.
    pub fn of(requests: usize) -> Self {
        Limit(Arc::new(Semaphore::new(requests.max(1))))
    }
}

#[async_trait]
impl Gate for Limit {
    type Pass = OwnedSemaphorePermit;

    async fn pass(&self, _: &'static str, _: &str) -> Result<OwnedSemaphorePermit, StoreError> {
        let closed = |_| StoreError::new(StoreErrorKind::Unavailable, "the store was closed");
        Arc::clone(&self.0).acquire_owned().await.map_err(closed)
    }
}
