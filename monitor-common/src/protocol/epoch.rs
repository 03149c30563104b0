//! The epoch: by it a charge knows, without a walk, that no group above its own is watched.
//!
//! There is one [epoch](Epoch). A charge whose walk to the root met no band walks once
//! more and keeps the epoch from before that walk in its group's slot; as long as the
//! epoch stands, the next charge there looks at its own group only, however deep that
//! lies. (Once more, because beginning an epoch writes a word that all CPUs share: charges
//! below a watched group never get there.)
//!
//! The agent that gives a band to a group that had none publishes it, then moves the
//! epoch, then reads the counter, each a full barrier. A charge changes the counter (a
//! full barrier), then reads the epoch. If it still reads the old one, the agent reads
//! the counter after it; if the new one, it walks, and sees the band. A walk that was
//! under way keeps an epoch that is over.

use crate::protocol::{band::OPEN, slot::Slot, word::Word};

/// Value of [`Slot::unwatched_above`] that no epoch ever has.
pub const NEVER: u64 = 0;

/// The number of the present epoch, less one.
#[derive(Clone, Copy, Debug)]
pub struct Epoch<'a, W>(pub &'a W);

impl<W: Word> Epoch<'_, W> {
    /// Reports whether no group above `slot`'s is watched; charges call it.
    #[inline(always)]
    pub fn is_unwatched_above(&self, slot: &Slot<W>) -> bool {
        slot.unwatched_above.get() == self.0.get().wrapping_add(1) ^ slot.counter.get()
    }

    /// The epoch to keep if the walk that begins meets no band. A full barrier, so that the bands
    /// are read after it.
    #[inline(always)]
    pub fn begin(&self) -> u64 {
        self.0.or(0).wrapping_add(1)
    }

    /// Ends the epoch: the agent's part, after a band was published where none was. Only one
    /// thread moves the epoch.
    pub fn end(&self) {
        self.0.xchg(self.0.get().wrapping_add(1));
    }
}

impl<W: Word> Slot<W> {
    /// Whether this group's memory, or memory+swap, is watched: it has a band.
    #[inline(always)]
    pub fn is_awaited(&self) -> bool {
        self.band.get() | self.sum_band.get() != OPEN
    }

    /// Keeps the `epoch` with which a walk began that met no band, for the group whose counter
    /// was at `address` before the walk: should the slot be another group's by now, it does not
    /// count for that one.
    #[inline(always)]
    pub fn set_unwatched_above(&self, epoch: u64, address: u64) {
        self.unwatched_above.set(epoch ^ address);
    }
}
