//! `wal-receive`: from flags to settings, signals that stop it, and what is said at its end.

use std::time::Duration;

use clap::Args;

use super::run::{block_on_many, cannot_print, circumstances};
use super::sources::Sources;
use super::{exit, output, settings};
use crate::command::receive_progress::{ReceiveProgress, ReceiveState};
use crate::command::stop::StopButton;
use crate::command::wal_receive::{self, ReceiveSettings, Received};
use crate::command::{Failure, FailureKind, bounds};
use crate::postgres::Malformed;

/// `wal-receive`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pgark --conninfo 'host=db1 user=replicator' wal-receive --create-slot\n  \
        pgark wal-receive --synchronous          # for synchronous_standby_names\n  \
        pgark wal-receive --once-to 16/B374D848\n\n\
        Streams until it is stopped, and connects again for ever. Exits 0 when it was stopped, or has come to the position of \
        `--once-to`, and all that it received is durable; 1 when the repository holds another server's WAL; 2 to 99 for other \
        failures (docs/exit-codes.md).")]
pub struct WalReceiveArgs {
    /// The replication slot [default: pgark]
    #[arg(long, value_name = "NAME")]
    pub slot: Option<String>,
    /// Make the slot where there is none
    #[arg(long)]
    pub create_slot: bool,
    /// How long WAL may wait for the next piece [default: 1s]
    #[arg(long, value_name = "DURATION")]
    pub flush: Option<String>,
    /// How many bytes of WAL may wait for the next piece [default: 1MiB]
    #[arg(long, value_name = "SIZE")]
    pub flush_bytes: Option<String>,
    /// Store at once whatever comes, for commits that wait for it
    #[arg(long)]
    pub synchronous: bool,
    /// End when everything before this position is durable
    #[arg(long, value_name = "LSN")]
    pub once_to: Option<String>,
}

impl WalReceiveArgs {
    /// The flags that stand for settings.
    pub fn flag_values(&self) -> Vec<(&'static str, &'static str, Option<String>)> {
        let switch = |on: bool| on.then(|| "true".to_owned());
        vec![
            ("receive.slot", "--slot", self.slot.clone()),
            ("receive.create_slot", "--create-slot", switch(self.create_slot)),
            ("receive.flush", "--flush", self.flush.clone()),
            ("receive.flush_bytes", "--flush-bytes", self.flush_bytes.clone()),
            ("receive.synchronous", "--synchronous", switch(self.synchronous)),
        ]
    }
}

/// How often it is logged how far it is.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// `pgark wal-receive`
pub fn receive(args: &WalReceiveArgs, sources: &Sources) -> Result<u8, Failure> {
    let usage = |e: Malformed| Failure::new(FailureKind::Usage, format!("`--once-to`: {e}"));
    let once_to = args.once_to.as_deref().map(str::parse).transpose().map_err(usage)?;
    let wanted = ReceiveSettings { once_to, ..wanted(sources)? };
    let progress = ReceiveProgress::default();
    let received = block_on_many(async {
        let (button, stop) = StopButton::new();
        let circumstances = circumstances();
        let work = wal_receive::run(&wanted, &circumstances, &progress, stop);
        let signal = async {
            let name = bounds::any_signal().await;
            tracing::info!("{name}: stopping");
            button.press();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            received = work => received,
            () = signal => Ok(Received::Stopped),
            () = log(&progress) => Ok(Received::Stopped),
        }
    })?;
    output::print(&text(received, &progress.now())).map_err(cannot_print)?;
    Ok(exit::SUCCESS)
}

/// How these settings let WAL be received.
pub(super) fn wanted(sources: &Sources) -> Result<ReceiveSettings, Failure> {
    Ok(ReceiveSettings {
        repository: settings::repository(sources)?,
        conninfo: settings::conninfo(sources)?,
        slot: sources.get("receive.slot").unwrap_or_default().to_owned(),
        create_slot: settings::is_true(sources, "receive.create_slot"),
        flush: settings::duration(sources, "receive.flush")?,
        flush_bytes: settings::size(sources, "receive.flush_bytes")?,
        synchronous: settings::is_true(sources, "receive.synchronous"),
        once_to: None,
        level: settings::integer(sources, "wal.level")?,
        stop_deadline: settings::duration(sources, "wal.stop_deadline")?,
    })
}

async fn log(progress: &ReceiveProgress) {
    let mut before = progress.now().durable;
    loop {
        tokio::time::sleep(LOG_EVERY).await;
        let now = progress.now();
        if now.durable != before || now.lag_bytes() > 0 {
            let (lag, pieces, segments) = (output::size(now.lag_bytes()), now.pieces, now.segments);
            tracing::info!("durable up to {}, {lag} behind; {segments} segments, {pieces} pieces so far", now.durable);
        }
        before = now.durable;
    }
}

fn text(received: Received, state: &ReceiveState) -> String {
    let word = match received {
        Received::Reached => "reached",
        Received::Stopped => "stopped",
    };
    let many = |count: u64, one: &str| if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") };
    format!(
        "{word}: durable up to {}, with {} and {}\n",
        state.durable,
        many(state.segments, "segment"),
        many(state.pieces, "piece")
    )
}
