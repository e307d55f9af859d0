//! The trial itself: the promise, the plan, the restore, the recovery, and what is asked of the server that comes up.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Circumstances;
use super::drill::{Drill, DrillKind, Journal};
use super::drill_checklist::{ASSERT, FETCH, JUDGE, PAGES, PLAN, PROMISE, READ, REPLAY, SPACE, STRUCTURE};
use super::drill_checks::{self, Restored};
use super::drill_dump;
use super::drill_report::{Place, Reason, size};
use super::drill_space;
use super::drill_target::{self, Promise};
use super::failure::{Failure, FailureKind};
use super::forecast::distance;
use super::progress::Progress;
use super::restore::{self, Restore};
use super::status::{self, Status};
use super::{drill_tablespaces, plan_warnings};
use crate::postgres::recovery_settings::{RecoverySettings, RecoveryTarget, RestoreMode, TargetAction, TargetTimeline};
use crate::postgres::{HistoryEntry, HistoryFile, Lsn, PgMajor, SegmentNumber, role_names};
use crate::repo::Policy;
use crate::repo::restore_plan::RestorePlan;
use crate::repo::restore_target::{Request, Target};
use crate::server::programs;
use crate::server::scratch::{ScratchServer, ScratchSettings, ScratchState};
use crate::server::scratch_place::DATA;
use crate::server::scratch_session::Recovered;

const LOOK: Duration = Duration::from_millis(20);

/// All of it, in the scratch directory `home`.
pub(super) async fn restore_and_look(
    drill: &Drill,
    journal: &Journal,
    home: &Path,
    circumstances: &Circumstances,
    progress: Arc<Progress>,
    begun: Instant,
) -> Result<(), Reason> {
    if drill.kind == DrillKind::Dump {
        return drill_dump::restore_and_look(drill, journal, home, circumstances, progress, begun).await;
    }
    let (promise, request) = journal.step(PROMISE, promised(drill, journal, circumstances)).await?;
    let plan = journal.step(PLAN, plan(drill, journal, &request)).await?;
    let settings = settings(drill, home, &plan)?;
    journal.step(SPACE, async { drill_space::ask(home, drill_space::needed(&plan)).map(|room| ((), room)) }).await?;
    journal
        .step(FETCH, fetch(drill, journal, &settings, &request, &plan, circumstances, Arc::clone(&progress)))
        .await?;
    let mut server = journal.step(REPLAY, recover(journal, &settings, begun)).await?;
    let (role, recovered) = log_in(drill, &settings).await?;
    journal
        .step(JUDGE, async { judge(drill, journal, circumstances, (&promise, &plan, &request), &settings, &recovered) })
        .await?;
    let now = match request.target {
        Target::Time(target) => target,
        _ => circumstances.now,
    };
    let restored = Restored { server: &settings, user: &role, databases: &recovered.databases };
    look(drill, journal, &restored, now, recovered.has_amcheck).await;
    if drill.kind == DrillKind::Disaster {
        drill_dump::compare(drill, journal, &restored, progress).await;
    }
    stop(&mut server).await?;
    if recovered.checksums {
        journal.look(PAGES, drill_checks::pages(&settings)).await;
    }
    Ok(())
}

