//! Overviews for tests: one of everything, and one of nothing.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, ToSpan};

use super::View;
use crate::command::check::{Finding, Level};
use crate::command::checklist::Point;
use crate::command::forecast::{Forecast, RestoreWork};
use crate::command::list::{Kind, ListedBackup, ListedFacts, ListedState};
use crate::command::overview::{Clocks, Objectives, Overview};
use crate::command::show::MissingWal;
use crate::command::status::{
    BackupsStatus, DayBytes, DumpsStatus, GapStatus, IntervalStatus, LostStatus, NewestStatus, ServerStatus,
    SizesStatus, StatusReport, TimelineStatus,
};
use crate::command::status_expiry::ExpiryStatus;
use crate::command::ways::{Answer, Moment, Way};
use crate::postgres::{Lsn, SystemId};
use crate::repo::manifest::Method;
use crate::repo::run_record::DrillFigures;
use crate::repo::{Alert, AlertSeverity, BackupId, DumpSummary, Generation, RunKind, RunRecord, RunStage, Writer};

/// What nobody should ever see as anything but text.
pub(super) const HOSTILE: &str = "</style><script>alert('x')</script>\u{202e}gpj.exe\" onload=x";
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

pub(super) fn now() -> Timestamp {
    "2026-11-23T17:20:40Z".parse().unwrap()
}

fn before(days: i64, hours: i64) -> Timestamp {
    now() - SignedDuration::from_hours(days * 24 + hours)
}

fn id(begun: Timestamp) -> BackupId {
    BackupId::new(begun, 0xA)
}

/// Nothing was stored but the identity.
pub(super) fn nothing() -> Overview {
    let latest = Finding {
        check: "latest",
        level: Level::Fail,
        message: "there is no backup".into(),
        hint: Some("take one with `pgark basebackup`".into()),
    };
    let status = StatusReport {
        schema: 1,
        at: now(),
        repository: "s3://backups/pg (cluster `main`)".into(),
        generation: Generation::FIRST,
        cluster: "system identifier 7301234567890123456, PostgreSQL 15".into(),
        newest: None,
        timelines: vec![],
        gaps: vec![],
        lost: vec![],
        backups: BackupsStatus {
            whole: 0,
            damaged: 0,
            unfinished: 0,
            newest: None,
            newest_stopped: None,
            newest_age_seconds: None,
        },
        dumps: DumpsStatus {
            whole: 0,
            damaged: 0,
            unfinished: 0,
            newest: None,
            newest_started: None,
            newest_age_seconds: None,
            stored_bytes: 0,
        },
        sizes: SizesStatus {
            wal_bytes: 0,
            wal_segments: 0,
            backup_bytes: 0,
            wal_bytes_a_day: None,
            days: None,
            wal_days: vec![],
        },
        forecast: None,
        expiry: ExpiryStatus::Off,
        server: None,
        findings: vec![latest],
    };
    Overview {
        schema: 1,
        at: now(),
        status,
        backups: vec![],
        dumps: vec![],
        dump_bytes: 0,
        runs: vec![],
        objectives: Objectives::default(),
        quota: None,
        clocks: Clocks::default(),
        alerts: vec![],
    }
}

/// One of everything, and wherever others write a text, a hostile one.
pub(super) fn everything() -> Overview {
    with_texts(HOSTILE)
}

