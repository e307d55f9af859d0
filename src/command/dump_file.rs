//! One file of a dump: a program writes it, it is cut into parts, and each is stored as soon as it is full.

use std::io::{self, Cursor, Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::backup_copy::patiently;
use super::dump::{Dump, Form};
use super::dump_local::LocalCopy;
use super::dump_program::Running;
use super::failure::{Failure, FailureKind};
use super::progress::Progress;
use crate::disk::dump_copy::CopiedFile;
use crate::disk::{FlatTar, PrivatePlace};
use crate::repo::dump_manifest::{DumpContent, DumpFile, DumpForm, DumpPart};
use crate::repo::{BackupId, Repository};
use crate::server::programs::{Program, ProgramConnection};
use crate::stream::Receipt;
use crate::stream::cut::{CutPart, SIZES, cut};

/// What all files of a dump share.
pub(super) struct Storing<'a> {
    pub(super) dump: &'a Dump,
    pub(super) repository: &'a Repository,
    pub(super) id: BackupId,
    pub(super) connection: &'a ProgramConnection,
    pub(super) pg_dump: &'a Program,
    pub(super) pg_dumpall: &'a Program,
    pub(super) local: Option<&'a LocalCopy>,
    /// How many parts are in the store.
    pub(super) stored: &'a AtomicU64,
    pub(super) progress: &'a Arc<Progress>,
}

/// Parts of a file that are stored at once.
const UPLOADS: usize = 2;
/// What the custom format begins with.
const CUSTOM: &[u8] = b"PGDMP";

impl Storing<'_> {
    /// Has the file written, and stores it.
    pub(super) async fn file(&self, content: DumpContent, number: u32) -> Result<DumpFile, Failure> {
        let cannot = |e: io::Error| Failure::new(FailureKind::LocalIo, format!("the dump cannot be put down: {e}"));
        let (receipt, form, parts) = match (&content, self.dump.form) {
            (DumpContent::Globals, _) => {
                let (running, out) = Running::start(self.globals(), "pg_dumpall".to_owned())?;
                let stored = self.store(out, number, (&content, DumpForm::Sql)).await?;
                running.wait().await?;
                (stored.0, DumpForm::Sql, stored.1)
            }
            (DumpContent::Database { database }, Form::Custom) => {
                let (running, out) = Running::start(self.custom(database), format!("pg_dump of `{database}`"))?;
                let stored = self.store(Begins::with(CUSTOM, out), number, (&content, DumpForm::Custom)).await;
                // What the program says is the cause, also of an output that is no dump.
                match stored {
                    Err(Failure { kind: FailureKind::LocalIo, .. }) => {
                        return Err(match running.wait().await {
                            Err(failure) if failure.kind == FailureKind::Server => failure,
                            _ => not_a_dump(),
                        });
                    }
                    Err(other) => return Err(other),
                    Ok(stored) => {
                        running.wait().await?;
                        (stored.0, DumpForm::Custom, stored.1)
                    }
                }
            }
            (DumpContent::Database { database }, Form::Directory { jobs }) => {
                let place = PrivatePlace::below(&self.dump.scratch, 0).map_err(cannot)?;
                let directory = place.path().join("dump");
                let command = self.directory(database, jobs, &directory);
                Running::alone(command, format!("pg_dump of `{database}`"))?.wait().await?;
                if !directory.join("toc.dat").is_file() {
                    return Err(not_a_dump());
                }
                let tar = FlatTar::of(&directory).map_err(cannot)?;
                let stored = self.store(tar, number, (&content, DumpForm::Directory)).await?;
                (stored.0, DumpForm::Directory, stored.1)
            }
        };
        Ok(DumpFile { file: number, content, form, plain: receipt.length, sha256: receipt.sha256, parts })
    }

    async fn store(
        &self,
        out: impl Read + Send + 'static,
        file: u32,
        (content, form): (&DumpContent, DumpForm),
    ) -> Result<(Receipt, Vec<DumpPart>), Failure> {
        let (dump, repository, id) = (self.dump, self.repository, self.id);
        let (sender, parts) = mpsc::channel(1);
        let (level, counted) = (dump.level, Arc::clone(self.progress));
        let copy = self.local.and_then(|local| local.file(file, content, form));
        let cutting = tokio::task::spawn_blocking(move || cut_output(out, level, copy, &sender, &counted));
        let parts = stream::unfold(parts, |mut parts| async { parts.recv().await.map(|part| (part, parts)) });
        let stored = parts.map(|cut: CutPart| async move {
            let (stored, sha256) = (cut.bytes.len() as u64, cut.sha256);
            let part = DumpPart { part: cut.number, stored, sha256, plain: cut.plain };
            let bytes = bytes::Bytes::from(cut.bytes);
            let put = || repository.put_dump_part(id, file, &part, bytes.clone());
            patiently(dump.retry, &format!("part {} of file {file}", part.part), put).await?;
            self.stored.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Failure>(part)
        });
        let parts: Vec<DumpPart> = stored.buffered(UPLOADS).try_collect().await?;
        let broken = |_| Failure::new(FailureKind::Internal, "a thread failed");
        let unreadable =
            |e: io::Error| Failure::new(FailureKind::LocalIo, format!("what a program writes cannot be read: {e}"));
        let (receipt, copy) = cutting.await.map_err(broken)?.map_err(unreadable)?;
        if let (Some(local), Some(copy)) = (self.local, copy) {
            local.close(copy);
        }
        Ok((receipt, parts))
    }

    fn lock_wait(&self) -> String {
        format!("--lock-wait-timeout={}", self.dump.lock_wait.as_millis())
    }

    fn globals(&self) -> Command {
        let mut command = Command::new(&self.pg_dumpall.path);
        command.args(["--globals-only", "--no-password"]).arg(self.lock_wait());
        command.arg(format!("--dbname={}", ProgramConnection::service()));
        self.connection.tell(&mut command);
        command
    }

    /// Compressed it is here.
    fn pg_dump(&self, database: &str, words: &[String]) -> Command {
        let mut command = Command::new(&self.pg_dump.path);
        command.args(words).args(["--compress=0", "--no-password"]).arg(self.lock_wait()).args(&self.dump.arguments);
        command.arg(format!("--dbname={}", ProgramConnection::database(database)));
        self.connection.tell(&mut command);
        command
    }

    fn custom(&self, database: &str) -> Command {
        self.pg_dump(database, &["--format=custom".to_owned()])
    }

    fn directory(&self, database: &str, jobs: usize, place: &Path) -> Command {
        let mut command = self.pg_dump(database, &["--format=directory".to_owned(), format!("--jobs={jobs}")]);
        command.arg("--file").arg(place);
        command
    }
}

