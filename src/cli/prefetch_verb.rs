//! `wal-prefetch`, which `wal-fetch` calls, and how it calls it.

use std::fs;

use super::args::{Global, WalFetchArgs, WalPrefetchArgs};
use super::exit;
use super::run::block_on;
use super::settings;
use super::sources::Sources;
use crate::command::prefetch::{HelperCall, PrefetchSettings};
use crate::command::prefetch_helper::{self, PrefetchHelper};
use crate::command::{Failure, FailureKind};
use crate::disk::DataDir;
use crate::postgres::recovery::RecoveryMode;

/// What a fetch does besides: nothing, unless a recovery asks.
pub fn settings(
    args: &WalFetchArgs,
    global: &Global,
    sources: &Sources,
    mode: RecoveryMode,
) -> Result<PrefetchSettings, Failure> {
    let mut words = global.words();
    words.push("wal-prefetch".into());
    if let Some(segments) = &args.prefetch {
        words.extend(["--prefetch".into(), segments.into()]);
    }
    // Without its own name nothing is fetched ahead.
    let program = std::env::current_exe().unwrap_or_default();
    let settings = settings::prefetch(sources, HelperCall { program, words })?;
    Ok(match mode {
        RecoveryMode::Unknown => PrefetchSettings { segments: 0, ..settings },
        RecoveryMode::Recovery | RecoveryMode::Standby => settings,
    })
}

/// Runs the helper.
pub fn run(args: &WalPrefetchArgs, sources: &Sources) -> Result<u8, Failure> {
    leave_postgresql();
    let local = |e: std::io::Error| Failure::new(FailureKind::LocalIo, e.to_string());
    let path = std::path::absolute(&args.data_dir).map_err(local)?;
    let Some(data_dir) = DataDir::at(path).map_err(local)? else {
        let message = format!("`{}` is not a data directory", args.data_dir.display());
        return Err(Failure::new(FailureKind::Usage, message));
    };
    let nobody = HelperCall { program: std::path::PathBuf::new(), words: Vec::new() };
    let prefetch = settings::prefetch(sources, nobody)?;
    let helper = PrefetchHelper { repository: settings::repository(sources)?, prefetch, data_dir };
    // In a container PostgreSQL may be the parent of orphans, and logs those that end otherwise. Nothing was promised.
    if let Err(failure) = block_on(prefetch_helper::run(helper)) {
        tracing::info!("nothing is fetched ahead any more: {failure}");
    }
    Ok(exit::SUCCESS)
}

/// Signals to the server's processes are not for us, and no file or socket of theirs stays open because of us: servers before 16
/// hand them down to their commands.
fn leave_postgresql() {
    // Whoever leads a session already has left.
    rustix::process::setsid().ok();
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<i32> = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // The directory that was just read is among them, and closed.
        nix::unistd::close(number).ok();
    }
}
