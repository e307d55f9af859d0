//! Who uses a directory now: running servers of this host that are there, or whose links lead there.
//!
//! A server's processes have their data directory as working directory. Those of other users, and those in other containers, cannot
//! be seen.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::restore_dir::overlap;

/// The data directory of a running server that has itself, its WAL or a tablespace in `place`, around it or below it; `root` does not
/// count.
pub fn running_user(place: &Path, root: &Path) -> Option<PathBuf> {
    user_among(working_directories(), place, root)
}

fn user_among(directories: BTreeSet<PathBuf>, place: &Path, root: &Path) -> Option<PathBuf> {
    let (place, root) = (real(place), real(root));
    let others = directories.into_iter().filter(|directory| real(directory) != root);
    others.filter(|other| other.join("postmaster.pid").exists()).find(|other| {
        let links = fs::read_dir(other.join("pg_tblspc")).into_iter().flatten().flatten().map(|link| link.path());
        let mut used = [other.clone(), other.join("pg_wal")].into_iter().chain(links);
        used.any(|used| overlap(&real(&used), &place))
    })
}

fn working_directories() -> BTreeSet<PathBuf> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|process| fs::read_link(process.path().join("cwd")).ok()).collect()
}

fn real(place: &Path) -> PathBuf {
    fs::canonicalize(place).unwrap_or_else(|_| place.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_server_counts_by_its_links_and_only_while_it_runs() {
        let home = tempfile::tempdir().unwrap();
        let (live, space) = (home.path().join("live"), home.path().join("space"));
        fs::create_dir_all(live.join("pg_tblspc")).unwrap();
        fs::create_dir(&space).unwrap();
        symlink(&space, live.join("pg_tblspc/16384")).unwrap();
        let user =
            |place: &Path, root: &str| user_among(BTreeSet::from([live.clone()]), place, &home.path().join(root));
        assert_eq!(user(&space, "copy"), None, "no server runs");
        fs::write(live.join("postmaster.pid"), "1").unwrap();
        assert_eq!(user(&space, "copy"), Some(live.clone()));
        assert_eq!(user(&space.join("PG_15_1"), "copy"), Some(live.clone()));
        assert_eq!(user(&space, "live"), None, "its own");
        assert_eq!(user(&home.path().join("other"), "copy"), None);
        let wal = home.path().join("wal");
        fs::create_dir(&wal).unwrap();
        symlink(&wal, live.join("pg_wal")).unwrap();
        assert_eq!(user(&wal, "copy"), Some(live.clone()));
        assert_eq!(user(&live.join("inner"), "copy"), Some(live.clone()));
    }
}
