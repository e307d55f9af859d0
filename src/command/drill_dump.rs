//! Drills of logical dumps: the newest one into a fresh cluster. After a disaster its tables are held against those that were restored.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Circumstances;
use super::drill::{Drill, Journal};
use super::drill_checklist::{COMPARE, FETCH, PAGES, PROMISE, REPLAY, SPACE};
use super::drill_checks::{self, Restored};
use super::drill_report::{Reason, size};
use super::drill_restored::{log_in, look, programs_of, ready, stop};
use super::drill_space;
use super::dump_restore::{self, DumpRestore, IntoServer, RestoreTo};
use super::failure::{Failure, FailureKind};
use super::progress::Progress;
use crate::repo::DumpSummary;
use crate::repo::dumps::{DumpState, StoredDump};
use crate::server::scratch::{ScratchServer, ScratchSettings};

/// The role that makes a fresh cluster.
const MAKER: &str = "postgres";
/// A table of the largest size is counted within this time.
const COUNTING: Duration = Duration::from_secs(3600);
/// Tables that are named.
const NAMED: usize = 3;

/// The newest dump that has databases, all of them, and the roles that they need; else the newest that has databases.
pub(super) async fn newest(drill: &Drill) -> Result<Option<DumpSummary>, Failure> {
    let repository = drill.repository.open().await?;
    let dumps = repository.stored_dumps().await?;
    // A damaged one may have been any.
    let fits = |dump: &StoredDump, fits: &dyn Fn(&DumpSummary) -> bool| match dump.summary() {
        Some(summary) => fits(summary),
        None => dump.state != DumpState::Unfinished,
    };
    let newest = |wanted: &dyn Fn(&DumpSummary) -> bool| dumps.iter().rev().find(|dump| fits(dump, wanted));
    let entire = newest(&|dump| !dump.databases.is_empty() && dump.globals && !dump.partial);
    match entire.or_else(|| newest(&|dump| !dump.databases.is_empty() && !dump.partial)) {
        Some(dump) => match (&dump.state, dump.summary()) {
            (DumpState::Damaged(why, _), _) => {
                let message = format!("the newest dump `{}` cannot be restored: {why}", dump.id());
                Err(Failure::new(FailureKind::Damaged, message))
            }
            (_, summary) => Ok(summary.cloned()),
        },
        None => Ok(None),
    }
}

/// Restores the newest dump, and looks at what comes of it.
pub(super) async fn restore_and_look(
    drill: &Drill,
    journal: &Journal,
    home: &Path,
    circumstances: &Circumstances,
    progress: Arc<Progress>,
    begun: Instant,
) -> Result<(), Reason> {
    let asking = async {
        let none = || Failure::new(FailureKind::Unreachable, "there is no dump in the repository");
        let dump = newest(drill).await?.ok_or_else(none)?;
        let mut found = journal.found();
        (found.backup, found.is_newest) = (Some(dump.id), true);
        let words = format!("dump {} of {} databases, begun {}", dump.id, dump.databases.len(), dump.started);
        Ok((dump, words))
    };
    let dump = journal.step(PROMISE, asking).await?;
    let settings = settings(drill, home, &dump)?;
    journal.step(SPACE, async { room(home, &dump).map(|room| ((), room)) }).await?;
    let starting = async { Ok((fresh(&settings).await?, "an empty server takes writes".to_owned())) };
    let mut server = journal.step(REPLAY, starting).await?;
    let fetching = async {
        let fetch = Instant::now();
        let bytes = fill(drill, &settings, &dump, progress).await?;
        let mut found = journal.found();
        found.figures.fetch_seconds = fetch.elapsed().as_secs_f64();
        found.figures.restored_bytes = bytes;
        found.figures.total_seconds = begun.elapsed().as_secs_f64();
        let age = circumstances.now.duration_since(dump.started).as_secs_f64();
        found.figures.loss_seconds = Some(age.max(0.0));
        Ok(((), format!("{} for pg_restore, each part verified", size(bytes))))
    };
    journal.step(FETCH, fetching).await?;
    let (role, recovered) = log_in(drill, &settings).await?;
    let restored = Restored { server: &settings, user: &role, databases: &recovered.databases };
    look(drill, journal, &restored, dump.started, recovered.has_amcheck).await;
    stop(&mut server).await?;
    if recovered.checksums {
        journal.look(PAGES, drill_checks::pages(&settings)).await;
    }
    Ok(())
}

/// Holds the tables of a restored server against those of the newest dump, if there is one.
pub(super) async fn compare(drill: &Drill, journal: &Journal, restored: &Restored<'_>, progress: Arc<Progress>) {
    let dump: Result<DumpSummary, Reason> = match newest(drill).await {
        Ok(None) => return,
        Ok(Some(dump)) => Ok(dump),
        Err(failure) => Err(failure.into()),
    };
    let comparing = async {
        let dump = dump?;
        let settings = settings(drill, &restored.server.home.join("dump"), &dump)?;
        std::fs::create_dir(&settings.home).map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
        room(&settings.home, &dump)?;
        let mut server = fresh(&settings).await?;
        fill(drill, &settings, &dump, progress).await?;
        let mut tables = Tables::default();
        for database in &dump.databases {
            let then = counts(&settings, MAKER, database).await?;
            let now = match restored.databases.contains(database) {
                true => counts(restored.server, restored.user, database).await?,
                false => BTreeMap::new(),
            };
            tables.hold(database, &then, &now);
        }
        stop(&mut server).await?;
        tables.judge(&dump)
    };
    journal.look(COMPARE, comparing).await;
}

