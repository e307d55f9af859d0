//! Where a restore puts tablespaces: looked at before the first change, so that a refusal leaves everything as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::restore_dir::{RestoreDirError, overlap};
use super::tablespace_users::running_user;

/// Where tablespaces go, by object id.
#[derive(Clone, Debug, Default)]
pub struct Locations {
    /// The directories.
    pub places: BTreeMap<u32, PathBuf>,
    /// Those whose place the operator named.
    pub named: BTreeSet<u32>,
}

/// Refuses locations that a restore to `root` cannot use. Changes nothing.
///
/// * A location is absolute, not in the data directory or around it, and apart from the others.
/// * It does not exist or is empty, or is the one that this very tablespace of the directory's cluster has now. The link alone does
///   not tell: that of a copied directory leads to the original's files. So the operator has to name it, unless a restore that was
///   broken off left it (`marked`), and no other server that runs may use it.
pub fn check_locations(root: &Path, locations: &Locations, marked: bool) -> Result<(), RestoreDirError> {
    let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let mut seen: Vec<PathBuf> = Vec::new();
    for (oid, location) in &locations.places {
        let place = location.display();
        let refused = |why: &str| {
            let message = format!("the location `{place}` of tablespace {oid} {why}: map it with `--tablespace-map`");
            Err(RestoreDirError::Refused(message))
        };
        let plain = location.components().count() > 1 && location.iter().all(|name| name != "..");
        let real = fs::canonicalize(location).unwrap_or_else(|_| location.clone());
        if !location.is_absolute() || !plain || overlap(&real, &root) {
            return refused("cannot be used");
        }
        if seen.iter().any(|other| overlap(&real, other)) {
            return refused("is in a place that is used already");
        }
        let own = fs::read_link(root.join("pg_tblspc").join(oid.to_string())).is_ok_and(|target| target == *location);
        let full = match fs::read_dir(location) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(_) => return refused("is no directory that can be read"),
        };
        if full && !own {
            return refused("is not empty");
        }
        if let Some(user) = running_user(location, &root).filter(|_| full) {
            return refused(&format!("is in use by the server that runs in `{}`", user.display()));
        }
        if full && !marked && !locations.named.contains(oid) {
            let message = format!(
                "the location `{place}` of tablespace {oid} has files, which may be those of another cluster if `{}` is a copy of it: \
                 if they may be overwritten, say `--tablespace-map {place}={place}`",
                root.display()
            );
            return Err(RestoreDirError::Refused(message));
        }
        seen.push(real);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_changes_nothing() {
        let place = tempfile::tempdir().unwrap();
        let (root, full) = (place.path().join("data"), place.path().join("full"));
        fs::create_dir(&full).unwrap();
        fs::write(full.join("x"), b"").unwrap();
        let check = |locations: &[&Path]| {
            let each = locations.iter().enumerate().map(|(oid, location)| (oid as u32 + 1, location.to_path_buf()));
            check_locations(&root, &Locations { places: each.collect(), named: BTreeSet::new() }, false)
        };
        for wrong in
            [full.as_path(), Path::new("/"), Path::new("a"), Path::new("/a/../b"), &root.join("in"), place.path()]
        {
            assert!(check(&[wrong]).is_err(), "{}", wrong.display());
        }
        let good = place.path().join("good");
        assert!(check(&[&good, &good.join("in")]).is_err());
        check(&[&good, &place.path().join("better")]).unwrap();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_alone_gives_no_right_to_files() {
        let place = tempfile::tempdir().unwrap();
        let (root, space) = (place.path().join("data"), place.path().join("space"));
        fs::create_dir_all(root.join("pg_tblspc")).unwrap();
        fs::create_dir_all(space.join("PG_15_1")).unwrap();
        std::os::unix::fs::symlink(&space, root.join("pg_tblspc/5")).unwrap();
        let check = |named: &[u32], marked| {
            let locations =
                Locations { places: BTreeMap::from([(5, space.clone())]), named: named.iter().copied().collect() };
            check_locations(&root, &locations, marked)
        };
        let why = check(&[], false).unwrap_err().to_string();
        assert!(why.contains(&format!("--tablespace-map {0}={0}", space.display())), "{why}");
        check(&[5], false).unwrap();
        check(&[], true).unwrap();
        fs::remove_dir(space.join("PG_15_1")).unwrap();
        check(&[], false).unwrap();
    }
}
