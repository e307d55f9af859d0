//! The verbs around logical dumps: from flags to settings, and from reports to words.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::args::Global;
use super::progress_line::ProgressLine;
use super::run::{block_on, cannot_print, circumstances};
use super::sources::Sources;
use super::{exit, output, settings, values};
use crate::command::dump::{Databases, Dump, DumpReport, Form, LocalDumps};
use crate::command::dump_restore::{self, DumpRestore, DumpRestoreReport, IntoServer, RestoreTo};
use crate::command::noted_verbs;
use crate::command::progress::Progress;
use crate::command::run_note::Noting;
use crate::command::{Failure, FailureKind};

/// `dump`
#[derive(Debug, Default, Args)]
#[command(
    after_help = "Examples:\n  sudo -u postgres pgark dump\n  pgark dump --database shop --label 'before the migration'\n  \
        pgark dump --database shop -- --exclude-table-data=log\n  \
        pgark dump --format directory --jobs 4\n\n\
        Without --database, --all and --globals: all databases and what belongs to none, as roles. Runs the server's own \
        pg_dump and pg_dumpall. Exits 0 when everything that they wrote is in the repository; 2 to 99 when there is no dump \
        (docs/exit-codes.md)."
)]
pub struct DumpArgs {
    /// Dump this database; may be given several times
    #[arg(long, value_name = "NAME", conflicts_with = "all")]
    pub database: Vec<String>,
    /// Dump all databases
    #[arg(long)]
    pub all: bool,
    /// Dump what belongs to no database: roles, tablespaces
    #[arg(long)]
    pub globals: bool,
    /// Words to find it by
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub label: String,
    /// How pg_dump writes databases: custom, or directory, which several workers can do [default: custom]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// `pgark expire` leaves it alone until `pgark unkeep`
    #[arg(long)]
    pub keep: bool,
    /// Keep a copy in this directory of this machine, too
    #[arg(long, value_name = "DIR")]
    pub local_dir: Option<String>,
    /// Remove copies there that are older, such as 7d [default: none]
    #[arg(long, value_name = "AGE")]
    pub local_keep: Option<String>,
    /// How many databases are dumped at once; with --format directory, workers for one database [default: 1]
    #[arg(short, long, value_name = "N")]
    pub jobs: Option<String>,
    /// zstd level [default: 3]
    #[arg(long, value_name = "N")]
    pub level: Option<String>,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
    /// For pg_dump, as they are
    #[arg(last = true, value_name = "PG_DUMP ARGS")]
    pub arguments: Vec<OsString>,
}

impl DumpArgs {
    /// The flags that stand for settings.
    pub fn flag_values(&self) -> Vec<(&'static str, &'static str, Option<String>)> {
        vec![
            ("dump.format", "--format", self.format.clone()),
            ("dump.jobs", "--jobs", self.jobs.clone()),
            ("dump.level", "--level", self.level.clone()),
            ("dump.local_dir", "--local-dir", self.local_dir.clone()),
            ("dump.local_keep", "--local-keep", self.local_keep.clone()),
        ]
    }

    fn databases(&self) -> Databases {
        match self.database.is_empty() && (self.all || !self.globals) {
            true => Databases::All,
            false => Databases::Named(self.database.clone()),
        }
    }
}

/// `dump-restore`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sudo -u postgres pgark dump-restore --database shop\n  \
        pgark dump-restore latest --database shop --into shop_yesterday\n  \
        pgark dump-restore 20261122T231805Z-0a1b2c3d --globals --all --create\n  \
        pgark dump-restore --database shop --clean --jobs 4\n  pgark dump-restore --database shop --to /tmp/shop.dump\n\n\
        A dump of one database needs no --database. A database goes into the one of the same name, which must be there unless \
        --create is given, in one transaction: what is damaged or fails changes nothing. There is no such transaction with \
        --create and --jobs: then everything is verified before anything is written. Exits 0 when everything is restored; 2 to \
        99 when not (docs/exit-codes.md).")]
pub struct DumpRestoreArgs {
    /// The dump, or `latest`
    #[arg(default_value = "latest")]
    pub id: String,
    /// Restore this database; may be given several times
    #[arg(long, value_name = "NAME", conflicts_with = "all")]
    pub database: Vec<String>,
    /// Restore all databases of the dump
    #[arg(long)]
    pub all: bool,
    /// Restore what belongs to no database, first: roles with their passwords, tablespaces
    #[arg(long)]
    pub globals: bool,
    /// Into this database, which must be there, and not into the one of the same name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["create", "to"])]
    pub into: Option<String>,
    /// Create the databases
    #[arg(long, conflicts_with = "to")]
    pub create: bool,
    /// Drop what is there before it is restored; with --create, the whole database
    #[arg(long, conflicts_with = "to")]
    pub clean: bool,
    /// Only this table; may be given several times
    #[arg(long, value_name = "NAME", conflicts_with = "to")]
    pub table: Vec<String>,
    /// pg_restore's workers; more than one need room on a disk, and no transaction [default: 1]
    #[arg(short, long, value_name = "N", conflicts_with = "to", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: Option<u16>,
    /// Write the file of one database, or the globals, to this place, and restore nothing
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
    /// For pg_restore, as they are
    #[arg(last = true, value_name = "PG_RESTORE ARGS", conflicts_with = "to")]
    pub arguments: Vec<OsString>,
}

