//! Where a restore puts tablespaces: looked at before the first change, so that a refusal leaves everything as it was.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::restore_dir::{RestoreDirError, overlap};

/// Refuses locations of tablespaces (by object id) that a restore to `root` cannot use. Changes nothing.
///
/// * A location is absolute, not in the data directory or around it, and apart from the others.
/// * It does not exist or is empty, or is the one that this very tablespace of the directory's cluster has now.
pub fn check_locations(root: &Path, locations: &BTreeMap<u32, PathBuf>) -> Result<(), RestoreDirError> {
    let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let mut seen: Vec<PathBuf> = Vec::new();
    for (oid, location) in locations {
        let refused = |why: &str| {
            let place = location.display();
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
            check_locations(&root, &each.collect())
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
}
