//! What is answered to a request: pure, but for what was seen before.

use std::sync::{Arc, LazyLock};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue, REFERRER_POLICY,
    RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use jiff::Timestamp;
use tokio::time::Instant;

use super::Pages;
use super::health::Health;
use super::http::Guard;
use super::running::Shared;
use crate::command::overview::Overview;
use crate::page;
use crate::stream::Sha256;

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Nothing from elsewhere, no script, in no frame: what is in a page came from file names and labels, too.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!("{}; frame-ancestors 'none'", *page::CONTENT_SECURITY_POLICY);
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"))
});

/// The answer to a request, of which the body is not read.
pub(super) async fn answer<B>(
    request: &Request<B>,
    guard: &Guard,
    pages: &Pages,
    shared: &Shared,
) -> Response<Full<Bytes>> {
    let mut response = match refused(request, guard) {
        Some(refusal) => refusal,
        None => route(request, pages, shared).await,
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn route<B>(request: &Request<B>, pages: &Pages, shared: &Shared) -> Response<Full<Bytes>> {
    let not_yet = || {
        let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, TEXT, "nothing was seen yet; see /healthz\n");
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("10"));
        response
    };
    match request.uri().path() {
        "/healthz" => {
            let health = Health::of(shared);
            let status = if health.alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let mut text = serde_json::to_string_pretty(&health).unwrap_or_default();
            text.push('\n');
            plain(status, JSON, text)
        }
        "/metrics" => {
            let newest = newest(shared);
            let Some(at) = newest.looked else { return not_yet() };
            // Figures of before must not look like those of now.
            let seen = newest.seen.filter(|_| newest.trouble.is_none());
            plain(StatusCode::OK, METRICS, (pages.metrics)(seen.as_deref(), at))
        }
        "/" => {
            let query = request.uri().query().unwrap_or_default();
            let Newest { seen: Some(seen), trouble, .. } = newest(shared) else { return not_yet() };
            plain(StatusCode::OK, HTML, pages.page.page(seen, trouble, query).await)
        }
        _ => plain(StatusCode::NOT_FOUND, TEXT, "there are /, /metrics and /healthz\n"),
    }
}

/// The newest look.
struct Newest {
    /// What was seen, by it or by an earlier one.
    seen: Option<Arc<Overview>>,
    /// When it was.
    looked: Option<Timestamp>,
    /// Why it saw nothing.
    trouble: Option<String>,
}

fn newest(shared: &Shared) -> Newest {
    let known = shared.known();
    let stuck = known.turn <= Instant::now();
    let trouble = known.trouble.clone().or_else(|| stuck.then(|| "the looks do not come to an end".to_owned()));
    Newest { seen: known.overview.clone(), looked: known.looked, trouble }
}

fn refused<B>(request: &Request<B>, guard: &Guard) -> Option<Response<Full<Bytes>>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(response);
    }
    // A page from elsewhere may lead here, but not have its visitor's browser ask for it in passing.
    let said = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    if said("sec-fetch-site") == Some("cross-site") && said("sec-fetch-mode") != Some("navigate") {
        return Some(plain(StatusCode::FORBIDDEN, TEXT, "not for pages from elsewhere\n"));
    }
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    match guard {
        Guard::Token(token) if header(AUTHORIZATION).is_some_and(|given| knows(given, token)) => None,
        Guard::Token(_) => {
            let mut response = plain(StatusCode::UNAUTHORIZED, TEXT, "the token is missing or wrong\n");
            let wanted = HeaderValue::from_static("Basic realm=\"pgark\", charset=\"UTF-8\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, wanted);
            Some(response)
        }
        // A name that somebody else lets point here would let their pages read ours.
        Guard::ThisHost if !header(HOST).is_none_or(is_this_host) => {
            Some(plain(StatusCode::MISDIRECTED_REQUEST, TEXT, "this is not the host of that name; ask for localhost\n"))
        }
        Guard::ThisHost | Guard::None => None,
    }
}

/// `Bearer TOKEN`, or the token as the password of `Basic`, for browsers.
fn knows(given: &str, token: &Sha256) -> bool {
    let Some((scheme, rest)) = given.split_once(' ') else { return false };
    let word = match scheme.to_ascii_lowercase().as_str() {
        "bearer" => rest.trim().as_bytes().to_vec(),
        "basic" => {
            use base64::Engine;
            let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim()).unwrap_or_default();
            let colon = decoded.iter().position(|byte| *byte == b':');
            colon.map_or(Vec::new(), |colon| decoded[colon + 1..].to_vec())
        }
        _ => return false,
    };
    // Digests, and all of them: how long it takes says nothing about the token.
    let different = Sha256::of(&word).0.iter().zip(&token.0).fold(0, |different, (a, b)| different | (a ^ b));
    std::hint::black_box(different) == 0
}

/// `localhost` or an address, with or without a port.
fn is_this_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok()
}

pub(super) fn plain(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_is_let_in() {
        let token = Sha256::of(b"correct horse");
        for given in ["Bearer correct horse", "bearer  correct horse ", "Basic Omo="] {
            assert_eq!(knows(given, &token), given.to_lowercase().starts_with("bearer"), "{given}");
        }
        // anybody:correct horse
        assert!(knows("Basic YW55Ym9keTpjb3JyZWN0IGhvcnNl", &token));
        for given in ["", "Bearer", "Bearer ", "Bearer correct", "Digest correct horse", "Basic !!", "correct horse"] {
            assert!(!knows(given, &token), "{given}");
        }
    }

    #[test]
    fn only_this_host_is_meant() {
        for host in ["localhost", "LOCALHOST:7432", "127.0.0.1", "127.0.0.1:7432", "[::1]:7432", "[::1]"] {
            assert!(is_this_host(host), "{host}");
        }
        for host in ["evil.example", "evil.example:7432", "localhost.evil.example", "127.0.0.1.evil.example", ""] {
            assert!(!is_this_host(host), "{host}");
        }
    }
}