/// A month of the handbook: three timelines, a gap, lost WAL, failures, drills, dumps.
pub(super) fn with_texts(text: &str) -> Overview {
    let mut overview = nothing();
    overview.status.findings = vec![Finding {
        check: "gap",
        level: Level::Warning,
        message: "4 segments, `00000001000000000000004A` to `00000001000000000000004D`, are missing: what was written there cannot be restored".into(),
        hint: Some("archive them with `pgark wal-push --backfill` where a `pg_wal` still has them".into()),
    }];
    overview.status.server = Some(ServerStatus::Unreachable { reason: "connection refused".into() });
    overview.status.newest = Some(NewestStatus {
        lsn: Lsn(0x1_C800_0000),
        segment: "0000000300000001000000C7".into(),
        live: false,
        last_commit: Some(now() - SignedDuration::from_secs(262)),
        stored: Some(now() - SignedDuration::from_secs(200)),
        age_seconds: Some(200),
    });
    overview.status.timelines = timelines();
    let missing = |first: &str, last: &str, segments| MissingWal { first: first.into(), last: last.into(), segments };
    overview.status.gaps = vec![
        GapStatus {
            timeline: 1,
            missing: missing("00000001000000000000004A", "00000001000000000000004D", 4),
            kind: "past",
        },
        GapStatus {
            timeline: 1,
            missing: missing("000000010000000000000010", "000000010000000000000030", 33),
            kind: "expired",
        },
    ];
    overview.status.lost = vec![LostStatus {
        timeline: 2,
        from: Lsn(0x1_5000_0000),
        to: Lsn(0x1_5300_0000),
        reason: "requested WAL segment has already been removed".into(),
        found: before(9, 3),
    }];
    overview.backups = backups(text);
    overview.dumps = dumps(text);
    overview.dump_bytes = overview.dumps.iter().map(|dump| dump.stored_bytes).sum();
    let day = |back: i64| now().to_zoned(jiff::tz::TimeZone::UTC).date().checked_sub(back.days()).unwrap();
    let wal_days: Vec<DayBytes> = (0..=7)
        .rev()
        .map(|back| DayBytes { day: day(back), bytes: (5 + (back * 3) as u64 % 4) * GIB - back as u64 * 100 * MIB })
        .collect();
    overview.status.sizes = SizesStatus {
        wal_bytes: wal_days.iter().map(|day| day.bytes).sum(),
        wal_segments: 5120,
        backup_bytes: overview.backups.iter().map(|backup| backup.stored_bytes).sum(),
        wal_bytes_a_day: Some(6 * GIB),
        days: Some(7.4),
        wal_days,
    };
    overview.status.backups.whole = overview.backups.len() - 2;
    let work = RestoreWork { restored_bytes: 41 * GIB, replayed_bytes: 6 * GIB };
    let (fetch_seconds, replay_seconds) = (1910.0, 600.0);
    overview.status.forecast = Some(Forecast { seconds: 2520.0, fetch_seconds, replay_seconds, work, drills: 2 });
    overview.status.backups.newest = Some(id(before(0, 16)));
    overview.runs = runs(text);
    overview.objectives = Objectives { rpo: Some(Duration::from_secs(4 * 3600)), rto: Some(Duration::from_secs(3600)) };
    overview.quota = Some(500 * GIB);
    overview.alerts = alerts(text);
    overview
}

/// All is as it should be.
pub(super) fn calm() -> Overview {
    let mut overview = everything();
    overview.status.findings.clear();
    overview.alerts.clear();
    overview.status.gaps.clear();
    overview.status.lost.clear();
    overview.status.timelines.retain(|timeline| timeline.timeline == 3);
    overview.backups.retain(|backup| backup.state == ListedState::Whole);
    overview.backups[0].kept_reason = None;
    overview.dumps.retain(|dump| dump.databases.len() == 3);
    overview.runs.retain(|run| run.stage == RunStage::Done);
    overview
}

fn timelines() -> Vec<TimelineStatus> {
    let interval =
        |from: Option<Timestamp>, to: Option<Timestamp>, (begin, end): (u64, u64), last: &str, backup| IntervalStatus {
            backup: id(backup),
            from_lsn: Lsn(begin),
            from_time: from,
            to_lsn: Lsn(end),
            to_time: to,
            last_segment: last.into(),
        };
    let of = |timeline, intervals| TimelineStatus { timeline, intervals, segments: 300, stored_bytes: 12 * GIB };
    vec![
        of(
            1,
            vec![
                interval(
                    Some(before(29, 16)),
                    Some(before(29, 15)),
                    (0xE00_0028, 0x1000_0000),
                    "00000001000000000000000F",
                    before(29, 16),
                ),
                interval(
                    Some(before(21, 16)),
                    Some(before(17, 2)),
                    (0x3100_0100, 0x4A00_0000),
                    "000000010000000000000049",
                    before(21, 16),
                ),
                interval(
                    Some(before(15, 16)),
                    Some(before(12, 5)),
                    (0x5100_0100, 0x9000_0000),
                    "00000001000000000000008F",
                    before(15, 16),
                ),
            ],
        ),
        of(
            2,
            vec![interval(
                Some(before(12, 5)),
                Some(before(6, 20)),
                (0x9000_0148, 0x1_8000_0000),
                "00000002000000010000007F",
                before(15, 16),
            )],
        ),
        of(
            3,
            vec![interval(
                Some(before(6, 20)),
                Some(now() - SignedDuration::from_secs(262)),
                (0x1_8000_0060, 0x1_C800_0000),
                "0000000300000001000000C7",
                before(7, 16),
            )],
        ),
    ]
}

