//! The looks at repository and server, and who is told of them.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;

use super::OnLook;
use super::running::Shared;
use crate::command::bounds::{apart, bounded};
use crate::command::overview::{self, Watched};
use crate::command::stop::Stop;
use crate::command::{Circumstances, Failure, FailureKind};
use crate::repo::Writer;

/// A look that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Looks again and again.
pub(super) async fn look(
    shared: Arc<Shared>,
    (watched, writer): (Watched, Writer),
    every: Duration,
    mut on_look: Vec<Box<dyn OnLook>>,
    mut stop: Stop,
) -> Result<(), Failure> {
    let every = SignedDuration::try_from(every).unwrap_or(SignedDuration::from_mins(1));
    loop {
        let now = shared.clock.now();
        let circumstances = Circumstances { now, writer: writer.clone() };
        let watched = watched.clone();
        let looking = apart(move || async move { overview::run(&watched, &circumstances).await });
        let mut seen = tokio::select! {
            biased;
            () = stop.asked() => return Ok(()),
            seen = bounded(looking, Some(PATIENCE), None) => seen,
        };
        // A signal is for all parts.
        if seen.as_ref().is_err_and(|failure| failure.kind == FailureKind::Interrupted) {
            stop.asked().await;
            return Ok(());
        }
        for told in &mut on_look {
            let telling = told.look(seen.as_mut().map_err(|failure| &*failure), now);
            tokio::select! {
                biased;
                () = stop.asked() => return Ok(()),
                () = telling => {}
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
