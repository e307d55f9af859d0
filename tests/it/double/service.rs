//! The way of one request: written down, struck by a fault or performed by s3s, delayed, dated, and handed to hyper
//! together with a plan for the wire.

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, DATE};
use http::request::Parts;
use http::{HeaderValue, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use s3s::Body;
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::time::sleep;

use super::answer::{self, Answer};
use super::auth::{self, Keys, Rights};
use super::bucket::Backend;
use super::fault::{Drawn, Fault};
use super::journal::{Logged, Outcome, classify};
use super::shared::{Shared, lock};
use super::wire::{End, Line, Plan};

/// The connection ends without an answer: hyper drops the socket.
#[derive(Debug, thiserror::Error)]
#[error("the connection is given up")]
pub(super) struct HangUp;

/// Answers the requests of all connections.
#[derive(Clone)]
pub(super) struct Service {
    shared: Arc<Shared>,
    s3: S3Service,
}

impl Service {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let mut s3 = S3ServiceBuilder::new(Backend(Arc::clone(&shared)));
        s3.set_auth(Keys(Arc::clone(&shared)));
        s3.set_access(Rights(Arc::clone(&shared)));
        s3.set_config(auth::config());
        Self { shared, s3: s3.build() }
    }

    /// Answers one request of the connection that `line` belongs to.
    pub(super) async fn call(
        self,
        request: Request<Incoming>,
        line: Arc<Mutex<Line>>,
    ) -> Result<http::Response<Full<Bytes>>, HangUp> {
        let (parts, body) = request.into_parts();
        let (operation, key) = classify(&parts);
        let drawn = lock(&self.shared.script).draw(operation, &key);
        let serial = lock(&self.shared.journal).open(&parts, operation, &key);
        self.note(serial, |entry| entry.fault = drawn.as_ref().map(|drawn| drawn.fault.clone()));
        let fault = drawn.as_ref().map(|drawn| &drawn.fault);

        if fault == Some(&Fault::ResetBeforeHeaders) {
            lock(&line).reset();
            return Err(HangUp);
        }
        let head = parts.method == Method::HEAD;
        let body = body.collect().await.map_err(|_| HangUp)?.to_bytes();
        self.note(serial, |entry| entry.bytes = body.len());
        if fault == Some(&Fault::Silence) {
            match pending::<Infallible>().await {}
        }
        let answer = match fault.and_then(|fault| answer::canned(fault, &parts)) {
            Some(canned) => canned,
            None => match fault {
                Some(Fault::Late(by)) => {
                    let (service, by) = (self.clone(), *by);
                    let performed = tokio::spawn(async move {
                        sleep(by).await;
                        service.perform(parts, body).await
                    });
                    performed.await.map_err(|_| HangUp)??
                }
                _ => self.perform(parts, body).await?,
            },
        };
        sleep_if_any(self.shared.switches().latency).await;
        if fault == Some(&Fault::LostReply) {
            lock(&line).reset();
            return Err(HangUp);
        }

        let answer = self.dated(spoilt(answer, head, drawn.as_ref()));
        lock(&line).plan(plan(fault, if head { 0 } else { answer.body().len() }));
        self.note(serial, |entry| entry.status = Outcome::Status(answer.status().as_u16()));
        Ok(answer.map(Full::new))
    }

    /// Lets s3s and the store answer.
    async fn perform(&self, parts: Parts, body: Bytes) -> Result<Answer, HangUp> {
        if self.shared.switches().refuse_chunked && answer::is_chunked(&parts) {
            return Ok(answer::chunked_refused(&parts));
        }
        let response = self.s3.call(Request::from_parts(parts, Body::from(body))).await.map_err(|_| HangUp)?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|_| HangUp)?.to_bytes();
        Ok(http::Response::from_parts(parts, body))
    }

    /// Puts the store's clock on the answer; hyper would put the host's.
    fn dated(&self, mut answer: Answer) -> Answer {
        let mut date = Vec::new();
        Timestamp::from(self.shared.now())
            .format(TimestampFormat::HttpDate, &mut date)
            .expect("the store's clock shows a year with four digits");
        answer.headers_mut().insert(DATE, HeaderValue::from_bytes(&date).expect("a date is a valid header value"));
        answer
    }

    fn note(&self, serial: u64, change: impl FnOnce(&mut Logged)) {
        lock(&self.shared.journal).update(serial, change);
    }
}

async fn sleep_if_any(latency: std::time::Duration) {
    if !latency.is_zero() {
        sleep(latency).await;
    }
}

/// Flips the bit, where that is the fault; makes the answer to HEAD fit to be sent.
fn spoilt(mut answer: Answer, head: bool, drawn: Option<&Drawn>) -> Answer {
    if head {
        let length = answer.headers().get(CONTENT_LENGTH).is_some();
        *answer.body_mut() = Bytes::new();
        if !length {
            answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        return answer;
    }
    if let Some(Drawn { fault: Fault::BitFlip(offset), dice }) = drawn
        && !answer.body().is_empty()
    {
        let mut bytes = answer.body().to_vec();
        let seeded = usize::try_from(dice >> 3).unwrap_or(usize::MAX >> 3) % bytes.len();
        let at = offset.unwrap_or(seeded).min(bytes.len() - 1);
        bytes[at] ^= 1 << (dice & 7);
        *answer.body_mut() = Bytes::from(bytes);
    }
    answer
}

/// What the fault makes of an answer with a body of `length` bytes.
fn plan(fault: Option<&Fault>, length: usize) -> Plan {
    match fault {
        Some(Fault::ResetAfterHeaders) => Plan::Cut { left: 0, end: End::Reset },
        Some(Fault::ResetMidBody(after)) => {
            Plan::Cut { left: after.unwrap_or(length / 2).min(length), end: End::Reset }
        }
        Some(Fault::Truncate) => Plan::Cut { left: length / 2, end: End::Close },
        Some(Fault::SilenceMidBody) => Plan::Cut { left: length / 2, end: End::Silence },
        Some(Fault::Trickle(every)) if length > 0 => Plan::Trickle { left: length, every: *every },
        _ => Plan::Pass,
    }
}
