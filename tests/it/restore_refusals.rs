//! What a restore refuses, or warns of, before it touches anything: each was found by somebody who tried to do harm.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::backups::{as_servers_user, on_the_host, restore_call, take_backup};
use crate::double::{Fault, Op, Rule};
use crate::pitr::{archiving, with_environment};
use crate::postgres::{Account, Cluster, Installation, Scratch, StopMode};
use crate::program::{Call, Outcome, finish};
use crate::repository::Repository;
use crate::restore_faults::manifest_key;
use crate::restore_over::{assert_same, tree};

const A_MINUTE: Duration = Duration::from_secs(60);

fn start(call: &Call) -> std::process::Child {
    let mut command = call.command();
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    Account::of_servers().run(&mut command).spawn().expect("pgark can be started")
}

fn stopped_primary(repository: &Repository) -> (Cluster, String) {
    let primary = archiving(repository, Installation::preferred(), 1);
    primary.execute("create table t as select generate_series(1, 1000) as i");
    let id = take_backup(repository, &primary, &[]);
    primary.archive_everything(A_MINUTE);
    primary.stop(StopMode::Fast);
    (primary, id)
}

fn delta(repository: &Repository, to: &Path, words: &[&str]) -> Outcome {
    as_servers_user(&restore_call(repository, to, &[&["--delta"], words].concat()))
}

/// `expire` deletes between the plan and the lease: WAL, parts or the manifest. The old cluster can still be started.
#[test]
fn what_is_deleted_behind_the_plan_is_seen_before_anything_is_touched() {
    let repository = Repository::s3();
    let double = repository.double();
    let (primary, id) = stopped_primary(&repository);
    let before = tree(primary.data_dir());
    let of = |part: &str| repository.keys().into_iter().filter(|key| key.contains(part)).collect::<Vec<_>>();
    let wal = of("/wal/");
    let losses = [wal[wal.len() - 3..].to_vec(), of(&format!("{id}/part/")), vec![manifest_key(&id)]];
    for lost in losses {
        let rule = double.fault(Rule::new(Fault::Silence).on(Op::Put).key("record/restore/").once());
        let call = restore_call(&repository, primary.data_dir(), &["--delta"]).env("PGARK_REPO__REQUEST_TIMEOUT", "3s");
        let running = start(&call);
        let begun = Instant::now();
        while double.fired(rule) == 0 {
            assert!(begun.elapsed() < A_MINUTE, "no lease is written");
            std::thread::sleep(Duration::from_millis(5));
        }
        let kept: Vec<_> = lost.iter().map(|key| (key.clone(), repository.object(key).unwrap())).collect();
        lost.iter().for_each(|key| repository.remove(key));
        finish(running)
            .code(18)
            .says("was deleted since the plan was made")
            .says("nothing was written or removed here");
        assert_same(&before, &tree(primary.data_dir()));
        assert_eq!(of("record/restore/"), [] as [String; 0], "a lease of what is not there");
        kept.iter().for_each(|(key, bytes)| repository.put(key, bytes));
        double.clear_faults();
    }
    delta(&repository, primary.data_dir(), &[]).code(0);
}

