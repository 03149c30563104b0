//! The agent's view of the maps that both sides share: mapped memory, read and
//! written with plain atomics, no system call.

use std::{marker::PhantomData, num::NonZeroUsize, os::fd::AsFd, ptr::NonNull, sync::atomic::AtomicU64};

use monitor_common::{
    query::{FileRefs, QueryMailbox},
    ring::LossKind,
    slot::Slot,
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::error::{Error, Result};

/// A shared slot.
pub type SharedSlot = Slot<AtomicU64>;
/// The shared answer cell.
pub type SharedScratch = QueryMailbox<AtomicU64>;
/// A shared file, with its references.
pub type SharedFileRefs = FileRefs<AtomicU64>;

/// A mapped BPF array of `T`.
#[derive(Debug)]
pub struct Table<T> {
    base: NonNull<T>,
    entries: usize,
    bytes: NonZeroUsize,
    _owns: PhantomData<T>,
}

/// Types that a mapped array may hold: 64-bit atomics only, any bits valid.
pub trait MappedLayout {}
impl MappedLayout for AtomicU64 {}
impl MappedLayout for SharedSlot {}
impl MappedLayout for SharedScratch {}
impl MappedLayout for SharedFileRefs {}

// SAFETY: the memory is shared with the kernel anyway; `Shared` types are
// nothing but atomics.
unsafe impl<T: MappedLayout> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T: MappedLayout> Sync for Table<T> {}

impl<T: MappedLayout> Table<T> {
    /// Maps the array behind `map`, which has `entries` elements.
    ///
    /// # Errors
    /// `mmap` failed.
    pub fn map(map: impl AsFd, entries: usize, name: &str) -> Result<Self> {
        let bytes = NonZeroUsize::new(entries * size_of::<T>())
            .ok_or_else(|| Error::Host(format!("the map {name} is empty")))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe { mmap(None, bytes, access, MapFlags::MAP_SHARED, map, 0) }
            .map_err(|errno| Error::syscall(format!("mmap of the map {name}"), errno))?;
        Ok(Self { base: base.cast(), entries, bytes, _owns: PhantomData })
    }

    /// Number of elements.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries
    }

    /// Never: an empty array cannot be mapped.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// The element at `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&T> {
        if index >= self.entries {
            return None;
        }
        // SAFETY: within the mapping; the kernel rounds a BPF array's elements
        // to 8 bytes, and the size of `T` is a multiple of that.
        let element = unsafe { self.base.add(index) };
        // SAFETY: the mapping lives as long as `self`; see `Shared`.
        Some(unsafe { element.as_ref() })
    }
}

impl Table<AtomicU64> {
    /// The count of `tally`.
    #[must_use]
    pub fn tally(&self, tally: LossKind) -> u64 {
        self.get(tally as usize).map_or(0, |word| word.load(std::sync::atomic::Ordering::Relaxed))
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `map`, with nothing borrowed from it left.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}
