//! The chosen backup is right for 200 random targets: the answers of `pgark restore --dry-run` are compared with what follows from
//! the test's own notes of every commit and of every backup, and a few of them are restored.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::backups::{Restored, restore, restore_call, take_backup};
use crate::kills::seed;
use crate::ledger::{Expect, Ledger, Mark};
use crate::pitr::{archiving, assert_clean};
use crate::postgres::{Cluster, Installation, Lsn, Position, Scratch};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);
const TARGETS: usize = 200;
const RESTORES: usize = 6;
const SEGMENT: u64 = 1 << 20;
const UNREACHABLE: i32 = 18;

/// A row, by the ledger's file. Its commit record ends after `lower` and at or before `upper`.
#[derive(Clone, Debug)]
struct Commit {
    row: i64,
    timeline: u32,
    lower: Lsn,
    upper: Lsn,
    xid: u32,
    time: Timestamp,
}

/// A backup, by the history file that PostgreSQL wrote of it.
#[derive(Clone, Debug)]
struct Backup {
    id: String,
    timeline: u32,
    stop: Lsn,
    /// To the second, rounded down.
    stopped: Timestamp,
    /// When the call was over that took it.
    over: Timestamp,
}

#[derive(Clone, Debug)]
struct Point {
    name: String,
    timeline: u32,
    /// Its record begins here or a little later.
    lsn: Lsn,
}

/// Everything that happened.
struct World {
    repository: Repository,
    ledger: Ledger,
    commits: Vec<Commit>,
    backups: Vec<Backup>,
    points: Vec<Point>,
    /// Where timeline 2 begins.
    fork: Lsn,
    /// The end of what is archived of each timeline.
    ends: BTreeMap<u32, Lsn>,
    _servers: Vec<Cluster>,
    _home: Scratch,
}

fn segment(lsn: Lsn) -> u64 {
    lsn.0 / SEGMENT
}

/// The segment of the last byte before a position.
fn ending(lsn: Lsn) -> u64 {
    (lsn.0 - 1) / SEGMENT
}

/// Archives everything, and tells up to where that is.
fn archived(server: &Cluster) -> Lsn {
    let last = server.archive_everything(A_MINUTE);
    let part = |from: usize| u64::from_str_radix(&last[from..from + 8], 16).unwrap();
    Lsn((part(8) << 32) + (part(16) + 1) * SEGMENT)
}

/// Takes backups under load; their positions and times are what PostgreSQL noted, not what pgark says.
struct Chronicle<'a> {
    repository: &'a Repository,
    ledger: &'a Ledger,
    backups: Vec<Backup>,
    points: Vec<Point>,
}

impl Chronicle<'_> {
    fn backup(&mut self, server: &Cluster, words: &[&str]) {
        let label = format!("the {}th", self.backups.len());
        let id = take_backup(self.repository, server, &[words, &["--label", &label]].concat());
        let over = Timestamp::now();
        let found = std::fs::read_dir(server.data_dir().join("pg_wal")).unwrap().filter_map(|entry| {
            let path = entry.unwrap().path();
            let text =
                path.extension().is_some_and(|end| end == "backup").then(|| std::fs::read_to_string(&path).unwrap())?;
            text.contains(&format!("LABEL: {label}\n")).then_some(text)
        });
        let [text] = &found.collect::<Vec<_>>()[..] else { panic!("no history file of backup `{label}`") };
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{text}"));
        let stopped = field("STOP TIME: ").trim_end_matches(" UTC").replace(' ', "T") + "Z";
        self.backups.push(Backup {
            id,
            timeline: server.timeline(),
            stop: field("STOP WAL LOCATION: ").split(' ').next().unwrap().parse().unwrap(),
            stopped: stopped.parse().unwrap(),
            over,
        });
    }

    /// Some seconds of work with restore points.
    fn live(&mut self, random: &mut StdRng) {
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(random.random_range(200..900)));
            let name = match random.random_range(0..3) {
                0 => "again and again".to_owned(),
                _ => format!("point {}", self.points.len()),
            };
            let Position { timeline, lsn } = self.ledger.restore_point(&name).position;
            self.points.push(Point { name, timeline, lsn });
        }
    }
}

