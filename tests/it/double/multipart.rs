//! Multipart uploads. CompleteMultipartUpload judges the list of parts, the sizes and the condition, and writes, all
//! under one lock.

use s3s::dto::*;
use s3s::{S3Result, TrailingHeaders, s3_error};

use super::bucket::Backend;
use super::checks::{self, claimed, composite_sha256, hex};
use super::objects::{exists, given};
use super::shared::lock;
use super::store::{Attributes, Part, Store, Stored, Upload};

/// The smallest part that is not the last.
const MIN_PART: usize = 5 * 1024 * 1024;

impl Backend {
    pub(super) fn create(&self, mut input: CreateMultipartUploadInput) -> S3Result<CreateMultipartUploadOutput> {
        self.check_bucket(&input.bucket)?;
        let attributes = self.attributes(given!(input));
        let upload = Upload {
            key: input.key.clone(),
            attributes: attributes.clone(),
            parts: Default::default(),
            initiated: self.0.now(),
        };
        let upload_id = lock(&self.0.store).begin(upload);
        Ok(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(upload_id),
            checksum_algorithm: input.checksum_algorithm,
            checksum_type: input.checksum_type,
            server_side_encryption: attributes.encryption.map(ServerSideEncryption::from),
            ssekms_key_id: attributes.kms_key,
            ..Default::default()
        })
    }

    pub(super) async fn part(
        &self,
        mut input: UploadPartInput,
        trailers: Option<TrailingHeaders>,
    ) -> S3Result<UploadPartOutput> {
        let mut checksum = claimed!(input);
        let data = checks::read(input.body.take()).await?;
        self.check_bucket(&input.bucket)?;
        if !(1..=10_000).contains(&input.part_number) {
            return Err(s3_error!(InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive"));
        }
        checks::add_trailers(&mut checksum, trailers.as_ref());
        let md5 = checks::verify(&data, &checksum, input.content_md5.as_deref())?;
        let part = Part { data, md5, checksum: checksum.clone() };
        let mut store = lock(&self.0.store);
        let upload = find(&mut store, &input.upload_id, &input.key)?;
        upload.parts.insert(input.part_number, part);
        Ok(UploadPartOutput {
            e_tag: Some(ETag::Strong(hex(&md5))),
            checksum_crc32: checksum.checksum_crc32,
            checksum_crc32c: checksum.checksum_crc32c,
            checksum_crc64nvme: checksum.checksum_crc64nvme,
            checksum_sha1: checksum.checksum_sha1,
            checksum_sha256: checksum.checksum_sha256,
            ..Default::default()
        })
    }

    pub(super) fn complete(&self, input: CompleteMultipartUploadInput) -> S3Result<CompleteMultipartUploadOutput> {
        self.check_bucket(&input.bucket)?;
        let create_only = self.create_only(input.if_none_match.as_ref(), input.if_match.as_ref())?
            && !self.0.switches().complete_ignores_conditions;
        let listed = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let modified = self.0.now();
        let mut store = lock(&self.0.store);
        let upload = find(&mut store, &input.upload_id, &input.key)?;
        let parts = chosen(upload, &listed)?;
        let stored = joined(&parts, upload.attributes.clone(), modified);
        let (etag, checksum, attributes) = (stored.etag.clone(), stored.checksum.clone(), stored.attributes.clone());
        if !store.put(input.key.clone(), stored, create_only) {
            return Err(exists());
        }
        store.uploads.remove(&input.upload_id);
        Ok(CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(etag)),
            checksum_sha256: checksum.checksum_sha256,
            checksum_type: checksum.checksum_type,
            server_side_encryption: attributes.encryption.map(ServerSideEncryption::from),
            ssekms_key_id: attributes.kms_key,
            ..Default::default()
        })
    }

    pub(super) fn abort(&self, input: AbortMultipartUploadInput) -> S3Result<AbortMultipartUploadOutput> {
        self.check_bucket(&input.bucket)?;
        let mut store = lock(&self.0.store);
        find(&mut store, &input.upload_id, &input.key)?;
        store.uploads.remove(&input.upload_id);
        Ok(AbortMultipartUploadOutput::default())
    }

    /// All uploads under the prefix in one page.
    pub(super) fn uploads(&self, input: ListMultipartUploadsInput) -> S3Result<ListMultipartUploadsOutput> {
        self.check_bucket(&input.bucket)?;
        let prefix = input.prefix.as_deref().unwrap_or_default();
        let store = lock(&self.0.store);
        let mut uploads: Vec<MultipartUpload> = store
            .uploads
            .iter()
            .filter(|(_, upload)| upload.key.starts_with(prefix))
            .map(|(id, upload)| MultipartUpload {
                key: Some(upload.key.clone()),
                upload_id: Some(id.clone()),
                initiated: Some(Timestamp::from(upload.initiated)),
                storage_class: upload.attributes.storage_class.clone().map(StorageClass::from),
                ..Default::default()
            })
            .collect();
        uploads.sort_by(|a, b| (&a.key, &a.upload_id).cmp(&(&b.key, &b.upload_id)));
        Ok(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            prefix: input.prefix,
            is_truncated: Some(false),
            uploads: Some(uploads),
            ..Default::default()
        })
    }
}

