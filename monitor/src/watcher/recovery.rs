//! Makes up for calls that the kernel's recursion guard kept from the programs, but for
//! charges, whose counters the sweep reads again.
//!
//! What a call may just be about to tell looks as if it was skipped. So what is found in one
//! sweep is told in the next, if it still is so then. Each sweep looks at so many groups and
//! no more; that a call is skipped is rare, whatever anybody does.

use std::collections::HashSet;

use monitor_common::{
    grammar::control_file::ControlFile,
    protocol::{
        oom::{self, BY_LIMIT_WRITE, Hold, hold_of},
        ring::LossKind,
        slot::{NOT_POPULATED, POPULATED, POPULATED_UNKNOWN},
        word::Word as _,
    },
};

use crate::{
    source::{GroupId, Misses, Source},
    watcher::{Watcher, sweep::Sweep},
};

/// Groups that are asked for in one sweep, of each kind.
const IN_A_SWEEP: usize = 256;

/// Groups that are looked for by their directories in one sweep: files have to be opened.
const LOOKED_FOR: usize = 32;

/// What was skipped, and how far that is made up for.
#[derive(Debug)]
pub(super) struct SkippedRuns {
    known: Misses,
    /// Slots from which on upwards the kernel's counts of OOMs are to be compared, and those
    /// compared in this round; and what the kernel had counted beyond ours.
    ooms: RecoveryRound,
    compared: HashSet<u32>,
    missed_ooms: Vec<(GroupId, u64)>,
    /// What was held when an end was skipped, as a sweep goes through the table, and then as
    /// it was at the end of one.
    noted: Vec<(u32, Hold)>,
    holds: Vec<(u32, Hold)>,
    /// The same of a sweep that was late: it may have ended just before the next one.
    late: Vec<(u32, Hold)>,
    /// How many OOMs had joined others in the sweep before the end was skipped, and in the
    /// last.
    joined_before: u64,
    joined: u64,
    /// Whether ends were skipped before the last sweep.
    ended: bool,
    /// What marks threads had then.
    marks: Vec<(u32, u64)>,
    /// Slots that may have gone.
    going: RecoveryRound,
    /// Slots that may have become empty; and those that seem to have.
    emptying: RecoveryRound,
    emptied: Vec<GroupId>,
}

impl SkippedRuns {
    /// What `known` counts is no news, nor that OOMs have `joined` others.
    pub(super) fn new(known: Misses, joined: u64) -> Self {
        Self {
            known,
            ooms: RecoveryRound::default(),
            compared: HashSet::new(),
            missed_ooms: Vec::new(),
            noted: Vec::new(),
            holds: Vec::new(),
            late: Vec::new(),
            joined_before: joined,
            joined,
            ended: false,
            marks: Vec::new(),
            going: RecoveryRound::default(),
            emptying: RecoveryRound::default(),
            emptied: Vec::new(),
        }
    }

    /// A slot is held; noted in a sweep.
    pub(super) fn note(&mut self, index: u32, hold: Hold) {
        self.noted.push((index, hold));
    }

    /// All that are held were noted: what is left of those before is among them.
    pub(super) fn have_noted(&mut self, is_late: bool) {
        let noted = std::mem::take(&mut self.noted);
        *(if is_late { &mut self.late } else { &mut self.holds }) = noted;
    }
}

/// Slots that one kind of skipped calls may have been for, a few in each sweep.
#[derive(Debug, Default)]
struct RecoveryRound {
    left: Vec<u32>,
    /// Some were skipped since these were listed. The next round begins when this one has
    /// ended: who skips calls in each sweep keeps nobody from having a turn.
    again: bool,
}

impl RecoveryRound {
    /// Whether a new one begins now.
    fn begins(&mut self) -> bool {
        self.left.is_empty() && std::mem::take(&mut self.again)
    }

    /// As many as one sweep takes; `all`: what a new round is of.
    fn some(&mut self, most: usize, all: impl FnOnce() -> Vec<u32>) -> Vec<u32> {
        if self.begins() {
            self.left = all();
        }
        self.left.split_off(self.left.len().saturating_sub(most))
    }
}

