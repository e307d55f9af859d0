//! PostgreSQL's own `backup_manifest` against what has arrived: every file that it sent, and no other.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;

use super::backup_finish::Summed;
use super::basebackup::{Begun, Ended};
use super::failure::{Failure, FailureKind};
use crate::postgres::backup_files::CONTROL_FILE;
use crate::postgres::backup_manifest::{FileChecksum, ManifestFile};
use crate::postgres::backup_manifest_reader::ManifestReader;
use crate::postgres::{BackupPath, Malformed};

/// Compares sizes and checksums of all files, the cluster, and the WAL that is needed.
pub(super) fn check_against(
    manifest: &[u8],
    begun: &Begun,
    ended: &Ended<'_>,
    arrived: &BTreeMap<BackupPath, Summed>,
) -> Result<(), Failure> {
    let differs = |why: String| {
        Failure::new(FailureKind::Server, format!("what arrived is not what PostgreSQL says it sent: {why}"))
            .with_hint("run the same command again")
    };
    let malformed = |e: Malformed| differs(e.to_string());
    let control = (ended.control.len() as u64, crc32c::crc32c(&ended.control));
    let mut wrong: Option<String> = None;
    let mut judge = |file: ManifestFile| {
        let found = match file.path.as_os_str().as_bytes() {
            path if path == CONTROL_FILE.as_bytes() => Some(control),
            path => BackupPath::new(path)
                .ok()
                .and_then(|path| arrived.get(&path))
                .map(|summed| (summed.entry.size, summed.crc32c)),
        };
        let why = match (found, file.checksum) {
            (Some((size, crc)), FileChecksum::Crc32c(expected)) if size == file.size && crc == expected => return,
            (None, _) => "did not arrive",
            (Some((size, _)), _) if size != file.size => "has another size",
            (Some(_), FileChecksum::Crc32c(_)) => "has another checksum",
            (Some(_), _) => "came without a checksum",
        };
        wrong.get_or_insert_with(|| format!("`{}` {why}", file.path.display()));
    };
    let mut reader = ManifestReader::new();
    for piece in manifest.chunks(64 << 10) {
        reader.push(piece, &mut judge).map_err(malformed)?;
    }
    let end = reader.finish().map_err(malformed)?;
    if let Some(why) = wrong {
        return Err(differs(why));
    }
    // Each that is listed has arrived: as many of both are the same. pg_control is kept apart.
    let count = arrived.len() as u64 + 1;
    if end.files != count {
        return Err(differs(format!("{count} files, of which the manifest lists {}", end.files)));
    }
    if end.system_id.is_some_and(|system_id| system_id != begun.ident.system_id) {
        return Err(differs("the manifest is of another cluster".to_owned()));
    }
    let (start, stop) = (begun.started.lsn, ended.stopped.lsn);
    match &end.wal[..] {
        [range] if range.start == start && range.end == stop => Ok(()),
        ranges => Err(differs(format!("the manifest needs WAL of {ranges:?}, the backup goes from {start} to {stop}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::backup_manifest::{ManifestWriter, WalRange};
    use crate::postgres::{ClusterIdent, Lsn, SystemId, TimelineId};
    use crate::repo::Generation;
    use crate::repo::manifest_entries::FileEntry;
    use crate::server::backup_session::{Started, Stopped};
    use jiff::Timestamp;

    fn ident(system_id: u64) -> ClusterIdent {
        ClusterIdent { system_id: SystemId(system_id), major: 17.try_into().unwrap() }
    }

    fn manifest(of: u64, files: &[(&str, &[u8])], end: Lsn) -> Vec<u8> {
        let mut writer = ManifestWriter::begin(Vec::new(), ident(of)).unwrap();
        for (path, content) in files {
            let checksum = FileChecksum::Crc32c(crc32c::crc32c(content));
            let file = ManifestFile {
                path: path.into(),
                size: content.len() as u64,
                modified: Timestamp::UNIX_EPOCH,
                checksum,
            };
            writer.file(&file).unwrap();
        }
        writer.finish(&[WalRange { timeline: TimelineId::FIRST, start: Lsn(40), end }]).unwrap()
    }

    fn arrived(files: &[(&str, &[u8])]) -> BTreeMap<BackupPath, Summed> {
        let each = files.iter().map(|(path, content)| {
            let path = BackupPath::new(path.as_bytes()).unwrap();
            let size = content.len() as u64;
            let entry = FileEntry { file: path.clone(), mode: 0o600, size, modified: 0, extents: vec![] };
            (path, Summed { entry, crc32c: crc32c::crc32c(content) })
        });
        each.collect()
    }

    fn judged(manifest: &[u8], files: &[(&str, &[u8])]) -> Result<(), String> {
        let now = Timestamp::UNIX_EPOCH;
        let begun = Begun {
            id: "20261122T231805Z-0a1b2c3d".parse().unwrap(),
            label: String::new(),
            generation: Generation::FIRST,
            ident: ident(7),
            started: Started { lsn: Lsn(40), at: now },
        };
        let stopped = Stopped { lsn: Lsn(80), at: now, label: vec![], tablespace_map: vec![] };
        let ended =
            Ended { session: None, stopped, control: b"control".to_vec(), tablespaces: vec![], server_manifest: None };
        check_against(manifest, &begun, &ended, &arrived(files)).map_err(|failure| failure.message)
    }

    #[test]
    fn every_file_must_be_as_it_was_sent() {
        let listed: [(&str, &[u8]); 3] = [("a", b"1"), ("base/1/2", b"page"), (CONTROL_FILE, b"control")];
        let good = manifest(7, &listed, Lsn(80));
        assert_eq!(judged(&good, &listed[..2]), Ok(()));
        type Files<'a> = &'a [(&'a str, &'a [u8])];
        let wrong: [(&str, Vec<u8>, Files); 7] = [
            ("did not arrive", good.clone(), &[("a", b"1")]),
            ("another size", good.clone(), &[("a", b"1"), ("base/1/2", b"pages")]),
            ("another checksum", good.clone(), &[("a", b"1"), ("base/1/2", b"gape")]),
            ("4 files", good.clone(), &[("a", b"1"), ("base/1/2", b"page"), ("b", b"")]),
            ("another cluster", manifest(8, &listed, Lsn(80)), &listed[..2]),
            ("needs WAL", manifest(7, &listed, Lsn(81)), &listed[..2]),
            (
                "checksum is wrong",
                String::from_utf8(good.clone()).unwrap().replace("\"a\"", "\"b\"").into(),
                &listed[..2],
            ),
        ];
        for (words, manifest, files) in wrong {
            let said = judged(&manifest, files).unwrap_err();
            assert!(said.contains(words), "{words}: {said}");
        }
    }
}
