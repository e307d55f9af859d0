//! Large objects in parts: a broken connection costs one part, not all.
//!
//! The object appears when CompleteMultipartUpload says so, create-only like a single PUT. That call may answer
//! 200 and put an error into the body: only a result with an ETag counts.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::object_store::Unfinished;
use super::s3::S3Store;
use super::s3_error::{answer, classify};
use super::{KeyPrefix, LargeBody, ObjectKey, Put, StoreError, StoreErrorKind, UserMetadata};
use crate::stream::Sha256;

/// Objects above this many bytes are sent in parts.
pub const THRESHOLD: usize = 32 << 20;
const PART: usize = 16 << 20;
const PARALLEL: usize = 2;
/// Of bytes that shall not be in memory: S3 takes no smaller ones.
pub const LARGE_PART: u64 = 5 << 20;

/// Where the bytes of an object are.
enum Source<'a> {
    Memory(Bytes),
    File(&'a LargeBody),
}

impl Source<'_> {
    fn length(&self) -> u64 {
        match self {
            Source::Memory(body) => body.len() as u64,
            Source::File(body) => body.length(),
        }
    }

    /// Bytes in a part. A store takes 10 000 parts.
    fn part(&self) -> u64 {
        match self {
            Source::Memory(_) => PART as u64,
            Source::File(body) => LARGE_PART.max(body.length().div_ceil(10_000)),
        }
    }

    async fn read(&self, from: u64) -> Result<Bytes, StoreError> {
        match self {
            Source::Memory(body) => Ok(body.slice(from as usize..body.len().min(from as usize + PART))),
            Source::File(body) => body.part(from, self.part()).await,
        }
    }
}

/// Creates an object from its parts.
pub async fn put(store: &S3Store, key: &ObjectKey, body: Bytes, user: &UserMetadata) -> Result<Put, StoreError> {
    create(store, key, &Source::Memory(body), user).await
}

/// Creates an object from parts that are read when their turn comes.
pub async fn put_large(
    store: &S3Store,
    key: &ObjectKey,
    body: &LargeBody,
    user: &UserMetadata,
) -> Result<Put, StoreError> {
    create(store, key, &Source::File(body), user).await
}

async fn create(store: &S3Store, key: &ObjectKey, body: &Source<'_>, user: &UserMetadata) -> Result<Put, StoreError> {
    let upload = begin(store, key, user).await?;
    let outcome = send(store, key, &upload, body).await;
    if !matches!(outcome, Ok(Put::Created)) {
        abort(store, key, &upload).await;
    }
    outcome
}

async fn begin(store: &S3Store, key: &ObjectKey, user: &UserMetadata) -> Result<String, StoreError> {
    let (sse, kms_key) = store.sse();
    let what = store.at("beginning to write", key);
    let request = store
        .client
        .create_multipart_upload()
        .bucket(&store.settings.bucket)
        .key(store.full_key(key))
        .set_metadata(Some(user.clone().into_iter().collect()))
        .checksum_algorithm(ChecksumAlgorithm::Sha256)
        .set_storage_class(store.storage_class())
        .set_server_side_encryption(sse)
        .set_ssekms_key_id(kms_key);
    let output = request.send().await.map_err(|error| classify(&what, error))?;
    let missing = || StoreError::new(StoreErrorKind::Unexpected, format!("{what}: the answer names no upload"));
    output.upload_id.ok_or_else(missing)
}

async fn send(store: &S3Store, key: &ObjectKey, upload: &str, body: &Source<'_>) -> Result<Put, StoreError> {
    let length = body.length();
    let mut parts = Vec::new();
    for (index, from) in (0..length).step_by(body.part() as usize).enumerate() {
        parts.push(async move { send_part(store, key, upload, index as i32 + 1, body.read(from).await?).await });
    }
    let parts: Vec<CompletedPart> = stream::iter(parts).buffered(PARALLEL).try_collect().await?;
    let request = store
        .client
        .complete_multipart_upload()
        .bucket(&store.settings.bucket)
        .key(store.full_key(key))
        .upload_id(upload)
        .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build())
        .set_if_none_match(store.by_store().then(|| "*".to_owned()))
        .customize()
        .config_override(store.settings.timeouts.for_body(length));
    let what = store.at("completing", key);
    match request.send().await {
        Ok(output) if output.e_tag().is_some() => Ok(Put::Created),
        Ok(_) => Err(StoreError::new(
            StoreErrorKind::Unexpected,
            format!("{what}: the answer says success but names no ETag"),
        )),
        Err(error) if answer(&error).is_some_and(|a| a.status == 412) => Ok(Put::Exists),
        Err(error) => match answer(&error).and_then(|a| a.code) {
            // An earlier try of this very request may have completed the upload before its answer was lost.
            Some("NoSuchUpload") => Err(StoreError::new(
                StoreErrorKind::Unavailable,
                format!("{what}: the upload is gone; it may have been completed"),
            )),
            _ => Err(store.put_error(classify(&what, error))),
        },
    }
}

