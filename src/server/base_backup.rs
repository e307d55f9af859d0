//! `BASE_BACKUP`: a whole cluster over a replication connection, as tar archives that follow one another.
//!
//! PostgreSQL 14 sends one copy for each tablespace and one for the manifest; 15 and newer one copy for all, in which
//! each message says by its first byte what it is. Both are given as the same pieces here. Source: "Streaming Replication
//! Protocol" in PostgreSQL's documentation, `backup/basebackup.c` and `basebackup_copy.c` (14: `replication/basebackup.c`).

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use bytes::{Buf, Bytes};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::replication::{Replication, as_text, columns};
use super::session::ServerError;
use super::wire::{Complaint, Wire, complaint, refused};
use crate::postgres::backup_files::BackupFiles;
use crate::postgres::{Lsn, Malformed, PgMajor, TimelineId};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct BaseBackupRequest<'a> {
    /// For `backup_label`.
    pub label: &'a str,
    /// Whether the checkpoint shall hurry.
    pub fast: bool,
}

/// A base backup that is arriving.
pub struct BaseBackup {
    wire: Wire,
    /// What came first.
    pub start: BackupStart,
    /// The archives that are still to come; `None` where each is announced, from PostgreSQL 15 on.
    to_come: Option<VecDeque<Option<u32>>>,
    in_manifest: bool,
    end: Option<(Lsn, TimelineId)>,
    damaged: bool,
    warnings: Vec<String>,
}

/// What the server says before the first archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupStart {
    /// Where replay must begin.
    pub lsn: Lsn,
    /// The timeline.
    pub timeline: TimelineId,
    /// Object id and location of each tablespace besides the two that every cluster has. Locations are bytes, as file
    /// names are; one that lies in `pg_tblspc` itself is relative.
    pub tablespaces: Vec<(u32, Bytes)>,
    /// About how many bytes will come.
    pub bytes: u64,
}

/// What comes next.
#[derive(Debug)]
pub enum Piece {
    /// An archive begins: of a tablespace, or of the data directory.
    Archive(Option<u32>),
    /// Bytes of the archive.
    Content(Bytes),
    /// Bytes of `backup_manifest`, which comes after all archives.
    Manifest(Bytes),
    /// The server leaves out what stands where data belong, in its own words: it does not follow links.
    LeftOut(String),
    /// Everything has come.
    End(BackupEnd),
}

/// What the server says at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupEnd {
    /// Where replay must come.
    pub lsn: Lsn,
    /// The timeline.
    pub timeline: TimelineId,
    /// Whether the server found pages with wrong checksums; which they are stands in its warnings and its log.
    pub damaged: bool,
    /// What the server warned of.
    pub warnings: Vec<String>,
}

/// For the checkpoint at the start, which may be spread over `checkpoint_timeout`, a day at most.
const CHECKPOINT: Duration = Duration::from_secs(25 * 3600);
/// How long a server that sends may be silent.
const STALL: Duration = Duration::from_secs(60);
/// `ERRCODE_DATA_CORRUPTED`: after the end of a backup it tells of wrong checksums.
const DATA_CORRUPTED: &str = "XX001";
/// A broken disk warns of each file.
const MOST_WARNINGS: usize = 100;

impl Replication {
    /// Begins a base backup. Waits for a checkpoint. `TABLESPACE_MAP` is not asked for: `backup_manifest` would list a file
    /// that a restore with tablespaces elsewhere has to change.
    pub async fn base_backup(self, major: PgMajor, request: &BaseBackupRequest<'_>) -> Result<BaseBackup, ServerError> {
        let mut wire = self.wire;
        wire.send(|out| frontend::query(&command(major, request), out)).await?;
        let refused = |e: ServerError| ServerError(format!("PostgreSQL did not begin a base backup: {e}"));
        let rows = first_rows(&mut wire, CHECKPOINT).await.map_err(refused)?;
        let (lsn, timeline) = position(&rows)?;
        let rows = first_rows(&mut wire, STALL).await?;
        let (mut tablespaces, mut archives, mut kilobytes) = (Vec::new(), VecDeque::new(), 0u64);
        for row in &rows {
            let [oid, location, size] = &row[..] else { return Err(odd("tablespaces")) };
            kilobytes += size.as_deref().and_then(as_text).and_then(|size| size.parse::<u64>().ok()).unwrap_or(0);
            let oid = match oid.as_deref() {
                Some(oid) => Some(as_text(oid).and_then(|oid| oid.parse().ok()).ok_or_else(|| odd("tablespaces"))?),
                None => None,
            };
            archives.push_back(oid);
            tablespaces.extend(oid.zip(location.clone()));
        }
        let start = BackupStart { lsn, timeline, tablespaces, bytes: kilobytes * 1024 };
        let to_come = (major.get() < 15).then_some(archives);
        Ok(BaseBackup { wire, start, to_come, in_manifest: false, end: None, damaged: false, warnings: Vec::new() })
    }
}

