//! What is to be done to a slot is noted, and charged to whom it is for; a turn does it.

use monitor_common::{control::ControlFile, ring::Tally};

use crate::{
    registry::Account,
    source::Source,
    watcher::{
        Watcher,
        event::Cause,
        turns::Payer,
        work::{Task, Work},
    },
};

/// Victims of a group's OOMs that wait to be told to those who follow.
const CAUSES: usize = 64;
/// Levels that are climbed to find out whose subtree a group is in.
const LEVELS: usize = 64;

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

    /// `owner` has a registration on a slot from now on.
    pub(super) fn shares(&mut self, slot: u32, account: Account) {
        let payer = self.payers.entry(slot).or_insert(Payer::Account(account));
        if *payer != Payer::Account(account) {
            *payer = Payer::Subtree(slot);
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
            self.source.count(Tally::VictimsDropped, 1);
        }
    }

    /// Who pays for a slot's work; where nobody waits, who shares the subtree two levels below
    /// the root, as a user's or a service's is.
    fn payer_of_slot(&self, slot: u32) -> Payer {
        if let Some(payer) = self.payers.get(&slot) {
            return *payer;
        }
        let line: Vec<u32> =
            std::iter::successors(Some(slot), |slot| self.above(*slot)).take(LEVELS).collect();
        match line.len() {
            LEVELS.. => Payer::House,
            levels => line.get(levels.saturating_sub(3)).map_or(Payer::House, |slot| Payer::Subtree(*slot)),
        }
    }
}
