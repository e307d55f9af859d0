//! The verbs around base backups: from flags to settings, and from reports to words.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::args::{BasebackupArgs, Global};
use super::progress_line::ProgressLine;
use super::restore_args::{ArchiveModeArg, RestoreArgs, TargetActionArg, TargetArgs};
use super::run::{block_on, cannot_print, circumstances};
use super::sources::Sources;
use super::{exit, output, restore_command, settings};
use crate::command::basebackup::{BackupReport, Basebackup, Source};
use crate::command::noted_verbs;
use crate::command::progress::Progress;
use crate::command::restore::{self, Restore, RestoreReport};
use crate::command::restore_files::Fetching;
use crate::command::run_note::Noting;
use crate::command::{Failure, FailureKind};
use crate::postgres::recovery_settings::{RecoverySettings, RecoveryTarget, RestoreMode, TargetAction, TargetTimeline};
use crate::repo::manifest::Tablespace;
use crate::repo::restore_plan::RestorePlan;
use crate::repo::restore_target::{Request, Target};

/// `pgark basebackup`
pub fn basebackup(args: &BasebackupArgs, global: &Global, sources: &Sources) -> Result<u8, Failure> {
    let wanted = wanted(args, sources)?;
    let progress = Arc::new(Progress::default());
    let line = ProgressLine::show(Arc::clone(&progress), global.quiet);
    let noting = Noting::new(circumstances());
    let outcome = block_on(noted_verbs::basebackup(wanted, &noting, progress));
    drop(line);
    let report = outcome?;
    let printed = if args.json { output::print_json(&report) } else { output::print(&backup_text(&report)) };
    let id = report.backup.id;
    printed.map_err(|e| cannot_print(e).context(format!("backup `{id}` is whole, but nothing can tell of it")))?;
    for page in report.bad_pages.iter().take(MOST_PAGES) {
        tracing::warn!("a page has a wrong checksum: {page}");
    }
    if let Some(more) = report.bad_pages.len().checked_sub(MOST_PAGES).filter(|more| *more > 0) {
        tracing::warn!("{more} more pages have wrong checksums: the manifest lists them, and so does `--json`");
    }
    for path in &report.passed_over {
        tracing::warn!("`{path}` is no file and no directory: the backup does not have it");
    }
    for warning in &report.warnings {
        tracing::warn!("PostgreSQL: {warning}");
    }
    Ok(if report.damaged { exit::DAMAGED_PAGES } else { exit::SUCCESS })
}

/// The backup that these flags and settings ask for.
pub(super) fn wanted(args: &BasebackupArgs, sources: &Sources) -> Result<Basebackup, Failure> {
    Ok(Basebackup {
        repository: settings::repository(sources)?,
        source: source(args, sources)?,
        conninfo: settings::conninfo(sources)?,
        label: args.label.clone(),
        jobs: settings::integer(sources, "backup.jobs")?,
        level: settings::integer(sources, "backup.level")?,
        fast: sources.get("backup.checkpoint") == Some("fast"),
        keep: args.keep,
        rate: args.rate.as_deref().map(rate).transpose()?,
        archive_wait: settings::duration(sources, "backup.archive_wait")?,
        wal_wait: settings::duration(sources, "backup.wal_wait")?,
        retry: settings::duration(sources, "backup.retry")?,
    })
}

/// So many lines of a broken disk are enough.
const MOST_PAGES: usize = 100;

fn source(args: &BasebackupArgs, sources: &Sources) -> Result<Source, Failure> {
    if args.remote {
        return Ok(Source::Server);
    }
    settings::pgdata(sources).map(Source::DataDirectory).ok_or_else(|| {
        Failure::new(FailureKind::Usage, "no data directory is set")
            .with_hint("give `--pgdata`, or set `pgdata` under `[cluster]`; `--remote` needs none")
    })
}

fn rate(text: &str) -> Result<u64, Failure> {
    let size = text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()).filter(|size| *size > 0);
    size.ok_or_else(|| Failure::new(FailureKind::Usage, format!("`--rate`: `{text}` is not a size like `50MiB`")))
}

