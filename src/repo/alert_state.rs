//! Which alerts are told now: what stands is told once it has stood for a while, then again and again with growing pauses, and once more
//! when it is over. Pure: alerts of a look, the memory of the looks before and the time in, notices out.
//!
//! * An alert is told when it has stood for the time of its severity; critical ones at once. What is gone before that was never told.
//! * Told alerts are repeated after 1, 2, 4, ... times the first pause, at most the longest one. A higher severity is told at once.
//! * It is over when it was gone for the settling time, which doubles each time it comes back within a day: what flaps is told ever more rarely.
//! * A look that failed says nothing of what stood before: only that it failed is an alert.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::alert::{Alert, AlertSeverity};

/// How long things may take, or must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a high one stands before it is told.
    pub high_after: Duration,
    /// The same of a medium one.
    pub medium_after: Duration,
    /// How long an alert must be gone to be over.
    pub settle: Duration,
    /// The pause before it is told again.
    pub repeat: Duration,
    /// The longest such pause.
    pub repeat_most: Duration,
}

/// Why something is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoticeKind {
    /// It was not told before.
    New,
    /// It has become worse.
    Raised,
    /// It stands still.
    Repeated,
    /// It is over.
    Resolved,
}

/// Something that is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Why.
    pub state: NoticeKind,
    /// What.
    #[serde(flatten)]
    pub alert: Alert,
    /// Since when it stands, or stood.
    pub since: Timestamp,
}

