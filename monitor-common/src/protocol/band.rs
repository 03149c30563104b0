//! The band protocol: how a charge on any CPU and the agent agree, without a
//! lock, that no crossing is missed.
//!
//! A charge changes the kernel's counter (a full barrier; where a charge that fails takes
//! back what it added without one, the program adds one), reads the band, then the counter,
//! and compares. The agent publishes a band (a full barrier) and reads the counter.
//! Whichever comes second sees the other: either the charge sees the new band, or the
//! agent sees the new usage. The band is one word, so no reader sees half of an old and half
//! of a new one.
//!
//! Out of band, the charge first widens the excursion, then sets `pending`; the
//! agent first clears `pending`, then takes the excursion. So an excursion that
//! the agent did not take leaves `pending` set and a doorbell on its way.
//!
//! Each reading carries the *version* of the band that it was compared with. Each look of
//! the agent takes what there is, reads the counter, and publishes bands of the next version.
//! A reading with the present version was made after the look before had read the counter:
//! what it says is new. One with the version before may have been made before that: the
//! agent drops of it what that look has signalled already
//! ([`Look`](crate::protocol::crossing::Look)). One that is older is of a charge that was
//! still under way when a later look read the counter, which has seen what was left of it.

use crate::protocol::{
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
    /// The band without thresholds: every charge is in it.
    pub const EVERYTHING: Self = Self { lo: 0, hi: u64::MAX };

    /// Packs both ends into one word, each in units of `1 << shift` pages, rounded
    /// inwards: a packed band never holds a usage that the band does not. The upper
    /// end is stored as its complement. No band at all has no version: it is 0.
    #[must_use]
    pub const fn pack(self, shift: u32, version: u64) -> u64 {
        let unit = (1u64 << shift) - 1;
        let lo = match self.lo.checked_add(unit) {
            Some(lo) => lo >> shift,
            None => MAX_UNITS,
        };
        let hi = self.hi >> shift;
        let lo = if lo > MAX_UNITS { MAX_UNITS } else { lo };
        let hi = if hi > MAX_UNITS { MAX_UNITS } else { hi };
        let ends = (lo << LO_BIT) | ((MAX_UNITS ^ hi) << HI_BIT);
        if ends == OPEN { OPEN } else { ends | version & VERSION }
    }

    /// A band without thresholds that is looked at all the same: it holds all that can be charged.
    #[must_use]
    pub const fn looked_at(shift: u32) -> Self {
        Self { lo: 0, hi: (MAX_UNITS - 1) << shift }
    }

    /// Whether charges do not look at this band.
    #[must_use]
    pub const fn is_open(self, shift: u32) -> bool {
        self.pack(shift, 0) == OPEN
    }

    /// Whether the band holds `usage` pages.
    #[must_use]
    pub const fn holds(self, usage: u64) -> bool {
        self.lo <= usage && usage < self.hi
    }

    /// Whether a packed band holds `usage` pages: the check of every charge.
    #[inline(always)]
    #[must_use]
    pub const fn unpack_contains(packed: u64, usage: u64, shift: u32) -> bool {
        let units = usage >> shift;
        units >= packed >> LO_BIT && units < (!packed >> HI_BIT) & MAX_UNITS
    }
}

impl Band {
    /// How many pages `usage` may change before it leaves a packed band: 0 where it is out of it.
    #[must_use]
    pub const fn distance(packed: u64, usage: u64, shift: u32) -> u64 {
        if !Self::unpack_contains(packed, usage, shift) {
            return 0;
        }
        let (lo, hi) = (packed >> LO_BIT, (!packed >> HI_BIT) & MAX_UNITS);
        // Without a lower or upper end there is none to reach.
        let below = if lo == 0 { u64::MAX } else { usage - (lo << shift) + 1 };
        let above = if hi == MAX_UNITS { u64::MAX } else { (hi << shift) - usage };
        if below < above { below } else { above }
    }
}

