//! All exit codes, in one place.
//!
//! PostgreSQL reads them: 1 to 125 from `restore_command` means "there is no such file" and ends recovery, above 125 stops
//! the server. `archive_command` is the other way round: above 125 the archiver itself restarts, so failures stay below.
//! `docs/exit-codes.md` is the table for people; a test compares both.

use crate::command::FailureKind;
use crate::command::check::Level;
use crate::postgres::recovery::RecoveryMode;

/// Done: durable, or restored and verified.
pub const SUCCESS: u8 = 0;
/// `wal-fetch`: proven absent. Elsewhere: see the tables.
pub const ABSENT: u8 = 1;
/// `basebackup`: the backup is there, and has pages with wrong checksums.
pub const DAMAGED_PAGES: u8 = 1;
/// `list`, `show`: a backup is damaged, or lacks WAL.
pub const DAMAGED_BACKUP: u8 = 1;
/// `alert`: a message was not taken.
pub const NOT_DELIVERED: u8 = 1;
/// `wal-fetch`: anything but restored or proven absent. Not 143, which PostgreSQL takes for a shutdown.
pub const STOP_RECOVERY: u8 = 200;

/// The code of a failed `wal-push`, and of every other command that has no table of its own.
pub fn failed(kind: FailureKind) -> u8 {
    match kind {
        FailureKind::Conflict => 1,
        FailureKind::Usage => 2,
        FailureKind::BadInput => 3,
        FailureKind::LocalIo => 4,
        FailureKind::Unavailable => 10,
        FailureKind::Denied => 11,
        FailureKind::WrongPlace => 12,
        FailureKind::Unsupported => 13,
        FailureKind::Damaged => 14,
        FailureKind::NoIdentity => 15,
        FailureKind::Gap => 16,
        FailureKind::Server => 17,
        FailureKind::Unreachable => 18,
        FailureKind::Deadline => 20,
        FailureKind::Interrupted => 21,
        FailureKind::Internal => 70,
    }
}

/// In which situation `wal-fetch` was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchSituation {
    /// By the signal files.
    pub mode: RecoveryMode,
    /// A promotion was asked for: streaming will not take over.
    pub promote: bool,
    /// `wal.strict_standby`
    pub strict: bool,
}

/// The code of a failed `wal-fetch`.
pub fn fetch_failed(kind: FailureKind, situation: FetchSituation) -> u8 {
    let streaming_takes_over = situation.mode == RecoveryMode::Standby && !situation.promote && !situation.strict;
    match kind {
        // Nobody knows what such a call meant.
        FailureKind::Usage | FailureKind::Internal => STOP_RECOVERY,
        FailureKind::NoIdentity if situation.mode == RecoveryMode::Unknown => ABSENT,
        _ if streaming_takes_over => ABSENT,
        _ => STOP_RECOVERY,
    }
}

/// The code of `check` and its kin, in the order of Nagios.
pub fn checked(worst: Level) -> u8 {
    match worst {
        Level::Ok => 0,
        Level::Warning => 1,
        Level::Fail => 2,
        Level::Unknown => 3,
    }
}

/// The code of `verify`: damage counts for more than what could not be told.
pub fn verified(damage: bool, doubt: bool) -> u8 {
    match (damage, doubt) {
        (true, _) => 2,
        (false, true) => 3,
        (false, false) => 0,
    }
}

/// The code when the words on the command line could not even be read, or the process panicked: by the verb among them.
pub fn unreadable(verb: Option<&str>, kind: FailureKind) -> u8 {
    match verb {
        Some("wal-fetch" | "archive-get") => STOP_RECOVERY,
        Some("check" | "status" | "info" | "verify" | "drill") => 3,
        _ => failed(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn push_stays_between_1_and_99_and_tells_kinds_apart() {
        let codes: Vec<u8> = FailureKind::ALL.iter().map(|kind| failed(*kind)).collect();
        assert!(codes.iter().all(|code| (1..=99).contains(code)));
        let mut different = codes.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), codes.len());
    }

    /// Every cell: the mode, a promotion, strictness and the kind of failure.
    #[test]
    fn fetch_says_absent_only_where_streaming_takes_over_or_nobody_recovers() {
        use FailureKind::*;
        use RecoveryMode::*;
        for kind in FailureKind::ALL {
            for promote in [false, true] {
                for strict in [false, true] {
                    let code = |mode| fetch_failed(kind, FetchSituation { mode, promote, strict });
                    assert_eq!(code(Recovery), 200, "{kind:?}");
                    assert_eq!(code(Unknown), if kind == NoIdentity { 1 } else { 200 }, "{kind:?}");
                    let stays = matches!(kind, Usage | Internal) || promote || strict;
                    assert_eq!(code(Standby), if stays { 200 } else { 1 }, "{kind:?} {promote} {strict}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_read_never_looks_like_absence() {
        for verb in ["wal-fetch", "archive-get"] {
            assert_eq!(unreadable(Some(verb), FailureKind::Usage), 200);
            assert_eq!(unreadable(Some(verb), FailureKind::Internal), 200);
        }
        assert_eq!(unreadable(Some("wal-push"), FailureKind::Usage), 2);
        assert_eq!(unreadable(Some("wal-push"), FailureKind::Internal), 70);
        assert_eq!(unreadable(None, FailureKind::Usage), 2);
        assert_eq!(unreadable(Some("check"), FailureKind::Usage), 3);
        assert_eq!(unreadable(Some("info"), FailureKind::Usage), 3);
        assert_eq!(unreadable(Some("verify"), FailureKind::Denied), 3);
        assert_eq!(unreadable(Some("drill"), FailureKind::Usage), 3);
        let verified = [(false, false), (false, true), (true, false), (true, true)].map(|(d, u)| verified(d, u));
        assert_eq!(verified, [0, 3, 2, 2]);
    }

    #[test]
    fn the_documented_table_is_this_one() {
        let page = include_str!("../../docs/exit-codes.md");
        for kind in FailureKind::ALL {
            let row = format!("| {} | `{}` |", failed(kind), kind.word());
            assert!(page.contains(&row), "docs/exit-codes.md lacks {row}");
        }
    }
}