/// A copy of a data directory has the original's links: under `--delta` its tablespaces are those of the server that lives.
#[test]
fn delta_over_a_copied_directory_leaves_the_originals_tablespaces() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let (space, home) = (Scratch::new("space"), Scratch::new("copy"));
    let place = space.path().display().to_string();
    primary.execute(&format!("create tablespace apart location '{place}'"));
    primary.execute("create table far tablespace apart as select generate_series(1, 1000) as i");
    take_backup(&repository, &primary, &[]);
    primary.archive_everything(A_MINUTE);
    let copy = home.path().join("data");
    let script = "cp -a $0 $1 && rm $1/postmaster.pid";
    let mut copying = Command::new("sh");
    copying.args(["-c", script]).arg(primary.data_dir()).arg(&copy);
    assert!(Account::of_servers().run(&mut copying).status().unwrap().success());

    let before = tree(space.path());
    let map = format!("{place}={place}");
    let running = format!("is in use by the server that runs in `{}`", primary.data_dir().display());
    for words in [&[][..], &["--tablespace-map", &map][..], &["--dry-run"][..]] {
        delta(&repository, &copy, words).code(2).says(&running);
    }
    primary.stop(StopMode::Fast);
    let copied = tree(&copy);
    delta(&repository, &copy, &[]).code(2).says(&format!("say `--tablespace-map {map}`"));
    assert_same(&before, &tree(space.path()));
    assert_same(&copied, &tree(&copy));
    primary.start();
    assert_eq!(primary.value("select count(*) from far"), "1000");
    primary.stop(StopMode::Fast);
    // Its own: named, they are written over.
    delta(&repository, primary.data_dir(), &[]).code(2).says(&map);
    delta(&repository, primary.data_dir(), &["--tablespace-map", &map]).code(0);
    primary.start();
    primary.wait_promoted(A_MINUTE);
    assert_eq!(primary.value("select count(*) from far"), "1000");
}

/// The link `pg_wal` of a copy leads to the WAL of the server that lives. And where it leads nowhere, the disk is not mounted.
#[test]
fn delta_over_a_copied_directory_leaves_the_originals_wal() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let (disk, home) = (Scratch::new("wal"), Scratch::new("copy"));
    primary.stop(StopMode::Fast);
    let wal = disk.path().join("wal");
    let shell = |script: &str, words: [&Path; 2]| {
        let mut command = Command::new("sh");
        command.args(["-ec", script]).args(words);
        assert!(Account::of_servers().run(&mut command).status().unwrap().success(), "{script}");
    };
    shell("cp -a $0/pg_wal $1 && rm -r $0/pg_wal && ln -s $1 $0/pg_wal", [primary.data_dir(), &wal]);
    primary.start();
    primary.execute("create table t as select generate_series(1, 1000) as i");
    take_backup(&repository, &primary, &[]);
    primary.archive_everything(A_MINUTE);
    let copy = home.path().join("data");
    shell("cp -a $0 $1 && rm $1/postmaster.pid", [primary.data_dir(), &copy]);
    let before = tree(&wal);
    let running = format!("which the server uses that runs in `{}`", primary.data_dir().display());
    for words in [&[][..], &["--dry-run"][..], &["--discard-wal"][..]] {
        delta(&repository, &copy, words).code(2).says("`pg_wal`").says(&running);
    }
    assert_same(&before, &tree(&wal));
    primary.kill_9();
    std::fs::remove_file(primary.data_dir().join("postmaster.pid")).unwrap();
    primary.start();
    assert_eq!(primary.value("select count(*) from t"), "1000");
    primary.stop(StopMode::Fast);

    let away = disk.path().join("away");
    std::fs::rename(&wal, &away).unwrap();
    delta(&repository, primary.data_dir(), &[]).code(2).says("`pg_wal`").says("leads to no directory");
    std::fs::rename(&away, &wal).unwrap();
    delta(&repository, primary.data_dir(), &[]).code(0);
    primary.start();
    primary.wait_promoted(A_MINUTE);
    assert_eq!(primary.value("select count(*) from t"), "1000");
    assert_eq!(std::fs::read_link(primary.data_dir().join("pg_wal")).unwrap(), wal);
}

/// PostgreSQL would pass over these without a word: a server that shall wait at the end would be promoted there.
#[test]
fn what_postgresql_would_pass_over_is_refused() {
    let repository = Repository::local();
    let call = |words: &[&str]| restore_call(&repository, Path::new("/nonexistent"), words).run();
    for action in ["pause", "shutdown"] {
        call(&["--target-action", action]).code(2).says("`--target-action").says("target");
    }
    // Of a segment's name this is 16, in decimal 10.
    call(&["--target-timeline", "00000010"]).code(2).says("`00000010` is not `latest`, `current` or a number");
    for words in [["--target-timeline", "1"], ["--target-action", "pause"]] {
        call(&[&["--standby"], &words[..]].concat()).code(2).says("--standby").says(words[0]);
    }
}

