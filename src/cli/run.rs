//! From the words on the command line to an exit code.

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};
use jiff::Timestamp;
use tokio::runtime::{Builder, Runtime};

use super::args::{Cli, Global, Verb, WalFetchArgs, WalPushArgs};
use super::exit::{self, FetchSituation};
use super::logging::{self, LogFormat};
use super::sources::Sources;
use super::{
    about_verbs, alert_verb, backup_verbs, check_verb, drill_verb, dump_verbs, expire_verbs, init, look_verbs,
    metrics_verb, output, prefetch_verb, receive_verb, report_verb, serve_verb, settings, verify_verb,
};
use crate::command::backfill::{self, Backfill};
use crate::command::bounds;
use crate::command::wal_fetch::{self, Fetched, WalFetch};
use crate::command::wal_push::{self, Pushed, WalPush};
use crate::command::{Circumstances, Failure, FailureKind, StoreSettings};
use crate::disk::data_dir::RecoverySignals;
use crate::postgres::WalName;
use crate::postgres::recovery::RecoveryMode;
use crate::repo::Writer;
use crate::storage::s3_client::ConditionalPut;

/// Runs pgark with these words; the result is the exit code. Never panics.
pub fn run(words: Vec<OsString>) -> u8 {
    let texts: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let on_panic = refused(&texts, FailureKind::Internal);
    guard(on_panic, || parsed(words, &texts))
}

/// Turns a panic into the exit code that is safe for the verb.
fn guard(on_panic: u8, work: impl FnOnce() -> u8) -> u8 {
    // A core file of ours would hold credentials, and fill PostgreSQL's disk.
    rustix::process::setrlimit(
        rustix::process::Resource::Core,
        rustix::process::Rlimit { current: Some(0), maximum: Some(0) },
    )
    .ok();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or(String::new(), |at| format!(" at {}:{}", at.file(), at.line()));
        let failure = Failure::new(FailureKind::Internal, format!("a defect of pgark showed itself{place}"));
        output::tell(&failure.with_hint("please report it with this line and what was done"), LogFormat::Text);
    }));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(on_panic)
}

/// The verb on the command line, also on one that clap refuses.
fn verb_among(words: &[String]) -> Option<&str> {
    const VERBS: &[&str] = &[
        "wal-fetch",
        "wal-prefetch",
        "archive-get",
        "wal-push",
        "archive-push",
        "wal-receive",
        "basebackup",
        "backup-push",
        "dump",
        "dump-restore",
        "drill",
        "drill-keeper",
        "restore",
        "list",
        "backup-list",
        "show",
        "status",
        "info",
        "report",
        "verify",
        "expire",
        "serve",
        "keep",
        "unkeep",
        "delete",
        "check",
        "metrics",
        "alert",
        "init",
        "config",
        "completions",
        "man",
    ];
    // A value is not a verb, even if it reads like one.
    const WITH_VALUE: [&str; 8] =
        ["--repo", "--cluster", "-c", "--config", "--pgdata", "--conninfo", "--log-format", "--color"];
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        if WITH_VALUE.contains(&word.as_str()) {
            words.next();
        } else if let Some(verb) = VERBS.iter().copied().find(|verb| word == verb) {
            return Some(verb);
        }
    }
    None
}

/// Whether PostgreSQL may be waiting for a file. A mistyped or forgotten verb must not look like "absent" to it.
fn may_be_a_restore(words: &[String]) -> bool {
    let wants_wal = words.iter().any(|word| word.parse::<WalName>().is_ok());
    let place = |word: &String| word.ends_with("RECOVERYXLOG") || word.ends_with("RECOVERYHISTORY");
    let recovering = || RecoverySignals::read().map_or(true, |signals| signals.mode != RecoveryMode::Unknown);
    wants_wal && (words.iter().any(place) || recovering())
}

