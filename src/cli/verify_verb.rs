//! The words of `verify`.

use clap::Args;
use jiff::Timestamp;

use super::logging::LogFormat;
use super::run::{block_on_many, cannot_print, circumstances};
use super::sources::Sources;
use super::{exit, output, settings};
use crate::command::noted_verbs;
use crate::command::run_note::Noting;
use crate::command::verify::{Sample, Verdict, Verify, VerifyReport};
use crate::command::{Failure, FailureKind};
use crate::repo::BackupId;

/// `verify`
#[derive(Debug, Default, Args)]
#[command(after_help = "Examples:\n  pgark verify\n  pgark verify --sample 5%\n  pgark verify --wal-only --deep\n  \
    pgark verify 20261122T231805Z-0a1b2c3d --jobs 4\n\n\
    Exits 0 when no damage was found, 2 when something is damaged or missing, 3 when it could not be told.")]
pub struct VerifyArgs {
    /// One dump, or one backup and the WAL that makes it consistent [default: everything]
    pub id: Option<BackupId>,
    /// Only a share of parts and WAL, such as 5%; another one each day
    #[arg(long, value_name = "PERCENT")]
    pub sample: Option<String>,
    /// Which share: the same text takes the same objects [default: today's date]
    #[arg(long, value_name = "TEXT", requires = "sample")]
    pub seed: Option<String>,
    /// Only WAL
    #[arg(long)]
    pub wal_only: bool,
    /// Only what was stored since, such as 2026-11-22T14:05:00+01:00
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Decode the WAL, too: the checksum of each record, and how records hang together over segments and timelines
    #[arg(long)]
    pub deep: bool,
    /// Objects that are read at once [default: 2]
    #[arg(long, value_name = "N")]
    pub jobs: Option<u16>,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

/// `pgark verify`
pub fn verify(args: &VerifyArgs, sources: &Sources, format: LogFormat) -> u8 {
    let outcome = wanted(args, sources)
        .and_then(|wanted| block_on_many(noted_verbs::verify(&wanted, &Noting::new(circumstances()))));
    let printed = outcome.and_then(|report| {
        let printed = if args.json { output::print_json(&report) } else { output::print(&text(&report)) };
        printed.map(|()| exit::verified(report.has_damage(), report.has_doubt())).map_err(cannot_print)
    });
    printed.unwrap_or_else(|failure| {
        output::tell(&failure, format);
        exit::unreadable(Some("verify"), failure.kind)
    })
}

/// What these flags and settings ask for.
pub(super) fn wanted(args: &VerifyArgs, sources: &Sources) -> Result<Verify, Failure> {
    let usage = |flag: &str, text: &str, like: &str| {
        Failure::new(FailureKind::Usage, format!("`{flag}`: `{text}` is not {like}"))
    };
    let percent = |text: &str| {
        let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>().ok();
        number
            .filter(|number| *number > 0.0 && *number <= 100.0)
            .ok_or_else(|| usage("--sample", text, "a share like `5%`"))
    };
    let today = || circumstances().now.strftime("%Y%m%d").to_string();
    let sample = args.sample.as_deref().map(percent).transpose()?;
    let since = |text: &String| {
        text.parse::<Timestamp>()
            .map_err(|_| usage("--since", text, "a time with an offset, like `2026-11-22T14:05:00+01:00`"))
    };
    Ok(Verify {
        repository: settings::repository(sources)?,
        backup: args.id,
        sample: sample.map(|percent| Sample { percent, seed: args.seed.clone().unwrap_or_else(today) }),
        wal_only: args.wal_only,
        since: args.since.as_ref().map(since).transpose()?,
        deep: args.deep,
        jobs: match args.jobs {
            Some(jobs) => jobs.into(),
            None => settings::integer(sources, "backup.jobs")?,
        },
        retry: settings::duration(sources, "backup.retry")?,
        stall: settings::duration(sources, "repo.stall_timeout")?,
    })
}

fn text(report: &VerifyReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let word = match finding.verdict {
            Verdict::Damaged => "DAMAGED",
            Verdict::Missing => "MISSING",
            Verdict::Unknown => "UNKNOWN",
        };
        text.push_str(&format!("{word} {}: {}\n", finding.key, output::one_line(&finding.message)));
    }
    let VerifyReport { backups, dumps, parts, wal, bytes, gone, .. } = report;
    let dumps = if *dumps > 0 { format!(", {dumps} dumps") } else { String::new() };
    let share = match (&report.percent, &report.seed) {
        (Some(percent), Some(seed)) => format!("; a sample of {percent} %, seed {seed}"),
        _ => String::new(),
    };
    let size = output::size(*bytes);
    let records = report.records.map(|records| format!(" with {records} records")).unwrap_or_default();
    text.push_str(&format!(
        "read {parts} parts of {backups} backups{dumps} and {wal} WAL files{records}, {size} in {:.1} s{share}\n",
        report.seconds
    ));
    if *gone > 0 {
        text.push_str(&format!("{gone} objects were deleted by somebody meanwhile\n"));
    }
    let verdict = match (report.has_damage(), report.incomplete, report.has_doubt()) {
        (true, ..) => "there is damage\n",
        (false, false, _) if report.read_nothing() => "nothing was there to be read, so nothing is known\n",
        (false, true, _) => "not everything could be read: the store failed\n",
        (false, false, true) => "not everything could be told\n",
        (false, false, false) => "no damage was found\n",
    };
    text.push_str(verdict);
    text
}