fn backup_text(report: &BackupReport) -> String {
    let backup = &report.backup;
    let took = backup.stopped.duration_since(backup.started).as_secs_f64();
    format!(
        "backup {}\n  files   {} with {}, stored in {}\n  WAL     {} to {} on timeline {}\n  time    {took:.1} s, until {}\n",
        backup.id,
        backup.files,
        output::size(backup.plain_bytes),
        output::size(backup.stored_bytes),
        backup.start_lsn,
        backup.stop_lsn,
        backup.timeline.get(),
        backup.stopped.round(jiff::Unit::Second).unwrap_or(backup.stopped),
    )
}

/// `pgark restore`
pub fn restore(args: &RestoreArgs, global: &Global, sources: &Sources) -> Result<u8, Failure> {
    let repository = settings::repository(sources)?;
    let request = request(args)?;
    let (command, in_environment) = match &args.restore_command {
        Some(command) => (command.clone(), Vec::new()),
        None => restore_command::write(sources)?,
    };
    let plan = block_on(restore::plan(&repository, &request))?;
    let command = match &args.restore_command {
        None => match plan.accept_end_at(&request.target).filter(|_| !args.standby) {
            Some(segment) => format!("{command} --accept-end-at {segment}"),
            None => command,
        },
        Some(_) => command,
    };
    let map: Vec<_> = args.tablespace_map.iter().map(|text| mapping(text)).collect::<Result<_, _>>()?;
    let for_people = |text: String| if args.json { Ok(()) } else { output::print(&text).map_err(cannot_print) };
    let for_programs = plan_json(&plan, &request, &map);
    if args.dry_run && args.json {
        output::print_json(&for_programs).map_err(cannot_print)?;
    }
    for_people(plan_text(&plan, &request, &map))?;
    let wanted = Restore {
        repository,
        request: request.clone(),
        to: std::path::absolute(&args.to).map_err(|e| usage(e.to_string()))?,
        recovery: recovery(args, &request, &plan, &command)?,
        tablespaces: map,
        delta: args.delta,
        discard_wal: args.discard_wal,
        fetching: Fetching {
            jobs: settings::integer(sources, "backup.jobs")?,
            retry: settings::duration(sources, "backup.retry")?,
            stall: settings::duration(sources, "repo.stall_timeout")?,
        },
    };
    if args.dry_run {
        return look(wanted, &plan);
    }
    if rustix::process::geteuid().is_root() {
        let message = "PostgreSQL does not run as root, and could not use files that belong to root";
        return Err(Failure::new(FailureKind::Usage, message)
            .with_hint("run it as PostgreSQL's user: `sudo -u postgres pgark restore ...`"));
    }
    let progress = Arc::new(Progress::default());
    let line = ProgressLine::show(Arc::clone(&progress), global.quiet);
    let outcome = block_on(restore::run(wanted, plan, &circumstances(), progress));
    drop(line);
    let report = outcome?;
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    if !in_environment.is_empty() {
        tracing::warn!(
            "the server needs these variables in its environment, as this call had: {}",
            in_environment.join(", ")
        );
    }
    match args.json {
        true => output::print_json(&Carried { report: &report, plan: for_programs }),
        false => output::print(&restore_text(&report)),
    }
    .map_err(cannot_print)?;
    Ok(exit::SUCCESS)
}

/// What was done, and by which plan: it has warnings of its own.
#[derive(serde::Serialize)]
struct Carried<'a> {
    #[serde(flatten)]
    report: &'a RestoreReport,
    plan: serde_json::Value,
}

/// The plan is made from the repository alone, by any user who may read it: such a one may not see the place.
fn look(wanted: Restore, plan: &RestorePlan) -> Result<u8, Failure> {
    if let Some(why) = block_on(restore::look(wanted, plan))? {
        tracing::warn!("whether this place can be used is not known: {why}");
    }
    Ok(exit::SUCCESS)
}

fn usage(message: String) -> Failure {
    Failure::new(FailureKind::Usage, message)
}

