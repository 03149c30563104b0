//! The watcher's part of watching groups by patterns: new groups, what they did before anyone could
//! register on them, and the end of a watch's registrations.

use std::sync::Arc;

use monitor_common::protocol::{
    oom::BY_LIMIT_WRITE,
    slot::{Slot, SlotState},
    word::Word as _,
};
use tokio::sync::Notify;

use crate::{
    error::Result,
    source::{FileId, GroupId, Source},
    watcher::{
        Watcher,
        arrivals::{Arrival, Early},
        hierarchy::{above, is_there},
        quantity::endless,
    },
};

/// The past of a group since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lived {
    /// Usage now, or when the group went, in pages.
    pub usage: u64,
    /// The highest usage, by the kernel's own mark, in pages.
    pub peak: u64,
    /// The lowest limit from the group up, in pages; `u64::MAX`: none.
    pub limit: u64,
    /// OOMs by the group's own limit.
    pub ooms: u64,
    /// Whether the group is there.
    pub is_there: bool,
    /// Whether all of this is known: not of a group that left while the kernel called no program.
    pub is_whole: bool,
}

impl<S: Source> Watcher<S> {
    /// Notes one who watches for new groups, or (`false`) one who does so no more; `kinds` are the bits of
    /// [`Subscriptions`](monitor_common::protocol::query::Subscriptions) that are counted in these groups.
    /// Returns what is notified when there are new groups.
    pub fn watch_arrivals(&mut self, kinds: u64, more: bool) -> Arc<Notify> {
        self.core.arrivals.want(kinds, more);
        self.core.registrations_changed();
        self.core.arrivals.notification()
    }

    /// Takes up to `most` new groups; each is to be let go of ([`Watcher::let_arrival_go`]).
    pub fn take_arrivals(&mut self, most: usize) -> Vec<Arrival> {
        self.core.arrivals.take(most)
    }

    /// The number of new groups that were not kept, since there were too many at once.
    pub fn arrivals_not_kept(&self) -> u64 {
        self.core.arrivals.not_kept()
    }

    /// Whether a group was made since someone watches, and is still to be let go of.
    pub fn is_arrival(&self, group: GroupId) -> bool {
        self.core.arrivals.is_new(&self.core.source, group)
    }

    /// The events of a new group that no registration may have told of, as far as they are worked out;
    /// `None` for any other.
    pub fn early(&self, group: GroupId) -> Option<Early> {
        self.core.arrivals.early(group)
    }

    /// Whether more of a group's events are still to be worked out.
    pub fn awaits_look(&self, group: GroupId) -> bool {
        let slot = self.core.source.slot(group.slot);
        let is_rung =
            slot.is_some_and(|slot| slot.state().generation() == group.generation && slot.pending.get() != 0);
        is_rung || self.core.turns.awaits_look(group.slot)
    }

    /// The host's memory in pages.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn ram(&self) -> Result<u64> {
        self.core.host.ram()
    }

    /// Keeps the slot of a new group no longer.
    pub fn let_arrival_go(&mut self, group: GroupId) {
        let GroupId { slot: index, generation } = group;
        let is_its = self.core.source.slot(index).is_some_and(|slot| slot.state().generation() == generation);
        if self.core.arrivals.let_go(group) && is_its && self.core.registry.group(index).is_none() {
            self.core.release(index);
        }
    }

    /// Returns the past of a group since it was made; `None` where the slot is no longer its own, or is
    /// the root's.
    ///
    /// # Errors
    /// The kernel cannot be queried.
    pub fn lived(&self, group: GroupId) -> Result<Option<Lived>> {
        let source = &self.core.source;
        if group.slot == source.root().slot {
            return Ok(None);
        }
        let limit = |slot| self.core.effective_limit(slot);
        if is_there(source, group)
            && let (Some(usage), Some(peak)) = (source.usage(group)?, source.peak(group)?)
        {
            // Not every kernel's count is known.
            let ooms = source.ooms(group).ok().flatten().unwrap_or(0);
            let limit = limit(group.slot)?;
            return Ok(Some(Lived {
                usage,
                peak: peak.max(usage),
                limit,
                ooms,
                is_there: true,
                is_whole: true,
            }));
        }
        let Some(slot) = source.slot(group.slot) else { return Ok(None) };
        let state = slot.state();
        if state.generation() != group.generation || !state.has(SlotState::OFFLINE) {
            return Ok(None);
        }
        if slot.window.get() == Slot::<u64>::PEAK_UNKNOWN {
            return Ok(Some(Lived { is_there: false, is_whole: false, ..Lived::default() }));
        }
        let (usage, own) = (slot.last.get(), slot.limit.get());
        let peak = slot.window.get().max(usage);
        let above = above(source, group.slot).filter(|above| *above != source.root().slot);
        let above = above.map_or(Ok(u64::MAX), limit)?;
        let own = if own >= endless() { u64::MAX } else { own };
        let ooms = slot.oom_calls.get() & !BY_LIMIT_WRITE;
        Ok(Some(Lived { usage, peak, limit: own.min(above), ooms, is_there: false, is_whole: true }))
    }

    /// Ends all registrations on an eventfd, some at once and the others in turns.
    pub fn end_file(&mut self, file: FileId) {
        self.core.forget_files(&[file]);
    }
}
