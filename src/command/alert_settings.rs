//! The rules of alerts: what each is called, how bad it is, and where it begins.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::repo::{AlertSeverity, Expected, RunKind, Schedule};

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// No backup within its time.
    BackupMissing,
    /// No dump within its time.
    DumpMissing,
    /// `expire` or `verify` did not run within its time.
    RunMissing,
    /// The newest base backup failed or was killed.
    BackupFailed,
    /// The newest dump did.
    DumpFailed,
    /// The newest `expire` did.
    ExpireFailed,
    /// The newest `verify` did, or found damage.
    VerifyFailed,
    /// The newest drill of a kind did.
    DrillFailed,
    /// No drill passed within its time.
    DrillOverdue,
    /// The newest run of a kind did what it should, and somebody should look.
    RunWarned,
    /// More may be lost than was promised.
    LossWindow,
    /// A restore takes longer than was promised.
    RestoreTime,
    /// The latest state cannot be restored.
    NotRestorable,
    /// WAL is missing: moments cannot be restored.
    Gap,
    /// A backup or history file is damaged.
    Damaged,
    /// Anything else that `status` finds.
    Finding,
    /// The server's archiver fails or lags.
    Archiver,
    /// The receiver lags, or its slot is lost.
    Receiver,
    /// The server that answers is another cluster.
    Server,
    /// The server does not answer.
    ServerUnreachable,
    /// The repository fills.
    Quota,
    /// The repository is almost full.
    QuotaFull,
    /// Clocks differ.
    ClockSkew,
    /// The repository cannot be looked at.
    StoreUnreachable,
}

impl Rule {
    /// All rules.
    pub const ALL: [Rule; 24] = [
        Rule::BackupMissing,
        Rule::DumpMissing,
        Rule::RunMissing,
        Rule::BackupFailed,
        Rule::DumpFailed,
        Rule::ExpireFailed,
        Rule::VerifyFailed,
        Rule::DrillFailed,
        Rule::DrillOverdue,
        Rule::RunWarned,
        Rule::LossWindow,
        Rule::RestoreTime,
        Rule::NotRestorable,
        Rule::Gap,
        Rule::Damaged,
        Rule::Finding,
        Rule::Archiver,
        Rule::Receiver,
        Rule::Server,
        Rule::ServerUnreachable,
        Rule::Quota,
        Rule::QuotaFull,
        Rule::ClockSkew,
        Rule::StoreUnreachable,
    ];

    /// What it is called in messages. The setting of its severity has `_` for `-`.
    pub fn word(self) -> &'static str {
        match self {
            Rule::BackupMissing => "backup-missing",
            Rule::DumpMissing => "dump-missing",
            Rule::RunMissing => "run-missing",
            Rule::BackupFailed => "backup-failed",
            Rule::DumpFailed => "dump-failed",
            Rule::ExpireFailed => "expire-failed",
            Rule::VerifyFailed => "verify-failed",
            Rule::DrillFailed => "drill-failed",
            Rule::DrillOverdue => "drill-overdue",
            Rule::RunWarned => "run-warned",
            Rule::LossWindow => "loss-window",
            Rule::RestoreTime => "restore-time",
            Rule::NotRestorable => "not-restorable",
            Rule::Gap => "gap",
            Rule::Damaged => "damaged",
            Rule::Finding => "finding",
            Rule::Archiver => "archiver",
            Rule::Receiver => "receiver",
            Rule::Server => "server",
            Rule::ServerUnreachable => "server-unreachable",
            Rule::Quota => "quota",
            Rule::QuotaFull => "quota-full",
            Rule::ClockSkew => "clock-skew",
            Rule::StoreUnreachable => "store-unreachable",
        }
    }

    /// How bad it is, without a wish; `None`: it is off.
    pub fn severity(self) -> Option<AlertSeverity> {
        match self {
            Rule::BackupMissing | Rule::DumpMissing | Rule::LossWindow | Rule::NotRestorable => {
                Some(AlertSeverity::Critical)
            }
            Rule::BackupFailed
            | Rule::DumpFailed
            | Rule::ExpireFailed
            | Rule::VerifyFailed
            | Rule::DrillFailed
            | Rule::Gap
            | Rule::Damaged
            | Rule::Archiver
            | Rule::Receiver
            | Rule::Server
            | Rule::QuotaFull
            | Rule::StoreUnreachable => Some(AlertSeverity::High),
            Rule::RunMissing
            | Rule::DrillOverdue
            | Rule::RunWarned
            | Rule::RestoreTime
            | Rule::Finding
            | Rule::Quota
            | Rule::ClockSkew => Some(AlertSeverity::Medium),
            Rule::ServerUnreachable => None,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Where the rules begin, and how bad each is.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertRules {
    /// The wishes; `None`: off.
    pub severities: BTreeMap<Rule, Option<AlertSeverity>>,
    /// How old the newest backup may be, where no schedule says when the next is due.
    pub backup_within: Option<Duration>,
    /// The same of dumps.
    pub dump_within: Option<Duration>,
    /// The same of drills that passed.
    pub drill_within: Option<Duration>,
    /// How much later than its schedule a run may have ended.
    pub late: Duration,
    /// How long a run may take; one that has no end by then was killed.
    pub run_within: Duration,
    /// How much clocks may differ.
    pub clock_tolerance: Duration,
    /// Of the quota, the percentage from which on the repository fills.
    pub quota_percent: u8,
    /// And from which on it is almost full.
    pub quota_full_percent: u8,
    /// The newest run of each kind that the schedule says is due.
    pub expected: Vec<Expected>,
}

impl Default for AlertRules {
    fn default() -> Self {
        AlertRules {
            severities: BTreeMap::new(),
            backup_within: Some(Duration::from_secs(26 * 3600)),
            dump_within: None,
            drill_within: None,
            late: Duration::from_secs(2 * 3600),
            run_within: Duration::from_secs(24 * 3600),
            clock_tolerance: Duration::from_secs(60),
            quota_percent: 80,
            quota_full_percent: 95,
            expected: Vec::new(),
        }
    }
}

impl AlertRules {
    /// The rules, with what must be there at a time, by schedules.
    pub fn expecting(&self, schedules: &[(RunKind, Schedule)], now: Timestamp) -> AlertRules {
        let tolerance = self.late;
        // What was due since then may still be at work.
        let late = SignedDuration::try_from(tolerance).ok().and_then(|late| now.checked_sub(late).ok());
        let due = |(kind, schedule): &(RunKind, Schedule)| {
            Some(Expected { kind: *kind, due: schedule.last_due(late?)?, tolerance })
        };
        AlertRules { expected: schedules.iter().filter_map(due).collect(), ..self.clone() }
    }

    /// How bad it is; `None`: nobody wants to know.
    pub fn severity(&self, rule: Rule) -> Option<AlertSeverity> {
        self.severities.get(&rule).copied().unwrap_or(rule.severity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_every_rule_with_its_severity() {
        let page = include_str!("../../docs/monitor.md");
        for rule in Rule::ALL {
            let severity = rule.severity().map_or("off".to_owned(), |severity| severity.to_string());
            let name = format!("`{rule}`");
            let row = page
                .lines()
                .find(|line| line.starts_with('|') && line.split('|').nth(1).is_some_and(|c| c.contains(&name)));
            let row = row.unwrap_or_else(|| panic!("docs/monitor.md has no row for {rule}"));
            assert_eq!(row.split('|').nth(2).map(str::trim), Some(severity.as_str()), "{rule}");
        }
    }
}
