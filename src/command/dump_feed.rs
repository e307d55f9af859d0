//! The bytes of a dump on their way out of the repository: into a file, or into `pg_restore` and `psql`.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{ChildStdin, Command};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::dump_globals::{in_place, is_fault};
use super::dump_program::Running;
use super::dump_restore::{DumpRestore, IntoServer};
use super::failure::{Failure, FailureKind};
use super::progress::Progress;
use super::tries::with_retries;
use crate::disk::{Incoming, PrivatePlace, flat_tar};
use crate::repo::archive::ReadBounds;
use crate::repo::dump_manifest::{DumpContent, DumpFile, DumpForm};
use crate::repo::{BackupId, Repository};
use crate::server::programs::{self, Program, ProgramConnection};
use crate::server::{ServerError, Session};
use crate::stream::Sha256Hasher;

/// A restore at work.
pub(super) struct Feeding<'a> {
    pub(super) wanted: &'a DumpRestore,
    pub(super) repository: &'a Repository,
    pub(super) id: BackupId,
    pub(super) progress: &'a Arc<Progress>,
}

/// Parts that are read at once.
const READS: usize = 2;
/// Roles, their rights and tablespaces, where they are held in memory.
const LARGEST_GLOBALS: usize = 64 << 20;
/// They are in every cluster, so they are never created.
const ALWAYS_THERE: [&str; 2] = ["postgres", "template1"];

