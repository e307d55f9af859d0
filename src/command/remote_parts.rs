//! The parts of a backup that arrives as a stream: one thread fills them, in the order of the stream, others pack them.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::backup_parts::{PackedPart, PackedPiece, Pages};
use super::backup_plan::{PART, PartFiller};
use crate::postgres::{WrongPages, page};
use crate::stream::{PartWriter, Sha256, tar_header};

/// What goes into a part.
enum Step {
    /// Bytes that belong to no file.
    Between(Vec<u8>),
    /// A run of a file begins.
    Begin(Run),
    /// Bytes of the file: whole pages, but at its end.
    Content(Vec<u8>),
    /// The run ends.
    End { padding: usize },
    /// The part is full.
    Full,
}

/// The beginning of a run of a file's bytes.
pub(super) struct Run {
    /// The file's index.
    pub(super) file: usize,
    /// What stands before it in the archive.
    pub(super) header: Vec<u8>,
    /// The number of its first page, where it has pages.
    pub(super) first_page: Option<u32>,
}

/// A part that is being filled.
pub(super) struct Filling {
    number: u32,
    steps: Receiver<(Step, OwnedSemaphorePermit)>,
}

/// Fills parts. Waits where those who pack do not keep up.
pub(super) struct PartFeeder {
    filler: PartFiller,
    open: Option<(u32, Sender<(Step, OwnedSemaphorePermit)>)>,
    parts: UnboundedSender<Filling>,
    room: Arc<Semaphore>,
}

/// Memory for bytes that wait to be packed: the feeder and those who pack share it.
pub(super) struct Room(Arc<Semaphore>);

/// What a step costs besides its bytes.
const OVERHEAD: usize = 1024;

impl Room {
    /// Enough for `jobs` to have work while one part is filled.
    pub(super) fn new(jobs: usize) -> Self {
        Room(Arc::new(Semaphore::new(PART as usize * jobs.saturating_sub(1).clamp(1, 16))))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Whoever waits for room need not wait any more.
        self.0.close();
    }
}

impl PartFeeder {
    pub(super) fn new(parts: UnboundedSender<Filling>, room: &Room) -> Self {
        PartFeeder { filler: PartFiller::default(), open: None, parts, room: Arc::clone(&room.0) }
    }

    pub(super) fn between(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        let number = self.open.as_ref().map_or_else(|| self.filler.place(0), |(number, _)| *number);
        self.open(number)?;
        self.put(Step::Between(bytes))
    }

    /// Begins a run of so many bytes, [`PART`] at most.
    pub(super) fn begin(&mut self, bytes: u64, run: Run) -> io::Result<()> {
        let number = self.filler.place(bytes);
        self.open(number)?;
        self.put(Step::Begin(run))
    }

    pub(super) fn content(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        self.put(Step::Content(bytes))
    }

    pub(super) fn end(&mut self, padding: usize) -> io::Result<()> {
        self.put(Step::End { padding })
    }

    /// There will be no more parts.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.open.is_some() { self.put(Step::Full) } else { Ok(()) }
    }

    fn open(&mut self, number: u32) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|(open, _)| *open == number) {
            return Ok(());
        }
        if self.open.is_some() {
            self.put(Step::Full)?;
        }
        let (sender, steps) = channel();
        self.parts.send(Filling { number, steps }).map_err(|_| given_up())?;
        self.open = Some((number, sender));
        Ok(())
    }

    fn put(&mut self, step: Step) -> io::Result<()> {
        let bytes = match &step {
            Step::Between(bytes) | Step::Content(bytes) => bytes.len(),
            Step::Begin(run) => run.header.len(),
            Step::End { .. } | Step::Full => 0,
        };
        let wanted = u32::try_from(bytes + OVERHEAD).unwrap_or(u32::MAX);
        let permit = Handle::current().block_on(Arc::clone(&self.room).acquire_many_owned(wanted));
        let permit = permit.map_err(|_| given_up())?;
        let (_, open) = self.open.as_ref().ok_or_else(|| io::Error::other("no part is open"))?;
        open.send((step, permit)).map_err(|_| given_up())
    }
}

fn given_up() -> io::Error {
    io::Error::other("the backup was given up")
}

impl Filling {
    /// Packs what comes; `None` if the part is not filled to its end. A page with a wrong checksum is not looked at again:
    /// the server has done that before it sent it.
    pub(super) fn pack(self, level: i32, pages: Option<Pages>) -> io::Result<Option<PackedPart>> {
        let Filling { number, steps } = self;
        let mut writer = PartWriter::new(level, PART as usize)?;
        let mut pieces = Vec::new();
        let (mut file, mut next_page, mut crc, mut wrong) = (0, None, 0, WrongPages::default());
        // The permit is given back when the step is done.
        while let Ok((step, _permit)) = steps.recv() {
            match step {
                Step::Between(bytes) => writer.between(&bytes)?,
                Step::Begin(run) => {
                    writer.begin(&run.header)?;
                    (file, next_page, crc) = (run.file, run.first_page, 0);
                }
                Step::Content(bytes) => {
                    if let Some((pages, next)) = pages.as_ref().zip(next_page.as_mut()) {
                        judge(&bytes, pages, next, &mut wrong);
                    }
                    crc = crc32c::crc32c_append(crc, &bytes);
                    writer.content(&bytes)?;
                }
                Step::End { padding } => {
                    let extent = writer.end(padding)?;
                    let wrong = std::mem::take(&mut wrong);
                    pieces.push(PackedPiece { part: number, file, extent, crc32c: crc, wrong });
                }
                Step::Full => {
                    let bytes = writer.finish()?;
                    return Ok(Some(PackedPart { number, sha256: Sha256::of(&bytes), bytes, pieces }));
                }
            }
        }
        Ok(None)
    }
}

fn judge(bytes: &[u8], pages: &Pages, next: &mut u32, wrong: &mut WrongPages) {
    for page in bytes.chunks_exact(pages.page_size) {
        wrong.note(*next, page::verify(page, *next, pages.start));
        *next = next.wrapping_add(1);
    }
}

/// What fills the last block of a file of this size, if the run ends it.
pub(super) fn padding(size: u64, to: u64) -> usize {
    if to == size { tar_header::padding(size) } else { 0 }
}