impl World {
    /// Timeline 1 with three backups, the last one behind the point at which timeline 2 leaves it, which has two.
    fn grow(random: &mut StdRng) -> Self {
        let repository = Repository::local();
        let first = archiving(&repository, Installation::preferred(), 1);
        let ledger = Ledger::create(&first);
        let mut chronicle =
            Chronicle { repository: &repository, ledger: &ledger, backups: Vec::new(), points: Vec::new() };
        let writer = ledger.write_in_background(60, 20_000);
        chronicle.live(random);
        chronicle.backup(&first, &[]);
        chronicle.live(random);
        chronicle.backup(&first, &["--remote"]);
        chronicle.live(random);
        let mark = ledger.mark();
        chronicle.live(random);
        chronicle.backup(&first, &[]);
        chronicle.live(random);
        assert_eq!(writer.stop().ended_by, None);
        let mut ends = BTreeMap::from([(1, archived(&first))]);

        let lsn = mark.position.lsn.to_string();
        let Restored { cluster: second, home } =
            restore(&repository, &["--target-lsn", &lsn, "--archive-mode", "keep"]);
        second.start();
        second.wait_promoted(A_MINUTE);
        ledger.attach(&second);
        let history = std::fs::read_to_string(second.data_dir().join("pg_wal/00000002.history")).unwrap();
        let fork = history.split_whitespace().nth(1).unwrap().parse().unwrap();
        let writer = ledger.write_in_background(60, 20_000);
        chronicle.live(random);
        chronicle.backup(&second, &[]);
        chronicle.live(random);
        chronicle.backup(&second, &["--remote"]);
        chronicle.live(random);
        assert_eq!(writer.stop().ended_by, None);
        ends.insert(2, archived(&second));
        let Chronicle { backups, points, .. } = chronicle;
        let commits = commits(&ledger.path());
        World { repository, ledger, commits, backups, points, fork, ends, _servers: vec![first, second], _home: home }
    }

    /// Whether a position of a timeline lies on the way to another.
    fn is_on_the_way(&self, timeline: u32, lsn: Lsn, to: u32) -> bool {
        timeline == to || timeline < to && lsn <= self.fork
    }

    fn commits_on(&self, to: u32) -> Vec<&Commit> {
        self.commits.iter().filter(|commit| self.is_on_the_way(commit.timeline, commit.upper, to)).collect()
    }

    /// In the order of the WAL.
    fn backups_on(&self, to: u32) -> Vec<&Backup> {
        let mut backups: Vec<&Backup> =
            self.backups.iter().filter(|backup| self.is_on_the_way(backup.timeline, backup.stop, to)).collect();
        backups.sort_by_key(|backup| backup.stop);
        backups
    }
}

fn commits(file: &Path) -> Vec<Commit> {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("commit\t"));
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            Commit {
                row: fields[0].parse().unwrap(),
                timeline: fields[1].parse().unwrap(),
                lower: fields[2].parse().unwrap(),
                upper: fields[3].parse().unwrap(),
                xid: fields[4].parse().unwrap(),
                time: (fields[5].replace(' ', "T").trim_end_matches("+00").to_owned() + "Z").parse().unwrap(),
            }
        })
        .collect()
}

#[derive(Clone, Debug)]
enum Target {
    Lsn(Lsn),
    Time(Timestamp),
    Xid(u32),
    Name(String),
}

/// What is asked.
#[derive(Clone, Debug)]
struct Question {
    target: Target,
    exclusive: bool,
    /// `None`: the latest.
    timeline: Option<u32>,
    /// By its name.
    backup: Option<String>,
}

/// What pgark must answer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Plan {
        backup: String,
        timeline: u32,
    },
    /// The transaction may have ended before the backup did: nobody can tell, and the plan says so.
    Doubtful {
        backup: String,
        timeline: u32,
    },
    Refused,
    /// Some segments do not tell all that they hold, for a commit lies in two of them: PostgreSQL will see.
    Unknown,
}

