//! The [`QueryMailbox`] cells in which programs answer the agent, and its queries.

/// A cell in which programs leave answers for the agent, and the agent what programs
/// need to know of it. One writer at a time: the `ask` program answers in
/// [`ANSWERS`], on behalf of whichever of the agent's threads runs it, and those run it
/// one at a time; programs at what the agent reads answer in [`READINGS`], and only for
/// the one thread that is registered for it ([`Query::WHO_AM_I`]); there `ask` answers
/// [`Query::FILE`] and [`Query::GROUP`], too, which that thread runs.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct QueryMailbox<W> {
    /// `bpf_get_current_pid_tgid()` of the thread that queries by reading files, as the
    /// kernel sees it ([`READINGS`] only).
    pub agent: W,
    /// Moves with every answer, so that a skipped program is noticed.
    pub answers: W,
    /// Slot index, or one of [`Enumeration`]'s words: the answer when groups are enumerated.
    pub slot: W,
    /// Generation of that slot: the answer when groups are enumerated.
    pub generation: W,
    /// The answer to a query: usage in pages, say.
    pub value: W,
    /// Address of the `struct file` whose fdinfo was read.
    pub file: W,
    /// How the last query was answered: [`Query::OK`] or why not.
    pub verdict: W,
    /// Kinds of events that have registrations in any group: [`Subscriptions`]'s bits. The rest is
    /// not even counted.
    pub wanted: W,
    /// Which programs these are: a hash of the object. With the rest below, what a
    /// later agent has to know of those that it finds pinned.
    pub build: W,
    /// When these maps were made, in nanoseconds since boot: they differ in it from others
    /// of the same build.
    pub instance: W,
    /// Number of slots without the root's.
    pub sizes: W,
    /// Size of the ring buffer in bytes.
    pub ring: W,
    /// The agent's plan for this kernel, in its own encoding.
    pub plan: W,
    /// 1 while there may be slots whose parent is unknown.
    pub orphans: W,
    /// 1 while some limit was written that the agent has not looked at (`LIMITS` rings once).
    pub limits: W,
    /// Records of what the OOM killer does that are on their way to the agent.
    pub victims: W,
}

const _: () = assert!(size_of::<QueryMailbox<u64>>() == 128);

/// The cell of the `ask` program; what later agents have to know is here, too.
pub const ANSWERS: u32 = 0;
/// The cell of the programs at what the agent reads: whose usage file, which eventfd.
pub const READINGS: u32 = 1;
/// Number of cells there are.
pub const CELLS: u32 = 2;
/// A registered eventfd's `struct file`, with its reference count: a query of
/// [`Query::FILE_REFS`], and its answer.
#[derive(Debug)]
#[repr(C)]
pub struct FileRefs<W> {
    /// Address of the `struct file`. While the agent holds a reference to it, the kernel
    /// gives the memory to nothing else.
    pub address: W,
    /// How many references the file has. 0: the memory could not be read.
    pub references: W,
}

const _: () = assert!(size_of::<FileRefs<u64>>() == 16);

/// Bits of [`QueryMailbox::wanted`], one for each kind of event.
#[derive(Debug)]
pub struct Subscriptions;

impl Subscriptions {
    /// OOMs by groups' limits.
    pub const OOM: u64 = 1;
    /// Windows of reclaim, for pressure.
    pub const PRESSURE: u64 = 2;
    /// Groups that become empty.
    pub const EMPTY: u64 = 4;
    /// Limits that are written.
    pub const LIMITS: u64 = 8;
    /// Processes that the OOM killer kills.
    pub const VICTIMS: u64 = 16;
    /// New groups: their slots stay, whatever becomes of them, until the agent has looked.
    pub const GROUPS: u64 = 32;
    /// Windows of reclaim of groups that have a box, and of no others.
    pub const RECORDED_WINDOWS: u64 = 64;
}

/// Answers in place of a slot index when groups are enumerated.
#[derive(Debug)]
pub struct Enumeration;