fn not_a_dump() -> Failure {
    Failure::new(FailureKind::Usage, "pg_dump ended well, but did not write the dump where pgark waited for it")
        .with_hint("leave `--file` and `--format` to pgark")
}

fn cut_output(
    out: impl Read,
    level: i32,
    mut copy: Option<Copying>,
    parts: &mpsc::Sender<CutPart>,
    progress: &Progress,
) -> io::Result<(Receipt, Option<Copying>)> {
    let receipt = cut(out, level, SIZES, |part| {
        progress.advance(part.plain);
        if let Some(copy) = &mut copy {
            copy.write(&part.bytes);
        }
        parts.blocking_send(part).map_err(|_| io::Error::other("the dump was given up"))
    })?;
    Ok((receipt, copy))
}

/// A file of the local copy, until it fails: the dump goes on without it.
pub(super) struct Copying(pub(super) io::Result<CopiedFile>);

impl Copying {
    fn write(&mut self, bytes: &[u8]) {
        if let Ok(file) = &mut self.0
            && let Err(error) = file.write_all(bytes)
        {
            self.0 = Err(error);
        }
    }
}

/// Passes on what begins as it should, and fails at the first byte of anything else.
struct Begins<R> {
    first: Option<&'static [u8]>,
    ahead: Cursor<Vec<u8>>,
    rest: R,
}

impl<R: Read> Begins<R> {
    fn with(first: &'static [u8], rest: R) -> Self {
        Begins { first: Some(first), ahead: Cursor::default(), rest }
    }
}

impl<R: Read> Read for Begins<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Some(first) = self.first.take() {
            let mut begin = Vec::new();
            self.rest.by_ref().take(first.len() as u64).read_to_end(&mut begin)?;
            if begin != first {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no dump in the custom format"));
            }
            self.ahead = Cursor::new(begin);
        }
        match self.ahead.read(into)? {
            0 => self.rest.read(into),
            read => Ok(read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_begins_as_a_dump_passes() {
        let read = |bytes: &'static [u8]| {
            let mut all = Vec::new();
            Begins::with(CUSTOM, bytes).read_to_end(&mut all).map(|_| all)
        };
        assert_eq!(read(b"PGDMP and more").unwrap(), b"PGDMP and more");
        assert!(read(b"").is_err() && read(b"PGD").is_err() && read(b"--\n-- PostgreSQL").is_err());
    }
}
