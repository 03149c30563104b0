//! The table both sides share: one [`Slot`] for each memory cgroup.
//!
//! Everything that both sides share is made of 64-bit words without padding, so
//! that the layout is the same for the BPF target and the host.

use crate::protocol::word::Word;

/// Version of all that both sides share. Bump on any change of layout or meaning.
pub const SCHEMA: u32 = 6;

/// Levels up to which the marks of an OOM reach.
pub const MAX_DEPTH: usize = 64;

/// Levels up to which a charge is followed to the root. Where a hierarchy is deeper,
/// charges are counted in [`LossKind::TooDeep`](crate::protocol::ring::LossKind::TooDeep) and
/// leave [`Slot::deep`] where their walk ended; a sweep reads what is above that.
pub const REACH: usize = 512;

/// `parent` of a slot right below the root: the walk ends there.
pub const PARENT_ROOT: u64 = u64::MAX;
/// `parent` of a slot whose parent has none, or was not known yet: the kernel's own
/// pointers say it instead.
pub const PARENT_UNKNOWN: u64 = u64::MAX - 1;

/// `populated` of a slot: no task is there.
pub const NOT_POPULATED: u64 = 0;
/// `populated` of a slot: some task is there.
pub const POPULATED: u64 = 1;
/// `populated` of a slot: not queried yet.
pub const POPULATED_UNKNOWN: u64 = 2;

/// One memory cgroup, by cache lines: what each charge reads; what was seen out of band;
/// what else happens; usage. While usage stays in band, a charge writes only the last, and
/// only where the group is [followed](Slot::is_awaited); so CPUs share the first.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Slot<W> {
    /// The packed [`Band`](crate::protocol::band::Band) in which a charge needs no attention.
    pub band: W,
    /// The packed band of the group's memory+swap; [`OPEN`](crate::protocol::band::OPEN) while no
    /// registration is on that, and then a charge does not look at it.
    pub sum_band: W,
    /// Index of the parent's slot, [`PARENT_ROOT`] or [`PARENT_UNKNOWN`].
    pub parent: W,
    /// Kernel address of the memcg's `memory` page counter; 0 once it is offline: from
    /// then on no charge, and no query, finds this slot.
    pub counter: W,
    /// [`SlotState`] of the slot: generation and flags.
    pub state: W,
    /// `st_ino` of the group's directory (`cgroup_id()` in the kernel).
    pub cgroup_id: W,
    /// The [`Epoch`](crate::protocol::epoch::Epoch) in which no group above this one is watched,
    /// mixed with its counter's address.
    pub unwatched_above: W,
    /// Slots whose `parent` is this one: as long as there are any it is not given back.
    pub below: W,

    /// Highest out-of-band readings since the agent last looked, each with the version of
    /// its band, by the lowest bit of that; 0: none.
    pub max_seen: [W; 2],
    /// Lowest out-of-band readings, likewise; `u64::MAX`: none.
    pub min_seen: [W; 2],
    /// Highest out-of-band readings of memory+swap, as `max_seen`.
    pub sum_max_seen: [W; 2],
    /// Lowest out-of-band readings of memory+swap, as `min_seen`.
    pub sum_min_seen: [W; 2],

    /// 1 while the agent has something to do here.
    pub pending: W,
    /// OOMs by this group's limit since the agent last looked.
    pub ooms: W,
    /// The OOM that holds this group, as a [`Hold`](crate::protocol::oom::Hold); 0: none.
    pub oom_holder: W,
    /// OOMs that hold groups below this one.
    pub oom_below: W,
    /// The time at which the latest of those began, as
    /// [`Hold::since`](crate::protocol::oom::Hold::since).
    pub oom_below_since: W,
    /// Windows of reclaim since the agent last looked, by
    /// [`Level`](crate::protocol::pressure::Level).
    pub windows: [W; 3],

    /// Times that the group and all below it became empty of tasks since the
    /// agent last looked.
    pub emptied: W,
    /// Whether a task is in the group or below it: [`NOT_POPULATED`], [`POPULATED`] or
    /// [`POPULATED_UNKNOWN`]. Kept while the group is watched and a registration is on that.
    pub populated: W,
    /// Windows of groups below this one that have no slot of their own, as `windows`.
    pub windows_below: [W; 3],
    /// Usage when the group went offline, in pages.
    pub last: W,
    /// Memory+swap when the group went offline, in pages.
    pub sum_last: W,
    /// 1: charges further down end their walk here, [`REACH`] levels up.
    pub deep: W,

    /// Pages charged, kept by each charge while the group is followed; see
    /// [`usage`](crate::protocol::usage).
    pub usage: W,
    /// The kernel's own high-water mark (`page_counter.watermark`) in pages, kept likewise.
    pub peak: W,
    /// The group's own limit (`page_counter.max`) in pages, when it was last queried.
    pub limit: W,
    /// The generation of which the three were last queried, plus one; 0: of none.
    pub read_of: W,
    /// The version of the next bands to be published; the agent's.
    pub version: W,
    /// Groups above this one that count its holder in their `oom_below`.
    pub oom_levels: W,
    /// OOMs by this group's limit that the programs were called for, signalled or not; begins
    /// at what the kernel had counted (`memory.events.local`). With
    /// [`BY_LIMIT_WRITE`](crate::protocol::oom::BY_LIMIT_WRITE).
    pub oom_calls: W,
    /// The window of reclaim that is not full yet, where the programs add it up; see
    /// [`account`](crate::protocol::pressure::account). Once the group is offline, and was watched: its
    /// highest usage in pages, or [`PEAK_UNKNOWN`](Slot::PEAK_UNKNOWN).
    pub window: W,
}

