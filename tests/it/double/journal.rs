//! What was asked of the server, request by request, and how each ended; and the reading of a request line that both
//! the journal and the fault script go by.

use std::fmt;

use http::Method;
use http::request::Parts;

use super::fault::Fault;

/// One request.
#[derive(Clone, Debug)]
pub struct Logged {
    /// The HTTP method.
    pub method: String,
    /// The operation of S3, or `Unknown`.
    pub operation: &'static str,
    /// The decoded key; empty for operations on the bucket.
    pub key: String,
    /// The query as it was sent.
    pub query: String,
    /// The request's headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Bytes of the body that arrived, as sent.
    pub bytes: usize,
    /// How it ended, from the server's side.
    pub status: Outcome,
    /// The fault that hit it.
    pub fault: Option<Fault>,
    serial: u64,
}

impl Logged {
    /// The value of a header, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The head of an answer with this status was sent; a fault may have spoilt the rest.
    Status(u16),
    /// No answer: not yet, or the connection ended before.
    Aborted,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Status(code) => write!(f, "{code}"),
            Outcome::Aborted => f.write_str("aborted"),
        }
    }
}

/// The requests since the start or the last [`clear`](Journal::clear).
#[derive(Default)]
pub(super) struct Journal {
    entries: Vec<Logged>,
    opened: u64,
}

impl Journal {
    /// Writes a request down as aborted, until [`update`](Self::update) knows better.
    pub(super) fn open(&mut self, parts: &Parts, operation: &'static str, key: &str) -> u64 {
        self.opened += 1;
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        self.entries.push(Logged {
            method: parts.method.to_string(),
            operation,
            key: key.to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers.iter().map(header).collect(),
            bytes: 0,
            status: Outcome::Aborted,
            fault: None,
            serial: self.opened,
        });
        self.opened
    }

    /// Changes an entry, if it has not been cleared away meanwhile.
    pub(super) fn update(&mut self, serial: u64, change: impl FnOnce(&mut Logged)) {
        if let Some(entry) = self.entries.iter_mut().rev().find(|entry| entry.serial == serial) {
            change(entry);
        }
    }

    pub(super) fn entries(&self) -> Vec<Logged> {
        self.entries.clone()
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

/// The operation and the key of a path-style request.
pub(super) fn classify(parts: &Parts) -> (&'static str, String) {
    let path = percent_decoded(parts.uri.path());
    let key = path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key).to_owned();
    let query = parts.uri.query().unwrap_or_default();
    let has = |name| parameter(query, name).is_some();
    let copy = parts.headers.contains_key("x-amz-copy-source");
    let operation = if key.is_empty() {
        match parts.method {
            Method::HEAD => "HeadBucket",
            Method::GET if has("location") => "GetBucketLocation",
            Method::GET if has("uploads") => "ListMultipartUploads",
            Method::GET if has("list-type") => "ListObjectsV2",
            Method::GET => "ListObjects",
            Method::POST if has("delete") => "DeleteObjects",
            _ => "Unknown",
        }
    } else {
        match parts.method {
            Method::HEAD => "HeadObject",
            Method::GET if has("uploadId") => "ListParts",
            Method::GET => "GetObject",
            Method::PUT if has("uploadId") && copy => "UploadPartCopy",
            Method::PUT if has("uploadId") => "UploadPart",
            Method::PUT if copy => "CopyObject",
            Method::PUT => "PutObject",
            Method::POST if has("uploads") => "CreateMultipartUpload",
            Method::POST if has("uploadId") => "CompleteMultipartUpload",
            Method::DELETE if has("uploadId") => "AbortMultipartUpload",
            Method::DELETE => "DeleteObject",
            _ => "Unknown",
        }
    };
    (operation, key)
}

/// The value of a query parameter, still encoded; empty if it has none.
pub(super) fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| match pair.split_once('=') {
        Some((known, value)) if known == name => Some(value),
        None if pair == name => Some(""),
        _ => None,
    })
}

/// Decodes `%XX`; what is not valid stays as it is.
pub(super) fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).filter(|_| first == b'%').and_then(|pair| std::str::from_utf8(pair).ok());
        if let Some(byte) = hex.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
