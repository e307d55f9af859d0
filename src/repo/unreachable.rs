//! Why a target cannot be reached, in words, and what can be done about it.

use std::fmt;

use super::restore_plan::{Missing, OffPath, Unreachable};
use super::restore_target::Target;

/// So many of a kind are named.
const NAMED: usize = 8;

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreachable::NoBackup { unfinished } if unfinished.is_empty() => f.write_str("there is no backup"),
            Unreachable::NoBackup { unfinished } => {
                let ids = listed(unfinished.iter().map(|id| format!("`{id}`")));
                write!(f, "there is no finished backup, only parts of {ids}")
            }
            Unreachable::AllDamaged(backups) => {
                let damaged = backups.iter().map(|(id, reason)| format!("`{id}` ({reason})"));
                write!(f, "every backup is damaged: {}", listed(damaged))
            }
            Unreachable::NoSuchBackup(id) => write!(f, "there is no backup `{id}`"),
            Unreachable::OtherGeneration { backup, generation, wanted } => {
                write!(
                    f,
                    "backup `{backup}` belongs to generation {generation}, another cluster than that of generation {wanted}"
                )
            }
            Unreachable::BackupUnfinished(id) => {
                write!(f, "backup `{id}` has no manifest: it is still being taken, or was never finished")
            }
            Unreachable::BackupDamaged(id, reason) => write!(f, "backup `{id}` is damaged: {reason}"),
            Unreachable::NoSuchTimeline { timeline, known } => {
                let known = listed(known.iter().map(|known| known.get().to_string()));
                write!(f, "there is no timeline {}; the repository knows {known}", timeline.get())
            }
            Unreachable::HistoryMissing { timeline, wanted } if timeline == wanted => {
                write!(f, "`{timeline}.history` is missing: nobody knows where timeline {} comes from", timeline.get())
            }
            Unreachable::HistoryMissing { timeline, wanted } => write!(
                f,
                "`{timeline}.history` is missing, though there is a timeline {}: PostgreSQL would look no further than timeline {}",
                wanted.get(),
                timeline.get() - 1
            ),
            Unreachable::HistoryDamaged(timeline, reason) => write!(f, "`{timeline}.history` is damaged: {reason}"),
            Unreachable::NotAnAncestor { timeline, backups } => {
                let why = listed(backups.iter().map(OffPath::to_string));
                write!(f, "no backup lies on the way to timeline {}: {why}", timeline.get())
            }
            Unreachable::BeforeFirstBackup { backup, stop, stopped, asked_for } => {
                let which = if *asked_for { "backup" } else { "the first backup" };
                write!(f, "it lies before the end of {which} `{backup}`, which stopped at {stop}, {stopped}")
            }
            Unreachable::WithinBackup { backup, segment } => write!(
                f,
                "a restore point of this name is within the backup `{backup}`, in segment `{segment}`: PostgreSQL would stop there, before \
                 the backup is consistent"
            ),
            Unreachable::Gap { backup, missing, newest: None } => {
                write!(f, "WAL that backup `{backup}` itself needs is missing: {}", spans(missing))
            }
            Unreachable::Gap { missing, newest: Some(newest), .. } => {
                write!(f, "{} missing, later WAL is there; all is there up to {newest}", are(missing))
            }
            Unreachable::ForkNotArchived { timeline, fork, missing, stray, .. } => write!(
                f,
                "timeline {} begins at {fork}, but its first segment `{missing}` is not archived; timeline {} went on behind the fork up \
                 to `{stray}` at least, and recovery would look there",
                timeline.get(),
                stray.timeline.get()
            ),
            Unreachable::BehindTheFork { timeline, parent, left_at } => write!(
                f,
                "it is archived on timeline {} only, which the way to timeline {} leaves at {left_at}",
                parent.get(),
                timeline.get()
            ),
            Unreachable::Beyond { target: Target::Time(_), newest, last_commit } => {
                write!(f, "no commit behind it is archived: the archive ends at {newest}")?;
                match last_commit {
                    Some(last) => write!(f, ", and its last commit is of {last}"),
                    None => f.write_str(", and it has no commit since the backup"),
                }
            }
            Unreachable::Beyond { newest, .. } => {
                write!(f, "it is not archived: the archive ends at {newest}")
            }
            Unreachable::NotFound { first, last, silent, .. } => {
                write!(f, "it was not found in the segments `{first}` to `{last}`")?;
                match silent {
                    0 => Ok(()),
                    silent => write!(f, ", of which {silent} do not tell what they hold"),
                }
            }
        }
    }
}

