//! Options of a double before it starts. What is not chosen is random, so that no test depends on a name and a secret
//! that turns up in some output can be found by searching for it.

use std::sync::Arc;

use rand::distr::{Alphanumeric, SampleString};

use super::S3Double;
use super::shared::{Identity, Shared};

/// Collects options; [`start`](Builder::start) starts the server.
#[derive(Default)]
pub struct Builder {
    bucket: Option<String>,
    credentials: Option<(String, String)>,
    session_token: Option<String>,
    tls: bool,
}

impl Builder {
    /// The name of the bucket.
    pub fn bucket(mut self, name: &str) -> Self {
        self.bucket = Some(name.to_owned());
        self
    }

    /// The only access key that is known, and its secret.
    pub fn credentials(mut self, access_key: &str, secret_key: &str) -> Self {
        self.credentials = Some((access_key.to_owned(), secret_key.to_owned()));
        self
    }

    /// Makes the credentials temporary: requests must carry this token.
    pub fn session_token(mut self, token: &str) -> Self {
        self.session_token = Some(token.to_owned());
        self
    }

    /// Speaks TLS, with a certificate for `localhost` and 127.0.0.1 of an authority made for this double.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Starts the server on an ephemeral port.
    pub fn start(self) -> S3Double {
        let bucket = self.bucket.unwrap_or_else(|| format!("double-{}", letters(10).to_lowercase()));
        let (access_key, secret_key) =
            self.credentials.unwrap_or_else(|| (format!("AKIA{}", letters(16).to_uppercase()), letters(40)));
        let identity = Identity::new(&access_key, &secret_key, self.session_token.as_deref());
        S3Double::over(Arc::new(Shared::new(bucket, identity)), self.tls)
    }
}

fn letters(count: usize) -> String {
    Alphanumeric.sample_string(&mut rand::rng(), count)
}
