//! What a drill leaves in the repository: the note of its run says what its report says in short.

use super::check::Level;
use super::drill_html;
use super::drill_report::DrillReport;
use super::run_note::Ending;
use super::{Circumstances, RepositorySettings};
use crate::repo::run_upkeep::{DRILL, REPORTS};
use crate::repo::{RepoError, Repository, RunKind, RunRecord, RunStage};
use crate::storage::UserMetadata;

/// Writes the reports, which say by then that they are written.
pub(super) async fn report(
    repository: &RepositorySettings,
    kind: RunKind,
    circumstances: &Circumstances,
    report: &mut DrillReport,
) {
    let name = RunRecord::begun(kind, circumstances.now, &circumstances.writer).name().without_stage();
    report.report = Some(format!("record/{DRILL}/{name}"));
    report.figures.report = Some(name.clone());
    if let Err(error) = write_reports(repository, &name, report).await {
        tracing::warn!("the report of this drill cannot be written into the repository: {error}");
        report.report = None;
        report.figures.report = None;
    }
}

/// What the last note says.
pub(super) fn ending(report: &DrillReport) -> Ending {
    let worst = report.reasons.first();
    Ending {
        stage: match report.level {
            Level::Ok => RunStage::Done,
            Level::Warning => RunStage::Warned,
            Level::Unknown | Level::Fail => RunStage::Failed,
        },
        message: worst.map(|reason| format!("{}: {}", reason.word, reason.message)),
        hint: worst.and_then(|reason| reason.hint.clone()),
        id: report.backup,
        stored_bytes: None,
        drill: Some(report.figures.clone()),
    }
}

async fn write_reports(repository: &RepositorySettings, name: &str, report: &DrillReport) -> Result<(), RepoError> {
    let repository: Repository = repository.open().await?;
    let json = serde_json::to_string_pretty(report).map_err(|e| RepoError::damaged(&name, e.to_string()))?;
    for (ending, text) in REPORTS.into_iter().zip([json, report.text(), drill_html::page(report)]) {
        let name = format!("{name}.{ending}");
        let key = repository.layout.record(DRILL, &name).map_err(|e| RepoError::damaged(&name, e.to_string()))?;
        repository.store.put(&key, text.into_bytes().into(), &UserMetadata::new()).await?;
    }
    Ok(())
}