/// `pgark dump`
pub fn dump(args: &DumpArgs, global: &Global, sources: &Sources) -> Result<u8, Failure> {
    let wanted = wanted(args, sources)?;
    let progress = Arc::new(Progress::default());
    let line = ProgressLine::show(Arc::clone(&progress), global.quiet);
    let outcome = block_on(noted_verbs::dump(wanted, &Noting::new(circumstances()), progress));
    drop(line);
    let report = outcome?;
    let printed = if args.json { output::print_json(&report) } else { output::print(&dump_text(&report)) };
    let id = report.dump.id;
    printed.map_err(|e| cannot_print(e).context(format!("dump `{id}` is whole, but nothing can tell of it")))?;
    Ok(exit::SUCCESS)
}

/// The dump that the words ask for.
pub(super) fn wanted(args: &DumpArgs, sources: &Sources) -> Result<Dump, Failure> {
    let jobs = settings::integer(sources, "dump.jobs")?;
    let is_directory = sources.get("dump.format") == Some("directory");
    let keep = sources.get("dump.local_keep").and_then(values::age);
    Ok(Dump {
        repository: settings::repository(sources)?,
        conninfo: settings::conninfo(sources)?,
        programs: settings::path(sources, "cluster.bindir"),
        path: std::env::var("PATH").unwrap_or_default(),
        databases: args.databases(),
        globals: args.globals || (args.database.is_empty() && !args.all),
        label: args.label.clone(),
        form: if is_directory { Form::Directory { jobs } } else { Form::Custom },
        jobs: if is_directory { 1 } else { jobs },
        keep: args.keep,
        local: settings::path(sources, "dump.local_dir").map(|directory| LocalDumps { directory, keep }),
        scratch: scratch(sources),
        level: settings::integer(sources, "dump.level")?,
        lock_wait: settings::duration(sources, "dump.lock_wait")?,
        retry: settings::duration(sources, "dump.retry")?,
        arguments: args.arguments.clone(),
    })
}

fn scratch(sources: &Sources) -> PathBuf {
    settings::path(sources, "dump.scratch").unwrap_or_else(std::env::temp_dir)
}

/// `pgark dump-restore`
pub fn dump_restore(args: &DumpRestoreArgs, global: &Global, sources: &Sources) -> Result<u8, Failure> {
    let id = match args.id.as_str() {
        "latest" => None,
        id => Some(id.parse().map_err(|e: crate::repo::backup_id::NotABackupId| {
            Failure::new(FailureKind::Usage, e.to_string()).with_hint("`pgark list` shows the dumps")
        })?),
    };
    let to = match &args.to {
        Some(file) => RestoreTo::File(file.clone()),
        None => RestoreTo::Server(Box::new(IntoServer {
            conninfo: settings::conninfo(sources)?,
            programs: settings::path(sources, "cluster.bindir"),
            path: std::env::var("PATH").unwrap_or_default(),
            into: args.into.clone(),
            tablespaces_in_place: false,
            create: args.create,
            clean: args.clean,
            tables: args.table.clone(),
            jobs: args.jobs.unwrap_or(1).into(),
            scratch: scratch(sources),
            arguments: args.arguments.clone(),
        })),
    };
    let wanted = DumpRestore {
        repository: settings::repository(sources)?,
        id,
        databases: args.database.clone(),
        all: args.all,
        globals: args.globals,
        to,
        retry: settings::duration(sources, "dump.retry")?,
        stall: settings::duration(sources, "repo.stall_timeout")?,
    };
    let progress = Arc::new(Progress::default());
    let line = ProgressLine::show(Arc::clone(&progress), global.quiet);
    let outcome = block_on(dump_restore::run(wanted, progress));
    drop(line);
    let report = outcome?;
    let printed = if args.json { output::print_json(&report) } else { output::print(&restore_text(&report)) };
    printed.map_err(|e| cannot_print(e).context("everything is restored, but nothing can tell of it"))?;
    Ok(exit::SUCCESS)
}

fn restore_text(report: &DumpRestoreReport) -> String {
    let globals = report.globals.then(|| "what belongs to no database".to_owned());
    let what: Vec<String> =
        globals.into_iter().chain(report.databases.iter().map(|name| output::one_line(name))).collect();
    let (what, size) = (what.join(", "), output::size(report.bytes));
    let begun = report.started.round(jiff::Unit::Second).unwrap_or(report.started);
    match &report.file {
        Some(file) => format!("{what}, as it was at {begun}: {size} in {}\n", file.display()),
        None => format!("restored {what}, {size}, as it was at {begun} (dump {})\n", report.id),
    }
}

fn dump_text(report: &DumpReport) -> String {
    let dump = &report.dump;
    let took = dump.stopped.duration_since(dump.started).as_secs_f64();
    let databases = match dump.databases.len() {
        0 => "no database".to_owned(),
        1 => format!("database {}", output::one_line(&dump.databases[0])),
        count => format!("{count} databases"),
    };
    let globals = if dump.globals { ", with what belongs to none" } else { "" };
    let local = report.local.as_ref().map(|place| format!("  copy    {}\n", place.display())).unwrap_or_default();
    format!(
        "dump {}\n  of      {databases}{globals}\n  size    {}, stored in {}\n  by      {}\n  time    {took:.1} s, until {}\n{local}",
        dump.id,
        output::size(dump.plain_bytes),
        output::size(dump.stored_bytes),
        dump.program,
        dump.stopped.round(jiff::Unit::Second).unwrap_or(dump.stopped),
    )
}
