//! Small data directories and WAL files, byte for byte as PostgreSQL lays them out, for tests that need no server.

use std::fs;
use std::path::{Path, PathBuf};

use crate::postgres::Scratch;

/// A cluster that never ran.
pub struct FakeCluster {
    home: Scratch,
    spool: Scratch,
    pub system_id: u64,
    pub segment_bytes: u64,
}

pub const SYSTEM_ID: u64 = 7_301_234_567_890_123_456;
const MIB: u64 = 1 << 20;

impl FakeCluster {
    /// PostgreSQL 15, timeline 1, segments of 1 MiB.
    pub fn new() -> Self {
        Self::with(SYSTEM_ID, 1)
    }

    pub fn with(system_id: u64, timeline: u32) -> Self {
        Self::make(system_id, timeline, MIB)
    }

    pub fn with_segments_of(segment_bytes: u64) -> Self {
        Self::make(SYSTEM_ID, 1, segment_bytes)
    }

    fn make(system_id: u64, timeline: u32, segment_bytes: u64) -> Self {
        let cluster =
            FakeCluster { home: Scratch::new("fake"), spool: Scratch::new("spool"), system_id, segment_bytes };
        fs::create_dir_all(cluster.path().join("global")).unwrap();
        fs::create_dir_all(cluster.path().join("pg_wal/archive_status")).unwrap();
        fs::write(cluster.path().join("PG_VERSION"), "15\n").unwrap();
        fs::write(cluster.path().join("global/pg_control"), control_file(system_id, timeline, segment_bytes as u32))
            .unwrap();
        cluster
    }

    pub fn path(&self) -> &Path {
        self.home.path()
    }

    /// Puts a signal file there and takes the others away.
    pub fn signal(&self, names: &[&str]) {
        for name in ["recovery.signal", "standby.signal", "promote"] {
            let file = self.path().join(name);
            match names.contains(&name) {
                true => fs::write(file, "").unwrap(),
                false => drop(fs::remove_file(file)),
            }
        }
    }

    /// `pg_control` as it is while archive recovery goes on.
    pub fn in_archive_recovery(&self) {
        let mut bytes = control_file(self.system_id, 1, self.segment_bytes as u32);
        bytes[16..20].copy_from_slice(&5u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..288]);
        bytes[288..292].copy_from_slice(&crc.to_le_bytes());
        fs::write(self.path().join("global/pg_control"), bytes).unwrap();
    }

    /// Writes a segment of this cluster into its pg_wal, with content that the seed decides.
    pub fn segment(&self, name: &str, seed: u64) -> PathBuf {
        let bytes = segment(self.system_id, name, self.segment_bytes, seed);
        self.file(name, &bytes)
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join("pg_wal").join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Says that a file is finished and waits to be archived, as PostgreSQL does.
    pub fn ready(&self, name: &str) {
        fs::write(self.path().join(format!("pg_wal/archive_status/{name}.ready")), "").unwrap();
    }

    /// What PostgreSQL does when archive_command has succeeded.
    pub fn done(&self, name: &str) {
        let status = |state: &str| self.path().join(format!("pg_wal/archive_status/{name}.{state}"));
        fs::rename(status("ready"), status("done")).unwrap();
    }

    /// The spool of this cluster's calls, which pgark makes.
    pub fn spool(&self) -> PathBuf {
        self.spool.path().join("spool")
    }

    /// Where PostgreSQL waits for a file.
    pub fn destination(&self) -> PathBuf {
        self.path().join("pg_wal/RECOVERYXLOG")
    }
}

/// A segment that compresses to about a third, with a header that fits its name.
pub fn segment(system_id: u64, name: &str, size: u64, seed: u64) -> Vec<u8> {
    let part = |from: usize| u32::from_str_radix(&name[from..from + 8], 16).unwrap();
    let (timeline, log, number) = (part(0), part(8), part(16));
    let start = (u64::from(log) << 32) + u64::from(number) * size;
    let mut bytes = vec![0; size as usize];
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for block in bytes.chunks_mut(24) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let length = block.len().min(8);
        block[..length].copy_from_slice(&state.to_le_bytes()[..length]);
    }
    bytes[..40].fill(0);
    bytes[0..2].copy_from_slice(&0xD110u16.to_le_bytes());
    bytes[2..4].copy_from_slice(&6u16.to_le_bytes());
    bytes[4..8].copy_from_slice(&timeline.to_le_bytes());
    bytes[8..16].copy_from_slice(&start.to_le_bytes());
    bytes[24..32].copy_from_slice(&system_id.to_le_bytes());
    bytes[32..36].copy_from_slice(&(size as u32).to_le_bytes());
    bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
    bytes
}

fn control_file(system_id: u64, timeline: u32, segment_size: u32) -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    bytes[0..8].copy_from_slice(&system_id.to_le_bytes());
    bytes[8..12].copy_from_slice(&1300u32.to_le_bytes());
    bytes[48..52].copy_from_slice(&timeline.to_le_bytes());
    bytes[208..216].copy_from_slice(&1_234_567.0f64.to_le_bytes());
    bytes[228..232].copy_from_slice(&segment_size.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..288]);
    bytes[288..292].copy_from_slice(&crc.to_le_bytes());
    bytes
}
