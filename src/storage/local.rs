//! A store in a local directory: a key is a path below the root.
//!
//! Durable by fsync of the file before it gets its name, and of its directories after. Create-only by the
//! file system: a rename that refuses to replace, or a hard link where the file system has no such rename.
//! Temporary files begin with `.pgark-tmp-`, which no key does: listings pass over them.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::local_list::{TEMPORARY, list_page, list_temporary};
use super::object_store::{Continuation, Damage, Unfinished};
use super::{
    Get, Head, KeyPrefix, LargeBody, ListPage, Object, ObjectKey, ObjectMeta, ObjectStore, Put, StoreError,
    StoreErrorKind, UserMetadata,
};

const PIECE: usize = 256 << 10;

/// Objects as files below a root directory, which must exist.
#[derive(Clone, Debug)]
pub struct LocalStore {
    root: PathBuf,
}

impl LocalStore {
    /// A store below `root`.
    pub fn new(root: PathBuf) -> Self {
        LocalStore { root }
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        self.root.join(key.as_str())
    }

    /// Runs file system calls where they may block.
    async fn blocking<T: Send + 'static>(
        &self,
        what: String,
        call: impl FnOnce(&LocalStore) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            // An archive on a file system that is not mounted must not look like an empty one.
            match fs::metadata(&store.root) {
                Ok(meta) if meta.is_dir() => call(&store).map_err(|error| (error, true)),
                Ok(_) => Err((io::Error::from(io::ErrorKind::NotADirectory), false)),
                Err(error) => Err((error, false)),
            }
        });
        match task.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err((error, true))) => Err(local_error(&what, error)),
            Ok(Err((error, false))) => Err(self.no_root(error)),
            Err(_) => Err(StoreError::new(StoreErrorKind::LocalIo, format!("{what}: the file thread failed"))),
        }
    }

    fn no_root(&self, error: io::Error) -> StoreError {
        let root = self.root.display();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                StoreError::new(StoreErrorKind::NoSuchContainer, format!("the directory `{root}` does not exist"))
                    .with_hint(format!("mount it, or create it with `mkdir -p {root}`, writable for the server's user"))
            }
            _ => local_error(&format!("`{root}`"), error),
        }
    }

    fn create(&self, key: &ObjectKey, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<Put> {
        let path = self.path(key);
        let parent = path.parent().unwrap_or(&self.root).to_path_buf();
        if !path.try_exists()? {
            self.create_directories(&parent)?;
            let temporary = Temporary::write(&parent, write, |path| self.give_to_owner(path))?;
            match temporary.publish(&path) {
                Ok(()) => {
                    self.sync_directories(&parent)?;
                    return Ok(Put::Created);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        // Whoever wrote it may have been killed before its name was durable: `Exists` promises that it is.
        self.sync_directories(&parent)?;
        Ok(Put::Exists)
    }

    fn create_directories(&self, parent: &Path) -> io::Result<()> {
        let below = parent.strip_prefix(&self.root).map_err(io::Error::other)?;
        let mut path = self.root.clone();
        for part in below.components() {
            path.push(part);
            match fs::DirBuilder::new().mode(0o750).create(&path) {
                // Whatever the umask is: the format says so, and a reader of the same group relies on it.
                Ok(()) => {
                    fs::set_permissions(&path, Permissions::from_mode(0o750))?;
                    self.give_to_owner(&path)?;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What root creates, in `check` or `init`, belongs to the owner of the root directory: otherwise the server's user
    /// could not archive beside it.
    fn give_to_owner(&self, path: &Path) -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let owner = fs::metadata(&self.root)?;
        std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid()))
    }

    /// Makes the names on the way from the root down to `parent` durable. All of them: another process may have
    /// made one just now and not come to its fsync. An unchanged directory costs next to nothing.
    fn sync_directories(&self, parent: &Path) -> io::Result<()> {
        let mut path = parent;
        loop {
            File::open(path)?.sync_all()?;
            match path.parent() {
                Some(above) if path != self.root => path = above,
                _ => return Ok(()),
            }
        }
    }
}

/// A file without its final name; removed when it does not get one.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn write(
        directory: &Path,
        write: impl FnOnce(&mut File) -> io::Result<()>,
        give_away: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |age| age.subsec_nanos());
        let path = directory.join(format!("{TEMPORARY}{}-{number}-{nanos:08x}", std::process::id()));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path)?;
        let temporary = Temporary { path };
        file.set_permissions(Permissions::from_mode(0o640))?;
        write(&mut file)?;
        give_away(&temporary.path)?;
        file.sync_all()?;
        Ok(temporary)
    }

    fn publish(&self, path: &Path) -> io::Result<()> {
        match renameat_with(CWD, &self.path, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
                fs::hard_link(&self.path, path)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing to remove. What a killed writer leaves is in nobody's way (docs/stores.md).
        fs::remove_file(&self.path).ok();
    }
}

#[async_trait]
impl ObjectStore for LocalStore {
    async fn put(&self, key: &ObjectKey, body: Bytes, _user: &UserMetadata) -> Result<Put, StoreError> {
        let object = key.clone();
        self.blocking(format!("writing `{}`", self.path(key).display()), move |store| {
            store.create(&object, |file| file.write_all(&body))
        })
        .await
    }

    async fn put_large(&self, key: &ObjectKey, body: &LargeBody, _user: &UserMetadata) -> Result<Put, StoreError> {
        let (object, body) = (key.clone(), body.clone());
        self.blocking(format!("writing `{}`", self.path(key).display()), move |store| {
            store.create(&object, |file| body.copy(file))
        })
        .await
    }

    async fn get(&self, key: &ObjectKey, offset: u64, same_as: Option<&str>) -> Result<Get, StoreError> {
        let what = format!("reading `{}`", self.path(key).display());
        let path = self.path(key);
        let opened = self.blocking(what.clone(), move |_| open_at(&path, offset)).await?;
        let Some((file, meta)) = opened else {
            return Ok(Get::Missing);
        };
        if same_as.is_some() && same_as != meta.etag.as_deref() {
            return Err(StoreError::new(StoreErrorKind::Changed, format!("{what}: it is another file now")));
        }
        let body = stream::unfold(Some((file, what)), |state| async move {
            let (file, what) = state?;
            let task = tokio::task::spawn_blocking(move || read_piece(file));
            match task.await.unwrap_or_else(|e| Err(io::Error::other(e))) {
                Ok((_, piece)) if piece.is_empty() => None,
                Ok((file, piece)) => Some((Ok(Bytes::from(piece)), Some((file, what)))),
                Err(error) => Some((Err(local_error(&what, error)), None)),
            }
        });
        Ok(Get::Found(Object { meta, body: body.boxed() }))
    }

    async fn head(&self, key: &ObjectKey) -> Result<Head, StoreError> {
        let path = self.path(key);
        let opened = self.blocking(format!("looking at `{}`", path.display()), move |_| open_at(&path, 0)).await?;
        Ok(opened.map_or(Head::NotSeen, |(_, meta)| Head::Found(meta)))
    }

    async fn list(
        &self,
        prefix: &KeyPrefix,
        from: Option<&Continuation>,
        limit: usize,
    ) -> Result<ListPage, StoreError> {
        let after = match from {
            Some(Continuation::After(key) | Continuation::Token(key)) => key.clone(),
            None => String::new(),
        };
        let what = format!("listing `{}`", self.root.join(prefix.as_str()).display());
        let prefix = prefix.clone();
        self.blocking(what, move |store| list_page(&store.root, prefix.as_str(), &after, limit)).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let path = self.path(key);
        self.blocking(format!("deleting `{}`", path.display()), move |_| {
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
            path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
        })
        .await
    }

    async fn unfinished(&self, prefix: &KeyPrefix) -> Result<Vec<Unfinished>, StoreError> {
        let what = format!("looking for unfinished files in `{}`", self.root.join(prefix.as_str()).display());
        let prefix = prefix.clone();
        self.blocking(what, move |store| list_temporary(&store.root, prefix.as_str())).await
    }

    async fn abandon(&self, unfinished: &Unfinished) -> Result<(), StoreError> {
        let path = self.root.join(&unfinished.token);
        self.blocking(format!("deleting `{}`", path.display()), move |_| match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        })
        .await
    }

    fn describe(&self) -> String {
        format!("file://{}", self.root.display())
    }

    async fn refuses_damage(&self, _key: &ObjectKey) -> Result<Damage, StoreError> {
        Ok(Damage::NoNetwork)
    }

    async fn put_in_parts(&self, _key: &ObjectKey, _body: Bytes) -> Result<Option<Put>, StoreError> {
        Ok(None)
    }
}

fn open_at(path: &Path, offset: u64) -> io::Result<Option<(File, ObjectMeta)>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    file.seek(SeekFrom::Start(offset))?;
    let etag = format!("{:x}-{:x}-{:x}.{:x}", meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
    let meta = ObjectMeta {
        size: meta.size(),
        etag: Some(etag),
        modified: meta.modified().ok(),
        user: UserMetadata::default(),
    };
    Ok(Some((file, meta)))
}

fn read_piece(mut file: File) -> io::Result<(File, Vec<u8>)> {
    let mut piece = Vec::with_capacity(PIECE);
    (&mut file).take(PIECE as u64).read_to_end(&mut piece)?;
    Ok((file, piece))
}

fn local_error(what: &str, error: io::Error) -> StoreError {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StoreErrorKind::Denied,
        // A stale or interrupted network file system may come back.
        io::ErrorKind::StaleNetworkFileHandle | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {
            StoreErrorKind::Unavailable
        }
        _ => StoreErrorKind::LocalIo,
    };
    StoreError::new(kind, format!("{what}: {error}")).with_source(error)
}