const _: () = assert!(size_of::<Slot<u64>>() == 320);

/// The `state` word of a slot: generation in the upper 56 bits, flags below.
/// A slot that is used again has a new generation, so a stale index is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotState(pub u64);

impl SlotState {
    /// The group is online: charges are seen, registrations are accepted.
    pub const ONLINE: u64 = 1;
    /// The group is new, and the agent is told of new groups; it has not looked here since.
    pub const NEW: u64 = 4;
    /// `mem_cgroup_css_offline` has run: removed, or its controller turned off. The slot
    /// is no longer the group's; see [`life`](crate::protocol::life).
    pub const OFFLINE: u64 = 2;
    /// The agent has something to do here: a registration is on the group, or the agent is
    /// looking. The slot is not given back meanwhile, and going offline rings.
    pub const WATCHED: u64 = 8;

    const FLAGS: u64 = 0xff;

    /// The state of a fresh slot of `generation`.
    #[must_use]
    pub const fn online(generation: u64) -> Self {
        Self((generation << 8) | Self::ONLINE)
    }

    /// The state of a fresh slot of `generation`, which the agent is told of and has to let go of.
    #[must_use]
    pub const fn announced(generation: u64) -> Self {
        Self(Self::online(generation).0 | Self::NEW | Self::WATCHED)
    }

    /// How often the slot was used before.
    #[must_use]
    pub const fn generation(self) -> u64 {
        self.0 >> 8
    }

    /// Whether `flag` is set.
    #[must_use]
    pub const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    /// Whether the group is online, and not on its way out.
    #[must_use]
    pub const fn is_live(self) -> bool {
        self.0 & (Self::ONLINE | Self::OFFLINE) == Self::ONLINE
    }

    /// The word of a slot that waits to be used again.
    #[must_use]
    pub const fn recycled(self) -> Self {
        Self(((self.0 & !Self::FLAGS) >> 8).wrapping_add(1) << 8)
    }
}

/// Attempts at an update that others keep racing with. Each failure means that
/// another CPU succeeded just then. Few, for the verifier's sake.
pub const ATTEMPTS: usize = 4;

impl<W: Word> Slot<W> {
    /// Reads the state word.
    pub fn state(&self) -> SlotState {
        SlotState(self.state.get())
    }

    /// Sets `flag`; returns the state before.
    pub fn mark(&self, flag: u64) -> SlotState {
        SlotState(self.state.or(flag))
    }
}
