//! Damage in the repository, and on the way from it: a restore fails and names the object, or brings the right bytes. Never a
//! partial success.

use std::process::{Command, Stdio};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};

use crate::backups::{Restored, as_servers_user, restore, restore_call, take_backup};
use crate::double::{Fault, Op, Rule};
use crate::kills::seed;
use crate::ledger::{Expect, Ledger};
use crate::pitr::{archiving, assert_clean};
use crate::postgres::{Account, Cluster, Installation, Scratch, happens_within, verify_directory};
use crate::program::{Outcome, finish};
use crate::repository::Repository;
use crate::restore_kills::refused_by_postgres;

const A_MINUTE: Duration = Duration::from_secs(60);

struct Scene {
    repository: Repository,
    ledger: Ledger,
    primary: Cluster,
    older: String,
    newer: String,
}

pub fn manifest_key(id: &str) -> String {
    format!("main/1/backup/{id}/manifest.json.zst")
}

impl Scene {
    fn prepare(repository: Repository) -> Self {
        let primary = archiving(&repository, Installation::preferred(), 1);
        let ledger = Ledger::create(&primary);
        ledger.write(50, 20_000);
        let older = take_backup(&repository, &primary, &[]);
        ledger.write(50, 20_000);
        let newer = take_backup(&repository, &primary, &[]);
        primary.archive_everything(A_MINUTE);
        Scene { repository, ledger, primary, older, newer }
    }

    /// The keys of a backup's parts.
    fn parts(&self, id: &str) -> Vec<String> {
        self.repository.keys().into_iter().filter(|key| key.contains(&format!("{id}/part/"))).collect()
    }

    /// Where in the first part the bytes of the largest file in it lie.
    fn middle_of_a_file(&self) -> usize {
        let manifest = zstd::decode_all(&self.repository.object(&manifest_key(&self.newer)).unwrap()[..]).unwrap();
        let lines = manifest.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        let extents = lines.flat_map(|line: serde_json::Value| line["extents"].as_array().cloned().unwrap_or_default());
        let in_first = extents.filter(|extent| extent["part"] == 1);
        let largest = in_first.max_by_key(|extent| extent["stored"].as_u64()).unwrap();
        (largest["at"].as_u64().unwrap() + largest["stored"].as_u64().unwrap() / 2) as usize
    }

    /// A restore of the newer backup, by its name, must end with this code and name the object. Nothing starts from there.
    fn refused(&self, what: &str, codes: &[i32], key: &str) -> Outcome {
        let home = Scratch::new("s");
        let data = home.path().join("data");
        let outcome = as_servers_user(&restore_call(&self.repository, &data, &[&self.newer]));
        assert!(codes.contains(&outcome.code) && outcome.stderr.contains(key), "{what}: `{key}` {outcome:?}");
        assert!(!data.join("global/pg_control").exists(), "{what}");
        refused_by_postgres(&data);
        let code = outcome.code;
        outcome.code(code)
    }

    /// Damages the object, looks, and puts it back.
    fn with_damage(&self, what: &str, key: &str, codes: &[i32], damage: impl FnOnce(&mut Vec<u8>)) {
        let whole = self.repository.object(key).unwrap();
        self.repository.alter(key, damage);
        self.refused(what, codes, key);
        self.repository.alter(key, |bytes| *bytes = whole);
    }

    fn restores(&self, words: &[&str]) {
        let Restored { cluster, home: _home } = restore(&self.repository, words);
        cluster.start();
        cluster.wait_promoted(A_MINUTE);
        self.ledger.judge(&cluster, &Expect::at_least(self.ledger.tip())).unwrap();
        assert_clean(&cluster);
    }
}

/// Found while restoring: the repository holds something else than it promised.
const DAMAGED: &[i32] = &[14];
/// Found while planning: there is no such backup.
const UNREACHABLE: &[i32] = &[18];
const EITHER: &[i32] = &[14, 18];

