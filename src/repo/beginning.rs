//! Whether the repository has the beginning of a segment that a server never finished, though it hands it out as a whole one.

use std::io::{self, Write};

use bytes::Bytes;

use super::archive::{ReadBounds, WalArchive};
use super::error::RepoError;
use super::live_piece::ExpectedPiece;
use super::wal_object::{Expected, WalObject};
use crate::postgres::{SegmentName, SegmentSize, WalName};
use crate::stream::Unpacker;

impl WalArchive {
    /// Whether all WAL of this unfinished segment is stored: in the whole one, or in its live tail.
    pub async fn has_beginning(&self, segment: SegmentName, object: &WalObject) -> Result<bool, RepoError> {
        let Some(ours) = plain_wal(segment, object)? else { return Ok(false) };
        let ident = Some(object.header.ident());
        let bounds = ReadBounds::default();
        let expected = Expected { name: WalName::Segment(segment), ident, segment_size: None };
        let compared = match self.read(expected, Comparing::with(ours.clone()), &bounds).await {
            Ok(Some((_, compared))) => return Ok(compared.has_all()),
            Ok(None) => {
                let expected = ExpectedPiece { ident, segment_size: None };
                self.join_prefix(segment, expected, Comparing::with(ours), &bounds).await?
            }
            // Whatever lies there, it is not this.
            Err(RepoError::Damaged { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        Ok(compared.is_some_and(|(joined, compared)| joined.end > 0 && compared.has_all()))
    }
}

/// The bytes up to where the WAL of an object ends.
fn plain_wal(segment: SegmentName, object: &WalObject) -> Result<Option<Bytes>, RepoError> {
    let damaged = |reason: String| RepoError::damaged(&segment, reason);
    let header = &object.header;
    let size = header.segment_size.and_then(|bytes| SegmentSize::new(bytes).ok());
    let start = size.and_then(|size| Some(size.start(size.number(segment).ok()?)));
    let end = header.index.as_ref().and_then(|index| index.ends);
    let Some(length) = end.zip(start).and_then(|(end, start)| end.0.checked_sub(start.0)) else { return Ok(None) };
    let mut unpacker = Unpacker::new(Vec::new(), header.plain_length).map_err(RepoError::Destination)?;
    let stored = object.bytes.len() - header.stored_length as usize;
    unpacker.push(&object.bytes[stored..]).map_err(|e| damaged(e.to_string()))?;
    let (_, mut plain) = unpacker.finish().map_err(|e| damaged(e.to_string()))?;
    plain.truncate(length as usize);
    Ok(Some(plain.into()))
}

/// Compares what is written to it.
struct Comparing {
    ours: Bytes,
    at: usize,
    differs: bool,
}

impl Comparing {
    fn with(ours: Bytes) -> Self {
        Comparing { ours, at: 0, differs: false }
    }

    fn has_all(&self) -> bool {
        !self.differs && self.at == self.ours.len()
    }
}

impl Write for Comparing {
    fn write(&mut self, theirs: &[u8]) -> io::Result<usize> {
        let ours = &self.ours[self.at..];
        let common = ours.len().min(theirs.len());
        self.differs |= ours[..common] != theirs[..common];
        self.at += common;
        Ok(theirs.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tail_world::{SIZE, World, ident, plain, segment};
    use super::super::wal_object::Provenance;
    use super::super::{Archived, Writer};
    use super::*;
    use crate::postgres::{Lsn, WalIndex};
    use crate::stream::pack;

    fn object(name: WalName, bytes: &[u8], ends: Option<u64>) -> WalObject {
        let packed = pack(bytes, bytes.len() as u64, 1, WalObject::ROOM, |_, _| Ok(()), |_| ()).unwrap();
        let from = Provenance {
            name,
            ident: ident(),
            segment_size: Some(SIZE),
            written: jiff::Timestamp::UNIX_EPOCH,
            writer: Writer { host: "db1".into(), pid: 1, version: "0" },
        };
        let start = SIZE.start(SIZE.number(segment()).unwrap());
        let ends = ends.map(|ends| Lsn(start.0 + ends));
        WalObject::build(from, packed, Some(WalIndex { ends, ..WalIndex::default() })).unwrap()
    }

    #[tokio::test]
    async fn it_is_there_in_pieces_or_whole_or_not_at_all() {
        let original = plain(segment(), 0);
        let mut begun = original.clone();
        begun[5000..].fill(0);
        let begun = |ends| object(WalName::Partial(segment()), &begun, Some(ends));
        let world = World::new();
        let has = async |ends| world.archive.has_beginning(segment(), &begun(ends)).await.unwrap();
        assert!(!has(5000).await);
        world.put_tail(segment(), &original, &[0, 4000, 4999]).await;
        assert_eq!((has(4000).await, has(4999).await, has(5000).await), (true, true, false));
        let whole = object(WalName::Segment(segment()), &original, None);
        assert_eq!(world.archive.put(WalName::Segment(segment()), &whole).await.unwrap(), Archived::Created);
        assert!(has(5000).await);
        // Another server's.
        assert!(!has(5001).await);
    }
}
