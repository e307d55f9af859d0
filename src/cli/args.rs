//! The command line, as clap reads it. Values that stand for settings stay text: `sources` judges them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::alert_verb::AlertArgs;
use super::check_verb::CheckArgs;
use super::drill_verb::{DrillArgs, DrillKeeperArgs};
use super::dump_verbs::{DumpArgs, DumpRestoreArgs};
use super::expire_verbs::{DeleteArgs, ExpireArgs, KeepArgs, UnkeepArgs};
use super::look_args::{self, ListArgs, ShowArgs, StatusArgs};
use super::metrics_verb::MetricsArgs;
use super::receive_verb::WalReceiveArgs;
use super::report_verb::ReportArgs;
use super::restore_args::RestoreArgs;
use super::serve_verb::ServeArgs;
use super::sources::FlagValue;
use super::verify_verb::VerifyArgs;

/// Keeps a PostgreSQL cluster restorable to any moment.
#[derive(Debug, Parser)]
#[command(
    name = "pgark",
    version,
    propagate_version = false,
    after_help = "Examples:\n  \
        archive_command = 'pgark --repo s3://my-bucket/pg wal-push %p %f'\n  \
        restore_command = 'pgark --repo s3://my-bucket/pg wal-fetch %f %p'\n  \
        pgark --repo file:///srv/archive check\n  \
        pgark config show --origin\n\n\
        The manual is in docs/, beginning with README.md."
)]
pub struct Cli {
    /// What applies to all verbs.
    #[command(flatten)]
    pub global: Global,
    /// The verb.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags that every verb has.
#[derive(Debug, Args)]
pub struct Global {
    /// Where the repository is: s3://bucket/prefix or file:///path
    #[arg(long, global = true, value_name = "URL")]
    pub repo: Option<String>,
    /// The cluster's name in the repository [default: main]
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// The settings file [default: /etc/pgark/pgark.toml]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The data directory, where the working directory is not one [default: $PGDATA]
    #[arg(long, global = true, value_name = "DIR")]
    pub pgdata: Option<String>,
    /// How to reach the server, as for psql
    #[arg(long, global = true, value_name = "CONNINFO")]
    pub conninfo: Option<String>,
    /// Log more; twice: much more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Log errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// How to log
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<LogFormatArg>,
    /// When to colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorArg,
}

/// `--log-format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormatArg {
    /// Lines for people
    Text,
    /// A JSON object a line
    Json,
}

