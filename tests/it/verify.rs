//! `verify` finds every damage that a restore would stumble over, and says which object it is.

use std::time::Duration;

use pgark::command::verify::{Verdict, Verify, VerifyReport, run_on};
use pgark::storage::StoreErrorKind;

use crate::backups::take_backup;
use crate::double::{Fault, Op, Rule};
use crate::expire::{Stage, id, keep_full, manifest, run, wanted};
use crate::pitr::archiving;
use crate::postgres::{Cluster, Installation};
use crate::program::{Call, Outcome};
use crate::repository::Repository;
use crate::watched::watched;

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
        // Of nothing nobody can say that it is whole; of little something is looked at.
        let since = verify(&repository, &["--since", "2999-01-01T00:00:00Z"]).code(3).stdout;
        assert!(since.ends_with("nothing was there to be read, so nothing is known\n"), "{since}");
        let one = verify(&repository, &["--sample", "0.0001%", "--json"]).quiet_success().stdout;
        let one: serde_json::Value = serde_json::from_str(&one).unwrap();
        assert_eq!(one["parts"].as_u64().unwrap() + one["wal"].as_u64().unwrap(), 1, "{one}");

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
        // What is not in a sample is there at least, and as long as it should be.
        let nothing = [id.as_str(), "--sample", "0.000001%", "--seed", "x"];
        verify(&repository, &nothing).quiet_success();
        let before = repository.object(part).unwrap();
        repository.remove(part);
        let found = verify(&repository, &nothing);
        assert_eq!(found.code, 2, "{found:?}");
        assert!(found.stdout.starts_with(&format!("MISSING {part}: it is missing, and ")), "{found:?}");
        repository.put(part, &before[1..]);
        let found = verify(&repository, &nothing);
        assert_eq!(found.code, 2, "{found:?}");
        assert!(found.stdout.starts_with(&format!("DAMAGED {part}: it is ")), "{found:?}");
        repository.alter(part, |bytes| bytes.clone_from(&before));
        verify(&repository, &nothing).quiet_success();
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
    // One object that is refused says nothing about the others.
    let segments: Vec<String> = repository.keys().into_iter().filter(|key| key.contains("/wal/")).collect();
    let (refused, damaged) = (&segments[0], &segments[segments.len() - 1]);
    double.fault(Rule::new(Fault::AccessDenied403).on(Op::Get).key(refused));
    let before = repository.object(damaged).unwrap();
    repository.alter(damaged, |bytes| bytes.truncate(bytes.len() - 1));
    let both = verify(&repository, &[]);
    assert_eq!(both.code, 2, "{both:?}");
    for said in [format!("UNKNOWN {refused}: "), format!("DAMAGED {damaged}: "), "of 1 backups".to_owned()] {
        assert!(both.stdout.contains(&said), "{said}: {both:?}");
    }
    repository.alter(damaged, |bytes| bytes.clone_from(&before));
    let doubt = verify(&repository, &[]);
    assert!(doubt.code == 3 && doubt.stdout.ends_with("not everything could be told\n"), "{doubt:?}");
    double.clear_faults();
    // That holds of a manifest, too.
    let manifest = repository.keys().into_iter().find(|key| key.ends_with("manifest.json.zst")).unwrap();
    double.fault(Rule::new(Fault::AccessDenied403).on(Op::Get).key(&manifest));
    let doubt = verify(&repository, &[]).code(3).stdout;
    let said =
        format!("of 0 backups and {} WAL files", repository.keys().iter().filter(|k| k.contains("/wal/")).count());
    assert!(doubt.contains(&format!("UNKNOWN {manifest}: ")) && doubt.contains(&said), "{said}: {doubt}");
    double.clear_faults();
    // A store that has lost what it lists has not been cleaned up by anybody.
    for key in [refused, &manifest] {
        double.fault(Rule::new(Fault::Error(404, "NoSuchKey")).on(Op::Get).key(key));
        let lost = verify(&repository, &[]).code(2).stdout;
        assert!(lost.contains(&format!("MISSING {key}: the store lists it")) && !lost.contains("deleted by"), "{lost}");
        double.clear_faults();
    }
    double.stop_listening();
    verify(&repository, &[]).code(3);
}

