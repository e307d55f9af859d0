//! The socket under each connection. hyper writes whole answers to it; a plan, set just before an answer, says which
//! bytes really leave and how the connection ends.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::shared::lock;
use super::tls::Socket;

/// A reset throws away what the kernel has not sent yet: wait so long, or the client may not see what came before.
const BEFORE_RESET: Duration = Duration::from_millis(50);

const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// What happens to the answer that is written next.
#[derive(Default)]
pub(super) enum Plan {
    /// It goes out as it is.
    #[default]
    Pass,
    /// Its head and so many bytes of its body go out, then the connection ends.
    Cut { left: usize, end: End },
    /// Its body, of so many bytes, goes out byte by byte.
    Trickle { left: usize, every: Duration },
}

/// How a connection ends.
#[derive(Clone, Copy)]
pub(super) enum End {
    /// RST.
    Reset,
    /// FIN.
    Close,
    /// Not at all: the client has to give up.
    Silence,
}

/// The plan of one connection, shared by its socket and its service.
#[derive(Default)]
pub(super) struct Line {
    plan: Plan,
    /// How much of the end of the head has been seen.
    head: usize,
    reset_on_drop: bool,
}

impl Line {
    /// Sets the plan for the answer that the service is about to return.
    pub(super) fn plan(&mut self, plan: Plan) {
        self.plan = plan;
        self.head = 0;
    }

    /// The connection is to end with RST; the service then fails, and hyper drops the socket.
    pub(super) fn reset(&mut self) {
        self.reset_on_drop = true;
    }
}

/// A stream that follows the plan.
pub(super) struct Wire {
    stream: Box<dyn Socket>,
    line: Arc<Mutex<Line>>,
    pause: Option<Pin<Box<Sleep>>>,
}

/// What may be done with the bytes at hand.
enum Step {
    Pass,
    Write(usize),
    Wait(Duration),
    End(End),
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Socket>) -> Self {
        Self { stream, line: Arc::default(), pause: None }
    }

    pub(super) fn line(&self) -> Arc<Mutex<Line>> {
        Arc::clone(&self.line)
    }

    fn step(&self, bytes: &[u8]) -> Step {
        let line = lock(&self.line);
        let in_head = line.head < END_OF_HEAD.len();
        match line.plan {
            Plan::Pass => Step::Pass,
            _ if in_head && bytes.is_empty() => Step::Pass,
            _ if in_head => Step::Write(rest_of_head(line.head, bytes).0),
            Plan::Cut { left: 0, end } => Step::End(end),
            Plan::Cut { left, .. } => Step::Write(left.min(bytes.len())),
            Plan::Trickle { every, .. } if self.pause.is_none() => Step::Wait(every),
            Plan::Trickle { .. } => Step::Write(bytes.len().min(1)),
        }
    }

    fn wrote(&mut self, bytes: &[u8]) {
        let mut line = lock(&self.line);
        if line.head < END_OF_HEAD.len() {
            line.head = rest_of_head(line.head, bytes).1;
            return;
        }
        match &mut line.plan {
            Plan::Pass => {}
            Plan::Cut { left, .. } => *left -= bytes.len(),
            Plan::Trickle { left, .. } => {
                self.pause = None;
                *left -= bytes.len();
                if *left == 0 {
                    line.plan = Plan::Pass;
                }
            }
        }
    }

    fn poll_pause(&mut self, cx: &mut Context<'_>, length: Duration) -> Poll<()> {
        self.pause.get_or_insert_with(|| Box::pin(sleep(length))).as_mut().poll(cx)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>, end: End) -> Poll<io::Error> {
        match end {
            // hyper's reading side notices when the client goes.
            End::Silence => Poll::Pending,
            End::Close => Poll::Ready(io::ErrorKind::BrokenPipe.into()),
            End::Reset => {
                ready!(self.poll_pause(cx, BEFORE_RESET));
                lock(&self.line).reset();
                Poll::Ready(io::ErrorKind::ConnectionReset.into())
            }
        }
    }
}

/// How many of the bytes still belong to the head, and how much of its end has been seen after them.
fn rest_of_head(mut seen: usize, bytes: &[u8]) -> (usize, usize) {
    for (at, &byte) in bytes.iter().enumerate() {
        seen = if byte == END_OF_HEAD[seen] { seen + 1 } else { usize::from(byte == END_OF_HEAD[0]) };
        if seen == END_OF_HEAD.len() {
            return (at + 1, seen);
        }
    }
    (bytes.len(), seen)
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
        }
        let limit = loop {
            match this.step(bytes) {
                Step::Pass => return Pin::new(&mut this.stream).poll_write(cx, bytes),
                Step::Write(limit) => break limit,
                Step::Wait(length) => ready!(this.poll_pause(cx, length)),
                Step::End(end) => return this.poll_end(cx, end).map(Err),
            }
        };
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, &bytes[..limit]))?;
        this.wrote(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if matches!(this.step(&[0]), Step::Pass) {
            return Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        }
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
        Pin::new(this).poll_write(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // An answer whose body ends where the plan cuts brings no further write.
        if let Step::End(end) = this.step(&[]) {
            return this.poll_end(cx, end).map(Err);
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if lock(&self.line).reset_on_drop {
            // If the client has already gone there is nobody to reset.
            let _ = self.stream.tcp().set_zero_linger();
        }
    }
}
