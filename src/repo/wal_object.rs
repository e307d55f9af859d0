//! The WAL object: a header that tells what it is, then the compressed file.
//!
//! `stream::frame` carries the header, so `zstd -d` of the whole object gives the plain file. The header is the
//! truth about the object; metadata repeats digest and length, so that a conflict is judged by one HEAD.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use super::error::RepoError;
use crate::postgres::{ClusterIdent, PgMajor, SegmentSize, SystemId, WalIndex, WalName};
use crate::storage::{LargeBody, ObjectKey, ObjectMeta, UserMetadata};
use crate::stream::frame::{self, Frame, FrameError};
use crate::stream::{Grown, Packed, Receipt, Sha256};

/// Who writes: for messages about conflicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The host's name.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The version of pgark.
    pub version: &'static str,
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, pid {}, pgark {}", self.host, self.pid, self.version)
    }
}

const FORMAT: &str = "pgark-wal-1";

/// A header that grows beyond this does without the names of its restore points and tablespaces. Readers take twice as much.
const LARGEST_HEADER: usize = 32 << 10;

/// Metadata of the object that repeats the header's digest.
pub const DIGEST_METADATA: &str = "pgark-sha256";
/// Metadata of the object that repeats the header's plain length.
pub const LENGTH_METADATA: &str = "pgark-length";

/// What a WAL object says about itself. JSON; readers pass over fields that they do not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalObjectHeader {
    format: String,
    /// The name under which PostgreSQL archived it.
    pub name: String,
    system_identifier: SystemId,
    postgres_major: PgMajor,
    /// Bytes in a segment; absent for history and backup files, which do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment_size: Option<u64>,
    /// Bytes of the plain file.
    pub plain_length: u64,
    /// SHA-256 of the plain file.
    pub sha256: Sha256,
    /// Bytes of the object behind the header's frame.
    pub stored_length: u64,
    /// When it was written, by the writer's clock.
    pub written: Timestamp,
    /// By whom.
    pub writer: String,
    /// What lies in a segment or partial segment; absent where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "index_if_readable")]
    pub index: Option<WalIndex>,
}

/// The index only helps to search: one that a later version writes otherwise must not keep a file from being fetched.
fn index_if_readable<'de, D: Deserializer<'de>>(from: D) -> Result<Option<WalIndex>, D::Error> {
    let index = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(index).ok())
}

/// What the writer of an object knows besides its bytes.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// The file's name.
    pub name: WalName,
    /// The cluster it belongs to.
    pub ident: ClusterIdent,
    /// Of a file that holds WAL.
    pub segment_size: Option<SegmentSize>,
    /// The writer's clock.
    pub written: Timestamp,
    /// The writer.
    pub writer: Writer,
}

/// A WAL object ready to be stored.
#[derive(Clone, Debug)]
pub struct WalObject {
    /// Its header.
    pub header: WalObjectHeader,
    /// Header and compressed file; the header alone where the compressed file is too large for memory.
    pub bytes: bytes::Bytes,
    /// Where that is, then.
    large: Option<LargeBody>,
}

impl WalObject {
    /// Room that [`crate::stream::pack()`] shall leave for the header.
    pub const ROOM: usize = frame::ROOM;

    /// Puts the header in front of what was packed with [`WalObject::ROOM`].
    pub fn build(from: Provenance, packed: Packed, index: Option<WalIndex>) -> Result<Self, RepoError> {
        WalObject::build_grown(from, Grown::Memory(packed.object), packed.plain, index)
    }

    /// As [`WalObject::build`], of what may be in a file.
    pub fn build_grown(
        from: Provenance,
        grown: Grown,
        plain: Receipt,
        index: Option<WalIndex>,
    ) -> Result<Self, RepoError> {
        let (mut object, file) = match grown {
            Grown::Memory(object) => (object, None),
            Grown::File(file, length) => (vec![0; Self::ROOM], Some((file, length))),
        };
        let stored_length = file.as_ref().map_or((object.len() - Self::ROOM) as u64, |(_, length)| *length);
        let mut header = WalObjectHeader {
            format: FORMAT.to_owned(),
            name: from.name.to_string(),
            system_identifier: from.ident.system_id,
            postgres_major: from.ident.major,
            segment_size: from.segment_size.map(SegmentSize::bytes),
            plain_length: plain.length,
            sha256: plain.sha256,
            stored_length,
            written: from.written,
            writer: from.writer.to_string(),
            index,
        };
        let unwritable = |reason: String| RepoError::damaged(&from.name, reason);
        let mut json = serde_json::to_vec(&header).map_err(|e| unwritable(e.to_string()))?;
        if let Some(index) = header.index.as_mut().filter(|_| json.len() > LARGEST_HEADER) {
            index.restore_points.clear();
            index.tablespaces.clear();
            index.complete = false;
            json = serde_json::to_vec(&header).map_err(|e| unwritable(e.to_string()))?;
        }
        frame::write_in_front(&mut object, Self::ROOM, &json).map_err(|e| unwritable(e.to_string()))?;
        let bytes = bytes::Bytes::from(object);
        let large = file.map(|(file, length)| LargeBody::new(bytes.clone(), Arc::new(file), length));
        Ok(WalObject { header, bytes, large })
    }

