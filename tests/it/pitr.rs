//! Point-in-time recovery from a plain pg_basebackup through wal-fetch, judged by the ledger: every kind of target, on a
//! directory and on S3, across a promotion, with several segment sizes, on every wanted major.

use std::time::Duration;

use crate::ledger::{Expect, Ledger, Mark, integrity, unexplained};
use crate::postgres::{BaseBackup, Cluster, ClusterBuilder, Installation, Recovery, RecoveryTarget};
use crate::program::binary;
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

pub fn archive_command() -> String {
    format!("{} wal-push %p %f", binary().display())
}

pub fn restore_command() -> String {
    format!("{} wal-fetch %f %p", binary().display())
}

/// The settings of a server that archives into `repository` and recovers from it.
pub fn with_environment(builder: ClusterBuilder, repository: &Repository) -> ClusterBuilder {
    let settings = [("PGARK_CONFIG", "/dev/null"), ("PGARK_LOG__LEVEL", "info"), ("AWS_EC2_METADATA_DISABLED", "true")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    repository.env().into_iter().chain(settings).fold(builder, |builder, (name, value)| builder.env(name, value))
}

/// A server that archives through pgark.
pub fn archiving(repository: &Repository, installation: &'static Installation, segment_mib: u32) -> Cluster {
    let builder = Cluster::builder().installation(installation).wal_segment_mib(segment_mib);
    with_environment(builder.archive_command(&archive_command()), repository).start()
}

/// A copy of the backup that is set up to recover, and not started yet.
pub fn prepared(repository: &Repository, backup: &BaseBackup, recovery: &Recovery) -> Cluster {
    let cluster = with_environment(Cluster::builder(), repository).on_copy_of(backup);
    cluster.configure_recovery(recovery);
    cluster
}

fn recovered(repository: &Repository, backup: &BaseBackup, recovery: &Recovery) -> Cluster {
    let cluster = prepared(repository, backup, recovery);
    cluster.start();
    cluster.wait_promoted(A_MINUTE);
    cluster
}

fn to(target: RecoveryTarget) -> Recovery {
    Recovery::new(restore_command(), target)
}

/// No warning and no error of pgark, and no unexplained death of the server.
pub fn assert_clean(cluster: &Cluster) {
    let log = cluster.log();
    assert_eq!(unexplained(&log, &[]), [""; 0]);
    let complaints: Vec<&str> =
        log.lines().filter(|line| line.contains("pgark: warning") || line.contains("pgark: error")).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}

/// An archiving server after an accident. It has a backup, and the moment before the accident is wanted back.
pub struct Accident<B> {
    pub primary: Cluster,
    pub ledger: Ledger,
    pub backup: B,
    pub mark: Mark,
}

/// The name of its restore point.
pub const BEFORE_THE_ACCIDENT: &str = "before the accident";

impl<B> Accident<B> {
    pub fn on(
        repository: &Repository,
        installation: &'static Installation,
        back_up: impl FnOnce(&Cluster) -> B,
    ) -> Self {
        let primary = archiving(repository, installation, 1);
        let ledger = Ledger::create(&primary);
        ledger.write(20, 3000);
        let backup = back_up(&primary);
        ledger.write(30, 20_000);
        let mark = ledger.restore_point(BEFORE_THE_ACCIDENT);
        ledger.write(20, 20_000);
        primary.archive_everything(A_MINUTE);
        Accident { primary, ledger, backup, mark }
    }
}

#[test]
fn every_target_on_a_directory_and_on_s3() {
    for installation in Installation::all_wanted() {
        for repository in Repository::both() {
            every_target(&repository, installation);
        }
    }
}

fn every_target(repository: &Repository, installation: &'static Installation) {
    let Accident { primary, ledger, backup, mark } = Accident::on(repository, installation, Cluster::base_backup);
    let targets = [
        RecoveryTarget::Time(mark.time.clone()),
        RecoveryTarget::Lsn(mark.position.lsn),
        RecoveryTarget::Xid(mark.xid.clone()),
        RecoveryTarget::Name(BEFORE_THE_ACCIDENT.into()),
    ];
    for target in targets {
        let restored = recovered(repository, &backup, &to(target.clone()));
        ledger.judge(&restored, &Expect::exactly(&mark)).unwrap_or_else(|why| panic!("{target:?}: {why}"));
        assert_clean(&restored);
        integrity(&restored).unwrap();
    }
    let immediate = recovered(repository, &backup, &to(RecoveryTarget::Immediate));
    assert!(ledger.judge(&immediate, &Expect::exactly(&mark)).is_err(), "immediate ends before the mark");
    assert_clean(&immediate);
    integrity(&immediate).unwrap();
    let latest = recovered(repository, &backup, &to(RecoveryTarget::Latest));
    ledger.judge(&latest, &Expect::at_least(ledger.tip())).unwrap();
    assert_clean(&latest);
    integrity(&latest).unwrap();
    assert_clean(&primary);
}

#[test]
fn across_a_promotion() {
    for installation in Installation::all_wanted() {
        for repository in Repository::both() {
            promotion(&repository, installation);
        }
    }
}

/// Timeline 1, a recovery that is promoted to timeline 2 and goes on archiving, then restores over the switch, and back
/// onto timeline 1.
fn promotion(repository: &Repository, installation: &'static Installation) {
    let primary = archiving(repository, installation, 1);
    let ledger = Ledger::create(&primary);
    ledger.write(10, 20_000);
    let backup = primary.base_backup();
    ledger.write(20, 20_000);
    let fork = ledger.mark();
    ledger.write(20, 20_000);
    primary.archive_everything(A_MINUTE);
    let end_of_first = ledger.tip();

    let second = with_environment(Cluster::builder(), repository).on_copy_of(&backup);
    second.configure_recovery(&to(RecoveryTarget::Lsn(fork.position.lsn)).archiving());
    second.start();
    second.wait_promoted(A_MINUTE);
    assert_eq!(second.timeline(), 2);
    ledger.attach(&second);
    ledger.write(30, 20_000);
    let mark = ledger.mark();
    ledger.write(10, 20_000);
    second.archive_everything(A_MINUTE);
    assert!(repository.keys().iter().any(|key| key.ends_with("00000002.history.zst")), "{:?}", repository.keys());

    let latest = recovered(repository, &backup, &to(RecoveryTarget::Latest));
    ledger.judge(&latest, &Expect::at_least(ledger.tip())).unwrap();
    assert_eq!(latest.timeline(), 3);
    assert_clean(&latest);
    let at_time = recovered(repository, &backup, &to(RecoveryTarget::Time(mark.time.clone())));
    ledger.judge(&at_time, &Expect::exactly(&mark)).unwrap();
    assert_clean(&at_time);
    let first = recovered(repository, &backup, &to(RecoveryTarget::Latest).on_timeline(1));
    ledger.judge(&first, &Expect::at_least(end_of_first)).unwrap();
    assert_clean(&first);
}

#[test]
fn with_large_segments() {
    for installation in Installation::all_wanted() {
        for (segment_mib, repository) in
            [(16, Repository::s3()), (64, Repository::local()), (16, Repository::local()), (64, Repository::s3())]
        {
            let primary = archiving(&repository, installation, segment_mib);
            let ledger = Ledger::create(&primary);
            ledger.write(10, 1000);
            let backup = primary.base_backup();
            ledger.write(30, 50_000);
            primary.switch_wal();
            ledger.write(10, 1000);
            let mark = ledger.mark();
            ledger.write(5, 1000);
            primary.archive_everything(A_MINUTE);
            let at_time = recovered(&repository, &backup, &to(RecoveryTarget::Time(mark.time.clone())));
            ledger.judge(&at_time, &Expect::exactly(&mark)).unwrap();
            assert_clean(&at_time);
            let latest = recovered(&repository, &backup, &to(RecoveryTarget::Latest));
            ledger.judge(&latest, &Expect::at_least(ledger.tip())).unwrap();
            assert_clean(&latest);
        }
    }
}

/// A standby that lives on the archive alone, through an outage, until it is promoted.
#[test]
fn a_standby_that_follows_the_archive() {
    let repository = Repository::s3();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let ledger = Ledger::create(&primary);
    ledger.write(10, 1000);
    let backup = primary.base_backup();
    let standby = with_environment(Cluster::builder(), &repository)
        .env("PGARK_WAL__STANDBY_RETRY", "1s")
        .conf("wal_retrieve_retry_interval = '200ms'")
        .on_copy_of(&backup);
    standby.configure_standby(&restore_command(), None);
    standby.start();
    ledger.write(10, 20_000);
    primary.archive_everything(A_MINUTE);
    let caught_up = || ledger.judge(&standby, &Expect::at_least(ledger.tip())).is_ok();
    standby.wait_until("the standby has caught up", A_MINUTE, caught_up);
    repository.double().stop_listening();
    std::thread::sleep(Duration::from_secs(4));
    assert!(standby.is_running() && standby.is_in_recovery(), "an outage must not end a standby");
    repository.double().resume_listening();
    ledger.write(10, 20_000);
    primary.archive_everything(A_MINUTE);
    standby.wait_until("the standby has caught up again", A_MINUTE, caught_up);
    primary.kill_9();
    standby.promote();
    standby.wait_promoted(A_MINUTE);
    ledger.judge(&standby, &Expect::at_least(ledger.tip())).unwrap();
    assert_eq!(standby.timeline(), 2);
}

/// The dead primary had not archived its last segments; the standby streamed them and marked them done.
#[test]
fn backfill_after_a_failover_closes_the_gap() {
    let repository = Repository::local();
    let builder = Cluster::builder().archive_command(&archive_command());
    let primary = with_environment(builder, &repository).start();
    let ledger = Ledger::create(&primary);
    ledger.write(5, 1000);
    let backup = primary.base_backup();
    // What a standby streamed counts as archived there: without this its first checkpoint may take it away.
    let builder = Cluster::builder().archive_command(&archive_command()).conf("wal_keep_size = '1GB'");
    let standby = with_environment(builder, &repository).on_copy_of(&backup);
    standby.configure_standby("false", Some(&primary.endpoint().conninfo()));
    standby.start();
    primary.configure("archive_command = 'false'");
    primary.reload();
    ledger.write(30, 20_000);
    primary.switch_wal();
    standby.wait_until("the standby has streamed all", A_MINUTE, || {
        ledger.judge(&standby, &Expect::at_least(ledger.tip())).is_ok()
    });
    primary.kill_9();
    standby.promote();
    standby.wait_promoted(A_MINUTE);
    ledger.attach(&standby);
    ledger.write(10, 20_000);
    standby.archive_everything(A_MINUTE);
    let gap = prepared(&repository, &backup, &to(RecoveryTarget::Latest));
    gap.launch();
    gap.wait_down(A_MINUTE);

    let mut call =
        crate::program::Call::new(["wal-push", "--backfill"]).envs(repository.env()).within(standby.data_dir());
    call = call.env("PGARK_CLUSTER__PGDATA", standby.data_dir().display().to_string());
    let outcome = crate::postgres::Account::of_servers().run(&mut call.command()).output().unwrap();
    assert!(outcome.status.success(), "{outcome:?}");
    let restored = recovered(&repository, &backup, &to(RecoveryTarget::Latest));
    ledger.judge(&restored, &Expect::at_least(ledger.tip())).unwrap();
}
