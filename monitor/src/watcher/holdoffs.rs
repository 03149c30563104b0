//! Ends of hold-offs: thresholds that flapped are looked at again when theirs is over.

use std::collections::BTreeSet;

/// Ends of hold-offs, by the host's clock, each with the slot of its threshold.
#[derive(Debug, Default)]
pub(super) struct Holdoffs(BTreeSet<(u64, u32)>);

impl Holdoffs {
    /// Notes that a hold-off on a slot ends at `end`.
    pub(super) fn add(&mut self, end: u64, slot: u32) {
        self.0.insert((end, slot));
    }

    /// The first end of all.
    pub(super) fn first_end(&self) -> Option<u64> {
        self.0.first().map(|(end, _)| *end)
    }

    /// Takes the slot of a hold-off that is over by `now`, or of any.
    pub(super) fn take_ended(&mut self, now: u64, any: bool) -> Option<u32> {
        let &(end, slot) = self.0.first()?;
        if !any && end > now {
            return None;
        }
        self.0.pop_first();
        Some(slot)
    }
}