impl Unreachable {
    /// What can be done about it.
    pub fn hint(&self) -> String {
        match self {
            Unreachable::NoBackup { .. } => "take one with `pgark basebackup`".to_owned(),
            Unreachable::AllDamaged(_) => {
                "put an intact copy of an object back, which a bucket with versioning may have; and take a new backup".to_owned()
            }
            Unreachable::BackupDamaged(..) => {
                "`pgark list` shows the other backups; or put an intact copy of the object back, which a bucket with versioning may have"
                    .to_owned()
            }
            Unreachable::NoSuchBackup(_) => "`pgark list` shows the backups".to_owned(),
            Unreachable::OtherGeneration { generation, .. } => {
                format!("it can be followed with the WAL of generation {generation} only")
            }
            Unreachable::BackupUnfinished(_) => "`pgark list` shows the backups that can be restored".to_owned(),
            Unreachable::NoSuchTimeline { .. } => "`pgark status` shows the timelines".to_owned(),
            Unreachable::HistoryMissing { timeline, .. } | Unreachable::HistoryDamaged(timeline, _) => format!(
                "archive `pg_wal/{timeline}.history` of a server that has it, or name another timeline with `--target-timeline`"
            ),
            Unreachable::NotAnAncestor { backups, .. } => match backups.iter().map(|off| off.timeline).max() {
                Some(timeline) => {
                    format!("`--target-timeline {}` follows a timeline that has a backup", timeline.get())
                }
                None => "`pgark status` shows what can be restored".to_owned(),
            },
            Unreachable::BeforeFirstBackup { asked_for: true, .. } => {
                "leave the backup's name out: then the newest that ended before the target is taken".to_owned()
            }
            Unreachable::BeforeFirstBackup { .. } => {
                "a backup can be restored to the moment at which it stopped, or any later one".to_owned()
            }
            Unreachable::WithinBackup { .. } => {
                "a later one of this name is reached by `--target-lsn` or `--target-time`; an older backup ends before this one"
                    .to_owned()
            }
            Unreachable::Gap { newest: None, .. } => {
                "archive what is missing from a `pg_wal` that still has it: `pgark wal-push --backfill`".to_owned()
            }
            Unreachable::Gap { newest: Some(newest), .. } => format!(
                "archive what is missing with `pgark wal-push --backfill` where a `pg_wal` still has it, or stop before: a target before {}",
                newest.lsn
            ),
            Unreachable::ForkNotArchived { newest, .. } => format!(
                "switch a segment on the new primary and wait until it is archived, or stop before it: a target before {}",
                newest.lsn
            ),
            Unreachable::BehindTheFork { parent, .. } => {
                format!("`--target-timeline {}` follows that one", parent.get())
            }
            Unreachable::Beyond { target: Target::Time(_), .. } => {
                "PostgreSQL stops at a time only when it sees a later commit: without a target it restores everything"
                    .to_owned()
            }
            Unreachable::Beyond { .. } => "without a target everything is restored".to_owned(),
            Unreachable::NotFound { target: Target::Xid(_), silent: 0, .. } => {
                "see that its number is right, and that it ended, behind the end of the first backup".to_owned()
            }
            Unreachable::NotFound { silent: 0, .. } => {
                "see that it is spelt right, and that it came after the end of the first backup".to_owned()
            }
            Unreachable::NotFound { .. } => {
                "name a backup that ended before it: PostgreSQL then looks for it itself".to_owned()
            }
        }
    }
}

impl fmt::Display for OffPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, timeline, stop) = (self.backup, self.timeline.get(), self.stop);
        match self.left_at {
            None => write!(f, "`{id}` is on timeline {timeline}, which it does not come from"),
            Some(left_at) => write!(f, "`{id}` stopped at {stop} on timeline {timeline}, which was left at {left_at}"),
        }
    }
}

fn spans(missing: &[Missing]) -> String {
    listed(missing.iter().map(Missing::to_string))
}

fn are(missing: &[Missing]) -> String {
    let one = missing.len() == 1 && missing[0].segments == 1;
    format!("{} {}", spans(missing), if one { "is" } else { "are" })
}

