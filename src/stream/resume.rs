//! A download that survives a broken connection: it goes on where it stopped.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::time::{Instant, timeout};

/// Where a [`Resumable`] gets its bytes: one object, from any offset.
#[async_trait]
pub trait RangeSource: Send {
    /// Why a read failed.
    type Error: Send;

    /// Opens the object's bytes from `offset` to the end. Must fail if the object is not the one that
    /// the first call opened.
    async fn open(&mut self, offset: u64) -> Result<BoxStream<'static, Result<Bytes, Self::Error>>, Self::Error>;

    /// Whether going on may help after this error.
    fn is_temporary(&self, error: &Self::Error) -> bool;

    /// The error for a connection that gave fewer bytes than a living one would.
    fn stalled(&self, offset: u64, waited: Duration) -> Self::Error;

    /// The error for a body that ended before `total` bytes had come.
    fn ended_early(&self, offset: u64, total: u64) -> Self::Error;
}

/// Reads an object of known length to its end, reconnecting where a connection breaks, ends early or stalls.
///
/// * Bytes come in order, each once.
/// * A connection that gives less than [`SLOWEST`] for `stall` is given up.
/// * Ends with an error after `patience` connections in a row that brought less than [`WORTHWHILE`].
pub struct Resumable<S: RangeSource> {
    source: S,
    total: u64,
    offset: u64,
    stall: Duration,
    patience: u32,
    fruitless: u32,
    connection: Option<Connection<S::Error>>,
}

struct Connection<E> {
    body: BoxStream<'static, Result<Bytes, E>>,
    brought: u64,
    window_start: Instant,
    window_bytes: u64,
}

/// Bytes a second below which a connection counts as dead.
pub const SLOWEST: u64 = 4 << 10;
/// A connection that brought this much before it broke starts the count of failures anew.
pub const WORTHWHILE: u64 = 256 << 10;

impl<S: RangeSource> Resumable<S> {
    /// Goes on with `body`, which `source` opened at offset 0, of an object of `total` bytes.
    pub fn new(
        source: S,
        body: BoxStream<'static, Result<Bytes, S::Error>>,
        total: u64,
        stall: Duration,
        patience: u32,
    ) -> Self {
        let connection = Some(Connection::new(body));
        Resumable { source, total, offset: 0, stall, patience, fruitless: 0, connection }
    }

    /// The next bytes; `None` when all have come.
    pub async fn next(&mut self) -> Option<Result<Bytes, S::Error>> {
        while self.offset < self.total {
            let outcome = match &mut self.connection {
                Some(connection) => connection.read(self.stall).await,
                None => match self.source.open(self.offset).await {
                    Ok(body) => {
                        self.connection = Some(Connection::new(body));
                        continue;
                    }
                    Err(error) => Read::Failed(error),
                },
            };
            let error = match outcome {
                Read::Bytes(bytes) => {
                    let wanted = (self.total - self.offset).min(bytes.len() as u64);
                    self.offset += wanted;
                    return Some(Ok(bytes.slice(..wanted as usize)));
                }
                Read::Failed(error) => error,
                Read::Ended => self.source.ended_early(self.offset, self.total),
                Read::Stalled => self.source.stalled(self.offset, self.stall),
            };
            let brought = self.connection.take().map_or(0, |connection| connection.brought);
            self.fruitless = if brought >= WORTHWHILE { 0 } else { self.fruitless + 1 };
            if self.fruitless > self.patience || !self.source.is_temporary(&error) {
                return Some(Err(error));
            }
            tracing::debug!(offset = self.offset, "the download broke, going on from here");
        }
        None
    }
}

enum Read<E> {
    Bytes(Bytes),
    Failed(E),
    Ended,
    Stalled,
}

impl<E> Connection<E> {
    fn new(body: BoxStream<'static, Result<Bytes, E>>) -> Self {
        Connection { body, brought: 0, window_start: Instant::now(), window_bytes: 0 }
    }