fn find<'a>(store: &'a mut Store, id: &str, key: &str) -> S3Result<&'a mut Upload> {
    store.uploads.get_mut(id).filter(|upload| upload.key == key).ok_or_else(|| {
        s3_error!(
            NoSuchUpload,
            "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed."
        )
    })
}

/// The uploaded parts that the client lists, if it lists them as S3 demands.
fn chosen(upload: &Upload, listed: &[CompletedPart]) -> S3Result<Vec<Part>> {
    let invalid = || s3_error!(InvalidPart, "One or more of the specified parts could not be found.");
    if listed.is_empty() {
        return Err(s3_error!(MalformedXML, "You must specify at least one part"));
    }
    let mut parts = Vec::with_capacity(listed.len());
    let mut previous = 0;
    for claim in listed {
        let number = claim.part_number.ok_or_else(invalid)?;
        if number <= previous {
            return Err(s3_error!(
                InvalidPartOrder,
                "The list of parts was not in ascending order. Parts must be ordered by part number."
            ));
        }
        previous = number;
        let part = upload.parts.get(&number).ok_or_else(invalid)?;
        let same_etag = claim.e_tag.as_ref().is_some_and(|etag| etag.value() == hex(&part.md5));
        let same_sha256 = claim.checksum_sha256.is_none() || claim.checksum_sha256 == part.checksum.checksum_sha256;
        if !same_etag || !same_sha256 {
            return Err(invalid());
        }
        parts.push(part.clone());
    }
    if parts.iter().rev().skip(1).any(|part| part.data.len() < MIN_PART) {
        return Err(s3_error!(EntityTooSmall, "Your proposed upload is smaller than the minimum allowed size"));
    }
    Ok(parts)
}

fn joined(parts: &[Part], attributes: Attributes, modified: std::time::SystemTime) -> Stored {
    let mut data = Vec::with_capacity(parts.iter().map(|part| part.data.len()).sum());
    let mut digests = Vec::with_capacity(parts.len() * 16);
    for part in parts {
        data.extend_from_slice(&part.data);
        digests.extend_from_slice(&part.md5);
    }
    let checksum_sha256 = composite_sha256(parts.iter().map(|part| &part.checksum));
    let checksum_type = checksum_sha256.is_some().then(|| ChecksumType::from_static(ChecksumType::COMPOSITE));
    Stored {
        data: data.into(),
        etag: format!("{}-{}", hex(&checks::md5(&digests)), parts.len()),
        checksum: Checksum { checksum_sha256, checksum_type, ..Default::default() },
        attributes,
        modified,
    }
}