impl Question {
    fn to(&self) -> u32 {
        self.timeline.unwrap_or(2)
    }

    fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = self.backup.iter().cloned().collect();
        let (flag, value) = match &self.target {
            Target::Lsn(lsn) => ("--target-lsn", lsn.to_string()),
            Target::Time(time) => ("--target-time", time.to_string()),
            Target::Xid(xid) => ("--target-xid", xid.to_string()),
            Target::Name(name) => ("--target-name", name.clone()),
        };
        words.extend([flag.to_owned(), value]);
        if self.exclusive {
            words.push("--exclusive".to_owned());
        }
        if let Some(timeline) = self.timeline {
            words.extend(["--target-timeline".to_owned(), timeline.to_string()]);
        }
        words
    }

    /// The newest of the backups that may be taken, all that there are or the one that is named, that stopped before the target; if
    /// the target is on the way at all.
    fn answer(&self, world: &World) -> Answer {
        let to = self.to();
        let mut backups = world.backups_on(to);
        backups.retain(|backup| self.backup.as_ref().is_none_or(|id| backup.id == *id));
        let newest = |early: &dyn Fn(&Backup) -> bool| match backups.iter().rev().find(|backup| early(backup)) {
            Some(backup) => Answer::Plan { backup: backup.id.clone(), timeline: to },
            None => Answer::Refused,
        };
        match &self.target {
            Target::Lsn(lsn) if *lsn >= world.ends[&to] => Answer::Refused,
            Target::Lsn(lsn) => newest(&|backup| backup.stop <= *lsn),
            Target::Time(time) => {
                let stops = |commit: &&&Commit| if self.exclusive { commit.time >= *time } else { commit.time > *time };
                // PostgreSQL stops at a time only when it sees a commit behind it.
                match world.commits_on(to).iter().any(|commit| stops(&commit)) {
                    true => newest(&|backup| backup.stopped < *time),
                    false => Answer::Refused,
                }
            }
            Target::Xid(xid) => {
                let Some(commit) = world.commits_on(to).into_iter().find(|commit| commit.xid == *xid) else {
                    return Answer::Refused;
                };
                // Within a segment nobody knows what came first: a backup that stopped in an earlier one is right for sure.
                match newest(&|backup| ending(backup.stop) < segment(commit.lower)) {
                    Answer::Refused => match backups.iter().find(|backup| ending(backup.stop) == segment(commit.lower))
                    {
                        Some(backup) => Answer::Doubtful { backup: backup.id.clone(), timeline: to },
                        None => Answer::Refused,
                    },
                    answer => answer,
                }
            }
            Target::Name(name) => {
                let on_the_way = world.points.iter().filter(|point| world.is_on_the_way(point.timeline, point.lsn, to));
                let last = on_the_way.filter(|point| point.name == *name).map(|point| point.lsn).max();
                last.map_or(Answer::Refused, |last| newest(&|backup| backup.stop <= last))
            }
        }
    }

    /// Rows that must be there after a restore, all before the first that must not.
    fn rows(&self, world: &World, from: &Backup) -> Vec<i64> {
        let commits = world.commits_on(self.to());
        let before = |ends: &dyn Fn(&Commit) -> bool| {
            commits.iter().take_while(|commit| !ends(commit)).map(|commit| commit.row).collect()
        };
        match &self.target {
            Target::Lsn(lsn) => before(&|commit| commit.upper > *lsn),
            Target::Time(time) if self.exclusive => before(&|commit| commit.time >= *time),
            Target::Time(time) => before(&|commit| commit.time > *time),
            Target::Xid(xid) => {
                let mut rows: Vec<i64> = before(&|commit| commit.xid == *xid);
                let own = commits.iter().find(|commit| commit.xid == *xid).filter(|_| !self.exclusive);
                rows.extend(own.map(|commit| commit.row));
                rows
            }
            // Of several with one name PostgreSQL takes the first behind the backup.
            Target::Name(name) => {
                let points = world.points.iter().filter(|point| point.name == *name && point.lsn >= from.stop);
                let points = points.filter(|point| world.is_on_the_way(point.timeline, point.lsn, self.to()));
                let first = points.map(|point| point.lsn).min().unwrap();
                before(&|commit| commit.upper > first)
            }
        }
    }
}

