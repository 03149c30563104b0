//! The band protocol: how a charge on any CPU and the agent agree, without a
//! lock, that no crossing is missed.
//!
//! A charge changes the kernel's counter (a full barrier; on x86-64 also where the charge
//! fails and takes back what it added), reads the band, then the counter, and compares. The agent publishes a band (a full barrier) and
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
    /// inwards: a packed band never holds a usage that the band does not. The upper
    /// end as its complement, so that no band at all is 0.
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
        (lo << 32) | (MAX_UNITS ^ hi)
    }

    /// Whether the band holds `usage` pages.
    #[must_use]
    pub const fn holds(self, usage: u64) -> bool {
        self.lo <= usage && usage < self.hi
    }

    /// Whether a packed band holds `usage` pages: what every charge asks.
    #[inline(always)]
    #[must_use]
    pub const fn unpack_contains(packed: u64, usage: u64, shift: u32) -> bool {
        let units = usage >> shift;
        units >= packed >> 32 && units < !packed & MAX_UNITS
    }
}

/// [`Band::EVERYTHING`] packed, at any shift.
pub const OPEN: u64 = 0;

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

impl Place {
    /// Where `usage` lies in a packed band.
    #[inline(always)]
    const fn of(usage: u64, band: u64, shift: u32) -> Self {
        if Band::unpack_contains(band, usage, shift) {
            Self::Inside
        } else if usage >> shift >= band >> 32 {
            Self::Above
        } else {
            Self::Below
        }
    }
}

/// One of a slot's two watched quantities, memory or memory+swap: its band and
/// what was seen out of it.
#[derive(Clone, Copy, Debug)]
pub struct Track<'a, W> {
    /// The packed band.
    pub band: &'a W,
    /// Highest reading above it; 0: none.
    pub max: &'a W,
    /// Lowest reading below it; `u64::MAX`: none.
    pub min: &'a W,
    /// The slot's `pending`.
    pub pending: &'a W,
}

impl<W: Word> Slot<W> {
    /// The memory counter.
    #[inline(always)]
    pub fn memory(&self) -> Track<'_, W> {
        Track { band: &self.band, max: &self.max_seen, min: &self.min_seen, pending: &self.pending }
    }

    /// Memory+swap.
    #[inline(always)]
    pub fn sum(&self) -> Track<'_, W> {
        Track {
            band: &self.sum_band,
            max: &self.sum_max_seen,
            min: &self.sum_min_seen,
            pending: &self.pending,
        }
    }
}

/// A charge's part. `usage` reads the kernel's counter, which was changed before.
#[inline(always)]
pub fn observe<W: Word>(slot: &Slot<W>, usage: impl FnOnce() -> u64, shift: u32) -> Verdict {
    let track = slot.memory();
    match track.note(usage, shift) {
        Some((usage, above)) => track.flag(usage, above),
        None => Verdict::Quiet,
    }
}

impl<W: Word> Track<'_, W> {
    /// Where `usage` lies.
    #[inline(always)]
    pub fn place(&self, usage: u64, shift: u32) -> Place {
        Place::of(usage, self.band.get(), shift)
    }

    /// The first part, which every charge runs: it writes nothing, and where nobody
    /// waits it does not even read `usage`. Out of band: the usage, and whether it is
    /// above.
    ///
    /// The band is read before the usage: either is newer than the charge, and who
    /// has seen an old band leaves its usage to the agent, who reads after publishing.
    #[inline(always)]
    pub fn note(&self, usage: impl FnOnce() -> u64, shift: u32) -> Option<(u64, bool)> {
        let band = self.band.get();
        if band == OPEN {
            return None;
        }
        let usage = usage();
        match Place::of(usage, band, shift) {
            Place::Inside => None,
            place => Some((usage, place == Place::Above)),
        }
    }

    /// The second part, out of band: widen the excursion, then make sure that the
    /// agent looks.
    #[inline(always)]
    pub fn flag(&self, usage: u64, above: bool) -> Verdict {
        if !self.widen(usage, above) {
            return Verdict::Tell;
        }
        if raise_hand(self.pending) { Verdict::Ring } else { Verdict::Quiet }
    }

    #[inline(always)]
    fn widen(&self, usage: u64, above: bool) -> bool {
        if above { raise(self.max, usage) } else { lower(self.min, usage) }
    }

    /// The agent's part when a reading came by the ring instead of the table.
    pub fn add(&self, usage: u64, shift: u32) {
        while !self.widen(usage, usage >> shift >= self.band.get() >> 32) {}
    }

    /// Takes the excursion, after `pending` was cleared: see [`take`].
    pub fn take(&self) -> Excursion {
        Excursion { max: self.max.xchg(0), min: self.min.xchg(u64::MAX) }
    }

    fn give_back(&self, seen: Excursion) {
        while !raise(self.max, seen.max) {}
        while !lower(self.min, seen.min) {}
    }

    /// Takes the band away.
    pub fn open(&self) {
        self.band.xchg(OPEN);
    }

    /// The agent's part, second half; true when there was no band before: then the
    /// [`Epoch`](crate::calm::Epoch) has to end. After that the counter must be read
    /// again: a usage outside the band means that a charge still went by the old one.
    #[must_use]
    pub fn publish(&self, band: Band, shift: u32) -> bool {
        let band = band.pack(shift);
        self.band.xchg(band) == OPEN && band != OPEN
    }
}

/// Sets `pending`; true for the one that set it, who rings.
#[inline(always)]
pub fn raise_hand<W: Word>(pending: &W) -> bool {
    pending.get() == 0 && pending.xchg(1) == 0
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

/// All that a slot has for the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Of the memory counter.
    pub memory: Excursion,
    /// Of memory+swap.
    pub sum: Excursion,
    /// OOMs by this group's limit.
    pub ooms: u64,
    /// Windows of reclaim, by level.
    pub windows: [u64; 3],
    /// The same, of groups below without a slot of their own.
    pub windows_below: [u64; 3],
    /// Times that it became empty of tasks.
    pub emptied: u64,
}

impl Seen {
    /// Nothing happened.
    pub const NOTHING: Self = Self {
        memory: Excursion::NONE,
        sum: Excursion::NONE,
        ooms: 0,
        windows: [0; 3],
        windows_below: [0; 3],
        emptied: 0,
    };
}

/// The agent's part, first half: take what was seen. `pending` is cleared
/// *before* the rest is taken, so that what comes later rings again.
pub fn take<W: Word>(slot: &Slot<W>) -> Seen {
    slot.pending.xchg(0);
    Seen {
        memory: slot.memory().take(),
        sum: slot.sum().take(),
        ooms: slot.ooms.xchg(0),
        windows: slot.windows.each_ref().map(|count| count.xchg(0)),
        windows_below: slot.windows_below.each_ref().map(|count| count.xchg(0)),
        emptied: slot.emptied.xchg(0),
    }
}

/// Undoes [`take`] when the agent could not go on: to be looked at again.
pub fn give_back<W: Word>(slot: &Slot<W>, seen: &Seen) {
    slot.memory().give_back(seen.memory);
    slot.sum().give_back(seen.sum);
    slot.ooms.add(seen.ooms);
    let windows = slot.windows.iter().zip(seen.windows);
    for (word, count) in windows.chain(slot.windows_below.iter().zip(seen.windows_below)) {
        word.add(count);
    }
    slot.emptied.add(seen.emptied);
    slot.pending.xchg(1);
}
