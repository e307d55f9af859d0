//! The part objects of a dump: written once, read whole and verified before a byte of them is handed on.

use bytes::Bytes;

use super::Repository;
use super::archive::ReadBounds;
use super::backup_id::BackupId;
use super::dump_manifest::{DumpPart, LARGEST_PART};
use super::error::RepoError;
use super::layout::DumpKey;
use super::stored_object::StoredObject;
use super::wal_object::DIGEST_METADATA;
use crate::storage::{Get, Head, Put, UserMetadata};
use crate::stream::{Resumable, Sha256, UnpackError, Unpacker};

impl Repository {
    /// Stores a part. One that is there already, after a lost reply, must be this one.
    pub async fn put_dump_part(&self, id: BackupId, file: u32, part: &DumpPart, bytes: Bytes) -> Result<(), RepoError> {
        let key = self.layout.dump(id, DumpKey::Part { file, part: part.part });
        let user = UserMetadata::from([(DIGEST_METADATA.to_owned(), part.sha256.to_string())]);
        if self.store.put(&key, bytes, &user).await? == Put::Created {
            return Ok(());
        }
        let same = match self.store.head(&key).await? {
            Head::Found(meta) if meta.size != part.stored => false,
            Head::Found(meta) if meta.user.get(DIGEST_METADATA) == Some(&part.sha256.to_string()) => true,
            _ => return self.dump_part(id, file, part, &ReadBounds::default()).await.map(drop),
        };
        if same { Ok(()) } else { Err(RepoError::damaged(&key, "another part of this name is there already")) }
    }

    /// The bytes of the file that a part holds. Nothing is given that does not have the part's digest.
    pub async fn dump_part(
        &self,
        id: BackupId,
        file: u32,
        part: &DumpPart,
        bounds: &ReadBounds,
    ) -> Result<Vec<u8>, RepoError> {
        let key = self.layout.dump(id, DumpKey::Part { file, part: part.part });
        let damaged = |why: String| RepoError::damaged(&key, why);
        let Get::Found(found) = self.store.get(&key, 0, None).await? else {
            return Err(damaged("it is missing, and the manifest counts on it".to_owned()));
        };
        let (size, promised) = (found.meta.size, part.stored);
        if size != promised || size > LARGEST_PART {
            return Err(damaged(format!("it is {size} bytes long, but was written with {promised}")));
        }
        let source = StoredObject::new(std::sync::Arc::clone(&self.store), key.clone(), found.meta.etag);
        let mut download = Resumable::new(source, found.body, size, bounds.stall, bounds.patience);
        let mut stored = Vec::with_capacity(size as usize);
        while let Some(piece) = download.next().await {
            stored.extend_from_slice(&piece?);
        }
        let (sha256, plain) = (part.sha256, part.plain);
        let unpacking = tokio::task::spawn_blocking(move || {
            if Sha256::of(&stored) != sha256 {
                return Err(UnpackError::Damaged("its bytes are not those that were written".to_owned()));
            }
            let mut unpacker = Unpacker::new(Vec::with_capacity(plain.min(LARGEST_PART) as usize), plain)?;
            unpacker.push(&stored)?;
            Ok(unpacker.finish()?.1)
        });
        match unpacking.await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(UnpackError::Damaged(why))) => Err(damaged(why)),
            Ok(Err(UnpackError::Write(error))) => Err(RepoError::Destination(error)),
            Err(_) => Err(RepoError::Destination(std::io::Error::other("the thread that unpacks failed"))),
        }
    }
}
