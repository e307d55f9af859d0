//! Whether PostgreSQL's archiver keeps up. `failed_count` alone is blind: a command that is killed or exits above 125 is not
//! counted, nor is one that hangs, and nor is what was never tried.

use super::check::{Finding, Level};
use crate::postgres::{SegmentName, SegmentSize, WalName};
use crate::server::session::ServerFacts;

const CHECK: &str = "archiver";
/// The archiver's own pause between rounds is a minute.
const A_MINUTE: f64 = 60.0;
/// With this many finished segments waiting, somebody should look.
const MANY: i64 = 8;

/// Judges counters, backlog and age.
pub fn judge(facts: &ServerFacts) -> Finding {
    if let Some(trouble) = trouble(facts) {
        return trouble;
    }
    if archives_nothing(facts) {
        return Finding::ok(CHECK, "a standby archives nothing; ask the primary");
    }
    if facts.last_archived.is_none() {
        let hint = "run `pgark check` without `--no-switch`: it follows a segment into the store";
        return warning("nothing was archived since the server's statistics began".to_owned(), hint);
    }
    if facts.archive_timeout == 0 {
        return warning(
            "nothing fails, but archive_timeout is 0: on a quiet server a segment may take hours to fill".to_owned(),
            "set `archive_timeout = 60` or so: it bounds what a lost server loses",
        );
    }
    Finding::ok(CHECK, format!("nothing fails; archive_timeout is {} s", facts.archive_timeout))
}

/// What fails, or does not get on; `None`: nothing shows that.
pub fn trouble(facts: &ServerFacts) -> Option<Finding> {
    let fail = |message: String| Some(Finding::not_ok(CHECK, Level::Fail, message, "the server's log has the reason"));
    if let Some(file) = &facts.failing {
        let count = facts.failed_count;
        return fail(format!("archiving of `{file}` fails ({count} failures so far)"));
    }
    if archives_nothing(facts) {
        return None;
    }
    let uncounted = "PostgreSQL counts no failure: the command hangs, is killed, or exits above 125";
    if let Some((count, oldest)) = facts.waiting
        && oldest > 2.0 * A_MINUTE
    {
        return fail(format!("{count} files wait to be archived, the oldest for {oldest:.0} s, and {uncounted}"));
    }
    let (last, age) = facts.last_archived.as_ref()?;
    // Who may not look at the files themselves has only names and times.
    let backlog = facts.waiting.map_or_else(|| behind(facts, last), |(count, _)| count);
    let patience = A_MINUTE + 2.0 * (facts.archive_timeout as f64).max(A_MINUTE);
    if facts.waiting.is_none() && backlog > 0 && *age > patience {
        return Some(warning(
            format!("{backlog} finished segments wait to be archived, and nothing was for {age:.0} s; {uncounted}"),
            "the server's log has the reason; a role in pg_monitor would see for how long they wait",
        ));
    }
    (backlog >= MANY).then(|| {
        warning(
            format!("{backlog} finished files wait to be archived"),
            "is the store slow, or down a while ago? Watch the disk of pg_wal until they are gone",
        )
    })
}

fn warning(message: String, hint: &str) -> Finding {
    Finding::not_ok(CHECK, Level::Warning, message, hint)
}

/// Its primary does.
pub fn archives_nothing(facts: &ServerFacts) -> bool {
    facts.in_recovery && facts.archive_mode != "always"
}

/// Segments between the last one archived and the one that is being written; none where that cannot be told.
fn behind(facts: &ServerFacts, last: &str) -> i64 {
    let numbers = || {
        let (writing, bytes) = facts.writing.as_ref()?;
        let size = SegmentSize::new(u64::try_from(*bytes).ok()?).ok()?;
        let segment = |name: &str| name.parse::<WalName>().ok()?.segment();
        let (writing, last): (SegmentName, SegmentName) = (segment(writing)?, segment(last)?);
        let same = writing.timeline == last.timeline;
        same.then(|| Some((size.number(writing).ok()?.0, size.number(last).ok()?.0))).flatten()
    };
    let waiting = numbers().map_or(0, |(writing, last)| writing.saturating_sub(last + 1));
    i64::try_from(waiting).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::postgres::SystemId;
    use crate::server::receivers::Receiving;

    pub(in crate::command) fn facts() -> ServerFacts {
        ServerFacts {
            version: 150_000,
            system_id: SystemId(1),
            archive_mode: "on".into(),
            wal_level: "replica".into(),
            archive_command: String::new(),
            archive_library: String::new(),
            archive_timeout: 60,
            in_recovery: false,
            failed_count: 0,
            failing: None,
            last_archived: Some(("000000010000000000000004".into(), 5.0)),
            writing: Some(("000000010000000000000005".into(), 16 << 20)),
            waiting: None,
            receiving: Receiving::default(),
            clock_ahead: None,
        }
    }

    #[track_caller]
    fn level(change: impl FnOnce(&mut ServerFacts), expected: Level, said: &str) {
        let mut facts = facts();
        change(&mut facts);
        let finding = judge(&facts);
        assert!(finding.level == expected && finding.message.contains(said), "{finding:?}");
    }

    #[test]
    fn what_postgresql_does_not_count_is_seen() {
        level(|_| {}, Level::Ok, "nothing fails");
        level(|facts| facts.failing = Some("x".into()), Level::Fail, "`x` fails");
        level(|facts| facts.last_archived = None, Level::Warning, "nothing was archived");
        level(|facts| facts.waiting = Some((1, 5.0)), Level::Ok, "");
        level(|facts| facts.waiting = Some((1, 200.0)), Level::Fail, "the oldest for 200 s");
        level(|facts| (facts.waiting, facts.last_archived) = (Some((1, 200.0)), None), Level::Fail, "above 125");
        level(|facts| facts.waiting = Some((9, 5.0)), Level::Warning, "9 finished files");
        level(|facts| facts.archive_timeout = 0, Level::Warning, "archive_timeout is 0");
        // By names and times alone.
        let last = |facts: &mut ServerFacts, name: &str, age| facts.last_archived = Some((name.into(), age));
        level(|facts| last(facts, "000000010000000000000004", 9000.0), Level::Ok, "");
        level(|facts| last(facts, "000000010000000000000003", 100.0), Level::Ok, "");
        level(|facts| last(facts, "000000010000000000000003", 300.0), Level::Warning, "1 finished segments");
        level(|facts| last(facts, "0000000100000000000000F0", 300.0), Level::Ok, "");
        level(|facts| last(facts, "00000002.history", 300.0), Level::Ok, "");
        level(|facts| (facts.in_recovery, facts.last_archived) = (true, None), Level::Ok, "standby");
    }
}