/// What was found by a look.
#[derive(Clone, Copy, Debug)]
pub enum Looked<'a> {
    /// All that stands, but of these rules nothing can be told.
    Found(&'a [Alert], &'a [&'a str]),
    /// The look failed, which is this alert; `None`: nobody wants to know.
    Blind(Option<&'a Alert>),
}

/// What is known of the looks before. It can be stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertMemory {
    standing: Vec<Standing>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Standing {
    alert: Alert,
    since: Timestamp,
    /// Not seen since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gone: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    told: Option<Told>,
    /// Told to be over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    over: Option<Timestamp>,
    /// How often it came back.
    #[serde(default)]
    returns: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    at: Timestamp,
    severity: AlertSeverity,
    times: u32,
}

/// What was over for so long and comes back is new.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);
/// What flaps need not be gone for longer to be over.
const LONGEST_SETTLE: Duration = Duration::from_secs(6 * 3600);

impl Timing {
    fn after(&self, severity: AlertSeverity) -> Duration {
        match severity {
            AlertSeverity::Critical => Duration::ZERO,
            AlertSeverity::High => self.high_after,
            AlertSeverity::Medium => self.medium_after,
        }
    }

    /// After it was told so often.
    fn pause(&self, times: u32) -> Duration {
        doubled(self.repeat, times.saturating_sub(1)).min(self.repeat_most.max(self.repeat))
    }

    fn settle(&self, returns: u32) -> Duration {
        doubled(self.settle, returns).min(LONGEST_SETTLE.max(self.settle))
    }
}

fn doubled(time: Duration, times: u32) -> Duration {
    time.saturating_mul(1_u32.checked_shl(times.min(31)).unwrap_or(u32::MAX))
}

/// What has passed, by a clock that may have been set back.
fn passed(since: Timestamp, now: Timestamp) -> Duration {
    let passed: SignedDuration = now.duration_since(since);
    Duration::try_from(passed).unwrap_or_default()
}

impl AlertMemory {
    /// Takes a look in, and gives what is told now, the worst first.
    pub fn look(&mut self, looked: Looked<'_>, now: Timestamp, timing: &Timing) -> Vec<Notice> {
        self.set_back(now);
        let (seen, untold): (Vec<&Alert>, Option<&[&str]>) = match looked {
            Looked::Found(alerts, untold) => (alerts.iter().collect(), Some(untold)),
            Looked::Blind(alert) => (alert.into_iter().collect(), None),
        };
        let blind = |rule: &str| untold.is_none_or(|untold| untold.contains(&rule));
        for alert in &seen {
            self.see(alert, now);
        }
        let is_seen = |standing: &Standing| seen.iter().any(|alert| alert.is_same(&standing.alert));
        let mut notices = Vec::new();
        self.standing.retain_mut(|standing| match (is_seen(standing), blind(&standing.alert.rule)) {
            (true, _) => {
                notices.extend(standing.stands(now, timing));
                true
            }
            (false, true) => true,
            (false, false) => {
                let (stays, notice) = standing.is_gone(now, timing);
                notices.extend(notice);
                stays
            }
        });
        notices.sort_by_key(|notice| (notice.state == NoticeKind::Resolved, std::cmp::Reverse(notice.alert.severity)));
        notices
    }

    /// What was told and is not over.
    pub fn told(&self) -> impl Iterator<Item = &Alert> {
        let open = |standing: &&Standing| standing.told.is_some() && standing.over.is_none();
        self.standing.iter().filter(open).map(|standing| &standing.alert)
    }

    fn see(&mut self, alert: &Alert, now: Timestamp) {
        let Some(standing) = self.standing.iter_mut().find(|standing| standing.alert.is_same(alert)) else {
            let alert = alert.clone();
            self.standing.push(Standing { alert, since: now, gone: None, told: None, over: None, returns: 0 });
            return;
        };
        standing.alert = alert.clone();
        standing.gone = None;
        if let Some(over) = standing.over.take() {
            let returns = if passed(over, now) < FORGOTTEN { standing.returns.saturating_add(1) } else { 0 };
            (standing.since, standing.told, standing.returns) = (now, None, returns);
        }
    }

    /// Where the clock was set back, what it said before counts as now.
    fn set_back(&mut self, now: Timestamp) {
        for standing in &mut self.standing {
            standing.since = standing.since.min(now);
            standing.gone = standing.gone.map(|gone| gone.min(now));
            standing.over = standing.over.map(|over| over.min(now));
            if let Some(told) = &mut standing.told {
                told.at = told.at.min(now);
            }
        }
    }
}

impl Standing {
    fn stands(&mut self, now: Timestamp, timing: &Timing) -> Option<Notice> {
        let severity = self.alert.severity;
        let (state, times) = match &self.told {
            None if passed(self.since, now) >= timing.after(severity) => (NoticeKind::New, 1),
            Some(told) if severity > told.severity => (NoticeKind::Raised, 1),
            Some(told) if passed(told.at, now) >= timing.pause(told.times) => {
                (NoticeKind::Repeated, told.times.saturating_add(1))
            }
            _ => return None,
        };
        // What was worse once and is again has not become worse.
        let severity = self.told.as_ref().map_or(severity, |told| told.severity.max(severity));
        self.told = Some(Told { at: now, severity, times });
        Some(self.notice(state))
    }

    /// Whether it is still remembered, and what is told.
    fn is_gone(&mut self, now: Timestamp, timing: &Timing) -> (bool, Option<Notice>) {
        if let Some(over) = self.over {
            return (passed(over, now) < FORGOTTEN, None);
        }
        if self.told.is_none() {
            // It came back, and left before it was told.
            self.over = (self.returns > 0).then_some(now);
            return (self.over.is_some(), None);
        }
        let gone = *self.gone.get_or_insert(now);
        if passed(gone, now) < timing.settle(self.returns) {
            return (true, None);
        }
        self.over = Some(now);
        (true, Some(self.notice(NoticeKind::Resolved)))
    }

    fn notice(&self, state: NoticeKind) -> Notice {
        Notice { state, alert: self.alert.clone(), since: self.since }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const MINUTE: u64 = 60;
    const HOUR: u64 = 3600;
    const TIMING: Timing = Timing {
        high_after: Duration::from_secs(5 * MINUTE),
        medium_after: Duration::from_secs(HOUR),
        settle: Duration::from_secs(5 * MINUTE),
        repeat: Duration::from_secs(HOUR),
        repeat_most: Duration::from_secs(24 * HOUR),
    };

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + i64::try_from(seconds).unwrap()).unwrap()
    }

    fn alert(rule: &str, severity: AlertSeverity) -> Alert {
        Alert { rule: rule.into(), subject: String::new(), severity, message: "m".into(), hint: "h".into() }
    }

    fn found(memory: &mut AlertMemory, alerts: &[Alert], seconds: u64) -> Vec<(NoticeKind, String)> {
        let notices = memory.look(Looked::Found(alerts, &[]), at(seconds), &TIMING);
        notices.into_iter().map(|notice| (notice.state, notice.alert.rule)).collect()
    }

    fn one(state: NoticeKind, rule: &str) -> Vec<(NoticeKind, String)> {
        vec![(state, rule.to_owned())]
    }

    #[test]
    fn each_severity_is_told_at_its_time() {
        for (severity, after) in
            [(AlertSeverity::Critical, 0), (AlertSeverity::High, 5 * MINUTE), (AlertSeverity::Medium, HOUR)]
        {
            let mut memory = AlertMemory::default();
            let alerts = [alert("a", severity)];
            if after > 0 {
                assert_eq!(found(&mut memory, &alerts, 0), []);
                assert_eq!(found(&mut memory, &alerts, after - 1), []);
            }
            assert_eq!(found(&mut memory, &alerts, after), one(NoticeKind::New, "a"));
            assert_eq!(found(&mut memory, &alerts, after), []);
        }
    }

    #[test]
    fn it_is_repeated_with_growing_pauses_and_then_once_a_day() {
        let mut memory = AlertMemory::default();
        let alerts = [alert("a", AlertSeverity::Critical)];
        let told = (0..=10 * 24 * 60).filter(|minute| !found(&mut memory, &alerts, minute * MINUTE).is_empty());
        let hours: Vec<u64> = told.map(|minute| minute / 60).collect();
        assert_eq!(hours, [0, 1, 3, 7, 15, 31, 55, 79, 103, 127, 151, 175, 199, 223]);
    }

    #[test]
    fn it_is_over_when_it_was_gone_for_a_while_and_said_so_once() {
        let mut memory = AlertMemory::default();
        let alerts = [alert("a", AlertSeverity::Critical)];
        found(&mut memory, &alerts, 0);
        assert_eq!(found(&mut memory, &[], 10), []);
        assert_eq!(found(&mut memory, &alerts, 200), [], "it was never away");
        assert_eq!(found(&mut memory, &[], 300), []);
        assert_eq!(found(&mut memory, &[], 599), []);
        assert_eq!(found(&mut memory, &[], 600), one(NoticeKind::Resolved, "a"));
        assert_eq!(found(&mut memory, &[], 900), []);
        assert_eq!(memory.told().count(), 0);
        assert_eq!(found(&mut memory, &alerts, 1000), one(NoticeKind::New, "a"));
    }

    #[test]
    fn what_goes_before_it_is_told_was_never_there() {
        let mut memory = AlertMemory::default();
        let alerts = [alert("a", AlertSeverity::High)];
        for look in 0..1000 {
            let seen = if look % 4 == 3 { &[][..] } else { &alerts[..] };
            assert_eq!(found(&mut memory, seen, look * MINUTE), [], "{look}");
        }
    }

    #[test]
    fn worse_is_told_at_once_and_better_is_not() {
        let mut memory = AlertMemory::default();
        let as_bad = |severity| [alert("quota", severity)];
        found(&mut memory, &as_bad(AlertSeverity::Medium), 0);
        assert_eq!(found(&mut memory, &as_bad(AlertSeverity::Medium), HOUR), one(NoticeKind::New, "quota"));
        assert_eq!(found(&mut memory, &as_bad(AlertSeverity::High), HOUR + 1), one(NoticeKind::Raised, "quota"));
        for minute in 1..30 {
            let severity = if minute % 2 == 0 { AlertSeverity::High } else { AlertSeverity::Medium };
            assert_eq!(found(&mut memory, &as_bad(severity), HOUR + minute * MINUTE), []);
        }
    }

    #[test]
    fn flapping_is_told_ever_more_rarely() {
        let mut memory = AlertMemory::default();
        let alerts = [alert("a", AlertSeverity::Critical)];
        // Ten minutes there, ten minutes away, for a day.
        let mut told = 0;
        for minute in 0..24 * 60 {
            let seen = if minute / 10 % 2 == 0 { &alerts[..] } else { &[][..] };
            told += found(&mut memory, seen, minute * MINUTE).len();
        }
        assert!((4..=10).contains(&told), "{told} notices of 72 rounds");
        assert_eq!(found(&mut memory, &[], 24 * HOUR), one(NoticeKind::Resolved, "a"));
        found(&mut memory, &[], 48 * HOUR);
        assert_eq!(memory, AlertMemory::default(), "a day later all is forgotten");
    }

    #[test]
    fn what_cannot_be_told_is_not_over() {
        let mut memory = AlertMemory::default();
        let stands = alert("receiver", AlertSeverity::Critical);
        found(&mut memory, &[stands], 0);
        for minute in 1..100 {
            assert_eq!(memory.look(Looked::Found(&[], &["receiver"]), at(minute * MINUTE), &TIMING), []);
        }
        assert_eq!(found(&mut memory, &[], 100 * MINUTE), []);
        assert_eq!(found(&mut memory, &[], 106 * MINUTE), one(NoticeKind::Resolved, "receiver"));
    }

    #[test]
    fn a_look_that_failed_resolves_nothing() {
        let mut memory = AlertMemory::default();
        let (stands, blind) = (alert("a", AlertSeverity::Critical), alert("store-unreachable", AlertSeverity::High));
        found(&mut memory, std::slice::from_ref(&stands), 0);
        let mut told = Vec::new();
        for minute in 1..600 {
            told.extend(memory.look(Looked::Blind(Some(&blind)), at(minute * MINUTE), &TIMING));
        }
        assert!(told.iter().all(|notice| notice.alert.rule == "store-unreachable"), "{told:?}");
        assert_eq!(told.iter().filter(|notice| notice.state == NoticeKind::New).count(), 1);
        assert_eq!(memory.look(Looked::Blind(None), at(600 * MINUTE), &TIMING), []);
        // It can be looked at again: what stood before stands still, and is told so.
        assert_eq!(found(&mut memory, std::slice::from_ref(&stands), 601 * MINUTE), one(NoticeKind::Repeated, "a"));
        assert_eq!(found(&mut memory, &[stands], 607 * MINUTE), one(NoticeKind::Resolved, "store-unreachable"));
    }

    #[test]
    fn a_clock_that_is_set_back_silences_nothing() {
        let mut memory = AlertMemory::default();
        let alerts = [alert("a", AlertSeverity::Critical)];
        found(&mut memory, &alerts, 1000 * HOUR);
        assert_eq!(found(&mut memory, &alerts, 0), []);
        assert_eq!(found(&mut memory, &alerts, HOUR), one(NoticeKind::Repeated, "a"));
    }

    /// What a step of a long story is: how long after the last, what stands, whether the look failed, whether it was restarted.
    fn steps() -> impl Strategy<Value = Vec<(u64, [Option<u8>; 3], bool, bool)>> {
        let stands = proptest::array::uniform3(proptest::option::weighted(0.6, 0_u8..3));
        proptest::collection::vec((1_u64..4000, stands, proptest::bool::weighted(0.1), any::<bool>()), 1..200)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn every_story_is_consistent(steps in steps()) {
            let severities = [AlertSeverity::Medium, AlertSeverity::High, AlertSeverity::Critical];
            let blind = alert("blind", AlertSeverity::Critical);
            let (mut memory, mut now) = (AlertMemory::default(), 0);
            let mut open: BTreeMap<String, bool> = BTreeMap::new();
            // Since when an alert stands without a break, in looks that did not fail.
            let mut stands_since: BTreeMap<String, u64> = BTreeMap::new();
            for (pause, stands, failed, restarted) in steps {
                now += pause;
                if restarted {
                    memory = serde_json::from_slice(&serde_json::to_vec(&memory).unwrap()).unwrap();
                }
                let alerts: Vec<Alert> = (0..3)
                    .filter_map(|rule| Some(alert(&format!("r{rule}"), severities[usize::from(stands[rule]?)])))
                    .collect();
                let looked = if failed { Looked::Blind(Some(&blind)) } else { Looked::Found(&alerts, &[]) };
                let notices = memory.look(looked, at(now), &TIMING);
                let mut seen = std::collections::BTreeSet::new();
                for notice in &notices {
                    let rule = notice.alert.rule.clone();
                    prop_assert!(seen.insert(rule.clone()), "{rule} twice in a look");
                    let was_open = open.get(&rule).copied().unwrap_or(false);
                    let stands = if failed { rule == "blind" } else { alerts.iter().any(|a| a.rule == rule) };
                    match notice.state {
                        NoticeKind::New => prop_assert!(!was_open && stands),
                        NoticeKind::Raised | NoticeKind::Repeated => prop_assert!(was_open && stands),
                        NoticeKind::Resolved => prop_assert!(was_open && !stands && !failed),
                    }
                    open.insert(rule, notice.state != NoticeKind::Resolved);
                }
                if failed {
                    continue;
                }
                stands_since.retain(|rule, _| alerts.iter().any(|alert| alert.rule == *rule));
                for alert in &alerts {
                    let since = *stands_since.entry(alert.rule.clone()).or_insert(now);
                    let must = Duration::from_secs(now - since) >= TIMING.after(alert.severity);
                    prop_assert!(!must || open.get(&alert.rule) == Some(&true), "{} was not told", alert.rule);
                }
                let told: Vec<&str> = memory.told().map(|alert| alert.rule.as_str()).collect();
                let open: Vec<&str> = open.iter().filter(|(_, open)| **open).map(|(rule, _)| rule.as_str()).collect();
                let mut told = told;
                told.sort_unstable();
                prop_assert_eq!(told, open);
            }
        }
    }
}