async fn send_part(
    store: &S3Store,
    key: &ObjectKey,
    upload: &str,
    number: i32,
    part: Bytes,
) -> Result<CompletedPart, StoreError> {
    let checksum = BASE64.encode(Sha256::of(&part).0);
    let length = part.len() as u64;
    let request = store
        .client
        .upload_part()
        .bucket(&store.settings.bucket)
        .key(store.full_key(key))
        .upload_id(upload)
        .part_number(number)
        .checksum_sha256(&checksum)
        .body(ByteStream::from(part))
        .customize()
        .config_override(store.settings.timeouts.for_body(length));
    let request = if store.settings.sign_payload { request } else { request.disable_payload_signing() };
    let what = store.at(&format!("writing part {number} of"), key);
    let output = request.send().await.map_err(|error| classify(&what, error))?;
    let missing = || StoreError::new(StoreErrorKind::Unexpected, format!("{what}: the answer names no ETag"));
    let etag = output.e_tag.ok_or_else(missing)?;
    Ok(CompletedPart::builder().part_number(number).e_tag(etag).checksum_sha256(checksum).build())
}

/// Frees the parts. A failure leaves them to the bucket's life-cycle rule or to `expire`.
async fn abort(store: &S3Store, key: &ObjectKey, upload: &str) {
    let request =
        store.client.abort_multipart_upload().bucket(&store.settings.bucket).key(store.full_key(key)).upload_id(upload);
    if let Err(error) = request.send().await {
        tracing::debug!("{}", classify(&store.at("aborting the upload of", key), error));
    }
}

/// Uploads below a prefix that were neither completed nor aborted.
pub async fn unfinished(store: &S3Store, prefix: &KeyPrefix) -> Result<Vec<Unfinished>, StoreError> {
    let own = store.settings.prefix.as_str();
    let what = format!("listing uploads below `{own}{prefix}` in {}", store.store_name());
    let contradiction = |why: &str| StoreError::new(StoreErrorKind::Unexpected, format!("{what}: {why}"));
    let mut found = Vec::new();
    let mut from: Option<(String, Option<String>)> = None;
    loop {
        let (key, upload) = from.clone().unzip();
        let request = store
            .client
            .list_multipart_uploads()
            .bucket(&store.settings.bucket)
            .prefix(format!("{own}{prefix}"))
            .set_key_marker(key)
            .set_upload_id_marker(upload.flatten());
        let output = request.send().await.map_err(|error| classify(&what, error))?;
        for upload in output.uploads() {
            let below = |key: &str| key.starts_with(&format!("{own}{prefix}"));
            let (Some(key), Some(id)) = (upload.key().filter(|key| below(key)), upload.upload_id()) else {
                return Err(contradiction("an upload without its name"));
            };
            let begun = upload.initiated().and_then(|time| (*time).try_into().ok());
            found.push(Unfinished { name: key[own.len()..].to_owned(), begun, token: id.to_owned() });
        }
        if output.is_truncated() != Some(true) {
            return Ok(found);
        }
        let next = output.next_key_marker().map(|key| {
            let upload = output.next_upload_id_marker().filter(|id| !id.is_empty());
            (key.to_owned(), upload.map(str::to_owned))
        });
        if next.is_none() || next == from {
            return Err(contradiction("there is more, but the answer does not say where"));
        }
        from = next;
    }
}

/// Aborts an upload that [`unfinished`] found.
pub async fn abandon(store: &S3Store, unfinished: &Unfinished) -> Result<(), StoreError> {
    let key = format!("{}{}", store.settings.prefix.as_str(), unfinished.name);
    let what = format!("aborting the upload of `{key}` in {}", store.store_name());
    let request =
        store.client.abort_multipart_upload().bucket(&store.settings.bucket).key(key).upload_id(&unfinished.token);
    match request.send().await {
        Ok(_) => Ok(()),
        Err(error) if answer(&error).is_some_and(|a| a.code == Some("NoSuchUpload")) => Ok(()),
        Err(error) => Err(classify(&what, error)),
    }
}
