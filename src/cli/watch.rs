//! `status --watch`: looks again and again, until a signal comes or nobody reads any more.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use super::args::ColorArg;
use super::run::{block_on, cannot_print, circumstances};
use super::{exit, look_text, output, values};
use crate::command::bounds::bounded;
use crate::command::check::Level;
use crate::command::status::{self, Status, StatusReport};
use crate::command::{Failure, FailureKind};

/// A look that takes longer is given up, and said to be.
const PATIENCE: Duration = Duration::from_secs(60);
/// More often would only burden the store.
const SHORTEST: Duration = Duration::from_secs(1);
/// To the upper left corner, and everything away.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// How each look is shown.
pub struct Screens {
    /// As a document a line.
    pub json: bool,
    /// In colour?
    pub color: ColorArg,
    /// So long after each other.
    pub interval: Duration,
}

/// What `--watch` was given.
pub fn interval(text: &str) -> Result<Duration, Failure> {
    values::duration(text).filter(|interval| *interval >= SHORTEST).ok_or_else(|| {
        let message = format!("`--watch`: `{text}` is not a duration of at least `1s` and at most a week");
        Failure::new(FailureKind::Usage, message).with_hint("write `10s` or `5m`")
    })
}

/// Looks until a signal comes; gives the exit code of the last look.
pub fn status(wanted: &Status, screens: &Screens) -> Result<u8, Failure> {
    let last = Cell::new(Level::Unknown);
    let outcome = block_on(bounded(look_on(wanted, screens, &last), None, None));
    match outcome {
        Err(failure) if failure.kind != FailureKind::Interrupted => Err(failure),
        _ => Ok(exit::checked(last.get())),
    }
}

async fn look_on(wanted: &Status, screens: &Screens, last: &Cell<Level>) -> Result<(), Failure> {
    loop {
        let circumstances = circumstances();
        let looked = bounded(status::run(wanted, &circumstances), Some(PATIENCE), None).await;
        let outcome = match looked {
            Err(failure) if failure.kind == FailureKind::Interrupted => return Err(failure),
            outcome => outcome,
        };
        last.set(outcome.as_ref().map_or(Level::Unknown, StatusReport::worst));
        let screen = if screens.json {
            document(&outcome, circumstances.now).map_err(cannot_print)?
        } else {
            screen(&outcome, circumstances.now, screens)
        };
        if !output::print_on(&screen).map_err(cannot_print)? {
            return Ok(());
        }
        sleep(screens.interval).await;
    }
}

/// One line.
fn document(outcome: &Result<StatusReport, Failure>, now: Timestamp) -> io::Result<String> {
    let document = match outcome {
        Ok(report) => serde_json::to_string(report),
        Err(failure) => {
            let Failure { message, hint, kind, .. } = failure;
            let error = serde_json::json!({"kind": kind.word(), "message": message, "hint": hint});
            serde_json::to_string(&serde_json::json!({"schema": 1, "at": now, "error": error}))
        }
    };
    document.map(|document| format!("{document}\n")).map_err(io::Error::other)
}

fn screen(outcome: &Result<StatusReport, Failure>, now: Timestamp, screens: &Screens) -> String {
    let clear = if io::stdout().is_terminal() { CLEAR } else { "" };
    let now = now.round(jiff::Unit::Second).unwrap_or(now);
    let every = humantime::format_duration(screens.interval);
    let text = match outcome {
        Ok(report) => look_text::status(report, output::colored(screens.color)),
        Err(failure) => {
            let hint = failure.hint.as_deref().map(|hint| format!("hint: {}\n", output::one_line(hint)));
            format!("it could not be told: {}\n{}", output::one_line(&failure.message), hint.unwrap_or_default())
        }
    };
    let end = if clear.is_empty() { "\n" } else { "" };
    format!("{clear}{now}, every {every}\n\n{text}{end}")
}
