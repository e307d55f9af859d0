//! The looks at repository and server, and who is told of them.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use jiff::SignedDuration;
use tokio::time::{Instant, timeout};

use super::OnLook;
use super::running::Shared;
use crate::command::bounds::{apart, bounded};
use crate::command::overview::{self, Watched};
use crate::command::stop::Stop;
use crate::command::{Circumstances, Failure, FailureKind};
use crate::repo::Writer;

/// A look that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Who is told of a look has so long.
const TELLING: Duration = Duration::from_secs(300);
/// No look takes longer, with all that hangs on it.
pub(super) const LONGEST: Duration = Duration::from_secs(600);

/// Looks again and again.
pub(super) async fn look(
    shared: Arc<Shared>,
    (watched, writer): (Watched, Writer),
    every: Duration,
    mut on_look: Vec<Box<dyn OnLook>>,
    mut stop: Stop,
) -> Result<(), Failure> {
    let pause = every;
    let every = SignedDuration::try_from(every).unwrap_or(SignedDuration::from_mins(1));
    loop {
        shared.known().turn = Instant::now() + pause + LONGEST;
        let now = shared.clock.now();
        let circumstances = Circumstances { now, writer: writer.clone() };
        let watched = watched.clone();
        let looking = apart(move || async move { overview::run(&watched, &circumstances).await });
        let mut seen = tokio::select! {
            biased;
            () = stop.asked() => return Ok(()),
            seen = AssertUnwindSafe(bounded(looking, Some(PATIENCE), None)).catch_unwind() => seen.unwrap_or_else(|_| {
                Err(Failure::new(FailureKind::Internal, "a defect of pgark showed itself in a look"))
            }),
        };
        // A signal is for all parts.
        if seen.as_ref().is_err_and(|failure| failure.kind == FailureKind::Interrupted) {
            stop.asked().await;
            return Ok(());
        }
        for told in &mut on_look {
            let telling = told.look(seen.as_mut().map_err(|failure| &*failure), now);
            let telling = timeout(TELLING, AssertUnwindSafe(telling).catch_unwind());
            tokio::select! {
                biased;
                () = stop.asked() => return Ok(()),
                told = telling => match told {
                    Ok(Ok(())) => {}
                    // The hook has told of it.
                    Ok(Err(_)) => tracing::error!("who is told of a look showed a defect, and is told of the next one"),
                    Err(_) => tracing::error!("who is told of a look did not come to an end, and is told of the next one"),
                }
            }
        }
        if let Err(failure) = &seen {
            tracing::warn!("the repository cannot be looked at: {failure}");
        }
        {
            let mut known = shared.known();
            known.looked = Some(now);
            known.trouble = seen.as_ref().err().map(|failure| failure.message.clone());
            if let Ok(seen) = seen {
                known.overview = Some(Arc::new(seen));
            }
        }
        let next = now.checked_add(every).unwrap_or(now);
        tokio::select! {
            biased;
            () = stop.asked() => return Ok(()),
            () = shared.clock.sleep_until(next) => {}
            () = shared.news.notified() => {}
        }
    }
}
