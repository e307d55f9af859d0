//! How far long work is, for whoever shows it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Counters that a command moves and `cli` reads.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU8,
    total: AtomicU64,
    done: AtomicU64,
    copying: OnceLock<Instant>,
}

/// What a command is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Getting ready.
    Preparing,
    /// Waiting for a checkpoint.
    Checkpoint,
    /// Copying bytes.
    Copying,
    /// Waiting for WAL to be archived.
    WaitingForWal,
    /// Writing the manifest: with it there is a backup.
    Manifest,
    /// Writing files to disk for good.
    Syncing,
}

const PHASES: [Phase; 6] =
    [Phase::Preparing, Phase::Checkpoint, Phase::Copying, Phase::WaitingForWal, Phase::Manifest, Phase::Syncing];

impl Progress {
    /// Begins a phase.
    pub fn enter(&self, phase: Phase) {
        if phase == Phase::Copying {
            self.copying.get_or_init(Instant::now);
        }
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// How many bytes there are to copy.
    pub fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// So many more are copied.
    pub fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What it is busy with.
    pub fn phase(&self) -> Phase {
        PHASES.get(usize::from(self.phase.load(Ordering::Relaxed))).copied().unwrap_or(Phase::Preparing)
    }

    /// How long ago the copying began.
    pub fn copying(&self) -> Duration {
        self.copying.get().map(Instant::elapsed).unwrap_or_default()
    }

    /// Bytes copied, and bytes in all.
    pub fn bytes(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

impl Phase {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Phase::Preparing => "getting ready",
            Phase::Checkpoint => "waiting for a checkpoint",
            Phase::Copying => "copying",
            Phase::WaitingForWal => "waiting until the WAL is archived",
            Phase::Manifest => "writing the manifest",
            Phase::Syncing => "writing to disk",
        }
    }
}
