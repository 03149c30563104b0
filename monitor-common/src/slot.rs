//! The table both sides share: one [`Slot`] for each memory cgroup, the
//! [`Doorbell`] that goes through the ring buffer, and the [`Scratch`] cell in
//! which a program answers the agent.
//!
//! Everything is made of 64-bit words without padding, so that the layout is
//! the same for the BPF target and the host.

use crate::{band, word::Word};

/// Version of everything in this file. Bump on any change of layout or meaning.
pub const SCHEMA: u32 = 1;

/// Depth of the hierarchy up to which a charge is followed to the root.
/// Deeper ancestors are counted in [`Tally::TooDeep`] and re-read by the sweep.
pub const MAX_DEPTH: usize = 64;

/// `parent` of a slot right below the root: the walk ends there.
pub const PARENT_ROOT: u64 = u64::MAX;
/// `parent` of a slot whose parent has none: look the counter up instead.
pub const PARENT_UNKNOWN: u64 = u64::MAX - 1;

/// One memory cgroup. The first eight words are what a charge touches: one
/// cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Slot<W> {
    /// Pages charged, as last read from the kernel's counter. Concurrent
    /// charges may leave an older reading here; decisions never rest on it.
    pub usage: W,
    /// Highest `usage` read so far, in pages.
    pub peak: W,
    /// The packed [`Band`](band::Band) in which a charge needs no attention.
    pub band: W,
    /// Index of the parent's slot, [`PARENT_ROOT`] or [`PARENT_UNKNOWN`].
    pub parent: W,
    /// Kernel address of the memcg's `memory` page counter; 0 in a free slot.
    pub counter: W,
    /// [`State`]: generation and flags.
    pub state: W,
    /// `st_ino` of the group's directory (`cgroup_id()` in the kernel).
    pub cgroup_id: W,
    /// Unused.
    pub reserved: W,

    /// Highest out-of-band reading since the agent last looked; 0: none.
    pub max_seen: W,
    /// Lowest out-of-band reading since the agent last looked; `u64::MAX`: none.
    pub min_seen: W,
    /// 1 while the agent has something to do here.
    pub pending: W,
    /// Unused; keeps a slot at two cache lines.
    pub spare: [W; 5],
}

const _: () = assert!(size_of::<Slot<u64>>() == 128);

/// The `state` word of a slot: generation in the upper 56 bits, flags below.
/// A slot that is used again has a new generation, so a stale index is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(pub u64);

impl State {
    /// The group is online: charges are seen, registrations are accepted.
    pub const ONLINE: u64 = 1;
    /// `mem_cgroup_css_offline` has run: removed, or its controller turned off.
    pub const OFFLINE: u64 = 2;
    /// `mem_cgroup_css_free` has run: the counter's memory is gone.
    pub const FREED: u64 = 4;
    /// Somebody waits here: lifecycle changes ring, and only the agent may
    /// recycle the slot.
    pub const WATCHED: u64 = 8;

    const FLAGS: u64 = 0xff;

