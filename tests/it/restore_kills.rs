//! Restores that are broken off: PostgreSQL starts on none of the remains, and the same command again brings everything.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::backups::{as_servers_user, restore_call, take_backup};
use crate::kills::{kill_after, seed};
use crate::ledger::{Expect, Ledger};
use crate::pitr::{archiving, assert_clean, with_environment};
use crate::postgres::{Account, Cluster, Installation, Scratch, happens_within, verify_directory};
use crate::program::Call;
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);
/// A server that will not start says so at once.
const REFUSES_WITHIN: Duration = Duration::from_secs(20);

/// PostgreSQL must not start here.
#[track_caller]
pub fn refused_by_postgres(data: &Path) {
    if !data.exists() {
        return;
    }
    let home = Scratch::new("refused");
    let mut command = Installation::preferred().command("postgres");
    command.arg("-D").arg(data).args(["-p", "5999", "-c", "listen_addresses=", "-k"]).arg(home.path());
    let mut server = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let ended = happens_within(REFUSES_WITHIN, || server.try_wait().unwrap().is_some());
    server.kill().ok();
    let outcome = server.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert!(ended && !outcome.status.success(), "PostgreSQL started on half a restore: {said}");
    assert!(!data.join("postmaster.pid").exists(), "{said}");
}

struct Source {
    repository: Repository,
    ledger: Ledger,
    tablespace: Scratch,
    _primary: Cluster,
}

impl Source {
    fn prepare(repository: Repository) -> Self {
        let primary = archiving(&repository, Installation::preferred(), 1);
        let tablespace = Scratch::new("space");
        primary.execute(&format!("CREATE TABLESPACE beside LOCATION '{}'", tablespace.path().display()));
        let ledger = Ledger::create(&primary);
        primary.execute("ALTER TABLE ledger SET TABLESPACE beside");
        ledger.write(200, 20_000);
        take_backup(&repository, &primary, &[]);
        ledger.write(5, 1000);
        primary.archive_everything(A_MINUTE);
        Source { repository, ledger, tablespace, _primary: primary }
    }

    fn call(&self, home: &Path) -> Call {
        let map = format!("{}={}", self.tablespace.path().display(), home.join("space").display());
        restore_call(&self.repository, &home.join("data"), &["--tablespace-map", &map])
    }

    fn has_everything(&self, data: &Path) {
        let restored = with_environment(Cluster::builder(), &self.repository).on_directory(data);
        restored.start();
        restored.wait_promoted(A_MINUTE);
        self.ledger.judge(&restored, &Expect::at_least(self.ledger.tip())).unwrap();
        assert_clean(&restored);
    }
}

fn spawn_as_servers_user(call: &Call) -> std::process::Child {
    let mut command = call.command();
    Account::of_servers().run(command.stdout(Stdio::piped()).stderr(Stdio::piped())).spawn().unwrap()
}

#[test]
fn twenty_five_killed_restores() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut killed = 0;
    for (repository, rounds) in Repository::both().into_iter().zip([13, 12]) {
        let source = Source::prepare(repository);
        let usual = (0..3).map(|_| as_servers_user(&source.call(Scratch::new("s").path())).code(0).took).min().unwrap();
        for round in 0..rounds {
            let home = Scratch::new("s");
            let data = home.path().join("data");
            let code = kill_after(
                spawn_as_servers_user(&source.call(home.path())),
                random.random_range(Duration::ZERO..usual),
            );
            assert!(matches!(code, 0 | 137), "round {round}: {code}");
            let whole = data.join("global/pg_control").exists();
            assert!(whole || code == 137, "round {round}: exit 0 without pg_control");
            if whole {
                // It came so far that nothing was left to do. Nobody restores over a whole cluster by chance.
                as_servers_user(&source.call(home.path())).code(2).says("is not empty");
            } else {
                killed += 1;
                refused_by_postgres(&data);
                as_servers_user(&source.call(home.path())).code(0);
            }
            verify_directory(Installation::preferred(), &data).unwrap_or_else(|why| panic!("round {round}: {why}"));
            if whole || round % 3 == 0 {
                source.has_everything(&data);
            }
        }
    }
    assert!(killed >= 15, "only {killed} of 25 were killed in time");
}

/// Where the tests may not mount, there is no small disk to fill.
#[test]
fn a_full_disk_leaves_nothing_that_starts() {
    let source = Source::prepare(Repository::local());
    let place = Scratch::new("full");
    let mount =
        |options: &str| Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(place.path()).status();
    if !mount("size=12m").is_ok_and(|status| status.success()) {
        eprintln!("not tested: no right to mount a small tmpfs");
        return;
    }
    let mounted = Mounted(place.path());
    Account::of_servers().own(place.path());
    let device = std::fs::metadata(place.path()).unwrap().dev();
    assert_ne!(device, std::fs::metadata(place.path().parent().unwrap()).unwrap().dev());
    let data = place.path().join("data");
    for _ in 0..2 {
        as_servers_user(&source.call(place.path())).code(4).says("No space left").says("is not restored");
        refused_by_postgres(&data);
    }
    assert!(mount("remount,size=300m").unwrap().success());
    as_servers_user(&source.call(place.path())).code(0);
    verify_directory(Installation::preferred(), &data).unwrap();
    source.has_everything(&data);
    drop(mounted);
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0).status().expect("run umount");
    }
}
