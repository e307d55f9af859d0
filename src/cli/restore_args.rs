//! The flags of `restore`, as clap reads them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `restore`
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// From this backup [default: the newest that ended before the target]
    pub backup: Option<String>,
    /// The data directory to be: it must be empty or not exist
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Where to stop [default: at the end of the archive]
    #[command(flatten)]
    pub target: TargetArgs,
    /// Which timeline to follow: latest, current (the backup's) or a number [default: latest]
    #[arg(long, value_name = "TIMELINE", default_value = "latest")]
    pub target_timeline: String,
    /// What the server does at the target
    #[arg(long, value_name = "ACTION", default_value = "promote")]
    pub target_action: TargetActionArg,
    /// Stop just before the target
    #[arg(long)]
    pub exclusive: bool,
    /// Stay a standby: follow the archive, and the primary if `primary_conninfo` is set
    #[arg(long, conflicts_with_all = ["target_time", "target_lsn", "target_xid", "target_name", "target_immediate"])]
    #[arg(conflicts_with_all = ["target_timeline", "target_action"])]
    pub standby: bool,
    /// Put a tablespace elsewhere; with --delta, OLD=OLD confirms that its files may be overwritten
    #[arg(long, value_name = "OLD=NEW")]
    pub tablespace_map: Vec<String>,
    /// Over a stopped cluster: keep files whose content fits, remove what the backup does not have
    #[arg(long)]
    pub delta: bool,
    /// With --delta: lose WAL that the old cluster has and the repository lacks
    #[arg(long, requires = "delta")]
    pub discard_wal: bool,
    /// Whether the restored server archives: `keep` leaves it as it was
    #[arg(long, value_name = "MODE", default_value = "off")]
    pub archive_mode: ArchiveModeArg,
    /// The server's restore_command [default: this pgark, with the same repository]
    #[arg(long, value_name = "COMMAND")]
    pub restore_command: Option<String>,
    /// How many parts are fetched at once [default: 2]
    #[arg(short, long, value_name = "N")]
    pub jobs: Option<String>,
    /// Print the plan, look at the place, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Where recovery stops.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct TargetArgs {
    /// At this time, with an offset, like '2026-11-22 14:05:00+01:00'
    #[arg(long, value_name = "TIME")]
    pub target_time: Option<String>,
    /// At this position in the WAL
    #[arg(long, value_name = "LSN")]
    pub target_lsn: Option<String>,
    /// At the end of this transaction
    #[arg(long, value_name = "XID")]
    pub target_xid: Option<u32>,
    /// At this restore point (pg_create_restore_point)
    #[arg(long, value_name = "NAME")]
    pub target_name: Option<String>,
    /// As soon as the backup is consistent
    #[arg(long)]
    pub target_immediate: bool,
}

/// `--target-action`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TargetActionArg {
    /// Wait, open for reading
    Pause,
    /// Open for writing
    Promote,
    /// Stop
    Shutdown,
}

/// `--archive-mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArchiveModeArg {
    /// As in the backup
    Keep,
    /// A restored server must not archive where it came from
    Off,
}
