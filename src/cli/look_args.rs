//! The flags of `list`, `show` and `status`.

use clap::{Args, ValueEnum};

use crate::command::list::{Kind, ListedState, Wanted};
use crate::repo::manifest::Method;

/// Below the help of `list`.
pub const LIST: &str = "Examples:\n  pgark list\n  pgark list --kind remote --json\n  pgark list --kind dump\n\n\
    Exits 0; 1 when a backup or a dump is damaged; 2 to 99 when the repository cannot be read (docs/exit-codes.md).";

/// Below the help of `show`.
pub const SHOW: &str = "Examples:\n  pgark show 20261122T231805Z-0a1b2c3d\n\n\
    Exits 0 when it can be restored, as far as can be told without reading all of it; 1 when it cannot; 2 to 99 when \
    there is no such backup or dump, or the repository cannot be read (docs/exit-codes.md).";

/// Below the help of `status`.
pub const STATUS: &str = "Examples:\n  pgark status\n  pgark status --json --no-server\n  pgark status --watch 30s\n\n\
    Exits 0 when the latest state can be restored and nothing is missing, 1 with warnings, 2 when the latest state \
    cannot be restored or archiving fails, 3 when it could not be told (docs/status.md).";

/// `list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only these, by a word of the column KIND; a damaged one is always listed
    #[arg(long)]
    pub kind: Option<KindArg>,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

/// `--kind`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    /// All files of a cluster
    Full,
    /// Read from the data directory
    Local,
    /// Read over the replication protocol
    Remote,
    /// Taken from a standby
    Standby,
    /// That cannot be used
    Damaged,
    /// Without a manifest
    Unfinished,
    /// Logical dumps
    Dump,
    /// Everything: so it is without this flag
    All,
}

impl KindArg {
    /// What it asks for.
    pub fn wanted(self) -> Option<Wanted> {
        Some(match self {
            KindArg::Full => Wanted::Kind(Kind::Full),
            KindArg::Local => Wanted::Method(Method::Local),
            KindArg::Remote => Wanted::Method(Method::Remote),
            KindArg::Standby => Wanted::Standby,
            KindArg::Damaged => Wanted::State(ListedState::Damaged),
            KindArg::Unfinished => Wanted::State(ListedState::Unfinished),
            KindArg::Dump => Wanted::Dumps,
            KindArg::All => return None,
        })
    }
}

/// `show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The name of a backup or dump
    pub id: String,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

/// `status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Look again and again, until Ctrl-C
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "10s")]
    pub watch: Option<String>,
    /// Look at the repository only
    #[arg(long)]
    pub no_server: bool,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}
