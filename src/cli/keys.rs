//! Every setting there is: one table, from which the file is read, the environment is read, `config show` and
//! `config example` are made.

/// A setting.
#[derive(Debug)]
pub struct Key {
    /// The table in the file.
    pub section: &'static str,
    /// The key in the table.
    pub name: &'static str,
    /// What values look like.
    pub kind: Kind,
    /// The value without a wish; `None`: there is none.
    pub default: Option<&'static str>,
    /// For people.
    pub doc: &'static str,
}

/// What a value looks like in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A string that is never shown.
    Secret,
    /// A string that names a file or directory.
    Path,
    /// `true` or `false`.
    Bool,
    /// A whole number in this range.
    Integer(i64, i64),
    /// A string like `30s` or `5m`.
    Duration,
    /// A string like `30d` or `1y`.
    Age,
    /// A string like `16MiB`.
    Size,
    /// A string like `30m`, or `0s`.
    Delay,
    /// A cron expression in a string.
    Cron,
    /// One of these strings.
    Choice(&'static [&'static str]),
}

impl Key {
    /// `section.name`
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// `PGARK_SECTION__NAME`
    pub fn variable(&self) -> String {
        format!("PGARK_{}__{}", self.section.to_uppercase(), self.name.to_uppercase())
    }
}

const fn key(
    section: &'static str,
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    doc: &'static str,
) -> Key {
    Key { section, name, kind, default, doc }
}

/// How bad it is when a rule of alerts speaks.
const fn rule(name: &'static str, default: &'static str, doc: &'static str) -> Key {
    key("alerts", name, Kind::Choice(&["off", "medium", "high", "critical"]), Some(default), doc)
}