    async fn read(&mut self, stall: Duration) -> Read<E> {
        loop {
            let left = stall.saturating_sub(self.window_start.elapsed());
            match timeout(left, self.body.next()).await {
                Err(_) => return Read::Stalled,
                Ok(None) => return Read::Ended,
                Ok(Some(Err(error))) => return Read::Failed(error),
                Ok(Some(Ok(bytes))) if bytes.is_empty() => {}
                Ok(Some(Ok(bytes))) => {
                    self.brought += bytes.len() as u64;
                    self.window_bytes += bytes.len() as u64;
                    if self.window_bytes >= SLOWEST * stall.as_secs().max(1) {
                        self.window_start = Instant::now();
                        self.window_bytes = 0;
                    }
                    return Read::Bytes(bytes);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    /// Gives `step` bytes a connection, then breaks as told.
    struct Flaky {
        object: Vec<u8>,
        step: usize,
        breaks: Break,
        opened: Vec<u64>,
    }

    #[derive(Clone, Copy)]
    enum Break {
        Error,
        End,
        Silence,
    }

    #[async_trait]
    impl RangeSource for &mut Flaky {
        type Error = String;

        async fn open(&mut self, offset: u64) -> Result<BoxStream<'static, Result<Bytes, String>>, String> {
            self.opened.push(offset);
            Ok(self.body(offset))
        }

        fn is_temporary(&self, error: &String) -> bool {
            error != "fatal"
        }

        fn stalled(&self, _: u64, _: Duration) -> String {
            "stalled".into()
        }

        fn ended_early(&self, _: u64, _: u64) -> String {
            "ended".into()
        }
    }

    impl Flaky {
        fn body(&self, offset: u64) -> BoxStream<'static, Result<Bytes, String>> {
            let end = (offset as usize + self.step).min(self.object.len());
            let bytes = Bytes::copy_from_slice(&self.object[offset as usize..end]);
            let first = stream::iter([Ok(bytes)]);
            match self.breaks {
                Break::Error => first.chain(stream::iter([Err("reset".to_owned())])).boxed(),
                Break::End => first.boxed(),
                Break::Silence => first.chain(stream::pending()).boxed(),
            }
        }
    }

    fn read_all(flaky: &mut Flaky, patience: u32) -> Result<Vec<u8>, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let body = flaky.body(0);
        let total = flaky.object.len() as u64;
        runtime.block_on(async {
            let mut reader = Resumable::new(flaky, body, total, Duration::from_secs(5), patience);
            let mut out = Vec::new();
            while let Some(bytes) = reader.next().await {
                out.extend(bytes?);
            }
            Ok(out)
        })
    }

    fn object() -> Vec<u8> {
        (0..2_000_000u32).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn goes_on_after_each_kind_of_break() {
        for breaks in [Break::Error, Break::End, Break::Silence] {
            let mut flaky = Flaky { object: object(), step: 300_000, breaks, opened: vec![] };
            assert_eq!(read_all(&mut flaky, 2).unwrap(), object());
            assert_eq!(flaky.opened, [300_000, 600_000, 900_000, 1_200_000, 1_500_000, 1_800_000]);
        }
    }

    #[test]
    fn gives_up_when_nothing_comes() {
        let mut flaky = Flaky { object: object(), step: 10, breaks: Break::Silence, opened: vec![] };
        assert_eq!(read_all(&mut flaky, 3).unwrap_err(), "stalled");
        assert_eq!(flaky.opened.len(), 3);
    }

    #[test]
    fn a_trickle_counts_as_a_stall() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let drops = stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Some((Ok::<_, String>(Bytes::from_static(b"x")), ()))
            });
            let mut flaky = Flaky { object: object(), step: 1, breaks: Break::Silence, opened: vec![] };
            let mut reader = Resumable::new(&mut flaky, drops.boxed(), 2_000_000, Duration::from_secs(5), 0);
            let mut bytes = 0;
            let error = loop {
                match reader.next().await.unwrap() {
                    Ok(more) => bytes += more.len(),
                    Err(error) => break error,
                }
            };
            assert_eq!((error.as_str(), bytes < 10), ("stalled", true));
        });
    }
}
