//! A logical dump's manifest: what its files are, and the parts of each. With it the dump exists.
//!
//! ```text
//! the summary                                                     alone in the first frame
//! {"file":1,"content":"globals","form":"sql",...}                 each file
//! {"part":1,"stored":4711,"sha256":"...","plain":33554432}        each part of it, right behind it
//! {"lines":812,"sha256":"..."}                                    the end
//! ```
//!
//! The parts of a file are its bytes, cut anywhere; each is one zstd frame, so that `zstd -dc` of all in their order is the file.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::backup_id::BackupId;
use super::error::RepoError;
use super::manifest_lines::{Collect, Lines, MOST_LINES, decode};
use crate::postgres::{ClusterIdent, PgMajor, SystemId};
use crate::storage::ObjectKey;
use crate::stream::Sha256;

/// What the first line of a manifest has to say.
pub const FORMAT: &str = "pgark-dump-1";

/// A dump in short. Readers pass over fields that they do not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpSummary {
    /// [`FORMAT`]
    pub format: String,
    /// Its name.
    pub id: BackupId,
    /// The cluster.
    pub system_identifier: SystemId,
    /// The cluster's major version.
    pub postgres_major: PgMajor,
    /// What `pg_dump --version` says.
    pub program: String,
    /// The operator's words.
    pub label: String,
    /// Taken from a standby.
    pub from_standby: bool,
    /// When it was begun, by the server's clock.
    pub started: Timestamp,
    /// When it was done, by the server's clock.
    pub stopped: Timestamp,
    /// Whether `pg_dump` was given arguments of the operator, which may have left something out.
    #[serde(default)]
    pub partial: bool,
    /// The databases in it.
    pub databases: Vec<String>,
    /// Whether it has what belongs to no database: roles, tablespaces.
    pub globals: bool,
    /// How many files there are.
    pub files: u32,
    /// How many parts they have.
    pub parts: u64,
    /// Bytes of the files.
    pub plain_bytes: u64,
    /// Bytes of the parts.
    pub stored_bytes: u64,
    /// Who took it.
    pub writer: String,
}

/// A file that a program wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpFile {
    /// Its number, from 1.
    pub file: u32,
    /// What it holds.
    #[serde(flatten)]
    pub content: DumpContent,
    /// In which form.
    pub form: DumpForm,
    /// Its bytes.
    pub plain: u64,
    /// Their digest.
    pub sha256: Sha256,
    /// In the lines behind it.
    #[serde(skip)]
    pub parts: Vec<DumpPart>,
}

/// What a file of a dump holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "content", rename_all = "lowercase")]
pub enum DumpContent {
    /// What belongs to no database.
    Globals,
    /// A database.
    Database {
        /// Its name.
        database: String,
    },
}

impl DumpContent {
    /// The database, if it is one.
    pub fn database(&self) -> Option<&str> {
        match self {
            DumpContent::Database { database } => Some(database),
            DumpContent::Globals => None,
        }
    }
}

/// The form of a file of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DumpForm {
    /// Statements, as `psql` runs them.
    Sql,
    /// `pg_dump --format=custom`
    Custom,
    /// A tar archive of what `pg_dump --format=directory` wrote.
    Directory,
}

/// A part object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpPart {
    /// Its number within the file, from 1.
    pub part: u32,
    /// Its bytes.
    pub stored: u64,
    /// The digest of its bytes.
    pub sha256: Sha256,
    /// Bytes of the file in it.
    pub plain: u64,
}

/// A whole manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpManifest {
    /// Its first line.
    pub summary: DumpSummary,
    /// The files, by number.
    pub files: Vec<DumpFile>,
}

/// No part is larger, packed or not.
pub(super) const LARGEST_PART: u64 = 256 << 20;

impl DumpSummary {
    /// The cluster.
    pub fn ident(&self) -> ClusterIdent {
        ClusterIdent { system_id: self.system_identifier, major: self.postgres_major }
    }

    /// What is wrong with a summary that was found under `id`.
    pub fn check(&self, id: BackupId) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("format `{}` needs another version of pgark", self.format));
        }
        if self.id != id {
            return Err(format!("it is the manifest of `{}`", self.id));
        }
        Ok(())
    }
}