fn backups(text: &str) -> Vec<ListedBackup> {
    let listed = |started: Timestamp, state, facts: Option<ListedFacts>| ListedBackup {
        id: id(started),
        generation: Generation::FIRST,
        state,
        reason: None,
        stored_bytes: 9 * GIB + (started.as_second() as u64 % 7) * 100 * MIB,
        kept: false,
        kept_until: None,
        kept_reason: None,
        facts,
    };
    let mut backups: Vec<ListedBackup> = (0..30)
        .rev()
        .filter(|day| day % 2 == 1 || *day < 8)
        .map(|day| listed(before(day, 16), ListedState::Whole, Some(facts(before(day, 16), "nightly"))))
        .collect();
    (backups[0].kept, backups[0].kept_reason) = (true, Some(text.into()));
    backups[2] = listed(before(25, 16), ListedState::Damaged, None);
    backups[2].reason = Some("part `part/00000003.tar.zst` is missing".into());
    backups.push(listed(before(0, 1), ListedState::Unfinished, None));
    backups[15].facts.as_mut().unwrap().label = text.into();
    backups
}

fn facts(started: Timestamp, label: &str) -> ListedFacts {
    let seconds = 1500.0 + (started.as_second() % 11) as f64 * 40.0;
    ListedFacts {
        label: label.into(),
        kind: Kind::Full,
        method: Method::Local,
        from_standby: false,
        started,
        stopped: started + SignedDuration::from_secs(seconds as i64),
        seconds,
        plain_bytes: 41 * GIB,
        timeline: 1,
        start_lsn: Lsn(0x3000_0028),
        stop_lsn: Lsn(0x3100_0100),
        wal_first: "000000010000000000000030".into(),
        wal_last: "000000010000000000000031".into(),
        wal_segments: 2,
        bad_pages: 0,
    }
}

fn dumps(text: &str) -> Vec<DumpSummary> {
    let names = ["app", "billing", "postgres"];
    let dump = |day: i64| DumpSummary {
        format: crate::repo::dump_manifest::FORMAT.into(),
        id: id(before(day, 10)),
        system_identifier: SystemId(7_301_234_567_890_123_456),
        postgres_major: 15.try_into().unwrap(),
        program: "pg_dump (PostgreSQL) 15.14".into(),
        label: String::new(),
        from_standby: false,
        partial: false,
        started: before(day, 10),
        stopped: before(day, 10) + SignedDuration::from_secs(380 + day),
        databases: names.map(str::to_owned).to_vec(),
        globals: true,
        files: 4,
        parts: 40,
        plain_bytes: 9 * GIB,
        stored_bytes: 2 * GIB + day as u64 * 3 * MIB,
        writer: "db1, pid 4711, pgark 0.1.0".into(),
    };
    let mut dumps: Vec<DumpSummary> = (0..12).rev().map(dump).collect();
    dumps[11].databases.push(text.into());
    dumps
}

