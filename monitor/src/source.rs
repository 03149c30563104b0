//! What the agent needs of a kernel, as a trait: the real one is
//! [`Programs`](crate::programs::Programs), and tests have a kernel of their own.

mod misses;

pub use misses::Misses;

use std::{collections::HashMap, ops::Range, os::fd::BorrowedFd};

use monitor_common::{ring::LossKind, word::Word as _};
use monitor_sys::table::SharedSlot;

use crate::{error::Result, kernel::Features};

/// A group: its slot, and the generation that tells it from the slot's others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupId {
    /// Index into the slot table.
    pub slot: u32,
    /// Generation of the slot.
    pub generation: u64,
}

/// What the kernel said when asked whose usage file a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Located {
    /// This group's.
    Group(GroupId),
    /// The hierarchy's root.
    Root,
    /// A group that has no slot, because the table is full.
    TableFull,
    /// Nobody's: the group is gone, or the file is not a usage file.
    Nobody,
}

/// A `struct file` in the kernel: its address while a reference is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u64);

/// The table of groups: memory shared with the programs, which any thread reads without
/// asking anybody.
pub trait Slots {
    /// The slot at `index`; indices come from this table.
    fn slot(&self, index: u32) -> Option<&SharedSlot>;

    /// The hierarchy's root: it has a slot without a counter.
    fn root(&self) -> GroupId;

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
}

/// What files and descriptors stand for, by the kernel's own word. The answers come from
/// programs at what the asking thread reads: only the thread that started the programs
/// is answered. To read may take as long as a client's file likes, so nobody asks with a
/// lock held.
pub trait Identify: Slots {
    /// Whose usage file `fd` is. `fd` is open for reading.
    ///
    /// # Errors
    /// The programs could not be asked.
    fn locate(&self, fd: BorrowedFd<'_>) -> Result<Located>;

    /// Which file the eventfd `fd` is.
    ///
    /// # Errors
    /// The programs could not be asked.
    fn file_of(&self, fd: BorrowedFd<'_>) -> Result<FileId>;
}

/// Questions to the kernel side.
pub trait Source: Slots {
    /// Usage in pages, read from the kernel's own counter *now*; `None` when
    /// the group's counter is gone.
    ///
    /// # Errors
    /// The programs could not be asked.
    fn usage(&self, group: GroupId) -> Result<Option<u64>>;

    /// The highest usage so far, by the kernel's own mark, in pages; as
    /// [`Source::usage`].
    ///
    /// # Errors
    /// As [`Source::usage`].
    fn peak(&self, group: GroupId) -> Result<Option<u64>>;

    /// Memory+swap in pages, as [`Source::usage`].
    ///
    /// # Errors
    /// The programs could not be asked.
    fn sum(&self, group: GroupId) -> Result<Option<u64>>;

    /// The group's own limit in pages, as [`Source::usage`].
    ///
    /// # Errors
    /// The programs could not be asked.
    fn limit(&self, group: GroupId) -> Result<Option<u64>>;

    /// The lowest limit of the group and of all above it but the root, in pages, whether
    /// those are in the table or not; as [`Source::usage`].
    ///
    /// # Errors
    /// The programs could not be asked.
    fn lowest_limit(&self, group: GroupId) -> Result<Option<u64>>;

    /// The slot of the nearest group above that is in the table, or the root's, where the
    /// slot itself does not say it. The parent gets a slot, if there is room. `None` if it
    /// cannot be known, which is counted ([`LossKind::ParentUnknown`]).
    ///
    /// # Errors
    /// The programs could not be asked.
    fn above(&self, group: GroupId) -> Result<Option<u32>>;

    /// Whether there may be slots whose parent is unknown; asked once for each time that
    /// it becomes so.
    fn take_orphans(&self) -> bool;
    /// Reads usage, peak and limit of all live groups in `slots` into these: a few runs of a
    /// program, no system call for each group. See [`Slot::read_of`].
    ///
    /// [`Slot::read_of`]: monitor_common::slot::Slot::read_of
    ///
    /// # Errors
    /// The programs could not be asked.
    fn read_groups(&self, slots: Range<u32>) -> Result<()>;

    /// Whether the group is under OOM now.
    ///
    /// # Errors
    /// The programs could not be asked.
    fn is_under_oom(&self, group: GroupId) -> Result<bool>;

    /// A band was published where none was: ends the
    /// [`Epoch`](monitor_common::epoch::Epoch). A full barrier.
    ///
    /// # Errors
    /// The kernel did not do it: charges below that group may go unseen.
    fn end_epoch(&self) -> Result<()>;

    /// What the programs are to count from now on: bits of
    /// [`Subscriptions`](monitor_common::query::Wanted).
    fn want(&self, what: u64);

    /// The bands of all that goes on from an agent before are published: takes over what
    /// programs before had seen, which are let go, and counts what is `wanted` from here on.
    /// No slot was looked at since the bands were published: what both have seen is one.
    fn take_over(&mut self, wanted: u64) {
        self.want(wanted);
    }

    /// What this kernel can tell.
    fn features(&self) -> Features;

    /// References to each of `files`, in their order; 0 where they could not be counted.
    /// Of a file to which the caller holds no reference it is any number.
    ///
    /// # Errors
    /// The programs could not be asked.
    fn file_refs(&self, files: &[FileId]) -> Result<Vec<u64>>;

    /// Lets go of the slot of a group that is gone: it is given back, once no other below
    /// needs it.
    fn recycle(&mut self, slot: u32);

    /// Takes a watched slot away from its group, which is gone though no program was called
    /// for that; its last readings are in the slot. False when that was known already.
    ///
    /// # Errors
    /// The programs could not be asked.
    fn depart(&mut self, group: GroupId) -> Result<bool>;

    /// Gives back a slot that nobody needs; for those that an agent which was killed has
    /// left.
    fn tidy(&mut self, slot: u32);

    /// A count of losses.
    fn tally(&self, tally: LossKind) -> u64;

    /// Calls that the kernel kept from our programs (`recursion_misses`), by what makes up
    /// for them.
    fn misses(&self) -> Misses;

    /// All of them.
    fn skipped(&self) -> u64 {
        self.misses().total()
    }

    /// Adds to a count of losses.
    fn count(&self, tally: LossKind, by: u64);

    /// OOMs by the group's limit as the kernel has counted them, as [`Source::usage`].
    ///
    /// # Errors
    /// The programs could not be asked, or this kernel's count is not known.
    fn ooms(&self, group: GroupId) -> Result<Option<u64>>;

    /// Whether a task is in the group or below it, as [`Source::usage`].
    ///
    /// # Errors
    /// The programs could not be asked, or it is not known of this kernel.
    fn is_populated(&self, group: GroupId) -> Result<Option<bool>>;

    /// Whether a limit was written since [`Source::take_limits`].
    fn limits_were_written(&self) -> bool;

    /// What is written from here on rings anew.
    fn take_limits(&self);

    /// One record of what the OOM killer does has come out of the ring.
    fn take_victim(&self);

    /// [`Mark`](monitor_common::oom::Mark)s of threads: words with any, each with its index.
    fn thread_marks(&self) -> Vec<(u32, u64)>;

    /// Takes marks of [`Source::thread_marks`] away.
    fn forget_thread_marks(&self, word: u32, bits: u64);

    /// Unit of the packed band.
    fn band_shift(&self) -> u32;
}
