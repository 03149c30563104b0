//! The way from a doorbell to the eventfds: the main path, in order. A look takes what the
//! programs saw in a slot, measures, steps the group's thresholds, publishes the bands around the
//! new quantities, and measures again; then it adds a signal for each threshold that was crossed,
//! and delivers the slot's events.
//!
//! The stepping ends in later turns where there is much to signal. Sampled quantities, limits that
//! have moved and the ends of hold-offs step the same thresholds from here.

use std::collections::{HashMap, VecDeque};

use monitor_common::{
    grammar::control_file::ControlFile,
    protocol::{
        band::{Band, OPEN, Seen, Track, give_back, take},
        slot::SlotState,
        word::Word as _,
    },
};
use monitor_sys::table::SharedSlot;

use crate::{
    persist::{RecordId, Unfinished},
    registry::{Crossing, Outcome, ThresholdSet},
    source::Source,
    watcher::{
        ancestors::AncestorWalks,
        awaited::AwaitedGroups,
        core::Core,
        event::{Cause, Event},
        fanout::Fanout,
        hierarchy::{id_of, last_of},
        quantity::measure,
        turns::{ROOM, Step},
        undelivered::PendingSignals,
    },
};

/// The work begun on slots, which is brought to its end before anything else there begins.
#[derive(Debug, Default)]
pub(super) struct Looks {
    begun: HashMap<u32, Begun>,
    walks: AncestorWalks,
}

/// Readings taken out of a slot, and the progress of handling them.
#[derive(Debug, Default)]
struct Begun {
    taken: Option<Unfinished>,
    /// Records of the taken readings beside the journal.
    lines: Vec<RecordId>,
    rung: Option<u64>,
    fanouts: VecDeque<Fanout>,
    then: Then,
    awaited: AwaitedGroups,
}

/// The step that follows once all is worked out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Then {
    #[default]
    Nothing,
    /// The group has gone, and its registrations end.
    Remove,
    /// The slot has no registrations.
    Release,
}

impl Looks {
    /// Runs one task's worth of a slot's work; what is left is queued again.
    pub(super) fn work_on<S: Source>(&mut self, core: &mut Core<S>, slot: u32, room: &mut usize) {
        while *room > 0 && self.go_on(core, slot, room) && self.begin_next(core, slot, room) {
            *room = room.saturating_sub(1);
        }
        core.turns.queue_rest(&core.source, slot, self.begun.contains_key(&slot));
    }

    /// Looks at a slot now, as far as one turn goes.
    pub(super) fn look_now<S: Source>(&mut self, core: &mut Core<S>, slot: u32) {
        core.ring(slot, 0);
        let mut room = ROOM;
        core.turns.begin();
        if self.go_on(core, slot, &mut room) {
            self.begin_next(core, slot, &mut room);
        }
    }

    /// Runs a piece of work begun on a slot that has to end before a registration is added there,
    /// so that the two stay apart; whether more of it is left.
    pub(super) fn goes_on_with<S: Source>(&mut self, core: &mut Core<S>, slot: u32) -> bool {
        if !self.begun.contains_key(&slot) {
            return false;
        }
        let (payer, start) = (core.turns.payer_of_slot(&core.source, slot), core.turns.begin());
        self.go_on(core, slot, &mut { ROOM });
        core.turns.charge(payer, start);
        self.begun.contains_key(&slot)
    }

    /// Begins the next work on a slot; false where there is none, or where another turn is
    /// better.
    fn begin_next<S: Source>(&mut self, core: &mut Core<S>, slot: u32, room: &mut usize) -> bool {
        let Some(step) = core.turns.next_step(slot) else { return false };
        match step {
            Step::Look { rung } => return self.begin_look(core, slot, rung, room),
            Step::Sampled(file, now) => {
                self.begin_on(core, slot, &[file], |scale| scale.begin_step(now));
            }
            Step::Settle => self.begin_all(core, slot, ThresholdSet::begin_settle),
            Step::Follow => {
                let mut moved = false;
                match core.effective_limit(slot) {
                    Ok(limit) => {
                        self.begin_all(core, slot, |scale| moved |= scale.begin_follow(limit));
                    }
                    Err(error) => log::warn!("{error}"),
                }
                // The bands have to follow, too.
                if moved {
                    core.ring(slot, 0);
                }
            }
            Step::EndHoldoffs { all } => {
                self.begin_all(core, slot, |scale| scale.begin_wake(all));
                // The band takes them in again.
                core.ring(slot, 0);
            }
            Step::Explain(cause) => self.begin_explanation(core, slot, cause),
        }
        true
    }

