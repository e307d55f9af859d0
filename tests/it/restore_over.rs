//! Restores into directories that are not empty: `--delta` makes an old cluster what a fresh restore is, and everything that
//! could be harmed is refused or left alone.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::backups::{Restored, as_servers_user, restore, restore_call, take_backup};
use crate::ledger::{Expect, Ledger, integrity};
use crate::pitr::{archiving, assert_clean};
use crate::postgres::{Account, Installation, Scratch, StopMode};
use crate::program::Outcome;
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

/// What stands at a path: its mode, and its content, or where it leads.
pub type Tree = BTreeMap<PathBuf, (u32, String)>;

pub fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    look(root, root, &mut found);
    found
}

fn look(root: &Path, place: &Path, found: &mut Tree) {
    for entry in fs::read_dir(place).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let what = match () {
            () if metadata.is_symlink() => format!("-> {}", fs::read_link(&path).unwrap().display()),
            () if metadata.is_file() => format!("{:x?}", Sha256::digest(fs::read(&path).unwrap())),
            () if metadata.is_dir() => "directory".to_owned(),
            () => "something else".to_owned(),
        };
        found.insert(path.strip_prefix(root).unwrap().to_owned(), (metadata.mode() & 0o7777, what));
        if metadata.is_dir() {
            look(root, &path, found);
        }
    }
}

