//! What each verb is called, for exit codes and messages.

use super::args::Verb;

impl Verb {
    /// Its word on the command line.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Verb::WalPush(_) => "wal-push",
            Verb::WalFetch(_) => "wal-fetch",
            Verb::WalPrefetch(_) => "wal-prefetch",
            Verb::WalReceive(_) => "wal-receive",
            Verb::Basebackup(_) => "basebackup",
            Verb::Dump(_) => "dump",
            Verb::DumpRestore(_) => "dump-restore",
            Verb::Restore(_) => "restore",
            Verb::List(_) => "list",
            Verb::Show(_) => "show",
            Verb::Status(_) => "status",
            Verb::Report(_) => "report",
            Verb::Verify(_) => "verify",
            Verb::Drill(_) => "drill",
            Verb::DrillKeeper(_) => "drill-keeper",
            Verb::Expire(_) => "expire",
            Verb::Serve(_) => "serve",
            Verb::Keep(_) => "keep",
            Verb::Unkeep(_) => "unkeep",
            Verb::Delete(_) => "delete",
            Verb::Check(_) => "check",
            Verb::Metrics(_) => "metrics",
            Verb::Alert(_) => "alert",
            Verb::Init(_) => "init",
            Verb::Config(_) => "config",
            Verb::Completions { .. } => "completions",
            Verb::Man => "man",
        }
    }
}
