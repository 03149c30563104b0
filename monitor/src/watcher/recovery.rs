//! Recovery from calls that the kernel's recursion guard kept from the programs, except charges,
//! whose counters the sweep reads again.
//!
//! A call that is about to be delivered looks as if it was skipped. So what one sweep finds is
//! delivered in the next, if it still holds then. The groups that a sweep reads are bounded;
//! skipped calls are rare, whatever users do.

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

/// Groups that are queried in one sweep, of each kind.
const IN_A_SWEEP: usize = 256;

/// Groups that are looked up by their directories in one sweep: files have to be opened.
const LOOKED_FOR: usize = 32;

/// Skipped calls, and how far they are made up for.
#[derive(Debug)]
pub(super) struct SkippedRuns {
    known: Misses,
    /// Slots whose counts of OOMs in the kernel are to be compared, from each upwards; below,
    /// those compared in this round, and the OOMs that the kernel counted beyond the programs'
    /// calls.
    ooms: RecoveryRound,
    compared: HashSet<u32>,
    missed_ooms: Vec<(GroupId, u64)>,
    /// Holds found when an end was skipped: `noted` while a sweep goes through the table, `holds`
    /// once it has ended.
    noted: Vec<(u32, Hold)>,
    holds: Vec<(u32, Hold)>,
    /// Holds of a sweep that was late: it may have ended just before the next one.
    late: Vec<(u32, Hold)>,
    /// OOMs that had joined others in the sweep before the end was skipped, and in the last.
    joined_before: u64,
    joined: u64,
    /// Whether ends were skipped before the last sweep.
    ended: bool,
    /// Marks of threads when an end or a write was skipped.
    marks: Vec<(u32, u64)>,
    /// Slots whose groups may have gone.
    going: RecoveryRound,
    /// Slots whose groups may have become empty; and the groups that seem empty.
    emptying: RecoveryRound,
    emptied: Vec<GroupId>,
}

impl SkippedRuns {
    /// Starts from the `known` counts, and from OOMs that have `joined` others already.
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

    /// Notes during a sweep that a slot is held.
    pub(super) fn note(&mut self, index: u32, hold: Hold) {
        self.noted.push((index, hold));
    }

    /// Ends the noting of holds: all that are held were noted, those left from before among them.
    pub(super) fn have_noted(&mut self, is_late: bool) {
        let noted = std::mem::take(&mut self.noted);
        *(if is_late { &mut self.late } else { &mut self.holds }) = noted;
    }
}

/// Slots that one kind of skipped call may have been for, a few in each sweep.
#[derive(Debug, Default)]
struct RecoveryRound {
    left: Vec<u32>,
    /// Whether some were skipped since these were listed. The next round begins when this one has
    /// ended, so that calls skipped in each sweep do not keep any slot from its turn.
    again: bool,
}

impl RecoveryRound {
    /// Whether a new round begins now.
    fn begins(&mut self) -> bool {
        self.left.is_empty() && std::mem::take(&mut self.again)
    }

    /// Takes as many slots as one sweep handles; a new round begins with those of `all`.
    fn some(&mut self, most: usize, all: impl FnOnce() -> Vec<u32>) -> Vec<u32> {
        if self.begins() {
            self.left = all();
        }
        self.left.split_off(self.left.len().saturating_sub(most))
    }
}

impl<S: Source> Watcher<S> {
    /// Runs one sweep's part of the recovery; true where holds are to be noted.
    pub(super) fn make_up(&mut self, misses: &Misses) -> bool {
        let new = misses.since(&self.skips.known);
        self.skips.known = *misses;
        // What the sweep before found comes first.
        self.deliver_missed_ooms();
        self.release_holds();
        if !self.skips.late.is_empty() {
            self.skips.holds = std::mem::take(&mut self.skips.late);
        }
        self.forget_marks();
        self.deliver_emptied();

        let (begin, end) = (Misses::both(new.ooms), Misses::both(new.oom_ends));
        let written = Misses::both(new.limit_writes);
        // No program runs at the next OOM of a thread that kept its mark of an OOM; nor from here
        // to the next sweep, which takes the mark away.
        self.skips.ooms.again |= begin || end || self.skips.ended;
        self.skips.ended = end;
        let joined = self.source.tally(LossKind::OomJoined);
        let joined_before = std::mem::replace(&mut self.skips.joined, joined);
        if end && !self.sweep.as_ref().is_some_and(Sweep::notes_holds) {
            // It may have joined a hold that was left over already.
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

    /// The number of OOMs of a group that the kernel has counted beyond the programs' calls.
    fn oom_surplus(&self, group: GroupId) -> u64 {
        // With v1's code the kernel counts OOMs at which no program runs.
        if self.source.features().under_oom {
            return 0;
        }
        let Ok(Some(counted)) = self.source.ooms(group) else { return 0 };
        let calls = self.source.slot(group.slot).map_or(0, |slot| slot.oom_calls.get());
        let surplus = counted.wrapping_sub(calls & !BY_LIMIT_WRITE);
        // A call that began before the group had its slot makes this negative.
        if surplus >> 63 == 0 { surplus } else { 0 }
    }

    /// Compares the counts of groups whose limits may cause an OOM that has listeners: groups
    /// with listeners, and all above them, each once.
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

    /// Delivers OOMs that the kernel had counted a sweep ago, and for which no program has run
    /// since. Whether another OOM held the group then is not known; where limits were written
    /// below usage it was most likely one of those, which are not signalled.
    fn deliver_missed_ooms(&mut self) {
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
                    log::debug!(memcg_cgroup_id = self.id_of(group.slot); "{missed} OOMs were skipped: signalled now");
                    slot.ooms.add(missed);
                    slot.pending.xchg(1);
                }
                // The look releases it.
                self.ring(group.slot, 0);
            }
        }
    }

    /// Releases holds that exist since the sweep before. A hold is left over, or of an OOM that
    /// takes long; then a further OOM may be signalled that the kernel would have been silent
    /// about. An OOM that joined one of these holds may have been one of its own.
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
            // The look releases it.
            self.ring(index, 0);
        }
    }

    /// Removes marks that exist since the sweep before. A thread that writes limits all the time
    /// may lose its mark, and an OOM by such a write then be signalled.
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
            // The last quantities that the agent has seen.
            slot.last.set(known.scale(ControlFile::Usage).now());
            slot.sum_last.set(known.scale(ControlFile::Memsw).now());
            match self.source.depart(group) {
                Ok(true) => self.ring(index, 0),
                Ok(false) => {}
                Err(error) => log::error!(memcg_cgroup_id = self.id_of(index); "{error}"),
            }
        }
    }

    /// Notes whether a task is in the group, for which a call may be skipped from now on.
    pub(super) fn note_populated(&self, group: GroupId) {
        let Some(slot) = self.source.slot(group.slot) else { return };
        slot.populated.set(POPULATED_UNKNOWN);
        if let Ok(Some(populated)) = self.source.is_populated(group) {
            // The programs know better.
            slot.populated.cas(POPULATED_UNKNOWN, if populated { POPULATED } else { NOT_POPULATED });
        }
    }

    /// Whether the kernel reports a group as empty that the programs saw populated.
    fn seems_empty(&mut self, group: GroupId) -> bool {
        let Some(slot) = self.source.slot(group.slot) else { return false };
        match (slot.populated.get(), self.source.is_populated(group)) {
            (POPULATED, Ok(Some(populated))) => !populated,
            // It has a task again: the programs see what comes next.
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

    fn deliver_emptied(&mut self) {
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