impl BaseBackup {
    /// The next piece. Nothing comes behind the end.
    pub async fn next(&mut self) -> Result<Piece, ServerError> {
        loop {
            match self.wire.next(STALL).await? {
                Message::CopyOutResponse(_) => {
                    if let Some(archives) = &mut self.to_come {
                        match archives.pop_front() {
                            Some(archive) => return Ok(Piece::Archive(archive)),
                            None => self.in_manifest = true,
                        }
                    }
                }
                Message::CopyData(body) => {
                    if let Some(piece) = self.data(body.into_bytes())? {
                        return Ok(piece);
                    }
                }
                Message::DataRow(body) => self.end = Some(position(&[columns(&body)?])?),
                Message::NoticeResponse(body) => {
                    let complaint = complaint(body.fields());
                    if leaves_data_out(&complaint) {
                        return Ok(Piece::LeftOut(complaint.message));
                    }
                    if self.warnings.len() < MOST_WARNINGS {
                        self.warnings.push(complaint.message);
                    }
                }
                Message::ErrorResponse(body) => {
                    let complaint = complaint(body.fields());
                    // All that was sent is as the server read it: the copy is whole, and worth keeping.
                    if self.end.is_none() || complaint.code != DATA_CORRUPTED {
                        return Err(ServerError(format!(
                            "PostgreSQL broke the base backup off: {}",
                            complaint.message
                        )));
                    }
                    self.damaged = true;
                }
                Message::ReadyForQuery(_) => return self.finish(),
                Message::CopyDone
                | Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::ParameterStatus(_) => {}
                other => return Err(refused(other)),
            }
        }
    }

    fn data(&mut self, mut bytes: Bytes) -> Result<Option<Piece>, ServerError> {
        if self.to_come.is_none() {
            if bytes.is_empty() {
                return Err(odd("an empty message"));
            }
            match bytes.get_u8() {
                b'n' => return Ok(Some(Piece::Archive(archive_named(&bytes)?))),
                b'm' => self.in_manifest = true,
                b'd' => {}
                // How far the server is.
                b'p' => return Ok(None),
                _ => return Err(odd("a message of an unknown kind")),
            }
        }
        Ok(match bytes.is_empty() {
            true => None,
            false if self.in_manifest => Some(Piece::Manifest(bytes)),
            false => Some(Piece::Content(bytes)),
        })
    }

    fn finish(&mut self) -> Result<Piece, ServerError> {
        let (lsn, timeline) = self.end.ok_or_else(|| odd("no end"))?;
        let warnings = std::mem::take(&mut self.warnings);
        Ok(Piece::End(BackupEnd { lsn, timeline, damaged: self.damaged, warnings }))
    }
}

/// `sendDir` in `backup/basebackup.c` warns of nothing but links, sockets and the like. Its paths begin with `./`, or in a
/// tablespace with the place of that.
fn leaves_data_out(complaint: &Complaint) -> bool {
    let in_data_directory = complaint.message.split_once("./").map(|(_, path)| {
        let end = path.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(path.len());
        &path[..end]
    });
    complaint.routine == "sendDir" && in_data_directory.is_none_or(|top| BackupFiles::is_vital(Path::new(top)))
}

