//! After the stop: all WAL of the backup must arrive, and from this server.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::backup_archiving::{is_stored_by, pause, short_pause};
use super::basebackup::Basebackup;
use super::failure::{Failure, FailureKind};
use crate::postgres::{SegmentName, WalName};
use crate::repo::Repository;
use crate::repo::manifest::BackupSummary;
use crate::server::{BackupSession, Conninfo, ServerError};

/// Without all WAL from start to stop the copy can never be made consistent.
pub(super) async fn wait_for_wal(
    settings: &Basebackup,
    repository: &Repository,
    backup: &BackupSummary,
    session: Option<&BackupSession>,
) -> Result<(), Failure> {
    let (Some((first, last)), Some(size)) = (backup.wal_needed(), backup.segment_size()) else {
        return Err(Failure::new(FailureKind::Internal, "the backup has no segment size"));
    };
    let archive = repository.archive(backup.generation);
    let mut witness = Witness::new(&settings.conninfo, session, backup);
    let begin = Instant::now();
    witness.wait_a_moment(last, settings.wal_wait).await;
    loop {
        let missing = match archive.first_missing(first, last, size).await {
            Ok(None) => match witness.has_seen(last).await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    format!("this server has not archived `{last}`, though one of this name is in the repository")
                }
                Err(error) => format!("nobody can say whether this server has archived `{last}` ({error})"),
            },
            Ok(Some(segment)) => format!("segment `{segment}` is not in the repository"),
            Err(error) if error.is_temporary() => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        if begin.elapsed() >= settings.wal_wait {
            let waited = humantime::format_duration(settings.wal_wait);
            let message = format!("after {waited}, {missing}: the copy is not complete without `{first}` to `{last}`");
            let hint = match backup.from_standby {
                true => {
                    "a standby waits for its primary to fill the segment: `select pg_switch_wal()` there; `--wal-wait` gives more time"
                }
                false => "`pgark check` finds out why; `--wal-wait` gives more time",
            };
            return Err(Failure::new(FailureKind::Server, message).with_hint(hint));
        }
        let left = settings.wal_wait.saturating_sub(begin.elapsed());
        sleep(pause(begin.elapsed()).min(left)).await;
    }
}

/// Who says that this server has archived a segment. One of this name may be another server's: a clone's, or an old primary's. A
/// standby's WAL is archived by its primary, and who had no session cannot ask.
struct Witness<'a> {
    conninfo: &'a Conninfo,
    backup: &'a BackupSummary,
    session: Option<&'a BackupSession>,
    /// In its place, when it is lost: the backup has ended, and does not need it any more.
    another: Option<BackupSession>,
    /// Since when the server's statistics do not tell of a segment that is there.
    doubts: Option<Instant>,
    asked_for_more: bool,
}

/// After so long another segment is archived, to see the statistics say so: they were reset, or lost in a crash, or the archiver's
/// last file was another one.
const DOUBTFUL: Duration = Duration::from_secs(5);

/// A segment is compressed and stored in less, if the store is not far.
const A_MOMENT: Duration = Duration::from_secs(1);

impl<'a> Witness<'a> {
    fn new(conninfo: &'a Conninfo, session: Option<&'a BackupSession>, backup: &'a BackupSummary) -> Self {
        Witness { conninfo, backup, session, another: None, doubts: None, asked_for_more: false }
    }

    /// Waits until the server has archived it, for as long as an archiver at work takes: asking it costs nothing, looking into the
    /// store may.
    async fn wait_a_moment(&self, last: SegmentName, longest: Duration) {
        let Some(session) = self.session.filter(|_| !self.backup.from_standby) else { return };
        let begin = Instant::now();
        while begin.elapsed() < A_MOMENT.min(longest) {
            match is_stored_by(session, WalName::Segment(last)).await {
                Ok(true) => return,
                Ok(false) => sleep(short_pause(begin.elapsed())).await,
                Err(_) => return,
            }
        }
    }

    async fn has_seen(&mut self, last: SegmentName) -> Result<bool, ServerError> {
        let Some(session) = self.another.as_ref().or(self.session).filter(|_| !self.backup.from_standby) else {
            return Ok(true);
        };
        match is_stored_by(session, WalName::Segment(last)).await {
            Ok(true) => Ok(true),
            Ok(false) => {
                let since = *self.doubts.get_or_insert_with(Instant::now);
                if since.elapsed() >= DOUBTFUL && !self.asked_for_more {
                    self.asked_for_more = true;
                    let asked = session.switch_wal().await;
                    asked.inspect_err(|error| tracing::info!("no segment can be ended: {error}")).ok();
                }
                Ok(false)
            }
            Err(error) => {
                tracing::info!("the session is lost, though the backup has ended: {error}");
                self.another = Some(self.connect().await?);
                Ok(false)
            }
        }
    }

    async fn connect(&self) -> Result<BackupSession, ServerError> {
        let session = BackupSession::connect(self.conninfo).await?;
        let server = session.server().await?;
        match server.system_id == self.backup.system_identifier && !server.in_recovery {
            true => Ok(session),
            false => Err(ServerError("the server that answers is another one now".to_owned())),
        }
    }
}
