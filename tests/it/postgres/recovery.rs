//! Configures archive recovery and standbys as an administrator would: settings in postgresql.auto.conf and a signal
//! file. A server recovered this way does not archive.

use std::fs;

use super::{account::Account, builder::quoted, cluster::Cluster, wal::Lsn};

/// Where recovery shall end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// As PostgreSQL reads a timestamp, with a zone. Reached only if a later commit is in the archive.
    Time(String),
    Lsn(Lsn),
    Xid(String),
    /// A named restore point.
    Name(String),
    /// As soon as the backup is consistent.
    Immediate,
    /// The end of the archive.
    Latest,
}

/// A recovery: what to fetch WAL with, where to end, and what then.
#[derive(Clone, Debug)]
pub struct Recovery {
    restore_command: String,
    target: RecoveryTarget,
    inclusive: bool,
    timeline: String,
    action: String,
    archives: bool,
}

const SETTINGS: [&str; 11] = [
    "archive_mode",
    "primary_conninfo",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
];

impl Recovery {
    /// Inclusive, on the latest timeline, promoting at the target, with archiving off.
    pub fn new(restore_command: impl Into<String>, target: RecoveryTarget) -> Recovery {
        Recovery {
            restore_command: restore_command.into(),
            target,
            inclusive: true,
            timeline: "latest".into(),
            action: "promote".into(),
            archives: false,
        }
    }

    pub fn exclusive(mut self) -> Recovery {
        self.inclusive = false;
        self
    }

    /// `latest`, `current` or a number.
    pub fn on_timeline(mut self, timeline: impl ToString) -> Recovery {
        self.timeline = timeline.to_string();
        self
    }

    /// `promote`, `pause` or `shutdown`.
    pub fn and_then(mut self, action: &str) -> Recovery {
        self.action = action.to_owned();
        self
    }

    /// Leaves `archive_mode` as the backup has it.
    pub fn archiving(mut self) -> Recovery {
        self.archives = true;
        self
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("restore_command", self.restore_command.clone()),
            ("recovery_target_timeline", self.timeline.clone()),
            ("recovery_target_inclusive", self.inclusive.to_string()),
            ("recovery_target_action", self.action.clone()),
        ];
        settings.extend(match &self.target {
            RecoveryTarget::Time(time) => Some(("recovery_target_time", time.clone())),
            RecoveryTarget::Lsn(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
            RecoveryTarget::Xid(xid) => Some(("recovery_target_xid", xid.clone())),
            RecoveryTarget::Name(name) => Some(("recovery_target_name", name.clone())),
            RecoveryTarget::Immediate => Some(("recovery_target", "immediate".into())),
            RecoveryTarget::Latest => None,
        });
        if !self.archives {
            settings.push(("archive_mode", "off".into()));
        }
        settings
    }
}

impl Cluster {
    /// Prepares a stopped copy of a backup for recovery at its next start.
    pub fn configure_recovery(&self, recovery: &Recovery) {
        self.write_settings(&recovery.settings());
        Account::of_servers().write(&self.data_dir().join("recovery.signal"), "");
    }

    /// Prepares a stopped copy of a backup to be a standby, streaming too if there is a primary to stream from.
    pub fn configure_standby(&self, restore_command: &str, primary_conninfo: Option<&str>) {
        let mut settings =
            vec![("restore_command", restore_command.to_owned()), ("recovery_target_timeline", "latest".to_owned())];
        settings.extend(primary_conninfo.map(|primary| ("primary_conninfo", primary.to_owned())));
        self.write_settings(&settings);
        Account::of_servers().write(&self.data_dir().join("standby.signal"), "");
    }

    /// Writes the settings to postgresql.auto.conf in place of all earlier ones of their kind.
    fn write_settings(&self, settings: &[(&str, String)]) {
        assert!(!self.is_running(), "recovery is configured on a stopped server");
        let file = self.data_dir().join("postgresql.auto.conf");
        let before = fs::read_to_string(&file).unwrap_or_default();
        let ours = |line: &&str| line.split_once('=').is_some_and(|(name, _)| SETTINGS.contains(&name.trim()));
        let mut lines: Vec<String> = before.lines().filter(|line| !ours(line)).map(str::to_owned).collect();
        lines.extend(settings.iter().map(|(name, value)| format!("{name} = {}", quoted(value))));
        Account::of_servers().write(&file, &format!("{}\n", lines.join("\n")));
    }
}
