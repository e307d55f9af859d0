//! Identity objects: which cluster each generation of a repository belongs to.
//!
//! JSON, created once, never changed:
//!
//! ```json
//! {"format":"pgark-1","generation":1,"system_identifier":"7301234567890123456","postgres_major":15,
//!  "encryption":"none","created":"2026-11-22T20:00:00Z","writer":"db1, pid 4242, pgark 0.1.0"}
//! ```

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Repository;
use super::error::RepoError;
use super::layout::Generation;
use super::wal_object::Writer;
use crate::postgres::{ClusterIdent, PgMajor, SystemId};
use crate::storage::object_store::Visit;
use crate::storage::{ObjectStoreExt, Put, StoreError, StoreErrorKind, UserMetadata};

/// The content of an identity object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    format: String,
    /// Its number.
    pub generation: Generation,
    system_identifier: SystemId,
    postgres_major: PgMajor,
    /// How objects are encrypted: `none`. Fixed for the generation.
    encryption: String,
    /// When it was created.
    pub created: Timestamp,
    /// By whom.
    pub writer: String,
}

const FORMAT: &str = "pgark-1";
const NO_ENCRYPTION: &str = "none";
const LARGEST: usize = 64 << 10;
/// How many names are looked at when an identity is missing.
const PAGE: usize = 100;

impl Identity {
    fn new(generation: Generation, ident: ClusterIdent, created: Timestamp, writer: &Writer) -> Self {
        Identity {
            format: FORMAT.to_owned(),
            generation,
            system_identifier: ident.system_id,
            postgres_major: ident.major,
            encryption: NO_ENCRYPTION.to_owned(),
            created,
            writer: writer.to_string(),
        }
    }

    /// The cluster.
    pub fn ident(&self) -> ClusterIdent {
        ClusterIdent { system_id: self.system_identifier, major: self.postgres_major }
    }

    fn encode(&self) -> Result<Bytes, RepoError> {
        let damaged = |e: serde_json::Error| RepoError::damaged(&"identity", e.to_string());
        let mut json = serde_json::to_vec(self).map_err(damaged)?;
        json.push(b'\n');
        Ok(json.into())
    }
}

/// All identities of a repository, oldest generation first; at least one.
#[derive(Clone, Debug)]
pub struct Identities {
    repository: String,
    all: Vec<Identity>,
}

impl Identities {
    /// The generation of this cluster.
    pub fn of(&self, ident: ClusterIdent) -> Result<&Identity, RepoError> {
        self.all.iter().rev().find(|identity| identity.ident() == ident).ok_or_else(|| {
            let known: Vec<String> =
                self.all.iter().map(|i| format!("generation {} has {}", i.generation, i.ident())).collect();
            RepoError::ForeignCluster { repository: self.repository.clone(), ident, known: known.join(", ") }
        })
    }

    /// The newest generation.
    pub fn newest(&self) -> Option<&Identity> {
        self.all.last()
    }

    /// All of them, oldest first.
    pub fn all(&self) -> &[Identity] {
        &self.all
    }
}

impl Repository {
    /// The identity of one generation, if there is one.
    pub async fn read_identity(&self, generation: Generation) -> Result<Option<Identity>, RepoError> {
        let key = self.layout.identity(generation);
        let Some(bytes) = self.store.read_small(&key, LARGEST).await? else {
            return Ok(None);
        };
        let identity: Identity = serde_json::from_slice(&bytes)
            .map_err(|e| RepoError::damaged(&key, format!("it is not the identity of a repository: {e}")))?;
        if identity.generation != generation {
            return Err(RepoError::damaged(&key, format!("it claims to be of generation {}", identity.generation)));
        }
        if identity.format != FORMAT || identity.encryption != NO_ENCRYPTION {
            let Identity { format, encryption, .. } = identity;
            let reason = format!("format `{format}` with encryption `{encryption}` needs another version of pgark");
            return Err(RepoError::damaged(&key, reason));
        }
        Ok(Some(identity))
    }

    /// All identities; [`RepoError::NoIdentity`] if there is none.
    pub async fn read_identities(&self) -> Result<Identities, RepoError> {
        let mut generations = Vec::new();
        let prefix = self.layout.identities();
        self.store
            .visit_after(&prefix, None, 1000, |listed| {
                generations.extend(listed.name.parse().ok().and_then(|key| self.layout.parse_identity(&key)));
                Visit::More
            })
            .await?;
        generations.sort_unstable();
        let mut all = Vec::new();
        for generation in generations {
            let vanished = || {
                let message = format!("`{}` was listed but is not there", self.layout.identity(generation));
                StoreError::new(StoreErrorKind::Unexpected, message)
            };
            all.push(self.read_identity(generation).await?.ok_or_else(vanished)?);
        }
        if all.is_empty() {
            return Err(RepoError::NoIdentity { repository: self.describe() });
        }
        Ok(Identities { repository: self.describe(), all })
    }

