//! What the pieces of a push and a fetch take, one by one, on a segment of pgbench: `make bench`.
//!
//! In memory, without a store. A figure says something beside the same figure of another day on the same machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr, clippy::panic)]

// `ahead` uses the rest of it.
#[allow(dead_code)]
#[path = "stand/corpus.rs"]
mod corpus;

use std::fs;
use std::io::{Write, sink};
use std::sync::LazyLock;

use corpus::Load;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use pgark::postgres::WalName;
use pgark::postgres::wal_chain::ChainWalker;
use pgark::postgres::wal_header::WalHeader;
use pgark::postgres::wal_index::WalIndexer;
use pgark::repo::WalObjectHeader;
use pgark::repo::wal_object::{Provenance, WalObject, Writer};
use pgark::storage::ObjectKey;
use pgark::stream::quick_digest::QuickDigesting;
use pgark::stream::{Sha256, Unpacker, pack};

/// As segments are read.
const BLOCK: usize = 256 << 10;

struct Segment {
    name: WalName,
    plain: Vec<u8>,
    object: WalObject,
}

static SEGMENT: LazyLock<Segment> = LazyLock::new(|| {
    let place = tempfile::tempdir().unwrap();
    let load = Load::Pgbench { scale: 10, transactions: 12_000, times: 1 };
    let paths = corpus::corpus(place.path(), load);
    let path = &paths[paths.len() / 2];
    let name = path.file_name().unwrap().to_string_lossy().parse().unwrap();
    let plain = fs::read(path).unwrap();
    let object = object(name, &plain);
    Segment { name, plain, object }
});

fn main() {
    LazyLock::force(&SEGMENT);
    divan::main();
}

/// What a push makes of a segment.
fn object(name: WalName, plain: &[u8]) -> WalObject {
    let header = WalHeader::parse(plain).unwrap();
    let mut indexer = WalIndexer::new(header.ident.major);
    let beside = |block: &[u8]| indexer.feed(block);
    let packed = pack(plain, plain.len() as u64, 1, WalObject::ROOM, |_, _| Ok(()), beside).unwrap();
    let provenance = Provenance {
        name,
        ident: header.ident,
        segment_size: Some(header.segment_size),
        written: jiff::Timestamp::UNIX_EPOCH,
        writer: Writer { host: "bench".into(), pid: 1, version: "0" },
    };
    WalObject::build(provenance, packed, Some(indexer.finish())).unwrap()
}

fn plain_bytes() -> BytesCount {
    BytesCount::new(SEGMENT.plain.len())
}

#[divan::bench]
fn push_in_memory(bencher: Bencher) {
    bencher.counter(plain_bytes()).bench(|| object(SEGMENT.name, black_box(&SEGMENT.plain)));
}

#[divan::bench]
fn pack_and_digest(bencher: Bencher) {
    let plain = &SEGMENT.plain;
    bencher.counter(plain_bytes()).bench(|| pack(&plain[..], plain.len() as u64, 1, 0, |_, _| Ok(()), |_| ()).unwrap());
}

#[divan::bench]
fn unpack_and_digest(bencher: Bencher) {
    let key = "bench".parse::<ObjectKey>().unwrap();
    let (_, frame) = WalObjectHeader::read(&key, &SEGMENT.object.bytes).unwrap().unwrap();
    let compressed = &SEGMENT.object.bytes[frame..];
    bencher.counter(plain_bytes()).bench(|| {
        let mut unpacker = Unpacker::new(sink(), SEGMENT.plain.len() as u64).unwrap();
        compressed.chunks(64 << 10).for_each(|chunk| unpacker.push(chunk).unwrap());
        unpacker.finish().unwrap().0
    });
}

#[divan::bench]
fn sha256(bencher: Bencher) {
    bencher.counter(plain_bytes()).bench(|| Sha256::of(black_box(&SEGMENT.plain)));
}

#[divan::bench]
fn quick_digest(bencher: Bencher) {
    bencher.counter(plain_bytes()).bench(|| {
        let mut digesting = QuickDigesting::new(sink());
        SEGMENT.plain.chunks(BLOCK).for_each(|block| digesting.write_all(block).unwrap());
        digesting.finish().0
    });
}

#[divan::bench]
fn header_of_the_object(bencher: Bencher) {
    let key = "bench".parse::<ObjectKey>().unwrap();
    bencher.bench(|| WalObjectHeader::read(black_box(&key), black_box(&SEGMENT.object.bytes)).unwrap());
}

#[divan::bench]
fn header_of_the_segment(bencher: Bencher) {
    bencher.bench(|| WalHeader::parse(black_box(&SEGMENT.plain)).unwrap());
}

/// For the index in the header of each object.
#[divan::bench]
fn walk_records(bencher: Bencher) {
    let major = WalHeader::parse(&SEGMENT.plain).unwrap().ident.major;
    bencher.counter(plain_bytes()).bench(|| {
        let mut indexer = WalIndexer::new(major);
        SEGMENT.plain.chunks(BLOCK).for_each(|block| indexer.feed(block));
        indexer.finish()
    });
}

/// With the checksum of each, as `verify --deep` does.
#[divan::bench]
fn walk_and_check_records(bencher: Bencher) {
    bencher.counter(plain_bytes()).bench(|| {
        let mut walker = ChainWalker::default();
        SEGMENT.plain.chunks(BLOCK).for_each(|block| walker.feed(block));
        walker.finish().fault
    });
}