/// Anything that may be asked, most of it near something that happened.
struct Dice<'a> {
    world: &'a World,
    random: StdRng,
}

impl Dice<'_> {
    fn one<'t, T>(&mut self, of: &'t [T]) -> &'t T {
        &of[self.random.random_range(0..of.len())]
    }

    fn question(&mut self) -> Question {
        let world = self.world;
        let timeline = *self.one(&[None, None, Some(1), Some(2)]);
        let to = timeline.unwrap_or(2);
        let commits = world.commits_on(to);
        let target = loop {
            let target = self.target();
            // A number of the other timeline may lie between two of this one without being one of it: no index can tell.
            let elsewhere = |xid| {
                let is = |commit: &&Commit| commit.xid == xid;
                world.commits.iter().any(|commit| is(&commit)) && !commits.iter().any(is)
            };
            if !matches!(target, Target::Xid(xid) if elsewhere(xid)) {
                break target;
            }
        };
        let exclusive = !matches!(target, Target::Name(_)) && self.random.random_bool(0.3);
        let named = world.backups_on(to);
        let backup = match self.random.random_range(0..4) {
            0 => Some(self.one(&named).id.clone()),
            _ => None,
        };
        Question { target, exclusive, timeline, backup }
    }

    /// One to which there is one right answer by the notes.
    fn target(&mut self) -> Target {
        let world = self.world;
        loop {
            let target = self.any_target();
            let clear = match &target {
                Target::Lsn(_) => true,
                // The moment of a stop is known to some seconds only.
                Target::Time(time) => {
                    world.backups.iter().all(|backup| *time <= backup.stopped || *time >= backup.over)
                }
                // What lies in two segments is in no index: pgark refuses, or leaves it to PostgreSQL.
                Target::Xid(xid) => {
                    let mut known = world.commits.iter().filter(|commit| commit.xid == *xid);
                    known.all(|commit| segment(commit.lower) == ending(commit.upper))
                }
                Target::Name(name) => {
                    let mut known = world.points.iter().filter(|point| point.name == *name);
                    // A record of 200 bytes at most.
                    known.all(|point| segment(point.lsn) == segment(Lsn(point.lsn.0 + 200)))
                }
            };
            if clear {
                return target;
            }
        }
    }

    fn any_target(&mut self) -> Target {
        let world = self.world;
        let commit = self.one(&world.commits).clone();
        let backup = self.one(&world.backups).clone();
        let micros = |micros| SignedDuration::from_micros(micros);
        match self.random.random_range(0..10) {
            0 => Target::Lsn(*self.one(&[commit.lower, commit.upper])),
            1 => Target::Lsn(Lsn(self.random.random_range(1..world.ends[&2].0 + SEGMENT))),
            2 => Target::Lsn(Lsn(backup.stop.0.wrapping_add_signed(*self.one(&[-1, 0, 1])))),
            3 => Target::Time(commit.time + micros(self.random.random_range(-1..=1))),
            4 => Target::Time(*self.one(&[
                backup.stopped - micros(1),
                backup.stopped,
                backup.over,
                backup.over + micros(1),
            ])),
            5 => Target::Time(commit.time + micros(self.random.random_range(-3_000_000..3_000_000))),
            6 | 7 => Target::Xid(commit.xid),
            8 => Target::Name(self.one(&world.points).name.clone()),
            _ => match self.random.random_range(0..3) {
                0 => Target::Time(commit.time + SignedDuration::from_hours(*self.one(&[-24, 24]))),
                1 => Target::Name("nobody set it".to_owned()),
                _ => Target::Xid(3_000_000_000),
            },
        }
    }
}

