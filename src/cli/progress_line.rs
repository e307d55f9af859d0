//! How far long work is: a bar on a terminal, a line every 30 s elsewhere.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;
use crate::command::progress::{Phase, Progress};

/// Shows progress until it is dropped.
pub struct ProgressLine {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

const LOOK: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(30);

impl ProgressLine {
    /// Begins to show; nothing if `quiet`.
    pub fn show(progress: Arc<Progress>, quiet: bool) -> Self {
        let (stop, stopped) = mpsc::channel();
        let on_terminal = io::stderr().is_terminal();
        let show = move || match on_terminal {
            true => bar(&progress, &stopped),
            false => lines(&progress, &stopped),
        };
        // Without a thread there is no progress to see, and the work goes on.
        let thread = if quiet { None } else { thread::Builder::new().spawn(show).ok() };
        ProgressLine { stop: Some(stop), thread }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn bar(progress: &Progress, stopped: &mpsc::Receiver<()>) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    const TEMPLATE: &str = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
        bar.set_style(style.progress_chars("=> "));
    }
    while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        let (done, total) = progress.bytes();
        bar.set_length(total.max(done));
        bar.set_position(done);
        bar.set_message(progress.phase().words());
    }
    bar.finish_and_clear();
}

fn lines(progress: &Progress, stopped: &mpsc::Receiver<()>) {
    let begin = Instant::now();
    while stopped.recv_timeout(LINE_EVERY) == Err(RecvTimeoutError::Timeout) {
        // With stderr closed there is nobody to tell.
        writeln!(io::stderr().lock(), "pgark: {}", line(progress, begin.elapsed(), progress.copying())).ok();
    }
}

/// `copying` is how much of the time was spent on that: waiting for a checkpoint says nothing of what is left.
fn line(progress: &Progress, elapsed: Duration, copying: Duration) -> String {
    let phase = progress.phase();
    let (done, total) = progress.bytes();
    if phase != Phase::Copying || total == 0 || done == 0 {
        return format!("{} ({} s)", phase.words(), elapsed.as_secs());
    }
    let rate = done as f64 / copying.as_secs_f64().max(0.001);
    let left = total.saturating_sub(done) as f64 / rate;
    let percent = 100 * done / total;
    let (done, total, rate) = (output::size(done), output::size(total), output::size(rate as u64));
    format!("{}: {done} of {total} ({percent} %), {rate}/s, {left:.0} s left", phase.words())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_rate_and_time_left() {
        let progress = Progress::default();
        assert_eq!(line(&progress, Duration::from_secs(3), Duration::ZERO), "getting ready (3 s)");
        progress.enter(Phase::Copying);
        progress.expect(100 << 20);
        progress.advance(25 << 20);
        assert_eq!(
            line(&progress, Duration::from_secs(305), Duration::from_secs(5)),
            "copying: 25.0 MiB of 100.0 MiB (25 %), 5.0 MiB/s, 15 s left"
        );
    }
}
