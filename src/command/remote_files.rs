//! The archives of a base backup, taken apart as they arrive: directories, files, and the two files that a backup keeps for
//! its end.

use std::collections::BTreeMap;
use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tar::EntryType;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::backup_parts::Pages;
use super::backup_plan::cuts;
use super::pace::Pace;
use super::remote_parts::{PartFeeder, Run, padding};
use crate::disk::snapshot::{FoundDirectory, FoundFile};
use crate::postgres::backup_files::{BackupFiles, CONTROL_FILE};
use crate::postgres::{BackupPath, PgMajor};
use crate::stream::tar_header;

/// What arrives.
pub(super) enum Feed {
    /// An archive begins: of a tablespace, or of the data directory.
    Archive(Option<u32>),
    /// Bytes of it.
    Content(Bytes),
    /// Everything has arrived.
    End,
}

/// What has arrived.
#[derive(Debug)]
pub(super) struct Arrived {
    /// By path.
    pub(super) directories: Vec<FoundDirectory>,
    /// In the order of the stream, but for the two below.
    pub(super) files: Vec<FoundFile>,
    /// `backup_label`
    pub(super) label: Vec<u8>,
    /// When the server packed `backup_label`, by its clock, in seconds since 1970.
    pub(super) label_packed: i64,
    /// When it arrived.
    pub(super) label_arrived: Instant,
    /// `pg_control`
    pub(super) control: Vec<u8>,
}

/// Takes archives apart.
pub(super) struct Unpacking {
    feeder: PartFeeder,
    pages: Option<Pages>,
    pace: Pace,
    rules: BackupFiles,
    major: PgMajor,
    directories: BTreeMap<BackupPath, u32>,
    files: Vec<FoundFile>,
    label: Option<(Vec<u8>, i64, Instant)>,
    control: Option<Vec<u8>>,
}

const LABEL_FILE: &str = "backup_label";
/// Whole pages of any size.
const CHUNK: u64 = 256 << 10;
/// `backup_label` and `pg_control` are much smaller.
const LARGEST_HELD: u64 = 1 << 20;
/// Tablespaces arrive before the directory that they are linked from.
const TABLESPACES: &str = "pg_tblspc";
const DIRECTORY_MODE: u32 = 0o700;

impl Unpacking {
    pub(super) fn new(feeder: PartFeeder, major: PgMajor, pages: Option<Pages>, pace: Pace) -> Self {
        Unpacking {
            feeder,
            pages,
            pace,
            // The number of the catalogs stands in the archive of a tablespace.
            rules: BackupFiles::new(major, 0),
            major,
            directories: BTreeMap::new(),
            files: Vec::new(),
            label: None,
            control: None,
        }
    }

    /// Takes everything apart that is fed. Blocks.
    pub(super) fn run(mut self, mut feed: mpsc::Receiver<Feed>) -> io::Result<Arrived> {
        let mut next = feed.blocking_recv().ok_or_else(broken_off)?;
        loop {
            next = match next {
                Feed::Archive(tablespace) => self.archive(tablespace, &mut feed)?,
                Feed::Content(_) => return Err(io::Error::other("content came before an archive")),
                Feed::End => break,
            };
        }
        self.feeder.finish()?;
        let missing = |name: &str| io::Error::other(format!("`{name}` did not come"));
        let (label, label_packed, label_arrived) = self.label.ok_or_else(|| missing(LABEL_FILE))?;
        let control = self.control.ok_or_else(|| missing(CONTROL_FILE))?;
        let stray = |path: &&BackupPath| path.parent().is_some_and(|parent| !self.directories.contains_key(&parent));
        let mut all = self.directories.keys().chain(self.files.iter().map(|file| &file.path));
        if let Some(path) = all.find(stray) {
            return Err(io::Error::other(format!("`{path}` came without its directory")));
        }
        let directories = self.directories.into_iter().map(|(path, mode)| FoundDirectory { path, mode }).collect();
        Ok(Arrived { directories, files: self.files, label, label_packed, label_arrived, control })
    }