/// Segments that PostgreSQL could not archive are in `pg_wal` alone, which `--delta` empties.
#[test]
fn delta_asks_before_it_loses_wal() {
    for repository in Repository::both() {
        let primary = archiving(&repository, Installation::preferred(), 1);
        take_backup(&repository, &primary, &[]);
        primary.archive_everything(A_MINUTE);
        // The archiver would hear of a reload later than a session does.
        primary.stop(StopMode::Fast);
        primary.configure("archive_command = 'false'");
        primary.start();
        primary.execute("create table late as select generate_series(1, 1000) as i");
        let last = primary.switch_wal();
        primary.stop(StopMode::Fast);
        let waiting = primary.data_dir().join(format!("pg_wal/archive_status/{last}.ready"));
        assert!(waiting.exists(), "{}", waiting.display());

        let before = tree(primary.data_dir());
        for words in [&[][..], &["--dry-run"][..]] {
            delta(&repository, primary.data_dir(), words).code(2).says(&last).says("wal-push --backfill");
        }
        assert_same(&before, &tree(primary.data_dir()));
        let pgdata = primary.data_dir().display().to_string();
        let backfill = Call::new(["wal-push", "--backfill", "--pgdata", &pgdata]).envs(repository.env());
        assert_eq!(as_servers_user(&backfill).code, 0);
        assert!(waiting.exists(), "only the server takes it away");
        delta(&repository, primary.data_dir(), &["--dry-run"]).code(0);
        // As if it had not been archived.
        let key = repository.keys().into_iter().find(|key| key.contains(&last)).unwrap();
        repository.remove(&key);
        delta(&repository, primary.data_dir(), &[]).code(2).says(&last);
        delta(&repository, primary.data_dir(), &["--discard-wal"]).code(0);
        assert!(!waiting.exists());
    }
}

/// `--dry-run` refuses what the restore would refuse, and only looks.
#[test]
fn a_dry_run_looks_at_the_place() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    take_backup(&repository, &primary, &[]);
    primary.archive_everything(A_MINUTE);
    let home = Scratch::new("place");
    let fresh = home.path().join("fresh");
    let dry =
        |to: &Path, words: &[&str]| as_servers_user(&restore_call(&repository, to, &[&["--dry-run"], words].concat()));
    dry(primary.data_dir(), &[]).code(2).says("postmaster.pid");
    dry(primary.data_dir(), &["--delta"]).code(2).says("postmaster.pid");
    dry(&fresh, &["--tablespace-map", "/nowhere=/x"]).code(2).says("has no tablespace at `/nowhere`");
    dry(&fresh, &[]).quiet_success();
    assert!(!fresh.exists());
    primary.stop(StopMode::Fast);
    dry(primary.data_dir(), &[]).code(2).says("is not empty");
    dry(primary.data_dir(), &["--delta"]).quiet_success();
    let closed = home.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    // Whoever may read the repository may make a plan.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    dry(&closed, &[]).code(0).says("whether this place can be used is not known");
}

