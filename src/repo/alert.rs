//! What somebody must be told of.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::run_record::RunKind;

/// How soon somebody should act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertSeverity {
    /// Within a day.
    Medium,
    /// Within an hour.
    High,
    /// At once.
    Critical,
}

/// Something that somebody must be told of. The same rule about the same subject is the same alert, whatever its words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// The rule that speaks, in kebab case.
    pub rule: String,
    /// What it speaks of, such as `basebackup` or a segment's name; empty: the whole repository.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// How soon somebody should act.
    pub severity: AlertSeverity,
    /// What was found.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// A run that was to be by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// What was to be run.
    pub kind: RunKind,
    /// When it was to begin.
    pub due: Timestamp,
    /// How much later it may have ended.
    pub tolerance: Duration,
}

impl Alert {
    /// Whether both are the same alert, whatever their words.
    pub fn is_same(&self, other: &Alert) -> bool {
        self.rule == other.rule && self.subject == other.subject
    }

    /// What it is called: the rule, and what it speaks of.
    pub fn name(&self) -> String {
        if self.subject.is_empty() { self.rule.clone() } else { format!("{} {}", self.rule, self.subject) }
    }
}

impl fmt::Display for AlertSeverity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AlertSeverity::Medium => "medium",
            AlertSeverity::High => "high",
            AlertSeverity::Critical => "critical",
        })
    }
}
