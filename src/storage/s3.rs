//! S3 and stores that speak it.

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::put_object::{PutObjectError, PutObjectOutput};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ServerSideEncryption as Sse, StorageClass};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::object_store::{Continuation, Damage, Unfinished};
use super::s3_client::{ConditionalPut, S3Settings, ServerSideEncryption, connect};
use super::s3_error::{answer, classify};
use super::{
    Get, Head, KeyPrefix, LargeBody, ListPage, Listed, Object, ObjectKey, ObjectMeta, ObjectStore, Put, StoreError,
    StoreErrorKind, UserMetadata, s3_multipart,
};
use crate::stream::Sha256;

/// An S3 bucket, or a part of it.
pub struct S3Store {
    pub(super) client: Client,
    pub(super) settings: S3Settings,
}

impl std::fmt::Debug for S3Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Store").field("at", &self.describe()).finish_non_exhaustive()
    }
}

impl S3Store {
    /// A store with these settings. Nothing is asked of it yet.
    pub async fn new(settings: S3Settings) -> Result<Self, StoreError> {
        Ok(S3Store { client: connect(&settings).await?, settings })
    }

    pub(super) fn full_key(&self, key: &ObjectKey) -> String {
        format!("{}{key}", self.settings.prefix)
    }

    pub(super) fn at(&self, what: &str, key: &ObjectKey) -> String {
        format!("{what} `{}` in {}", self.full_key(key), self.store_name())
    }

    pub(super) fn store_name(&self) -> String {
        let bucket = &self.settings.bucket;
        match &self.settings.endpoint {
            Some(endpoint) => format!("bucket `{bucket}` at {endpoint}"),
            None => format!("bucket `{bucket}`"),
        }
    }

    pub(super) fn storage_class(&self) -> Option<StorageClass> {
        self.settings.storage_class.as_deref().map(StorageClass::from)
    }

    pub(super) fn sse(&self) -> (Option<Sse>, Option<String>) {
        match &self.settings.sse {
            ServerSideEncryption::BucketDefault => (None, None),
            ServerSideEncryption::S3 => (Some(Sse::Aes256), None),
            ServerSideEncryption::Kms(key) => (Some(Sse::AwsKms), key.clone()),
        }
    }

    pub(super) fn by_store(&self) -> bool {
        self.settings.conditional_put == ConditionalPut::ByStore
    }

    async fn put_single(&self, key: &ObjectKey, body: Bytes, user: &UserMetadata) -> Result<Put, StoreError> {
        let checksum = Sha256::of(&body);
        match self.send(key, body, checksum, user).await {
            Ok(output) if output.e_tag().is_some() => Ok(Put::Created),
            // S3 always sends the tag of what it stored. Something else may have answered.
            Ok(_) => Err(StoreError::new(
                StoreErrorKind::Unexpected,
                format!("{}: the answer says success but names no ETag", self.at("writing", key)),
            )),
            Err(error) if answer(&error).is_some_and(|a| a.status == 412) => Ok(Put::Exists),
            Err(error) => Err(self.put_error(classify(&self.at("writing", key), error))),
        }
    }

    async fn send(
        &self,
        key: &ObjectKey,
        body: Bytes,
        checksum: Sha256,
        user: &UserMetadata,
    ) -> Result<PutObjectOutput, SdkError<PutObjectError, HttpResponse>> {
        let (sse, kms_key) = self.sse();
        let length = body.len() as u64;
        let request = self
            .client
            .put_object()
            .bucket(&self.settings.bucket)
            .key(self.full_key(key))
            .set_metadata(Some(user.clone().into_iter().collect()))
            .checksum_sha256(BASE64.encode(checksum.0))
            .set_storage_class(self.storage_class())
            .set_server_side_encryption(sse)
            .set_ssekms_key_id(kms_key)
            .set_if_none_match(self.by_store().then(|| "*".to_owned()))
            .body(ByteStream::from(body))
            .customize()
            .config_override(self.settings.timeouts.for_body(length));
        let request = if self.settings.sign_payload { request } else { request.disable_payload_signing() };
        request.send().await
    }

