//! `metrics`: an overview as OpenMetrics text, for `/metrics` of `serve` and for node_exporter's textfile collector.
//!
//! Only gauges, so that the text is that of Prometheus, too. What is not known is not there: an absent series is no zero.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::alert_settings::{AlertRules, Rule};
use super::list::{ListedBackup, ListedState};
use super::overview::Overview;
use super::status_expiry::ExpiryStatus;
use super::status_server::ServerStatus;
use crate::repo::{RunKind, RunRecord, RunStage};

type Labels = Vec<(&'static str, String)>;

/// Metrics that are being collected.
struct Collected {
    registry: Registry,
    cluster: String,
}

impl Collected {
    fn new(cluster: &str) -> Self {
        let mut collected = Collected { registry: Registry::default(), cluster: cluster.to_owned() };
        collected.each(
            "build_info",
            "The pgark that looked",
            [(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0)],
        );
        collected
    }

    /// A metric with a value for each set of labels; without any it is not there.
    fn each(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        let mut some = false;
        for (labels, value) in values {
            let labels = [vec![("cluster", self.cluster.clone())], labels].concat();
            family.get_or_create(&labels).set(value);
            some = true;
        }
        if some {
            self.registry.register(format!("pgark_{name}"), help, family);
        }
    }

    fn one(&mut self, name: &str, help: &str, value: impl Into<Option<f64>>) {
        self.each(name, help, value.into().map(|value| (Labels::new(), value)));
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        encode(&mut text, &self.registry).ok();
        text
    }
}

fn seconds(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

/// The text of all that an overview tells. `rules` are those that its alerts were found by, `channels` says which way of sending alerts
/// works.
pub fn metrics_text<'a>(
    overview: &Overview,
    cluster: &str,
    rules: &AlertRules,
    channels: impl IntoIterator<Item = (&'a str, bool)>,
) -> String {
    let mut metrics = Collected::new(cluster);
    metrics.one("up", "Whether the repository could be looked at", 1.0);
    metrics.one("look_timestamp_seconds", "When it was looked, by this machine's clock", seconds(overview.at));
    restorable(&mut metrics, overview);
    stored(&mut metrics, overview);
    runs(&mut metrics, overview);
    drills(&mut metrics, overview);
    server(&mut metrics, overview);
    alerts(&mut metrics, overview, rules);
    channel_states(&mut metrics, channels);
    metrics.text()
}

/// The same where the repository could not be looked at.
pub fn blind_text<'a>(cluster: &str, at: Timestamp, channels: impl IntoIterator<Item = (&'a str, bool)>) -> String {
    let mut metrics = Collected::new(cluster);
    metrics.one("up", "Whether the repository could be looked at", 0.0);
    metrics.one("look_timestamp_seconds", "When it was looked, by this machine's clock", seconds(at));
    channel_states(&mut metrics, channels);
    metrics.text()
}

fn restorable(metrics: &mut Collected, overview: &Overview) {
    let status = &overview.status;
    let newest = status.newest.as_ref();
    metrics.one(
        "newest_restorable_timestamp_seconds",
        "When the newest WAL that can be restored was stored, by the store's clock",
        newest.and_then(|newest| newest.stored).map(seconds),
    );
    metrics.one(
        "newest_restorable_commit_timestamp_seconds",
        "The newest commit that can be restored",
        newest.and_then(|newest| newest.last_commit).map(seconds),
    );
    let newest_lsn = newest.map(|newest| newest.lsn.0 as f64);
    metrics.one("newest_restorable_lsn_bytes", "The newest position that can be restored", newest_lsn);
    let window = overview.loss_window().map(|window| window.as_secs_f64());
    metrics.one("loss_window_seconds", "How much work would be lost with the server now", window);
    let objective = |objective: Option<std::time::Duration>| objective.map(|objective| objective.as_secs_f64());
    metrics.one("objective_rpo_seconds", "How much work may be lost at most", objective(overview.objectives.rpo));
    metrics.one("objective_rto_seconds", "How long a restore may take at most", objective(overview.objectives.rto));
    let forecast = overview.forecast().map(|forecast| forecast.seconds);
    metrics.one("restore_forecast_seconds", "How long a restore would take now, as far as drills tell", forecast);
    let missing = |kind: &str| status.gaps.iter().filter(|gap| gap.kind == kind).count() as f64;
    let gaps = ["cuts", "past"].map(|kind| (vec![("kind", kind.to_owned())], missing(kind)));
    metrics.each("wal_gaps", "Holes in the WAL: those that cut the latest off, and those of the past", gaps);
    metrics.one("wal_lost_gaps", "WAL that a receiver found removed before it was stored", status.lost.len() as f64);
}