    /// The generation of a cluster. One small request where it is the first one, as nearly always.
    pub async fn find_generation(&self, ident: ClusterIdent) -> Result<Generation, RepoError> {
        match self.read_identity(Generation::FIRST).await? {
            Some(first) if first.ident() == ident => Ok(first.generation),
            _ => Ok(self.read_identities().await?.of(ident)?.generation),
        }
    }

    /// The generation of a cluster that is about to write. Creates generation 1 in an empty repository.
    pub async fn find_or_begin(
        &self,
        ident: ClusterIdent,
        now: Timestamp,
        writer: &Writer,
    ) -> Result<Generation, RepoError> {
        match self.find_generation(ident).await {
            Err(RepoError::NoIdentity { .. }) => {}
            other => return other,
        }
        match self.refuse_lost_identity().await {
            Ok(()) => {}
            // Another first push may have come between the two looks.
            Err(lost @ RepoError::LostIdentity { .. }) => {
                return match self.find_generation(ident).await {
                    Err(RepoError::NoIdentity { .. }) => Err(lost),
                    other => other,
                };
            }
            Err(error) => return Err(error),
        }
        self.create_identity(Identity::new(Generation::FIRST, ident, now, writer)).await?;
        self.find_generation(ident).await
    }

    /// Opens the next generation for a cluster that has none yet.
    pub async fn open_generation(
        &self,
        ident: ClusterIdent,
        now: Timestamp,
        writer: &Writer,
    ) -> Result<Generation, RepoError> {
        let identities = self.read_identities().await?;
        if let Ok(existing) = identities.of(ident) {
            let reason = format!("this cluster already has it ({ident})");
            return Err(RepoError::Generation { generation: existing.generation, reason });
        }
        let newest = identities.newest().map_or(0, |identity| identity.generation.0);
        let next = Generation(newest + 1);
        match self.create_identity(Identity::new(next, ident, now, writer)).await? {
            Put::Created => Ok(next),
            Put::Exists => {
                let generation = self.find_generation(ident).await?;
                // A lost reply to our own write looks the same as another operator's success.
                Ok(generation)
            }
        }
    }

    async fn create_identity(&self, identity: Identity) -> Result<Put, RepoError> {
        let key = self.layout.identity(identity.generation);
        Ok(self.store.put(&key, identity.encode()?, &UserMetadata::new()).await?)
    }

    /// [`RepoError::LostIdentity`] where generations hold something. To be asked when there is no identity.
    pub async fn refuse_lost_identity(&self) -> Result<(), RepoError> {
        match self.any_generation_data().await? {
            Some(example) => Err(RepoError::LostIdentity { repository: self.describe(), example }),
            None => Ok(()),
        }
    }

