//! Replay makes a tablespace at the place where the original has it, and first removes what is there. On a host where the original
//! lives that would be its own files: no drill does it.
//!
//! Source: `create_tablespace_directories` in `commands/tablespace.c`.

use super::RepositorySettings;
use super::check::Level;
use super::drill_report::Reason;
use super::failure::Failure;
use crate::postgres::{SegmentName, WalName};
use crate::repo::{Generation, RepoError};

/// Headers that are read at a time.
const HEADERS: usize = 2000;

/// Refuses where one of these segments makes a tablespace, or does not tell.
pub(super) async fn refuse(
    repository: &RepositorySettings,
    generation: Generation,
    segments: &[SegmentName],
) -> Result<(), Reason> {
    let repository = repository.open().await.map_err(Failure::from)?;
    for some in segments.chunks(HEADERS) {
        let indexes = repository.read_indexes(generation, some).await.map_err(Failure::from)?;
        for (segment, index) in &indexes {
            let why = match index {
                Some(index) if index.tablespaces.is_empty() && index.complete && !index.cut => continue,
                Some(index) => match index.tablespaces.first() {
                    Some(new) => format!("segment `{segment}` makes a tablespace at `{}`", new.location),
                    None => format!("segment `{segment}` does not tell whether it makes a tablespace"),
                },
                None => match repository.archive(generation).header_of(WalName::Segment(*segment)).await {
                    Ok(Some(_)) => format!("segment `{segment}` does not tell whether it makes a tablespace"),
                    // What is damaged or missing is for the recovery to find, and ends it.
                    Ok(None) | Err(RepoError::Damaged { .. }) => continue,
                    Err(error) => return Err(Failure::from(error).into()),
                },
            };
            let message = format!("{why}: its replay would first remove what is there");
            return Err(Reason { level: Level::Unknown, ..Reason::failed("tablespace", message) }
                .with_hint("take a new backup: a drill that begins with it has nothing to replay of that"));
        }
    }
    Ok(())
}
