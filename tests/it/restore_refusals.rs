//! What a restore refuses, or warns of, before it touches anything: each was found by somebody who tried to do harm.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::backups::{as_servers_user, restore_call, take_backup};
use crate::double::{Fault, Op, Rule};
use crate::pitr::archiving;
use crate::postgres::{Account, Cluster, Installation, StopMode};
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
