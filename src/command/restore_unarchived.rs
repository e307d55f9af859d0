//! WAL that only the old cluster has: `--delta` empties its `pg_wal`, and what no repository has would be gone.

use std::io::ErrorKind;
use std::path::Path;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::backfill::files_in_state;
use super::basebackup::blocking;
use super::failure::{Failure, FailureKind};
use super::restore::Restore;
use crate::postgres::WalName;
use crate::repo::{Generation, RepoError, Repository};
use crate::storage::Head;

/// Questions at once.
const ASKED: usize = 16;

/// Refuses while files that PostgreSQL wants archived (`.ready`) are in `pg_wal` and not in the repository.
pub(super) async fn check_archived(
    restore: &Restore,
    repository: &Repository,
    generation: Generation,
) -> Result<(), Failure> {
    let waiting = waiting(&restore.to).await?;
    if waiting.is_empty() || restore.discard_wal {
        return Ok(());
    }
    let asked = waiting.into_iter().map(|name| async move {
        let key = repository.layout.wal_file(generation, name);
        let stored = repository.store.head(&key).await.map_err(RepoError::from)?;
        Ok::<_, Failure>((!matches!(stored, Head::Found(_))).then_some(name))
    });
    let answers: Vec<Option<WalName>> = stream::iter(asked).buffered(ASKED).try_collect().await?;
    let missing: Vec<WalName> = answers.into_iter().flatten().collect();
    let Some(first) = missing.first() else { return Ok(()) };
    let (to, count) = (restore.to.display(), missing.len());
    let files = if count == 1 { "file that is" } else { "files that are" };
    let message = format!("`pg_wal` of `{to}` has {count} {files} not in the repository, `{first}` for one");
    Err(Failure::new(FailureKind::Usage, message).with_hint(format!(
        "archive them first: `pgark --pgdata {to} wal-push --backfill`; if they may be lost, say `--discard-wal`"
    )))
}

async fn waiting(to: &Path) -> Result<Vec<WalName>, Failure> {
    let pg_wal = to.join("pg_wal");
    blocking(move || match files_in_state(&pg_wal, &["ready"]) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(error) => Err(std::io::Error::new(error.kind(), format!("cannot list `{}`: {error}", pg_wal.display()))),
        found => found,
    })
    .await
}
