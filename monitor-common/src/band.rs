//! The band protocol: how a charge on any CPU and the agent agree, without a
//! lock, that no crossing is missed.
//!
//! A charge changes the kernel's counter (a full barrier), reads it back and
//! compares it with the band. The agent publishes a band (a full barrier) and
//! reads the counter. Whichever comes second sees the other: either the charge
//! sees the new band, or the agent sees the new usage. The band is one word, so
//! nobody sees half of an old and half of a new one.
//!
//! Out of band, the charge first widens the excursion, then sets `pending`; the
//! agent first clears `pending`, then takes the excursion. So an excursion that
//! the agent did not take leaves `pending` set and a doorbell on its way.

use crate::{
    slot::{ATTEMPTS, Slot},
    word::Word,
};

/// Usage, in pages, that crosses no threshold: `lo <= usage < hi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    /// The highest threshold at or below usage; 0 when there is none.
    pub lo: u64,
    /// The lowest threshold above usage; `u64::MAX` when there is none.
    pub hi: u64,
}

impl Band {
    /// No thresholds: every charge is in band.
    pub const EVERYTHING: Self = Self { lo: 0, hi: u64::MAX };

    /// Both ends in one word, each in units of `1 << shift` pages, rounded
    /// inwards: a packed band never holds a usage that the band does not.
    #[must_use]
    pub const fn pack(self, shift: u32) -> u64 {
        let unit = (1u64 << shift) - 1;
        let lo = match self.lo.checked_add(unit) {
            Some(lo) => lo >> shift,
            None => MAX_UNITS,
        };
        let hi = self.hi >> shift;
        let lo = if lo > MAX_UNITS { MAX_UNITS } else { lo };
        let hi = if hi > MAX_UNITS { MAX_UNITS } else { hi };
        (lo << 32) | hi
    }

    /// Whether a packed band holds `usage` pages: what every charge asks.
    #[inline(always)]
    #[must_use]
    pub const fn unpack_contains(packed: u64, usage: u64, shift: u32) -> bool {
        let units = usage >> shift;
        units >= packed >> 32 && units < packed & MAX_UNITS
    }
}

/// The upper end of a packed band without one; 16 TiB of 4 KiB pages at shift 0.
const MAX_UNITS: u64 = u32::MAX as u64;

/// The smallest shift at which a host of `pages` never reaches the packed
/// band's end, with room to double by hot-plug.
#[must_use]
pub const fn shift_for(pages: u64) -> u32 {
    let mut shift = 0;
    while shift < 16 && pages.saturating_mul(2) >> shift >= MAX_UNITS {
        shift += 1;
    }
    shift
}

/// What a charge has to do after it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// In band, or the agent already knows that it has to look.
    Quiet,
    /// Ring the doorbell: this call set `pending`.
    Ring,
    /// Others kept racing for the excursion: send the reading itself.
    Tell,
}

/// Where a usage lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In band.
    Inside,
    /// At or above the band's upper end.
    Above,
    /// Below the band's lower end.
    Below,
}

/// A charge's part. `usage` is the kernel's counter, read after it was changed.
#[inline(always)]
pub fn observe<W: Word>(slot: &Slot<W>, usage: u64, shift: u32) -> Verdict {
    match note(slot, usage, shift) {
        Place::Inside => Verdict::Quiet,
        place => flag(slot, usage, place == Place::Above),
    }
}

/// The first part, which every charge runs: store, and compare with the band.
#[inline(always)]
pub fn note<W: Word>(slot: &Slot<W>, usage: u64, shift: u32) -> Place {
    slot.usage.set(usage);
    // Racy like the kernel's own `watermark`, which `list` shows it with.
    if usage > slot.peak.get() {
        slot.peak.set(usage);
    }
    let band = slot.band.get();
    if Band::unpack_contains(band, usage, shift) {
        Place::Inside
    } else if usage >> shift >= band >> 32 {
        Place::Above
    } else {
        Place::Below
    }
}

/// The second part, out of band: widen the excursion, then make sure that the
/// agent looks.
#[inline(always)]
pub fn flag<W: Word>(slot: &Slot<W>, usage: u64, above: bool) -> Verdict {
    if !widen(slot, usage, above) {
        return Verdict::Tell;
    }
    if slot.pending.get() != 0 || slot.pending.xchg(1) != 0 {
        return Verdict::Quiet;
    }
    Verdict::Ring
}

#[inline(always)]
fn widen<W: Word>(slot: &Slot<W>, usage: u64, above: bool) -> bool {
    if above { raise(&slot.max_seen, usage) } else { lower(&slot.min_seen, usage) }
}

/// The agent's part when a reading came by the ring instead of the table.
pub fn add<W: Word>(slot: &Slot<W>, usage: u64, shift: u32) {
    while !widen(slot, usage, usage >> shift >= slot.band.get() >> 32) {}
}

#[inline(always)]
fn raise<W: Word>(word: &W, value: u64) -> bool {
    let mut held = word.get();
    for _ in 0..ATTEMPTS {
        if held >= value {
            return true;
        }
        let before = word.cas(held, value);
        if before == held {
            return true;
        }
        held = before;
    }
    false
}

#[inline(always)]
fn lower<W: Word>(word: &W, value: u64) -> bool {
    let mut held = word.get();
    for _ in 0..ATTEMPTS {
        if held <= value {
            return true;
        }
        let before = word.cas(held, value);
        if before == held {
            return true;
        }
        held = before;
    }
    false
}

/// The out-of-band readings since the agent last took them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excursion {
    /// The lowest reading below the band; `u64::MAX` when there was none.
    pub min: u64,
    /// The highest reading above the band; 0 when there was none.
    pub max: u64,
}

impl Excursion {
    /// Nothing out of band was seen.
    pub const NONE: Self = Self { min: u64::MAX, max: 0 };
}

/// The agent's part, first half: take what was seen. `pending` is cleared
/// *before* the excursion is taken, so that what comes later rings again.
pub fn take<W: Word>(slot: &Slot<W>) -> Excursion {
    slot.pending.xchg(0);
    Excursion { max: slot.max_seen.xchg(0), min: slot.min_seen.xchg(u64::MAX) }
}

/// Undoes [`take`] when the agent could not go on: to be looked at again.
pub fn give_back<W: Word>(slot: &Slot<W>, seen: Excursion) {
    while !raise(&slot.max_seen, seen.max) {}
    while !lower(&slot.min_seen, seen.min) {}
    slot.pending.xchg(1);
}

/// The agent's part, second half. After this the counter must be read again: a
/// usage outside the band means that a charge still went by the old one.
pub fn publish<W: Word>(slot: &Slot<W>, band: Band, shift: u32) {
    slot.band.xchg(band.pack(shift));
}
