//! `target_session_attrs`: which of several servers is the one that is wanted.
//!
//! Source: `connectOptions2` and `PQconnectPoll` in `interfaces/libpq/fe-connect.c`.

/// What the server must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetSession {
    /// Whatever it is.
    #[default]
    Any,
    /// It takes writes.
    ReadWrite,
    /// It takes none.
    ReadOnly,
    /// It is no standby.
    Primary,
    /// It is a standby.
    Standby,
    /// It is a standby, if there is one.
    PreferStandby,
}

/// What a server says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// It is in recovery.
    pub is_standby: bool,
    /// It takes no writes: a standby, or a primary whose `default_transaction_read_only` is on.
    pub is_read_only: bool,
}

impl Role {
    /// From `in_hot_standby` and `default_transaction_read_only`, which PostgreSQL reports at the login from 14 on. `None`: it
    /// was not told, as by a pooler.
    pub(super) fn reported<'a>(setting: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let is_on = |name| setting(name).map(|value| value == "on");
        let is_standby = is_on("in_hot_standby")?;
        Some(Role { is_standby, is_read_only: is_standby || is_on("default_transaction_read_only")? })
    }
}

impl TargetSession {
    /// libpq's words.
    const WORDS: [(&'static str, TargetSession); 6] = [
        ("any", TargetSession::Any),
        ("read-write", TargetSession::ReadWrite),
        ("read-only", TargetSession::ReadOnly),
        ("primary", TargetSession::Primary),
        ("standby", TargetSession::Standby),
        ("prefer-standby", TargetSession::PreferStandby),
    ];

    /// By libpq's word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, target)| *target)
    }

    /// libpq's word.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, target)| *target == self).map_or("any", |(word, _)| word)
    }

    /// What is looked for in all servers, one after the other.
    pub(super) fn passes(self) -> &'static [TargetSession] {
        match self {
            TargetSession::Any => &[TargetSession::Any],
            TargetSession::ReadWrite => &[TargetSession::ReadWrite],
            TargetSession::ReadOnly => &[TargetSession::ReadOnly],
            TargetSession::Primary => &[TargetSession::Primary],
            TargetSession::Standby => &[TargetSession::Standby],
            TargetSession::PreferStandby => &[TargetSession::Standby, TargetSession::Any],
        }
    }

    /// Why a server is not the one, if it is not.
    pub(super) fn refuses(self, role: Role) -> Option<&'static str> {
        match self {
            TargetSession::ReadWrite if role.is_standby => Some("it is a standby"),
            TargetSession::ReadWrite if role.is_read_only => Some("its sessions are read-only"),
            TargetSession::ReadOnly if !role.is_read_only => Some("its sessions are read-write"),
            TargetSession::Primary if role.is_standby => Some("it is a standby"),
            TargetSession::Standby if !role.is_standby => Some("it is a primary"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_takes_what_libpq_takes() {
        let roles = [(false, false), (false, true), (true, true)]
            .map(|(is_standby, is_read_only)| Role { is_standby, is_read_only });
        for (word, fits) in [
            ("any", [true, true, true]),
            ("read-write", [true, false, false]),
            ("read-only", [false, true, true]),
            ("primary", [true, true, false]),
            ("standby", [false, false, true]),
        ] {
            let target = TargetSession::parse(word).unwrap();
            assert_eq!(roles.map(|role| target.refuses(role).is_none()), fits, "{word}");
            assert_eq!((target.word(), target.passes()), (word, &[target][..]));
        }
        let prefers = TargetSession::parse("prefer-standby").unwrap();
        assert_eq!(prefers.passes(), [TargetSession::Standby, TargetSession::Any]);
        assert_eq!(TargetSession::parse("master"), None);
    }

    #[test]
    fn a_role_is_what_the_server_reports() {
        let role = |standby: Option<&'static str>, read_only: Option<&'static str>| {
            Role::reported(|name| match name {
                "in_hot_standby" => standby,
                "default_transaction_read_only" => read_only,
                other => panic!("{other}"),
            })
            .map(|role| (role.is_standby, role.is_read_only))
        };
        assert_eq!(role(Some("off"), Some("off")), Some((false, false)));
        assert_eq!(role(Some("off"), Some("on")), Some((false, true)));
        assert_eq!(role(Some("on"), Some("off")), Some((true, true)));
        assert_eq!([role(None, Some("on")), role(Some("off"), None)], [None; 2]);
    }
}
