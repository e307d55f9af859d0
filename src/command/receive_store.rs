//! How a receiver stores what it made: again and again until the store has it, and never over another content.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::failure::{Failure, FailureKind};
use super::receive_halt::{Complaints, Halt, persistently};
use super::receive_segment::{Draft, packed};
use super::receive_uploads::{Gauge, Turn};
use crate::postgres::{SegmentName, WalName};
use crate::repo::live_piece::LivePiece;
use crate::repo::live_tail::PiecePut;
use crate::repo::wal_object::WalObject;
use crate::repo::{Archived, WalArchive};

/// The store, as a receiver uses it.
#[derive(Clone)]
pub(super) struct ReceivingStore {
    pub(super) archive: WalArchive,
    pub(super) complaints: Arc<Complaints>,
}

impl ReceivingStore {
    /// Stores a whole segment. Gives the bytes of its object.
    pub(super) async fn put_segment(
        &self,
        name: SegmentName,
        packing: JoinHandle<Result<WalObject, Failure>>,
        turn: Turn,
        gauge: &Gauge,
    ) -> Result<u64, Halt> {
        let object = packed(packing).await?;
        let bytes = object.size();
        // What is in a file is bounded by the number of segments that are under way.
        let _held = gauge.hold(object.bytes.len() as u64);
        turn.comes().await;
        match persistently(&self.complaints, || self.archive.put(WalName::Segment(name), &object)).await? {
            Archived::Conflict { theirs, writer, .. } => {
                let ours = object.header.sha256;
                let message = format!(
                    "another content is archived as `{name}`: sha256 {theirs} by {writer}; the server sent sha256 {ours}"
                );
                Err(Halt::Refused(Failure::new(FailureKind::Conflict, message).with_hint(
                    "two servers write to one place: find out which one is the primary, and give the other its own `name`",
                )))
            }
            Archived::Created | Archived::AlreadyThere | Archived::KeptBeside(_) => Ok(bytes),
        }
    }

    /// Stores a piece.
    pub(super) async fn put_piece(&self, draft: Draft, turn: Turn, gauge: &Gauge) -> Result<LivePiece, Halt> {
        let _held = gauge.hold(draft.bytes.len() as u64);
        let piece = draft.pack().await?;
        turn.comes().await;
        match persistently(&self.complaints, || self.archive.put_piece(&piece)).await? {
            PiecePut::Created | PiecePut::AlreadyThere => Ok(piece),
            // Equal or not: whoever streams the segment from its start again compares all that lies there.
            PiecePut::Conflict { theirs, .. } => Err(Halt::Another(format!(
                "the piece of `{}` at {:#X} was stored by {} at {}",
                piece.key.segment, piece.key.offset, theirs.writer, theirs.written
            ))),
        }
    }

    /// Deletes the pieces of a segment that is whole. What cannot be deleted is left to `expire`.
    pub(super) async fn delete_tail(&self, name: SegmentName) {
        let refused = match self.archive.delete_tail(name).await {
            Ok(deletion) => deletion.refused.map(Failure::from),
            Err(error) => Some(error.into()),
        };
        if let Some(why) = refused {
            tracing::info!("the pieces of `{name}` stay, which is whole now: {why}");
        }
    }
}
