//! What comes: which backup the policy lets go next, and when, if nothing new is stored. It asks the plan of `expire` itself.

use jiff::{SignedDuration, Timestamp};

use super::backup_id::BackupId;
use super::holdings::Holdings;
use super::lease::VALID;
use super::policy::Policy;
use super::retention::{ExpirePlan, GRACE};

/// A whole backup that stays now, and the moment from which it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextToGo {
    /// Which.
    pub backup: BackupId,
    /// When, by the store's clock, to the second.
    pub at: Timestamp,
}

/// The next backup to go after what a plan of now deletes; `None`: by time alone none ever goes.
pub fn next_to_go(holdings: &Holdings, policy: &Policy, plan: &ExpirePlan, now: Timestamp) -> Option<NextToGo> {
    let gone: Vec<BackupId> = plan.delete.iter().filter_map(|deletion| deletion.what.backup()).collect();
    let goes_by = |seconds: i64| {
        let later = ExpirePlan::make(holdings, policy, after(now, SignedDuration::from_secs(seconds)));
        later.delete.iter().filter_map(|deletion| deletion.what.backup()).find(|id| !gone.contains(id))
    };
    let (mut stays, mut goes) = (0, horizon(holdings, policy, now));
    let mut backup = goes_by(goes)?;
    while goes - stays > 1 {
        let middle = stays + (goes - stays) / 2;
        match goes_by(middle) {
            Some(id) => (goes, backup) = (middle, id),
            None => stays = middle,
        }
    }
    Some(NextToGo { backup, at: after(now, SignedDuration::from_secs(goes)) })
}

fn after(now: Timestamp, age: SignedDuration) -> Timestamp {
    now.checked_add(age).unwrap_or(Timestamp::MAX)
}

/// So many seconds from now on nothing changes any more: all ages, leases and marks are over.
fn horizon(holdings: &Holdings, policy: &Policy, now: Timestamp) -> i64 {
    let ages = [policy.keep_within, policy.wal_within].into_iter().flatten();
    let ages = ages.max().unwrap_or_default().saturating_add(GRACE + VALID).as_secs();
    let marks = holdings.marks.values().filter_map(|mark| mark.until).max();
    let last = marks.into_iter().chain(holdings.newest()).max().unwrap_or(now).max(now);
    let wait = last.duration_since(now).as_secs().saturating_add_unsigned(ages).saturating_add(2);
    wait.min(Timestamp::MAX.duration_since(now).as_secs())
}

#[cfg(test)]
mod tests {
    use super::super::retention_world::{World, hour};
    use super::*;

    /// Against a walk from hour to hour: times in these worlds are whole hours.
    #[test]
    fn the_next_backup_goes_when_the_plan_of_that_moment_deletes_it() {
        let (mut some, mut none) = (0, 0);
        for seed in 0..100 {
            let mut world = World::random(seed);
            let policy = world.policy();
            let now = hour(world.now);
            let plan = ExpirePlan::make(&world.holdings, &policy, now);
            let ids = |plan: &ExpirePlan| -> Vec<BackupId> {
                plan.delete.iter().filter_map(|deletion| deletion.what.backup()).collect()
            };
            let gone = ids(&plan);
            let walked = (0..1200).find_map(|hours| {
                // A moment behind the hour: an age must be over, not just reached.
                let at = hour(world.now + hours) + SignedDuration::from_secs(1);
                let later = ids(&ExpirePlan::make(&world.holdings, &policy, at));
                later.into_iter().find(|id| !gone.contains(id)).map(|id| (hours, id))
            });
            let found = next_to_go(&world.holdings, &policy, &plan, now);
            let hours = |next: NextToGo| (next.at.duration_since(now).as_secs() - 1).div_euclid(3600).max(0);
            match (found, walked) {
                (Some(next), Some((at, id))) => {
                    // A mark is over when its time is reached, so a second before.
                    let close =
                        (hours(next) - at).abs() <= 1 && (next.at.duration_since(now).as_secs() - at * 3600).abs() <= 1;
                    assert!(close && next.backup == id, "seed {seed}: {next:?}, but {at} hours, {id}");
                    some += 1;
                }
                (None, None) => none += 1,
                both => panic!("seed {seed}: {both:?}"),
            }
        }
        assert!(some > 15 && none > 15, "{some} {none}");
    }
}
