//! Records of the ring buffer: the [`Doorbell`], and the [`Victim`] of an OOM; and the counts
//! of what was lost on the way.

/// A ring buffer record. It only says where to look: the state is in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Doorbell {
    /// One of this type's constants.
    pub kind: u32,
    /// Index of the slot that it is about; not with `LIMITS`.
    pub slot: u32,
    /// When it rang, by `CLOCK_MONOTONIC` in nanoseconds (`SLOT`); an
    /// [`Outside`](crate::protocol::band::Outside) (`READING`, `SUM_READING`).
    pub value: u64,
}

impl Doorbell {
    /// Something happened to a slot: out of band, offline, or freed.
    pub const SLOT: u32 = 1;
    /// An out-of-band reading that found no place in its slot.
    pub const READING: u32 = 3;
    /// An out-of-band reading of memory+swap, as `READING` is.
    pub const SUM_READING: u32 = 4;
    /// Some group's `memory.max` was written: rung once, until the agent has cleared
    /// [`QueryMailbox::limits`](crate::protocol::query::QueryMailbox::limits).
    pub const LIMITS: u32 = 5;
    /// A [`Victim`] follows in the same record.
    pub const VICTIM: u32 = 6;
    /// A whole group is killed (`memory.oom.group`): the slot's limit caused it,
    /// `value` is the id of the group that goes.
    pub const GROUP_KILL: u32 = 7;

    /// A doorbell from its bytes in the ring buffer.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            kind: word(0)?,
            slot: word(4)?,
            value: u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?),
        })
    }
}

const _: () = assert!(size_of::<Doorbell>() == 16);

/// A process that the OOM killer has chosen. Only for what is shown to people: what clients
/// are signalled for is counted in the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Victim {
    /// A doorbell: `VICTIM`, the slot whose limit caused it, and the id of the victim's group.
    pub bell: Doorbell,
    /// Process id, in the kernel's first pid namespace.
    pub pid: u64,
    /// The process's name, cut by the kernel; NUL at the end.
    pub comm: [u8; 16],
}

impl Victim {
    /// A victim from its bytes in the ring buffer.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            bell: Doorbell::from_bytes(bytes)?,
            pid: u64::from_ne_bytes(bytes.get(16..24)?.try_into().ok()?),
            comm: bytes.get(24..40)?.try_into().ok()?,
        })
    }
}

const _: () = assert!(size_of::<Victim>() == 40);

/// Kinds of losses and oddities, each counted where it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LossKind {
    /// The ring buffer had no room; the sweep over `pending` finds the slot.
    RingFull = 0,
    /// A group that found no free slot, and is not watched: counted once for each group.
    SlotsExhausted = 1,
    /// A charge below more than [`REACH`](crate::protocol::slot::REACH) levels.
    TooDeep = 2,
    /// More than [`ATTEMPTS`](crate::protocol::slot::ATTEMPTS) CPUs raced for a slot's excursion,
    /// so the reading went through the ring. Nothing is lost by that alone.
    Contended = 3,
    /// A charge that only the second program saw: the first was skipped by the
    /// kernel's recursion guard.
    Nested = 4,
    /// An OOM that began while another held the same group, one above or one
    /// below: one signal for both, as the kernel's `mem_cgroup_oom_trylock`.
    OomJoined = 5,
    /// A process or group killed for lack of memory whose record was not sent, because too
    /// many were on their way: followers do not see it. No signal is lost by that.
    VictimsDropped = 6,
    /// An OOM by the limit of a group that has no slot: no group below was signalled.
    OomUnplaced = 7,
    /// An event was to be signalled above a group, and what is above it is not known.
    ParentUnknown = 8,
    /// Calls that the kernel's recursion guard kept from programs for which nothing makes up:
    /// windows of reclaim, v1's OOM notices, victims, beginnings of limit writes.
    SkippedForGood = 9,
}

/// How many records of what the OOM killer does may be on their way in a ring of so many
/// bytes: a quarter of it, at 48 bytes each at most.
#[must_use]
#[inline(always)]
pub const fn victims_at_once(ring: u64) -> u64 {
    ring / 192
}

impl LossKind {
    /// Number of kinds there are.
    pub const COUNT: usize = 10;
    /// Names of the kinds, in order, as shown to people and in metrics.
    pub const NAMES: [&str; Self::COUNT] = [
        "ring_full",
        "slots_exhausted",
        "too_deep",
        "contended",
        "nested",
        "oom_joined",
        "victims_dropped",
        "oom_unplaced",
        "parent_unknown",
        "skipped_for_good",
    ];
}
