//! `verify` finds every damage that a restore would stumble over, and says which object it is.

use std::time::Duration;

use crate::backups::take_backup;
use crate::double::{Fault, Op, Rule};
use crate::pitr::archiving;
use crate::postgres::{Cluster, Installation};
use crate::program::{Call, Outcome};
use crate::repository::Repository;

fn verify(repository: &Repository, words: &[&str]) -> Outcome {
    let words = ["verify"].iter().chain(words).copied();
    Call::new(words).impatient().envs(repository.env()).env("PGARK_BACKUP__RETRY", "2s").run()
}

fn filled(repository: &Repository) -> (Cluster, String) {
    let primary = archiving(repository, Installation::preferred(), 1);
    primary.execute("create table t as select i, repeat('x', 200) from generate_series(1, 20000) i");
    let id = take_backup(repository, &primary, &[]);
    primary.execute("insert into t select * from t");
    primary.archive_everything(Duration::from_secs(60));
    (primary, id)
}

#[test]
fn every_damage_is_found_and_named() {
    for repository in Repository::both() {
        let (_primary, id) = filled(&repository);
        let whole = verify(&repository, &[]).quiet_success();
        assert!(whole.stdout.ends_with("no damage was found\n"), "{whole:?}");
        verify(&repository, &[&id]).quiet_success();
        verify(&repository, &["--since", "2999-01-01T00:00:00Z"]).quiet_success();

        let keys = repository.keys();
        let part = keys.iter().find(|key| key.contains(&format!("{id}/part/"))).unwrap();
        let manifest = keys.iter().find(|key| key.ends_with("manifest.json.zst")).unwrap();
        let note = keys.iter().find(|key| key.ends_with(".backup.zst")).unwrap();
        // The segment in which the backup began.
        let segment = format!("{}.zst", note.rsplit_once('/').unwrap().1.split('.').next().unwrap());
        let segment = keys.iter().find(|key| key.ends_with(&segment)).unwrap();
        type Change = fn(&mut Vec<u8>);
        let flip: Change = |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
        };
        let cut: Change = |bytes| bytes.truncate(bytes.len() - 1);
        let grow: Change = |bytes| bytes.push(0);
        for (key, words) in [(part, vec![]), (manifest, vec![]), (segment, vec![]), (segment, vec!["--wal-only"])] {
            for change in [flip, cut, grow] {
                let before = repository.object(key).unwrap();
                repository.alter(key, change);
                let found = verify(&repository, &words);
                assert_eq!(found.code, 2, "{found:?}");
                assert!(found.stdout.starts_with(&format!("DAMAGED {key}: ")), "{found:?}");
                assert_eq!(found.stdout.matches("DAMAGED").count(), 1, "{found:?}");
                repository.alter(key, |bytes| *bytes = before);
            }
        }
        verify(&repository, &[]).quiet_success();
        for key in [part, segment] {
            let before = repository.object(key).unwrap();
            repository.remove(key);
            let found = verify(&repository, &[&id]);
            assert_eq!(found.code, 2, "{found:?}");
            assert!(found.stdout.starts_with(&format!("MISSING {key}: it is missing, and ")), "{found:?}");
            repository.put(key, &before);
        }
        // A part of another backup in this one's place.
        repository.alter(part, |bytes| bytes.reverse());
        let report = verify(&repository, &["--json"]);
        let json: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
        assert_eq!((report.code, json["findings"][0]["key"].as_str()), (2, Some(part.as_str())));
    }
}

#[test]
fn what_cannot_be_told_is_not_called_damage() {
    let repository = Repository::s3();
    let (_primary, id) = filled(&repository);
    let seeded =
        |seed: &str| verify(&repository, &["--sample", "40%", "--seed", seed, "--json"]).quiet_success().stdout;
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let (one, again) = (parse(&seeded("a")), parse(&seeded("a")));
    assert_eq!((&one["parts"], &one["wal"], &one["bytes"]), (&again["parts"], &again["wal"], &again["bytes"]));
    let bytes: std::collections::BTreeSet<u64> =
        ["a", "b", "c", "d", "e", "f"].iter().map(|seed| parse(&seeded(seed))["bytes"].as_u64().unwrap()).collect();
    assert!(bytes.len() > 1, "{bytes:?}");
    assert!(verify(&repository, &["--sample", "5%"]).quiet_success().stdout.contains("a sample of 5 %, seed 2"));

    verify(&repository, &["20000101T000000Z-00000000"]).code(3).says("there is no whole backup");
    verify(&repository, &["--sample", "0%"]).code(3).says("is not a share");
    verify(&repository, &["--since", "yesterday"]).code(3).says("a time with an offset");
    // A fault that passes is borne, one that lasts is no damage.
    let double = repository.double();
    double.fault(Rule::new(Fault::Status503).on(Op::Get).key("/part/").times(3));
    double.fault(Rule::new(Fault::BitFlip(None)).on(Op::Get).key("/part/").times(1));
    verify(&repository, &[&id]).quiet_success();
    double.fault(Rule::new(Fault::Status503).on(Op::Get).key("/part/"));
    let doubt = verify(&repository, &[]);
    assert_eq!(doubt.code, 3, "{doubt:?}");
    assert!(doubt.stdout.starts_with("UNKNOWN ") && doubt.stdout.contains("the store failed"), "{doubt:?}");
    double.clear_faults();
    double.stop_listening();
    verify(&repository, &[]).code(3);
}