/// What is promised, and what is asked for.
async fn promised(
    drill: &Drill,
    journal: &Journal,
    circumstances: &Circumstances,
) -> Result<((Promise, Request), String), Reason> {
    let status =
        Status { repository: drill.repository.clone(), conninfo: None, slot: String::new(), policy: Policy::default() };
    let status = status::run(&status, circumstances).await?;
    let nothing = || {
        let why = status.findings.first().map(|finding| format!(": {}", finding.message)).unwrap_or_default();
        Failure::new(FailureKind::Unreachable, format!("nothing can be restored{why}"))
    };
    let promise = Promise::of(&status).ok_or_else(nothing)?;
    journal.found().promised = Some(promise.place);
    let newest = status.backups.newest;
    let request = match drill.kind {
        DrillKind::Pitr => {
            let drawn = || drill_target::draw(&status, &promise, drill.seed);
            let none = || {
                Failure::new(
                    FailureKind::Unreachable,
                    "no moment between two commits can be restored, so none was drawn",
                )
                .with_hint("name one with `--target-time`")
            };
            let target = drill.target.or_else(drawn).ok_or_else(none)?;
            journal.found().target = Some(target);
            Request::to(Target::Time(target))
        }
        DrillKind::Full | DrillKind::Disaster | DrillKind::Dump => Request::to(Target::Latest),
    };
    journal.found().backup = newest;
    Ok(((promise, request), promise.place.words()))
}

async fn plan(drill: &Drill, journal: &Journal, request: &Request) -> Result<(RestorePlan, String), Reason> {
    let plan = restore::plan(&drill.repository, request).await?;
    drill_tablespaces::refuse(&drill.repository, plan.backup.generation, &plan_warnings::segments(&plan)).await?;
    let id = plan.backup.id;
    let mut found = journal.found();
    found.is_newest = found.backup == Some(id);
    found.backup = Some(id);
    Ok((plan.clone(), format!("backup {id} and {} segments of WAL: {}", plan.segments(), plan.proof)))
}

fn settings(drill: &Drill, home: &Path, plan: &RestorePlan) -> Result<ScratchSettings, Reason> {
    let programs = programs_of(drill, plan.backup.postgres_major)?;
    let limits = plan.backup.settings.limits().into_iter().map(|(name, was, default)| (name, was.max(default)));
    let mut limits: BTreeMap<&'static str, u32> = limits.collect();
    // In MB. PostgreSQL wants room for two segments.
    let two_segments = u32::try_from(plan.backup.segment_size >> 19).unwrap_or(u32::MAX);
    limits.insert("min_wal_size", two_segments.max(80));
    limits.insert("max_wal_size", two_segments.max(1024));
    Ok(ScratchSettings { home: home.to_owned(), programs, preload: drill.preload.clone(), limits })
}

/// Where the programs of this version are.
pub(super) fn programs_of(drill: &Drill, major: PgMajor) -> Result<std::path::PathBuf, Reason> {
    programs::directory(major, drill.programs.as_deref(), &drill.path).map_err(|error| {
        let failure = Failure::new(FailureKind::Unsupported, error.to_string());
        Reason::from(
            failure.with_hint(format!("install PostgreSQL {major} here, or name its programs: `cluster.bindir`")),
        )
    })
}

async fn fetch(
    drill: &Drill,
    journal: &Journal,
    settings: &ScratchSettings,
    request: &Request,
    plan: &RestorePlan,
    circumstances: &Circumstances,
    progress: Arc<Progress>,
) -> Result<((), String), Reason> {
    let begun = Instant::now();
    let places = plan.backup.tablespaces.iter().map(|tablespace| {
        (tablespace.location.clone().into(), settings.home.join(format!("tablespace-{}", tablespace.oid)))
    });
    let wanted = Restore {
        repository: drill.repository.clone(),
        request: request.clone(),
        to: settings.home.join(DATA),
        recovery: recovery(drill, request, plan)?,
        tablespaces: places.collect(),
        delta: false,
        discard_wal: false,
        fetching: drill.fetching.clone(),
    };
    let report = restore::run(wanted, plan.clone(), circumstances, progress).await.map_err(|failure| {
        // Its advice is for a directory that stays.
        let hint = failure.hint.clone().filter(|_| failure.kind == FailureKind::Damaged);
        Reason { hint, ..Reason::from(failure) }
    })?;
    let mut found = journal.found();
    found.figures.fetch_seconds = begun.elapsed().as_secs_f64();
    found.figures.restored_bytes = report.bytes;
    Ok(((), format!("{} files, {}, each verified", report.files, size(report.bytes))))
}

