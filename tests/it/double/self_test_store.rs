//! Proves with the SDK that the store keeps what S3 promises: signatures, checksums, conditions, listings, and
//! the switches that take such promises away.

use std::io::Write;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RequestChecksumCalculation, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, ServerSideEncryption, StorageClass};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::S3Double;
use super::self_test::{Connection, block, body, client, code, config, presigned_get, sha256};

async fn put(s3: &Client, double: &S3Double, key: &str, data: &[u8]) -> String {
    code(s3.put_object().bucket(double.bucket()).key(key).body(body(data)).send().await)
}

async fn get(s3: &Client, double: &S3Double, key: &str) -> String {
    code(s3.get_object().bucket(double.bucket()).key(key).send().await)
}

async fn create(s3: &Client, double: &S3Double, key: &str, data: &[u8]) -> String {
    code(s3.put_object().bucket(double.bucket()).key(key).if_none_match("*").body(body(data)).send().await)
}

#[test]
fn an_object_comes_back_with_all_it_was_given() {
    let double = S3Double::start();
    let s3 = client(&double);
    block(async {
        let put = s3
            .put_object()
            .bucket(double.bucket())
            .key("a/ä &+%")
            .body(body(b"content"))
            .metadata("Digest", "d1")
            .checksum_sha256(sha256(b"content"))
            .storage_class(StorageClass::StandardIa)
            .server_side_encryption(ServerSideEncryption::AwsKms)
            .ssekms_key_id("key-1")
            .send()
            .await
            .expect("stored");
        assert_eq!(put.checksum_sha256(), Some(sha256(b"content").as_str()));
        assert_eq!(put.ssekms_key_id(), Some("key-1"));

        let get = s3.get_object().bucket(double.bucket()).key("a/ä &+%").checksum_mode(ChecksumMode::Enabled);
        let get = get.send().await.expect("found");
        assert_eq!((get.e_tag(), get.checksum_sha256()), (put.e_tag(), put.checksum_sha256()));
        assert_eq!(get.metadata().and_then(|metadata| metadata.get("digest")).map(String::as_str), Some("d1"));
        assert_eq!(get.storage_class(), Some(&StorageClass::StandardIa));
        assert_eq!(get.body.collect().await.expect("read").to_vec(), b"content");

        let head = s3.head_object().bucket(double.bucket()).key("a/ä &+%").send().await.expect("found");
        assert_eq!((head.content_length(), head.e_tag(), head.checksum_sha256()), (Some(7), put.e_tag(), None));
        assert_eq!(head.server_side_encryption(), Some(&ServerSideEncryption::AwsKms));

        assert_eq!(double.keys(), ["a/ä &+%"]);
        let stored = double.stored("a/ä &+%").expect("stored");
        assert_eq!(stored.attributes.storage_class.as_deref(), Some("STANDARD_IA"));
        assert_eq!(stored.attributes.kms_key.as_deref(), Some("key-1"));

        let delete = || s3.delete_object().bucket(double.bucket()).key("a/ä &+%").send();
        assert_eq!((code(delete().await), code(delete().await)), ("ok".to_owned(), "ok".to_owned()));
        assert!(double.keys().is_empty());
    });
}

#[test]
fn what_is_missing_is_named() {
    let double = S3Double::builder().bucket("here").start();
    let s3 = client(&double);
    block(async {
        assert_eq!(get(&s3, &double, "k").await, "404 NoSuchKey");
        assert_eq!(code(s3.head_object().bucket("here").key("k").send().await), "404 NotFound");
        assert_eq!(code(s3.get_object().bucket("there").key("k").send().await), "404 NoSuchBucket");
        assert_eq!(code(s3.head_bucket().bucket("there").send().await), "404 NotFound");
        assert_eq!(code(s3.head_bucket().bucket("here").send().await), "ok");
        assert_eq!(code(s3.get_bucket_location().bucket("here").send().await), "ok");
        double.put_raw("k", *b"x", &[("m", "1")]);
        double.remove_bucket();
        assert_eq!(get(&s3, &double, "k").await, "404 NoSuchBucket");
        assert_eq!(put(&s3, &double, "k", b"y").await, "404 NoSuchBucket");
        assert_eq!(code(s3.list_objects_v2().bucket("here").send().await), "404 NoSuchBucket");
        double.restore_bucket();
        assert_eq!(get(&s3, &double, "k").await, "ok");
    });
    assert_eq!(double.metadata("k").map(|metadata| metadata["m"].clone()).as_deref(), Some("1"));
    assert!(double.remove("k") && !double.remove("k"));
}

