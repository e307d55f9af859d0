//! The long middle of a restore: every file of a backup, from its parts to its place, verified.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::basebackup::blocking;
use super::failure::Failure;
use super::progress::Progress;
use super::tries::with_retries;
use crate::disk::RestoreDir;
use crate::disk::restore_dir::RestoredFile;
use crate::repo::archive::ReadBounds;
use crate::repo::manifest_entries::{FileEntry, Manifest};
use crate::repo::{RepoError, Repository};
use crate::stream::WantedExtent;
use crate::stream::part_reader::PartSink;

/// How files are fetched.
#[derive(Clone, Debug)]
pub struct Fetching {
    /// Parts at once.
    pub jobs: usize,
    /// How long faults of the store are borne without progress.
    pub retry: Duration,
    /// How long a connection may give next to nothing.
    pub stall: Duration,
}

/// PostgreSQL's own list of tablespaces, which is for those who unpack by hand: a restore makes the links.
pub const LEFT_OUT: &str = "tablespace_map";

/// Brings all files of the backup into the directory, whose directories are made. Returns how many were there already.
pub async fn fetch(
    repository: &Repository,
    manifest: &Arc<Manifest>,
    dir: &Arc<RestoreDir>,
    fetching: &Fetching,
    progress: &Arc<Progress>,
) -> Result<u64, Failure> {
    let present = present_files(manifest, dir, fetching.jobs).await?;
    let wanted =
        |index: usize| !present.contains(&index) && manifest.files[index].file.as_bytes() != LEFT_OUT.as_bytes();
    let parts = runs_by_part(manifest, wanted);
    progress.expect(parts.iter().flatten().map(|run| run.wanted.stored).sum());
    create_empty(manifest, dir, wanted).await?;
    let work = parts.into_iter().enumerate().filter(|(_, runs)| !runs.is_empty());
    stream::iter(work)
        .map(|(index, runs)| fetch_part(repository, manifest, dir, fetching, progress, index, runs))
        .buffer_unordered(fetching.jobs)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(present.len() as u64)
}

/// A run of a file's bytes in a part, and where it goes.
#[derive(Clone, Copy, Debug)]
struct Run {
    file: usize,
    offset: u64,
    wanted: WantedExtent,
}

fn runs_by_part(manifest: &Manifest, wanted: impl Fn(usize) -> bool) -> Vec<Vec<Run>> {
    let mut parts = vec![Vec::new(); manifest.parts.len()];
    for (index, file) in manifest.files.iter().enumerate().filter(|(index, _)| wanted(*index)) {
        let mut offset = 0;
        for extent in &file.extents {
            let wanted = WantedExtent {
                at: extent.at,
                stored: extent.stored,
                skip: extent.skip,
                plain: extent.plain,
                sha256: extent.sha256,
            };
            // The manifest was checked: there is such a part.
            parts[extent.part as usize - 1].push(Run { file: index, offset, wanted });
            offset += extent.plain;
        }
    }
    for runs in &mut parts {
        runs.sort_unstable_by_key(|run| run.wanted.at);
    }
    parts
}

/// Files that are there with the right content: of an earlier restore, or of the old cluster.
async fn present_files(
    manifest: &Arc<Manifest>,
    dir: &Arc<RestoreDir>,
    jobs: usize,
) -> Result<BTreeSet<usize>, Failure> {
    if !dir.may_have_files() {
        return Ok(BTreeSet::new());
    }
    let found: Vec<Option<usize>> = stream::iter(0..manifest.files.len())
        .map(|index| {
            let (manifest, dir) = (Arc::clone(manifest), Arc::clone(dir));
            blocking(move || {
                let FileEntry { file, size, mode, extents, .. } = &manifest.files[index];
                let runs: Vec<_> = extents.iter().map(|extent| (extent.plain, extent.sha256)).collect();
                Ok(dir.keep_file(file, *size, *mode, &runs)?.then_some(index))
            })
        })
        .buffer_unordered(jobs)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}

/// Files of which no part holds a byte.
async fn create_empty(
    manifest: &Arc<Manifest>,
    dir: &Arc<RestoreDir>,
    wanted: impl Fn(usize) -> bool,
) -> Result<(), Failure> {
    let without: Vec<usize> =
        (0..manifest.files.len()).filter(|index| manifest.files[*index].extents.is_empty() && wanted(*index)).collect();
    let (manifest, dir) = (Arc::clone(manifest), Arc::clone(dir));
    blocking(move || without.iter().try_for_each(|index| open(&manifest, &dir, *index).map(drop))).await
}

fn open(manifest: &Manifest, dir: &RestoreDir, index: usize) -> io::Result<RestoredFile> {
    let FileEntry { file, size, mode, .. } = &manifest.files[index];
    dir.open_file(file, *size, *mode)
}

async fn fetch_part(
    repository: &Repository,
    manifest: &Arc<Manifest>,
    dir: &Arc<RestoreDir>,
    fetching: &Fetching,
    progress: &Arc<Progress>,
    index: usize,
    runs: Vec<Run>,
) -> Result<(), Failure> {
    let bounds = ReadBounds { stall: fetching.stall, ..ReadBounds::default() };
    let part = &manifest.parts[index];
    let read = || {
        let wanted = runs.iter().map(|run| run.wanted).collect();
        let sink =
            Files { manifest: Arc::clone(manifest), dir: Arc::clone(dir), runs: runs.clone(), open: None, written: 0 };
        let (generation, id) = (manifest.summary.generation, manifest.summary.id);
        repository.read_part((generation, id), part, wanted, sink, &bounds, |bytes| progress.advance(bytes))
    };
    let again = |error: &RepoError| tracing::info!("part {}: {error}; trying again", part.part);
    with_retries(read, fetching.retry, again).await?;
    Ok(())
}

/// Writes runs of bytes into the files they belong to.
struct Files {
    manifest: Arc<Manifest>,
    dir: Arc<RestoreDir>,
    runs: Vec<Run>,
    open: Option<RestoredFile>,
    /// Bytes of the current run.
    written: u64,
}

impl Files {
    fn file(&mut self, index: usize) -> io::Result<&RestoredFile> {
        match &mut self.open {
            Some(file) => Ok(file),
            closed => Ok(closed.insert(open(&self.manifest, &self.dir, self.runs[index].file)?)),
        }
    }
}

impl PartSink for Files {
    fn content(&mut self, index: usize, bytes: &[u8]) -> io::Result<()> {
        let offset = self.runs[index].offset + self.written;
        self.file(index)?.write(offset, bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn whole(&mut self, index: usize) -> io::Result<()> {
        // A file without bytes was not opened yet.
        self.file(index)?;
        self.open = None;
        self.written = 0;
        Ok(())
    }
}
