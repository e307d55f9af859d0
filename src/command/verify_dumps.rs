//! The part of `verify` about logical dumps: every part is read and unpacked, as a restore would.

use futures_util::{StreamExt, stream};

use super::tries::with_retries;
use super::verify::Verifier;
use super::verify_report::Verdict;
use crate::repo::dump_manifest::{DumpFile, DumpPart};
use crate::repo::dumps::{DumpState, StoredDump};
use crate::repo::layout::DumpKey;
use crate::repo::{BackupId, RepoError};
use crate::storage::ObjectKey;
use crate::stream::Sha256Hasher;

impl Verifier<'_> {
    /// Reads the dumps that are wanted. Whether the wanted one is there.
    pub(super) async fn dumps(&mut self) -> Result<bool, RepoError> {
        let repository = self.repository;
        let dumps: Vec<StoredDump> = match self.verify.backup {
            Some(id) => repository.stored_dump(id).await?.into_iter().collect(),
            None if self.verify.wal_only => return Ok(false),
            None => repository.stored_dumps().await?,
        };
        let mut with_manifest = dumps.iter().filter(|dump| dump.state != DumpState::Unfinished).peekable();
        let found = with_manifest.peek().is_some();
        let is_due = |dump: &&StoredDump| {
            self.is_due(dump.listing.manifest().and_then(|manifest| manifest.modified)) && !self.verify.wal_only
        };
        let due: Vec<&StoredDump> = with_manifest.filter(is_due).collect();
        if let Some(sample) = &self.verify.sample {
            let keys = due.iter().flat_map(|dump| {
                let parts = dump.listing.pieces.iter().filter(|piece| matches!(piece.key, DumpKey::Part { .. }));
                parts.map(|piece| repository.layout.dump(dump.id(), piece.key))
            });
            self.sampled = sample.of(keys);
        }
        for dump in due {
            if !self.report.incomplete {
                self.dump(dump).await;
            }
        }
        Ok(found)
    }

    async fn dump(&mut self, dump: &StoredDump) {
        let (repository, id, retry, bounds) = (self.repository, dump.id(), self.verify.retry, self.bounds());
        let manifest_key = repository.layout.dump(id, DumpKey::Manifest);
        let manifest = match with_retries(|| repository.read_dump_manifest(id), retry, |_| {}).await {
            Ok(Some(manifest)) => manifest,
            // Deleted since it was listed.
            Ok(None) => return self.report.gone += 1,
            Err(error) => return self.judge(&manifest_key, Err(error)),
        };
        self.report.dumps += 1;
        let mut findings = Vec::new();
        for file in &manifest.files {
            let key = |part: &DumpPart| repository.layout.dump(id, DumpKey::Part { file: file.file, part: part.part });
            let (read, others): (Vec<&DumpPart>, Vec<&DumpPart>) =
                file.parts.iter().partition(|part| self.is_sampled(&key(part)));
            findings
                .extend(others.into_iter().filter_map(|part| is_listed(dump, file, part).map(|why| (key(part), why))));
            let is_whole = read.len() == file.parts.len();
            let reads = read.into_iter().map(|part| {
                let bounds = &bounds;
                async move {
                    (part, with_retries(|| repository.dump_part(id, file.file, part, bounds), retry, |_| {}).await)
                }
            });
            // In their order, for the digest of the file.
            let mut reads = stream::iter(reads).buffered(self.verify.jobs.max(1));
            let (mut hasher, mut is_sound) = (Sha256Hasher::default(), is_whole);
            while let Some((part, outcome)) = reads.next().await {
                match outcome {
                    Ok(bytes) => {
                        hasher.update(&bytes);
                        self.report.parts += 1;
                        self.judge(&key(part), Ok(Some(part.stored)));
                    }
                    Err(error) => {
                        is_sound = false;
                        self.part_fault(id, &key(part), error).await;
                    }
                }
                if self.report.incomplete {
                    return;
                }
            }
            if is_sound && hasher.finish().sha256 != file.sha256 {
                let why = format!("the parts of its file {} are whole, but not what was dumped", file.file);
                findings.push((manifest_key.clone(), (Verdict::Damaged, why)));
            }
        }
        for (key, (verdict, why)) in findings {
            self.find(verdict, &key, why);
        }
    }

    /// What a part that cannot be read means: of a dump that was deleted meanwhile, nothing.
    async fn part_fault(&mut self, id: BackupId, key: &ObjectKey, error: RepoError) {
        let summary = || self.repository.read_dump_summary(id);
        match with_retries(summary, self.verify.retry, |_| {}).await {
            Ok(None) if matches!(error, RepoError::Damaged { .. }) => self.report.gone += 1,
            _ => self.judge(key, Err(error)),
        }
    }
}

/// What the listing says against a part that is not read.
fn is_listed(dump: &StoredDump, file: &DumpFile, part: &DumpPart) -> Option<(Verdict, String)> {
    let key = DumpKey::Part { file: file.file, part: part.part };
    match dump.listing.pieces.iter().find(|piece| piece.key == key) {
        Some(piece) if piece.bytes == part.stored => None,
        Some(piece) => {
            let message = format!("it is {} bytes long, but was written with {}", piece.bytes, part.stored);
            Some((Verdict::Damaged, message))
        }
        None => Some((Verdict::Missing, "it is missing, and the manifest counts on it".to_owned())),
    }
}
