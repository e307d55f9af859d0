//! The long middle of a remote backup: one connection delivers, one thread takes the archives apart, several pack, and the
//! parts are stored in their order.

use std::future::pending;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{Semaphore, mpsc};

use super::backup_copy::{Copied, StoredPart, in_order, store};
use super::backup_parts::{PackedPart, Pages};
use super::basebackup::{Basebackup, Begun, NO_LINKS, blocking};
use super::failure::{Failure, FailureKind};
use super::pace::Pace;
use super::progress::Progress;
use super::remote_files::{Arrived, Feed, Unpacking};
use super::remote_parts::{Filling, PartFeeder, Room};
use crate::repo::Repository;
use crate::server::BaseBackup;
use crate::server::base_backup::{BackupEnd, Piece};

/// What was received, and stored but for what belongs at the end of a backup.
pub(super) struct Received {
    pub(super) copied: Copied,
    /// What has arrived; its directories and files are in `copied`.
    pub(super) arrived: Arrived,
    /// PostgreSQL's `backup_manifest`.
    pub(super) manifest: Vec<u8>,
    pub(super) end: BackupEnd,
}

/// Messages on their way to the thread that takes the archives apart: some 32 KiB each.
const MESSAGES: usize = 32;
/// Some millions of files.
const LARGEST_MANIFEST: usize = 1 << 30;

/// Receives everything. Memory does not grow with the cluster, but for the list of its files.
pub(super) async fn receive(
    settings: &Basebackup,
    repository: &Repository,
    begun: &Begun,
    backup: &mut BaseBackup,
    pages: Option<Pages>,
    progress: &Progress,
) -> Result<Received, Failure> {
    let (feed, fed) = mpsc::channel(MESSAGES);
    let (parts, mut filled) = mpsc::unbounded_channel();
    let room = Room::new(settings.jobs);
    let unpacking = Unpacking::new(PartFeeder::new(parts, &room), begun.ident.major, pages, Pace::new(settings.rate));
    let unpacking = tokio::task::spawn_blocking(move || unpacking.run(fed));
    let unpacking = async {
        let unreadable = |e: std::io::Error| {
            Failure::new(FailureKind::Server, format!("PostgreSQL's archive cannot be taken apart: {e}"))
        };
        let failed = |_| Failure::new(FailureKind::Internal, "a thread failed");
        unpacking.await.map_err(failed)?.map_err(unreadable)
    };
    let at_work = Arc::new(Semaphore::new(settings.jobs));
    let storing = stream::poll_fn(|context| filled.poll_recv(context))
        .map(|filling| {
            let at_work = Arc::clone(&at_work);
            async move {
                let packed = pack(filling, at_work, settings.level, pages).await?;
                store(settings, repository, begun, packed).await
            }
        })
        // One more than work at once: a part is on its way while the next is packed.
        .buffer_unordered(settings.jobs + 1)
        .try_collect::<Vec<StoredPart>>();
    // The first that fails says why; those who depend on it wait to be dropped.
    let ((end, manifest), mut arrived, parts) = tokio::try_join!(deliver(backup, feed, progress), unpacking, storing)?;
    let (directories, files) = (std::mem::take(&mut arrived.directories), std::mem::take(&mut arrived.files));
    Ok(Received { copied: Copied { directories, files, parts: in_order(parts) }, arrived, manifest, end })
}

async fn deliver(
    backup: &mut BaseBackup,
    feed: mpsc::Sender<Feed>,
    progress: &Progress,
) -> Result<(BackupEnd, Vec<u8>), Failure> {
    let mut manifest = Vec::new();
    loop {
        let next = match backup.next().await? {
            Piece::Archive(tablespace) => Feed::Archive(tablespace),
            Piece::Content(bytes) => {
                progress.advance(bytes.len() as u64);
                Feed::Content(bytes)
            }
            Piece::Manifest(bytes) if manifest.len() + bytes.len() <= LARGEST_MANIFEST => {
                manifest.extend_from_slice(&bytes);
                continue;
            }
            Piece::Manifest(_) => {
                return Err(Failure::new(FailureKind::Server, "PostgreSQL's backup_manifest does not end"));
            }
            Piece::LeftOut(said) => {
                let message = format!("the server would leave out data of the cluster: {said}");
                return Err(Failure::new(FailureKind::BadInput, message).with_hint(NO_LINKS));
            }
            Piece::End(end) => {
                feed.send(Feed::End).await.ok();
                return Ok((end, manifest));
            }
        };
        if feed.send(next).await.is_err() {
            return pending().await;
        }
    }
}

async fn pack(
    filling: Filling,
    at_work: Arc<Semaphore>,
    level: i32,
    pages: Option<Pages>,
) -> Result<PackedPart, Failure> {
    let permit = at_work.acquire_owned().await;
    let packed = blocking(move || {
        let packed = filling.pack(level, pages);
        drop(permit);
        packed
    });
    match packed.await? {
        Some(packed) => Ok(packed),
        None => pending().await,
    }
}
