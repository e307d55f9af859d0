//! A server in restore-to-latest that meets a fault is *down*, never promoted; when the fault is gone it starts and has
//! everything. This is what tells an archive from a trap.

use std::time::Duration;

use crate::ledger::{Expect, Ledger};
use crate::pitr::{archiving, prepared, restore_command, with_environment};
use crate::postgres::{BaseBackup, Cluster, Installation, Recovery, RecoveryTarget};
use crate::repository::{Repository, segment_key};

const A_MINUTE: Duration = Duration::from_secs(60);

struct Disaster {
    repository: Repository,
    ledger: Ledger,
    backup: BaseBackup,
    /// Segments after the backup, in order.
    segments: Vec<String>,
}

impl Disaster {
    fn prepare(repository: Repository) -> Self {
        let primary = archiving(&repository, Installation::preferred(), 1);
        let ledger = Ledger::create(&primary);
        let backup = primary.base_backup();
        let mut segments = Vec::new();
        for _ in 0..6 {
            ledger.write(5, 20_000);
            segments.push(primary.switch_wal());
        }
        primary.archive_everything(A_MINUTE);
        primary.kill_9();
        Disaster { repository, ledger, backup, segments }
    }

    fn victim(&self) -> &str {
        &self.segments[3]
    }

    fn key(&self) -> String {
        segment_key(self.victim())
    }

    /// Starts a restore to the latest with these settings, which must go down; mends; starts again, which must be whole.
    fn play(&self, what: &str, faulty: &[(&str, &str)], said: &str, mend: impl FnOnce(&Cluster)) {
        let recovery = Recovery::new(restore_command(), RecoveryTarget::Latest);
        let mut cluster = prepared(&self.repository, &self.backup, &recovery);
        let mut settings = vec![
            ("PGARK_WAL__FETCH_RETRY", "2s"),
            ("PGARK_REPO__REQUEST_TIMEOUT", "1s"),
            ("PGARK_REPO__STALL_TIMEOUT", "1s"),
        ];
        settings.extend(faulty);
        let before: Vec<(&str, String)> = settings
            .iter()
            .map(|(name, _)| {
                let own = self.repository.env().into_iter().find(|(own, _)| own == name);
                // What the repository does not set is one of the durations.
                (*name, own.map_or_else(|| "2s".to_owned(), |(_, value)| value))
            })
            .collect();
        for (name, value) in &settings {
            cluster.set_env(name, value);
        }
        cluster.launch();
        let log = cluster.wait_down(A_MINUTE);
        assert!(log.contains(said), "{what}: the log does not say `{said}`:\n{log}");
        assert!(log.contains("could not restore file"), "{what}: PostgreSQL did not stop for it:\n{log}");
        for promoted in ["archive recovery complete", "selected new timeline", "ready to accept connections"] {
            let promoted = log.lines().filter(|line| !line.contains("read-only")).any(|line| line.contains(promoted));
            assert!(!promoted, "{what}: the server was promoted:\n{log}");
        }
        for (name, value) in before.iter().filter(|(name, _)| faulty.iter().any(|(faulty, _)| faulty == name)) {
            cluster.set_env(name, value);
        }
        mend(&cluster);
        cluster.start();
        cluster.wait_promoted(A_MINUTE);
        self.ledger.judge(&cluster, &Expect::at_least(self.ledger.tip())).unwrap_or_else(|why| panic!("{what}: {why}"));
    }
}

#[test]
fn damage_and_gaps() {
    for repository in Repository::both() {
        let disaster = Disaster::prepare(repository);
        let repository = &disaster.repository;
        let whole = repository.object(&disaster.key()).unwrap();
        let restore = |_: &Cluster| {
            if repository.object(&disaster.key()).is_some() {
                repository.remove(&disaster.key());
            }
            repository.put(&disaster.key(), &whole);
        };
        repository.alter(&disaster.key(), |bytes| {
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
        });
        disaster.play("a flipped bit", &[], disaster.victim(), restore);

        let other = repository.object(&segment_key(&disaster.segments[2])).unwrap();
        repository.alter(&disaster.key(), |bytes| *bytes = other);
        disaster.play("a swapped segment", &[], disaster.victim(), restore);

        repository.remove(&disaster.key());
        disaster.play("a gap", &[], "there is a gap in the archive", restore);
    }
}

