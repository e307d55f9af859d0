//! The words of `drill`, and its keeper.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};

use super::args::Global;
use super::logging::LogFormat;
use super::progress_line::ProgressLine;
use super::run::{block_on, cannot_print, circumstances};
use super::sources::Sources;
use super::{drill_anew, exit, output, restore_command, settings};
use crate::command::drill::{self, Drill, DrillKind, KeeperCall};
use crate::command::drill_keeper::KEEP;
use crate::command::progress::Progress;
use crate::command::restore_files::Fetching;
use crate::command::run_note::Noting;
use crate::command::{Failure, FailureKind, drill_html, drill_sql};
use crate::server::scratch_place::{self, ScratchPlace};

/// `drill`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo -u postgres pgark drill --sql /etc/pgark/drill.sql\n  pgark drill --random\n  \
        pgark drill --target-time '2026-11-22 14:05:00+01:00' --html drill.html\n  pgark drill --kind disaster --json\n\n\
        Restores into a scratch directory, recovers a throw-away server there, checks it, measures, and removes it all. \
        Exits 0 when the restore is proven, 1 with a warning, 2 when it fails, 3 when it could not be told \
        (docs/drill.md, docs/exit-codes.md)."
)]
pub struct DrillArgs {
    /// What is restored [default: full, or pitr with a moment]
    #[arg(long)]
    pub kind: Option<KindArg>,
    /// To this moment, with an offset, like '2026-11-22 14:05:00+01:00'
    #[arg(long, value_name = "TIME", conflicts_with = "random")]
    pub target_time: Option<String>,
    /// To a moment that is drawn among those that can be restored
    #[arg(long)]
    pub random: bool,
    /// Draw as the drill did that reported this seed
    #[arg(long, value_name = "N", conflicts_with = "target_time")]
    pub seed: Option<u64>,
    /// Statements that must hold in the restored server (docs/drill.md)
    #[arg(long, value_name = "FILE")]
    pub sql: Option<PathBuf>,
    /// Leave the scratch directory where it is, with the server stopped
    #[arg(long)]
    pub keep: bool,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
    /// Write the report as a page, too
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// It runs as the right user, in the right environment.
    #[arg(long, hide = true)]
    pub begun_anew: bool,
}

/// `drill-keeper`
#[derive(Debug, Args)]
pub struct DrillKeeperArgs {
    /// Where to make the scratch directory
    pub directory: PathBuf,
}

/// `--kind`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    /// Everything, to the end of the WAL
    Full,
    /// A moment
    Pitr,
    /// Everything, on an empty host: with nothing but the repository's settings and credentials
    Disaster,
    /// The newest dump
    Dump,
}

impl KindArg {
    fn kind(self) -> DrillKind {
        match self {
            KindArg::Full => DrillKind::Full,
            KindArg::Pitr => DrillKind::Pitr,
            KindArg::Disaster => DrillKind::Disaster,
            KindArg::Dump => DrillKind::Dump,
        }
    }
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Usage, message)
}

/// What is restored, by all flags that have a say in it.
pub(super) fn kind(args: &DrillArgs) -> Result<DrillKind, Failure> {
    let moment = args.target_time.is_some() || args.random || args.seed.is_some();
    match args.kind.map(KindArg::kind) {
        None if moment => Ok(DrillKind::Pitr),
        None => Ok(DrillKind::Full),
        Some(kind) if moment && kind != DrillKind::Pitr => {
            Err(usage("`--target-time`, `--random` and `--seed` go with `--kind pitr`"))
        }
        Some(kind) => Ok(kind),
    }
}

/// `pgark drill`
pub fn drill(args: &DrillArgs, global: &Global, sources: &Sources, format: LogFormat) -> u8 {
    let outcome = carry_out(args, global, sources);
    outcome.unwrap_or_else(|failure| {
        output::tell(&failure, format);
        exit::unreadable(Some("drill"), failure.kind)
    })
}

