//! The half of `check` that asks the store: reach, rights, conditional writes, checksums, clock.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use super::Circumstances;
use super::check::{Check, Finding, Findings, Level};
use super::failure::Failure;
use crate::repo::{RepoError, Repository};
use crate::storage::object_store::{Damage, Visit};
use crate::storage::{Get, Head, KeyPrefix, ObjectKey, ObjectStore, ObjectStoreExt, Put, StoreError, UserMetadata};

/// Adds what is found; gives the repository if it can be reached.
pub(super) async fn ask(check: &Check, circumstances: &Circumstances, findings: &Findings) -> Option<Repository> {
    let repository = match check.repository.open().await {
        Ok(repository) => repository,
        Err(error) => {
            findings.add(Finding::failed("store", error.into()));
            return None;
        }
    };
    let store = repository.store.as_ref();
    if let Err(error) = store.list(repository.layout.root(), None, 1).await {
        findings.add(Finding::failed("store", error.into()));
        return None;
    }
    findings.add(Finding::ok("store", format!("{} can be reached and listed", repository.describe())));
    findings.add(identity(&repository).await);
    let name = format!("{}-{}", circumstances.now.as_nanosecond(), circumstances.writer.pid);
    match (repository.layout.record("probe", &name), repository.layout.record("probe", &format!("{name}-missing"))) {
        (Ok(probe), Ok(missing)) => {
            findings.add(absence(store, &missing).await);
            writes(&repository, &probe, &missing, circumstances.now, findings).await;
        }
        (Err(error), _) | (_, Err(error)) => {
            findings.add(Finding::not_ok("write", Level::Fail, error.to_string(), "choose another cluster name"));
        }
    }
    Some(repository)
}

async fn identity(repository: &Repository) -> Finding {
    match repository.read_identities().await {
        Ok(identities) => {
            let known: Vec<String> =
                identities.all().iter().map(|i| format!("generation {}: {}", i.generation, i.ident())).collect();
            Finding::ok("identity", known.join("; "))
        }
        Err(RepoError::NoIdentity { .. }) => match repository.refuse_lost_identity().await {
            Ok(()) => Finding::not_ok(
                "identity",
                Level::Warning,
                "nothing was archived here yet",
                "set `archive_command` and switch a segment: the first push writes the identity",
            ),
            Err(error) => Finding::failed("identity", error.into()),
        },
        Err(error) => Finding::failed("identity", error.into()),
    }
}

/// Without the right to list, S3 answers 403 for a missing object: then nothing can ever be proven absent.
async fn absence(store: &dyn ObjectStore, missing: &ObjectKey) -> Finding {
    match store.get(missing, 0, None).await {
        Ok(Get::Missing) => Finding::ok("absence", "a missing object is reported as missing"),
        Ok(Get::Found(_)) => {
            Finding::not_ok("absence", Level::Fail, format!("`{missing}` is there"), "is a proxy answering?")
        }
        Err(error) => {
            let failure = Failure::from(error);
            let hint = "the role needs s3:ListBucket: without it absence cannot be proven, and recovery cannot end";
            Finding::not_ok("absence", Level::Fail, failure.message, hint)
        }
    }
}

async fn writes(repository: &Repository, probe: &ObjectKey, other: &ObjectKey, now: Timestamp, findings: &Findings) {
    let store = repository.store.as_ref();
    let (first, second) = (b"first".as_slice(), b"second".as_slice());
    match store.put(probe, first.into(), &UserMetadata::new()).await {
        Ok(Put::Created) => {}
        Ok(Put::Exists) => {
            let message = format!("`{probe}` was there before");
            return findings.add(Finding::not_ok("write", Level::Fail, message, "run check again"));
        }
        Err(error) => return findings.add(Finding::failed("write", error.into())),
    }
    findings.add(Finding::ok("write", "an object can be written"));
    findings.add(conditional_writes(store, probe, first, second).await);
    findings.add(listing(store, repository.layout.root(), probe).await);
    findings.add(ranges(store, probe, first).await);
    findings.add(large_objects(store, probe).await);
    findings.add(checksums(store, other).await);
    findings.add(clock(store, probe, now).await);
    for key in [probe, other] {
        if let Err(error) = store.delete(key).await {
            let message = format!("an object cannot be deleted ({error}); archiving does not need to, `expire` does");
            return findings.add(Finding::ok("delete", message));
        }
    }
    findings.add(Finding::ok("delete", "an object can be deleted"));
}

async fn conditional_writes(store: &dyn ObjectStore, probe: &ObjectKey, first: &[u8], second: &[u8]) -> Finding {
    const CHECK: &str = "conditional-writes";
    let again = store.put(probe, second.to_vec().into(), &UserMetadata::new()).await;
    let kept = store.read_small(probe, 100).await;
    match (again, kept) {
        (Ok(Put::Exists), Ok(Some(bytes))) if bytes == first && store.conditional_writes() => {
            Finding::ok(CHECK, "a second write does not replace an object")
        }
        (Ok(Put::Exists), Ok(Some(bytes))) if bytes == first => Finding::not_ok(
            CHECK,
            Level::Warning,
            "`conditional_put = \"head-then-put\"`: two writers at the same moment could both win",
            "leave it away if the store knows `If-None-Match` by now",
        ),
        (Err(error), _) | (_, Err(error)) => Finding::failed(CHECK, error.into()),
        _ => Finding::not_ok(
            CHECK,
            Level::Fail,
            "the store ignores `If-None-Match`: a second write replaced the object, so archived WAL could be overwritten",
            "use a store with conditional writes, or accept the risk with `conditional_put = \"head-then-put\"` under `[repo]`",
        ),
    }
}

