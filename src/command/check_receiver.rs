//! Whether `wal-receive` streams, and what its slot does to the server: a receiver that is away makes the server keep WAL, until its
//! disk is full or the slot is lost.

use super::check::{Finding, Level};
use crate::server::receivers::{Receiving, SlotFacts};

const CHECK: &str = "receiver";
/// A receiver that is so many bytes behind does not keep up.
const FAR_BEHIND: i64 = 64 << 20;
/// So much that a slot without a receiver keeps is more than a restart's.
const MUCH: i64 = 256 << 20;

/// Judges what a server with a receiver, or the slot of one, says; `None`: it has neither.
pub fn judge(receiving: &Receiving) -> Option<Finding> {
    let warning = |message: String, hint: &str| Some(Finding::not_ok(CHECK, Level::Warning, message, hint));
    if let Some(trouble) = trouble(receiving) {
        return Some(trouble);
    }
    let behind = match (receiving.durable, receiving.behind) {
        (Some(durable), behind) => {
            format!("WAL is streamed, durable up to {durable}, {} behind", bytes(behind.unwrap_or(0)))
        }
        (None, _) => {
            let slot = receiving.slot.as_ref()?;
            let name = &slot.name;
            return warning(
                format!("slot `{name}` is in use, but what its receiver has stored is not shown to this user"),
                "members of pg_monitor may know",
            );
        }
    };
    if receiving.slot.is_none() {
        return warning(
            format!("{behind}; without a slot: WAL that the server removes while the receiver is away is lost"),
            "`pgark wal-receive --create-slot` makes one",
        );
    }
    if receiving.keep_limit < 0 {
        return warning(
            format!(
                "{behind}; max_slot_wal_keep_size is not set: while the receiver is away WAL fills the server's disk"
            ),
            "set `max_slot_wal_keep_size` to what the disk can spare; past it the slot is lost, and there is a gap",
        );
    }
    Some(Finding::ok(CHECK, behind))
}

/// What is wrong; `None`: nothing shows that.
pub fn trouble(receiving: &Receiving) -> Option<Finding> {
    let not_ok = |level, message: String, hint: &str| Some(Finding::not_ok(CHECK, level, message, hint));
    if let Some(SlotFacts { name, active, wal_status, kept }) = &receiving.slot {
        let kept = kept.unwrap_or(0);
        match wal_status.as_deref() {
            Some("lost") => {
                return not_ok(
                    Level::Fail,
                    format!("slot `{name}` is lost: WAL that nobody has stored was removed"),
                    "take a backup now; drop the slot and start `pgark wal-receive --create-slot`, which records the gap",
                );
            }
            Some("unreserved") => {
                return not_ok(
                    Level::Fail,
                    format!("slot `{name}` keeps {} and is about to be lost", bytes(kept)),
                    "let the receiver catch up at once, or raise `max_slot_wal_keep_size`",
                );
            }
            _ if !active => {
                let level = if kept >= MUCH { Level::Fail } else { Level::Warning };
                return not_ok(
                    level,
                    format!("nobody streams from slot `{name}`, which makes the server keep {} of WAL", bytes(kept)),
                    "start `pgark wal-receive`; if it is not wanted any more: `select pg_drop_replication_slot(...)`",
                );
            }
            _ => {}
        }
    }
    let behind = receiving.behind.filter(|behind| *behind >= FAR_BEHIND)?;
    not_ok(
        Level::Warning,
        format!("the receiver is {} behind", bytes(behind)),
        "its log says whether the store, the network or the processor is the bound",
    )
}

fn bytes(count: i64) -> String {
    bytesize::ByteSize::b(u64::try_from(count).unwrap_or(0)).display().iec().to_string()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::command) fn receiving() -> Receiving {
        let slot =
            SlotFacts { name: "pgark".into(), active: true, wal_status: Some("reserved".into()), kept: Some(1 << 20) };
        Receiving { durable: Some("0/5000000".parse().unwrap()), behind: Some(100), slot: Some(slot), keep_limit: 1024 }
    }

    #[track_caller]
    fn level(change: impl FnOnce(&mut Receiving), expected: Option<Level>, said: &str) {
        let mut facts = receiving();
        change(&mut facts);
        let finding = judge(&facts);
        let found = finding.as_ref().map(|finding| finding.level);
        assert!(found == expected && finding.as_ref().is_none_or(|f| f.message.contains(said)), "{finding:?}");
    }

    fn slot(change: impl FnOnce(&mut SlotFacts)) -> impl FnOnce(&mut Receiving) {
        move |facts| change(facts.slot.as_mut().unwrap())
    }

    #[test]
    fn a_receiver_is_judged_by_its_slot_and_its_lag() {
        level(|_| {}, Some(Level::Ok), "durable up to 0/5000000, 100 B behind");
        level(|facts| facts.behind = Some(100 << 20), Some(Level::Warning), "100.0 MiB behind");
        level(|facts| facts.keep_limit = -1, Some(Level::Warning), "fills the server's disk");
        level(|facts| facts.slot = None, Some(Level::Warning), "without a slot");
        level(|facts| facts.durable = None, Some(Level::Warning), "not shown to this user");
        level(slot(|slot| slot.active = false), Some(Level::Warning), "nobody streams");
        level(slot(|slot| (slot.active, slot.kept) = (false, Some(1 << 30))), Some(Level::Fail), "1.0 GiB of WAL");
        level(slot(|slot| slot.wal_status = Some("unreserved".into())), Some(Level::Fail), "about to be lost");
        let lost = |slot: &mut SlotFacts| (slot.active, slot.wal_status) = (false, Some("lost".into()));
        level(slot(lost), Some(Level::Fail), "is lost");
        level(|facts| (facts.durable, facts.behind, facts.slot) = (None, None, None), None, "");
    }
}