impl<S: Source> Watcher<S> {
    /// One sweep's part; true where what is held is to be noted.
    pub(super) fn make_up(&mut self, misses: &Misses) -> bool {
        let new = misses.since(&self.skips.known);
        self.skips.known = *misses;
        // What was found in the sweep before comes first.
        self.tell_missed_ooms();
        self.release_holds();
        if !self.skips.late.is_empty() {
            self.skips.holds = std::mem::take(&mut self.skips.late);
        }
        self.forget_marks();
        self.tell_emptied();

        let (begin, end) = (Misses::both(new.ooms), Misses::both(new.oom_ends));
        let written = Misses::both(new.limit_writes);
        // A thread that kept its mark of an OOM is not asked about the next one; nor in the
        // time from here to the next sweep, which takes the mark away.
        self.skips.ooms.again |= begin || end || self.skips.ended;
        self.skips.ended = end;
        let joined = self.source.tally(LossKind::OomJoined);
        let joined_before = std::mem::replace(&mut self.skips.joined, joined);
        if end && !self.sweep.as_ref().is_some_and(Sweep::notes_holds) {
            // It may have been for a hold that was left over already.
            self.skips.joined_before = joined_before;
        }
        if end || written {
            self.skips.marks = self.source.thread_marks();
        }
        self.skips.going.again |= new.removals > 0;
        self.skips.emptying.again |= new.emptied > 0;
        if new.for_good > 0 {
            self.source.count(LossKind::SkippedForGood, new.for_good);
        }
        self.compare_ooms();
        self.look_for_the_gone();
        self.look_for_the_empty();
        if written || new.limits_set > 0 {
            self.limits_written();
        }
        end
    }

    fn id_at(&self, slot: u32) -> Option<GroupId> {
        let state = self.source.slot(slot)?.state();
        state.is_live().then_some(GroupId { slot, generation: state.generation() })
    }

    /// How many OOMs of a group the kernel has counted beyond the programs' calls.
    fn oom_surplus(&self, group: GroupId) -> u64 {
        // With v1's code the kernel counts OOMs at which no program is called.
        if self.source.features().under_oom {
            return 0;
        }
        let Ok(Some(counted)) = self.source.ooms(group) else { return 0 };
        let calls = self.source.slot(group.slot).map_or(0, |slot| slot.oom_calls.get());
        let surplus = counted.wrapping_sub(calls & !BY_LIMIT_WRITE);
        // A call that began before the group had its slot counts less than none.
        if surplus >> 63 == 0 { surplus } else { 0 }
    }

    /// By whose limits somebody hears of an OOM: groups with listeners, and all above them,
    /// each once.
    fn compare_ooms(&mut self) {
        let root = self.source.root().slot;
        if self.skips.ooms.begins() {
            self.skips.ooms.left = self.registry.oom_slots();
            self.skips.compared = HashSet::new();
        }
        let mut next = self.skips.ooms.left.pop();
        for _ in 0..IN_A_SWEEP {
            let Some(slot) = next else { return };
            if slot == root || !self.skips.compared.insert(slot) {
                next = self.skips.ooms.left.pop();
                continue;
            }
            if let Some(group) = self.id_at(slot)
                && let surplus = self.oom_surplus(group)
                && surplus > 0
            {
                self.skips.missed_ooms.push((group, surplus));
            }
            next = self.above(slot).or_else(|| self.skips.ooms.left.pop());
        }
        self.skips.ooms.left.extend(next);
    }

    /// OOMs that the kernel had counted a sweep ago, and the programs have not been called
    /// for since. Whether another held the group then nobody knows; where limits were written
    /// below usage it was most likely one of those, which are told to nobody.
    fn tell_missed_ooms(&mut self) {
        for (group, before) in std::mem::take(&mut self.skips.missed_ooms) {
            if self.id_at(group.slot) != Some(group) {
                continue;
            }
            let missed = self.oom_surplus(group).min(before);
            if missed > 0
                && let Some(slot) = self.source.slot(group.slot)
                && slot.hold(group.generation)
            {
                slot.oom_calls.add(missed);
                if slot.oom_calls.get() & BY_LIMIT_WRITE != 0 {
                    self.source.count(LossKind::SkippedForGood, missed);
                } else {
                    log::debug!(memcg_cgroup_id = self.id_of(group.slot); "{missed} OOMs were skipped: told now");
                    slot.ooms.add(missed);
                    slot.pending.xchg(1);
                }
                // Releases it.
                self.ring(group.slot, 0);
            }
        }
    }

