//! The verbs that look into the repository: `list`, `show` and `status`.

use super::args::ColorArg;
use super::look_args::{KindArg, ListArgs, ShowArgs, StatusArgs};
use super::run::{block_on, cannot_print, circumstances};
use super::sources::Sources;
use super::watch::{self, Screens};
use super::{dump_text, exit, look_text, output, settings};
use crate::command::show::Shown;
use crate::command::status::{self, Status};
use crate::command::{Failure, FailureKind, list, show};

/// `pgark list`
pub fn list(args: &ListArgs, sources: &Sources) -> Result<u8, Failure> {
    let repository = settings::repository(sources)?;
    let wanted = args.kind.and_then(KindArg::wanted);
    let report = block_on(async { list::run(&repository, wanted, &circumstances()).await })?;
    let printed = match args.json {
        true => output::print_json(&report),
        false => output::print(&dump_text::list(&report, args.kind)),
    };
    printed.map_err(cannot_print)?;
    Ok(if report.has_damage() { exit::DAMAGED_BACKUP } else { exit::SUCCESS })
}

/// `pgark show`
pub fn show(args: &ShowArgs, sources: &Sources) -> Result<u8, Failure> {
    let repository = settings::repository(sources)?;
    let id = args.id.parse().map_err(|e: crate::repo::backup_id::NotABackupId| {
        Failure::new(FailureKind::Usage, e.to_string()).with_hint("`pgark list` shows the backups")
    })?;
    let report = block_on(async { show::run(&repository, id, &circumstances()).await })?;
    let printed = match args.json {
        true => output::print_json(&report),
        false => output::print(&match &report {
            Shown::Backup(backup) => look_text::show(backup),
            Shown::Dump(dump) => dump_text::show(dump),
        }),
    };
    printed.map_err(cannot_print)?;
    Ok(if report.is_sound() { exit::SUCCESS } else { exit::DAMAGED_BACKUP })
}

/// `pgark status`
pub fn status(args: &StatusArgs, color: ColorArg, sources: &Sources) -> Result<u8, Failure> {
    let wanted = Status {
        repository: settings::repository(sources)?,
        conninfo: if args.no_server { None } else { Some(settings::conninfo(sources)?) },
        slot: sources.get("receive.slot").unwrap_or_default().to_owned(),
        policy: settings::retention(sources)?,
    };
    if let Some(interval) = &args.watch {
        let screens = Screens { json: args.json, color, interval: watch::interval(interval)? };
        return watch::status(&wanted, &screens);
    }
    let circumstances = circumstances();
    let report = block_on(async { status::run(&wanted, &circumstances).await })?;
    let printed = match args.json {
        true => output::print_json(&report),
        false => output::print(&look_text::status(&report, output::colored(color))),
    };
    printed.map_err(cannot_print)?;
    Ok(exit::checked(report.worst()))
}