    fn archive(&mut self, tablespace: Option<u32>, feed: &mut mpsc::Receiver<Feed>) -> io::Result<Feed> {
        if let Some(oid) = tablespace {
            self.directory(path_of(TABLESPACES.as_bytes())?, DIRECTORY_MODE)?;
            self.directory(path_of(format!("{TABLESPACES}/{oid}").as_bytes())?, DIRECTORY_MODE)?;
        }
        let mut bytes = ArchiveBytes { feed, piece: Bytes::new(), behind: None };
        let mut archive = tar::Archive::new(&mut bytes);
        for entry in archive.entries()? {
            self.entry(tablespace, &mut entry?)?;
        }
        // Up to 14 nothing stands behind the last entry, from 15 on two blocks of zeros.
        io::copy(&mut bytes, &mut io::sink())?;
        bytes.behind.ok_or_else(broken_off)
    }

    fn entry<R: Read>(&mut self, tablespace: Option<u32>, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let full = entry.path_bytes();
        let name = full.strip_prefix(b"./").unwrap_or(&full);
        let name = name.strip_suffix(b"/").unwrap_or(name);
        let path = match tablespace {
            Some(oid) => path_of(&[format!("{TABLESPACES}/{oid}/").as_bytes(), name].concat())?,
            None => path_of(name)?,
        };
        let mode = entry.header().mode()? & 0o777;
        match entry.header().entry_type() {
            EntryType::Directory => {
                self.learn_catalogs(tablespace, name);
                self.directory(path, mode)
            }
            // Where it leads, the list of tablespaces has said.
            EntryType::Symlink if path.parent().is_some_and(|parent| parent.as_bytes() == TABLESPACES.as_bytes()) => {
                self.directory(path, DIRECTORY_MODE)
            }
            EntryType::Regular => self.file(path, mode, entry),
            other => Err(io::Error::other(format!("`{path}` is neither file nor directory: {other:?}"))),
        }
    }

    /// The first directory of a tablespace is `PG_<major>_<catalog version>`.
    fn learn_catalogs(&mut self, tablespace: Option<u32>, name: &[u8]) {
        let prefix = format!("PG_{}_", self.major);
        let version = std::str::from_utf8(name).ok().and_then(|name| name.strip_prefix(&prefix)?.parse().ok());
        if let Some((_, version)) = tablespace.zip(version) {
            self.rules = BackupFiles::new(self.major, version);
        }
    }

    fn directory(&mut self, path: BackupPath, mode: u32) -> io::Result<()> {
        // Known from a tablespace that came before: its true mode comes now.
        if self.directories.get(&path) == Some(&mode) {
            return Ok(());
        }
        self.feeder.between(tar_header::directory(path.as_path(), mode)?)?;
        self.directories.insert(path, mode);
        Ok(())
    }

    fn file<R: Read>(&mut self, path: BackupPath, mode: u32, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let size = entry.size();
        let modified = i64::try_from(entry.header().mtime()?).unwrap_or_default();
        if path.as_bytes() == LABEL_FILE.as_bytes() {
            self.label = Some((held(entry, size)?, modified, Instant::now()));
            return Ok(());
        }
        if path.as_bytes() == CONTROL_FILE.as_bytes() {
            self.control = Some(held(entry, size)?);
            return Ok(());
        }
        let index = self.files.len();
        let relation = self.rules.relation_file(path.as_path());
        let found = FoundFile { path, size, mode, modified, relation };
        let mut header = tar_header::file(found.path.as_path(), mode, size, modified)?;
        let first_page = self.pages.zip(relation).and_then(|(pages, relation)| relation.first_block(pages.relseg_size));
        let page_size = self.pages.map_or(1, |pages| pages.page_size as u64);
        for (from, to) in cuts(size) {
            let first_page = first_page.map(|first| first.wrapping_add((from / page_size) as u32));
            let run = Run { file: index, header: std::mem::take(&mut header), first_page };
            self.feeder.begin(to - from, run)?;
            let mut at = from;
            while at < to {
                let mut chunk = vec![0; (to - at).min(CHUNK) as usize];
                entry.read_exact(&mut chunk)?;
                self.pace.wait(chunk.len());
                at += chunk.len() as u64;
                self.feeder.content(chunk)?;
            }
            self.feeder.end(padding(size, to))?;
        }
        self.files.push(found);
        Ok(())
    }
}