    pub(super) fn put_error(&self, error: StoreError) -> StoreError {
        match error.kind {
            StoreErrorKind::Unsupported => error.with_hint(
                "the store knows no conditional writes (`If-None-Match`); if it has to be this one, set \
                 `conditional_put = \"head-then-put\"` under `[repo]`, and read docs/stores.md first",
            ),
            _ => error,
        }
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn put(&self, key: &ObjectKey, body: Bytes, user: &UserMetadata) -> Result<Put, StoreError> {
        if !self.by_store() && matches!(self.head(key).await?, Head::Found(_)) {
            return Ok(Put::Exists);
        }
        if body.len() > s3_multipart::THRESHOLD {
            return s3_multipart::put(self, key, body, user).await;
        }
        self.put_single(key, body, user).await
    }

    async fn put_large(&self, key: &ObjectKey, body: &LargeBody, user: &UserMetadata) -> Result<Put, StoreError> {
        if body.length() <= s3_multipart::LARGE_PART {
            return self.put(key, body.part(0, body.length()).await?, user).await;
        }
        if !self.by_store() && matches!(self.head(key).await?, Head::Found(_)) {
            return Ok(Put::Exists);
        }
        s3_multipart::put_large(self, key, body, user).await
    }

    async fn get(&self, key: &ObjectKey, offset: u64, same_as: Option<&str>) -> Result<Get, StoreError> {
        let request = self
            .client
            .get_object()
            .bucket(&self.settings.bucket)
            .key(self.full_key(key))
            .set_range((offset > 0).then(|| format!("bytes={offset}-")))
            .set_if_match(same_as.map(str::to_owned));
        let output = match request.send().await {
            Ok(output) => output,
            Err(error) => {
                if answer(&error).is_some_and(|a| a.status == 404 && a.code == Some("NoSuchKey")) {
                    return Ok(Get::Missing);
                }
                return Err(classify(&self.at("reading", key), error));
            }
        };
        let length = output.content_length().and_then(|length| u64::try_from(length).ok());
        // Asked for a part, a store that sends the whole (200 instead of 206) has no Content-Range.
        let (Some(length), true) = (length, offset == 0 || output.content_range().is_some()) else {
            let message = format!("{}: the answer names no length or range", self.at("reading", key));
            return Err(StoreError::new(StoreErrorKind::Unexpected, message));
        };
        let meta = ObjectMeta {
            size: offset + length,
            etag: output.e_tag.clone(),
            modified: output.last_modified.and_then(|time| time.try_into().ok()),
            user: output.metadata.clone().unwrap_or_default().into_iter().collect(),
        };
        let what = self.at("reading", key);
        let body = stream::unfold((output.body, what), |(mut body, what)| async move {
            let piece = body.next().await?.map_err(|error| {
                StoreError::new(StoreErrorKind::Unavailable, format!("{what}: the connection broke: {error}"))
            });
            Some((piece, (body, what)))
        });
        Ok(Get::Found(Object { meta, body: body.boxed() }))
    }

    async fn head(&self, key: &ObjectKey) -> Result<Head, StoreError> {
        let request = self.client.head_object().bucket(&self.settings.bucket).key(self.full_key(key));
        match request.send().await {
            Ok(output) => Ok(Head::Found(ObjectMeta {
                size: output.content_length().and_then(|length| u64::try_from(length).ok()).unwrap_or(0),
                etag: output.e_tag.clone(),
                modified: output.last_modified.and_then(|time| time.try_into().ok()),
                user: output.metadata.unwrap_or_default().into_iter().collect(),
            })),
            Err(error) if answer(&error).is_some_and(|a| a.status == 404) => Ok(Head::NotSeen),
            Err(error) => Err(classify(&self.at("looking at", key), error)),
        }
    }

    async fn list(
        &self,
        prefix: &KeyPrefix,
        from: Option<&Continuation>,
        limit: usize,
    ) -> Result<ListPage, StoreError> {
        let own = self.settings.prefix.as_str();
        let (after, token) = match from {
            Some(Continuation::After(key)) => (Some(format!("{own}{key}")), None),
            Some(Continuation::Token(token)) => (None, Some(token.clone())),
            None => (None, None),
        };
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.settings.bucket)
            .prefix(format!("{own}{prefix}"))
            .set_start_after(after)
            .set_continuation_token(token)
            .max_keys(limit.min(1000) as i32);
        let what = || format!("listing `{own}{prefix}` in {}", self.store_name());
        let output = request.send().await.map_err(|error| classify(&what(), error))?;
        // The bucket's name is in every listing: a page without it is not one of S3.
        if output.name().is_none_or(|name| name != self.settings.bucket) {
            let message = format!("{}: the answer is not a listing of this bucket", what());
            return Err(StoreError::new(StoreErrorKind::Unexpected, message));
        }
        let contradiction = |why: &str| {
            StoreError::new(StoreErrorKind::Unexpected, format!("{}: the answer contradicts itself: {why}", what()))
        };
        let mut objects = Vec::new();
        for object in output.contents() {
            // A name that is not below the prefix was damaged on the way: what it stands for would be overlooked.
            let below = |key: &str| key.starts_with(&format!("{own}{prefix}"));
            let (Some(key), Some(size)) = (object.key().filter(|key| below(key)), object.size()) else {
                return Err(contradiction("an object without its name or size"));
            };
            objects.push(Listed {
                name: key[own.len()..].to_owned(),
                size: u64::try_from(size).map_err(|_| contradiction("a negative size"))?,
                modified: object.last_modified().and_then(|time| (*time).try_into().ok()),
            });
        }
        if output.key_count().is_some_and(|count| usize::try_from(count) != Ok(objects.len())) {
            return Err(contradiction("another number of objects than it says"));
        }
        if let Some(Continuation::After(start)) = from
            && objects.iter().any(|listed| listed.name <= *start)
        {
            return Err(contradiction("it does not begin where it was told to"));
        }
        if !objects.is_sorted_by(|a, b| a.name < b.name) {
            return Err(contradiction("names out of order"));
        }
        let more = match (output.is_truncated(), output.next_continuation_token()) {
            (None, _) => return Err(contradiction("it does not say whether it is complete")),
            (Some(false), _) => None,
            (Some(true), Some(token)) => Some(Continuation::Token(token.to_owned())),
            (Some(true), None) => {
                let message = format!("{}: there is more, but the answer does not say where", what());
                return Err(StoreError::new(StoreErrorKind::Unexpected, message));
            }
        };
        Ok(ListPage { objects, more })
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let request = self.client.delete_object().bucket(&self.settings.bucket).key(self.full_key(key));
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) if answer(&error).is_some_and(|a| a.code == Some("NoSuchKey")) => Ok(()),
            Err(error) => Err(classify(&self.at("deleting", key), error)),
        }
    }

    async fn unfinished(&self, prefix: &KeyPrefix) -> Result<Vec<Unfinished>, StoreError> {
        s3_multipart::unfinished(self, prefix).await
    }

    async fn abandon(&self, unfinished: &Unfinished) -> Result<(), StoreError> {
        s3_multipart::abandon(self, unfinished).await
    }

    fn describe(&self) -> String {
        let prefix = self.settings.prefix.as_str().trim_end_matches('/');
        format!("s3://{}/{prefix}", self.settings.bucket)
    }

    fn conditional_writes(&self) -> bool {
        self.by_store()
    }

    async fn refuses_damage(&self, key: &ObjectKey) -> Result<Damage, StoreError> {
        // Like every other write but for the checksum: a store that does not take those for other reasons proves nothing.
        let checksum = Sha256::of(b"other bytes");
        match self.send(key, Bytes::from_static(b"these bytes"), checksum, &UserMetadata::new()).await {
            Ok(_) => Ok(Damage::Accepted),
            Err(error) => match answer(&error).map(|answer| answer.code) {
                Some(Some("BadDigest" | "InvalidDigest" | "XAmzContentChecksumMismatch")) => Ok(Damage::Refused),
                Some(Some(code)) => Ok(Damage::Unclear(code.to_owned())),
                _ => Err(classify(&self.at("writing with a wrong checksum", key), error)),
            },
        }
    }

    async fn put_in_parts(&self, key: &ObjectKey, body: Bytes) -> Result<Option<Put>, StoreError> {
        match self.by_store() {
            true => s3_multipart::put(self, key, body, &UserMetadata::new()).await.map(Some),
            // What is asked about, the condition, is not sent.
            false => Ok(None),
        }
    }
}
