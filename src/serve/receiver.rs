//! The receiver of WAL inside: it is the command, begun again when it fails.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::running::Shared;
use crate::command::bounds::apart;
use crate::command::receive_progress::ReceiveProgress;
use crate::command::stop::Stop;
use crate::command::wal_receive::{self, ReceiveSettings};
use crate::command::{Circumstances, Failure, FailureKind};
use crate::repo::Writer;

const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Who ran so long may begin again at once.
const WENT_WELL: Duration = Duration::from_secs(300);

/// Receives until it is told to stop. Failing then means that something that came is not durable.
pub(super) async fn receive(
    shared: Arc<Shared>,
    settings: ReceiveSettings,
    writer: Writer,
    mut stop: Stop,
) -> Result<(), Failure> {
    let mut pause = SHORTEST_PAUSE;
    loop {
        let progress = Arc::new(ReceiveProgress::default());
        shared.known().receiver = Some(Arc::clone(&progress));
        let circumstances = Circumstances { now: shared.clock.now(), writer: writer.clone() };
        let (settings, ending) = (settings.clone(), stop.clone());
        let begun = Instant::now();
        let work = apart(move || async move { wal_receive::run(&settings, &circumstances, &progress, ending).await });
        let work = tokio::spawn(work);
        // Why what came may not be durable.
        let trouble = match work.await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(failure)) if stop.is_asked() => return Err(failure),
            Ok(Err(failure)) => {
                let again = humantime::format_duration(pause);
                tracing::error!("the receiver failed, and begins again in {again}: {failure}");
                failure
            }
            // The hook has told of it.
            Err(_) => {
                tracing::error!("the receiver showed a defect, and begins again");
                Failure::new(FailureKind::Internal, "the receiver showed a defect")
            }
        };
        if begun.elapsed() > WENT_WELL {
            pause = SHORTEST_PAUSE;
        }
        tokio::select! {
            biased;
            () = stop.asked() => return Err(trouble),
            () = sleep(pause) => pause = (2 * pause).min(LONGEST_PAUSE),
        }
    }
}
