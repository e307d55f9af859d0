//! From sources to the settings of commands: after this nobody sees a text or a missing default.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::alert_settings;
use super::run::block_on;
use super::sources::{Origin, Sources};
use super::{timetable, values};
use crate::command::bounds;
use crate::command::look_ahead::LookAheadSettings;
use crate::command::overview::{Objectives, Watched};
use crate::command::prefetch::{HelperCall, PrefetchSettings};
use crate::command::status::Status;
use crate::command::wal_push::PushSettings;
use crate::command::{Failure, FailureKind, RepositorySettings, StoreSettings};
use crate::repo::Policy;
use crate::server::{ConnectionString, Conninfo, Surroundings};
use crate::storage::s3_client::{ConditionalPut, S3Settings, ServerSideEncryption, Timeouts};
use crate::storage::s3_credentials::{Credentials, Secret};
use crate::storage::{Location, settings_file};

/// The repository.
pub fn repository(sources: &Sources) -> Result<RepositorySettings, Failure> {
    let url = sources.get("repo.url").ok_or_else(|| {
        Failure::new(FailureKind::Usage, "no repository is set")
            .with_hint("give `--repo s3://bucket/prefix` or `--repo file:///path`, or set `url` under `[repo]`")
    })?;
    let location: Location = url.parse().map_err(|why| sources.complain("repo.url", why))?;
    let name = sources.get("cluster.name").unwrap_or_default();
    let cluster = name.parse().map_err(|_| {
        sources.complain("cluster.name", "use letters, digits, `.`, `-` and `_`, at most 100, no dot in front")
    })?;
    let store = match location {
        Location::Local { root } => StoreSettings::Local(root),
        Location::S3 { bucket, prefix } => {
            let settings = S3Settings {
                bucket,
                prefix,
                endpoint: endpoint(sources)?,
                region: text(sources, "repo.region"),
                path_style: sources.get("repo.path_style").and_then(values::boolean),
                ca_file: path(sources, "repo.ca_file"),
                storage_class: text(sources, "repo.storage_class"),
                sse: server_side_encryption(sources)?,
                sign_payload: is_true(sources, "repo.sign_payload"),
                conditional_put: match sources.get("repo.conditional_put") {
                    Some("head-then-put") => ConditionalPut::HeadThenPut,
                    _ => ConditionalPut::ByStore,
                },
                credentials: credentials(sources)?,
                timeouts: Timeouts {
                    connect: duration(sources, "repo.connect_timeout")?,
                    request: duration(sources, "repo.request_timeout")?,
                    stall: duration(sources, "repo.stall_timeout")?,
                    attempts: integer(sources, "repo.attempts")?,
                },
            };
            StoreSettings::S3(Box::new(settings))
        }
    };
    Ok(RepositorySettings { store, cluster })
}

/// How files are archived.
pub fn push(sources: &Sources) -> Result<PushSettings, Failure> {
    Ok(PushSettings {
        repository: repository(sources)?,
        pgdata: pgdata(sources),
        level: integer(sources, "wal.level")?,
        deadline: duration(sources, "wal.push_deadline")?,
        stop_deadline: duration(sources, "wal.stop_deadline")?,
        look_ahead: LookAheadSettings {
            segments: integer(sources, "wal.lookahead")?,
            jobs: integer(sources, "wal.jobs")?,
            spool: path(sources, "wal.spool"),
        },
    })
}

/// What is fetched ahead, by a helper that is called like this.
pub fn prefetch(sources: &Sources, helper: HelperCall) -> Result<PrefetchSettings, Failure> {
    Ok(PrefetchSettings {
        segments: integer(sources, "wal.prefetch")?,
        jobs: integer(sources, "wal.jobs")?,
        spool: path(sources, "wal.spool"),
        helper,
    })
}

/// What `expire` leaves.
pub fn retention(sources: &Sources) -> Result<Policy, Failure> {
    let count = |name: &str| {
        let path = format!("retention.{name}");
        sources.get(&path).is_some().then(|| integer(sources, &path)).transpose()
    };
    let age = |name: &str| sources.get(&format!("retention.{name}")).and_then(values::age);
    Ok(Policy {
        keep_full: count("keep_full")?,
        keep_within: age("keep_within"),
        keep_daily: count("keep_daily")?,
        keep_weekly: count("keep_weekly")?,
        keep_monthly: count("keep_monthly")?,
        wal_within: age("wal_within"),
        min_full: integer(sources, "retention.min_full")?,
        dump_keep_within: age("dump_keep_within"),
    })
}

/// What was promised.
pub fn objectives(sources: &Sources) -> Objectives {
    let age = |path: &str| sources.get(path).and_then(values::age);
    Objectives { rpo: age("objectives.rpo"), rto: age("objectives.rto") }
}

/// What is watched: the repository, and the server unless it is not to be asked.
pub fn watched(sources: &Sources, with_server: bool) -> Result<Watched, Failure> {
    let status = Status {
        repository: repository(sources)?,
        conninfo: if with_server { Some(conninfo(sources)?) } else { None },
        slot: text(sources, "receive.slot").unwrap_or_default(),
        policy: retention(sources)?,
    };
    let quota = sources.get("repo.quota").and_then(values::size);
    let schedules = timetable::schedules(sources, &status.repository.cluster)?;
    let rules = alert_settings::rules(sources)?;
    Ok(Watched { status, objectives: objectives(sources), quota, schedules, rules })
}

/// The data directory: the setting, else PGDATA.
pub fn pgdata(sources: &Sources) -> Option<PathBuf> {
    let from_environment = || std::env::var_os("PGDATA").filter(|value| !value.is_empty()).map(PathBuf::from);
    path(sources, "cluster.pgdata").or_else(from_environment)
}

