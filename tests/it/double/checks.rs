//! Reading a request's body and holding it against the checksums that came with it.
//!
//! s3s checks the signature over the payload while the body is read; the `x-amz-checksum-*` headers, the trailers and
//! `Content-MD5` are left to the store, which is here.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use http::StatusCode;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256};
use s3s::dto::{Checksum, StreamingBlob};
use s3s::{S3Error, S3ErrorCode, S3Result, StdError, TrailingHeaders, s3_error};

/// Takes the checksum fields out of an input of s3s.
macro_rules! claimed {
    ($input:expr) => {
        s3s::dto::Checksum {
            checksum_crc32: $input.checksum_crc32.take(),
            checksum_crc32c: $input.checksum_crc32c.take(),
            checksum_crc64nvme: $input.checksum_crc64nvme.take(),
            checksum_sha1: $input.checksum_sha1.take(),
            checksum_sha256: $input.checksum_sha256.take(),
            checksum_type: None,
        }
    };
}
pub(super) use claimed;

/// The whole body, after s3s has checked the payload's signature.
pub(super) async fn read(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(mut body) = body else { return Ok(Bytes::new()) };
    let Some(first) = body.try_next().await.map_err(broken)? else { return Ok(Bytes::new()) };
    let Some(second) = body.try_next().await.map_err(broken)? else { return Ok(first) };
    let mut whole = BytesMut::from(first);
    whole.extend_from_slice(&second);
    while let Some(chunk) = body.try_next().await.map_err(broken)? {
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

/// s3s does not export the errors of its body streams, so their text has to tell them apart.
fn broken(error: StdError) -> S3Error {
    let text = error.to_string();
    if text.contains("Sha256Mismatch") {
        let code = S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into());
        let message = "The provided 'x-amz-content-sha256' header does not match what was computed.";
        let mut error = S3Error::with_message(code, message);
        error.set_status_code(StatusCode::BAD_REQUEST);
        error
    } else if text.contains("SignatureMismatch") {
        s3_error!(SignatureDoesNotMatch, "a chunk's signature does not match")
    } else {
        s3_error!(IncompleteBody, "the body could not be read: {text}")
    }
}

/// Adds the checksums that came as trailers, which exist once the body has been read.
pub(super) fn add_trailers(claimed: &mut Checksum, trailers: Option<&TrailingHeaders>) {
    let Some(trailers) = trailers.and_then(TrailingHeaders::take) else { return };
    let value = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let fill = |field: &mut Option<String>, name: &str| {
        if field.is_none() {
            *field = value(name);
        }
    };
    fill(&mut claimed.checksum_crc32, "x-amz-checksum-crc32");
    fill(&mut claimed.checksum_crc32c, "x-amz-checksum-crc32c");
    fill(&mut claimed.checksum_crc64nvme, "x-amz-checksum-crc64nvme");
    fill(&mut claimed.checksum_sha1, "x-amz-checksum-sha1");
    fill(&mut claimed.checksum_sha256, "x-amz-checksum-sha256");
}

/// Computes every checksum that was claimed and refuses the body when one differs. Returns the MD5, which is the ETag.
pub(super) fn verify(data: &[u8], claimed: &Checksum, content_md5: Option<&str>) -> S3Result<[u8; 16]> {
    let mut hasher = ChecksumHasher {
        crc32: claimed.checksum_crc32.as_ref().map(|_| Crc32::new()),
        crc32c: claimed.checksum_crc32c.as_ref().map(|_| Crc32c::new()),
        crc64nvme: claimed.checksum_crc64nvme.as_ref().map(|_| Crc64Nvme::new()),
        sha1: claimed.checksum_sha1.as_ref().map(|_| Sha1::new()),
        sha256: claimed.checksum_sha256.as_ref().map(|_| Sha256::new()),
    };
    hasher.update(data);
    let computed = hasher.finalize();
    same("CRC32", claimed.checksum_crc32.as_deref(), computed.checksum_crc32.as_deref())?;
    same("CRC32C", claimed.checksum_crc32c.as_deref(), computed.checksum_crc32c.as_deref())?;
    same("CRC64NVME", claimed.checksum_crc64nvme.as_deref(), computed.checksum_crc64nvme.as_deref())?;
    same("SHA1", claimed.checksum_sha1.as_deref(), computed.checksum_sha1.as_deref())?;
    same("SHA256", claimed.checksum_sha256.as_deref(), computed.checksum_sha256.as_deref())?;
    let md5 = md5(data);
    same("Content-MD5", content_md5, content_md5.map(|_| BASE64_STANDARD.encode(md5)).as_deref())?;
    Ok(md5)
}

fn same(name: &str, claimed: Option<&str>, computed: Option<&str>) -> S3Result<()> {
    if claimed == computed {
        return Ok(());
    }
    let message = format!("The {name} you specified did not match the calculated checksum.");
    Err(S3Error::with_message(S3ErrorCode::BadDigest, message))
}

/// The MD5 of `data`.
pub(super) fn md5(data: &[u8]) -> [u8; 16] {
    Md5::checksum(data)
}

/// The SHA-256 of the parts' SHA-256, as S3 reports it for a multipart object; `None` if a part came without.
pub(super) fn composite_sha256<'a>(parts: impl ExactSizeIterator<Item = &'a Checksum>) -> Option<String> {
    let count = parts.len();
    let mut digests = Vec::new();
    for part in parts {
        digests.extend(BASE64_STANDARD.decode(part.checksum_sha256.as_deref()?).ok()?);
    }
    Some(format!("{}-{count}", BASE64_STANDARD.encode(Sha256::checksum(&digests))))
}

/// Bytes in lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
