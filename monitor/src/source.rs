//! The interface of the agent to a kernel, as traits. A [`Backend`](crate::backend::Backend)
//! implements them, and tests have a kernel of their own.

mod misses;

pub use misses::Misses;

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    os::fd::{AsFd, BorrowedFd},
};

use auto_impl::auto_impl;
use monitor_common::{
    grammar::control_file::ControlFile,
    protocol::{
        ring::{Doorbell, LossKind, Victim},
        word::Word as _,
    },
};
use monitor_sys::table::SharedSlot;

use crate::{error::Result, kernel::Features};

/// A group: its slot, and the generation that distinguishes it from the slot's other groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupId {
    /// The index into the slot table.
    pub slot: u32,
    /// The generation of the slot.
    pub generation: u64,
}

/// The result of looking up the group of a usage file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Located {
    /// The file belongs to this group.
    Group(GroupId),
    /// The file belongs to the hierarchy's root.
    Root,
    /// The file's group has no slot, because the table is full.
    TableFull,
    /// The file belongs to no group: the group is gone, or the file is not a usage file.
    NoGroup,
}

/// A `struct file` in the kernel, while a reference is held: its address, or where no program reports
/// that, the kernel's number of the eventfd (`eventfd-id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u64);

impl FileId {
    /// Whether it is an address: those of the kernel are in the upper half.
    #[must_use]
    pub const fn is_address(self) -> bool {
        self.0 >> 63 != 0
    }
}

/// How a threshold on memory or memory+swap is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Each change of the counter is compared: no crossing is missed.
    Exact,
    /// The counter is read from time to time: a crossing and its way back between two readings
    /// may be missed.
    Sampled,
}

impl Precision {
    /// The word for it, in JSON and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Sampled => "sampled",
        }
    }
}

/// One record of what happened in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "each is taken out of the ring and used by itself")]
pub enum RingRecord {
    /// A doorbell: a slot to look at.
    Bell(Doorbell),
    /// The victim of an OOM.
    Victim(Victim),
}

/// The queue of records, which the thread that signals waits on: readable while it has any. The
/// iterator ends where there is no record now.
pub trait DoorbellQueue: Iterator<Item = RingRecord> + AsFd + Send {}

/// The table of groups: memory shared with the programs, which any thread reads without a system
/// call.
#[auto_impl(Box)]
pub trait Slots {
    /// Returns the slot at `index`; indices come from this table.
    fn slot(&self, index: u32) -> Option<&SharedSlot>;

    /// The hierarchy's root: it has a slot without a counter.
    fn root(&self) -> GroupId;

    /// The slots within `range` that have groups which are online: of a table that is mostly free, what
    /// is worth reading.
    fn live_slots(&self, range: Range<u32>) -> Vec<u32> {
        range.filter(|index| self.slot(*index).is_some_and(|slot| slot.state().is_live())).collect()
    }

    /// Groups that are online, by the ids of their directories.
    fn groups_by_id(&self) -> HashMap<u64, GroupId> {
        let slots = (0..).map_while(|index| Some((index, self.slot(index)?)));
        let live = slots.map(|(index, slot)| (index, slot, slot.state()));
        let live = live.filter(|(_, _, state)| state.is_live());
        live.map(|(slot, shared, state)| {
            (shared.cgroup_id.get(), GroupId { slot, generation: state.generation() })
        })
        .collect()
    }

    /// The slot of the group whose directory has this id.
    fn slot_of(&self, cgroup_id: u64) -> Option<u32> {
        self.groups_by_id().get(&cgroup_id).map(|group| group.slot)
    }

    /// Groups that are online, among those whose directories have these ids; each gets a slot, if
    /// there is room.
    fn place_groups(&self, ids: &HashSet<u64>) -> HashMap<u64, GroupId> {
        let mut found = self.groups_by_id();
        found.retain(|id, _| ids.contains(id));
        found
    }
}

/// The identity of files and descriptors, as the kernel has it. The answers come from programs
/// that run at this thread's reads: only the thread that started the programs gets answers. To
/// read may take as long as a client's file likes, so no lock may be held meanwhile.
pub trait Identify: Slots + Send {
    /// Finds the group of the file `usage`, which is open for reading; `cgroup_id` is that of
    /// `directory`, which the file was opened in.
    ///
    /// # Errors
    /// The programs could not be queried.
    fn locate(&self, usage: BorrowedFd<'_>, directory: BorrowedFd<'_>, cgroup_id: u64) -> Result<Located>;

    /// Returns the file that the eventfd `fd` refers to.
    ///
    /// # Errors
    /// The programs could not be queried.
    fn file_of(&self, fd: BorrowedFd<'_>) -> Result<FileId>;

    /// Notes that the agent itself is a client with this eventfd, as long as `is_there`: for a source
    /// that looks for clients in other processes.
    fn set_own(&self, _file: FileId, _is_there: bool) {}

    /// Whether programs that are attached run: a query of something that is always there.
    fn is_alive(&self) -> bool {
        true
    }
}

/// The kernel side, as the watcher uses it.
#[auto_impl(Box)]
pub trait Source: Slots {
    /// Usage in pages, read from the kernel's own counter *now*; `None` when the group's counter
    /// is gone.
    ///
    /// # Errors
    /// The programs could not be queried.
    fn usage(&self, group: GroupId) -> Result<Option<u64>>;

    /// The highest usage so far, by the kernel's own mark, in pages; as
    /// [`Source::usage`].
    ///
    /// # Errors
    /// The programs could not be queried.
    fn peak(&self, group: GroupId) -> Result<Option<u64>>;

