//! Thresholds in percent follow the limits that they are percents of.
//!
//! A user that may write the `memory.max` of some group can do so in a loop. So the programs ring
//! once until the agent has begun to look; it reads the limits of groups with thresholds in
//! percent, a few in a turn, as a part of its own work, and pauses so long between two rounds
//! that they take a twentieth of a CPU. Where a limit has moved, the accounts with registrations
//! there pay for moving their thresholds.

use std::time::{Duration, Instant};

use monitor_common::{grammar::control_file::ControlFile, protocol::query::Subscriptions};

use crate::{
    source::Source,
    watcher::{core::Core, fair_queue::Payer, turns::Task},
};

/// Groups whose limits are read in one turn, at most.
const AT_ONCE: usize = 64;

/// The shortest time between two rounds.
const PAUSE: Duration = Duration::from_millis(5);

/// The length of a pause, as a multiple of the round before it.
const PAUSE_PER_ROUND: u32 = 20;

/// Progress after a limit was written: the groups still to be read, and when.
#[derive(Debug, Default)]
pub(super) struct PercentLimits {
    /// Groups left in the present round, and what it has taken so far.
    left: Option<Vec<u32>>,
    took: Duration,
    /// Whether the doorbell rang during a round: another has to follow.
    again: bool,
    /// The earliest time of the next round, and the time at which one is due; milliseconds by the
    /// host's clock.
    not_before: u64,
    due: Option<u64>,
    /// Whether a round is queued.
    queued: bool,
}

impl PercentLimits {
    /// The time at which a round is due, by the host's clock.
    pub(super) const fn due(&self) -> Option<u64> {
        self.due
    }

    /// Begins a round of reading limits, after some limit was written. One round serves all
    /// writes within a few milliseconds.
    pub(super) fn limits_written<S: Source>(&mut self, core: &mut Core<S>) {
        if core.registry.wanted() & Subscriptions::LIMITS == 0 {
            // The next write rings again.
            core.source.take_limits();
            return;
        }
        let now = core.host.clock();
        if self.queued {
            self.again |= self.left.is_some();
            return;
        }
        let not_before = self.not_before;
        self.due.get_or_insert(now.max(not_before));
        self.begin_if_due(core);
        core.turns.notify();
    }

    /// Begins a round now, from the start, if limits were written: some that were read before may
    /// have been written since.
    pub(super) fn begin_now<S: Source>(&mut self, core: &Core<S>) {
        if self.queued || self.due.is_some() || core.source.limits_were_written() {
            self.left = None;
            self.due = (!self.queued).then(|| core.host.clock());
        }
    }

    /// Begins a round that is due.
    pub(super) fn begin_if_due<S>(&mut self, core: &mut Core<S>) {
        let now = core.host.clock();
        if self.due.take_if(|due| *due <= now).is_some() {
            self.queued = true;
            core.turns.push(Payer::House, Task::Limits);
        }
    }

    /// Runs one turn's part of a round.
    pub(super) fn go_on<S: Source>(&mut self, core: &mut Core<S>, room: &mut usize) {
        *room = 0;
        let start = Instant::now();
        let mut left = self.left.take().unwrap_or_else(|| {
            // Cleared before anything is read: a later write rings again.
            core.source.take_limits();
            (self.again, self.took) = (false, Duration::ZERO);
            core.registry.percent_slots()
        });
        for _ in 0..AT_ONCE {
            let Some(slot) = left.pop() else { break };
            match core.effective_limit(slot) {
                Ok(limit) if is_moved_by(core, slot, limit) => core.turns.plan_follow(&core.source, slot),
                Ok(_) => {}
                Err(error) => log::warn!("{error}"),
            }
            // In a deep hierarchy each query goes far.
            if core.turns.is_time_over() {
                break;
            }
        }
        let now = core.host.clock();
        self.took += start.elapsed();
        if !left.is_empty() {
            self.left = Some(left);
            core.turns.push(Payer::House, Task::Limits);
            return;
        }
        let pause = PAUSE.max(self.took * PAUSE_PER_ROUND);
        self.not_before = now + u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        self.queued = false;
        self.due = self.again.then_some(self.not_before);
    }
}

fn is_moved_by<S>(core: &Core<S>, slot: u32, limit: u64) -> bool {
    let group = core.registry.group(slot);
    group
        .is_some_and(|group| ControlFile::QUANTITIES.iter().any(|file| group.scale(*file).is_moved_by(limit)))
}