    /// The name of something that generations hold. Their names begin with digits; what sorts before those is passed over.
    /// Of what lies among them without being theirs a page is looked at: where there is more, it counts as theirs.
    async fn any_generation_data(&self) -> Result<Option<String>, RepoError> {
        let root = self.layout.root();
        let (first, behind) = (format!("{root}0"), format!("{root}:"));
        let mut looked = 0;
        let mut example = None;
        self.store
            .visit_after(root, Some(&first), PAGE, |listed| {
                looked += 1;
                if listed.name >= behind {
                    return Visit::Enough;
                }
                if self.layout.is_generation_data(&listed.name) || looked >= PAGE {
                    example = Some(listed.name.clone());
                    return Visit::Enough;
                }
                Visit::More
            })
            .await?;
        Ok(example)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::ObjectStore;
    use crate::storage::memory::MemoryStore;
    use std::sync::Arc;

    fn ident(system_id: u64, major: u32) -> ClusterIdent {
        ClusterIdent { system_id: SystemId(system_id), major: major.try_into().unwrap() }
    }

    fn writer() -> Writer {
        Writer { host: "db1".into(), pid: 1, version: "test" }
    }

    fn repository() -> (Arc<MemoryStore>, Repository) {
        let store = Arc::new(MemoryStore::default());
        (Arc::clone(&store), Repository::new(store, "main".parse().unwrap()))
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn the_first_push_begins_generation_1_and_strangers_are_refused() {
        run(async {
            let (_, repository) = repository();
            let now = Timestamp::UNIX_EPOCH;
            assert!(matches!(repository.find_generation(ident(7, 15)).await, Err(RepoError::NoIdentity { .. })));
            for _ in 0..2 {
                let generation = repository.find_or_begin(ident(7, 15), now, &writer()).await.unwrap();
                assert_eq!(generation, Generation(1));
            }
            for stranger in [ident(8, 15), ident(7, 16)] {
                let error = repository.find_or_begin(stranger, now, &writer()).await.unwrap_err();
                assert!(matches!(error, RepoError::ForeignCluster { .. }), "{error}");
            }
        });
    }

    #[test]
    fn generations_are_opened_once_for_each_cluster() {
        run(async {
            let (_, repository) = repository();
            let now = Timestamp::UNIX_EPOCH;
            assert!(repository.open_generation(ident(7, 15), now, &writer()).await.is_err());
            repository.find_or_begin(ident(7, 15), now, &writer()).await.unwrap();
            assert_eq!(repository.open_generation(ident(9, 16), now, &writer()).await.unwrap(), Generation(2));
            assert!(repository.open_generation(ident(9, 16), now, &writer()).await.is_err());
            assert_eq!(repository.find_generation(ident(9, 16)).await.unwrap(), Generation(2));
            assert_eq!(repository.find_generation(ident(7, 15)).await.unwrap(), Generation(1));
            assert_eq!(repository.read_identities().await.unwrap().newest().unwrap().generation, Generation(2));
        });
    }

    #[test]
    fn data_without_an_identity_is_not_adopted() {
        run(async {
            let (store, repository) = repository();
            let key = "main/1/wal/00000001/00000000/000000010000000000000001.zst".parse().unwrap();
            store.put(&key, Bytes::from_static(b"x"), &UserMetadata::new()).await.unwrap();
            let error = repository.find_or_begin(ident(7, 15), Timestamp::UNIX_EPOCH, &writer()).await.unwrap_err();
            assert!(matches!(error, RepoError::LostIdentity { .. }), "{error}");
        });
    }

    /// Names that sort before and among those of generations must not hide what these hold.
    #[test]
    fn stray_names_do_not_hide_data_without_an_identity() {
        run(async {
            let data = "main/2/wal/00000001/00000000/000000010000000000000001.zst";
            let strays = ["main/-x/note", "main/0", "main/00/x", "main/01/x", "main/1", "main/1-old/x", "main/10"];
            for with_data in [false, true] {
                let (store, repository) = repository();
                for key in strays.iter().copied().chain(with_data.then_some(data)) {
                    store.put(&key.parse().unwrap(), Bytes::from_static(b"x"), &UserMetadata::new()).await.unwrap();
                }
                let begun = repository.find_or_begin(ident(7, 15), Timestamp::UNIX_EPOCH, &writer()).await;
                match with_data {
                    false => assert_eq!(begun.unwrap(), Generation(1)),
                    true => assert!(matches!(begun, Err(RepoError::LostIdentity { .. })), "{begun:?}"),
                }
            }
            // Too many to be looked through: in doubt it is refused.
            let (store, repository) = repository();
            for number in 0..PAGE {
                let key = format!("main/0-{number}").parse().unwrap();
                store.put(&key, Bytes::from_static(b"x"), &UserMetadata::new()).await.unwrap();
            }
            let begun = repository.find_or_begin(ident(7, 15), Timestamp::UNIX_EPOCH, &writer()).await;
            assert!(matches!(begun, Err(RepoError::LostIdentity { .. })), "{begun:?}");
        });
    }

    #[test]
    fn a_damaged_identity_is_an_error_not_an_absence() {
        run(async {
            let (store, repository) = repository();
            repository.find_or_begin(ident(7, 15), Timestamp::UNIX_EPOCH, &writer()).await.unwrap();
            let key = "main/identity/1.json".parse().unwrap();
            store.corrupt(&key, |bytes| bytes.truncate(20));
            assert!(matches!(repository.find_generation(ident(7, 15)).await, Err(RepoError::Damaged { .. })));
            store.corrupt(&key, Vec::clear);
            assert!(matches!(repository.find_generation(ident(7, 15)).await, Err(RepoError::Damaged { .. })));
        });
    }
}
