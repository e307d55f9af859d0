//! What `verify` tells of live tails as a whole: each piece may be sound, and one in between may be missing or another server's.

use std::collections::BTreeSet;

use super::verify_report::Verdict;
use crate::postgres::{ClusterIdent, SegmentName, SegmentSize, WalName};
use crate::repo::archive::ReadBounds;
use crate::repo::live_piece::ExpectedPiece;
use crate::repo::{Holdings, RepoError, WalArchive, WalKey};

/// What is wrong with the tails of segments that are not there whole, by the piece that shows it.
pub(super) async fn broken_tails(
    archive: &WalArchive,
    holdings: &Holdings,
    (ident, segment_size): (ClusterIdent, Option<SegmentSize>),
    bounds: &ReadBounds,
) -> Result<Vec<(Verdict, String, String)>, RepoError> {
    let expected = ExpectedPiece { ident: Some(ident), segment_size };
    let mut found = Vec::new();
    for segment in unfinished(holdings) {
        let joined = archive.join_tail(segment, expected, std::io::sink(), bounds).await?;
        // Whole by now.
        if archive.is_stored(WalName::Segment(segment)).await? {
            continue;
        }
        let Some((joined, _)) = joined else { continue };
        found.extend(joined.beside.iter().map(|key| {
            let message = "it begins within another piece, as no single receiver writes it; what both hold is the same";
            (Verdict::Damaged, key.to_string(), message.to_owned())
        }));
        found.extend(joined.broken.map(|broken| {
            let verdict = if broken.missing { Verdict::Missing } else { Verdict::Damaged };
            let message = format!("{}: the live tail of `{segment}` ends at byte {:#X}", broken.reason, joined.end);
            (verdict, broken.key, message)
        }));
    }
    Ok(found)
}

fn unfinished(holdings: &Holdings) -> BTreeSet<SegmentName> {
    let whole = holdings.wal.iter().filter_map(|wal| match &wal.key {
        WalKey::File(WalName::Segment(segment)) => Some(*segment),
        _ => None,
    });
    let whole: BTreeSet<SegmentName> = whole.collect();
    let streamed = holdings.wal.iter().filter_map(|wal| match &wal.key {
        WalKey::Piece(piece) => Some(piece.segment),
        _ => None,
    });
    streamed.filter(|segment| !whole.contains(segment)).collect()
}
