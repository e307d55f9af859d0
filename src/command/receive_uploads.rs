//! Objects of a receiver on their way to the store: made side by side, stored in order. A receiver that is killed leaves no hole
//! behind which something lies: nobody could tell it from lost WAL.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::failure::{Failure, FailureKind};
use super::receive_halt::Halt;
use crate::postgres::{Lsn, SegmentName};
use crate::stream::Sha256;

/// What is under way. Dropping this gives it up.
#[derive(Default)]
pub(super) struct Uploads {
    tasks: JoinSet<(u64, Result<Stored, Halt>)>,
    queue: VecDeque<Pending>,
    next: u64,
    /// The first that is not durable.
    due: watch::Sender<u64>,
    bytes: Arc<AtomicU64>,
}

/// The moment when all before an upload is durable.
pub(super) struct Turn {
    id: u64,
    due: watch::Receiver<u64>,
}

impl Turn {
    /// Waits for it. Whoever gives the uploads up gives up this, too.
    pub(super) async fn comes(mut self) {
        if self.due.wait_for(|due| *due >= self.id).await.is_err() {
            pending::<()>().await;
        }
    }
}

struct Pending {
    id: u64,
    /// Where it ends.
    end: Lsn,
    is_piece: bool,
    done: bool,
}

/// An object that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// A piece of a segment.
    Piece { of: SegmentName, sha256: Sha256, bytes: u64 },
    /// A whole segment, of which there may be pieces.
    Segment { name: SegmentName, bytes: u64, has_pieces: bool, end: Lsn },
}

/// What came of waiting.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finished {
    pub(super) stored: Stored,
    /// Where the finished prefix ends, if it has grown.
    pub(super) durable: Option<Lsn>,
}

/// Bytes that are held for an upload, until this is dropped.
pub(super) struct HeldBytes(u64, Arc<AtomicU64>);

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Counts bytes that wait for the store.
#[derive(Clone)]
pub(super) struct Gauge(Arc<AtomicU64>);

impl Gauge {
    pub(super) fn hold(&self, bytes: u64) -> HeldBytes {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        HeldBytes(bytes, Arc::clone(&self.0))
    }
}

impl Uploads {
    /// Begins the upload of what ends at `end`; uploads are begun in the order of their ends.
    pub(super) fn begin<F>(&mut self, end: Lsn, is_piece: bool, upload: impl FnOnce(Turn) -> F)
    where
        F: Future<Output = Result<Stored, Halt>> + Send + 'static,
    {
        let id = self.next;
        self.next += 1;
        self.queue.push_back(Pending { id, end, is_piece, done: false });
        let upload = upload(Turn { id, due: self.due.subscribe() });
        self.tasks.spawn(async move { (id, upload.await) });
    }

    /// Waits for any upload. Nothing is lost when this is dropped.
    pub(super) async fn finished(&mut self) -> Result<Finished, Halt> {
        let Some(joined) = self.tasks.join_next().await else {
            return pending().await;
        };
        let broken = |_| Halt::Failed(Failure::new(FailureKind::Internal, "an upload broke off"));
        let (id, outcome) = joined.map_err(broken)?;
        let stored = outcome?;
        self.queue.iter_mut().filter(|each| each.id == id).for_each(|each| each.done = true);
        let mut durable = None;
        while self.queue.front().is_some_and(|first| first.done) {
            durable = self.queue.pop_front().map(|first| first.end);
        }
        self.due.send_replace(self.queue.front().map_or(self.next, |first| first.id));
        Ok(Finished { stored, durable })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether a piece is under way.
    pub(super) fn has_piece(&self) -> bool {
        self.queue.iter().any(|each| each.is_piece && !each.done)
    }

    /// Segments that are under way.
    pub(super) fn segments(&self) -> usize {
        self.queue.iter().filter(|each| !each.is_piece && !each.done).count()
    }

    /// Bytes that are held for uploads.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn gauge(&self) -> Gauge {
        Gauge(Arc::clone(&self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::sync::oneshot;

    fn piece() -> Stored {
        let of = "000000010000000000000001".parse().unwrap();
        Stored::Piece { of, sha256: Sha256([0; 32]), bytes: 1 }
    }

    proptest! {
        /// In whatever order uploads finish, the position never moves over one that has not.
        #[test]
        fn the_position_moves_over_a_finished_prefix_only(count in 1usize..12, seed: u64) {
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
                let mut uploads = Uploads::default();
                let mut open = Vec::new();
                for end in 1..=count as u64 {
                    let (finish, finished) = oneshot::channel();
                    uploads.begin(Lsn(end), true, |_| async move {
                        finished.await.ok();
                        Ok(piece())
                    });
                    open.push((end, finish));
                }
                let (mut random, mut left, mut position) = (seed, (1..=count as u64).collect::<Vec<_>>(), 0);
                while !open.is_empty() {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let (end, finish) = open.remove((random >> 33) as usize % open.len());
                    finish.send(()).unwrap();
                    let finished = uploads.finished().await.unwrap();
                    left.retain(|each| *each != end);
                    position = finished.durable.map_or(position, |to| to.0);
                    prop_assert_eq!(position, left.first().map_or(count as u64, |first| first - 1));
                }
                prop_assert!(uploads.is_empty() && !uploads.has_piece());
                Ok(())
            })?;
        }
    }

    #[tokio::test]
    async fn each_waits_for_its_turn() {
        let mut uploads = Uploads::default();
        let stored = Arc::new(std::sync::Mutex::new(Vec::new()));
        for end in 1..=5u64 {
            let stored = Arc::clone(&stored);
            uploads.begin(Lsn(end), end == 3, |turn| async move {
                // The later, the sooner it is made.
                tokio::time::sleep(std::time::Duration::from_millis(5 * (5 - end))).await;
                turn.comes().await;
                stored.lock().unwrap().push(end);
                Ok(piece())
            });
        }
        let mut durable = Vec::new();
        while !uploads.is_empty() {
            durable.extend(uploads.finished().await.unwrap().durable);
        }
        assert_eq!(*stored.lock().unwrap(), [1, 2, 3, 4, 5]);
        assert_eq!(durable, [1, 2, 3, 4, 5].map(Lsn));
    }

    #[tokio::test]
    async fn a_failure_and_a_panic_come_through() {
        let mut uploads = Uploads::default();
        uploads.begin(Lsn(1), false, |_| async { Err(Halt::Another("x".into())) });
        assert_eq!((uploads.segments(), uploads.has_piece()), (1, false));
        assert!(matches!(uploads.finished().await, Err(Halt::Another(_))));
        uploads.begin(Lsn(2), true, |_| async { panic!("on purpose") });
        assert!(matches!(uploads.finished().await, Err(Halt::Failed(_))));
    }
}
