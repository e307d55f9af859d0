//! Repositories for tests: a directory, or a bucket of the S3 double.

use std::time::Duration;

use crate::data_dir::FakeCluster;
use crate::double::S3Double;
use crate::postgres::Scratch;
use crate::program::Call;

/// Where a test archives to.
pub enum Repository {
    Local(Scratch),
    S3(S3Double),
}

impl Repository {
    pub fn local() -> Self {
        Repository::Local(Scratch::new("repo"))
    }

    pub fn s3() -> Self {
        Repository::S3(S3Double::start())
    }

    /// One of each kind.
    pub fn both() -> [Self; 2] {
        [Self::local(), Self::s3()]
    }

    pub fn url(&self) -> String {
        match self {
            Repository::Local(directory) => format!("file://{}", directory.path().display()),
            Repository::S3(double) => format!("s3://{}/pg", double.bucket()),
        }
    }

    /// What pgark needs in its environment to get there.
    pub fn env(&self) -> Vec<(String, String)> {
        let mut env = vec![("PGARK_REPO__URL".to_owned(), self.url())];
        if let Repository::S3(double) = self {
            env.extend(double.env());
        }
        env
    }

    pub fn double(&self) -> &S3Double {
        match self {
            Repository::S3(double) => double,
            Repository::Local(_) => panic!("this repository is a directory"),
        }
    }

    pub fn push(&self, cluster: &FakeCluster, name: &str) -> Call {
        Call::new(["wal-push", &format!("pg_wal/{name}")]).impatient().envs(self.env()).within(cluster.path())
    }

    pub fn fetch(&self, cluster: &FakeCluster, name: &str) -> Call {
        Call::new(["wal-fetch", name, "pg_wal/RECOVERYXLOG"]).impatient().envs(self.env()).within(cluster.path())
    }

    /// The objects' keys below the cluster's name, in order.
    pub fn keys(&self) -> Vec<String> {
        match self {
            Repository::S3(double) => {
                double.keys().iter().map(|key| key.strip_prefix("pg/").unwrap_or(key).to_owned()).collect()
            }
            Repository::Local(directory) => {
                let mut keys = Vec::new();
                walk(directory.path(), directory.path(), &mut keys);
                keys.sort();
                keys
            }
        }
    }

    /// The object of this key.
    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        match self {
            Repository::S3(double) => double.object(&format!("pg/{key}")),
            Repository::Local(directory) => std::fs::read(directory.path().join(key)).ok(),
        }
    }

    /// Bit rot, or worse.
    pub fn alter(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        match self {
            Repository::S3(double) => double.alter(&format!("pg/{key}"), change),
            Repository::Local(directory) => {
                let path = directory.path().join(key);
                let mut bytes = std::fs::read(&path).expect("the object is there");
                change(&mut bytes);
                std::fs::write(&path, bytes).expect("write the object");
            }
        }
    }

    pub fn remove(&self, key: &str) {
        match self {
            Repository::S3(double) => assert!(double.remove(&format!("pg/{key}")), "`{key}` is there"),
            Repository::Local(directory) => {
                std::fs::remove_file(directory.path().join(key)).expect("remove the object")
            }
        }
    }

    /// Makes an object look older.
    pub fn age(&self, key: &str, by: Duration) {
        match self {
            Repository::S3(double) => double.age(&format!("pg/{key}"), by.as_secs() as i64),
            Repository::Local(directory) => {
                let file = std::fs::File::options().append(true).open(directory.path().join(key)).expect("open it");
                let modified = file.metadata().and_then(|meta| meta.modified()).expect("its time");
                file.set_modified(modified - by).expect("set its time");
            }
        }
    }

    pub fn put(&self, key: &str, bytes: &[u8]) {
        match self {
            Repository::S3(double) => double.put_raw(&format!("pg/{key}"), bytes, &[]),
            Repository::Local(directory) => {
                let path = directory.path().join(key);
                std::fs::create_dir_all(path.parent().expect("a directory")).expect("make the directory");
                std::fs::write(path, bytes).expect("write the object");
            }
        }
    }
}

fn walk(root: &std::path::Path, directory: &std::path::Path, keys: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).expect("list the repository") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => walk(root, &path, keys),
            false => keys.push(path.strip_prefix(root).expect("below the root").display().to_string()),
        }
    }
}

/// The key of a segment in the first generation of the cluster `main`.
pub fn segment_key(name: &str) -> String {
    format!("main/1/wal/{}/{}/{name}.zst", &name[..8], &name[8..16])
}

/// The key of a history file.
pub fn history_key(timeline: &str) -> String {
    format!("main/1/wal/{timeline}/{timeline}.history.zst")
}
