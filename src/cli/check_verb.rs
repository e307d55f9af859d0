//! `check`: from flags to settings, and what is said of the answers.

use std::time::Duration;

use clap::Args;

use super::args::ColorArg;
use super::logging::LogFormat;
use super::run::{block_on, cannot_print, circumstances};
use super::sources::Sources;
use super::{exit, monitor_verb, output, settings, values};
use crate::command::check::{self, Check};
use crate::command::{Failure, FailureKind};

/// `check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
    /// How long a switched segment may take to arrive
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub within: String,
    /// Do not switch a segment
    #[arg(long)]
    pub no_switch: bool,
    /// Look at the repository as alerts do, and print one line for Nagios
    #[arg(long, conflicts_with_all = ["json", "no_switch", "within"])]
    pub monitor: bool,
    /// With --monitor: look at the repository only
    #[arg(long, requires = "monitor")]
    pub no_server: bool,
}

/// `pgark check`
pub fn check(args: &CheckArgs, color: ColorArg, sources: &Sources, format: LogFormat) -> u8 {
    if args.monitor {
        return monitor_verb::monitor(args, sources);
    }
    let outcome = check_command(args, sources).and_then(|check| {
        let circumstances = circumstances();
        block_on(async move { check::run(&check, &circumstances).await })
    });
    let printed = outcome.and_then(|report| {
        let printed = match args.json {
            true => output::print_json(&report),
            false => output::print(&output::check_text(&report, output::colored(color))),
        };
        printed.map(|()| exit::checked(report.worst())).map_err(cannot_print)
    });
    printed.unwrap_or_else(|failure| {
        output::tell(&failure, format);
        exit::unreadable(Some("check"), failure.kind)
    })
}

fn check_command(args: &CheckArgs, sources: &Sources) -> Result<Check, Failure> {
    let within: Option<Duration> = values::duration(&args.within);
    let within =
        within.ok_or_else(|| Failure::new(FailureKind::Usage, format!("`--within` {}", values::NO_DURATION)))?;
    Ok(Check {
        repository: settings::repository(sources)?,
        pgdata: settings::pgdata(sources),
        conninfo: settings::conninfo(sources)?,
        slot: sources.get("receive.slot").unwrap_or_default().to_owned(),
        binary: std::env::current_exe().and_then(std::fs::canonicalize).ok(),
        read_words: super::archive_command::read,
        switch_within: (!args.no_switch).then_some(within),
        deadline: check::LONGEST,
    })
}
