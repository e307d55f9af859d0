//! The lines of a manifest behind its summary: parts, directories, files with their extents, bad pages, the end.
//!
//! What [`Manifest::decode`] returns is safe to act on: every path stays below the place it is written to, no name occurs twice,
//! every extent lies in its part and none over another, and sizes add up. Nothing is taken in beyond what the summary promises: a
//! reader's memory is bounded by that. The lines of one kind stand together, in the order parts, directories, files, bad
//! pages; directories and files are in the byte order of their paths.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::manifest::BackupSummary;
use super::manifest_lines::{Collect, MOST_LINES};
use crate::postgres::BackupPath;
use crate::stream::Sha256;

/// A part object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartEntry {
    /// Its number, from 1.
    pub part: u32,
    /// Its bytes.
    pub stored: u64,
    /// The digest of its bytes.
    pub sha256: Sha256,
}

/// A directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    /// Where, below the data directory.
    pub directory: BackupPath,
    /// Permission bits.
    pub mode: u32,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Where, below the data directory.
    pub file: BackupPath,
    /// Permission bits.
    pub mode: u32,
    /// Its bytes.
    pub size: u64,
    /// When it was changed last, in seconds since 1970.
    pub modified: i64,
    /// Its content, from the first byte to the last.
    pub extents: Vec<Extent>,
}

/// A run of a file's bytes, and where they are stored.
///
/// The stored bytes are whole zstd frames. Unpacked they are a piece of a tar archive: `skip` bytes of headers, `plain` bytes of the
/// file, and what fills the last block of 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// In which part.
    pub part: u32,
    /// From which byte of the part.
    pub at: u64,
    /// How many bytes of the part.
    pub stored: u64,
    /// Unpacked bytes in front of the file's.
    pub skip: u32,
    /// Bytes of the file.
    pub plain: u64,
    /// The digest of the file's bytes.
    pub sha256: Sha256,
    /// The stored bytes of each frame, where there are several; each holds [`FRAME`] unpacked bytes, the last the rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frames: Vec<u32>,
}

/// Unpacked bytes in a frame.
pub const FRAME: u64 = 1 << 20;

/// A page whose checksum was wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadPage {
    /// In which file.
    pub bad_page: BackupPath,
    /// Which page of the relation's fork, from 0.
    pub block: u32,
}

/// A whole manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its first line.
    pub summary: BackupSummary,
    /// The parts, by number.
    pub parts: Vec<PartEntry>,
    /// All directories but the data directory itself, parents first.
    pub directories: Vec<DirectoryEntry>,
    /// All files.
    pub files: Vec<FileEntry>,
    /// What was found to be wrong while it was taken.
    pub bad_pages: Vec<BadPage>,
}

/// Databases may be empty, but not that many.
const MOST_EMPTY_DIRECTORIES: u64 = 100_000;
/// How many extents there may be for each file and part.
const SCATTERED: u64 = 16;
/// What a tar header with a long name may take.
const LARGEST_SKIP: u32 = 16 << 10;
/// No part is larger, unpacked.
const LARGEST_EXTENT: u64 = 1 << 30;
/// No part is larger, packed.
const LARGEST_PART: u64 = 2 << 30;
/// Of files that are a restore's own.
const RESERVED: &[u8] = b".pgark-";

/// Turns lines into a manifest.
pub(super) struct Collector {
    manifest: Manifest,
    extents: u64,
}

impl Collect for Collector {
    type Manifest = Manifest;
    type Summary = BackupSummary;

    fn begin(summary: BackupSummary) -> Result<Self, String> {
        let promised = [summary.files, u64::from(summary.parts), summary.bad_pages];
        if promised.into_iter().fold(0, u64::saturating_add) > MOST_LINES {
            return Err(format!("its summary promises more than {MOST_LINES} lines"));
        }
        let manifest = Manifest { summary, parts: vec![], directories: vec![], files: vec![], bad_pages: vec![] };
        Ok(Collector { manifest, extents: 0 })
    }

