//! Proves on raw connections that each fault does to the bytes and to the socket what it says, and that rules hit the
//! requests they name.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::self_test::{Connection, Ending, Reply, block, client, code, presigned_get, presigned_head, presigned_put};
use super::{Fault, Op, Outcome, Rule, S3Double};

const BODY: &[u8] = b"0123456789abcdef0123456789ABCDEF";

/// A double with one object, `a/b c`.
fn double() -> S3Double {
    let double = S3Double::start();
    double.put_raw("a/b c", BODY, &[]);
    double
}

/// GETs the object once under a fault.
fn get_under(double: &S3Double, fault: Fault) -> Reply {
    let rule = double.fault(Rule::new(fault).on(Op::Get).key("b c").once());
    let reply = Connection::open(double).ask(&presigned_get(double, "a/b c"), b"");
    assert_eq!(double.fired(rule), 1);
    reply
}

fn assert_xml(reply: &Reply, status: u16, code: &str) {
    assert_eq!((reply.status(), reply.ending), (status, Ending::Complete), "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/xml"));
    assert!(reply.text().contains(&format!("<Error><Code>{code}</Code>")), "{reply:?}");
    assert_eq!(reply.header("etag"), None);
}

#[test]
fn connections_are_kept_alive() {
    let double = double();
    let mut connection = Connection::open(&double);
    for _ in 0..3 {
        let reply = connection.ask(&presigned_get(&double, "a/b c"), b"");
        assert_eq!((reply.status(), reply.body.as_slice(), reply.ending), (200, BODY, Ending::Complete));
    }
    let reply = connection.ask(&presigned_head(&double, "a/b c"), b"");
    assert_eq!((reply.status(), reply.header("content-length")), (200, Some("32")));
    let reply = connection.ask(&presigned_put(&double, "new"), b"content");
    assert_eq!(reply.status(), 200);
    double.fault(Rule::new(Fault::Status503).once());
    assert_eq!(connection.ask(&presigned_get(&double, "a/b c"), b"").status(), 503);
    assert_eq!(connection.ask(&presigned_head(&double, "missing"), b"").status(), 404);
    assert_eq!(connection.ask(&presigned_get(&double, "new"), b"").body, b"content");
}

