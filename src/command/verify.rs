//! `verify`: read what a restore would read, all of it or a sample, and say what is damaged before the day of the restore.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use tokio::time::Instant;

use super::RepositorySettings;
use super::bounds::bounded;
use super::failure::{Failure, FailureKind};
use super::tries::with_retries;
use super::verify_deep::Chains;
use super::verify_missing::{lost, missing_segments, runs_of, they_are_missing, unread};
pub use super::verify_report::{Finding, Verdict, VerifyReport};
pub use super::verify_sample::Sample;
use super::verify_tails::read_tails;
use crate::postgres::{SegmentSize, WalName};
use crate::repo::archive::ReadBounds;
use crate::repo::holdings::HeldWal;
use crate::repo::stored_backups::StoredBackup;
use crate::repo::timeline_path::{TimelinePath, TimelineSpan};
use crate::repo::verify::runs_by_part;
use crate::repo::{BackupId, BackupKey, BackupListing, Holdings, Identity, RepoError, Repository, WalKey};
use crate::storage::object_store::{Listed, Visit};
use crate::storage::{ObjectKey, ObjectStoreExt};

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Verify {
    /// Where.
    pub repository: RepositorySettings,
    /// One dump, or one backup and the WAL without which it is worthless; `None`: everything.
    pub backup: Option<BackupId>,
    /// Of parts and WAL, this share.
    pub sample: Option<Sample>,
    /// No backups and no dumps.
    pub wal_only: bool,
    /// Only what was written since, by the store's clock.
    pub since: Option<Timestamp>,
    /// The records of WAL, too: their checksums, and how they hang together.
    pub deep: bool,
    /// Objects at once.
    pub jobs: usize,
    /// How long faults of the store are borne.
    pub retry: Duration,
    /// How long a connection may give next to nothing.
    pub stall: Duration,
}

/// Verifies; damage is part of the report.
pub async fn run(verify: &Verify) -> Result<VerifyReport, Failure> {
    let work = async {
        let repository = verify.repository.open().await?;
        run_on(&repository, verify).await
    };
    bounded(work, None, None).await
}

/// The same on a repository that is open.
pub async fn run_on(repository: &Repository, verify: &Verify) -> Result<VerifyReport, Failure> {
    let report = VerifyReport {
        schema: 1,
        records: verify.deep.then_some(0),
        percent: verify.sample.as_ref().map(|sample| sample.percent),
        seed: verify.sample.as_ref().map(|sample| sample.seed.clone()),
        ..VerifyReport::default()
    };
    let begin = Instant::now();
    let mut verifier = Verifier {
        repository,
        verify,
        report,
        sampled: BTreeSet::new(),
        gone: BTreeSet::new(),
        unknown: 0,
        told: begin,
    };
    let identities = repository.read_identities().await?;
    let mut found = false;
    for identity in identities.all().iter().rev() {
        let holdings = repository.holdings_to_verify(identity).await?;
        found |= verifier.generation(identity, &holdings).await;
    }
    if !found || verify.backup.is_none() {
        found |= verifier.dumps().await?;
    }
    if let Some(id) = verify.backup.filter(|_| !found) {
        let message = format!("there is no whole backup or dump `{id}` in the repository");
        return Err(Failure::new(FailureKind::Usage, message).with_hint("see `pgark list`"));
    }
    verifier.report.seconds = begin.elapsed().as_secs_f64();
    Ok(verifier.report)
}

/// A store that refuses so many objects will refuse the rest, too.
const BELIEVED: usize = 100;
const PAGE: usize = 1000;
/// How often long work says how far it is.
const TELL: Duration = Duration::from_secs(30);

pub(super) struct Verifier<'a> {
    pub(super) repository: &'a Repository,
    pub(super) verify: &'a Verify,
    pub(super) report: VerifyReport,
    /// Of a generation, or of the dumps, what is in the sample.
    pub(super) sampled: BTreeSet<ObjectKey>,
    /// Of a generation, what was listed and is not there any more.
    gone: BTreeSet<ObjectKey>,
    unknown: usize,
    told: Instant,
}

/// What reading an object gave: its bytes, or `None` if it is not there.
type Outcome = Result<Option<u64>, RepoError>;

