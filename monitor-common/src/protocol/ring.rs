//! Records of the ring buffer: the [`Doorbell`], and the [`Victim`] of an OOM; and the counts
//! of what was lost on the way.

/// A ring buffer record. It only says where to look: the state is in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Doorbell {
    /// A record's kind, one of this type's constants.
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
    /// A group was made, and has this slot: rung where groups get boxes.
    pub const MADE: u32 = 8;

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

/// The reason for which the OOM killer kills; it shares a word with the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum KillReason {
    /// A charge found no memory within a group's limit.
    Limit = 0,
    /// A group's limit was written below its usage.
    LoweredLimit = 1,
    /// The host has no memory left, or a part of it that a process is bound to.
    Host = 2,
    /// It was not seen: the kernel's counts alone tell of the kill.
    Unknown = 3,
}

impl KillReason {
    /// Bits of the word that are the slot's.
    const SLOT_BITS: u32 = 29;
    /// In place of the slot of a group that has none.
    pub const NO_SLOT: u32 = (1 << Self::SLOT_BITS) - 1;

    /// The word of this reason and the slot by whose limit it is.
    #[must_use]
    #[inline(always)]
    pub const fn with_slot(self, slot: u32) -> u32 {
        (self as u32) << Self::SLOT_BITS | slot & Self::NO_SLOT
    }

    /// The reason and the slot in a word; a slot that there is not becomes `None`.
    #[must_use]
    pub const fn of(word: u32) -> (Self, Option<u32>) {
        let reason = match word >> Self::SLOT_BITS {
            0 => Self::Limit,
            1 => Self::LoweredLimit,
            2 => Self::Host,
            _ => Self::Unknown,
        };
        let slot = word & Self::NO_SLOT;
        (reason, if slot == Self::NO_SLOT { None } else { Some(slot) })
    }

    /// The word for it, in JSON and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::LoweredLimit => "lowered_limit",
            Self::Host => "host",
            Self::Unknown => "unknown",
        }
    }
}

/// A process that the OOM killer has chosen. Only for what is shown to people: what clients
/// are signalled for is counted in the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Victim {
    /// A doorbell: `VICTIM`, a [`KillReason`] with the slot whose limit caused it, and the id of the
    /// victim's group.
    pub bell: Doorbell,
    /// Process id, in the kernel's first pid namespace.
    pub pid: u64,
    /// The process's name, cut by the kernel; NUL at the end.
    pub comm: [u8; 16],
    /// When the process began, by `CLOCK_BOOTTIME` in nanoseconds; 0: not known.
    pub start: u64,
    /// Real user id in the first user namespace; [`NO_USER`](Self::NO_USER): not known.
    pub uid: u32,
    /// Process id in the process's own pid namespace; 0: not known.
    pub own_pid: u32,
    /// `oom_score_adj`; [`NO_SCORE`](Self::NO_SCORE): not known.
    pub score_adj: i32,
    /// The slot of the victim's group, or [`KillReason::NO_SLOT`].
    pub slot: u32,
    /// Pages of memory by kind, as the kernel's own counters have them; [`UNKNOWN`](Self::UNKNOWN).
    pub memory: VictimMemory,
    /// Bytes of the command line in all; 0: not read.
    pub command_bytes: u64,
    /// The beginning of the command line, with a NUL after each argument.
    pub command: [u8; Self::COMMAND],
}

/// Memory of a victim by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct VictimMemory {
    /// Pages mapped in all, whether they are there or not.
    pub total: u64,
    /// Anonymous pages in memory.
    pub anon: u64,
    /// Pages of mapped files.
    pub file: u64,
    /// Pages of shared memory and tmpfs.
    pub shmem: u64,
    /// Pages that are in swap.
    pub swap: u64,
    /// Page tables, in bytes.
    pub page_tables: u64,
}

impl VictimMemory {
    /// Nothing of it is known.
    pub const UNKNOWN: Self = {
        let unknown = Victim::UNKNOWN;
        Self {
            total: unknown,
            anon: unknown,
            file: unknown,
            shmem: unknown,
            swap: unknown,
            page_tables: unknown,
        }
    };
}

