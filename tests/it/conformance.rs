//! One suite for every store: what the contract of `ObjectStore` says holds for S3, a directory, memory, and through the
//! decorators.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pgark::storage::object_store::{Continuation, Visit};
use pgark::storage::s3::S3Store;
use pgark::storage::s3_client::{ConditionalPut, S3Settings, ServerSideEncryption, Timeouts};
use pgark::storage::s3_credentials::{Credentials, Secret};
use pgark::storage::{
    Get, Head, KeyPrefix, ObjectKey, ObjectStore, ObjectStoreExt, Put, StoreErrorKind, UserMetadata, faulty, gated,
    limit, local, memory,
};

use crate::double::S3Double;
use crate::postgres::Scratch;

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap().block_on(future)
}

pub async fn s3(double: &S3Double) -> Arc<dyn ObjectStore> {
    let settings = S3Settings {
        bucket: double.bucket().to_owned(),
        prefix: "some/prefix".parse().unwrap(),
        endpoint: Some(double.endpoint()),
        region: Some("us-east-1".into()),
        path_style: None,
        ca_file: None,
        storage_class: None,
        sse: ServerSideEncryption::BucketDefault,
        sign_payload: false,
        conditional_put: ConditionalPut::ByStore,
        credentials: Credentials::Static {
            access_key_id: double.access_key(),
            secret_access_key: Secret::new(double.secret_key()),
            session_token: None,
        },
        timeouts: Timeouts {
            connect: Duration::from_secs(2),
            request: Duration::from_secs(5),
            stall: Duration::from_secs(5),
            attempts: 3,
        },
    };
    Arc::new(S3Store::new(settings).await.unwrap())
}

#[test]
fn s3_keeps_the_contract() {
    let double = S3Double::start();
    run(async { suite(s3(&double).await).await });
}

#[test]
fn a_directory_keeps_the_contract() {
    let root = Scratch::new("store");
    run(suite(Arc::new(local::LocalStore::new(root.path().to_owned()))));
}

#[test]
fn memory_keeps_the_contract() {
    run(suite(Arc::new(memory::MemoryStore::default())));
}

#[test]
fn decorators_keep_the_contract() {
    let inner = Arc::new(memory::MemoryStore::default());
    let limited = Arc::new(gated::GatedStore::new(inner, limit::Limit::of(3)));
    run(suite(Arc::new(faulty::FaultyStore::new(limited, 1, 0))));
}

fn key(text: &str) -> ObjectKey {
    text.parse().unwrap()
}

fn prefix(text: &str) -> KeyPrefix {
    text.parse().unwrap()
}

async fn put(store: &dyn ObjectStore, name: &str, body: impl Into<Bytes>) -> Put {
    store.put(&key(name), body.into(), &UserMetadata::new()).await.unwrap()
}

async fn suite(store: Arc<dyn ObjectStore>) {
    missing_is_proven(&*store).await;
    writes_create_only(&*store).await;
    reads_from_any_offset(&*store).await;
    listings_are_complete_and_in_order(&*store).await;
    deletes(&*store).await;
    one_of_many_writers_wins(Arc::clone(&store)).await;
    large_objects_are_create_only(&*store).await;
}

async fn missing_is_proven(store: &dyn ObjectStore) {
    for name in ["nothing", "no/such/object.zst"] {
        assert!(matches!(store.get(&key(name), 0, None).await.unwrap(), Get::Missing));
        assert_eq!(store.head(&key(name)).await.unwrap(), Head::NotSeen);
    }
}

async fn writes_create_only(store: &dyn ObjectStore) {
    let user = UserMetadata::from([("pgark-sha256".to_owned(), "abc".to_owned())]);
    assert_eq!(store.put(&key("a/one"), Bytes::from_static(b"first"), &user).await.unwrap(), Put::Created);
    for body in [&b"first"[..], b"second", b""] {
        assert_eq!(put(store, "a/one", body).await, Put::Exists);
    }
    assert_eq!(store.read_small(&key("a/one"), 100).await.unwrap().unwrap(), "first");
    let Head::Found(meta) = store.head(&key("a/one")).await.unwrap() else { panic!("it is there") };
    assert_eq!(meta.size, 5);
    assert!(meta.modified.is_some());
    // A hint: kept as it was, or not at all.
    assert!(meta.user.is_empty() || meta.user == user, "{:?}", meta.user);
    assert_eq!(put(store, "a/empty", Bytes::new()).await, Put::Created);
    assert_eq!(store.read_small(&key("a/empty"), 100).await.unwrap().unwrap(), "");
    assert!(store.read_small(&key("a/one"), 4).await.is_err(), "a limit is a limit");
}

async fn reads_from_any_offset(store: &dyn ObjectStore) {
    let bytes: Vec<u8> = (0..700_000u32).map(|i| (i % 253) as u8).collect();
    assert_eq!(put(store, "b/large", bytes.clone()).await, Put::Created);
    let Get::Found(object) = store.get(&key("b/large"), 0, None).await.unwrap() else { panic!("it is there") };
    let etag = object.meta.etag.clone();
    drop(object);
    for offset in [0usize, 1, 262_144, 699_999] {
        let Get::Found(object) = store.get(&key("b/large"), offset as u64, etag.as_deref()).await.unwrap() else {
            panic!("it is there")
        };
        assert_eq!(object.meta.size, bytes.len() as u64);
        let read = store.read_start(&key("b/large"), object, bytes.len()).await.unwrap();
        assert_eq!(read, bytes[offset..]);
    }
    let error = store.get(&key("b/large"), 1, Some("\"another\"")).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Changed, "{error}");
}