fn listed(items: impl ExactSizeIterator<Item = String>) -> String {
    let more = items.len().saturating_sub(NAMED);
    let mut words: Vec<String> = items.take(NAMED).collect();
    if more > 0 {
        words.push(format!("{more} more"));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::inventory::Inventory;
    use super::super::restore_plan::Unreachable;
    use super::super::restore_target::{Indexes, Request, Target, TargetTimeline};
    use super::super::sample::{at, empty, id, lsn, plain_indexes, segment, timeline};
    use super::super::select::{Selection, select};
    use super::super::stored_backups::BackupState;
    use super::super::{BackupId, Generation};

    /// What is said about a request, where each segment has the commits of its minute.
    fn said(inventory: &Inventory, request: &Request) -> String {
        let mut indexes = Indexes::new();
        loop {
            match select(inventory, request, &indexes) {
                Selection::Ask(names) => indexes.extend(plain_indexes(&names)),
                Selection::Unreachable(why) => return format!("{why}\nhint: {}", why.hint()),
                Selection::Plan(plan) => return format!("{plan:#?}"),
            }
        }
    }

    fn on(timeline: TargetTimeline, target: Target) -> Request {
        Request { timeline, ..Request::to(target) }
    }

    fn from(backup: BackupId) -> Request {
        Request { backup: Some(backup), ..Request::to(Target::Latest) }
    }

    /// Two backups on timeline 1, segments 1 to 9.
    fn archive() -> Inventory {
        empty().with_wal(1, 1..=9).with_backup(120, 1, lsn(2, 10), lsn(2, 60)).with_backup(
            300,
            1,
            lsn(5, 10),
            lsn(5, 60),
        )
    }

    fn promoted() -> Inventory {
        archive().with_history(2, &[(1, lsn(7, 50))]).with_wal(2, 7..=8)
    }

    #[test]
    fn every_reason_in_words() {
        let number = |number| TargetTimeline::Number(timeline(number));
        let damaged = || BackupState::Damaged("`main/1/backup/x/manifest.json.zst`: it is empty".into(), None);
        let holes = || archive().with_wal(1, [11, 14, 15, 16]);
        let cases: Vec<(&str, Inventory, Request)> = vec![
            ("no backup", empty().with_wal(1, 1..=9), Request::to(Target::Latest)),
            ("parts only", empty().with_state(60, BackupState::Unfinished), Request::to(Target::Latest)),
            ("all damaged", empty().with_state(60, damaged()), Request::to(Target::Latest)),
            ("no such backup", archive(), from(id(999))),
            ("a backup in parts", archive().with_state(400, BackupState::Unfinished), from(id(400))),
            ("a damaged backup", archive().with_state(400, damaged()), from(id(400))),
            ("an LSN before the first backup", archive(), Request::to(Target::Lsn(lsn(2, 50)))),
            ("a time before the first backup", archive(), Request::to(Target::Time(at(130)))),
            (
                "a time before the backup asked for",
                archive(),
                Request { backup: Some(id(300)), ..Request::to(Target::Time(at(200))) },
            ),
            ("a gap before an LSN", holes(), Request::to(Target::Lsn(lsn(12, 50)))),
            ("a gap before a time", holes(), Request::to(Target::Time(at(2000)))),
            ("a gap before the latest", holes(), Request::to(Target::Latest)),
            ("a gap before a name", holes(), Request::to(Target::Name("point-15".into()))),
            (
                "a gap within the only backup",
                empty().with_wal(1, [1, 2, 5, 6]).with_backup(120, 1, lsn(2, 10), lsn(4, 60)),
                Request::to(Target::Immediate),
            ),
            ("no such timeline", promoted(), on(number(3), Target::Latest)),
            ("no history", promoted().with_wal(3, 8..=8), on(number(3), Target::Latest)),
            (
                "no history in between",
                promoted().with_history(4, &[(1, lsn(7, 50)), (2, lsn(8, 10))]),
                Request::to(Target::Latest),
            ),
            (
                "not an ancestor",
                archive().with_history(2, &[(1, lsn(2, 20))]).with_wal(2, 2..=4),
                on(number(2), Target::Latest),
            ),
            (
                "another branch",
                empty()
                    .with_wal(1, 1..=9)
                    .with_history(2, &[(1, lsn(3, 20))])
                    .with_wal(2, 3..=6)
                    .with_history(3, &[(1, lsn(7, 20))])
                    .with_backup(200, 2, lsn(4, 10), lsn(4, 60)),
                Request::to(Target::Latest),
            ),
            ("on the parent only", promoted(), Request::to(Target::Lsn(lsn(9, 50)))),
            ("the fork is not archived", archive().with_history(2, &[(1, lsn(7, 50))]), Request::to(Target::Latest)),
            ("an LSN beyond", archive(), Request::to(Target::Lsn(lsn(12, 50)))),
            ("a time beyond", archive(), Request::to(Target::Time(at(900)))),
            ("an unknown name", archive(), Request::to(Target::Name("before-the-deploy".into()))),
            ("an unknown transaction", archive(), Request::to(Target::Xid(4711))),
        ];
        let mut words: Vec<String> = cases
            .iter()
            .map(|(case, inventory, request)| format!("# {case}\n{}\n", said(inventory, request)))
            .collect();
        let alone = [
            Unreachable::OtherGeneration { backup: id(60), generation: Generation(1), wanted: Generation(2) },
            Unreachable::HistoryDamaged(timeline(2), "line 1: the switch position is missing".into()),
            Unreachable::NotFound {
                target: Target::Name("x".into()),
                first: segment(1, 2),
                last: segment(1, 9),
                silent: 3,
            },
        ];
        words.extend(alone.iter().map(|why| format!("# in short\n{why}\nhint: {}\n", why.hint())));
        insta::assert_snapshot!(words.join("\n"));
    }
}
