//! What somebody must be told of: the rules, applied to an overview. Pure.
//!
//! What `status` finds is an alert as it is, with a severity and a name. What needs a promise, a schedule or a memory of runs is found
//! here. Nothing is said twice under two names.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::alert_runs;
pub use super::alert_settings::{AlertRules, Rule};
use super::check::{Finding, Level};
use super::failure::{Failure, FailureKind};
use super::list::ListedState;
use super::overview::Overview;
use super::status_server::ServerStatus;
use crate::repo::Alert;

/// What must be told, the worst first.
pub fn judge(overview: &Overview, rules: &AlertRules) -> Vec<Alert> {
    let mut alerts = Alerts { rules, found: Vec::new() };
    alert_runs::missing(overview, &mut alerts);
    alert_runs::failed(overview, &mut alerts);
    loss_window(overview, &mut alerts);
    restore_time(overview, &mut alerts);
    findings(overview, &mut alerts);
    quota(overview, &mut alerts);
    clocks(overview, &mut alerts);
    let mut found = alerts.found;
    found.sort_by_key(|alert| std::cmp::Reverse(alert.severity));
    found
}

/// The rules of which nothing can be told: those about a server that does not answer.
pub fn untold(overview: &Overview) -> &'static [&'static str] {
    match overview.status.server {
        Some(ServerStatus::Unreachable { .. }) => &["archiver", "receiver", "server"],
        _ => &[],
    }
}

/// What is told when the repository could not be looked at; `None`: nobody wants to know.
pub fn blind(failure: &Failure, rules: &AlertRules) -> Option<Alert> {
    let mut alerts = Alerts { rules, found: Vec::new() };
    let hint = failure.hint.clone().unwrap_or_else(|| "`pgark check` tries the store".to_owned());
    match failure.kind {
        FailureKind::NoIdentity => alerts.add(Rule::NotRestorable, "", format!("nothing is stored: {failure}"), hint),
        _ => alerts.add(
            Rule::StoreUnreachable,
            "",
            format!("the repository cannot be looked at, so nothing else is known: {failure}"),
            hint,
        ),
    }
    alerts.found.pop()
}

/// Alerts, as they are found.
pub(super) struct Alerts<'a> {
    pub(super) rules: &'a AlertRules,
    found: Vec<Alert>,
}

impl Alerts<'_> {
    pub(super) fn add(&mut self, rule: Rule, subject: &str, message: String, hint: impl Into<String>) {
        let Some(severity) = self.rules.severity(rule) else { return };
        let (rule, subject) = (rule.word().to_owned(), subject.to_owned());
        self.found.push(Alert { rule, subject, severity, message, hint: hint.into() });
    }
}

/// The age that a time has.
pub(super) fn age(time: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(time)).unwrap_or_default()
}