    /// A line's kind shows in its first key: writers put it there.
    fn take(&mut self, line: &[u8]) -> Option<Result<(), String>> {
        fn read<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
            serde_json::from_slice(line).map_err(|e| e.to_string())
        }
        if line.starts_with(b"{\"file\"") {
            Some(read(line).and_then(|file| self.file(file)))
        } else if line.starts_with(b"{\"part\"") {
            Some(read(line).and_then(|part| self.part(part)))
        } else if line.starts_with(b"{\"directory\"") {
            Some(read(line).and_then(|directory| self.directory(directory)))
        } else if line.starts_with(b"{\"bad_page\"") {
            Some(read(line).and_then(|page| self.bad_page(page)))
        } else {
            None
        }
    }

    fn finish(self) -> Result<Manifest, String> {
        let Manifest { summary, parts, files, bad_pages, .. } = &self.manifest;
        let plain: u64 = files.iter().map(|file| file.size).fold(0, u64::saturating_add);
        let stored: u64 = parts.iter().map(|part| part.stored).fold(0, u64::saturating_add);
        let counts = (files.len() as u64, plain, parts.len() as u64, stored, bad_pages.len() as u64);
        let promised =
            (summary.files, summary.plain_bytes, u64::from(summary.parts), summary.stored_bytes, summary.bad_pages);
        if counts != promised {
            return Err("its lines do not add up to what its summary says".to_owned());
        }
        let runs = files.iter().flat_map(|file| &file.extents);
        let mut runs: Vec<_> = runs.map(|extent| (extent.part, extent.at, extent.stored)).collect();
        runs.sort_unstable();
        for pair in runs.windows(2) {
            let [(part, at, stored), (next_part, next_at, _)] = [pair[0], pair[1]];
            if part == next_part && at + stored > next_at {
                return Err(format!("two files are in one place, at byte {next_at} of part {part}"));
            }
        }
        Ok(self.manifest)
    }
}

impl Collector {
    fn bad_page(&mut self, page: BadPage) -> Result<(), String> {
        not_more("bad pages", self.manifest.bad_pages.len(), self.manifest.summary.bad_pages)?;
        self.manifest.bad_pages.push(page);
        Ok(())
    }

    fn part(&mut self, part: PartEntry) -> Result<(), String> {
        let number = self.manifest.parts.len() as u64 + 1;
        not_more("parts", self.manifest.parts.len(), self.manifest.summary.parts.into())?;
        if u64::from(part.part) != number || part.stored == 0 || part.stored > LARGEST_PART {
            return Err(format!("part {} of {} bytes stands where part {number} is due", part.part, part.stored));
        }
        self.manifest.parts.push(part);
        Ok(())
    }

    fn directory(&mut self, entry: DirectoryEntry) -> Result<(), String> {
        let path = &entry.directory;
        let last = self.manifest.directories.last();
        if last.is_some_and(|last| last.directory >= *path) || !self.manifest.files.is_empty() {
            return Err(format!("`{path}` is out of order or occurs twice"));
        }
        let most = self.manifest.summary.files + MOST_EMPTY_DIRECTORIES;
        not_more("directories", self.manifest.directories.len(), most)?;
        self.check_place(path, entry.mode)?;
        self.manifest.directories.push(entry);
        Ok(())
    }

    fn check_place(&self, path: &BackupPath, mode: u32) -> Result<(), String> {
        if path.parent().is_some_and(|parent| !self.has_directory(&parent)) {
            return Err(format!("`{path}` is in a directory that is not listed"));
        }
        if path.as_bytes().split(|byte| *byte == b'/').any(|name| name.starts_with(RESERVED)) {
            return Err(format!("`{path}` has a name that is pgark's own"));
        }
        if let Some(oid) = self.foreign_in_tablespace(path) {
            return Err(format!("`{path}` is not in the directory that tablespace {oid} has for this version"));
        }
        if mode & !0o777 != 0 {
            return Err(format!("`{path}` has the mode {mode:o}"));
        }
        Ok(())
    }

