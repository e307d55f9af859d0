//! What a backup records of `global/pg_control`, and a restore compares.

use serde::{Deserialize, Serialize};

use super::control_file::ControlFields;
use super::{Lsn, Malformed};

/// The part of `pg_control` that backups and restores need besides [`super::control_file::ControlFile`].
///
/// * The block size is a power of two from 1 to 32 KiB, and a segment of a relation has at least one block.
///
/// Layout, little endian, the same from PostgreSQL 13 to 18: 12 `catalog_version_no` u32, 16 `state`
/// u32, 32 `checkPoint` u64, 40 `checkPointCopy.redo` u64, 136 `minRecoveryPoint` u64, 172 `wal_level`
/// i32, 180 `MaxConnections` i32, 184 `max_worker_processes` i32, 188 `max_wal_senders` i32, 192
/// `max_prepared_xacts` i32, 196 `max_locks_per_xact` i32, 216 `blcksz` u32, 220 `relseg_size` u32, 252
/// `data_checksum_version` u32.
///
/// Source: `ControlFileData` in `catalog/pg_control.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlDetails {
    /// The version of the system catalogs: part of the name of each tablespace's directory.
    pub catalog_version: u32,
    /// What the server was doing when the file was written.
    pub state: ClusterState,
    /// The last checkpoint's record.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    /// How far recovery must come before the cluster is consistent: [`Lsn::INVALID`] in a cluster that
    /// is not in archive recovery.
    pub min_recovery_point: Lsn,
    /// The size of a page of data.
    pub block_size: u32,
    /// How many blocks a file of a relation has at most.
    pub relation_segment_blocks: u32,
    /// Whether pages have the checksums that [`super::page::verify`] knows.
    pub page_checksums: bool,
    /// What a server that replays this cluster's WAL is measured by.
    pub settings: RecordedSettings,
}

/// `DBState` in `catalog/pg_control.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// Starting up.
    Startup,
    /// Shut down in good order.
    ShutDown,
    /// Shut down in good order while it was a standby.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// In recovery after a crash.
    CrashRecovery,
    /// In recovery from an archive, or a standby.
    ArchiveRecovery,
    /// Running as a primary.
    Production,
}

/// The settings that a primary notes for its standbys.
///
/// A server that replays this WAL must have at least these limits (`max_*`), or recovery pauses or stops.
/// Source: `CheckRequiredParameterValues` in `access/transam/xlogrecovery.c` (14: `xlog.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedSettings {
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

/// `WalLevel` in `access/xlog.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WalLevel {
    /// Too little for backups and standbys.
    Minimal,
    /// Enough for both.
    Replica,
    /// With what logical replication needs besides.
    Logical,
}

impl ControlDetails {
    /// Reads the bytes of the file; a wrong checksum is an error.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let fields = ControlFields::check(bytes)?;
        let unknown = |what: &str, value: u32| Malformed::new(format!("pg_control has {value} for {what}"));
        let (block_size, segment_blocks) = (fields.u32_at(216), fields.u32_at(220));
        if !block_size.is_power_of_two() || !(1 << 10..=32 << 10).contains(&block_size) {
            return Err(unknown("the block size", block_size));
        }
        if segment_blocks == 0 {
            return Err(unknown("the blocks of a segment", segment_blocks));
        }
        let (state, wal_level) = (fields.u32_at(16), fields.u32_at(172));
        Ok(ControlDetails {
            catalog_version: fields.u32_at(12),
            state: ClusterState::from_number(state).ok_or_else(|| unknown("its state", state))?,
            checkpoint: Lsn(fields.u64_at(32)),
            redo: Lsn(fields.u64_at(40)),
            min_recovery_point: Lsn(fields.u64_at(136)),
            block_size,
            relation_segment_blocks: segment_blocks,
            // `PG_DATA_CHECKSUM_VERSION` in `storage/bufpage.h`; 0 where there are none.
            page_checksums: fields.u32_at(252) == 1,
            settings: RecordedSettings {
                wal_level: WalLevel::from_number(wal_level).ok_or_else(|| unknown("wal_level", wal_level))?,
                max_connections: fields.u32_at(180),
                max_worker_processes: fields.u32_at(184),
                max_wal_senders: fields.u32_at(188),
                max_prepared_transactions: fields.u32_at(192),
                max_locks_per_transaction: fields.u32_at(196),
            },
        })
    }
}

impl RecordedSettings {
    /// The limits that a server must not go below, by their names in the configuration, and what a server has that sets none. Source of
    /// these: `ConfigureNamesInt` in `utils/misc/guc_tables.c` (14: `guc.c`).
    pub fn limits(&self) -> [(&'static str, u32, u32); 5] {
        [
            ("max_connections", self.max_connections, 100),
            ("max_worker_processes", self.max_worker_processes, 8),
            ("max_wal_senders", self.max_wal_senders, 10),
            ("max_prepared_transactions", self.max_prepared_transactions, 0),
            ("max_locks_per_transaction", self.max_locks_per_transaction, 64),
        ]
    }
}

impl ClusterState {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => ClusterState::Startup,
            1 => ClusterState::ShutDown,
            2 => ClusterState::ShutDownInRecovery,
            3 => ClusterState::ShuttingDown,
            4 => ClusterState::CrashRecovery,
            5 => ClusterState::ArchiveRecovery,
            6 => ClusterState::Production,
            _ => return None,
        })
    }
}