/// `1day 2h 3m`: two or three units are enough.
pub(super) fn span(time: Duration) -> String {
    let seconds = match time.as_secs() {
        seconds if seconds >= 86_400 => seconds - seconds % 60,
        seconds => seconds,
    };
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

fn bytes(count: u64) -> String {
    bytesize::ByteSize(count).display().iec().to_string()
}

impl Overview {
    /// How much work would be lost with the server now; `None`: nothing can be restored. A receiver that has everything loses nothing.
    pub fn loss_window(&self) -> Option<Duration> {
        let newest = self.status.newest.as_ref()?;
        if let Some(ServerStatus::Reachable { receiver: Some(receiver), .. }) = &self.status.server
            && receiver.durable.is_some()
            && receiver.behind_bytes == Some(0)
        {
            return Some(Duration::ZERO);
        }
        let seconds = newest.age_seconds?;
        Some(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
    }

    /// The newest drill of the whole cluster that passed, in seconds from its begin to a server that can be used.
    pub fn measured_restore_seconds(&self) -> Option<f64> {
        alert_runs::newest_measured(self)?.drill.as_ref().map(|drill| drill.total_seconds)
    }
}

fn loss_window(overview: &Overview, alerts: &mut Alerts<'_>) {
    let (Some(rpo), Some(window)) = (overview.objectives.rpo, overview.loss_window()) else { return };
    if window > rpo {
        let message = format!(
            "what was written in the last {} would be lost with the server: no more than {} was promised (objectives.rpo)",
            span(window),
            span(rpo)
        );
        let hint =
            "`pgark status` says what keeps WAL from arriving; on an idle server `archive_timeout` makes it arrive";
        alerts.add(Rule::LossWindow, "", message, hint);
    }
}

fn restore_time(overview: &Overview, alerts: &mut Alerts<'_>) {
    let Some(rto) = overview.objectives.rto else { return };
    let over = |seconds: f64| Duration::try_from_secs_f64(seconds).ok().filter(|took| *took > rto);
    let promised = format!("no more than {} was promised (objectives.rto)", span(rto));
    let hint =
        "more `jobs` under `[backup]`, a quicker store or disk, or base backups more often: less WAL is replayed then";
    if let Some(took) = overview.measured_restore_seconds().and_then(over) {
        alerts.add(Rule::RestoreTime, "", format!("the newest drill took {}: {promised}", span(took)), hint);
    } else if let Some(takes) = overview.forecast().map(|forecast| forecast.seconds).and_then(over) {
        alerts.add(Rule::RestoreTime, "", format!("a restore now would take about {}: {promised}", span(takes)), hint);
    }
}

/// The rule that a finding of `status` is an alert by. All of one word are one alert: they have one cause, or one remedy.
fn rule_of(finding: &Finding) -> (Rule, &'static str) {
    match finding.check {
        "latest" => (Rule::NotRestorable, ""),
        "gap" => (Rule::Gap, ""),
        "backup" | "pages" | "history" => (Rule::Damaged, finding.check),
        "archiver" => (Rule::Archiver, ""),
        "receiver" => (Rule::Receiver, ""),
        "server" => (Rule::Server, ""),
        other => (Rule::Finding, other),
    }
}

fn findings(overview: &Overview, alerts: &mut Alerts<'_>) {
    let mut told: Vec<(Rule, &str)> = Vec::new();
    let found = || overview.status.findings.iter().filter(|finding| finding.level > Level::Ok);
    let no_backup = overview.backups.iter().all(|backup| backup.state != ListedState::Whole);
    for finding in found() {
        let (rule, subject) = rule_of(finding);
        // That there is no backup was said.
        let said = rule == Rule::NotRestorable && no_backup && alerts.found.iter().any(|a| a.rule == "backup-missing");
        if said || told.contains(&(rule, subject)) {
            continue;
        }
        told.push((rule, subject));
        let more = found().filter(|other| rule_of(other) == (rule, subject)).count() - 1;
        let message = match more {
            0 => finding.message.clone(),
            more => format!("{} (and {more} more: `pgark status`)", finding.message),
        };
        alerts.add(rule, subject, message, finding.hint.clone().unwrap_or_default());
    }
    if let Some(ServerStatus::Unreachable { reason }) = &overview.status.server {
        let hint = "is it running, and is `conninfo` right?";
        alerts.add(Rule::ServerUnreachable, "", format!("PostgreSQL does not answer: {reason}"), hint);
    }
}

fn quota(overview: &Overview, alerts: &mut Alerts<'_>) {
    let Some(quota) = overview.quota.filter(|quota| *quota > 0) else { return };
    let stored = overview.stored_bytes();
    let reaches = |percent: u8| u128::from(stored) * 100 >= u128::from(quota) * u128::from(percent);
    let rule = match () {
        () if reaches(alerts.rules.quota_full_percent) => Rule::QuotaFull,
        () if reaches(alerts.rules.quota_percent) => Rule::Quota,
        () => return,
    };
    let percent = u128::from(stored) * 100 / u128::from(quota);
    let message = format!("{} are stored, {percent} % of the quota of {} (repo.quota)", bytes(stored), bytes(quota));
    let Some(severity) = alerts.rules.severity(rule) else { return };
    let hint =
        "`pgark expire --dry-run` says what the policy lets go; keep less under `[retention]`, or raise the quota";
    // One alert that becomes worse, not two.
    let (rule, subject) = (Rule::Quota.word().to_owned(), String::new());
    alerts.found.push(Alert { rule, subject, severity, message, hint: hint.to_owned() });
}

fn clocks(overview: &Overview, alerts: &mut Alerts<'_>) {
    let hint = "set the clocks, for example by NTP: ages, schedules and expiry go by them";
    let seconds = |ahead: Option<f64>| ahead.and_then(|ahead| SignedDuration::try_from_secs_f64(ahead).ok());
    let clocks = &overview.clocks;
    for (subject, whose, ahead) in [
        ("store", "the store's clock", seconds(clocks.store_ahead_seconds)),
        ("server", "the database server's clock", seconds(clocks.server_ahead_seconds)),
    ] {
        let Some(ahead) = ahead.filter(|ahead| ahead.unsigned_abs() > alerts.rules.clock_tolerance) else { continue };
        let side = if ahead.is_negative() { "behind" } else { "ahead of" };
        let message = format!("{whose} is {} {side} this machine's", span(ahead.unsigned_abs()));
        alerts.add(Rule::ClockSkew, subject, message, hint);
    }
}

#[cfg(test)]
mod tests {
    use super::super::overview_sample::{ago, backup, dump, forecast_of, overview, run};
    use super::*;
    use crate::repo::{AlertSeverity, Expected, Generation, RunKind, RunStage};
    use proptest::prelude::*;

    const HOUR: i64 = 3600;

    /// The names of what is told.
    fn names(change: impl FnOnce(&mut Overview, &mut AlertRules)) -> Vec<String> {
        told(change).iter().map(Alert::name).collect()
    }

    fn told(change: impl FnOnce(&mut Overview, &mut AlertRules)) -> Vec<Alert> {
        let (mut overview, mut rules) = (overview(), AlertRules::default());
        change(&mut overview, &mut rules);
        let alerts = judge(&overview, &rules);
        for alert in &alerts {
            let whole = !alert.message.is_empty() && !alert.hint.is_empty() && !alert.message.ends_with('.');
            assert!(whole && Rule::ALL.iter().any(|rule| rule.word() == alert.rule), "{alert:?}");
        }
        alerts
    }

    /// On this side of its boundary a rule is silent, on the other it speaks, and says this.
    #[track_caller]
    fn boundary(rule: &str, said: &str, change: impl Fn(&mut Overview, &mut AlertRules, bool)) {
        assert_eq!(names(|overview, rules| change(overview, rules, false)), [""; 0], "{rule} speaks too early");
        let alerts = told(|overview, rules| change(overview, rules, true));
        let names: Vec<String> = alerts.iter().map(Alert::name).collect();
        assert_eq!(names, [rule]);
        assert!(alerts[0].message.contains(said), "{alerts:?}");
    }

    fn hours(hours: u64) -> Duration {
        Duration::from_secs(hours * 3600)
    }

    #[test]
    fn all_is_well() {
        assert_eq!(names(|_, _| {}), [""; 0]);
    }

    #[test]
    fn backups_dumps_and_drills_are_missed_at_their_time() {
        boundary(
            "backup-missing",
            "no base backup within the last 1day 2h: the newest ended at",
            |overview, _, over| {
                overview.backups = vec![backup(ago(30 * HOUR)), backup(ago(26 * HOUR + i64::from(over)))];
            },
        );
        boundary("dump-missing", "no dump within the last 2h", |overview, rules, over| {
            rules.dump_within = Some(hours(2));
            overview.dumps = vec![dump(ago(2 * HOUR + i64::from(over)))];
        });
        boundary("drill-overdue", "no drill passed within the last 5days", |overview, rules, over| {
            rules.drill_within = Some(hours(120));
            overview.runs = vec![run(RunKind::DrillPitr, RunStage::Done, ago(120 * HOUR + 60 + i64::from(over)))];
        });
        assert_eq!(names(|_, rules| rules.drill_within = Some(hours(23))), ["drill-overdue"]);
    }

    #[test]
    fn what_is_damaged_or_of_another_generation_is_no_backup() {
        for spoil in [
            |overview: &mut Overview| overview.backups[0].state = ListedState::Damaged,
            |overview: &mut Overview| overview.backups[0].state = ListedState::Unfinished,
            |overview: &mut Overview| overview.backups[0].generation = Generation(2),
            |overview: &mut Overview| overview.backups.clear(),
        ] {
            let alerts = told(|overview, _| spoil(overview));
            assert_eq!(alerts[0].name(), "backup-missing");
            assert!(alerts[0].message.contains("there never was one"), "{alerts:?}");
        }
        let latest = Finding::not_ok("latest", Level::Fail, "there is no backup", "take one");
        let both = |rules: fn(&mut AlertRules)| {
            names(|overview, given| {
                overview.backups.clear();
                overview.status.findings.push(latest.clone());
                rules(given);
            })
        };
        assert_eq!(both(|_| {}), ["backup-missing"], "it is said once");
        assert_eq!(both(|rules| rules.severities = [(Rule::BackupMissing, None)].into()), ["not-restorable"]);
    }

    #[test]
    fn a_schedule_counts_for_more_than_an_age() {
        let expected = |kind, due, tolerance| Expected { kind, due: ago(due), tolerance: hours(tolerance) };
        for (kind, name) in [
            (RunKind::Basebackup, "backup-missing"),
            (RunKind::Dump, "dump-missing"),
            (RunKind::Expire, "run-missing expire"),
            (RunKind::Verify, "run-missing verify"),
            (RunKind::DrillDisaster, "drill-overdue drill-disaster"),
        ] {
            boundary(name, "by the schedule, 2h ago, and is not there", |overview, rules, over| {
                let due = 2 * HOUR - 1 + i64::from(over);
                rules.expected = vec![Expected { due: ago(due), ..expected(kind, 0, 2) }];
                rules.drill_within = kind.word().starts_with("drill").then_some(hours(1));
                overview.runs.retain(|run| run.kind != kind);
                if kind == RunKind::Basebackup {
                    overview.backups = vec![backup(ago(500 * HOUR))];
                }
                overview.dumps.clear();
            });
        }
        // It came in time, or late.
        for due in [3600, 3660] {
            assert_eq!(names(|_, rules| rules.expected = vec![expected(RunKind::Basebackup, due, 0)]), [""; 0]);
        }
        assert_eq!(names(|_, rules| rules.expected = vec![expected(RunKind::Basebackup, 3599, 0)]), ["backup-missing"]);
    }

    /// The next due time does not end an alert, and one that comes more often than runs may be late does not keep it away.
    #[test]
    fn what_is_missing_is_missing_until_it_is_there() {
        for (expression, first) in [("30 0 * * *", 26), ("0 * * * *", 3), ("*/10 * * * *", 3)] {
            let schedule = crate::repo::Schedule::new(expression, jiff::tz::TimeZone::UTC).unwrap();
            let schedules = [(RunKind::Dump, schedule)];
            let mut stood = 0;
            for minutes in (0..72 * 60).step_by(10) {
                let stands = names(|overview, rules| {
                    overview.at = ago(0) + SignedDuration::from_mins(minutes);
                    overview.dumps = vec![super::super::overview_sample::dump(ago(0))];
                    *rules = rules.expecting(&schedules, overview.at);
                });
                let missing = stands.contains(&"dump-missing".to_owned());
                assert!(missing || stood == 0, "{expression}: over after {minutes} min");
                assert!(missing || minutes < first * 60, "{expression}: silent after {minutes} min");
                stood += i32::from(missing);
            }
            assert!(stood > 0);
        }
    }

    #[test]
    fn the_newest_run_of_each_kind_is_judged() {
        for (kind, name) in [
            (RunKind::Basebackup, "backup-failed"),
            (RunKind::Dump, "dump-failed"),
            (RunKind::Expire, "expire-failed"),
            (RunKind::Verify, "verify-failed"),
            (RunKind::DrillPitr, "drill-failed drill-pitr"),
        ] {
            let mut failed = run(kind, RunStage::Failed, ago(100));
            failed.message = Some("the disk is full".into());
            let ran = |more: &[crate::repo::RunRecord]| {
                let mut runs = vec![failed.clone()];
                runs.extend_from_slice(more);
                names(|overview, _| overview.runs.extend(runs))
            };
            assert_eq!(ran(&[]), [name]);
            assert_eq!(ran(&[run(kind, RunStage::Begun, ago(10))]), [name], "another try says nothing yet");
            assert_eq!(ran(&[run(kind, RunStage::Done, ago(10))]), [""; 0]);
            let warned = run(kind, RunStage::Warned, ago(10));
            assert_eq!(ran(&[warned]), [format!("run-warned {}", kind.word())]);
        }
        boundary("backup-failed", "has not ended after 1day", |overview, _, over| {
            let old = run(RunKind::Basebackup, RunStage::Begun, ago(24 * HOUR + i64::from(over)));
            overview.runs = vec![old];
        });
    }

    #[test]
    fn promises_are_kept_up_to_the_second() {
        boundary(
            "loss-window",
            "in the last 4h 1s would be lost with the server: no more than 4h",
            |overview, _, over| {
                overview.status.newest.as_mut().unwrap().age_seconds = Some(4 * HOUR + i64::from(over));
            },
        );
        boundary("restore-time", "the newest drill took 1h", |overview, _, over| {
            let drill = overview.runs[0].drill.as_mut().unwrap();
            drill.total_seconds = if over { 3600.001 } else { 3600.0 };
        });
        boundary("restore-time", "a restore now would take about 1h 1s", |overview, _, over| {
            overview.status.forecast = Some(forecast_of(if over { 3601.0 } else { 3600.0 }));
        });
        // On an idle server with a receiver nothing is lost, however old the newest WAL is.
        let idle = |behind| {
            names(|overview, _| {
                overview.status.newest.as_mut().unwrap().age_seconds = Some(50 * HOUR);
                if let Some(ServerStatus::Reachable { receiver: Some(receiver), .. }) = &mut overview.status.server {
                    receiver.behind_bytes = behind;
                }
            })
        };
        assert_eq!(idle(Some(0)), [""; 0]);
        assert_eq!(idle(Some(1)), ["loss-window"]);
        assert_eq!(idle(None), ["loss-window"]);
    }

    #[test]
    fn a_quota_fills_in_two_steps_that_are_one_alert() {
        // 3500 bytes are stored: 1000 of backups, 2000 of WAL, 500 of dumps.
        let of = |quota| told(|overview, _| overview.quota = Some(quota));
        for (quota, severity) in [
            (4376, None),
            (4375, Some(AlertSeverity::Medium)),
            (3685, Some(AlertSeverity::Medium)),
            (3684, Some(AlertSeverity::High)),
            (1, Some(AlertSeverity::High)),
        ] {
            let alerts = of(quota);
            assert_eq!(alerts.first().map(|alert| alert.severity), severity, "{quota}: {alerts:?}");
            assert!(alerts.iter().all(|alert| alert.name() == "quota"));
        }
        assert!(of(4375)[0].message.contains("80 % of the quota of 4.3 KiB"), "{:?}", of(4375));
    }

    #[test]
    fn clocks_may_differ_a_little() {
        for (sign, side) in [(1.0, "ahead of"), (-1.0, "behind")] {
            boundary("clock-skew store", side, |overview, _, over| {
                overview.clocks.store_ahead_seconds = Some(sign * if over { 60.5 } else { 60.0 });
            });
            boundary("clock-skew server", side, |overview, _, over| {
                overview.clocks.server_ahead_seconds = Some(sign * if over { 61.0 } else { 60.0 });
            });
        }
        assert_eq!(names(|overview, _| overview.clocks = Default::default()), [""; 0]);
    }

    #[test]
    fn what_status_finds_is_told_once() {
        let finding = |check, level| Finding::not_ok(check, level, format!("{check} is wrong"), "mend it");
        for (check, name) in [
            ("latest", "not-restorable"),
            ("gap", "gap"),
            ("backup", "damaged backup"),
            ("pages", "damaged pages"),
            ("history", "damaged history"),
            ("archiver", "archiver"),
            ("receiver", "receiver"),
            ("server", "server"),
            ("tail", "finding tail"),
            ("objects", "finding objects"),
        ] {
            let found = |count| {
                told(|overview, _| overview.status.findings = vec![finding(check, Level::Warning); count]).remove(0)
            };
            assert_eq!((found(1).name().as_str(), found(1).message), (name, format!("{check} is wrong")));
            assert!(found(3).message.contains("(and 2 more"), "{:?}", found(3));
        }
        assert_eq!(names(|overview, _| overview.status.findings.push(Finding::ok("gap", "none"))), [""; 0]);
    }

    #[test]
    fn severities_can_be_set_and_rules_switched_off() {
        let unreachable = |wish: Option<AlertSeverity>| {
            told(|overview, rules| {
                overview.status.server = Some(ServerStatus::Unreachable { reason: "no route".into() });
                rules.severities.insert(Rule::ServerUnreachable, wish);
            })
        };
        assert_eq!(unreachable(None), []);
        assert_eq!(unreachable(Some(AlertSeverity::Critical))[0].severity, AlertSeverity::Critical);
        assert_eq!(AlertRules::default().severity(Rule::ServerUnreachable), None);
    }

    #[test]
    fn a_failed_look_is_one_alert() {
        let of = |kind| blind(&Failure::new(kind, "why"), &AlertRules::default()).unwrap();
        assert_eq!(of(FailureKind::Unavailable).name(), "store-unreachable");
        assert_eq!(of(FailureKind::Denied).name(), "store-unreachable");
        assert_eq!(of(FailureKind::NoIdentity).name(), "not-restorable");
        let mut rules = AlertRules::default();
        rules.severities.insert(Rule::StoreUnreachable, None);
        assert_eq!(blind(&Failure::new(FailureKind::Denied, "why"), &rules), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
        /// Whatever is wrong: the worst comes first, no alert twice, and what was mended is silent.
        #[test]
        fn alerts_are_sorted_and_each_is_told_once(
            ages in proptest::array::uniform3(0_i64..200_000),
            stages in proptest::collection::vec((0_usize..8, 0_usize..4, 0_i64..200_000), 0..12),
            checks in proptest::collection::vec(0_usize..6, 0..6),
            quota in 1_u64..10_000,
        ) {
            let stage = [RunStage::Begun, RunStage::Done, RunStage::Warned, RunStage::Failed];
            let check = ["latest", "gap", "backup", "archiver", "receiver", "tail"];
            let alerts = told(|overview, rules| {
                overview.backups = vec![backup(ago(ages[0]))];
                overview.dumps = vec![dump(ago(ages[1]))];
                overview.status.newest.as_mut().unwrap().age_seconds = Some(ages[2]);
                rules.dump_within = Some(hours(26));
                overview.runs = stages.iter().map(|(k, s, a)| run(RunKind::ALL[*k], stage[*s], ago(*a))).collect();
                overview.status.findings =
                    checks.iter().map(|c| Finding::not_ok(check[*c], Level::Fail, "m", "h")).collect();
                overview.quota = Some(quota);
            });
            prop_assert!(alerts.is_sorted_by(|a, b| a.severity >= b.severity));
            let mut names: Vec<String> = alerts.iter().map(Alert::name).collect();
            names.sort();
            let count = names.len();
            names.dedup();
            prop_assert_eq!(names.len(), count);
            let has = |name: &str| names.iter().any(|other| other == name);
            prop_assert_eq!(has("backup-missing"), ages[0] > 26 * HOUR);
            prop_assert_eq!(has("dump-missing"), ages[1] > 26 * HOUR);
            prop_assert_eq!(has("loss-window"), ages[2] > 4 * HOUR);
            prop_assert_eq!(has("quota"), 3500 * 100 >= quota * 80);
        }
    }
}
