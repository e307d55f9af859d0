//! How `verify` reads: again after what may pass, and what an error says about other objects.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, sleep};

use crate::repo::RepoError;
use crate::storage::StoreErrorKind;

/// How often a damaged object is read: the damage may have happened on the way.
const TRIES_AT_DAMAGE: u32 = 2;

/// Whether an error says nothing about other objects.
pub(super) fn is_of_one_object(error: &RepoError) -> bool {
    use StoreErrorKind::{Changed, Denied, LocalIo};
    matches!(error, RepoError::Store(error) if matches!(error.kind, Denied | LocalIo | Changed))
}

/// Reads until it is read, is damaged twice, or the store has failed for so long.
pub(super) async fn with_retries<T, F: Future<Output = Result<T, RepoError>>>(
    mut read: impl FnMut() -> F,
    retry: Duration,
) -> Result<T, RepoError> {
    let pauses =
        ExponentialBuilder::new().with_min_delay(Duration::from_millis(500)).with_max_delay(Duration::from_secs(15));
    let mut pauses = pauses.with_jitter().without_max_times().build();
    let begin = Instant::now();
    let mut damaged = 0;
    loop {
        let error = match read().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        damaged += u32::from(matches!(error, RepoError::Damaged { .. }));
        let again = match &error {
            RepoError::Damaged { .. } => damaged < TRIES_AT_DAMAGE,
            error => error.is_temporary() && begin.elapsed() < retry,
        };
        if !again {
            return Err(error);
        }
        sleep(pauses.next().unwrap_or(Duration::from_secs(15))).await;
    }
}