#[track_caller]
pub fn assert_same(one: &Tree, other: &Tree) {
    let differ = one.iter().filter(|(path, what)| other.get(*path) != Some(what));
    let missing = other.iter().filter(|(path, _)| !one.contains_key(*path));
    let wrong: Vec<_> = differ.chain(missing).take(10).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A backup, a restore of it that nobody has started, and an old cluster: another restore that has lived since.
struct Scene {
    repository: Repository,
    ledger: Ledger,
    fresh: Scratch,
    old: Restored,
}

impl Scene {
    fn prepare() -> Self {
        let repository = Repository::local();
        let primary = archiving(&repository, Installation::preferred(), 1);
        let ledger = Ledger::create(&primary);
        ledger.write(30, 5000);
        primary.execute("CREATE TABLE victim AS SELECT g, md5(g::text) FROM generate_series(1, 30000) g");
        take_backup(&repository, &primary, &[]);
        ledger.write(10, 5000);
        primary.archive_everything(A_MINUTE);
        let old = restore(&repository, &[]);
        old.cluster.start();
        old.cluster.wait_promoted(A_MINUTE);
        old.cluster.execute("UPDATE victim SET g = g + 1");
        old.cluster.execute("CREATE TABLE later AS SELECT * FROM victim");
        old.cluster.execute("TRUNCATE victim");
        old.cluster.execute("DROP TABLE ledger");
        let fresh = Scratch::new("fresh");
        as_servers_user(&restore_call(&repository, &fresh.path().join("data"), &[])).code(0);
        Scene { repository, ledger, fresh, old }
    }

    fn data(&self) -> PathBuf {
        self.old.cluster.data_dir().to_owned()
    }

    fn restore(&self, words: &[&str]) -> Outcome {
        as_servers_user(&restore_call(&self.repository, &self.data(), words))
    }

    fn is_as_fresh(&self) {
        assert_same(&tree(&self.data()), &tree(&self.fresh.path().join("data")));
    }
}

fn own(path: &Path) {
    Account::of_servers().own(path);
}

#[test]
fn delta_makes_an_old_cluster_what_a_fresh_restore_is() {
    let scene = Scene::prepare();
    let data = scene.data();
    // A server runs here, or crashed here.
    let before = tree(&scene.fresh.path().join("data"));
    scene.restore(&["--delta"]).code(2).says("postmaster.pid");
    scene.old.cluster.execute("INSERT INTO later SELECT * FROM later");
    scene.old.cluster.kill_9();
    scene.restore(&["--delta"]).code(2).says("postmaster.pid");
    fs::remove_file(data.join("postmaster.pid")).unwrap();
    scene.old.cluster.start();
    scene.old.cluster.stop(StopMode::Fast);
    scene.restore(&[]).code(2).says("is not empty");

    let outside = Scratch::new("outside");
    let theirs = outside.path().join("theirs");
    fs::copy(data.join("base/1/1259"), &theirs).unwrap();
    own(&theirs);
    fs::remove_file(data.join("base/1/1259")).unwrap();
    fs::hard_link(&theirs, data.join("base/1/1259")).unwrap();
    // Same length, another content.
    let mut bytes = fs::read(data.join("base/1/1247")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(data.join("base/1/1247"), bytes).unwrap();
    fs::remove_file(data.join("base/1/1249")).unwrap();
    fs::write(data.join("base/1/1255"), b"short").unwrap();
    fs::set_permissions(data.join("base/1/2619"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::remove_file(data.join("base/1/2610")).unwrap();
    fs::create_dir(data.join("base/1/2610")).unwrap();
    fs::write(data.join("base/1/2610/file"), b"below a directory").unwrap();
    fs::remove_dir_all(data.join("pg_xact")).unwrap();
    for file in ["pg_xact", "base/1/99999999", "note", "standby.signal", "backup_label.old", "pg_wal/RECOVERYXLOG"] {
        fs::write(data.join(file), b"extra").unwrap();
    }
    fs::create_dir_all(data.join("base/77777/deeper")).unwrap();
    fs::write(data.join("base/77777/deeper/1"), b"extra").unwrap();
    symlink(outside.path(), data.join("pg_tblspc/99999")).unwrap();
    symlink("/nowhere", data.join("dangling")).unwrap();
    assert!(Command::new("mkfifo").arg(data.join("fifo")).status().unwrap().success());
    fs::remove_file(data.join("base/1/2611")).ok();
    assert!(Command::new("mkfifo").arg(data.join("base/1/2611")).status().unwrap().success());
    let chown = format!("{0}:{1}", Account::of_servers().uid, Account::of_servers().gid);
    assert!(Command::new("chown").args(["-Rh", &chown]).arg(&data).status().unwrap().success());
    let segments = |data: &Path| fs::read_dir(data.join("pg_wal")).unwrap().count();
    assert!(segments(&data) > 2, "no stale WAL to remove");

    let unharmed = tree(outside.path());
    let outcome = scene.restore(&["--delta", "--json"]).code(0);
    let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert!(report["present_before"].as_u64().unwrap() > 500, "{report}");
    scene.is_as_fresh();
    assert_same(&before, &tree(&scene.fresh.path().join("data")));
    assert_same(&unharmed, &tree(outside.path()));
    scene.old.cluster.start();
    scene.old.cluster.wait_promoted(A_MINUTE);
    scene.ledger.judge(&scene.old.cluster, &Expect::at_least(scene.ledger.tip())).unwrap();
    integrity(&scene.old.cluster).unwrap();
}

#[test]
fn a_directory_that_is_none_of_ours_is_refused_and_left_alone() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    take_backup(&repository, &primary, &[]);
    let foreign = Scratch::new("foreign");
    fs::write(foreign.path().join("thesis"), b"years of work").unwrap();
    own(&foreign.path().join("thesis"));
    let before = tree(foreign.path());
    let to = |path: &Path, words: &[&str]| as_servers_user(&restore_call(&repository, path, words));
    for words in [&[][..], &["--delta"][..]] {
        to(foreign.path(), words).code(2).says("`thesis`");
        to(&foreign.path().join("thesis"), words).code(4);
        to(&foreign.path().join("thesis/data"), words).code(4);
        to(primary.data_dir(), words).code(2).says("postmaster.pid");
        to(Path::new("/proc/pgark"), words).code(4);
    }
    assert_same(&before, &tree(foreign.path()));
    assert!(primary.is_ready());
    assert_clean(&primary);
}

/// Links where the backup has directories and files, planted in the remains of a restore or in an old cluster.
#[test]
fn no_planted_link_leads_out() {
    let scene = Scene::prepare();
    let data = scene.data();
    scene.old.cluster.stop(StopMode::Fast);
    let outside = Scratch::new("outside");
    for file in ["pg_control", "1259", "file", "000000010000000000000001"] {
        fs::write(outside.path().join(file), format!("precious {file}")).unwrap();
    }
    fs::create_dir(outside.path().join("inner")).unwrap();
    fs::write(outside.path().join("inner/1259"), b"precious").unwrap();
    fs::create_dir(outside.path().join("wal")).unwrap();
    let chown = format!("{0}:{1}", Account::of_servers().uid, Account::of_servers().gid);
    assert!(Command::new("chown").args(["-R", &chown]).arg(outside.path()).status().unwrap().success());
    let before = tree(outside.path());

    let file = outside.path().join("file");
    let directory = outside.path();
    let plants: [(&str, &Path); 13] = [
        ("base", directory),
        ("base/1", directory),
        ("global", directory),
        ("pg_tblspc", directory),
        ("pg_tblspc/5", directory),
        ("pg_stat_tmp", directory),
        ("base/1/1259", &file),
        ("global/.pgark-pg_control", &file),
        (".pgark-restoring", &file),
        (".pgark-new-.pgark-restoring", &file),
        ("postgresql.auto.conf", &file),
        (".pgark-new-postgresql.auto.conf", &file),
        (".pgark-new-recovery.signal", &file),
    ];
    for (name, target) in plants {
        let place = data.join(name);
        match place.is_dir() {
            true => fs::remove_dir_all(&place).unwrap(),
            false => drop(fs::remove_file(&place)),
        }
        symlink(target, &place).unwrap();
        let outcome = scene.restore(&["--delta"]);
        assert_eq!(outcome.code, 0, "{name}: {outcome:?}");
        assert_same(&before, &tree(directory));
        scene.is_as_fresh();
    }

    // `pg_wal` may be a link. What it leads to is emptied, and so must not hold anything else.
    fs::remove_dir_all(data.join("pg_wal")).unwrap();
    symlink(directory, data.join("pg_wal")).unwrap();
    scene.restore(&["--delta"]).code(2).says("is no WAL");
    assert_same(&before, &tree(directory));
    fs::remove_file(data.join("pg_wal")).unwrap();
    let wal = directory.join("wal");
    for file in ["000000010000000000000001", "00000002.history", "xlogtemp.7", "RECOVERYXLOG"] {
        fs::write(wal.join(file), b"stale").unwrap();
        own(&wal.join(file));
    }
    symlink(&wal, data.join("pg_wal")).unwrap();
    scene.restore(&["--delta"]).code(0);
    assert_eq!(fs::read_link(data.join("pg_wal")).unwrap(), wal);
    let left: Vec<_> = tree(&wal).into_keys().collect();
    assert!(left.iter().all(|path| ["archive_status", "summaries"].iter().any(|name| path == Path::new(name))));
    scene.old.cluster.start();
    scene.old.cluster.wait_promoted(A_MINUTE);
    scene.ledger.judge(&scene.old.cluster, &Expect::at_least(scene.ledger.tip())).unwrap();
}

/// A restore that was killed between its last two steps leaves its mark in a whole cluster, which may live on for years.
#[test]
fn a_mark_in_a_whole_cluster_gives_no_right_to_it() {
    let scene = Scene::prepare();
    let data = scene.data();
    scene.old.cluster.stop(StopMode::Fast);
    fs::write(data.join(".pgark-restoring"), b"").unwrap();
    own(&data.join(".pgark-restoring"));
    let before = tree(&data);
    scene.restore(&[]).code(2).says("is not empty: a restore came to its last step there, and the cluster is whole");
    assert_same(&before, &tree(&data));
    scene.restore(&["--delta"]).code(0);
    scene.is_as_fresh();
}

/// What is refused is refused before the first change: the old cluster can still be started.
#[test]
fn a_refused_delta_leaves_the_old_cluster_as_it_was() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let (space, full) = (Scratch::new("space"), Scratch::new("full"));
    fs::write(full.path().join("thesis"), b"years of work").unwrap();
    primary.execute(&format!("create tablespace apart location '{}'", space.path().display()));
    primary.execute("create table far tablespace apart as select generate_series(1, 1000) as i");
    take_backup(&repository, &primary, &[]);
    primary.stop(StopMode::Fast);
    let other = archiving(&Repository::local(), Installation::preferred(), 1);
    other.stop(StopMode::Fast);
    let (before, before_other) = (tree(primary.data_dir()), tree(other.data_dir()));

    let map = format!("{}={}", space.path().display(), full.path().display());
    let delta = |to: &Path, words: &[&str]| {
        as_servers_user(&restore_call(&repository, to, &[&["--delta"], words].concat())).code(2)
    };
    delta(primary.data_dir(), &["--tablespace-map", &map]).says("is not empty");
    delta(other.data_dir(), &[]).says("is another cluster");
    let unknown = Scratch::new("unknown");
    let script = "mkdir -m 700 data data/global && echo 19 > data/PG_VERSION && echo x > data/global/pg_control";
    let mut making = Command::new("sh");
    making.args(["-c", script]).current_dir(unknown.path());
    assert!(Account::of_servers().run(&mut making).status().unwrap().success());
    delta(&unknown.path().join("data"), &[]).says("cannot be told");
    assert_same(&before, &tree(primary.data_dir()));
    assert_same(&before_other, &tree(other.data_dir()));
    primary.start();
    assert_eq!(primary.value("select count(*) from far"), "1000");
}

/// Paths that a shell, PostgreSQL and its configuration each read in their own way; a directory that is named by a link, from where the
/// operator stands.
#[test]
fn odd_names() {
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let ledger = Ledger::create(&primary);
    ledger.write(10, 1000);
    take_backup(&repository, &primary, &[]);
    ledger.write(10, 1000);
    primary.archive_everything(A_MINUTE);

    let home = Scratch::new("odd");
    let place = home.path().join(r#"it's "100%p" \ $HOME `odd`"#);
    fs::create_dir(&place).unwrap();
    let (program, settings) = (place.join("pgark"), place.join("set tings.toml"));
    // By another process: a file that is open for writing in one that other tests fork cannot be run.
    assert!(Command::new("cp").arg(crate::program::binary()).arg(&program).status().unwrap().success());
    fs::write(&settings, format!("[repo]\nurl = \"{}\"\n", repository.url())).unwrap();
    symlink(&place, home.path().join("link")).unwrap();
    let chown = format!("{0}:{1}", Account::of_servers().uid, Account::of_servers().gid);
    assert!(Command::new("chown").args(["-Rh", &chown]).arg(home.path()).status().unwrap().success());
    let mut call = Command::new(&program);
    call.args(["restore", "--to", "link/new/da ta", "--config"]).arg(&settings).current_dir(home.path());
    call.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent");
    let outcome = Account::of_servers().run(&mut call).output().unwrap();
    assert!(outcome.status.success(), "{outcome:?}");
    let said = String::from_utf8(outcome.stdout).unwrap();
    let start = said.lines().find_map(|line| line.strip_prefix("start the server to recover: pg_ctl -D ")).unwrap();
    let word = Command::new("sh").arg("-c").arg(format!("printf '%s|' {start}")).output().unwrap().stdout;
    let data = home.path().join("link/new/da ta");
    assert_eq!(String::from_utf8(word).unwrap(), format!("{}|start|", data.display()));

    // Nothing in the server's environment says where the repository is.
    let server = crate::postgres::Cluster::builder().on_directory(&data);
    server.start();
    server.wait_promoted(A_MINUTE);
    ledger.judge(&server, &Expect::at_least(ledger.tip())).unwrap();
    assert_eq!(fs::canonicalize(&data).unwrap(), place.join("new/da ta"));
}
