//! The end of a backup: the files that exist only now, and the lines of the manifest.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::backup_copy::{Copied, put};
use super::basebackup::{Basebackup, Begun, Ended};
use super::failure::{Failure, FailureKind};
use super::server_manifest::check_against;
use crate::disk::snapshot::FoundFile;
use crate::postgres::backup_files::CONTROL_FILE;
use crate::postgres::backup_manifest::{FileChecksum, ManifestFile, ManifestWriter, WalRange};
use crate::postgres::{BackupPath, Lsn, TimelineId};
use crate::repo::Repository;
use crate::repo::manifest_entries::{BadPage, DirectoryEntry, Extent, FileEntry, Manifest};
use crate::stream::{PackedExtent, PartWriter, Sha256, tar_header};

/// A file with what the manifests say of it.
pub(super) struct Summed {
    pub(super) entry: FileEntry,
    pub(super) crc32c: u32,
}

/// Files that hold no secrets but are PostgreSQL's alone.
const MODE: u32 = 0o600;

/// Stores the last part (`backup_label`, `tablespace_map`, `backup_manifest`, and `pg_control` last) and fills the manifest in.
pub(super) async fn close(
    settings: &Basebackup,
    repository: &Repository,
    begun: &Begun,
    copied: Copied,
    ended: &Ended<'_>,
    manifest: &mut Manifest,
) -> Result<(), Failure> {
    let local = |e: std::io::Error| Failure::new(FailureKind::LocalIo, e.to_string());
    let Copied { directories, files, parts } = copied;
    manifest.directories =
        directories.into_iter().map(|found| DirectoryEntry { directory: found.path, mode: found.mode }).collect();
    manifest.parts = parts.iter().map(|part| part.entry).collect();
    let pieces = parts.into_iter().flat_map(|part| part.pieces);
    let mut summed = sum_up(&files, pieces, ended.stopped.lsn, &mut manifest.bad_pages);

    let modified = ended.stopped.at.as_second();
    let number = manifest.parts.len() as u32 + 1;
    let mut last = LastPart { writer: PartWriter::new(settings.level, 0).map_err(local)?, number, modified };
    last.add("backup_label", &ended.stopped.label, &mut summed)?;
    let control = ended.control.as_slice();
    let made;
    let in_manifest = match &ended.server_manifest {
        None => {
            made = verifiable(begun, ended, manifest.summary.timeline, &summed).map_err(local)?;
            &made
        }
        Some(theirs) => {
            check_against(theirs, begun, ended, &summed)?;
            theirs
        }
    };
    last.add("backup_manifest", in_manifest, &mut summed)?;
    // A restore makes the links itself. Who unpacks by hand needs it, and pg_verifybackup knows nothing of it.
    if !ended.stopped.tablespace_map.is_empty() {
        last.add("tablespace_map", &ended.stopped.tablespace_map, &mut summed)?;
    }
    last.add(CONTROL_FILE, control, &mut summed)?;
    last.writer.between(&tar_header::END).map_err(local)?;
    let bytes = last.writer.finish().map_err(local)?;
    let digest = Sha256::of(&bytes);
    let place = (begun.generation, begun.id, number);
    manifest.parts.push(put(repository, place, bytes.into(), digest, settings.retry).await?);

    manifest.files = summed.into_values().map(|summed| summed.entry).collect();
    manifest.bad_pages.sort_unstable_by(|a, b| (&a.bad_page, a.block).cmp(&(&b.bad_page, b.block)));
    manifest.sum_up();
    Ok(())
}

/// Puts the pieces of each file together. Pieces come in the order of parts, and so of each file's bytes.
fn sum_up(
    files: &[FoundFile],
    pieces: impl Iterator<Item = super::backup_parts::PackedPiece>,
    stop: Lsn,
    bad_pages: &mut Vec<BadPage>,
) -> BTreeMap<BackupPath, Summed> {
    let mut summed: BTreeMap<BackupPath, Summed> = BTreeMap::new();
    for piece in pieces {
        let found = &files[piece.file];
        let bad = piece.wrong.behind(stop).into_iter();
        bad_pages.extend(bad.map(|block| BadPage { bad_page: found.path.clone(), block }));
        let file = summed.entry(found.path.clone()).or_insert_with(|| Summed {
            entry: FileEntry {
                file: found.path.clone(),
                mode: found.mode,
                size: 0,
                modified: found.modified,
                extents: Vec::new(),
            },
            crc32c: 0,
        });
        file.crc32c = crc32c::crc32c_combine(file.crc32c, piece.crc32c, piece.extent.plain as usize);
        file.entry.size += piece.extent.plain;
        file.entry.extents.push(extent(piece.part, piece.extent));
    }
    summed
}

fn extent(part: u32, packed: PackedExtent) -> Extent {
    let PackedExtent { at, stored, skip, plain, sha256, frames } = packed;
    Extent { part, at, stored, skip, plain, sha256, frames }
}

/// What `pg_verifybackup` reads. It lists all files but itself and `tablespace_map`.
fn verifiable(
    begun: &Begun,
    ended: &Ended<'_>,
    timeline: TimelineId,
    summed: &BTreeMap<BackupPath, Summed>,
) -> std::io::Result<Vec<u8>> {
    let mut writer = ManifestWriter::begin(Vec::new(), begun.ident)?;
    let mut file = |path: &std::path::Path, size: u64, modified: i64, crc: u32| {
        let modified = Timestamp::from_second(modified).unwrap_or(Timestamp::UNIX_EPOCH);
        writer.file(&ManifestFile { path: path.to_owned(), size, modified, checksum: FileChecksum::Crc32c(crc) })
    };
    for Summed { entry, crc32c } in summed.values() {
        file(entry.file.as_path(), entry.size, entry.modified, *crc32c)?;
    }
    let modified = ended.stopped.at.as_second();
    file(CONTROL_FILE.as_ref(), ended.control.len() as u64, modified, crc32c::crc32c(&ended.control))?;
    let (start, end) = (begun.started.lsn, ended.stopped.lsn);
    writer.finish(&[WalRange { timeline, start, end }])
}

struct LastPart {
    writer: PartWriter,
    number: u32,
    modified: i64,
}

impl LastPart {
    fn add(&mut self, name: &str, content: &[u8], summed: &mut BTreeMap<BackupPath, Summed>) -> Result<(), Failure> {
        let path = BackupPath::new(name.as_bytes()).map_err(|e| Failure::new(FailureKind::Internal, e.to_string()))?;
        let size = content.len() as u64;
        let mut pack = || {
            self.writer.begin(&tar_header::file(path.as_path(), MODE, size, self.modified)?)?;
            self.writer.content(content)?;
            self.writer.end(tar_header::padding(size))
        };
        let packed = pack().map_err(|e| Failure::new(FailureKind::LocalIo, format!("`{name}`: {e}")))?;
        let extents = vec![extent(self.number, packed)];
        let entry = FileEntry { file: path.clone(), mode: MODE, size, modified: self.modified, extents };
        summed.insert(path, Summed { entry, crc32c: crc32c::crc32c(content) });
        Ok(())
    }
}