/// What pgark answers.
fn asked(world: &World, question: &Question) -> (Answer, String) {
    let words = question.words();
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    words.extend(["--dry-run", "--json"]);
    let outcome = restore_call(&world.repository, Path::new("/nonexistent"), &words).run();
    if outcome.code == UNREACHABLE {
        return (Answer::Refused, outcome.stderr);
    }
    let plan: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome:?}"));
    let (backup, timeline) =
        (plan["backup"]["id"].as_str().unwrap().to_owned(), plan["timeline"].as_u64().unwrap() as u32);
    let proof = plan["proof"].as_str().unwrap();
    if proof.starts_with("none: ") {
        return (Answer::Unknown, proof.to_owned());
    }
    let doubtful = plan["warnings"].to_string().contains("may have ended before");
    let answer = if doubtful { Answer::Doubtful { backup, timeline } } else { Answer::Plan { backup, timeline } };
    (answer, format!("{proof}; warnings {}", plan["warnings"]))
}

#[test]
fn the_chosen_backup_is_right_for_200_random_targets() {
    let mut random = StdRng::seed_from_u64(seed());
    let world = World::grow(&mut random);
    let mut dice = Dice { world: &world, random };
    let (mut wrong, mut planned, mut refused) = (String::new(), Vec::new(), 0);
    for _ in 0..TARGETS {
        let question = dice.question();
        let expected = question.answer(&world);
        let (answer, said) = asked(&world, &question);
        // What is nowhere may still be in what lies in two segments.
        if answer != expected && (&answer, &expected) != (&Answer::Unknown, &Answer::Refused) {
            writeln!(wrong, "{question:?}: {answer:?}, not {expected:?}\n{said}").unwrap();
        }
        match answer {
            Answer::Plan { backup, .. } => planned.push((question, backup)),
            Answer::Refused => refused += 1,
            Answer::Doubtful { .. } | Answer::Unknown => {}
        }
    }
    eprintln!("{} plans, {refused} refusals; backups {:#?}, the fork at {}", planned.len(), world.backups, world.fork);
    assert!(wrong.is_empty(), "{wrong}");
    let chosen: std::collections::BTreeSet<&String> = planned.iter().map(|(_, backup)| backup).collect();
    assert_eq!(chosen.len(), world.backups.len(), "some backups were never chosen: {chosen:?}");
    assert!(refused >= TARGETS / 20, "only {refused} targets were out of reach");
    // In the empty rest of the last segment no record begins, as the plan says: PostgreSQL would stop with an error.
    planned.retain(|(question, _)| match question.target {
        Target::Lsn(lsn) => world.commits_on(question.to()).iter().any(|commit| commit.upper > lsn),
        _ => true,
    });
    for _ in 0..RESTORES {
        let (question, backup) = planned.swap_remove(dice.random.random_range(0..planned.len()));
        let backup = world.backups.iter().find(|known| known.id == backup).unwrap();
        restored_as_asked(&world, &question, backup);
    }
}

fn restored_as_asked(world: &World, question: &Question, backup: &Backup) {
    let expected = question.rows(world, backup);
    let words = question.words();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Restored { cluster, home: _home } = restore(&world.repository, &words);
    cluster.start();
    cluster.wait_promoted(A_MINUTE);
    assert_clean(&cluster);
    let rows: Vec<i64> =
        cluster.sql("SELECT id FROM ledger ORDER BY id").iter().map(|row| row[0].parse().unwrap()).collect();
    // At a position that is no record's beginning the next record belongs to it, and that may be a commit.
    let one_more = matches!(question.target, Target::Lsn(_)) && rows.len() == expected.len() + 1;
    assert_eq!(rows[..rows.len() - usize::from(one_more)], expected, "{question:?}");
    let last =
        world.commits_on(question.to()).into_iter().find(|commit| Some(commit.row) == rows.last().copied()).unwrap();
    let position = Position { timeline: question.to(), lsn: last.upper };
    let mark = Mark { position, xid: String::new(), time: String::new(), row: last.row };
    world.ledger.judge(&cluster, &Expect::exactly(&mark)).unwrap_or_else(|why| panic!("{question:?}: {why}"));
}