#[test]
fn what_comes_late_comes_without_its_client() {
    let double = double();
    let late = double.fault(Rule::new(Fault::Late(Duration::from_millis(300))).on(Op::Put));
    let mut connection = Connection::open(&double);
    connection.send(&presigned_put(&double, "new"), b"content");
    while double.fired(late) == 0 || double.requests().iter().all(|each| each.bytes == 0) {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(connection);
    assert_eq!(double.object("new"), None);
    let begun = Instant::now();
    while double.object("new").is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    let reply = Connection::open(&double).ask(&presigned_put(&double, "newer"), b"content");
    assert_eq!((reply.status(), double.object("newer").is_some()), (200, true));
}

#[test]
fn resets_come_where_they_should() {
    let double = double();
    let reply = get_under(&double, Fault::ResetBeforeHeaders);
    assert_eq!((reply.head.as_str(), reply.ending), ("", Ending::Reset));

    let reply = get_under(&double, Fault::ResetAfterHeaders);
    assert_eq!((reply.status(), reply.header("content-length"), reply.body.len()), (200, Some("32"), 0));
    assert_eq!(reply.ending, Ending::Reset);

    let reply = get_under(&double, Fault::ResetMidBody(None));
    assert_eq!((reply.status(), reply.body.as_slice(), reply.ending), (200, &BODY[..16], Ending::Reset));

    let reply = get_under(&double, Fault::ResetMidBody(Some(5)));
    assert_eq!((reply.status(), reply.body.as_slice(), reply.ending), (200, &BODY[..5], Ending::Reset));

    let outcomes: Vec<_> = double.requests().iter().map(|logged| logged.status).collect();
    assert_eq!(outcomes[0], Outcome::Aborted);
    assert!(outcomes[1..].iter().all(|outcome| *outcome == Outcome::Status(200)));
}

#[test]
fn a_reset_also_follows_an_answer_without_a_body() {
    let double = double();
    double.fault(Rule::new(Fault::ResetAfterHeaders).on(Op::Put));
    let mut connection = Connection::open(&double);
    let reply = connection.ask(&presigned_put(&double, "new"), b"content");
    assert_eq!((reply.status(), connection.afterwards()), (200, Ending::Reset));
    assert_eq!(double.object("new").as_deref(), Some(&b"content"[..]));
}

#[test]
fn a_put_that_is_reset_stores_nothing() {
    let double = double();
    double.fault(Rule::new(Fault::ResetBeforeHeaders).on(Op::Put));
    let reply = Connection::open(&double).ask(&presigned_put(&double, "new"), &vec![7; 4 << 20]);
    assert_eq!((reply.head.as_str(), reply.ending), ("", Ending::Reset));
    assert_eq!(double.object("new"), None);
}

#[test]
fn a_large_answer_is_cut_in_the_middle() {
    let double = double();
    let large: Vec<u8> = (0..8 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
    double.put_raw("large", large.clone(), &[]);
    for (fault, ending) in [(Fault::ResetMidBody(None), Ending::Reset), (Fault::Truncate, Ending::Closed)] {
        double.fault(Rule::new(fault).once());
        let reply = Connection::open(&double).ask(&presigned_get(&double, "large"), b"");
        assert_eq!((reply.body.len(), reply.ending), (4 << 20, ending));
        assert!(reply.body == large[..4 << 20]);
    }
    assert!(Connection::open(&double).ask(&presigned_get(&double, "large"), b"").body == large);
}

#[test]
fn truncation_ends_in_good_order() {
    let reply = get_under(&double(), Fault::Truncate);
    assert_eq!((reply.status(), reply.header("content-length")), (200, Some("32")));
    assert_eq!((reply.body.as_slice(), reply.ending), (&BODY[..16], Ending::Closed));
}

#[test]
fn one_bit_flips() {
    let double = double();
    let clean = Connection::open(&double).ask(&presigned_get(&double, "a/b c"), b"");
    for offset in [None, Some(3), Some(1000)] {
        let reply = get_under(&double, Fault::BitFlip(offset));
        let flipped: u32 = reply.body.iter().zip(BODY).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!((reply.ending, reply.body.len(), flipped), (Ending::Complete, BODY.len(), 1));
        assert_eq!(reply.header("etag"), clean.header("etag"));
        let at = reply.body.iter().zip(BODY).position(|(a, b)| a != b);
        match offset {
            Some(wanted) => assert_eq!(at, Some(wanted.min(BODY.len() - 1))),
            None => assert!(at.is_some()),
        }
    }
    let [first, second] = [41, 41].map(|seed| {
        double.fault(Rule::new(Fault::BitFlip(None)).seed(seed).once());
        Connection::open(&double).ask(&presigned_get(&double, "a/b c"), b"").body
    });
    assert_eq!(first, second, "the same seed flips the same bit");
    assert_eq!(double.object("a/b c").as_deref(), Some(BODY));
}

#[test]
fn errors_come_as_xml() {
    let double = double();
    assert_xml(&get_under(&double, Fault::Status500), 500, "InternalError");
    assert_xml(&get_under(&double, Fault::Status503), 503, "SlowDown");
    assert_xml(&get_under(&double, Fault::AccessDenied403), 403, "AccessDenied");
    assert_xml(&get_under(&double, Fault::NoSuchBucket404), 404, "NoSuchBucket");
    assert_xml(&get_under(&double, Fault::ExpiredToken400), 400, "ExpiredToken");
    assert_xml(&get_under(&double, Fault::OkWithErrorBody), 200, "InternalError");
    let conflict = Fault::Error(409, "ConditionalRequestConflict");
    assert_xml(&get_under(&double, conflict), 409, "ConditionalRequestConflict");
}

#[test]
fn proxies_and_redirects_answer_in_their_own_way() {
    let double = double();
    let reply = get_under(&double, Fault::HtmlNotFound404);
    assert_eq!((reply.status(), reply.header("content-type")), (404, Some("text/html")));
    assert!(reply.text().starts_with("<html>"));

    let reply = get_under(&double, Fault::Bare404);
    assert_eq!((reply.status(), reply.body.len(), reply.ending), (404, 0, Ending::Complete));

    let reply = get_under(&double, Fault::Redirect307("http://127.0.0.1:1".to_owned()));
    assert_xml(&reply, 307, "TemporaryRedirect");
    let expected = format!("http://127.0.0.1:1/{}/a/b%20c?", double.bucket());
    assert!(reply.header("location").is_some_and(|location| location.starts_with(&expected)), "{reply:?}");

    let reply = get_under(&double, Fault::Redirect301("other.example".to_owned()));
    assert_xml(&reply, 301, "PermanentRedirect");
    assert!(reply.text().contains("<Endpoint>other.example</Endpoint>"));
    assert_eq!(reply.header("location"), None);
}

#[test]
fn refusals_of_a_put_leave_the_connection_usable_and_the_store_alone() {
    let double = double();
    let mut connection = Connection::open(&double);
    for fault in [Fault::Status500, Fault::Status503, Fault::Bare404, Fault::OkWithErrorBody] {
        double.fault(Rule::new(fault).on(Op::Put).once());
        let reply = connection.ask(&presigned_put(&double, "new"), &vec![7; 1 << 20]);
        assert_eq!(reply.ending, Ending::Complete);
        assert_eq!(double.object("new"), None);
    }
    assert_eq!(connection.ask(&presigned_put(&double, "new"), b"content").status(), 200);
}

#[test]
fn silence_lasts_until_the_client_goes() {
    let double = double();
    let [before, middle] = [Fault::Silence, Fault::SilenceMidBody].map(|fault| {
        double.fault(Rule::new(fault).once());
        let mut connection = Connection::open(&double).patience(Duration::from_secs(1));
        connection.ask(&presigned_get(&double, "a/b c"), b"")
    });
    assert_eq!((before.head.as_str(), before.ending), ("", Ending::Silent));
    assert_eq!((middle.status(), middle.body.as_slice(), middle.ending), (200, &BODY[..16], Ending::Silent));
    assert_eq!(double.requests()[0].status, Outcome::Aborted);
}

#[test]
fn a_trickle_comes_byte_by_byte_and_ends() {
    let double = double();
    double.put_raw("short", *b"abcd", &[]);
    double.fault(Rule::new(Fault::Trickle(Duration::from_millis(100))).once());
    let mut connection = Connection::open(&double);
    let begun = Instant::now();
    let reply = connection.ask(&presigned_get(&double, "short"), b"");
    assert_eq!((reply.body.as_slice(), reply.ending), (&b"abcd"[..], Ending::Complete));
    assert!(begun.elapsed() >= Duration::from_millis(400), "four intervals passed");
    assert_eq!(connection.ask(&presigned_get(&double, "short"), b"").body, b"abcd");
}

#[test]
fn a_lost_reply_has_been_performed() {
    let double = double();
    double.fault(Rule::new(Fault::LostReply).on(Op::Put).once());
    let reply = Connection::open(&double).ask(&presigned_put(&double, "new"), b"content");
    assert_eq!((reply.head.as_str(), reply.ending), ("", Ending::Reset));
    assert_eq!(double.object("new").as_deref(), Some(&b"content"[..]));
    assert_eq!(double.requests()[0].status, Outcome::Aborted);
}

#[test]
fn an_outage_closes_refuses_and_ends_on_the_same_port() {
    let double = double();
    let (host, port) = (double.host(), double.port());
    let mut idle = Connection::open(&double);
    assert_eq!(idle.ask(&presigned_get(&double, "a/b c"), b"").status(), 200);
    let mut busy = Connection::open(&double);
    double.fault(Rule::new(Fault::Silence).once());
    busy.send(&presigned_get(&double, "a/b c"), b"");

    double.stop_listening();
    double.stop_listening();
    assert_eq!(idle.afterwards(), Ending::Closed);
    assert_ne!(busy.reply(false).ending, Ending::Silent);
    let refused = TcpStream::connect((host.as_str(), port)).expect_err("nobody listens").kind();
    assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);

    double.resume_listening();
    double.resume_listening();
    double.clear_faults();
    assert_eq!(double.port(), port);
    assert_eq!(Connection::open(&double).ask(&presigned_get(&double, "a/b c"), b"").body, BODY);
    drop(double);
    assert!(TcpStream::connect((host.as_str(), port)).is_err(), "dropping stops the server");
}

#[test]
fn rules_hit_the_requests_they_name() {
    let double = double();
    let skipping = double.fault(Rule::new(Fault::Status500).on(Op::Get).skip(1).times(2));
    let elsewhere = double.fault(Rule::new(Fault::Status503).key("other"));
    let mut connection = Connection::open(&double);
    let statuses: Vec<u16> = (0..5).map(|_| connection.ask(&presigned_get(&double, "a/b c"), b"").status()).collect();
    assert_eq!(statuses, [200, 500, 500, 200, 200]);
    assert_eq!(connection.ask(&presigned_put(&double, "an/other/one"), b"").status(), 503);
    assert_eq!((double.fired(skipping), double.fired(elsewhere)), (2, 1));

    double.clear_faults();
    assert_eq!(connection.ask(&presigned_put(&double, "an/other/one"), b"").status(), 200);
    assert_eq!(double.fired(elsewhere), 1);

    let mut runs = [7, 7, 8].map(|seed| {
        double.clear_faults();
        double.fault(Rule::new(Fault::Status500).chance(0.5).seed(seed));
        let draws = (0..40).map(|_| connection.ask(&presigned_get(&double, "a/b c"), b"").status());
        draws.collect::<Vec<u16>>()
    });
    assert_eq!(runs[0], runs[1], "a seed replays");
    assert_ne!(runs[0], runs[2]);
    runs[0].dedup();
    assert!(runs[0].len() > 2, "half of the requests are hit");
}

#[test]
fn requests_are_written_down() {
    let double = double();
    let s3 = client(&double);
    block(async {
        let put = s3.put_object().bucket(double.bucket()).key("k y").body(BODY.to_vec().into());
        put.if_none_match("*").send().await.expect("stored");
        s3.list_objects_v2().bucket(double.bucket()).prefix("k").send().await.expect("listed");
        let missing = s3.head_object().bucket(double.bucket()).key("missing").send().await;
        assert!(code(missing).starts_with("404"));
    });
    let log = double.requests();
    let lines: Vec<String> =
        log.iter().map(|r| format!("{} {} {:?} {} {}", r.method, r.operation, r.key, r.bytes, r.status)).collect();
    assert_eq!(
        lines,
        ["PUT PutObject \"k y\" 32 200", "GET ListObjectsV2 \"\" 0 200", "HEAD HeadObject \"missing\" 0 404"]
    );
    assert_eq!(log[0].header("if-none-match"), Some("*"));
    assert!(log[1].query.contains("prefix=k"));
    assert_eq!((log[0].fault.clone(), log.len()), (None, 3));
    double.clear_requests();
    assert!(double.requests().is_empty());
}

#[test]
fn latency_and_clock_can_be_set() {
    let double = double();
    double.latency(Duration::from_millis(150));
    let begun = Instant::now();
    let reply = Connection::open(&double).ask(&presigned_get(&double, "a/b c"), b"");
    assert!(begun.elapsed() >= Duration::from_millis(150));
    assert!(reply.header("date").is_some_and(|date| date.ends_with(" GMT")));

    double.latency(Duration::ZERO);
    let wind = i64::from(u32::MAX) / 2;
    double.clock_offset(wind);
    double.put_raw("late", *b"x", &[]);
    let reply = Connection::open(&double).ask(&presigned_get(&double, "late"), b"");
    let year = |name| reply.header(name).and_then(|date| date.split(' ').nth(3)?.parse::<u32>().ok());
    assert!(year("date") > Some(2090) && year("last-modified") > Some(2090), "{reply:?}");
}