    /// Begins a step of the thresholds on all quantities of the group in a slot.
    fn begin_all<S>(&mut self, core: &mut Core<S>, slot: u32, begin: impl FnMut(&mut ThresholdSet)) {
        self.begin_on(core, slot, &ControlFile::QUANTITIES, begin);
    }

    fn begin_on<S>(
        &mut self,
        core: &mut Core<S>,
        slot: u32,
        files: &[ControlFile],
        mut begin: impl FnMut(&mut ThresholdSet),
    ) {
        let Some(group) = core.registry.group_mut(slot) else { return };
        for file in files {
            begin(group.scale_mut(*file));
        }
        self.set_begun(core, slot, Begun::default());
    }

    fn begin_explanation<S: Source>(&mut self, core: &Core<S>, index: u32, cause: Cause) {
        if core.delivery.has_followers()
            && let Some(slot) = core.source.slot(index)
            && core.may_look_at(index, slot)
        {
            let then = if core.registry.group(index).is_none() { Then::Release } else { Then::Nothing };
            let fanouts = VecDeque::from([Fanout::explanation(core, index, cause)]);
            self.set_begun(core, index, Begun { fanouts, then, ..Begun::default() });
        }
    }

    /// Notes the work begun on a slot, which has a task.
    fn set_begun<S>(&mut self, core: &Core<S>, slot: u32, begun: Begun) {
        if core.turns.has_work(slot) {
            self.begun.insert(slot, begun);
        }
    }

    /// Takes a slot's readings, publishes the bands around the present quantities, and works out
    /// what was crossed as far as there is room. False where usage is out of the new bands
    /// already: then others come first.
    fn begin_look<S: Source>(
        &mut self,
        core: &mut Core<S>,
        index: u32,
        rung: Option<u64>,
        room: &mut usize,
    ) -> bool {
        let Some(slot) = core.source.slot(index).filter(|slot| core.may_look_at(index, slot)) else {
            return true;
        };
        if slot.take_new() {
            core.arrivals.add(&core.source, index);
        }
        let (state, mut seen) = (slot.state(), take(slot));
        if let Some(group) = core.registry.group(index) {
            let [memory, sum] = seen.late;
            seen.late = [
                group.scale(ControlFile::Usage).unsignalled(memory),
                group.scale(ControlFile::Memsw).unsignalled(sum),
            ];
        }
        core.arrivals.note(index, &seen);
        let cgroup_id = id_of(&core.source, index);
        let taken = (seen != Seen::NOTHING).then(|| Unfinished { cgroup_id, seen: seen.merged() });
        if let Some(taken) = &taken {
            // Recorded until the signals are.
            core.records.begin_journal(taken);
        }
        let fanouts = Fanout::all_of(core, index, &seen);
        let mut begun = Begun { taken, rung, fanouts, ..Begun::default() };
        let is_quiet = step_quantities(core, index, state, seen, &mut begun);
        self.set_begun(core, index, begun);
        self.go_on(core, index, room);
        self.end_journal(core, index);
        if !is_quiet {
            // Still out of the band just published: another look has to follow.
            core.ring(index, 0);
        }
        is_quiet
    }

    /// Closes the journal, which is for one slot at a time: readings that take more turns are
    /// recorded apart.
    fn end_journal<S>(&mut self, core: &mut Core<S>, index: u32) {
        let begun = self.begun.get_mut(&index);
        let lines = core.records.end_journal(begun.as_ref().and_then(|begun| begun.taken.as_ref()));
        if let Some(begun) = begun {
            begun.lines = lines;
        }
    }