impl Feeding<'_> {
    /// Gives the file's bytes in their order, each verified; fails where they are not those that were dumped.
    async fn give(
        &self,
        file: &DumpFile,
        mut take: impl AsyncFnMut(Vec<u8>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let bounds = ReadBounds { stall: self.wanted.stall, ..ReadBounds::default() };
        let reads = file.parts.iter().map(|part| {
            let bounds = &bounds;
            async move {
                let read = || self.repository.dump_part(self.id, file.file, part, bounds);
                with_retries(read, self.wanted.retry, |_| {}).await.map_err(Failure::from)
            }
        });
        let mut reads = stream::iter(reads).buffered(READS);
        let mut hasher = Sha256Hasher::default();
        while let Some(bytes) = reads.try_next().await? {
            hasher.update(&bytes);
            self.progress.advance(bytes.len() as u64);
            take(bytes).await?;
        }
        match hasher.finish().sha256 == file.sha256 {
            true => Ok(()),
            false => Err(Failure::new(
                FailureKind::Damaged,
                format!("the parts of file {} are not what was dumped", file.file),
            )),
        }
    }

    /// The file itself, at a place where nothing is yet.
    pub(super) async fn to_file(&self, file: &DumpFile, path: &Path) -> Result<(), Failure> {
        let cannot =
            |e: io::Error| Failure::new(FailureKind::LocalIo, format!("cannot write `{}`: {e}", path.display()));
        if path.symlink_metadata().is_ok() {
            let message = format!("`{}` is there already", path.display());
            return Err(Failure::new(FailureKind::Usage, message).with_hint("name a new file"));
        }
        self.progress.expect(file.plain);
        let incoming = Incoming::create(path).map_err(cannot)?;
        let mut writer = incoming.writer().map_err(cannot)?;
        self.give(file, async |bytes| writer.write_all(&bytes).map_err(cannot)).await?;
        writer.sync_all().map_err(cannot)?;
        incoming.commit(file.plain).map_err(cannot)
    }

    pub(super) async fn to_server(&self, server: &IntoServer, files: &[&DumpFile]) -> Result<(), Failure> {
        let session = Session::connect(&server.conninfo).await.map_err(ServerError::from)?;
        let source = session.dump_source().await?;
        drop(session);
        if source.in_recovery {
            return Err(Failure::new(FailureKind::Server, "the server is a standby: nothing can be restored into it"));
        }
        let major = source.ident.major;
        let find = |program| programs::find(program, major, server.programs.as_deref(), &server.path);
        let [pg_restore, psql] = [find("pg_restore")?, find("psql")?];
        let connection = ProgramConnection::new(&server.conninfo, &server.scratch)?;
        let programs = Programs { server, connection: &connection, pg_restore: &pg_restore, psql: &psql };
        let is_one_transaction = matches!(files, [file] if programs.is_one_transaction(file));
        let needs_files = |file: &&&DumpFile| programs.needs_files(file);
        let passes = if is_one_transaction || files.iter().all(|file| needs_files(&file)) { 1 } else { 2 };
        self.progress.expect(files.iter().map(|file| file.plain).sum::<u64>() * passes);
        if passes == 2 {
            for file in files {
                self.give(file, async |_| Ok(())).await.map_err(|failure| failure.context("nothing was restored"))?;
            }
        }
        for file in files {
            match programs.needs_files(file) {
                true => self.by_files(&programs, file).await?,
                false => self.by_stream(&programs, file).await?,
            }
        }
        Ok(())
    }

    async fn by_stream(&self, programs: &Programs<'_>, file: &DumpFile) -> Result<(), Failure> {
        let (running, stdin) = match file.content.database() {
            None => Running::judged(programs.globals(), "psql with what belongs to no database".to_owned(), is_fault)?,
            Some(name) => {
                let mut command = programs.database(file, name);
                command.arg("--format=custom");
                Running::fed(command, format!("pg_restore of `{name}`"))?
            }
        };
        let (sender, inbox) = mpsc::channel(1);
        let feeding = tokio::task::spawn_blocking(move || feed(stdin, inbox));
        let moves = programs.server.tablespaces_in_place && file.content == DumpContent::Globals;
        let mut globals = Vec::new();
        let given = self.give(file, async |bytes| {
            // A program that has ended does not read any more: its end says why.
            match moves {
                true if globals.len() + bytes.len() > LARGEST_GLOBALS => {
                    let message = format!("what belongs to no database has more than {LARGEST_GLOBALS} bytes");
                    return Err(Failure::new(FailureKind::Unsupported, message));
                }
                true => globals.extend(bytes),
                false => drop(sender.send(bytes).await),
            }
            Ok(())
        });
        if let Err(failure) = given.await {
            // Before its input ends: it must not take that for the end of the dump.
            drop(running);
            return Err(failure);
        }
        if moves {
            sender.send(in_place(&globals)).await.ok();
        }
        drop(sender);
        feeding.await.map_err(|_| Failure::new(FailureKind::Internal, "a thread failed"))?;
        running.wait().await.map_err(|failure| match file.content {
            DumpContent::Globals => failure.with_hint("what could be restored is; mend the rest and run it again"),
            DumpContent::Database { .. } => programs.advise(failure),
        })
    }

    /// Several workers read a file, or files, and not a stream: it is fetched whole first.
    async fn by_files(&self, programs: &Programs<'_>, file: &DumpFile) -> Result<(), Failure> {
        let cannot = |e: io::Error| Failure::new(FailureKind::LocalIo, format!("the dump cannot be put down: {e}"));
        let place = PrivatePlace::below(&programs.server.scratch, file.plain).map_err(cannot)?;
        let path = place.path().join("dump");
        let (sender, inbox) = mpsc::channel(1);
        let (target, form) = (path.clone(), file.form);
        let writing =
            tokio::task::spawn_blocking(move || write(Inbox { inbox, open: Vec::new(), at: 0 }, &target, form));
        let given = self.give(file, async |bytes| {
            sender.send(bytes).await.ok();
            Ok(())
        });
        given.await.map_err(|failure| failure.context("nothing was restored"))?;
        drop(sender);
        writing.await.map_err(|_| Failure::new(FailureKind::Internal, "a thread failed"))?.map_err(cannot)?;
        let name = file.content.database().unwrap_or_default();
        let mut command = programs.database(file, name);
        command.arg(if file.form == DumpForm::Directory { "--format=directory" } else { "--format=custom" });
        if programs.server.jobs > 1 {
            command.arg(format!("--jobs={}", programs.server.jobs));
        }
        command.arg(&path);
        let done = Running::alone(command, format!("pg_restore of `{name}`"))?.wait().await;
        drop(place);
        done.map_err(|failure| programs.advise(failure))
    }
}

