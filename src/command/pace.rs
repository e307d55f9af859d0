//! A bound on how fast a command reads, shared by all its threads.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// At most so many bytes a second, or as fast as it goes.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: Option<u64>,
    /// Until when what was read so far should have taken.
    due: Mutex<Instant>,
}

impl Pace {
    /// At most this many bytes a second.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Pace { bytes_per_second: bytes_per_second.filter(|rate| *rate > 0), due: Mutex::new(Instant::now()) }
    }

    /// Blocks this thread until `bytes` more may be read.
    pub fn wait(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let until = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            // What was not used does not add up.
            *due = (*due).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *due
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_takes_as_long_as_it_must() {
        let pace = Pace::new(Some(1_000_000));
        let begin = Instant::now();
        (0..10).for_each(|_| pace.wait(10_000));
        assert!(begin.elapsed() >= Duration::from_millis(99));
        Pace::new(None).wait(usize::MAX);
    }
}