fn recovery(drill: &Drill, request: &Request, plan: &RestorePlan) -> Result<RecoverySettings, Reason> {
    let command = match plan.accept_end_at(&request.target) {
        Some(segment) => format!("{} --accept-end-at {segment}", drill.restore_command),
        None => drill.restore_command.clone(),
    };
    let malformed = |e: crate::postgres::Malformed| Failure::new(FailureKind::Usage, e.to_string());
    Ok(RecoverySettings {
        restore_command: command.parse().map_err(malformed)?,
        target: match request.target {
            Target::Time(time) => RecoveryTarget::Time(time),
            _ => RecoveryTarget::Latest,
        },
        inclusive: true,
        timeline: match plan.origin_is_unknown() {
            true => TargetTimeline::Current,
            false => TargetTimeline::Number(plan.timeline),
        },
        action: TargetAction::Promote,
        mode: RestoreMode::Recovery,
        keep_archive_mode: false,
    })
}

async fn recover(
    journal: &Journal,
    settings: &ScratchSettings,
    begun: Instant,
) -> Result<(ScratchServer, String), Reason> {
    let start = Instant::now();
    let mut server = settings.start().map_err(Failure::from)?;
    ready(&mut server).await?;
    let seconds = start.elapsed().as_secs_f64();
    let mut found = journal.found();
    found.figures.replay_seconds = seconds;
    found.figures.total_seconds = begun.elapsed().as_secs_f64();
    Ok((server, "the server has left recovery, and takes writes".to_owned()))
}

/// Waits until it takes writes.
pub(super) async fn ready(server: &mut ScratchServer) -> Result<(), Reason> {
    loop {
        match server.state().map_err(Failure::from)? {
            ScratchState::Ready => return Ok(()),
            ScratchState::Starting => sleep(LOOK).await,
            ScratchState::Ended(status) => {
                let silent = || format!("it ended ({status}) without a word");
                let why = server.settings().complaint().unwrap_or_else(silent);
                let reason = Reason::failed("recovery", format!("the restored server does not recover: {why}"));
                return Err(match why.contains("resource manager") || why.contains("could not access file") {
                    true => {
                        reason.with_hint("`drill.preload` names libraries that it needs; they must be installed here")
                    }
                    false => reason,
                });
            }
        }
    }
}

/// As whoever may do everything. Names of roles are the cluster's own, and any will do to ask for them.
pub(super) async fn log_in(drill: &Drill, settings: &ScratchSettings) -> Result<(String, Recovered), Reason> {
    let mut refusals = Vec::new();
    let mut roles: Vec<String> = drill.role.iter().cloned().chain(roles_in(&settings.data())).collect();
    roles.push("postgres".to_owned());
    roles.dedup();
    for role in &roles {
        for database in ["postgres", "template1"] {
            let session = match settings.session(role, database).await {
                Ok(session) => session,
                Err(error) => {
                    refusals.push(format!("`{role}`: {error}"));
                    continue;
                }
            };
            let recovered = session.recovered().await.map_err(Failure::from)?;
            let first = recovered.superusers.first().cloned();
            let role = Some(role).filter(|role| recovered.superusers.contains(role)).cloned().or(first);
            let nobody = || Reason::failed("login", "no role of the restored server may do everything and log in");
            return Ok((role.ok_or_else(nobody)?, recovered));
        }
    }
    let message = format!("nobody can log in to the restored server: {}", refusals.join("; "));
    Err(Reason { level: super::check::Level::Unknown, ..Reason::failed("login", message) }
        .with_hint("`drill.role` names a role of the cluster that may log in"))
}

/// As the files have it.
fn roles_in(data: &Path) -> Vec<String> {
    let global = data.join("global");
    let map = std::fs::read(global.join("pg_filenode.map")).unwrap_or_default();
    let file = std::fs::read(global.join(role_names::file(&map).to_string())).unwrap_or_default();
    role_names::superusers(&file)
}

