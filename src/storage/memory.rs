//! A store in memory: the reference for the contract, and what unit tests use.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::object_store::{Continuation, Damage, Unfinished};
use super::{
    Get, Head, KeyPrefix, LargeBody, ListPage, Listed, Object, ObjectKey, ObjectMeta, ObjectStore, Put, StoreError,
    StoreErrorKind, UserMetadata,
};

/// Objects in a map; gone with the process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: Mutex<BTreeMap<ObjectKey, Stored>>,
}

#[derive(Debug)]
struct Stored {
    bytes: Bytes,
    meta: ObjectMeta,
}

impl MemoryStore {
    fn objects(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, Stored>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an object look as if it had been written then.
    pub fn date(&self, key: &ObjectKey, modified: SystemTime) {
        if let Some(stored) = self.objects().get_mut(key) {
            stored.meta.modified = Some(modified);
        }
    }

    /// Replaces the bytes of an object behind everybody's back, as bit rot does.
    pub fn corrupt(&self, key: &ObjectKey, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(stored) = self.objects().get_mut(key) {
            let mut bytes = stored.bytes.to_vec();
            change(&mut bytes);
            stored.meta.size = bytes.len() as u64;
            stored.bytes = bytes.into();
        }
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    async fn put(&self, key: &ObjectKey, body: Bytes, user: &UserMetadata) -> Result<Put, StoreError> {
        let mut objects = self.objects();
        if objects.contains_key(key) {
            return Ok(Put::Exists);
        }
        let meta = ObjectMeta {
            size: body.len() as u64,
            etag: Some(format!("{:08x}-{}", crc32c::crc32c(&body), body.len())),
            modified: Some(SystemTime::now()),
            user: user.clone(),
        };
        objects.insert(key.clone(), Stored { bytes: body, meta });
        Ok(Put::Created)
    }

    async fn get(&self, key: &ObjectKey, offset: u64, same_as: Option<&str>) -> Result<Get, StoreError> {
        let objects = self.objects();
        let Some(stored) = objects.get(key) else {
            return Ok(Get::Missing);
        };
        if same_as.is_some() && same_as != stored.meta.etag.as_deref() {
            return Err(StoreError::new(StoreErrorKind::Changed, format!("`{key}` is another object now")));
        }
        let bytes = stored.bytes.slice((offset as usize).min(stored.bytes.len())..);
        let body = stream::iter([Ok(bytes)]).boxed();
        Ok(Get::Found(Object { meta: stored.meta.clone(), body }))
    }

    async fn head(&self, key: &ObjectKey) -> Result<Head, StoreError> {
        Ok(self.objects().get(key).map_or(Head::NotSeen, |stored| Head::Found(stored.meta.clone())))
    }

    async fn list(
        &self,
        prefix: &KeyPrefix,
        from: Option<&Continuation>,
        limit: usize,
    ) -> Result<ListPage, StoreError> {
        let objects = self.objects();
        let start = match from {
            Some(Continuation::After(key) | Continuation::Token(key)) => key.as_str(),
            None => "",
        };
        let mut matching = objects
            .iter()
            .filter(|(key, _)| key.as_str() > start && key.as_str().starts_with(prefix.as_str()))
            .map(|(key, stored)| Listed {
                name: key.as_str().to_owned(),
                size: stored.meta.size,
                modified: stored.meta.modified,
            });
        let page: Vec<Listed> = matching.by_ref().take(limit).collect();
        let more = matching.next().and(page.last()).map(|last| Continuation::After(last.name.clone()));
        Ok(ListPage { objects: page, more })
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.objects().remove(key);
        Ok(())
    }

    async fn unfinished(&self, _prefix: &KeyPrefix) -> Result<Vec<Unfinished>, StoreError> {
        Ok(Vec::new())
    }

    async fn abandon(&self, _unfinished: &Unfinished) -> Result<(), StoreError> {
        Ok(())
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }

    async fn refuses_damage(&self, _key: &ObjectKey) -> Result<Damage, StoreError> {
        Ok(Damage::NoNetwork)
    }

    async fn put_large(&self, key: &ObjectKey, body: &LargeBody, user: &UserMetadata) -> Result<Put, StoreError> {
        self.put(key, body.part(0, body.length()).await?, user).await
    }

    async fn put_in_parts(&self, _key: &ObjectKey, _body: Bytes) -> Result<Option<Put>, StoreError> {
        Ok(None)
    }
}