#[test]
fn signatures_are_checked() {
    let double = S3Double::builder().credentials("AKIA1", "right").start();
    double.put_raw("k", *b"x", &[]);
    let s3 = client(&double);
    let with = |access: &str, secret: &str, token: Option<&str>| {
        let credentials =
            aws_credential_types::Credentials::new(access, secret, token.map(str::to_owned), None, "self-test");
        Client::from_conf(config(&double).credentials_provider(credentials).build())
    };
    block(async {
        assert_eq!(get(&s3, &double, "k").await, "ok");
        assert_eq!(get(&with("AKIA1", "wrong", None), &double, "k").await, "403 SignatureDoesNotMatch");
        assert_eq!(get(&with("AKIA2", "right", None), &double, "k").await, "403 InvalidAccessKeyId");
        assert_eq!(get(&with("AKIA1", "right", Some("t")), &double, "k").await, "400 InvalidToken");
        let reply = Connection::open(&double).ask_unsigned(&format!("/{}/k", double.bucket()));
        assert!(reply.status() == 403 && reply.text().contains("<Code>AccessDenied</Code>"), "{reply:?}");

        double.rotate_credentials("AKIA1", "right", Some("token"));
        assert_eq!(get(&s3, &double, "k").await, "403 InvalidAccessKeyId");
        assert_eq!(get(&with("AKIA1", "right", Some("other")), &double, "k").await, "400 InvalidToken");
        assert_eq!(get(&with("AKIA1", "right", Some("token")), &double, "k").await, "ok");
        double.rotate_credentials("AKIA2", "left", None);
        assert_eq!(get(&s3, &double, "k").await, "403 InvalidAccessKeyId");
        assert_eq!(get(&client(&double), &double, "k").await, "ok");
    });
    double.rotate_credentials("AKIA1", "right", Some("to+k/en="));
    assert_eq!(Connection::open(&double).ask(&presigned_get(&double, "k"), b"").status(), 200);
    assert!(double.env().contains(&("AWS_SESSION_TOKEN".to_owned(), "to+k/en=".to_owned())));
}

#[test]
fn the_signing_time_is_checked_against_both_clocks() {
    #[derive(Debug)]
    struct Ahead;
    impl aws_types::sdk_config::TimeSource for Ahead {
        fn now(&self) -> std::time::SystemTime {
            std::time::SystemTime::now() + std::time::Duration::from_secs(3600)
        }
    }
    let double = S3Double::start();
    let ahead = || Client::from_conf(config(&double).time_source(Ahead).build());
    block(async {
        double.put_raw("k", *b"x", &[]);
        assert_eq!(get(&ahead(), &double, "k").await, "403 RequestTimeTooSkewed");
        double.clock_offset(3600);
        assert_eq!(get(&ahead(), &double, "k").await, "ok");
        // The second request is signed with the clock that the first answer showed.
        let s3 = client(&double);
        assert_eq!((get(&s3, &double, "k").await, get(&s3, &double, "k").await), ("ok".to_owned(), "ok".to_owned()));
        double.clock_offset(0);
        double.check_clock(false);
        assert_eq!(get(&ahead(), &double, "k").await, "ok");
    });
}

/// Changes the body after it has been signed.
#[derive(Debug)]
struct Tamper;

impl Intercept for Tamper {
    fn name(&self) -> &'static str {
        "tamper"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        *context.request_mut().body_mut() = SdkBody::from("CONTENT");
        Ok(())
    }
}

#[test]
fn a_body_that_does_not_fit_its_digest_is_refused() {
    let double = S3Double::start();
    let s3 = client(&double);
    block(async {
        let put = || s3.put_object().bucket(double.bucket()).key("k").body(body(b"content"));
        let wrong = sha256(b"other");
        assert_eq!(code(put().checksum_sha256(&wrong).send().await), "400 BadDigest");
        let unsigned = put().checksum_sha256(&wrong).customize().disable_payload_signing();
        assert_eq!(code(unsigned.send().await), "400 BadDigest");
        assert_eq!(code(put().checksum_crc32_c("AAAAAA==").send().await), "400 BadDigest");
        assert_eq!(code(put().content_md5(BASE64_STANDARD.encode([0; 16])).send().await), "400 BadDigest");
        let tampered = put().customize().interceptor(Tamper);
        assert_eq!(code(tampered.send().await), "400 XAmzContentSHA256Mismatch");
        assert!(double.keys().is_empty());
        // With an unsigned payload only the checksum stands between the change and the store.
        let tampered = put().checksum_sha256(sha256(b"content")).customize().disable_payload_signing();
        assert_eq!(code(tampered.interceptor(Tamper).send().await), "400 BadDigest");
        assert!(double.keys().is_empty());
        let right = put().checksum_sha256(sha256(b"content")).customize().disable_payload_signing();
        assert_eq!(code(right.send().await), "ok");
        let unsigned = double.requests().pop().expect("logged");
        assert_eq!(unsigned.header("x-amz-content-sha256"), Some("UNSIGNED-PAYLOAD"));
    });
}

