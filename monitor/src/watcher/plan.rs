//! Planning of work: what is to be done to a slot is noted, and charged to its payer; a turn does
//! it.

use monitor_common::{grammar::control_file::ControlFile, protocol::ring::LossKind};

use crate::{
    registry::Account,
    source::Source,
    watcher::{
        Watcher,
        event::Cause,
        fair_queue::Payer,
        turn::{Task, Work},
    },
};

/// Victims of a group's OOMs that wait for delivery to followers.
const CAUSES: usize = 64;
/// Accounts with registrations on one slot that are known one by one; further ones pay as the
/// subtree does.
const KNOWN: usize = 15;
/// Levels that are climbed to find the subtree of a group.
const LEVELS: usize = 64;

/// The accounts with registrations on a slot.
#[derive(Debug)]
pub(super) enum Payers {
    One(Account),
    Several {
        accounts: Vec<Account>,
        /// Whether there are further accounts.
        more: bool,
        /// The slot of the group two levels below the root.
        subtree: u32,
    },
}

impl<S: Source> Watcher<S> {
    /// Notes that a slot is to be looked at, since a doorbell rang at `rung` (`bpf_ktime_get_ns`;
    /// 0: not known), or a sweep found it. The cost does not grow with the number of calls.
    pub fn ring(&mut self, slot: u32, rung: u64) {
        self.plan(slot, |work| {
            work.look = true;
            work.rung = work.rung.or((rung != 0).then_some(rung));
        });
    }

    pub(super) fn plan(&mut self, slot: u32, change: impl FnOnce(&mut Work)) {
        match self.works.get_mut(&slot) {
            Some(work) => change(work),
            None => {
                let mut work = Work::default();
                change(&mut work);
                self.works.insert(slot, work);
                self.queue(slot);
            }
        }
    }

    /// Notes that an account has a registration on a slot from now on.
    pub(super) fn shares(&mut self, slot: u32, account: Account) {
        match self.payers.get_mut(&slot) {
            None => drop(self.payers.insert(slot, Payers::One(account))),
            Some(Payers::One(other)) if *other == account => {}
            Some(Payers::One(other)) => {
                let accounts = vec![*other, account];
                // At most once for a slot, so up to the root, however far that is.
                let subtree = self.subtree_of(slot, usize::MAX).unwrap_or(slot);
                self.payers.insert(slot, Payers::Several { accounts, more: false, subtree });
            }
            Some(Payers::Several { accounts, .. }) if accounts.contains(&account) => {}
            Some(Payers::Several { accounts, .. }) if accounts.len() < KNOWN => accounts.push(account),
            Some(Payers::Several { more, .. }) => *more = true,
        }
    }

    pub(super) fn queue(&mut self, slot: u32) {
        let payer = self.payer_of_slot(slot);
        self.turns.push(payer, Task::Slot(slot));
        self.work.notify_one();
    }

    /// Plans to move the thresholds on a slot with their limit.
    pub(super) fn plan_follow(&mut self, slot: u32) {
        self.plan(slot, |work| work.follow = true);
    }

    /// Plans a first look at thresholds that were taken over.
    pub(super) fn plan_settle(&mut self, slot: u32) {
        self.plan(slot, |work| work.settle = true);
    }

    /// Plans to end the hold-offs on a slot that are over, or all of them.
    pub(super) fn plan_wake(&mut self, slot: u32, all: bool) {
        self.plan(slot, |work| work.wake = Some(all || work.wake.unwrap_or(false)));
    }

    /// Plans the step to a sampled quantity of the group in a slot.
    pub(super) fn plan_sample(&mut self, slot: u32, file: ControlFile, now: u64) {
        self.plan(slot, |work| {
            work.sampled.retain(|(of, _)| *of != file);
            work.sampled.push((file, now));
        });
    }

    /// Plans to deliver an explanation to the followers of OOMs.
    pub(super) fn plan_explanation(&mut self, slot: u32, cause: Cause) {
        let mut has_room = true;
        self.plan(slot, |work| {
            // The OOM itself first: its doorbell rang before.
            work.look = true;
            has_room = work.causes.len() < CAUSES;
            if has_room {
                work.causes.push_back(cause);
            }
        });
        if !has_room {
            self.source.count(LossKind::VictimsDropped, 1);
        }
    }

    /// The payer of a slot's work: of the accounts with registrations there, the one that has had
    /// least time lately, so that none delays the others, nor has more because they are several.
    /// Without registrations, it is the subtree two levels below the root, such as a user's or a
    /// service's.
    pub(super) fn payer_of_slot(&self, slot: u32) -> Payer {
        match self.payers.get(&slot) {
            Some(Payers::One(account)) => Payer::Account(*account),
            Some(Payers::Several { accounts, more, subtree }) => {
                let all = accounts.iter().map(|account| Payer::Account(*account));
                let all = all.chain(more.then_some(Payer::Subtree(*subtree)));
                all.min_by_key(|payer| self.turns.had(*payer)).unwrap_or(Payer::House)
            }
            None => self.subtree_of(slot, LEVELS).map_or(Payer::House, Payer::Subtree),
        }
    }

    /// The payer of a slot's sampling, which sets the pace of all samples of that payer; so what
    /// several accounts registered is charged to none of them.
    pub(super) fn payer_of_samples(&self, slot: u32) -> Payer {
        match self.payers.get(&slot) {
            Some(Payers::One(account)) => Payer::Account(*account),
            Some(Payers::Several { subtree, .. }) => Payer::Subtree(*subtree),
            None => Payer::House,
        }
    }

    /// The group two levels below the root that a group is in or is; the group itself where it is
    /// higher; `None` where the root is more than `levels` above.
    fn subtree_of(&self, slot: u32, levels: usize) -> Option<u32> {
        let mut line = [slot; 3];
        for _ in 0..levels {
            let Some(above) = self.above(line[2]) else { return Some(line[0]) };
            line = [line[1], line[2], above];
        }
        None
    }
}
