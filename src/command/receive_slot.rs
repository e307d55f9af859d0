//! The replication slot of a receiver: made, waited for while another receiver has it, and made again when it is lost.

use std::time::Duration;

use tokio::time::sleep;

use super::failure::{Failure, FailureKind};
use super::receive_halt::Halt;
use super::wal_receive::Receiver;
use crate::postgres::Lsn;
use crate::server::Replication;
use crate::server::replication::ServerShape;
use crate::server::replication_slot::Slot;
use crate::server::wal_stream::StreamError;

/// How often a slot is asked for that another receiver has.
const SLOT_PAUSE: Duration = Duration::from_secs(2);

impl Receiver<'_> {
    /// Sees to the slot; gives from where on it keeps WAL, where the server tells.
    pub(super) async fn slot(&self, server: &mut Replication, shape: ServerShape) -> Result<Option<Lsn>, Halt> {
        let name = &self.settings.slot;
        let found = server.slot(shape.ident.major, name).await?;
        if found == Slot::Missing && !self.settings.create_slot {
            let message = format!("the server has no replication slot `{name}`");
            return Err(Halt::Failed(Failure::new(FailureKind::Server, message).with_hint(
                "`--create-slot` makes it; from then on the server keeps WAL until it is in the repository",
            )));
        }
        if self.settings.create_slot && !matches!(found, Slot::There(_)) && server.create_slot(name).await? {
            tracing::info!("made the replication slot `{name}`");
        }
        match found {
            Slot::There(kept) => Ok(kept),
            Slot::Missing | Slot::NotTold => match server.slot(shape.ident.major, name).await? {
                Slot::There(kept) => Ok(kept),
                Slot::Missing | Slot::NotTold => Ok(None),
            },
        }
    }

    /// Asks for the slot until it is free, or the answer is another. The store is not asked for anything meanwhile.
    pub(super) async fn slot_is_free(&self) {
        loop {
            sleep(SLOT_PAUSE).await;
            let Some(place) = &self.place else { return };
            let Ok(server) = Replication::connect(&self.settings.conninfo).await else { return };
            // Nothing is told to the server, so this moves nothing.
            match server.start_wal(Some(&self.settings.slot), place.timeline, place.from).await {
                Err(StreamError::SlotInUse(_)) => {}
                Ok(Some(stream)) => return stream.close().await,
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Makes a lost slot again, where slots may be made.
    pub(super) async fn renew_slot(&self, why: &str) -> Result<(), Halt> {
        let name = &self.settings.slot;
        if !self.settings.create_slot {
            let message = format!("the replication slot `{name}` is lost: {why}");
            return Err(Halt::Failed(Failure::new(FailureKind::Server, message).with_hint(
                "drop it and make it again, or use `--create-slot`; `max_slot_wal_keep_size` bounds what a slot may keep",
            )));
        }
        let conninfo = self.place.as_ref().map_or(&self.settings.conninfo, |place| &place.conninfo);
        let mut server = Replication::connect(conninfo).await?;
        let major = server.shape().await?.ident.major;
        // Before PostgreSQL 15 nothing tells a lost slot from one of another kind: that one may be somebody else's.
        if !matches!(server.slot(major, name).await?, Slot::There(_)) {
            let message = format!("the replication slot `{name}` cannot be used: {why}");
            return Err(Halt::Failed(Failure::new(FailureKind::Server, message).with_hint(
                "if it is a lost slot of this receiver, drop it; if it is somebody else's, give another name with `--slot`",
            )));
        }
        tracing::warn!("the replication slot `{name}` is lost ({why}) and is made again");
        server.drop_slot(name).await?;
        server.create_slot(name).await?;
        Ok(())
    }
}
