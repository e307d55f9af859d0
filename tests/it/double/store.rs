//! The objects and the multipart uploads, as plain data behind the one lock of [`Shared`](super::shared::Shared).
//!
//! Keys are kept in byte-wise order, which is the order in which S3 lists them. Nothing here is asynchronous: a method
//! that judges and writes does both under the caller's lock, which is what makes conditional writes atomic.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::time::SystemTime;

use bytes::Bytes;
use s3s::dto::Checksum;

/// What a client says about an object besides its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// User metadata, without the `x-amz-meta-` prefix.
    pub metadata: BTreeMap<String, String>,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `x-amz-storage-class`.
    pub storage_class: Option<String>,
    /// `x-amz-server-side-encryption`.
    pub encryption: Option<String>,
    /// `x-amz-server-side-encryption-aws-kms-key-id`.
    pub kms_key: Option<String>,
}

/// An object as the store holds it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The content.
    pub data: Bytes,
    /// The entity tag without quotes.
    pub etag: String,
    /// The checksums the client gave, in base64.
    pub checksum: Checksum,
    /// Headers that were given with the object.
    pub attributes: Attributes,
    /// `Last-Modified`, by the store's clock.
    pub modified: SystemTime,
}

/// A multipart upload that is neither complete nor aborted.
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) attributes: Attributes,
    pub(super) parts: BTreeMap<i32, Part>,
    pub(super) initiated: SystemTime,
}

/// One uploaded part.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) data: Bytes,
    pub(super) md5: [u8; 16],
    pub(super) checksum: Checksum,
}

/// One line of a listing.
#[derive(Clone, Copy)]
pub(super) enum Listed<'a> {
    Object(&'a str, &'a Stored),
    Prefix(&'a str),
}

/// What to list.
pub(super) struct Listing<'a> {
    pub(super) prefix: &'a str,
    pub(super) delimiter: &'a str,
    /// List what comes after this key.
    pub(super) after: &'a str,
    /// `after` was the last line of a page: if it is a common prefix, the keys under it are done.
    pub(super) resumed: bool,
    pub(super) limit: usize,
}

/// The content of the bucket.
#[derive(Default)]
pub(super) struct Store {
    pub(super) objects: BTreeMap<String, Stored>,
    pub(super) uploads: BTreeMap<String, Upload>,
    uploads_begun: u64,
}

impl Store {
    /// Writes, unless `create_only` and the key exists. Returns whether it wrote.
    pub(super) fn put(&mut self, key: String, object: Stored, create_only: bool) -> bool {
        match self.objects.entry(key) {
            Entry::Occupied(_) if create_only => false,
            Entry::Occupied(mut place) => {
                place.insert(object);
                true
            }
            Entry::Vacant(place) => {
                place.insert(object);
                true
            }
        }
    }

    /// Registers an upload and returns its id.
    pub(super) fn begin(&mut self, upload: Upload) -> String {
        self.uploads_begun += 1;
        let id = format!("upload-{:08}", self.uploads_begun);
        self.uploads.insert(id.clone(), upload);
        id
    }

    /// One page, and whether there is more.
    pub(super) fn list(&self, wanted: &Listing<'_>) -> (Vec<Listed<'_>>, bool) {
        let from = if wanted.after >= wanted.prefix && !wanted.after.is_empty() {
            Bound::Excluded(wanted.after)
        } else {
            Bound::Included(wanted.prefix)
        };
        let mut lines = Vec::new();
        let mut group = "";
        for (key, object) in self.objects.range::<str, _>((from, Bound::Unbounded)) {
            let Some(rest) = key.strip_prefix(wanted.prefix) else { break };
            let rolled_up = if wanted.delimiter.is_empty() {
                None
            } else {
                rest.find(wanted.delimiter).map(|at| &key[..wanted.prefix.len() + at + wanted.delimiter.len()])
            };
            if let Some(prefix) = rolled_up
                && (prefix == group || (wanted.resumed && prefix == wanted.after))
            {
                continue;
            }
            if lines.len() == wanted.limit {
                return (lines, true);
            }
            lines.push(rolled_up.map_or(Listed::Object(key, object), Listed::Prefix));
            group = rolled_up.unwrap_or(group);
        }
        (lines, false)
    }
}