async fn names(store: &dyn ObjectStore, below: &str, after: Option<&str>, page: usize) -> Vec<String> {
    let mut names = Vec::new();
    let visit = |listed: &pgark::storage::Listed| {
        names.push(listed.name.clone());
        Visit::More
    };
    store.visit_after(&prefix(below), after, page, visit).await.unwrap();
    names
}

async fn listings_are_complete_and_in_order(store: &dyn ObjectStore) {
    // A directory sorts as its name with a slash behind it, not as its name.
    let odd = ["c/a.b", "c/a/b", "c/a-b", "c/a0", "c/b/1", "c/b.1/x", "cc", "c0/x"];
    for name in odd {
        put(store, name, "x").await;
    }
    let mut expected: Vec<&str> = odd.into_iter().filter(|name| name.starts_with("c/")).collect();
    expected.sort_unstable();
    for page in [1, 2, 3, 1000] {
        assert_eq!(names(store, "c/", None, page).await, expected, "pages of {page}");
    }
    for (index, name) in expected.iter().enumerate() {
        assert_eq!(names(store, "c/", Some(name), 2).await, expected[index + 1..], "after {name}");
    }
    assert_eq!(names(store, "none/", None, 10).await, [""; 0]);
    for count in [1, 999, 1000, 1001, 2500] {
        pages(store, count).await;
    }
}

async fn pages(store: &dyn ObjectStore, count: usize) {
    let below = format!("d{count}/");
    let many: Vec<String> = (0..count).map(|number| format!("{below}{number:05}")).collect();
    for name in &many {
        put(store, name, "x").await;
    }
    assert_eq!(names(store, &below, None, 1000).await, many, "{count} objects");
    let last = many.last().unwrap();
    assert_eq!(names(store, &below, Some(last), 1000).await, [""; 0]);
    let page = store.list(&prefix(&below), Some(&Continuation::After(many[0].clone())), 10).await.unwrap();
    assert_eq!(page.objects.len(), (count - 1).min(10));
}

async fn deletes(store: &dyn ObjectStore) {
    assert_eq!(put(store, "e/one", "x").await, Put::Created);
    for _ in 0..2 {
        store.delete(&key("e/one")).await.unwrap();
    }
    assert!(matches!(store.get(&key("e/one"), 0, None).await.unwrap(), Get::Missing));
    assert_eq!(put(store, "e/one", "y").await, Put::Created);
}

async fn one_of_many_writers_wins(store: Arc<dyn ObjectStore>) {
    for round in 0..20 {
        let name = format!("f/{round}");
        let writers = (0..8).map(|writer: usize| {
            let (store, name) = (Arc::clone(&store), name.clone());
            tokio::spawn(async move { (writer, put(&*store, &name, format!("content of {writer}")).await) })
        });
        let mut winners = Vec::new();
        for writer in writers.collect::<Vec<_>>() {
            let (writer, outcome) = writer.await.unwrap();
            if outcome == Put::Created {
                winners.push(writer);
            }
        }
        let content = store.read_small(&key(&name), 100).await.unwrap().unwrap();
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        assert_eq!(content, format!("content of {}", winners[0]));
    }
}

async fn large_objects_are_create_only(store: &dyn ObjectStore) {
    let bytes: Bytes = (0..40u32 << 18).flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into();
    assert_eq!(put(store, "g/huge", bytes.clone()).await, Put::Created);
    assert_eq!(put(store, "g/huge", bytes.slice(..33 << 20)).await, Put::Exists);
    assert_eq!(store.read_small(&key("g/huge"), 64 << 20).await.unwrap().unwrap(), bytes);
}

#[test]
fn what_was_moved_to_another_disk_is_listed() {
    let (root, other) = (Scratch::new("store"), Scratch::new("disk"));
    run(async {
        let store = local::LocalStore::new(root.path().to_owned());
        for name in ["a/1", "a/b/2", "a/c/3"] {
            put(&store, name, "x").await;
        }
        std::fs::rename(root.path().join("a/b"), other.path().join("b")).unwrap();
        std::os::unix::fs::symlink(other.path().join("b"), root.path().join("a/b")).unwrap();
        assert_eq!(names(&store, "a/", None, 10).await, ["a/1", "a/b/2", "a/c/3"]);
        std::fs::remove_dir_all(other.path().join("b")).unwrap();
        assert!(store.list(&prefix("a/"), None, 10).await.is_err(), "a link that leads nowhere hides something");
    });
}

/// A store that is killed between two steps leaves no object that is half there.
#[test]
fn what_is_not_finished_is_not_listed() {
    let root = Scratch::new("store");
    run(async {
        let store = local::LocalStore::new(root.path().to_owned());
        put(&store, "a/b", "x").await;
        std::fs::write(root.path().join("a/.pgark-tmp-1-0-0"), "half").unwrap();
        assert_eq!(names(&store, "a/", None, 10).await, ["a/b"]);
    });
}

#[test]
fn faults_of_the_decorator_are_errors_and_never_absences() {
    run(async {
        let inner = Arc::new(memory::MemoryStore::default());
        put(&*inner, "a", vec![7u8; 1000]).await;
        let store = faulty::FaultyStore::new(inner, 42, 2);
        let mut failed = 0;
        for _ in 0..200 {
            match store.read_small(&key("a"), 2000).await {
                Ok(Some(bytes)) => assert_eq!(bytes.len(), 1000),
                Ok(None) => panic!("a fault looks like an absence"),
                Err(error) => {
                    assert!(error.is_temporary());
                    failed += 1;
                }
            }
        }
        assert!((50..150).contains(&failed), "{failed}");
    });
}
