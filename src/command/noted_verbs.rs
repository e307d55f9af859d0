//! The verbs that leave notes of their runs: what each note says.

use std::sync::Arc;

use super::basebackup::{self, BackupReport, Basebackup};
use super::dump::{self, Dump, DumpReport};
use super::expire::{self, Expire};
use super::expire_report::ExpireReport;
use super::failure::Failure;
use super::progress::Progress;
use super::run_note::{Ending, Noting, noted};
use super::verify::{self, Verify, VerifyReport};
use crate::repo::{RunKind, RunStage};

/// [`basebackup::run`]
pub async fn basebackup(wanted: Basebackup, noting: &Noting, progress: Arc<Progress>) -> Result<BackupReport, Failure> {
    // No run comes of that.
    basebackup::check_words(&wanted.label)?;
    let repository = wanted.repository.clone();
    let work = basebackup::run(wanted, &noting.circumstances, progress);
    noted(&repository, RunKind::Basebackup, noting, work, backup_ending).await
}

fn backup_ending(report: &BackupReport) -> Ending {
    let (id, stored) = (report.backup.id, report.backup.stored_bytes);
    let ending = match (report.bad_pages.len(), report.bad_pages.first()) {
        (1, Some(page)) => Some(format!("a page has a wrong checksum: {page}")),
        (count, Some(page)) => Some(format!("{count} pages have wrong checksums, the first is {page}")),
        _ => None,
    };
    let ending = ending.map(|message| Ending::warned(message, format!("see `pgark show {id}`, and look at the disk")));
    ending.unwrap_or_else(Ending::done).of(id, stored)
}

/// [`dump::run`]
pub async fn dump(wanted: Dump, noting: &Noting, progress: Arc<Progress>) -> Result<DumpReport, Failure> {
    let repository = wanted.repository.clone();
    let work = dump::run(wanted, &noting.circumstances, progress);
    let ending = |report: &DumpReport| Ending::done().of(report.dump.id, report.dump.stored_bytes);
    noted(&repository, RunKind::Dump, noting, work, ending).await
}

/// [`expire::run`]. A dry run leaves no notes.
pub async fn expire(
    wanted: &Expire,
    noting: &Noting,
    agree: impl FnOnce(&ExpireReport) -> bool,
) -> Result<ExpireReport, Failure> {
    if wanted.dry_run {
        return expire::run(wanted, &noting.circumstances, agree).await;
    }
    let mut agreed = true;
    let work = expire::run(wanted, &noting.circumstances, |report| {
        agreed = agree(report);
        agreed
    });
    let report = noted(&wanted.repository, RunKind::Expire, noting, work, expire_ending).await?;
    Ok(report)
}

fn expire_ending(report: &ExpireReport) -> Ending {
    match report.failure() {
        Some(failure) => Ending::failed(&failure),
        None if !report.done && report.objects() > 0 => {
            Ending::warned("the plan was not agreed to, so nothing was deleted", "run `pgark expire` again")
        }
        None => Ending::done(),
    }
}

/// [`verify::run`]
pub async fn verify(wanted: &Verify, noting: &Noting) -> Result<VerifyReport, Failure> {
    noted(&wanted.repository, RunKind::Verify, noting, verify::run(wanted), verify_ending).await
}

fn verify_ending(report: &VerifyReport) -> Ending {
    let worst = report.findings.iter().min_by_key(|finding| finding.verdict == verify::Verdict::Unknown);
    let told = worst.map(|finding| {
        let more = match report.findings.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        format!("`{}`: {}{more}", finding.key, finding.message)
    });
    let (stage, message) = match (report.has_damage(), report.incomplete, report.has_doubt()) {
        (true, ..) => (RunStage::Failed, "there is damage"),
        (false, true, _) => (RunStage::Failed, "not everything could be read: the store failed"),
        (false, false, true) => (RunStage::Warned, "not everything could be told"),
        (false, false, false) => return Ending::done(),
    };
    let message = told.map_or(message.to_owned(), |told| format!("{message}: {told}"));
    Ending { stage, message: Some(message), hint: Some("see `pgark verify`".to_owned()), ..Ending::done() }
}