fn stored(metrics: &mut Collected, overview: &Overview) {
    let sizes = &overview.status.sizes;
    let backups: u64 = overview.backups.iter().map(|backup| backup.stored_bytes).sum();
    let by_kind = [("wal", sizes.wal_bytes), ("backup", backups), ("dump", overview.dump_bytes)];
    let by_kind = by_kind.map(|(kind, bytes)| (vec![("kind", kind.to_owned())], bytes as f64));
    metrics.each("stored_bytes", "What is stored", by_kind);
    metrics.one("quota_bytes", "What may be stored", overview.quota.map(|quota| quota as f64));
    let a_day = sizes.wal_bytes_a_day.map(|bytes| bytes as f64);
    metrics.one("wal_stored_bytes_per_day", "Stored bytes of WAL that a day adds", a_day);
    metrics.one("wal_segments", "Whole segments", sizes.wal_segments as f64);
    let states =
        [("whole", ListedState::Whole), ("damaged", ListedState::Damaged), ("unfinished", ListedState::Unfinished)];
    let count = |state| overview.backups.iter().filter(|backup| backup.state == state).count() as f64;
    let states = states.map(|(word, state)| (vec![("state", word.to_owned())], count(state)));
    metrics.each("backups", "Base backups of all generations", states);
    // Of older generations nothing of now can be restored.
    let current = |backup: &&ListedBackup| backup.generation == overview.status.generation;
    let newest = overview.backups.iter().filter(|backup| backup.state == ListedState::Whole).filter(current);
    let newest = newest.filter_map(|backup| Some((backup.facts.as_ref()?, backup.stored_bytes)));
    let newest = newest.max_by_key(|(facts, _)| facts.stopped);
    let ended = newest.map(|(facts, _)| seconds(facts.stopped));
    metrics.one("backup_last_success_timestamp_seconds", "When the newest whole base backup stopped", ended);
    let took = newest.map(|(facts, _)| facts.seconds);
    metrics.one("backup_last_duration_seconds", "How long the newest whole base backup took", took);
    let size = newest.map(|(_, bytes)| bytes as f64);
    metrics.one("backup_last_stored_bytes", "Stored bytes of the newest whole base backup", size);
    metrics.one("dumps", "Dumps that can be restored", overview.dumps.len() as f64);
    let dump = overview.dumps.iter().max_by_key(|dump| dump.stopped);
    let ended = dump.map(|dump| seconds(dump.stopped));
    metrics.one("dump_last_success_timestamp_seconds", "When the newest dump was done", ended);
    let size = dump.map(|dump| dump.stored_bytes as f64);
    metrics.one("dump_last_stored_bytes", "Stored bytes of the newest dump", size);
    if let ExpiryStatus::Planned(plan) = &overview.status.expiry {
        metrics.one("expire_pending_bytes", "What the policy lets go now", plan.bytes as f64);
        metrics.one("expire_refused", "Whether expire would refuse to delete that much", flag(plan.refused.is_some()));
    }
}

/// The newest of each kind among those that are wanted.
fn newest_runs(overview: &Overview, wanted: impl Fn(&RunRecord) -> bool) -> Vec<&RunRecord> {
    let newest = |kind: RunKind| {
        let of_kind = overview.runs.iter().filter(|run| run.kind == kind && wanted(run));
        of_kind.max_by_key(|run| (run.began, run.ended))
    };
    RunKind::ALL.into_iter().filter_map(newest).collect()
}

fn of_kind(run: &RunRecord) -> Labels {
    vec![("kind", run.kind.word().to_owned())]
}

fn runs(metrics: &mut Collected, overview: &Overview) {
    let ended = newest_runs(overview, |run| run.stage != RunStage::Begun);
    let succeeded = newest_runs(overview, |run| matches!(run.stage, RunStage::Done | RunStage::Warned));
    let newest = newest_runs(overview, |_| true);
    let success = |run: &RunRecord| flag(run.stage != RunStage::Failed);
    metrics.each(
        "run_last_success",
        "Whether the newest run that ended did what it promises",
        ended.iter().map(|run| (of_kind(run), success(run))),
    );
    metrics.each(
        "run_last_success_timestamp_seconds",
        "When the newest run that did what it promises ended",
        succeeded.iter().map(|run| (of_kind(run), seconds(run.ended.unwrap_or(run.began)))),
    );
    metrics.each(
        "run_last_begin_timestamp_seconds",
        "When the newest run began",
        newest.iter().map(|run| (of_kind(run), seconds(run.began))),
    );
    metrics.each(
        "run_last_duration_seconds",
        "How long the newest run that ended took",
        ended.iter().filter_map(|run| Some((of_kind(run), run.seconds()?))),
    );
    metrics.each(
        "run_last_stored_bytes",
        "What the newest run that did what it promises stored",
        succeeded.iter().filter_map(|run| Some((of_kind(run), run.stored_bytes? as f64))),
    );
    let at_work = newest.iter().map(|run| (of_kind(run), flag(run.stage == RunStage::Begun)));
    metrics.each("run_unfinished", "Whether the newest run has not ended: it is at work, or was killed", at_work);
}