/// [`Band::EVERYTHING`] packed, at any shift.
pub const OPEN: u64 = 0;

/// The upper end of a packed band without one; 1 TiB of 4 KiB pages at shift 0.
const MAX_UNITS: u64 = (1 << 28) - 1;

/// Lowest bits of the two ends in a packed band; below them is its version.
const LO_BIT: u32 = 36;
const HI_BIT: u32 = 8;

/// The bits of a version in a packed band, and in a reading.
const VERSION: u64 = (1 << HI_BIT) - 1;

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

/// The outcome of a charge's comparison: how the agent is notified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The reading is in band, or the agent is already due to look.
    Quiet,
    /// Ring the doorbell: this call set `pending`.
    Ring,
    /// Others kept racing for the excursion: send the reading itself.
    Tell,
}

/// A usage out of band.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside {
    /// Usage in pages; below 2^55.
    pub usage: u64,
    /// True: at or above the band's upper end; false: below its lower end.
    pub is_above: bool,
    /// The version of that band, of which the low 8 bits count.
    pub version: u64,
}

/// Set in the word of an [`Outside`] that is below.
const BELOW: u64 = 1 << 63;

impl Outside {
    /// Packs the reading into one word, for the ring.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.tagged() & !BELOW | if self.is_above { 0 } else { BELOW }
    }

    /// Unpacks the word that [`to_word`](Self::to_word) made.
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        let tagged = word & !BELOW;
        Self { usage: tagged >> HI_BIT, is_above: word & BELOW == 0, version: tagged & VERSION }
    }

    /// The word that excursions hold, ordered by usage.
    #[inline(always)]
    const fn tagged(self) -> u64 {
        self.usage << HI_BIT | self.version & VERSION
    }
}

/// Looks since the band that a reading was compared with; `tagged` in its low bits.
#[inline(always)]
const fn age(tagged: u64, version: u64) -> u64 {
    version.wrapping_sub(tagged) & VERSION
}

/// One of a slot's two watched quantities, memory or memory+swap: its band and
/// what was seen out of it.
#[derive(Clone, Copy, Debug)]
pub struct Track<'a, W> {
    /// The packed band of the quantity.
    pub band: &'a W,
    /// The version of the next bands to be published.
    pub version: &'a W,
    /// Highest readings above the band, by the version's lowest bit; 0: none.
    pub max: &'a [W; 2],
    /// Lowest readings below the band, likewise; `u64::MAX`: none.
    pub min: &'a [W; 2],
    /// The `pending` word of the slot.
    pub pending: &'a W,
}

impl<W: Word> Slot<W> {
    /// The track of the memory counter.
    #[inline(always)]
    pub fn memory(&self) -> Track<'_, W> {
        let Self { band, version, max_seen: max, min_seen: min, pending, .. } = self;
        Track { band, version, max, min, pending }
    }

    /// The track of memory+swap.
    #[inline(always)]
    pub fn sum(&self) -> Track<'_, W> {
        let Self { sum_band: band, version, sum_max_seen: max, sum_min_seen: min, pending, .. } = self;
        Track { band, version, max, min, pending }
    }

    /// Begins another version: the agent's part, between a look and the bands that follow from
    /// it.
    pub fn next_version(&self) {
        self.version.set(self.version.get().wrapping_add(1));
    }
}

/// Compares usage with the band: a charge's part. `usage` reads the kernel's counter, which
/// was changed before.
#[inline(always)]
pub fn observe<W: Word>(slot: &Slot<W>, usage: impl FnOnce() -> u64, shift: u32) -> Verdict {
    slot.memory().observe(usage, shift)
}

