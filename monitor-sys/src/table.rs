//! Mapped memory that others write, too: arrays of plain atomic words, read and written
//! without a system call.

use std::{
    marker::PhantomData,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use monitor_common::protocol::{
    black_box::{BoxHead, BoxPoint},
    query::{FileRefs, QueryMailbox},
    ring::LossKind,
    slot::Slot,
};
use nix::{
    errno::Errno,
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};

/// A slot of the table that programs and agent share.
pub type SharedSlot = Slot<AtomicU64>;
/// A cell in which programs answer the agent.
pub type SharedScratch = QueryMailbox<AtomicU64>;
/// A file with its references, as programs count them.
pub type SharedFileRefs = FileRefs<AtomicU64>;

/// The head of a group's black box.
pub type SharedBoxHead = BoxHead<AtomicU64>;
/// A point in a group's black box.
pub type SharedBoxPoint = BoxPoint<AtomicU64>;

/// A mapped array of `T`: a BPF array (`BPF_F_MMAPABLE`), or a memory file.
#[derive(Debug)]
pub struct Table<T> {
    base: NonNull<T>,
    entries: usize,
    bytes: NonZeroUsize,
    _owns: PhantomData<T>,
}

/// Types that a mapped array may hold.
///
/// # Safety
/// The type consists of 64-bit atomics and of nothing else: no padding, so that its size is a
/// multiple of 8 bytes, and any bits are a valid value. Others may write to it at any time, in
/// this process or beyond. Its alignment is 4096 bytes at most, a page's.
pub unsafe trait MappedLayout {}
// SAFETY: it is one of them.
unsafe impl MappedLayout for AtomicU64 {}
// SAFETY: `repr(C)`, words and arrays of words, and no padding: its size is checked where it
// is defined.
unsafe impl MappedLayout for SharedSlot {}
// SAFETY: as above.
unsafe impl MappedLayout for SharedScratch {}
// SAFETY: as above.
unsafe impl MappedLayout for SharedFileRefs {}
// SAFETY: as above.
unsafe impl MappedLayout for SharedBoxHead {}
// SAFETY: as above.
unsafe impl MappedLayout for SharedBoxPoint {}
// SAFETY: an array has no padding between its elements, and their alignment.
unsafe impl<T: MappedLayout, const N: usize> MappedLayout for [T; N] {}

// SAFETY: the mapping belongs to the process and not to a thread, and by `MappedLayout`'s
// contract its elements are atomics, which may be used from any.
unsafe impl<T: MappedLayout> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T: MappedLayout> Sync for Table<T> {}

impl<T: MappedLayout> Table<T> {
    /// Maps the first `entries` elements of `file`, which is open for reading and writing.
    ///
    /// An element that the file does not have, or that is cut off later, is mapped, but ends
    /// the process by SIGBUS when it is used; a BPF array has all that can be mapped.
    ///
    /// # Errors
    /// `EINVAL` for no elements, and for more than a BPF array has; `ENOMEM` for more bytes
    /// than there is address space for; `EACCES` where the file is not open for both; `ENODEV`
    /// where it cannot be mapped.
    pub fn map(file: impl AsFd, entries: usize) -> Result<Self, Errno> {
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 4096) };
        let bytes = entries.checked_mul(size_of::<T>()).ok_or(Errno::ENOMEM)?;
        let bytes = NonZeroUsize::new(bytes).ok_or(Errno::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe { mmap(None, bytes, access, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self { base: base.cast(), entries, bytes, _owns: PhantomData })
    }

    /// The number of elements, which is at least 1.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries
    }

    /// Whether there are no elements: never, for nothing cannot be mapped.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// The element at `index`, counted from 0; `None` from [`len`](Self::len) on.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&T> {
        if index >= self.entries {
            return None;
        }
        // SAFETY: within the mapping, which has `entries` elements one after the other; the
        // kernel rounds a BPF array's to 8 bytes, which the size of `T` is a multiple of.
        let element = unsafe { self.base.add(index) };
        // SAFETY: the mapping lives as long as `self`, is aligned to a page, and whatever is
        // written to it is a valid `T`, by `MappedLayout`'s contract.
        Some(unsafe { element.as_ref() })
    }
}

impl Table<AtomicU64> {
    /// The count of a kind of loss, since the programs were loaded.
    #[must_use]
    pub fn tally(&self, tally: LossKind) -> u64 {
        self.get(tally as usize).map_or(0, |word| word.load(Ordering::Relaxed))
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `map`, with nothing borrowed from it left.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}

#[cfg(test)]
mod tests {
    use nix::{
        sys::memfd::{MFdFlags, memfd_create},
        unistd::ftruncate,
    };

    use super::*;

    #[test]
    fn two_tables_of_a_file_are_the_same_memory() -> nix::Result<()> {
        let file = memfd_create(c"table", MFdFlags::MFD_CLOEXEC)?;
        ftruncate(&file, 4096)?;
        let words: Table<AtomicU64> = Table::map(&file, 512)?;
        let lines: Table<[AtomicU64; 8]> = Table::map(&file, 64)?;
        words.get(63).expect("a word").store(7, Ordering::Relaxed);
        assert_eq!(lines.get(7).map(|line| line[7].load(Ordering::Relaxed)), Some(7));
        assert!(words.get(512).is_none() && lines.get(64).is_none());
        assert_eq!((words.len(), lines.len(), lines.is_empty()), (512, 64, false));
        Ok(())
    }

    #[test]
    fn nothing_and_too_much_cannot_be_mapped() -> nix::Result<()> {
        let file = memfd_create(c"table", MFdFlags::MFD_CLOEXEC)?;
        let map = |entries| Table::<SharedSlot>::map(&file, entries).err();
        assert_eq!(map(0), Some(Errno::EINVAL));
        // So many that their bytes are few again.
        assert_eq!(map(usize::MAX / size_of::<SharedSlot>() + 2), Some(Errno::ENOMEM));
        Ok(())
    }
}