    /// What is held since the sweep before is held by nobody; or by an OOM that takes long,
    /// and then another may be told that the kernel would have been silent of. An OOM that
    /// joined one of these may have been one of its own.
    fn release_holds(&mut self) {
        let has_joined = self.source.tally(LossKind::OomJoined) != self.skips.joined_before;
        let left = self.skips.holds.len().saturating_sub(IN_A_SWEEP);
        for (index, hold) in self.skips.holds.split_off(left) {
            let Some(slot) = self.source.slot(index).filter(|slot| hold_of(slot) == hold) else { continue };
            if !slot.hold(slot.state().generation()) {
                continue;
            }
            oom::release(|index| self.source.slot(index), index, hold);
            if has_joined {
                slot.ooms.add(1);
                slot.pending.xchg(1);
            }
            // Releases it.
            self.ring(index, 0);
        }
    }

    /// Marks that are there since the sweep before. A thread that writes limits all the time
    /// may lose its mark, and an OOM by such a write then be told.
    fn forget_marks(&mut self) {
        let before = std::mem::take(&mut self.skips.marks);
        if before.is_empty() {
            return;
        }
        for (word, bits) in self.source.thread_marks() {
            if let Ok(at) = before.binary_search_by_key(&word, |(word, _)| *word) {
                self.source.forget_thread_marks(word, bits & before[at].1);
            }
        }
    }

    fn look_for_the_gone(&mut self) {
        let root = self.source.root().slot;
        for index in self.skips.going.some(LOOKED_FOR, || self.registry.slots()) {
            let known = self.registry.group(index).filter(|_| index != root);
            let Some((known, slot)) = known.zip(self.source.slot(index)) else { continue };
            let group = known.id;
            if self.id_at(index) != Some(group) || !self.host.is_gone(self.id_of(index)) {
                continue;
            }
            // What its quantities were last, as far as anybody has seen.
            slot.last.set(known.scale(ControlFile::Usage).now());
            slot.sum_last.set(known.scale(ControlFile::Memsw).now());
            match self.source.depart(group) {
                Ok(true) => self.ring(index, 0),
                Ok(false) => {}
                Err(error) => log::error!(memcg_cgroup_id = self.id_of(index); "{error}"),
            }
        }
    }

    /// From now on it is known whether a task is in the group, for whom a call is skipped.
    pub(super) fn note_populated(&self, group: GroupId) {
        let Some(slot) = self.source.slot(group.slot) else { return };
        slot.populated.set(POPULATED_UNKNOWN);
        if let Ok(Some(populated)) = self.source.is_populated(group) {
            // The programs know better.
            slot.populated.cas(POPULATED_UNKNOWN, if populated { POPULATED } else { NOT_POPULATED });
        }
    }

    /// Whether the kernel says that a group is empty, and the programs were not told.
    fn seems_empty(&mut self, group: GroupId) -> bool {
        let Some(slot) = self.source.slot(group.slot) else { return false };
        match (slot.populated.get(), self.source.is_populated(group)) {
            (POPULATED, Ok(Some(populated))) => !populated,
            // It has a task again: what comes next is known.
            (NOT_POPULATED, Ok(Some(true))) => {
                slot.populated.cas(NOT_POPULATED, POPULATED);
                false
            }
            (NOT_POPULATED, Ok(_)) | (_, Ok(None)) => false,
            _ => {
                self.source.count(LossKind::SkippedForGood, 1);
                false
            }
        }
    }

    fn look_for_the_empty(&mut self) {
        let root = self.source.root().slot;
        for index in self.skips.emptying.some(IN_A_SWEEP, || self.registry.slots()) {
            let watched = self.registry.group(index).filter(|_| index != root);
            let listening = watched.filter(|group| group.empty().next().is_some());
            if let Some(group) = listening.map(|group| group.id)
                && self.id_at(index) == Some(group)
                && self.seems_empty(group)
            {
                self.skips.emptied.push(group);
            }
        }
    }

    fn tell_emptied(&mut self) {
        for group in std::mem::take(&mut self.skips.emptied) {
            if self.id_at(group.slot) == Some(group)
                && self.seems_empty(group)
                && let Some(slot) = self.source.slot(group.slot)
                && slot.populated.cas(POPULATED, NOT_POPULATED) == POPULATED
            {
                slot.emptied.add(1);
                slot.pending.xchg(1);
                self.ring(group.slot, 0);
            }
        }
    }
}