impl DumpManifest {
    /// The bytes to store.
    pub fn encode(&self) -> Result<Bytes, RepoError> {
        let mut lines = Lines::begin(&self.summary)?;
        for file in &self.files {
            lines.put(file)?;
            file.parts.iter().try_for_each(|part| lines.put(part))?;
        }
        lines.finish()
    }

    /// Reads what [`DumpManifest::encode`] wrote.
    pub fn decode(key: &ObjectKey, stored: &[u8]) -> Result<Self, RepoError> {
        decode::<Collector>(key, stored)
    }

    /// Counts what the summary counts.
    pub fn sum_up(&mut self) {
        let Counts { files, parts, plain, stored } = self.counts();
        (self.summary.files, self.summary.parts) = (files, parts);
        (self.summary.plain_bytes, self.summary.stored_bytes) = (plain, stored);
        self.summary.databases =
            self.files.iter().filter_map(|file| file.content.database()).map(str::to_owned).collect();
        self.summary.globals = self.files.iter().any(|file| file.content == DumpContent::Globals);
    }

    fn counts(&self) -> Counts {
        let parts = || self.files.iter().flat_map(|file| &file.parts);
        Counts {
            files: self.files.len() as u32,
            parts: parts().count() as u64,
            plain: self.files.iter().map(|file| file.plain).fold(0, u64::saturating_add),
            stored: parts().map(|part| part.stored).fold(0, u64::saturating_add),
        }
    }

    /// The file of a database.
    pub fn database(&self, name: &str) -> Option<&DumpFile> {
        let is_it = |file: &&DumpFile| matches!(&file.content, DumpContent::Database { database } if database == name);
        self.files.iter().find(is_it)
    }
}

#[derive(PartialEq, Eq)]
struct Counts {
    files: u32,
    parts: u64,
    plain: u64,
    stored: u64,
}

/// Turns lines into a manifest.
struct Collector(DumpManifest);

impl Collect for Collector {
    type Manifest = DumpManifest;
    type Summary = DumpSummary;

    fn begin(summary: DumpSummary) -> Result<Self, String> {
        match u64::from(summary.files).saturating_add(summary.parts) > MOST_LINES {
            true => Err(format!("its summary promises more than {MOST_LINES} lines")),
            false => Ok(Collector(DumpManifest { summary, files: Vec::new() })),
        }
    }

    fn take(&mut self, line: &[u8]) -> Option<Result<(), String>> {
        if line.starts_with(b"{\"file\"") {
            Some(serde_json::from_slice(line).map_err(|e| e.to_string()).and_then(|file| self.file(file)))
        } else if line.starts_with(b"{\"part\"") {
            Some(serde_json::from_slice(line).map_err(|e| e.to_string()).and_then(|part| self.part(part)))
        } else {
            None
        }
    }

    fn finish(self) -> Result<DumpManifest, String> {
        let DumpManifest { summary, files } = &self.0;
        for file in files {
            let plain = file.parts.iter().map(|part| part.plain).fold(0, u64::saturating_add);
            if plain != file.plain {
                return Err(format!("file {} has {} bytes, its parts have {plain}", file.file, file.plain));
            }
        }
        let Counts { files, parts, plain, stored } = self.0.counts();
        match (files, parts, plain, stored) == (summary.files, summary.parts, summary.plain_bytes, summary.stored_bytes)
        {
            true => Ok(self.0),
            false => Err("its lines do not add up to what its summary says".to_owned()),
        }
    }
}

impl Collector {
    fn file(&mut self, file: DumpFile) -> Result<(), String> {
        let number = self.0.files.len() + 1;
        if file.file as usize != number {
            return Err(format!("file {} stands where file {number} is due", file.file));
        }
        if self.0.files.iter().any(|other| other.content == file.content) {
            return Err(format!("file {number} has what another one has"));
        }
        self.0.files.push(file);
        Ok(())
    }

