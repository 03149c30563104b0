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
    error::Result,
    source::{GroupId, Source},
    watcher::{Watcher, fair_queue::Payer, turn::Task},
};

/// Groups whose limits are read in one turn, at most.
const AT_ONCE: usize = 64;

/// The shortest time between two rounds.
const PAUSE: Duration = Duration::from_millis(5);

/// The length of a pause, as a multiple of the round before it.
const PAUSE_PER_ROUND: u32 = 20;

/// Progress after a limit was written: the groups still to be read, and when.
#[derive(Debug, Default)]
pub(super) struct Written {
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

impl Written {
    pub(super) const fn due(&self) -> Option<u64> {
        self.due
    }
}

impl<S: Source> Watcher<S> {
    /// The lowest limit from a group up to the root, in pages: what percents are of. For the
    /// root: the host's memory. `u64::MAX` when there is none.
    pub(super) fn effective_limit(&self, slot: u32) -> Result<u64> {
        if slot == self.source.root().slot {
            return self.host.ram();
        }
        let generation = self.source.slot(slot).map_or(0, |slot| slot.state().generation());
        let limit = self.source.lowest_limit(GroupId { slot, generation })?.unwrap_or(u64::MAX);
        // The number that the kernel stores for `max`.
        let endless = monitor_common::grammar::threshold::Pages::counter_max(crate::kernel::page_size()).0;
        Ok(if limit >= endless { u64::MAX } else { limit })
    }

    /// Begins a round of reading limits, after some limit was written. One round serves all
    /// writes within a few milliseconds.
    pub fn limits_written(&mut self) {
        if self.registry.wanted() & Subscriptions::LIMITS == 0 {
            // The next write rings again.
            self.source.take_limits();
            return;
        }
        let (now, written) = (self.host.clock(), &mut self.written);
        if written.queued {
            written.again |= written.left.is_some();
            return;
        }
        let not_before = written.not_before;
        written.due.get_or_insert(now.max(not_before));
        self.follow_if_due();
        self.work.notify_one();
    }

    /// Begins a round now, from the start, if limits were written: some that were read before may
    /// have been written since.
    pub(super) fn follow_now(&mut self) {
        let written = &mut self.written;
        if written.queued || written.due.is_some() || self.source.limits_were_written() {
            written.left = None;
            written.due = (!written.queued).then(|| self.host.clock());
        }
    }

    /// Begins a round that is due.
    pub(super) fn follow_if_due(&mut self) {
        let now = self.host.clock();
        if self.written.due.take_if(|due| *due <= now).is_some() {
            self.written.queued = true;
            self.turns.push(Payer::House, Task::Limits);
        }
    }

    /// Runs one turn's part of a round.
    pub(super) fn follow_limits(&mut self, room: &mut usize) {
        *room = 0;
        let start = Instant::now();
        let mut left = self.written.left.take().unwrap_or_else(|| {
            // Cleared before anything is read: a later write rings again.
            self.source.take_limits();
            (self.written.again, self.written.took) = (false, Duration::ZERO);
            self.registry.percent_slots()
        });
        for _ in 0..AT_ONCE {
            let Some(slot) = left.pop() else { break };
            match self.effective_limit(slot) {
                Ok(limit) if self.is_moved_by(slot, limit) => self.plan_follow(slot),
                Ok(_) => {}
                Err(error) => log::warn!("{error}"),
            }
            // In a deep hierarchy each query climbs far.
            if self.is_time_over() {
                break;
            }
        }
        let (now, written) = (self.host.clock(), &mut self.written);
        written.took += start.elapsed();
        if !left.is_empty() {
            written.left = Some(left);
            self.turns.push(Payer::House, Task::Limits);
            return;
        }
        let pause = PAUSE.max(written.took * PAUSE_PER_ROUND);
        written.not_before = now + u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        written.queued = false;
        written.due = written.again.then_some(written.not_before);
    }

    fn is_moved_by(&self, slot: u32, limit: u64) -> bool {
        let group = self.registry.group(slot);
        group.is_some_and(|group| {
            ControlFile::QUANTITIES.iter().any(|file| group.scale(*file).is_moved_by(limit))
        })
    }
}
