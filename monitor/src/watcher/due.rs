//! The watcher's part of work that no doorbell rings for: what the clock says is due, and looks at all that is
//! watched. Users choose how much that is: each use of the watcher queues some of it.

use crate::{
    source::Source,
    watcher::{Watcher, turns::ROOM},
};

/// Slots that are gone through in one use of the watcher to look at those that are watched.
const LOOKED_AT: u32 = 256;

impl<S: Source> Watcher<S> {
    /// Queues a look at the watched slots among the next from `first` on. Returns where to go on.
    pub fn look_at_some(&mut self, first: u32) -> Option<u32> {
        let end = first.saturating_add(LOOKED_AT);
        for index in first..end {
            if self.core.registry.group(index).is_some() {
                self.ring(index, 0);
            }
        }
        (end <= self.core.source.root().slot && !self.core.registry.is_empty()).then_some(end)
    }

    /// Queues a look at all watched slots, and ends all hold-offs.
    #[cfg(test)]
    pub fn look_at_all(&mut self) {
        let mut next = Some(0);
        while let Some(first) = next {
            next = self.look_at_some(first);
        }
        while self.wake(true) {}
    }

    /// Milliseconds until something is due by the clock: the end of a hold-off, or limits that
    /// were written; `None` when nothing is.
    pub fn due_in(&self) -> Option<u64> {
        let (holdoff_end, now) = (self.core.holdoffs.first_end(), self.core.host.clock());
        holdoff_end.into_iter().chain(self.percent_limits.due()).min().map(|when| when.saturating_sub(now))
    }

    /// Queues what is due by the clock, some at once; true where there is more. Ends the hold-off of
    /// thresholds that flapped and whose time is up, or of `all` (those on the other side than was
    /// signalled last are signalled now); and then reads limits that were written.
    pub fn wake(&mut self, all: bool) -> bool {
        let core = &mut self.core;
        let now = core.host.clock();
        for _ in 0..ROOM {
            let Some(slot) = core.holdoffs.take_ended(now, all) else { break };
            core.turns.plan_end_of_holdoffs(&core.source, slot, all);
        }
        if core.holdoffs.first_end().is_some_and(|end| all || end <= now) {
            return true;
        }
        if all {
            self.percent_limits.begin_now(core);
        }
        self.percent_limits.begin_if_due(core);
        false
    }
}
