//! Groups that the black box records: each has a band, without thresholds where it has no
//! registrations, so that charges look at it, and at it from further down.

use std::collections::HashMap;

use monitor_common::protocol::{
    band::{Band, OPEN},
    word::Word as _,
};

use crate::source::Source;

/// The recorded groups, by their slots; the slots' generations.
#[derive(Debug, Default)]
pub(super) struct RecordedGroups(pub(super) HashMap<u32, u64>);

impl RecordedGroups {
    /// Whether the group that a slot has now is recorded.
    fn has(&self, source: &impl Source, index: u32) -> bool {
        let Some((generation, slot)) = self.0.get(&index).zip(source.slot(index)) else { return false };
        let state = slot.state();
        state.is_live() && state.generation() == *generation
    }

    /// The band to publish where `band` is due: one that charges look at, if the group is recorded.
    pub(super) fn band(&self, source: &impl Source, index: u32, band: Band) -> Band {
        let shift = source.band_shift();
        if band.is_open(shift) && self.has(source, index) { Band::looked_at(shift) } else { band }
    }

    /// Leaves a slot without registrations with the band that it is due.
    pub(super) fn open_or_record(&self, source: &impl Source, index: u32) {
        if let Some(slot) = source.slot(index).filter(|slot| slot.band.get() != OPEN) {
            let band = self.band(source, index, Band::EVERYTHING);
            // It had a band before, so no epoch ends.
            let _ = slot.memory().publish(band, source.band_shift());
        }
    }
}