impl<W: Word> Track<'_, W> {
    /// Compares usage with this band, as [`observe`] does.
    #[inline(always)]
    pub fn observe(&self, usage: impl FnOnce() -> u64, shift: u32) -> Verdict {
        let band = self.band.get();
        if band == OPEN {
            return Verdict::Quiet;
        }
        compare(band, usage(), shift).map_or(Verdict::Quiet, |outside| self.flag(outside))
    }

    /// Widens the excursion, then makes sure that the agent looks: the second part, out of band.
    #[inline(always)]
    pub fn flag(&self, outside: Outside) -> Verdict {
        if !self.widen(outside) {
            return Verdict::Tell;
        }
        if raise_hand(self.pending) { Verdict::Ring } else { Verdict::Quiet }
    }

    /// Widens the excursion; false when others kept racing for the word.
    #[inline(always)]
    fn widen(&self, outside: Outside) -> bool {
        let (tagged, set) = (outside.tagged(), (outside.version & 1) as usize);
        let (word, none) = if outside.is_above { (&self.max[set], 0) } else { (&self.min[set], u64::MAX) };
        let covers = |held: u64| if outside.is_above { held >= tagged } else { held <= tagged };
        let is_same = |held: u64| held != none && (held ^ tagged) & VERSION == 0;
        let held = word.get();
        if is_same(held) && covers(held) {
            return true;
        }
        for _ in 0..ATTEMPTS {
            // A full barrier: what is held is no newer than the version read after it.
            let held = word.or(0);
            let version = self.version.get();
            let mine = age(tagged, version);
            // Older than the band before the present one: see the module's header.
            if mine > 1 || held != none && (age(held, version) < mine || is_same(held) && covers(held)) {
                return true;
            }
            if word.cas(held, tagged) == held {
                return true;
            }
        }
        false
    }

    /// Adds a reading that is in the ring instead of the table: the agent's part. It is not
    /// dropped for its age: the ring may have been read late.
    pub fn add(&self, outside: Outside) {
        let version = self.version.get();
        let is_known = age(outside.version, version) <= 1;
        let outside = if is_known { outside } else { Outside { version, ..outside } };
        while !self.widen(outside) {}
    }

    /// Whether `usage`, read after `band` was published, is out of it, and another look is due:
    /// the agent's last part. Then it counts as a reading: a charge that went by an older band
    /// may leave what it saw to this one, and the next look may be too late for it.
    pub fn leaves(&self, band: Band, usage: u64) -> bool {
        let is_out = !band.holds(usage);
        if is_out {
            self.add(Outside { usage, is_above: usage >= band.hi, version: self.version.get() });
        }
        is_out
    }

    /// Takes the excursions, after `pending` was cleared (see [`take`]): that of the
    /// present version, and that of the one before.
    pub fn take(&self) -> (Excursion, Excursion) {
        let version = self.version.get();
        let take = |version: u64| {
            let set = (version & 1) as usize;
            Excursion::of(self.max[set].xchg(0), self.min[set].xchg(u64::MAX), |tagged| {
                age(tagged, version) == 0
            })
        };
        let late = take(version.wrapping_sub(1));
        (take(version), late)
    }

    fn give_back(&self, seen: Excursion, version: u64) {
        if seen.max > 0 {
            self.add(Outside { usage: seen.max, is_above: true, version });
        }
        if seen.min < u64::MAX {
            self.add(Outside { usage: seen.min, is_above: false, version });
        }
    }

    /// Takes the band away, which leaves [`OPEN`].
    pub fn open(&self) {
        self.band.xchg(OPEN);
    }

    /// Publishes a band: the agent's part, second half. True when there was no band before: then
    /// the [`Epoch`](crate::protocol::epoch::Epoch) has to end. After that the counter must be
    /// read again ([`leaves`](Self::leaves)): a usage outside the band means that a charge still
    /// went by the old one.
    #[must_use]
    pub fn publish(&self, band: Band, shift: u32) -> bool {
        let band = band.pack(shift, self.version.get());
        self.band.xchg(band) == OPEN && band != OPEN
    }
}