/// The code of a call that could not be carried out.
fn refused(words: &[String], kind: FailureKind) -> u8 {
    match verb_among(words) {
        None if may_be_a_restore(words) => exit::STOP_RECOVERY,
        verb => exit::unreadable(verb, kind),
    }
}

fn parsed(words: Vec<OsString>, texts: &[String]) -> u8 {
    let matches = Cli::command().try_get_matches_from(words);
    match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => with_settings(cli),
        Err(error) if error.use_stderr() => {
            let failure = Failure::new(FailureKind::Usage, output::usage_message(&error));
            let verb = verb_among(texts);
            let help = verb.map_or("pgark --help".to_owned(), |verb| format!("pgark {verb} --help"));
            output::tell(&failure.with_hint(format!("see `{help}`")), LogFormat::Text);
            refused(texts, FailureKind::Usage)
        }
        Err(help) => {
            let printed = output::print(&help.render().to_string()).is_ok();
            // As restore_command or archive_command, a call for help restored or archived nothing.
            let about_wal = texts.iter().any(|word| word.parse::<WalName>().is_ok());
            match printed {
                _ if about_wal => refused(texts, FailureKind::Usage),
                true => exit::SUCCESS,
                false => refused(texts, FailureKind::LocalIo),
            }
        }
    }
}

fn with_settings(cli: Cli) -> u8 {
    let verb = cli.verb.word();
    let read = match &cli.verb {
        Verb::Init(args) if !args.new_generation => {
            Sources::read_for_new_file(cli.flag_values(), environment(), &init::file(&cli.global))
        }
        _ => Sources::read(cli.flag_values(), environment(), cli.global.config.as_deref()),
    };
    let sources = match read {
        Ok(sources) => sources,
        Err(failure) => {
            output::tell(&failure, LogFormat::Text);
            return exit::unreadable(Some(verb), failure.kind);
        }
    };
    let format = if sources.get("log.format") == Some("json") { LogFormat::Json } else { LogFormat::Text };
    let level = sources.get("log.level").and_then(|level| level.parse().ok()).unwrap_or(tracing::Level::WARN);
    logging::start(level, format);
    let outcome = match &cli.verb {
        Verb::WalFetch(args) => return fetch(args, &cli.global, &sources, format),
        Verb::WalPrefetch(args) => prefetch_verb::run(args, &sources),
        Verb::WalPush(args) => push(args, &sources),
        Verb::WalReceive(args) => receive_verb::receive(args, &sources),
        Verb::Basebackup(args) => backup_verbs::basebackup(args, &cli.global, &sources),
        Verb::Dump(args) => dump_verbs::dump(args, &cli.global, &sources),
        Verb::DumpRestore(args) => dump_verbs::dump_restore(args, &cli.global, &sources),
        Verb::Restore(args) => backup_verbs::restore(args, &cli.global, &sources),
        Verb::List(args) => look_verbs::list(args, &sources),
        Verb::Show(args) => look_verbs::show(args, &sources),
        Verb::Status(args) => {
            let outcome = look_verbs::status(args, cli.global.color, &sources);
            return outcome.unwrap_or_else(|failure| {
                output::tell(&failure, format);
                exit::unreadable(Some(verb), failure.kind)
            });
        }
        Verb::Report(args) => report_verb::report(args, &sources),
        Verb::Verify(args) => return verify_verb::verify(args, &sources, format),
        Verb::Drill(args) => return drill_verb::drill(args, &cli.global, &sources, format),
        Verb::DrillKeeper(args) => drill_verb::keeper(args),
        Verb::Expire(args) => expire_verbs::expire(args, &sources),
        Verb::Serve(_) => serve_verb::serve(&sources),
        Verb::Keep(args) => expire_verbs::keep(args, &sources),
        Verb::Unkeep(args) => expire_verbs::unkeep(args, &sources),
        Verb::Delete(args) => expire_verbs::delete(args, &sources),
        Verb::Check(args) => return check_verb::check(args, cli.global.color, &sources, format),
        Verb::Metrics(args) => metrics_verb::metrics(args, &sources),
        Verb::Alert(args) => alert_verb::alert(args, &sources),
        Verb::Init(args) => init::run(args, &cli.global, &sources, &circumstances()),
        Verb::Config(verb) => about_verbs::config(verb, &sources),
        Verb::Completions { shell } => about_verbs::completions(*shell),
        Verb::Man => about_verbs::manual(),
    };
    outcome.unwrap_or_else(|failure| {
        output::tell(&failure, format);
        exit::failed(failure.kind)
    })
}

