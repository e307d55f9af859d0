//! The operating system's user that PostgreSQL runs as: oneself, or, because PostgreSQL refuses to run as root,
//! `postgres` or else `nobody` when the tests run as root.

use std::{
    os::unix::{fs::chown, process::CommandExt},
    path::Path,
    process::Command,
    sync::OnceLock,
};

/// A user and its group, and whether one has to change to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
    changes: bool,
}

impl Account {
    /// Who PostgreSQL runs as in this test process.
    pub fn of_servers() -> Account {
        static ACCOUNT: OnceLock<Account> = OnceLock::new();
        *ACCOUNT.get_or_init(|| {
            if !rustix::process::geteuid().is_root() {
                return Account {
                    uid: rustix::process::geteuid().as_raw(),
                    gid: rustix::process::getegid().as_raw(),
                    changes: false,
                };
            }
            let users = std::fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
            ["postgres", "nobody"]
                .iter()
                .find_map(|name| look_up(&users, name))
                .expect("the tests run as root and there is neither a user `postgres` nor `nobody` for the servers")
        })
    }

    /// Makes the program run as this user, with no supplementary groups (std drops them when root changes its uid).
    pub fn run(self, command: &mut Command) -> &mut Command {
        if self.changes {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Gives a file or directory to this user.
    pub fn own(self, path: &Path) {
        if self.changes {
            chown(path, Some(self.uid), Some(self.gid))
                .unwrap_or_else(|error| panic!("chown `{}`: {error}", path.display()));
        }
    }

    /// Writes a file that belongs to this user.
    pub fn write(self, path: &Path, contents: &str) {
        std::fs::write(path, contents).unwrap_or_else(|error| panic!("write `{}`: {error}", path.display()));
        self.own(path);
    }
}

fn look_up(users: &str, name: &str) -> Option<Account> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { uid, gid, changes: true })
    })
}
