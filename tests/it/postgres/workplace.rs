//! Where a test process keeps its clusters: one directory under the system's temporary directory, readable for the
//! servers' user, with the copy of the binary under test.
//!
//! A lock file says that its process lives. The next test process removes the directories of those that died, after
//! killing the servers they left behind. With `PGARK_TEST_KEEP` set, what failing tests used stays.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::{account::Account, processes};

const PREFIX: &str = "pgark-test-";
/// Below it a lock file may have been made but not yet been locked.
const YOUNG: Duration = Duration::from_secs(10);
/// `sockaddr_un` holds 107 bytes; the socket's own part of the path takes some 40.
const LONGEST_BASE: usize = 50;

struct Workplace {
    path: PathBuf,
    _lock: File,
}

/// This process's directory, made at the first call.
pub fn directory() -> &'static Path {
    static WORKPLACE: OnceLock<Workplace> = OnceLock::new();
    &WORKPLACE.get_or_init(create).path
}

fn create() -> Workplace {
    let mut base = std::env::temp_dir();
    if base.as_os_str().len() > LONGEST_BASE {
        base = PathBuf::from("/tmp");
    }
    sweep(&base);
    let path = tempfile::Builder::new()
        .prefix(PREFIX)
        .tempdir_in(&base)
        .unwrap_or_else(|error| panic!("make a directory in `{}`: {error}", base.display()))
        .keep();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("chmod the workplace");
    let lock = File::create(path.join("lock")).expect("create the workplace's lock");
    lock.try_lock().expect("lock the workplace");
    Workplace { path, _lock: lock }
}

fn sweep(base: &Path) {
    let me = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let path = entry.path();
        let named = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if named && fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir() && meta.uid() == me) && is_dead(&path) {
            processes::kill_all_in(&path);
            if !path.join("keep").exists() {
                let _ = fs::remove_dir_all(&path);
            }
        }
    }
}

fn is_dead(path: &Path) -> bool {
    let Ok(lock) = OpenOptions::new().write(true).open(path.join("lock")) else {
        return false;
    };
    let age = lock.metadata().and_then(|meta| meta.modified()).map(|at| at.elapsed().unwrap_or_default());
    age.is_ok_and(|age| age > YOUNG) && lock.try_lock().is_ok()
}

/// A directory that belongs to the servers' user, mode 0755; removed on drop.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub fn new(label: &str) -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let path = directory().join(format!("{label}{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("create `{}`: {error}", path.display()));
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("chmod a scratch directory");
        Account::of_servers().own(&path);
        Scratch { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("PGARK_TEST_KEEP").is_some() {
            let _ = File::create(directory().join("keep"));
            eprintln!("kept for inspection: {}", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("could not remove {}: {error}", self.path.display());
        }
    }
}

/// A copy of the program that the servers' user can run, made once per test process and path.
pub fn installed_binary(path: &Path) -> &'static Path {
    static COPIES: Mutex<Vec<(PathBuf, &'static Path)>> = Mutex::new(Vec::new());
    let mut copies = COPIES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some((_, copy)) = copies.iter().find(|(original, _)| original == path) {
        return copy;
    }
    let directory = directory().join(format!("bin{}", copies.len()));
    fs::create_dir(&directory).expect("create the directory of the binary");
    fs::set_permissions(&directory, Permissions::from_mode(0o755)).expect("chmod the directory of the binary");
    let copy = directory.join(path.file_name().expect("a program has a name"));
    let runs_for_all = fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o777 == 0o755);
    if !(runs_for_all && fs::hard_link(path, &copy).is_ok()) {
        fs::copy(path, &copy).unwrap_or_else(|error| panic!("copy `{}`: {error}", path.display()));
        fs::set_permissions(&copy, Permissions::from_mode(0o755)).expect("chmod the binary");
    }
    let copy: &'static Path = Box::leak(copy.into_boxed_path());
    copies.push((path.to_owned(), copy));
    copy
}
