//! `metrics`: what is known of the repository, for Prometheus.

use std::path::PathBuf;

use clap::Args;

use super::run::{block_on, cannot_print, circumstances};
use super::sources::Sources;
use super::{exit, output, settings};
use crate::command::bounds::bounded;
use crate::command::metrics::{blind_text, metrics_text, write_textfile};
use crate::command::{Failure, FailureKind, overview};

/// `metrics`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pgark metrics --no-server\n  \
        pgark metrics --textfile /var/lib/prometheus/node-exporter/pgark.prom\n\n\
        Where the repository cannot be looked at, `pgark_up` is 0, and the exit code says why (docs/exit-codes.md).")]
pub struct MetricsArgs {
    /// Write this file, for the textfile collector of node_exporter
    #[arg(long, value_name = "FILE")]
    pub textfile: Option<PathBuf>,
    /// Look at the repository only
    #[arg(long)]
    pub no_server: bool,
}

/// `pgark metrics`
pub fn metrics(args: &MetricsArgs, sources: &Sources) -> Result<u8, Failure> {
    let watched = settings::watched(sources, !args.no_server)?;
    let circumstances = circumstances();
    let cluster = sources.get("cluster.name").unwrap_or_default();
    let looked = block_on(bounded(overview::run(&watched, &circumstances), Some(overview::PATIENCE), None));
    if let Err(failure) = &looked
        && failure.kind == FailureKind::Interrupted
    {
        return looked.map(|_| exit::SUCCESS);
    }
    let text = match &looked {
        Ok(overview) => metrics_text(overview, cluster, &watched.rules, []),
        Err(_) => blind_text(cluster, circumstances.now, []),
    };
    match &args.textfile {
        None => output::print(&text).map_err(cannot_print)?,
        Some(path) => write_textfile(path, &text).map_err(|e| {
            Failure::new(FailureKind::LocalIo, format!("cannot write `{}`: {e}", path.display()))
                .with_hint("the directory must be there, and writable to this user")
        })?,
    }
    looked.map(|_| exit::SUCCESS)
}