/// Variables that are not text cannot be settings of ours, but a name of ours with such a value must not be passed over.
pub(super) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
}

pub(super) fn circumstances() -> Circumstances {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let writer = Writer { host, pid: std::process::id(), version: env!("CARGO_PKG_VERSION") };
    Circumstances { now: Timestamp::now(), writer }
}

/// Runs asynchronous work on this thread. Whatever threads still do when it is over is abandoned: a hanging disk must not
/// keep us past our deadline.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    block_on_built(&mut Builder::new_current_thread(), work)
}

/// The same for long work on several threads.
pub(super) fn block_on_many<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    block_on_built(Builder::new_multi_thread().worker_threads(2), work)
}

fn block_on_built<T>(builder: &mut Builder, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime: Runtime =
        (builder.enable_all().build()).map_err(|e| Failure::new(FailureKind::LocalIo, format!("cannot start: {e}")))?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}

fn push(args: &WalPushArgs, sources: &Sources) -> Result<u8, Failure> {
    let settings = settings::push(sources)?;
    warn_of_weak_writes(&settings.repository.store);
    let circumstances = circumstances();
    if args.backfill {
        let report = block_on(backfill::run(Backfill { pg_wal: args.path.clone(), settings }, &circumstances))?;
        let printed = match args.json {
            true => output::print_json(&report),
            false => output::print(&output::backfill_text(&report)),
        };
        printed.map_err(cannot_print)?;
        return Ok(if report.failed.is_empty() { exit::SUCCESS } else { 1 });
    }
    let path = args.path.clone().unwrap_or_default();
    let name = match &args.name {
        Some(name) => name.clone(),
        None => path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
    };
    let name: WalName =
        name.parse().map_err(|e: crate::postgres::Malformed| Failure::new(FailureKind::Usage, e.to_string()))?;
    match block_on(wal_push::run(WalPush { path, name, settings }, &circumstances))? {
        Pushed::Archived => tracing::info!("archived `{name}`"),
        Pushed::AlreadyThere => tracing::info!("`{name}` was archived before, with the same content"),
        Pushed::ArchivedAhead => tracing::info!("`{name}` was archived ahead, and has not changed since"),
        Pushed::KeptBeside(key) => tracing::warn!("another `{name}` is archived already; this one is kept as `{key}`"),
    }
    Ok(exit::SUCCESS)
}

fn warn_of_weak_writes(store: &StoreSettings) {
    if let StoreSettings::S3(settings) = store
        && settings.conditional_put == ConditionalPut::HeadThenPut
    {
        tracing::warn!(
            "`conditional_put = \"head-then-put\"`: two writers at the same moment could replace each other's WAL"
        );
    }
}