    /// Goes on with the work begun on a slot; true at its end.
    fn go_on<S: Source>(&mut self, core: &mut Core<S>, slot: u32, room: &mut usize) -> bool {
        let Some(mut begun) = self.begun.remove(&slot) else { return true };
        if !self.deliver_all(core, &mut begun, room)
            || !add_crossings(core, slot, begun.rung, room)
            || !self.finish(core, slot, &mut begun, room)
        {
            self.set_begun(core, slot, begun);
            return false;
        }
        core.strike_out(&begun.lines);
        true
    }

    /// Ends what was begun on a slot, once all is signalled; false where there is no room for it.
    fn finish<S: Source>(
        &mut self,
        core: &mut Core<S>,
        slot: u32,
        begun: &mut Begun,
        room: &mut usize,
    ) -> bool {
        match begun.then {
            Then::Nothing => true,
            Then::Remove => {
                if core.registry.group(slot).is_some() && !begun.awaited.are_done(core, slot) {
                    // What is left waits until others have had their turns.
                    *room = 0;
                    return false;
                }
                self.deliver_explanations(core, slot, begun, room)
                    && *room > 0
                    && core.remove_group(slot, begun.rung, room)
            }
            Then::Release => {
                core.release(slot);
                true
            }
        }
    }

    /// Delivers all explanations before their followers are gone; false where there is no room
    /// for it.
    fn deliver_explanations<S: Source>(
        &mut self,
        core: &mut Core<S>,
        slot: u32,
        begun: &mut Begun,
        room: &mut usize,
    ) -> bool {
        while self.deliver_all(core, begun, room) {
            let Some(cause) = core.turns.next_explanation(slot) else { return true };
            if core.delivery.has_followers() {
                begun.fanouts.push_back(Fanout::explanation(core, slot, cause));
            }
        }
        false
    }

    /// Completes all fan-outs under way; false where there is no room for it.
    fn deliver_all<S: Source>(&mut self, core: &mut Core<S>, begun: &mut Begun, room: &mut usize) -> bool {
        while let Some(fanout) = begun.fanouts.front_mut() {
            if *room == 0 || !fanout.go_on(core, &mut self.walks, begun.rung, room) {
                return false;
            }
            begun.fanouts.pop_front();
        }
        true
    }
}

/// Moves a group's quantities to their present values; false when they are out of the bands
/// published around those.
fn step_quantities<S: Source>(
    core: &mut Core<S>,
    index: u32,
    state: SlotState,
    seen: Seen,
    begun: &mut Begun,
) -> bool {
    let Some(group) = core.registry.group(index) else {
        begun.then = Then::Release;
        return true;
    };
    if index == core.source.root().slot {
        return true;
    }
    let (id, was) = (group.id, group.scale(ControlFile::Usage).now());
    let sum_too = !group.scale(ControlFile::Memsw).is_empty();
    let now = match measure(&core.source, id, sum_too) {
        Ok(now) => now,
        Err(error) => {
            // Nothing is lost: the sweep finds it pending.
            log::error!(memcg_cgroup_id = id_of(&core.source, index); "{error}");
            put_back(&core.source, index, seen);
            return true;
        }
    };
    // Of a group that has gone unseen the readings may be those of another that had the slot.
    let is_known = core.source.slot(index).is_some_and(|slot| slot.window.get() != SharedSlot::PEAK_UNKNOWN);
    let last = |on| last_of(&core.source, id, on).filter(|_| is_known);
    let (memory, sum) = now.unwrap_or_else(|| {
        let sum = sum_too.then(|| last(ControlFile::Memsw)).flatten();
        (last(ControlFile::Usage).unwrap_or(was), sum)
    });
    if let Some(group) = core.registry.group_mut(index) {
        let [late, sum_late] = seen.late;
        group.scale_mut(ControlFile::Usage).begin_look(seen.memory, late, memory);
        if let Some(sum) = sum {
            group.scale_mut(ControlFile::Memsw).begin_look(seen.sum, sum_late, sum);
        }
    }
    if now.is_none() || !state.is_live() || state.generation() != id.generation {
        begun.then = Then::Remove;
        return true;
    }
    // What was compared with the bands so far has been taken, except what is late.
    if let Some(slot) = core.source.slot(index) {
        slot.next_version();
    }
    // Before all is worked out: what is crossed from here on rings again.
    let Some((memory, sum)) = publish(core, index) else {
        return true;
    };
    // The second half of the band protocol: read after publishing.
    let (Ok(Some((now, now_sum))), Some(slot)) =
        (measure(&core.source, id, sum_too), core.source.slot(index))
    else {
        return false;
    };
    let leaves = slot.memory().leaves(memory, now);
    let sum_leaves = now_sum.is_some_and(|now_sum| slot.sum().leaves(sum, now_sum));
    !(leaves || sum_leaves)
}