fn drills(metrics: &mut Collected, overview: &Overview) {
    let passed = |run: &RunRecord| matches!(run.stage, RunStage::Done | RunStage::Warned) && run.drill.is_some();
    let drills: Vec<_> =
        newest_runs(overview, passed).into_iter().filter_map(|run| Some((run, run.drill.as_ref()?))).collect();
    let each = |value: fn(&crate::repo::run_record::DrillFigures) -> Option<f64>| {
        let values = drills.iter().filter_map(|(run, drill)| Some((of_kind(run), value(drill)?)));
        values.collect::<Vec<_>>()
    };
    metrics.each(
        "drill_last_success_timestamp_seconds",
        "When the newest drill that passed ended",
        drills.iter().map(|(run, _)| (of_kind(run), seconds(run.ended.unwrap_or(run.began)))),
    );
    metrics.each(
        "drill_restore_seconds",
        "From the begin to a server that can be used, in the newest drill that passed: the measured RTO",
        each(|drill| Some(drill.total_seconds)),
    );
    metrics.each("drill_fetch_seconds", "Until all files were there", each(|drill| Some(drill.fetch_seconds)));
    metrics.each(
        "drill_replay_seconds",
        "From then until all WAL was replayed",
        each(|drill| Some(drill.replay_seconds)),
    );
    metrics.each(
        "drill_loss_seconds",
        "How old the newest restored commit was when the newest drill began: the measured RPO",
        each(|drill| drill.loss_seconds),
    );
    metrics.each("drill_restored_bytes", "Bytes that were restored", each(|drill| Some(drill.restored_bytes as f64)));
}

fn server(metrics: &mut Collected, overview: &Overview) {
    let clocks = &overview.clocks;
    let ahead = [("store", clocks.store_ahead_seconds), ("server", clocks.server_ahead_seconds)];
    let ahead = ahead.into_iter().filter_map(|(whose, ahead)| Some((vec![("clock", whose.to_owned())], ahead?)));
    metrics.each("clock_ahead_seconds", "How far a clock is ahead of this machine's", ahead);
    let Some(server) = &overview.status.server else { return };
    let up = flag(matches!(server, ServerStatus::Reachable { .. }));
    metrics.one("server_up", "Whether PostgreSQL answers", up);
    let ServerStatus::Reachable { trouble, failed_count, receiver, .. } = server else { return };
    metrics.one("archiver_failing", "Whether archiving fails or does not get on", flag(trouble.is_some()));
    let failed = *failed_count as f64;
    metrics.one("archiver_failures", "Failures that the archiver counted since its statistics were reset", failed);
    let Some(receiver) = receiver else { return };
    metrics.one("receiver_up", "Whether a receiver streams", flag(receiver.durable.is_some()));
    metrics.one(
        "receiver_failing",
        "Whether the receiver lags or its slot is in danger",
        flag(receiver.trouble.is_some()),
    );
    let behind = receiver.behind_bytes.map(|bytes| bytes as f64);
    metrics.one("receiver_behind_bytes", "How far the receiver is behind the end of the server's WAL", behind);
    let kept = receiver.kept_bytes.map(|bytes| bytes as f64);
    metrics.one("receiver_slot_kept_bytes", "WAL that the receiver's slot makes the server keep", kept);
}

fn alerts(metrics: &mut Collected, overview: &Overview, rules: &AlertRules) {
    // Rules that are silent are there, too, so that nobody waits for a series that does not exist.
    // What is almost full is told by the name of what fills.
    let rules_of_names = Rule::ALL.into_iter().filter(|rule| *rule != Rule::QuotaFull);
    let silent = rules_of_names.filter_map(|rule| {
        let severity =
            rules.severity(rule).filter(|_| overview.alerts.iter().all(|alert| alert.rule != rule.word()))?;
        Some((alert_labels(rule.word(), "", &severity.to_string()), 0.0))
    });
    let standing = overview.alerts.iter();
    let standing = standing.map(|alert| (alert_labels(&alert.rule, &alert.subject, &alert.severity.to_string()), 1.0));
    metrics.each("alert_active", "Alerts that stand are 1", silent.chain(standing).collect::<Vec<_>>());
}