fn fetch(args: &WalFetchArgs, global: &Global, sources: &Sources, format: LogFormat) -> u8 {
    // Unknown counts as recovery: where the signal files cannot be read, nothing may look like absence.
    let blind = RecoverySignals { mode: RecoveryMode::Recovery, promote: false };
    let (signals, fault) = match RecoverySignals::read() {
        Ok(signals) => (signals, None),
        Err(error) => (blind, Some(Failure::new(FailureKind::LocalIo, error.to_string()))),
    };
    let outcome = match fault {
        Some(failure) => Err(failure),
        None => fetch_command(args, global, sources, signals.mode)
            .and_then(|fetch| block_on(async move { wal_fetch::run(&fetch).await })),
    };
    // A promotion may have been asked for while we tried: then streaming will not take over any more.
    let promote = signals.promote || RecoverySignals::read().map_or(true, |now| now.promote);
    let strict = settings::is_true(sources, "wal.strict_standby");
    match outcome {
        Ok(Fetched::Restored) => {
            tracing::info!("restored `{}`", args.name);
            exit::SUCCESS
        }
        Ok(Fetched::Absent) => {
            tracing::info!("`{}` is not in the repository", args.name);
            exit::ABSENT
        }
        Ok(Fetched::AcceptedEnd { despite }) => {
            tracing::warn!("`{}`: {despite}; recovery ends here, as `--accept-end-at` says", args.name);
            exit::ABSENT
        }
        Err(failure) if signals.mode == RecoveryMode::Unknown && has_own_copy(args, global, sources, &failure) => {
            tracing::warn!("{failure}; PostgreSQL has its own copy of `{}` and goes on with it", args.name);
            exit::ABSENT
        }
        Err(failure) => {
            output::tell(&failure, format);
            exit::fetch_failed(failure.kind, FetchSituation { mode: signals.mode, promote, strict })
        }
    }
}

/// At the end of a promotion, with the signal files gone already, a failure would leave the server on its old timeline.
fn has_own_copy(args: &WalFetchArgs, global: &Global, sources: &Sources, failure: &Failure) -> bool {
    let known = !matches!(failure.kind, FailureKind::Usage | FailureKind::Internal);
    let looked = |fetch: WalFetch| {
        let look = bounds::apart(move || async move { Ok(wal_fetch::server_has_history(&fetch)) });
        block_on(bounds::bounded(look, Some(Duration::from_secs(5)), None)).unwrap_or(false)
    };
    known && fetch_command(args, global, sources, RecoveryMode::Unknown).is_ok_and(looked)
}

fn fetch_command(
    args: &WalFetchArgs,
    global: &Global,
    sources: &Sources,
    mode: RecoveryMode,
) -> Result<WalFetch, Failure> {
    let usage = |e: crate::postgres::Malformed| Failure::new(FailureKind::Usage, e.to_string());
    let budget = if mode == RecoveryMode::Standby { "wal.standby_retry" } else { "wal.fetch_retry" };
    Ok(WalFetch {
        name: args.name.parse().map_err(usage)?,
        path: args.path.clone(),
        repository: settings::repository(sources)?,
        pgdata: settings::pgdata(sources),
        retry: settings::duration(sources, budget)?,
        stall: settings::duration(sources, "repo.stall_timeout")?,
        prefetch: prefetch_verb::settings(args, global, sources, mode)?,
        accept_end_at: args.accept_end_at.as_deref().map(str::parse).transpose().map_err(usage)?,
    })
}

pub(super) fn cannot_print(error: std::io::Error) -> Failure {
    Failure::new(FailureKind::LocalIo, format!("cannot write to stdout: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn a_panic_ends_with_the_code_that_is_safe_for_the_verb() {
        let code = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            guard(refused(&words, FailureKind::Internal), || panic!("on purpose"))
        };
        assert_eq!(code(&["pgark", "wal-fetch"]), 200);
        assert_eq!(code(&["pgark", "wal-push"]), 70);
        assert_eq!(code(&["pgark", "--cluster", "wal-fetch", "wal-push"]), 70);
        assert_eq!(code(&["pgark", "000000010000000000000001", "pg_wal/RECOVERYXLOG"]), 200);
        assert_eq!(guard(70, || 0), 0);
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["pgark", "wal-push"]).is_err());
        assert!(Cli::try_parse_from(["pgark", "wal-push", "--backfill"]).is_ok());
    }

    #[test]
    fn every_verb_is_known_before_clap_reads_it() {
        for command in Cli::command().get_subcommands() {
            for name in std::iter::once(command.get_name()).chain(command.get_all_aliases()) {
                assert_eq!(verb_among(&["pgark".into(), name.to_owned()]), Some(name));
            }
        }
    }
}