/// Puts readings back into their slot for another look, without what has been signalled.
fn put_back(source: &impl Source, index: u32, seen: Seen) {
    if let Some(slot) = source.slot(index) {
        let Seen { memory, sum, late, .. } = seen;
        give_back(slot, &Seen { memory, sum, late, ..Seen::NOTHING });
    }
}

/// Publishes the bands of memory and of memory+swap around what was measured last. `None` when the
/// slot has nothing to do any more, or for now.
pub(super) fn publish<S: Source>(core: &Core<S>, index: u32) -> Option<(Band, Band)> {
    let (group, slot) = (core.registry.group(index)?, core.source.slot(index)?);
    let shift = core.source.band_shift();
    let publish = |track: &Track<'_, _>, file| {
        let band = group.scale(file).band();
        let published =
            if file == ControlFile::Usage { core.recorded.band(&core.source, index, band) } else { band };
        (band, track.publish(published, shift))
    };
    slot.forget_kept();
    let (memory, mut first) = publish(&slot.memory(), ControlFile::Usage);
    let mut sum = Band::EVERYTHING;
    if !group.scale(ControlFile::Memsw).is_empty() || slot.sum_band.get() != OPEN {
        let published = publish(&slot.sum(), ControlFile::Memsw);
        sum = published.0;
        first |= published.1;
    }
    if first && let Err(error) = core.source.end_epoch() {
        // Charges further down would not reach this band: begin again.
        log::error!("{error}");
        [slot.memory(), slot.sum()].iter().for_each(Track::open);
        slot.pending.xchg(1);
        return None;
    }
    Some((memory, sum))
}

/// Steps the thresholds of a group, and adds signals for those that were crossed, as far as there
/// is room; true at the end.
fn add_crossings<S: Source>(core: &mut Core<S>, slot: u32, rung: Option<u64>, room: &mut usize) -> bool {
    let (clock, cgroup_id) = (core.clock(), id_of(&core.source, slot));
    for file in ControlFile::QUANTITIES {
        let Some(group) = core.registry.group_mut(slot) else { return true };
        let scale = group.scale_mut(file);
        if !scale.is_walking() {
            continue;
        }
        let mut outcome = Outcome::default();
        let is_done = scale.walk(clock, room, &mut outcome);
        let (usage, holdoff_end) = (scale.now(), scale.first_holdoff_end());
        if let Some(end) = holdoff_end {
            core.holdoffs.add(end, slot);
        }
        let Outcome { crossings, sides } = outcome;
        for Crossing { to, threshold, direction } in crossings {
            let cause = Cause::Crossed { on: file, threshold, direction, usage };
            core.delivery.notify_follower(to.record_id, &Event { cgroup_id, cause, signals: 1 });
            let (file, record_id) = (to.file, to.record_id);
            core.add_signals(PendingSignals { file, record_id, count: 1, cause: Cause::CROSSED, rung });
        }
        // After the signals: an agent that is killed in between has the next one deliver some of
        // them once more, and none is lost.
        for side in sides {
            core.records.set_above(side.to.record_id, side.above);
        }
        if !is_done {
            return false;
        }
    }
    true
}