fn request(args: &RestoreArgs) -> Result<Request, Failure> {
    let target = target(&args.target)?;
    if args.exclusive && !matches!(target, Target::Time(_) | Target::Lsn(_) | Target::Xid(_)) {
        return Err(usage("`--exclusive` goes with a time, a position or a transaction".to_owned()));
    }
    if args.target_action != TargetActionArg::Promote && target == Target::Latest {
        let message = "`--target-action` needs a target: without one PostgreSQL opens the server where the WAL ends";
        return Err(usage(message.to_owned())
            .with_hint("`--standby` stays at the end of the archive, open for reading, until somebody promotes it"));
    }
    let backup = args.backup.as_deref().map(str::parse::<crate::repo::BackupId>).transpose();
    let timeline = match args.target_timeline.as_str() {
        "latest" => crate::repo::restore_target::TargetTimeline::Latest,
        "current" => crate::repo::restore_target::TargetTimeline::Current,
        number => {
            // `00000010`, as in the name of a segment, would be 16.
            let decimal = Some(number).filter(|number| !number.starts_with(['0', '+']));
            let number = decimal.and_then(|number| number.parse().ok()).and_then(crate::postgres::TimelineId::new);
            let wrong = || {
                usage(format!("`--target-timeline`: `{}` is not `latest`, `current` or a number", args.target_timeline))
            };
            crate::repo::restore_target::TargetTimeline::Number(number.ok_or_else(wrong)?)
        }
    };
    Ok(Request { target, exclusive: args.exclusive, timeline, backup: backup.map_err(|e| usage(e.to_string()))? })
}

fn target(args: &TargetArgs) -> Result<Target, Failure> {
    let wrong = |what: &str, why: &dyn std::fmt::Display| usage(format!("`--target-{what}`: {why}"));
    if let Some(time) = &args.target_time {
        let parsed = time.parse::<jiff::Timestamp>();
        return parsed.map(Target::Time).map_err(|_| {
            usage(format!("`--target-time`: `{time}` is not a time with an offset"))
                .with_hint("write it like '2026-11-22 14:05:00+01:00' or '2026-11-22T13:05:00Z'")
        });
    }
    if let Some(lsn) = &args.target_lsn {
        return lsn.parse().map(Target::Lsn).map_err(|e| wrong("lsn", &e));
    }
    if let Some(name) = &args.target_name {
        return Ok(Target::Name(name.clone()));
    }
    Ok(match args.target_xid {
        Some(xid) => Target::Xid(xid),
        None if args.target_immediate => Target::Immediate,
        None => Target::Latest,
    })
}

fn recovery(
    args: &RestoreArgs,
    request: &Request,
    plan: &RestorePlan,
    command: &str,
) -> Result<RecoverySettings, Failure> {
    let malformed = |e: crate::postgres::Malformed| usage(e.to_string());
    Ok(RecoverySettings {
        restore_command: command.parse().map_err(malformed)?,
        target: match &request.target {
            Target::Time(time) => RecoveryTarget::Time(*time),
            Target::Lsn(lsn) => RecoveryTarget::Lsn(*lsn),
            Target::Xid(xid) => RecoveryTarget::Xid(*xid),
            Target::Name(name) => RecoveryTarget::Name(name.parse().map_err(malformed)?),
            Target::Immediate => RecoveryTarget::Immediate,
            Target::Latest => RecoveryTarget::Latest,
        },
        inclusive: !args.exclusive,
        // A standby follows its primary onto timelines that do not exist yet.
        timeline: match args.standby {
            true => TargetTimeline::Latest,
            // By its number PostgreSQL takes no timeline that has no history.
            false if plan.origin_is_unknown() => TargetTimeline::Current,
            false => TargetTimeline::Number(plan.timeline),
        },
        action: match args.target_action {
            TargetActionArg::Pause => TargetAction::Pause,
            TargetActionArg::Promote => TargetAction::Promote,
            TargetActionArg::Shutdown => TargetAction::Shutdown,
        },
        mode: if args.standby { RestoreMode::Standby } else { RestoreMode::Recovery },
        keep_archive_mode: args.archive_mode == ArchiveModeArg::Keep,
    })
}

fn mapping(text: &str) -> Result<(PathBuf, PathBuf), Failure> {
    let pair = text.split_once('=').filter(|(old, new)| !old.is_empty() && !new.is_empty());
    let (old, new) = pair.ok_or_else(|| usage(format!("`--tablespace-map`: `{text}` is not OLD=NEW")))?;
    Ok((old.into(), new.into()))
}