#[test]
fn wrong_credentials_and_a_wrong_bucket() {
    let disaster = Disaster::prepare(Repository::s3());
    let wrong_key = [("AWS_SECRET_ACCESS_KEY", "wrong")];
    disaster.play("wrong credentials", &wrong_key, "SignatureDoesNotMatch", |_| {});
    let wrong_bucket = [("PGARK_REPO__URL", "s3://no-such-bucket/pg")];
    disaster.play("a wrong bucket", &wrong_bucket, "NoSuchBucket", |_| {});
    let url = disaster.repository.url().replace("/pg", "/elsewhere");
    disaster.play("a wrong prefix", &[("PGARK_REPO__URL", &url)], "has no identity", |_| {});
    disaster.play("a misspelt setting", &[("PGARK_WAL__STANDBY_RETRY", "soon")], "is not a duration", |_| {});
}

#[test]
fn an_outage_in_the_middle_of_recovery() {
    use crate::double::{Fault, Op, Rule};
    let disaster = Disaster::prepare(Repository::s3());
    let double = disaster.repository.double();
    double.fault(Rule::new(Fault::ResetBeforeHeaders).on(Op::Get).key(disaster.victim()));
    disaster.play("an outage", &[], disaster.victim(), |_| double.clear_faults());
    double.fault(Rule::new(Fault::Silence).on(Op::Get).key(disaster.victim()));
    disaster.play("silence", &[], disaster.victim(), |_| double.clear_faults());
    double.fault(Rule::new(Fault::Bare404).on(Op::Get).key(disaster.victim()));
    disaster.play("a proxy's 404", &[], disaster.victim(), |_| double.clear_faults());
    double.stop_listening();
    disaster.play("nobody listens", &[], "onnection refused", |_| double.resume_listening());
}

/// As it ends recovery PostgreSQL removes the signal file, and then asks for the history of the timeline that it leaves.
/// If that question failed, the next start would open the server on the old timeline.
#[test]
fn an_outage_at_the_last_question_of_a_promotion() {
    for installation in Installation::all_wanted() {
        let repository = Repository::s3();
        let primary = archiving(&repository, installation, 1);
        let ledger = Ledger::create(&primary);
        ledger.write(10, 1000);
        let backup = primary.base_backup();
        ledger.write(10, 20_000);
        primary.archive_everything(A_MINUTE);
        primary.kill_9();

        let second = promoted_while_the_store_dies(&repository, &backup, "00000001.history");
        ledger.judge(&second, &Expect::at_least(ledger.tip())).unwrap();
        assert_eq!(second.timeline(), 2);
        ledger.attach(&second);
        ledger.write(10, 20_000);
        second.archive_everything(A_MINUTE);
        second.kill_9();

        let third = promoted_while_the_store_dies(&repository, &backup, "00000002.history");
        ledger.judge(&third, &Expect::at_least(ledger.tip())).unwrap();
        assert_eq!(third.timeline(), 3);
    }
}

/// The store is out of reach as soon as there is no signal file, and PostgreSQL asks for `last` then.
fn promoted_while_the_store_dies(repository: &Repository, backup: &BaseBackup, last: &str) -> Cluster {
    let restore_command = format!(
        "[ -e recovery.signal ] || {{ echo %f >> asked-without-signal; export PGARK_REPO__ENDPOINT=http://127.0.0.1:9; }}; {}",
        restore_command()
    );
    let recovery = Recovery::new(restore_command, RecoveryTarget::Latest).archiving();
    let cluster =
        with_environment(Cluster::builder(), repository).env("PGARK_WAL__FETCH_RETRY", "1s").on_copy_of(backup);
    cluster.configure_recovery(&recovery);
    cluster.start();
    cluster.wait_promoted(A_MINUTE);
    let asked = std::fs::read_to_string(cluster.data_dir().join("asked-without-signal")).unwrap();
    assert_eq!(asked.lines().collect::<Vec<_>>(), [last], "PostgreSQL {:?}\n{}", cluster.data_dir(), cluster.log());
    cluster
}
