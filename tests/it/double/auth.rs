//! Who may do what: the one access key, its session token, the clock of the signature, and the two switches that take
//! rights away. s3s calls this after it has found the signature to be good.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::{S3Result, s3_error};

use super::journal::{parameter, percent_decoded};
use super::shared::{Shared, lock};

/// How far a signature's time may be off, as on AWS.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(900);

/// Knows the one secret.
pub(super) struct Keys(pub(super) Arc<Shared>);

#[async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let identity = lock(&self.0.identity).clone();
        if access_key == identity.access_key {
            return Ok(SecretKey::from(identity.secret_key));
        }
        Err(s3_error!(InvalidAccessKeyId, "The AWS Access Key Id you provided does not exist in our records."))
    }
}

/// Decides after the signature.
pub(super) struct Rights(pub(super) Arc<Shared>);

#[async_trait]
impl S3Access for Rights {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        if cx.credentials().is_none() {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        self.check_token(cx)?;
        let switches = self.0.switches();
        if switches.check_clock {
            self.check_clock(cx)?;
        }
        let operation = cx.s3_op().name();
        let writes = !(operation.starts_with("Get") || operation.starts_with("Head") || operation.starts_with("List"));
        if (switches.read_only && writes) || (switches.deny_list && operation.starts_with("ListObjects")) {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        Ok(())
    }
}

impl Rights {
    fn check_token(&self, cx: &S3AccessContext<'_>) -> S3Result<()> {
        let expected = lock(&self.0.identity).session_token.clone();
        let header = cx.headers().get("x-amz-security-token").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let query = cx.uri().query().and_then(|query| parameter(query, "X-Amz-Security-Token")).map(percent_decoded);
        match (header.or(query), expected) {
            (given, expected) if given == expected => Ok(()),
            // A temporary key is unknown without its token.
            (None, _) => {
                Err(s3_error!(InvalidAccessKeyId, "The AWS Access Key Id you provided does not exist in our records."))
            }
            (Some(_), _) => Err(s3_error!(InvalidToken, "The provided token is malformed or otherwise invalid.")),
        }
    }

    /// Signatures may follow the host's clock or the store's: the SDK learns the latter from the `Date` of answers.
    fn check_clock(&self, cx: &S3AccessContext<'_>) -> S3Result<()> {
        let Some(date) = cx.headers().get("x-amz-date").and_then(|value| value.to_str().ok()) else { return Ok(()) };
        let near = |clock: SystemTime, signed: &Timestamp| {
            Timestamp::from(clock - CLOCK_TOLERANCE) <= *signed && *signed <= Timestamp::from(clock + CLOCK_TOLERANCE)
        };
        match signing_time(date) {
            Some(signed) if near(SystemTime::now(), &signed) || near(self.0.now(), &signed) => Ok(()),
            _ => Err(s3_error!(
                RequestTimeTooSkewed,
                "The difference between the request time and the server's time is too large."
            )),
        }
    }
}

/// Parses `20260131T235959Z`.
fn signing_time(date: &str) -> Option<Timestamp> {
    let (day, time) = date.strip_suffix('Z')?.split_once('T')?;
    let piece = |text: &str, from: usize, to: usize| text.get(from..to).map(str::to_owned);
    let [year, month, day] = [piece(day, 0, 4)?, piece(day, 4, 6)?, piece(day, 6, 8)?];
    let [hour, minute, second] = [piece(time, 0, 2)?, piece(time, 2, 4)?, piece(time, 4, 6)?];
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    Timestamp::parse(TimestampFormat::DateTime, &text).ok()
}

/// Turns the clock check of s3s off, which knows the host's clock only: [`Rights`] does it.
pub(super) fn config() -> Arc<StaticConfigProvider> {
    let mut config = S3Config::default();
    config.presigned_url_max_skew_time_secs = u32::MAX;
    Arc::new(StaticConfigProvider::new(Arc::new(config)))
}