fn command(major: PgMajor, request: &BaseBackupRequest<'_>) -> String {
    let label = request.label.replace('\'', "''");
    match (major.get(), request.fast) {
        (..15, fast) => {
            let fast = if fast { " FAST" } else { "" };
            format!("BASE_BACKUP LABEL '{label}' PROGRESS{fast} NOWAIT MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'")
        }
        (_, fast) => {
            let checkpoint = if fast { "fast" } else { "spread" };
            format!(
                "BASE_BACKUP (LABEL '{label}', PROGRESS true, CHECKPOINT '{checkpoint}', WAIT false, MANIFEST 'yes', \
                 MANIFEST_CHECKSUMS 'CRC32C', VERIFY_CHECKSUMS true)"
            )
        }
    }
}

/// `<oid>.tar` or `base.tar`, and behind a zero byte the location.
fn archive_named(bytes: &[u8]) -> Result<Option<u32>, ServerError> {
    let name = bytes.split(|byte| *byte == 0).next().and_then(as_text).and_then(|name| name.strip_suffix(".tar"));
    match name {
        Some("base") => Ok(None),
        Some(oid) => oid.parse().map(Some).map_err(|_| odd("an archive")),
        None => Err(odd("an archive")),
    }
}

/// The rows of one result, the first message of which may take long.
async fn first_rows(wire: &mut Wire, patience: Duration) -> Result<Vec<Vec<Option<Bytes>>>, ServerError> {
    let mut rows = Vec::new();
    let mut patience = patience;
    loop {
        match wire.next(patience).await? {
            Message::RowDescription(_) => patience = STALL,
            Message::DataRow(body) => rows.push(columns(&body)?),
            Message::CommandComplete(_) => return Ok(rows),
            Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
            other => return Err(refused(other)),
        }
    }
}

fn position(rows: &[Vec<Option<Bytes>>]) -> Result<(Lsn, TimelineId), ServerError> {
    let Some([Some(lsn), Some(timeline)]) = rows.first().map(|row| &row[..]) else { return Err(odd("a position")) };
    let lsn = as_text(lsn).ok_or_else(|| odd("a position"))?;
    let lsn = lsn.parse().map_err(|e: Malformed| ServerError(e.to_string()))?;
    let timeline = as_text(timeline).and_then(|timeline| timeline.parse().ok()).and_then(TimelineId::new);
    Ok((lsn, timeline.ok_or_else(|| odd("a timeline"))?))
}

fn odd(what: &str) -> ServerError {
    ServerError(format!("PostgreSQL's base backup has another form than was expected: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_major_is_asked_in_its_own_words() {
        let ask = |major: u32, fast| command(major.try_into().unwrap(), &BaseBackupRequest { label: "o'neil", fast });
        assert!(ask(14, true).starts_with("BASE_BACKUP LABEL 'o''neil' PROGRESS FAST NOWAIT MANIFEST "));
        assert!(!ask(14, false).contains("FAST"));
        assert!(
            ask(15, true).starts_with("BASE_BACKUP (LABEL 'o''neil', PROGRESS true, CHECKPOINT 'fast', WAIT false")
        );
        assert!(ask(18, false).contains("'spread'"));
    }

    #[test]
    fn data_that_is_left_out_is_told_from_other_links() {
        let of = |routine: &str, message: &str| {
            leaves_data_out(&Complaint { routine: routine.into(), message: message.into(), ..Complaint::default() })
        };
        for path in ["\"./base\"", "»./base/16384«", "« ./pg_xact »", "\"./PG_VERSION\"", "\"/srv/fast/PG_15_1/5/7\""]
        {
            assert!(of("sendDir", &format!("skipping special file {path}")), "{path}");
        }
        for path in ["\"./postgresql.conf\"", "\"./log\"", "\"./base2\"", "\"./my base/base\""] {
            assert!(!of("sendDir", &format!("skipping special file {path}")), "{path}");
        }
        assert!(!of("sendFile", "checksum verification failed in file \"./base/5/16384\", block 7"));
    }

    #[test]
    fn archives_have_names() {
        assert_eq!(archive_named(b"base.tar\0\0").unwrap(), None);
        assert_eq!(archive_named(b"16384.tar\0/srv/fast disk\0").unwrap(), Some(16384));
        for bad in [&b"x.tar\0"[..], b"base", b"", b"99999999999.tar\0"] {
            assert!(archive_named(bad).is_err());
        }
    }
}
