//! What a restored server is told, and what its configuration brings along that a person should know before the start.

use std::path::Path;

use crate::disk::RestoreDir;
use crate::disk::server_settings::ServerSettings;
use crate::postgres::control_details::RecordedSettings;
use crate::postgres::recovery_settings::{RecoverySettings, RestoreMode};

/// Writes the recovery settings and the signal file.
pub(super) fn settle(dir: &RestoreDir, recovery: &RecoverySettings) -> std::io::Result<()> {
    const SETTINGS: &str = "postgresql.auto.conf";
    let mut settings = dir.read(SETTINGS)?;
    settings.extend(recovery.to_conf().into_bytes());
    dir.write("", SETTINGS, &settings)?;
    // The backup of a standby, or of a restored server, brings its own along.
    dir.remove(recovery.mode.other_signal_file())?;
    dir.write("", recovery.mode.signal_file(), b"")
}

/// What was found in the configuration of the restored directory.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    /// What to look at before the start.
    pub(super) warnings: Vec<String>,
    /// It names another data directory.
    pub(super) elsewhere: bool,
}

/// Looks through the configuration, before [`settle`] adds to it.
pub(super) fn inherited(root: &Path, recorded: &RecordedSettings, recovery: &RecoverySettings) -> Inherited {
    let settings = ServerSettings::read(root);
    let mut warnings = limits(&settings, recorded, root);
    let elsewhere = places(&settings, root, &mut warnings);
    if let Some(names) = settings.get("synchronous_standby_names").filter(|names| !names.trim().is_empty()) {
        warnings.push(format!(
            "`synchronous_standby_names` is `{names}`: commits wait until such a standby follows this server; empty it if none will"
        ));
    }
    if recovery.keep_archive_mode {
        warnings.extend(silence(&settings));
    }
    let delay = settings.get("recovery_min_apply_delay").filter(|delay| !delay.starts_with('0'));
    if let Some(delay) = delay.filter(|_| recovery.mode == RestoreMode::Standby) {
        warnings.push(format!("`recovery_min_apply_delay` is `{delay}`: the standby stays so far behind"));
    }
    Inherited { warnings, elsewhere }
}

/// Why a server that shall archive will not.
fn silence(settings: &ServerSettings) -> Option<String> {
    let is = match settings.get("archive_mode") {
        Some(value) if ["off", "false", "no", "0"].contains(&value.to_lowercase().as_str()) => format!("is `{value}`"),
        None if settings.has_main() => "is not set, which means off".to_owned(),
        _ => return None,
    };
    Some(format!("`archive_mode` {is}: the server will not archive, though `--archive-mode keep` leaves it as it was"))
}

/// Limits that are lower than where the backup comes from, whether they are set or not.
fn limits(settings: &ServerSettings, recorded: &RecordedSettings, root: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut unknown = Vec::new();
    for (name, needed, default) in recorded.limits() {
        let set: Option<u32> = settings.get(name).and_then(|value| value.trim().parse().ok());
        let is = match set {
            Some(set) => format!("`{name}` is {set}"),
            None if settings.get(name).is_some() => continue,
            None if !settings.has_main() => {
                unknown.push(format!("{name} = {needed}"));
                continue;
            }
            None => format!("`{name}` is not set, which means {default}"),
        };
        if set.unwrap_or(default) < needed {
            warnings.push(format!(
                "{is}, but was {needed} where the backup comes from: PostgreSQL will not recover with less"
            ));
        }
    }
    if !unknown.is_empty() {
        let (root, needed) = (root.display(), unknown.join(", "));
        warnings.push(format!("the configuration is not in `{root}`: it must give at least {needed}"));
    }
    warnings
}

/// Files and directories of the original that the configuration names; `true` if the data directory is among them.
fn places(settings: &ServerSettings, root: &Path, warnings: &mut Vec<String>) -> bool {
    let apart = |name: &str| {
        let value = settings.get(name)?;
        let place = Path::new(value);
        let inside = std::fs::canonicalize(place).unwrap_or_else(|_| place.to_owned());
        let ours = std::fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
        (place.is_absolute() && !inside.starts_with(&ours)).then_some(value)
    };
    let elsewhere = apart("data_directory");
    if let Some(other) = elsewhere {
        warnings.push(format!(
            "`data_directory` is `{other}`: started with `-D` alone, the server is the one there, not the restored one"
        ));
    }
    let collects = settings.get("logging_collector").is_some_and(|on| ["on", "true", "yes", "1"].contains(&on));
    for name in ["hba_file", "ident_file", "external_pid_file", "log_directory", "stats_temp_directory"] {
        if let Some(other) = apart(name).filter(|_| name != "log_directory" || collects) {
            warnings.push(format!("`{name}` is `{other}`, the same as where the backup comes from"));
        }
    }
    elsewhere.is_some()
}
