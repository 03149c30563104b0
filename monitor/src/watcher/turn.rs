//! Turns of the thread that signals: bounded pieces of work, in the order in which
//! [`FairQueue`](super::fair_queue::FairQueue) has their payers.
//!
//! A slot is one task however often it rings, and its work is done one after another: what was
//! begun is brought to its end before anything else there begins.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use monitor_common::{
    grammar::control_file::ControlFile,
    protocol::{
        band::{Seen, take},
        slot::SlotState,
    },
};

use crate::{
    persist::{RecordId, Unfinished},
    registry::{Outcome, ThresholdSet},
    source::{FileId, Source},
    watcher::{Watcher, event::Cause, groups::WatchedGroups, signal::Delivery},
};

/// The duration of a turn, unless a single step takes longer.
const TURN: Duration = Duration::from_micros(200);
/// Thresholds, listeners or eventfds that a turn may touch.
pub(super) const ROOM: usize = 256;

/// The cost that a turn is charged. Tests count turns: the time of one includes what other
/// processes had of the processor meanwhile.
fn cost_since(start: Instant) -> Duration {
    if cfg!(test) { TURN } else { start.elapsed() }
}

/// Work that waits for a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// The pending work of a slot.
    Slot(u32),
    /// The undelivered signals of an eventfd.
    File(FileId),
    /// One more piece of a sweep.
    Sweep,
    /// One more piece of the search for closed eventfds.
    Search,
    /// The remaining registrations on an eventfd that its client has closed.
    Forget(FileId),
    /// Limits that were written, to be read.
    Limits,
}

/// The pending work of a slot.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) look: bool,
    /// The time of the first doorbell among those not yet answered.
    pub(super) rung: Option<u64>,
    /// Whether the limit has moved, and thresholds have to follow.
    pub(super) follow: bool,
    pub(super) settle: bool,
    pub(super) wake: Option<bool>,
    /// Sampled quantities, in pages, by control file.
    pub(super) sampled: Vec<(ControlFile, u64)>,
    /// Explanations to be delivered to followers.
    pub(super) causes: VecDeque<Cause>,
    begun: Option<Begun>,
}

impl Work {
    fn is_nothing(&self) -> bool {
        let Self { look, follow, settle, wake, sampled, causes, begun, .. } = self;
        !(*look || *follow || *settle)
            && wake.is_none()
            && sampled.is_empty()
            && causes.is_empty()
            && begun.is_none()
    }
}

/// Readings taken out of a slot, and the progress of handling them.
#[derive(Debug, Default)]
struct Begun {
    taken: Option<Unfinished>,
    /// Records of the taken readings beside the journal.
    lines: Vec<RecordId>,
    rung: Option<u64>,
    deliveries: VecDeque<Delivery>,
    then: Then,
    awaited: WatchedGroups,
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

impl<S: Source> Watcher<S> {
    /// Whether nothing waits for a turn.
    pub fn is_idle(&self) -> bool {
        self.turns.is_empty()
    }

    /// Runs one bounded piece of work, for the payer that has had least time lately; false where
    /// there is none.
    pub fn turn(&mut self) -> bool {
        self.take_from_lane();
        let Some((payer, mut task)) = self.turns.next() else { return false };
        let (start, mut room) = (Instant::now(), ROOM);
        self.turn_ends = start + TURN;
        loop {
            let time = TURN.saturating_sub(start.elapsed());
            match task {
                Task::Slot(slot) => self.work_on(slot, &mut room),
                Task::File(file) => self.deliver(file, &mut room, time),
                Task::Sweep => self.sweep_on(&mut room),
                Task::Search => {
                    self.search_queued = false;
                    self.search_again();
                    self.queue_search();
                    room = 0;
                }
                // Counted again: the address may be another eventfd's by now.
                Task::Forget(file) if self.registry.has_file(file) && self.is_closed(file) => {
                    self.forget_file(file, &mut room);
                }
                Task::Forget(_) => {}
                Task::Limits => self.follow_limits(&mut room),
            }
            room = room.saturating_sub(1);
            if room == 0 || start.elapsed() >= TURN {
                break;
            }
            let Some(next) = self.turns.pop(payer) else { break };
            task = next;
        }
        self.turns.charge(payer, cost_since(start));
        true
    }

    /// Whether the present work is better continued in another turn.
    pub(super) fn is_time_over(&self) -> bool {
        Instant::now() >= self.turn_ends
    }

    /// Runs turns until nothing is left to do, or the time is over.
    pub fn catch_up_within(&mut self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time && self.turn() {}
    }

    /// Runs a piece of work begun on a slot that has to end before a registration is added there,
    /// so that the two stay apart; whether more of it is left.
    pub fn goes_on_with(&mut self, slot: u32) -> bool {
        let has_begun = |watcher: &Self| watcher.works.get(&slot).is_some_and(|work| work.begun.is_some());
        if !has_begun(self) {
            return false;
        }
        let (payer, start) = (self.payer_of_slot(slot), Instant::now());
        self.turn_ends = start + TURN;
        self.go_on(slot, &mut { ROOM });
        self.turns.charge(payer, cost_since(start));
        has_begun(self)
    }