impl WalLevel {
    fn from_number(number: u32) -> Option<Self> {
        [WalLevel::Minimal, WalLevel::Replica, WalLevel::Logical].get(usize::try_from(number).ok()?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::super::backup_manifest::unhex;
    use super::*;
    use proptest::prelude::*;

    /// The first bytes of the file of a running PostgreSQL 14.
    const OF_14: &str = "86500a0cb37b036b140500002de90b0c0600000000000000277c036b000000009040a400000000005840a4000000000001000000\
        010000000100000000000000e002000000000000006000000100000000000000d602000001000000010000000100000000000000\
        277c036b000000000000000000000000df02000000000000e8030000000000000000000000000000000000000000000000000000\
        000000000000000000000000000000000200000000000000170000000900000007000000030000004d0000000000000008000000\
        0000000087d63241002000000000020000200000000010004000000020000000cc0700000008000001000000010000007428a95b\
        b344e17b275684ed0aa47c71f031e4ec9baf196e606d35679e9b3de7c80f13f5";
    /// The first bytes of the file of a running PostgreSQL 18.
    const OF_18: &str = "ef41bcd6b57b036b080700003300120c0600000000000000b67b036b0000000078f47e000000000078f47e000000000001000000\
        010000000100000001000000f002000000000000f03100000100000000000000e802000001000000010000000100000000000000\
        b67b036b0000000000000000000000000000000000000000e8030000000000000000000000000000000000000000000000000000\
        000000000000000000000000000000000200000000000000170000000900000007000000030000004d0000000000000008000000\
        0000000087d63241002000000000020000200000000010004000000020000000cc0700000008000001000000010000000114ab01\
        69be5cd577735f27aa9e9dfb4948f409deed4734d714ef338d50443efe0000005cde865c";

    /// As both clusters were configured.
    const SETTINGS: RecordedSettings = RecordedSettings {
        wal_level: WalLevel::Logical,
        max_connections: 23,
        max_worker_processes: 9,
        max_wal_senders: 7,
        max_prepared_transactions: 3,
        max_locks_per_transaction: 77,
    };

    #[test]
    fn reads_real_files() {
        let of_14 = ControlDetails {
            catalog_version: 202_107_181,
            state: ClusterState::Production,
            checkpoint: Lsn(0xA4_4090),
            redo: Lsn(0xA4_4058),
            min_recovery_point: Lsn::INVALID,
            block_size: 8192,
            relation_segment_blocks: 131_072,
            page_checksums: true,
            settings: SETTINGS,
        };
        let of_18 =
            ControlDetails { catalog_version: 202_506_291, checkpoint: Lsn(0x7E_F478), redo: Lsn(0x7E_F478), ..of_14 };
        assert_eq!(ControlDetails::parse(&unhex(OF_14).unwrap()).unwrap(), of_14);
        assert_eq!(ControlDetails::parse(&unhex(OF_18).unwrap()).unwrap(), of_18);
    }

    /// The file of 14 with other bytes at `at`, and the checksum to match.
    fn changed(at: usize, field: &[u8]) -> Vec<u8> {
        let mut bytes = unhex(OF_14).unwrap();
        bytes[at..at + field.len()].copy_from_slice(field);
        let crc = crc32c::crc32c(&bytes[..288]);
        bytes[288..292].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn refuses_what_cannot_be() {
        for (at, value) in [(16, 7), (172, 3), (216, 0), (216, 8191), (216, 512), (216, 65_536), (220, 0)] {
            assert!(ControlDetails::parse(&changed(at, &u32::to_le_bytes(value))).is_err(), "{at} {value}");
        }
        let bytes = unhex(OF_14).unwrap();
        for length in 0..bytes.len() {
            assert!(ControlDetails::parse(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn knows_clusters_without_checksums_and_standbys() {
        assert!(!ControlDetails::parse(&changed(252, &[0; 4])).unwrap().page_checksums);
        let standby = ControlDetails::parse(&changed(136, &0x16_B374_D848_u64.to_le_bytes())).unwrap();
        assert_eq!(standby.min_recovery_point, Lsn(0x16_B374_D848));
        let states: Vec<_> =
            (0u32..7).map(|n| ControlDetails::parse(&changed(16, &n.to_le_bytes())).unwrap().state).collect();
        assert_eq!((states[1], states[5]), (ClusterState::ShutDown, ClusterState::ArchiveRecovery));
    }

    #[test]
    fn settings_go_through_json() {
        let json = serde_json::to_string(&SETTINGS).unwrap();
        assert!(json.starts_with("{\"wal_level\":\"logical\",\"max_connections\":23,"), "{json}");
        assert_eq!(serde_json::from_str::<RecordedSettings>(&json).unwrap(), SETTINGS);
        assert_eq!(SETTINGS.limits().map(|(_, limit, _)| limit), [23, 9, 7, 3, 77]);
    }

    proptest! {
        #[test]
        fn one_flipped_bit_is_noticed(of_18: bool, at in 0usize..288, bit in 0u8..8) {
            let mut bytes = unhex(if of_18 { OF_18 } else { OF_14 }).unwrap();
            bytes[at] ^= 1 << bit;
            prop_assert!(ControlDetails::parse(&bytes).is_err());
        }
    }
}
