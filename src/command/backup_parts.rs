//! The parts of a backup: read, looked at, packed, stored.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::backup_plan::{PartPlan, Piece};
use super::pace::Pace;
use super::progress::Progress;
use crate::disk::snapshot::FoundFile;
use crate::disk::{LiveFile, PageCheck};
use crate::postgres::{Lsn, WrongPages};
use crate::stream::{PackedExtent, PartWriter, Sha256, tar_header};

/// What is the same for all parts of a backup.
pub struct Packing {
    /// The data directory.
    pub root: PathBuf,
    /// All files.
    pub files: Vec<FoundFile>,
    /// zstd's.
    pub level: i32,
    /// How pages are judged, where they have checksums.
    pub pages: Option<Pages>,
    /// How fast to read.
    pub pace: Pace,
    /// Who is told.
    pub progress: Arc<Progress>,
    shared: Mutex<HashMap<usize, Shared>>,
}

/// The shape of a cluster's relation files.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// Bytes in a page.
    pub page_size: usize,
    /// Pages in a file.
    pub relseg_size: u32,
    /// The start of the backup.
    pub start: Lsn,
}

/// A file whose pieces are in several parts is opened once for all, so that they agree on whether it is there.
struct Shared {
    file: Option<Arc<LiveFile>>,
    pieces_left: u32,
}

/// A part, ready to be stored.
pub struct PackedPart {
    /// Its number.
    pub number: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub sha256: Sha256,
    /// What it holds; files that vanished are not there.
    pub pieces: Vec<PackedPiece>,
}

/// A run of a file's bytes in a part.
pub struct PackedPiece {
    /// The part's number.
    pub part: u32,
    /// The file's index.
    pub file: usize,
    /// Where it is.
    pub extent: PackedExtent,
    /// The CRC-32C of its bytes.
    pub crc32c: u32,
    /// Blocks with a wrong checksum.
    pub wrong: WrongPages,
}

/// By how much a file that is no relation may have grown since it was looked at.
const GROWTH: u64 = 16 << 20;

impl Packing {
    /// A backup of these files.
    pub fn new(
        root: PathBuf,
        files: Vec<FoundFile>,
        level: i32,
        pages: Option<Pages>,
        pace: Pace,
        progress: Arc<Progress>,
    ) -> Self {
        Packing { root, files, level, pages, pace, progress, shared: Mutex::default() }
    }

    /// Reads and packs a part behind these headers of directories.
    pub fn pack(&self, plan: &PartPlan, directories: &[u8]) -> io::Result<PackedPart> {
        let plain: u64 = plan.pieces.iter().map(|piece| piece.to - piece.from).sum();
        let mut writer = PartWriter::new(self.level, directories.len() + plain as usize)?;
        writer.between(directories)?;
        let mut pieces = Vec::with_capacity(plan.pieces.len());
        for piece in &plan.pieces {
            let found = &self.files[piece.file];
            let packed = self.pack_piece(&mut writer, plan.number, piece, found);
            let packed = packed.map_err(|e| io::Error::new(e.kind(), format!("`{}`: {e}", found.path)))?;
            pieces.extend(packed);
            self.progress.advance(piece.to - piece.from);
        }
        let bytes = writer.finish()?;
        Ok(PackedPart { number: plan.number, sha256: Sha256::of(&bytes), bytes, pieces })
    }

    fn pack_piece(
        &self,
        writer: &mut PartWriter,
        part: u32,
        piece: &Piece,
        found: &FoundFile,
    ) -> io::Result<Option<PackedPiece>> {
        let Some(file) = self.open(piece, found)? else {
            return Ok(None);
        };
        // Of a relation, replay brings what was added since. Other files are taken as they are now.
        let size = match (&found.relation, piece.is_whole()) {
            (None, true) => file.size()?.min(found.size + GROWTH),
            _ => found.size,
        };
        let to = if piece.is_whole() { size } else { piece.to };
        let header = match piece.from {
            0 => tar_header::file(found.path.as_path(), found.mode, size, found.modified)?,
            _ => Vec::new(),
        };
        writer.begin(&header)?;
        let mut crc = 0;
        let check = self.page_check(found);
        let wrong = file.read_run(piece.from, to, check.as_ref(), |bytes| {
            self.pace.wait(bytes.len());
            crc = crc32c::crc32c_append(crc, bytes);
            writer.content(bytes)
        })?;
        let extent = writer.end(if to == size { tar_header::padding(size) } else { 0 })?;
        Ok(Some(PackedPiece { part, file: piece.file, extent, crc32c: crc, wrong }))
    }

    fn page_check(&self, found: &FoundFile) -> Option<PageCheck> {
        let (pages, relation) = (self.pages?, found.relation?);
        let first_block = relation.first_block(pages.relseg_size)?;
        Some(PageCheck { first_block, page_size: pages.page_size, start: pages.start })
    }

    fn open(&self, piece: &Piece, found: &FoundFile) -> io::Result<Option<Arc<LiveFile>>> {
        let open = || LiveFile::open(&self.root.join(found.path.as_path())).map(|file| file.map(Arc::new));
        if piece.is_whole() {
            return open();
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match shared.entry(piece.file) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Shared { file: open()?, pieces_left: piece.of }),
        };
        entry.pieces_left -= 1;
        let file = entry.file.clone();
        if entry.pieces_left == 0 {
            shared.remove(&piece.file);
        }
        Ok(file)
    }
}
