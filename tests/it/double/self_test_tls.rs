//! Proves that the double speaks TLS to who trusts its authority and to nobody else, and that faults reach the socket
//! through it.

use aws_sdk_s3::Client;
use aws_sdk_s3::error::SdkError;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};

use super::self_test::{block, code, config};
use super::{Fault, Op, Rule, S3Double};

fn trusting(double: &S3Double, store: TrustStore) -> Client {
    let context = TlsContext::builder().with_trust_store(store).build().expect("a TLS context");
    let builder = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
    Client::from_conf(config(double).http_client(builder.tls_context(context).build_https()).build())
}

#[test]
fn only_who_trusts_the_authority_is_served() {
    let double = S3Double::builder().tls().start();
    assert!(double.endpoint().starts_with("https://127.0.0.1:"));
    double.put_raw("k", vec![7; 1 << 20], &[]);
    let pem = double.ca_pem().expect("an authority");
    let s3 = trusting(&double, TrustStore::empty().with_pem_certificate(pem));
    let stranger = S3Double::builder().tls().start();
    let pem = stranger.ca_pem().expect("an authority");
    let misled = trusting(&double, TrustStore::empty().with_pem_certificate(pem));
    block(async {
        let get = || s3.get_object().bucket(double.bucket()).key("k").send();
        let body = get().await.expect("found").body.collect().await.expect("read");
        assert_eq!(body.to_vec(), vec![7; 1 << 20]);
        let refused = misled.get_object().bucket(double.bucket()).key("k").send().await;
        assert!(matches!(refused, Err(SdkError::DispatchFailure(_))), "{refused:?}");

        for fault in [Fault::ResetMidBody(None), Fault::Truncate] {
            double.fault(Rule::new(fault).on(Op::Get).once());
            let cut = get().await.expect("a head").body.collect().await;
            assert!(cut.is_err());
        }
        double.fault(Rule::new(Fault::LostReply).on(Op::Put).once());
        let lost = s3.put_object().bucket(double.bucket()).key("new").send().await;
        assert!(matches!(lost, Err(SdkError::DispatchFailure(_))), "{lost:?}");
        assert!(double.object("new").is_some());
        double.fault(Rule::new(Fault::Status503).once());
        assert_eq!(code(get().await), "503 SlowDown");
    });
}