    /// Looks at a slot now, as far as one turn goes.
    pub(super) fn look_now(&mut self, slot: u32) {
        self.ring(slot, 0);
        let mut room = ROOM;
        self.turn_ends = Instant::now() + TURN;
        if self.go_on(slot, &mut room) {
            self.begin_next(slot, &mut room);
        }
    }

    /// Runs one task's worth of a slot's work; what is left is queued again.
    fn work_on(&mut self, slot: u32, room: &mut usize) {
        while *room > 0 && self.go_on(slot, room) && self.begin_next(slot, room) {
            *room = room.saturating_sub(1);
        }
        if self.works.get(&slot).is_some_and(Work::is_nothing) {
            self.works.remove(&slot);
        } else if self.works.contains_key(&slot) {
            self.queue(slot);
        }
    }

    /// Begins the next work on a slot; false where there is none, or where another turn is
    /// better.
    fn begin_next(&mut self, slot: u32, room: &mut usize) -> bool {
        let Some(work) = self.works.get_mut(&slot) else { return false };
        if work.settle {
            work.settle = false;
            self.begin_on_all(slot, ThresholdSet::begin_settle);
        } else if work.look {
            work.look = false;
            let rung = work.rung.take();
            return self.begin_look(slot, rung, room);
        } else if let Some((file, now)) = work.sampled.pop() {
            self.begin_sampled(slot, file, now);
        } else if work.follow {
            work.follow = false;
            let mut moved = false;
            match self.effective_limit(slot) {
                Ok(limit) => self.begin_on_all(slot, |scale| moved |= scale.begin_follow(limit)),
                Err(error) => log::warn!("{error}"),
            }
            // The bands have to follow, too.
            if moved {
                self.ring(slot, 0);
            }
        } else if let Some(all) = work.wake.take() {
            self.begin_on_all(slot, |scale| scale.begin_wake(all));
            // The band takes them in again.
            self.ring(slot, 0);
        } else if let Some(cause) = work.causes.pop_front() {
            self.begin_explanation(slot, cause);
        } else {
            return false;
        }
        true
    }

    fn begin_on_all(&mut self, slot: u32, mut begin: impl FnMut(&mut ThresholdSet)) {
        let Some(group) = self.registry.group_mut(slot) else { return };
        for file in ControlFile::QUANTITIES {
            begin(group.scale_mut(file));
        }
        self.begun(slot, Begun::default());
    }

    fn begin_sampled(&mut self, slot: u32, file: ControlFile, now: u64) {
        let Some(group) = self.registry.group_mut(slot) else { return };
        group.scale_mut(file).begin_step(now);
        self.begun(slot, Begun::default());
    }

    fn begin_explanation(&mut self, index: u32, cause: Cause) {
        if !self.followers.is_empty()
            && let Some(slot) = self.source.slot(index)
            && self.may_look_at(index, slot)
        {
            let then = if self.registry.group(index).is_none() { Then::Release } else { Then::Nothing };
            let deliveries = VecDeque::from([self.explanation(index, cause)]);
            self.begun(index, Begun { deliveries, then, ..Begun::default() });
        }
    }

    fn begun(&mut self, slot: u32, begun: Begun) {
        if let Some(work) = self.works.get_mut(&slot) {
            work.begun = Some(begun);
        }
    }

    /// Takes a slot's readings, publishes the bands around the present quantities, and works out
    /// what was crossed as far as there is room. False where usage is out of the new bands
    /// already: then others come first.
    fn begin_look(&mut self, index: u32, rung: Option<u64>, room: &mut usize) -> bool {
        let Some(slot) = self.source.slot(index).filter(|slot| self.may_look_at(index, slot)) else {
            return true;
        };
        let (state, mut seen) = (slot.state(), take(slot));
        if let Some(group) = self.registry.group(index) {
            let [memory, sum] = seen.late;
            seen.late =
                [group.scale(ControlFile::Usage).untold(memory), group.scale(ControlFile::Memsw).untold(sum)];
        }
        let taken =
            (seen != Seen::NOTHING).then(|| Unfinished { cgroup_id: self.id_of(index), seen: seen.merged() });
        if let (Some(persistence), Some(taken)) = (&self.persistence, &taken) {
            // Recorded until the signals are owed.
            persistence.state().begin(taken);
        }
        let deliveries = self.deliveries(index, &seen);
        let mut begun = Begun { taken, rung, deliveries, ..Begun::default() };
        let is_quiet = self.begin_quantities(index, state, seen, &mut begun);
        self.begun(index, begun);
        self.go_on(index, room);
        self.end_journal(index);
        if !is_quiet {
            // Still out of the band just published: another look has to follow.
            self.ring(index, 0);
        }
        is_quiet
    }

