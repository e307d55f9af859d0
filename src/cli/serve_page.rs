//! What `serve` shows and tells: the page with ways back, metrics, alarms.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::Mutex as Turn;

use crate::command::alert::Alarm;
use crate::command::alert_rules::AlertRules;
use crate::command::bounds::{apart, bounded};
use crate::command::checklist::{self, Point};
use crate::command::metrics::{blind_text, metrics_text};
use crate::command::overview::Overview;
use crate::command::ways::{self, Moment, Way};
use crate::command::{Failure, RepositorySettings};
use crate::page::{View, asked, page};
use crate::serve::{MetricsMaker, OnLook, PageMaker};

/// A browser asks for the page again after so many seconds.
const REFRESH: u32 = 60;
/// Who asks for a page does not wait longer for the ways back.
const PATIENCE: Duration = Duration::from_secs(15);

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
}

impl LivePage {
    /// Of this repository.
    pub fn new(repository: RepositorySettings) -> Self {
        LivePage { repository, found: Turn::new(None) }
    }

    async fn found(&self, overview: &Arc<Overview>) -> Result<Found, Failure> {
        let mut found = self.found.lock().await;
        if let Some(found) = found.as_ref().filter(|found| found.at == overview.at) {
            return Ok(found.clone());
        }
        let (repository, overview) = (self.repository.clone(), Arc::clone(overview));
        let finding = apart(move || async move {
            let ways = ways::run(&repository, &ways::moments(&overview)).await?;
            let checklist = checklist::run(&repository, &overview).await?;
            Ok(Found { at: overview.at, ways, checklist })
        });
        Ok(found.insert(bounded(finding, Some(PATIENCE), None).await?).clone())
    }

    /// One at a time: each reads in the repository.
    async fn ways_to(&self, at: Timestamp) -> Result<Vec<Way>, Failure> {
        let _turn = self.found.lock().await;
        let repository = self.repository.clone();
        let finding = apart(move || async move { ways::run(&repository, &[Moment::Time { at }]).await });
        bounded(finding, Some(PATIENCE), None).await
    }
}

#[async_trait]
impl PageMaker for LivePage {
    async fn page(&self, overview: Arc<Overview>, query: &str) -> String {
        let mut view = View {
            program: self.repository.call(),
            form: true,
            asked: asked(query),
            refresh_seconds: Some(REFRESH),
            ..View::default()
        };
        match self.found(&overview).await {
            Ok(found) => (view.ways, view.checklist) = (found.ways, found.checklist),
            Err(failure) => tracing::warn!("the page has no ways back: {failure}"),
        }
        if let Some(Ok(at)) = view.asked {
            match self.ways_to(at).await {
                Ok(ways) => view.ways.extend(ways),
                Err(failure) => view.asked = Some(Err(format!("this cannot be told now: {failure}"))),
            }
        }
        // Who reads an answer does not want it to go.
        if view.asked.is_some() {
            view.refresh_seconds = None;
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