/// Where a tablespace goes.
fn place_of<'a>(tablespace: &'a Tablespace, map: &'a [(PathBuf, PathBuf)]) -> &'a Path {
    let old = Path::new(&tablespace.location);
    map.iter().find(|(from, _)| from == old).map_or(old, |(_, to)| to)
}

fn plan_text(plan: &RestorePlan, request: &Request, map: &[(PathBuf, PathBuf)]) -> String {
    let backup = &plan.backup;
    let label = match backup.label == backup.id.own_label() {
        true => String::new(),
        false => format!(" ({})", output::one_line(&backup.label)),
    };
    let mut text = format!(
        "plan: to {}\n  backup   {}{label}, consistent at {}, {}\n  size     {} in {} files, {} to fetch\n  timeline {}\n",
        request.target,
        backup.id,
        backup.stop_lsn,
        backup.stopped.round(jiff::Unit::Second).unwrap_or(backup.stopped),
        output::size(backup.plain_bytes),
        backup.files,
        output::size(backup.stored_bytes),
        plan.path.iter().map(|step| step.timeline.get().to_string()).collect::<Vec<_>>().join(", then "),
    );
    for tablespace in &backup.tablespaces {
        let (oid, place) = (tablespace.oid, place_of(tablespace, map));
        text.push_str(&format!("  files    of tablespace {oid} to {}\n", place.display()));
    }
    for range in &plan.wal {
        let size = output::size(range.stored_bytes);
        let segments = if range.segments == 1 { "segment" } else { "segments" };
        let (first, last, count) = (range.first, range.last, range.segments);
        text.push_str(&format!("  WAL      {first} to {last}: {count} {segments}, {size}\n"));
    }
    text.push_str(&format!("  proof    {}\n", plan.proof));
    if let Some(gap) = plan.gap {
        text.push_str(&format!("  gap      behind the target `{gap}` is missing: recovery cannot go on from there\n"));
    }
    if backup.bad_pages > 0 {
        let pages = if backup.bad_pages == 1 { "1 page".to_owned() } else { format!("{} pages", backup.bad_pages) };
        text.push_str(&format!(
            "  warning  the backup has {pages} with a wrong checksum: `pgark show {}`\n",
            backup.id
        ));
    }
    for warning in &plan.warnings {
        text.push_str(&format!("  warning  {warning}\n"));
    }
    text
}

fn plan_json(plan: &RestorePlan, request: &Request, map: &[(PathBuf, PathBuf)]) -> serde_json::Value {
    let tablespaces: Vec<_> = plan
        .backup
        .tablespaces
        .iter()
        .map(|tablespace| {
            let Tablespace { oid, location } = tablespace;
            serde_json::json!({ "oid": oid, "location": location, "to": place_of(tablespace, map) })
        })
        .collect();
    let wal: Vec<_> = plan
        .wal
        .iter()
        .map(|range| {
            serde_json::json!({
                "first": range.first.to_string(), "last": range.last.to_string(),
                "segments": range.segments, "stored_bytes": range.stored_bytes,
            })
        })
        .collect();
    serde_json::json!({
        "schema": 1, "target": request.target.to_string(), "backup": plan.backup, "timeline": plan.timeline,
        "tablespaces": tablespaces, "wal": wal, "proof": plan.proof.to_string(), "gap": plan.gap.map(|gap| gap.to_string()),
        "warnings": plan.warnings,
    })
}

fn restore_text(report: &RestoreReport) -> String {
    let directory = &report.directory.display().to_string();
    let word = restore_command::shell_word(directory);
    let before = match report.present_before {
        0 => String::new(),
        present => format!(", {present} of them there before"),
    };
    // On Debian the configuration lies in /etc, and the system's own tools know where.
    let start = match report.directory.join("postgresql.conf").exists() {
        // What the command line says counts more than the file.
        true if report.elsewhere => {
            let option = restore_command::shell_word(&format!("-c data_directory={word}"));
            format!("pg_ctl -D {word} -o {option} start")
        }
        true => format!("pg_ctl -D {word} start"),
        false => format!("its configuration is not in {directory}, so start it as your system does"),
    };
    format!(
        "restored {} with {} files, {}{before}, in {:.1} s\nstart the server to recover: {start}\n",
        report.backup,
        report.files,
        output::size(report.bytes),
        report.seconds,
    )
}