    /// The state of a fresh slot of `generation`.
    #[must_use]
    pub const fn online(generation: u64) -> Self {
        Self((generation << 8) | Self::ONLINE)
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

    /// Online and neither going nor gone.
    #[must_use]
    pub const fn is_live(self) -> bool {
        self.0 & (Self::ONLINE | Self::OFFLINE | Self::FREED) == Self::ONLINE
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
    /// The state word.
    pub fn state(&self) -> State {
        State(self.state.get())
    }

    /// Sets `flag`; returns the state before.
    pub fn mark(&self, flag: u64) -> State {
        State(self.state.or(flag))
    }

    /// Agent: begins to watch `generation` of this slot. Fails when that group
    /// is no longer online; a later offline or free will then ring.
    pub fn watch(&self, generation: u64) -> bool {
        let mut held = self.state();
        loop {
            if !held.is_live() || held.generation() != generation {
                return false;
            }
            let before = self.state.cas(held.0, held.0 | State::WATCHED);
            if before == held.0 {
                return true;
            }
            held = State(before);
        }
    }

    /// Agent: the last watcher of `generation` left. False when the group went
    /// first: then the agent owns the slot until it has recycled it.
    pub fn unwatch(&self, generation: u64) -> bool {
        let mut held = self.state();
        loop {
            if held.generation() != generation || held.has(State::FREED) {
                return false;
            }
            let before = self.state.cas(held.0, held.0 & !State::WATCHED);
            if before == held.0 {
                return true;
            }
            held = State(before);
        }
    }

    /// Makes a freed slot ready for its next group: new generation, no flags.
    /// The caller owns the slot and gives its index back to the free list after.
    pub fn recycle(&self) {
        self.counter.set(0);
        self.band.set(band::Band::EVERYTHING.pack(0));
        self.max_seen.set(0);
        self.min_seen.set(u64::MAX);
        self.pending.set(0);
        self.usage.set(0);
        self.peak.set(0);
        let state = self.state().recycled();
        self.state.xchg(state.0);
    }
}

/// A ring buffer record. It only says where to look: the state is in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Doorbell {
    /// [`Doorbell::SLOT`], [`Doorbell::FILE`] or [`Doorbell::READING`].
    pub kind: u32,
    /// The slot to look at (`SLOT`, `READING`).
    pub slot: u32,
    /// Address of the `struct file` (`FILE`), or pages (`READING`).
    pub value: u64,
}

impl Doorbell {
    /// Something happened to a slot: out of band, offline, or freed.
    pub const SLOT: u32 = 1;
    /// A reference to a registered eventfd was closed.
    pub const FILE: u32 = 2;
    /// An out-of-band reading that found no place in its slot.
    pub const READING: u32 = 3;

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

/// Where losses and oddities are counted, at the place where they happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Tally {
    /// The ring buffer had no room; the sweep over `pending` finds the slot.
    RingFull = 0,
    /// A group came online and no slot was free: it is not watched.
    SlotsExhausted = 1,
    /// A charge below more than [`MAX_DEPTH`] levels.
    TooDeep = 2,
    /// More than [`ATTEMPTS`] CPUs raced for a slot's excursion, so the reading
    /// went through the ring. Nothing is lost by that alone.
    Contended = 3,
    /// A charge that only the second program saw: the first was skipped by the
    /// kernel's recursion guard.
    Nested = 4,
}

impl Tally {
    /// How many there are.
    pub const COUNT: usize = 5;
    /// Their names, in order, as shown to people and in metrics.
    pub const NAMES: [&str; Self::COUNT] =
        ["ring_full", "slots_exhausted", "too_deep", "contended", "nested"];
}

/// The cell in which programs leave answers for the agent, and the agent what
/// programs need to know of it. One writer at a time: programs write only on
/// behalf of the agent's own thread.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Scratch<W> {
    /// `bpf_get_current_pid_tgid()` of the agent's thread, as the kernel sees it.
    pub agent: W,
    /// Moves with every answer, so that a skipped program is noticed.
    pub answers: W,
    /// Roll call: slot index, or one of [`Roll`]'s words.
    pub slot: W,
    /// Roll call: the slot's generation.
    pub generation: W,
    /// Usage in pages, or reference count.
    pub value: W,
    /// Address of the `struct file` whose fdinfo was read.
    pub file: W,
    /// Address of the kernel's eventfd file operations.
    pub eventfd_fops: W,
    /// How the last question was answered: [`Ask::OK`] or why not.
    pub verdict: W,
}

const _: () = assert!(size_of::<Scratch<u64>>() == 64);

/// What a roll call says in place of a slot index.
#[derive(Debug)]
pub struct Roll;

impl Roll {
    /// The hierarchy's root group: its counter is not what v1 called root usage.
    pub const ROOT: u64 = u64::MAX;
    /// The slot table is full.
    pub const FULL: u64 = u64::MAX - 1;
    /// No answer came.
    pub const SILENT: u64 = u64::MAX - 2;
}

/// What the agent asks the `ask` program, as its first argument.
#[derive(Debug)]
pub struct Ask;

impl Ask {
    /// Remember the calling thread as the agent's.
    pub const WHO_AM_I: u64 = 1;
    /// Read the counter of slot `arg1` of generation `arg2`.
    pub const USAGE: u64 = 2;
    /// Read the reference count of the `struct file` at `arg1`.
    pub const FILE_REFS: u64 = 3;

    /// Answered.
    pub const OK: u64 = 0;
    /// The slot's group is gone.
    pub const GONE: u64 = 1;
    /// Kernel memory could not be read.
    pub const FAULT: u64 = 2;
}

/// The agent's side: a typed cell pair for tests and the mapped table.
impl<W: Word> Slot<W> {
    /// Whether `usage` lies in the published band.
    pub fn in_band(&self, usage: u64, shift: u32) -> bool {
        band::Band::unpack_contains(self.band.get(), usage, shift)
    }
}
