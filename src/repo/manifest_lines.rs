//! What all manifests have in common: JSON, one object a line, in two zstd frames. The first line stands alone in the first frame, so
//! that one small read gives it; the last one says how many lines stand before it, and their digest.
//!
//! ```text
//! {...}                                  the summary
//! {...}                                  whatever the kind of manifest has
//! {"lines":812,"sha256":"..."}           the end
//! ```

use std::io::{self, BufRead, BufReader, Read, Write};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::RepoError;
use crate::storage::ObjectKey;
use crate::stream::{Sha256, Sha256Hasher};

/// What no manifest comes near: a writer stops there, too.
pub const MOST_LINES: u64 = 4_000_000;
/// Enough of a manifest to hold its summary, packed, in one read.
pub(super) const SUMMARY_READ: usize = 64 << 10;
/// The largest stored manifest: a cluster of some millions of files.
pub(super) const LARGEST_MANIFEST: usize = 512 << 20;
/// The largest summary line, unpacked.
const LARGEST_SUMMARY: u64 = 1 << 20;
/// The longest line: a file of about a tebibyte.
const LONGEST_LINE: u64 = 16 << 20;
const LEVEL: i32 = 3;
/// What zstd's levels up to 19 need: a larger window is not ours.
const WINDOW_LOG_MAX: u32 = 23;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    lines: u64,
    sha256: Sha256,
}

/// Turns lines into a manifest, one at a time. What it says about a line that cannot be is the reason why the manifest is refused.
pub(super) trait Collect: Sized {
    /// What all lines together are.
    type Manifest;
    /// What the first line is.
    type Summary: DeserializeOwned;

    /// Of the first line.
    fn begin(summary: Self::Summary) -> Result<Self, String>;

    /// Takes the next line; `None` if it is of no kind that stands between the first and the last.
    fn take(&mut self, line: &[u8]) -> Option<Result<(), String>>;

    /// All lines came.
    fn finish(self) -> Result<Self::Manifest, String>;
}

/// Writes lines.
pub(super) struct Lines {
    frame: zstd::stream::write::Encoder<'static, Vec<u8>>,
    hasher: Sha256Hasher,
    count: u64,
    line: Vec<u8>,
}

impl Lines {
    /// The summary, and no other line yet.
    pub(super) fn begin(summary: &impl Serialize) -> Result<Self, RepoError> {
        let frame = |before| {
            let mut frame = zstd::stream::write::Encoder::new(before, LEVEL)?;
            // The summary is read alone, without the digest in the last line.
            frame.include_checksum(true)?;
            io::Result::Ok(frame)
        };
        let begin = || {
            let mut lines =
                Lines { frame: frame(Vec::new())?, hasher: Sha256Hasher::default(), count: 0, line: vec![] };
            lines.write(summary, true)?;
            let first = lines.frame.finish()?;
            Ok(Lines { frame: frame(first)?, hasher: lines.hasher, count: 1, line: lines.line })
        };
        begin().map_err(RepoError::Destination)
    }

    /// The next line.
    pub(super) fn put(&mut self, value: &impl Serialize) -> Result<(), RepoError> {
        self.count += 1;
        if self.count > MOST_LINES {
            let message = format!("the manifest would have more than {MOST_LINES} lines");
            return Err(RepoError::Destination(io::Error::other(message)));
        }
        self.write(value, true).map_err(RepoError::Destination)
    }

    /// The bytes to store.
    pub(super) fn finish(mut self) -> Result<Bytes, RepoError> {
        let end = End { lines: self.count, sha256: std::mem::take(&mut self.hasher).finish().sha256 };
        let finish = || {
            self.write(&end, false)?;
            self.frame.finish()
        };
        Ok(finish().map_err(RepoError::Destination)?.into())
    }

    fn write(&mut self, value: &impl Serialize, counts: bool) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, value).map_err(io::Error::other)?;
        self.line.push(b'\n');
        if counts {
            self.hasher.update(&self.line);
        }
        self.frame.write_all(&self.line)
    }
}

/// Reads what [`Lines`] wrote.
pub(super) fn decode<C: Collect>(key: &ObjectKey, stored: &[u8]) -> Result<C::Manifest, RepoError> {
    let damaged = |why: String| RepoError::damaged(key, why);
    let decoder = decoder(stored).map_err(|e| damaged(e.to_string()))?;
    let mut plain = BufReader::with_capacity(256 << 10, decoder);
    let mut hasher = Sha256Hasher::default();
    let (mut line, mut lines) = (Vec::new(), 0);
    let mut collector: Option<C> = None;
    loop {
        line.clear();
        plain.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(|e| damaged(e.to_string()))?;
        if line.last() != Some(&b'\n') {
            return Err(damaged("it ends within a line, or before its last one".to_owned()));
        }
        let text = &line[..line.len() - 1];
        match &mut collector {
            None => {
                let summary = serde_json::from_slice(text).map_err(|e| damaged(format!("its summary: {e}")))?;
                collector = Some(C::begin(summary).map_err(damaged)?);
            }
            Some(collector) => match collector.take(text) {
                Some(taken) => taken.map_err(|why| damaged(format!("line {}: {why}", lines + 1)))?,
                None => {
                    let unreadable = |e: serde_json::Error| damaged(format!("line {}: {e}", lines + 1));
                    let end: End = serde_json::from_slice(text).map_err(unreadable)?;
                    if end.lines != lines || end.sha256 != hasher.finish().sha256 {
                        return Err(damaged("its last line does not fit the lines before it".to_owned()));
                    }
                    break;
                }
            },
        }
        hasher.update(&line);
        lines += 1;
        if lines > MOST_LINES {
            return Err(damaged(format!("it has more than {MOST_LINES} lines")));
        }
    }
    if plain.read(&mut [0; 1]).map_err(|e| damaged(e.to_string()))? != 0 {
        return Err(damaged("there are bytes behind its last line".to_owned()));
    }
    match collector {
        Some(collector) => collector.finish().map_err(damaged),
        None => Err(damaged("it is empty".to_owned())),
    }
}

/// The summary alone, out of the first bytes of a manifest.
pub(super) fn decode_summary<S: DeserializeOwned>(key: &ObjectKey, start: &[u8]) -> Result<S, RepoError> {
    let damaged = |why: String| RepoError::damaged(key, why);
    let decoder = decoder(start).map_err(|e| damaged(e.to_string()))?;
    let mut line = Vec::new();
    decoder.single_frame().take(LARGEST_SUMMARY).read_to_end(&mut line).map_err(|e| damaged(e.to_string()))?;
    serde_json::from_slice(&line).map_err(|e| damaged(format!("its summary cannot be read: {e}")))
}

fn decoder(stored: &[u8]) -> io::Result<zstd::stream::read::Decoder<'static, &[u8]>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(stored)?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    Ok(decoder)
}