impl Victim {
    /// Bytes of a command line that a record holds.
    pub const COMMAND: usize = 256;
    /// In place of a number of pages or bytes.
    pub const UNKNOWN: u64 = u64::MAX;
    /// In place of a user id: none has this one.
    pub const NO_USER: u32 = u32::MAX;
    /// In place of an `oom_score_adj`, which is from -1000 to 1000.
    pub const NO_SCORE: i32 = i32::MIN;

    /// A victim from its bytes in the ring buffer.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let half = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            bell: Doorbell::from_bytes(bytes)?,
            pid: word(16)?,
            comm: bytes.get(24..40)?.try_into().ok()?,
            // Programs of an earlier agent, which are still attached, know nothing of what follows.
            start: word(40).unwrap_or(0),
            uid: half(48).unwrap_or(Self::NO_USER),
            own_pid: half(52).unwrap_or(0),
            score_adj: half(56).map_or(Self::NO_SCORE, u32::cast_signed),
            slot: half(60).unwrap_or(KillReason::NO_SLOT),
            memory: VictimMemory {
                total: word(64).unwrap_or(Self::UNKNOWN),
                anon: word(72).unwrap_or(Self::UNKNOWN),
                file: word(80).unwrap_or(Self::UNKNOWN),
                shmem: word(88).unwrap_or(Self::UNKNOWN),
                swap: word(96).unwrap_or(Self::UNKNOWN),
                page_tables: word(104).unwrap_or(Self::UNKNOWN),
            },
            command_bytes: word(112).unwrap_or(0),
            command: bytes
                .get(120..120 + Self::COMMAND)
                .and_then(|bytes| bytes.try_into().ok())
                .unwrap_or([0; Self::COMMAND]),
        })
    }
}

const _: () = assert!(size_of::<Victim>() == 120 + Victim::COMMAND);

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
    /// Returns from functions whose first argument was not known, with kprobes: its entry was
    /// missed, or the table of calls had no room. Everything is read again.
    ReturnsUnknown = 10,
}

/// How many records of what the OOM killer does may be on their way in a ring of so many
/// bytes: a quarter of it, each with its header.
#[must_use]
#[inline(always)]
pub const fn victims_at_once(ring: u64) -> u64 {
    const HEADER: u64 = 8;
    ring / (4 * (size_of::<Victim>() as u64 + HEADER))
}

impl LossKind {
    /// Number of kinds there are.
    pub const COUNT: usize = 11;
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
        "returns_unknown",
    ];
}

#[cfg(test)]
mod tests {
    use super::{Doorbell, KillReason, Victim, VictimMemory};

    #[test]
    fn a_reason_and_a_slot_share_a_word() {
        for reason in [KillReason::Limit, KillReason::LoweredLimit, KillReason::Host, KillReason::Unknown] {
            for slot in [0, 1, 1 << 20, KillReason::NO_SLOT - 1] {
                assert_eq!(KillReason::of(reason.with_slot(slot)), (reason, Some(slot)));
            }
            assert_eq!(KillReason::of(reason.with_slot(KillReason::NO_SLOT)), (reason, None));
        }
        // As programs before this had it.
        assert_eq!(KillReason::Limit.with_slot(7), 7);
    }

    #[test]
    fn a_record_of_programs_that_know_less_is_read_as_far_as_it_goes() {
        let words = [u64::from(Doorbell::VICTIM) | 3 << 32, 42, 4711, 0x6873, 0, 9, 1000 | 7 << 32];
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
        let short = Victim::from_bytes(&bytes[..40]).expect("as long as it was");
        assert_eq!((short.bell.slot, short.bell.value, short.pid), (3, 42, 4711));
        assert_eq!((short.start, short.uid, short.own_pid), (0, Victim::NO_USER, 0));
        assert_eq!((short.score_adj, short.memory), (Victim::NO_SCORE, VictimMemory::UNKNOWN));
        let long = Victim::from_bytes(&bytes).expect("longer");
        assert_eq!((long.start, long.uid, long.own_pid), (9, 1000, 7));
        assert!(Victim::from_bytes(&bytes[..39]).is_none());
    }
}
