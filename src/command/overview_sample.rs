//! An overview with which nothing is wrong, for tests that change it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::forecast::{Forecast, RestoreWork};
use super::list::{Kind, ListedBackup, ListedFacts, ListedState};
use super::overview::{Clocks, Objectives, Overview};
use super::status::{BackupsStatus, NewestStatus, ServerStatus, SizesStatus, StatusReport};
use super::status_dumps::DumpsStatus;
use super::status_expiry::ExpiryStatus;
use super::status_server::ReceiverStatus;
use crate::postgres::{Lsn, SystemId};
use crate::repo::dump_manifest;
use crate::repo::manifest::Method;
use crate::repo::run_record::DrillFigures;
use crate::repo::{DumpSummary, Generation, RunKind, RunRecord, RunStage, Writer};

/// When it was looked.
pub(super) fn now() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().unwrap()
}

/// So long before it was looked.
pub(super) fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

/// A run that took a minute.
pub(super) fn run(kind: RunKind, stage: RunStage, began: Timestamp) -> RunRecord {
    let writer = Writer { host: "db1".into(), pid: 7, version: "1" };
    let begun = RunRecord::begun(kind, began, &writer);
    match stage {
        RunStage::Begun => begun,
        stage => begun.ended(stage, began + SignedDuration::from_secs(60)),
    }
}

/// A backup that took a minute.
pub(super) fn backup(stopped: Timestamp) -> ListedBackup {
    ListedBackup {
        id: "20261123T010000Z-0a1b2c3d".parse().unwrap(),
        generation: Generation::FIRST,
        state: ListedState::Whole,
        reason: None,
        stored_bytes: 1000,
        kept: false,
        kept_until: None,
        kept_reason: None,
        facts: Some(ListedFacts {
            label: String::new(),
            kind: Kind::Full,
            method: Method::Local,
            from_standby: false,
            timeline: 1,
            start_lsn: Lsn(0x200_0000),
            stop_lsn: Lsn(0x200_0100),
            started: stopped - SignedDuration::from_secs(60),
            stopped,
            seconds: 60.0,
            plain_bytes: 4000,
            bad_pages: 0,
            wal_first: "000000010000000000000002".into(),
            wal_last: "000000010000000000000002".into(),
            wal_segments: 1,
        }),
    }
}

/// A dump that took a minute.
pub(super) fn dump(stopped: Timestamp) -> DumpSummary {
    DumpSummary {
        format: dump_manifest::FORMAT.into(),
        id: "20261123T013000Z-0a1b2c3d".parse().unwrap(),
        system_identifier: SystemId(1),
        postgres_major: 15.try_into().unwrap(),
        program: "pg_dump (PostgreSQL) 15.20".into(),
        label: String::new(),
        from_standby: false,
        partial: false,
        started: stopped - SignedDuration::from_secs(60),
        stopped,
        databases: vec!["app".into()],
        globals: true,
        files: 2,
        parts: 1,
        plain_bytes: 3000,
        stored_bytes: 500,
        writer: "db1, pid 7, pgark 1".into(),
    }
}

/// A restore that takes so long.
pub(super) fn forecast_of(seconds: f64) -> Forecast {
    let work = RestoreWork { restored_bytes: 4000, replayed_bytes: 300 };
    Forecast { seconds, fetch_seconds: seconds, replay_seconds: 0.0, work, drills: 1 }
}

/// Nothing is wrong with it: a backup and a dump of an hour ago, a drill of yesterday, all WAL.
pub(super) fn overview() -> Overview {
    let mut drill = run(RunKind::DrillFull, RunStage::Done, ago(86_400));
    drill.drill = Some(DrillFigures { total_seconds: 1800.0, loss_seconds: Some(2.0), ..DrillFigures::default() });
    Overview {
        schema: 1,
        at: now(),
        status: status(),
        backups: vec![backup(ago(3600))],
        dumps: vec![dump(ago(3600))],
        dump_bytes: 500,
        runs: vec![
            drill,
            run(RunKind::Basebackup, RunStage::Done, ago(3660)),
            run(RunKind::Dump, RunStage::Done, ago(3660)),
            run(RunKind::Expire, RunStage::Done, ago(3000)),
        ],
        objectives: Objectives { rpo: Some(Duration::from_secs(4 * 3600)), rto: Some(Duration::from_secs(3600)) },
        quota: Some(10_000),
        clocks: Clocks { store_ahead_seconds: Some(0.2), server_ahead_seconds: Some(-0.1) },
        alerts: vec![],
    }
}

fn status() -> StatusReport {
    StatusReport {
        schema: 1,
        at: now(),
        repository: "s3://bucket/pg".into(),
        generation: Generation::FIRST,
        cluster: "system id 1, PostgreSQL 15".into(),
        newest: Some(NewestStatus {
            lsn: Lsn(0x500_0000),
            segment: "000000010000000000000004".into(),
            live: false,
            last_commit: Some(ago(31)),
            stored: Some(ago(30)),
            age_seconds: Some(30),
        }),
        timelines: vec![],
        gaps: vec![],
        lost: vec![],
        backups: BackupsStatus {
            whole: 1,
            damaged: 0,
            unfinished: 0,
            newest: Some("20261123T010000Z-0a1b2c3d".parse().unwrap()),
            newest_stopped: Some(ago(3600)),
            newest_age_seconds: Some(3600),
        },
        dumps: DumpsStatus {
            whole: 1,
            damaged: 0,
            unfinished: 0,
            newest: Some("20261123T013000Z-0a1b2c3d".parse().unwrap()),
            newest_started: Some(ago(3660)),
            newest_age_seconds: Some(3660),
            stored_bytes: 500,
        },
        sizes: SizesStatus {
            wal_bytes: 2000,
            wal_segments: 3,
            backup_bytes: 1000,
            wal_bytes_a_day: Some(5000),
            days: Some(0.5),
            wal_days: vec![],
        },
        expiry: ExpiryStatus::Off,
        forecast: None,
        server: Some(ServerStatus::Reachable {
            archive_mode: "on".into(),
            archive_timeout: 60,
            in_recovery: false,
            failing: None,
            trouble: None,
            failed_count: 0,
            receiver: Some(ReceiverStatus {
                durable: Some(Lsn(0x500_0000)),
                behind_bytes: Some(100),
                kept_bytes: Some(1000),
                trouble: None,
            }),
            clock_ahead_seconds: Some(-0.1),
        }),
        findings: vec![],
    }
}