    /// A tablespace lies wherever its link leads: only what PostgreSQL itself puts there may go there. Source:
    /// `TABLESPACE_VERSION_DIRECTORY` in `common/relpath.h`.
    fn foreign_in_tablespace(&self, path: &BackupPath) -> Option<u32> {
        let summary = &self.manifest.summary;
        let mut names = path.as_bytes().split(|byte| *byte == b'/').map(std::str::from_utf8);
        let (Some(Ok("pg_tblspc")), Some(Ok(oid)), Some(version)) = (names.next(), names.next(), names.next()) else {
            return None;
        };
        let oid: u32 = oid.parse().ok()?;
        let tablespace = summary.tablespaces.iter().find(|tablespace| tablespace.oid == oid)?;
        let catalog = version.ok().and_then(|name| name.strip_prefix(&format!("PG_{}_", summary.postgres_major)));
        let known = catalog.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
        (!known).then_some(tablespace.oid)
    }

    fn has_directory(&self, path: &BackupPath) -> bool {
        self.manifest.directories.binary_search_by(|known| known.directory.cmp(path)).is_ok()
    }

    fn file(&mut self, entry: FileEntry) -> Result<(), String> {
        let path = &entry.file;
        not_more("files", self.manifest.files.len(), self.manifest.summary.files)?;
        let last = self.manifest.files.last();
        if last.is_some_and(|last| last.file >= *path) || self.has_directory(path) {
            return Err(format!("`{path}` is out of order or occurs twice"));
        }
        self.check_place(path, entry.mode)?;
        let promised = self.manifest.summary.files + u64::from(self.manifest.summary.parts);
        self.extents = self.extents.saturating_add(entry.extents.len() as u64);
        if self.extents > SCATTERED * promised {
            return Err(format!("`{path}` has {} extents", entry.extents.len()));
        }
        let mut size = 0u64;
        for extent in &entry.extents {
            self.check_extent(extent).map_err(|why| format!("`{path}`: {why}"))?;
            size = size.saturating_add(extent.plain);
        }
        if size != entry.size {
            return Err(format!("`{path}` has {} bytes, its extents have {size}", entry.size));
        }
        self.manifest.files.push(entry);
        Ok(())
    }

    fn check_extent(&self, extent: &Extent) -> Result<(), String> {
        let index = (extent.part as usize).wrapping_sub(1);
        let part = self.manifest.parts.get(index).ok_or_else(|| format!("there is no part {}", extent.part))?;
        let inside = extent.stored > 0
            && extent.at.checked_add(extent.stored).is_some_and(|end| end <= part.stored)
            && extent.skip <= LARGEST_SKIP
            && extent.plain <= LARGEST_EXTENT;
        if !inside {
            return Err(format!("{} bytes from byte {} of part {} cannot be", extent.stored, extent.at, extent.part));
        }
        let frames: u64 = extent.frames.iter().map(|stored| u64::from(*stored)).sum();
        let most_frames = (u64::from(extent.skip) + extent.plain) / FRAME + 2;
        if !extent.frames.is_empty() && (frames != extent.stored || extent.frames.len() as u64 > most_frames) {
            return Err(format!("its frames have {frames} bytes in part {}, not {}", extent.part, extent.stored));
        }
        Ok(())
    }
}

fn not_more(what: &str, there: usize, promised: u64) -> Result<(), String> {
    match (there as u64) < promised {
        true => Ok(()),
        false => Err(format!("it has more {what} than its summary promises")),
    }
}

impl Manifest {
    /// Whether the cluster's group may read it: PostgreSQL gives its directories the mode of the data directory.
    pub fn has_group_access(&self) -> bool {
        let base =
            || self.directories.iter().find(|entry| entry.directory.as_bytes() == b"base").map(|entry| entry.mode);
        self.summary.directory_mode.or_else(base).is_some_and(|mode| mode & 0o050 == 0o050)
    }

    /// Counts what the summary counts.
    pub fn sum_up(&mut self) {
        self.summary.files = self.files.len() as u64;
        self.summary.plain_bytes = self.files.iter().map(|file| file.size).sum();
        self.summary.parts = self.parts.len() as u32;
        self.summary.stored_bytes = self.parts.iter().map(|part| part.stored).sum();
        self.summary.bad_pages = self.bad_pages.len() as u64;
    }
}
