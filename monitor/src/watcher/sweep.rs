//! The safety net, in turns: what a lost doorbell or a skipped program left behind; and
//! eventfds that their clients have closed.

use monitor_common::{ring::Tally, word::Word as _};

use crate::{
    source::Source,
    watcher::{Watcher, turns::Payer, work::Task},
};

/// Slots that a sweep looks at in a turn.
const SWEPT: u32 = 256;

/// A sweep on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sweep {
    next: u32,
    /// All that is watched is looked at, for something was lost.
    all: bool,
}

impl<S: Source> Watcher<S> {
    /// The safety net: finds what a lost doorbell or a skipped program left behind, and then
    /// closed eventfds, in turns.
    pub fn sweep(&mut self) {
        let misses = self.source.misses();
        let (skipped, lost) = (misses.charges, self.losses());
        self.signaller.try_again();
        self.tell_shortages();
        let all = skipped != self.skipped || lost != self.lost;
        (self.skipped, self.lost) = (skipped, lost);
        self.begin_sweep(all);
        self.make_up(&misses);
        self.look_above_the_deep();
        self.find_parents();
    }

    /// A sweep where doorbells were lost; one at a time, and the next only once that one
    /// is over.
    pub fn sweep_after_loss(&mut self) {
        let lost = self.losses();
        if self.sweep.is_none() && lost != self.lost {
            self.lost = lost;
            self.begin_sweep(true);
        }
    }

    fn begin_sweep(&mut self, all: bool) {
        if all {
            log::debug!(
                "reading all watched groups again: {} calls skipped, {} losses so far",
                self.skipped,
                self.lost
            );
            self.counts.resyncs += 1;
        }
        match &mut self.sweep {
            // From its beginning: what it has passed may be what was lost.
            Some(sweep) => *sweep = Sweep { next: 0, all: all || sweep.all },
            None => {
                self.sweep = Some(Sweep { next: 0, all });
                self.turns.push(Payer::House, Task::Sweep);
                self.work.notify_one();
            }
        }
    }

    pub(super) fn sweep_on(&mut self, room: &mut usize) {
        *room = 0;
        let Some(Sweep { next, all }) = self.sweep.take() else { return };
        for index in next..next.saturating_add(SWEPT) {
            let Some(slot) = self.source.slot(index) else {
                self.limits_written();
                if self.search.is_done() {
                    self.search = self.search_closed();
                    self.asked.clear();
                }
                self.queue_search();
                return;
            };
            let (is_pending, is_watched) = (slot.pending.get() != 0, self.registry.group(index).is_some());
            // All slots after a loss: an OOM or a window of reclaim is told to others
            // than the group in whose slot it is.
            if is_pending && (all || is_watched) || all && is_watched {
                self.ring(index, 0);
            }
        }
        self.sweep = Some(Sweep { next: next.saturating_add(SWEPT), all });
        self.turns.push(Payer::House, Task::Sweep);
    }

    fn losses(&self) -> u64 {
        self.source.tally(Tally::RingFull)
    }
}
