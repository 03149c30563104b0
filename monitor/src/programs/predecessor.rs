//! Earlier programs that are replaced, and what they have seen: taken over from their tables,
//! where the layout is known.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use monitor_common::protocol::{
    band::{self, Excursion, Seen},
    slot::{SCHEMA, SlotState},
    word::Word as _,
};
use monitor_sys::table::{SharedScratch, SharedSlot, Table};

use crate::{
    error::Result,
    programs::{error::PredecessorError, handles::open_shared},
};

/// Tables of earlier programs, by layout.
pub(super) enum Predecessor {
    /// Tables of the present layout.
    Present { slots: Table<SharedSlot>, scratch: Table<SharedScratch> },
    /// Tables of layout 4.
    Four { slots: Table<AtomicU64>, scratch: Table<AtomicU64> },
}

/// Words of layout 4 (version 0.1.0), as they were.
mod four {
    pub(super) const SCHEMA: u32 = 4;
    pub(super) const SLOT_WORDS: usize = 24;
    pub(super) const BAND: usize = 0;
    pub(super) const SUM_BAND: usize = 1;
    pub(super) const STATE: usize = 4;
    pub(super) const ONLINE: u64 = 1;
    pub(super) const CGROUP_ID: usize = 5;
    pub(super) const MAX_SEEN: usize = 8;
    pub(super) const MIN_SEEN: usize = 9;
    pub(super) const PENDING: usize = 10;
    pub(super) const SUM_MAX_SEEN: usize = 11;
    pub(super) const SUM_MIN_SEEN: usize = 12;
    pub(super) const OOMS: usize = 13;
    pub(super) const WINDOWS: usize = 17;
    pub(super) const EMPTIED: usize = 20;

    pub(super) const SCRATCH_WORDS: usize = 16;
    pub(super) const WANTED: usize = 7;
    pub(super) const SIZES: usize = 10;
}

impl Predecessor {
    /// Opens the tables that are pinned in `directory`.
    ///
    /// # Errors
    /// A map is missing, or the layout is not known.
    pub(super) fn open(directory: &Path, schema: u32) -> Result<Self> {
        // The lower half: slots without the root's.
        let slots = |sizes: u64| (sizes & u64::from(u32::MAX)) as usize + 1;
        match schema {
            SCHEMA => {
                let scratch: Table<SharedScratch> = open_shared(directory, "SCRATCH", 1)?;
                let sizes = scratch.get(0).map_or(0, |cell| cell.sizes.get());
                Ok(Self::Present { slots: open_shared(directory, "SLOTS", slots(sizes))?, scratch })
            }
            four::SCHEMA => {
                let scratch: Table<AtomicU64> = open_shared(directory, "SCRATCH", four::SCRATCH_WORDS)?;
                let sizes = word(&scratch, four::SIZES).load(Ordering::Relaxed);
                let words = slots(sizes) * four::SLOT_WORDS;
                Ok(Self::Four { slots: open_shared(directory, "SLOTS", words)?, scratch })
            }
            schema => Err(PredecessorError::UnknownLayout { schema }.into()),
        }
    }

    /// Makes them stop counting OOMs, windows of reclaim and emptyings.
    pub(super) fn stop_counting(&self) {
        match self {
            Self::Present { scratch, .. } => {
                scratch.get(0).map(|cell| cell.wanted.xchg(0));
            }
            Self::Four { scratch, .. } => {
                word(scratch, four::WANTED).swap(0, Ordering::SeqCst);
            }
        }
    }

    /// Takes what each group's slot has for the agent, with the group's id; the slots are not
    /// read again. A run of a program that had begun may leave some more.
    pub(super) fn take(&self, mut taken: impl FnMut(u64, &Seen)) {
        let mut found = |is_online, cgroup_id, seen: &Seen| {
            if is_online && *seen != Seen::NOTHING {
                taken(cgroup_id, seen);
            }
        };
        match self {
            Self::Present { slots, .. } => {
                for slot in (0..slots.len()).filter_map(|index| slots.get(index)) {
                    [slot.memory(), slot.sum()].iter().for_each(band::Track::open);
                    if slot.pending.get() != 0 {
                        found(
                            slot.state().has(SlotState::ONLINE),
                            slot.cgroup_id.get(),
                            &band::take(slot).merged(),
                        );
                    }
                }
            }
            Self::Four { slots, .. } => {
                for first in (0..slots.len()).step_by(four::SLOT_WORDS) {
                    let at = |at: usize| word(slots, first + at);
                    let get = |from: usize| at(from).load(Ordering::SeqCst);
                    let put = |to: usize, value: u64| at(to).swap(value, Ordering::SeqCst);
                    for band in [four::BAND, four::SUM_BAND] {
                        put(band, band::OPEN);
                    }
                    if put(four::PENDING, 0) != 0 {
                        let excursion = |min, max| Excursion { min: put(min, u64::MAX), max: put(max, 0) };
                        let seen = Seen {
                            memory: excursion(four::MIN_SEEN, four::MAX_SEEN),
                            sum: excursion(four::SUM_MIN_SEEN, four::SUM_MAX_SEEN),
                            late: [Excursion::NONE; 2],
                            ooms: put(four::OOMS, 0),
                            windows: [0, 1, 2].map(|level| put(four::WINDOWS + level, 0)),
                            windows_below: [0; 3],
                            emptied: put(four::EMPTIED, 0),
                        };
                        found(get(four::STATE) & four::ONLINE != 0, get(four::CGROUP_ID), &seen);
                    }
                }
            }
        }
    }
}

/// A word at an index that the table has.
fn word(table: &Table<AtomicU64>, at: usize) -> &AtomicU64 {
    static NOWHERE: AtomicU64 = AtomicU64::new(0);
    table.get(at).unwrap_or(&NOWHERE)
}
