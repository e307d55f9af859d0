//! The verbs that delete, and those that keep from it: from flags to settings, and from reports to words.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;
use jiff::{SignedDuration, Timestamp};

use super::run::{block_on, block_on_many, cannot_print, circumstances};
use super::sources::Sources;
use super::{exit, output, settings, values};
use crate::command::expire::Expire;
use crate::command::expire_report::{ExpireReport, GenerationReport, Going};
use crate::command::keep::{self, Changed};
use crate::command::noted_verbs;
use crate::command::run_note::Noting;
use crate::command::{Failure, FailureKind};
use crate::repo::BackupId;
use crate::repo::keep::Mark;

/// `expire`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pgark expire --dry-run\n  PGARK_RETENTION__KEEP_WITHIN=30d pgark expire\n\n\
        Exits 0 when all is deleted that should be, or nothing is to be; 2 when more than half would go and --force was not \
        given; else by what went wrong (docs/exit-codes.md).")]
pub struct ExpireArgs {
    /// Print the plan, and delete and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Even if more than half would go at once
    #[arg(long)]
    pub force: bool,
    /// Ask nothing
    #[arg(long)]
    pub yes: bool,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

/// `keep`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pgark keep 20261122T231805Z-0a1b2c3d --reason 'before the upgrade'\n  \
        pgark keep 20261122T231805Z-0a1b2c3d --until 90d\n  \
        pgark keep 20261122T231805Z-0a1b2c3d --until 2027-04-01T00:00:00+02:00\n\n\
        Another `--until` replaces the one before; without one it stays until `pgark unkeep`.")]
pub struct KeepArgs {
    /// The backup or dump
    pub id: BackupId,
    /// Only until then, such as 2027-04-01T00:00:00+02:00, or for so long from now, such as 90d [default: for ever]
    #[arg(long, value_name = "TIME|DURATION")]
    pub until: Option<String>,
    /// Why, for whoever wonders later
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
}

/// `unkeep`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pgark unkeep 20261122T231805Z-0a1b2c3d")]
pub struct UnkeepArgs {
    /// The backup or dump
    pub id: BackupId,
}

/// `delete`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pgark delete 20261122T231805Z-0a1b2c3d --dry-run\n\n\
    Never the newest whole backup, one that is marked, in use, or may be running. Its WAL is left to `pgark expire`.")]
pub struct DeleteArgs {
    /// The backup or dump
    pub id: BackupId,
    /// Say whether it could be deleted, and delete nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Ask nothing
    #[arg(long)]
    pub yes: bool,
}

/// Deletions at once: small requests.
const JOBS: usize = 16;

/// `pgark expire`
pub fn expire(args: &ExpireArgs, sources: &Sources) -> Result<u8, Failure> {
    let wanted = Expire { dry_run: args.dry_run, force: args.force, ..wanted(sources)? };
    let interactive = !args.yes && !args.json && io::stdin().is_terminal();
    let mut shown = false;
    let agree = |report: &ExpireReport| {
        if !interactive {
            return true;
        }
        shown = true;
        let text = format!("{}delete {} objects? [y/N] ", plan_text(report), report.objects());
        said_yes(&text)
    };
    let report = block_on_many(noted_verbs::expire(&wanted, &Noting::new(circumstances()), agree))?;
    let printed = match (args.json, shown) {
        (true, _) => output::print_json(&report),
        (false, true) => output::print(&outcome_text(&report)),
        (false, false) => output::print(&format!("{}{}", plan_text(&report), outcome_text(&report))),
    };
    printed.map_err(cannot_print)?;
    match report.failure() {
        Some(failure) => Err(failure),
        None => Ok(exit::SUCCESS),
    }
}

/// What these settings let go.
pub(super) fn wanted(sources: &Sources) -> Result<Expire, Failure> {
    Ok(Expire {
        repository: settings::repository(sources)?,
        policy: settings::retention(sources)?,
        dry_run: false,
        force: false,
        jobs: JOBS,
    })
}

/// `pgark keep`
pub fn keep(args: &KeepArgs, sources: &Sources) -> Result<u8, Failure> {
    let repository = settings::repository(sources)?;
    let circumstances = circumstances();
    let until = args.until.as_deref().map(|text| moment(text, circumstances.now)).transpose()?;
    let mark = Mark { until, reason: args.reason.clone() };
    let changed = block_on(keep::keep(&repository, args.id, &mark, &circumstances))?;
    let end = until.map_or("`pgark unkeep`".to_owned(), |until| until.to_string());
    tell(args.id, changed, &format!("stays until {end}"), &format!("was marked before, and stays until {end}"))
}

/// A time, or so long from now; in whole seconds.
fn moment(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    let age = || SignedDuration::try_from(values::age(text)?).ok();
    let time = text.parse().ok().or_else(|| now.checked_add(age()?).ok());
    let wrong = || {
        let message = format!("`--until`: `{text}` is neither a time with an offset nor a duration");
        Failure::new(FailureKind::Usage, message).with_hint("write `2027-04-01T00:00:00+02:00` or `90d`")
    };
    time.and_then(|time: Timestamp| time.round(jiff::Unit::Second).ok()).ok_or_else(wrong)
}

/// `pgark unkeep`
pub fn unkeep(args: &UnkeepArgs, sources: &Sources) -> Result<u8, Failure> {
    let repository = settings::repository(sources)?;
    let changed = block_on(keep::unkeep(&repository, args.id))?;
    tell(args.id, changed, "may be expired", "was not marked")
}

/// `pgark delete`
pub fn delete(args: &DeleteArgs, sources: &Sources) -> Result<u8, Failure> {
    let repository = settings::repository(sources)?;
    let interactive = !args.yes && io::stdin().is_terminal();
    let changed = block_on_many(keep::delete(&repository, args.id, args.dry_run, &circumstances(), |target| {
        let (what, size) = (target.what, output::size(target.bytes));
        !interactive || said_yes(&format!("delete {what} {}, {size} in {} objects? [y/N] ", args.id, target.objects))
    }))?;
    let instead = if args.dry_run { "would be deleted" } else { "stays" };
    tell(args.id, changed, "is deleted", instead)
}

fn tell(id: BackupId, (what, changed): (&str, Changed), now: &str, else_: &str) -> Result<u8, Failure> {
    let words = if changed == Changed::Now { now } else { else_ };
    output::print(&format!("{what} {id} {words}\n")).map(|()| exit::SUCCESS).map_err(cannot_print)
}

fn said_yes(question: &str) -> bool {
    let mut terminal = io::stderr().lock();
    let asked = terminal.write_all(question.as_bytes()).and_then(|()| terminal.flush());
    let mut line = String::new();
    asked.and_then(|()| io::stdin().lock().read_line(&mut line)).is_ok()
        && matches!(line.trim().to_lowercase().as_str(), "y" | "yes")
}

fn plan_text(report: &ExpireReport) -> String {
    let mut text: String = report.notes.iter().map(|note| format!("note    {note}\n")).collect();
    if report.nothing_set {
        match report.dumps.keep.iter().flat_map(|kept| &kept.reasons).any(|why| why == "dump_keep_within")
            || report.dumps.delete.iter().any(|going| going.kind == "dump")
        {
            false => text.push_str("no policy is set under [retention]: only what dead backups left is collected\n"),
            true => text.push_str(
                "no policy for backups is set under [retention]: of them only what dead ones left is collected\n",
            ),
        }
    }
    for plan in &report.generations {
        if report.nothing_set {
            backups_text(plan, &mut text);
        } else {
            generation_text(plan, &mut text);
        }
    }
    dumps_text(report, &mut text);
    for name in &report.unfinished {
        text.push_str(&format!("delete  unfinished {name}: begun more than a day ago\n"));
    }
    text
}

fn generation_text(plan: &GenerationReport, text: &mut String) {
    let mut line = |what: String| text.push_str(&format!("{what}\n"));
    let window = plan.window.round(jiff::Unit::Second).unwrap_or(plan.window);
    line(format!("generation {}: every moment since {window} stays restorable that is so now", plan.generation));
    backups_text(plan, text);
    let mut line = |what: String| text.push_str(&format!("{what}\n"));
    let wal: Vec<&Going> = plan.delete.iter().filter(|going| going.kind == "wal").collect();
    let mut timelines: Vec<&str> = wal.iter().map(|going| &going.name[..8]).collect();
    timelines.sort_unstable();
    timelines.dedup();
    for timeline in timelines {
        let of_it = || wal.iter().filter(|going| going.name.starts_with(timeline));
        let names = || of_it().map(|going| going.name.as_str());
        let (count, size) = (of_it().count(), output::size(of_it().map(|going| going.bytes).sum()));
        let (first, last) = (names().min().unwrap_or_default(), names().max().unwrap_or_default());
        let reason = of_it().next().map_or("", |going| going.reason);
        line(format!("delete  WAL {first} to {last}, {size} in {count} objects: {reason}"));
    }
    for kept in &plan.keep {
        line(format!("keep    backup {}: {}", kept.backup, kept.reasons.join(", ")));
    }
    line(format!("keep    WAL: {} objects", plan.wal_kept));
    if let Some(why) = plan.wal_frozen {
        line(format!("note    no WAL is deleted: {why}"));
    }
    if !plan.unknown.is_empty() {
        let (count, first) = (plan.unknown.len(), &plan.unknown[0]);
        line(format!("note    {count} objects are none that this pgark knows, and stay, such as {first}"));
    }
    if let Some(why) = &plan.refused {
        line(format!("note    {why}: that needs --force"));
    }
}

fn backups_text(plan: &GenerationReport, text: &mut String) {
    for going in plan.delete.iter().filter(|going| going.kind != "wal") {
        let Going { kind, name, objects, reason, .. } = going;
        let size = output::size(going.bytes);
        text.push_str(&format!("delete  {kind} {name}, {size} in {objects} objects: {reason}\n"));
    }
}

fn dumps_text(report: &ExpireReport, text: &mut String) {
    for going in &report.dumps.delete {
        let Going { kind, name, objects, reason, .. } = going;
        let (of, size) = (if *kind == "remains" { "remains of a dump" } else { kind }, output::size(going.bytes));
        text.push_str(&format!("delete  {of} {name}, {size} in {objects} objects: {reason}\n"));
    }
    for kept in &report.dumps.keep {
        text.push_str(&format!("keep    dump {}: {}\n", kept.dump, output::one_line(&kept.reasons.join(", "))));
    }
    if let Some(why) = &report.dumps.refused {
        text.push_str(&format!("note    {why}: that needs --force\n"));
    }
}

fn outcome_text(report: &ExpireReport) -> String {
    let objects = report.objects();
    match (report.dry_run, report.done) {
        (true, _) => String::new(),
        (false, true) => {
            let size = output::size(report.deleted_bytes);
            let mut text = format!("{} objects deleted, {size}\n", report.deleted);
            for backup in &report.spared {
                text.push_str(&format!("spared  {backup}: marked or in use since the plan was made\n"));
            }
            for failed in &report.failed {
                text.push_str(&format!("failed  {}: {}\n", failed.key, failed.reason));
            }
            text
        }
        (false, false) if objects == 0 => "nothing is to be deleted\n".to_owned(),
        (false, false) => "nothing was deleted\n".to_owned(),
    }
}