/// `--color`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorArg {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Yes
    Always,
    /// No
    Never,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Archive one WAL file: for archive_command
    #[command(
        visible_alias = "archive-push",
        after_help = "Examples:\n  archive_command = 'pgark wal-push %p %f'\n  \
            pgark --pgdata /var/lib/postgresql/15/main wal-push --backfill\n\n\
            Exits 0 when the file is durable in the repository and equal; 1 when another content is archived under its \
            name, which then stays; 2 to 99 for other failures (docs/exit-codes.md)."
    )]
    WalPush(WalPushArgs),
    /// Fetch one WAL file: for restore_command
    #[command(
        visible_alias = "archive-get",
        after_help = "Examples:\n  restore_command = 'pgark wal-fetch %f %p'\n  \
            pgark --repo s3://my-bucket/pg wal-fetch 00000001000000000000002A /tmp/segment\n\n\
            Exits 0 when the file is in its place and verified; 1 when it is proven that there is none; 200 for \
            everything else, which stops recovery instead of ending it early (docs/exit-codes.md)."
    )]
    WalFetch(WalFetchArgs),
    /// Fetch segments ahead: called by wal-fetch
    #[command(hide = true)]
    WalPrefetch(WalPrefetchArgs),
    /// Stream WAL from a server into the repository as it is written
    WalReceive(WalReceiveArgs),
    /// Take a full snapshot of the cluster
    #[command(
        alias = "backup-push",
        after_help = "Examples:\n  sudo -u postgres pgark basebackup\n  \
            pgark basebackup --label 'before the upgrade' --keep --jobs 4\n  pgark basebackup --rate 50MiB --checkpoint spread\n  \
            pgark basebackup --remote --conninfo 'host=db1 user=backup'\n\n\
            Exits 0 when all files and all WAL that they need are in the repository; 1 when they are, but pages with \
            wrong checksums were found; 2 to 99 when there is no backup (docs/exit-codes.md)."
    )]
    Basebackup(BasebackupArgs),
    /// Take a logical dump, by the server's own pg_dump
    Dump(DumpArgs),
    /// Restore a logical dump into a server, or fetch it into a file
    DumpRestore(DumpRestoreArgs),
    /// Restore a backup to a directory, to recover to a point in time from there
    #[command(after_help = "Examples:\n  sudo -u postgres pgark restore --to /var/lib/postgresql/15/main\n  \
            pgark restore --to /srv/pg --target-time '2026-11-22 14:05:00+01:00'\n  \
            pgark restore --to /srv/pg --target-name before_upgrade --dry-run\n  \
            pgark restore --to /srv/pg --tablespace-map /fast=/srv/fast\n\n\
            Prints the plan first, or why there is none before a byte is written. Exits 0 when every file is in its place \
            and verified; PostgreSQL recovers when it is started (docs/exit-codes.md).")]
    Restore(Box<RestoreArgs>),
    /// List the backups and the dumps
    #[command(alias = "backup-list", after_help = look_args::LIST)]
    List(ListArgs),
    /// Show one dump, or one backup and whether the WAL is there that it needs
    #[command(after_help = look_args::SHOW)]
    Show(ShowArgs),
    /// Tell what can be restored now, and what stands in the way
    #[command(alias = "info", after_help = look_args::STATUS)]
    Status(StatusArgs),
    /// Write all that is known into one page, for eyes
    Report(ReportArgs),
    /// Read what a restore would read, and say what is damaged
    Verify(VerifyArgs),
    /// Prove a restore, and measure it
    Drill(DrillArgs),
    /// Keep a drill's scratch directory: called by drill
    #[command(hide = true)]
    DrillKeeper(DrillKeeperArgs),
    /// Delete what the policy under `[retention]` no longer wants and nothing needs
    Expire(ExpireArgs),
    /// Run what is due, receive WAL, and answer over HTTP, until it is stopped
    Serve(ServeArgs),
    /// Mark a backup or a dump as one that must stay
    Keep(KeepArgs),
    /// Take the mark of `keep` away
    Unkeep(UnkeepArgs),
    /// Delete one backup or dump by hand
    Delete(DeleteArgs),
    /// Find out whether everything is set up right
    #[command(after_help = "Examples:\n  sudo -u postgres pgark check\n  pgark check --json --no-switch\n  \
            pgark check --monitor                    # for Nagios and its kin, from any host\n\n\
            Exits 0 when all is well, 1 with warnings, 2 when something fails, 3 when something could not be told.")]
    Check(CheckArgs),
    /// Print what is known of the repository as metrics, for Prometheus
    Metrics(MetricsArgs),
    /// Look once, and send the alerts that are due
    Alert(AlertArgs),
    /// Write the settings file and print the lines for postgresql.conf
    #[command(
        after_help = "Examples:\n  sudo pgark --repo s3://my-bucket/pg --pgdata /var/lib/postgresql/15/main init\n  \
            sudo -u postgres pgark init --new-generation     # after pg_upgrade or initdb"
    )]
    Init(InitArgs),
    /// Settings: what they are, where they come from
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// `wal-push`
#[derive(Debug, Args)]
pub struct WalPushArgs {
    /// The file (%p); with --backfill a pg_wal directory, which may be left away
    #[arg(required_unless_present = "backfill")]
    pub path: Option<PathBuf>,
    /// Its name (%f) [default: the last part of PATH]
    #[arg(conflicts_with = "backfill")]
    pub name: Option<String>,
    /// How many of the next segments to archive besides; 0: none [default: 8]
    #[arg(long, value_name = "N")]
    pub lookahead: Option<String>,
    /// How many segments are compressed at once [default: 2]
    #[arg(short, long, value_name = "N")]
    pub jobs: Option<String>,
    /// When to give up [default: 60s]
    #[arg(long, value_name = "DURATION")]
    pub deadline: Option<String>,
    /// After a failover: archive every finished file of pg_wal that the repository lacks
    #[arg(long)]
    pub backfill: bool,
    /// With --backfill: report as JSON
    #[arg(long, requires = "backfill")]
    pub json: bool,
}

/// `wal-fetch`
#[derive(Debug, Args)]
pub struct WalFetchArgs {
    /// The file's name (%f)
    pub name: String,
    /// Where to put it (%p)
    pub path: PathBuf,
    /// How many of the next segments to fetch ahead; 0: none [default: 8]
    #[arg(long, value_name = "N")]
    pub prefetch: Option<String>,
    /// For disasters: end recovery before this segment, though it is damaged or later ones are there
    #[arg(long, value_name = "SEGMENT")]
    pub accept_end_at: Option<String>,
}

/// `wal-prefetch`
#[derive(Debug, Args)]
pub struct WalPrefetchArgs {
    /// As many segments
    #[arg(long, value_name = "N")]
    pub prefetch: Option<String>,
    /// The data directory that recovers
    pub data_dir: PathBuf,
}

