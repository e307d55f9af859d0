//! The clock of long-running work. A test gives another.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

/// Tells the time, and waits for one.
///
/// * `sleep_until` returns soon after `now` has reached the time, also when the clock is set or the machine was suspended meanwhile.
/// * Nothing is lost when a sleep is dropped.
#[async_trait]
pub trait Clock: Send + Sync + fmt::Debug {
    /// The time.
    fn now(&self) -> Timestamp;

    /// Waits until it is this time.
    async fn sleep_until(&self, time: Timestamp);
}

/// This machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct MachineClock;

/// The machine's clock may be set, and timers stand still while it is suspended: it is looked at least so often.
const LOOK: Duration = Duration::from_secs(60);

impl MachineClock {
    /// It, to be shared.
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(MachineClock)
    }
}

#[async_trait]
impl Clock for MachineClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    async fn sleep_until(&self, time: Timestamp) {
        loop {
            // Negative: it is over.
            let Ok(left) = Duration::try_from(time.duration_since(self.now())) else { return };
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_over_is_not_waited_for() {
        let clock = MachineClock;
        clock.sleep_until(clock.now()).await;
        clock.sleep_until(Timestamp::UNIX_EPOCH).await;
        let later = clock.now() + jiff::SignedDuration::from_millis(20);
        clock.sleep_until(later).await;
        assert!(clock.now() >= later);
    }
}