/// What was found of the tables of a dump.
#[derive(Debug, Default)]
struct Tables {
    all: usize,
    same: usize,
    /// They had rows, and have none.
    lost: Vec<String>,
}

impl Tables {
    fn hold(&mut self, database: &str, then: &BTreeMap<String, i64>, now: &BTreeMap<String, i64>) {
        for (table, rows) in then {
            let there = now.get(table);
            self.all += 1;
            self.same += usize::from(there == Some(rows));
            if *rows > 0 && there.is_none_or(|there| *there == 0) {
                self.lost.push(format!("`{table}` in `{database}` had {rows}"));
            }
        }
    }

    /// What was written since the dump makes counts differ; that all rows of a table are gone is for a person to judge.
    fn judge(&self, dump: &DumpSummary) -> Result<String, Reason> {
        let seen = format!(
            "{} of {} tables have as many rows as in dump {}, begun {}",
            self.same, self.all, dump.id, dump.started
        );
        if self.lost.is_empty() {
            return Ok(format!("{seen}; the others have rows, too"));
        }
        let some = self.lost.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let message = format!("{} tables have no rows any more: {some}; {seen}", self.lost.len());
        Err(Reason::warning("differs", message).with_hint("if they were emptied or dropped since, take a new dump"))
    }
}

fn settings(drill: &Drill, home: &Path, dump: &DumpSummary) -> Result<ScratchSettings, Reason> {
    let programs = programs_of(drill, dump.postgres_major)?;
    // Nothing is made where the original has its tablespaces. The setting is there from 14.5 on.
    let limits = BTreeMap::from([("allow_in_place_tablespaces", 1)]);
    Ok(ScratchSettings { home: home.to_owned(), programs, preload: drill.preload.clone(), limits })
}

/// A database takes about what its dump takes, and its indexes as much again.
fn room(home: &Path, dump: &DumpSummary) -> Result<String, Reason> {
    drill_space::ask(home, drill_space::MARGIN.saturating_add(dump.plain_bytes.saturating_mul(2)))
}

/// A server with nothing in it.
async fn fresh(settings: &ScratchSettings) -> Result<ScratchServer, Reason> {
    let mut command = settings.program("initdb");
    command.arg("-D").arg(settings.data()).args(["-U", MAKER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
    command.arg("--data-checksums");
    let (made, _) = drill_checks::watch(command, "initdb").await?;
    made?;
    let mut server = settings.start().map_err(Failure::from)?;
    ready(&mut server).await?;
    Ok(server)
}

/// Everything that the dump has; the bytes.
async fn fill(
    drill: &Drill,
    settings: &ScratchSettings,
    dump: &DumpSummary,
    progress: Arc<Progress>,
) -> Result<u64, Reason> {
    let conninfo = settings.conninfo(MAKER, "postgres").map_err(Failure::from)?;
    let into = IntoServer {
        conninfo,
        programs: Some(settings.programs.clone()),
        path: drill.path.clone(),
        into: None,
        tablespaces_in_place: true,
        create: true,
        clean: false,
        tables: Vec::new(),
        jobs: drill.fetching.jobs,
        scratch: settings.home.clone(),
        arguments: Vec::new(),
    };
    let wanted = DumpRestore {
        repository: drill.repository.clone(),
        id: Some(dump.id),
        databases: Vec::new(),
        all: true,
        globals: dump.globals,
        to: RestoreTo::Server(Box::new(into)),
        retry: drill.fetching.retry,
        stall: drill.fetching.stall,
    };
    Ok(dump_restore::run(wanted, progress).await?.bytes)
}

async fn counts(settings: &ScratchSettings, user: &str, database: &str) -> Result<BTreeMap<String, i64>, Reason> {
    let session = settings.session(user, database).await.map_err(Failure::from)?;
    Ok(session.row_counts(COUNTING).await.map_err(Failure::from)?.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_whose_rows_are_all_gone_is_told() {
        let counts = |some: &[(&str, i64)]| some.iter().map(|(name, rows)| ((*name).to_owned(), *rows)).collect();
        let mut tables = Tables::default();
        let then: BTreeMap<_, _> = counts(&[("public.a", 3), ("public.b", 5), ("public.c", 0), ("public.d", 1)]);
        tables.hold("shop", &then, &counts(&[("public.a", 3), ("public.b", 6), ("public.d", 0), ("public.new", 1)]));
        assert_eq!((tables.all, tables.same), (4, 1));
        assert_eq!(tables.lost, ["`public.d` in `shop` had 1"]);
    }
}