    /// Memory+swap in pages, as [`Source::usage`].
    ///
    /// # Errors
    /// The programs could not be queried.
    fn sum(&self, group: GroupId) -> Result<Option<u64>>;

    /// The group's own limit in pages, as [`Source::usage`].
    ///
    /// # Errors
    /// The programs could not be queried.
    fn limit(&self, group: GroupId) -> Result<Option<u64>>;

    /// The lowest limit of the group and of all above it but the root, in pages, whether
    /// those are in the table or not; as [`Source::usage`].
    ///
    /// # Errors
    /// The programs could not be queried.
    fn lowest_limit(&self, group: GroupId) -> Result<Option<u64>>;

    /// The slot of the nearest group above that is in the table, or the root's, where the
    /// slot itself does not say it. The parent gets a slot, if there is room. `None` if it
    /// cannot be known, which is counted ([`LossKind::ParentUnknown`]).
    ///
    /// # Errors
    /// The programs could not be queried.
    fn above(&self, group: GroupId) -> Result<Option<u32>>;

    /// Whether there may be slots whose parent is unknown; true once for each time that it
    /// becomes so.
    fn take_orphans(&self) -> bool;

    /// Reads usage, peak and limit of all live groups in `slots` into these: a few runs of a
    /// program, no system call for each group. See [`Slot::read_of`].
    ///
    /// [`Slot::read_of`]: monitor_common::protocol::slot::Slot::read_of
    ///
    /// # Errors
    /// The programs could not be queried.
    fn read_groups(&self, slots: Range<u32>) -> Result<()>;

    /// Whether the group is under OOM now.
    ///
    /// # Errors
    /// The programs could not be queried.
    fn is_under_oom(&self, group: GroupId) -> Result<bool>;

    /// Ends the [`Epoch`](monitor_common::protocol::epoch::Epoch), after a band was published where none
    /// was. A full barrier.
    ///
    /// # Errors
    /// The kernel did not do it: charges below that group may go unseen.
    fn end_epoch(&self) -> Result<()>;

    /// Sets what the programs count from now on: bits of
    /// [`Subscriptions`](monitor_common::protocol::query::Subscriptions).
    fn want(&self, what: u64);

    /// Takes over what earlier programs had seen, which are let go, and counts what is `wanted`
    /// from here on; called once the bands of all that goes on from an earlier agent are
    /// published. No slot was looked at since the bands were published: what both programs have
    /// seen is one.
    fn take_over(&mut self, wanted: u64) {
        self.want(wanted);
    }

    /// Events that this kernel can report.
    fn features(&self) -> Features;

    /// How thresholds on memory and memory+swap are watched now.
    fn precision(&self) -> Precision {
        Precision::Exact
    }

    /// The reason why events of this control file are not reported, where they are not.
    fn why_not(&self, on: ControlFile) -> String {
        format!("this kernel has no hook for {}", on.name())
    }

    /// Counts the references to each of `files`, in their order; 0 where they could not be
    /// counted. For a file to which the caller holds no reference it is any number.
    ///
    /// # Errors
    /// The programs could not be queried.
    fn file_refs(&self, files: &[FileId]) -> Result<Vec<u64>>;

    /// Lets go of the slot of a group that is gone: it is given back once no other group below
    /// needs it.
    fn recycle(&mut self, slot: u32);

    /// Takes a watched slot away from its group, which is gone though no program was called
    /// for that; its last readings are in the slot. False when that was known already.
    ///
    /// # Errors
    /// The programs could not be queried.
    fn depart(&mut self, group: GroupId) -> Result<bool>;

    /// Gives back a slot without use; for slots that a killed agent has left.
    fn tidy(&mut self, slot: u32);

    /// The count of one kind of loss.
    fn tally(&self, tally: LossKind) -> u64;

    /// Calls that the kernel kept from the programs (`recursion_misses`), by what makes up for
    /// them.
    fn misses(&self) -> Misses;

    /// The number of all such calls.
    fn skipped(&self) -> u64 {
        self.misses().total()
    }

    /// The number of groups that no program was called for when they were made, where the kernel
    /// counts that; a round in which no program was called at all counts as one.
    fn unseen_groups(&self) -> u64 {
        self.misses().creations
    }

    /// Adds to a count of losses.
    fn count(&self, tally: LossKind, by: u64);

    /// OOMs by the group's limit as the kernel has counted them, as [`Source::usage`].
    ///
    /// # Errors
    /// The programs could not be queried, or this kernel's count is not known.
    fn ooms(&self, group: GroupId) -> Result<Option<u64>>;

    /// Whether a task is in the group or below it, as [`Source::usage`].
    ///
    /// # Errors
    /// The programs could not be queried, or this kernel does not show it.
    fn is_populated(&self, group: GroupId) -> Result<Option<bool>>;

    /// Whether a limit was written since [`Source::take_limits`].
    fn limits_were_written(&self) -> bool;

    /// Clears that a limit was written: the next write rings anew.
    fn take_limits(&self);

    /// Notes that one record of the OOM killer's work has come out of the ring.
    fn take_victim(&self);

    /// Marks of threads ([`OomMark`](monitor_common::protocol::oom::OomMark)): words with any, each with
    /// its index.
    fn thread_marks(&self) -> Vec<(u32, u64)>;

    /// Removes marks that [`Source::thread_marks`] returned.
    fn forget_thread_marks(&self, word: u32, bits: u64);

    /// The unit of the packed band.
    fn band_shift(&self) -> u32;
}
