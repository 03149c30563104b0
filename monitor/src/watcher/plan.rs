//! What is to be done to a slot is noted, and charged to whom it is for; a turn does it.

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

/// Victims of a group's OOMs that wait to be told to those who follow.
const CAUSES: usize = 64;
/// Accounts with registrations on one slot that are known each; what more there are pay as
/// the subtree does.
const KNOWN: usize = 15;
/// Levels that are climbed to find out whose subtree a group is in.
const LEVELS: usize = 64;

/// Whose registrations are on a slot.
#[derive(Debug)]
pub(super) enum Payers {
    One(Account),
    Several {
        accounts: Vec<Account>,
        /// There are others.
        more: bool,
        /// Two levels below the root.
        subtree: u32,
    },
}

impl<S: Source> Watcher<S> {
    /// A slot is to be looked at, since a doorbell rang at `rung` (`bpf_ktime_get_ns`; 0:
    /// not known), or a sweep came by. Costs the same however often it is called.
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

    /// An account has a registration on a slot from now on.
    pub(super) fn shares(&mut self, slot: u32, account: Account) {
        match self.payers.get_mut(&slot) {
            None => drop(self.payers.insert(slot, Payers::One(account))),
            Some(Payers::One(other)) if *other == account => {}
            Some(Payers::One(other)) => {
                let accounts = vec![*other, account];
                // No more than once for a slot, so to the root however far that is.
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

    /// Thresholds there are moved by a limit.
    pub(super) fn plan_follow(&mut self, slot: u32) {
        self.plan(slot, |work| work.follow = true);
    }

    /// Thresholds there were taken over.
    pub(super) fn plan_settle(&mut self, slot: u32) {
        self.plan(slot, |work| work.settle = true);
    }

    /// Rests there end, or all do.
    pub(super) fn plan_wake(&mut self, slot: u32, all: bool) {
        self.plan(slot, |work| work.wake = Some(all || work.wake.unwrap_or(false)));
    }

    /// A quantity of the group there was read.
    pub(super) fn plan_sample(&mut self, slot: u32, file: ControlFile, now: u64) {
        self.plan(slot, |work| {
            work.sampled.retain(|(of, _)| *of != file);
            work.sampled.push((file, now));
        });
    }

    /// Those who follow are to be told.
    pub(super) fn plan_telling(&mut self, slot: u32, cause: Cause) {
        let mut has_room = true;
        self.plan(slot, |work| {
            // The OOM itself first: its doorbell came before.
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

    /// Who pays for a slot's work: whose registrations are there; of several, who has had
    /// least lately, so that none of them has the others wait, nor has more by their number.
    /// Where nobody waits, who shares the subtree two levels below the root, as a user's or a
    /// service's is.
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

    /// Who pays for a slot's sampling: by it the pace of all of a payer's samples goes, so that
    /// what several have is not any one's.
    pub(super) fn payer_of_samples(&self, slot: u32) -> Payer {
        match self.payers.get(&slot) {
            Some(Payers::One(account)) => Payer::Account(*account),
            Some(Payers::Several { subtree, .. }) => Payer::Subtree(*subtree),
            None => Payer::House,
        }
    }

    /// The group two levels below the root that a group is in, or which it is; itself where it
    /// is higher; `None` where the root is more than `levels` above.
    fn subtree_of(&self, slot: u32, levels: usize) -> Option<u32> {
        let mut line = [slot; 3];
        for _ in 0..levels {
            let Some(above) = self.above(line[2]) else { return Some(line[0]) };
            line = [line[1], line[2], above];
        }
        None
    }
}
