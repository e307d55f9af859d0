//! What an error of the SDK means: the one place where answers of S3 are judged.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::{StoreError, StoreErrorKind};

/// The code and status of an answer that S3 gave.
pub struct Answer<'a> {
    /// The HTTP status.
    pub status: u16,
    /// The code in the XML body; `None` for an answer without one, which proves nothing.
    pub code: Option<&'a str>,
}

/// The answer behind an error, if there was one.
pub fn answer<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Option<Answer<'_>> {
    match error {
        SdkError::ServiceError(context) => {
            Some(Answer { status: context.raw().status().as_u16(), code: context.err().code() })
        }
        _ => None,
    }
}

/// Makes an error of ours: its kind by the code of S3, its message without secrets.
pub fn classify<E>(what: &str, error: SdkError<E, HttpResponse>) -> StoreError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    match &error {
        SdkError::ServiceError(context) => {
            let status = context.raw().status().as_u16();
            by_answer(what, status, context.err().code(), context.err().message())
        }
        SdkError::ResponseError(context) => {
            let status = context.raw().status().as_u16();
            let message = format!("{what}: the answer (HTTP {status}) is not one of S3: {}", causes(&error));
            StoreError::new(StoreErrorKind::Unexpected, message)
        }
        SdkError::TimeoutError(_) => StoreError::new(StoreErrorKind::Unavailable, format!("{what}: no answer in time")),
        _ => without_answer(what, &error),
    }
}

fn by_answer(what: &str, status: u16, code: Option<&str>, text: Option<&str>) -> StoreError {
    let answer = match (code, text) {
        (Some(code), Some(text)) => format!("{code} (HTTP {status}): {text}"),
        (Some(code), None) => format!("{code} (HTTP {status})"),
        _ => format!("HTTP {status} without an S3 error code"),
    };
    let (kind, hint) = match (code.unwrap_or_default(), status) {
        ("NoSuchBucket", _) => (StoreErrorKind::NoSuchContainer, Some("check the bucket's name in the repository URL")),
        ("ExpiredToken" | "TokenRefreshRequired" | "RequestExpired", _) => {
            (StoreErrorKind::Denied, Some("the temporary credentials have expired: renew them"))
        }
        ("RequestTimeTooSkewed", _) => (StoreErrorKind::Denied, Some("set this machine's clock, for example by NTP")),
        ("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "AuthorizationHeaderMalformed", _) => {
            (StoreErrorKind::Denied, Some("check the credentials and the region"))
        }
        ("AccessDenied" | "AllAccessDisabled" | "AccountProblem", _) => (
            StoreErrorKind::Denied,
            Some(
                "the role needs s3:GetObject, s3:PutObject and, to prove absence, s3:ListBucket; `pgark check` tells which it lacks",
            ),
        ),
        ("PermanentRedirect" | "TemporaryRedirect" | "IllegalLocationConstraintException", _) | (_, 300..=399) => (
            StoreErrorKind::Misconfigured,
            Some(
                "the bucket lies in another region or behind another endpoint: set `region` or `endpoint` under `[repo]`",
            ),
        ),
        ("NotImplemented", _) | (_, 501) => {
            (StoreErrorKind::Unsupported, Some("`pgark check` tells what the store lacks"))
        }
        // Another writer was at the same key at the same moment: asking again gives the outcome.
        ("ConditionalRequestConflict" | "OperationAborted", _) => (StoreErrorKind::Unavailable, None),
        ("SlowDown" | "RequestTimeout" | "InternalError" | "ServiceUnavailable" | "BadDigest", _) => {
            (StoreErrorKind::Unavailable, None)
        }
        (_, 500..=599 | 429 | 408) => (StoreErrorKind::Unavailable, None),
        ("PreconditionFailed", _) | (_, 412) => (StoreErrorKind::Changed, None),
        ("", 401 | 403 | 407) => {
            (StoreErrorKind::Denied, Some("check the credentials, and whether a proxy stands between"))
        }
        ("" | "NotFound", _) => (StoreErrorKind::Unexpected, Some("is a proxy answering instead of the store?")),
        (_, 401 | 403) => (StoreErrorKind::Denied, None),
        (_, 400..=499) => (StoreErrorKind::Misconfigured, None),
        _ => (StoreErrorKind::Unexpected, None),
    };
    let error = StoreError::new(kind, format!("{what}: {answer}"));
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

fn without_answer<E>(what: &str, error: &SdkError<E, HttpResponse>) -> StoreError
where
    E: Error + Send + Sync + 'static,
{
    let message = format!("{what}: {}", causes(error));
    if let Some(credentials) = find::<CredentialsError>(error) {
        let kind = match credentials {
            // The service that gives credentials is out of reach, not the right to them.
            CredentialsError::ProviderTimedOut(_) => StoreErrorKind::Unavailable,
            _ => StoreErrorKind::Denied,
        };
        return StoreError::new(kind, message)
            .with_hint("give credentials by AWS_* variables, a profile, a role or files named under `[repo]`");
    }
    if find::<rustls::Error>(error).is_some() {
        return StoreError::new(StoreErrorKind::Unavailable, message)
            .with_hint("if the store has a certificate of its own, name its CA as `ca_file` under `[repo]`");
    }
    match error {
        SdkError::DispatchFailure(failure) if failure.is_user() => {
            StoreError::new(StoreErrorKind::Misconfigured, message)
        }
        SdkError::ConstructionFailure(_) => StoreError::new(StoreErrorKind::Misconfigured, message),
        _ => StoreError::new(StoreErrorKind::Unavailable, message)
            .with_hint("is the store up, and are `endpoint` and `region` under `[repo]` those of the bucket?"),
    }
}

/// The error of this type among the causes. An `io::Error` hides its inner error from `source()`.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(found) = current.downcast_ref::<T>() {
            return Some(found);
        }
        let inner = current.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        next = inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| current.source());
    }
    None
}

/// The texts of an error and its causes, outermost first, each once.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(current) = next {
        let text = current.to_string();
        if !text.is_empty() && !texts.iter().any(|seen| seen.contains(&text)) {
            texts.push(text);
        }
        next = current.source();
    }
    if texts.is_empty() { error.to_string() } else { texts.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_its_kind() {
        use StoreErrorKind::*;
        let cases = [
            (404, Some("NoSuchBucket"), NoSuchContainer),
            (404, None, Unexpected),
            (404, Some("NotFound"), Unexpected),
            (403, Some("AccessDenied"), Denied),
            (403, None, Denied),
            (400, Some("ExpiredToken"), Denied),
            (301, Some("PermanentRedirect"), Misconfigured),
            (307, None, Misconfigured),
            (500, Some("InternalError"), Unavailable),
            (503, None, Unavailable),
            (429, None, Unavailable),
            (501, Some("NotImplemented"), Unsupported),
            (409, Some("ConditionalRequestConflict"), Unavailable),
            (412, Some("PreconditionFailed"), Changed),
            (400, Some("InvalidRequest"), Misconfigured),
            (200, Some("InternalError"), Unavailable),
            (200, None, Unexpected),
        ];
        for (status, code, kind) in cases {
            assert_eq!(by_answer("put", status, code, None).kind, kind, "{status} {code:?}");
        }
    }
}