impl Enumeration {
    /// The hierarchy's root group: its counter is not what v1 called root usage.
    pub const ROOT: u64 = u64::MAX;
    /// The slot table is full.
    pub const FULL: u64 = u64::MAX - 1;
    /// The program gave no answer.
    pub const SILENT: u64 = u64::MAX - 2;
}

/// Queries to the `ask` program, as its first argument.
#[derive(Debug)]
pub struct Query;

impl Query {
    /// Remember the calling thread as the one that queries by reading files.
    pub const WHO_AM_I: u64 = 1;
    /// Read the counter of slot `arg1` of generation `arg2`.
    pub const USAGE: u64 = 2;
    /// Count the references of the first `arg1` files of the table of [`FileRefs`], at
    /// most [`Query::FILES_AT_ONCE`].
    pub const FILE_REFS: u64 = 3;
    /// Read memory+swap of slot `arg1` of generation `arg2`, in pages.
    pub const SUM: u64 = 4;
    /// Read the limit of slot `arg1` of generation `arg2`, in pages.
    pub const LIMIT: u64 = 5;
    /// Read whether slot `arg1` of generation `arg2` is under OOM, by the kernel's
    /// own count, where it has one.
    pub const UNDER_OOM: u64 = 6;
    /// Read the kernel's own high-water mark of slot `arg1` of generation `arg2`, in
    /// pages.
    pub const PEAK: u64 = 7;
    /// Begin a new [`Epoch`](crate::protocol::epoch::Epoch); with `arg1`, before anything is
    /// attached, the one after `arg1`, which no programs before have had.
    pub const NEW_EPOCH: u64 = 8;
    /// Let go of slot `arg1` of generation `arg2`, whose group is offline, and give it
    /// back, and those above it that only waited for it: in one step, so that an agent
    /// that is killed loses none. Answers where to go on ([`Query::TIDY`]), or
    /// [`Query::NOWHERE`].
    pub const RECYCLE: u64 = 9;
    /// Give back slot `arg1` if it is not needed, and so on, as [`Query::RECYCLE`].
    pub const TIDY: u64 = 10;
    /// The slot of the nearest group above slot `arg1` of generation `arg2` that has one,
    /// by the kernel's own pointers; the parent is given one, if there is room.
    pub const ABOVE: u64 = 11;
    /// The lowest limit, in pages, of slot `arg1` of generation `arg2` and of all groups
    /// above it but the root, whether they have slots or not.
    pub const LOWEST_LIMIT: u64 = 12;
    /// Read how many OOMs the kernel has counted by the limit of slot `arg1` of generation
    /// `arg2` (`memory.events.local`).
    pub const OOMS: u64 = 13;
    /// Read whether a task is in the group of slot `arg1` of generation `arg2` or below it:
    /// 0 or 1 (`cgroup_is_populated`).
    pub const POPULATED: u64 = 14;
    /// Take slot `arg1` of generation `arg2`, which the agent watches, away from its group,
    /// for whose removal no program was called. Its last readings are in the slot.
    pub const DEPART: u64 = 15;

    /// Answer in place of a slot: there is none.
    pub const NOWHERE: u64 = u64::MAX;

    /// Files whose references one run counts.
    pub const FILES_AT_ONCE: usize = 2048;
    /// Read usage, peak and limit of the live groups in slots from `arg1` on, `arg2` of
    /// them, into the slots: at most [`AT_ONCE`](Self::AT_ONCE).
    pub const READ: u64 = 16;

    /// Find the `struct file` at descriptor `arg1` of the thread that queries. Answered in the cell
    /// [`READINGS`], as a program at `eventfd_show_fdinfo` does.
    pub const FILE: u64 = 17;
    /// Find the group of the directory at descriptor `arg1` of the thread that queries; it gets a
    /// slot. Answered in the cell [`READINGS`], as a program at the read of a usage file does.
    pub const GROUP: u64 = 18;

    /// Most slots of one [`READ`](Self::READ).
    pub const AT_ONCE: u32 = 1024;

    /// The query was answered.
    pub const OK: u64 = 0;
    /// The slot's group is gone.
    pub const GONE: u64 = 1;
    /// Kernel memory could not be read.
    pub const FAULT: u64 = 2;
}