/// What a configuration brings along that would hang the server, start another one, or keep it from recovering.
#[test]
fn the_configuration_of_the_original_is_looked_through() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let conf = primary.data_dir().join("postgresql.conf");
    let plain = std::fs::read_to_string(&conf).unwrap();
    primary.configure("max_connections = 150");
    primary.stop(StopMode::Fast);
    primary.start();
    // As if these had been given on the command line: the server has them, the files do not.
    let unset = |line: &&str| !line.trim_start().starts_with("max_connections");
    let lines: String = plain.lines().filter(unset).map(|line| format!("{line}\n")).collect();
    let original = primary.data_dir().display();
    let more = format!(
        "include_dir 'more'\nsynchronous_standby_names = 'gone'\nrecovery_min_apply_delay = '1h'\n\
         data_directory = '{original}'\nhba_file = '{original}/pg_hba.conf'\n"
    );
    Account::of_servers().write(&conf, &format!("{lines}{more}"));
    let included = primary.data_dir().join("more");
    std::fs::create_dir(&included).unwrap();
    Account::of_servers().own(&included);
    Account::of_servers().write(&included.join("a.conf"), "Max_Wal_Senders = 3\n");
    take_backup(&repository, &primary, &[]);
    primary.execute("create table late as select 1 as i");
    primary.archive_everything(A_MINUTE);

    let home = Scratch::new("s");
    let data = home.path().join("data");
    let there = data.display();
    let outcome = as_servers_user(&restore_call(&repository, &data, &[]));
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let outcome = outcome
        .says("`max_connections` is not set, which means 100, but was 150")
        .says("`max_wal_senders` is 3, but was")
        .says("`synchronous_standby_names` is `gone`")
        .says(&format!("`data_directory` is `{original}`"))
        .says(&format!("`hba_file` is `{original}/pg_hba.conf`"));
    let start = format!("pg_ctl -D {there} -o '-c data_directory={there}' start");
    assert!(outcome.stdout.contains(&start), "{outcome:?}");
    assert!(!outcome.stderr.contains("recovery_min_apply_delay"), "{outcome:?}");
    let named = format!("data_directory={there}");
    let mut asking = Installation::preferred().command("postgres");
    let told = asking.arg("-D").arg(&data).args(["-c", &named, "-C", "data_directory"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout).trim(), there.to_string(), "{told:?}");

    let server = with_environment(Cluster::builder(), &repository)
        .conf(format!("data_directory = '{there}'"))
        .conf(format!("hba_file = '{there}/pg_hba.conf'"))
        .conf("synchronous_standby_names = ''")
        .conf("max_connections = 150")
        .conf("max_wal_senders = 20")
        .on_directory(&data);
    server.start();
    // The delay is of an hour.
    server.wait_promoted(A_MINUTE);
    assert_eq!(server.value("select i from late"), "1");

    let silent = home.path().join("silent");
    Account::of_servers().write(&primary.data_dir().join("postgresql.auto.conf"), "archive_mode = 'off'\n");
    take_backup(&repository, &primary, &[]);
    primary.archive_everything(A_MINUTE);
    let words = ["--archive-mode", "keep", "--dry-run"];
    assert_eq!(as_servers_user(&restore_call(&repository, &silent, &words)).code, 0);
    let outcome = as_servers_user(&restore_call(&repository, &silent, &words[..2]));
    assert_eq!(outcome.says("`archive_mode` is `off`").code, 0);

    let standby = home.path().join("standby");
    let outcome = as_servers_user(&restore_call(&repository, &standby, &["--standby"]));
    assert_eq!(outcome.says("`recovery_min_apply_delay` is `1h`").code, 0);
    assert!(primary.is_ready());
}

/// A cluster that its group may read stays so.
#[test]
fn group_access_comes_back() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let home = Scratch::new("s");
    let restored = |name: &str| {
        let data = home.path().join(name);
        as_servers_user(&restore_call(&repository, &data, &[])).code(0);
        [mode(&data), mode(&data.join("postgresql.auto.conf"))]
    };
    take_backup(&repository, &primary, &[]);
    primary.archive_everything(A_MINUTE);
    assert_eq!(restored("private"), [0o700, 0o600]);
    primary.stop(StopMode::Fast);
    std::fs::set_permissions(primary.data_dir(), std::fs::Permissions::from_mode(0o750)).unwrap();
    primary.start();
    take_backup(&repository, &primary, &[]);
    primary.archive_everything(A_MINUTE);
    assert_eq!(restored("local"), [0o750, 0o640]);
    // Over the protocol only what lies below tells.
    std::fs::set_permissions(primary.data_dir().join("base"), std::fs::Permissions::from_mode(0o750)).unwrap();
    take_backup(&repository, &primary, &["--remote"]);
    primary.archive_everything(A_MINUTE);
    assert_eq!(restored("remote"), [0o750, 0o640]);
    let server = with_environment(Cluster::builder(), &repository).on_directory(&home.path().join("remote"));
    server.start();
    server.wait_promoted(A_MINUTE);
}