    /// The bytes of the object that are not in memory.
    pub fn large(&self) -> Option<&LargeBody> {
        self.large.as_ref()
    }

    /// How many bytes the object has.
    pub fn size(&self) -> u64 {
        self.large.as_ref().map_or(self.bytes.len() as u64, LargeBody::length)
    }

    /// Whether it was made to be stored under a name.
    pub fn is(&self, name: WalName) -> bool {
        self.header.name == name.to_string()
    }

    /// What is given to the store besides the bytes.
    pub fn metadata(&self) -> UserMetadata {
        UserMetadata::from([
            (DIGEST_METADATA.to_owned(), self.header.sha256.to_string()),
            (LENGTH_METADATA.to_owned(), self.header.plain_length.to_string()),
        ])
    }

    /// Whether metadata alone shows that the stored object is this one.
    pub fn surely_is(&self, stored: &ObjectMeta) -> bool {
        let same = |name: &str, value: String| stored.user.get(name) == Some(&value);
        stored.size == self.size()
            && same(DIGEST_METADATA, self.header.sha256.to_string())
            && same(LENGTH_METADATA, self.header.plain_length.to_string())
    }
}

/// What a reader knows about the object it wants.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// The name asked for.
    pub name: WalName,
    /// The cluster that asks, where it is known.
    pub ident: Option<ClusterIdent>,
    /// That cluster's segment size, where it is known.
    pub segment_size: Option<SegmentSize>,
}

/// History and backup files are small texts: more is an attack on memory.
const LARGEST_TEXT: u64 = 16 << 20;

impl WalObjectHeader {
    /// Reads the header in front of an object; `None` when more bytes are needed. With it comes the length of its
    /// frame.
    pub fn read(key: &ObjectKey, start: &[u8]) -> Result<Option<(Self, usize)>, RepoError> {
        let found = frame::read(start).map_err(|e: FrameError| RepoError::damaged(key, e.to_string()))?;
        let Some(Frame { payload, length }) = found else {
            return Ok(None);
        };
        let header: WalObjectHeader = serde_json::from_slice(payload)
            .map_err(|e| RepoError::damaged(key, format!("its header cannot be read: {e}")))?;
        if header.format != FORMAT {
            let reason = format!("format `{}` needs another version of pgark", header.format);
            return Err(RepoError::damaged(key, reason));
        }
        Ok(Some((header, length)))
    }

    /// The cluster.
    pub fn ident(&self) -> ClusterIdent {
        ClusterIdent { system_id: self.system_identifier, major: self.postgres_major }
    }

    /// The receipt that the plain bytes must give.
    pub fn plain(&self) -> Receipt {
        Receipt { sha256: self.sha256, length: self.plain_length }
    }