#[test]
fn damaged_parts_are_named() {
    for repository in Repository::both() {
        let scene = Scene::prepare(repository);
        let (own, other) = (scene.parts(&scene.newer), scene.parts(&scene.older));
        let middle = scene.middle_of_a_file();
        let foreign = scene.repository.object(&other[0]).unwrap();
        let first = own[0].as_str();
        scene.with_damage("a flipped bit", first, DAMAGED, |bytes| bytes[middle] ^= 0x10);
        scene.with_damage("a truncated part", first, EITHER, |bytes| bytes.truncate(middle));
        scene.with_damage("an empty part", first, UNREACHABLE, Vec::clear);
        scene.with_damage("a longer part", first, DAMAGED, |bytes| bytes.push(0));
        scene.with_damage("another backup's part", first, EITHER, |bytes| *bytes = foreign.clone());
        scene.with_damage("another part of this length", first, DAMAGED, |bytes| {
            let length = bytes.len();
            *bytes = foreign.clone();
            bytes.resize(length, 0);
        });
        scene.with_damage("zeros", first, DAMAGED, |bytes| bytes.fill(0));
        let last = own.last().unwrap();
        scene.with_damage("a flipped bit in the last part", last, DAMAGED, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
        for key in [first, last] {
            let whole = scene.repository.object(key).unwrap();
            scene.repository.remove(key);
            scene.refused("a missing part", UNREACHABLE, key);
            scene.repository.put(key, &whole);
        }
        scene.restores(&[&scene.newer]);
        assert_clean(&scene.primary);
    }
}

#[test]
fn damaged_manifests_are_named() {
    for repository in Repository::both() {
        let scene = Scene::prepare(repository);
        let manifest = manifest_key(&scene.newer);
        let foreign = scene.repository.object(&manifest_key(&scene.older)).unwrap();
        let length = scene.repository.object(&manifest).unwrap().len();
        // Behind the summary, which the plan needs: the plan stands, and the restore finds out.
        scene.with_damage("a flipped bit", &manifest, DAMAGED, |bytes| bytes[length / 2] ^= 1);
        scene.with_damage("a truncated manifest", &manifest, DAMAGED, |bytes| bytes.truncate(length - 1));
        scene.with_damage("half a manifest", &manifest, DAMAGED, |bytes| bytes.truncate(length / 2));
        scene.with_damage("bytes behind the end", &manifest, DAMAGED, |bytes| bytes.extend(b"more"));
        // Without a summary there is no plan.
        scene.with_damage("an empty manifest", &manifest, UNREACHABLE, Vec::clear);
        scene.with_damage("another backup's manifest", &manifest, UNREACHABLE, |bytes| *bytes = foreign.clone());
        scene.with_damage("a flipped bit in the summary", &manifest, UNREACHABLE, |bytes| bytes[40] ^= 1);

        // Where the operator did not insist, an older backup reaches the same end, and the plan says why it is taken.
        let whole = scene.repository.object(&manifest).unwrap();
        scene.repository.alter(&manifest, |bytes| bytes[40] ^= 1);
        let home = Scratch::new("s");
        let outcome = as_servers_user(&restore_call(&scene.repository, &home.path().join("data"), &[])).code(0);
        assert!(outcome.stdout.contains(&format!("restored {}", scene.older)), "{outcome:?}");
        assert!(outcome.stdout.contains(&scene.newer), "the plan does not say what it passed over: {outcome:?}");
        let home = Scratch::new("s");
        let outcome = as_servers_user(&restore_call(&scene.repository, &home.path().join("data"), &["--json"])).code(0);
        let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!((&report["schema"], &report["backup"]), (&1.into(), &scene.older.as_str().into()));
        assert!(report["plan"]["warnings"][0].as_str().unwrap().contains(&scene.newer), "{report}");
        scene.repository.alter(&manifest, |bytes| *bytes = whole.clone());
        scene.repository.remove(&manifest);
        scene.refused("a missing manifest", UNREACHABLE, &scene.newer);
        scene.repository.put(&manifest, &whole);
        scene.restores(&[]);
    }
}

/// The summary is read alone, for the plan and for lists: no flipped bit may change what it says.
#[test]
fn a_summary_is_right_or_refused() {
    let mut random = StdRng::seed_from_u64(seed());
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let id =
        take_backup(&repository, &primary, &["--label", "a label, with words that do not compress: 8fjw0x3n6qzk1v"]);
    let call = restore_call(&repository, std::path::Path::new("/nonexistent"), &[&id, "--dry-run", "--json"]);
    let right = call.run().quiet_success().stdout;
    let whole = repository.object(&manifest_key(&id)).unwrap();
    for _ in 0..80 {
        let (at, bit) = (random.random_range(8..400), random.random_range(0..8));
        repository.alter(&manifest_key(&id), |bytes| bytes[at] ^= 1 << bit);
        let outcome = call.run();
        assert!(outcome.code == UNREACHABLE[0] || outcome.stdout == right, "bit {bit} of byte {at}: {outcome:?}");
        repository.alter(&manifest_key(&id), |bytes| bytes.clone_from(&whole));
    }
}

/// What happens on the way is not in the repository: it is read again.
#[test]
fn a_bad_line_is_borne() {
    let scene = Scene::prepare(Repository::s3());
    let double = scene.repository.double();
    let part = format!("{}/part/", scene.newer);
    let get = |fault: Fault| Rule::new(fault).on(Op::Get).key(&part);
    let middle = scene.middle_of_a_file();
    for fault in [
        Fault::BitFlip(Some(middle)),
        Fault::Truncate,
        Fault::ResetMidBody(None),
        Fault::ResetAfterHeaders,
        Fault::SilenceMidBody,
        Fault::Status503,
    ] {
        let rule = double.fault(get(fault.clone()).once());
        let home = Scratch::new("s");
        let data = home.path().join("data");
        let call = restore_call(&scene.repository, &data, &[&scene.newer]);
        as_servers_user(&call.env("PGARK_REPO__STALL_TIMEOUT", "1s")).code(0);
        assert_eq!(double.fired(rule), 1, "{fault:?}");
        verify_directory(Installation::preferred(), &data).unwrap_or_else(|why| panic!("{fault:?}: {why}"));
        double.clear_faults();
    }

    // A store that dies in the middle: an error by its kind, and the same command goes on later.
    double.fault(get(Fault::ResetBeforeHeaders).skip(1));
    let home = Scratch::new("s");
    let data = home.path().join("data");
    let call = restore_call(&scene.repository, &data, &[&scene.newer]).impatient().env("PGARK_BACKUP__RETRY", "2s");
    as_servers_user(&call).code(10).says("is not restored");
    refused_by_postgres(&data);
    double.clear_faults();
    as_servers_user(&call).code(0);
    verify_directory(Installation::preferred(), &data).unwrap();
}

/// `nohup`, and shells for what they start in the background, have signals ignored: such a restore goes on when its terminal is closed.
#[test]
fn an_ignored_signal_ends_nothing() {
    let scene = Scene::prepare(Repository::s3());
    let double = scene.repository.double();
    let rule = double.fault(Rule::new(Fault::Silence).on(Op::Get).key(&format!("{}/part/", scene.newer)));
    for (ignored, ends, says) in
        [("HUP INT", Signal::TERM, "interrupted by SIGTERM"), ("QUIT", Signal::HUP, "interrupted by SIGHUP")]
    {
        let home = Scratch::new("s");
        let call = restore_call(&scene.repository, &home.path().join("data"), &[&scene.newer]).command();
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("trap '' {ignored}; exec \"$0\" \"$@\"")).arg(call.get_program());
        shell.args(call.get_args()).envs(call.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.stdout(Stdio::piped()).stderr(Stdio::piped());
        let before = double.fired(rule);
        let child = Account::of_servers().run(&mut shell).spawn().unwrap();
        assert!(happens_within(A_MINUTE, || double.fired(rule) > before));
        let kill = |signal| kill_process(Pid::from_child(&child), signal).unwrap();
        match ignored {
            "QUIT" => kill(Signal::QUIT),
            _ => [Signal::HUP, Signal::INT].into_iter().for_each(kill),
        }
        std::thread::sleep(Duration::from_secs(1));
        kill(ends);
        finish(child).code(21).says(says);
    }
}
