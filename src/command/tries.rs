//! How often an object is read: faults of the store are borne for a while, damage may have happened on the way once.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, sleep};

use crate::repo::RepoError;

/// How often a damaged object is read.
const TRIES_AT_DAMAGE: u32 = 2;
const LEAST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Reads until it succeeds, but no longer than `retry`; `again` learns what is tried again.
pub(super) async fn with_retries<T, F: Future<Output = Result<T, RepoError>>>(
    mut read: impl FnMut() -> F,
    retry: Duration,
    again: impl Fn(&RepoError),
) -> Result<T, RepoError> {
    let pauses = ExponentialBuilder::new().with_min_delay(LEAST_PAUSE).with_max_delay(LONGEST_PAUSE);
    let mut pauses = pauses.with_jitter().without_max_times().build();
    let begin = Instant::now();
    let mut damaged = 0;
    loop {
        let error = match read().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        damaged += u32::from(matches!(error, RepoError::Damaged { .. }));
        let is_tried_again = match &error {
            RepoError::Damaged { .. } => damaged < TRIES_AT_DAMAGE,
            error => error.is_temporary() && begin.elapsed() < retry,
        };
        if !is_tried_again {
            return Err(error);
        }
        again(&error);
        sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
    }
}