    /// Whether an object of `size` bytes, `frame` of them header, is what was asked for.
    pub fn check(&self, expected: &Expected, frame: usize, size: u64) -> Result<(), String> {
        if self.name != expected.name.to_string() {
            return Err(format!("it holds `{}`, not `{}`", self.name, expected.name));
        }
        if let Some(ident) = expected.ident.filter(|ident| *ident != self.ident()) {
            return Err(format!("it belongs to another cluster ({}); this one has {ident}", self.ident()));
        }
        if size != frame as u64 + self.stored_length {
            let whole = frame as u64 + self.stored_length;
            return Err(format!("it is {size} bytes long, but was written with {whole}"));
        }
        match (expected.name.holds_wal(), self.segment_size) {
            (true, Some(bytes)) if bytes == self.plain_length && SegmentSize::new(bytes).is_ok() => {}
            (true, _) => return Err("its header claims lengths that no segment has".to_owned()),
            (false, _) if self.plain_length <= LARGEST_TEXT => {}
            (false, _) => return Err(format!("{} bytes are too many for such a file", self.plain_length)),
        }
        let other_size = |ours: &SegmentSize| expected.name.holds_wal() && ours.bytes() != self.plain_length;
        if let Some(ours) = expected.segment_size.filter(other_size) {
            let (theirs, ours) = (self.plain_length, ours.bytes());
            return Err(format!("its segments are {theirs} bytes long, this cluster's {ours}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::wal_index::MOST_RESTORE_POINTS;
    use crate::postgres::{Lsn, RestorePoint, Xid};
    use crate::stream::pack;

    fn object(name: &str, plain: &[u8]) -> WalObject {
        indexed(name, plain, None)
    }

    fn indexed(name: &str, plain: &[u8], index: Option<WalIndex>) -> WalObject {
        let packed = pack(plain, plain.len() as u64, 1, WalObject::ROOM, |_, _| Ok(()), |_| ()).unwrap();
        let from = Provenance {
            name: name.parse().unwrap(),
            ident: ClusterIdent { system_id: SystemId(7), major: 15.try_into().unwrap() },
            segment_size: None,
            written: Timestamp::UNIX_EPOCH,
            writer: Writer { host: "db1".into(), pid: 1, version: "0" },
        };
        WalObject::build(from, packed, index).unwrap()
    }

    fn expected(name: &str) -> Expected {
        Expected { name: name.parse().unwrap(), ident: None, segment_size: None }
    }

    #[test]
    fn the_header_comes_back_and_zstd_reads_the_rest() {
        let object = object("00000002.history", b"1\t0/3000000\tx\n");
        let key = "k".parse().unwrap();
        let (header, frame) = WalObjectHeader::read(&key, &object.bytes).unwrap().unwrap();
        assert_eq!(header, object.header);
        header.check(&expected("00000002.history"), frame, object.bytes.len() as u64).unwrap();
        assert_eq!(zstd::decode_all(&object.bytes[..]).unwrap(), b"1\t0/3000000\tx\n");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let object = object("00000002.history", b"1\t0/3000000\tx\n");
        let (header, frame) = WalObjectHeader::read(&"k".parse().unwrap(), &object.bytes).unwrap().unwrap();
        let size = object.bytes.len() as u64;
        let complaint = |expected: Expected, size| header.check(&expected, frame, size).unwrap_err();
        assert!(complaint(expected("00000003.history"), size).contains("00000002.history"));
        assert!(complaint(expected("00000002.history"), size - 1).contains("was written with"));
        let other = ClusterIdent { system_id: SystemId(8), major: 15.try_into().unwrap() };
        let foreign = Expected { ident: Some(other), ..expected("00000002.history") };
        assert!(complaint(foreign, size).contains("another cluster"));
    }

    #[test]
    fn unknown_fields_are_passed_over() {
        let json = br#"{"format":"pgark-wal-1","name":"x","system_identifier":"1","postgres_major":15,"plain_length":1,
            "sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","stored_length":0,
            "written":"2026-01-01T00:00:00Z","writer":"w","first_commit":"later"}"#;
        let header = read(json);
        assert_eq!(header.index, None);
        // Nor does an index that another version wrote keep a file from being fetched.
        let text = std::str::from_utf8(json).unwrap();
        for index in ["null", "7", r#"{"complete":"nearly"}"#, r#"{"commits":["a"]}"#] {
            let json = text.replace(r#""first_commit":"later""#, &format!(r#""index":{index}"#));
            assert_eq!(read(json.as_bytes()), header, "{index}");
        }
        let json = text.replace("first_commit\":\"later\"", r#"index":{"complete":true,"pages":7}"#);
        assert_eq!(read(json.as_bytes()).index, Some(WalIndex { complete: true, ..WalIndex::default() }));
    }

    fn read(json: &[u8]) -> WalObjectHeader {
        let mut object = vec![0; 600];
        frame::write_in_front(&mut object, 600, json).unwrap();
        WalObjectHeader::read(&"k".parse().unwrap(), &object).unwrap().unwrap().0
    }

    #[test]
    fn an_index_of_any_size_can_be_stored() {
        let of = |points: usize| WalIndex {
            xids: Some([Xid(3), Xid(9)].into()),
            restore_points: (0..points)
                .map(|lsn| RestorePoint {
                    name: "\u{1}".repeat(63),
                    time: Timestamp::from_microsecond(1).unwrap(),
                    lsn: Lsn(u64::MAX - lsn as u64),
                })
                .collect(),
            complete: true,
            ..WalIndex::default()
        };
        for points in [0, 1, 10, MOST_RESTORE_POINTS, 100, 1000] {
            let object = indexed("000000010000000000000002", b"plain", Some(of(points)));
            let (header, frame) = WalObjectHeader::read(&"k".parse().unwrap(), &object.bytes).unwrap().unwrap();
            assert_eq!(header, object.header);
            assert_eq!(object.bytes.len(), frame + header.stored_length as usize);
            // A few points go into the room that was left; many make the header grow; too many are left out.
            assert_eq!(frame > WalObject::ROOM, (10..=MOST_RESTORE_POINTS).contains(&points), "{points}");
            assert_eq!(zstd::decode_all(&object.bytes[..]).unwrap(), b"plain");
            let expected =
                if points <= MOST_RESTORE_POINTS { of(points) } else { WalIndex { complete: false, ..of(0) } };
            assert_eq!(header.index, Some(expected), "{points}");
        }
    }
}