/// How to reach the server. Looks at the files that libpq looks at, and does not wait for a disk that hangs.
pub fn conninfo(sources: &Sources) -> Result<Conninfo, Failure> {
    const PATH: &str = "cluster.conninfo";
    let given = sources.get(PATH).unwrap_or_default();
    let parsed = ConnectionString::parse(given).map_err(|why| sources.complain(PATH, why))?;
    if parsed.holds_secret() && matches!(sources.origin(PATH), Some(Origin::Flag(_))) {
        let failure = sources.complain(PATH, "must not hold a password: a process listing shows it to everybody");
        return Err(
            failure.with_hint("put it into ~/.pgpass or another `passfile`, or set `conninfo` in the settings file")
        );
    }
    let resolving = bounds::apart(move || async move { Ok(parsed.resolve(&Machine)) });
    let resolved = block_on(bounds::bounded(resolving, Some(Duration::from_secs(10)), None))
        .map_err(|failure| failure.context("the service file, password file or root certificate cannot be read"))?;
    resolved.map_err(|why| sources.complain(PATH, why))
}

/// This machine, as libpq sees it.
struct Machine;

impl Surroundings for Machine {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn file(&self, path: &Path) -> io::Result<(Vec<u8>, u32)> {
        settings_file::read(path).map(|file| (file.bytes, file.mode))
    }

    fn user_id(&self) -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }
}

/// A duration that `values::check` has let pass.
pub fn duration(sources: &Sources, path: &str) -> Result<Duration, Failure> {
    sources.get(path).and_then(values::duration).ok_or_else(|| sources.complain(path, "is not a duration"))
}

/// A size that `values::check` has let pass.
pub fn size(sources: &Sources, path: &str) -> Result<u64, Failure> {
    sources.get(path).and_then(values::size).ok_or_else(|| sources.complain(path, "is not a size"))
}

/// Whether a switch is on.
pub fn is_true(sources: &Sources, path: &str) -> bool {
    sources.get(path) == Some("true")
}

/// A number that `values::check` has let pass.
pub fn integer<T: TryFrom<i64>>(sources: &Sources, path: &str) -> Result<T, Failure> {
    let number = sources.get(path).and_then(|text| text.parse::<i64>().ok());
    number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| sources.complain(path, "is not a number"))
}

fn text(sources: &Sources, path: &str) -> Option<String> {
    sources.get(path).map(str::to_owned)
}

/// A path, if it is set.
pub fn path(sources: &Sources, path: &str) -> Option<PathBuf> {
    sources.get(path).map(PathBuf::from)
}

/// The endpoint may not carry credentials: it appears in messages.
fn endpoint(sources: &Sources) -> Result<Option<String>, Failure> {
    const PATH: &str = "repo.endpoint";
    let given = text(sources, PATH)
        .or_else(|| std::env::var("AWS_ENDPOINT_URL_S3").ok())
        .or_else(|| std::env::var("AWS_ENDPOINT_URL").ok());
    let Some(endpoint) = given.filter(|endpoint| !endpoint.is_empty()) else {
        return Ok(None);
    };
    let rest = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    match rest {
        Some(rest) if rest.contains('@') => Err(sources.complain(PATH, "must not hold credentials")),
        Some(rest) if !rest.trim_end_matches('/').is_empty() && !rest.contains(char::is_whitespace) => {
            Ok(Some(endpoint.trim_end_matches('/').to_owned()))
        }
        _ => Err(sources.complain(PATH, "must be like `https://host:port`")),
    }
}

fn server_side_encryption(sources: &Sources) -> Result<ServerSideEncryption, Failure> {
    let key = text(sources, "repo.sse_kms_key_id");
    match (sources.get("repo.sse"), key) {
        (Some("kms"), key) => Ok(ServerSideEncryption::Kms(key)),
        (_, Some(_)) => Err(sources.complain("repo.sse_kms_key_id", "goes with `sse = \"kms\"` only")),
        (Some("s3"), None) => Ok(ServerSideEncryption::S3),
        _ => Ok(ServerSideEncryption::BucketDefault),
    }
}

fn credentials(sources: &Sources) -> Result<Credentials, Failure> {
    let access_key_id = text(sources, "repo.access_key_id");
    let profile = text(sources, "repo.profile");
    match (sources.get("repo.credentials"), access_key_id) {
        (Some("auto" | "static"), Some(access_key_id)) => {
            let secret_access_key = secret(sources, "repo.secret_access_key")?.ok_or_else(|| {
                sources
                    .complain("repo.access_key_id", "needs `secret_access_key_file` or `secret_access_key` beside it")
            })?;
            let session_token = secret(sources, "repo.session_token")?;
            Ok(Credentials::Static { access_key_id, secret_access_key, session_token })
        }
        (Some("static"), None) => Err(sources.complain("repo.credentials", "`static` needs `access_key_id`")),
        (Some("environment"), _) => Ok(Credentials::Environment),
        (Some("profile"), _) => Ok(Credentials::Profile(profile)),
        (Some("web-identity"), _) => Ok(Credentials::WebIdentity),
        (Some("container"), _) => Ok(Credentials::Container),
        (Some("instance"), _) => Ok(Credentials::Instance),
        _ => Ok(Credentials::Auto { profile }),
    }
}

/// A secret, given here or in a file.
pub fn secret(sources: &Sources, path: &str) -> Result<Option<Secret>, Failure> {
    let file = format!("{path}_file");
    match (sources.get(path), sources.get(&file)) {
        (Some(_), Some(_)) => Err(sources.complain(path, format!("and `{file}` exclude each other"))),
        (Some(text), None) => Ok(Some(Secret::new(text))),
        (None, Some(name)) => Ok(Some(Secret::in_file(name, file))),
        (None, None) => Ok(None),
    }
}