/// Compares with a packed `band` a usage that was read after it: where it lies out of it.
///
/// In this order, both are newer than the charge, and usage is newer than the band: a charge
/// that has seen an old band leaves its usage to the agent, which reads after publishing.
#[inline(always)]
#[must_use]
pub const fn compare(band: u64, usage: u64, shift: u32) -> Option<Outside> {
    if Band::unpack_contains(band, usage, shift) {
        return None;
    }
    Some(Outside { usage, is_above: usage >> shift >= band >> LO_BIT, version: band & VERSION })
}

/// Sets `pending`; true for the caller that set it, which rings.
#[inline(always)]
pub fn raise_hand<W: Word>(pending: &W) -> bool {
    pending.get() == 0 && pending.xchg(1) == 0
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
    /// The excursion without any reading out of band.
    pub const NONE: Self = Self { min: u64::MAX, max: 0 };

    /// Makes it from the words of a slot, of those readings that count.
    fn of(max: u64, min: u64, counts: impl Fn(u64) -> bool) -> Self {
        Self {
            max: if max != 0 && counts(max) { max >> HI_BIT } else { 0 },
            min: if min != u64::MAX && counts(min) { min >> HI_BIT } else { u64::MAX },
        }
    }

    /// Joins both excursions into one.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// Everything that a slot holds for the agent since it last looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Readings of the memory counter.
    pub memory: Excursion,
    /// Readings of memory and swap together.
    pub sum: Excursion,
    /// Readings of both that were compared with the bands before the present ones.
    pub late: [Excursion; 2],
    /// OOMs by this group's limit.
    pub ooms: u64,
    /// Windows of reclaim, by level of pressure.
    pub windows: [u64; 3],
    /// Windows of groups below without a slot of their own, by level.
    pub windows_below: [u64; 3],
    /// Times that it became empty of tasks.
    pub emptied: u64,
}

impl Seen {
    /// The record in which nothing happened.
    pub const NOTHING: Self = Self {
        memory: Excursion::NONE,
        sum: Excursion::NONE,
        late: [Excursion::NONE; 2],
        ooms: 0,
        windows: [0; 3],
        windows_below: [0; 3],
        emptied: 0,
    };

    /// Late readings merged into the others, as if all were new.
    #[must_use]
    pub fn merged(self) -> Self {
        let [memory, sum] = self.late;
        let none = [Excursion::NONE; 2];
        Self { memory: self.memory.and(memory), sum: self.sum.and(sum), late: none, ..self }
    }
}

/// Takes what was seen: the agent's part, first half. `pending` is cleared
/// *before* the rest is taken, so that what happens later rings again.
pub fn take<W: Word>(slot: &Slot<W>) -> Seen {
    slot.pending.xchg(0);
    let ((memory, late), (sum, sum_late)) = (slot.memory().take(), slot.sum().take());
    Seen {
        memory,
        sum,
        late: [late, sum_late],
        ooms: slot.ooms.xchg(0),
        windows: slot.windows.each_ref().map(|count| count.xchg(0)),
        windows_below: slot.windows_below.each_ref().map(|count| count.xchg(0)),
        emptied: slot.emptied.xchg(0),
    }
}

/// Undoes [`take`] when the agent could not go on, so that it looks again.
pub fn give_back<W: Word>(slot: &Slot<W>, seen: &Seen) {
    let version = slot.version.get();
    let tracks = [(slot.memory(), seen.memory), (slot.sum(), seen.sum)];
    for ((track, present), late) in tracks.into_iter().zip(seen.late) {
        track.give_back(present, version);
        track.give_back(late, version.wrapping_sub(1));
    }
    slot.ooms.add(seen.ooms);
    let windows = slot.windows.iter().zip(seen.windows);
    for (word, count) in windows.chain(slot.windows_below.iter().zip(seen.windows_below)) {
        word.add(count);
    }
    slot.emptied.add(seen.emptied);
    slot.pending.xchg(1);
}