impl Verifier<'_> {
    /// Whether the generation has the wanted backup.
    async fn generation(&mut self, identity: &Identity, holdings: &Holdings) -> bool {
        let inventory = &holdings.inventory;
        let wanted = |backup: &&StoredBackup| {
            backup.listing.manifest().is_some() && self.verify.backup.is_none_or(|wanted| wanted == backup.id())
        };
        let backups: Vec<&StoredBackup> = inventory.backups.iter().filter(wanted).collect();
        let size = inventory.told_segment_size();
        let mut needed: Vec<TimelineSpan> = Vec::new();
        for backup in backups.iter().filter_map(|backup| backup.manifest()).filter(|_| size.is_some()) {
            let path = TimelinePath::as_known(inventory, backup.timeline);
            let spans = path.spans_of(backup);
            for (name, missing, them) in missing_segments(inventory, &spans) {
                let key = self.repository.layout.wal_file(holdings.generation(), name);
                let message = format!("{missing}, and backup {} cannot be made consistent without {them}", backup.id);
                self.find(Verdict::Missing, &key, message);
            }
            needed.extend(spans);
        }
        let of_backup = |wal: &&HeldWal| match wal.name() {
            WalName::Segment(segment) => inventory.segment_size.number(segment).is_ok_and(|number| {
                needed.iter().any(|needed| needed.timeline == segment.timeline && needed.span.has(number))
            }),
            WalName::History(_) => true,
            _ => false,
        };
        let wal = holdings.wal.iter().filter(|wal| self.is_due(wal.modified));
        let wal: Vec<&HeldWal> = match self.verify.backup {
            Some(_) if backups.is_empty() => Vec::new(),
            Some(_) => wal.filter(of_backup).collect(),
            None => wal.collect(),
        };
        let due = |backup: &&&StoredBackup| {
            let modified = backup.listing.manifest().and_then(|manifest| manifest.modified);
            self.is_due(modified) && !self.verify.wal_only
        };
        let due: Vec<&StoredBackup> = backups.iter().filter(due).copied().collect();
        if let Some(sample) = &self.verify.sample {
            let (layout, generation) = (&self.repository.layout, holdings.generation());
            let parts = due.iter().flat_map(|backup| {
                backup.listing.parts().map(|(part, _)| layout.backup(generation, backup.id(), BackupKey::Part(part)))
            });
            let wal = wal.iter().map(|wal| layout.wal_key(generation, &wal.key));
            self.sampled = sample.of(wal.chain(parts));
        }
        let chains = self.wal(identity, holdings, wal, size).await;
        for backup in due {
            if !self.report.incomplete {
                self.backup(identity, &backup.listing).await;
            }
        }
        if self.verify.backup.is_none() {
            self.tails(identity, holdings, size, chains).await;
        }
        let all = self.verify.backup.is_none() && size.is_some();
        self.absent(holdings, if all { lost(inventory, &needed) } else { Vec::new() }).await;
        !backups.is_empty()
    }

    pub(super) fn is_due(&self, modified: Option<Timestamp>) -> bool {
        self.verify.since.is_none_or(|since| modified.is_none_or(|modified| modified >= since))
    }

    pub(super) fn is_sampled(&self, key: &ObjectKey) -> bool {
        self.verify.sample.is_none() || self.sampled.contains(key)
    }

    async fn wal<'h>(
        &mut self,
        identity: &Identity,
        holdings: &'h Holdings,
        wal: Vec<&HeldWal>,
        size: Option<SegmentSize>,
    ) -> Chains<'h> {
        let archive = self.repository.archive(holdings.generation());
        let key = |wal: &HeldWal| self.repository.layout.wal_key(holdings.generation(), &wal.key);
        let due: Vec<(ObjectKey, WalKey, u64)> = (wal.into_iter())
            .map(|wal| (key(wal), wal.key.clone(), wal.bytes))
            .filter(|(key, ..)| self.is_sampled(key))
            .collect();
        let (bounds, retry) = (self.bounds(), self.verify.retry);
        let reading = due.into_iter().map(|(key, object, bytes)| {
            let (archive, bounds) = (&archive, &bounds);
            let segment = match object {
                WalKey::File(WalName::Segment(segment)) if self.verify.deep => Some(segment),
                _ => None,
            };
            async move {
                let read = || async {
                    Ok(match segment {
                        Some(segment) => (archive.verify_records(segment, identity.ident(), size, bounds).await?)
                            .map(|walked| (bytes, Some((segment, walked)))),
                        None => (archive.verify_object(&object, identity.ident(), size, bounds).await?)
                            .map(|()| (bytes, None)),
                    })
                };
                (key, with_retries(read, retry, |_| {}).await)
            }
        });
        let mut chains = Chains::new(holdings);
        // In their order: each segment is judged by the one before.
        let mut outcomes = stream::iter(reading).buffered(self.verify.jobs.max(1));
        while let Some((key, outcome)) = outcomes.next().await {
            self.report.wal += usize::from(matches!(outcome, Ok(Some(_))));
            if let Ok(None) = outcome {
                self.gone.insert(key.clone());
            }
            if let Ok(Some((_, Some((segment, walked))))) = &outcome {
                self.report.records = self.report.records.map(|records| records + walked.records);
                if let Some(fault) = chains.judge(*segment, walked) {
                    self.find(Verdict::Damaged, &key, fault);
                }
            }
            self.judge(&key, outcome.map(|read| read.map(|(bytes, _)| bytes)));
            if self.report.incomplete {
                break;
            }
        }
        drop(outcomes);
        chains
    }

    async fn tails(&mut self, identity: &Identity, holdings: &Holdings, size: Option<SegmentSize>, chains: Chains<'_>) {
        let (archive, bounds) = (self.repository.archive(holdings.generation()), self.bounds());
        let (layout, chains) = (&self.repository.layout, self.verify.deep.then_some(&chains));
        let look = || read_tails((&archive, layout), holdings, (identity.ident(), size), chains, &bounds);
        match with_retries(look, self.verify.retry, |_| {}).await {
            Ok(found) => {
                self.report.records = self.report.records.map(|records| records + found.records);
                for (verdict, key, message) in found.findings {
                    // What another version wrote is no damage.
                    if verdict == Verdict::Unknown {
                        self.report.findings.retain(|finding| finding.key != key);
                    }
                    // It may have been named for itself.
                    if !self.report.findings.iter().any(|finding| finding.key == key) {
                        self.report.findings.push(Finding { verdict, key, message });
                    }
                }
            }
            Err(error) => {
                let key = self.repository.layout.live(holdings.generation()).to_string();
                let message = error.to_string();
                self.report.findings.push(Finding { verdict: Verdict::Unknown, key, message });
            }
        }
    }

    async fn backup(&mut self, identity: &Identity, listing: &BackupListing) {
        let (id, generation) = (listing.id, identity.generation);
        let repository = self.repository;
        let key = |piece| repository.layout.backup(generation, id, piece);
        let (bounds, retry) = (self.bounds(), self.verify.retry);
        let manifest = match with_retries(|| repository.read_manifest(generation, id), retry, |_| {}).await {
            Ok(Some(manifest)) => manifest,
            Ok(None) => {
                self.gone.insert(key(BackupKey::Manifest));
                return;
            }
            Err(error) => return self.judge(&key(BackupKey::Manifest), Err(error)),
        };
        self.report.backups += 1;
        if manifest.summary.ident() != identity.ident() {
            let message = format!("it is of another cluster ({})", manifest.summary.ident());
            self.find(Verdict::Damaged, &key(BackupKey::Manifest), message);
        }
        let (parts, others): (Vec<_>, Vec<_>) = (manifest.parts.iter().zip(runs_by_part(&manifest)))
            .partition(|(part, _)| self.is_sampled(&key(BackupKey::Part(part.part))));
        let (mut missing, wrong) = unread(listing, others.into_iter().map(|(part, _)| part));
        for (part, size) in wrong {
            let message = format!("it is {size} bytes long, but was written with {}", part.stored);
            self.find(Verdict::Damaged, &key(BackupKey::Part(part.part)), message);
        }
        let reading = parts.into_iter().map(|(part, runs)| {
            let (manifest, bounds) = (&manifest, &bounds);
            async move {
                let read = || repository.verify_part(manifest, part, runs.clone(), bounds);
                (part, with_retries(read, retry, |_| {}).await)
            }
        });
        let mut outcomes = stream::iter(reading).buffer_unordered(self.verify.jobs.max(1));
        while let Some((part, outcome)) = outcomes.next().await {
            let key = key(BackupKey::Part(part.part));
            match outcome {
                Ok(None) => drop(missing.insert(part.part)),
                outcome => {
                    self.report.parts += usize::from(outcome.is_ok());
                    self.judge(&key, outcome);
                }
            }
            if self.report.incomplete {
                return;
            }
        }
        // A backup that was deleted meanwhile lost its manifest first.
        match with_retries(|| repository.read_summary(generation, id), retry, |_| {}).await {
            Ok(None) => self.report.gone += missing.len(),
            Ok(Some(_)) => {
                for run in runs_of(&missing) {
                    let last = BackupKey::Part(*run.end());
                    let (missing, them) =
                        they_are_missing(&(u64::from(*run.start())..=u64::from(*run.end())), key(last));
                    let message = format!("{missing}, and the manifest counts on {them}");
                    self.find(Verdict::Missing, &key(BackupKey::Part(*run.start())), message);
                }
            }
            Err(error) => self.judge(&key(BackupKey::Manifest), Err(error)),
        }
    }

    /// What is not there is looked for once more: a listing may be older than what was stored or deleted since.
    async fn absent(&mut self, holdings: &Holdings, lost: Vec<(WalName, String, &'static str)>) {
        let (layout, generation) = (&self.repository.layout, holdings.generation());
        let gone = std::mem::take(&mut self.gone);
        let lost = lost.into_iter().map(|(name, missing, _)| (layout.wal_file(generation, name), missing));
        let lost: Vec<(ObjectKey, String)> = lost.collect();
        let asked: BTreeSet<&str> = gone.iter().chain(lost.iter().map(|(key, _)| key)).map(ObjectKey::as_str).collect();
        let Some(first) = gone.first().or(lost.first().map(|(key, _)| key)) else { return };
        let mut listed: BTreeSet<String> = BTreeSet::new();
        let visit = |object: &Listed| {
            if asked.contains(object.name.as_str()) {
                listed.insert(object.name.clone());
            }
            Visit::More
        };
        if let Err(error) = self.repository.store.visit_after(&layout.generation(generation), None, PAGE, visit).await {
            return self.judge(first, Err(error.into()));
        }
        for key in &gone {
            if listed.contains(key.as_str()) {
                let message = "the store lists it, and says that there is no such object".to_owned();
                self.find(Verdict::Missing, key, message);
            } else {
                self.report.gone += 1;
            }
        }
        for (key, missing) in lost.iter().filter(|(key, _)| !listed.contains(key.as_str())) {
            self.find(Verdict::Missing, key, format!("{missing}, and what was written there cannot be restored"));
        }
    }

    pub(super) fn bounds(&self) -> ReadBounds {
        ReadBounds { stall: self.verify.stall, ..ReadBounds::default() }
    }

    pub(super) fn judge(&mut self, key: &ObjectKey, outcome: Outcome) {
        match outcome {
            Ok(bytes) => self.report.bytes += bytes.unwrap_or_default(),
            Err(RepoError::Damaged { reason, .. }) => self.find(Verdict::Damaged, key, reason),
            Err(RepoError::Store(error)) if error.is_bad_medium() => {
                self.find(Verdict::Damaged, key, format!("the disk cannot read it: {error}"));
            }
            Err(error) => {
                // A store that does not answer now will not answer for the rest; one that refuses an object may give others.
                self.unknown += 1;
                self.report.incomplete |= !error.is_of_one_object() || self.unknown >= BELIEVED;
                self.find(Verdict::Unknown, key, error.to_string());
            }
        }
        if self.told.elapsed() >= TELL {
            self.told = Instant::now();
            let VerifyReport { parts, wal, bytes, .. } = &self.report;
            tracing::info!("{parts} parts and {wal} WAL files read, {bytes} bytes");
        }
    }

    pub(super) fn find(&mut self, verdict: Verdict, key: &ObjectKey, message: String) {
        self.report.findings.push(Finding { verdict, key: key.to_string(), message });
    }
}
