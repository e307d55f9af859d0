//! `pgark report`: the page, or all that it is made from.

use std::path::{Path, PathBuf};

use clap::Args;

use super::run::{block_on, cannot_print, circumstances};
use super::sources::Sources;
use super::{exit, output, settings};
use crate::command::{Failure, FailureKind, checklist, overview, ways};
use crate::disk::whole_file;
use crate::page::{View, page};

/// Below the help.
const EXAMPLES: &str = "Examples:\n  pgark report --html /var/www/html/backups.html\n  pgark report --html - --no-server > page.html\n  \
    pgark report --json\n\n\
    Exits 0 when the report was written, whatever it says; 2 to 99 when the repository cannot be read or FILE not be written \
    (docs/exit-codes.md).";

/// `report`
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ReportArgs {
    /// Write the page into this file, which is replaced when it is whole; `-`: to stdout
    #[arg(long, value_name = "FILE", required_unless_present = "json")]
    pub html: Option<PathBuf>,
    /// What the page is made from, on stdout as JSON
    #[arg(long, conflicts_with = "html")]
    pub json: bool,
    /// Look at the repository only
    #[arg(long)]
    pub no_server: bool,
}

/// Makes it.
pub fn report(args: &ReportArgs, sources: &Sources) -> Result<u8, Failure> {
    let watched = settings::watched(sources, !args.no_server)?;
    let circumstances = circumstances();
    let repository = &watched.status.repository;
    let overview = block_on(async { overview::run(&watched, &circumstances).await })?;
    if args.json {
        return output::print_json(&overview).map(|()| exit::SUCCESS).map_err(cannot_print);
    }
    let ways = block_on(async { ways::run(repository, &ways::moments(&overview)).await })?;
    let checklist = block_on(async { checklist::run(repository, &overview).await })?;
    let text = page(&overview, &View { program: repository.call(), ways, checklist, ..View::default() });
    match args.html.as_deref() {
        None => output::print(&text).map_err(cannot_print)?,
        Some(file) if file == Path::new("-") => output::print(&text).map_err(cannot_print)?,
        Some(file) => whole_file::replace(file, text.as_bytes()).map_err(|error| {
            Failure::new(FailureKind::LocalIo, format!("cannot write `{}`: {error}", file.display()))
                .with_hint("the directory must be there, and this user may write in it")
        })?,
    }
    Ok(exit::SUCCESS)
}