/// All settings, in the order in which the example shows them.
pub const KEYS: &[Key] = &[
    key("cluster", "name", Kind::Text, Some("main"), "The cluster's name in the repository: one for each server."),
    key("cluster", "pgdata", Kind::Path, None, "The data directory, where commands do not run in it."),
    key(
        "cluster",
        "conninfo",
        Kind::Secret,
        None,
        "How to reach the server, as for libpq. Default: libpq's own rules.",
    ),
    key(
        "cluster",
        "bindir",
        Kind::Path,
        None,
        "Where PostgreSQL's own programs are. Default: where packages put them, and PATH.",
    ),
    key("repo", "url", Kind::Text, None, "Where the repository is: `s3://bucket/prefix` or `file:///path`."),
    key("repo", "endpoint", Kind::Text, None, "Another S3 server than AWS: `https://host:port`."),
    key("repo", "region", Kind::Text, None, "Default: AWS_REGION, the profile's, or us-east-1 with an endpoint."),
    key(
        "repo",
        "path_style",
        Kind::Bool,
        None,
        "The bucket in the path, not in the host name. Default: with an endpoint.",
    ),
    key("repo", "ca_file", Kind::Path, None, "Certificates (PEM) to trust instead of the system's."),
    key(
        "repo",
        "credentials",
        Kind::Choice(&["auto", "static", "environment", "profile", "web-identity", "container", "instance"]),
        Some("auto"),
        "Where credentials come from; `auto` takes the first that is configured.",
    ),
    key("repo", "profile", Kind::Text, None, "A profile of the AWS configuration files."),
    key("repo", "access_key_id", Kind::Secret, None, "For credentials in this file."),
    key("repo", "secret_access_key", Kind::Secret, None, "Better: `secret_access_key_file`."),
    key("repo", "secret_access_key_file", Kind::Path, None, "A file whose first line is the secret access key."),
    key("repo", "session_token", Kind::Secret, None, "Of temporary credentials."),
    key("repo", "session_token_file", Kind::Path, None, "A file whose first line is the session token."),
    key("repo", "storage_class", Kind::Text, None, "Such as STANDARD_IA. Never one that must be thawed first."),
    key("repo", "sse", Kind::Choice(&["bucket", "s3", "kms"]), Some("bucket"), "Encryption at rest by the store."),
    key("repo", "sse_kms_key_id", Kind::Text, None, "The key for `sse = \"kms\"`. Default: the bucket's."),
    key("repo", "sign_payload", Kind::Bool, Some("false"), "Sign the body too, for stores that insist."),
    key(
        "repo",
        "conditional_put",
        Kind::Choice(&["auto", "head-then-put"]),
        Some("auto"),
        "`auto`: the store keeps objects from being replaced. See docs/stores.md.",
    ),
    key("repo", "connect_timeout", Kind::Duration, Some("5s"), "For a connection to stand."),
    key(
        "repo",
        "request_timeout",
        Kind::Duration,
        Some("15s"),
        "For an answer to begin, besides the time of an upload.",
    ),
    key("repo", "stall_timeout", Kind::Duration, Some("10s"), "How long a download may give next to nothing."),
    key("repo", "attempts", Kind::Integer(1, 20), Some("3"), "How often a single request is tried."),
    key("repo", "quota", Kind::Size, None, "How much the repository may hold; who watches says when it fills."),
    key("wal", "level", Kind::Integer(1, 19), Some("1"), "zstd level of WAL."),
    key("wal", "jobs", Kind::Integer(1, 64), Some("2"), "Segments that are compressed, or fetched ahead, at once."),
    key(
        "wal",
        "lookahead",
        Kind::Integer(0, 64),
        Some("8"),
        "Segments that wal-push archives ahead of their turn; 0: none.",
    ),
    key("wal", "prefetch", Kind::Integer(0, 64), Some("8"), "Segments that are fetched ahead of a recovery; 0: none."),
    key("wal", "spool", Kind::Path, None, "A private directory for what is done ahead. See docs/ahead.md."),
    key("wal", "push_deadline", Kind::Duration, Some("60s"), "When wal-push gives up; PostgreSQL tries again."),
    key("wal", "stop_deadline", Kind::Duration, Some("3s"), "The same once the server was told to stop."),
    key("wal", "fetch_retry", Kind::Duration, Some("5m"), "How long wal-fetch bears faults; then it stops recovery."),
    key("wal", "standby_retry", Kind::Duration, Some("10s"), "The same on a standby, which then streams."),
    key("wal", "strict_standby", Kind::Bool, Some("false"), "Stop a standby on a fault instead of letting it stream."),
    key("receive", "slot", Kind::Text, Some("pgark"), "The replication slot that wal-receive streams from."),
    key("receive", "create_slot", Kind::Bool, Some("false"), "Make the slot where there is none."),
    key("receive", "flush", Kind::Duration, Some("1s"), "How long received WAL may wait for the next piece."),
    key("receive", "flush_bytes", Kind::Size, Some("1MiB"), "How much of it may."),
    key("receive", "synchronous", Kind::Bool, Some("false"), "Store at once, for commits that wait for it."),
    key("backup", "level", Kind::Integer(1, 19), Some("3"), "zstd level of base backups."),
    key("backup", "jobs", Kind::Integer(1, 64), Some("2"), "Parts that are packed, or restored, at once."),
    key(
        "backup",
        "checkpoint",
        Kind::Choice(&["fast", "spread"]),
        Some("fast"),
        "Whether the checkpoint at the start of a backup hurries.",
    ),
    key(
        "backup",
        "archive_wait",
        Kind::Duration,
        Some("60s"),
        "How long archiving of one segment may take before a backup is begun.",
    ),
    key("backup", "wal_wait", Kind::Duration, Some("10m"), "How long the last WAL of a backup may take to arrive."),
    key("backup", "retry", Kind::Duration, Some("5m"), "How long basebackup and restore bear faults of the store."),
    key("dump", "level", Kind::Integer(1, 19), Some("3"), "zstd level of logical dumps."),
    key(
        "dump",
        "format",
        Kind::Choice(&["custom", "directory"]),
        Some("custom"),
        "How pg_dump writes databases; `directory` needs room below `scratch`.",
    ),
    key(
        "dump",
        "jobs",
        Kind::Integer(1, 64),
        Some("1"),
        "Databases that are dumped at once; with `directory`, workers for one database.",
    ),
    key("dump", "lock_wait", Kind::Duration, Some("10m"), "How long a dump waits for a table that others have locked."),
    key("dump", "retry", Kind::Duration, Some("5m"), "How long dumps bear faults of the store."),
    key("dump", "local_dir", Kind::Path, None, "Where a copy of each dump is kept on this machine, too."),
    key("dump", "local_keep", Kind::Age, None, "How long copies stay there, such as 7d. Default: for ever."),
    key("dump", "scratch", Kind::Path, None, "For dumps that several workers write or read. Default: TMPDIR."),
    key("drill", "directory", Kind::Path, None, "Where drills make their scratch directory. Default: TMPDIR, or /tmp."),
    key(
        "drill",
        "user",
        Kind::Text,
        None,
        "Who drills when root calls them. Default: the owner of the data directory, or postgres.",
    ),
    key(
        "drill",
        "role",
        Kind::Text,
        None,
        "A superuser of the cluster that drills log in as. Default: as its files have it.",
    ),
    key(
        "drill",
        "preload",
        Kind::Text,
        None,
        "Libraries without which the restored server cannot recover, as in shared_preload_libraries.",
    ),
    key(
        "drill",
        "amcheck",
        Kind::Choice(&["standard", "deep"]),
        Some("standard"),
        "Whether each row is looked up in each index, too: `deep`.",
    ),
    key("drill", "sql", Kind::Path, None, "Statements that must hold in a restored server: docs/drill.md."),
    key("drill", "deadline", Kind::Duration, Some("24h"), "How long a drill may take."),
    key("drill", "sql_deadline", Kind::Duration, Some("5m"), "How long one assertion may take."),
    key(
        "drill",
        "nice",
        Kind::Integer(0, 19),
        Some("10"),
        "How much drills stand back for others; with 0 they do not, nor at the disk.",
    ),
    key("objectives", "rpo", Kind::Age, None, "How much work may be lost at most, such as 4h."),
    key("objectives", "rto", Kind::Age, None, "How long a restore may take at most, such as 1h."),
    key("schedule", "basebackup", Kind::Cron, None, "When `serve` takes a base backup, such as `0 1 * * *`."),
    key("schedule", "dump", Kind::Cron, None, "When it dumps all databases."),
    key("schedule", "expire", Kind::Cron, None, "When it deletes what policy no longer wants."),
    key("schedule", "verify", Kind::Cron, None, "When it reads what is stored."),
    key("schedule", "drill_full", Kind::Cron, None, "When it tries a full restore; `drill.full` is the same."),
    key("schedule", "drill_pitr", Kind::Cron, None, "When it tries a restore to a moment; also `drill.pitr`."),
    key("schedule", "drill_disaster", Kind::Cron, None, "When it tries an empty host; also `drill.disaster`."),
    key("schedule", "drill_dump", Kind::Cron, None, "When it tries to restore a dump; also `drill.dump`."),
    key("schedule", "timezone", Kind::Text, Some("UTC"), "Whose clock is meant, such as Europe/Berlin."),
    key("schedule", "jitter", Kind::Delay, Some("0s"), "Each is late by up to so much, always by the same."),
    key("schedule", "catch_up", Kind::Bool, Some("true"), "Run what was missed, once, as soon as it can be."),
    key("serve", "listen", Kind::Text, Some("127.0.0.1:7432"), "Where HTTP is served; `none`: nowhere."),
    key("serve", "token_file", Kind::Path, None, "A file whose first line every request must know."),
    key("serve", "tls_cert", Kind::Path, None, "The certificate and its chain (PEM), for HTTPS."),
    key("serve", "tls_key", Kind::Path, None, "Its private key (PEM)."),
    key("serve", "look", Kind::Duration, Some("1m"), "How often repository and server are looked at."),
    key("serve", "receive", Kind::Bool, Some("false"), "Run `wal-receive` inside, with its settings."),
    key("retention", "keep_full", Kind::Integer(1, 10_000), None, "So many of the newest backups stay."),
    key("retention", "keep_within", Kind::Age, None, "Backups stay that are younger."),
    key("retention", "keep_daily", Kind::Integer(1, 10_000), None, "The newest backup of each of so many days stays."),
    key("retention", "keep_weekly", Kind::Integer(1, 10_000), None, "The same of weeks."),
    key("retention", "keep_monthly", Kind::Integer(1, 10_000), None, "The same of months."),
    key(
        "retention",
        "wal_within",
        Kind::Age,
        None,
        "How far back any moment can be restored. Default: to the oldest backup that stays.",
    ),
    key("retention", "dump_keep_within", Kind::Age, None, "Logical dumps stay that are younger."),
    key("retention", "min_full", Kind::Integer(1, 10_000), Some("1"), "Never fewer backups than these."),
    key("alerts", "webhook_url", Kind::Secret, None, "A URL that takes alerts. Better: `webhook_file`."),
    key("alerts", "webhook_file", Kind::Path, None, "A file whose first line is that URL."),
    key("alerts", "mail_to", Kind::Text, None, "Who gets alerts by mail, separated by commas."),
    key("alerts", "mail_from", Kind::Text, None, "Whom they are from. Default: pgark at this host."),
    key("alerts", "sendmail", Kind::Path, Some("/usr/sbin/sendmail"), "The program that takes mail."),
    key("alerts", "smtp_url", Kind::Text, None, "Instead, a server: `smtp://user@host:587` or `smtps://user@host`."),
    key("alerts", "smtp_password", Kind::Secret, None, "Better: `smtp_password_file`."),
    key("alerts", "smtp_password_file", Kind::Path, None, "A file whose first line is the password there."),
    key("alerts", "command", Kind::Text, None, "A shell's command that takes alerts as JSON on its stdin."),
    key("alerts", "ca_file", Kind::Path, None, "Certificates (PEM) to trust there instead of the system's."),
    key("alerts", "deadline", Kind::Duration, Some("30s"), "How long a message may take on its way."),
    key("alerts", "state", Kind::Path, None, "What remembers what was told. Default: below $STATE_DIRECTORY."),
    key("alerts", "high_after", Kind::Duration, Some("5m"), "How long what is high stands before it is told."),
    key("alerts", "medium_after", Kind::Duration, Some("1h"), "The same of what is medium."),
    key("alerts", "settle", Kind::Duration, Some("5m"), "How long an alert is gone before it counts as resolved."),
    key("alerts", "repeat", Kind::Duration, Some("1h"), "When what stands is told again; then after 2, 4, ... times."),
    key("alerts", "repeat_most", Kind::Duration, Some("24h"), "The longest such pause."),
    key("alerts", "backup_within", Kind::Age, Some("26h"), "How old the newest backup may be, without a schedule."),
    key("alerts", "dump_within", Kind::Age, None, "The same of the newest dump."),
    key("alerts", "drill_within", Kind::Age, None, "The same of the newest drill that passed."),
    key("alerts", "late", Kind::Age, Some("2h"), "How much later than its schedule a run may have ended."),
    key("alerts", "run_within", Kind::Age, Some("1d"), "How long a run may take; later it counts as killed."),
    key("alerts", "clock_tolerance", Kind::Duration, Some("1m"), "How much clocks may differ."),
    key("alerts", "quota_percent", Kind::Integer(1, 100), Some("80"), "Of `quota`, when the store fills."),
    key("alerts", "quota_full_percent", Kind::Integer(1, 100), Some("95"), "Of `quota`, when it is almost full."),
    rule("backup_missing", "critical", "No backup within its time."),
    rule("dump_missing", "critical", "No dump within its time."),
    rule("run_missing", "medium", "No `expire` or `verify` within its time."),
    rule("backup_failed", "high", "The newest base backup failed, or was killed."),
    rule("dump_failed", "high", "The newest dump did."),
    rule("expire_failed", "high", "The newest `expire` did."),
    rule("verify_failed", "high", "The newest `verify` did, or found damage."),
    rule("drill_failed", "high", "The newest drill of a kind did."),
    rule("drill_overdue", "medium", "No drill passed within its time."),
    rule("run_warned", "medium", "The newest run of a kind ended with a warning."),
    rule("loss_window", "critical", "More would be lost than `objectives.rpo`."),
    rule("restore_time", "medium", "A restore takes longer than `objectives.rto`."),
    rule("not_restorable", "critical", "The latest state cannot be restored."),
    rule("gap", "high", "WAL is missing: older moments cannot be restored."),
    rule("damaged", "high", "A backup or a history file is damaged."),
    rule("finding", "medium", "Anything else that `status` finds."),
    rule("archiver", "high", "The server's archiver fails or lags."),
    rule("receiver", "high", "The receiver lags, or its slot is in danger."),
    rule("server", "high", "The server that answers is another cluster."),
    rule("server_unreachable", "off", "The server does not answer."),
    rule("quota", "medium", "The store fills."),
    rule("quota_full", "high", "It is almost full."),
    rule("clock_skew", "medium", "Clocks differ."),
    rule("store_unreachable", "high", "The repository cannot be looked at."),
    key(
        "log",
        "level",
        Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        Some("warn"),
        "What is logged, on stderr.",
    ),
    key("log", "format", Kind::Choice(&["text", "json"]), Some("text"), "How it is logged."),
];

/// The setting of this name.
pub fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::values::check;

    #[test]
    fn every_default_is_valid_and_every_key_once() {
        for (index, key) in KEYS.iter().enumerate() {
            if let Some(default) = key.default {
                check(key, default).unwrap();
            }
            assert!(KEYS[..index].iter().all(|other| other.path() != key.path()), "{}", key.path());
            assert!(key.doc.ends_with('.'), "{}", key.path());
        }
    }
}
