//! Prefetch, the part of `wal-fetch`: takes what a helper has fetched ahead, and sees to it that there is a helper.
//!
//! The helper (`prefetch_helper`) never answers PostgreSQL, and nothing that it does can make a fetch fail: what is not on the shelf,
//! whole and verified, is fetched as if there were no helper.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::RepositorySettings;
use crate::disk::data_dir::ClusterFacts;
use crate::disk::shelf::Wanted;
use crate::disk::{DataDir, Shelf, Spool};
use crate::postgres::{SegmentName, WalName};

/// How far ahead to fetch, and who does it.
#[derive(Clone, Debug)]
pub struct PrefetchSettings {
    /// So many segments; 0: none.
    pub segments: usize,
    /// How many at once.
    pub jobs: usize,
    /// Where they are kept; `None`: at the default place.
    pub spool: Option<PathBuf>,
    /// How the helper is called.
    pub helper: HelperCall,
}

/// A call of this program.
#[derive(Clone, Debug)]
pub struct HelperCall {
    /// The program.
    pub program: PathBuf,
    /// Its words.
    pub words: Vec<OsString>,
}

/// The shelf from which a recovery is served.
pub struct Prefetch {
    shelf: Shelf,
    segment: SegmentName,
    data_dir: DataDir,
    facts: ClusterFacts,
}

/// How often the helper's progress is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// A helper that makes no progress for so long is not waited for.
const STALL: Duration = Duration::from_millis(50);
/// A helper is not called more often than this.
const AGAIN: Duration = Duration::from_secs(2);

/// The shelf for a data directory.
pub(super) fn shelf(
    settings: &PrefetchSettings,
    repository: &RepositorySettings,
    data_dir: &DataDir,
) -> std::io::Result<Shelf> {
    let place = repository.place();
    let spool = Spool::open(settings.spool.as_deref(), &place, data_dir, "fetched")?;
    Ok(Shelf::new(spool, place))
}

impl Prefetch {
    /// For a segment that a recovery asks for; `None` for whatever else is fetched, such as by `pg_rewind`.
    pub fn find(
        settings: &PrefetchSettings,
        repository: &RepositorySettings,
        (name, path): (WalName, &Path),
        data_dir: Option<&DataDir>,
        facts: Option<ClusterFacts>,
    ) -> Option<Self> {
        let (WalName::Segment(segment), Some(data_dir), Some(facts)) = (name, data_dir, facts) else { return None };
        if settings.segments == 0 || !path.ends_with("pg_wal/RECOVERYXLOG") {
            return None;
        }
        let shelf = shelf(settings, repository, data_dir);
        let shelf = shelf.inspect_err(|error| tracing::info!("nothing is fetched ahead: {error}")).ok()?;
        Some(Prefetch { shelf, segment, data_dir: data_dir.clone(), facts })
    }

    /// Puts the segment at its place if the helper has it, or is about to. `false`: it must be fetched.
    pub async fn hand_over(&self, path: &Path) -> std::io::Result<bool> {
        if self.take(path)? {
            return Ok(true);
        }
        // A helper that makes progress is done before a fetch that begins now.
        let mut grown = self.shelf.grown(self.segment);
        let mut since = Instant::now();
        while grown.is_some() && since.elapsed() < STALL {
            sleep(LOOK).await;
            let now = self.shelf.grown(self.segment);
            if now != grown {
                (grown, since) = (now, Instant::now());
            }
        }
        // It may have come to the shelf just now.
        self.take(path)
    }

    /// Waits until the helper has it. What it puts on the shelf while the segment is being fetched is as good.
    pub async fn late_hand_over(&self, path: &Path) -> std::io::Result<()> {
        while !self.take(path)? {
            sleep(LOOK).await;
        }
        Ok(())
    }

    fn take(&self, path: &Path) -> std::io::Result<bool> {
        if !self.shelf.has(self.segment) {
            return Ok(false);
        }
        let size = self.facts.control.segment_size.bytes();
        let wanted = Wanted { segment: self.segment, ident: self.facts.ident, size, target: path };
        self.shelf.hand_over(&wanted, Timestamp::now())
    }

    /// Tells the helper how far recovery has come, and starts one if there is none. Without a helper everything is slower, and
    /// still right.
    pub fn go_on(&self, helper: &HelperCall) {
        if let Err(error) = self.try_to_go_on(helper) {
            tracing::info!("nothing is fetched ahead: {error}");
        }
    }

    fn try_to_go_on(&self, helper: &HelperCall) -> std::io::Result<()> {
        self.shelf.ask(self.segment)?;
        // Whoever has the lock is at work. One that ended a moment ago had a reason.
        if self.shelf.claim()?.is_none() || self.shelf.helper_was_called_within(AGAIN) {
            return Ok(());
        }
        self.shelf.note_call_of_helper()?;
        let mut command = Command::new(&helper.program);
        command.args(&helper.words).arg(self.data_dir.path()).current_dir(self.data_dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(|_| ())
    }
}
