//! What `serve` shows and tells: the page with ways back, metrics, alarms.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::Mutex as Turn;
use tokio::time::timeout;

use crate::command::alert::Alarm;
use crate::command::alert_rules::AlertRules;
use crate::command::bounds::{apart, bounded};
use crate::command::checklist::{self, Point};
use crate::command::metrics::{blind_text, metrics_text};
use crate::command::overview::Overview;
use crate::command::ways::{self, Moment, Way};
use crate::command::{Failure, FailureKind, RepositorySettings};
use crate::page::{View, asked, page};
use crate::serve::{MetricsMaker, OnLook, PageMaker};

/// A browser asks for the page again after so many seconds.
const REFRESH: u32 = 60;
/// Who asks for a page does not wait longer for the ways back.
const PATIENCE: Duration = Duration::from_secs(15);

/// Who asks does not wait longer for others that ask.
const TURN: Duration = Duration::from_secs(5);
/// So many moments are answered between two looks: each costs the store requests.
const MOMENTS: usize = 30;

/// The page. The ways back are found when somebody asks for it, once for each look at the repository.
pub struct LivePage {
    repository: RepositorySettings,
    found: Turn<Option<Found>>,
}

/// What belongs to a look.
#[derive(Clone)]
struct Found {
    at: Timestamp,
    ways: Vec<Way>,
    checklist: Vec<Point>,
    asked: Vec<(Timestamp, Vec<Way>)>,
}

impl LivePage {
    /// Of this repository.
    pub fn new(repository: RepositorySettings) -> Self {
        LivePage { repository, found: Turn::new(None) }
    }

    /// What belongs to this look, with the ways to a moment. One at a time: each reads in the repository.
    async fn found(&self, overview: &Arc<Overview>, at: Option<Timestamp>) -> Result<Found, Failure> {
        let busy = || Failure::new(FailureKind::Unavailable, "others ask just now");
        let mut kept = timeout(TURN, self.found.lock()).await.map_err(|_| busy())?;
        if kept.as_ref().is_none_or(|found| found.at != overview.at) {
            // What fails now is not tried again before the next look.
            *kept = Some(Found { at: overview.at, ways: Vec::new(), checklist: Vec::new(), asked: Vec::new() });
            *kept = Some(self.find(Arc::clone(overview)).await?);
        }
        let Some(found) = kept.as_mut() else { return Err(busy()) };
        if let Some(at) = at.filter(|at| found.asked.iter().all(|(known, _)| known != at)) {
            if found.asked.len() >= MOMENTS {
                return Err(Failure::new(FailureKind::Unavailable, "too much was asked since the last look"));
            }
            found.asked.push((at, Vec::new()));
            let repository = self.repository.clone();
            let finding = apart(move || async move { ways::run(&repository, &[Moment::Time { at }]).await });
            let ways = bounded(finding, Some(PATIENCE), None).await?;
            found.asked.pop();
            found.asked.push((at, ways));
        }
        Ok(found.clone())
    }

    async fn find(&self, overview: Arc<Overview>) -> Result<Found, Failure> {
        let repository = self.repository.clone();
        let finding = apart(move || async move {
            let ways = ways::run(&repository, &ways::moments(&overview)).await?;
            let checklist = checklist::run(&repository, &overview).await?;
            Ok(Found { at: overview.at, ways, checklist, asked: Vec::new() })
        });
        bounded(finding, Some(PATIENCE), None).await
    }
}

#[async_trait]
impl PageMaker for LivePage {
    async fn page(&self, overview: Arc<Overview>, trouble: Option<String>, query: &str) -> String {
        let asked = asked(query);
        let at = asked.as_ref().and_then(|asked| asked.as_ref().ok()).copied();
        let mut view = View {
            program: self.repository.call(),
            form: true,
            // Who reads an answer does not want it to go.
            refresh_seconds: asked.is_none().then_some(REFRESH),
            asked,
            trouble,
            ..View::default()
        };
        match self.found(&overview, at).await {
            Ok(found) => {
                (view.ways, view.checklist) = (found.ways, found.checklist);
                let answer = found.asked.into_iter().find(|(known, _)| Some(*known) == at);
                view.ways.extend(answer.into_iter().flat_map(|(_, ways)| ways));
            }
            Err(failure) if at.is_some() => view.asked = Some(Err(format!("this cannot be told now: {failure}"))),
            Err(failure) => tracing::warn!("the page has no ways back: {failure}"),
        }
        page(&overview, &view)
    }
}

/// Which ways of sending alerts work, as the alarm found last.
type Channels = Arc<Mutex<Vec<(&'static str, bool)>>>;

/// What is told of each look, and what metrics say of that.
pub fn alarm_and_metrics(alarm: Alarm, cluster: String, rules: AlertRules) -> (Box<dyn OnLook>, Arc<MetricsMaker>) {
    let channels: Channels = Arc::new(Mutex::new(alarm.channels().collect()));
    let known = Arc::clone(&channels);
    let metrics = move |seen: Option<&Overview>, at: Timestamp| {
        let channels = known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match seen {
            Some(overview) => metrics_text(overview, &cluster, &rules, channels),
            None => blind_text(&cluster, at, channels),
        }
    };
    (Box::new(Told { alarm, channels }), Arc::new(metrics))
}

struct Told {
    alarm: Alarm,
    channels: Channels,
}

#[async_trait]
impl OnLook for Told {
    async fn look(&mut self, seen: Result<&mut Overview, &Failure>, now: Timestamp) {
        self.alarm.look(seen.map(|overview| &*overview), now).await;
        *self.channels.lock().unwrap_or_else(PoisonError::into_inner) = self.alarm.channels().collect();
    }
}