    /// Moves a group's quantities to their present values; false when they are out of the bands
    /// published around those.
    fn begin_quantities(&mut self, index: u32, state: SlotState, seen: Seen, begun: &mut Begun) -> bool {
        let Some(group) = self.registry.group(index) else {
            begun.then = Then::Release;
            return true;
        };
        if index == self.source.root().slot {
            return true;
        }
        let (id, was) = (group.id, group.scale(ControlFile::Usage).now());
        let sum_too = !group.scale(ControlFile::Memsw).is_empty();
        let now = match self.measure(id, sum_too) {
            Ok(now) => now,
            Err(error) => {
                // Nothing is lost: the sweep finds it pending.
                log::error!(memcg_cgroup_id = self.id_of(index); "{error}");
                self.give_back(index, seen);
                return true;
            }
        };
        let last = |on| self.last_of(id, on);
        let (memory, sum) = now.unwrap_or_else(|| {
            let sum = sum_too.then(|| last(ControlFile::Memsw)).flatten();
            (last(ControlFile::Usage).unwrap_or(was), sum)
        });
        if let Some(group) = self.registry.group_mut(index) {
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
        if let Some(slot) = self.source.slot(index) {
            slot.next_version();
        }
        // Before all is worked out: what is crossed from here on rings again.
        let Some((memory, sum)) = self.publish(index) else {
            return true;
        };
        // The second half of the band protocol: read after publishing.
        let (Ok(Some((now, now_sum))), Some(slot)) = (self.measure(id, sum_too), self.source.slot(index))
        else {
            return false;
        };
        let leaves = slot.memory().leaves(memory, now);
        let sum_leaves = now_sum.is_some_and(|now_sum| slot.sum().leaves(sum, now_sum));
        !(leaves || sum_leaves)
    }

    /// Closes the journal, which is for one slot at a time: readings that take more turns are
    /// recorded apart.
    fn end_journal(&mut self, index: u32) {
        let Some(persistence) = &mut self.persistence else { return };
        let begun = self.works.get_mut(&index).and_then(|work| work.begun.as_mut());
        if let Some(begun) = begun
            && let Some(taken) = &begun.taken
        {
            match persistence.state_mut().keep_on(taken) {
                Ok(lines) => begun.lines = lines,
                Err(error) => log::warn!(
                    "{error}; an agent that is killed now loses what group {} saw",
                    taken.cgroup_id
                ),
            }
        }
        persistence.state().end();
    }

    /// Goes on with the work begun on a slot; true at its end.
    fn go_on(&mut self, slot: u32, room: &mut usize) -> bool {
        let Some(mut begun) = self.works.get_mut(&slot).and_then(|work| work.begun.take()) else {
            return true;
        };
        let is_done = self.go_on_with(slot, &mut begun, room);
        if !is_done {
            self.begun(slot, begun);
            return false;
        }
        match begun.then {
            Then::Nothing => {}
            Then::Remove => {
                let waits = self.registry.group(slot).is_some()
                    && !self.has_delivered_above(slot, &mut begun.awaited);
                if waits {
                    // What is left waits until others have had their turns.
                    *room = 0;
                }
                if waits
                    || !self.deliver_causes(slot, &mut begun, room)
                    || *room == 0
                    || !self.remove_group(slot, begun.rung, room)
                {
                    self.begun(slot, begun);
                    return false;
                }
            }
            Then::Release => self.release(slot),
        }
        self.strike_out(&begun.lines);
        true
    }

    /// Delivers all explanations before their followers are gone; false where there is no room
    /// for it.
    fn deliver_causes(&mut self, slot: u32, begun: &mut Begun, room: &mut usize) -> bool {
        while self.deliver_all(begun, room) {
            let causes = self.works.get_mut(&slot).map(|work| &mut work.causes);
            let Some(cause) = causes.and_then(VecDeque::pop_front) else { return true };
            if !self.followers.is_empty() {
                begun.deliveries.push_back(self.explanation(slot, cause));
            }
        }
        false
    }

    /// Completes all deliveries under way; false where there is no room for it.
    fn deliver_all(&mut self, begun: &mut Begun, room: &mut usize) -> bool {
        while let Some(delivery) = begun.deliveries.front_mut() {
            if *room == 0 || !self.deliver_on(delivery, begun.rung, room) {
                return false;
            }
            begun.deliveries.pop_front();
        }
        true
    }

    fn go_on_with(&mut self, slot: u32, begun: &mut Begun, room: &mut usize) -> bool {
        if !self.deliver_all(begun, room) {
            return false;
        }
        let (clock, cgroup_id) = (self.clock(), self.id_of(slot));
        for file in ControlFile::QUANTITIES {
            let Some(group) = self.registry.group_mut(slot) else { return true };
            let scale = group.scale_mut(file);
            if !scale.is_walking() {
                continue;
            }
            let mut outcome = Outcome::default();
            let is_done = scale.walk(clock, room, &mut outcome);
            let (now, holdoff_end) = (scale.now(), scale.first_holdoff_end());
            self.holdoffs.extend(holdoff_end.map(|until| (until, slot)));
            self.owe_crossings(cgroup_id, file, outcome, now, begun.rung);
            if !is_done {
                return false;
            }
        }
        true
    }
}
