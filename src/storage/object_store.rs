//! The contract that every store keeps.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::{KeyPrefix, LargeBody, ObjectKey, StoreError, StoreErrorKind};

/// Small text pairs kept with an object. A hint: a store may lose them, so nothing relies on them alone.
pub type UserMetadata = BTreeMap<String, String>;

/// What a store knows about an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Length in bytes.
    pub size: u64,
    /// The store's tag for this content; equal tags mean equal bytes. Absent where a store has none.
    pub etag: Option<String>,
    /// When the object was written, by the store's clock.
    pub modified: Option<SystemTime>,
    /// What was given to `put`, if the store kept it.
    pub user: UserMetadata,
}

/// The outcome of a create-only write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// This call created the object, and it is durable.
    Created,
    /// An object of this name was there before, durable and untouched. After a lost reply it may be
    /// the one that this very call wrote: compare before calling it a conflict.
    Exists,
}

/// An object that was found.
pub struct Object {
    /// What the store says about it.
    pub meta: ObjectMeta,
    /// Its bytes from the offset asked for, in pieces.
    pub body: BoxStream<'static, Result<Bytes, StoreError>>,
}

impl Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object").field("meta", &self.meta).finish_non_exhaustive()
    }
}

/// The outcome of a read.
#[derive(Debug)]
pub enum Get {
    /// The object is there.
    Found(Object),
    /// The store itself said that there is no such object: on S3, `NoSuchKey` in answer to a signed request.
    Missing,
}

/// The outcome of asking about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// The object is there.
    Found(ObjectMeta),
    /// No such object, as far as an answer without a body can tell: no proof of absence.
    NotSeen,
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name, also one that is no [`ObjectKey`]: what stands in a store by accident must not be passed over.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: Option<SystemTime>,
}

impl Listed {
    /// When it was written, by the store's clock.
    pub fn written(&self) -> Option<jiff::Timestamp> {
        self.modified.and_then(|time| time.try_into().ok())
    }
}

/// A page of a listing, in the order of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    /// At most as many objects as were asked for.
    pub objects: Vec<Listed>,
    /// Whether there is more behind the last key. May be true with an empty page.
    pub more: Option<Continuation>,
}

/// Where the next page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Continuation {
    /// Behind this key.
    After(String),
    /// What the store wants to be told.
    Token(String),
}

/// What became of an upload whose bytes do not fit its checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Bytes do not cross a network.
    NoNetwork,
    /// It was refused for its checksum.
    Refused,
    /// It was taken.
    Accepted,
    /// It was refused for another reason: the answer's code.
    Unclear(String),
}

/// Something that was begun and never became an object: parts of an upload, a file without its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The object it would have become, or where it lies: for messages.
    pub name: String,
    /// When it was begun or last written, by the store's clock.
    pub begun: Option<SystemTime>,
    /// What the store calls it.
    pub token: String,
}

/// A place that keeps bytes by key.
///
/// * Objects are created and deleted, never changed: `put` is create-only and atomic. Of several
///   concurrent calls for one key exactly one sees [`Put::Created`]; an object is seen whole or not at all.
/// * [`Put::Created`] and [`Put::Exists`] are said of durable objects only.
/// * [`Get::Missing`] is proof of absence at that moment. Everything that only looks like absence is an error.
/// * A read after a successful write sees it; so does a listing.
/// * Listings are complete, in the byte order of keys, and begin where they are told to. A page that contradicts itself is an error.
/// * Single requests are retried inside within the settings' bounds; whole operations are retried by callers.
///   Every wait has a deadline.
#[async_trait]
pub trait ObjectStore: Send + Sync + Debug {
    /// Creates an object.
    async fn put(&self, key: &ObjectKey, body: Bytes, user: &UserMetadata) -> Result<Put, StoreError>;

    /// As `put`, of bytes that are too many for memory: a few of them are read at a time.
    async fn put_large(&self, key: &ObjectKey, body: &LargeBody, user: &UserMetadata) -> Result<Put, StoreError>;

    /// Opens an object for reading from `offset`, which must not be behind its end. With `same_as`, fails with
    /// [`StoreErrorKind::Changed`] if the object's tag is another.
    async fn get(&self, key: &ObjectKey, offset: u64, same_as: Option<&str>) -> Result<Get, StoreError>;

    /// What is known about an object.
    async fn head(&self, key: &ObjectKey) -> Result<Head, StoreError>;

    /// At most `limit` objects below `prefix`, from the first or from where the last page ended.
    async fn list(&self, prefix: &KeyPrefix, from: Option<&Continuation>, limit: usize)
    -> Result<ListPage, StoreError>;