fn judge(
    drill: &Drill,
    journal: &Journal,
    circumstances: &Circumstances,
    (promise, plan, request): (&Promise, &RestorePlan, &Request),
    settings: &ScratchSettings,
    recovered: &Recovered,
) -> Result<((), String), Reason> {
    let last = where_it_ended(settings, recovered)?;
    let reached = Place { lsn: last.switch, timeline: last.parent.get(), last_commit: recovered.last_commit };
    let mut found = journal.found();
    found.reached = Some(reached);
    found.figures.replayed_bytes = distance(plan.backup.start_lsn, reached.lsn);
    if let Target::Time(target) = request.target {
        return drill_target::stopped_at(target, &last, &reached).map(|seen| ((), seen));
    }
    if drill.kind != DrillKind::Pitr {
        let age = |commit| circumstances.now.duration_since(commit).as_secs_f64().max(0.0);
        found.figures.loss_seconds = reached.last_commit.map(age);
    }
    let odd = || Failure::new(FailureKind::Damaged, "the backup does not tell how large a WAL segment is");
    let segments = plan.backup.segment_size().ok_or_else(odd)?;
    let SegmentNumber(stop) = segments.ending_at(plan.backup.stop_lsn);
    let stop = segments.name(promise.segment.timeline, SegmentNumber(stop));
    drill_target::kept(promise, &reached, segments, stop).map(|seen| ((), seen))
}

/// PostgreSQL notes in the history of the timeline that it begins where it left the one before, and why.
fn where_it_ended(settings: &ScratchSettings, recovered: &Recovered) -> Result<HistoryEntry, Reason> {
    let timeline = recovered.timeline;
    let path = settings.data().join("pg_wal").join(format!("{:08X}.history", timeline.get()));
    let odd = |why: String| {
        Reason::from(Failure::new(FailureKind::Server, format!("where recovery ended cannot be told: {why}")))
    };
    let text = std::fs::read(&path).map_err(|e| odd(format!("`{}`: {e}", path.display())))?;
    let history = HistoryFile::parse(timeline, &text).map_err(|e| odd(e.to_string()))?;
    let last = history.entries.into_iter().next_back().filter(|last| last.switch != Lsn::INVALID);
    last.ok_or_else(|| odd("its history is empty".to_owned()))
}

/// What is asked of the server, one thing after the other; a failure does not end it.
pub(super) async fn look(
    drill: &Drill,
    journal: &Journal,
    restored: &Restored<'_>,
    now: jiff::Timestamp,
    has_amcheck: bool,
) {
    match (drill_checks::has_program(restored.server, "pg_amcheck"), has_amcheck) {
        (true, true) => {
            journal.look(STRUCTURE, drill_checks::structure(restored, drill.fetching.jobs, drill.deep)).await
        }
        (false, _) => journal.skip(STRUCTURE, "this version of PostgreSQL has no `pg_amcheck` here"),
        (true, false) => journal.skip(STRUCTURE, "the extension `amcheck` is not installed here"),
    }
    journal.look(READ, drill_checks::read_all(restored)).await;
    for assertion in &drill.assertions {
        let name = format!("{ASSERT}{}", assertion.name);
        let work = drill_checks::holds(restored, assertion, now, drill.assertion_deadline);
        journal.look(&name, work).await;
    }
}

/// Stops it in good order.
pub(super) async fn stop(server: &mut ScratchServer) -> Result<(), Reason> {
    server.tell_to_stop();
    loop {
        match server.state().map_err(Failure::from)? {
            ScratchState::Ended(status) if status.success() => return Ok(()),
            ScratchState::Ended(status) => {
                let why = server.settings().complaint().unwrap_or_default();
                return Err(Reason::failed(
                    "server",
                    format!("the restored server did not stop in good order ({status}): {why}"),
                ));
            }
            ScratchState::Ready | ScratchState::Starting => sleep(LOOK).await,
        }
    }
}
