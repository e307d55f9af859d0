//! An S3 endpoint on a loopback address for tests: a real HTTP server over objects in memory, which tests can look into, change
//! behind the client's back, and tell to misbehave.
//!
//! It runs on a thread and a runtime of its own, so synchronous tests can use it. It leaves to s3s what the protocol
//! says (XML, signatures) and adds what a store decides: conditions, checksums, rights. It knows nothing of the crate
//! under test, because the benches include it too.
#![allow(dead_code, unused_imports, reason = "each binary that includes this uses its own part of it")]
#![allow(clippy::expect_used, reason = "a test double that cannot start or lies about itself must stop the test")]

mod answer;
mod auth;
mod bucket;
mod builder;
mod checks;
mod fault;
mod inspect;
mod journal;
mod multipart;
mod objects;
mod server;
mod service;
mod shared;
mod store;
mod tls;
mod wire;

#[cfg(test)]
mod self_test;
#[cfg(test)]
mod self_test_faults;
#[cfg(test)]
mod self_test_multipart;
#[cfg(test)]
mod self_test_store;
#[cfg(test)]
mod self_test_tls;

use std::io::{self, BufRead, Write};
use std::sync::Arc;

pub use builder::Builder;
pub use fault::{Fault, Op, Rule, RuleId};
pub use journal::{Logged, Outcome};
pub use store::{Attributes, Stored};

use server::Server;
use shared::{Identity, Shared, lock};

/// A running S3 endpoint. Dropping it stops the server, closes its connections and joins its thread.
pub struct S3Double {
    shared: Arc<Shared>,
    server: Server,
    ca_pem: Option<String>,
}

impl S3Double {
    /// Starts a server with a random bucket and random credentials.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// The same with a chosen bucket name, credentials or session token, or with TLS.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn over(shared: Arc<Shared>, tls: bool) -> Self {
        let (acceptor, ca_pem) = tls.then(tls::make).unzip();
        let server = Server::start(Arc::clone(&shared), acceptor).expect("the S3 double starts on an ephemeral port");
        Self { shared, server, ca_pem }
    }

    /// `http://ADDRESS:PORT`, or `https` with TLS, for path-style requests.
    pub fn endpoint(&self) -> String {
        let scheme = if self.ca_pem.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.server.address())
    }

    /// The authority that a client must trust, with TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// The loopback address.
    pub fn host(&self) -> String {
        self.server.address().ip().to_string()
    }

    /// The port, the same for the whole life of the double.
    pub fn port(&self) -> u16 {
        self.server.address().port()
    }

    /// The one bucket.
    pub fn bucket(&self) -> &str {
        &self.shared.bucket
    }

    /// The access key that is accepted now.
    pub fn access_key(&self) -> String {
        self.identity().access_key
    }

    /// The secret key that is accepted now.
    pub fn secret_key(&self) -> String {
        self.identity().secret_key
    }

    /// The session token that requests must carry, if any.
    pub fn session_token(&self) -> Option<String> {
        self.identity().session_token
    }

    /// Replaces the credentials: requests signed with the old ones are refused from now on.
    pub fn rotate_credentials(&self, access_key: &str, secret_key: &str, session_token: Option<&str>) {
        *lock(&self.shared.identity) = Identity::new(access_key, secret_key, session_token);
    }

    /// The environment in which the program under test finds this endpoint and may use it.
    pub fn env(&self) -> Vec<(String, String)> {
        let identity = self.identity();
        let mut env = vec![
            ("AWS_ACCESS_KEY_ID".to_owned(), identity.access_key),
            ("AWS_SECRET_ACCESS_KEY".to_owned(), identity.secret_key),
            ("AWS_REGION".to_owned(), "us-east-1".to_owned()),
            ("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned()),
            ("PGARK_REPO__ENDPOINT".to_owned(), self.endpoint()),
        ];
        env.extend(identity.session_token.map(|token| ("AWS_SESSION_TOKEN".to_owned(), token)));
        env
    }

    /// An outage: existing connections are closed and new ones refused. The port stays reserved for
    /// [`resume_listening`](Self::resume_listening).
    pub fn stop_listening(&self) {
        self.server.stop_listening();
    }

    /// Ends the outage, on the same port and with the same objects.
    pub fn resume_listening(&self) {
        self.server.resume_listening();
    }

    /// Adds a rule. Rules are asked in the order in which they were added; the first that fires decides the request, and
    /// rules after it do not see that request.
    pub fn fault(&self, rule: Rule) -> RuleId {
        lock(&self.shared.script).add(rule)
    }

    /// Takes all rules out of force. [`fired`](Self::fired) still answers for them.
    pub fn clear_faults(&self) {
        lock(&self.shared.script).clear();
    }

    /// How many requests the rule has hit.
    pub fn fired(&self, rule: RuleId) -> usize {
        lock(&self.shared.script).fired(rule)
    }

    fn identity(&self) -> Identity {
        lock(&self.shared.identity).clone()
    }
}

/// Runs a double as a process of its own, for benches: writes `endpoint bucket access-key secret-key` on one line, then
/// serves until standard input is closed.
pub fn serve_forever(mut port_line: impl Write) -> io::Result<()> {
    let double = S3Double::start();
    let (access_key, secret_key) = (double.access_key(), double.secret_key());
    writeln!(port_line, "{} {} {access_key} {secret_key}", double.endpoint(), double.bucket())?;
    port_line.flush()?;
    let mut input = io::stdin().lock();
    loop {
        match input.fill_buf()?.len() {
            0 => return Ok(()),
            read => input.consume(read),
        }
    }
}