fn runs(text: &str) -> Vec<RunRecord> {
    let writer = Writer { host: "db1".into(), pid: 4711, version: "0.1.0" };
    let run = |kind, stage, began: Timestamp, seconds: i64| {
        RunRecord::begun(kind, began, &writer).ended(stage, began + SignedDuration::from_secs(seconds))
    };
    let mut runs = vec![];
    for day in (0..30).rev() {
        runs.push(run(RunKind::Basebackup, RunStage::Done, before(day, 16), 1500 + day * 11));
        runs.push(run(RunKind::Dump, RunStage::Done, before(day, 10), 380 + day));
        runs.push(run(RunKind::Expire, RunStage::Done, before(day, 9), 4));
    }
    let mut failed = run(RunKind::Dump, RunStage::Failed, before(20, 9), 61);
    failed.message = Some("`pg_dump` of database `billing` failed: permission denied for table `cards`".into());
    failed.hint = Some("grant `pg_read_all_data` to the role that dumps".into());
    let mut hostile = run(RunKind::Verify, RunStage::Warned, before(3, 7), 5400);
    hostile.message = Some(text.into());
    let figures = |fetch: f64, replay: f64, report: &str| DrillFigures {
        fetch_seconds: fetch,
        replay_seconds: replay,
        total_seconds: fetch + replay + 9.0,
        loss_seconds: Some(184.0),
        restored_bytes: 41 * GIB,
        replayed_bytes: 6 * GIB,
        report: Some(report.into()),
    };
    let mut full = run(RunKind::DrillFull, RunStage::Done, before(22, 13), 2960);
    full.drill = Some(figures(1920.0, 610.0, "20261101T040000Z-full"));
    let mut pitr = run(RunKind::DrillPitr, RunStage::Failed, before(8, 13), 700);
    pitr.message = Some("recovery ended at `0/9000148`, short of the target".into());
    let mut dump = run(RunKind::DrillDump, RunStage::Warned, before(5, 13), 800);
    dump.message = Some("the newest row is older than `max_age`".into());
    let mut newest = run(RunKind::DrillFull, RunStage::Done, before(1, 13), 2817);
    newest.drill = Some(figures(1860.0, 540.0, "20261122T041500Z-full"));
    newest.id = Some(id(before(2, 16)));
    let disaster = run(RunKind::DrillDisaster, RunStage::Done, before(120, 0), 4000);
    runs.extend([failed, hostile, full, pitr, dump, newest, disaster]);
    runs.push(RunRecord::begun(RunKind::Basebackup, before(0, 1), &writer));
    runs.sort_by_key(|run| run.began);
    runs
}

fn alerts(text: &str) -> Vec<Alert> {
    let alert = |rule: &str, subject: &str, severity, message: &str, hint: &str| Alert {
        rule: rule.into(),
        subject: subject.into(),
        severity,
        message: message.into(),
        hint: hint.into(),
    };
    vec![
        alert(
            "verify-damage",
            "",
            AlertSeverity::Medium,
            &format!("a backup labelled `{text}` is damaged"),
            "`pgark verify` names what is wrong with it",
        ),
        alert(
            "drill-failed",
            "drill-pitr",
            AlertSeverity::High,
            "the newest `drill-pitr` failed",
            "read its report below `record/drill/`",
        ),
        alert(
            "not-run",
            "basebackup",
            AlertSeverity::Critical,
            "no `basebackup` was done since 2026-11-22T01:25:40Z; it was due at 2026-11-23T01:00:00Z",
            "look at the process that runs it: `systemctl status pgark`",
        ),
    ]
}

/// With ways of all kinds.
pub(super) fn view() -> View {
    let reachable = |days: i64, ends_on, warnings: &[&str]| Answer::Reachable {
        backup: id(before(days, 16)),
        ends_on,
        fetched_bytes: 12 * GIB,
        warnings: warnings.iter().map(|&warning| warning.into()).collect(),
    };
    let way = |moment, timeline, answer| Way { moment, timeline, answer };
    let unreachable = Answer::Unreachable {
        reason: "no commit behind it is archived: the archive ends at 0/4A000000".into(),
        hint: "`pgark restore` without a target restores the latest state".into(),
    };
    View {
        program: ["pgark", "--repo", "s3://backups/pg", "--cluster", "main"].map(str::to_owned).to_vec(),
        ways: vec![
            way(Moment::Latest, None, reachable(0, 3, &[])),
            way(
                Moment::Time { at: now() - SignedDuration::from_hours(1) },
                None,
                reachable(0, 3, &["`00000002.history` is missing"]),
            ),
            way(Moment::LastBefore { at: before(6, 20), timeline: 2 }, Some(2), reachable(15, 2, &[])),
            way(Moment::LastBefore { at: before(17, 2), timeline: 1 }, Some(1), unreachable),
            way(Moment::Backup { backup: id(before(15, 16)) }, None, reachable(15, 1, &[])),
        ],
        checklist: checklist(),
        ..View::default()
    }
}

fn checklist() -> Vec<Point> {
    let point = |item: &str, ticked, detail: &str| Point { item: item.into(), ticked, detail: detail.into() };
    vec![
        point("newest backup fetched", true, "41 GiB in 31 min"),
        point("restored in a test environment", true, "a server was started on a private socket"),
        point("integrity verified", true, "`pg_amcheck`, `pg_checksums`, every table was read"),
        point("critical functions tested", false, "no assertions were run: give a file with `--sql`"),
        point("time documented", true, "RTO 2409.0 s"),
        point("result reported", true, "in the repository"),
    ]
}