/// Whoever deletes a damaged segment does not make the archive whole.
#[test]
fn wal_that_is_missing_behind_or_between_backups_is_named() {
    let repository = Repository::local();
    let (_primary, _) = filled(&repository);
    verify(&repository, &[]).quiet_success();
    let is_segment = |key: &String| key.contains("/wal/") && key.len() == "main/1/wal/".len() + 18 + 28;
    let segments: Vec<String> = repository.keys().into_iter().filter(is_segment).collect();
    let [.., first, second, last] = &segments[..] else { panic!("{segments:?}") };
    repository.remove(first);
    repository.remove(second);
    let name = |key: &str| key.rsplit_once('/').unwrap().1.trim_end_matches(".zst").to_owned();
    for words in [vec![], vec!["--wal-only"], vec!["--sample", "5%"]] {
        let found = verify(&repository, &words).code(2).stdout;
        let said = format!("MISSING {first}: it and 1 more up to `{}` are missing, and what was written", name(second));
        assert!(found.contains(&said) && found.matches("MISSING").count() == 1, "{said}: {found}");
    }
    // At the end nobody knows that there was more.
    repository.remove(last);
    verify(&repository, &[]).quiet_success();
}

#[test]
fn a_manifest_of_another_cluster_is_found() {
    run(async {
        let stage = Stage::days(2).await;
        let mut foreign = manifest(id(9), 12, 13);
        foreign.summary.system_identifier = pgark::postgres::SystemId(8);
        stage.repository.put_manifest(&foreign).await.unwrap();
        let everything = Verify { wal_only: false, ..everything() };
        let report = run_on(&stage.repository, &everything).await.unwrap();
        let said = |finding: &pgark::command::verify::Finding| finding.message.starts_with("it is of another cluster");
        assert_eq!(report.findings.iter().filter(|finding| said(finding)).count(), 1, "{report:?}");
    });
}

/// All WAL of a stage is damaged, so each object that is looked at is found.
fn looked_at(stage: &Stage, refused: fn(usize) -> Option<StoreErrorKind>) -> VerifyReport {
    let reads = std::sync::atomic::AtomicUsize::new(0);
    let store =
        watched(stage.memory.clone(), move |what: &str, name: &str| match what == "get" && name.contains("/wal/") {
            true => refused(reads.fetch_add(1, std::sync::atomic::Ordering::SeqCst)).map_or(Ok(()), Err),
            false => Ok(()),
        });
    run(async { run_on(&stage.through(store), &everything()).await.unwrap() })
}

fn everything() -> Verify {
    Verify {
        repository: wanted(keep_full(1)).repository,
        backup: None,
        sample: None,
        wal_only: true,
        since: None,
        deep: false,
        jobs: 200,
        retry: Duration::ZERO,
        stall: Duration::from_secs(60),
    }
}

#[test]
fn a_bad_sector_is_damage_and_ends_nothing() {
    let stage = run(Stage::days(15));
    let verdicts =
        |report: &VerifyReport, wanted| report.findings.iter().filter(|finding| finding.verdict == wanted).count();
    let bad = looked_at(&stage, |read| (read == 0).then_some(StoreErrorKind::LocalIo));
    assert_eq!((verdicts(&bad, Verdict::Damaged), bad.incomplete), (150, false), "{bad:?}");
    assert!(bad.findings[0].message.starts_with("the disk cannot read it: "), "{bad:?}");
    let refused = looked_at(&stage, |read| (read == 0).then_some(StoreErrorKind::Denied));
    assert_eq!((verdicts(&refused, Verdict::Damaged), verdicts(&refused, Verdict::Unknown)), (149, 1), "{refused:?}");
    assert!(!refused.incomplete && refused.has_doubt());
    // A role that may read nothing is believed at last, and a store that is away at once.
    let all = looked_at(&stage, |_| Some(StoreErrorKind::Denied));
    assert_eq!((verdicts(&all, Verdict::Unknown), all.incomplete), (100, true));
    let away = looked_at(&stage, |_| Some(StoreErrorKind::Unavailable));
    assert_eq!((away.findings.len(), away.incomplete), (1, true));
}
