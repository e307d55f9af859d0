//! The history file of a timeline, as a walsender gives it.

use bytes::Bytes;

use super::replication::Replication;
use super::session::ServerError;
use super::wire::Refusal;
use crate::postgres::TimelineId;

impl Replication {
    /// The content of a timeline's history file; `None` if the server has none.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<Option<Bytes>, ServerError> {
        /// `ERRCODE_UNDEFINED_FILE`
        const UNDEFINED_FILE: &str = "58P01";
        match self.first_row(&format!("TIMELINE_HISTORY {}", timeline.get())).await {
            // The file's name, then its content.
            Ok(row) => Ok(row.unwrap_or_default().into_iter().nth(1).flatten()),
            Err(Refusal::Complaint(complaint)) if complaint.code == UNDEFINED_FILE => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }
}
