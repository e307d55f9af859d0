//! What a restore appends to `postgresql.auto.conf`, and which signal file it puts beside it.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use jiff::Timestamp;

use super::recovery::{RECOVERY_SIGNAL, STANDBY_SIGNAL};
use super::{Lsn, Malformed, TimelineId};

/// How a restored server is to recover.
///
/// `primary_conninfo` and all other settings are left as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoverySettings {
    /// What brings WAL back.
    pub restore_command: RestoreCommand,
    /// Where to stop.
    pub target: RecoveryTarget,
    /// Whether what lies exactly at a time, a position or a transaction's end is replayed, too.
    pub inclusive: bool,
    /// Which timeline to follow.
    pub timeline: TargetTimeline,
    /// What to do once the target is reached.
    pub action: TargetAction,
    /// Whether the server becomes a primary in the end, or stays a standby.
    pub mode: RestoreMode,
    /// Whether `archive_mode` stays as it was. Otherwise it is off: a restored server must not
    /// archive into the repository that it came from.
    pub keep_archive_mode: bool,
}

/// Where recovery stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// At the end of all WAL.
    Latest,
    /// As soon as the backup is consistent.
    Immediate,
    /// At a commit or an abort of this time; whole microseconds count.
    Time(Timestamp),
    /// At this position.
    Lsn(Lsn),
    /// At the end of this transaction: the lower half of what `pg_current_xact_id()` gives.
    Xid(u32),
    /// At a point that `pg_create_restore_point()` has named.
    Name(RestorePointName),
}

/// The timeline that recovery follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetTimeline {
    /// The newest in the repository.
    Latest,
    /// The one on which the backup was taken.
    Current,
    /// This one.
    Number(TimelineId),
}

/// What the server does at the target; without a target it ends recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetAction {
    /// Waits, open for reading, for `pg_wal_replay_resume()`. Needs `hot_standby`, which is on by default:
    /// where it is off, PostgreSQL shuts down instead.
    Pause,
    /// Ends recovery and opens for writing.
    Promote,
    /// Stops. The signal file stays, so that the next start recovers on.
    Shutdown,
}

/// Which signal file the server finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreMode {
    /// `recovery.signal`.
    Recovery,
    /// `standby.signal`.
    Standby,
}

/// The name of a restore point.
///
/// * 1 to 63 bytes, in one line. Source: `MAXFNAMELEN` in `access/xlog_internal.h`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestorePointName(String);

/// The text of `restore_command`.
///
/// * Not empty, in one line: PostgreSQL could not keep another in `postgresql.auto.conf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreCommand(String);

/// What holds the recovery target, of which PostgreSQL takes one at most.
const TARGETS: [&str; 5] =
    ["recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"];

impl RecoverySettings {
    /// The lines to append to `postgresql.auto.conf`, where the last line of a name wins.
    ///
    /// The targets that are not meant are emptied, and before the one that is: PostgreSQL takes them
    /// in the order of the file, and an empty one behind it is FATAL, "multiple recovery targets
    /// specified" (measured, 14 to 18). Source: `assign_recovery_target` and its like in
    /// `access/transam/xlogrecovery.c` (14: `utils/misc/guc.c`).
    pub fn to_conf(&self) -> String {
        let mut text = String::from("\n# Written by pgark restore.\n");
        let mut set = |name: &str, value: &str| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name} = {}", quoted(value));
        };
        set("restore_command", &self.restore_command.0);
        // Inherited, they could delete from an archive that is not this server's.
        set("archive_cleanup_command", "");
        set("recovery_end_command", "");
        let target = self.target.setting();
        for name in TARGETS.into_iter().filter(|name| target.as_ref().is_none_or(|(meant, _)| name != meant)) {
            set(name, "");
        }
        if let Some((name, value)) = target {
            set(name, &value);
        }
        set("recovery_target_inclusive", if self.inclusive { "true" } else { "false" });
        set("recovery_target_timeline", &self.timeline.to_string());
        set("recovery_target_action", self.action.name());
        if self.mode == RestoreMode::Recovery {
            // Inherited from a standby, recovery would wait before each commit.
            set("recovery_min_apply_delay", "0");
        }
        if !self.keep_archive_mode {
            set("archive_mode", "off");
        }
        text
    }
}

