//! The clients of the self-tests: the SDK, which signs, and a plain TCP connection, which sees every byte and how a
//! connection ends. Raw requests carry presigned URLs.
//!
//! The tests themselves are in the other `self_test_*.rs` files.

use std::fmt::Debug;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::presigning::{PresignedRequest, PresigningConfig};
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::S3Double;

/// How long a raw client waits for bytes that must come, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a future on a runtime of its own.
pub(super) fn block<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}

/// A configuration of the SDK that neither retries nor adds checksums.
pub(super) fn config(double: &S3Double) -> aws_sdk_s3::config::Builder {
    let credentials =
        Credentials::new(double.access_key(), double.secret_key(), double.session_token(), None, "self-test");
    aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .region(Region::new("us-east-1"))
        .endpoint_url(double.endpoint())
        .credentials_provider(credentials)
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
}

pub(super) fn client(double: &S3Double) -> Client {
    Client::from_conf(config(double).build())
}

/// Status and code of an error, or `ok`.
pub(super) fn code<T, E>(result: Result<T, SdkError<E, HttpResponse>>) -> String
where
    E: ProvideErrorMetadata + Debug,
{
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => match error.raw_response() {
            Some(response) => format!("{} {}", response.status().as_u16(), error.code().unwrap_or("-")),
            None => format!("{error:?}"),
        },
    }
}

/// The value of `x-amz-checksum-sha256`.
pub(super) fn sha256(data: &[u8]) -> String {
    BASE64_STANDARD.encode(Sha256::digest(data))
}

/// A body that the SDK can send.
pub(super) fn body(data: &[u8]) -> ByteStream {
    ByteStream::from(data.to_vec())
}

pub(super) fn presigned_get(double: &S3Double, key: &str) -> PresignedRequest {
    block(client(double).get_object().bucket(double.bucket()).key(key).presigned(an_hour())).expect("presigned")
}

pub(super) fn presigned_put(double: &S3Double, key: &str) -> PresignedRequest {
    block(client(double).put_object().bucket(double.bucket()).key(key).presigned(an_hour())).expect("presigned")
}

pub(super) fn presigned_head(double: &S3Double, key: &str) -> PresignedRequest {
    block(client(double).head_object().bucket(double.bucket()).key(key).presigned(an_hour())).expect("presigned")
}

fn an_hour() -> PresigningConfig {
    PresigningConfig::expires_in(Duration::from_secs(3600)).expect("an hour is allowed")
}

/// How the bytes of an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// As declared; the connection is still open.
    Complete,
    /// FIN before that.
    Closed,
    /// RST before that.
    Reset,
    /// Nothing came for as long as the client waits.
    Silent,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) head: String,
    pub(super) body: Vec<u8>,
    pub(super) ending: Ending,
}

impl Reply {
    pub(super) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A TCP connection that speaks just enough HTTP/1.1.
pub(super) struct Connection {
    stream: TcpStream,
    host: String,
    reset: bool,
}

impl Connection {
    pub(super) fn open(double: &S3Double) -> Self {
        let stream = TcpStream::connect((double.host().as_str(), double.port())).expect("the double listens");
        Self { stream, host: format!("{}:{}", double.host(), double.port()), reset: false }.patience(PATIENCE)
    }

    /// Waits so long, and no longer, before it says that nothing comes.
    pub(super) fn patience(self, patience: Duration) -> Self {
        self.stream.set_read_timeout(Some(patience)).expect("a timeout can be set");
        self
    }

    /// Sends a request and reads its answer.
    pub(super) fn ask(&mut self, request: &PresignedRequest, body: &[u8]) -> Reply {
        self.send(request, body);
        self.reply(request.method() == "HEAD")
    }

    /// Sends a GET that nobody has signed and reads its answer.
    pub(super) fn ask_unsigned(&mut self, path: &str) -> Reply {
        self.write("GET", path, "", b"");
        self.reply(false)
    }

    pub(super) fn send(&mut self, request: &PresignedRequest, body: &[u8]) {
        let path = request.uri().split_once(&self.host).map_or("/", |(_, path)| path);
        let headers: String = request.headers().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        self.write(request.method(), path, &headers, body);
    }

    fn write(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) {
        let host = &self.host;
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{headers}content-length: {length}\r\n\r\n");
        // The server may reset while this is sent; the kernel says so only once, so the reply has to know.
        let sent = self.stream.write_all(&[head.as_bytes(), body].concat());
        self.reset = sent.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
    }

    pub(super) fn reply(&mut self, no_body: bool) -> Reply {
        let mut bytes = Vec::new();
        let mut buffer = [0; 16 * 1024];
        let ending = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = Reply { head: text(&bytes[..at]), body: Vec::new(), ending: Ending::Complete };
                let declared = head.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
                if no_body || bytes.len() - at - 4 >= declared {
                    break Ending::Complete;
                }
            }
            match self.stream.read(&mut buffer) {
                Ok(0) if self.reset => break Ending::Reset,
                Ok(0) => break Ending::Closed,
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(error) => break ending(error.kind()),
            }
        };
        let at = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let (head, body) = at.map_or((&bytes[..], &[][..]), |at| (&bytes[..at], &bytes[at + 4..]));
        Reply { head: text(head), body: body.to_vec(), ending }
    }

    /// How the connection stands when nothing more is expected.
    pub(super) fn afterwards(&mut self) -> Ending {
        match self.stream.read(&mut [0]) {
            Ok(0) => Ending::Closed,
            Ok(_) => Ending::Complete,
            Err(error) => ending(error.kind()),
        }
    }
}

fn ending(kind: ErrorKind) -> Ending {
    match kind {
        ErrorKind::ConnectionReset => Ending::Reset,
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Ending::Silent,
        other => panic!("a connection ended with {other}"),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
