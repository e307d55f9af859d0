//! Reading a stored object to its end, over as many connections as it takes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::storage::{Get, ObjectKey, ObjectStore, StoreError, StoreErrorKind};
use crate::stream::RangeSource;

/// One stored object as a source that can be opened anywhere.
pub(super) struct StoredObject {
    store: Arc<dyn ObjectStore>,
    key: ObjectKey,
    etag: Option<String>,
}

impl StoredObject {
    /// The object that was opened under this key with this tag.
    pub(super) fn new(store: Arc<dyn ObjectStore>, key: ObjectKey, etag: Option<String>) -> Self {
        StoredObject { store, key, etag }
    }
}

#[async_trait]
impl RangeSource for StoredObject {
    type Error = StoreError;

    async fn open(&mut self, offset: u64) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError> {
        match self.store.get(&self.key, offset, self.etag.as_deref()).await? {
            Get::Found(object) => Ok(object.body),
            Get::Missing => {
                Err(StoreError::new(StoreErrorKind::Changed, format!("`{}` vanished while it was read", self.key)))
            }
        }
    }

    fn is_temporary(&self, error: &StoreError) -> bool {
        error.is_temporary()
    }

    fn stalled(&self, offset: u64, waited: Duration) -> StoreError {
        let message = format!("`{}`: next to nothing came for {} s at byte {offset}", self.key, waited.as_secs());
        StoreError::new(StoreErrorKind::Unavailable, message)
    }

    fn ended_early(&self, offset: u64, total: u64) -> StoreError {
        let message = format!("`{}`: the connection ended after {offset} of {total} bytes", self.key);
        StoreError::new(StoreErrorKind::Unavailable, message)
    }
}