fn alert_labels(rule: &str, subject: &str, severity: &str) -> Labels {
    vec![("rule", rule.to_owned()), ("subject", subject.to_owned()), ("severity", severity.to_owned())]
}

fn channel_states<'a>(metrics: &mut Collected, channels: impl IntoIterator<Item = (&'a str, bool)>) {
    let channels = channels.into_iter().map(|(word, works)| (vec![("channel", word.to_owned())], flag(works)));
    metrics.each("alert_channel_up", "Whether a way of sending alerts took the last message", channels);
}

/// Writes a text where node_exporter reads it: it sees the old file or the new one, never half of one.
pub fn write_textfile(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The collector reads every file that ends with `.prom`.
    let mut file = tempfile::Builder::new().prefix(".pgark-").suffix(".tmp").tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::overview_sample::{forecast_of, overview};
    use super::super::status_expiry::ExpiryPlan;
    use super::*;

    #[test]
    fn what_is_not_known_is_not_there() {
        let text = |overview: &Overview| metrics_text(overview, "main", &AlertRules::default(), []);
        let mut unknown = overview();
        let known = text(&unknown);
        for line in [
            "pgark_up{cluster=\"main\"} 1.0",
            "pgark_loss_window_seconds{cluster=\"main\"} 30.0",
            "pgark_stored_bytes{cluster=\"main\",kind=\"dump\"} 500.0",
            "pgark_run_last_success{cluster=\"main\",kind=\"basebackup\"} 1.0",
            "pgark_drill_restore_seconds{cluster=\"main\",kind=\"drill-full\"} 1800.0",
            "pgark_alert_active{cluster=\"main\",rule=\"gap\",subject=\"\",severity=\"high\"} 0.0",
            "pgark_clock_ahead_seconds{cluster=\"main\",clock=\"server\"} -0.1",
        ] {
            assert!(known.lines().any(|known| known == line), "{line} is not in\n{known}");
        }
        assert!(known.ends_with("# EOF\n"));
        unknown.status.newest = None;
        unknown.status.server = None;
        (unknown.backups, unknown.dumps, unknown.runs) = (vec![], vec![], vec![]);
        let known = text(&unknown);
        for name in [
            "newest_restorable",
            "loss_window",
            "server_up",
            "receiver",
            "backup_last",
            "dump_last",
            "run_last",
            "drill",
        ] {
            assert!(!known.lines().any(|line| line.starts_with(&format!("pgark_{name}"))), "{name} is in\n{known}");
        }
    }

    /// The names that stand in a text.
    fn names(text: &str) -> std::collections::BTreeSet<String> {
        let is_name = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
        let words = text.split(|letter: char| !is_name(letter) && letter != ':');
        words.filter(|word| word.starts_with("pgark_")).map(str::to_owned).collect()
    }

    #[test]
    fn rules_dashboard_and_manual_name_what_is_there() {
        let mut all = overview();
        all.status.forecast = Some(forecast_of(1.0));
        all.runs.iter_mut().for_each(|run| run.stored_bytes = Some(1));
        let plan = ExpiryPlan { backups: 0, dumps: 0, wal: 0, objects: 0, bytes: 0, refused: None, next: None };
        all.status.expiry = ExpiryStatus::Planned(plan);
        let there = names(&metrics_text(&all, "main", &AlertRules::default(), [("webhook", true)]));
        assert!(there.len() > 45, "{there:?}");
        let rules = names(include_str!("../../docs/alerts.yml"));
        let dashboard = names(include_str!("../../docs/grafana.json"));
        let manual = names(include_str!("../../docs/monitor.md"));
        for (page, named) in [("alerts.yml", &rules), ("grafana.json", &dashboard), ("monitor.md", &manual)] {
            assert!(!named.is_empty());
            assert!(named.is_subset(&there), "docs/{page}: {:?}", named.difference(&there).collect::<Vec<_>>());
        }
        assert_eq!(manual, there, "docs/monitor.md has all of them");
    }

    #[test]
    fn a_failed_look_is_down() {
        let text = blind_text("a\"b\\", overview().at, [("webhook", false)]);
        assert!(text.contains("pgark_up{cluster=\"a\\\"b\\\\\"} 0.0\n"), "{text}");
        assert!(text.contains("channel=\"webhook\"} 0.0\n"), "{text}");
    }
}
