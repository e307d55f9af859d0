//! In which kind of recovery PostgreSQL asks for WAL, and whose fault may look like "absent".

/// Why a server runs `restore_command`, read off the signal files in its data directory.
///
/// Source: `readRecoverySignalFile` in `access/transam/xlogrecovery.c`: `standby.signal` wins where
/// both files stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryMode {
    /// `recovery.signal`: an absent segment ends recovery, and the server promotes itself.
    Recovery,
    /// `standby.signal`: an absent segment sends the server to streaming, and it asks again.
    Standby,
    /// Neither: somebody else asks, such as `pg_rewind` or a person.
    Unknown,
}

/// The names of the files whose presence decides.
pub const RECOVERY_SIGNAL: &str = "recovery.signal";
/// See [`RECOVERY_SIGNAL`].
pub const STANDBY_SIGNAL: &str = "standby.signal";
/// `pg_ctl promote` leaves this file until the server has seen it.
pub const PROMOTE_SIGNAL: &str = "promote";

impl RecoveryMode {
    /// The mode for the files that were found.
    pub fn from_signals(recovery: bool, standby: bool) -> Self {
        match (recovery, standby) {
            (_, true) => RecoveryMode::Standby,
            (true, false) => RecoveryMode::Recovery,
            (false, false) => RecoveryMode::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standby_wins() {
        assert_eq!(RecoveryMode::from_signals(true, true), RecoveryMode::Standby);
        assert_eq!(RecoveryMode::from_signals(false, true), RecoveryMode::Standby);
        assert_eq!(RecoveryMode::from_signals(true, false), RecoveryMode::Recovery);
        assert_eq!(RecoveryMode::from_signals(false, false), RecoveryMode::Unknown);
    }
}
