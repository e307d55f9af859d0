//! Floors that no program gives: one bare PUT and one bare GET, and a digest of a file.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation};
use aws_sdk_s3::presigning::PresigningConfig;
use twox_hash::XxHash3_128;

use crate::server::Server;

/// A new connection, the request, the answer.
fn exchange(method: &str, url: &str, body: &[u8]) -> Duration {
    let (authority, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).unwrap();
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nhost: {authority}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let begun = Instant::now();
    let mut stream = TcpStream::connect(authority).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::with_capacity(16 << 20);
    stream.read_to_end(&mut answer).unwrap();
    let took = begun.elapsed();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..answer.len().min(1000)]));
    took
}

pub fn put(url: &str, body: &[u8]) -> Duration {
    exchange("PUT", url, body)
}

pub fn get(url: &str) -> Duration {
    exchange("GET", url, &[])
}

/// What takes a segment over has to read it and to take its digest.
pub fn quick_digest(path: &Path) -> Duration {
    let begun = Instant::now();
    let bytes = fs::read(path).unwrap();
    std::hint::black_box(XxHash3_128::oneshot(&bytes));
    begun.elapsed()
}

/// URLs that carry their signature, so that the client has nothing to compute: to PUT to and to GET from.
pub fn urls(server: &Server, key: &str) -> [String; 2] {
    let [access, secret] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|name| server.var(name));
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new(access, secret, None, None, "bench"))
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .endpoint_url(server.endpoint())
        .force_path_style(true)
        .build();
    let client = aws_sdk_s3::Client::from_conf(config);
    let hour = || PresigningConfig::expires_in(Duration::from_secs(3600)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let put = client.put_object().bucket(server.bucket()).key(key).presigned(hour()).await.unwrap();
        let get = client.get_object().bucket(server.bucket()).key(key).presigned(hour()).await.unwrap();
        [put.uri().to_owned(), get.uri().to_owned()]
    })
}
