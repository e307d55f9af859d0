//! The checklist of the newest drill, as its report in the repository has it.

use serde::{Deserialize, Serialize};

use super::bounds::bounded;
use super::failure::Failure;
use super::overview::Overview;
use super::{RepositorySettings, overview};
use crate::repo::run_upkeep::DRILL;
use crate::repo::{RepoError, Repository};
use crate::storage::ObjectStoreExt;

/// A point of a drill's checklist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// What must be done.
    pub item: String,
    /// Whether it was.
    pub ticked: bool,
    /// How, or why not.
    #[serde(default)]
    pub detail: String,
}

/// What is read of a report. Readers pass over fields that they do not know.
#[derive(Deserialize)]
struct Report {
    #[serde(default)]
    checklist: Vec<Point>,
}

/// A report is small.
const LARGEST: usize = 1 << 20;

/// Reads it. A drill that left no report, or one that cannot be understood, has no points.
pub async fn run(settings: &RepositorySettings, overview: &Overview) -> Result<Vec<Point>, Failure> {
    let Some(name) = overview::newest_drill(overview).and_then(|run| run.drill.as_ref()?.report.as_deref()) else {
        return Ok(Vec::new());
    };
    let reading = async {
        let repository = settings.open().await?;
        Ok(read(&repository, name).await?)
    };
    bounded(reading, None, None).await
}

async fn read(repository: &Repository, name: &str) -> Result<Vec<Point>, RepoError> {
    // A note may say anything: what is no key is no report.
    let Ok(key) = repository.layout.record(DRILL, &format!("{name}.json")) else { return Ok(Vec::new()) };
    let Some(stored) = repository.store.read_small(&key, LARGEST).await? else { return Ok(Vec::new()) };
    let report = serde_json::from_slice::<Report>(&stored);
    if let Err(error) = &report {
        tracing::warn!("`{key}` is no report of a drill: {error}");
    }
    Ok(report.map(|report| report.checklist).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::UserMetadata;
    use crate::storage::memory::MemoryStore;

    #[tokio::test]
    async fn only_a_report_has_points() {
        let repository = Repository::new(Arc::new(MemoryStore::default()), "main".parse().unwrap());
        for (name, text) in [
            (
                "whole",
                r#"{"schema": 1, "checklist": [{"item": "time documented", "ticked": true, "detail": "9 s", "x": 1}]}"#,
            ),
            ("empty", "{}"),
            ("odd", "[1"),
        ] {
            let key = repository.layout.record(DRILL, &format!("{name}.json")).unwrap();
            repository.store.put(&key, text.as_bytes().to_vec().into(), &UserMetadata::new()).await.unwrap();
        }
        let point = Point { item: "time documented".into(), ticked: true, detail: "9 s".into() };
        assert_eq!(read(&repository, "whole").await.unwrap(), [point]);
        for name in ["empty", "odd", "absent", "../../x", ""] {
            assert_eq!(read(&repository, name).await.unwrap(), [], "{name}");
        }
    }
}
