//! What a test may see and change behind the client's back: switches, objects, requests.
//!
//! Everything here takes effect at once and on connections that are already open.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use s3s::dto::Checksum;

use super::S3Double;
use super::checks::{hex, md5};
use super::journal::Logged;
use super::shared::{Switches, lock, shifted};
use super::store::{Attributes, Stored};

/// Switches, settable while the server runs.
impl S3Double {
    /// Off: `If-None-Match` is ignored and objects are overwritten, as some look-alikes do.
    pub fn honour_conditions(&self, on: bool) {
        self.switch(|switches| switches.honour_conditions = on);
    }

    /// On: 501 `NotImplemented` when `If-None-Match` is present.
    pub fn reject_conditions(&self, on: bool) {
        self.switch(|switches| switches.reject_conditions = on);
    }

    /// On: `If-None-Match` is ignored on CompleteMultipartUpload, and only there.
    pub fn complete_ignores_conditions(&self, on: bool) {
        self.switch(|switches| switches.complete_ignores_conditions = on);
    }

    /// Off: user metadata of new objects is dropped.
    pub fn keep_metadata(&self, on: bool) {
        self.switch(|switches| switches.keep_metadata = on);
    }

    /// On: no right to list. Listing is refused, and so is GET and HEAD of a missing key, as on AWS.
    pub fn deny_list(&self, on: bool) {
        self.switch(|switches| switches.deny_list = on);
    }

    /// On: everything that writes or deletes is refused with `AccessDenied`.
    pub fn read_only(&self, on: bool) {
        self.switch(|switches| switches.read_only = on);
    }

    /// On: 501 `NotImplemented` for `aws-chunked` bodies and trailers.
    pub fn refuse_chunked(&self, on: bool) {
        self.switch(|switches| switches.refuse_chunked = on);
    }

    /// Off: signatures of any age are accepted. On, as at the start: 403 `RequestTimeTooSkewed` when the signing time is
    /// more than 15 minutes away from both the host's clock and the store's.
    pub fn check_clock(&self, on: bool) {
        self.switch(|switches| switches.check_clock = on);
    }

    /// Time added before each answer, after the operation is done.
    pub fn latency(&self, latency: Duration) {
        self.switch(|switches| switches.latency = latency);
    }

    /// Moves the store's clock, which shows in `Date` and in the `Last-Modified` of objects written from now on.
    pub fn clock_offset(&self, seconds: i64) {
        self.switch(|switches| switches.clock_offset = seconds);
    }

    /// Removes the bucket: everything is answered with `NoSuchBucket`.
    pub fn remove_bucket(&self) {
        self.switch(|switches| switches.bucket_present = false);
    }

    /// Brings the bucket back with all it held.
    pub fn restore_bucket(&self) {
        self.switch(|switches| switches.bucket_present = true);
    }

    fn switch(&self, change: impl FnOnce(&mut Switches)) {
        change(&mut lock(&self.shared.switches));
    }
}

/// Direct access to what is stored.
impl S3Double {
    /// All keys in order.
    pub fn keys(&self) -> Vec<String> {
        lock(&self.shared.store).objects.keys().cloned().collect()
    }

    /// All objects at one moment.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        let store = lock(&self.shared.store);
        store.objects.iter().map(|(key, stored)| (key.clone(), stored.data.clone())).collect()
    }

    /// The content of an object.
    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        self.stored(key).map(|stored| stored.data.to_vec())
    }

    /// The user metadata of an object.
    pub fn metadata(&self, key: &str) -> Option<BTreeMap<String, String>> {
        self.stored(key).map(|stored| stored.attributes.metadata)
    }

    /// All that is known about an object.
    pub fn stored(&self, key: &str) -> Option<Stored> {
        lock(&self.shared.store).objects.get(key).cloned()
    }

    /// Writes an object, as if another client had; an existing one is replaced.
    pub fn put_raw(&self, key: &str, bytes: impl Into<Vec<u8>>, metadata: &[(&str, &str)]) {
        let data = Bytes::from(bytes.into());
        let metadata = metadata.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let stored = Stored {
            etag: hex(&md5(&data)),
            data,
            checksum: Checksum::default(),
            attributes: Attributes { metadata, ..Attributes::default() },
            modified: self.shared.now(),
        };
        lock(&self.shared.store).put(key.to_owned(), stored, false);
    }

    /// Deletes an object; returns whether there was one.
    pub fn remove(&self, key: &str) -> bool {
        lock(&self.shared.store).objects.remove(key).is_some()
    }

    /// Bit rot at rest: changes the content of an object and leaves its ETag, checksums and metadata as they were.
    pub fn alter(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        self.edit(key, |stored| {
            let mut bytes = stored.data.to_vec();
            change(&mut bytes);
            stored.data = Bytes::from(bytes);
        });
    }

    /// Makes an object so many seconds older, by its `Last-Modified`.
    pub fn age(&self, key: &str, seconds: i64) {
        self.edit(key, |stored| stored.modified = shifted(stored.modified, -seconds));
    }

    /// Key and id of each multipart upload that is neither complete nor aborted.
    pub fn open_uploads(&self) -> Vec<(String, String)> {
        lock(&self.shared.store).uploads.iter().map(|(id, upload)| (upload.key.clone(), id.clone())).collect()
    }

    fn edit(&self, key: &str, change: impl FnOnce(&mut Stored)) {
        let mut store = lock(&self.shared.store);
        change(store.objects.get_mut(key).expect("the object to change exists"));
    }
}

/// What was asked.
impl S3Double {
    /// The requests so far, oldest first, with those that are still being answered.
    pub fn requests(&self) -> Vec<Logged> {
        lock(&self.shared.journal).entries()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        lock(&self.shared.journal).clear();
    }
}
