//! Answers that do not come from the store: the errors, pages and redirects of faults.
//!
//! They are made without looking at the store and leave it alone.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::fault::Fault;

/// An answer whose body is known in full.
pub(super) type Answer = Response<Bytes>;

const PROXY_PAGE: &str = "<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>\r\n\
    <center><h1>404 Not Found</h1></center>\r\n<hr><center>nginx/1.27.3</center>\r\n</body>\r\n</html>\r\n";

/// The answer that stands in for the operation, if the fault has one.
pub(super) fn canned(fault: &Fault, parts: &Parts) -> Option<Answer> {
    let answer = match fault {
        Fault::Status500 => error(parts, 500, "InternalError", "We encountered an internal error. Please try again."),
        Fault::Status503 => error(parts, 503, "SlowDown", "Please reduce your request rate."),
        Fault::AccessDenied403 => error(parts, 403, "AccessDenied", "Access Denied"),
        Fault::NoSuchBucket404 => error(parts, 404, "NoSuchBucket", "The specified bucket does not exist"),
        Fault::ExpiredToken400 => error(parts, 400, "ExpiredToken", "The provided token has expired."),
        Fault::Error(status, code) => error(parts, *status, code, "The double was told to answer this."),
        Fault::OkWithErrorBody => {
            error(parts, 200, "InternalError", "We encountered an internal error. Please try again.")
        }
        Fault::HtmlNotFound404 => {
            let page = plain(404, Bytes::from_static(PROXY_PAGE.as_bytes()));
            with(with(page, CONTENT_TYPE, "text/html"), http::header::SERVER, "nginx/1.27.3")
        }
        Fault::Bare404 => plain(404, Bytes::new()),
        Fault::Redirect307(base) => {
            let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
            let answer = error(
                parts,
                307,
                "TemporaryRedirect",
                "Please re-send this request to the specified temporary endpoint.",
            );
            with(answer, LOCATION, &format!("{base}{path}"))
        }
        Fault::Redirect301(host) => {
            let message = "The bucket you are attempting to access must be addressed using the specified endpoint.";
            let answer = xml(301, "PermanentRedirect", message, &format!("<Endpoint>{}</Endpoint>", escaped(host)));
            with(answer, HeaderName::from_static("x-amz-bucket-region"), "eu-central-1")
        }
        _ => return None,
    };
    Some(answer)
}

/// What a store says that does not know `aws-chunked` bodies or trailers.
pub(super) fn chunked_refused(parts: &Parts) -> Answer {
    error(parts, 501, "NotImplemented", "A header you provided implies functionality that is not implemented.")
}

/// Whether the body is `aws-chunked` or has trailers.
pub(super) fn is_chunked(parts: &Parts) -> bool {
    let holds = |name: &str, text: &str| {
        parts.headers.get_all(name).iter().any(|value| String::from_utf8_lossy(value.as_bytes()).contains(text))
    };
    holds("content-encoding", "aws-chunked")
        || holds("x-amz-content-sha256", "STREAMING-")
        || parts.headers.contains_key("x-amz-trailer")
}

fn error(parts: &Parts, status: u16, code: &str, message: &str) -> Answer {
    xml(status, code, message, &format!("<Resource>{}</Resource>", escaped(parts.uri.path())))
}

fn xml(status: u16, code: &str, message: &str, more: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>{more}\
         <RequestId>DOUBLE</RequestId><HostId>double</HostId></Error>"
    );
    with(plain(status, Bytes::from(body)), CONTENT_TYPE, "application/xml")
}

fn plain(status: u16, body: Bytes) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(status).expect("a fault names a valid status");
    answer
}

fn with(mut answer: Answer, name: HeaderName, value: &str) -> Answer {
    answer.headers_mut().insert(name, HeaderValue::from_str(value).expect("a fault names a valid header value"));
    answer
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