#[test]
fn chunked_bodies_and_trailers_are_taken_or_refused() {
    let double = S3Double::start();
    let chatty = config(&double).request_checksum_calculation(RequestChecksumCalculation::WhenSupported).build();
    let s3 = Client::from_conf(chatty);
    // Only what is not in memory is sent in chunks.
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&[7; 100_000]).expect("written");
    block(async {
        let put = async || {
            let body = ByteStream::from_path(file.path()).await.expect("readable");
            let put = s3.put_object().bucket(double.bucket()).key("k").body(body);
            code(put.checksum_algorithm(ChecksumAlgorithm::Crc32).send().await)
        };
        assert_eq!(put().await, "ok");
        let sent = double.requests().pop().expect("logged");
        assert_eq!(sent.header("x-amz-trailer"), Some("x-amz-checksum-crc32"), "the SDK sent a trailer");
        let stored = double.stored("k").expect("stored");
        assert_eq!((stored.data.len(), stored.checksum.checksum_crc32.is_some()), (100_000, true));
        double.refuse_chunked(true);
        assert_eq!(put().await, "501 NotImplemented");
        assert_eq!(self::put(&client(&double), &double, "plain", b"x").await, "ok");
    });
}

#[test]
fn of_many_creators_one_wins() {
    let double = S3Double::start();
    let s3 = client(&double);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        for round in 0..25 {
            let key = format!("race/{round}");
            let data = |writer: u8| vec![writer; 20_000];
            let mut writers = tokio::task::JoinSet::new();
            for writer in 0..4_u8 {
                let put = s3.put_object().bucket(double.bucket()).key(&key).if_none_match("*");
                let put = put.body(body(&data(writer)));
                writers.spawn(async move { (writer, code(put.send().await)) });
            }
            let results = writers.join_all().await;
            let winners: Vec<u8> = results.iter().filter(|(_, code)| code == "ok").map(|(writer, _)| *writer).collect();
            assert_eq!(results.iter().filter(|(_, code)| code == "412 PreconditionFailed").count(), 3, "{results:?}");
            assert_eq!(double.object(&key), Some(data(winners[0])));
        }
    });
}

#[test]
fn conditions_rights_and_metadata_can_be_switched_off() {
    let double = S3Double::start();
    let s3 = client(&double);
    block(async {
        assert_eq!(create(&s3, &double, "k", b"1").await, "ok");
        assert_eq!(create(&s3, &double, "k", b"2").await, "412 PreconditionFailed");
        double.reject_conditions(true);
        assert_eq!(create(&s3, &double, "new", b"2").await, "501 NotImplemented");
        double.reject_conditions(false);
        double.honour_conditions(false);
        assert_eq!(create(&s3, &double, "k", b"3").await, "ok");
        assert_eq!(double.object("k").as_deref(), Some(&b"3"[..]));

        double.keep_metadata(false);
        let put = s3.put_object().bucket(double.bucket()).key("k").metadata("m", "1").send();
        assert_eq!(code(put.await), "ok");
        assert!(double.metadata("k").is_some_and(|metadata| metadata.is_empty()));

        double.deny_list(true);
        let list = || s3.list_objects_v2().bucket(double.bucket()).send();
        assert_eq!(code(list().await), "403 AccessDenied");
        assert_eq!(get(&s3, &double, "missing").await, "403 AccessDenied");
        let head = s3.head_object().bucket(double.bucket()).key("missing").send();
        assert!(code(head.await).starts_with("403 "));
        assert_eq!(get(&s3, &double, "k").await, "ok");
        double.deny_list(false);

        double.read_only(true);
        assert_eq!(put_code(&s3, &double).await, "403 AccessDenied");
        assert_eq!(code(s3.delete_object().bucket(double.bucket()).key("k").send().await), "403 AccessDenied");
        assert_eq!((get(&s3, &double, "k").await, code(list().await)), ("ok".to_owned(), "ok".to_owned()));
    });
}

