//! Durability of many files at once.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Flushes at once: a disk merges them.
const THREADS: usize = 8;

/// Makes a file or a directory durable.
pub(super) fn sync(place: &Path) -> io::Result<()> {
    let synced = File::open(place).and_then(|file| file.sync_all());
    synced.map_err(|e| io::Error::new(e.kind(), format!("`{}`: {e}", place.display())))
}

/// Makes each of them durable. After a `syncfs` there is hardly anything left to write. But that alone tells of failed writes only since
/// Linux 5.8, and not of those before its call; `fsync` tells of a file's, whenever it was, once.
pub(super) fn sync_each(places: &[PathBuf]) -> io::Result<()> {
    let share = places.len().div_ceil(THREADS).max(1);
    std::thread::scope(|scope| {
        let shares = places.chunks(share).map(|some| scope.spawn(|| some.iter().try_for_each(|place| sync(place))));
        let shares: Vec<_> = shares.collect();
        let failed = |_| Err(io::Error::other("a thread failed"));
        shares.into_iter().try_for_each(|share| share.join().unwrap_or_else(failed))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_cannot_be_made_durable_is_named() {
        let place = tempfile::tempdir().unwrap();
        for count in [0, 1, 7, 8, 9, 100] {
            let mut places: Vec<PathBuf> = (0..count).map(|number| place.path().join(number.to_string())).collect();
            places.iter().for_each(|file| std::fs::write(file, b"x").unwrap());
            sync_each(&places).unwrap();
            places.insert(count / 2, place.path().join("missing"));
            let why = sync_each(&places).unwrap_err().to_string();
            assert!(why.contains("missing"), "{count}: {why}");
        }
    }
}
