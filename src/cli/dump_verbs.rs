//! The verbs around logical dumps: from flags to settings, and from reports to words.

use std::ffi::OsString;
use std::sync::Arc;

use clap::Args;

use super::args::Global;
use super::progress_line::ProgressLine;
use super::run::{block_on, cannot_print, circumstances};
use super::sources::Sources;
use super::{exit, output, settings};
use crate::command::Failure;
use crate::command::dump::{Databases, Dump, DumpReport};
use crate::command::noted_verbs;
use crate::command::progress::Progress;
use crate::command::run_note::Noting;

/// `dump`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo -u postgres pgark dump\n  pgark dump --database shop --label 'before the migration'\n  \
        pgark dump --database shop -- --exclude-table-data=log\n\n\
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
    /// How many databases are dumped at once [default: 1]
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
        vec![("dump.jobs", "--jobs", self.jobs.clone()), ("dump.level", "--level", self.level.clone())]
    }

    fn databases(&self) -> Databases {
        match self.database.is_empty() && (self.all || !self.globals) {
            true => Databases::All,
            false => Databases::Named(self.database.clone()),
        }
    }
}

/// `pgark dump`
pub fn dump(args: &DumpArgs, global: &Global, sources: &Sources) -> Result<u8, Failure> {
    let wanted = Dump {
        repository: settings::repository(sources)?,
        conninfo: settings::conninfo(sources)?,
        programs: settings::path(sources, "cluster.bindir"),
        path: std::env::var("PATH").unwrap_or_default(),
        databases: args.databases(),
        globals: args.globals || (args.database.is_empty() && !args.all),
        label: args.label.clone(),
        jobs: settings::integer(sources, "dump.jobs")?,
        level: settings::integer(sources, "dump.level")?,
        lock_wait: settings::duration(sources, "dump.lock_wait")?,
        retry: settings::duration(sources, "dump.retry")?,
        arguments: args.arguments.clone(),
    };
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

fn dump_text(report: &DumpReport) -> String {
    let dump = &report.dump;
    let took = dump.stopped.duration_since(dump.started).as_secs_f64();
    let databases = match dump.databases.len() {
        1 => format!("database {}", dump.databases[0]),
        count => format!("{count} databases"),
    };
    let globals = if dump.globals { ", with what belongs to none" } else { "" };
    format!(
        "dump {}\n  of      {databases}{globals}\n  size    {}, stored in {}\n  by      {}\n  time    {took:.1} s, until {}\n",
        dump.id,
        output::size(dump.plain_bytes),
        output::size(dump.stored_bytes),
        dump.program,
        dump.stopped.round(jiff::Unit::Second).unwrap_or(dump.stopped),
    )
}
