//! `alert`: looks once and sends what is due, as `serve` does all the time. For cron, and to try whether messages arrive.

use clap::Args;

use super::run::{block_on, cannot_print, circumstances};
use super::sources::Sources;
use super::{alert_settings, exit, output, settings as all_settings};
use crate::command::alert::{Alarm, AlarmReport, AlertSettings};
use crate::command::alert_channels::Delivery;
use crate::command::bounds::bounded;
use crate::command::{Failure, FailureKind, overview};

/// `alert`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pgark alert --test                       # does a message arrive?\n  \
        */5 * * * *  pgark alert                 # a crontab's line, where `pgark serve` does not run\n\n\
        Exits 0 when the repository was looked at and every way took what was due; 1 when one did not; 2 to 99 when it could \
        not be looked at, which is an alert, too (docs/exit-codes.md).")]
pub struct AlertArgs {
    /// Send a test message on every way, and nothing else
    #[arg(long)]
    pub test: bool,
    /// Look at the repository only
    #[arg(long)]
    pub no_server: bool,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

/// `pgark alert`
pub fn alert(args: &AlertArgs, sources: &Sources) -> Result<u8, Failure> {
    let circumstances = circumstances();
    let settings = alert_settings::alerts(sources, &circumstances.writer.host)?;
    alert_settings::some_channel(&settings)?;
    if args.test {
        let alarm = Alarm::new(AlertSettings { state: None, ..settings })?;
        let deliveries = block_on(bounded(async { Ok(alarm.test(circumstances.now).await) }, None, None))?;
        let printed = match args.json {
            true => output::print_json(&serde_json::json!({ "schema": 1, "deliveries": deliveries })),
            false => output::print(&deliveries_text(&deliveries)),
        };
        printed.map_err(cannot_print)?;
        return Ok(code(&deliveries));
    }
    if settings.state.is_none() {
        let why = "every call would tell everything again: nothing remembers what was told";
        return Err(Failure::new(FailureKind::Usage, why)
            .with_hint("set `state` under `[alerts]` to a file, such as /var/lib/pgark/alerts.json"));
    }
    let watched = all_settings::watched(sources, !args.no_server)?;
    let mut alarm = Alarm::new(settings)?;
    let (report, blind) = block_on(async {
        let looked = bounded(overview::run(&watched, &circumstances), Some(overview::PATIENCE), None).await;
        match looked {
            Err(failure) if failure.kind == FailureKind::Interrupted => Err(failure),
            looked => {
                let report = bounded(async { Ok(alarm.look(looked.as_ref(), circumstances.now).await) }, None, None);
                Ok((report.await?, looked.err()))
            }
        }
    })?;
    let printed = match args.json {
        true => output::print_json(&report),
        false => output::print(&report_text(&report)),
    };
    printed.map_err(cannot_print)?;
    blind.map_or(Ok(code(&report.deliveries)), Err)
}

fn code(deliveries: &[Delivery]) -> u8 {
    if deliveries.iter().all(|delivery| delivery.problem.is_none()) { exit::SUCCESS } else { exit::NOT_DELIVERED }
}

fn report_text(report: &AlarmReport) -> String {
    let mut text = String::new();
    for alert in &report.alerts {
        text.push_str(&format!("{}: {}: {}\n", alert.severity, alert.name(), alert.message));
    }
    if report.alerts.is_empty() {
        text.push_str("no alert stands\n");
    }
    text + &deliveries_text(&report.deliveries)
}

fn deliveries_text(deliveries: &[Delivery]) -> String {
    let line = |delivery: &Delivery| match &delivery.problem {
        None => format!("sent by {}\n", delivery.channel),
        Some(problem) => format!("NOT sent by {}: {problem}\n", delivery.channel),
    };
    deliveries.iter().map(line).collect()
}
