//! The exit table: every kind of fault, for a push, for fetches and for the proof of absence, in each kind of recovery.
//!
//! Exact codes; the destination absent or equal; bounded time. `docs/exit-codes.md` is the same for people.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::data_dir::FakeCluster;
use crate::double::{Fault, Op, Rule};
use crate::repository::Repository;

const SEGMENT: &str = "000000010000000000000003";
const MISSING: &str = "000000010000000000000009";
const HISTORY: &str = "00000002.history";
const HISTORY_TEXT: &[u8] = b"1\t0/300000\tno recovery target specified\n";
/// Far above what any case may need, far below "hangs".
const BOUND: Duration = Duration::from_secs(25);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Recovery,
    Standby,
    Neither,
}

const MODES: [Mode; 3] = [Mode::Recovery, Mode::Standby, Mode::Neither];

impl Mode {
    fn signals(self) -> &'static [&'static str] {
        match self {
            Mode::Recovery => &["recovery.signal"],
            Mode::Standby => &["standby.signal"],
            Mode::Neither => &[],
        }
    }

    /// A fault that lasts: the standby goes streaming, everybody else stops.
    fn lasting(self) -> i32 {
        if self == Mode::Standby { 1 } else { 200 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Push,
    FetchSegment,
    FetchHistory,
    /// Of a segment that is not there: the proof needs a listing.
    ProveAbsence,
    /// The same, with the fault on the identity.
    ReadIdentity,
}

struct Case {
    act: Act,
    mode: Mode,
    what: &'static str,
    rule: Option<Rule>,
    code: i32,
}

/// The faults of the wire and of the store, with what a lasting one makes of a push.
fn faults() -> Vec<(&'static str, Fault, i32)> {
    vec![
        ("reset before the headers", Fault::ResetBeforeHeaders, 10),
        ("500", Fault::Status500, 10),
        ("503", Fault::Status503, 10),
        ("403", Fault::AccessDenied403, 11),
        ("expired token", Fault::ExpiredToken400, 11),
        ("no such bucket", Fault::NoSuchBucket404, 12),
        ("a proxy's 404", Fault::HtmlNotFound404, 10),
        ("a bare 404", Fault::Bare404, 10),
        ("307", Fault::Redirect307("http://127.0.0.1:1".into()), 12),
        ("301", Fault::Redirect301("elsewhere.example".into()), 12),
        ("silence", Fault::Silence, 20),
        ("lost reply", Fault::LostReply, 10),
        ("200 with an error inside", Fault::OkWithErrorBody, 10),
    ]
}

/// Faults of an answer's body: a PUT's answer has none, so they do not hurt it.
fn body_faults() -> Vec<(&'static str, Fault)> {
    vec![
        ("reset after the headers", Fault::ResetAfterHeaders),
        ("reset in the body", Fault::ResetMidBody(None)),
        ("truncation", Fault::Truncate),
        ("silence in the body", Fault::SilenceMidBody),
        ("one byte a second", Fault::Trickle(Duration::from_secs(1))),
        ("bit flip", Fault::BitFlip(Some(150))),
    ]
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for mode in MODES {
        let mut add = |act, what, rule, code| cases.push(Case { act, mode, what, rule, code });
        for act in [Act::FetchSegment, Act::FetchHistory, Act::ProveAbsence, Act::ReadIdentity] {
            let place = |fault| match act {
                Act::ProveAbsence => Rule::new(fault).on(Op::List).key(""),
                Act::ReadIdentity => Rule::new(fault).on(Op::Get).key("identity/"),
                _ => Rule::new(fault).on(Op::Get),
            };
            let healthy = i32::from(matches!(act, Act::ProveAbsence | Act::ReadIdentity));
            for (what, fault, _) in faults() {
                add(act, what, Some(place(fault)), mode.lasting());
            }
            for (what, fault) in body_faults() {
                // A flipped bit in a listing or an identity may change nothing that counts: see `fetch_faults`.
                let flipped = matches!(fault, Fault::BitFlip(_));
                if !flipped || matches!(act, Act::FetchSegment | Act::FetchHistory) {
                    add(act, what, Some(place(fault)), mode.lasting());
                }
            }
            for fault in [Fault::Status503, Fault::ResetBeforeHeaders, Fault::LostReply, Fault::Truncate] {
                add(act, "a passing fault", Some(place(fault).once()), healthy);
            }
            add(act, "no fault", None, healthy);
        }
        let place = |fault| Rule::new(fault).on(Op::Put).key("/wal/");
        for (what, fault, code) in faults() {
            add(Act::Push, what, Some(place(fault)), code);
        }
        for (what, fault) in body_faults() {
            add(Act::Push, what, Some(place(fault)), 0);
        }
        for fault in [Fault::Status503, Fault::ResetBeforeHeaders, Fault::LostReply, Fault::OkWithErrorBody] {
            add(Act::Push, "a passing fault", Some(place(fault).once()), 0);
        }
        add(Act::Push, "no fault", None, 0);
    }
    cases
}

#[test]
fn every_fault_ends_with_its_code() {
    let cases = cases();
    assert!(cases.len() >= 150, "{} cases", cases.len());
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(why) = play(case) {
                        wrong.lock().unwrap().push(format!("{:?} {:?} {}: {why}", case.act, case.mode, case.what));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {} cases are wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    eprintln!("{} runs", cases.len());
}

fn play(case: &Case) -> Result<(), String> {
    let repository = Repository::s3();
    let cluster = FakeCluster::new();
    let segment = cluster.segment(SEGMENT, 1);
    cluster.file(HISTORY, HISTORY_TEXT);
    // There is an identity, and an archive to fetch from.
    for name in ["000000010000000000000002", SEGMENT, HISTORY] {
        if name == SEGMENT && case.act == Act::Push {
            continue;
        }
        if name == "000000010000000000000002" {
            cluster.segment(name, 2);
        }
        repository.push(&cluster, name).run().quiet_success();
    }
    cluster.signal(case.mode.signals());
    let rule = case.rule.clone().map(|rule| repository.double().fault(rule));
    let (call, source) = match case.act {
        Act::Push => (repository.push(&cluster, SEGMENT), None),
        Act::FetchSegment => (repository.fetch(&cluster, SEGMENT), Some(std::fs::read(&segment).unwrap())),
        Act::FetchHistory => (repository.fetch(&cluster, HISTORY), Some(HISTORY_TEXT.to_vec())),
        Act::ProveAbsence | Act::ReadIdentity => (repository.fetch(&cluster, MISSING), None),
    };
    let outcome = call.run();
    if let Some(rule) = rule
        && repository.double().fired(rule) == 0
    {
        return Err(format!("the fault never happened: {outcome:?}"));
    }
    if outcome.code != case.code {
        return Err(format!("expected {}: {outcome:?}", case.code));
    }
    if outcome.took > BOUND {
        return Err(format!("took {:?}", outcome.took));
    }
    if outcome.code != 0 && outcome.stderr.lines().count() > 3 {
        return Err(format!("too many lines: {outcome:?}"));
    }
    match (source, outcome.code) {
        (Some(source), 0) => equal(&cluster.destination(), &source)?,
        _ if cluster.destination().exists() => return Err("the destination exists".into()),
        _ => {}
    }
    nothing_left_beside(&cluster.path().join("pg_wal"))?;
    // Whatever happened, an object that is there is whole, and a push can be repeated.
    repository.double().clear_faults();
    if case.act == Act::Push {
        let again = repository.push(&cluster, SEGMENT).run();
        if again.code != 0 {
            return Err(format!("a second push fails: {again:?}"));
        }
        cluster.signal(&[]);
        if repository.fetch(&cluster, SEGMENT).run().code != 0 {
            return Err("what was pushed cannot be fetched".into());
        }
        equal(&cluster.destination(), &std::fs::read(&segment).unwrap())?;
    }
    Ok(())
}

fn equal(path: &Path, expected: &[u8]) -> Result<(), String> {
    match std::fs::read(path) {
        Ok(bytes) if bytes == expected => Ok(()),
        Ok(_) => Err("the destination holds other bytes".into()),
        Err(error) => Err(format!("the destination cannot be read: {error}")),
    }
}

fn nothing_left_beside(pg_wal: &Path) -> Result<(), String> {
    let left: Vec<_> = std::fs::read_dir(pg_wal)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(".pgark"))
        .collect();
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}")) }
}

