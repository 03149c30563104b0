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
        slot::{NOT_POPULATED, POPULATED},
        word::Word as _,
    },
};

use crate::{
    source::{GroupId, Misses, Source},
    watcher::{
        core::Core,
        hierarchy::{above, id_of, live_group},
    },
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

/// The part of one sweep's recovery that is left to the rest of the watcher.
#[derive(Clone, Copy, Debug)]
pub(super) struct MadeUp {
    /// Whether holds are to be noted, since the end of an OOM was skipped.
    pub(super) holds: bool,
    /// Whether limits were written.
    pub(super) limits: bool,
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

impl SkippedRuns {
    /// Runs one sweep's part of the recovery. `notes_holds`: a sweep that notes holds is under way
    /// or next.
    pub(super) fn make_up<S: Source>(
        &mut self,
        core: &mut Core<S>,
        misses: &Misses,
        notes_holds: bool,
    ) -> MadeUp {
        let new = misses.since(&self.known);
        self.known = *misses;
        // What the sweep before found comes first.
        self.deliver_missed_ooms(core);
        self.release_holds(core);
        if !self.late.is_empty() {
            self.holds = std::mem::take(&mut self.late);
        }
        self.forget_marks(core);
        self.deliver_emptied(core);

        let (begin, end) = (Misses::both(new.ooms), Misses::both(new.oom_ends));
        let written = Misses::both(new.limit_writes);
        // No program runs at the next OOM of a thread that kept its mark of an OOM; nor from here
        // to the next sweep, which takes the mark away.
        self.ooms.again |= begin || end || self.ended;
        self.ended = end;
        let joined = core.source.tally(LossKind::OomJoined);
        let joined_before = std::mem::replace(&mut self.joined, joined);
        if end && !notes_holds {
            // It may have joined a hold that was left over already.
            self.joined_before = joined_before;
        }
        if end || written {
            self.marks = core.source.thread_marks();
        }
        self.going.again |= new.removals > 0;
        self.emptying.again |= new.emptied > 0;
        if new.for_good > 0 {
            core.source.count(LossKind::SkippedForGood, new.for_good);
        }
        self.compare_ooms(core);
        self.look_for_the_gone(core);
        self.look_for_the_empty(core);
        MadeUp { holds: end, limits: written || new.limits_set > 0 }
    }

    /// Compares the counts of groups whose limits may cause an OOM that has listeners: groups
    /// with listeners, and all above them, each once.
    fn compare_ooms<S: Source>(&mut self, core: &mut Core<S>) {
        let root = core.source.root().slot;
        if self.ooms.begins() {
            self.ooms.left = core.registry.oom_slots();
            self.compared = HashSet::new();
        }
        let mut next = self.ooms.left.pop();
        for _ in 0..IN_A_SWEEP {
            let Some(slot) = next else { return };
            if slot == root || !self.compared.insert(slot) {
                next = self.ooms.left.pop();
                continue;
            }
            if let Some(group) = live_group(&core.source, slot)
                && let surplus = oom_surplus(&core.source, group)
                && surplus > 0
            {
                self.missed_ooms.push((group, surplus));
            }
            next = above(&core.source, slot).or_else(|| self.ooms.left.pop());
        }
        self.ooms.left.extend(next);
    }

    /// Delivers OOMs that the kernel had counted a sweep ago, and for which no program has run
    /// since. Whether another OOM held the group then is not known; where limits were written
    /// below usage it was most likely one of those, which are not signalled.
    fn deliver_missed_ooms<S: Source>(&mut self, core: &mut Core<S>) {
        for (group, before) in std::mem::take(&mut self.missed_ooms) {
            if live_group(&core.source, group.slot) != Some(group) {
                continue;
            }
            let missed = oom_surplus(&core.source, group).min(before);
            if missed > 0
                && let Some(slot) = core.source.slot(group.slot)
                && slot.hold(group.generation)
            {
                slot.oom_calls.add(missed);
                if slot.oom_calls.get() & BY_LIMIT_WRITE != 0 {
                    core.source.count(LossKind::SkippedForGood, missed);
                } else {
                    log::debug!(memcg_cgroup_id = id_of(&core.source, group.slot); "{missed} OOMs were skipped: signalled now");
                    slot.ooms.add(missed);
                    slot.pending.xchg(1);
                }
                // The look releases it.
                core.ring(group.slot, 0);
            }
        }
    }

    /// Releases holds that exist since the sweep before. A hold is left over, or of an OOM that
    /// takes long; then a further OOM may be signalled that the kernel would have been silent
    /// about. An OOM that joined one of these holds may have been one of its own.
    fn release_holds<S: Source>(&mut self, core: &mut Core<S>) {
        let has_joined = core.source.tally(LossKind::OomJoined) != self.joined_before;
        let left = self.holds.len().saturating_sub(IN_A_SWEEP);
        for (index, hold) in self.holds.split_off(left) {
            let Some(slot) = core.source.slot(index).filter(|slot| hold_of(slot) == hold) else { continue };
            if !slot.hold(slot.state().generation()) {
                continue;
            }
            oom::release(|index| core.source.slot(index), index, hold);
            if has_joined {
                slot.ooms.add(1);
                slot.pending.xchg(1);
            }
            // The look releases it.
            core.ring(index, 0);
        }
    }

    /// Removes marks that exist since the sweep before. A thread that writes limits all the time
    /// may lose its mark, and an OOM by such a write then be signalled.
    fn forget_marks<S: Source>(&mut self, core: &mut Core<S>) {
        let before = std::mem::take(&mut self.marks);
        if before.is_empty() {
            return;
        }
        for (word, bits) in core.source.thread_marks() {
            if let Ok(at) = before.binary_search_by_key(&word, |(word, _)| *word) {
                core.source.forget_thread_marks(word, bits & before[at].1);
            }
        }
    }

    fn look_for_the_gone<S: Source>(&mut self, core: &mut Core<S>) {
        let root = core.source.root().slot;
        for index in self.going.some(LOOKED_FOR, || core.registry.slots()) {
            let known = core.registry.group(index).filter(|_| index != root);
            let Some((known, slot)) = known.zip(core.source.slot(index)) else { continue };
            let group = known.id;
            if live_group(&core.source, index) != Some(group)
                || !core.host.is_gone(id_of(&core.source, index))
            {
                continue;
            }
            // The last quantities that the agent has seen.
            slot.last.set(known.scale(ControlFile::Usage).now());
            slot.sum_last.set(known.scale(ControlFile::Memsw).now());
            depart(core, group);
        }
    }

    fn look_for_the_empty<S: Source>(&mut self, core: &mut Core<S>) {
        let root = core.source.root().slot;
        for index in self.emptying.some(IN_A_SWEEP, || core.registry.slots()) {
            let watched = core.registry.group(index).filter(|_| index != root);
            let listening = watched.filter(|group| group.empty().next().is_some());
            if let Some(group) = listening.map(|group| group.id)
                && live_group(&core.source, index) == Some(group)
                && seems_empty(&core.source, group)
            {
                self.emptied.push(group);
            }
        }
    }

    fn deliver_emptied<S: Source>(&mut self, core: &mut Core<S>) {
        for group in std::mem::take(&mut self.emptied) {
            if live_group(&core.source, group.slot) == Some(group)
                && seems_empty(&core.source, group)
                && let Some(slot) = core.source.slot(group.slot)
                && slot.populated.cas(POPULATED, NOT_POPULATED) == POPULATED
            {
                slot.emptied.add(1);
                slot.pending.xchg(1);
                core.ring(group.slot, 0);
            }
        }
    }
}

/// Takes its slot from a group that has gone though no program was called for that.
pub(super) fn depart<S: Source>(core: &mut Core<S>, group: GroupId) {
    let index = group.slot;
    // Held, so that it is not given back, and given to another group, meanwhile.
    if !core.source.slot(index).is_some_and(|slot| slot.hold(group.generation)) {
        return;
    }
    if let Err(error) = core.source.depart(group) {
        log::error!(memcg_cgroup_id = id_of(&core.source, index); "{error}");
    }
    // The look ends its registrations, and releases it.
    core.ring(index, 0);
}

/// The number of OOMs of a group that the kernel has counted beyond the programs' calls.
fn oom_surplus(source: &impl Source, group: GroupId) -> u64 {
    // With v1's code the kernel counts OOMs at which no program runs.
    if source.features().under_oom {
        return 0;
    }
    let Ok(Some(counted)) = source.ooms(group) else { return 0 };
    let calls = source.slot(group.slot).map_or(0, |slot| slot.oom_calls.get());
    let surplus = counted.wrapping_sub(calls & !BY_LIMIT_WRITE);
    // A call that began before the group had its slot makes this negative.
    if surplus >> 63 == 0 { surplus } else { 0 }
}

/// Whether the kernel reports a group as empty that the programs saw populated.
fn seems_empty(source: &impl Source, group: GroupId) -> bool {
    let Some(slot) = source.slot(group.slot) else { return false };
    match (slot.populated.get(), source.is_populated(group)) {
        (POPULATED, Ok(Some(populated))) => !populated,
        // It has a task again: the programs see what comes next.
        (NOT_POPULATED, Ok(Some(true))) => {
            slot.populated.cas(NOT_POPULATED, POPULATED);
            false
        }
        (NOT_POPULATED, Ok(_)) | (_, Ok(None)) => false,
        _ => {
            source.count(LossKind::SkippedForGood, 1);
            false
        }
    }
}