    fn part(&mut self, part: DumpPart) -> Result<(), String> {
        let file = self.0.files.last_mut().ok_or("a part stands in front of its file")?;
        let number = file.parts.len() + 1;
        let is_possible = part.stored > 0 && part.stored <= LARGEST_PART && part.plain <= LARGEST_PART;
        if part.part as usize != number || !is_possible {
            return Err(format!("part {} of {} bytes stands where part {number} is due", part.part, part.stored));
        }
        file.parts.push(part);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(part: u32, plain: u64) -> DumpPart {
        DumpPart { part, stored: plain / 2 + 1, sha256: Sha256([part as u8; 32]), plain }
    }

    fn manifest() -> DumpManifest {
        let database = |name: &str| DumpContent::Database { database: name.to_owned() };
        let file = |file, content, form, parts: Vec<DumpPart>| {
            let plain = parts.iter().map(|part| part.plain).sum();
            DumpFile { file, content, form, plain, sha256: Sha256([7; 32]), parts }
        };
        let mut manifest = DumpManifest {
            summary: DumpSummary {
                format: FORMAT.to_owned(),
                id: "20261122T231805Z-0a1b2c3d".parse().unwrap(),
                system_identifier: SystemId(7),
                postgres_major: 15.try_into().unwrap(),
                program: "pg_dump (PostgreSQL) 15.20".to_owned(),
                label: String::new(),
                from_standby: false,
                started: Timestamp::UNIX_EPOCH,
                stopped: Timestamp::UNIX_EPOCH,
                partial: false,
                databases: Vec::new(),
                globals: false,
                files: 0,
                parts: 0,
                plain_bytes: 0,
                stored_bytes: 0,
                writer: "db1".to_owned(),
            },
            files: vec![
                file(1, DumpContent::Globals, DumpForm::Sql, vec![part(1, 100)]),
                file(2, database("a \"b\"\n/ü"), DumpForm::Custom, vec![part(1, 1000), part(2, 10)]),
                file(3, database("empty"), DumpForm::Directory, vec![part(1, 0)]),
            ],
        };
        manifest.sum_up();
        manifest
    }

    fn key() -> ObjectKey {
        "k".parse().unwrap()
    }

    #[test]
    fn a_manifest_goes_both_ways() {
        let manifest = manifest();
        assert_eq!(DumpManifest::decode(&key(), &manifest.encode().unwrap()).unwrap(), manifest);
        assert_eq!(manifest.summary.databases, ["a \"b\"\n/ü", "empty"]);
        assert!(manifest.summary.globals);
        assert_eq!(manifest.database("empty").unwrap().file, 3);
        assert_eq!(manifest.database("other"), None);
    }

    #[test]
    fn what_would_do_harm_is_refused() {
        type Change = fn(&mut DumpManifest);
        let changes: [(&str, Change); 8] = [
            ("where file 2 is due", |m| m.files[1].file = 3),
            ("what another one has", |m| m.files[2].content = m.files[1].content.clone()),
            ("where part 2 is due", |m| m.files[1].parts[1].part = 1),
            ("where part 1 is due", |m| m.files[0].parts[0].stored = 0),
            ("where part 1 is due", |m| m.files[0].parts[0].stored = u64::MAX),
            ("its parts have 100", |m| m.files[0].plain = 101),
            ("do not add up", |m| m.summary.files = 4),
            ("more than", |m| m.summary.parts = u64::MAX),
        ];
        for (words, change) in changes {
            let mut changed = manifest();
            change(&mut changed);
            let error = DumpManifest::decode(&key(), &changed.encode().unwrap()).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn every_cut_and_every_flip_is_noticed() {
        let stored = manifest().encode().unwrap();
        for at in 0..stored.len() {
            assert!(DumpManifest::decode(&key(), &stored[..at]).is_err(), "cut at {at}");
            let mut flipped = stored.to_vec();
            flipped[at] ^= 4;
            match DumpManifest::decode(&key(), &flipped) {
                Err(_) => {}
                // A bit of a zstd header may carry no meaning.
                Ok(same) => assert_eq!(same, manifest(), "flip at {at}"),
            }
        }
    }
}
