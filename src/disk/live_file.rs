//! A file of a running server, read as a base backup needs it: exactly as many bytes as were announced, and each page
//! looked at.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::postgres::page::{self, PageState};
use crate::postgres::{Lsn, WrongPages};

/// How the pages of a relation file are judged.
#[derive(Clone, Copy, Debug)]
pub struct PageCheck {
    /// The number of the file's first block in its fork.
    pub first_block: u32,
    /// Bytes in a page.
    pub page_size: usize,
    /// The start of the backup: what changed later is replayed.
    pub start: Lsn,
}

/// A file that was opened once: it may be removed meanwhile.
#[derive(Debug)]
pub struct LiveFile(File);

/// Bytes that are read at once: whole pages of any size.
const BLOCK: usize = 256 << 10;
/// A page that the server is writing is whole a moment later.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(5);

impl LiveFile {
    /// Opens it; `None` if it is gone.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => Ok(Some(LiveFile(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io::Error::new(error.kind(), format!("cannot open `{}`: {error}", path.display()))),
        }
    }

    /// Its size now.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    /// Gives the bytes from `from` to `to` to `sink`. Where the file has become shorter, zeros: replay of the WAL
    /// shortens it, too. Tells of pages with a wrong checksum, also when read again.
    pub fn read_run(
        &self,
        from: u64,
        to: u64,
        check: Option<&PageCheck>,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<WrongPages> {
        let mut wrong = WrongPages::default();
        let mut block = vec![0; BLOCK.min(usize::try_from(to - from).unwrap_or(BLOCK))];
        let mut at = from;
        while at < to {
            let wanted = usize::try_from(to - at).unwrap_or(BLOCK).min(BLOCK);
            let piece = &mut block[..wanted];
            let read = self.read_fully(at, piece)?;
            piece[read..].fill(0);
            if let Some(check) = check {
                self.judge(at, &mut piece[..read], check, &mut wrong)?;
            }
            sink(piece)?;
            at += wanted as u64;
        }
        Ok(wrong)
    }

    fn read_fully(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match self.0.read_at(&mut buffer[read..], at + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn judge(&self, at: u64, bytes: &mut [u8], check: &PageCheck, wrong: &mut WrongPages) -> io::Result<()> {
        let first = at / check.page_size as u64;
        for (index, page) in bytes.chunks_exact_mut(check.page_size).enumerate() {
            let number = first + index as u64;
            let block = check.first_block.wrapping_add(number as u32);
            let mut state = page::verify(page, block, check.start);
            for _ in 1..LOOKS {
                if matches!(state, PageState::Good | PageState::New) {
                    break;
                }
                std::thread::sleep(PAUSE);
                let again = self.read_fully(number * check.page_size as u64, page)?;
                // The relation was cut meanwhile: what is behind its end is zeros.
                page[again..].fill(0);
                state = page::verify(page, block, check.start);
            }
            wrong.note(block, state);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn read(file: &LiveFile, from: u64, to: u64, check: Option<&PageCheck>) -> (Vec<u8>, WrongPages) {
        let mut bytes = Vec::new();
        let told = file
            .read_run(from, to, check, |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
        (bytes, told)
    }

    #[test]
    fn exactly_what_was_announced_comes() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("f");
        let content: Vec<u8> = (0..700_000u32).map(|i| (i / 3) as u8).collect();
        fs::write(&path, &content).unwrap();
        let file = LiveFile::open(&path).unwrap().unwrap();
        assert_eq!(read(&file, 0, 700_000, None).0, content);
        assert_eq!(read(&file, 262_144, 600_000, None).0, content[262_144..600_000]);
        let (longer, _) = read(&file, 0, 800_000, None);
        assert_eq!((longer.len(), &longer[700_000..]), (800_000, &vec![0; 100_000][..]));
        fs::remove_file(&path).unwrap();
        assert_eq!(read(&file, 0, 10, None).0, content[..10]);
        assert!(LiveFile::open(&path).unwrap().is_none());
    }

    #[test]
    fn bad_pages_are_named_and_new_ones_are_not() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("1");
        let mut content = vec![0u8; 4 * 8192];
        content[2 * 8192 + 100] = 1;
        content[3 * 8192..][..8192].fill(0xFF);
        fs::write(&path, &content).unwrap();
        let file = LiveFile::open(&path).unwrap().unwrap();
        let check = PageCheck { first_block: 131_072, page_size: 8192, start: Lsn(100) };
        let (bytes, told) = read(&file, 0, 4 * 8192, Some(&check));
        assert_eq!(bytes, content);
        assert_eq!(told.clone().behind(Lsn(200)), [131_074, 131_075]);
        assert_eq!(told.behind(Lsn(u64::MAX)), [131_074]);
    }
}
