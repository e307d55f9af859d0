//! The fault script: rules that say which requests go wrong, and how.
//!
//! What a fault does to the socket is in `service.rs` and `wire.rs`; refusing connections is
//! [`S3Double::stop_listening`](super::S3Double::stop_listening), because it hits no single request.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// How a request goes wrong. "Performed" faults do the operation first; all others leave the store alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is reset without an answer; the request's body is not read.
    ResetBeforeHeaders,
    /// Performed; the connection is reset after the head of the answer.
    ResetAfterHeaders,
    /// Performed; the connection is reset after so many bytes of the body, or half of it.
    ResetMidBody(Option<usize>),
    /// Performed; the connection is closed in good order after half of the declared body.
    Truncate,
    /// Performed; one bit of the answer's body is flipped, at this byte or at a seeded one. The headers are as usual.
    BitFlip(Option<usize>),
    /// 500 `InternalError`.
    Status500,
    /// 503 `SlowDown`.
    Status503,
    /// 403 `AccessDenied`.
    AccessDenied403,
    /// 404 `NoSuchBucket`.
    NoSuchBucket404,
    /// 404 with the HTML page of a proxy.
    HtmlNotFound404,
    /// 404 without a body.
    Bare404,
    /// 400 `ExpiredToken`.
    ExpiredToken400,
    /// Any other error of S3, as XML.
    Error(u16, &'static str),
    /// 307 `TemporaryRedirect` whose `Location` is this base URL with the path and query of the request.
    Redirect307(String),
    /// 301 `PermanentRedirect` whose XML names this host as the endpoint; no `Location`, as on AWS.
    Redirect301(String),
    /// The request is read, then nothing: the socket stays open until the client goes.
    Silence,
    /// Performed; half of the body, then nothing: the socket stays open until the client goes.
    SilenceMidBody,
    /// Performed; one byte of the body in each interval.
    Trickle(Duration),
    /// Performed; the connection is reset without an answer.
    LostReply,
    /// Performed after so long, whether or not the client is still there then.
    Late(Duration),
    /// 200 with an `<Error>` body and no ETag.
    OkWithErrorBody,
}

/// Which operation a rule is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Op {
    /// Every request.
    #[default]
    Any,
    /// PutObject.
    Put,
    /// GetObject.
    Get,
    /// HeadObject.
    Head,
    /// ListObjectsV2.
    List,
    /// DeleteObject.
    Delete,
    /// CreateMultipartUpload.
    Create,
    /// UploadPart.
    UploadPart,
    /// CompleteMultipartUpload.
    Complete,
    /// AbortMultipartUpload.
    Abort,
}

impl Op {
    fn matches(self, operation: &str) -> bool {
        let name = match self {
            Op::Any => return true,
            Op::Put => "PutObject",
            Op::Get => "GetObject",
            Op::Head => "HeadObject",
            Op::List => "ListObjectsV2",
            Op::Delete => "DeleteObject",
            Op::Create => "CreateMultipartUpload",
            Op::UploadPart => "UploadPart",
            Op::Complete => "CompleteMultipartUpload",
            Op::Abort => "AbortMultipartUpload",
        };
        operation == name
    }
}

/// A fault and the requests it hits: by default all, for ever.
#[derive(Clone, Debug)]
pub struct Rule {
    fault: Fault,
    op: Op,
    key: Option<String>,
    skip: usize,
    times: Option<usize>,
    chance: f64,
    seed: u64,
}

impl Rule {
    /// Every request goes wrong in this way.
    pub fn new(fault: Fault) -> Self {
        Self { fault, op: Op::Any, key: None, skip: 0, times: None, chance: 1.0, seed: 0 }
    }

    /// Only this operation.
    pub fn on(mut self, op: Op) -> Self {
        self.op = op;
        self
    }

    /// Only keys that contain this text.
    pub fn key(mut self, part: &str) -> Self {
        self.key = Some(part.to_owned());
        self
    }

    /// Lets the first `count` matching requests through.
    pub fn skip(mut self, count: usize) -> Self {
        self.skip = count;
        self
    }

    /// Fires at most `count` times.
    pub fn times(mut self, count: usize) -> Self {
        self.times = Some(count);
        self
    }

    /// Fires once.
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Fires with this probability, from 0 to 1, drawn from [`seed`](Self::seed).
    pub fn chance(mut self, probability: f64) -> Self {
        self.chance = probability;
        self
    }

    /// Seeds what this rule leaves to chance. The test prints the seed, so that a failure can be replayed.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

/// Names a rule, to ask how often it fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleId(usize);

/// A fault that has been chosen for a request, with a number for what it leaves to chance.
pub(super) struct Drawn {
    pub(super) fault: Fault,
    pub(super) dice: u64,
}

/// All rules, past and present.
#[derive(Default)]
pub(super) struct Script {
    rules: Vec<Active>,
}

struct Active {
    rule: Rule,
    rng: StdRng,
    in_force: bool,
    matched: usize,
    fired: usize,
}

impl Script {
    pub(super) fn add(&mut self, rule: Rule) -> RuleId {
        let rng = StdRng::seed_from_u64(rule.seed);
        self.rules.push(Active { rule, rng, in_force: true, matched: 0, fired: 0 });
        RuleId(self.rules.len() - 1)
    }

    pub(super) fn clear(&mut self) {
        for active in &mut self.rules {
            active.in_force = false;
        }
    }

    pub(super) fn fired(&self, RuleId(index): RuleId) -> usize {
        self.rules[index].fired
    }

    /// The fault for this request, if any.
    pub(super) fn draw(&mut self, operation: &str, key: &str) -> Option<Drawn> {
        self.rules.iter_mut().find_map(|active| active.draw(operation, key))
    }
}

impl Active {
    fn draw(&mut self, operation: &str, key: &str) -> Option<Drawn> {
        let rule = &self.rule;
        let here = rule.op.matches(operation) && rule.key.as_ref().is_none_or(|part| key.contains(part));
        if !self.in_force || !here {
            return None;
        }
        self.matched += 1;
        let spent = rule.times.is_some_and(|times| self.fired >= times);
        if self.matched <= rule.skip || spent || !self.rng.random_bool(rule.chance) {
            return None;
        }
        self.fired += 1;
        Some(Drawn { fault: rule.fault.clone(), dice: self.rng.random() })
    }
}