/// PostgreSQL's programs, and what they are to do.
struct Programs<'a> {
    server: &'a IntoServer,
    connection: &'a ProgramConnection,
    pg_restore: &'a Program,
    psql: &'a Program,
}

impl Programs<'_> {
    fn creates(&self, database: &str) -> bool {
        self.server.create && !ALWAYS_THERE.contains(&database)
    }

    fn needs_files(&self, file: &DumpFile) -> bool {
        file.form == DumpForm::Directory || (self.server.jobs > 1 && file.content != DumpContent::Globals)
    }

    /// Whether nothing of a file stays when it turns out to be damaged. With a choice of tables, or words of the operator's own,
    /// `pg_restore` may be done before it has read everything.
    fn is_one_transaction(&self, file: &DumpFile) -> bool {
        let whole = self.server.tables.is_empty() && self.server.arguments.is_empty() && self.server.jobs == 1;
        whole && file.content.database().is_some_and(|name| !self.creates(name))
    }

    fn globals(&self) -> Command {
        let mut command = Command::new(&self.psql.path);
        // The words of the messages are the server's language: only their codes are read.
        command.args(["--no-psqlrc", "--quiet", "--no-password", "--set=VERBOSITY=verbose", "--file=-"]);
        command.arg(format!("--dbname={}", ProgramConnection::database(&self.server.conninfo.database)));
        self.connection.tell(&mut command);
        command
    }

    fn database(&self, file: &DumpFile, database: &str) -> Command {
        let (server, target) = (self.server, self.server.into.as_deref().unwrap_or(database));
        let mut command = Command::new(&self.pg_restore.path);
        command.args(["--no-password", "--exit-on-error"]).args(&server.arguments);
        if server.clean {
            command.args(["--clean", "--if-exists"]);
        }
        // Databases are created and dropped outside of transactions, and from another one.
        let place = match (self.creates(database), &server.conninfo.database) {
            (true, other) if other != database => other,
            (true, _) => ALWAYS_THERE[0],
            (false, _) => target,
        };
        if self.creates(database) {
            command.arg("--create");
        } else if server.jobs == 1 || file.content == DumpContent::Globals {
            command.arg("--single-transaction");
        }
        command.args(server.tables.iter().map(|table| format!("--table={table}")));
        command.arg(format!("--dbname={}", ProgramConnection::database(place)));
        self.connection.tell(&mut command);
        command
    }

    fn advise(&self, failure: Failure) -> Failure {
        let stays = match (self.server.create, self.server.jobs) {
            (true, _) => "what was created by then stays: drop that database, or give `--clean --create`",
            (false, 1) => "nothing of that database was changed",
            (false, _) => "with `--jobs` there is no transaction: what was restored by then stays",
        };
        if failure.hint.is_some() { failure } else { failure.with_hint(stays) }
    }
}

fn feed(mut stdin: ChildStdin, mut inbox: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = inbox.blocking_recv() {
        if stdin.write_all(&bytes).is_err() {
            return;
        }
    }
}

fn write(mut bytes: Inbox, target: &Path, form: DumpForm) -> io::Result<()> {
    if form == DumpForm::Directory {
        std::fs::create_dir(target)?;
        return flat_tar::unpack(bytes, target);
    }
    let mut file = std::fs::File::create_new(target)?;
    io::copy(&mut bytes, &mut file).map(drop)
}

/// What comes, as a stream.
struct Inbox {
    inbox: mpsc::Receiver<Vec<u8>>,
    open: Vec<u8>,
    at: usize,
}

impl Read for Inbox {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.open.len() {
            match self.inbox.blocking_recv() {
                Some(bytes) => (self.open, self.at) = (bytes, 0),
                None => return Ok(0),
            }
        }
        let read = (&self.open[self.at..]).read(into)?;
        self.at += read;
        Ok(read)
    }
}
