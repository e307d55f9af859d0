//! How often an object is read: faults of the store are borne for a while, damage may have happened on the way once.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, sleep};

use crate::repo::RepoError;

/// How often a damaged object is read.
const TRIES_AT_DAMAGE: u32 = 2;
const LEAST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Reads until it succeeds, or faults have lasted for `retry` since the first one; `again` learns what is tried again.
pub(super) async fn with_retries<T, F: Future<Output = Result<T, RepoError>>>(
    mut read: impl FnMut() -> F,
    retry: Duration,
    again: impl Fn(&RepoError),
) -> Result<T, RepoError> {
    let pauses = ExponentialBuilder::new().with_min_delay(LEAST_PAUSE).with_max_delay(LONGEST_PAUSE);
    let mut pauses = pauses.with_jitter().without_max_times().build();
    let mut since = None;
    let mut damaged = 0;
    loop {
        let error = match read().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        damaged += u32::from(matches!(error, RepoError::Damaged { .. }));
        // A long way up to the first fault is no fault.
        let borne = since.get_or_insert_with(Instant::now).elapsed();
        let is_tried_again = match &error {
            RepoError::Damaged { .. } => damaged < TRIES_AT_DAMAGE,
            error => error.is_temporary() && borne < retry,
        };
        if !is_tried_again {
            return Err(error);
        }
        again(&error);
        sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{StoreError, StoreErrorKind};

    const RETRY: Duration = Duration::from_secs(300);

    /// Reads that take so long each, of which the first ones fail. Gives how many there were.
    async fn reads(takes: Duration, failing: u32) -> Result<u32, RepoError> {
        let mut count = 0;
        let read = || {
            count += 1;
            let fails = count <= failing;
            async move {
                sleep(takes).await;
                let error = || StoreError::new(StoreErrorKind::Unavailable, "the line is cut");
                if fails { Err(RepoError::from(error())) } else { Ok(()) }
            }
        };
        with_retries(read, RETRY, |_| {}).await.map(|()| count)
    }

    #[tokio::test(start_paused = true)]
    async fn faults_are_borne_from_the_first_one_on() {
        assert_eq!(reads(RETRY * 3, 1).await.unwrap(), 2);
        assert_eq!(reads(Duration::from_secs(20), 9).await.unwrap(), 10);
        assert!(reads(Duration::from_secs(20), 100).await.is_err());
        assert!(reads(RETRY, 2).await.is_err());
    }
}
