//! What a call costs at the store: every request is money and a round trip.

use crate::data_dir::FakeCluster;
use crate::double::S3Double;
use crate::repository::Repository;

fn operations(double: &S3Double) -> Vec<String> {
    let operations = double.requests().iter().map(|logged| logged.operation.to_string()).collect();
    double.clear_requests();
    operations
}

#[test]
fn a_push_is_one_put_and_one_small_request_and_a_fetch_is_one_get() {
    let repository = Repository::s3();
    let cluster = FakeCluster::new();
    for number in 1..=3 {
        cluster.segment(&format!("00000001000000000000000{number}"), number);
    }
    repository.push(&cluster, "000000010000000000000001").run().quiet_success();
    operations(repository.double());
    repository.push(&cluster, "000000010000000000000002").run().quiet_success();
    assert_eq!(operations(repository.double()), ["GetObject", "PutObject"]);
    repository.fetch(&cluster, "000000010000000000000002").run().quiet_success();
    assert_eq!(operations(repository.double()), ["GetObject"]);
    // Archived before: the refused write and one look.
    repository.push(&cluster, "000000010000000000000002").run().quiet_success();
    assert_eq!(operations(repository.double()), ["GetObject", "PutObject", "HeadObject"]);
    // The proof of absence: the object, the identity, what lies behind among the WAL and in the live tail.
    repository.fetch(&cluster, "000000010000000000000003").run().code(1);
    assert_eq!(operations(repository.double()), ["GetObject", "GetObject", "ListObjectsV2", "ListObjectsV2"]);
}

#[test]
fn later_timelines_cost_no_more() {
    let repository = Repository::s3();
    let cluster = FakeCluster::with(crate::data_dir::SYSTEM_ID, 2);
    cluster.file("00000002.history", b"1\t0/200000\tx\n");
    for name in ["000000020000000000000003", "000000020000000000000004"] {
        cluster.segment(name, 1);
        operations(repository.double());
        repository.push(&cluster, name).run().quiet_success();
    }
    assert_eq!(operations(repository.double()), ["GetObject", "PutObject"]);
}

#[test]
fn uploads_carry_their_checksum_and_no_trailers() {
    let repository = Repository::s3();
    repository.double().refuse_chunked(true);
    let cluster = FakeCluster::new();
    cluster.segment("000000010000000000000001", 1);
    for sign in ["false", "true"] {
        let name = "000000010000000000000001";
        let url = format!("{}/{sign}", repository.url());
        let call = repository.push(&cluster, name).env("PGARK_REPO__URL", url).env("PGARK_REPO__SIGN_PAYLOAD", sign);
        call.run().quiet_success();
        let requests = repository.double().requests();
        let put = requests.iter().rev().find(|logged| logged.key.contains("/wal/")).unwrap();
        assert!(put.header("x-amz-checksum-sha256").is_some(), "{put:?}");
        let unsigned = put.header("x-amz-content-sha256") == Some("UNSIGNED-PAYLOAD");
        assert_eq!(unsigned, sign == "false", "{put:?}");
    }
}

#[test]
fn storage_class_and_encryption_at_rest_are_asked_for() {
    let repository = Repository::s3();
    let cluster = FakeCluster::new();
    let name = "000000010000000000000001";
    cluster.segment(name, 1);
    let call = repository.push(&cluster, name).env("PGARK_REPO__STORAGE_CLASS", "STANDARD_IA");
    call.env("PGARK_REPO__SSE", "kms").env("PGARK_REPO__SSE_KMS_KEY_ID", "key-1").run().quiet_success();
    let requests = repository.double().requests();
    let put = requests.iter().find(|logged| logged.key.contains("/wal/")).unwrap();
    assert_eq!(put.header("x-amz-storage-class"), Some("STANDARD_IA"));
    assert_eq!(put.header("x-amz-server-side-encryption"), Some("aws:kms"));
    assert_eq!(put.header("x-amz-server-side-encryption-aws-kms-key-id"), Some("key-1"));
}