/// Said before the first byte is copied, not after the last.
#[test]
fn a_label_is_one_line() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    for label in ["two\nlines", "a\rb", "a\tb"] {
        let call = on_the_host(&repository, &primary, &["basebackup", "--label", label]);
        as_servers_user(&call).code(2).says("the label has a line break or another control character");
    }
    assert!(repository.keys().iter().all(|key| !key.contains("/backup/")), "{:?}", repository.keys());
}

/// Replay makes a tablespace where the original had it, whatever the map says: two servers on one host would share its files.
#[test]
fn the_plan_names_tablespaces_that_the_wal_creates() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let (before, after) = (Scratch::new("before"), Scratch::new("after"));
    primary.execute(&format!("create tablespace early location '{}'", before.path().display()));
    take_backup(&repository, &primary, &[]);
    let plan = |words: &[&str]| {
        let words = [&["--dry-run", "--tablespace-map"], words].concat();
        restore_call(&repository, Path::new("/nonexistent"), &words).run().quiet_success().stdout
    };
    let map = format!("{}=/nowhere", before.path().display());
    let none = plan(&[&map]);
    assert!(!none.contains("creates a tablespace"), "{none}");
    primary.execute(&format!("create tablespace late location '{}'", after.path().display()));
    primary.archive_everything(A_MINUTE);
    let named = format!("creates a tablespace at `{}`", after.path().display());
    let text = plan(&[&map]);
    assert!(text.contains(&named) && text.contains("to /nowhere\n"), "{text}");
    assert!(!text.contains(&format!("creates a tablespace at `{}`", before.path().display())), "{text}");
    let json: serde_json::Value = serde_json::from_str(&plan(&[&map, "--json"])).unwrap();
    assert!(json["warnings"][0].as_str().unwrap().contains(&named), "{json}");
    assert_eq!(json["tablespaces"][0]["to"], "/nowhere");
    let immediate = plan(&[&map, "--target-immediate"]);
    assert!(!immediate.contains("creates a tablespace"), "{immediate}");
}

/// A standby's backup ends by the standby's clock, commits have the primary's.
#[test]
fn the_plan_says_by_whose_clock_a_backup_ended() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let backup = primary.base_backup();
    let standby = with_environment(Cluster::builder(), &repository).on_copy_of(&backup);
    standby.configure_standby("false", Some(&primary.endpoint().conninfo()));
    standby.start();
    let doubted = |cluster: &Cluster| {
        // The standby cannot end the last segment of its backup.
        let busy = std::sync::atomic::AtomicBool::new(true);
        let id = std::thread::scope(|scope| {
            scope.spawn(|| {
                while busy.load(std::sync::atomic::Ordering::SeqCst) {
                    primary.execute("create table if not exists t (i int); insert into t values (1); checkpoint");
                    primary.switch_wal();
                    std::thread::sleep(Duration::from_millis(200));
                }
            });
            let id = take_backup(&repository, cluster, &[]);
            busy.store(false, std::sync::atomic::Ordering::SeqCst);
            id
        });
        primary.execute("insert into t values (2)");
        let time =
            primary.value("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
        primary.execute("insert into t values (3)");
        primary.archive_everything(A_MINUTE);
        let call = restore_call(&repository, Path::new("/nonexistent"), &[&id, "--dry-run", "--target-time", &time]);
        call.run().quiet_success().stdout.contains("by the clock of the standby that it was taken from")
    };
    assert!(doubted(&standby));
    assert!(!doubted(&primary));
}