impl RecoveryTarget {
    fn setting(&self) -> Option<(&'static str, String)> {
        match self {
            RecoveryTarget::Latest => None,
            RecoveryTarget::Immediate => Some(("recovery_target", "immediate".into())),
            RecoveryTarget::Time(time) => {
                Some(("recovery_target_time", time.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()))
            }
            RecoveryTarget::Lsn(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
            RecoveryTarget::Xid(xid) => Some(("recovery_target_xid", xid.to_string())),
            RecoveryTarget::Name(name) => Some(("recovery_target_name", name.0.clone())),
        }
    }
}

impl fmt::Display for TargetTimeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TargetTimeline::Latest => f.write_str("latest"),
            TargetTimeline::Current => f.write_str("current"),
            TargetTimeline::Number(number) => write!(f, "{}", number.get()),
        }
    }
}

impl TargetAction {
    fn name(self) -> &'static str {
        match self {
            TargetAction::Pause => "pause",
            TargetAction::Promote => "promote",
            TargetAction::Shutdown => "shutdown",
        }
    }
}

impl RestoreMode {
    /// The empty file that is to lie in the data directory.
    pub fn signal_file(self) -> &'static str {
        match self {
            RestoreMode::Recovery => RECOVERY_SIGNAL,
            RestoreMode::Standby => STANDBY_SIGNAL,
        }
    }

    /// The file that must not lie there: a backup of a standby brings its own along.
    pub fn other_signal_file(self) -> &'static str {
        match self {
            RestoreMode::Recovery => STANDBY_SIGNAL,
            RestoreMode::Standby => RECOVERY_SIGNAL,
        }
    }
}

impl FromStr for RestorePointName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() > 63 {
            return Err(Malformed::new(format!("`{text}` is no name of a restore point: it has more than 63 bytes")));
        }
        one_line(text).map(Self).ok_or_else(|| Malformed::new(format!("`{text}` is no name of a restore point")))
    }
}

impl FromStr for RestoreCommand {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        one_line(text).map(Self).ok_or_else(|| Malformed::new(format!("`{text}` is no restore_command of one line")))
    }
}

fn one_line(text: &str) -> Option<String> {
    (!text.is_empty() && !text.contains(['\n', '\r', '\0'])).then(|| text.to_owned())
}

