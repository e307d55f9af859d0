//! Where the credentials for S3 come from, in the order that users of AWS tools expect.
//!
//! The instance metadata service is asked only when it was chosen or when nothing else is configured: where it
//! is silent, asking costs a second.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::config::SharedHttpClient;
use aws_types::region::Region;

use super::{StoreError, StoreErrorKind, settings_file};

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Kept);

#[derive(Clone, PartialEq, Eq)]
enum Kept {
    Here(String),
    InFile { path: PathBuf, setting: String },
}

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(Kept::Here(text.into()))
    }

    /// The first line of a file that `setting` names; it is read when the secret is needed. The path is not shown either:
    /// it may be the secret itself, in the wrong place.
    pub fn in_file(path: impl Into<PathBuf>, setting: impl Into<String>) -> Self {
        Secret(Kept::InFile { path: path.into(), setting: setting.into() })
    }

    /// The text, for whom it is meant. Blocking: the file may lie on a disk that does not answer.
    pub fn reveal(&self) -> Result<String, StoreError> {
        let (path, setting) = match &self.0 {
            Kept::Here(text) => return Ok(text.clone()),
            Kept::InFile { path, setting } => (path, setting),
        };
        let refused = |why: String| {
            StoreError::new(
                StoreErrorKind::Misconfigured,
                format!("cannot read the file that `{setting}` names: {why}"),
            )
            .with_hint("it must be the path of a small file that the server's user can read, and not the secret itself")
        };
        let text = settings_file::read_text(path).map_err(|e| refused(e.to_string()))?;
        match text.lines().next().unwrap_or_default().trim() {
            "" => Err(refused("its first line is empty".to_owned())),
            line => Ok(line.to_owned()),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<hidden>")
    }
}

/// Which source of credentials to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// Environment, profile, web identity, container, instance: the first that is configured.
    Auto {
        /// A profile's name other than the default.
        profile: Option<String>,
    },
    /// Given in the settings.
    Static {
        /// The access key's id.
        access_key_id: String,
        /// The secret access key.
        secret_access_key: Secret,
        /// The token of temporary credentials.
        session_token: Option<Secret>,
    },
    /// `AWS_ACCESS_KEY_ID` and the like.
    Environment,
    /// The shared configuration files.
    Profile(Option<String>),
    /// `AWS_WEB_IDENTITY_TOKEN_FILE` and `AWS_ROLE_ARN`.
    WebIdentity,
    /// The container's credentials endpoint.
    Container,
    /// The instance metadata service.
    Instance,
}

/// How long the instance metadata service may take.
const INSTANCE_TIMEOUT: Duration = Duration::from_secs(1);

/// The provider of credentials, and the region if `want_region` and the environment or the profile names one.
pub async fn resolve(
    credentials: &Credentials,
    has_endpoint: bool,
    want_region: bool,
    http_client: &SharedHttpClient,
) -> Result<(SharedCredentialsProvider, Option<String>), StoreError> {
    let region = match want_region {
        false => None,
        true => find_region(credentials, has_endpoint).await,
    };
    let config =
        ProviderConfig::empty().with_http_client(http_client.clone()).with_region(region.clone().map(Region::new));
    let provider = match credentials {
        Credentials::Static { access_key_id, secret_access_key, session_token } => {
            let token = session_token.as_ref().map(Secret::reveal).transpose()?;
            let secret = secret_access_key.reveal()?;
            SharedCredentialsProvider::new(aws_credential_types::Credentials::new(
                access_key_id,
                secret,
                token,
                None,
                "settings",
            ))
        }
        Credentials::Environment => SharedCredentialsProvider::new(EnvironmentVariableCredentialsProvider::new()),
        // Static keys in the environment need no chain: this is the fast way.
        Credentials::Auto { profile: None } if environment_has_keys() => {
            SharedCredentialsProvider::new(EnvironmentVariableCredentialsProvider::new())
        }
        Credentials::Auto { profile } => {
            let mut chain = DefaultCredentialsChain::builder().imds_client(instance_client(&config)).configure(config);
            if let Some(profile) = profile {
                chain = chain.profile_name(profile);
            }
            SharedCredentialsProvider::new(chain.build().await)
        }
        Credentials::Profile(name) => {
            let mut provider = ProfileFileCredentialsProvider::builder().configure(&config);
            if let Some(name) = name {
                provider = provider.profile_name(name);
            }
            SharedCredentialsProvider::new(provider.build())
        }
        Credentials::WebIdentity => {
            SharedCredentialsProvider::new(WebIdentityTokenCredentialsProvider::builder().configure(&config).build())
        }
        Credentials::Container => {
            SharedCredentialsProvider::new(EcsCredentialsProvider::builder().configure(&config).build())
        }
        Credentials::Instance => SharedCredentialsProvider::new(
            ImdsCredentialsProvider::builder().imds_client(instance_client(&config)).configure(&config).build(),
        ),
    };
    Ok((provider, region))
}

fn instance_client(config: &ProviderConfig) -> aws_config::imds::Client {
    aws_config::imds::Client::builder()
        .configure(config)
        .connect_timeout(INSTANCE_TIMEOUT)
        .read_timeout(INSTANCE_TIMEOUT)
        .max_attempts(1)
        .build()
}

fn environment_has_keys() -> bool {
    ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].iter().all(|name| set_in_environment(name).is_some())
}

fn set_in_environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

async fn find_region(credentials: &Credentials, has_endpoint: bool) -> Option<String> {
    let from_environment = set_in_environment("AWS_REGION").or_else(|| set_in_environment("AWS_DEFAULT_REGION"));
    if from_environment.is_some() {
        return from_environment;
    }
    let profile = match credentials {
        Credentials::Auto { profile } | Credentials::Profile(profile) => profile.clone(),
        _ => None,
    };
    let mut provider = ProfileFileRegionProvider::builder();
    if let Some(profile) = profile {
        provider = provider.profile_name(profile);
    }
    let from_profile = aws_config::meta::region::ProvideRegion::region(&provider.build()).await;
    from_profile.map(|region| region.to_string()).or_else(|| has_endpoint.then(|| "us-east-1".to_owned()))
}