async fn put_code(s3: &Client, double: &S3Double) -> String {
    put(s3, double, "k", b"x").await
}

#[test]
fn ranges_are_cut_and_bound_to_the_etag() {
    let double = S3Double::start();
    let s3 = client(&double);
    block(async {
        assert_eq!(put(&s3, &double, "k", b"0123456789").await, "ok");
        let range = |range: &str| s3.get_object().bucket(double.bucket()).key("k").range(range);
        for (asked, expected, shown) in [
            ("bytes=2-4", &b"234"[..], "bytes 2-4/10"),
            ("bytes=7-", b"789", "bytes 7-9/10"),
            ("bytes=-2", b"89", "bytes 8-9/10"),
            ("bytes=5-999", b"56789", "bytes 5-9/10"),
        ] {
            let got = range(asked).checksum_mode(ChecksumMode::Enabled).send().await.expect("a part");
            assert_eq!((got.content_range(), got.checksum_sha256()), (Some(shown), None));
            assert_eq!(got.body.collect().await.expect("read").to_vec(), expected);
        }
        assert_eq!(code(range("bytes=10-").send().await), "416 InvalidRange");
        let etag = double.stored("k").expect("stored").etag;
        assert_eq!(code(range("bytes=1-2").if_match(format!("\"{etag}\"")).send().await), "ok");
        double.alter("k", |bytes| bytes[0] ^= 1);
        assert_eq!(double.object("k").as_deref(), Some(&b"1123456789"[..]));
        assert_eq!(code(range("bytes=1-2").if_match(format!("\"{etag}\"")).send().await), "ok", "rot hides");
        double.put_raw("k", *b"another", &[]);
        assert_eq!(code(range("bytes=1-2").if_match(format!("\"{etag}\"")).send().await), "412 PreconditionFailed");
    });
}

#[test]
fn listings_are_paged_in_byte_order() {
    let double = S3Double::start();
    let s3 = client(&double);
    let mut keys: Vec<String> = (0..2500).map(|number| format!("n/{number}")).collect();
    keys.extend(["N/upper", "a", "n!", "n/é", "z/1/x", "z/1/y", "z/2", "z/3/x"].map(str::to_owned));
    for key in &keys {
        double.put_raw(key, *b"", &[]);
    }
    keys.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    block(async {
        for page_size in [1000, 999, 5000] {
            let mut pages = s3.list_objects_v2().bucket(double.bucket()).max_keys(page_size).into_paginator().send();
            let mut listed = Vec::new();
            while let Some(page) = pages.next().await {
                let page = page.expect("a page");
                assert!(page.contents().len() <= 1000);
                listed.extend(page.contents().iter().filter_map(|object| object.key().map(str::to_owned)));
            }
            assert_eq!(listed, keys);
        }
        let list = || s3.list_objects_v2().bucket(double.bucket()).prefix("z/").delimiter("/");
        let mut token = None;
        let mut lines = Vec::new();
        for _ in 0..9 {
            let page = list().max_keys(1).set_continuation_token(token).send().await.expect("a page");
            lines.extend(page.common_prefixes().iter().filter_map(|prefix| prefix.prefix().map(str::to_owned)));
            lines.extend(page.contents().iter().filter_map(|object| object.key().map(str::to_owned)));
            token = page.next_continuation_token().map(str::to_owned);
            if token.is_none() {
                break;
            }
        }
        assert_eq!(lines, ["z/1/", "z/2", "z/3/"]);
        let page = s3.list_objects_v2().bucket(double.bucket()).prefix("z/").start_after("z/1/x").send().await;
        assert_eq!(page.expect("a page").contents()[0].key(), Some("z/1/y"));
        let page = s3.list_objects_v2().bucket(double.bucket()).prefix("n/").start_after("a").send().await;
        assert_eq!(page.expect("a page").contents()[0].key(), Some("n/0"));
        let wrong = s3.list_objects_v2().bucket(double.bucket()).continuation_token("n/1").send().await;
        assert_eq!(code(wrong), "400 InvalidArgument");
        let page = s3.list_objects_v2().bucket(double.bucket()).max_keys(2508).send().await.expect("a page");
        assert_eq!((page.key_count(), page.is_truncated()), (Some(1000), Some(true)));
    });
}
