//! The operations that s3s dispatches to: those on the bucket are answered here, those on objects and uploads are passed
//! to `objects.rs` and `multipart.rs`.

use std::sync::Arc;

use async_trait::async_trait;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::checks::hex;
use super::shared::{Shared, lock};
use super::store::{Listed, Listing, Stored};

/// S3 lists at most this many keys at once.
const PAGE: usize = 1000;

/// The store as s3s sees it.
pub(super) struct Backend(pub(super) Arc<Shared>);

impl Backend {
    /// Refuses other buckets, and the right one while it is removed.
    pub(super) fn check_bucket(&self, name: &str) -> S3Result<()> {
        if name == self.0.bucket && self.0.switches().bucket_present {
            return Ok(());
        }
        Err(s3_error!(NoSuchBucket, "The specified bucket does not exist"))
    }

    fn list(&self, input: ListObjectsV2Input) -> S3Result<ListObjectsV2Output> {
        self.check_bucket(&input.bucket)?;
        let limit = match input.max_keys {
            None => PAGE,
            Some(asked) => usize::try_from(asked)
                .map_err(|_| {
                    s3_error!(InvalidArgument, "Argument max-keys must be an integer between 0 and 2147483647")
                })?
                .min(PAGE),
        };
        let resumed = input.continuation_token.as_deref().map(key_of_token).transpose()?;
        let wanted = Listing {
            prefix: input.prefix.as_deref().unwrap_or_default(),
            delimiter: input.delimiter.as_deref().unwrap_or_default(),
            after: resumed.as_deref().or(input.start_after.as_deref()).unwrap_or_default(),
            resumed: resumed.is_some(),
            limit,
        };
        let store = lock(&self.0.store);
        let (lines, more) = store.list(&wanted);
        let more = more && limit > 0;
        let next = lines.last().filter(|_| more).map(|line| match line {
            Listed::Object(key, _) | Listed::Prefix(key) => hex(key.as_bytes()),
        });
        let (key_count, mut contents, mut common_prefixes) = (lines.len(), Vec::new(), Vec::new());
        for line in lines {
            match line {
                Listed::Prefix(prefix) => common_prefixes.push(CommonPrefix { prefix: Some(prefix.to_owned()) }),
                Listed::Object(key, stored) => contents.push(shown(key, stored)),
            }
        }
        drop(store);
        Ok(ListObjectsV2Output {
            name: Some(input.bucket),
            key_count: i32::try_from(key_count).ok(),
            max_keys: i32::try_from(limit).ok(),
            is_truncated: Some(more),
            next_continuation_token: next,
            continuation_token: input.continuation_token,
            prefix: input.prefix,
            delimiter: input.delimiter,
            start_after: input.start_after,
            contents: Some(contents),
            common_prefixes: Some(common_prefixes),
            ..Default::default()
        })
    }
}

/// An object as a listing shows it.
fn shown(key: &str, stored: &Stored) -> Object {
    let class = stored.attributes.storage_class.clone().unwrap_or_else(|| "STANDARD".to_owned());
    Object {
        key: Some(key.to_owned()),
        size: i64::try_from(stored.data.len()).ok(),
        e_tag: Some(ETag::Strong(stored.etag.clone())),
        last_modified: Some(Timestamp::from(stored.modified)),
        storage_class: Some(ObjectStorageClass::from(class)),
        ..Default::default()
    }
}

/// A continuation token is the last key of the page before, in hexadecimal: opaque enough to be caught when misused.
fn key_of_token(token: &str) -> S3Result<String> {
    let invalid = || s3_error!(InvalidArgument, "The continuation token provided is incorrect");
    let digits = |at: usize| token.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = (0..token.len()).step_by(2).map(digits).collect();
    String::from_utf8(bytes.ok_or_else(invalid)?).map_err(|_| invalid())
}

#[async_trait]
impl S3 for Backend {
    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.check_bucket(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.check_bucket(&req.input.bucket)?;
        // No constraint is how S3 says us-east-1.
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.list(req.input).map(S3Response::new)
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        self.put(req.input, req.trailing_headers).await.map(S3Response::new)
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.get(req.input).map(S3Response::new)
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.head(req.input).map(S3Response::new)
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.check_bucket(&req.input.bucket)?;
        lock(&self.0.store).objects.remove(&req.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.create(req.input).map(S3Response::new)
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        self.part(req.input, req.trailing_headers).await.map(S3Response::new)
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.complete(req.input).map(S3Response::new)
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.abort(req.input).map(S3Response::new)
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        self.uploads(req.input).map(S3Response::new)
    }
}
