//! Proves that a multipart upload is judged when it is completed: order, ETags, sizes and condition, and that it leaves
//! nothing behind.

use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use sha2::{Digest, Sha256};

use super::S3Double;
use super::self_test::{block, body, client, code, sha256};

#[test]
fn multipart_uploads_are_judged_when_completed() {
    let double = S3Double::start();
    let s3 = client(&double);
    let (large, small) = (vec![1; 5 << 20], vec![2; 10]);
    block(async {
        let begin = || s3.create_multipart_upload().bucket(double.bucket()).key("k").metadata("m", "1").send();
        let id = begin().await.expect("begun").upload_id.expect("an id");
        let part = |number: i32, data: &[u8]| {
            let part = s3.upload_part().bucket(double.bucket()).key("k").upload_id(&id).part_number(number);
            part.checksum_sha256(sha256(data)).body(body(data)).send()
        };
        let wrong = s3.upload_part().bucket(double.bucket()).key("k").upload_id(&id).part_number(1);
        let wrong = wrong.checksum_sha256(sha256(b"other")).body(body(&small)).send();
        assert_eq!(code(wrong.await), "400 BadDigest");
        let one = part(1, &large).await.expect("a part").e_tag.expect("an ETag");
        let two = part(2, &small).await.expect("a part").e_tag.expect("an ETag");
        let three = part(3, &small).await.expect("a part").e_tag.expect("an ETag");
        let complete = |condition: Option<&str>, parts: &[(i32, &str)]| {
            let parts =
                parts.iter().map(|(number, etag)| CompletedPart::builder().part_number(*number).e_tag(*etag).build());
            let parts = CompletedMultipartUpload::builder().set_parts(Some(parts.collect())).build();
            let complete = s3.complete_multipart_upload().bucket(double.bucket()).key("k").upload_id(&id);
            complete.multipart_upload(parts).set_if_none_match(condition.map(str::to_owned)).send()
        };
        assert_eq!(code(complete(None, &[(2, &two), (1, &one)]).await), "400 InvalidPartOrder");
        assert_eq!(code(complete(None, &[(1, &two)]).await), "400 InvalidPart");
        assert_eq!(code(complete(None, &[(1, &one), (4, &two)]).await), "400 InvalidPart");
        assert_eq!(code(complete(None, &[(1, &one), (2, &two), (3, &three)]).await), "400 EntityTooSmall");
        assert!(double.keys().is_empty());
        double.put_raw("k", *b"first", &[]);
        let parts: &[(i32, &str)] = &[(1, &one), (2, &two)];
        assert_eq!(code(complete(Some("*"), parts).await), "412 PreconditionFailed");
        assert_eq!(double.object("k").as_deref(), Some(&b"first"[..]));
        assert_eq!(double.open_uploads(), [("k".to_owned(), id.clone())]);
        double.remove("k");
        let done = complete(Some("*"), parts).await.expect("complete");
        assert!(done.e_tag().is_some_and(|etag| etag.ends_with("-2\"")), "{done:?}");
        let digests = [Sha256::digest(&large), Sha256::digest(&small)].concat();
        assert_eq!(done.checksum_sha256(), Some(format!("{}-2", sha256(&digests)).as_str()));
        assert_eq!(double.object("k"), Some([large.clone(), small.clone()].concat()));
        assert_eq!(double.metadata("k").map(|metadata| metadata.len()), Some(1));
        assert_eq!(code(complete(Some("*"), parts).await), "404 NoSuchUpload");

        let id = begin().await.expect("begun").upload_id.expect("an id");
        let open = s3.list_multipart_uploads().bucket(double.bucket()).prefix("k").send().await.expect("listed");
        assert_eq!(open.uploads()[0].upload_id(), Some(id.as_str()));
        let abort = || s3.abort_multipart_upload().bucket(double.bucket()).key("k").upload_id(&id).send();
        assert_eq!((code(abort().await), code(abort().await)), ("ok".to_owned(), "404 NoSuchUpload".to_owned()));
        assert!(double.open_uploads().is_empty());
    });
}
