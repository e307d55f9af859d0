//! A lease for as long as a command works, which may be longer than a lease counts.

use std::convert::Infallible;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use super::Circumstances;
use crate::repo::Repository;
use crate::repo::lease::{Lease, VALID};
use crate::storage::ObjectKey;

/// What `expire` is told, again and again.
pub(super) struct Holding<'a> {
    repository: &'a Repository,
    lease: Lease,
    pid: u32,
    now: Timestamp,
    /// Until when nobody may run `expire` if it cannot be told.
    until: &'static str,
    keys: Vec<ObjectKey>,
}

/// Three of four may fail.
const AGAIN: Duration = Duration::from_secs(VALID.as_secs() / 4);

impl<'a> Holding<'a> {
    /// Takes the lease. A role that may not write is no reason to stop.
    pub(super) async fn take(
        repository: &'a Repository,
        lease: Lease,
        circumstances: &Circumstances,
        until: &'static str,
    ) -> Self {
        let (pid, now) = (circumstances.writer.pid, circumstances.now);
        let mut holding = Holding { repository, lease, pid, now, until, keys: Vec::new() };
        holding.tell().await;
        holding
    }

    /// Renews it until the work is done.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            never = self.renew() => match never {},
        }
    }

    /// Ends it. What a role may not delete counts no longer after a day, and `expire` collects it.
    pub(super) async fn release(self) {
        for key in &self.keys {
            if let Err(error) = self.repository.release(key).await {
                tracing::info!("the lease `{key}` counts for a day: {error}");
            }
        }
    }

    async fn renew(&mut self) -> Infallible {
        loop {
            sleep(AGAIN).await;
            self.now = self.now.saturating_add(AGAIN).unwrap_or(self.now);
            self.tell().await;
        }
    }

    async fn tell(&mut self) {
        match self.repository.hold(&self.lease, self.now, self.pid).await {
            Ok(key) => self.keys.push(key),
            Err(error) => tracing::warn!(
                "`expire` cannot be told that `{}` is in use: do not run it until {} ({error})",
                self.lease.backup,
                self.until
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Lsn;
    use crate::repo::{Generation, Writer};
    use crate::storage::memory::MemoryStore;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn there_is_a_young_lease_at_any_time_of_long_work() {
        let repository = Repository::new(Arc::new(MemoryStore::default()), "main".parse().unwrap());
        let writer = Writer { host: "db1".into(), pid: 7, version: "0" };
        let circumstances = Circumstances { now: Timestamp::now(), writer };
        let id = "20261122T231805Z-0a1b2c3d".parse().unwrap();
        let lease = Lease::new(Generation::FIRST, id, Lsn(40), None, "db1".into());
        let mut holding = Holding::take(&repository, lease.clone(), &circumstances, "then").await;
        for hours in [5, 31, 100] {
            let before = repository.all_leases().await.unwrap().len();
            holding.during(sleep(Duration::from_secs(hours * 3600))).await;
            let after = repository.all_leases().await.unwrap();
            assert_eq!(after.len() - before, hours as usize / 6);
            assert!(after.iter().all(|held| held.lease.as_ref() == Some(&lease)));
        }
        holding.release().await;
        assert_eq!(repository.all_leases().await.unwrap(), []);
    }
}
