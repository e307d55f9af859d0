//! PutObject, GetObject and HeadObject: conditions, checksums, ranges, and what a missing key looks like.
//!
//! A condition is judged together with the write, under the lock of the store.

use s3s::dto::*;
use s3s::{Body, S3Error, S3Result, TrailingHeaders, s3_error};

use super::bucket::Backend;
use super::checks::{self, claimed, hex};
use super::shared::lock;
use super::store::{Attributes, Stored};

/// Takes what a client says about an object out of an input of s3s.
macro_rules! given {
    ($input:expr) => {
        Attributes {
            metadata: $input.metadata.take().unwrap_or_default().into_iter().collect(),
            content_type: $input.content_type.take(),
            storage_class: $input.storage_class.take().map(|class| class.as_str().to_owned()),
            encryption: $input.server_side_encryption.take().map(|sse| sse.as_str().to_owned()),
            kms_key: $input.ssekms_key_id.take(),
        }
    };
}
pub(super) use given;

/// An output of s3s with all that is said of an object, but for its bytes.
macro_rules! described {
    ($output:ident, $object:expr, $checksum:expr) => {
        $output {
            accept_ranges: Some("bytes".to_owned()),
            e_tag: Some(ETag::Strong($object.etag)),
            last_modified: Some(Timestamp::from($object.modified)),
            checksum_crc32: $checksum.checksum_crc32,
            checksum_crc32c: $checksum.checksum_crc32c,
            checksum_crc64nvme: $checksum.checksum_crc64nvme,
            checksum_sha1: $checksum.checksum_sha1,
            checksum_sha256: $checksum.checksum_sha256,
            checksum_type: $checksum.checksum_type,
            content_type: $object.attributes.content_type,
            metadata: Some($object.attributes.metadata.into_iter().collect()),
            storage_class: $object.attributes.storage_class.map(StorageClass::from),
            server_side_encryption: $object.attributes.encryption.map(ServerSideEncryption::from),
            ssekms_key_id: $object.attributes.kms_key,
            ..Default::default()
        }
    };
}

impl Backend {
    pub(super) async fn put(
        &self,
        mut input: PutObjectInput,
        trailers: Option<TrailingHeaders>,
    ) -> S3Result<PutObjectOutput> {
        let mut checksum = claimed!(input);
        // The body is read whatever the answer, as a server that keeps the connection has to.
        let data = checks::read(input.body.take()).await?;
        self.check_bucket(&input.bucket)?;
        let create_only = self.create_only(input.if_none_match.as_ref(), input.if_match.as_ref())?;
        checks::add_trailers(&mut checksum, trailers.as_ref());
        let md5 = checks::verify(&data, &checksum, input.content_md5.as_deref())?;
        let attributes = self.attributes(given!(input));
        let stored = Stored {
            data,
            etag: hex(&md5),
            checksum: checksum.clone(),
            attributes: attributes.clone(),
            modified: self.0.now(),
        };
        let etag = stored.etag.clone();
        if !lock(&self.0.store).put(input.key, stored, create_only) {
            return Err(exists());
        }
        Ok(PutObjectOutput {
            e_tag: Some(ETag::Strong(etag)),
            checksum_crc32: checksum.checksum_crc32,
            checksum_crc32c: checksum.checksum_crc32c,
            checksum_crc64nvme: checksum.checksum_crc64nvme,
            checksum_sha1: checksum.checksum_sha1,
            checksum_sha256: checksum.checksum_sha256,
            server_side_encryption: attributes.encryption.map(ServerSideEncryption::from),
            ssekms_key_id: attributes.kms_key,
            ..Default::default()
        })
    }

    pub(super) fn get(&self, input: GetObjectInput) -> S3Result<GetObjectOutput> {
        let object = self.find(&input.bucket, &input.key, input.if_match.as_ref())?;
        let length = object.data.len();
        let (data, content_range) = match input.range {
            None => (object.data.clone(), None),
            Some(range) => {
                let unsatisfiable = |_| s3_error!(InvalidRange, "The requested range is not satisfiable");
                let bytes = range.check(length as u64).map_err(unsatisfiable)?;
                let shown = format!("bytes {}-{}/{length}", bytes.start, bytes.end - 1);
                let (from, to) = (index(bytes.start), index(bytes.end));
                (object.data.slice(from..to), Some(shown))
            }
        };
        // The checksum is that of the whole object: with a range it would not fit the body.
        let checksum = shown_checksum(&object, input.checksum_mode.as_ref(), content_range.is_some());
        Ok(GetObjectOutput {
            content_length: i64::try_from(data.len()).ok(),
            body: Some(StreamingBlob::from(Body::from(data))),
            content_range,
            ..described!(GetObjectOutput, object, checksum)
        })
    }

    pub(super) fn head(&self, input: HeadObjectInput) -> S3Result<HeadObjectOutput> {
        let object = self.find(&input.bucket, &input.key, input.if_match.as_ref())?;
        let checksum = shown_checksum(&object, input.checksum_mode.as_ref(), false);
        Ok(HeadObjectOutput {
            content_length: i64::try_from(object.data.len()).ok(),
            ..described!(HeadObjectOutput, object, checksum)
        })
    }

    /// The object, if the bucket and the key exist and the condition holds.
    fn find(&self, bucket: &str, key: &str, if_match: Option<&ETagCondition>) -> S3Result<Stored> {
        self.check_bucket(bucket)?;
        let Some(object) = lock(&self.0.store).objects.get(key).cloned() else {
            // Who may not list may not learn what is missing.
            return Err(if self.0.switches().deny_list {
                s3_error!(AccessDenied, "Access Denied")
            } else {
                s3_error!(NoSuchKey, "The specified key does not exist.")
            });
        };
        match if_match.and_then(ETagCondition::as_etag) {
            Some(wanted) if wanted.value() != object.etag => Err(exists()),
            _ => Ok(object),
        }
    }

    /// Whether a write must find no object under its key.
    pub(super) fn create_only(
        &self,
        if_none_match: Option<&ETagCondition>,
        if_match: Option<&ETagCondition>,
    ) -> S3Result<bool> {
        let switches = self.0.switches();
        let Some(condition) = if_none_match else {
            return match if_match {
                None => Ok(false),
                Some(_) => Err(s3_error!(NotImplemented, "the double does not judge If-Match on writes")),
            };
        };
        if switches.reject_conditions || !condition.is_any() {
            return Err(s3_error!(
                NotImplemented,
                "A header you provided implies functionality that is not implemented"
            ));
        }
        Ok(switches.honour_conditions)
    }

    /// What the store remembers of the attributes.
    pub(super) fn attributes(&self, mut given: Attributes) -> Attributes {
        if !self.0.switches().keep_metadata {
            given.metadata.clear();
        }
        given
    }
}

/// The condition of a request does not hold.
pub(super) fn exists() -> S3Error {
    s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold")
}

fn shown_checksum(object: &Stored, mode: Option<&ChecksumMode>, ranged: bool) -> Checksum {
    let asked = mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED);
    if asked && !ranged { object.checksum.clone() } else { Checksum::default() }
}

fn index(position: u64) -> usize {
    usize::try_from(position).expect("a position inside an object in memory")
}
