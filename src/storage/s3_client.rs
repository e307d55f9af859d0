//! Settings of an S3 store, and the SDK client made of them.

use std::path::PathBuf;
use std::time::Duration;

use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
    StalledStreamProtectionConfig,
};
use aws_smithy_http_client::{Builder, tls};

use super::s3_credentials::{Credentials, resolve};
use super::{KeyPrefix, StoreError, StoreErrorKind, settings_file};

/// How an S3 store is reached.
#[derive(Clone, Debug)]
pub struct S3Settings {
    /// The bucket.
    pub bucket: String,
    /// What stands before all keys.
    pub prefix: KeyPrefix,
    /// Another server than AWS: `http://` or `https://`, host and port.
    pub endpoint: Option<String>,
    /// The region; without one that of the environment, else the profile's, else `us-east-1` with an endpoint.
    pub region: Option<String>,
    /// Bucket in the path instead of the host name; without a wish: with an endpoint.
    pub path_style: Option<bool>,
    /// Certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// `STANDARD_IA` and the like.
    pub storage_class: Option<String>,
    /// Encryption at rest by the store.
    pub sse: ServerSideEncryption,
    /// Sign the body too, not only its checksum.
    pub sign_payload: bool,
    /// What stands for conditional writes.
    pub conditional_put: ConditionalPut,
    /// Where credentials come from.
    pub credentials: Credentials,
    /// Deadlines.
    pub timeouts: Timeouts,
}

/// Encryption at rest that is asked of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerSideEncryption {
    /// Whatever the bucket does by itself.
    BucketDefault,
    /// SSE-S3.
    S3,
    /// SSE-KMS, with the bucket's key or this one.
    Kms(Option<String>),
}

/// How a write is kept from replacing an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionalPut {
    /// By the store, with `If-None-Match: *`.
    ByStore,
    /// By looking first. Two writers at the same moment can both win: for stores that cannot do better.
    HeadThenPut,
}

/// Deadlines of single requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection to stand.
    pub connect: Duration,
    /// From a request to the beginning of its answer, besides the time that its body takes at
    /// `SLOWEST_UPLOAD`.
    pub request: Duration,
    /// How long a download may give next to nothing.
    pub stall: Duration,
    /// How often a single request is tried.
    pub attempts: u32,
}

/// Bytes a second that an upload is given time for.
const SLOWEST_UPLOAD: u64 = 128 << 10;

impl Timeouts {
    /// The deadline of one attempt with a body of `bytes`.
    pub fn attempt(&self, bytes: u64) -> Duration {
        self.request + Duration::from_secs(bytes / SLOWEST_UPLOAD)
    }

    fn config(&self, bytes: u64) -> TimeoutConfig {
        TimeoutConfig::builder().connect_timeout(self.connect).operation_attempt_timeout(self.attempt(bytes)).build()
    }

    /// An override for a request with a body of `bytes`.
    pub fn for_body(&self, bytes: u64) -> aws_sdk_s3::config::Builder {
        aws_sdk_s3::Config::builder().timeout_config(self.config(bytes))
    }
}

/// The client for these settings.
pub async fn connect(settings: &S3Settings) -> Result<aws_sdk_s3::Client, StoreError> {
    let http_client = http_client(settings)?;
    let (provider, profile_region) =
        resolve(&settings.credentials, settings.endpoint.is_some(), settings.region.is_none(), &http_client).await?;
    let region = settings.region.clone().or(profile_region).ok_or_else(|| {
        StoreError::new(StoreErrorKind::Misconfigured, "no region is set for the S3 store")
            .with_hint("set `region` under `[repo]`, or AWS_REGION")
    })?;
    let mut config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region))
        .credentials_provider(provider)
        .http_client(http_client)
        .force_path_style(settings.path_style.unwrap_or(settings.endpoint.is_some()))
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(settings.timeouts.attempts)
                .with_initial_backoff(Duration::from_millis(200))
                .with_max_backoff(Duration::from_secs(2)),
        )
        .timeout_config(settings.timeouts.config(0))
        // Look-alikes refuse the trailers that the defaults send; our own SHA-256 stands in for them.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        // `stream::resume` and the attempt's deadline see to stalls, by bounds that can be set.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(endpoint) = &settings.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(aws_sdk_s3::Client::from_conf(config.build()))
}

fn http_client(settings: &S3Settings) -> Result<SharedHttpClient, StoreError> {
    if settings.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://")) {
        // No certificates to load: this starts faster.
        return Ok(Builder::new().build_http());
    }
    let mut context = tls::TlsContext::builder();
    if let Some(path) = &settings.ca_file {
        let unreadable = |e: std::io::Error| {
            StoreError::new(StoreErrorKind::Misconfigured, format!("cannot read `ca_file` {}: {e}", path.display()))
        };
        let pem = settings_file::read(path).map_err(unreadable)?.bytes;
        if !pem.windows(27).any(|window| window == b"-----BEGIN CERTIFICATE-----") {
            let message = format!("`ca_file` {} holds no PEM certificate", path.display());
            return Err(StoreError::new(StoreErrorKind::Misconfigured, message));
        }
        context = context.with_trust_store(tls::TrustStore::empty().with_pem_certificate(pem));
    }
    let context = context
        .build()
        .map_err(|e| StoreError::new(StoreErrorKind::Misconfigured, format!("cannot set up TLS: {e}")))?;
    let provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
    Ok(Builder::new().tls_provider(provider).tls_context(context).build_https())
}
