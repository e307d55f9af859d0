//! What `verify` tells of live tails as a whole: each piece may be sound, and one in between may be missing or another server's.

use std::collections::BTreeSet;

use super::verify_deep::Chains;
use super::verify_report::Verdict;
use crate::postgres::{ClusterIdent, SegmentName, SegmentSize, WalName};
use crate::repo::archive::ReadBounds;
use crate::repo::live_piece::ExpectedPiece;
use crate::repo::{Holdings, Layout, RepoError, WalArchive, WalKey};

/// What was found in the live tails.
#[derive(Debug, Default)]
pub(super) struct Tails {
    /// What is wrong, by the piece that shows it.
    pub(super) findings: Vec<(Verdict, String, String)>,
    /// Records that were looked at.
    pub(super) records: u64,
}

/// Reads the tails of segments that are not there whole; with `chains` their records, too.
pub(super) async fn read_tails(
    (archive, layout): (&WalArchive, &Layout),
    holdings: &Holdings,
    (ident, segment_size): (ClusterIdent, Option<SegmentSize>),
    chains: Option<&Chains<'_>>,
    bounds: &ReadBounds,
) -> Result<Tails, RepoError> {
    let expected = ExpectedPiece { ident: Some(ident), segment_size };
    let mut tails = Tails::default();
    for segment in unfinished(holdings) {
        let place = || layout.live_segment(holdings.generation(), segment).to_string();
        let joined = match archive.verify_tail(segment, expected, chains.is_some(), bounds).await {
            Ok(joined) => joined,
            Err(error) if error.is_of_one_object() => {
                tails.findings.push((Verdict::Unknown, place(), error.to_string()));
                continue;
            }
            Err(error) => return Err(error),
        };
        // Whole by now.
        if archive.is_stored(WalName::Segment(segment)).await? {
            continue;
        }
        let Some((joined, walked)) = joined else { continue };
        tails.findings.extend(joined.beside.iter().map(|key| {
            let message = "it begins within another piece, as no single receiver writes it; what both hold is the same";
            (Verdict::Damaged, key.to_string(), message.to_owned())
        }));
        tails.findings.extend(joined.broken.map(|broken| {
            let (end, reason) = (joined.end, &broken.reason);
            if broken.newer {
                let hint = broken.newer_hint();
                let goes_on = format!("the live tail of `{segment}` goes on behind byte {end:#X}");
                let message = format!("{reason}: {goes_on}, and a recovery stops there with an error; {hint}");
                return (Verdict::Unknown, broken.key, message);
            }
            let verdict = if broken.missing { Verdict::Missing } else { Verdict::Damaged };
            let message = format!("{reason}: the live tail of `{segment}` ends at byte {end:#X}");
            (verdict, broken.key, message)
        }));
        if let Some(walked) = walked {
            tails.records += walked.records;
            let fault = chains.and_then(|chains| chains.judge_tail(segment, &walked));
            tails.findings.extend(fault.map(|fault| (Verdict::Damaged, place(), fault)));
        }
    }
    Ok(tails)
}

/// Segments of which there are pieces, and that are not there whole.
pub(super) fn unfinished(holdings: &Holdings) -> BTreeSet<SegmentName> {
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