    /// Deletes an object; one that is not there is no error.
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError>;

    /// What was begun below `prefix` and is no object, be it at work or left by a process that was killed.
    async fn unfinished(&self, prefix: &KeyPrefix) -> Result<Vec<Unfinished>, StoreError>;

    /// Ends it and frees what it holds; one that is not there is no error.
    async fn abandon(&self, unfinished: &Unfinished) -> Result<(), StoreError>;

    /// The store as an operator would write it, for messages: `s3://bucket/prefix`. No secrets.
    fn describe(&self) -> String;

    /// One of the answers that `check` gives: does `put` rest on the store's own conditional writes?
    fn conditional_writes(&self) -> bool {
        true
    }

    /// Another: is an upload refused when its bytes do not fit its checksum? May leave an object under `key`.
    async fn refuses_damage(&self, key: &ObjectKey) -> Result<Damage, StoreError>;

    /// Another: `put`, in the way that large objects go. `None` where all go the same way.
    async fn put_in_parts(&self, key: &ObjectKey, body: Bytes) -> Result<Option<Put>, StoreError>;
}

/// Comforts on top of [`ObjectStore`].
pub trait ObjectStoreExt: ObjectStore {
    /// Reads a small object whole; one of more than `limit` bytes is an error.
    fn read_small(
        &self,
        key: &ObjectKey,
        limit: usize,
    ) -> impl Future<Output = Result<Option<Bytes>, StoreError>> + Send {
        async move {
            match self.get(key, 0, None).await? {
                Get::Missing => Ok(None),
                Get::Found(object) if object.meta.size > limit as u64 => Err(self.too_large(key, limit)),
                Get::Found(object) => {
                    let whole = object.meta.size;
                    let bytes = self.read_start(key, object, limit).await?;
                    if bytes.len() as u64 != whole {
                        let got = bytes.len();
                        let message = format!("`{key}` ended after {got} of {whole} bytes");
                        return Err(StoreError::new(StoreErrorKind::Unexpected, message));
                    }
                    Ok(Some(bytes))
                }
            }
        }
    }

    /// Reads the first `wanted` bytes of an opened object, or all where it is shorter.
    fn read_start(
        &self,
        key: &ObjectKey,
        mut object: Object,
        wanted: usize,
    ) -> impl Future<Output = Result<Bytes, StoreError>> + Send {
        async move {
            let mut bytes = Vec::new();
            while bytes.len() < wanted {
                let next = tokio::time::timeout(SMALL_READ_STALL, object.body.next()).await;
                match next.map_err(|_| stalled(key))? {
                    Some(piece) => bytes.extend_from_slice(&piece?),
                    None => break,
                }
            }
            bytes.truncate(wanted);
            Ok(Bytes::from(bytes))
        }
    }

    /// All objects below `prefix` behind `after`, page by page, until `visit` says that it has seen enough.
    fn visit_after(
        &self,
        prefix: &KeyPrefix,
        after: Option<&str>,
        page: usize,
        mut visit: impl FnMut(&Listed) -> Visit + Send,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        async move {
            let mut from = after.map(|after| Continuation::After(after.to_owned()));
            loop {
                let listing = self.list(prefix, from.as_ref(), page).await?;
                for listed in &listing.objects {
                    if visit(listed) == Visit::Enough {
                        return Ok(());
                    }
                }
                match listing.more {
                    Some(next) if from.as_ref() == Some(&next) => {
                        let message = format!("the listing of `{prefix}` goes round in a circle");
                        return Err(StoreError::new(StoreErrorKind::Unexpected, message));
                    }
                    Some(next) => from = Some(next),
                    None => return Ok(()),
                }
            }
        }
    }

    #[doc(hidden)]
    fn too_large(&self, key: &ObjectKey, limit: usize) -> StoreError {
        StoreError::new(StoreErrorKind::Unexpected, format!("`{key}` is larger than the {limit} bytes it may have"))
    }
}

impl<S: ObjectStore + ?Sized> ObjectStoreExt for S {}

/// Whether a listing goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visit {
    /// Show me the next.
    More,
    /// I know what I wanted to know.
    Enough,
}

/// How long one piece of a small object may take.
const SMALL_READ_STALL: std::time::Duration = std::time::Duration::from_secs(10);

fn stalled(key: &ObjectKey) -> StoreError {
    let waited = SMALL_READ_STALL.as_secs();
    StoreError::new(StoreErrorKind::Unavailable, format!("reading `{key}`: nothing came for {waited} s"))
}
