//! The long-running process: it runs what is due, receives WAL, looks, and tells over HTTP what it saw.
//!
//! All that it does is also a command. What it must know of the past is in the repository, so that after a restart, or on another
//! host, it goes on where it was. [`Job`], [`OnLook`] and [`Pages`] are where runs, alarms and pages are plugged in.

mod answer;
mod due;
mod health;
pub mod http;
mod keeper;
mod looks;
pub mod notify;
mod receiver;
mod running;

pub use running::run;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use crate::command::overview::{Overview, Watched};
use crate::command::run_note::Noting;
use crate::command::wal_receive::ReceiveSettings;
use crate::command::{Failure, RepositorySettings};
use crate::repo::{RunKind, Schedule, Writer};

/// What is served.
pub struct Serve {
    /// Where runs are noted and claimed.
    pub repository: RepositorySettings,
    /// Who runs them.
    pub writer: Writer,
    /// What is due when. At most one of a kind.
    pub timetable: Vec<Entry>,
    /// Whether what was missed is run as soon as it can be.
    pub catch_up: bool,
    /// How WAL is received, if it is.
    pub receive: Option<ReceiveSettings>,
    /// What is looked at.
    pub watched: Watched,
    /// How often.
    pub look: Duration,
    /// Who is told what was seen.
    pub on_look: Vec<Box<dyn OnLook>>,
    /// Where HTTP is served, if it is.
    pub http: Option<http::Listen>,
    /// What is shown there.
    pub pages: Pages,
    /// Whom to tell that this process is alive.
    pub notify: notify::Notify,
}

/// Something that is due again and again.
#[derive(Clone)]
pub struct Entry {
    /// What.
    pub kind: RunKind,
    /// When.
    pub schedule: Schedule,
    /// How.
    pub job: Arc<dyn Job>,
}

/// A command with its settings.
///
/// * It leaves notes of its run, by `command::run_note`, and ends when `noting.stop` says so.
/// * Nothing else of the same kind runs beside it in this process.
/// * It may block the thread that it is called on.
#[async_trait(?Send)]
pub trait Job: Send + Sync {
    /// Runs it once.
    async fn run(&self, noting: &Noting) -> Result<(), Failure>;
}

/// Somebody who is told of every look: alarms.
///
/// * What is put into `overview.alerts` is what pages and metrics show.
/// * It must come to an end by itself: the next look waits for it.
#[async_trait]
pub trait OnLook: Send {
    /// What was seen, or why nothing was.
    async fn look(&mut self, seen: Result<&mut Overview, &Failure>, now: Timestamp);
}

/// Makes the page. It may look into the repository for what is asked, and must come to an end by itself.
#[async_trait]
pub trait PageMaker: Send + Sync {
    /// HTML, from what was seen last, why nothing was seen since, and the query, as the browser sent it.
    async fn page(&self, overview: Arc<Overview>, trouble: Option<String>, query: &str) -> String;
}

/// Makes the metrics of what was seen; `None`: the look at that time failed. Called for each request.
pub type MetricsMaker = dyn Fn(Option<&Overview>, Timestamp) -> String + Send + Sync;

/// What is shown over HTTP.
#[derive(Clone)]
pub struct Pages {
    /// `/`
    pub page: Arc<dyn PageMaker>,
    /// `/metrics`: OpenMetrics.
    pub metrics: Arc<MetricsMaker>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("kind", &self.kind).field("schedule", &self.schedule).finish_non_exhaustive()
    }
}