fn path_of(bytes: &[u8]) -> io::Result<BackupPath> {
    BackupPath::new(bytes).map_err(io::Error::other)
}

fn held<R: Read>(entry: &mut tar::Entry<'_, R>, size: u64) -> io::Result<Vec<u8>> {
    if size > LARGEST_HELD {
        return Err(io::Error::other(format!("a file of {size} bytes is larger than any of its kind")));
    }
    let mut content = vec![0; size as usize];
    entry.read_exact(&mut content)?;
    Ok(content)
}

/// The bytes of one archive.
struct ArchiveBytes<'a> {
    feed: &'a mut mpsc::Receiver<Feed>,
    piece: Bytes,
    /// What came behind its end.
    behind: Option<Feed>,
}

impl Read for ArchiveBytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && self.behind.is_none() {
            match self.feed.blocking_recv() {
                Some(Feed::Content(bytes)) => self.piece = bytes,
                Some(behind) => self.behind = Some(behind),
                None => return Err(broken_off()),
            }
        }
        let taken = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..taken]);
        Ok(taken)
    }
}

fn broken_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it broke off")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::backup_parts::PackedPart;
    use crate::command::backup_plan::PART;
    use crate::command::remote_parts::{Filling, Room};
    use tar::{Builder, Header};

    fn entry(archive: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, content: &[u8]) {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o600);
        header.set_mtime(7);
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, content).unwrap();
    }

    /// As PostgreSQL 14 ends it, or as 15 does.
    fn finished(archive: Builder<Vec<u8>>, terminated: bool) -> Vec<u8> {
        let mut bytes = archive.into_inner().unwrap();
        bytes.truncate(bytes.len() - if terminated { 0 } else { 1024 });
        bytes
    }

    fn base(more: &[(&str, EntryType, &[u8])], terminated: bool) -> Vec<u8> {
        let mut archive = Builder::new(Vec::new());
        entry(&mut archive, LABEL_FILE, EntryType::Regular, b"label");
        for name in ["global/", "base/", "base/1/", "pg_tblspc/", "./pg_wal/"] {
            entry(&mut archive, name, EntryType::Directory, b"");
        }
        for (name, kind, content) in more {
            entry(&mut archive, name, *kind, content);
        }
        entry(&mut archive, CONTROL_FILE, EntryType::Regular, b"control");
        finished(archive, terminated)
    }

    fn unpack(archives: Vec<(Option<u32>, Vec<u8>)>, whole: bool) -> io::Result<(Arrived, Vec<PackedPart>)> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (feed, fed) = mpsc::channel(4);
            let (parts, mut filled) = mpsc::unbounded_channel::<Filling>();
            let room = Room::new(2);
            let pace = Pace::new(None);
            let unpacking = Unpacking::new(PartFeeder::new(parts, &room), 15.try_into().unwrap(), None, pace);
            let unpacking = tokio::task::spawn_blocking(move || unpacking.run(fed));
            tokio::spawn(async move {
                for (tablespace, bytes) in archives {
                    feed.send(Feed::Archive(tablespace)).await.ok();
                    let bytes = Bytes::from(bytes);
                    for at in (0..bytes.len()).step_by(30_000) {
                        let piece = bytes.slice(at..bytes.len().min(at + 30_000));
                        feed.send(Feed::Content(piece)).await.ok();
                    }
                }
                if whole {
                    feed.send(Feed::End).await.ok();
                }
            });
            let mut packed = Vec::new();
            while let Some(filling) = filled.recv().await {
                packed.extend(tokio::task::spawn_blocking(move || filling.pack(1, None)).await.unwrap()?);
            }
            Ok((unpacking.await.unwrap()?, packed))
        })
    }

    #[test]
    fn what_is_packed_is_what_arrived_in_its_order() {
        let large: Vec<u8> = (0..PART as u32 + 70_000).map(|i| (i / 9) as u8).collect();
        for terminated in [false, true] {
            let mut tablespace = Builder::new(Vec::new());
            entry(&mut tablespace, "PG_15_202209061/", EntryType::Directory, b"");
            entry(&mut tablespace, "PG_15_202209061/5/", EntryType::Directory, b"");
            entry(&mut tablespace, "PG_15_202209061/5/16999.1", EntryType::Regular, &[1; 700]);
            let files = [
                ("pg_tblspc/16384/", EntryType::Symlink, &b""[..]),
                ("base/1/1", EntryType::Regular, &large),
                ("base/1/2", EntryType::Regular, b""),
                ("PG_VERSION", EntryType::Regular, b"15\n"),
            ];
            let archives = vec![(Some(16384), finished(tablespace, terminated)), (None, base(&files, terminated))];
            let (arrived, parts) = unpack(archives, true).unwrap();
            assert_eq!((&arrived.label[..], &arrived.control[..]), (&b"label"[..], &b"control"[..]));
            assert_eq!(arrived.label_packed, 7);
            let directories: Vec<_> = arrived.directories.iter().map(|found| found.path.to_string()).collect();
            let in_tablespace = "pg_tblspc/16384/PG_15_202209061";
            let expected = ["base", "base/1", "global", "pg_tblspc", "pg_tblspc/16384", in_tablespace];
            assert_eq!(directories, [&expected[..], &[&format!("{in_tablespace}/5"), "pg_wal"]].concat());
            assert_eq!(arrived.files[0].path.to_string(), format!("{in_tablespace}/5/16999.1"));
            assert_eq!(arrived.files[0].relation.map(|relation| relation.segment), Some(1));

            assert_eq!(parts.iter().map(|part| part.number).collect::<Vec<_>>(), [1, 2, 3]);
            let mut contents = vec![Vec::new(); arrived.files.len()];
            for (part, piece) in parts.iter().flat_map(|part| part.pieces.iter().map(move |piece| (part, piece))) {
                let extent = &piece.extent;
                let stored = &part.bytes[extent.at as usize..][..extent.stored as usize];
                let plain = zstd::decode_all(stored).unwrap();
                let content = &plain[extent.skip as usize..][..extent.plain as usize];
                assert_eq!(piece.crc32c, crc32c::crc32c(content));
                contents[piece.file].extend_from_slice(content);
            }
            let wanted = [&[1; 700][..], &large, b"", b"15\n"];
            assert!(contents.iter().zip(wanted).all(|(found, wanted)| found == wanted));
            let stream: Vec<u8> = parts.iter().flat_map(|part| part.bytes.iter().copied()).collect();
            let plain = [zstd::decode_all(&stream[..]).unwrap(), tar_header::END.to_vec()].concat();
            let mut archive = tar::Archive::new(&plain[..]);
            let sizes: Vec<u64> = archive.entries().unwrap().map(|entry| entry.unwrap().size()).collect();
            assert_eq!(sizes.iter().sum::<u64>(), 700 + large.len() as u64 + 3);
        }
    }

    #[test]
    fn what_is_no_backup_is_refused() {
        let refused = |bytes: Vec<u8>, whole| unpack(vec![(None, bytes)], whole).map(drop).unwrap_err().to_string();
        let with = |name, kind| base(&[(name, kind, b"x")], true);
        for name in ["../x", "/etc/x", "base/../x", "base//x"] {
            assert!(refused(with(name, EntryType::Regular), true).contains("no path inside"), "{name}");
        }
        assert!(refused(with("base/2/1", EntryType::Regular), true).contains("without its directory"));
        for kind in [EntryType::Link, EntryType::Symlink, EntryType::Fifo, EntryType::Char] {
            assert!(refused(with("base/1/9", kind), true).contains("neither file nor directory"));
        }
        let good = base(&[("base/1/1", EntryType::Regular, &[3; 5000])], false);
        assert!(unpack(vec![(None, good.clone())], true).is_ok());
        // Cut between two entries, within one, and before anything.
        for length in [0, 512, 1024, 4000, good.len() - 1024, good.len() - 1] {
            assert!(unpack(vec![(None, good[..length].to_vec())], true).is_err(), "{length}");
        }
        assert!(refused(good, false).contains("broke off"));
    }
}