/// An outage is no rule of the script: nobody listens.
#[test]
fn a_refused_connection_is_no_absence() {
    for mode in MODES {
        let repository = Repository::s3();
        let cluster = FakeCluster::new();
        cluster.segment(SEGMENT, 1);
        repository.push(&cluster, SEGMENT).run().quiet_success();
        cluster.signal(mode.signals());
        repository.double().stop_listening();
        for name in [SEGMENT, MISSING, HISTORY] {
            repository.fetch(&cluster, name).run().code(mode.lasting()).says("onnection refused");
        }
        repository.push(&cluster, SEGMENT).run().code(10);
        repository.double().resume_listening();
        repository.fetch(&cluster, SEGMENT).run().quiet_success();
        repository.fetch(&cluster, MISSING).run().code(1);
    }
}

/// The listing is what tells a gap from an end. No flipped bit in it may hide what lies behind.
#[test]
fn no_flipped_bit_in_a_listing_hides_a_later_segment() {
    let repository = Repository::s3();
    let cluster = FakeCluster::new();
    let two = "000000010000000000000002";
    for (seed, name) in ["000000010000000000000001", two, "000000010000000000000003"].iter().enumerate() {
        cluster.segment(name, seed as u64);
        repository.push(&cluster, name).run().quiet_success();
    }
    repository.remove(&crate::repository::segment_key(two));
    cluster.signal(&["recovery.signal"]);
    for offset in (0..700).step_by(3) {
        repository.double().clear_faults();
        repository.double().fault(Rule::new(Fault::BitFlip(Some(offset))).on(Op::List).seed(offset as u64));
        let outcome = repository.fetch(&cluster, two).env("PGARK_WAL__FETCH_RETRY", "400ms").run();
        assert_eq!(outcome.code, 200, "byte {offset}: {outcome:?}");
    }
}