/// A value as it stands in a configuration file: within single quotes, where these and backslashes
/// are doubled. Source: `DeescapeQuotedString` in `utils/misc/guc-file.l`.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(target: RecoveryTarget) -> RecoverySettings {
        RecoverySettings {
            restore_command: "pgark wal-fetch '%f' \"%p\"".parse().unwrap(),
            target,
            inclusive: true,
            timeline: TargetTimeline::Latest,
            action: TargetAction::Promote,
            mode: RestoreMode::Recovery,
            keep_archive_mode: false,
        }
    }

    #[test]
    fn a_time() {
        let text = settings(RecoveryTarget::Time("2026-11-22T23:35:32.0123459+02:00".parse().unwrap())).to_conf();
        insta::assert_snapshot!(text, @r#"

        # Written by pgark restore.
        restore_command = 'pgark wal-fetch ''%f'' "%p"'
        archive_cleanup_command = ''
        recovery_end_command = ''
        recovery_target = ''
        recovery_target_lsn = ''
        recovery_target_name = ''
        recovery_target_xid = ''
        recovery_target_time = '2026-11-22 21:35:32.012345+00'
        recovery_target_inclusive = 'true'
        recovery_target_timeline = 'latest'
        recovery_target_action = 'promote'
        recovery_min_apply_delay = '0'
        archive_mode = 'off'
        "#);
    }

    #[test]
    fn the_latest() {
        let timeline = TargetTimeline::Number(TimelineId::new(17).unwrap());
        let mut settings = settings(RecoveryTarget::Latest);
        settings = RecoverySettings { inclusive: false, timeline, action: TargetAction::Pause, ..settings };
        settings.keep_archive_mode = true;
        insta::assert_snapshot!(settings.to_conf(), @r#"

        # Written by pgark restore.
        restore_command = 'pgark wal-fetch ''%f'' "%p"'
        archive_cleanup_command = ''
        recovery_end_command = ''
        recovery_target = ''
        recovery_target_lsn = ''
        recovery_target_name = ''
        recovery_target_time = ''
        recovery_target_xid = ''
        recovery_target_inclusive = 'false'
        recovery_target_timeline = '17'
        recovery_target_action = 'pause'
        recovery_min_apply_delay = '0'
        "#);
    }

    #[test]
    fn a_standby_keeps_its_delay() {
        let standby = RecoverySettings { mode: RestoreMode::Standby, ..settings(RecoveryTarget::Latest) };
        assert!(!standby.to_conf().contains("recovery_min_apply_delay"));
    }

    #[test]
    fn each_target_is_set_after_the_others_are_emptied() {
        let name = "it's a \\ name".parse().unwrap();
        for (target, line) in [
            (RecoveryTarget::Immediate, "recovery_target = 'immediate'"),
            (RecoveryTarget::Lsn(Lsn(0x16_B374_D848)), "recovery_target_lsn = '16/B374D848'"),
            (RecoveryTarget::Xid(4_294_967_295), "recovery_target_xid = '4294967295'"),
            (RecoveryTarget::Name(name), "recovery_target_name = 'it''s a \\\\ name'"),
        ] {
            let text = settings(target).to_conf();
            let lines: Vec<_> =
                text.lines().filter(|line| TARGETS.contains(&line.split(' ').next().unwrap())).collect();
            assert_eq!(lines.len(), TARGETS.len(), "{text}");
            assert!(lines[..4].iter().all(|line| line.ends_with(" = ''")), "{text}");
            assert_eq!(lines[4], line);
        }
    }

    #[test]
    fn one_signal_file_and_not_the_other() {
        assert_eq!(RestoreMode::Recovery.signal_file(), "recovery.signal");
        assert_eq!(RestoreMode::Standby.signal_file(), "standby.signal");
        assert_eq!(RestoreMode::Recovery.other_signal_file(), RestoreMode::Standby.signal_file());
        assert_eq!(RestoreMode::Standby.other_signal_file(), RestoreMode::Recovery.signal_file());
    }

    #[test]
    fn names_and_commands_fit_into_a_line() {
        assert!("x".repeat(63).parse::<RestorePointName>().is_ok());
        assert!("x".repeat(64).parse::<RestorePointName>().is_err());
        assert!("\u{e4}".repeat(32).parse::<RestorePointName>().is_err());
        for text in ["", "a\nb", "a\rb", "a\0b"] {
            assert!(text.parse::<RestorePointName>().is_err(), "{text:?}");
            assert!(text.parse::<RestoreCommand>().is_err(), "{text:?}");
        }
    }

    /// As `guc-file.l` reads a quoted string.
    fn unquoted(text: &str) -> Option<String> {
        let mut characters = text.strip_prefix('\'')?.strip_suffix('\'')?.chars();
        let mut value = String::new();
        while let Some(character) = characters.next() {
            match character {
                '\'' => value.push(characters.next().filter(|next| *next == '\'')?),
                '\\' => value.push(characters.next().filter(|next| *next == '\\')?),
                other => value.push(other),
            }
        }
        Some(value)
    }

    proptest! {
        #[test]
        fn quoting_goes_both_ways(value in "['\\\\a %]{0,12}|\\PC{0,12}") {
            prop_assert_eq!(unquoted(&quoted(&value)), Some(value));
        }
    }
}
