//! What somebody must be told of.

use std::fmt;

use serde::{Deserialize, Serialize};

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

impl fmt::Display for AlertSeverity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AlertSeverity::Medium => "medium",
            AlertSeverity::High => "high",
            AlertSeverity::Critical => "critical",
        })
    }
}