/// `basebackup`
#[derive(Debug, Default, Args)]
pub struct BasebackupArgs {
    /// Read over the replication protocol: from any host, without access to the files
    #[arg(long)]
    pub remote: bool,
    /// Words to find it by
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub label: String,
    /// How many parts are read and packed at once [default: 2]
    #[arg(short, long, value_name = "N")]
    pub jobs: Option<String>,
    /// zstd level [default: 3]
    #[arg(long, value_name = "N")]
    pub level: Option<String>,
    /// Whether the checkpoint at the start hurries [default: fast]
    #[arg(long, value_name = "fast|spread")]
    pub checkpoint: Option<String>,
    /// Read at most this much in a second, like 50MiB
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<String>,
    /// Never expire it
    #[arg(long)]
    pub keep: bool,
    /// How long the last WAL may take to be archived [default: 10m]
    #[arg(long, value_name = "DURATION")]
    pub wal_wait: Option<String>,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

/// `init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// After pg_upgrade or initdb: open the next generation for the cluster in the data directory
    #[arg(long)]
    pub new_generation: bool,
    /// Print what would be written, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Ask nothing
    #[arg(long)]
    pub yes: bool,
}

/// `config`
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Show every setting's value
    Show {
        /// And where it comes from
        #[arg(long)]
        origin: bool,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Read all settings and say whether they are in order
    Check,
    /// Print a file with every setting and its default
    Example,
}

impl Cli {
    /// The flags that stand for settings.
    pub fn flag_values(&self) -> Vec<FlagValue> {
        let global = &self.global;
        let mut flags: Vec<(&'static str, &'static str, Option<String>)> = vec![
            ("repo.url", "--repo", global.repo.clone()),
            ("cluster.name", "--cluster", global.cluster.clone()),
            ("cluster.pgdata", "--pgdata", global.pgdata.clone()),
            ("cluster.conninfo", "--conninfo", global.conninfo.clone()),
            ("log.level", if global.quiet { "--quiet" } else { "--verbose" }, global.log_level()),
            ("log.format", "--log-format", global.log_format.map(|format| format.word().to_owned())),
        ];
        if let Verb::WalPush(push) = &self.verb {
            flags.push(("wal.push_deadline", "--deadline", push.deadline.clone()));
            flags.push(("wal.lookahead", "--lookahead", push.lookahead.clone()));
            flags.push(("wal.jobs", "--jobs", push.jobs.clone()));
        }
        if let Verb::WalFetch(WalFetchArgs { prefetch, .. }) | Verb::WalPrefetch(WalPrefetchArgs { prefetch, .. }) =
            &self.verb
        {
            flags.push(("wal.prefetch", "--prefetch", prefetch.clone()));
        }
        if let Verb::WalReceive(receive) = &self.verb {
            flags.extend(receive.flag_values());
        }
        if let Verb::Basebackup(backup) = &self.verb {
            flags.push(("backup.jobs", "--jobs", backup.jobs.clone()));
            flags.push(("backup.level", "--level", backup.level.clone()));
            flags.push(("backup.checkpoint", "--checkpoint", backup.checkpoint.clone()));
            flags.push(("backup.wal_wait", "--wal-wait", backup.wal_wait.clone()));
        }
        if let Verb::Serve(serve) = &self.verb {
            flags.extend(serve.flag_values());
        }
        if let Verb::Dump(dump) = &self.verb {
            flags.extend(dump.flag_values());
        }
        if let Verb::Restore(restore) = &self.verb {
            flags.push(("backup.jobs", "--jobs", restore.jobs.clone()));
        }
        let given = flags.into_iter().filter_map(|(path, flag, text)| Some(FlagValue { path, flag, text: text? }));
        given.collect()
    }
}

impl Global {
    /// The words that say where things are, for another call of this program.
    pub fn words(&self) -> Vec<OsString> {
        let config = self.config.as_ref().map(|file| file.clone().into_os_string());
        let texts = [("--repo", &self.repo), ("--cluster", &self.cluster), ("--pgdata", &self.pgdata)];
        let given = texts.into_iter().map(|(flag, text)| (flag, text.clone().map(OsString::from)));
        let given = given.chain([("--config", config)]).filter_map(|(flag, text)| Some([flag.into(), text?]));
        given.flatten().collect()
    }

    fn log_level(&self) -> Option<String> {
        let level = match (self.quiet, self.verbose) {
            (true, _) => "error",
            (false, 0) => return None,
            (false, 1) => "info",
            (false, 2) => "debug",
            (false, _) => "trace",
        };
        Some(level.to_owned())
    }
}

impl LogFormatArg {
    fn word(self) -> &'static str {
        match self {
            LogFormatArg::Text => "text",
            LogFormatArg::Json => "json",
        }
    }
}