fn carry_out(args: &DrillArgs, global: &Global, sources: &Sources) -> Result<u8, Failure> {
    let kind = kind(args)?;
    drill_anew::begin(args, kind, global, sources)?;
    let wanted = wanted(args, kind, sources)?;
    if let Some(page) = &args.html {
        // Better now than after hours.
        std::fs::File::create(page).map_err(|e| cannot_write(page, &e))?;
    }
    drill_anew::stand_back(settings::integer(sources, "drill.nice")?);
    let progress = Arc::new(Progress::default());
    let line = ProgressLine::show(Arc::clone(&progress), global.quiet || args.json);
    let noting = Noting::new(circumstances());
    let report = block_on(async move { drill::run(wanted, &noting, progress).await });
    drop(line);
    let report = report?;
    if let Some(page) = &args.html {
        std::fs::write(page, drill_html::page(&report)).map_err(|e| cannot_write(page, &e))?;
    }
    let printed = if args.json { output::print_json(&report) } else { output::print(&report.text()) };
    printed.map_err(cannot_print)?;
    Ok(exit::checked(report.level))
}

fn cannot_write(page: &std::path::Path, error: &std::io::Error) -> Failure {
    Failure::new(FailureKind::LocalIo, format!("cannot write `{}`: {error}", page.display()))
}

fn wanted(args: &DrillArgs, kind: DrillKind, sources: &Sources) -> Result<Drill, Failure> {
    let (command, _) = restore_command::write(sources)?;
    let program = std::env::current_exe().map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
    let target = args.target_time.as_ref().map(|time| {
        time.parse::<Timestamp>().map_err(|_| {
            usage(format!("`--target-time`: `{time}` is not a time with an offset"))
                .with_hint("write it like '2026-11-22 14:05:00+01:00' or '2026-11-22T13:05:00Z'")
        })
    });
    let sql = args.sql.clone().or_else(|| settings::path(sources, "drill.sql"));
    let assertions = match &sql {
        None => Vec::new(),
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .map_err(|e| Failure::new(FailureKind::LocalIo, format!("cannot read `{}`: {e}", file.display())))?;
            drill_sql::parse(&text).map_err(|e| usage(format!("`{}`: {e}", file.display())))?
        }
    };
    let assertion_deadline: Duration = settings::duration(sources, "drill.sql_deadline")?;
    Ok(Drill {
        kind,
        repository: settings::repository(sources)?,
        target: target.transpose()?,
        seed: args.seed.unwrap_or_else(any_seed),
        restore_command: command,
        fetching: Fetching {
            jobs: settings::integer(sources, "backup.jobs")?,
            retry: settings::duration(sources, "backup.retry")?,
            stall: settings::duration(sources, "repo.stall_timeout")?,
        },
        directory: settings::path(sources, "drill.directory").unwrap_or_else(std::env::temp_dir),
        keeper: KeeperCall { program, words: vec!["drill-keeper".to_owned()] },
        keep: args.keep,
        assertions,
        assertion_deadline,
        programs: settings::path(sources, "cluster.bindir"),
        path: std::env::var("PATH").unwrap_or_default(),
        role: sources.get("drill.role").map(str::to_owned),
        preload: sources.get("drill.preload").unwrap_or_default().to_owned(),
        deep: sources.get("drill.amcheck") == Some("deep"),
        objectives: settings::objectives(sources),
        deadline: settings::duration(sources, "drill.deadline")?,
    })
}

/// Nanoseconds of the clock are as good as dice.
fn any_seed() -> u64 {
    circumstances().now.as_nanosecond().rem_euclid(1 << 48) as u64
}

/// `pgark drill-keeper`: makes a scratch directory, says where, and clears up when nobody holds the other end of its stdin any more.
pub fn keeper(args: &DrillKeeperArgs) -> Result<u8, Failure> {
    // What is sent to a terminal's or a service's processes is not for us: the drill ends, and then we do.
    rustix::process::setsid().ok();
    let local = |e: std::io::Error| Failure::new(FailureKind::LocalIo, e.to_string());
    let (_, left) = scratch_place::sweep(&args.directory);
    for why in left {
        tracing::warn!("{why}");
    }
    block_on(async {
        let kinds =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit(), SignalKind::hangup()].map(signal);
        let place = ScratchPlace::make(&args.directory).map_err(local)?;
        // The drill may be dead already: then its pipe says so.
        output::print(&format!("{}\n", place.path().display())).ok();
        let waiting = tokio::task::spawn_blocking(|| {
            let mut word = String::new();
            std::io::stdin().read_to_string(&mut word).ok();
            word
        });
        let word = waiting.await.unwrap_or_default();
        drop(kinds);
        if word == KEEP { place.keep() } else { place.clear() }.map_err(local)
    })?;
    Ok(exit::SUCCESS)
}
