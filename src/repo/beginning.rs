//! Whether the repository has the beginning of a segment that a server never finished, though it hands it out as a whole one.

use std::io::{self, Write};

use super::archive::{ReadBounds, WalArchive};
use super::error::RepoError;
use super::live_piece::ExpectedPiece;
use super::wal_object::{Expected, WalObject};
use crate::postgres::{SegmentName, SegmentSize, WalName};
use crate::stream::{Receipt, Sha256Hasher, Unpacker};

impl WalArchive {
    /// Whether all WAL of this unfinished segment is stored: in the whole one, or in its live tail.
    pub async fn has_beginning(&self, segment: SegmentName, object: &WalObject) -> Result<bool, RepoError> {
        let Some(ours) = digest_of_wal(segment, object)? else { return Ok(false) };
        let ident = Some(object.header.ident());
        let bounds = ReadBounds::default();
        let expected = Expected { name: WalName::Segment(segment), ident, segment_size: None };
        let theirs = match self.read(expected, Beginning::of(ours.length), &bounds).await {
            Ok(Some((_, theirs))) => return Ok(theirs.receipt() == ours),
            Ok(None) => {
                let expected = ExpectedPiece { ident, segment_size: None };
                self.join_prefix(segment, expected, Beginning::of(ours.length), &bounds).await?
            }
            // Whatever lies there, it is not this.
            Err(RepoError::Damaged { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        Ok(theirs.is_some_and(|(joined, theirs)| joined.end > 0 && theirs.receipt() == ours))
    }
}

/// The digest of an object's plain bytes up to where its WAL ends.
fn digest_of_wal(segment: SegmentName, object: &WalObject) -> Result<Option<Receipt>, RepoError> {
    let damaged = |reason: String| RepoError::damaged(&segment, reason);
    let header = &object.header;
    let size = header.segment_size.and_then(|bytes| SegmentSize::new(bytes).ok());
    let start = size.and_then(|size| Some(size.start(size.number(segment).ok()?)));
    let end = header.index.as_ref().and_then(|index| index.ends);
    let Some(length) = end.zip(start).and_then(|(end, start)| end.0.checked_sub(start.0)) else { return Ok(None) };
    let mut unpacker = Unpacker::new(Beginning::of(length), header.plain_length).map_err(RepoError::Destination)?;
    let stored = object.bytes.len() - header.stored_length as usize;
    unpacker.push(&object.bytes[stored..]).map_err(|e| damaged(e.to_string()))?;
    let (_, ours) = unpacker.finish().map_err(|e| damaged(e.to_string()))?;
    Ok(Some(ours.receipt()))
}

/// Digests the first of the bytes that are written to it: segments may be large.
struct Beginning {
    hasher: Sha256Hasher,
    left: u64,
}

impl Beginning {
    fn of(length: u64) -> Self {
        Beginning { hasher: Sha256Hasher::default(), left: length }
    }

    fn receipt(self) -> Receipt {
        self.hasher.finish()
    }
}

impl Write for Beginning {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let wanted = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.hasher.update(&bytes[..wanted]);
        self.left -= wanted as u64;
        Ok(bytes.len())
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
