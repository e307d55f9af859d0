//! A segment that is not archived whole, made of its live tail for a recovery that ends in it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::failure::{Failure, FailureKind};
use super::wal_fetch::{Fetched, WalFetch, bounds, cannot_write};
use crate::disk::Incoming;
use crate::disk::data_dir::ClusterFacts;
use crate::postgres::{SegmentName, WalName};
use crate::repo::joined_tail::JoinedTail;
use crate::repo::live_piece::ExpectedPiece;
use crate::repo::{RepoError, WalArchive};

/// The beginning of a segment, beside its place.
pub(super) struct FromTail<'a> {
    fetch: &'a WalFetch,
    segment: SegmentName,
    incoming: Incoming,
    joined: JoinedTail,
}

impl<'a> FromTail<'a> {
    /// Joins the pieces of the segment that is wanted; `None`: there are none.
    pub(super) async fn join(
        fetch: &'a WalFetch,
        archive: &WalArchive,
        facts: Option<ClusterFacts>,
        progress: &Arc<AtomicU64>,
    ) -> Result<Option<Self>, Failure> {
        let WalName::Segment(segment) = fetch.name else { return Ok(None) };
        let place = |e: std::io::Error| cannot_write(fetch, e);
        let expected = ExpectedPiece {
            ident: facts.map(|facts| facts.ident),
            segment_size: facts.map(|facts| facts.control.segment_size),
        };
        let incoming = Incoming::create(&fetch.path).map_err(place)?;
        let sink = incoming.writer().map_err(place)?;
        match archive.join_tail(segment, expected, sink, &bounds(fetch, progress)).await {
            Ok(Some((joined, _))) => Ok(Some(FromTail { fetch, segment, incoming, joined })),
            Ok(None) => Ok(None),
            Err(RepoError::Destination(error)) => Err(place(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether no byte of the segment is missing.
    pub(super) fn is_whole(&self) -> bool {
        self.joined.is_whole()
    }

    /// Gives the segment its place. Where its very first piece is missing or damaged there is nothing to give, and that is no proof
    /// of absence: something of the segment was there.
    /// Nor is a tail of which this pgark knows no more than that it goes on.
    pub(super) fn hand_over(self, ends_here: bool) -> Result<Fetched, Failure> {
        let FromTail { fetch, segment, incoming, joined } = self;
        let JoinedTail { end, segment_size, pieces, broken, .. } = joined;
        if end == 0 {
            let why = broken.map(|broken| format!("`{}`: {}", broken.key, broken.reason)).unwrap_or_default();
            let message = format!("nothing of its live tail can be used: {why}");
            return Err(Failure::new(FailureKind::Damaged, message).with_hint(format!(
                "to end recovery before this segment for good, add `--accept-end-at {segment}` to restore_command"
            )));
        }
        if let Some(broken) = broken.as_ref().filter(|broken| broken.newer && !ends_here) {
            let message = format!(
                "its live tail goes on behind byte {end} of {segment_size}: `{}`: {}",
                broken.key, broken.reason
            );
            return Err(Failure::new(FailureKind::Gap, message).with_hint(broken.newer_hint()));
        }
        if let Some(broken) = broken {
            tracing::warn!(
                "the live tail of `{segment}` ends at byte {end} of {segment_size}, and recovery with it: `{}`: {}",
                broken.key,
                broken.reason
            );
        } else {
            tracing::info!("`{segment}` is not archived whole: {end} bytes of {pieces} pieces of its live tail");
        }
        incoming.commit(segment_size).map_err(|e| cannot_write(fetch, e))?;
        Ok(Fetched::Restored)
    }
}