async fn checksums(store: &dyn ObjectStore, key: &ObjectKey) -> Finding {
    const CHECK: &str = "checksums";
    let hint = "reach the store by https, which notices damage on the way";
    match store.refuses_damage(key).await {
        Ok(Damage::NoNetwork) => Finding::ok(CHECK, "bytes do not cross a network"),
        Ok(Damage::Refused) => Finding::ok(CHECK, "an upload with a wrong checksum is refused"),
        Ok(Damage::Accepted) => Finding::not_ok(
            CHECK,
            Level::Warning,
            "the store does not check `x-amz-checksum-sha256`: damage on the way in would be seen only when reading",
            hint,
        ),
        Ok(Damage::Unclear(code)) => Finding::not_ok(
            CHECK,
            Level::Unknown,
            format!("an upload with a wrong checksum is refused, but for another reason (`{code}`)"),
            hint,
        ),
        Err(error) => Finding::not_ok(CHECK, Level::Unknown, error.message, hint),
    }
}

/// Objects above 32 MiB go in parts: is the last step, which makes the object, refused where one is?
async fn large_objects(store: &dyn ObjectStore, probe: &ObjectKey) -> Finding {
    const CHECK: &str = "large-objects";
    match store.put_in_parts(probe, Bytes::from_static(b"third")).await {
        Ok(None) => Finding::ok(CHECK, "they are written as all others are"),
        Ok(Some(Put::Exists)) => Finding::ok(CHECK, "a write in parts does not replace an object"),
        Ok(Some(Put::Created)) => Finding::not_ok(
            CHECK,
            Level::Fail,
            "the store ignores `If-None-Match` where an upload in parts is completed: archived WAL could be overwritten",
            "use a store with conditional writes in both ways: WAL segments above 32 MiB and base backups go in parts",
        ),
        Err(error) => Finding::failed(CHECK, error.into()),
    }
}

/// Absence is proven by listings: a new object must be in one at once.
async fn listing(store: &dyn ObjectStore, root: &KeyPrefix, probe: &ObjectKey) -> Finding {
    const CHECK: &str = "listing";
    // Sorts before the probe, and behind nearly everything else.
    let before = &probe.as_str()[..probe.as_str().len() - 1];
    let mut seen = false;
    let listed = store
        .visit_after(root, Some(before), 10, |listed| {
            seen |= listed.name == probe.as_str();
            if listed.name.as_str() >= probe.as_str() { Visit::Enough } else { Visit::More }
        })
        .await;
    match (listed, seen) {
        (Ok(()), true) => Finding::ok(CHECK, "a new object is listed at once"),
        (Ok(()), false) => Finding::not_ok(
            CHECK,
            Level::Fail,
            format!("`{probe}` was written but is not listed: a segment just archived would look absent"),
            "use a store whose listings show every write at once",
        ),
        (Err(error), _) => Finding::failed(CHECK, error.into()),
    }
}

/// A broken download goes on where it stopped, if it is still the same object.
async fn ranges(store: &dyn ObjectStore, probe: &ObjectKey, content: &[u8]) -> Finding {
    const CHECK: &str = "ranges";
    let from = content.len() / 2;
    let read = async {
        let Head::Found(meta) = store.head(probe).await? else { return Ok::<_, StoreError>(None) };
        match store.get(probe, from as u64, meta.etag.as_deref()).await? {
            Get::Found(object) => store.read_start(probe, object, content.len()).await.map(Some),
            Get::Missing => Ok(None),
        }
    };
    match read.await {
        Ok(Some(bytes)) if bytes == content[from..] => Finding::ok(CHECK, "an object can be read from its middle on"),
        Ok(_) => Finding::not_ok(
            CHECK,
            Level::Fail,
            "a read from the middle of an object gives something else: a broken download could not go on",
            "is a proxy or cache between that does not pass `Range` and `If-Match` on?",
        ),
        Err(error) => Finding::failed(CHECK, Failure::from(error)),
    }
}

async fn clock(store: &dyn ObjectStore, probe: &ObjectKey, now: Timestamp) -> Finding {
    let modified = match store.head(probe).await {
        Ok(Head::Found(meta)) => meta.modified.and_then(|time| Timestamp::try_from(time).ok()),
        Ok(Head::NotSeen) => None,
        Err(error) => return Finding::failed("clock", error.into()),
    };
    let Some(modified) = modified else {
        return Finding::not_ok("clock", Level::Unknown, "the store names no time", "compare the clocks by hand");
    };
    let skew = modified.duration_since(now).abs();
    let seconds = skew.as_secs();
    if skew <= SignedDuration::from_secs(60) {
        Finding::ok("clock", format!("this machine's clock and the store's differ by {seconds} s"))
    } else {
        let level = if seconds > 15 * 60 { Level::Fail } else { Level::Warning };
        let message = format!("this machine's clock and the store's differ by {seconds} s");
        Finding::not_ok("clock", level, message, "set the clock, for example by NTP; S3 refuses more than 15 minutes")
    }
}
