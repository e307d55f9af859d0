//! What a drill leaves in the repository: the notes of its run, and its reports.

use jiff::Timestamp;

use super::check::Level;
use super::drill_html;
use super::drill_report::DrillReport;
use super::{Circumstances, RepositorySettings};
use crate::repo::run_record::{RunKind, RunStage};
use crate::repo::{RepoError, Repository, RunRecord};
use crate::storage::UserMetadata;

const KIND: &str = "drill";

/// Notes that a drill begins. What cannot be written changes nothing but the report.
pub(super) async fn begun(repository: &RepositorySettings, kind: RunKind, circumstances: &Circumstances) -> RunRecord {
    let record = RunRecord::begun(kind, circumstances.now, &circumstances.writer);
    if let Err(error) = write_note(repository, &record).await {
        tracing::warn!("the begin of this drill cannot be noted in the repository: {error}");
    }
    record
}

/// The name of its reports, without the ending.
pub(super) fn name(record: &RunRecord) -> String {
    let name = record.name().to_string();
    let stage = format!("-{}.json", record.stage.word());
    name.strip_suffix(&stage).unwrap_or(&name).to_owned()
}

/// Writes the reports, and notes how it ended; where they lie. The report says by then that it was written.
pub(super) async fn ended(
    repository: &RepositorySettings,
    record: &RunRecord,
    report: &mut DrillReport,
    ended: Timestamp,
) -> Option<String> {
    let name = name(record);
    let place = format!("record/{KIND}/{name}");
    report.report = Some(place.clone());
    report.figures.report = Some(name.clone());
    let written = write_reports(repository, &name, report).await;
    if let Err(error) = &written {
        tracing::warn!("the report of this drill cannot be written into the repository: {error}");
        report.report = None;
        report.figures.report = None;
    }
    let stage = match report.level {
        Level::Ok => RunStage::Done,
        Level::Warning => RunStage::Warned,
        Level::Unknown | Level::Fail => RunStage::Failed,
    };
    let worst = report.reasons.first();
    let mut note = record.ended(stage, ended);
    note.message = worst.map(|reason| format!("{}: {}", reason.word, reason.message));
    note.hint = worst.and_then(|reason| reason.hint.clone());
    note.id = report.backup;
    note.drill = Some(report.figures.clone());
    if let Err(error) = write_note(repository, &note).await {
        tracing::warn!("the end of this drill cannot be noted in the repository: {error}");
    }
    report.report.clone()
}

async fn write_note(repository: &RepositorySettings, record: &RunRecord) -> Result<(), RepoError> {
    repository.open().await?.record_run(record).await
}

async fn write_reports(repository: &RepositorySettings, name: &str, report: &DrillReport) -> Result<(), RepoError> {
    let repository: Repository = repository.open().await?;
    let json = serde_json::to_string_pretty(report).map_err(|e| RepoError::damaged(&name, e.to_string()))?;
    for (ending, text) in [("json", json), ("txt", report.text()), ("html", drill_html::page(report))] {
        let name = format!("{name}.{ending}");
        let key = repository.layout.record(KIND, &name).map_err(|e| RepoError::damaged(&name, e.to_string()))?;
        repository.store.put(&key, text.into_bytes().into(), &UserMetadata::new()).await?;
    }
    Ok(())
}
