//! `check` finds what is wrong before it hurts; `init` writes a file that works.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::data_dir::FakeCluster;
use crate::pitr::with_environment;
use crate::postgres::{Account, Cluster, Installation, Scratch};
use crate::program::{Call, Outcome, binary};
use crate::repository::Repository;

fn check(repository: &Repository, words: &[&str], env: &[(&str, &str)]) -> (i32, Value) {
    let call = Call::new(["check", "--json"].iter().chain(words)).impatient().envs(repository.env());
    let outcome = env.iter().fold(call, |call, (name, value)| call.env(name, *value)).run();
    let report = serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome:?}"));
    (outcome.code, report)
}

#[track_caller]
fn level(report: &Value, name: &str) -> String {
    let findings = report["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["check"] == name);
    let finding = finding.unwrap_or_else(|| panic!("no finding about {name} in {report}"));
    if finding["level"] != "OK" {
        assert!(finding["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "no hint: {finding}");
    }
    finding["level"].as_str().unwrap().to_owned()
}

#[test]
fn all_is_well_with_a_server_that_archives() {
    for installation in Installation::all_wanted() {
        for repository in Repository::both() {
            let command = format!("{} wal-push %p %f", binary().display());
            let builder =
                Cluster::builder().installation(installation).archive_command(&command).conf("archive_timeout = 60");
            let cluster = with_environment(builder, &repository).start();
            let conninfo = cluster.endpoint().conninfo();
            let (code, first) = check(&repository, &["--conninfo", &conninfo], &[]);
            // Before the first push there is no identity; the switched segment brings it.
            assert_eq!((code, level(&first, "identity").as_str()), (1, "WARNING"), "{first}");
            assert_eq!(level(&first, "wal-switch"), "OK");
            let (code, report) = check(&repository, &["--conninfo", &conninfo], &[]);
            assert_eq!(code, 0, "{report}");
            assert_eq!(report["schema"], 1);
            for name in
                ["store", "absence", "conditional-writes", "checksums", "clock", "server", "cluster", "archive_command"]
            {
                assert_eq!(level(&report, name), "OK", "{report}");
            }
            assert!(repository.keys().iter().all(|key| !key.contains("record/")), "the probes are gone");
        }
    }
}

#[test]
fn a_server_that_is_set_up_wrong() {
    let repository = Repository::local();
    let cluster = Cluster::builder().conf("archive_command = 'cp %p /nowhere/%f'").conf("wal_level = replica").start();
    let conninfo = cluster.endpoint().conninfo();
    cluster.execute("create table t ()");
    cluster.switch_wal();
    cluster.wait_until("archiving fails", std::time::Duration::from_secs(30), || {
        cluster.value("select failed_count > 0 from pg_stat_archiver") == "t"
    });
    let (code, report) = check(&repository, &["--conninfo", &conninfo, "--within", "1s"], &[]);
    assert_eq!(code, 2, "{report}");
    for name in ["archive_command", "archiver", "wal-switch"] {
        assert_eq!(level(&report, name), "FAIL", "{report}");
    }
    let stranger = FakeCluster::new();
    stranger.segment("000000010000000000000001", 1);
    repository.push(&stranger, "000000010000000000000001").run().quiet_success();
    let (_, report) = check(&repository, &["--conninfo", &conninfo, "--no-switch"], &[]);
    assert_eq!(level(&report, "cluster"), "FAIL", "{report}");
}

/// An object of the right name is no proof: another server may have stored it, or PostgreSQL may not believe it.
#[test]
fn a_segment_counts_when_postgresql_archived_it() {
    let repository = Repository::local();
    let push = format!("{} wal-push %p %f", binary().display());
    let builder = || Cluster::builder().conf("archive_timeout = 60");
    let primary = with_environment(builder().archive_command(&push), &repository).initialise();
    let place = Scratch::new("clone");
    let copy = place.path().join("data");
    let copied = Account::of_servers().run(Command::new("cp").arg("-a").args([primary.data_dir(), &copy])).status();
    assert!(copied.unwrap().success());
    let clone = with_environment(builder(), &repository).on_directory(&copy);
    primary.start();
    for _ in 0..8 {
        primary.execute("select txid_current()");
        primary.switch_wal();
    }
    primary.archive_everything(std::time::Duration::from_secs(60));
    clone.start();
    let (code, report) = check(&repository, &["--conninfo", &clone.endpoint().conninfo(), "--within", "2s"], &[]);
    assert_eq!((code, level(&report, "wal-switch").as_str()), (2, "FAIL"), "{report}");
    assert!(report.to_string().contains("is in the store already"), "{report}");

    // Stored, but the command fails, is killed, or says more than it did.
    for (command, said) in [
        (format!("{push} && false"), "archive_command fails for it"),
        (format!("{push}; kill -9 $$"), "PostgreSQL has not archived it"),
        ("true".to_owned(), "but it is not in the store"),
    ] {
        let repository = Repository::local();
        let cluster = with_environment(builder().archive_command(&command), &repository).start();
        let (code, report) = check(&repository, &["--conninfo", &cluster.endpoint().conninfo(), "--within", "3s"], &[]);
        assert_eq!((code, level(&report, "wal-switch").as_str()), (2, "FAIL"), "{command}: {report}");
        assert!(report.to_string().contains(said), "{command}: {report}");
    }
}

/// The command is read as the shell and this binary read it, and nothing of it is repeated.
#[test]
fn commands_that_do_not_archive_here() {
    let repository = Repository::local();
    let push = format!("{} wal-push %p %f", binary().display());
    let cluster = with_environment(Cluster::builder(), &repository).start();
    let conninfo = cluster.endpoint().conninfo();
    for (command, expected, said) in [
        (format!("{push} || true"), "FAIL", "told of success"),
        (format!("{push} --repo file:///elsewhere"), "FAIL", "archives into file:///elsewhere, cluster `main`"),
        (format!("{push} --cluster other"), "FAIL", "cluster `other`"),
        (format!("PGARK_CLUSTER__NAME=other {push}"), "FAIL", "cluster `other`"),
        (format!("{push} --config /nonexistent/pgark.toml"), "FAIL", "settings cannot be read"),
        (format!("{push} --help"), "FAIL", "asks for help"),
        (push.replace("%p ", ""), "FAIL", "`%p` is missing"),
        (push.replace("wal-push", "wal-fetch"), "FAIL", "its verb is not"),
        ("AWS_SECRET_ACCESS_KEY=CANARY aws s3 cp %p s3://b/%f".to_owned(), "FAIL", "runs `aws`, not"),
        (format!("{push} 2>/dev/null"), "WARNING", "messages elsewhere"),
        (format!("env PGARK_CLUSTER__NAME=main {push}"), "OK", "this binary"),
    ] {
        cluster.execute(&format!("alter system set archive_command = '{command}'"));
        cluster.reload();
        cluster.wait_until("reloaded", std::time::Duration::from_secs(30), || {
            cluster.value("show archive_command") == command
        });
        let (_, report) = check(&repository, &["--conninfo", &conninfo, "--no-switch"], &[]);
        assert_eq!(level(&report, "archive_command"), expected, "{command}: {report}");
        assert!(report.to_string().contains(said) && !report.to_string().contains("CANARY"), "{command}: {report}");
    }
}

/// A command that is killed is not counted as a failure: only the files that wait tell.
#[test]
fn an_archiver_that_fails_without_counting() {
    let repository = Repository::local();
    let cluster = Cluster::builder().conf("archive_timeout = 60").archive_command("kill -9 $$").start();
    let conninfo = cluster.endpoint().conninfo();
    let words = ["--conninfo", &conninfo, "--no-switch"];
    assert_eq!(level(&check(&repository, &words, &[]).1, "archiver"), "WARNING", "nothing was ever archived");
    cluster.execute("select txid_current()");
    let name = cluster.switch_wal();
    let ready = cluster.data_dir().join(format!("pg_wal/archive_status/{name}.ready"));
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(600);
    fs::File::options().append(true).open(ready).unwrap().set_modified(long_ago).unwrap();
    let (code, report) = check(&repository, &words, &[]);
    assert_eq!((code, level(&report, "archiver").as_str()), (2, "FAIL"), "{report}");
    assert_eq!(cluster.value("select failed_count from pg_stat_archiver"), "0");
}

#[test]
fn the_data_directory_that_is_set_is_the_servers() {
    let repository = Repository::local();
    let cluster = Cluster::builder().start();
    let conninfo = cluster.endpoint().conninfo();
    let place = Scratch::new("copy");
    let copy = place.path().join("data");
    fs::create_dir_all(copy.join("global")).unwrap();
    for file in ["global/pg_control", "PG_VERSION"] {
        fs::copy(cluster.data_dir().join(file), copy.join(file)).unwrap();
    }
    let other = FakeCluster::new();
    for (pgdata, expected) in
        [(cluster.data_dir(), "OK"), (&copy, "WARNING"), (other.path(), "FAIL"), (Path::new("/nonexistent"), "FAIL")]
    {
        let pgdata = pgdata.display().to_string();
        let (_, report) = check(&repository, &["--conninfo", &conninfo, "--no-switch", "--pgdata", &pgdata], &[]);
        assert_eq!(level(&report, "pgdata"), expected, "{pgdata}: {report}");
    }
}

/// The first push into such a place is refused: `check` says so before.
#[test]
fn data_without_its_identity_is_a_failure() {
    let cluster = Cluster::builder().start();
    for repository in Repository::both() {
        let other = FakeCluster::new();
        other.segment("000000010000000000000001", 1);
        repository.push(&other, "000000010000000000000001").run().quiet_success();
        repository.remove("main/identity/1.json");
        let (code, report) = check(&repository, &["--conninfo", &cluster.endpoint().conninfo(), "--no-switch"], &[]);
        assert_eq!(code, 2, "{report}");
        for name in ["identity", "cluster"] {
            assert_eq!(level(&report, name), "FAIL", "{report}");
        }
    }
}

/// PostgreSQL 15 and newer have another way to archive, which goes before the command.
#[test]
fn a_library_that_archives_instead_of_the_command() {
    let Some(installation) = Installation::all_wanted().into_iter().find(|found| found.major >= 15) else { return };
    let repository = Repository::local();
    let command = format!("{} wal-push %p %f", binary().display());
    let builder = Cluster::builder().installation(installation).archive_command(&command);
    let cluster = with_environment(builder.conf("archive_library = 'basic_archive'"), &repository).start();
    let conninfo = cluster.endpoint().conninfo();
    let (code, report) = check(&repository, &["--conninfo", &conninfo, "--no-switch"], &[]);
    assert_eq!((code, level(&report, "archive_command").as_str()), (2, "FAIL"), "{report}");
    assert!(report.to_string().contains("archive_library is set"), "{report}");
}

#[test]
fn without_archiving_nothing_is_switched() {
    let repository = Repository::local();
    let cluster = Cluster::builder().conf("archive_mode = off").start();
    let before = cluster.value("select pg_walfile_name(pg_current_wal_insert_lsn())");
    let begun = std::time::Instant::now();
    let (code, report) = check(&repository, &["--conninfo", &cluster.endpoint().conninfo()], &[]);
    assert_eq!((code, level(&report, "wal-switch").as_str()), (2, "UNKNOWN"), "{report}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(20));
    assert_eq!(cluster.value("select pg_walfile_name(pg_current_wal_insert_lsn())"), before);
}

#[test]
fn a_store_that_lacks_something() {
    let no_server = [("PGARK_CLUSTER__CONNINFO", "host=/nonexistent")];
    let with = |change: fn(&Repository)| {
        let repository = Repository::s3();
        change(&repository);
        check(&repository, &["--no-switch"], &no_server).1
    };
    let report = with(|_| {});
    assert_eq!(level(&report, "conditional-writes"), "OK");
    assert_eq!(level(&report, "server"), "UNKNOWN");
    let report = with(|repository| repository.double().honour_conditions(false));
    assert_eq!(level(&report, "conditional-writes"), "FAIL");
    let report = with(|repository| repository.double().reject_conditions(true));
    assert_eq!(level(&report, "write"), "FAIL");
    let report = with(|repository| repository.double().deny_list(true));
    assert_eq!(level(&report, "store"), "FAIL");
    let report = with(|repository| repository.double().read_only(true));
    assert_eq!(level(&report, "write"), "FAIL");
    let report = with(|repository| repository.double().clock_offset(300));
    assert_eq!(level(&report, "clock"), "WARNING");
    let report = with(|repository| repository.double().remove_bucket());
    assert_eq!(level(&report, "store"), "FAIL");
    let report = with(|repository| repository.double().stop_listening());
    assert_eq!(level(&report, "store"), "FAIL");
    let repository = Repository::s3();
    repository.double().honour_conditions(false);
    let weak = [("PGARK_CLUSTER__CONNINFO", "host=/nonexistent"), ("PGARK_REPO__CONDITIONAL_PUT", "head-then-put")];
    let (_, report) = check(&repository, &["--no-switch"], &weak);
    assert_eq!(level(&report, "conditional-writes"), "WARNING");
}

/// A refusal for another reason says nothing about checksums, and the probe is a write like every other.
#[test]
fn the_probe_of_checksums_is_a_normal_write() {
    use crate::double::{Fault, Op, Rule};
    let no_server = [
        ("PGARK_CLUSTER__CONNINFO", "host=/nonexistent"),
        ("PGARK_REPO__SSE", "s3"),
        ("PGARK_REPO__SIGN_PAYLOAD", "true"),
    ];
    let repository = Repository::s3();
    let (_, report) = check(&repository, &["--no-switch"], &no_server);
    assert_eq!(level(&report, "checksums"), "OK", "{report}");
    let requests = repository.double().requests();
    let probe = requests.iter().find(|one| one.operation == "PutObject" && one.key.ends_with("-missing")).unwrap();
    for (name, value) in [("if-none-match", "*"), ("x-amz-server-side-encryption", "AES256")] {
        assert_eq!(probe.header(name), Some(value), "{probe:?}");
    }
    assert_ne!(probe.header("x-amz-content-sha256"), Some("UNSIGNED-PAYLOAD"));
    for (code, expected) in [("InvalidRequest", "UNKNOWN"), ("BadDigest", "OK"), ("XAmzContentChecksumMismatch", "OK")]
    {
        repository.double().clear_faults();
        repository.double().fault(Rule::new(Fault::Error(400, code)).on(Op::Put).key("-missing"));
        let (_, report) = check(&repository, &["--no-switch"], &no_server);
        assert_eq!(level(&report, "checksums"), expected, "{code}: {report}");
    }
}

/// Every line of docs/stores.md that a store must keep has its probe.
#[test]
fn what_stores_must_do_is_tried() {
    use crate::double::{Fault, Op, Rule};
    let no_server = [("PGARK_CLUSTER__CONNINFO", "host=/nonexistent")];
    for repository in Repository::both() {
        let (_, report) = check(&repository, &["--no-switch"], &no_server);
        for name in ["large-objects", "listing", "ranges", "absence", "conditional-writes", "delete"] {
            assert_eq!(level(&report, name), "OK", "{report}");
        }
        assert!(repository.keys().is_empty(), "{:?}", repository.keys());
    }
    let with = |fault: Fault, op: Op, skip: usize| {
        let repository = Repository::s3();
        repository.double().fault(Rule::new(fault).on(op).skip(skip));
        let (_, report) = check(&repository, &["--no-switch"], &no_server);
        assert_eq!(repository.double().open_uploads(), [], "{report}");
        report
    };
    // Completing replaces, where only single writes are conditional.
    let repository = Repository::s3();
    repository.double().complete_ignores_conditions(true);
    let (_, report) = check(&repository, &["--no-switch"], &no_server);
    assert_eq!(level(&report, "conditional-writes"), "OK", "{report}");
    assert_eq!(level(&report, "large-objects"), "FAIL", "{report}");
    let report = with(Fault::Error(501, "NotImplemented"), Op::Complete, 0);
    assert_eq!(level(&report, "large-objects"), "FAIL", "{report}");
    // The first listings are those of `store` and `identity`.
    let report = with(Fault::Status500, Op::List, 3);
    assert_eq!((level(&report, "store").as_str(), level(&report, "listing").as_str()), ("OK", "FAIL"), "{report}");
    // The first reads are those of a missing object and of the whole probe.
    let report = with(Fault::BitFlip(Some(0)), Op::Get, 2);
    assert_eq!((level(&report, "absence").as_str(), level(&report, "ranges").as_str()), ("OK", "FAIL"), "{report}");
}

fn init(words: &[&str], place: &Scratch) -> Outcome {
    Call::new(["init", "--yes"].iter().chain(words)).without("PGARK_CONFIG").within(place.path()).run()
}

#[test]
fn init_writes_a_file_that_works() {
    let place = Scratch::new("init");
    let cluster = FakeCluster::new();
    Account::of_servers().own(cluster.path());
    cluster.segment("000000010000000000000001", 1);
    let repository = Repository::local();
    let file = place.path().join("etc/pgark.toml").display().to_string();
    let pgdata = cluster.path().display().to_string();
    let words = ["--repo", &repository.url(), "--pgdata", &pgdata, "--cluster", "shop", "--config", &file];
    let dry = init(&[&words[..], &["--dry-run"]].concat(), &place);
    assert!(dry.code == 0 && dry.stdout.contains("[repo]") && !fs::exists(&file).unwrap(), "{dry:?}");
    let outcome = init(&words, &place);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stdout.contains(&format!("--config {file} wal-push %p %f'")), "{outcome:?}");
    assert!(outcome.stderr.contains("OK       conditional-writes"), "{outcome:?}");
    let meta = fs::metadata(&file).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o640);
    if meta.uid() == 0 {
        assert_eq!(meta.gid(), Account::of_servers().gid, "the server's user can read it");
    }
    let push = Call::new(["--config", &file, "wal-push", "pg_wal/000000010000000000000001"]).without("PGARK_CONFIG");
    push.within(cluster.path()).run().quiet_success();
    assert!(repository.keys().iter().any(|key| key.starts_with("shop/1/wal/")), "{:?}", repository.keys());
    let again = init(&words, &place);
    assert_eq!(again.code, 2, "{again:?}");
    assert!(again.stderr.contains("is already there"), "{again:?}");
}

#[test]
fn init_says_so_when_the_repository_cannot_be_used() {
    let place = Scratch::new("init");
    let file = place.path().join("pgark.toml").display().to_string();
    let outcome = init(&["--repo", "file:///nonexistent/archive", "--config", &file], &place);
    assert_eq!(outcome.code, 12, "{outcome:?}");
    assert!(outcome.stderr.contains("mkdir -p") && outcome.stdout.contains("archive_command"), "{outcome:?}");
    assert_eq!(init(&["--config", &place.path().join("other.toml").display().to_string()], &place).code, 2);
}

/// A root with a strict umask, and a place with all that shell and PostgreSQL quote.
#[test]
fn what_init_writes_and_prints_works_for_the_server() {
    let place = Scratch::new("init");
    let account = Account::of_servers();
    let repository = Repository::local();
    let Repository::Local(archive) = &repository else { unreachable!() };
    account.own(archive.path());
    let cluster = Cluster::builder().initialise();
    let directory = place.path().join("it's 100% $odd");
    let file = directory.join("deep/pgark.toml").display().to_string();
    let pgdata = cluster.data_dir().display().to_string();
    let mut command = Command::new("sh");
    command.args(["-c", "umask 077; exec \"$0\" \"$@\""]).arg(binary()).args(["init", "--yes", "--config", &file]);
    command.args(["--pgdata", &pgdata]).env_clear().current_dir(place.path());
    // The URL may come from the environment as well; a secret stays there.
    command.env("PGARK_REPO__URL", repository.url()).env("PGARK_REPO__ACCESS_KEY_ID", "CANARY");
    let outcome = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&outcome.stdout), String::from_utf8_lossy(&outcome.stderr));
    assert!(outcome.status.success(), "{stderr}");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(&repository.url()) && !text.contains("CANARY"), "{text}");
    assert!(stderr.contains("`PGARK_REPO__ACCESS_KEY_ID` is not written"), "{stderr}");
    for (path, mode) in [(directory.as_path(), 0o750), (Path::new(&file), 0o640)] {
        let meta = fs::metadata(path).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, mode, "{}", path.display());
        assert!(meta.uid() != 0 || meta.gid() == account.gid, "{}", path.display());
    }
    for line in stdout.lines().filter(|line| !line.starts_with('#')) {
        cluster.configure(line);
    }
    cluster.start();
    cluster.execute("select txid_current()");
    cluster.switch_wal();
    cluster.archive_everything(std::time::Duration::from_secs(60));
    assert!(repository.keys().iter().any(|key| key.starts_with("main/1/wal/")), "{:?}", repository.keys());
}

#[test]
fn init_writes_nothing_that_it_would_refuse_to_read() {
    let place = Scratch::new("init");
    let file = place.path().join("pgark.toml").display().to_string();
    let archive = Repository::local();
    let url = archive.url();
    for conninfo in ["host=/tmp nonsense=1", "sslmode=strict", "password=secret"] {
        let outcome = init(&["--repo", &url, "--config", &file, "--conninfo", conninfo], &place);
        assert!(outcome.code == 2 && !fs::exists(&file).unwrap(), "{outcome:?}");
    }
    // A variable that is no text is none of ours.
    let call = Call::new(["init", "--yes", "--repo", &url, "--config", &file]).without("PGARK_CONFIG");
    let mut command = call.within(place.path()).command();
    command.env("ODD", std::ffi::OsStr::from_bytes(b"\xff"));
    let outcome = command.output().unwrap();
    assert!(fs::exists(&file).unwrap(), "{outcome:?}");
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    if fs::metadata(&file).unwrap().uid() == 0 {
        assert!(said.contains("no data directory is known"), "{said}");
    }
}
